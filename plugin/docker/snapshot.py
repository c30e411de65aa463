"""Everything that Docker told at one moment, as nouns. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from plugin.model import BridgeNetwork, Container, Endpoint, Published, TrackedEndpoint
from plugin.policy.facts import Facts
from plugin.policy.frozen import FrozenDict


@dataclass(frozen=True, slots=True)
class DockerSnapshot:
    """Everything that Docker told at one moment.

    `containers` by endpoint ID, on whatever network; `networks`: those of Docker's own bridge driver; `endpoints`: the
    running containers' places on them; `apart`: containers that no network of their own has, with the reason;
    `existing`: the IDs of all containers, stopped ones too. `names`: of every network, whatever its driver.
    `unsure`: endpoints of which it is not known what their attachment says. `whole`: nobody was left out of `existing`.
    `known`: the IDs of all networks; None if they are not all known. `idle`: the IDs of containers that do not run.
    `published`: the published ports of all that do, on whatever network, but for those that are too large to be read;
    None if they are not all known.
    """

    containers: Mapping[str, Container] = field(default_factory=dict)
    networks: tuple[BridgeNetwork, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    not_guarded: Mapping[str, str] = field(default_factory=dict)
    existing: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    unsure: frozenset[str] = frozenset()
    whole: bool = True
    known: frozenset[str] | None = None
    idle: frozenset[str] = frozenset()
    published: frozenset[Published] | None = frozenset()

    def facts(self) -> Facts:
        """The networks of Docker's own and who is on them."""
        networks = {network.id: network for network in self.networks}
        guests = {each.id: TrackedEndpoint(each, listed=True) for each in self.endpoints if each.network_id in networks}
        return Facts(names=self.names, networks=FrozenDict(networks), guests=FrozenDict(guests), listed=True)
