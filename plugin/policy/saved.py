"""The state that is saved across restarts. Pure; `plugin.state.store` reads and writes its file."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from plugin.jsonio import INTERFACE_NAME
from plugin.model import Endpoint, Network, Overriding, Prefix, Published, RequestedPorts
from plugin.policy.frozen import FrozenDict, frozen


@dataclass(frozen=True, slots=True)
class SavedState:
    """`networks` and `endpoints` by their Docker IDs; `boot` is the kernel's boot ID at the time of writing."""

    networks: Mapping[str, Network] = field(default_factory=FrozenDict)
    endpoints: Mapping[str, Endpoint] = field(default_factory=FrozenDict)
    boot: str = ""
    #: Address families (AF_) whose forwarding docker-fw enabled since `boot`.
    switched: frozenset[int] = frozenset()
    #: Bridges of neither docker-fw nor Docker, by name.
    unmanaged: frozenset[str] = frozenset()
    #: By container on Docker networks, the published ports behind which the container's port was closed.
    proxied: Mapping[str, tuple[Published, ...]] = field(default_factory=FrozenDict)
    #: Bridges with a container, network or setting that restricts egress.
    egress_restricted: frozenset[str] = frozenset()
    #: Overrides by `fwctl allow` and `fwctl deny`, in the order in which they were made.
    overrides: tuple[Overriding, ...] = ()
    #: Banned prefixes with their ends (Unix time; 0: permanent).
    bans: Mapping[Prefix, float] = field(default_factory=dict)
    #: By container, the host ports that it requests when it starts.
    asked: Mapping[str, tuple[RequestedPorts, ...]] = field(default_factory=FrozenDict)
    #: Bridges of Docker's internal networks, by name: they stay internal until Docker's list shows otherwise.
    internal: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name in ("networks", "endpoints", "proxied", "asked"):
            object.__setattr__(self, name, frozen(getattr(self, name)))

    def with_network(self, network: Network) -> SavedState:
        """Return the state with this network added or replaced."""
        if self.networks.get(network.id) == network:
            return self
        return replace(self, networks=frozen(self.networks).put(network.id, network))

    def without_network(self, network_id: str, endpoints: Iterable[str] = ()) -> SavedState:
        """Return the state without this network, its endpoints, and its bridge's egress restriction."""
        network = self.networks.get(network_id)
        return replace(
            self,
            networks=frozen(self.networks).drop([network_id]),
            endpoints=frozen(self.endpoints).drop(endpoints),
            egress_restricted=self.egress_restricted - {network.bridge} if network else self.egress_restricted,
        )

    def with_endpoint(self, endpoint: Endpoint) -> SavedState:
        """Return the state with this endpoint added or replaced."""
        if self.endpoints.get(endpoint.id) == endpoint:
            return self
        return replace(self, endpoints=frozen(self.endpoints).put(endpoint.id, endpoint))

    def without_endpoint(self, endpoint_id: str) -> SavedState:
        """Return the state without this endpoint."""
        return replace(self, endpoints=frozen(self.endpoints).drop([endpoint_id]))

    def with_bridges(self, there: Collection[str]) -> SavedState:
        """Return the state without egress-restricted bridges that do not exist any more; `there`: all that exist.

        On an existing bridge where egress was restricted once, an unknown container may open no connections: a
        container that returns while Docker's API does not answer must not open what its labels forbid.
        """
        egress_restricted = self.egress_restricted & frozenset(there)
        return (
            self if egress_restricted == self.egress_restricted else replace(self, egress_restricted=egress_restricted)
        )

    def with_foreign(self, bridges: Iterable[str]) -> SavedState:
        """Return the state with these names of bridges of neither docker-fw nor Docker: they need not wait at boot."""
        unmanaged = frozenset(filter(INTERFACE_NAME.fullmatch, bridges))
        return self if unmanaged == self.unmanaged else replace(self, unmanaged=unmanaged)
