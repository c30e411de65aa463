"""Applies the facts to the kernel: the difference as one transaction, or the whole table if that is refused."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address

from plugin.model import Prefix
from plugin.nftables.applied import AppliedElements
from plugin.nftables.ban_elements import ban_change, ban_elements
from plugin.nftables.client import NftError
from plugin.nftables.compile import ElementCompiler
from plugin.nftables.drift import TableDump
from plugin.nftables.sets import RATED, Change, Element, numbers
from plugin.nftables.table import KernelTable
from plugin.policy.facts import ElementOwner, Facts
from plugin.policy.peers import Who
from plugin.policy.rate_quota import FULL
from plugin.policy.view import PolicyView
from plugin.state.flow_cutter import FlowCutter
from plugin.state.lease import Lease

log = logging.getLogger(__name__)
#: Most elements that one change computes at once for owners whose rules name an added peer; and most that one deferred
#: step computes, while departures wait.
AT_ONCE, A_BIT = 10_000, 2_000
#: An element with fewer seconds left than this may have expired meanwhile.
_LEAVING = 2
#: After the kernel refused the whole table, the next try waits this many times as long as the refused one took.
_PATIENCE = 10
#: The sets of known containers' addresses.
_COUNTED = numbers(lambda spec: spec.counted and "daddr" in spec.key[0])
Bans = Mapping[Prefix, float]


class TableApplier:
    """Call under the reconciler's lock. `later` queues long work and must return at once."""

    def __init__(self, nft: KernelTable, known: PolicyView, later: Callable[[Callable[[], object]], object]) -> None:
        self.applied = AppliedElements()
        self.cuts = FlowCutter(nft, known, later)
        self.lease = Lease(nft)
        self._nft = nft
        self._known = known
        self._compiler = ElementCompiler(known)
        #: Owners whose applied elements are out of date: a change of their own is not applied yet, or a peer that their
        #: rules name was added or removed. True: flows may be established that would not be accepted any more.
        self.behind: dict[ElementOwner, bool] = {}
        #: Already logged by owner: rules with too many elements, and rates without room.
        self._warned: dict[ElementOwner, frozenset[str]] = {}
        #: When to try a refused table again, if its rules are in place.
        self._again = 0.0
        #: True after an unexpected error: the kernel may have elements that are not recorded.
        self.distrusted = False

    def start(self) -> None:
        """Write the whole table from the facts. Raises NftError."""
        self._compiler.start(self._nft.rate_chains())
        self.applied.start((owner, self._compiler.elements(owner)) for owner in self._known.owners())
        self.behind.clear()
        self._caught_up(self._known.owners())
        self.lease.begin()
        self.cuts.take_over()
        self._replace(self.applied)
        self.cuts.everywhere()

    def owe(self, owners: Iterable[ElementOwner], *, narrower: bool = False) -> dict[ElementOwner, None]:
        """Mark owners as out of date until they are applied. Return those that were not marked before."""
        new = dict.fromkeys(owner for owner in owners if owner not in self.behind)
        for owner in owners:
            self.behind[owner] = narrower or self.behind.get(owner, False)
        return new

    def room_left(self) -> list[ElementOwner]:
        """Return the owners that get rate limits freed when Docker has listed all containers."""
        return self._compiler.room_left()

    def distrust(self, owners: Iterable[ElementOwner]) -> None:
        """Compute these owners' elements again, and write the whole table again at the next `repair`."""
        self.distrusted = True
        self.owe(owners, narrower=True)

    def settle(self, owners: Iterable[ElementOwner]) -> None:
        """Unmark owners: their applied elements are right again, except where `close_first` removed some."""
        for owner in owners:
            if not self.behind.get(owner):
                self.behind.pop(owner, None)

    def apply(self, owners: Iterable[ElementOwner], bans: tuple[Bans, Bans]) -> None:
        """Apply these owners' current elements, and those of owners whose rules name them. Raises NftError.

        `bans`: before and now.
        """
        owners = list(dict.fromkeys(owners))
        closed = self.close_first({owner: self._known.who(owner) for owner in owners})
        new = {owner: self._compiler.elements(owner) for owner in self._at_once(owners, everybody=not closed)}
        narrower = [o for o, elements in new.items() if self.behind.get(o) or self.applied.narrower(o, elements)]
        wider = [owner for owner, elements in new.items() if self.applied.wider(owner, elements)]
        change = self.applied.change(new)
        banned, timed = ban_change(*bans, time.time()) if bans[0] is not bans[1] else (Change(), {})
        both = Change((*change.remove, *banned.remove), (*change.add, *banned.add))
        try:
            self._nft.change(both, timed)
        except NftError as error:
            # Another program changed the table meanwhile, or the kernel rejects a part of the change itself.
            log.warning("the kernel refused a change; docker-fw writes the whole table: %s", error)
            self._close(new, Change(add=banned.add), timed)
            self._replace(self.applied.after(new))
            self.cuts.everywhere()
        self._vacate(new)
        self.applied.write(new)
        self._caught_up(new)
        self.cuts.later(narrower)
        self.cuts.release(wider)

    def close_first(self, now: Mapping[ElementOwner, Who | None]) -> bool:
        """Close departing owners before anything is computed. Return False if the kernel refused.

        Removes elements that keep them open, and elements that let their addresses reach others. `now`: the identity of
        these owners from now on; None: no known container.

        `apply` follows, and adds again what another rule allows. After a refusal the removal is part of the difference
        that `apply` makes.
        """
        departing = self.applied.departing(*self._known.directory.losing(now))
        if not departing:
            return True
        change = self.applied.closing(departing)
        try:
            self._nft.change(change)
        except NftError as error:
            log.warning("could not close addresses before the rest of the change: %s", error)
            return False
        self.applied.write(self.applied.without(departing, change))
        self.behind.update(dict.fromkeys(departing, True))
        return True

    def _at_once(self, owners: list[ElementOwner], *, everybody: bool) -> list[ElementOwner]:
        """Return these owners, and those whose rules name them.

        Without `everybody`, as many as one change may compute, small ones first. Owners that only lose a peer wait:
        that peer is removed already.
        """
        introduced = self._compiler.reindex(owners)
        self.owe(introduced)  # even if a later step fails: `reindex` does not return them again
        # Where one owner gets the rate limit that another had, no port may lack its limit in between.
        found, left = list(dict.fromkeys((*owners, *self._compiler.moved))), AT_ONCE
        others = set(introduced).difference(found)
        for owner in sorted(others, key=lambda owner: (self.applied.many(owner), owner)):
            left -= self.applied.many(owner) + 1
            if everybody or (left > 0 and not self.behind.get(owner)):
                found.append(owner)
        return found

    def next_behind(self) -> list[ElementOwner]:
        """Return some out-of-date owners, so few that no other change waits for long."""
        found, left = list[ElementOwner](), A_BIT
        for owner in self.behind:
            left -= self.applied.many(owner) + 1
            if found and left < 0:
                break
            found.append(owner)
        return found

    def only_closes(self, before: Facts, owners: Iterable[ElementOwner]) -> bool:
        """True if the change only removes access: it adds nothing to the table and nothing to the facts."""
        was, now = before.saved, self._known.state
        if now.bans is not was.bans and not was.bans.items() <= now.bans.items():
            return False
        if not (now.networks.keys() <= was.networks.keys() and now.endpoints.keys() <= was.endpoints.keys()):
            return False
        if any(e.joined and not was.endpoints[e.id].joined for e in now.endpoints.values()):
            return False
        return all(self.applied.only_closes(owner, self._compiler.elements(owner)) for owner in owners)

    def _caught_up(self, owners: Iterable[ElementOwner]) -> None:
        for owner in owners:
            self.behind.pop(owner, None)
            warned, full = self._warned.pop(owner, frozenset()), self._known.rates_refused(owner)
            sentences = (*self._known.too_many(owner), *([FULL] if full else ()))
            # The number of peers changes with each of them; only a change of the rules concerned is logged.
            if now := frozenset(sentence.partition(":")[0] for sentence in sentences):
                self._warned[owner] = now
                for sentence in sentences if now != warned else ():
                    log.error("%s: %s", self._known.called(owner), sentence)

    def _vacate(self, new: Mapping[ElementOwner, frozenset[Element]]) -> None:
        """Vacate addresses that no container has any more: those whose counters of drops are removed."""
        gone = (element for owner, elements in new.items() for element in self.applied.of(owner) - elements)
        self.cuts.mark_departed([ip_address(e.packed_key) for e in gone if e[0] in _COUNTED])

    def _close(
        self, new: Mapping[ElementOwner, frozenset[Element]], bans: Change, timed: Mapping[Element, int]
    ) -> None:
        """Apply at once the closing part of a refused change: it must not wait for the whole table, which may fail."""
        less = {
            owner: elements & self.applied.of(owner)
            | {e for e in elements if e.set not in RATED and e.spec.effect == "closes"}
            | {e for e in self.applied.of(owner) if e.set in RATED}
            for owner, elements in new.items()
        }
        try:
            self._nft.change(self.applied.change(less))
        except NftError as error:
            log.warning("could not apply the closing part of a change alone: %s", error)
        else:
            self.applied.write(less)
            self.cuts.later(list(less))
        try:
            self._nft.change(bans, timed)
        except NftError as error:
            log.warning("could not apply bans alone: %s", error)

    def whole(self, owners: Iterable[ElementOwner]) -> None:
        """Write the whole table with these owners' current elements; never raises NftError."""
        new = {owner: self._compiler.elements(owner) for owner in self._compiler.reindex(owners)}
        self.applied.write(new)
        self._caught_up(new)
        try:
            self._replace(self.applied)
        except NftError:  # `repair` tries again, and cuts all flows that are not accepted
            log.exception("could not write the table; the kernel's table is unchanged")
        else:
            self.cuts.later(list(new))

    def repair(self) -> bool:
        """Write the table again if another program changed its rules or the kernel lacks a part of it.

        Return True if it was written. Raises NftError.
        """
        began = time.monotonic()
        if self._nft.intact() and not (self.distrusted or (self._nft.incomplete and began >= self._again)):
            return False
        try:
            self._replace(self.applied)
        except NftError:
            now = time.monotonic()
            self._again = now + _PATIENCE * (now - began)
            raise
        self.cuts.everywhere()
        return True

    def sync_elements(self, found: TableDump) -> int:
        """Add elements missing from the dump and remove those that do not belong. Return how many.

        `found` must be current. An owned table needs no such check. Raises NftError.
        """
        lasting, timed = self._besides()
        known = {e for e in self.applied if e.set in found.sets}
        should = known | lasting
        missing = should - found.elements
        extra = {
            element
            for element in found.elements - should - found.leaving
            if element not in timed and not (element.spec.meter or element.spec.stays)
        }
        late = {e: seconds for e, seconds in timed.items() if seconds > _LEAVING and e not in found.elements}
        if missing or extra or late:
            self._nft.change(Change(tuple(extra), tuple(missing)), late)
            self.cuts.everywhere()
        return len(missing) + len(extra) + len(late)

    def _replace(self, elements: Iterable[Element]) -> None:
        lasting, timed = self._besides()
        with self.cuts.for_rewrite() as quarantined:
            self._nft.replace((*elements, *lasting), timed | quarantined)
        self.distrusted = False

    def _besides(self) -> tuple[set[Element], dict[Element, int]]:
        """Return the elements in addition to the recorded ones: permanent ones, and timed ones with their seconds."""
        lasting, timed = ban_elements(self._known.state.bans, time.time())
        return lasting | self.cuts.gates(), timed | self.lease.left()
