"""What is known → the kernel: the difference as one transaction, or the whole table where that is refused."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping

from plugin.bans import ban_change, ban_elements
from plugin.books import Books, touches_confined
from plugin.cuts import Cuts
from plugin.drift import Standing
from plugin.inventory import Inventory, Owner
from plugin.lease import Lease
from plugin.model import Prefix
from plugin.nft import Nft, NftError
from plugin.sets import SETS, Change, Element

log = logging.getLogger(__name__)
#: What lasts for less than so many seconds yet may have gone by itself.
_LEAVING = 2
Bans = Mapping[Prefix, float]


class Writer:
    """To be called under the reconciler's lock. `later` takes work that may last, and must return at once."""

    def __init__(self, nft: Nft, known: Inventory, later: Callable[[Callable[[], None]], None]) -> None:
        self.books = Books()
        self.cuts = Cuts(nft, known, later)
        self.lease = Lease(nft)
        self._nft = nft
        self._known = known

    def start(self) -> None:
        """Puts the table there whole from what is known. Raises NftError."""
        self._known.introduce(self._known.owners())
        self.books.start({owner: self._known.elements(owner) for owner in self._known.owners()})
        self.lease.begin()
        self.cuts.take_over()
        self._replace(self.books)
        self.cuts.everywhere()

    def apply(self, owners: Iterable[Owner], bans: tuple[Bans, Bans] | None = None) -> bool:
        """Makes the kernel as these owners are known now, and whoever speaks of them. Raises NftError.

        `bans`: before and now. True if other networks are confined than before.
        """
        new = {owner: self._known.elements(owner) for owner in self._known.introduce(owners)}
        narrower = [owner for owner, elements in new.items() if self.books.narrower(owner, elements)]
        wider = [owner for owner, elements in new.items() if self.books.wider(owner, elements)]
        change = self.books.change(new)
        try:
            self._nft.change(change)
            if bans:
                self._nft.change(*ban_change(*bans, time.time()))
        except NftError as error:
            # Somebody flushed or deleted under our hands: the whole table again, from what should be.
            log.warning("putting the whole table there: %s", error)
            try:
                self._replace(self.books.after(new), gone=True)
            except NftError:
                self._close(new)
                raise
            self.cuts.everywhere()
        self._vacate(new)
        self.books.write(new)
        self.cuts.later(narrower)
        self.cuts.release(wider)
        return touches_confined(change)

    def _vacate(self, new: Mapping[Owner, frozenset[Element]]) -> None:
        """Addresses that are nobody's any more; their packets were counted as long as they were somebody's."""
        gone = (element for owner, elements in new.items() for element in self.books.of(owner) - elements)
        self.cuts.vacate([e.key[0] for e in gone if e.set in ("dropped4", "dropped6")])  # type: ignore[misc]

    def _close(self, new: Mapping[Owner, frozenset[Element]]) -> None:
        """What the kernel does not take must not keep open what closes by the same change."""
        less = {
            owner: elements & self.books.of(owner) | {e for e in elements if e.set.startswith(("confined", "proxied"))}
            for owner, elements in new.items()
        }
        try:
            self._nft.change(self.books.change(less))
        except NftError as error:
            log.error("what should be closed could not be: %s", error)
        else:
            self.books.write(less)
            self.cuts.later(list(less))

    def whole(self, owners: Iterable[Owner]) -> None:
        """Puts the table there whole as these owners are known now; never raises NftError."""
        self.books.write({owner: self._known.elements(owner) for owner in self._known.introduce(owners)})
        try:
            self._replace(self.books)
        except NftError:
            log.exception("could not put the table there; what stands in the kernel stays")

    def repair(self) -> bool:
        """If somebody touched our table's rules, puts it there again. True if so. Raises NftError."""
        if self._nft.intact():
            return False
        self._replace(self.books, gone=True)
        self.cuts.everywhere()
        return True

    def put_right(self, found: Standing) -> int:
        """Adds the elements that are missing in what was found, and removes those that are too much. How many.

        `found` must be of this very moment. A table that is owned needs no such look. Raises NftError.
        """
        lasting, timed = self._besides()
        known = {e for e in self.books if e.set in found.sets or e.set not in SETS}
        should = known | lasting
        missing = should - found.elements
        extra = {
            element for element in found.elements - should - found.leaving
            if element not in timed and not element.set.startswith("held")
        }  # fmt: skip
        late = {e: seconds for e, seconds in timed.items() if seconds > _LEAVING and e not in found.elements}
        if missing or extra or late:
            self._nft.change(Change(tuple(extra), tuple(missing)), late)
            self.cuts.everywhere()
        return len(missing) + len(extra) + len(late)

    def _replace(self, elements: Iterable[Element], *, gone: bool = False) -> None:
        lasting, timed = self._besides()
        with self.cuts.kept() as held:
            self._nft.replace((*elements, *lasting), timed | held, gone=gone)

    def _besides(self) -> tuple[set[Element], dict[Element, int]]:
        """What stands besides the books: elements that last, and those that last for so many seconds."""
        lasting, timed = ban_elements(self._known.state.bans, time.time())
        return lasting, timed | self.lease.left()
