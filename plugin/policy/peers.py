"""Index of names: named peers → addresses, and the owners to compute again when a peer is added or removed. Pure.

A name without a container matches nothing.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

from plugin.labels.peer_kinds import NAMED
from plugin.labels.ranges import block_count, piece_count
from plugin.model import Address, Container, Endpoint, Peer, Policy, Published, Rule
from plugin.policy.decide import prefix_of
from plugin.policy.facts import ElementOwner
from plugin.protocols import WITH_PORTS

#: Most elements from the names in one endpoint's rules, per direction: each change of a peer computes them again.
MAX_NAMED = 10_000
#: Most elements from the addresses in one endpoint's rules at published ports that docker-proxy serves: each such port
#: needs one for each piece of each prefix. A departing container waits until all of them are in the kernel.
MAX_LISTED = 20_000
#: Kinds whose names are resolved by the names of Docker networks.
_BY_NETWORKS = frozenset(kind for kind, each in NAMED.items() if each.networks)
#: The unique key of a peer: its kind, the compose project in which to look for it, and the name.
Key = tuple[str, str, str]


def itself(container: Container) -> Key:
    """Return the key of a container, independent of its name, for its own endpoints.

    Through one endpoint a container may send from the addresses of all of them.
    """
    return ("itself", "", container.id)


@dataclass(frozen=True, slots=True)
class Who:
    """One endpoint's addresses, and the names of the container that has them."""

    addresses: tuple[Address, ...]
    keys: frozenset[Key]


def names(container: Container) -> frozenset[Key]:
    """Return all names of a container on one network."""
    found = (itself(container), *((kind, *each.of(container)) for kind, each in NAMED.items()))
    return frozenset(key for key in found if key[2])


def who(endpoint: Endpoint) -> Who | None:
    """Return the identity of an endpoint; None while its container is unknown or it is not joined."""
    container = endpoint.container
    if container is None or not endpoint.joined:
        return None
    return Who(tuple(address for address in (endpoint.addr4, endpoint.addr6) if address), names(container))


class _Cost(NamedTuple):
    """The elements that one rule's peers need.

    `ports`: blocks of ports plus published ports. `beyond`: the names need too many elements. `flood`: the addresses
    written in the rule need too many at published ports, so the rule opens nothing at all.
    """

    addresses: int
    ports: int
    beyond: bool
    flood: bool = False


class _Published:
    """Published ports, sorted to count those within a range: there may be thousands, and as many rules."""

    def __init__(self, ports: Iterable[Published]) -> None:
        self._ports: dict[tuple[str, int], list[int]] = {}
        for port in ports:
            self._ports.setdefault((port.proto, port.host_ip.version), []).append(port.container_port)
        for each in self._ports.values():
            each.sort()

    def __bool__(self) -> bool:
        return bool(self._ports)

    def within(self, rule: Rule, version: int) -> int:
        there = self._ports.get((rule.proto, version), [])
        return bisect_right(there, rule.last) - bisect_left(there, rule.first)


def _literal(rule: Rule, served: _Published) -> int:
    """Return how many elements the addresses in a rule need at ports that docker-proxy serves."""
    ports = {version: served.within(rule, version) for version in (4, 6)}
    if not any(ports.values()):
        return 0
    prefixes = (prefix_of(peer) for peer in rule.peers if peer.kind == "prefix")
    return sum(ports[prefix.version] * piece_count(prefix) for prefix in prefixes)


@lru_cache(maxsize=16384)
def _as_peer(address: Address) -> Peer:
    return Peer("prefix", str(address))


