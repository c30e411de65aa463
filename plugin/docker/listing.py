"""Convert Docker's lists of all networks and all containers to one DockerSnapshot.

Anything that cannot be understood is logged and left out, so it stays closed; nothing else is affected.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from plugin.docker import container_labels, parse
from plugin.docker.attachments import Options
from plugin.docker.boundary import understood
from plugin.docker.bounded_json import Cut
from plugin.docker.container_labels import ContainerLabels, own_names
from plugin.docker.snapshot import DockerSnapshot
from plugin.model import Container, Endpoint

#: The second network of swarm's containers, in addition to the overlay. It is not in any container's own entry.
GWBRIDGE = "docker_gwbridge"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunningContainer:
    """`entry`: as `GET /containers/json` lists it. `options`: the `driver_opts` of its attachments; None: unknown."""

    labels: ContainerLabels
    entry: Mapping[str, Any]
    options: Options | None


class Listing:
    """`networks` and `containers`: the two lists. Raises ValueError if one is not a list from Docker."""

    def __init__(self, networks: Any, containers: Any) -> None:
        all_networks, self._all_containers = parse.many(networks), parse.many(containers)
        self._networks = [raw for raw in all_networks if understood(parse.identity, raw)]
        self._networks_complete = len(self._networks) == len(all_networks)
        self.bridge_networks = tuple(found for raw in self._networks if (found := understood(parse.network, raw)))
        #: By network ID, its key in the compose file.
        self.compose_keys = {raw["Id"]: understood(container_labels.compose_key, raw) or "" for raw in self._networks}
        self._bypassing = {raw["Id"]: driver for raw in self._networks if (driver := understood(parse.bypassing, raw))}
        self._too_large = [entry for entry in self._all_containers if isinstance(entry, Cut)]
        for cut in self._too_large:
            log.error("container %s %s", cut.id[:12], cut.CLOSED)
        entries = [entry for entry in self._all_containers if not isinstance(entry, Cut)]
        self._containers = [entry for entry in entries if understood(parse.identity, entry)]

    @property
    def container_ids(self) -> frozenset[str]:
        """The IDs of all containers, also of those whose entry is too large to be read."""
        return frozenset([*(entry["Id"] for entry in self._containers), *(cut.id for cut in self._too_large if cut.id)])

    @property
    def ids(self) -> dict[str, str]:
        """The containers' IDs by name."""
        return {name: each["Id"] for each in self._containers for name in understood(own_names, each) or ()}

    @property
    def running(self) -> list[Mapping[str, Any]]:
        """The entries of containers that have endpoints."""
        return [entry for entry in self._containers if entry.get("State") in ("running", "paused", "restarting")]

    @property
    def uninspected(self) -> list[str]:
        """The IDs of containers whose entry does not have their published ports: they do not run, or it is cut."""
        return [*parse.not_running(self._containers), *(cut.id for cut in self._too_large if cut.id)]

    @property
    def gwbridge(self) -> str:
        """The ID of docker_gwbridge; "" if there is none."""
        return next((network.id for network in self.bridge_networks if network.name == GWBRIDGE), "")

    def snapshot(self, running: Collection[RunningContainer], gwbridge: Mapping[str, Any]) -> DockerSnapshot:
        """Return the snapshot. `gwbridge`: docker_gwbridge as `GET /networks/ID` shows it; {} if there is none."""
        containers: dict[str, Container] = {}
        endpoints: dict[str, Endpoint] = {}
        not_guarded = {cut.name or cut.id[:12]: cut.CLOSED for cut in self._too_large}
        unconfirmed: set[str] = set()
        for container in running:
            if why := parse.not_guarded(container.entry, self._bypassing):
                not_guarded[container.labels.name] = why
            for endpoint in self._endpoints(container):
                endpoints[endpoint.id] = endpoint
                if endpoint.container:
                    containers[endpoint.id] = endpoint.container
                if container.options is None:
                    unconfirmed.add(endpoint.id)
        for container in running if gwbridge else ():
            if place := _on_gwbridge(gwbridge, container):
                endpoints.setdefault(place.id, place)
        # A container whose entry is too large counts as publishing the ports it requests; without its ID they are
        # unknown.
        identified = all(cut.id for cut in self._too_large)
        # Docker always has some default networks (`host`, `none`): an empty list proves nothing.
        networks_known = self.compose_keys and self._networks_complete
        return DockerSnapshot(
            containers=containers,
            networks=self.bridge_networks,
            endpoints=tuple(endpoints.values()),
            not_guarded=not_guarded,
            container_ids=self.container_ids,
            network_names=container_labels.known_names(self._networks),
            unconfirmed=frozenset(unconfirmed),
            complete=len(self.container_ids) == len(self._all_containers),
            network_ids=frozenset(self.compose_keys) if networks_known else None,
            published=parse.all_published(self._containers) if identified else None,
            renaming=any(len(container_labels.own_names(each.entry)) > 1 for each in running),
        )

    def _endpoints(self, container: RunningContainer) -> Iterable[Endpoint]:
        read = partial(
            parse.endpoints, labels=container.labels, keys=self.compose_keys, options=container.options or {}
        )
        return understood(read, container.entry) or ()


def _on_gwbridge(network: Mapping[str, Any], container: RunningContainer) -> Endpoint | None:
    """Return the container's second endpoint, with its published ports, which is in no list of containers."""
    return understood(partial(parse.attached, labels=container.labels, options={}, listed=container.entry), network)
