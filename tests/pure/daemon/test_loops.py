"""The background loops: the table is repaired whatever else waits, and a link that leaves a bridge is detected."""

from __future__ import annotations

import dataclasses
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import ip_network
from typing import Any

import pytest

from plugin.daemon import loops
from plugin.daemon.loops import Loops, Worker
from plugin.docker.bridges import Bridges
from plugin.kernel import link_monitor
from plugin.kernel.link_monitor import Link, LinkChange
from plugin.model import FwError
from plugin.nftables.client import NftError
from plugin.policy.facts import BridgeFacts, Facts
from plugin.state import forged_flows
from tests.waiting import until


class World:
    """The kernel and the other components, as far as the loops use them."""

    def __init__(self) -> None:
        self.flushed = self.repaired = self.ensured = self.synced = self.woken = self.saved = 0
        self.unflushed = threading.Event()
        self.disk_error = ""
        #: What the comparisons of elements raise, in turn; 0 differ afterwards.
        self.comparison: list[Exception] = []
        self.compared = 0
        self.number = 1
        self.at_ensure: Callable[[], object] = lambda: None
        self.networks: dict[str, Any] = {}
        self.endpoints: dict[str, Any] = {}
        self.listening = True
        self.marked_unknown: list[str | None] = []
        self.facts = Facts()
        self.links: dict[int, Link] = {}
        self._stopped = threading.Event()

    #: For the reconciler: everything was applied.
    incomplete = unfinished = False

    def hurry(self) -> None:
        """Do nothing: no work is waiting."""

    def sync(self, *_: object) -> None:
        self.synced += 1

    def listen(self) -> None:
        self._stopped.wait(60)

    def look_loop(self) -> None:
        self._stopped.wait(60)

    place_loop = host_loop = look_loop

    def stop(self) -> None:
        self._stopped.set()

    def wake(self) -> None:
        self.woken += 1

    def mark_unknown(self, bridge: str | None = None) -> None:
        self.marked_unknown.append(bridge)

    def flush(self) -> None:
        self.unflushed.clear()
        self.saved += 1
        if self.disk_error:
            raise FwError(self.disk_error)

    def observe(self, edit: Callable[[Facts], Facts]) -> None:
        self.facts = edit(self.facts)

    def generation(self) -> int:
        return self.number

    def repair(self) -> bool:
        self.repaired, self.flushed = self.repaired + self.flushed, 0
        return False

    def sync_elements(self) -> int:
        self.compared += 1
        if self.comparison:
            raise self.comparison.pop(0)
        return 0

    def ensure(self, *, changed: bool) -> None:
        self.at_ensure()
        self.ensured += changed


class Changes:
    """Link notifications of the kernel: none, until a test sends one."""

    def close(self) -> None:
        pass

    def read(self) -> Iterator[LinkChange]:
        time.sleep(0.01)
        yield from ()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(link_monitor, "Changes", Changes)
    monkeypatch.setattr(link_monitor, "links", lambda: dict(made.links))
    monkeypatch.setattr(link_monitor, "subnets", dict)
    monkeypatch.setattr(loops, "INTERVAL", 600.0)  # the periodic checks do not hide a missing one
    return made


@pytest.fixture
def watcher(world: World) -> Iterator[Loops]:
    made = Loops(world, world, world, Bridges(set), world, world, Worker())  # type: ignore[arg-type]
    made.start()
    yield made
    made.stop()


def test_what_must_survive_a_power_cut_is_flushed_to_the_disk(world: World, watcher: Loops) -> None:
    """Also after an event that no caller waits for."""
    for number in range(1, 4):
        world.unflushed.set()
        until(lambda number=number: world.saved == number, "it is flushed")


