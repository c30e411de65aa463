"""The facts at one moment → the policy of each owner. Pure: decides, and changes nothing outside."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from itertools import chain
from typing import NamedTuple

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
from plugin.policy import decide as policy
from plugin.policy import overrides
from plugin.policy.facts import ElementOwner, Facts, Kind, changed
from plugin.policy.frozen import frozen
from plugin.policy.located import Located
from plugin.policy.peers import Key, PeerIndex, Who, itself, who
from plugin.policy.saved import SavedState


class Reindexed(NamedTuple):
    """The owners that `PolicyView.reindex` has indexed.

    `dependents`: owners whose rules name a peer that was added or removed by it. `rated`: those of `owners` whose
    policy has rates.
    """

    owners: list[ElementOwner]
    dependents: set[ElementOwner]
    rated: list[ElementOwner]


@dataclass(slots=True)
class PolicyView:
    """The facts with all that follows from them. Not thread-safe.

    `watched`: docker-fw keeps up with Docker's events (`plugin.state.lease`). `without_room`: the owners whose rates do
    not fit into the table, so that their ports with a rate are closed (`plugin.nftables.compile` keeps it up to date).
    None: that is unknown, so the ports with a rate of all owners count as closed.
    """

    defaults: Defaults
    facts: Facts = field(default_factory=Facts)
    overrides: Mapping[str, Override] = field(default_factory=dict)
    directory: PeerIndex = field(default_factory=PeerIndex)
    watched: bool = True
    without_room: Collection[ElementOwner] | None = None
    #: The endpoints of each container, by its ID.
    _places: dict[str, dict[ElementOwner, None]] = field(default_factory=dict)
    #: The endpoints by network, and the driver's by address and MAC. A copy of the view does not have it.
    _located: Located = field(default_factory=Located)
    #: While a change is made: policies by endpoint, with the inputs of each decision.
    _decided: dict[str, tuple[Network | BridgeNetwork, Endpoint, Override, Policy]] | None = None

    @property
    def state(self) -> SavedState:
        """The part of the facts that is saved."""
        return self.facts.saved

    def copy(self, *, watched: bool = True) -> PolicyView:
        """Return a copy to be read while this view continues to change."""
        room = None if self.without_room is None else frozenset(self.without_room)
        places = _index(self.facts)
        return PolicyView(self.defaults, self.facts, self.overrides, self.directory.copy(), watched, room, places)

    def owners(self) -> list[ElementOwner]:
        """Return every owner that may have elements."""
        return list(self.facts.owners())

    def take(self, facts: Facts, owners: Iterable[ElementOwner]) -> None:
        """Replace the facts; `owners`: those that the new facts change."""
        before, self.facts = self.facts, facts
        owners = list(owners)
        self._located.take(before, facts, owners)
        for owner in owners:
            was, now = before.container_of(owner), facts.container_of(owner)
            if was != now:
                if was:
                    self._places[was].pop(owner, None)
                    if not self._places[was]:
                        del self._places[was]
                if now:
                    self._places.setdefault(now, {})[owner] = None
        if (before.saved.overrides, before.suspended) != (facts.saved.overrides, facts.suspended):
            self.overrides = _in_force(facts)
        self.directory.networks = facts.names

    def start(self, facts: Facts) -> None:
        """Start from these facts, and forget all earlier ones."""
        self.facts, self.overrides, self._places = facts, _in_force(facts), _index(facts)
        self._located = Located(facts)
        self.directory, self.without_room = PeerIndex(), None
        self.directory.networks = facts.names

    def start_settled(self, facts: Facts) -> None:
        """Start from these facts and the sticky ones that follow from them."""
        self.start(facts)
        self.start(self.settled(facts, self.owners()))

    def changed(self, before: Facts, after: Facts) -> dict[ElementOwner, None]:
        """Return the owners whose elements may change; `before`: the current facts."""
        owners = changed(before, after, self.places, self._located.on)
        if before.names != after.names:
            self.directory.networks = after.names
            owners |= dict.fromkeys(self.directory.network_askers(before.names))
            self.directory.networks = before.names
        return owners

    def places(self, container_id: str) -> Iterable[ElementOwner]:
        """Return the owners that are the container's endpoints."""
        return self._places.get(container_id, {})

    @property
    def unlabelled(self) -> bool:
        """True if an endpoint of the driver is joined and its container is unknown."""
        return self._located.unlabelled

    def at(self, network_id: str, *places: Address | str | None) -> list[Endpoint]:
        """Return the driver's endpoints on the network that have one of these addresses or MACs."""
        found = dict.fromkeys(key for where in places if where for key in self._located.at(network_id, where))
        return [endpoint for key in found if (endpoint := self.state.endpoints.get(key))]

    def on(self, network_id: str) -> list[Endpoint]:
        """Return the driver's endpoints on the network."""
        owners = (owner for owner in self._located.on(network_id) if owner.kind is Kind.ENDPOINT)
        return [endpoint for owner in owners if (endpoint := self.state.endpoints.get(owner.id))]

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """Cache policies while one change is made, which needs the same ones repeatedly.

        They are not kept longer: the policies of thousands of endpoints would take megabytes.
        """
        outer, self._decided = self._decided, {} if self._decided is None else self._decided
        try:
            yield
        finally:
            self._decided = outer

    # --- sticky facts ---------------------------------------------------------------------------------------------

    def settled(self, before: Facts, owners: Iterable[ElementOwner]) -> Facts:
        """Return the facts with derived facts that outlast their cause.

        These are egress-restricted bridges, until the bridge is removed, internal ones, until Docker's list shows
        otherwise, and closed published ports, until their container is removed. `owners`: those that differ from
        `before`.
        """
        owners = list(owners)
        saved = self.facts.saved
        egress_restricted = saved.egress_restricted | self._restricted(before, owners)
        internal, proxied = self._internal(before), self._closed_ports(before, owners)
        if (egress_restricted, internal) == (saved.egress_restricted, saved.internal) and proxied is saved.proxied:
            return self.facts
        saved = replace(saved, egress_restricted=egress_restricted, internal=internal, proxied=proxied)
        return replace(self.facts, saved=saved)

    def _internal(self, before: Facts) -> frozenset[str]:
        """Return the bridges of Docker's internal networks; before Docker's list, also those of the last run."""
        facts, known = self.facts, self.state.internal
        if facts.networks is before.networks and facts.listed is before.listed and facts is not before:
            return known
        found = frozenset(network.bridge for network in facts.networks.values() if network.internal)
        return found if facts.listed else known | found

    def _restricted(self, before: Facts, owners: Iterable[ElementOwner]) -> set[str]:
        """Return newly restricted bridges: those on which one of these owners restricts egress.

        If a bridge was dropped from the facts, all owners are checked: it stays while one of them restricts egress.
        """
        known, found = self.state.egress_restricted, set[str]()
        for owner in self.owners() if before.saved.egress_restricted - known else owners:
            network = self._network(owner)
            if network and network.bridge not in known | found and self._restricts(owner, network):
                found.add(network.bridge)
        return found

    def _network(self, owner: ElementOwner) -> Network | BridgeNetwork | None:
        """Return the network that the owner is, or is on."""
        match owner.kind:
            case Kind.NETWORK:
                return self.state.networks.get(owner.id)
            case Kind.DOCKER_NETWORK:
                return self.facts.networks.get(owner.id)
        found = self.endpoint(owner)
        return found[0] if found else None

    def _restricts(self, owner: ElementOwner, network: Network | BridgeNetwork) -> bool:
        if place := self.endpoint(owner):
            endpoint = place[1]
            return endpoint.joined and bool(endpoint.addresses) and self.decide(network, endpoint).egress is not None
        return self.confines(network)

    def _closed_ports(self, before: Facts, owners: Iterable[ElementOwner]) -> Mapping[str, tuple[Published, ...]]:
        """Return closed published ports by container.

        A stopped container keeps its ports: docker-proxy may listen again before Docker reports the new start. A port
        that is closed only because docker-fw stopped following Docker is not among them: the next start would cut its
        connections.
        """
        containers: dict[str, None] = {}
        for owner in owners:
            guest = self.facts.guests.get(owner.id) if owner.kind is Kind.TRACKED else None
            if guest and guest.listed and guest.container_id:
                same = _same_but_doubted(before.guests.get(owner.id), guest)
                if not same or all(each.sure for each in self._guests(guest.container_id)):
                    containers[guest.container_id] = None
        proxied = frozen(self.state.proxied)
        closed = {each: tuple(sorted(self.closed(each), key=str)) for each in containers}
        more = {each: ports for each, ports in closed.items() if ports and ports != proxied.get(each)}
        return proxied.replace(more, [each for each, ports in closed.items() if not ports])

    def _guests(self, container_id: str) -> list[TrackedEndpoint]:
        """Return the container's endpoints on Docker networks."""
        return [g for o in self.places(container_id) if o.kind is Kind.TRACKED and (g := self.facts.guests.get(o.id))]

    def closed(self, container_id: str) -> frozenset[Published]:
        """Return the container's published ports on Docker networks that are not open to all sources."""
        guests = self._guests(container_id)
        places = [
            frozenset(policy.closed_ports(self.decide(network, guest.as_known), guest.endpoint))
            for guest in guests
            if guest.endpoint.published and (network := self.facts.networks.get(guest.endpoint.network_id))
        ]
        return policy.closed_together(places, doubted=not all(guest.sure for guest in guests))

    # --- identities and policies ----------------------------------------------------------------------------------

    def reindex(self, owners: Iterable[ElementOwner]) -> Reindexed:
        """Update the index with these owners' current identities."""
        done = Reindexed(list(dict.fromkeys(owners)), set(), [])
        changed: set[Key] = set()
        for owner in done.owners:
            found = self.endpoint(owner)
            endpoint = found[1] if found else None
            changed |= self.directory.put(owner, self.who(owner))
            decided = self.decided(owner) if found else None
            rules = chain(decided.accepts, decided.egress or ()) if decided else ()
            container = endpoint.container if endpoint else None
            own = (itself(container),) if container and owner.kind is Kind.ENDPOINT else ()
            self.directory.asks(owner, rules, container, *own)
            if decided and decided.rates:
                done.rated.append(owner)
        done.dependents.update(self.directory.dependents(changed))
        return done

    def who(self, owner: ElementOwner) -> Who | None:
        """Return an owner's identity, by which other owners' rules may name it."""
        found = self.endpoint(owner)
        return who(found[1]) if found and not self.doubted(owner) else None

    def departing(self, owners: Iterable[ElementOwner]) -> dict[ElementOwner, None]:
        """Return the owners that had a known container when they were indexed, and have none now."""
        return {owner: None for owner in owners if self.directory.knows(owner) and self.who(owner) is None}

    def closed_at(self, endpoint: Endpoint) -> Collection[Published]:
        """Return the published ports of an endpoint on a Docker network that are not open to all sources."""
        if not endpoint.published:
            return ()
        if endpoint.container and endpoint.container.id:
            return self.closed(endpoint.container.id)
        return [port for port in endpoint.published if not port.host_ip.is_loopback]

    def closed_on_host(self, owner: ElementOwner) -> Iterable[Published]:
        """Return host ports that are closed, whichever program listens on them.

        `owner`: the suspected ports, or those of the last run.
        """
        if owner.kind is Kind.SUSPECTS:
            return self.facts.suspects
        return () if self.facts.listed else chain.from_iterable(self.facts.saved.proxied.values())

    def container_addresses(self, endpoint: Endpoint) -> Collection[Address]:
        """Return all addresses of the endpoint's container, on all its networks."""
        return self.directory.addresses(itself(endpoint.container)) if endpoint.container else ()

    def called(self, owner: ElementOwner) -> str:
        """Return the name of the owner's container for messages; the owner itself if it has none."""
        found = self.endpoint(owner)
        return found[1].container.name if found and found[1].container else str(owner)

    def answers(self, owner: ElementOwner) -> dict[Address, AddressPolicy]:
        """Return the policies of the owner's addresses: what they accept and may initiate. Empty without addresses."""
        found = self.endpoint(owner)
        if found is None:
            return {}
        network, endpoint = found
        effective = self.effective(owner, network, endpoint)
        if effective.egress is None and not effective.known and network.bridge in self.state.egress_restricted:
            effective = replace(effective, egress=())  # only a known container without fw.egress may open all there
        return {
            address: AddressPolicy(_subnet(network, address), effective, network.internal)
            for address in endpoint.addresses
        }

    def answers_of(self, owners: Iterable[ElementOwner]) -> dict[Address, AddressPolicy]:
        """Return the policies of these owners' addresses."""
        return {address: what for owner in owners for address, what in self.answers(owner).items()}

    def through_proxy(
        self, owners: Iterable[ElementOwner]
    ) -> tuple[list[Published], Callable[[Published, Address], bool]]:
        """Return published ports that are not open to all sources, and a test for the sources that may use one.

        Flows through docker-proxy are flows to the host, so they are found by these ports.
        """
        rules: dict[Published, list[tuple[tuple[Rule, ...], tuple[Prefix, ...]]]] = {}
        for owner in owners:
            if owner.kind in (Kind.SUSPECTS, Kind.LAST_RUN):  # closed before the port's container is known
                for port in self.closed_on_host(owner):
                    rules.setdefault(port, [])
            elif owner.kind is Kind.TRACKED and (found := self.endpoint(owner)):
                network, endpoint = found
                rules_here = () if self.doubted(owner) else self.resolved(network, endpoint).accepts
                # A rule for all sources opens no closed port: the port is closed because another endpoint is in doubt.
                accepts = tuple(rule for rule in rules_here if rule.peers)
                neighbours = network.subnets if network.flat else ()
                for port in self.closed_at(endpoint):
                    rules.setdefault(port, []).append((accepts, neighbours))

        def stays(port: Published, source: Address) -> bool:
            return any(
                any(source in subnet for subnet in neighbours)
                or policy.passes(accepts, port.proto, port.container_port, source)
                for accepts, neighbours in rules[port]
            )

        return list(rules), stays

    def decided(self, owner: ElementOwner) -> Policy | None:
        """Return the owner's policy with its peers by name; None if it has no endpoint."""
        found = self.endpoint(owner)
        return self.decide(*found) if found else None

    def decide(self, network: Network | BridgeNetwork, endpoint: Endpoint) -> Policy:
        """Return the policy of an endpoint, with names of peers not yet resolved."""
        override = self.override(endpoint.container)
        known = self._decided.get(endpoint.id) if self._decided is not None else None
        if known and known[0] is network and known[1] is endpoint and known[2] == override:
            return known[3]
        decided = policy.of(network, endpoint, self.defaults, override)
        if self._decided is not None:
            self._decided[endpoint.id] = (network, endpoint, override, decided)
        return decided

    def override(self, container: Container | None) -> Override:
        """Return the override of a container by `fwctl allow` and `fwctl deny`."""
        return self.overrides.get(container.id, policy.NOTHING) if container else policy.NOTHING

    def of_container(self, container_id: str) -> list[ElementOwner]:
        """Return the owners that are this container's endpoints, as a list."""
        return list(self.places(container_id))

    def resolved(self, network: Network | BridgeNetwork, endpoint: Endpoint) -> Policy:
        """Return the policy of an endpoint, with the current addresses of named peers."""
        published, proxied = endpoint.published, _proxied(network, endpoint)
        return self.directory.resolved(self.decide(network, endpoint), endpoint.container, published, proxied)

    def effective(self, owner: ElementOwner, network: Network | BridgeNetwork, endpoint: Endpoint) -> Policy:
        """Return the policy that holds for an owner's endpoint: closed while its container is unknown."""
        resolved = self.resolved(network, endpoint)
        return policy.unconfirmed(resolved) if self.doubted(owner) else resolved

    def rates_refused(self, owner: ElementOwner) -> bool:
        """True if the owner's rates do not fit into the table, or if that is unknown: its ports with one are closed."""
        return self.without_room is None or owner in self.without_room

    def too_many(self, owner: ElementOwner) -> list[str]:
        """Return one sentence for each of the owner's rules that opens nothing because it needs too many elements."""
        found = self.endpoint(owner) if not self.doubted(owner) else None
        proxied = _proxied(*found) if found else ()
        if found is None or not (proxied or self.directory.asking(owner)):
            return []
        endpoint = found[1]
        return list(self.directory.too_many(self.decide(*found), endpoint.container, endpoint.published, proxied))

    def confines(self, network: Network | BridgeNetwork) -> bool:
        """True if the network or the settings restrict egress; a container's own labels may still allow all."""
        if any(problem.confines for problem in network.problems):
            return True
        return over(self.defaults.spec, network.spec).egress not in (None, EVERYTHING)

    def networks(self) -> list[Network | BridgeNetwork]:
        """Return the driver's networks and Docker networks."""
        return [*self.state.networks.values(), *self.facts.networks.values()]

    def endpoint(self, owner: ElementOwner) -> tuple[Network | BridgeNetwork, Endpoint] | None:
        """Return the endpoint that an owner stands for, with its network; None for other owners."""
        return self.facts.endpoint(owner)

    def doubted(self, owner: ElementOwner) -> bool:
        """True if it is unknown which container has this endpoint's addresses."""
        guest = self.facts.guests.get(owner.id) if owner.kind is Kind.TRACKED else None
        return guest is not None and not guest.sure


