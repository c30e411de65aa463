"""All that is known at one moment → what each owner's elements are. Pure: decides, and touches nothing.

An owner is what elements stand for: a network's or an endpoint's ID, "host", or what somebody noted under a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain

from plugin.labels.keys import EVERYTHING
from plugin.labels.parser import over
from plugin.model import (
    Address,
    AddressPolicy,
    BridgeNetwork,
    Container,
    Defaults,
    Endpoint,
    Network,
    Override,
    Policy,
    Prefix,
    Published,
    Rule,
    TrackedEndpoint,
)
from plugin.nftables.elements import (
    confining_elements,
    endpoint_elements,
    guarded_elements,
    guest_elements,
    network_elements,
    published_port,
)
from plugin.nftables.sets import Element
from plugin.policy import decide as policy
from plugin.policy.peers import Key, PeerIndex, Who, itself, who
from plugin.policy.rate_quota import Quota, rates
from plugin.policy.saved import State

Owner = str
#: Under this name stand the networks on which somebody is, or was, confined.
CONFINED: Owner = "confined before"


@dataclass(frozen=True, slots=True)
class Place:
    """A network of Docker's own, or who is on it; `closed`: the container's published ports that are closed to some."""

    network: BridgeNetwork
    guest: TrackedEndpoint | None = None
    closed: frozenset[Published] = frozenset()

    def made_of(self, network: BridgeNetwork, guest: TrackedEndpoint, closed: frozenset[Published]) -> bool:
        """True if it is of these very ones: thousands are as they were at each event, and need no closer look."""
        return self.network is network and self.guest is guest and self.closed == closed


@dataclass(frozen=True, slots=True)
class Noted:
    """What holds while docker-fw runs and is not kept: found anew from Docker and the kernel at each start."""

    elements: frozenset[Element] = frozenset()
    place: Place | None = None


def egress_restricted(bridges: Iterable[str]) -> Noted:
    """Bridges on which whoever is not known may begin nothing."""
    return Noted(frozenset(Element("confined", (bridge,)) for bridge in bridges))


@dataclass(slots=True)
class Inventory:
    """Not thread-safe. `overrides` by container ID. `watched`: docker-fw keeps up with Docker (its lease)."""

    defaults: Defaults
    state: State = field(default_factory=State)
    noted: dict[Owner, Noted] = field(default_factory=dict)
    overrides: Mapping[str, Override] = field(default_factory=dict)
    directory: PeerIndex = field(default_factory=PeerIndex)
    watched: bool = True
    quota: Quota = field(default_factory=Quota)

    def copy(self, *, watched: bool = True) -> Inventory:
        """As it is now, to be read while the other goes on changing."""
        directory, quota = self.directory.copy(), self.quota.copy()
        return Inventory(self.defaults, self.state, dict(self.noted), self.overrides, directory, watched, quota)

    def owners(self) -> list[Owner]:
        return ["host", *self.noted, *self.state.networks, *self.state.endpoints]

    def note(self, noted: Mapping[Owner, Noted | None]) -> None:
        """What holds under these names from now on; None: nothing any more."""
        for owner, what in noted.items():
            if what is None:
                self.noted.pop(owner, None)
            else:
                self.noted[owner] = what

    def reindex(self, owners: Iterable[Owner]) -> list[Owner]:
        """Notes who these owners are now. Returns them, those whose rules speak of whoever came or went, and those who
        get room for their rates that others left."""
        owners = list(dict.fromkeys(owners))
        changed: set[Key] = set()
        rated: dict[Owner, frozenset[Element]] = {}
        for owner in owners:
            found = self.endpoint(owner)
            endpoint = found[1] if found else None
            changed |= self.directory.put(owner, self.who(owner))
            decided = self.decided(owner) if found else None
            rules = chain(decided.accepts, decided.egress or ()) if decided else ()
            container = endpoint.container if endpoint else None
            own = (itself(container),) if container and owner in self.state.endpoints else ()
            self.directory.asks(owner, rules, container, *own)
            rated[owner] = rates(self._elements(owner)) if decided and decided.rates else frozenset()
        self.quota.change(rated)
        return list(dict.fromkeys((*owners, *self.directory.dependents(changed), *self.quota.moved)))

    def who(self, owner: Owner, state: State | None = None) -> Who | None:
        """Who an owner is, as far as others' rules may speak of it. `state`: as it would be then."""
        found = self.endpoint(owner, state)
        return who(found[1]) if found and not self.doubted(owner) else None

    def departing(self, owners: Iterable[Owner], state: State | None = None) -> dict[Owner, None]:
        """Those of the owners of whom it is known who they were, and nobody is there any more."""
        return {owner: None for owner in owners if self.directory.knows(owner) and self.who(owner, state) is None}

    def elements(self, owner: Owner, state: State | None = None) -> frozenset[Element]:
        """`state`: as it would be then."""
        return self.quota.within(owner, self._elements(owner, state))

    def _elements(self, owner: Owner, state: State | None = None) -> frozenset[Element]:
        state = state or self.state
        if owner == "host":
            return frozenset(Element("no_transit", (family,)) for family in state.switched)
        if owner in self.noted:
            return self._noted(owner, self.noted[owner])
        if network := state.networks.get(owner):
            return network_elements(network) | confining_elements(
                network.bridge, egress_restricted=self.confines(network)
            )
        endpoint = state.endpoints.get(owner)
        if endpoint is None or endpoint.network_id not in state.networks:
            return frozenset()
        network = state.networks[endpoint.network_id]
        more = self.directory.addresses(itself(endpoint.container)) if endpoint.container else ()
        return endpoint_elements(network, endpoint, self.resolved(network, endpoint), more)

    def called(self, owner: Owner) -> str:
        """The name of the container that it is, for people."""
        found = self.endpoint(owner)
        return found[1].container.name if found and found[1].container else owner

    def answers(self, owner: Owner) -> dict[Address, AddressPolicy]:
        """What the owner's addresses accept and may begin; nothing where it has none."""
        found = self.endpoint(owner)
        if found is None:
            return {}
        network, endpoint = found
        resolved = self.resolved(network, endpoint)
        if self.doubted(owner):
            resolved = policy.in_doubt(resolved)
        return {
            address: AddressPolicy(subnet, resolved, network.internal)
            for address in (endpoint.addr4, endpoint.addr6)
            for subnet in subnets(network)
            if address and address in subnet
        }

    def answers_of(self, owners: Iterable[Owner]) -> dict[Address, AddressPolicy]:
        return {address: what for owner in owners for address, what in self.answers(owner).items()}

    def through_proxy(self, owners: Iterable[Owner]) -> tuple[list[Published], Callable[[Published, Address], bool]]:
        """Published ports that not everybody may reach, and who may: by docker-proxy flows are the host's."""
        rules: dict[Published, list[tuple[tuple[Rule, ...], tuple[Prefix, ...]]]] = {}
        for noted in filter(None, map(self.noted.get, owners)):
            for element in noted.elements:
                if element.set.startswith("proxied"):  # closed before it is known whose port it is
                    rules.setdefault(published_port(element), [])
            place = noted.place
            if place and place.guest:
                accepts = self.resolved(place.network, place.guest.endpoint).accepts if place.guest.sure else ()
                neighbours = place.network.subnets if place.network.flat else ()
                for port in place.closed:
                    rules.setdefault(port, []).append((accepts, neighbours))

        def stays(port: Published, source: Address) -> bool:
            return any(
                any(source in subnet for subnet in neighbours)
                or policy.passes(accepts, port.proto, port.container_port, source)
                for accepts, neighbours in rules[port]
            )

        return list(rules), stays

    def decided(self, owner: Owner) -> Policy | None:
        """The owner's policy with its peers by name; None where it has no endpoint."""
        found = self.endpoint(owner)
        return self.decide(*found) if found else None

    def decide(self, network: Network | BridgeNetwork, endpoint: Endpoint) -> Policy:
        return policy.of(network, endpoint, self.defaults, self.override(endpoint.container))

    def override(self, container: Container | None) -> Override:
        return self.overrides.get(container.id, policy.NOTHING) if container else policy.NOTHING

    def of_container(self, container_id: str) -> list[Owner]:
        """The owners that are this container's endpoints."""
        found = ((owner, self.endpoint(owner)) for owner in self.owners())
        return [o for o, f in found if f and f[1].container and f[1].container.id == container_id]

    def resolved(self, network: Network | BridgeNetwork, endpoint: Endpoint) -> Policy:
        published, proxied = endpoint.published, _proxied(network, endpoint)
        return self.directory.resolved(self.decide(network, endpoint), endpoint.container, published, proxied)

    def too_many(self, owner: Owner) -> list[str]:
        """What the owner's rules let nobody pass by for it would be too much, as sentences."""
        found = self.endpoint(owner) if not self.doubted(owner) else None
        proxied = _proxied(*found) if found else ()
        if found is None or not (proxied or self.directory.asking(owner)):
            return []
        endpoint = found[1]
        return list(self.directory.too_many(self.decide(*found), endpoint.container, endpoint.published, proxied))

    def _noted(self, owner: Owner, noted: Noted) -> frozenset[Element]:
        place = noted.place
        if place is None:
            return noted.elements
        if place.guest is None:
            bridge, egress_restricted = place.network.bridge, self.confines(place.network)
            return (
                noted.elements
                | guarded_elements(place.network)
                | confining_elements(bridge, egress_restricted=egress_restricted)
            )
        endpoint = place.guest.endpoint
        resolved = self.resolved(place.network, endpoint)
        if not place.guest.sure:
            resolved = policy.in_doubt(resolved)
        return noted.elements | guest_elements(place.network, endpoint, resolved, place.closed)

    def confines(self, network: Network | BridgeNetwork) -> bool:
        """True if whoever is on the network may not begin everything, unless its own labels say so."""
        if isinstance(network, BridgeNetwork) and any(problem.confines for problem in network.problems):
            return True
        return over(self.defaults.spec, network.spec).egress not in (None, EVERYTHING)

    def networks(self) -> list[Network | BridgeNetwork]:
        """Docker's own and the driver's."""
        places = (noted.place for noted in self.noted.values())
        return [*self.state.networks.values(), *(place.network for place in places if place and not place.guest)]

    def endpoint(self, owner: Owner, state: State | None = None) -> tuple[Network | BridgeNetwork, Endpoint] | None:
        if owner in self.noted:
            place = self.noted[owner].place
            return (place.network, place.guest.endpoint) if place and place.guest else None
        state = state or self.state
        endpoint = state.endpoints.get(owner)
        network = state.networks.get(endpoint.network_id) if endpoint else None
        return (network, endpoint) if network and endpoint else None

    def doubted(self, owner: Owner) -> bool:
        place = self.noted[owner].place if owner in self.noted else None
        return bool(place and place.guest and not place.guest.sure)


def _proxied(network: Network | BridgeNetwork, endpoint: Endpoint) -> tuple[Published, ...]:
    """The published ports that docker-proxy serves."""
    if isinstance(network, Network):
        return ()
    return tuple(port for port in endpoint.published if not port.host_ip.is_loopback)


def subnets(network: Network | BridgeNetwork) -> tuple[Prefix, ...]:
    if isinstance(network, BridgeNetwork):
        return network.subnets
    return tuple(gateway.network for gateway in (network.gateway4, network.gateway6) if gateway)
