"""Which established flows end when a policy narrows: only those that would not be accepted any more.

A cut flow is quarantined. Otherwise the responder's next packet would open a connection in the other direction, and
every packet back would be established. The quarantine lasts while such packets arrive, and ends when the flow is
allowed again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from itertools import chain

from plugin.kernel import conntrack
from plugin.kernel.conntrack import Cut
from plugin.model import Address, AddressPolicy, BridgeNetwork, Network, Prefix, Published
from plugin.nftables import dump, sets
from plugin.nftables.client import NftError
from plugin.nftables.identity import FORMER_SETS
from plugin.nftables.sets import QUARANTINE_SETS, Change, Element, quarantine_gates
from plugin.nftables.table import KernelTable
from plugin.policy.facts import EGRESS, ElementOwner, Facts, Kind
from plugin.policy.flows import Way, let_through
from plugin.policy.frozen import frozen
from plugin.policy.view import PolicyView
from plugin.state import closed_flows

log = logging.getLogger(__name__)
#: Most flows quarantined one by one, in each set, which has room for 65,535.
_MOST = 60_000


class FlowCutter:
    """Call under the reconciler's lock. `later` queues long work and must return at once."""

    def __init__(self, nft: KernelTable, known: PolicyView, later: Callable[[Callable[[], object]], object]) -> None:
        self._nft = nft
        self._view = known
        self._later = later
        #: Elements that the kernel may have in quarantine, and when each was added last. Packets renew them in the
        #: kernel, which docker-fw does not see.
        self._quarantined: dict[Element, float] = {}
        self._quarantine_lock = threading.Lock()
        #: Addresses with quarantined flows whose container has left.
        self._departed: set[Address] = set()

    def everywhere(self) -> None:
        """Cut flows of all owners: flows opened while the rules were missing, or wider, would stay established."""
        for cut in self.of(self._view.owners()):
            cut()

    def later(self, owners: list[ElementOwner]) -> None:
        """Cut flows that these owners no longer allow, also through docker-proxy, without waiting."""
        for cut in self.of(owners):
            self._later(cut)

    def of(self, owners: Iterable[ElementOwner]) -> list[Callable[[], None]]:
        """Return calls that cut these: to their addresses, and to host ports that docker-proxy serves for them.

        Of owners that are internal networks, these are the flows that enter or leave them.

        The owner `EGRESS` stands for the flows that unknown containers opened on bridges with restricted egress.
        """
        owners = list(owners)
        restricted = EGRESS in owners and bool(self._view.state.egress_restricted)
        if restricted:
            owners += self._without_labels()
        answers, (ports, stays) = self.answers(owners), self._view.through_proxy(owners)
        cuts: list[Callable[[], None]] = []
        if answers:
            cuts.append(partial(closed_flows.cut_closed, answers, self.quarantine))
        if ports:
            cuts.append(partial(conntrack.cut_published, ports, stays))
        if internal := self._internal(owners):
            cuts.append(partial(closed_flows.cut_internal, internal))
        return cuts + self._of_unknown_addresses() if restricted else cuts

    def departed(self, before: Facts, after: Facts, owners: Iterable[ElementOwner]) -> list[Callable[[], None]]:
        """Return calls that cut the flows of containers that left these endpoints, so that no container inherits them.

        They cut flows of the endpoint's addresses and, on Docker networks, of ports that docker-proxy served for it.
        """
        owners = list(owners)
        present = {(owner, address): who for owner in owners for address, who in _holders(after, owner)}
        whose = {(address, who) for (_, address), who in present.items() if who}
        addresses: dict[Address, None] = {}
        ports: dict[Published, None] = {}
        for owner in owners:
            for address, who in _holders(before, owner):
                if (owner, address) not in present and (address, who) not in whose:
                    addresses[address] = None
            if owner.kind is Kind.TRACKED and owner.id not in after.guests and (guest := before.guests.get(owner.id)):
                ports |= dict.fromkeys(guest.endpoint.published)
        cuts: list[Callable[[], None]] = []
        if addresses:
            cuts.append(partial(conntrack.cut_addresses, list(addresses)))
        if ports:
            cuts.append(partial(conntrack.cut_published, list(ports)))
        return cuts

    def closed(self, before: Facts, after: Facts) -> list[Callable[[], Cut | None]]:
        """Return calls that cut the flows that a change of the saved state closes.

        These are flows to published ports that are newly closed or newly lead to a container, and of newly banned
        prefixes.
        """
        was, now = before.saved, after.saved
        ports = [
            port
            for container in frozen(now.proxied).differing(was.proxied)
            for port in now.proxied.get(container, ())
            if port not in was.proxied.get(container, ())
        ]
        for key in frozen(now.endpoints).differing(was.endpoints):
            known = was.endpoints[key].published if key in was.endpoints else ()
            new = (port for port in (now.endpoints[key].published if key in now.endpoints else ()) if port not in known)
            ports += [port for port in new if port.proto != "tcp"]  # TCP opens with a SYN, which no such flow takes
        cuts: list[Callable[[], Cut | None]] = []
        if ports:
            cuts.append(partial(conntrack.cut_published, ports))
        if now.bans is not was.bans and (banned := [p for p, until in now.bans.items() if was.bans.get(p) != until]):
            cuts.append(partial(conntrack.cut_prefixes, banned))
        return cuts

    def _without_labels(self) -> list[ElementOwner]:
        """Return the owners on bridges with restricted egress whose labels are unknown: they may open nothing there."""
        bridges, found = self._view.state.egress_restricted, list[ElementOwner]()
        for owner in self._view.owners():
            place = self._view.endpoint(owner)
            if place and place[0].bridge in bridges and place[1].joined and self._view.who(owner) is None:
                found.append(owner)
        return found

    def _internal(self, owners: Iterable[ElementOwner]) -> list[Prefix]:
        """Return the subnets of those of these owners that are internal networks."""
        facts, found = self._view.facts, list[Prefix]()
        for owner in owners:
            network: Network | BridgeNetwork | None = None
            if owner.kind is Kind.NETWORK:
                network = facts.saved.networks.get(owner.id)
            elif owner.kind is Kind.DOCKER_NETWORK:
                network = facts.networks.get(owner.id)
            if network and network.internal:
                found += network.subnets
        return found

    def _of_unknown_addresses(self) -> list[Callable[[], None]]:
        """Return calls that cut flows that unknown addresses on bridges with restricted egress opened."""
        bridges = self._view.state.egress_restricted
        networks = [network for network in self._view.networks() if network.bridge in bridges]
        prefixes = [subnet for network in networks for subnet in network.subnets]
        if not prefixes:
            return []
        known = frozenset(self.answers(self._view.owners()))
        return [partial(closed_flows.cut_unknown, prefixes, known, self.quarantine)]

    def answers(self, owners: Iterable[ElementOwner]) -> dict[Address, AddressPolicy]:
        """Return the policies of these owners' addresses."""
        return self._view.answers_of(owners)

    # --- quarantine: cut flows do not come back -------------------------------------------------------------------

    def quarantine(self, ways: Collection[Way]) -> None:
        """Keep the responder's next packet from opening cut flows again."""
        left = list(ways)
        with self._quarantine_lock:
            if len(self._quarantined) + len(left) > _MOST:
                self._forget_expired()
            for level in (_element, _port, _all_ports):
                left = self._quarantine_at(level, left)
                if not left:
                    return
            log.error("cut flows may open again: %d did not fit into the quarantine", len(left))

    def _quarantine_at(self, level: Callable[[Way], Element], ways: list[Way]) -> list[Way]:
        """Quarantine these ways at one level of detail. Return those for which there was no room."""
        wanted = {level(way) for way in ways}
        many = Counter(element.set for element in self._quarantined.keys() | wanted)
        fitting = {element for element in wanted if many[element.set] <= _MOST}
        try:
            self._put(fitting)
        except NftError as error:
            log.error("could not quarantine cut flows: %s", error)
            # Where there is no table, the next one includes them.
            return ways if all(self._kernels(element.set) is not None for element in list(fitting)[:1]) else []
        if fitting and level is not _element:
            more = f"; and {len(fitting) - 8} more" if len(fitting) > 8 else ""
            some = "; ".join(map(_described, list(fitting)[:8])) + more
            log.error(
                "too many cut flows to quarantine one by one: until none was tried for %d s, new flows are dropped %s",
                sets.QUARANTINE_SECONDS,
                some,
            )
        return [way for way in ways if level(way) not in fitting]

    def _put(self, elements: set[Element]) -> None:
        if not elements:
            return
        again = tuple(self._quarantined.keys() & elements)
        # Recorded first: if the table is missing, it is written again with all elements recorded here.
        self._quarantined.update(dict.fromkeys(elements, time.monotonic()))
        self._nft.change(Change(), dict.fromkeys(elements, sets.QUARANTINE_SECONDS))
        if again:  # existing elements kept their old timeouts
            timed = dict.fromkeys(again, sets.QUARANTINE_SECONDS)
            try:
                self._nft.change(Change(again), timed)
            except NftError:  # one has just expired
                self._nft.change(Change(), timed)

    def take_over(self) -> None:
        """Read what the last docker-fw had in quarantine. Call before the table is replaced."""
        with self._quarantine_lock:
            for name in chain.from_iterable(QUARANTINE_SETS.values()):
                for there in (name, FORMER_SETS[name]):
                    self._quarantined.update(dict.fromkeys(self._kernels(name, there) or (), time.monotonic()))

    @contextmanager
    def for_rewrite(self) -> Iterator[dict[Element, int]]:
        """Yield the quarantine of a table about to be written, with its timeouts. Nothing is added meanwhile."""
        with self._quarantine_lock:
            self._forget_expired()
            yield dict.fromkeys(self._quarantined, sets.QUARANTINE_SECONDS)

    def gates(self) -> set[Element]:
        """Return the elements that lead packets to the quarantine: other programs may remove them."""
        return {*quarantine_gates(list(self._quarantined))}

    def release(self, owners: Iterable[ElementOwner]) -> None:
        """Release flows that these owners allow again, and flows of the last owners of their addresses."""
        owners = list(owners)
        quarantined = list(self._quarantined)
        if not owners or not (quarantined or self._departed):
            return
        answers = self.answers(owners)
        new = self._departed & answers.keys()
        self._departed -= new
        there = {address.packed for address in answers}
        concerned = [element for element in quarantined if not there.isdisjoint(element.addresses)]
        if not concerned:
            return
        # The other end may have a rule of its own.
        ends = {value for element in concerned for value in element.key}
        answers = self.answers(owner for owner in self._view.owners() if self._is_at(owner, ends))
        ways = {way: element for element in concerned if (way := _way(element))}
        allowed = {ways[way] for way in let_through(ways, answers, conntrack.local_addresses())}
        allowed.update(element for element in concerned if not new.isdisjoint(element.key))
        if allowed:
            self._later(partial(self._release, allowed, time.monotonic()))

    def mark_departed(self, addresses: Collection[Address]) -> None:
        """Note that no container has these addresses now: for the next container nothing is quarantined."""
        if addresses:
            left = {address.packed: address for address in addresses}
            for element in list(self._quarantined):
                self._departed.update(left[each] for each in element.addresses if each in left)

    def _is_at(self, owner: ElementOwner, ends: Collection[object]) -> bool:
        found = self._view.endpoint(owner)
        return found is not None and any(address in ends for address in found[1].addresses)

    def _release(self, allowed: Collection[Element], moment: float) -> None:
        with self._quarantine_lock:
            for last in (False, True):  # one may expire at this very moment
                self._forget_expired()
                released = tuple(element for element in allowed if self._quarantined.get(element, moment + 1) <= moment)
                try:
                    self._nft.change(Change(released))
                except NftError as error:
                    if last:
                        log.error("could not release flows from quarantine that are allowed again: %s", error)
                else:
                    for element in released:
                        del self._quarantined[element]
                    return

    def _forget_expired(self) -> None:
        """Forget elements that have expired in the kernel. Without a table all are kept: the next one needs them."""
        for name in {element.set for element in self._quarantined}:
            found = self._kernels(name)
            if found is not None:
                self._quarantined = {e: when for e, when in self._quarantined.items() if e.set != name or e in found}

    def _kernels(self, name: str, there: str = "") -> set[Element] | None:
        """Return the kernel's elements of this set (`there`: its name there); None if there is no set or no answer."""
        try:
            return set(dump.elements(self._nft.dump(there or name), name))
        except FileNotFoundError:
            return None
        except OSError as error:
            log.error("could not read the quarantine of cut flows: %s", error)
            return None


