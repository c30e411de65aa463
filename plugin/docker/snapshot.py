"""Everything that Docker told at one moment, as nouns. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from plugin.model import BridgeNetwork, Container, Endpoint, Published, TrackedEndpoint
from plugin.policy.facts import Noted, Owner, Place


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

    def noted(self) -> dict[Owner, Noted]:
        """The networks of Docker's own and who is on them, as `plugin.policy.facts` takes it."""
        networks = {network.id: network for network in self.networks}
        guests = (TrackedEndpoint(endpoint, True, 0) for endpoint in self.endpoints if endpoint.network_id in networks)
        return {
            **{f"network {network.id}": Noted(place=Place(network)) for network in self.networks},
            **{f"endpoint {g.endpoint.id}": Noted(place=Place(networks[g.endpoint.network_id], g)) for g in guests},
        }