class PeerIndex:
    """Names and addresses of all owners, and the names that their rules use. Not thread-safe."""

    def __init__(self) -> None:
        self._who: dict[ElementOwner, Who] = {}
        self._by_key: dict[Key, dict[Address, int]] = {}
        self._asks: dict[ElementOwner, frozenset[Key]] = {}
        self._asked_by: dict[Key, set[ElementOwner]] = {}
        #: The names of all Docker networks, also of empty ones; None until Docker has listed them.
        self.networks: frozenset[str] | None = None

    def copy(self) -> PeerIndex:
        """Return a copy to be read: it does not know which owners depend on a name."""
        other = PeerIndex()
        other._who, other._asks = dict(self._who), dict(self._asks)
        other._by_key = {key: dict(addresses) for key, addresses in self._by_key.items()}
        other.networks = self.networks
        return other

    def knows(self, owner: ElementOwner) -> bool:
        """True if the owner is in the index."""
        return owner in self._who

    def put(self, owner: ElementOwner, now: Who | None) -> set[Key]:
        """Set an owner's identity. Return the keys whose addresses changed."""
        before = self._who.pop(owner, None)
        if now is not None:
            self._who[owner] = now
        if now == before:
            return set()
        changed = set()
        for each, step in ((before, -1), (now, 1)):
            for key in each.keys if each else ():
                addresses = self._by_key.setdefault(key, {})
                for address in each.addresses if each else ():
                    addresses[address] = addresses.get(address, 0) + step
                    if not addresses[address]:
                        del addresses[address]
                if not addresses:
                    del self._by_key[key]
                changed.add(key)
        return changed

    def losing(
        self, now: Mapping[ElementOwner, Who | None]
    ) -> tuple[list[ElementOwner], dict[Address, set[ElementOwner]]]:
        """Return the owners that lose their identity; and by address that loses a name, the owners that use that name.

        `now`: the coming identities. The index does not change yet.
        """
        gone: list[ElementOwner] = []
        lost: dict[Address, set[ElementOwner]] = {}
        for owner, then in now.items():
            before = self._who.get(owner)
            if before is None or before == then:
                continue
            stays = then.keys if then and then.addresses == before.addresses else frozenset[Key]()
            dependents = self.dependents(before.keys - stays)
            if then is None:
                gone.append(owner)
                dependents.discard(owner)
            for address in before.addresses if dependents else ():
                lost.setdefault(address, set()).update(dependents)
        return gone, lost

    def asks(self, owner: ElementOwner, rules: Iterable[Rule], container: Container | None, *more: Key) -> None:
        """Set the names that an owner depends on: those in its rules, and `more`."""
        spoken = (key for rule in rules for peer in rule.peers for key in self._keys(peer, container))
        keys = frozenset((*spoken, *more))
        before = self._asks.pop(owner, frozenset())
        if keys:
            self._asks[owner] = keys
        for key in before - keys:
            self._asked_by[key].discard(owner)
            if not self._asked_by[key]:
                del self._asked_by[key]
        for key in keys - before:
            self._asked_by.setdefault(key, set()).add(owner)

    def asking(self, owner: ElementOwner) -> bool:
        """True if the owner's rules have a named peer (not only addresses)."""
        return any(kind != "itself" for kind, _, _ in self._asks.get(owner, ()))

    def dependents(self, keys: Iterable[Key]) -> set[ElementOwner]:
        """Return the owners that depend on one of these names."""
        return {owner for key in keys for owner in self._asked_by.get(key, ())}

    def network_askers(self, before: frozenset[str] | None) -> list[ElementOwner]:
        """Return the owners whose rules name a network that may now be a different one.

        Which network a name means depends on the names of all existing networks. `before`: these names until now.
        """
        if before is None or self.networks is None:
            return [owner for owner, keys in self._asks.items() if any(kind in _BY_NETWORKS for kind, _, _ in keys)]
        names = before ^ self.networks
        short = {name[at + 1 :] for name in names for at, letter in enumerate(name) if letter == "_"}
        return sorted(self.dependents((kind, "", name) for kind in _BY_NETWORKS for name in names | short))

    def resolved(
        self,
        policy: Policy,
        container: Container | None,
        published: Collection[Published] = (),
        proxied: Collection[Published] = (),
    ) -> Policy:
        """Return the policy with addresses instead of names. A rule whose peers match no container is left out.

        `published`: the endpoint's ports; each adds one element per address. Beyond MAX_NAMED elements, names open
        nothing. `proxied`: the ports that docker-proxy serves. Beyond MAX_LISTED, a rule with addresses opens nothing.
        """
        if not any(rule.peers for rule in (*policy.accepts, *(policy.egress or ()))):
            return policy
        accepts = tuple(self._rules(policy.accepts, container, published, proxied, inbound=True))
        egress = None if policy.egress is None else tuple(self._rules(policy.egress, container, inbound=False))
        return dataclasses.replace(policy, accepts=accepts, egress=egress)

    def too_many(
        self,
        policy: Policy,
        container: Container | None,
        published: Collection[Published] = (),
        proxied: Collection[Published] = (),
    ) -> Iterator[str]:
        """Yield one sentence for each rule that opens nothing because it needs too many elements.

        Either its names have too many addresses, or its addresses need too many elements at published ports.
        """
        for word, rules, ports, those in (
            ("fw.allow", policy.accepts, published, proxied),
            ("fw.egress", policy.egress or (), (), ()),
        ):
            for rule, cost in zip(rules, self._costs(rules, container, ports, those), strict=True):
                if cost.flood:
                    yield (
                        f"{word}={rule.what} from {len(rule.peers)} peers allows nothing: each published port times "
                        f"each prefix (or its pieces), with the rules before it, is more than {MAX_LISTED} table "
                        "entries; publish fewer ports, or write fewer or rounder prefixes (/48, /64; /16, /24)"
                    )
                elif cost.beyond:
                    names = " ".join(str(peer) for peer in rule.peers if peer.kind in NAMED)
                    yield (
                        f"{word}={rule.what} allows nothing for {names[:200]}: {cost.addresses} addresses times "
                        f"{cost.ports} ports or blocks of ports, with the rules before it more than {MAX_NAMED} table "
                        "entries; name fewer containers, or use fewer or rounder port ranges (16-31, 4096-8191, *)"
                    )

    def _costs(
        self,
        rules: Iterable[Rule],
        container: Container | None,
        published: Collection[Published] = (),
        proxied: Collection[Published] = (),
    ) -> Iterator[_Cost]:
        """Yield the number of elements of each rule's peers, without making them.

        An address with two names counts twice.
        """
        total = listed = 0
        counted, served = _Published(published), _Published(proxied)
        for rule in rules:
            keys = [key for peer in rule.peers for key in self._keys(peer, container)]
            addresses = sum(len(self._by_key.get(key, ())) for key in keys)
            ports = 0
            if addresses:
                ports = block_count(rule.first, rule.last) if rule.proto in WITH_PORTS else 1
                ports += sum(counted.within(rule, version) for version in (4, 6))
            beyond = total + addresses * ports > MAX_NAMED
            total += 0 if beyond else addresses * ports
            literal = _literal(rule, served) if served else 0
            flood = listed + literal > MAX_LISTED
            listed += 0 if flood else literal
            yield _Cost(addresses, ports, beyond, flood)

    def _rules(
        self,
        rules: Collection[Rule],
        of: Container | None,
        published: Collection[Published] = (),
        proxied: Collection[Published] = (),
        *,
        inbound: bool,
    ) -> Iterator[Rule]:
        for rule, cost in zip(rules, self._costs(rules, of, published, proxied), strict=True):
            if not rule.peers:
                yield rule
                continue
            if cost.flood:
                continue
            peers: set[Peer] = set()
            for peer in rule.peers:
                if peer.kind == "prefix" or (peer.kind == "host" and not inbound):
                    peers.add(peer)  # the host's own programs need no rule to enter
                elif not cost.beyond:
                    peers.update(_as_peer(a) for key in self._keys(peer, of) for a in self.addresses(key))
            if peers:
                yield dataclasses.replace(rule, peers=tuple(sorted(peers, key=attrgetter("kind", "value"))))

    def addresses(self, key: Key) -> list[Address]:
        """Return the addresses of all containers with this key."""
        return list(self._by_key.get(key, ()))

    def _keys(self, peer: Peer, container: Container | None) -> list[Key]:
        kind = NAMED.get(peer.kind)
        name = kind.meant(peer.value, container.project if container else "", self.networks) if kind else None
        return [(peer.kind, *name)] if name else []
