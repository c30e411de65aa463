"""Whose elements stand in the kernel, and what one change of them is. Pure.

Two owners may need the same element; it stands as long as one of them does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from plugin.sets import Change, Element

#: Sets whose elements let something pass; of "free…" and "confined" see `narrower`.
_OPENING = ("allow", "other", "from", "via", "dnat", "served", "listening", "out", "to", "free")
#: Sets whose elements only close.
_CLOSING = ("confined", "proxied", "holding", "rated", "rating")


class Books:
    """Not thread-safe."""

    def __init__(self) -> None:
        self._owned: dict[str, frozenset[Element]] = {}
        self._count: Counter[Element] = Counter()

    def __iter__(self) -> Iterator[Element]:
        return iter(self._count)

    def of(self, owner: str) -> frozenset[Element]:
        return self._owned.get(owner, frozenset())

    def start(self, owned: Mapping[str, frozenset[Element]]) -> None:
        self._owned = {owner: elements for owner, elements in owned.items() if elements}
        self._count = Counter(element for elements in self._owned.values() for element in elements)

    def change(self, new: Mapping[str, frozenset[Element]]) -> Change:
        """What makes the kernel as `new` has it for these owners."""
        count = self._difference(new)
        return Change(
            remove=tuple(e for e, n in count.items() if n < 0 and self._count[e] + n == 0),
            add=tuple(e for e, n in count.items() if n > 0 and self._count[e] == 0),
        )

    def after(self, new: Mapping[str, frozenset[Element]]) -> list[Element]:
        """Every element that should stand when `new` has been written."""
        total = self._count.copy()
        total.update(self._difference(new))
        return [element for element, n in total.items() if n > 0]

    def write(self, new: Mapping[str, frozenset[Element]]) -> None:
        for element, n in self._difference(new).items():
            self._count[element] += n
            if not self._count[element]:
                del self._count[element]
        for owner, elements in new.items():
            if elements:
                self._owned[owner] = elements
            else:
                self._owned.pop(owner, None)

    def narrower(self, owner: str, new: frozenset[Element]) -> bool:
        """True if less passes than before: flows may stand that would not begin any more."""
        old = self.of(owner)
        if any(element.set.startswith(_OPENING) for element in old - new):
            return True
        closes = ("confined", "proxied") if old else ("confined",)
        return any(element.set.startswith(closes) for element in new - old)

    def only_closes(self, owner: str, new: frozenset[Element]) -> bool:
        """True if nothing comes that lets anything pass, or leads anywhere."""
        return all(element.set.startswith(_CLOSING) for element in new - self.of(owner))

    def confined(self) -> frozenset[str]:
        """The bridges on which not everybody may begin everything."""
        return frozenset(str(element.key[0]) for element in self._count if element.set == "confined")

    def _difference(self, new: Mapping[str, frozenset[Element]]) -> Counter[Element]:
        count: Counter[Element] = Counter()
        for owner, elements in new.items():
            old = self.of(owner)
            count.update(dict.fromkeys(elements - old, 1))
            count.subtract(dict.fromkeys(old - elements, 1))
        return count


def touches_confined(change: Change) -> bool:
    return any(element.set == "confined" for element in (*change.remove, *change.add))