def evaluated(defaults: Defaults, facts: Facts) -> PolicyView:
    """Return these facts with all that follows from them, and all names resolved."""
    made = PolicyView(defaults)
    with made.deciding():
        made.start_settled(facts)
        made.reindex(made.owners())
    return made


def _same_but_doubted(before: TrackedEndpoint | None, now: TrackedEndpoint) -> bool:
    """True if nothing changed but that the endpoint may have left."""
    return before is not None and replace(before, sure=now.sure) == now and before.sure >= now.sure


def _subnet(network: Network | BridgeNetwork, address: Address) -> Prefix:
    """Return the network's subnet of an address; the address alone, without neighbours, if Docker lists none."""
    return next((subnet for subnet in network.subnets if address in subnet), None) or ip_network(address)


def _in_force(facts: Facts) -> Mapping[str, Override]:
    return overrides.in_force(overrides.suspended(facts.saved) if facts.suspended else facts.saved)


def _index(facts: Facts) -> dict[str, dict[ElementOwner, None]]:
    found: dict[str, dict[ElementOwner, None]] = {}
    for owner in facts.owners():
        if container := facts.container_of(owner):
            found.setdefault(container, {})[owner] = None
    return found


def _proxied(network: Network | BridgeNetwork, endpoint: Endpoint) -> tuple[Published, ...]:
    """Return the published ports that docker-proxy serves."""
    if isinstance(network, Network):
        return ()
    return tuple(port for port in endpoint.published if not port.host_ip.is_loopback)
