"""Track Docker networks and their endpoints, by Docker's events and lists.

Without a tracked endpoint every address on a Docker bridge is closed. Its exceptions are active from when Docker
reports the container until the first sign that it left. While Docker reports nothing, they are removed too.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from plugin.docker.event_clock import EventClock
from plugin.docker.tracked import Guests
from plugin.model import BridgeNetwork, Endpoint, Problem, Published, TrackedEndpoint
from plugin.policy.facts import Facts
from plugin.policy.frozen import frozen
from plugin.policy.overrides import without
from plugin.policy.saved import SavedState
from plugin.state.reconciler import Reconciler

log = logging.getLogger(__name__)
#: Seconds for which the host remembers, at most, a connection of a docker-proxy that has ended: until the client has
#: answered (tcp_orphan_retries) and closed (tcp_fin_timeout), and TIME-WAIT after that.
REMEMBERED = 300.0


class EndpointTracker:
    """Thread-safe. State in addition to the facts is read and changed within edits of the facts, under their lock."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._state = reconciler
        #: The moment each network was reported alone, not in a list of all; and the moment each endpoint was reported.
        self._networks_since: dict[str, int] = {}
        self._since: dict[str, int] = {}
        self._clock = EventClock()
        #: The facts' endpoints, indexed by container and by address.
        self._guests = Guests()
        self._mirrored: Mapping[str, TrackedEndpoint] | None = None
        #: By endpoint, the problems already logged: lists arrive every few seconds.
        self._logged: dict[str, tuple[Problem, ...]] = {}
        self._ended = False

    @property
    def networks(self) -> Mapping[str, BridgeNetwork]:
        """Docker networks by ID."""
        return self._state.facts.networks

    @property
    def guests(self) -> list[TrackedEndpoint]:
        """The containers' endpoints on Docker networks."""
        return list(self._state.facts.guests.values())

    def unsure(self) -> bool:
        """True while there is an endpoint that is not completely known."""
        return not all(guest.sure for guest in self._state.facts.guests.values())

    def now(self) -> int:
        """Return the current moment. Take it before a request to Docker, and pass it on with the answer."""
        return self._clock.now

    # --- endpoints that leave -------------------------------------------------------------------------------------

    def start_over(self) -> None:
        """Discard earlier events, because some may have been missed: only the next list counts."""

        def edit(facts: Facts) -> Facts:
            self._clock.start_over()
            new = {k: dataclasses.replace(g, listed=True) for k, g in facts.guests.items() if not g.listed}
            return self._with(facts, new)

        self._state.observe(edit)

    def returns(self, network_id: str, container_id: str) -> None:
        """Note that Docker connects the container to the network."""

        def edit(facts: Facts) -> Facts:
            self._clock.returns(network_id, container_id)
            return facts

        self._state.observe(edit)

    def leaves(self, network_id: str, container_id: str) -> None:
        """Close the container on a network that it left, or on all ("").

        This is done before another container can have its addresses.
        """

        def edit(facts: Facts) -> Facts:
            self._clock.leaves(network_id, container_id)
            places = self._mirror(facts).of(container_id)
            return self._with(facts, {}, [g.endpoint.id for g in places if network_id in ("", g.endpoint.network_id)])

        self._state.observe(edit)

    def renamed(self, container_id: str) -> None:
        """Note that a container has another name: answers about this container alone from before are not used."""

        def edit(facts: Facts) -> Facts:
            self._clock.renamed(container_id)
            return facts

        self._state.observe(edit)

    def forget(self, container_id: str) -> None:
        """Forget a container that does not exist any more."""

        def edit(facts: Facts) -> Facts:
            self._clock.forget(container_id)
            facts = self._with(facts, {}, [g.endpoint.id for g in self._mirror(facts).of(container_id)])
            return facts.keeping(lambda state: _without_ports(without(state, {container_id}), [container_id]))

        self._state.observe(edit)

    def network_gone(self, network_id: str) -> None:
        """Forget a network and close every endpoint on it."""

        def edit(facts: Facts) -> Facts:
            self._clock.network_gone(network_id)
            self._networks_since.pop(network_id, None)
            gone = [guest.endpoint.id for guest in self._mirror(facts).on(network_id)]
            return self._with(facts, {}, gone).with_networks({}, [network_id])

        self._state.observe(edit)

    def end(self) -> None:
        """Stop tracking, for good: no later report from Docker is used."""

        def edit(facts: Facts) -> Facts:
            self._ended = True
            return self._marked_unknown(facts, None)

        self._state.observe(edit)

    def mark_unknown(self, bridge: str | None = None) -> None:
        """Mark the endpoints on a bridge (or on all) as not current: what their addresses accept is not known now."""
        self._state.observe(lambda facts: self._marked_unknown(facts, bridge))

    def _marked_unknown(self, facts: Facts, bridge: str | None) -> Facts:
        self._clock.invalidate()
        guests, networks = self._mirror(facts), facts.networks.values()
        there = (g for network in networks if bridge in (None, network.bridge) for g in guests.on(network.id))
        return self._with(facts, {g.endpoint.id: dataclasses.replace(g, sure=False) for g in there if g.sure})

    # --- endpoints that are there ---------------------------------------------------------------------------------

    def put(
        self, network: BridgeNetwork | None, found: Iterable[Endpoint], *, listed: bool, asked: int, sure: bool = True
    ) -> bool:
        """Add endpoints that Docker reported for a request made at `asked`. Return False if that is too old.

        `asked` is from `now`. If it is too old, the caller must ask again. If not `sure`, the endpoints are not
        completely known, and they stay closed.
        """
        accepted, found = False, list(found)

        def edit(facts: Facts) -> Facts:
            nonlocal accepted
            if self._ended or self._clock.too_old(asked) or any(self._has_other_name(e, asked) for e in found):
                return facts
            accepted, moment = True, self._clock.tick()
            if network is not None and not self._clock.has_left(network.id, "", asked):
                facts = facts.with_networks({network.id: network})
                self._networks_since[network.id] = moment
            reported = _Reported(self._mirror(facts), self._since)
            self._mirrored = None  # invalid until the edit is complete
            for endpoint in found:
                if endpoint.network_id in facts.networks and not self._has_left(endpoint, asked):
                    reported.put(endpoint, asked, moment, listed=listed, sure=sure)
            self._since |= reported.since
            facts = self._with(facts, reported.new, reported.gone)
            self._mirrored = facts.guests
            return facts

        self._state.observe(edit)
        return accepted

    def replace(
        self,
        networks: Iterable[BridgeNetwork],
        found: Iterable[Endpoint],
        existing: Collection[str] = (),
        *,
        asked: int,
        unsure: Collection[str] = (),
    ) -> bool:
        """Replace everything by Docker's full list, requested at `asked`. Return False if that is too old.

        `asked` is from `now`. The list has Docker's bridge networks, the endpoints of running containers and the IDs
        of all containers. If it is too old, the caller must ask again.
        """
        listed, found = {network.id: network for network in networks}, list(found)
        # A list of thousands is compared before the lock is acquired.
        candidate = self._candidate(self._state.facts, listed, found, asked, unsure)
        accepted = False

        def edit(facts: Facts) -> Facts:
            nonlocal accepted, candidate
            if self._ended or self._clock.too_old(asked):
                return facts
            accepted = True
            if not candidate.still(facts, self._clock.now):  # an event arrived meanwhile
                candidate = self._candidate(facts, listed, found, asked, unsure)
            self._clock.list_came(asked)
            self._networks_since = {k: when for k, when in self._networks_since.items() if k in candidate.newer}
            self._since = candidate.since
            after = self._with(facts, candidate.new, candidate.gone)
            after = after.with_networks(candidate.networks, facts.networks.keys() - candidate.networks.keys())
            old = time.monotonic() - REMEMBERED
            after = after.with_served_ports({}, [p for p, when in after.served_ports.items() if when < old])
            there = {*existing, *(guest.container_id for guest in after.guests.values())}
            return dataclasses.replace(after.keeping(lambda state: self._retained(state, there)), listed=True)

        self._state.observe(edit)
        return accepted

    def _candidate(
        self,
        facts: Facts,
        listed: Mapping[str, BridgeNetwork],
        found: Iterable[Endpoint],
        asked: int,
        unsure: Collection[str],
    ) -> _Candidate:
        """Return the facts' changes by a full list."""
        now, since = self._clock.now, self._networks_since
        newer = {k: network for k, network in facts.networks.items() if since.get(k, 0) > asked}
        there = {**newer, **{k: network for k, network in listed.items() if not self._clock.has_left(k, "", asked)}}
        # An endpoint that was just connected is not listed yet, nor is one that was reported meanwhile.
        # A container that was renamed meanwhile is listed by its old name.
        stay = (
            guest
            for key, guest in facts.guests.items()
            if not guest.listed or self._since.get(key, 0) > asked or self._has_other_name(guest.endpoint, asked)
        )
        reported = _Reported(Guests(guest for guest in stay if guest.endpoint.network_id in there), self._since)
        for endpoint in found:
            current = not self._has_left(endpoint, asked) and not self._has_other_name(endpoint, asked)
            if endpoint.network_id in there and current:
                reported.put(endpoint, asked, now, listed=True, sure=endpoint.id not in unsure)
        guests = {guest.endpoint.id: guest for guest in reported.guests}
        new = {k: guest for k, guest in guests.items() if facts.guests.get(k) != guest}
        when = {k: reported.since.get(k, self._since.get(k, 0)) for k in guests}
        gone = [key for key in facts.guests if key not in guests]
        return _Candidate(facts, now, there, frozenset(newer.keys() - listed.keys()), new, gone, when)

    def _has_left(self, endpoint: Endpoint, asked: int) -> bool:
        container = endpoint.container.id if endpoint.container else ""
        return self._clock.has_left(endpoint.network_id, container, asked)

    def _has_other_name(self, endpoint: Endpoint, asked: int) -> bool:
        return bool(endpoint.container and self._clock.has_other_name(endpoint.container.id, asked))

    def _retained(self, state: SavedState, there: Collection[str]) -> SavedState:
        """Return the state without data of containers that do not exist.

        A container that just joined a docker-fw network may not be listed yet.
        """
        if gone := {each.container for each in state.overrides if each.container not in there}:
            gone -= {e.container.id for e in state.endpoints.values() if e.container}
        return _without_ports(without(state, gone), [each for each in state.proxied if each not in there])

    # --- the facts' endpoints -------------------------------------------------------------------------------------

    def _mirror(self, facts: Facts) -> Guests:
        if self._mirrored is None:
            self._guests = Guests(facts.guests.values())
        else:
            for key in frozen(facts.guests).differing(self._mirrored):
                self._guests.remove(key)
                if guest := facts.guests.get(key):
                    self._guests.put(guest)
        self._mirrored = facts.guests
        return self._guests

    def _with(self, facts: Facts, new: Mapping[str, TrackedEndpoint], gone: Collection[str] = ()) -> Facts:
        now, former = time.monotonic(), dict[Published, float]()
        for key in gone:
            self._logged.pop(key, None)
            self._since.pop(key, None)
            if guest := facts.guests.get(key):
                former |= dict.fromkeys(_remembered(guest.endpoint.published), now)
        for guest in new.values():
            self._log_problems(guest.endpoint)
        return facts.with_guests(new, gone).with_served_ports(former)

    def _log_problems(self, endpoint: Endpoint) -> None:
        problems = endpoint.container.problems if endpoint.container else ()
        if endpoint.container and problems != self._logged.get(endpoint.id, ()):
            self._logged[endpoint.id] = problems
            for problem in problems:
                rest = "ICMP only" if problem.closes else "the ports of its other labels only"
                log.error("%s answers on %s: %s", endpoint.container.name, rest, problem)


