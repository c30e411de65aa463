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

from plugin.docker.closed_ports import ClosedPorts, Judged
from plugin.docker.event_clock import EventClock
from plugin.docker.tracked import Guests, addresses
from plugin.kernel import conntrack
from plugin.model import Address, BridgeNetwork, Endpoint, FwError, Problem, Published, TrackedEndpoint
from plugin.policy.facts import Noted, Owner, Place
from plugin.policy.overrides import without
from plugin.state.reconciler import Reconciler

#: Under this name stand the closed published ports of the last run, until Docker has listed today's.
KEPT: Owner = "kept"
log = logging.getLogger(__name__)


class EndpointTracker:
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
        self._networks: dict[str, BridgeNetwork] = {}
        #: When each network was told of alone, not by a list of all.
        self._since: dict[str, int] = {}
        self._guests = Guests()
        self._goodbyes = EventClock()
        self._noted: dict[Owner, Noted] = {}
        self._judged = Judged(reconciler)
        #: What was to be noted last was refused.
        self._owing = False
        self._ports = ClosedPorts(reconciler, closed, later)
        #: By endpoint, the mistakes that the log has: lists come every few seconds.
        self._told: dict[str, tuple[Problem, ...]] = {}
        self._ended = False

    @property
    def networks(self) -> Mapping[str, BridgeNetwork]:
        return self._networks

    @property
    def guests(self) -> list[TrackedEndpoint]:
        with self._lock:
            return list(self._guests)

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
            self._guests = Guests(dataclasses.replace(guest, listed=True) for guest in self._guests)

    def returns(self, network_id: str, container_id: str) -> None:
        """Docker connects the container to the network."""
        with self._lock:
            self._goodbyes.returns(network_id, container_id)

    def leaves(self, network_id: str, container_id: str) -> None:
        """The container has left the network (or all, if that is empty): closed before anybody else is there."""
        with self._lock:
            self._goodbyes.leaves(network_id, container_id)
            self._drop([g for g in self._guests.of(container_id) if network_id in ("", g.endpoint.network_id)])

    def forget(self, container_id: str) -> None:
        """The container does not exist any more."""
        with self._lock:
            self._goodbyes.forget(container_id)
            self._ports.forget(container_id)
            self._forget_overrides({container_id})

    def network_gone(self, network_id: str) -> None:
        with self._lock:
            self._drop([guest for guest in self._guests if guest.endpoint.network_id == network_id])
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
            doubted = [g for g in self._guests if g.sure and g.endpoint.network_id in wanted]
            for guest in doubted:
                self._guests.put(dataclasses.replace(guest, sure=False))
            if doubted:
                self._close_first(doubted)
                self._apply()

    def put(
        self, network: BridgeNetwork | None, found: Iterable[Endpoint], *, listed: bool, asked: int, sure: bool = True
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
            for endpoint in found:
                if endpoint.network_id in self._networks and not self._has_left(endpoint, asked):
                    self._put(endpoint, listed, asked, sure)
            self._apply()
            return True

    def replace(
        self,
        networks: Iterable[BridgeNetwork],
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
            there_yet = (g for g in before if not g.listed or g.since > asked)
            self._guests = Guests(g for g in there_yet if g.endpoint.network_id in self._networks)
            for endpoint in found:
                if endpoint.network_id in self._networks and not self._has_left(endpoint, asked):
                    self._put(endpoint, True, asked, endpoint.id not in unsure)
            self._told = {k: problems for k, problems in self._told.items() if self._guests.get(k)}
            stay = {address for guest in self._guests for address in addresses(guest.endpoint)}
            there = {*existing, *(g.endpoint.container.id for g in self._guests if g.endpoint.container)}
            self._ports.retain(there)
            try:
                self._note(dict.fromkeys(f"endpoint {k}" for g in before if not self._guests.get(k := g.endpoint.id)))
                self._apply()
            finally:
                self._cut([a for guest in before for a in addresses(guest.endpoint) if a not in stay])
            # Who has just been joined to a network of the driver's may not have been listed yet.
            spoken = {each.container for each in self._state.state.overrides}
            self._forget_overrides({each for each in spoken - there if not self._state.has(each)})
            self._state.note({KEPT: None})
            self._state.all_known()
            return True

    def _has_left(self, endpoint: Endpoint, asked: int) -> bool:
        container = endpoint.container.id if endpoint.container else ""
        return self._goodbyes.has_left(endpoint.network_id, container, asked)

    def _put(self, endpoint: Endpoint, listed: bool, asked: int, sure: bool = True) -> None:
        # Docker gave these addresses to one endpoint: who has been told of last has them, and who had them is gone.
        others = self._guests.at(endpoint)
        if any(other.since > asked for other in others):
            return
        for other in others:
            self._guests.remove(other.endpoint.id)
        self._tell(endpoint)
        known = self._guests.get(endpoint.id)
        if known is None or listed or not known.listed:
            self._guests.put(TrackedEndpoint(endpoint, listed, self._goodbyes.now, sure))

    def _tell(self, endpoint: Endpoint) -> None:
        problems = endpoint.container.problems if endpoint.container else ()
        if endpoint.container and problems != self._told.get(endpoint.id, ()):
            self._told[endpoint.id] = problems
            for problem in problems:
                rest = "ICMP only" if problem.closes else "only what stands without it"
                log.error("%s answers on %s: %s", endpoint.container.name, rest, problem)

    def _drop(self, going: list[TrackedEndpoint]) -> None:
        for guest in going:
            self._guests.remove(guest.endpoint.id)
            self._told.pop(guest.endpoint.id, None)
        if going:
            try:
                self._note(dict.fromkeys(f"endpoint {guest.endpoint.id}" for guest in going))
                self._apply({guest.container_id for guest in going})
            finally:  # whatever the kernel says: nobody else inherits their flows
                self._cut([address for guest in going for address in addresses(guest.endpoint)])
                # By docker-proxy a flow is the host's, not the address's.
                self._ports.cut([p for guest in going for p in guest.endpoint.published])

    def _close_first(self, doubted: Iterable[TrackedEndpoint]) -> None:
        """All ports of these, before it is computed which of them are closed."""
        noted: dict[Owner, Noted | None] = {}
        for guest in doubted:
            endpoint, now = guest.endpoint, self._guests.get(guest.endpoint.id)
            closed = frozenset(port for port in endpoint.published if not port.host_ip.is_loopback)
            noted[f"endpoint {endpoint.id}"] = Noted(place=Place(self._networks[endpoint.network_id], now, closed))
        self._note(noted)

    def _note(self, changes: Mapping[Owner, Noted | None]) -> None:
        """Raises NftError; then the next `_apply` makes up for it."""
        changes = {owner: what for owner, what in changes.items() if what is not None or owner in self._noted}
        if changes:
            self._owing = True
            self._state.note(changes)
            self._owing = False
            self._noted |= {owner: what for owner, what in changes.items() if what is not None}
            for owner in [owner for owner, what in changes.items() if what is None]:
                del self._noted[owner]

    def _cut(self, addresses: list[Address]) -> None:
        if addresses:
            self._later(partial(conntrack.cut_addresses, addresses))

    def again(self, containers: Collection[str] | None = None) -> None:
        """What overrides the labels (of these containers) has changed: published ports may be closed now, or open."""
        with self._lock:
            self._apply(containers)

    def _forget_overrides(self, containers: Collection[str]) -> None:
        """What `fwctl` said of containers that do not exist any more."""
        if any(each.container in containers for each in self._state.state.overrides):
            try:
                self._state.edit_state(lambda state: without(state, containers))
            except FwError as error:
                log.error("%s; what fwctl said of a container that is gone is kept", error)

    def _apply(self, only: Collection[str] | None = None) -> None:
        """One transaction for all that is different; `only`: of these containers. Raises NftError; then the next call
        makes up for it."""
        only = None if self._owing else only
        guests = list(self._guests) if only is None else [g for each in only for g in self._guests.of(each)]
        closed = self._judged.closed(guests, self._networks, whole=only is None)
        noted: dict[Owner, Noted] = {}
        if only is None:
            noted = {f"network {network.id}": Noted(place=Place(network)) for network in self._networks.values()}
        for guest in guests:
            ports = closed.get(guest.container_id, frozenset())
            network, owner = self._networks[guest.endpoint.network_id], f"endpoint {guest.endpoint.id}"
            known = self._noted.get(owner)
            same = known and known.place and known.place.made_of(network, guest, ports)
            noted[owner] = known if known and same else Noted(place=Place(network, guest, ports))
        anew = {o: what for o, what in noted.items() if (known := self._noted.get(o)) is not what and known != what}
        self._note({**(dict.fromkeys(self._noted.keys() - noted.keys()) if only is None else {}), **anew})
        self._noted |= noted
        changed = {g.container_id for what in anew.values() if what.place and (g := what.place.guest) and g.listed}
        self._ports.note({container: closed.get(container, frozenset()) for container in changed})

    def cut_closed(self) -> None:
        """Cuts the flows that outsiders began while less was closed than now."""
        with self._lock:
            self._later(partial(self._state.cut_closed, list(self._noted)))
