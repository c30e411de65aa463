"""The loops in addition to the hooks: they keep the table and Docker's chain, and follow links, Docker and neighbours.

No loop ever opens anything that the containers' own labels do not.
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from typing import Protocol

from plugin.docker.bridges import Bridges
from plugin.docker.follower import INTERVAL, DockerFollower
from plugin.docker.tracker import EndpointTracker
from plugin.kernel import link_monitor
from plugin.kernel.link_monitor import Link, LinkChange
from plugin.model import Endpoint, FwError, Network
from plugin.nftables.client import NftError
from plugin.policy.facts import Facts
from plugin.state.forged_flows import ForgedFlows
from plugin.state.lease import EVERY
from plugin.state.reconciler import Reconciler

log = logging.getLogger(__name__)
#: Seconds between two reads of the ruleset's generation (3 µs each).
TICK = 0.2
#: Seconds until the elements are compared though no other program changed the ruleset. With those of 50,000 containers
#: it takes seconds of CPU time.
UNASKED = 600.0
#: Seconds for which a thread that computes keeps others waiting. Beside a full listing of 10,000 containers a departure
#: was closed after 32 to 51 ms (p99) with Python's 5 ms, and after 3 to 5 ms with this; the listing took no longer.
TURN = 0.001


class Ensures(Protocol):
    """Something that another program may remove, and that is put back."""

    def ensure(self, *, changed: bool) -> None:
        """Put back what is missing. `changed`: nftables' ruleset may have changed since the last call."""


class Syncs(Protocol):
    """Something derived from the driver's networks and endpoints."""

    def sync(self, networks: Mapping[str, Network], endpoints: Iterable[Endpoint]) -> None:
        """Bring it in line with these networks and endpoints."""


class Drops(Protocol):
    """The log of dropped packets."""

    def drop_loop(self) -> None:
        """Read dropped packets until `stop`."""

    def stop(self) -> None:
        """End the loop."""


class Boots(Protocol):
    """The keeper of the boot table."""

    def boot_loop(self) -> None:
        """Keep the boot table current until `stop`."""

    def stop(self) -> None:
        """End the loop."""


