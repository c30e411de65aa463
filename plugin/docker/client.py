"""Docker's API, read only: the look-up in a hook, the full listing, the events.

Docker holds a container's lock through its whole start, so inspecting it inside a hook blocks; listing does not. While
dockerd boots, its socket accepts connections but answers none until every restart-policy container has been started,
which waits for docker-fw's hooks. So a hook's look-up is bounded in time, and after one failure no hook asks again
until the API has answered once.

Calls (to be allowed by a socket proxy): GET /version, /info (Docker 24 to 27, and from 29), /events, /networks,
/networks/ID, /containers/json, /containers/ID/json, /images/ID/json.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import Any

import docker
from docker.errors import APIError, NotFound

from plugin.docker import container_labels, images, one_endpoint, parse, request
from plugin.docker.attachments import Inspections
from plugin.docker.boundary import FAILED, answered_wrongly, understood
from plugin.docker.bounded_json import LARGEST, Cut
from plugin.docker.connection import Connection
from plugin.docker.engine import Engine
from plugin.docker.events import objects
from plugin.docker.listing import Listing, RunningContainer
from plugin.docker.snapshot import DockerSnapshot
from plugin.model import BridgeNetwork, Container, DockerUnavailable, Endpoint, Problem

#: Seconds for one read of a hook's look-up, and for the whole of it: three or four calls, which take 3-10 ms together.
HOOK_TIMEOUT, HOOK_LIMIT = 0.3, 1.0
#: Seconds for a call outside hooks.
LOOK_TIMEOUT = 10.0
#: Seconds for one container's inspection: Docker does not answer while the container starts.
INSPECT_TIMEOUT = 1.0
_LIST = "/containers/json"
_NEVER: Any = None  # requests takes None as a time-out; docker-py's stubs say int
log = logging.getLogger(__name__)


class DockerApi:
    """`path` is the API's unix socket. Thread-safe; connects when first used, not when created.

    `trust_images`: labels that come from an image count like any others. Each call raises DockerUnavailable if it
    fails.
    """

    def __init__(self, path: str, *, trust_images: bool = False) -> None:
        self._images = images.Images(trust=trust_images)
        self._connection = Connection(path, reconnected=self._images.forget_store)
        #: By network ID, its key in the compose file.
        self._compose_keys: Mapping[str, str] = {}
        #: By name, the ID of the container that had it when it was created or listed last; and those created since the
        #: last full listing was requested, which may lack them.
        self._ids: dict[str, str] = {}
        self._new_ids: dict[str, str] = {}
        self._answering = True
        self._two_names = False
        # Hooks ask in threads of this pool: a socket's time-out is for each read, and an answer may arrive in small
        # pieces. None of these threads inspects a container: an inspection waits for a start, which waits for a hook.
        self._hooks = ThreadPoolExecutor(16, "look-up")
        self.inspections = Inspections(lambda: self._connection.client(INSPECT_TIMEOUT))

    @property
    def engine(self) -> Engine:
        """Return what is known of the daemon that answered last."""
        return self._connection.engine

    # --- in a hook ------------------------------------------------------------------------------------------------

    def find(self, network_id: str, endpoint_id: str) -> Container | None:
        """Return the container of an endpoint that is just being joined; None if Docker does not know it (yet).

        Takes HOOK_LIMIT at most, and no time if the API did not answer the last time.
        """
        if not self._answering:
            raise DockerUnavailable("Docker's API has not answered the last request")
        try:
            with self._connection.answers(f"Docker's API did not report the container of endpoint {endpoint_id[:12]}"):
                return self._hooks.submit(self._find, network_id, endpoint_id).result(HOOK_LIMIT)
        except images.LateError as error:
            raise DockerUnavailable(f"endpoint {endpoint_id[:12]}: {error}") from error
        except DockerUnavailable as error:
            self._answering = answered_wrongly(error)
            raise

    def _find(self, network_id: str, endpoint_id: str) -> Container | None:
        client = self._connection.client(HOOK_TIMEOUT)
        try:
            network = one_endpoint.of_endpoint(request.text(client, "/networks/{0}", network_id), endpoint_id)
        except NotFound:
            return None
        name = parse.endpoint_name(network, endpoint_id)
        entry = self._named(client, name) if name is not None else None
        if name is None or entry is None:
            return None
        if isinstance(entry, Cut):
            return Container(entry.id, name, problems=(_too_large(name),))
        labels = self._images.read(client, entry, hook=True)
        return container_labels.on_network(
            labels, str(network.get("Name") or ""), container_labels.compose_key(network)
        )

    def _named(self, client: docker.APIClient, name: str) -> Mapping[str, Any] | Cut | None:
        """Return the container that has this name now, as Docker lists it.

        Docker compares each container with a name (20 ms for 2,000), and finds an ID at once (0.4 ms). So the
        container that had the name when docker-fw last learned it is requested first. Whether it has the name now
        is for Docker's answer to say.
        """
        entry: Mapping[str, Any] | Cut
        if container_id := self._ids.get(name):
            for entry in request.several(client, _LIST, all="1", filters=json.dumps({"id": [container_id]})):
                if not isinstance(entry, Cut) and _has_name(entry, name):
                    return entry
        filters = json.dumps({"name": [f"^/{re.escape(name)}$"]})
        for entry in request.several(client, _LIST, all="1", filters=filters):
            if isinstance(entry, Cut) or _has_name(entry, name):  # only one container has this name
                return entry
        return None

    # --- full listing ---------------------------------------------------------------------------------------------

    def bridges(self) -> tuple[frozenset[str], bool]:
        """Return the names of the bridges of Docker networks, and whether Docker's list was understood completely."""
        with self._connection.answers():
            return parse.bridges(request.several(self._connection.client(LOOK_TIMEOUT), "/networks"))

    def look(self) -> DockerSnapshot:
        """Return all networks and containers."""
        with self._connection.answers():
            client = self._connection.client(LOOK_TIMEOUT)
            self._new_ids = {}
            networks = request.several(client, "/networks")
            listing = Listing(networks, request.several(client, _LIST, parse.needed, all="1"))
            self._compose_keys = listing.compose_keys
            self._ids = {**listing.ids, **self._new_ids}
            self.inspections.ask_ports(listing.uninspected)
            running = list(self._running(client, listing.running))
            inspect = partial(request.one, client, "/networks/{0}")
            gwbridge = (understood(inspect, listing.gwbridge) if listing.gwbridge else None) or {}
        self._answering = True
        self.inspections.retain(listing.container_ids)
        return listing.snapshot(running, gwbridge)

    def _running(self, client: docker.APIClient, entries: list[Mapping[str, Any]]) -> Iterator[RunningContainer]:
        for entry, options in zip(entries, self.inspections.all(entries), strict=True):
            # A container or image that cannot be read closes that container only.
            what = f"container {str(entry.get('Id'))[:12]} stays closed"
            labels = understood(partial(self._images.read, client), entry, APIError, what=what)
            if labels and understood(parse.not_guarded, entry, what=what) is not None:
                yield RunningContainer(labels, entry, options)

    # --- one container --------------------------------------------------------------------------------------------

    def guest(self, network_id: str, container_id: str) -> tuple[BridgeNetwork, Endpoint, bool] | None:
        """Return the network and endpoint of a container that is being connected to a Docker bridge network.

        The last part is False while the options of its attachment are unknown: Docker does not report them until the
        container has started, unless they were requested before.
        """
        with self._connection.answers():
            client = self._connection.client(LOOK_TIMEOUT)
            answer = request.text(client, "/networks/{0}", network_id)
            network = parse.network(one_endpoint.network(answer))
            entry = self._container(client, container_id, all="1") if network else None
            if not network or not entry:
                return None
            options = self.inspections.get(container_id, network.name)
            if options is None and entry.get("State") == "running" and self.inspections.ask(container_id):
                options = self.inspections.get(container_id, network.name)
            labels = self._images.read(client, entry)
            inspected = one_endpoint.of_container(answer, labels.id, labels.name)
            endpoint = parse.attached(inspected, labels, options or {})
            if endpoint and not self.inspections.publishes(container_id):
                endpoint = replace(endpoint, unlisted=False)
            return (network, endpoint, options is not None) if endpoint else None

    def running(self, container_id: str) -> list[Endpoint]:
        """Return a running container's endpoints, with its published ports."""
        with self._connection.answers():
            client = self._connection.client(LOOK_TIMEOUT)
            entry = self._container(client, container_id)
            if not entry:
                return []
            labels, options = self._images.read(client, entry), self.inspections.options(entry)
            if options is not None:
                return parse.endpoints(entry, labels, self._compose_keys, options)
        raise DockerUnavailable(f"Docker does not report the attachments of {labels.name} yet")

    def two_names(self) -> bool:
        """True if one of the two had a container with two names since the last call: it is being renamed."""
        found, self._two_names = self._two_names, False
        return found

    def _container(self, client: docker.APIClient, container_id: str, **query: str) -> Mapping[str, Any] | None:
        entry = _container(client, container_id, **query)
        self._two_names |= entry is not None and len(container_labels.own_names(entry)) > 1
        return entry

    def created(self, container_id: str, name: str = "") -> None:
        """Ask for a container's attachments and ports before it starts. Does not wait for the answer."""
        if name:
            self._ids[name] = self._new_ids[name] = container_id
        self.inspections.created(container_id)

    # --- events ---------------------------------------------------------------------------------------------------

    def events(self) -> Iterator[parse.Event]:
        """Yield Docker's events, until the stream ends.

        The first is "subscribed": list everything after it, because earlier events are not repeated.
        """
        filters = json.dumps({"type": ["container", "network"]})
        with ExitStack() as stack:
            with self._connection.answers():
                # No read time-out: the stream may be quiet for days. A dockerd that ends closes it.
                client = stack.enter_context(closing(self._connection.new_client(_NEVER)))
                stream = stack.enter_context(request.stream(client, "/events", filters=filters))
            stack.callback(self._connection.lost)
            self._answering = True
            self._images.forget_store()
            try:
                yield parse.Event("subscribed")
                yield from map(parse.event, objects(stream))
            except FAILED as error:
                log.debug("the event stream ended: %s", error)
            except ValueError as error:
                log.error("Docker sent an event that docker-fw cannot read; subscribing again: %s", error)


def _has_name(entry: Mapping[str, Any], name: str) -> bool:
    return f"/{name}" in (entry.get("Names") or [])


def _container(client: docker.APIClient, container_id: str, **query: str) -> Mapping[str, Any] | None:
    """Return one container as Docker lists it.

    The result is None if it is not listed, or if its entry is too large: then it stays closed.
    """
    filters = json.dumps({"id": [container_id]})
    for entry in request.several(client, _LIST, parse.needed, filters=filters, **query):
        if isinstance(entry, Cut):
            log.error("container %s %s", container_id[:12], entry.CLOSED)
            return None
        found: Mapping[str, Any] = entry
        return found
    return None


def _too_large(name: str) -> Problem:
    why = f"its entry in Docker's list exceeds {LARGEST >> 20} MiB, so its labels are not read"
    return Problem("container", name, f"{why}; give it fewer or shorter ones", confines=True)
