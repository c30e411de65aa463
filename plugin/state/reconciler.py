"""The one writer: desired state → the difference → one transaction, kept on disk first.

Every change of what is known goes through here, under one lock: first the state file, then the kernel. A crash
between the two leaves more closed than the file says, never less, for the start puts the table there whole from it.
Elements are computed afresh for what changed and compared as data; nothing is a history of steps.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping

from plugin.jsonio import INTERFACE_NAME
from plugin.model import BridgeNetwork, Defaults, Endpoint, FwError, Network, Override, Policy
from plugin.nftables import dump
from plugin.nftables.sets import Element
from plugin.nftables.table import Nft, NftError
from plugin.policy import overrides
from plugin.policy.facts import CONFINED, Inventory, Noted, Owner, egress_restricted
from plugin.policy.saved import State
from plugin.state.applier import Bans, TableApplier
from plugin.state.deferred import Behind
from plugin.state.store import Store

log = logging.getLogger(__name__)


class Reconciler:
    """Networks and endpoints as they should be, and the kernel made so. Thread-safe.

    `later` takes work that may last (flows to be cut) and must return at once.
    """

    def __init__(
        self,
        nft: Nft,
        store: Store,
        defaults: Defaults,
        later: Callable[[Callable[[], None]], None] = lambda work: work(),
    ) -> None:
        self._nft = nft
        self._store = store
        self._lock = threading.RLock()
        self._known = Inventory(defaults)
        self._writer = TableApplier(nft, self._known, later)
        self.lease = self._writer.lease
        self._unwatched = False
        self._behind = Behind(self._writer, self._lock, self._apply, later)

    @property
    def networks(self) -> Mapping[str, Network]:
        return self._known.state.networks

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        return self._known.state.endpoints

    @property
    def state(self) -> State:
        return self._known.state

    @property
    def inventory(self) -> Inventory:
        """To be read under `locked` alone."""
        return self._known

    @property
    def locked(self) -> threading.RLock:  # type: ignore[valid-type,unused-ignore]
        return self._lock

    @property
    def unsaved_reason(self) -> str:
        """Why what is known is not on the disk; "" if it is."""
        return self._store.unsaved_reason

    def save_again(self) -> None:
        """Writes what the disk did not take. Raises FwError if it still does not."""
        with self._lock:
            if self._store.unsaved_reason:
                self._store.save(self.state, flush=True)

    def snapshot(self) -> Inventory:
        """All that is known now, to be read at leisure."""
        with self._lock:
            return self._known.copy(watched=bool(self.lease.left()))

    def should(self) -> list[Element]:
        """What should stand in the kernel now, without bans. To be read under `locked` alone."""
        return list(self._writer.books)

    def start(self, state: State, noted: Mapping[Owner, Noted] | None = None) -> None:
        """Takes over the kept state and puts the table there whole. Raises NftError: then nothing may go on."""
        with self._lock:
            self._known.state, self._known.noted = (
                state,
                {**(noted or {}), CONFINED: egress_restricted(state.egress_restricted)},
            )
            self._known.overrides = self._in_force(state)
            self._writer.start()
            self._note_confined()  # we may have been killed before that

    def put_network(self, network: Network) -> None:
        with self._lock:
            owners = [network.id, *self.state.on(network.id)]
            self._commit(lambda s: s.with_network(network), owners, flush=True)

    def drop_network(self, network_id: str) -> None:
        with self._lock:
            network = self.networks.get(network_id)
            owners = [network_id, *self.state.on(network_id)]
            self._commit(lambda s: s.without_network(network_id), owners, flush=True)
            if network and network.bridge in self.state.egress_restricted:
                self._keep_confined(self.state.egress_restricted - {network.bridge})
                self._apply([CONFINED])

    def put_endpoint(self, endpoint: Endpoint) -> None:
        self._commit(lambda s: s.with_endpoint(endpoint), [endpoint.id], endpoint=endpoint.id)

    def drop_endpoint(self, endpoint_id: str) -> None:
        self._commit(lambda s: s.without_endpoint(endpoint_id), [endpoint_id], endpoint=endpoint_id)

    def edit_endpoint(self, endpoint_id: str, edit: Callable[[Endpoint], Endpoint]) -> Endpoint | None:
        """Changes what is known of an endpoint, if it is still there, from what is known at that moment."""
        with self._lock:
            endpoint = self.endpoints.get(endpoint_id)
            if endpoint is None:
                return None
            changed = edit(endpoint)
            if changed != endpoint:
                self.put_endpoint(changed)
            return changed

    def note_switched(self, families: Iterable[int]) -> None:
        """Remembers that docker-fw switched forwarding on: what was never forwarded before stays so."""
        new = frozenset(families)
        self._commit(lambda s: dataclasses.replace(s, switched=s.switched | new), ["host"], flush=True)

    def remember_foreign(self, bridges: frozenset[str]) -> None:
        """Keeps the names of bridges that are neither ours nor Docker's: they need not wait at the next boot."""
        plain = frozenset(filter(INTERFACE_NAME.fullmatch, bridges))
        self._commit(lambda s: dataclasses.replace(s, unmanaged=plain), [])

    def remember(self, edit: Callable[[State], State]) -> None:
        """Keeps what is for the next start alone, such as which published ports are closed now. Raises FwError."""
        self._commit(edit, [])

    def note(self, noted: Mapping[Owner, Noted | None]) -> None:
        """Changes what is noted under these names (None: nothing any more), in one transaction. Raises NftError."""
        with self._lock:
            before = dict(self._known.noted)
            self._known.note(noted)
            gone = self._known.departing(noted)
            try:
                self._apply(noted)
            except (NftError, OSError):
                self._known.noted = before  # so that the next call tries again
                self._known.note({owner: noted[owner] for owner in gone})  # but who has gone does not come back by that
                self._known.reindex(noted)
                self._writer.behind.update(dict.fromkeys(gone, True))
                self._behind.later()
                raise

    def forget_confined(self, bridges: Collection[str]) -> None:
        """Only these bridges exist. Where somebody was confined once, whoever is not known stays so until the network
        goes: a container that comes back while Docker's API is silent must not begin what its labels forbid."""
        if self.state.egress_restricted - set(bridges):
            with self._lock:
                self._keep_confined(self.state.egress_restricted & set(bridges))
                self._apply([CONFINED])

    def all_known(self) -> None:
        """Docker has listed everybody since the start: who has not come back leaves its room to others. Raises
        NftError."""
        with self._lock:
            if self._known.quota.keeping and (moved := self._known.quota.settle()):
                self._apply(moved)

    def know_networks(self, names: frozenset[str]) -> None:
        """Docker's networks by name, for peers that speak of one. Raises NftError."""
        with self._lock:
            directory, before = self._known.directory, self._known.directory.networks
            if names != before:
                directory.networks = names
                try:
                    self._apply(directory.network_askers(before))
                except (NftError, OSError):
                    directory.networks = before  # so that the next call tries again
                    raise

    def override(self, container_id: str) -> Override:
        with self._lock:
            return self._known.overrides.get(container_id, Override())

    def has(self, container_id: str) -> bool:
        """True if the container has a place on one of the networks."""
        with self._lock:
            return bool(self._known.of_container(container_id))

    def decide(self, network: Network | BridgeNetwork, endpoint: Endpoint) -> Policy:
        with self._lock:
            return self._known.decide(network, endpoint)

    def edit_state(self, edit: Callable[[State], State], containers: Iterable[str] = ()) -> None:
        """Changes bans and overrides, with all that follows for these containers. Raises FwError."""
        with self._lock:
            owners = [owner for container in containers for owner in self._known.of_container(container)]
            self._commit(edit, owners, flush=True)

    def suspend_timed_overrides(self) -> None:
        """Nobody will watch the clock any more: what was opened for a time is closed, and is kept. Raises NftError."""
        with self._lock:
            self._unwatched = True
            self._known.overrides = self._in_force(self.state)
            owners = [
                o for each in self.state.overrides if each.until for o in self._known.of_container(each.container)
            ]
            self._apply(owners)
        self.cut_closed(owners)  # at once: no later work is done any more

    def cut_closed(self, owners: Iterable[Owner]) -> None:
        """Cuts the flows of these owners, by docker-proxy too, that are not accepted, or may not be begun."""
        with self._lock:
            cuts = self._writer.cuts.of(owners)
        for cut in cuts:
            cut()

    def repair(self) -> bool:
        """If somebody touched our table's rules, or the kernel did not take all of it, puts it there again. True if so.
        Raises NftError."""
        with self._lock:
            repaired = self._writer.repair()
            if repaired:
                self._behind.later()
            return repaired

    def sync_elements(self) -> int | None:
        """Elements that somebody added or deleted, as they should be. How many; None: it changes, ask again.

        An owned table is nobody else's to change. Raises NftError, OSError.
        """
        if self._nft.owned:
            return 0
        found = dump.read()  # which takes a while with many elements, and holds nobody up
        with self._lock:
            return self._writer.sync_elements(found) if self._nft.generation() == found.generation else None

    @property
    def incomplete(self) -> bool:
        """True while the table lacks elements because the kernel did not take them: `repair` tries again."""
        return self._nft.incomplete

    def generation(self) -> int:
        """A number that others' transactions change and our own do not."""
        with self._lock:
            return self._nft.generation() - self._nft.changes

    def _commit(
        self, edit: Callable[[State], State], owners: list[Owner], *, flush: bool = False, endpoint: str = ""
    ) -> None:
        """Raises FwError when the disk or the kernel does not take it; then the old state stands in both.

        What only closes does not wait for a disk that is full: the next save, which is of everything, makes up for it.
        Who goes is closed before anything is computed or saved, and does not come back by what is refused afterwards.
        """
        with self._lock:
            before, after = self._known.state, edit(self._known.state)
            if after == before:
                return
            gone = self._known.departing(owners, after)
            self._writer.close_first(gone)
            try:
                self._store.save(after, flush=flush, endpoint=endpoint)
            except FwError as error:
                if not gone and not self._writer.only_closes(after, self._in_force(after), owners):
                    raise
                log.error("%s; what must be closed is closed all the same", error)
            self._set(after)
            try:
                self._apply(owners, bans=(before.bans, after.bans))
            except (NftError, OSError) as error:
                if gone:
                    log.error("putting the whole table there, for the kernel refused a change: %s", error)
                    self._writer.whole(owners)
                    return
                self._set(before)
                try:
                    self._store.save(before, flush=flush, endpoint=endpoint)
                finally:
                    self._writer.whole(owners)
                raise FwError(f"the kernel refused the firewall's change: {error}") from error

    def _set(self, state: State) -> None:
        if state.overrides != self._known.state.overrides:
            self._known.overrides = self._in_force(state)
        self._known.state = state

    def _in_force(self, state: State) -> dict[str, Override]:
        return overrides.in_force(overrides.unwatched(state) if self._unwatched else state)

    def _apply(self, owners: Iterable[Owner], bans: tuple[Bans, Bans] | None = None) -> None:
        if self._writer.apply(owners, bans):
            self._note_confined()
        self._behind.later()

    def _note_confined(self) -> None:
        if new := self._writer.books.egress_restricted() - self.state.egress_restricted:
            self._keep_confined(self.state.egress_restricted | new)
            self._writer.books.write({CONFINED: self._known.elements(CONFINED)})
            self._writer.cuts.strangers(new)

    def _keep_confined(self, bridges: frozenset[str]) -> None:
        state = dataclasses.replace(self.state, egress_restricted=bridges)
        try:
            self._store.save(state, flush=True)
        except FwError as error:
            log.error("%s; after a boot networks may not be confined until Docker answers", error)
        self._known.state = state
        self._known.noted[CONFINED] = egress_restricted(bridges)
