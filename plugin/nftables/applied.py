"""Track which elements each owner has in the kernel, and compute changes of them. Pure.

Two owners may need the same element; it remains as long as one of them needs it.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain, filterfalse

from plugin.model import Address
from plugin.nftables import fields
from plugin.nftables.sets import SETS, Change, Element, numbers
from plugin.policy.facts import SUSPECTS, ElementOwner

#: Most elements of an owner that are searched for those that let an address pass (0.01 ms); with more, they are
#: indexed.
_SEARCHED = 64
# Sets by number, which is the first byte of an element.
#: Their elements let flows pass. Frames within a bridge do not count: they have no flows.
_OPEN = numbers(lambda spec: spec.effect == "opens" and not spec.bridge)
_CLOSE = numbers(lambda spec: spec.effect == "closes")
#: Their elements are removed as soon as their container departs.
_DEPART = _OPEN | numbers(lambda spec: spec.departs)
_CLOSED_AS = numbers(lambda spec: spec.closed_as)
_ALWAYS_END = numbers(lambda spec: spec.ends_flows == "always")
_END_OWNED = numbers(lambda spec: spec.ends_flows)


#: The bytes of the address at the end of their elements, and the bytes before the address if it is a single one.
_PEERS = {
    number: (width := fields.length(spec.key[-1:]), struct.pack("!H2x", 8 * width) if spec.peer == "prefix" else b"")
    for number, spec in enumerate(SETS.values())
    if spec.peer
}


class AppliedElements:
    """The elements in the kernel, by owner. Not thread-safe."""

    def __init__(self) -> None:
        #: As tuples: sets would take half as much memory again.
        self._owned: dict[ElementOwner, tuple[Element, ...]] = {}
        #: The number of owners of each element.
        self._count: dict[Element, int] = {}
        #: Of owners with many elements, by packed address, those that let it pass as a peer, or as a sender; prefixes
        #: that contain it do not count.
        self._passing: dict[ElementOwner, dict[bytes, dict[Element, None]]] = {}

    def __iter__(self) -> Iterator[Element]:
        return iter(self._count)

    def of(self, owner: ElementOwner) -> frozenset[Element]:
        """Return the elements of an owner."""
        return frozenset(self._owned.get(owner, ()))

    def many(self, owner: ElementOwner) -> int:
        """Return how many elements an owner has."""
        return len(self._owned.get(owner, ()))

    def start(self, owned: Iterable[tuple[ElementOwner, frozenset[Element]]]) -> None:
        """Replace all owners and their elements."""
        self._owned = {owner: tuple(elements) for owner, elements in owned if elements}
        self._count = dict(Counter(chain.from_iterable(self._owned.values())))
        self._passing = {}
        for owner, elements in self._owned.items():
            self._index(owner, (), elements)

    def change(self, new: Mapping[ElementOwner, frozenset[Element]]) -> Change:
        """Return the change that gives these owners the elements of `new`."""
        less, more = self._difference(new)
        gone = Counter(chain.from_iterable(less))
        stay = Counter(element for element in chain.from_iterable(more) if element in gone) if gone else Counter()
        return Change(
            remove=tuple(e for e, n in gone.items() if self._count[e] + stay[e] == n),
            add=tuple(dict.fromkeys(filterfalse(self._count.__contains__, chain.from_iterable(more)))),
        )

    def after(self, new: Mapping[ElementOwner, frozenset[Element]]) -> list[Element]:
        """Return every element that should be in the kernel after `new` has been written."""
        change = self.change(new)
        gone = {*change.remove}
        return [*(element for element in self._count if element not in gone), *change.add]

    def write(self, new: Mapping[ElementOwner, frozenset[Element]]) -> None:
        """Note that these owners have these elements now; the kernel has accepted them."""
        less, more = self._difference(new)
        for element in chain.from_iterable(more):
            self._count[element] = self._count.get(element, 0) + 1
        for element in chain.from_iterable(less):
            if self._count[element] > 1:
                self._count[element] -= 1
            else:
                del self._count[element]
        for (owner, elements), gone, fresh in zip(new.items(), less, more, strict=True):
            if not (gone or fresh):
                continue
            # Of equal elements, those that are known already stay: `_count` has them too.
            self._owned[owner] = (*(element for element in self._owned.get(owner, ()) if element in elements), *fresh)
            if not elements:
                del self._owned[owner]
            self._index(owner, gone, fresh)

    def departing(
        self, gone: Iterable[ElementOwner], lost: Mapping[Address, Collection[ElementOwner]]
    ) -> dict[ElementOwner, set[Element]]:
        """Return by owner the elements that must not let anything pass any more.

        Nothing is computed: it reads what is applied.

        `gone`: owners whose openings all end. `lost`: by address, the owners whose rules do not name its container any
        more.
        """
        departing = {owner: {e for e in self._owned.get(owner, ()) if e[0] in _DEPART} for owner in gone}
        for address, owners in lost.items():
            for owner in owners:
                if elements := self._letting_pass(owner, address.packed):
                    departing.setdefault(owner, set()).update(elements)
        return {owner: elements for owner, elements in departing.items() if elements}

    def closing(self, departing: Mapping[ElementOwner, Collection[Element]]) -> Change:
        """Return the change that removes these elements of these owners.

        If dockerd's control group is not known, an element closes a docker-proxy port: it is added when the element
        that kept the port open is removed.
        """
        count = Counter(chain.from_iterable(departing.values()))
        remove = tuple(element for element, n in count.items() if self._count.get(element) == n)
        closed = (_closed(element) for element in remove if element[0] in _CLOSED_AS)
        return Change(remove, tuple(element for element in closed if element not in self._count))

    def without(
        self, departing: Mapping[ElementOwner, Collection[Element]], closing: Change
    ) -> dict[ElementOwner, frozenset[Element]]:
        """Return the elements of these owners after `closing`."""
        closed = {element: _closed(element) for element in closing.remove if element[0] in _CLOSED_AS}
        return {
            owner: self.of(owner).difference(elements).union(closed[e] for e in elements if e in closed)
            for owner, elements in departing.items()
        }

    def _letting_pass(self, owner: ElementOwner, address: bytes) -> Iterable[Element]:
        if owner in self._passing:
            return self._passing[owner].get(address, ())
        return [e for e in self._owned.get(owner, ()) if e.endswith(address) and _passes_one(e) == address]

    def _index(self, owner: ElementOwner, less: Iterable[Element], more: Iterable[Element]) -> None:
        """Index the owner's elements, which `less` and `more` were removed from and added to."""
        elements = self._owned.get(owner, ())
        if len(elements) <= _SEARCHED:
            self._passing.pop(owner, None)
            return
        if owner not in self._passing:
            self._passing[owner], less, more = {}, (), elements
        index = self._passing[owner]
        for element in less:
            if address := _passes_one(element):
                del index[address][element]
                if not index[address]:
                    del index[address]
        for element in more:
            if address := _passes_one(element):
                index.setdefault(address, {})[element] = None

    def narrower(self, owner: ElementOwner, new: frozenset[Element]) -> bool:
        """True if less passes than before: established flows may exist that could not be opened any more.

        A closed docker-proxy port that is added with its owner was not open before: nothing listened there. A suspected
        port was open since its listener appeared.
        """
        old = self.of(owner)
        if any(element[0] in _OPEN for element in old - new):
            return True
        ends = _END_OWNED if old or owner == SUSPECTS else _ALWAYS_END
        return any(element[0] in ends for element in new - old)

    def wider(self, owner: ElementOwner, new: frozenset[Element]) -> bool:
        """True if more passes than before: flows that were cut may pass again."""
        return any(element[0] in _OPEN for element in new - self.of(owner))

    def only_closes(self, owner: ElementOwner, new: frozenset[Element]) -> bool:
        """True if no added element lets anything pass, or leads anywhere."""
        return all(element[0] in _CLOSE for element in new - self.of(owner))

    def _difference(
        self, new: Mapping[ElementOwner, frozenset[Element]]
    ) -> tuple[list[frozenset[Element]], list[frozenset[Element]]]:
        """Return the elements that each of these owners loses, and those that each gains."""
        less, more = list[frozenset[Element]](), list[frozenset[Element]]()
        for owner, elements in new.items():
            old = self.of(owner)
            less.append(old - elements)
            more.append(elements - old if old else elements)  # not copied: there may be a hundred thousand
        return less, more


def _passes_one(element: Element) -> bytes:
    """Return the single address, packed, that the element lets pass or leads to; b"" if it is none."""
    width, before = _PEERS.get(element[0], (0, b""))
    return element[-width:] if width and element[:-width].endswith(before) else b""


def _closed(served: Element) -> Element:
    """Return the element that closes the docker-proxy port that another element keeps open."""
    return Element(served.spec.closed_as, served.key)
