"""Decide which containers' rates are in the table. It has room for `MOST`; a port whose rate does not fit is closed.

Each container's chains and sets are kernel memory that labels request. An owner that has room keeps it, also over
restarts of docker-fw. An owner without room gets it when another owner's rates end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from plugin.nftables.fields import VERDICT
from plugin.nftables.rate_chains import size
from plugin.nftables.sets import DENIED, Element, limits, numbers
from plugin.policy.facts import ElementOwner
from plugin.policy.rate_quota import MOST

_Key = tuple[int, bytes]
_RATED = numbers(lambda spec: spec.data == VERDICT)


class Quota:
    """Not thread-safe."""

    def __init__(self) -> None:
        #: The other owners whose elements the last change affected; they must change in the same transaction.
        self.moved: list[ElementOwner] = []
        #: The owners whose rates did not fit, so that their ports with one are closed; in the order of waiting.
        self.refused: dict[ElementOwner, None] = {}
        self._restored: set[str] = set()
        self._wanted: dict[ElementOwner, frozenset[Element]] = {}
        #: The chains that each owner wants: thousands of ports may share a few.
        self._needs: dict[ElementOwner, frozenset[str]] = {}
        self._admitted: set[ElementOwner] = set()
        #: By port of an address, the owners with a rate for it: Docker gives an address to one container at a time.
        self._claims: dict[_Key, set[ElementOwner]] = {}
        self._chains: Counter[str] = Counter()
        self._used = 0

    @property
    def keeping(self) -> bool:
        """True if chains of an earlier table still count against the quota."""
        return bool(self._restored)

    def keep(self, chains: Iterable[str]) -> None:
        """Reserve the room of chains that existed when docker-fw started, until `settle`."""
        self._restored = set(chains) - self._chains.keys()
        self._used += sum(map(size, self._restored))

    def change(self, wanted: Mapping[ElementOwner, frozenset[Element]]) -> list[ElementOwner]:
        """Set the elements of `sets.RATED` that these owners want.

        Return the other owners whose elements change by it.
        """
        new = {
            owner: elements for owner, elements in wanted.items() if self._wanted.get(owner, frozenset()) != elements
        }
        if not new:
            self.moved = []
            return []
        others = {other for owner in new for other in self._forget(owner)}
        # Owners with chains from before come first.
        for owner in sorted(new, key=lambda each: not (_chains(new[each]) & self._restored)):
            others |= self._want(owner, new[owner])
        self.moved = list((others | self._next()) - new.keys())
        return self.moved

    def settle(self) -> list[ElementOwner]:
        """End the reservation.

        all earlier owners have been seen by now. Return the owners that get the reserved room.
        """
        self._used -= sum(map(size, self._restored))
        self._restored.clear()
        self.moved += self._next()
        return self.moved

    def within(self, owner: ElementOwner, elements: frozenset[Element]) -> frozenset[Element]:
        """Return the owner's elements; a rate that does not fit closes its ports."""
        rated = rates(elements)
        if not rated or (owner in self._admitted and self._wanted[owner] == rated):
            return elements
        # If another owner limits the same port of the same address, that limit applies.
        closed = (
            Element(e.set, e.key, (DENIED,))
            for e in rated
            if not self._claims.get(_key(e), set()) & self._admitted - {owner}
        )
        return elements - rated | frozenset(closed)

    def _want(self, owner: ElementOwner, elements: frozenset[Element]) -> set[ElementOwner]:
        """Return the other owners with a rate for the same ports of the same address."""
        if not elements:
            return set()
        self._wanted[owner], self._needs[owner] = elements, _chains(elements)
        self.refused[owner] = None
        for element in elements:
            self._claims.setdefault(_key(element), set()).add(owner)
        self._admit(owner)
        return {other for element in elements for other in self._claims[_key(element)]}

    def _admit(self, owner: ElementOwner) -> bool:
        elements, chains = self._wanted[owner], self._needs[owner]
        more = sum(size(chain) for chain in chains if chain not in self._chains and chain not in self._restored)
        if self._used + more > MOST or any(self._claims[_key(element)] & self._admitted for element in elements):
            return False
        self._admitted.add(owner)
        del self.refused[owner]
        self._restored -= chains
        self._chains.update(chains)
        self._used += more
        return True

    def _forget(self, owner: ElementOwner) -> set[ElementOwner]:
        others: set[ElementOwner] = set()
        self.refused.pop(owner, None)
        elements, chains = self._wanted.pop(owner, frozenset()), self._needs.pop(owner, frozenset())
        for element in elements:
            claims = self._claims[_key(element)]
            claims.discard(owner)
            others |= claims
            if not claims:
                del self._claims[_key(element)]
        if owner in self._admitted:
            self._admitted.discard(owner)
            self._chains -= Counter(chains)
            self._used -= sum(size(chain) for chain in chains if chain not in self._chains)
        return others

    def _next(self) -> set[ElementOwner]:
        return {owner for owner in list(self.refused) if self._used < MOST and self._admit(owner)}


def rates(elements: Iterable[Element]) -> frozenset[Element]:
    """Return the elements that limit rates."""
    return frozenset(element for element in elements if element[0] in _RATED)


def _key(element: Element) -> _Key:
    return element[0], element.packed_key


def _chains(elements: Iterable[Element]) -> frozenset[str]:
    return frozenset(chain for element in elements for chain in limits(element))
