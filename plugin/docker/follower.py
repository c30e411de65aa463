"""Follow Docker. Its events report departures, at once, and what to look up; its lists report what exists.

Level-triggered: everything is listed after each subscription, after an event that is not understood, and every
INTERVAL. Closing waits for nothing; opening waits for Docker's answer. Other threads list and look up, so that an API
which hangs does not delay closing, and poll the host's sockets and routes (`plugin.docker.host_work`).

One thread reads the events and reports all of them to the tracker, in Docker's order: no departure overtakes an earlier
connection, nor the reverse. The work that it queues concerns the host's ports and bridges alone, of which the tracker
and its clock know nothing.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Protocol

from plugin.docker.bridges import SETTLE, Bridges
from plugin.docker.driver_sync import DriverSync
from plugin.docker.host_work import HostWork
from plugin.docker.parse import Event
from plugin.docker.proxy_ports import ProxyPorts
from plugin.docker.snapshot import DockerSnapshot
from plugin.docker.tracker import EndpointTracker
from plugin.model import BridgeNetwork, DockerUnavailable, Endpoint, FwError, Network
from plugin.state.lease import EVERY
from plugin.state.reconciler import Reconciler

log = logging.getLogger(__name__)
#: Seconds between two full listings if nothing happens.
INTERVAL = 30.0
#: Seconds until the next subscription to Docker's events after they ended, at first and at most.
SOON, LATER = 0.1, 2.0
#: Seconds until the next try if Docker does not answer though its events arrive.
RETRY = 0.5
#: Seconds until the next full listing while an endpoint is not completely known, or the state is not saved on disk.
UNSURE = 1.0


class Api(Protocol):
    """The part of Docker's API that the follower calls. Each call raises DockerUnavailable."""

    def bridges(self) -> tuple[frozenset[str], bool]:
        """Return the names of the bridges of Docker networks, and whether the list is complete."""

    def look(self) -> DockerSnapshot:
        """Return everything that Docker lists."""

    def guest(self, network_id: str, container_id: str) -> tuple[BridgeNetwork, Endpoint, bool] | None:
        """Return a container's endpoint on a network, and whether it is confirmed; None if it is not there."""

    def created(self, container_id: str, name: str) -> None:
        """Ask which ports of the host a new container requests."""

    def running(self, container_id: str) -> list[Endpoint]:
        """Return a running container's endpoints on Docker networks."""

    def two_names(self) -> bool:
        """True if an answer of the two had a container with two names since the last call: it is being renamed."""

    def events(self) -> Iterator[Event]:
        """Yield Docker's events until the stream ends."""


