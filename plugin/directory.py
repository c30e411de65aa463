"""Who is called what: named peers → addresses, and who must be looked at again when somebody comes or goes. Pure.

A name that matches nobody matches nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from plugin.model import Address, Container, Endpoint, Peer, Policy, Rule

#: What a peer is called everywhere: its kind, the compose project it is to be looked for in, and the name.
Key = tuple[str, str, str]


def itself(container: Container) -> Key:
    """A container under whatever name, for its own places: by one of them it sends from all its addresses."""
    return ("itself", "", container.id)


@dataclass(frozen=True, slots=True)
class Who:
    """One endpoint's addresses and the names of whoever has them."""

    addresses: tuple[Address, ...] = ()
    container: str = ""
    project: str = ""
    service: str = ""
    network: str = ""
    id: str = ""

    @property
    def keys(self) -> frozenset[Key]:
        found = {("container", "", self.container), ("network", "", self.network), ("project", "", self.project)}
        found.add(("itself", "", self.id))
        if self.project:
            found.add(("service", self.project, self.service))
        return frozenset(key for key in found if key[2])


def who(endpoint: Endpoint) -> Who | None:
    """None while nobody is known there."""
    container = endpoint.container
    if container is None or not endpoint.joined:
        return None
    addresses = tuple(address for address in (endpoint.addr4, endpoint.addr6) if address)
    return Who(addresses, container.name, container.project, container.service, container.network, container.id)


class Directory:
    """Not thread-safe. Owners are those of `plugin.reconcile`."""

    def __init__(self) -> None:
        self._who: dict[str, Who] = {}
        self._by_key: dict[Key, dict[Address, int]] = {}
        self._asks: dict[str, frozenset[Key]] = {}
        self._asked_by: dict[Key, set[str]] = {}
        #: Every network of Docker's by name, empty ones too; None until Docker has told.
        self.networks: frozenset[str] | None = None

    def copy(self) -> Directory:
        """As it is now, for `resolved` and `addresses`: who must be looked at again it does not know."""
        other = Directory()
        other._who = dict(self._who)
        other._by_key = {key: dict(addresses) for key, addresses in self._by_key.items()}
        other.networks = self.networks
        return other

    def put(self, owner: str, now: Who | None) -> set[Key]:
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

    def asks(self, owner: str, rules: Iterable[Rule], container: Container | None, *more: Key) -> None:
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

    def askers(self, keys: Iterable[Key]) -> set[str]:
        """The owners whose rules speak of one of these names."""
        return {owner for key in keys for owner in self._asked_by.get(key, ())}

    def network_askers(self) -> list[str]:
        """The owners whose rules speak of a network: which one is meant depends on what networks there are."""
        return [owner for owner, keys in self._asks.items() if any(kind == "network" for kind, _, _ in keys)]

    def resolved(self, policy: Policy, container: Container | None) -> Policy:
        """The policy with addresses in the place of names. A rule with peers that are nobody is none at all."""
        return dataclasses.replace(
            policy,
            accepts=tuple(self._rules(policy.accepts, container, inbound=True)),
            egress=None if policy.egress is None else tuple(self._rules(policy.egress, container, inbound=False)),
        )

    def _rules(self, rules: Iterable[Rule], container: Container | None, *, inbound: bool) -> Iterator[Rule]:
        for rule in rules:
            if not rule.peers:
                yield rule
                continue
            peers: set[Peer] = set()
            for peer in rule.peers:
                if peer.kind == "prefix" or (peer.kind == "host" and not inbound):
                    peers.add(peer)  # who is on the host needs no rule to come in
                peers.update(Peer("prefix", str(a)) for key in self._keys(peer, container) for a in self.addresses(key))
            if peers:
                yield dataclasses.replace(rule, peers=tuple(sorted(peers)))

    def addresses(self, key: Key) -> list[Address]:
        return list(self._by_key.get(key, ()))

    def _keys(self, peer: Peer, container: Container | None) -> list[Key]:
        project = container.project if container else ""
        match peer.kind:
            case "container" | "project":
                return [(peer.kind, "", peer.value)]
            case "service":
                return [("service", project, peer.value)] if project else []
            case "network":
                # As compose's file calls it in the same project, or by its full name.
                if not project:
                    return [("network", "", peer.value)]
                if self.networks is None:  # it is not known which one is meant, so nobody is
                    return [("network", project, peer.value)]
                local = f"{project}_{peer.value}"
                return [("network", "", local if local in self.networks else peer.value)]
        return []
