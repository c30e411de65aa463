"""What is kept over restarts, as nouns. Pure; `plugin.state.store` is its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from plugin.model import Endpoint, Network, Overriding, Prefix, Published
from plugin.policy.requested_ports import Asked


@dataclass(slots=True)
class State:
    """networks and endpoints by their Docker IDs; `boot` is the kernel's boot id of when it was written."""

    networks: Mapping[str, Network] = field(default_factory=dict)
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)
    boot: str = ""
    #: Families (AF_) whose forwarding docker-fw switched on since `boot`.
    switched: frozenset[int] = frozenset()
    #: Bridges that were nobody's of ours and not Docker's, by name.
    unmanaged: frozenset[str] = frozenset()
    #: By container on Docker's own networks, the published ports behind which the container's port was closed.
    proxied: Mapping[str, tuple[Published, ...]] = field(default_factory=dict)
    #: Bridges on which not everybody might begin everything.
    egress_restricted: frozenset[str] = frozenset()
    #: What `fwctl allow` and `fwctl deny` said, in that order.
    overrides: tuple[Overriding, ...] = ()
    #: Banned prefixes, until when (Unix time; 0: for ever).
    bans: Mapping[Prefix, float] = field(default_factory=dict)
    #: By container, the ports of the host that it asks for when it starts.
    asked: Mapping[str, tuple[Asked, ...]] = field(default_factory=dict)

    def with_network(self, network: Network) -> State:
        return replace(self, networks={**self.networks, network.id: network})

    def without_network(self, network_id: str) -> State:
        """Nor the endpoints on it."""
        networks = {k: v for k, v in self.networks.items() if k != network_id}
        return replace(
            self, networks=networks, endpoints={k: v for k, v in self.endpoints.items() if v.network_id != network_id}
        )

    def with_endpoint(self, endpoint: Endpoint) -> State:
        return replace(self, endpoints={**self.endpoints, endpoint.id: endpoint})

    def without_endpoint(self, endpoint_id: str) -> State:
        endpoints = dict(self.endpoints)
        endpoints.pop(endpoint_id, None)
        return replace(self, endpoints=endpoints)

    def on(self, network_id: str) -> list[str]:
        """The IDs of the endpoints on a network."""
        return [e.id for e in self.endpoints.values() if e.network_id == network_id]
