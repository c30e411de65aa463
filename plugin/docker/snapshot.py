"""Everything that Docker's API lists at one moment. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from plugin.model import BridgeNetwork, Container, Endpoint, Published, TrackedEndpoint
from plugin.policy.facts import Facts
from plugin.policy.frozen import FrozenDict


@dataclass(frozen=True, slots=True)
class DockerSnapshot:
    """Everything that Docker's API lists at one moment."""

    #: By endpoint ID, on networks of any driver.
    containers: Mapping[str, Container] = field(default_factory=dict)
    #: The networks of Docker's bridge driver.
    networks: tuple[BridgeNetwork, ...] = ()
    #: The running containers' endpoints, on networks of any driver.
    endpoints: tuple[Endpoint, ...] = ()
    #: Containers that docker-fw does not filter, or not on all their networks, by name, with the reason.
    not_guarded: Mapping[str, str] = field(default_factory=dict)
    #: The IDs of all containers, stopped ones included.
    container_ids: frozenset[str] = frozenset()
    #: The names of all networks, of any driver.
    network_names: frozenset[str] = frozenset()
    #: The IDs of endpoints whose attachment's options are unknown.
    unconfirmed: frozenset[str] = frozenset()
    #: False if a container is missing in `container_ids`, because its entry could not be read.
    complete: bool = True
    #: The IDs of all networks; None if some could not be read.
    network_ids: frozenset[str] | None = None
    #: The published ports of all running containers, of any driver; None if some could not be read.
    published: frozenset[Published] | None = frozenset()

    #: True if a container is listed by its old name and by its new one: only the next list has the right one.
    renaming: bool = False

    def facts(self) -> Facts:
        """Return the Docker networks and their endpoints as facts."""
        networks = {network.id: network for network in self.networks}
        guests = {each.id: TrackedEndpoint(each, listed=True) for each in self.endpoints if each.network_id in networks}
        return Facts(names=self.network_names, networks=FrozenDict(networks), guests=FrozenDict(guests), listed=True)
