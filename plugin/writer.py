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
from plugin.quota import FULL
from plugin.sets import RATED, SETS, Change, Element

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
        #: Owners of whom it was said that their rates found no room.
        self._refused: set[Owner] = set()

    def start(self) -> None:
        """Puts the table there whole from what is known. Raises NftError."""
        self._known.quota.keep(self._nft.limits())
        self._known.introduce(self._known.owners())
        self.books.start({owner: self._known.elements(owner) for owner in self._known.owners()})
        self._tell(self._known.owners())
        self.lease.begin()
        self._replace(self.books)
        self.cuts.everywhere()

    def apply(self, owners: Iterable[Owner], bans: tuple[Bans, Bans] | None = None) -> bool:
        """Makes the kernel as these owners are known now, and whoever speaks of them. Raises NftError.

        `bans`: before and now. True if other networks are confined than before.
        """
        new = {owner: self._known.elements(owner) for owner in self._known.introduce(owners)}
        narrower = [owner for owner, elements in new.items() if self.books.narrower(owner, elements)]
        change = self.books.change(new)
        banned, timed = ban_change(*bans, time.time()) if bans else (Change(), {})
        both = Change((*change.remove, *banned.remove), (*change.add, *banned.add))
        try:
            self._nft.change(both, timed)
        except NftError as error:
            # Somebody changed the table under our hands, or something in the change is refused for what it is.
            log.warning("the kernel refused a change, so the whole table is put there: %s", error)
            self._close(new, Change(add=banned.add), timed)
            self._replace(self.books.after(new))
            self.cuts.everywhere()
        self.books.write(new)
        self.cuts.later(narrower)
        self._tell(new)
        return touches_confined(change)

    def _tell(self, owners: Iterable[Owner]) -> None:
        """Says of each container once that its rates found no room."""
        for owner in owners:
            if not self._known.quota.refused(owner):
                self._refused.discard(owner)
            elif owner not in self._refused and (found := self._known.endpoint(owner)):
                self._refused.add(owner)
                log.warning("%s: %s", found[1].container.name if found[1].container else found[1].id, FULL)

    def _close(self, new: Mapping[Owner, frozenset[Element]], bans: Change, timed: Mapping[Element, int]) -> None:
        """Of a change that was refused what closes, at once: it waits for no whole table, and for none that fails."""
        less = {
            owner: elements & self.books.of(owner)
            | {e for e in elements if e.set.startswith(("confined", "proxied"))}
            | {e for e in self.books.of(owner) if e.set in RATED}
            for owner, elements in new.items()
        }
        try:
            self._nft.change(self.books.change(less))
            self._nft.change(bans, timed)
        except NftError as error:
            log.warning("what closes could not be done alone: %s", error)
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
        self._replace(self.books)
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

    def _replace(self, elements: Iterable[Element]) -> None:
        lasting, timed = self._besides()
        self._nft.replace((*elements, *lasting), timed)

    def _besides(self) -> tuple[set[Element], dict[Element, int]]:
        """What stands besides the books: elements that last, and those that last for so many seconds."""
        lasting, timed = ban_elements(self._known.state.bans, time.time())
        return lasting, timed | self.lease.left()
