"""The one writer: desired state → the difference → one transaction, kept on disk first.

Every change of what is known goes through here, under one lock: first the state file, then the kernel. A crash
between the two leaves more closed than the file says, never less, for the start puts the table there whole from it.
Elements are computed afresh for what changed and compared as data; nothing is a history of steps.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from plugin import conntrack
from plugin.model import Address, Answers, Endpoint, FwError, Network, Published, Rule
from plugin.nft import Nft, NftError
from plugin.policy import reachable
from plugin.ruleset import Change, Element, endpoint_elements, network_elements
from plugin.store import State, Store

log = logging.getLogger(__name__)
#: Seconds that a cut UDP flow is kept from coming back: longer than the peer keeps asking, and than nf_conntrack's own
#: time-out of a stream (nf_conntrack_udp_timeout_stream, 120).
HELD = 180
#: What an element stands for: a network's or an endpoint's ID, "host", or what somebody noted under a name.
Owner = str


@dataclass(frozen=True, slots=True)
class Noted:
    """What holds while docker-fw runs and is not kept: found anew from Docker and the kernel at each start."""

    elements: frozenset[Element] = frozenset()
    #: Addresses that are guarded, and what they accept: their other flows are cut when the table had been gone.
    accepts: Mapping[Address, Answers] = field(default_factory=dict)


class Reconciler:
    """Networks and endpoints as they should be, and the kernel made so. Thread-safe.

    `published`: `-p` itself opens a port.
    """

    def __init__(self, nft: Nft, store: Store, everywhere: tuple[Rule, ...], published: bool = False) -> None:
        self._nft = nft
        self._store = store
        self._everywhere = everywhere
        self._published = published
        self._lock = threading.RLock()
        self._state = State()
        self._owned: dict[Owner, frozenset[Element]] = {}
        self._count: Counter[Element] = Counter()
        self._noted: dict[Owner, Noted] = {}

    @property
    def networks(self) -> Mapping[str, Network]:
        return self._state.networks

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        return self._state.endpoints

    @property
    def switched(self) -> frozenset[int]:
        return self._state.switched

    @property
    def foreign(self) -> frozenset[str]:
        return self._state.foreign

    def start(self, state: State, noted: Mapping[Owner, Noted] | None = None) -> None:
        """Takes over the kept state and puts the table there whole. Raises NftError: then nothing may go on."""
        with self._lock:
            self._state, self._noted = state, dict(noted or {})
            self._owned = {owner: self._elements(owner, state) for owner in self._owners(state)}
            self._count = Counter(element for elements in self._owned.values() for element in elements)
            self._nft.replace(self._count)
            self._cut_closed()

    def put_network(self, network: Network) -> None:
        with self._lock:
            on_it = [e.id for e in self._state.endpoints.values() if e.network_id == network.id]
            self._commit(
                lambda s: dataclasses.replace(s, networks={**s.networks, network.id: network}),
                [network.id, *on_it],
                flush=True,
            )

    def drop_network(self, network_id: str) -> None:
        def without(state: State) -> State:
            networks = {k: v for k, v in state.networks.items() if k != network_id}
            endpoints = {k: v for k, v in state.endpoints.items() if v.network_id != network_id}
            return dataclasses.replace(state, networks=networks, endpoints=endpoints)

        with self._lock:
            gone = [e.id for e in self._state.endpoints.values() if e.network_id == network_id]
            self._commit(without, [network_id, *gone], flush=True)

    def put_endpoint(self, endpoint: Endpoint) -> None:
        self._commit(
            lambda s: dataclasses.replace(s, endpoints={**s.endpoints, endpoint.id: endpoint}), [endpoint.id]
        )

    def edit_endpoint(self, endpoint_id: str, edit: Callable[[Endpoint], Endpoint]) -> Endpoint | None:
        """Changes what is known of an endpoint, if it is still there, from what is known at that moment."""
        with self._lock:
            endpoint = self._state.endpoints.get(endpoint_id)
            if endpoint is None:
                return None
            changed = edit(endpoint)
            if changed != endpoint:
                self.put_endpoint(changed)
            return changed

    def drop_endpoint(self, endpoint_id: str) -> None:
        self._commit(
            lambda s: dataclasses.replace(s, endpoints={k: v for k, v in s.endpoints.items() if k != endpoint_id}),
            [endpoint_id],
        )

    def note_switched(self, families: Iterable[int]) -> None:
        """Remembers that docker-fw switched forwarding on: what was never forwarded before stays so."""
        families = frozenset(families)
        if families - self._state.switched:
            self._commit(lambda s: dataclasses.replace(s, switched=s.switched | families), ["host"], flush=True)

    def remember_foreign(self, bridges: frozenset[str]) -> None:
        """Keeps the names of bridges that are neither ours nor Docker's: they need not wait at the next boot."""
        if bridges != self._state.foreign:
            self._commit(lambda s: dataclasses.replace(s, foreign=bridges), [])

    def remember_proxied(self, ports: Mapping[str, tuple[Published, ...]]) -> None:
        """Keeps which published ports are closed: docker-proxy listens on them at the next boot before Docker tells."""
        if ports != self._state.proxied:
            self._commit(lambda s: dataclasses.replace(s, proxied=dict(ports)), [])

    def note(self, noted: Mapping[Owner, Noted | None]) -> None:
        """Changes what is noted under these names (None: nothing any more), in one transaction. Raises NftError."""
        with self._lock:
            before = dict(self._noted)
            for owner, what in noted.items():
                if what is None:
                    self._noted.pop(owner, None)
                else:
                    self._noted[owner] = what
            try:
                self._apply(noted)
            except NftError:
                self._noted = before  # so that the next call tries again
                raise

    def cut_closed(self, owners: Iterable[Owner]) -> None:
        """Cuts the flows to what is noted under these names that outsiders began and that are not accepted."""
        with self._lock:
            noted = [self._noted[owner] for owner in owners if owner in self._noted]
        conntrack.cut_closed({address: what for each in noted for address, what in each.accepts.items()}, self._hold)

    def _hold(self, ways: list[conntrack.Way]) -> None:
        """Keeps cut UDP flows from coming back by the container's own next datagram."""
        try:
            self._nft.hold((Element(f"held{way.source.version}", tuple(way)) for way in ways), HELD)
        except NftError as error:
            log.error("cut UDP flows may come back: %s", error)

    def repair(self) -> bool:
        """If somebody touched our table's rules, puts it there again. True if so. Raises NftError."""
        with self._lock:
            if self._nft.intact():
                return False
            self._nft.replace(self._count)
            self._cut_closed()
            return True

    def generation(self) -> int:
        """A number that others' transactions change and our own do not."""
        with self._lock:
            return self._nft.generation() - self._nft.changes

    def _commit(self, edit: Callable[[State], State], owners: list[Owner], *, flush: bool = False) -> None:
        """Raises FwError when the disk or the kernel does not take it; then the old state stands in both.

        What only closes does not wait for a disk that is full: the next save, which is of everything, makes up for it.
        """
        with self._lock:
            before, after = self._state, edit(self._state)
            if after == before:
                return
            try:
                self._store.save(after, flush=flush)
            except FwError as error:
                if not self._closes(after, owners):
                    raise
                log.error("%s; what must be closed is closed all the same", error)
            self._state = after
            try:
                self._apply(owners)
            except NftError as error:
                self._state = before
                try:
                    self._store.save(before, flush=flush)
                finally:
                    self._apply_whole(owners)
                raise FwError(f"the kernel refused the firewall's change: {error}") from error

    def _closes(self, after: State, owners: Iterable[Owner]) -> bool:
        """True if the change adds nothing to the table and to what is known: all that comes is a going."""
        if not (after.networks.keys() <= self._state.networks.keys()):
            return False
        if not (after.endpoints.keys() <= self._state.endpoints.keys()):
            return False
        if any(e.joined and not self._state.endpoints[e.id].joined for e in after.endpoints.values()):
            return False
        return all(self._elements(owner, after) <= self._owned.get(owner, frozenset()) for owner in owners)

    def _apply(self, owners: Iterable[Owner]) -> None:
        new = {owner: self._elements(owner, self._state) for owner in owners}
        old = {owner: self._owned.get(owner, frozenset()) for owner in new}
        count: Counter[Element] = Counter()
        for owner, elements in new.items():
            count.update(dict.fromkeys(elements - old[owner], 1))
            count.subtract(dict.fromkeys(old[owner] - elements, 1))
        change = Change(
            remove=tuple(e for e, n in count.items() if n < 0 and self._count[e] + n == 0),
            add=tuple(e for e, n in count.items() if n > 0 and self._count[e] == 0),
        )
        try:
            self._nft.change(change)
        except NftError as error:
            # Somebody flushed or deleted under our hands: the whole table again, from what should be.
            log.warning("the firewall's change was refused (%s); putting the whole table there", error)
            self._nft.replace(e for e, n in _sum(self._count, count).items() if n > 0)
            self._cut_closed()
        for element, n in count.items():
            self._count[element] += n
            if not self._count[element]:
                del self._count[element]
        self._owned.update(new)
        for owner in [owner for owner, elements in new.items() if not elements]:
            del self._owned[owner]

    def _cut_closed(self) -> None:
        """What came in while the rules were not there, or accepted more, would stay, as established."""
        guarded: dict[Address, Answers] = {}
        for noted in self._noted.values():
            guarded.update(noted.accepts)
        for endpoint in self._state.endpoints.values():
            if network := self._state.networks.get(endpoint.network_id):
                rules = reachable(network, endpoint, self._everywhere, self._published)
                for address, gateway in ((endpoint.addr4, network.gateway4), (endpoint.addr6, network.gateway6)):
                    if address and gateway:
                        guarded[address] = Answers(gateway.network, rules)
        conntrack.cut_closed(guarded, self._hold)

    def _apply_whole(self, owners: Iterable[Owner]) -> None:
        for owner in owners:
            self._owned[owner] = self._elements(owner, self._state)
        self._count = Counter(element for elements in self._owned.values() for element in elements)
        try:
            self._nft.replace(self._count)
        except NftError:
            log.exception("could not put the table there; what stands in the kernel stays")

    def _owners(self, state: State) -> list[Owner]:
        return ["host", *self._noted, *state.networks, *state.endpoints]

    def _elements(self, owner: Owner, state: State) -> frozenset[Element]:
        if owner == "host":
            return frozenset(Element("no_transit", (family,)) for family in state.switched)
        if owner in self._noted:
            return self._noted[owner].elements
        if network := state.networks.get(owner):
            return network_elements(network)
        endpoint = state.endpoints.get(owner)
        if endpoint is None or endpoint.network_id not in state.networks:
            return frozenset()
        return endpoint_elements(state.networks[endpoint.network_id], endpoint, self._everywhere, self._published)


def _sum(a: Counter[Element], b: Counter[Element]) -> Counter[Element]:
    total = a.copy()
    total.update(b)
    return total