class Worker:
    """A queue of long work that no thread waits for, such as cutting flows, done one piece after the other."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()

    def __call__(self, work: Callable[[], object]) -> None:
        """Queue work and return at once."""
        self._queue.put(work)

    def stop(self) -> None:
        """End the loop after the queued work."""
        self._queue.put(None)

    def loop(self) -> None:
        """Do queued work, one piece after the other, until `stop`."""
        while work := self._queue.get():
            work()


class Loops:
    """Runs the loops in its own threads from `start` to `stop`.

    `end_expired` ends expired overrides and bans of fwctl, and returns the seconds until its next call. `protected`: as
    in `ForgedFlows`.
    """

    def __init__(
        self,
        reconciler: Reconciler,
        follower: DockerFollower,
        tracker: EndpointTracker,
        bridges: Bridges,
        docker_user: Ensures,
        neighbours: Syncs,
        worker: Worker,
        proxies: Callable[[], object] = lambda: None,
        drops: Drops | None = None,
        end_expired: Callable[[], float] = lambda: INTERVAL,
        boot: Boots | None = None,
        protected: frozenset[str] | None = None,
    ) -> None:
        self._state = reconciler
        self._follower = follower
        self._tracker = tracker
        self._bridges = bridges
        self._docker_user = docker_user
        self._neighbours = neighbours
        self._worker = worker
        self._proxies = proxies
        self._drops = drops
        self._end_expired = end_expired
        self._boot = boot
        self._forged = ForgedFlows(protected, worker)
        #: When the bridges' subnets were read last, and whether they may have changed since.
        self._subnets_read, self._subnets_due = 0.0, False
        self._changed = threading.Event()
        self._stop = threading.Event()
        self._check = threading.Event()
        self._docker_user_due = threading.Event()
        self._elements_due = threading.Event()
        self._overrides_changed = threading.Event()
        #: Why the table could not be put back at the last try.
        self._refused = ""
        #: Why the state could not be flushed to the disk at the last try.
        self._unflushed = ""
        self._renewed = time.monotonic()

    def start(self) -> None:
        """Start one thread for each loop."""
        sys.setswitchinterval(TURN)
        docker = (self._follower.listen, self._follower.look_loop, self._follower.place_loop, self._follower.host_loop)
        follow = (*docker, self._follow_links)
        keep = (self._keep_table, self._keep_elements, self._keep_docker_user, self._answer_neighbours)
        others = (self._worker.loop, self._end_overrides, self._keep_saved)
        drops = (self._drops.drop_loop,) if self._drops else ()
        boot = (self._boot.boot_loop,) if self._boot else ()
        for loop in (*follow, *keep, *others, *drops, *boot):
            threading.Thread(target=self._run_forever, args=(loop,), name=loop.__name__.strip("_"), daemon=True).start()

    def stop(self) -> None:
        """Ask every loop to end; returns at once."""
        self._stop.set()
        self._follower.stop()
        self._worker.stop()
        if self._drops:
            self._drops.stop()
        if self._boot:
            self._boot.stop()
        self._check.set()
        self._docker_user_due.set()
        self._elements_due.set()
        self._changed.set()
        self._overrides_changed.set()
        self._state.unflushed.set()

    def changed(self) -> None:
        """Report that an endpoint was added or removed."""
        self._changed.set()

    def overrides_changed(self) -> None:
        """Report that fwctl set an override or ban with an end."""
        self._overrides_changed.set()

    def wake(self) -> None:
        """Check everything now, because a hook saw something that needs it."""
        self._follower.wake()
        self._check.set()

    def write_bridges(self) -> None:
        """Write the host's bridges, as far as they are known, into the table."""

        def edit(facts: Facts) -> Facts:
            found = self._bridges.facts()
            return facts if found == facts.bridges else dataclasses.replace(facts, bridges=found)

        self._state.observe(edit)

    def _run_forever(self, loop: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                loop()
            except Exception:
                log.exception("the %s loop failed and starts again", loop.__name__.strip("_"))
                self._stop.wait(1)

    def _keep_table(self) -> None:
        # This loop does nothing else: while the rules are missing, everything is open.
        generation = -1
        while not self._stop.is_set():
            asked = self._check.wait(TICK)
            self._check.clear()
            now = self._state.generation()
            if asked or now != generation or self._state.incomplete or self._state.unfinished:
                generation = now
                self._repair()
                self._docker_user_due.set()
                self._elements_due.set()

    def _keep_elements(self) -> None:
        # Needed only if the table is not owned. Not in the loop above: with thousands of elements it takes a while.
        again = INTERVAL  # also after an unexpected error, which starts the loop again
        while not self._stop.is_set():
            self._elements_due.wait(again)
            self._elements_due.clear()
            if self._stop.is_set():
                return
            again = UNASKED
            try:
                while (wrong := self._state.sync_elements()) is None and not self._stop.wait(TICK):
                    pass
                if wrong:
                    log.warning("another program changed docker-fw's table; %d elements are restored", wrong)
            except (NftError, OSError) as error:
                log.error("could not restore elements of docker-fw's table: %s", error)
                again = INTERVAL
            self._stop.wait(TICK)  # others may change their own tables many times a second

    def _keep_docker_user(self) -> None:
        while not self._stop.is_set():
            # iptables-legacy does not raise the generation, so the rule is also checked now and then without a sign.
            changed = self._docker_user_due.wait(INTERVAL / 6)
            self._docker_user_due.clear()
            if self._stop.is_set():
                return
            self._docker_user.ensure(changed=changed)

    def _repair(self) -> None:
        was_incomplete = self._state.incomplete
        try:
            if self._state.repair():
                removed = "another program removed docker-fw's rules; they are restored"
                log.warning("%s", "the kernel accepts docker-fw's table again" if was_incomplete else removed)
            if not self._state.incomplete:
                self._refused = ""
        except NftError as error:
            if str(error) != self._refused:  # tried again at each tick, reported once
                self._refused = str(error)
                log.error("could not restore all of docker-fw's table; docker-fw keeps trying: %s", error)

    def _answer_neighbours(self) -> None:
        while not self._stop.is_set():
            self._changed.wait(INTERVAL)
            self._changed.clear()
            self._neighbours.sync(self._state.networks, self._state.endpoints.values())

    def _end_overrides(self) -> None:
        while not self._stop.is_set():
            self._overrides_changed.wait(self._end_expired())
            self._overrides_changed.clear()

    def _keep_saved(self) -> None:
        # This loop does nothing else: a slow disk may take seconds.
        while not self._stop.is_set():
            self._state.unflushed.wait(INTERVAL)
            try:
                self._state.flush()
            except FwError as error:
                if str(error) != self._unflushed:  # tried again each second, reported once
                    log.error("%s; what is not on the disk is lost at a power cut", error)
                self._unflushed = str(error)
                self._follower.wake()
            else:
                self._unflushed = ""

    def _follow_links(self) -> None:
        with closing(link_monitor.Changes()) as changes:
            links = link_monitor.links()
            self._see(links)
            self._cut_forged(links)
            if not self._follower.listening:
                self._tracker.mark_unknown()  # departures while this loop did not run are unknown
            while not self._stop.is_set():
                for change in changes.read():
                    self._link(change, links)
                if self._subnets_due:
                    self._cut_forged(links)
                self.write_proxies()
                self._follower.hurry()
                # A default route may have been added through a bridge that is not classified yet.
                if self._bridges.waiting():
                    self.write_bridges()
                if time.monotonic() - self._renewed >= EVERY:
                    self._renewed = time.monotonic()
                    self._renew()

    def _renew(self) -> None:
        """Renew the lease.

        This loop and that of Docker's events close departed containers. So this loop renews the lease, with the locks
        that both need: if one of them is stuck, the lease ends.
        """
        if not self._follower.keeps_up():
            log.error("docker-fw is behind Docker's events; if that lasts, Docker networks accept no new connections")
            return
        try:
            self._state.renew_lease()
        except NftError as error:
            log.error("could not renew the lease; if that lasts, Docker networks accept no new connections: %s", error)

    def write_proxies(self) -> None:
        """Write the facts about docker-proxy and other listening programs into the table."""
        self._proxies()

    def _link(self, change: LinkChange, links: dict[int, Link]) -> None:
        if change.what == "address":
            self._address(links)
            return
        if change.link is None:
            links.clear()
            links.update(link_monitor.links())
            before, after, bridge = None, None, None
        else:
            before = links.pop(change.link.index, None)
            after = change.link if change.what == "added" else None
            if after:
                links[after.index] = after
            bridge = links.get(before.master) if before else None
        if change.link is None or (before != after and (change.link.bridge or (before and before.bridge))):
            self._see(links)
            self._follower.wake()
        if change.link is None or change.link.bridge:
            self._address(links)
        left = bridge is not None and (after is None or after.master != bridge.index)
        if not self._follower.listening and (change.link is None or left):
            # A container's link was removed and no event will name its container: another may get its address soon.
            self._tracker.mark_unknown(bridge.name if bridge else None)

    def _address(self, links: Mapping[int, Link]) -> None:
        """Look at the subnets now, or after the other reports if there are many of them."""
        self._subnets_due = True
        if time.monotonic() - self._subnets_read > TICK / 4:
            self._cut_forged(links)

    def _cut_forged(self, links: Mapping[int, Link]) -> None:
        self._subnets_read, self._subnets_due = time.monotonic(), False
        self._forged.see(links.values(), link_monitor.subnets(), self._bridges.unmanaged())

    def _see(self, links: Mapping[int, Link]) -> None:
        self._bridges.see(links.values())
        self.write_bridges()