def test_a_disk_that_cannot_be_flushed_is_reported_once(
    world: World, watcher: Loops, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says what a power cut would lose. The state is saved again with the next list, which is asked for."""
    world.disk_error = "could not flush the state file"
    for number in range(1, 4):
        woken = world.woken
        world.unflushed.set()
        until(lambda number=number: world.saved == number, "it is tried")
        until(lambda woken=woken: world.woken > woken, "a list is asked for")
    assert caplog.text.count("could not flush the state file; what is not on the disk is lost at a power cut") == 1


def test_flows_are_cut_once_for_each_new_subnet_of_a_bridge(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for bridges of other programs, for docker-fw's own (the driver does it), or for a bridge that is down."""
    prefixes = [ip_network(f"10.{n}.0.0/24") for n in range(5)]
    known, more, theirs, ours, down = ({prefix} for prefix in prefixes)
    world.links = {
        5: Link(5, "br-0123456789ab", bridge=True, up=True),
        6: Link(6, "virbr0", bridge=True, up=True),
        7: Link(7, "fw-1", bridge=True, ours=True, up=True),
        8: Link(8, "br-ba9876543210", bridge=True),
        9: Link(9, "eth0", up=True),
    }
    there: dict[int, set[Any]] = {5: known}
    reports: queue.SimpleQueue[LinkChange] = queue.SimpleQueue()
    cut: list[Any] = []

    class Reports(Changes):
        def read(self) -> Iterator[LinkChange]:
            with suppress(queue.Empty):
                yield reports.get(timeout=0.01)

    monkeypatch.setattr(link_monitor, "Changes", Reports)
    monkeypatch.setattr(link_monitor, "subnets", lambda: dict(there))
    monkeypatch.setattr(forged_flows.conntrack, "cut_forwarded", cut.append)
    bridges = Bridges(set, frozenset({"virbr0"}))
    watcher = Loops(world, world, world, bridges, world, world, Worker())  # type: ignore[arg-type]
    watcher.start()
    try:
        until(lambda: watcher._forged._known, "the loop has read what is there")
        there |= {5: known | more, 6: theirs, 7: ours, 8: down, 9: more}
        for _ in range(2):
            reports.put(LinkChange("address"))
        until(lambda: cut, "the new subnet is cut")
        reports.put(LinkChange("added", dataclasses.replace(world.links[8], up=True)))
        until(lambda: len(cut) > 1, "the subnet of the bridge that is up now is cut")
        assert cut == [[*more], [*down]]
    finally:
        watcher.stop()


def test_a_changed_ruleset_is_checked(world: World, watcher: Loops) -> None:
    """When another program changes the ruleset, docker-fw's table is checked, and Docker's chain too."""
    until(lambda: world.ensured)
    ensured = world.ensured
    world.flushed, world.number = 1, 2
    until(lambda: world.repaired and world.ensured > ensured, timeout=5)


def test_elements_are_compared_after_a_change_by_another_program(world: World, watcher: Loops) -> None:
    """Nothing else is a reason to read them all: with many containers that takes seconds."""
    until(lambda: world.compared == 1, "compared at the start")
    world.number = 2
    until(lambda: world.compared == 2, "compared after a change")
    ensured = world.ensured
    watcher.wake()
    until(lambda: world.ensured > ensured and world.compared == 3, "compared when a hook asks for it")


def test_a_comparison_of_elements_that_failed_is_repeated_without_a_sign(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel had no memory for it, or docker-fw an unexpected error: elements that were removed come back."""
    monkeypatch.setattr(loops, "INTERVAL", 0.01)
    world.comparison = [NftError("no buffer space"), OSError("time-out"), ValueError("unexpected")]
    made = Loops(world, world, world, Bridges(set), world, world, Worker())  # type: ignore[arg-type]
    made.start()
    try:
        until(lambda: world.compared > 3, "compared again after each error")
    finally:
        made.stop()


def test_a_flush_during_a_check_is_repaired_at_once(world: World, watcher: Loops) -> None:
    """A flush while Docker's chain is being checked is not mistaken for docker-fw's own change: it is repaired at
    once."""

    def flush() -> None:
        world.at_ensure = lambda: None
        world.flushed, world.number = 1, world.number + 1

    until(lambda: world.ensured)
    world.at_ensure = flush
    watcher.wake()
    until(lambda: world.repaired, timeout=1)


def test_a_flush_is_repaired_while_iptables_waits(world: World, watcher: Loops) -> None:
    """If Docker's chain cannot be checked (another tool holds iptables' lock), docker-fw's table is repaired anyway."""
    until(lambda: world.ensured)
    waiting, resume = threading.Event(), threading.Event()

    def locked() -> None:
        waiting.set()
        assert resume.wait(5)

    world.at_ensure = locked
    watcher.wake()
    assert waiting.wait(5)
    try:
        world.flushed, world.number = 1, world.number + 1
        until(lambda: world.repaired, timeout=1)
    finally:
        world.at_ensure = lambda: None
        resume.set()


def test_no_thread_that_computes_keeps_others_waiting_for_long(watcher: Loops) -> None:
    """A thread that lists all containers gives way to one that closes after a millisecond, not after Python's five."""
    assert sys.getswitchinterval() == pytest.approx(0.001)


def test_flows_are_cut_in_order_and_closing_does_not_wait() -> None:
    """Cutting flows may take time; closing an address does not wait for it, and no cut is lost."""
    later, done = Worker(), []
    resume = threading.Event()
    later(lambda: (resume.wait(5), done.append(1)))  # type: ignore[arg-type,func-returns-value]
    later(lambda: done.append(2))
    later.stop()
    thread = threading.Thread(target=later.loop)
    thread.start()
    assert done == []
    resume.set()
    thread.join(5)
    assert done == [1, 2]


BRIDGE, PORT = Link(3, "br-0123456789ab", bridge=True), Link(4, "veth1", master=3)


@pytest.mark.parametrize(
    "change", [LinkChange("removed", PORT), LinkChange("added", Link(4, "veth1"))], ids=["gone", "moved"]
)
@pytest.mark.parametrize("listening", [True, False])
def test_a_link_that_leaves_a_bridge_closes_it_while_docker_is_silent(
    world: World, change: LinkChange, listening: bool
) -> None:
    """While Docker is silent, a port that leaves a bridge closes that bridge; otherwise Docker reports the
    departure."""
    world.listening = listening
    watcher = Loops(world, world, world, Bridges(set), world, world, Worker())  # type: ignore[arg-type]
    links = {3: BRIDGE, 4: PORT}
    watcher._link(LinkChange("added", Link(5, "veth2", master=3)), links)
    assert world.marked_unknown == []
    watcher._link(change, links)
    assert world.marked_unknown == ([] if listening else [BRIDGE.name])


def test_after_missed_links_every_bridge_is_closed(world: World) -> None:
    """Link notifications were lost and Docker is silent: every bridge is closed until Docker answers."""
    world.listening = False
    watcher = Loops(world, world, world, Bridges(set), world, world, Worker())  # type: ignore[arg-type]
    watcher._link(LinkChange("all"), {})
    assert world.marked_unknown == [None]


def test_a_new_bridge_is_recorded_and_docker_is_asked(world: World) -> None:
    """A new bridge is recorded at once, as far as its name identifies it, and everything is listed."""
    watcher = Loops(world, world, world, Bridges(set), world, world, Worker())  # type: ignore[arg-type]
    watcher._link(LinkChange("added", BRIDGE), {})
    assert world.woken == 1
    assert world.facts.bridges == BridgeFacts(dockers={BRIDGE.name}, guarded={BRIDGE.name}, there={BRIDGE.name})  # type: ignore[arg-type]


# --- the lease --------------------------------------------------------------------------------------------------------


class Room(World):
    """The tracker, the follower and the reconciler, with their locks, as far as the lease needs them."""

    def __init__(self) -> None:
        super().__init__()
        self.renewed, self.keeping_up, self.fault = 0, True, False
        self.lock = threading.RLock()

    def renew_lease(self) -> None:
        with self.lock:
            if self.fault:
                raise NftError("no")
            self.renewed += 1

    def keeps_up(self) -> bool:
        return self.keeping_up

    def hurry(self) -> None:
        pass


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    made = Room()
    monkeypatch.setattr(link_monitor, "Changes", Changes)
    monkeypatch.setattr(link_monitor, "links", dict)
    monkeypatch.setattr(link_monitor, "subnets", dict)
    monkeypatch.setattr(loops, "EVERY", 0.02)
    watcher = Loops(made, made, made, Bridges(set), made, made, Worker())  # type: ignore[arg-type]
    watcher.start()
    yield made
    watcher.stop()


def is_renewed(room: Room) -> bool:
    """True if the lease is renewed several more times within a moment."""
    before, end = room.renewed, time.monotonic() + 0.4
    while time.monotonic() < end and room.renewed < before + 3:
        threading.Event().wait(0.002)
    return room.renewed >= before + 3


def test_the_lease_is_renewed_while_docker_is_followed(room: Room) -> None:
    """The lease is renewed repeatedly, also after a refusal by the kernel."""
    until(lambda: is_renewed(room))
    room.fault = True
    assert not is_renewed(room)
    room.fault = False
    until(lambda: is_renewed(room))


@pytest.mark.parametrize("stuck", ["a change", "an event", "the links"])
def test_the_lease_ends_where_a_thread_that_closes_is_stuck(
    room: Room, stuck: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a thread blocks a lock that closing needs, or an event never completes, the lease expires although every other
    thread runs. When the cause is over, it is renewed again."""
    until(lambda: is_renewed(room))
    if stuck == "a change":
        with room.lock:
            assert not is_renewed(room)
    elif stuck == "an event":
        room.keeping_up = False
        until(lambda: not is_renewed(room))
        room.keeping_up = True
    else:
        resume = threading.Event()
        monkeypatch.setattr(room, "hurry", resume.wait)
        until(lambda: not is_renewed(room))
        resume.set()
    until(lambda: is_renewed(room))
