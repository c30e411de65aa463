"""The lease: it is renewed by who closes when a container goes, and by nobody else; when it is out that is told."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from plugin.daemon import loops
from plugin.daemon.loops import Loops, Worker
from plugin.docker import follower as follow
from plugin.docker.bridges import Bridges
from plugin.docker.follower import DockerFollower
from plugin.docker.proxy_ports import ProxyPorts
from plugin.kernel import link_monitor
from plugin.kernel.sock_diag import Listeners
from plugin.model import Defaults
from plugin.nftables.drift import TableDump
from plugin.nftables.sets import SETS, WATCHED, Element
from plugin.nftables.table import NftError
from plugin.policy.facts import Facts
from plugin.policy.verdict import Packet, verdict
from plugin.policy.view import Inventory
from plugin.state import closed_flows, lease
from plugin.state.applier import TableApplier
from plugin.state.lease import SECONDS
from plugin.state.reconciler import Reconciler
from tests.pure.daemon.test_loops import Changes, until
from tests.pure.daemon.test_loops import World as Watched
from tests.pure.docker.test_follower import World as Followed
from tests.pure.fakes import Disk, Kernel
from tests.pure.policy.test_verdict import MUTE, SHUT, WEB, WIDE, world


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(lease, "time", made)
    return made


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(closed_flows, "cut_closed", lambda *_: None)
    return Kernel()


def writer(kernel: Kernel) -> TableApplier:
    made = TableApplier(kernel, Inventory(Defaults()), lambda _: None)  # type: ignore[arg-type]
    made.start()
    return made


def found(kernel: Kernel, *, leaving: frozenset[Element] = frozenset()) -> TableDump:
    return TableDump(1, frozenset(SETS), frozenset((*(kernel.table or ()), *kernel.timed)), leaving, ())


# --- in the kernel ----------------------------------------------------------------------------------------------------


def test_it_stands_in_a_whole_table_for_as_long_as_it_lasts_yet(kernel: Kernel, clock: Clock) -> None:
    """A table that is put there has it; one that is put there later has what is left, and none when it is out: whoever
    flushes a table renews nothing."""
    made = writer(kernel)
    assert kernel.timed == dict.fromkeys(WATCHED, SECONDS)
    clock.now += 12.5
    kernel.table = None
    assert made.repair()
    assert kernel.timed == dict.fromkeys(WATCHED, SECONDS - 12)
    clock.now += SECONDS
    kernel.table = None
    assert made.repair()
    assert kernel.timed == {}


def test_it_is_renewed_whether_it_stands_or_not(kernel: Kernel, clock: Clock) -> None:
    """From each time on it lasts as long again; what the kernel refuses changes nothing."""
    made = writer(kernel)
    clock.now += 20
    made.lease.renew()
    assert made.lease.left() == dict.fromkeys(WATCHED, SECONDS)
    clock.now += SECONDS
    kernel.timed.clear()
    assert made.lease.left() == {}
    made.lease.renew()
    assert kernel.timed == made.lease.left() == dict.fromkeys(WATCHED, SECONDS)
    clock.now += 10
    kernel.refuses = 2
    with pytest.raises(NftError):
        made.lease.renew()
    assert made.lease.left() == dict.fromkeys(WATCHED, SECONDS - 10)


def test_what_is_out_is_no_drift(kernel: Kernel, clock: Clock) -> None:
    """Who puts elements right gives back what somebody deleted of it, for the time that is left, and neither brings
    back one that is out nor takes its last moment away."""
    made = writer(kernel)
    assert made.sync_elements(found(kernel)) == 0
    clock.now += 10
    kernel.timed.clear()
    assert made.sync_elements(found(kernel)) == 2
    assert kernel.timed == dict.fromkeys(WATCHED, SECONDS - 10)
    clock.now += SECONDS
    assert made.sync_elements(found(kernel, leaving=frozenset(WATCHED))) == 0
    kernel.timed.clear()
    assert made.sync_elements(found(kernel)) == 0
    assert kernel.timed == {}


# --- who renews it ----------------------------------------------------------------------------------------------------


class Room(Watched):
    """The guard, the follower and the reconciler, with their locks, as far as the lease needs them."""

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
    monkeypatch.setattr(loops, "EVERY", 0.02)
    watcher = Loops(made, made, made, Bridges(set), made, made, Worker())  # type: ignore[arg-type]
    watcher.start()
    yield made
    watcher.stop()


def goes_on(room: Room) -> bool:
    """True if it is renewed a few times more within a moment."""
    before, end = room.renewed, time.monotonic() + 0.4
    while time.monotonic() < end and room.renewed < before + 3:
        threading.Event().wait(0.002)
    return room.renewed >= before + 3


def test_who_follows_docker_renews_it(room: Room) -> None:
    """Again and again, and after the kernel refused it too."""
    until(lambda: goes_on(room))
    room.fault = True
    assert not goes_on(room)
    room.fault = False
    until(lambda: goes_on(room))


@pytest.mark.parametrize("stuck", ["a change", "an event", "the links"])
def test_where_one_that_closes_is_stuck_it_ends(room: Room, stuck: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that sits on a lock which closing needs, or an event that is never done, lets the lease end though every
    other thread lives; when that is over it is renewed again."""
    until(lambda: goes_on(room))
    if stuck == "a change":
        with room.lock:
            assert not goes_on(room)
    elif stuck == "an event":
        room.keeping_up = False
        until(lambda: not goes_on(room))
        room.keeping_up = True
    else:
        go_on = threading.Event()
        monkeypatch.setattr(room, "hurry", go_on.wait)
        until(lambda: not goes_on(room))
        go_on.set()
    until(lambda: goes_on(room))