class _Candidate(NamedTuple):
    """The changes of these facts by a full list, at this moment of the clock.

    `newer`: networks that are newer than the list.
    """

    facts: Facts
    now: int
    networks: Mapping[str, BridgeNetwork]
    newer: frozenset[str]
    new: Mapping[str, TrackedEndpoint]
    gone: list[str]
    since: dict[str, int]

    def still(self, facts: Facts, now: int) -> bool:
        return facts.guests is self.facts.guests and facts.networks is self.facts.networks and now == self.now


class _Reported:
    """Reported endpoints, added one after the other to the known ones."""

    def __init__(self, guests: Guests, known_since: Mapping[str, int]) -> None:
        self.guests = guests
        self._known_since = known_since
        self.since: dict[str, int] = {}
        self.new: dict[str, TrackedEndpoint] = {}
        self.gone: set[str] = set()

    def put(self, endpoint: Endpoint, asked: int, moment: int, *, listed: bool, sure: bool) -> None:
        # Docker gave these addresses to one endpoint: the last one reported has them, and the earlier one is gone.
        others = [other.endpoint.id for other in self.guests.at(endpoint)]
        if any(self.since.get(other, self._known_since.get(other, 0)) > asked for other in others):
            return
        for other in others:
            self.guests.remove(other)
            self.new.pop(other, None)
            self.gone.add(other)
        known, guest = self.guests.get(endpoint.id), TrackedEndpoint(endpoint, listed, sure)
        if known is None or listed or not known.listed:
            self.since[endpoint.id] = moment
            self.gone.discard(endpoint.id)
            if known != guest:
                self.guests.put(guest)
                self.new[endpoint.id] = guest


def _remembered(published: Iterable[Published]) -> Iterator[Published]:
    """Yield the ports with connections that the host remembers, without the port behind each."""
    for port in published:
        if port.proto == "tcp" and not port.host_ip.is_loopback:
            yield dataclasses.replace(port, container_port=0)


def _without_ports(state: SavedState, containers: Collection[str]) -> SavedState:
    proxied = frozen(state.proxied).drop(containers)
    return state if proxied is state.proxied else dataclasses.replace(state, proxied=proxied)
