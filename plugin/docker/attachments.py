"""Data that Docker reports only for one inspected container: `driver_opts` of attachments, ports to publish.

A container that is starting cannot be inspected, because Docker holds its lock. So each container is inspected after
it was created and once after each start. One that was stopped when docker-fw started is inspected with the first full
listing. Thread-safe.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import docker

from plugin.docker import parse, request
from plugin.docker.boundary import answers, understood
from plugin.docker.requested_ports import requested
from plugin.model import DockerUnavailable, RequestedPorts

#: By network name, the attachment's `driver_opts`.
Options = Mapping[str, Mapping[str, Any]]
#: Maximum number of stopped containers that are inspected in one full listing.
MOST = 200
log = logging.getLogger(__name__)


class Attachments:
    """The known options of each container's attachments."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[tuple[str, ...], Options]] = {}

    def is_current(self, container_id: str, endpoint_ids: tuple[str, ...]) -> bool:
        """True if the container was inspected since it has these endpoints."""
        with self._lock:
            return container_id in self._known and self._known[container_id][0] == endpoint_ids

    def put(self, container_id: str, endpoint_ids: tuple[str, ...], options: Options) -> None:
        """Store the options of an inspected container, which has these endpoints."""
        with self._lock:
            self._known[container_id] = (endpoint_ids, options)

    def all_of(self, container_id: str) -> Options:
        """Return the options of each of the container's attachments; {} if unknown."""
        with self._lock:
            return self._known[container_id][1] if container_id in self._known else {}

    def get(self, container_id: str, network: str) -> Mapping[str, Any] | None:
        """Return the options of one attachment, by the network's name; None if unknown."""
        return self.all_of(container_id).get(network)

    def retain(self, existing: Collection[str]) -> None:
        """Forget all other containers: they do not exist any more."""
        with self._lock:
            self._known = {k: v for k, v in self._known.items() if k in existing}


class Inspections(Attachments):
    """Inspects containers, in threads that never wait for a hook.

    `client`: with the time-out of an inspection. `asks` is called with the ports that a container will publish.
    `lacks` returns those of the given containers whose ports are unknown.
    """

    def __init__(self, client: Callable[[], docker.APIClient]) -> None:
        super().__init__()
        self._client = client
        self._threads = ThreadPoolExecutor(8, "inspection")
        #: Containers that publish no port.
        self._unpublished: set[str] = set()
        self.asks: Callable[[str, tuple[RequestedPorts, ...]], None] = lambda *_: None
        self.lacks: Callable[[Iterable[str]], list[str]] = lambda _: []

    def created(self, container_id: str) -> None:
        """Inspect a new container before it starts. Does not wait for the answer: it may be starting now."""
        self._threads.submit(self.ask, container_id)

    def publishes(self, container_id: str) -> bool:
        """False if the container publishes no port; that never changes. True if unknown."""
        return container_id not in self._unpublished

    def retain(self, existing: Collection[str]) -> None:
        """Forget containers that do not exist any more."""
        super().retain(existing)
        self._unpublished &= set(existing)

    def all(self, listed: Collection[Mapping[str, Any]]) -> list[Options | None]:
        """Return the attachments' options of each of these running containers; None if Docker does not answer."""
        return list(self._threads.map(self.options, listed))

    def ask_ports(self, containers: Iterable[str]) -> None:
        """Request the published ports of containers that do not run, or whose entry in the list is cut."""
        list(self._threads.map(self.ask, self.lacks(containers)[:MOST]))

    def options(self, listed: Mapping[str, Any]) -> Options | None:
        """Return a running container's options, inspected once after each start, because no list has them.

        The result is None if Docker does not answer: one container that hangs must not delay the others.
        """
        container_id = str(listed["Id"])
        what = f"container {container_id[:12]} has an entry in Docker's list that docker-fw cannot read"
        endpoint_ids = understood(parse.endpoint_ids, listed, what=what)
        if endpoint_ids is None:
            return None
        if not self.is_current(container_id, endpoint_ids) and not self.ask(container_id, endpoint_ids):
            return None
        return self.all_of(container_id)

    def ask(self, container_id: str, endpoint_ids: tuple[str, ...] = ()) -> bool:
        """Inspect one container. False if Docker does not answer, or the answer is incomplete."""
        try:
            with answers(f"container {container_id[:12]}"):
                # Its labels may be megabytes. The published ports precede them.
                inspected, complete = request.beginning(self._client(), "/containers/{0}/json", container_id)
                if complete:
                    self.put(container_id, endpoint_ids, parse.driver_options(inspected))
        except DockerUnavailable as error:
            log.debug("%s", error)
            return False
        what = f"container {container_id[:12]} publishes ports that docker-fw cannot read"
        ports = understood(requested, inspected, what=what)
        if ports is not None:
            if not ports:
                self._unpublished.add(container_id)
            self.asks(container_id, ports)
        return bool(complete)