def test_an_event_that_is_never_done_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is none; an event in hand for as long as a renewal is, until it is done."""
    docker, done, begun = Followed(), threading.Event(), threading.Event()
    follower = DockerFollower(docker, docker, docker, Bridges(set), ProxyPorts(docker, Listeners(set), ()), docker.note)  # type: ignore[arg-type]
    monkeypatch.setattr(follow, "EVERY", 0.0)

    def leaves(*_: object) -> None:
        begun.set()
        assert done.wait(5)

    monkeypatch.setattr(docker, "leaves", leaves, raising=False)
    thread = threading.Thread(target=follower.listen)
    thread.start()
    try:
        assert follower.keeps_up()
        docker.tell("network disconnect", "n", "c")
        assert begun.wait(5)
        assert not follower.keeps_up()
        monkeypatch.setattr(follow, "EVERY", 60.0)
        assert follower.keeps_up()
        monkeypatch.setattr(follow, "EVERY", 0.0)
        done.set()
        until(follower.keeps_up)
    finally:
        done.set()
        follower.stop()
        docker.hang_up()
        thread.join(5)


# --- what is said of it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "more", "accepted"),
    [
        ("203.0.113.7", "172.18.0.3", {}, False),
        ("203.0.113.7", "172.18.0.3", {"by": "dnat"}, False),
        ("203.0.113.7", "172.18.0.3", {"by": "proxy"}, False),
        ("10.1.0.2", "172.18.0.3", {}, False),
        ("203.0.113.7", "172.18.0.3", {"proto": "icmp", "port": 0}, True),
        ("172.18.0.2", "172.18.0.3", {}, True),
        ("172.18.0.2", "203.0.113.7", {}, False),  # somebody is confined there, and who it is nobody knows any more
        ("203.0.113.7", "10.1.0.2", {}, True),
        ("10.1.0.2", "203.0.113.7", {}, True),
    ],
)
def test_without_it_dockers_networks_are_closed(source: str, target: str, more: dict[str, Any], accepted: bool) -> None:
    """`fwctl explain` says so: nobody from outside, not even by a published port, and where somebody may not begin
    everything nobody begins anything; neighbours and ping pass, and our own networks are as ever."""
    there = world(WEB, SHUT, WIDE, MUTE)
    packet = dataclasses.replace(Packet(ip_address(source), ip_address(target), "tcp", 443), **more)
    there.watched = False
    told = verdict(there, packet)
    assert told.accepted is accepted
    assert accepted or told.steps[-1].text == (
        "docker-fw does not keep up with Docker, and nobody else knows who is on app now"
    )


def test_what_status_and_explain_are_made_from_says_whether_it_stands(kernel: Kernel, clock: Clock) -> None:
    """From the start on, until it is out."""
    state = Reconciler(kernel, Disk(), Defaults())  # type: ignore[arg-type]
    state.start(Facts())
    assert state.snapshot().watched
    clock.now += SECONDS
    assert not state.snapshot().watched