def _holders(facts: Facts, owner: ElementOwner) -> list[tuple[Address, str]]:
    """Return the owner's addresses, each with its container's ID.

    An endpoint that has not joined has none: no packet passes to its addresses, and none is sent from them without a
    link, so there are no flows that another container could inherit.
    """
    if owner.kind is Kind.TRACKED:
        guest = facts.guests.get(owner.id)
        endpoint = guest.endpoint if guest else None
    else:
        endpoint = facts.saved.endpoints.get(owner.id) if owner.kind is Kind.ENDPOINT else None
    if endpoint is None or not endpoint.joined:
        return []
    who = endpoint.container.id if endpoint.container else ""
    return [(address, who) for address in endpoint.addresses]


def _element(way: Way) -> Element:
    v = way.source.version
    if way.source_port or way.peer_port:
        return Element(f"quarantine{v}", (way.source, way.proto, way.source_port, way.peer, way.peer_port))
    return Element(f"quarantine{v}_pairs", (way.source, way.proto, way.peer))


def _port(way: Way) -> Element:
    """Return the element for all that the container answers from the port, or all answers that it gets there."""
    if not (way.source_port or way.peer_port):
        return _all_ports(way)
    end, port = ("from", way.source_port) if way.whose == way.source else ("to", way.peer_port)
    return Element(f"quarantine{way.source.version}_ports_{end}", (way.whose, way.proto, port))


def _all_ports(way: Way) -> Element:
    """Return the element for all that the container answers, or all answers that it gets, over the protocol."""
    end = "from" if way.whose == way.source else "to"
    return Element(f"quarantine{way.source.version}_all_{end}", (way.whose, way.proto))


def _described(element: Element) -> str:
    address, proto, *port = element.key
    where = f" port {port[0]}" if port else ""
    return f"{element.set.rpartition('_')[2]} {address}{where} over IP protocol {proto}"


def _way(element: Element) -> Way | None:
    """Return the way that an element stands for; None if the element covers more than one rule decides.

    The way of a port that the container answers from has the unspecified address as its peer.
    """
    match element.key:
        case (IPv4Address() | IPv6Address() as source, int(proto), int(port)) if element.set.endswith("from"):
            return Way(source, proto, port, type(source)(0), 0, source)
        case (
            IPv4Address() | IPv6Address() as source,
            int(proto),
            int(port),
            IPv4Address() | IPv6Address() as peer,
            int(peer_port),
        ):
            return Way(source, proto, port, peer, peer_port, source)
        case (IPv4Address() | IPv6Address() as source, int(proto), IPv4Address() | IPv6Address() as peer):
            return Way(source, proto, 0, peer, 0, source)
    return None
