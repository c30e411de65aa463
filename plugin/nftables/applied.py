"""Track which elements each owner has in the kernel, and compute changes of them. Pure.

Two owners may need the same element; it remains as long as one of them needs it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

from plugin.model import Address
from plugin.nftables.sets import Change, Element, spec_of
from plugin.policy.facts import SUSPECTS, ElementOwner


class AppliedElements:
    """The elements in the kernel, by owner. Not thread-safe."""

    def __init__(self) -> None:
        self._owned: dict[ElementOwner, frozenset[Element]] = {}
        self._count: Counter[Element] = Counter()
        #: By address, the owners' elements that let it pass as a peer, or as a sender; prefixes that contain it do not
        #: count.
        self._passing: dict[Address, dict[ElementOwner, tuple[Element, ...]]] = {}

    def __iter__(self) -> Iterator[Element]:
        return iter(self._count)

    def of(self, owner: ElementOwner) -> frozenset[Element]:
        """Return the elements of an owner."""
        return self._owned.get(owner, frozenset())

    def start(self, owned: Mapping[ElementOwner, frozenset[Element]]) -> None:
        """Replace all owners and their elements."""
        self._owned = {owner: elements for owner, elements in owned.items() if elements}
        self._count = Counter(element for elements in self._owned.values() for element in elements)
        self._passing = {}
        for owner, elements in self._owned.items():
            self._index(owner, (), elements)

    def change(self, new: Mapping[ElementOwner, frozenset[Element]]) -> Change:
        """Return the change that gives these owners the elements of `new`."""
        count = self._difference(new)
        return Change(
            remove=tuple(e for e, n in count.items() if n < 0 and self._count[e] + n == 0),
            add=tuple(e for e, n in count.items() if n > 0 and self._count[e] == 0),
        )

    def after(self, new: Mapping[ElementOwner, frozenset[Element]]) -> list[Element]:
        """Return every element that should be in the kernel after `new` has been written."""
        total = self._count.copy()
        total.update(self._difference(new))
        return [element for element, n in total.items() if n > 0]

    def write(self, new: Mapping[ElementOwner, frozenset[Element]]) -> None:
        """Note that these owners have these elements now; the kernel has accepted them."""
        for element, n in self._difference(new).items():
            self._count[element] += n
            if not self._count[element]:
                del self._count[element]
        for owner, elements in new.items():
            old = self.of(owner)
            self._index(owner, old - elements, elements - old)
            if elements:
                self._owned[owner] = elements
            else:
                self._owned.pop(owner, None)

    def departing(
        self, gone: Iterable[ElementOwner], lost: Mapping[Address, Collection[ElementOwner]]
    ) -> dict[ElementOwner, set[Element]]:
        """Return by owner the elements that must not let anything pass any more.

        Nothing is computed: it reads what is applied.

        `gone`: owners whose openings all end. `lost`: by address, the owners whose rules do not name its container any
        more.
        """
        departing = {owner: {e for e in self.of(owner) if _opens(e) or spec_of(e.set).departs} for owner in gone}
        for address, owners in lost.items():
            for owner, elements in self._passing.get(address, {}).items():
                if owner in owners:
                    departing.setdefault(owner, set()).update(elements)
        return {owner: elements for owner, elements in departing.items() if elements}

    def closing(self, departing: Mapping[ElementOwner, Collection[Element]]) -> Change:
        """Return the change that removes these elements of these owners.

        If dockerd's control group is not known, an element closes a docker-proxy port: it is added when the element
        that kept the port open is removed.
        """
        count = Counter(element for elements in departing.values() for element in elements)
        remove = tuple(element for element, n in count.items() if self._count[element] == n)
        closed = (_closed(element) for element in remove if spec_of(element.set).closed_as)
        return Change(remove, tuple(element for element in closed if not self._count[element]))

    def without(
        self, departing: Mapping[ElementOwner, Collection[Element]], closing: Change
    ) -> dict[ElementOwner, frozenset[Element]]:
        """Return the elements of these owners after `closing`."""
        closed = {element: _closed(element) for element in closing.remove if spec_of(element.set).closed_as}
        return {
            owner: self.of(owner).difference(elements).union(closed[e] for e in elements if e in closed)
            for owner, elements in departing.items()
        }

    def _index(self, owner: ElementOwner, less: Iterable[Element], more: Iterable[Element]) -> None:
        """Update the index by address.

        It has tuples, because there is one for each pair of containers that let each other pass, and nearly all have
        one element.
        """
        for address, gone in _by_last(less).items():
            owners = self._passing[address]
            owners[owner] = tuple(element for element in owners[owner] if element not in gone)
            if not owners[owner]:
                del owners[owner]
            if not owners:
                del self._passing[address]
        for address, new in _by_last(more).items():
            owners = self._passing.setdefault(address, {})
            owners[owner] = (*owners.get(owner, ()), *new)

    def narrower(self, owner: ElementOwner, new: frozenset[Element]) -> bool:
        """True if less passes than before: established flows may exist that could not be opened any more.

        A closed docker-proxy port that is added with its owner was not open before: nothing listened there. A suspected
        port was open since its listener appeared.
        """
        old = self.of(owner)
        if any(map(_opens, old - new)):
            return True
        ends = ("always", "owned") if old or owner == SUSPECTS else ("always",)
        return any(spec_of(element.set).ends_flows in ends for element in new - old)

    def wider(self, owner: ElementOwner, new: frozenset[Element]) -> bool:
        """True if more passes than before: flows that were cut may pass again."""
        return any(map(_opens, new - self.of(owner)))

    def only_closes(self, owner: ElementOwner, new: frozenset[Element]) -> bool:
        """True if no added element lets anything pass, or leads anywhere."""
        return all(spec_of(element.set).effect == "closes" for element in new - self.of(owner))

    def _difference(self, new: Mapping[ElementOwner, frozenset[Element]]) -> Counter[Element]:
        count: Counter[Element] = Counter()
        for owner, elements in new.items():
            old = self.of(owner)
            count.update(dict.fromkeys(elements - old, 1))
            count.subtract(dict.fromkeys(old - elements, 1))
        return count


def _by_last(elements: Iterable[Element]) -> dict[Address, dict[Element, None]]:
    found: dict[Address, dict[Element, None]] = {}
    for element in filter(_passes_one, elements):
        found.setdefault(element.key[-1], {})[element] = None  # type: ignore[arg-type]
    return found


def _opens(element: Element) -> bool:
    """True if the element lets flows pass. Frames within a bridge do not count: they have no flows."""
    spec = spec_of(element.set)
    return spec.effect == "opens" and not spec.bridge


def _passes_one(element: Element) -> bool:
    """True if the element lets a single address pass, or leads to one; it is the last of the key."""
    spec = spec_of(element.set)
    if spec.peer == "prefix":
        return element.key[-2] == (128 if spec.key[-1].startswith("ip6") else 32)
    return spec.peer == "address"


def _closed(served: Element) -> Element:
    """Return the element that closes the docker-proxy port that another element keeps open."""
    return Element(spec_of(served.set).closed_as, served.key)
