"""The only module that changes the facts: edit → derived sticky facts → disk → elements → one transaction.

Every change is made here, under one lock: first the state file, then the kernel. A crash between the two can leave
more closed than the file says, never less, because the start replaces the whole table from the file. The owners whose
elements a change affects follow from comparing the facts before and after it; callers do not name them. A loop
flushes changes that must survive a power cut to the disk, without the lock: a slow disk delays no other change. A
caller that reports such a change as done calls `wait_saved` before.

Lock order: the lock here is the first, then those of `FlowCutter`, `KernelTable` and `Bridges`, which call only the
kernel. No module calls this one while it holds a lock of its own. The tracker, the driver and the loops have no lock:
their data in addition to the facts changes within edits, under this lock.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TypeVar

from plugin.kernel.conntrack import Cut
from plugin.model import Defaults, Endpoint, FwError, Network
from plugin.nftables import dump as standing
from plugin.nftables.client import NftError
from plugin.nftables.sets import Element
from plugin.nftables.table import KernelTable
from plugin.policy.facts import ElementOwner, Facts, Kind
from plugin.policy.frozen import FrozenDict, frozen
from plugin.policy.saved import SavedState
from plugin.policy.view import PolicyView
from plugin.state.applier import TableApplier
from plugin.state.deferred import Behind
from plugin.state.store import JOURNALED, Store

T = TypeVar("T")
Edit = Callable[[Facts], Facts]
Owners = dict[ElementOwner, None]
#: Parts of the state that must survive a power cut.
_FLUSHED = ("networks", "switched", "egress_restricted", "internal", "overrides", "bans")
log = logging.getLogger(__name__)


class Reconciler:
    """Changes the facts and applies them to the kernel's table. Thread-safe.

    `commit` is for changes that the disk or the kernel may refuse: the facts then stay unchanged. `observe` is for
    events that have already happened, and is never refused. `later` queues long work (cutting flows) and must return at
    once.
    """

    def __init__(
        self,
        nft: KernelTable,
        store: Store,
        defaults: Defaults,
        later: Callable[[Callable[[], object]], object] = lambda work: work(),
    ) -> None:
        self._nft = nft
        self._store = store
        self._later = later
        self._lock = threading.RLock()
        self._view = PolicyView(defaults)
        #: The view's facts after the last complete change: for readers without the lock.
        self._facts = self._view.facts
        self._writer = TableApplier(nft, self._view, later)
        #: Set while the disk may lack what must survive a power cut. `flush` clears it.
        self.unflushed = threading.Event()
        #: True after an unexpected error: the facts may lack what `_settle` derives.
        self._unsettled = False
        self._behind = Behind(self._writer, self._lock, self._catch_up, later)

    # --- facts ----------------------------------------------------------------------------------------------------

    @property
    def facts(self) -> Facts:
        """All facts, as of the last complete change. One in progress, which may still be refused, is not in them."""
        return self._facts

    @property
    def state(self) -> SavedState:
        """The part of `facts` that is saved across restarts."""
        return self._facts.saved

    @property
    def networks(self) -> Mapping[str, Network]:
        """The driver's networks by ID, as in `facts`."""
        return self.state.networks

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        """The driver's endpoints by ID, as in `facts`."""
        return self.state.endpoints

    @property
    def unlabelled(self) -> bool:
        """True if an endpoint of the driver is joined and its container is unknown. A change in progress may count."""
        return self._view.unlabelled

    def read(self, question: Callable[[PolicyView], T]) -> T:
        """Return the answer to a short question while nothing changes. Every change waits for it."""
        with self._lock:
            return question(self._view)

    def on(self, network_id: str) -> list[Endpoint]:
        """Return the driver's endpoints on a network."""
        return self.read(lambda view: view.on(network_id))

    def snapshot(self) -> PolicyView:
        """Return a copy of all current facts, to be read without the lock."""
        with self._lock:
            return self._view.copy(watched=bool(self._writer.lease.left()))

    def should(self) -> tuple[Facts, list[Element], dict[Element, int]]:
        """Return the facts, the elements that the kernel should have (without bans), and the lease's seconds left."""
        with self._lock:
            elements = [*self._writer.applied, *self._writer.cuts.gates()]
            return self._view.facts, elements, self._writer.lease.left()

    # --- changes --------------------------------------------------------------------------------------------------

    def start(self, facts: Facts, before: SavedState | None = None) -> None:
        """Take over these facts and write the whole table. Raises NftError: then the start must not continue.

        `before`: the state as it was saved. The flows of endpoints that have left since then are cut.
        """
        with self._lock, self._view.deciding():
            self._view.start(facts)
            settled = self._view.settled(facts, self._view.owners())
            if settled is not facts:  # the last process may have been killed before it saved the derived facts
                self._save_or_log(facts.saved, settled.saved)
                self._view.start(settled)
            self._facts = settled
            self._writer.start()
            departed_facts = Facts(saved=before or facts.saved)
            for cut in self._writer.cuts.departed(departed_facts, facts, list(departed_facts.owners())):
                cut()
            self.unflushed.set()  # the last process may have been killed before it flushed the file
            if settled.saved.boot != departed_facts.saved.boot:  # so that the next start knows whether this is its boot
                self._save_or_log(departed_facts.saved, settled.saved)

    def commit(self, edit: Edit, then: Callable[[], None] | None = None) -> Cut:
        """Change the facts by an edit that may be refused. Return how many flows of banned prefixes were cut.

        Raises FwError when the disk or the kernel refuses the edit; both then keep the old facts. An edit that only
        closes does not wait for a full disk: the next save writes the whole state and so includes it. An endpoint that
        leaves is closed before anything is computed or saved, and a refusal does not open it again. `then` runs when
        the kernel has the change and before the flows of endpoints that left are cut, even after an error.
        """
        ends: list[Callable[[], Cut | None]] = []
        cut = Cut()
        try:
            with self._lock:
                self._change(edit, ends, observed=False)
        finally:
            try:
                if then:
                    then()
            finally:
                for end in ends:
                    cut += end() or Cut()
        return cut

    def observe(self, edit: Edit) -> None:
        """Change the facts by an observed event. Never refused: a failed write to disk or kernel is tried again."""
        ends: list[Callable[[], Cut | None]] = []
        try:
            with self._lock:
                self._change(edit, ends, observed=True)
        finally:
            for end in ends:
                self._later(end)

    def _change(self, edit: Edit, ends: list[Callable[[], Cut | None]], *, observed: bool) -> None:
        before = self._view.facts
        after = edit(before)
        if after is not before:
            try:
                self._make(before, after, ends, observed=observed)
            finally:
                self._facts = self._view.facts

    def _make(self, before: Facts, after: Facts, ends: list[Callable[[], Cut | None]], *, observed: bool) -> None:
        with self._view.deciding():
            owners = self._concerned(before, after)
            self._view.take(after, owners)
            owed = self._writer.owe(owners)
            gone = owners  # if it is unknown who leaves: Docker takes no departure back
            try:
                gone = self._view.departing(owners)
                self._perform(before, owners, owed, ends, gone=gone, observed=observed)
            except FwError:  # refused, and taken back
                raise
            except Exception:
                self._broken(before, owners, take_back=not (gone or observed))
                if not ends:  # the error may have come before `_perform` knew them
                    ends += self._departed(before, owners)
                raise

    def _concerned(self, before: Facts, after: Facts) -> Owners:
        """Return the owners whose elements may change; all of them if that is unknown."""
        try:
            return self._view.changed(before, after)
        except Exception:
            log.exception("which elements a change concerns could not be determined, so all are computed again")
            return dict.fromkeys((*before.owners(), *after.owners()))

    def _perform(
        self,
        before: Facts,
        owners: Owners,
        owed: Owners,
        ends: list[Callable[[], Cut | None]],
        *,
        gone: Owners,
        observed: bool,
    ) -> None:
        """Write the facts taken to disk and kernel. Raises FwError, with the facts taken back."""
        ends += self._writer.cuts.departed(before, self._view.facts, owners)
        # If the disk may refuse the change, only endpoints that leave are closed before the save.
        self._writer.close_first({owner: self._view.who(owner) for owner in (gone if self.unsaved_reason else owners)})
        after = self._settle(before, owners)
        try:
            self._save(before.saved, after.saved)
        except FwError as error:
            if not (observed or gone or self._writer.only_closes(before, owners)):
                self._take_back(before, owners, owed)
                raise
            log.error("%s; departed addresses are closed nevertheless", error)
        try:
            self._apply(owners, before)
            if room := self._writer.room_left():
                self._writer.owe(room)
                self._apply(room)
        except (NftError, OSError) as error:
            self._refused(error, before, owners, owed, gone=bool(gone), observed=observed)
            return
        ends += self._writer.cuts.closed(before, after)

    def _settle(self, before: Facts, owners: Owners) -> Facts:
        """Add the derived sticky facts, and to `owners` those whose elements they change."""
        after = self._view.facts
        settled = self._view.settled(before, owners)
        if settled is not after:
            more = self._view.changed(after, settled)
            owners |= more
            self._view.take(settled, more)
            self._writer.owe(more)
        return settled

    def _refused(
        self, error: Exception, before: Facts, owners: Owners, owed: Owners, *, gone: bool, observed: bool
    ) -> None:
        if observed:
            self._writer.owe(owners, narrower=True)
            log.error("the kernel refused a change; docker-fw tries it again: %s", error)
            self._behind.later()
            return
        if gone:
            log.error("the kernel refused a change; docker-fw writes the whole table instead: %s", error)
            self._writer.whole(owners)
            return
        after = self._view.facts
        self._take_back(before, owners, owed)
        try:
            self._save(after.saved, before.saved)
        finally:
            self._writer.whole(owners)
        raise FwError(f"the kernel refused the firewall's change: {error}") from error

    def _broken(self, before: Facts, owners: Owners, *, take_back: bool) -> None:
        """Recover from an unexpected error in the middle of a change, which may have stopped at any step.

        A refusable edit is taken back; a departure is not. The table is written from the elements that are known to be
        right, and the elements of all owners are computed again, until that succeeds.
        """
        log.exception("a change failed unexpectedly; the table is written again and all elements are computed again")
        if take_back:
            self._view.take(before, owners)
        self._writer.distrust(self._view.owners())
        self._unsettled = True
        self._behind.retry()
        try:
            self._store.save(self._view.state)
            self.unflushed.set()
        except FwError as error:
            log.error("%s; the state file has the current state after the next save", error)
        try:
            self._writer.repair()
        except Exception:
            log.exception("the table could not be written; docker-fw tries again")

    def _departed(self, before: Facts, owners: Owners) -> list[Callable[[], Cut | None]]:
        """Return calls that cut the flows of endpoints that left; none, and a message, if they cannot be determined."""
        try:
            return [*self._writer.cuts.departed(before, self._view.facts, owners)]
        except Exception:
            log.exception("the flows of endpoints that left could not be determined, so they are not cut")
            return []

    def _take_back(self, before: Facts, owners: Owners, owed: Owners) -> None:
        self._view.take(before, owners)
        self._writer.settle(owed)
        self._behind.later()

    def _catch_up(self, owners: Iterable[ElementOwner]) -> None:
        """Apply deferred owners, and derive again what an unexpected error left out."""
        if self._unsettled:
            before = self._view.facts
            with self._view.deciding():
                after = self._facts = self._settle(before, dict.fromkeys(self._view.owners()))
            self._unsettled = False
            self._save_or_log(before.saved, after.saved)
        self._apply(owners)

    def _apply(self, owners: Iterable[ElementOwner], before: Facts | None = None) -> None:
        bans = self._view.state.bans
        self._writer.apply(owners, (before.saved.bans if before else bans, bans))
        self._behind.later()

    # --- the disk -------------------------------------------------------------------------------------------------

    def _save(self, before: SavedState, after: SavedState) -> None:
        """Save the state. A change of a single endpoint, or container, is one line in the journal. Raises FwError."""
        names = [each.name for each in dataclasses.fields(SavedState)]
        differing = [name for name in names if _differ(getattr(before, name), getattr(after, name))]
        if not differing:
            return
        changed: list[tuple[str, str]] = []
        if len(differing) == 1 and differing[0] in JOURNALED:
            (name,) = differing
            changed = [(name, key) for key in frozen(getattr(after, name)).differing(getattr(before, name))]
        unsaved = self._store.unsaved_reason
        self._store.save(after, alone=changed[0] if len(changed) == 1 else None)
        if unsaved or any(name in _FLUSHED for name in differing):
            self.unflushed.set()

    def _save_or_log(self, before: SavedState, after: SavedState) -> None:
        try:
            self._save(before, after)
        except FwError as error:
            log.error("%s; the state file may not have the current state until the next save", error)

    @property
    def unsaved_reason(self) -> str:
        """Why the current state is not on the disk; "" if it is."""
        return self._store.unsaved_reason

    def flush(self) -> None:
        """Flush what must survive a power cut to the disk. Raises FwError; `save_again` tries it again."""
        self.unflushed.clear()
        self._store.flush()

    def wait_saved(self) -> None:
        """Wait until the disk has all changes made before.

        Raises FwError: they are in effect, and a restart or a power cut may undo them.
        """
        self._store.flush()
        if reason := self._store.unsaved_reason:  # a change that closes is made also if the disk has no room
            raise FwError(reason)

    def save_again(self) -> None:
        """Save again what the disk refused, and request a `flush`. Raises FwError if it still refuses."""
        if not self._store.unsaved_reason:
            return
        # A file that could not be flushed once may pass for flushed later (fsync(2)), so a new one is written.
        with self._lock:
            self._store.save(self.state)
        self.unflushed.set()

    # --- edits that several callers make --------------------------------------------------------------------------

    def edit_state(self, edit: Callable[[SavedState], SavedState]) -> Cut:
        """Commit an edit of the saved part of the facts. Raises FwError."""
        return self.commit(lambda facts: facts.keeping(edit))

    def put_network(self, network: Network) -> None:
        """Add or replace a network of the driver. Raises FwError."""
        self.edit_state(lambda state: state.with_network(network))

    def drop_network(self, network_id: str) -> None:
        """Forget a network of the driver, and the endpoints on it. Raises FwError."""
        self.edit_state(lambda state: state.without_network(network_id, [e.id for e in self.on(network_id)]))

    def put_endpoint(self, endpoint: Endpoint) -> None:
        """Add or replace an endpoint of the driver. Raises FwError."""
        self.edit_state(lambda state: state.with_endpoint(endpoint))

    def add_endpoint(self, endpoint_id: str, make: Callable[[PolicyView], Endpoint]) -> Endpoint:
        """Return the endpoint; a new one is made from all that exist, and added. Raises FwError."""
        found: list[Endpoint] = []

        def edit(state: SavedState) -> SavedState:
            found.append(state.endpoints.get(endpoint_id) or make(self._view))
            return state.with_endpoint(found[0])

        self.edit_state(edit)
        return found[0]

    def drop_endpoint(self, endpoint_id: str) -> None:
        """Forget an endpoint of the driver and close it. Raises FwError."""
        self.edit_state(lambda state: state.without_endpoint(endpoint_id))

    def edit_endpoint(
        self, endpoint_id: str, edit: Callable[[Endpoint], Endpoint], then: Callable[[], None] | None = None
    ) -> bool:
        """Edit an endpoint from its current facts. Return False if it does not exist any more. Raises FwError."""
        found = False

        def change(state: SavedState) -> SavedState:
            nonlocal found
            endpoint = state.endpoints.get(endpoint_id)
            found = endpoint is not None
            return state.with_endpoint(edit(endpoint)) if endpoint else state

        self.commit(lambda facts: facts.keeping(change), then)
        return found

    def note_switched(self, families: Iterable[int]) -> None:
        """Save that docker-fw enabled forwarding of these families: transit not forwarded before stays blocked."""
        new = frozenset(families)
        self.edit_state(
            lambda state: dataclasses.replace(state, switched=state.switched | new) if new - state.switched else state
        )

    def suspend(self) -> None:
        """Close ports that were opened for a limited time: no process checks the time from now on. They stay saved.

        And write the whole state file: a former version, which may run next, cannot read all of the journal.
        """
        self.observe(lambda facts: dataclasses.replace(facts, suspended=True))
        with self._lock:
            try:
                self._store.save(self.state)
            except FwError as error:
                log.error("%s", error)
            owners = [o for e in self.state.overrides if e.until for o in self._view.places(e.container)]
            cuts = self._writer.cuts.of(owners)
        for cut in cuts:  # at once: queued work is no longer done
            cut()

    # --- the kernel -----------------------------------------------------------------------------------------------

    def cut_closed(self) -> None:
        """Cut the flows on Docker networks that are not accepted now: for a while less may have been closed."""
        with self._lock:
            owners = [o for o in self._view.owners() if o.kind in (Kind.TRACKED, Kind.EGRESS)]
            self._later(partial(self._cut, owners))

    def _cut(self, owners: Iterable[ElementOwner]) -> None:
        with self._lock:
            cuts = self._writer.cuts.of(owners)
        for cut in cuts:
            cut()

    def renew_lease(self) -> None:
        """Renew the lease. Raises NftError."""
        with self._lock:
            self._writer.lease.renew()

    def repair(self) -> bool:
        """Write the table again if another program changed its rules or the kernel lacks a part of it.

        Return True if it was written. Raises NftError.
        """
        with self._lock:
            repaired = self._writer.repair()
            self._behind.again()
            return repaired

    def sync_elements(self) -> int | None:
        """Undo other programs' changes of elements. Return how many; None if the table changes meanwhile: ask again.

        No other program can change an owned table. Raises NftError, OSError.
        """
        if self._nft.features.owned:
            return 0
        found = standing.read()  # with many elements this takes a while, so it runs outside the lock
        with self._lock:
            return self._writer.sync_elements(found) if self._nft.generation() == found.generation else None

    @property
    def incomplete(self) -> bool:
        """True while the table lacks elements because the kernel refused them: `repair` tries again."""
        return self._nft.incomplete

    @property
    def unfinished(self) -> bool:
        """True while `repair` must be called: a change was refused, or an unexpected error left the table uncertain."""
        return self._behind.failed or self._writer.distrusted

    def generation(self) -> int:
        """Return a number that other programs' transactions change and docker-fw's own do not."""
        with self._lock:
            return self._nft.foreign_changes()


def _differ(one: object, other: object) -> bool:
    if isinstance(one, FrozenDict) and isinstance(other, FrozenDict):
        return bool(other.differing(one))
    return one is not other and one != other
