"""What is kept over restarts, as nouns. Pure; `plugin.state.store` is its file."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from plugin.jsonio import INTERFACE_NAME
from plugin.model import Endpoint, Network, Overriding, Prefix, Published
from plugin.policy.frozen import FrozenDict, frozen
from plugin.policy.requested_ports import Asked


@dataclass(frozen=True, slots=True)
class SavedState:
    """networks and endpoints by their Docker IDs; `boot` is the kernel's boot id of when it was written."""

    networks: Mapping[str, Network] = field(default_factory=FrozenDict)
    endpoints: Mapping[str, Endpoint] = field(default_factory=FrozenDict)
    boot: str = ""
    #: Families (AF_) whose forwarding docker-fw switched on since `boot`.
    switched: frozenset[int] = frozenset()
    #: Bridges that were nobody's of ours and not Docker's, by name.
    unmanaged: frozenset[str] = frozenset()
    #: By container on Docker's own networks, the published ports behind which the container's port was closed.
    proxied: Mapping[str, tuple[Published, ...]] = field(default_factory=FrozenDict)
    #: Bridges on which not everybody might begin everything.
    egress_restricted: frozenset[str] = frozenset()
    #: What `fwctl allow` and `fwctl deny` said, in that order.
    overrides: tuple[Overriding, ...] = ()
    #: Banned prefixes, until when (Unix time; 0: for ever).
    bans: Mapping[Prefix, float] = field(default_factory=dict)
    #: By container, the ports of the host that it asks for when it starts.
    asked: Mapping[str, tuple[Asked, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("networks", "endpoints", "proxied"):
            object.__setattr__(self, name, frozen(getattr(self, name)))

    def with_network(self, network: Network) -> SavedState:
        """The state with this network added or replaced."""
        if self.networks.get(network.id) == network:
            return self
        return replace(self, networks=frozen(self.networks).put(network.id, network))

    def without_network(self, network_id: str) -> SavedState:
        """Nor the endpoints on it, nor what is known of its bridge."""
        network = self.networks.get(network_id)
        return replace(
            self,
            networks=frozen(self.networks).drop([network_id]),
            endpoints=frozen(self.endpoints).drop(self.on(network_id)),
            egress_restricted=self.egress_restricted - {network.bridge} if network else self.egress_restricted,
        )

    def with_endpoint(self, endpoint: Endpoint) -> SavedState:
        """The state with this endpoint added or replaced."""
        if self.endpoints.get(endpoint.id) == endpoint:
            return self
        return replace(self, endpoints=frozen(self.endpoints).put(endpoint.id, endpoint))

    def without_endpoint(self, endpoint_id: str) -> SavedState:
        """The state without this endpoint."""
        return replace(self, endpoints=frozen(self.endpoints).drop([endpoint_id]))

    def with_bridges(self, there: Collection[str]) -> SavedState:
        """Only these exist. On the others whoever is not known may begin nothing if somebody might not begin everything
        once: a container that comes back while Docker's API is silent must not begin what its labels forbid.
        """
        egress_restricted = self.egress_restricted & frozenset(there)
        return (
            self if egress_restricted == self.egress_restricted else replace(self, egress_restricted=egress_restricted)
        )

    def with_foreign(self, bridges: Iterable[str]) -> SavedState:
        """Names of bridges that are neither ours nor Docker's: they need not wait at the next boot."""
        unmanaged = frozenset(filter(INTERFACE_NAME.fullmatch, bridges))
        return self if unmanaged == self.unmanaged else replace(self, unmanaged=unmanaged)

    def on(self, network_id: str) -> list[str]:
        """The IDs of the endpoints on a network."""
        return [e.id for e in self.endpoints.values() if e.network_id == network_id]
