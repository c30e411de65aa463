"""Networks of Docker's own and who is on them: what their addresses accept, put there and taken away.

Everything on a bridge of Docker's is closed without this room. An exception stands from when Docker tells of a
container until the first sign that it has gone; when there is nobody to tell, it goes too.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from types import MappingProxyType

from plugin import conntrack
from plugin.closedports import ClosedPorts
from plugin.goodbyes import Goodbyes
from plugin.inventory import Noted, Owner, Place
from plugin.model import Address, Endpoint, FwError, Guarded, Guest, Override, Published
from plugin.overrides import without
from plugin.policy import closed_ports, closed_together
from plugin.reconcile import Reconciler

#: Under this name stand the closed published ports of the last run, until Docker has listed today's.
KEPT: Owner = "kept"
_At = dict[tuple[str, Address], str]
log = logging.getLogger(__name__)


class Guard:
    """Thread-safe. `later` takes work that may last (flows to be cut) and must return at once.
    `closed`: by container, the published ports that were closed when docker-fw last ran.
    """

    def __init__(
        self,
        reconciler: Reconciler,
        later: Callable[[Callable[[], None]], None] = lambda work: work(),
        closed: Mapping[str, tuple[Published, ...]] = MappingProxyType({}),
    ) -> None:
        self._state = reconciler
        self._later = later
        self._lock = threading.RLock()
        self._networks: dict[str, Guarded] = {}
        #: When each network was told of alone, not by a list of all.
        self._since: dict[str, int] = {}
        self._guests: dict[str, Guest] = {}
        self._goodbyes = Goodbyes()
        self._noted: dict[Owner, Noted] = {}
        self._judged: dict[str, tuple[Guarded, Guest, Override, frozenset[Published]]] = {}
        self._ports = ClosedPorts(reconciler, closed, later)
        self._ended = False

    @property
    def networks(self) -> Mapping[str, Guarded]:
        return self._networks

    @property
    def guests(self) -> list[Guest]:
        with self._lock:
            return list(self._guests.values())

    def known(self) -> list[Endpoint]:
        """Who is there, as the table has it: without its container where that is in doubt."""
        return [guest.as_known for guest in self.guests]

    def unsure(self) -> bool:
        """True while there is somebody of whom not all is known."""
        return not all(guest.sure for guest in self.guests)

    def now(self) -> int:
        """A moment, to be taken before Docker is asked and given with its answer."""
        with self._lock:
            return self._goodbyes.now

    def start_over(self) -> None:
        """What was told before is not known to be complete any more: only the next list counts."""
        with self._lock:
            self._goodbyes.start_over()
            self._guests = {k: dataclasses.replace(v, listed=True) for k, v in self._guests.items()}

    def returns(self, network_id: str, container_id: str) -> None:
        """Docker connects the container to the network."""
        with self._lock:
            self._goodbyes.returns(network_id, container_id)

    def leaves(self, network_id: str, container_id: str) -> None:
        """The container has left the network (or all, if that is empty): closed before anybody else is there."""
        with self._lock:
            self._goodbyes.leaves(network_id, container_id)
            self._drop(lambda g: g.container_id == container_id and network_id in ("", g.endpoint.network_id))

    def forget(self, container_id: str) -> None:
        """The container does not exist any more."""
        with self._lock:
            self._goodbyes.forget(container_id)
            self._ports.forget(container_id)
            self._forget_overrides({container_id})

    def network_gone(self, network_id: str) -> None:
        with self._lock:
            self._drop(lambda guest: guest.endpoint.network_id == network_id)
            self._networks.pop(network_id, None)
            self._since.pop(network_id, None)
            self._apply()

    def end(self) -> None:
        """Nobody will watch any more: nothing is believed from now on."""
        with self._lock:
            self._ended = True
            self.doubt()

    def doubt(self, bridge: str | None = None) -> None:
        """Nobody tells any more who is on the bridge (or on any): what its addresses accept is not known now."""
        with self._lock:
            self._goodbyes.doubt()
            wanted = {n.id for n in self._networks.values() if bridge in (None, n.bridge)}
            changed = {
                k: dataclasses.replace(guest, sure=False)
                for k, guest in self._guests.items()
                if guest.endpoint.network_id in wanted and guest.sure
            }
            if changed:
                self._guests.update(changed)
                self._apply()

    def put(
        self, network: Guarded | None, found: Iterable[Endpoint], *, listed: bool, asked: int, sure: bool = True
    ) -> bool:
        """These endpoints were there when Docker was asked (`now`). False if that is too long ago: ask again.
        Not `sure`: not all is known of them yet, and they stay closed."""
        with self._lock:
            if self._ended or self._goodbyes.too_old(asked):
                return False
            moment = self._goodbyes.tick()
            if network is not None:
                self._networks[network.id] = network
                self._since[network.id] = moment
            at = self._by_address()
            for endpoint in found:
                if endpoint.network_id in self._networks and not self._has_left(endpoint, asked):
                    self._put(endpoint, at, listed, asked, sure)
            self._apply()
            return True

    def replace(
        self,
        networks: Iterable[Guarded],
        found: Iterable[Endpoint],
        existing: Collection[str] = (),
        *,
        asked: int,
        unsure: Collection[str] = (),
    ) -> bool:
        """Everything when Docker was asked (`now`): its bridge networks, running containers' endpoints, all containers'
        IDs. False if that is too long ago: ask again."""
        with self._lock:
            if self._ended or self._goodbyes.too_old(asked):
                return False
            self._goodbyes.list_came(asked)
            before, known = self._guests, self._networks
            newer = {k: known[k] for k, when in self._since.items() if when > asked and k in known}
            self._networks = {**newer, **{network.id: network for network in networks}}
            self._since = {k: when for k, when in self._since.items() if k in newer}
            # Who has just been connected is not listed yet, and who was told of meanwhile cannot be.
            there_yet = {k: g for k, g in before.items() if not g.listed or g.since > asked}
            self._guests = {k: g for k, g in there_yet.items() if g.endpoint.network_id in self._networks}
            at = self._by_address()
            for endpoint in found:
                if endpoint.network_id in self._networks and not self._has_left(endpoint, asked):
                    self._put(endpoint, at, True, asked, endpoint.id not in unsure)
            stay = {address for guest in self._guests.values() for address in _addresses(guest.endpoint)}
            there = {*existing, *(g.endpoint.container.id for g in self._guests.values() if g.endpoint.container)}
            self._ports.retain(there)
            try:
                self._apply()
            finally:
                self._cut([a for guest in before.values() for a in _addresses(guest.endpoint) if a not in stay])
            # Who has just been joined to a network of the driver's may not have been listed yet.
            spoken = {each.container for each in self._state.state.overrides}
            self._forget_overrides({each for each in spoken - there if not self._state.has(each)})
            self._state.note({KEPT: None})
            return True

    def _has_left(self, endpoint: Endpoint, asked: int) -> bool:
        container = endpoint.container.id if endpoint.container else ""
        return self._goodbyes.has_left(endpoint.network_id, container, asked)

    def _by_address(self) -> _At:
        """Who has which address of which network: to look at every guest for each one of a list would take seconds."""
        return {(g.endpoint.network_id, each): k for k, g in self._guests.items() for each in _addresses(g.endpoint)}

    def _put(self, endpoint: Endpoint, at: _At, listed: bool, asked: int, sure: bool = True) -> None:
        # Docker gave these addresses to one endpoint: who has been told of last has them, and who had them is gone.
        mine = [(endpoint.network_id, address) for address in _addresses(endpoint)]
        others = {k for each in mine if (k := at.get(each, endpoint.id)) != endpoint.id}
        if any(self._guests[k].since > asked for k in others):
            return
        for k in others:
            _vacate(at, self._guests.pop(k).endpoint)
        known = self._guests.get(endpoint.id)
        if known is None and endpoint.container:
            for problem in endpoint.container.problems:
                rest = "ICMP only" if problem.closes else "only what stands without it"
                log.error("%s answers on %s: %s", endpoint.container.name, rest, problem)
        if known is None or listed or not known.listed:
            if known:
                _vacate(at, known.endpoint)
            self._guests[endpoint.id] = Guest(endpoint, listed, self._goodbyes.now, sure)
            at.update(dict.fromkeys(mine, endpoint.id))

    def _drop(self, goes: Callable[[Guest], bool]) -> None:
        going = [guest.endpoint for guest in self._guests.values() if goes(guest)]
        if going:
            for endpoint in going:
                del self._guests[endpoint.id]
            try:
                self._apply()
            finally:  # whatever the kernel says: nobody else inherits their flows
                self._cut([address for endpoint in going for address in _addresses(endpoint)])
                # By docker-proxy a flow is the host's, not the address's.
                self._ports.cut([port for endpoint in going for port in endpoint.published if port.proto != "sctp"])

    def _cut(self, addresses: list[Address]) -> None:
        if addresses:
            self._later(partial(conntrack.cut_addresses, addresses))

    def again(self) -> None:
        """What overrides the labels has changed: published ports may be closed now, or open."""
        with self._lock:
            self._apply()

    def _forget_overrides(self, containers: Collection[str]) -> None:
        """What `fwctl` said of containers that do not exist any more."""
        if any(each.container in containers for each in self._state.state.overrides):
            try:
                self._state.edit_state(lambda state: without(state, containers))
            except FwError as error:
                log.error("%s; what fwctl said of a container that is gone is kept", error)

    def _apply(self) -> None:
        """One transaction for all that is different. Raises NftError; then the next call makes up for it."""
        closed = self._closed()
        noted = {f"network {network.id}": Noted(place=Place(network)) for network in self._networks.values()}
        for guest in self._guests.values():
            ports = closed.get(guest.container_id, frozenset())
            network, owner = self._networks[guest.endpoint.network_id], f"endpoint {guest.endpoint.id}"
            known = self._noted.get(owner)
            same = known and known.place and known.place.made_of(network, guest, ports)
            noted[owner] = known if known and same else Noted(place=Place(network, guest, ports))
        anew = {o: what for o, what in noted.items() if (known := self._noted.get(o)) is not what and known != what}
        changes: dict[Owner, Noted | None] = {**dict.fromkeys(self._noted.keys() - noted.keys()), **anew}
        if changes:
            self._state.note(changes)
        self._noted = noted
        changed = {g.container_id for what in anew.values() if what.place and (g := what.place.guest) and g.listed}
        self._ports.note({container: closed.get(container, frozenset()) for container in changed})

    def _closed(self) -> dict[str, frozenset[Published]]:
        """By container, its published ports that are not open to everybody."""
        judged: dict[str, tuple[Guarded, Guest, Override, frozenset[Published]]] = {}
        places: dict[str, list[frozenset[Published]]] = {}
        doubted = {guest.container_id for guest in self._guests.values() if not guest.sure}
        for k, guest in self._guests.items():
            if guest.endpoint.published:
                network, known = self._networks[guest.endpoint.network_id], self._judged.get(k)
                override = self._state.override(guest.container_id)
                if known is None or known[:3] != (network, guest, override):
                    ports = closed_ports(self._state.decide(network, guest.as_known), guest.endpoint)
                    known = (network, guest, override, frozenset(ports))
                judged[k] = known
                places.setdefault(guest.container_id, []).append(known[3])
        self._judged = judged
        return closed_together(places, doubted)

    def cut_closed(self) -> None:
        """Cuts the flows that outsiders began while less was closed than now."""
        with self._lock:
            self._later(partial(self._state.cut_closed, list(self._noted)))


def _vacate(at: dict[tuple[str, Address], str], endpoint: Endpoint) -> None:
    for address in _addresses(endpoint):
        at.pop((endpoint.network_id, address), None)


def _addresses(endpoint: Endpoint) -> list[Address]:
    return [address for address in (endpoint.addr4, endpoint.addr6) if address]