class DockerFollower:
    """Keeps the facts up to date with Docker.

    `write_bridges` writes the facts about the host's bridges to the table. `forget` undoes an endpoint or a network of
    the driver. `sighted` writes the facts about docker-proxy and other listeners on the host to the table. `connected`
    gets the bridge and the endpoint of a container that Docker has connected. `listed` is called after each full list.
    """

    def __init__(
        self,
        api: Api,
        reconciler: Reconciler,
        tracker: EndpointTracker,
        bridges: Bridges,
        proxies: ProxyPorts,
        write_bridges: Callable[[], None],
        forget: Callable[[Endpoint | Network], None] = lambda _: None,
        sighted: Callable[[], None] = lambda: None,
        connected: Callable[[str, Endpoint], None] = lambda bridge, endpoint: None,
        listed: Callable[[], None] = lambda: None,
    ) -> None:
        self._api = api
        self._state = reconciler
        self._tracker = tracker
        self._bridges = bridges
        self._proxies = proxies
        self._write_bridges = write_bridges
        self._driver_sync = DriverSync(reconciler, forget)
        self._sighted = sighted
        self._connected = connected
        self._listed = listed
        self._host = HostWork(self._behind, self._failed)
        self._stop = threading.Event()
        self._requested = threading.Condition()
        self._all = False
        self._places: dict[tuple[str, str], None] = {}
        self._started: dict[str, None] = {}
        #: The last moment until which flows may have been opened unfiltered: no process followed Docker, or a bridge
        #: was not protected. A listing that was requested later knows their containers. None: flows were cut since.
        self._unfiltered: float | None = -math.inf
        #: Bridges that the log reports as not left alone any more.
        self._logged_uncertain: frozenset[str] = frozenset()
        #: The time of the last full listing.
        self._looked = 0.0
        #: How many listings in a row had a container with two names.
        self._renaming = 0
        #: docker_gwbridge's ID, if there is one.
        self._gwbridge = ""
        #: The time since when an event is being handled; 0: none is.
        self._hearing = 0.0
        #: Docker's events arrive. Without them, no departure is reported.
        self.listening = False
        #: Containers without a network of their own, with the reason.
        self.not_guarded: Mapping[str, str] = {}

    def stop(self) -> None:
        """End all loops; a call to Docker in progress is not interrupted."""
        self._stop.set()
        self._host.stop()
        self.wake()

    def wake(self) -> None:
        """List everything now."""
        with self._requested:
            self._all = True
            self._requested.notify_all()

    def hurry(self) -> None:
        """List everything soon if the owner of a listener on the host is unknown. To be called often."""
        if self.listening and self._proxies.waiting() and time.monotonic() - self._looked > UNSURE:
            self.wake()

    # --- Docker's events ------------------------------------------------------------------------------------------

    def listen(self) -> None:
        """Read events until `stop`."""
        wait = SOON
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                for event in self._api.events():
                    self._hearing = time.monotonic()
                    self._on_event(event)
                    self._hearing = 0.0
            except DockerUnavailable as error:
                log.debug("%s", error)
            finally:
                self.listening, self._hearing = False, 0.0
            wait = SOON if time.monotonic() - began > LATER else min(2 * wait, LATER)
            self._stop.wait(wait)

    def keeps_up(self) -> bool:
        """False while one event has been in progress for long: containers that leave meanwhile are not closed."""
        return all(not since or time.monotonic() - since < EVERY for since in (self._hearing, self._host.since))

    def host_loop(self) -> None:
        """Until `stop`: do what events cause on the host's ports and bridges, in order."""
        self._host.loop()

    def _behind(self) -> None:
        """Close what Docker's events would have to close: they have to wait."""
        log.error("docker-fw is behind Docker's events; ports that labels open on Docker networks are closed meanwhile")
        self._tracker.mark_unknown()
        self.wake()

    def _failed(self) -> None:
        """List everything, and then cut flows: a bridge may not have been protected when it should have been."""
        self._cut_flows_until(self._bridges.now())
        self.wake()

    def _on_event(self, event: Event) -> None:
        log.debug("Docker reports: %s %s %s", event.action, event.id[:12], event.container[:12])
        if not event.complete:
            log.error("Docker reports a %s without its container; docker-fw lists all containers", event.action)
            self._tracker.mark_unknown()
            self.wake()
            return
        match event.action:
            case "subscribed":
                self._tracker.start_over()
                self._cut_flows_until(self._bridges.now())
                self.listening = True
                self.wake()
            case "container die":
                self._tracker.leaves("", event.id)
            case "container destroy":
                self._tracker.forget(event.id)
                self._host.put(partial(self._proxies.forget, event.id))
            case "container start":
                self._tracker.returns("", event.id)
                self._request(started=event.id)
            case "container create":
                self._api.created(event.id, event.name)
                self._host.put(partial(self._created, event.id))
            case "container rename":
                self._tracker.renamed(event.id)
                self._request(started=event.id)
                self.wake()  # for its endpoints on docker-fw networks
            case _:
                self._on_network_event(event)

    def _on_network_event(self, event: Event) -> None:
        match event.action:
            case "network connect" if event.network_type in ("bridge", ""):
                self._tracker.returns(event.id, event.container)
                self._request(place=(event.id, event.container))
            case "network connect" if event.network_type == "overlay":
                # A container on an overlay has a second endpoint, on docker_gwbridge, that no event reports.
                self.wake()
            case "network connect":
                self._request()
            case "network disconnect":
                self._tracker.leaves(event.id, event.container)
            case "network create":
                # At once: a list that is requested before the bridges are written leaves none of them alone.
                left_alone = self._bridges.mark_unknown()
                self._host.put(partial(self._network_created, left_alone=left_alone), first=True)
            case "network destroy":
                self._tracker.network_gone(event.id)

    def _created(self, container_id: str) -> None:
        self._proxies.created(container_id)
        self._sighted()  # a program of the host may have had its port until now

    def _network_created(self, *, left_alone: bool) -> None:
        exempt = left_alone or bool(self._bridges.unmanaged())
        self._write_bridges()
        if exempt:
            self._cut_flows_until(self._bridges.now())
        self.wake()

    def _cut_flows_until(self, moment: float) -> None:
        """Cut the flows that containers do not accept after the next listing that is requested from this moment on."""
        with self._requested:
            self._unfiltered = max(moment, self._unfiltered or moment)

    def _cut_flows(self, asked: float) -> None:
        """Cut the flows that containers do not accept, if a listing of that moment knows the containers concerned."""
        with self._requested:
            due = self._unfiltered is not None and self._unfiltered <= asked
            self._unfiltered = None if due else self._unfiltered
        if due:
            self._state.cut_closed()

    def _request(self, place: tuple[str, str] | None = None, started: str = "") -> None:
        with self._requested:
            if place:
                self._places[place] = None
            if started:
                self._started[started] = None
            # Driver endpoints whose labels are unknown can be found only in the full list.
            self._all |= self._state.unlabelled
            self._requested.notify_all()

    # --- look-ups -------------------------------------------------------------------------------------------------

    def place_loop(self) -> None:
        """Until `stop`: look up the containers that events named, one by one. A full listing delays none of them."""
        while not self._stop.is_set():
            with self._requested:
                while not (self._places or self._started or self._stop.is_set()):
                    self._requested.wait()
                places, self._places = self._places, {}
                started, self._started = self._started, {}
            try:
                self._look_up(places, started)
            except DockerUnavailable as error:
                log.debug("%s", error)
                # If Docker stopped, the stream of events ends too, and a full listing follows the next subscription.
                if self.listening:
                    self.wake()

    def look_loop(self) -> None:
        """Until `stop`: list everything when it was requested, and at intervals."""
        next_all = time.monotonic()
        while not self._stop.is_set():
            with self._requested:
                if not self._all:
                    self._requested.wait_for(lambda: self._all, max(0.0, next_all - time.monotonic()))
                self._all = False
            if self._stop.is_set():
                return
            next_all = time.monotonic() + INTERVAL
            try:
                self._list_all()
                self._listed()
            except DockerUnavailable as error:
                log.debug("%s", error)
                self._renaming = 0  # the next list shows it
                self._log_uncertain()
                next_all = time.monotonic() + RETRY if self.listening else next_all
            if self._bridges.waiting():
                next_all = min(next_all, time.monotonic() + SETTLE + 0.05)
            if self._renaming == 1:
                next_all = min(next_all, time.monotonic() + SOON)
            if self._is_unsaved() or (self.listening and (self._renaming or self._tracker.unsure())):
                next_all = min(next_all, time.monotonic() + UNSURE)

    def _log_uncertain(self) -> None:
        if (unsure := self._bridges.unsure()) and unsure != self._logged_uncertain:
            self._logged_uncertain = unsure
            why = "Docker created a network, which may use a bridge that was unmanaged"
            log.warning("%s; closed until Docker's API answers: %s", why, ", ".join(sorted(unsure)))

    def _is_unsaved(self) -> bool:
        """True while the state cannot be saved on disk: saving is retried each time."""
        try:
            self._state.save_again()
        except FwError as error:
            log.debug("%s", error)
        return bool(self._state.unsaved_reason)

    def _look_up(self, places: Mapping[tuple[str, str], None], started: Mapping[str, None]) -> None:
        asked, accepted = self._tracker.now(), []
        for network_id, container_id in places:
            if found := self._api.guest(network_id, container_id):
                accepted.append(self._tracker.put(found[0], [found[1]], listed=False, asked=asked, sure=found[2]))
                started = {**started, container_id: None}  # it may run already: Docker also connects running containers
                self._connected(found[0].bridge, found[1])
        for container_id in started:
            if running := self._api.running(container_id):
                accepted.append(self._tracker.put(None, running, listed=True, asked=asked))
                # A container on an overlay publishes its ports at its endpoint on docker_gwbridge.
                if self._gwbridge and (found := self._api.guest(self._gwbridge, container_id)):
                    place = replace(found[1], published=running[0].published, unlisted=False)
                    accepted.append(self._tracker.put(found[0], [place], listed=True, asked=asked))
        log.debug("asked for %s; accepted: %s", [*places, *started], accepted)
        # The answer was too old when it arrived, or the name may be the former one, which no event reports.
        if self._api.two_names() or not all(accepted):
            self.wake()

    def _look(self, then: float) -> DockerSnapshot:
        """Return everything that Docker lists, after the facts that do not depend on events have been updated."""
        look = self._api.look()
        self._renaming = self._renaming + 1 if look.renaming else 0
        self._proxies.judge(look, then)
        self._sighted()
        self._state.observe(
            lambda facts: facts if facts.names == look.network_names else replace(facts, names=look.network_names)
        )
        return look

    def _list_all(self) -> None:
        self._looked = time.monotonic()
        asked, moment, then = self._bridges.now(), self._tracker.now(), self._proxies.now()
        bridges, complete = self._api.bridges()
        exempt = self._bridges.unmanaged()
        self._bridges.set_listed(bridges, asked, complete=complete)
        self._logged_uncertain = frozenset()
        self._write_bridges()
        if not exempt <= self._bridges.unmanaged():  # Docker claims one: its containers are listed from now on
            asked = self._bridges.now()
            self._cut_flows_until(asked)
        look = self._look(then)
        existing = look.container_ids
        if not look.complete:  # then no container counts as removed: what fwctl denied stays denied
            existing |= {each.container for each in self._state.state.overrides} | self._state.state.proxied.keys()
        if not self._tracker.replace(look.networks, look.endpoints, existing, asked=moment, unsure=look.unconfirmed):
            log.debug("listed everything; the answer was too old when it arrived")
            self.wake()
            return
        log.debug("listed everything: %d containers", len(look.container_ids))
        self._gwbridge = next((network.id for network in look.networks if network.name == "docker_gwbridge"), "")
        self._cut_flows(asked)
        self.not_guarded = look.not_guarded
        self._driver_sync.update_labels(look.containers)
        self._driver_sync.prune(look.containers, look.network_ids)
        driver = {network.bridge for network in list(self._state.networks.values())}
        there = driver | self._bridges.dockers() | {network.bridge for network in look.networks}
        unmanaged = self._bridges.unmanaged()
        self._state.observe(lambda facts: facts.keeping(lambda s: s.with_bridges(there).with_foreign(unmanaged)))
