"""What Docker tells of one container at a time: what its attachments say (`driver_opts`), which ports it asks for.

A container that is starting cannot be inspected: Docker holds its lock. So it is asked when it has been created, and
once each time it has started; one that does not run when docker-fw comes, with the first look. Thread-safe.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import docker
from docker.errors import DockerException
from requests.exceptions import RequestException

from plugin.docker import parse, request
from plugin.docker.parse import LIES
from plugin.policy.requested_ports import Asked, asked

#: By network, by name.
Options = Mapping[str, Mapping[str, Any]]
#: Containers that do not run that are asked for at one look.
MOST = 200
log = logging.getLogger(__name__)


class Attachments:
    """Options of containers' attachments to networks, as Docker's inspect showed them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[tuple[str, ...], Options]] = {}

    def fits(self, container_id: str, places: tuple[str, ...]) -> bool:
        """True if it was asked since the container has these endpoints."""
        with self._lock:
            return container_id in self._known and self._known[container_id][0] == places

    def put(self, container_id: str, places: tuple[str, ...], options: Options) -> None:
        """Keep a container's options, for the networks and addresses that it had then."""
        with self._lock:
            self._known[container_id] = (places, options)

    def of(self, container_id: str) -> Options:
        """A container's options; empty if it was not inspected."""
        with self._lock:
            return self._known[container_id][1] if container_id in self._known else {}

    def get(self, container_id: str, network: str) -> Mapping[str, Any] | None:
        """None if it is not known."""
        return self.of(container_id).get(network)

    def retain(self, existing: Collection[str]) -> None:
        """Only these containers exist."""
        with self._lock:
            self._known = {k: v for k, v in self._known.items() if k in existing}


class Inspections(Attachments):
    """`client` is Docker's API with the time-out of an inspection. None of these waits for a hook, nor a hook for it.

    `asks` takes what a container asks for; `lacks` tells of which of these containers that is not known.
    """

    def __init__(self, client: Callable[[], docker.APIClient]) -> None:
        super().__init__()
        self._client = client
        self._threads = ThreadPoolExecutor(8, "inspection")
        #: Containers that publish no port at all.
        self._unpublished: set[str] = set()
        self.asks: Callable[[str, tuple[Asked, ...]], None] = lambda *_: None
        self.lacks: Callable[[Iterable[str]], list[str]] = lambda _: []

    def created(self, container_id: str) -> None:
        """Before it starts. Waits for no answer: it may be starting now."""
        self._threads.submit(self.ask, container_id)

    def publishes(self, container_id: str) -> bool:
        """False if the container asks for no port of the host; that never changes. True also where it is not known."""
        return container_id not in self._unpublished

    def retain(self, existing: Collection[str]) -> None:
        """Forget containers that do not exist any more."""
        super().retain(existing)
        self._unpublished &= set(existing)

    def all(self, listed: Collection[Mapping[str, Any]]) -> list[Options | None]:
        """Of each of these running containers what its attachments say; None where Docker does not tell."""
        return list(self._threads.map(self.options, listed))

    def idle(self, containers: Iterable[str]) -> None:
        """Asks what these ask for: containers that do not run, or of which the list does not tell."""
        list(self._threads.map(self.ask, self.lacks(containers)[:MOST]))

    def options(self, listed: Mapping[str, Any]) -> Options | None:
        """By network, a running container's `driver_opts`, which no list tells; asked for once each time it starts.

        None if Docker does not tell: one container that hangs must not hold up the others.
        """
        container_id = str(listed["Id"])
        try:
            places = parse.places(listed)
        except LIES as error:
            log.error("container %s is listed in a way that is not understood: %s", container_id[:12], error)
            return None
        if not self.fits(container_id, places) and not self.ask(container_id, places):
            return None
        return self.of(container_id)

    def ask(self, container_id: str, places: tuple[str, ...] = ()) -> bool:
        """Inspect a container and keep the answer. False if that is missing or incomplete."""
        try:
            # Its labels may be megabytes. Which ports it asks for is told before them.
            inspected, whole = request.beginning(self._client(), "/containers/{0}/json", container_id)
            if whole:
                self.put(container_id, places, parse.driver_options(inspected))
        except (DockerException, RequestException, OSError, *LIES) as error:
            log.debug("container %s: %s", container_id[:12], error)
            return False
        try:
            ports = asked(inspected)
            if not ports:
                self._unpublished.add(container_id)
            self.asks(container_id, ports)
        except LIES as error:
            log.error("container %s asks for ports that docker-fw does not understand: %s", container_id[:12], error)
        return whole
