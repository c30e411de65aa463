"""What is known → the kernel: the difference as one transaction, or the whole table where that is refused."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping

from plugin.model import Prefix
from plugin.nftables.applied import AppliedElements
from plugin.nftables.ban_elements import ban_change, ban_elements
from plugin.nftables.drift import TableDump
from plugin.nftables.sets import RATED, SETS, Change, Element, spec_of
from plugin.nftables.table import Nft, NftError
from plugin.policy.facts import ElementOwner, Facts
from plugin.policy.peers import Who
from plugin.policy.rate_quota import FULL
from plugin.policy.view import PolicyView
from plugin.state.flow_cutter import FlowCutter
from plugin.state.lease import Lease

log = logging.getLogger(__name__)
#: Elements of those whose rules speak of whoever came that one change computes at once; and of those that are computed
#: later, while whoever goes waits.
AT_ONCE, A_BIT = 10_000, 2_000
#: What lasts for less than so many seconds yet may have gone by itself.
_LEAVING = 2
#: A kernel that refuses the whole table is asked again after so many times as long as that took.
_PATIENCE = 10
Bans = Mapping[Prefix, float]


class TableApplier:
    """To be called under the reconciler's lock. `later` takes work that may last, and must return at once."""

    def __init__(self, nft: Nft, known: PolicyView, later: Callable[[Callable[[], object]], object]) -> None:
        self.books = AppliedElements()
        self.cuts = FlowCutter(nft, known, later)
        self.lease = Lease(nft)
        self._nft = nft
        self._known = known
        #: Whose elements are not as they are known to be: a change of their own that is not applied yet, or somebody
        #: whom their rules speak of came or went. True: flows may stand that would not begin any more.
        self.behind: dict[ElementOwner, bool] = {}
        #: What was said of rules that are too much, and of rates that found no room.
        self._told: dict[ElementOwner, frozenset[str]] = {}
        #: When a table that the kernel did not take, while its rules stand, is tried again.
        self._again = 0.0

    def start(self) -> None:
        """Puts the table there whole from what is known. Raises NftError."""
        self._known.quota.keep(self._nft.limits())
        self._known.reindex(self._known.owners())
        self.books.start({owner: self._known.elements(owner) for owner in self._known.owners()})
        self.behind.clear()
        self._caught_up(self._known.owners())
        self.lease.begin()
        self.cuts.take_over()
        self._replace(self.books)
        self.cuts.everywhere()

    def owe(self, owners: Iterable[ElementOwner], *, narrower: bool = False) -> dict[ElementOwner, None]:
        """These differ from what stands, until they are applied. Returns those that did not before."""
        new = dict.fromkeys(owner for owner in owners if owner not in self.behind)
        for owner in owners:
            self.behind[owner] = narrower or self.behind.get(owner, False)
        return new

    def settle(self, owners: Iterable[ElementOwner]) -> None:
        """These are again as they stand."""
        for owner in owners:
            self.behind.pop(owner, None)

    def apply(self, owners: Iterable[ElementOwner], bans: tuple[Bans, Bans]) -> None:
        """Makes the kernel as these owners are known now, and whoever speaks of them. Raises NftError.

        `bans`: before and now.
        """
        owners = list(dict.fromkeys(owners))
        closed = self.close_first({owner: self._known.who(owner) for owner in owners})
        new = {owner: self._known.elements(owner) for owner in self._at_once(owners, everybody=not closed)}
        narrower = [o for o, elements in new.items() if self.behind.get(o) or self.books.narrower(o, elements)]
        wider = [owner for owner, elements in new.items() if self.books.wider(owner, elements)]
        change = self.books.change(new)
        banned, timed = ban_change(*bans, time.time()) if bans[0] is not bans[1] else (Change(), {})
        both = Change((*change.remove, *banned.remove), (*change.add, *banned.add))
        try:
            self._nft.change(both, timed)
        except NftError as error:
            # Somebody changed the table under our hands, or something in the change is refused for what it is.
            log.warning("the kernel refused a change, so the whole table is put there: %s", error)
            self._close(new, Change(add=banned.add), timed)
            self._replace(self.books.after(new))
            self.cuts.everywhere()
        self._vacate(new)
        self.books.write(new)
        self._caught_up(new)
        self.cuts.later(narrower)
        self.cuts.release(wider)

    def close_first(self, now: Mapping[ElementOwner, Who | None]) -> bool:
        """Before anything is computed the kernel is told to remove what whoever goes leaves open, and what lets its
        address pass elsewhere. `now`: who these owners are from now on; None: nobody is known there any more.

        `apply` follows, and adds again what another rule lets pass. False if the kernel refused: then it is part of the
        difference that `apply` makes.
        """
        going = self.books.going(*self._known.directory.losing(now))
        if not going:
            return True
        change = self.books.closing(going)
        try:
            self._nft.change(change)
        except NftError as error:
            log.warning("what closes could not go before the rest: %s", error)
            return False
        self.books.write(self.books.without(going, change))
        self.behind.update(dict.fromkeys(going, True))
        return True

    def _at_once(self, owners: list[ElementOwner], *, everybody: bool) -> list[ElementOwner]:
        """These owners, and those whose rules speak of them; without `everybody` as many as one change may compute,
        small ones first. Who lets pass one less waits: that is removed already.
        """
        introduced = self._known.reindex(owners)
        self.owe(introduced)  # whatever fails now: they are not asked about again
        # Where one gets the limit that another had, no port may be without in between.
        found, left = list(dict.fromkeys((*owners, *self._known.quota.moved))), AT_ONCE
        others = set(introduced).difference(found)
        for owner in sorted(others, key=lambda owner: (len(self.books.of(owner)), owner)):
            left -= len(self.books.of(owner)) + 1
            if everybody or (left > 0 and not self.behind.get(owner)):
                found.append(owner)
        return found

    def next_behind(self) -> list[ElementOwner]:
        """Some of those that are behind, so few that nobody waits for long."""
        found, left = list[ElementOwner](), A_BIT
        for owner in self.behind:
            left -= len(self.books.of(owner)) + 1
            if found and left < 0:
                break
            found.append(owner)
        return found

    def only_closes(self, before: Facts, owners: Iterable[ElementOwner]) -> bool:
        """True if what is known now adds nothing to the table, nor to what was known: all that comes is a going."""
        was, now = before.saved, self._known.state
        if now.bans is not was.bans and not was.bans.items() <= now.bans.items():
            return False
        if not (now.networks.keys() <= was.networks.keys() and now.endpoints.keys() <= was.endpoints.keys()):
            return False
        if any(e.joined and not was.endpoints[e.id].joined for e in now.endpoints.values()):
            return False
        return all(self.books.only_closes(owner, self._known.elements(owner)) for owner in owners)

    def _caught_up(self, owners: Iterable[ElementOwner]) -> None:
        for owner in owners:
            self.behind.pop(owner, None)
            told, full = self._told.pop(owner, frozenset()), self._known.quota.refused(owner)
            sentences = (*self._known.too_many(owner), *([FULL] if full else ()))
            # How many the peers are changes with each of them; which rules they are is news.
            if now := frozenset(sentence.partition(":")[0] for sentence in sentences):
                self._told[owner] = now
                for sentence in sentences if now != told else ():
                    log.error("%s: %s", self._known.called(owner), sentence)

    def _vacate(self, new: Mapping[ElementOwner, frozenset[Element]]) -> None:
        """Addresses that are nobody's any more; their packets were counted as long as they were somebody's."""
        gone = (element for owner, elements in new.items() for element in self.books.of(owner) - elements)
        self.cuts.vacate([e.key[0] for e in gone if e.set in ("dropped4", "dropped6")])  # type: ignore[misc]

    def _close(
        self, new: Mapping[ElementOwner, frozenset[Element]], bans: Change, timed: Mapping[Element, int]
    ) -> None:
        """Of a change that was refused what closes, at once: it waits for no whole table, and for none that fails."""
        less = {
            owner: elements & self.books.of(owner)
            | {e for e in elements if e.set not in RATED and spec_of(e.set).effect == "closes"}
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

    def whole(self, owners: Iterable[ElementOwner]) -> None:
        """Puts the table there whole as these owners are known now; never raises NftError."""
        new = {owner: self._known.elements(owner) for owner in self._known.reindex(owners)}
        self.books.write(new)
        self._caught_up(new)
        try:
            self._replace(self.books)
        except NftError:
            log.exception("could not put the table there; what stands in the kernel stays")

    def repair(self) -> bool:
        """If somebody touched our table's rules, or the kernel did not take all of it, puts it there again. True if so.
        Raises NftError.
        """
        began = time.monotonic()
        if self._nft.intact() and not (self._nft.incomplete and began >= self._again):
            return False
        try:
            self._replace(self.books)
        except NftError:
            now = time.monotonic()
            self._again = now + _PATIENCE * (now - began)
            raise
        self.cuts.everywhere()
        return True

    def sync_elements(self, found: TableDump) -> int:
        """Adds the elements that are missing in what was found, and removes those that are too much. How many.

        `found` must be of this very moment. A table that is owned needs no such look. Raises NftError.
        """
        lasting, timed = self._besides()
        known = {e for e in self.books if e.set in found.sets or e.set not in SETS}
        should = known | lasting
        missing = should - found.elements
        extra = {
            element
            for element in found.elements - should - found.leaving
            if element not in timed and not element.set.startswith("held")
        }
        late = {e: seconds for e, seconds in timed.items() if seconds > _LEAVING and e not in found.elements}
        if missing or extra or late:
            self._nft.change(Change(tuple(extra), tuple(missing)), late)
            self.cuts.everywhere()
        return len(missing) + len(extra) + len(late)

    def _replace(self, elements: Iterable[Element]) -> None:
        lasting, timed = self._besides()
        with self.cuts.kept() as held:
            self._nft.replace((*elements, *lasting), timed | held)

    def _besides(self) -> tuple[set[Element], dict[Element, int]]:
        """What stands besides the books: elements that last, and those that last for so many seconds."""
        lasting, timed = ban_elements(self._known.state.bans, time.time())
        return lasting, timed | self.lease.left()
