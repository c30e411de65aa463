"""Who is called what: named peers → addresses, and who must be looked at again when somebody comes or goes. Pure.

A name that matches nobody matches nothing.
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

#: Elements that the names in one endpoint's rules may become, each way: each change of a peer computes them anew.
MAX_NAMED = 10_000
#: Elements that the addresses in one endpoint's rules may become by published ports, where docker-proxy serves these:
#: each such port lets in each piece of each prefix.
MAX_LISTED = 100_000
#: Kinds of which Docker's networks say which name is meant.
_BY_NETWORKS = frozenset(kind for kind, each in NAMED.items() if each.networks)
#: What a peer is called everywhere: its kind, the compose project it is to be looked for in, and the name.
Key = tuple[str, str, str]


def itself(container: Container) -> Key:
    """A container under whatever name, for its own places: by one of them it sends from all its addresses."""
    return ("itself", "", container.id)


@dataclass(frozen=True, slots=True)
class Who:
    """One endpoint's addresses, and what the container that has them is called."""

    addresses: tuple[Address, ...]
    keys: frozenset[Key]


def names(container: Container) -> frozenset[Key]:
    """Everything that a container is called on one network."""
    found = (itself(container), *((kind, *each.of(container)) for kind, each in NAMED.items()))
    return frozenset(key for key in found if key[2])


def who(endpoint: Endpoint) -> Who | None:
    """None while nobody is known there."""
    container = endpoint.container
    if container is None or not endpoint.joined:
        return None
    return Who(tuple(address for address in (endpoint.addr4, endpoint.addr6) if address), names(container))


class _Cost(NamedTuple):
    """`ports`: in blocks, and published ones by docker-proxy besides. `beyond`: it is too much. `flood`: so are the
    addresses that are written there, by published ports: the rule opens nothing at all.
    """

    addresses: int
    ports: int
    beyond: bool
    flood: bool = False


class _Published:
    """Published ports, of which those of a range are counted: there may be thousands, and as many rules."""

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
    """What the addresses that a rule names become by docker-proxy's ports."""
    ports = {version: served.within(rule, version) for version in (4, 6)}
    if not any(ports.values()):
        return 0
    prefixes = (prefix_of(peer) for peer in rule.peers if peer.kind == "prefix")
    return sum(ports[prefix.version] * piece_count(prefix) for prefix in prefixes)


@lru_cache(maxsize=65536)
def _as_peer(address: Address) -> Peer:
    return Peer("prefix", str(address))


class PeerIndex:
    """Not thread-safe."""

    def __init__(self) -> None:
        self._who: dict[ElementOwner, Who] = {}
        self._by_key: dict[Key, dict[Address, int]] = {}
        self._asks: dict[ElementOwner, frozenset[Key]] = {}
        self._asked_by: dict[Key, set[ElementOwner]] = {}
        #: Every network of Docker's by name, empty ones too; None until Docker has told.
        self.networks: frozenset[str] | None = None

    def copy(self) -> PeerIndex:
        """As it is now, to be read: who must be looked at again it does not know."""
        other = PeerIndex()
        other._who, other._asks = dict(self._who), dict(self._asks)
        other._by_key = {key: dict(addresses) for key, addresses in self._by_key.items()}
        other.networks = self.networks
        return other

    def knows(self, owner: ElementOwner) -> bool:
        """True if the owner is in the index."""
        return owner in self._who

    def put(self, owner: ElementOwner, now: Who | None) -> set[Key]:
        """Notes who an owner is; returns the names whose addresses are others now."""
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
        """The owners that are nobody from now on; and by address that is called otherwise from now on, the owners whose
        rules speak of what it was called. Nothing is noted yet.
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
        """Notes which names an owner's rules speak of, and `more`."""
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
        """True if the owner's rules speak of somebody by name."""
        return any(kind != "itself" for kind, _, _ in self._asks.get(owner, ()))

    def dependents(self, keys: Iterable[Key]) -> set[ElementOwner]:
        """The owners whose rules speak of one of these names."""
        return {owner for key in keys for owner in self._asked_by.get(key, ())}

    def network_askers(self, before: frozenset[str] | None) -> list[ElementOwner]:
        """The owners whose rules speak of a network that may be another one than before: which one is meant depends on
        what networks there are.
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
        """The policy with addresses in the place of names. A rule with peers that are nobody is none at all.

        `published`: the endpoint's ports, of which each is as many elements more. Beyond MAX_NAMED names open nothing.
        `proxied`: those that docker-proxy serves. Beyond MAX_LISTED a rule with addresses opens nothing.
        """
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
        """One sentence for each rule whose names stand for so many addresses that they open nothing; and for each that
        opens nothing for its addresses, at so many published ports.
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
        """What each rule's peers would become, counted without making it. An address with two names counts twice."""
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
                    peers.add(peer)  # who is on the host needs no rule to come in
                elif not cost.beyond:
                    peers.update(_as_peer(a) for key in self._keys(peer, of) for a in self.addresses(key))
            if peers:
                yield dataclasses.replace(rule, peers=tuple(sorted(peers, key=attrgetter("kind", "value"))))

    def addresses(self, key: Key) -> list[Address]:
        """The addresses of all containers with this key."""
        return list(self._by_key.get(key, ()))

    def _keys(self, peer: Peer, container: Container | None) -> list[Key]:
        kind = NAMED.get(peer.kind)
        name = kind.meant(peer.value, container.project if container else "", self.networks) if kind else None
        return [(peer.kind, *name)] if name else []
