"""Docker's API, read only: the look-up in a hook, the look at everything, the events.

Docker holds a container's lock through its whole start, so inspecting it inside a hook blocks; listing does not.
While dockerd boots, its socket accepts and answers nobody until every restart-policy container has been started,
which waits for our hooks. So a hook's look-up is bounded in time, and after one failure no hook asks again until the
API has answered once.

Calls made (for those behind a socket proxy): GET /version, /info (Docker 24 to 27, and from 29), /events,
/networks, /networks/ID, /containers/json, /containers/ID/json, /images/ID/json.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, cast

import docker
from docker.errors import APIError, DockerException, NotFound
from requests.exceptions import RequestException

from plugin.docker import container_labels, images, parse, request
from plugin.docker.attachments import Inspections
from plugin.docker.bounded_json import LARGEST, Cut
from plugin.docker.container_labels import ContainerLabels
from plugin.docker.engine import noted
from plugin.docker.events import objects
from plugin.docker.parse import LIES
from plugin.docker.snapshot import DockerSnapshot
from plugin.fwctl.api.docker_firewall import Engine
from plugin.model import BridgeNetwork, Container, DockerUnavailable, Endpoint, Problem

#: One read of a hook's look-up, in seconds, and the whole of it: three or four calls, which take 3-10 ms together.
HOOK_TIMEOUT, HOOK_LIMIT = 0.3, 1.0
#: A call outside hooks, in seconds.
LOOK_TIMEOUT = 10.0
#: One container's inspection, in seconds: while it starts it does not answer.
INSPECT_TIMEOUT = 1.0
_LIST = "/containers/json"
_NEVER: Any = None  # requests takes None as a time-out; docker-py's stubs say int
log = logging.getLogger(__name__)
T = TypeVar("T")


class DockerApi:
    """`path` is the API's unix socket. Thread-safe; connects when first used, never when made.

    `trust_images`: labels that an image brought count like any.
    """

    def __init__(self, path: str, *, trust_images: bool = False) -> None:
        self._url, self._version = f"unix://{path}", ""
        self._local = threading.local()
        #: What is known of the daemon that answered last.
        self.engine = Engine()
        self._images = images.Images(trust=trust_images)
        #: By network ID, what compose's file calls it.
        self._keys: Mapping[str, str] = {}
        self._answering = True
        # Hooks ask in threads of these: a socket's time-out is for each read, and an answer may come in drops. None
        # of these inspects: an inspection waits for a start, which waits for a hook.
        self._hooks = ThreadPoolExecutor(16, "look-up")
        self.inspections = Inspections(lambda: self._client(INSPECT_TIMEOUT))

    def find(self, network_id: str, endpoint_id: str) -> Container | None:
        """The container behind an endpoint that is just being joined; None if Docker does not know it (yet).

        Bounded by HOOK_LIMIT. Raises DockerUnavailable, at once if the API was silent the last time.
        """
        if not self._answering:
            raise DockerUnavailable("Docker's API has not answered since the last time it was asked")
        try:
            return self._hooks.submit(self._find, network_id, endpoint_id).result(HOOK_LIMIT)
        except NotFound:
            return None
        except images.LateError as error:
            raise DockerUnavailable(f"endpoint {endpoint_id[:12]}: {error}") from error
        except (DockerException, RequestException, OSError, *LIES) as error:
            self._answering = isinstance(error, LIES) and not isinstance(error, RequestException)
            self._version = ""
            raise DockerUnavailable(
                f"Docker's API did not tell whose endpoint {endpoint_id[:12]} is: {error}"
            ) from error

    def _find(self, network_id: str, endpoint_id: str) -> Container | None:
        client = self._client(HOOK_TIMEOUT)
        network = request.one(client, "/networks/{0}", network_id)
        name = parse.endpoint_name(network, endpoint_id)
        if name is None:
            return None
        filters = json.dumps({"name": [f"^/{re.escape(name)}$"]})
        for listed in request.several(client, _LIST, all="1", filters=filters):
            if isinstance(listed, Cut):  # only one has this name
                return Container(listed.id, name, problems=(_too_large(name),))
            if f"/{name}" in (listed.get("Names") or []):
                who = self._images.read(client, listed, hook=True)
                return container_labels.at(who, str(network.get("Name") or ""), container_labels.compose_key(network))
        return None

    def bridges(self) -> tuple[frozenset[str], bool]:
        """The names of the bridges of Docker networks, and whether all of its list was understood.

        Raises DockerUnavailable.
        """
        with self._asking():
            return parse.bridges(request.several(self._client(LOOK_TIMEOUT), "/networks"))

    def look(self) -> DockerSnapshot:
        """Asks for everything. Raises DockerUnavailable."""
        with self._asking():
            client = self._client(LOOK_TIMEOUT)
            all_networks = parse.many(request.several(client, "/networks"))
            listed_networks = [raw for raw in all_networks if _read(parse.identity, raw)]
            networks = tuple(found for raw in listed_networks if (found := _read(parse.network, raw)))
            self._keys = keys = {raw["Id"]: _read(container_labels.compose_key, raw) or "" for raw in listed_networks}
            containers: dict[str, Container] = {}
            endpoints: dict[str, Endpoint] = {}
            not_guarded: dict[str, str] = {}
            running: list[tuple[ContainerLabels, Any]] = []
            unsure: set[str] = set()
            told = parse.many(request.several(client, _LIST, parse.needed, all="1"))
            for each in (too_large := [each for each in told if isinstance(each, Cut)]):
                not_guarded[each.name or each.id[:12]] = each.CLOSED
                log.error("container %s %s", each.id[:12], each.CLOSED)
            rest = [each for each in told if not isinstance(each, Cut)]
            everybody = [each for each in rest if _read(parse.identity, each)]
            there = [each for each in everybody if each.get("State") in ("running", "paused", "restarting")]
            idle, large = parse.idle(everybody), [each.id for each in too_large if each.id]
            self.inspections.idle([*idle, *large])
            for listed, options in zip(there, self.inspections.all(there), strict=True):
                try:
                    who, why = self._images.read(client, listed), parse.not_guarded(listed)
                except (APIError, *LIES) as error:
                    # What cannot be read of a container or its image closes that container, and nobody else.
                    log.error("container %s stays closed: %s", str(listed.get("Id"))[:12], error)
                    continue
                if why:
                    not_guarded[who.name] = why
                running.append((who, listed))
                places = partial(parse.endpoints, who=who, keys=keys, options=options or {})
                for endpoint in _read(places, listed) or ():
                    if options is None:
                        unsure.add(endpoint.id)
                    if endpoint.container:
                        containers[endpoint.id] = endpoint.container
                    endpoints[endpoint.id] = endpoint
            # Swarm's containers have a second place there, with their published ports, which is in no own list.
            if gwbridge := next((n for n in networks if n.name == "docker_gwbridge"), None):
                inspected = _read(partial(request.one, client, "/networks/{0}"), gwbridge.id) or {}
                for who, listed in running:
                    if place := _read(partial(parse.attached, who=who, options={}, listed=listed), inspected):
                        endpoints.setdefault(place.id, place)
        self._answering = True
        existing = frozenset([*(listed["Id"] for listed in everybody), *large])
        self.inspections.retain(existing)
        names = container_labels.known_names(listed_networks)
        whole, on = len(existing) == len(told), tuple(endpoints.values())
        # Docker has always some of its own (`host`, `none`): an empty list says nothing.
        known = frozenset(keys) if keys and len(listed_networks) == len(all_networks) else None
        # What is too large to be read publishes what it asks for; without an ID that is not known.
        ports = parse.all_published(everybody) if len(large) == len(too_large) else None
        return DockerSnapshot(
            containers, networks, on, not_guarded, existing, names, frozenset(unsure), whole, known, idle, ports
        )

    def guest(self, network_id: str, container_id: str) -> tuple[BridgeNetwork, Endpoint, bool] | None:
        """A container that is being connected to a network of Docker's own bridge driver. Raises DockerUnavailable.

        The last part is False while it is not known what its attachment says: until it has started Docker does not
        tell, unless it was asked before.
        """
        with self._asking():
            client = self._client(LOOK_TIMEOUT)
            inspected = request.one(client, "/networks/{0}", network_id)
            network = parse.network(inspected)
            listed = _container(client, container_id, all="1") if network else None
            if network and listed:
                options = self.inspections.get(container_id, network.name)
                if options is None and listed.get("State") == "running" and self.inspections.ask(container_id):
                    options = self.inspections.get(container_id, network.name)
                who = self._images.read(client, listed)
                endpoint = parse.attached(inspected, who, options or {})
                if endpoint and not self.inspections.publishes(container_id):
                    endpoint = replace(endpoint, unlisted=False)
                return (network, endpoint, options is not None) if endpoint else None
        return None

    def running(self, container_id: str) -> list[Endpoint]:
        """A running container's endpoints, with its published ports. Raises DockerUnavailable."""
        with self._asking():
            client = self._client(LOOK_TIMEOUT)
            listed = _container(client, container_id)
            if not listed:
                return []
            who, options = self._images.read(client, listed), self.inspections.options(listed)
            if options is None:
                raise DockerUnavailable(f"Docker did not tell of the attachments of {who.name}")
            return parse.endpoints(listed, who, self._keys, options)

    def created(self, container_id: str) -> None:
        """Asks what a container's attachments say and which ports it wants, before it starts. Waits for no answer."""
        self.inspections.created(container_id)

    def events(self) -> Iterator[parse.Event]:
        """What happens; ends when the stream ends. Raises DockerUnavailable.

        The first is "subscribed": look at everything after it, for what came before is not told again.
        """
        with self._asking():
            # No read time-out: the stream may be quiet for days. A dockerd that ends closes it.
            client = docker.APIClient(base_url=self._url, version=self._negotiated(_NEVER), timeout=_NEVER)
            stream = request.stream(client, "/events", filters=json.dumps({"type": ["container", "network"]}))
        self._answering = True
        self._images.anew()
        try:
            yield parse.Event("subscribed")
            yield from map(parse.event, objects(stream))
        except (DockerException, RequestException, OSError) as error:
            log.debug("the event stream ended: %s", error)
        except ValueError as error:
            log.error("Docker tells something that docker-fw does not understand, it is asked anew: %s", error)
        finally:
            self._version = ""  # the next daemon may be of another version
            client.close()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except (DockerException, RequestException, OSError, *LIES) as error:
            self._version = ""
            raise DockerUnavailable(f"Docker's API did not answer: {error}") from error

    def _negotiated(self, timeout: Any) -> str:
        if not self._version:
            client = docker.APIClient(base_url=self._url, version="1.41", timeout=timeout)
            try:
                told = client.version(api_version=False)
                engine = Engine(str(told.get("Version") or ""))
                if engine.major >= 29:
                    # Without a version, for the newest answer: older ones lack the field, and 29 refuses 1.41.
                    raw: Any = client
                    info = raw._result(raw._get(raw._url("/info", versioned_api=False)), json=True)
                    backend = info.get("FirewallBackend") or {}
                    engine = replace(engine, backend=str(backend.get("Driver") or ""))
                self.engine = noted(engine, self.engine)
            finally:
                client.close()
            self._images.anew()
            self._version = request.version(told)
        return self._version

    def _client(self, timeout: Any) -> docker.APIClient:
        version = self._negotiated(timeout)
        kept: dict[tuple[str, Any], docker.APIClient] = self._local.__dict__.setdefault("clients", {})
        key = (version, timeout)
        if key not in kept:
            for old in [old for old in kept if old[0] != version]:
                kept.pop(old).close()
            kept[key] = docker.APIClient(base_url=self._url, version=version, timeout=timeout)
        return kept[key]


def _container(client: docker.APIClient, container_id: str, **query: str) -> Mapping[str, Any] | None:
    """One container as Docker lists it; None if it does not, or if that is too large to be read: it stays closed."""
    filters = json.dumps({"id": [container_id]})
    for listed in request.several(client, _LIST, parse.needed, filters=filters, **query):
        if isinstance(listed, Cut):
            log.error("container %s %s", container_id[:12], listed.CLOSED)
            return None
        return cast(Mapping[str, Any], listed)
    return None


def _too_large(name: str) -> Problem:
    why = f"its entry in Docker's list exceeds {LARGEST >> 20} MiB, so its labels are not read"
    return Problem("container", name, f"{why}; give it fewer or shorter ones", confines=True)


def _read(read: Callable[[Any], T], raw: Any) -> T | None:
    """One of many: what is not as it should be is told and left out, so closed, and the others are read."""
    try:
        return read(raw)
    except LIES as error:
        log.error("Docker listed something that docker-fw does not understand; it stays closed: %s", error)
        return None
