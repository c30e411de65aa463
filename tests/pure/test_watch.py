"""The loops beside the hooks: what Docker tells later opens what labels say, and unsure bridges stay Docker's."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from typing import Any

import pytest

from plugin import watch
from plugin.dockerapi import ApiSilent, Look
from plugin.model import Container, Endpoint, Problem, Rule
from plugin.watch import Watcher

WEB = Container("c" * 64, "web", (Rule("tcp", 8080, 8080),))
WRONG = dataclasses.replace(WEB, allow=(), problems=(Problem("label fw.allow", "x", "is not a port"),))
JOINED = Endpoint("e" * 64, "n" * 64, IPv4Address("10.0.0.2"), joined=True)


class World:
    """Docker, the kernel and the reconciler, as far as the loops see them."""

    def __init__(self) -> None:
        self.answer: Look | None = None
        self.looked = 0
        self.events_now: list[str] = []
        self.endpoints = {JOINED.id: JOINED}
        self.bridges_now: dict[str, bool] = {}
        self.default: set[str] = set()
        self.foreign: frozenset[str] = frozenset()
        self.flushed = self.repaired = self.ensured = 0
        self.number = 1
        self.at_look: Callable[[], object] = lambda: None
        self.at_ensure: Callable[[], object] = lambda: None
        self.networks: dict[str, Any] = {}
        self.synced = 0
        self.dockers: frozenset[str] = frozenset()
        self.forgotten: list[str] = []

    def sync(self, *_: object) -> None:
        self.synced += 1

    def look(self) -> Look:
        self.looked += 1
        self.at_look()
        if self.answer is None:
            raise ApiSilent("nobody is there")
        return self.answer

    def events(self) -> Iterator[str]:
        yield from self.events_now
        self.events_now = []
        if self.answer is None:
            raise ApiSilent("nobody is there")

    def edit_endpoint(self, endpoint_id: str, edit: Callable[[Endpoint], Endpoint]) -> Endpoint:
        self.endpoints[endpoint_id] = edit(self.endpoints[endpoint_id])
        return self.endpoints[endpoint_id]

    def note_foreign(self, names: frozenset[str]) -> None:
        self.foreign = names

    def note_dockers(self, names: frozenset[str]) -> None:
        self.dockers = names

    def forget(self, endpoint: Endpoint) -> None:
        self.forgotten.append(endpoint.id)

    def generation(self) -> int:
        return self.number

    def repair(self) -> bool:
        self.repaired, self.flushed = self.repaired + self.flushed, 0
        return False

    def bridges(self) -> dict[str, bool]:
        return dict(self.bridges_now)

    def default_route_links(self) -> set[str]:
        return self.default

    def ensure(self) -> list[str]:
        self.at_ensure()
        self.ensured += 1
        return []


def until(condition: Callable[[], Any], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        threading.Event().wait(0.002)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def watcher(world: World) -> Iterator[Watcher]:
    made = Watcher(world, world, world, world, world, world.forget)  # type: ignore[arg-type]
    made.start()
    yield made
    made.stop()


def test_unknown_labels_are_learned_when_docker_answers(world: World, watcher: Watcher) -> None:
    """A container that joined while Docker's API was silent gets its exceptions as soon as it answers."""
    watcher.wake()
    until(lambda: world.looked)
    assert world.endpoints[JOINED.id].container is None
    world.answer = Look({JOINED.id: WEB})
    watcher.wake()
    until(lambda: world.endpoints[JOINED.id].container == WEB)


def test_an_event_is_enough(world: World, watcher: Watcher) -> None:
    """A container's start, and each new subscription, makes everything be looked at."""
    world.answer = Look({JOINED.id: WEB})
    world.events_now = ["subscribed"]
    until(lambda: world.endpoints[JOINED.id].container == WEB)


def test_wrong_labels_are_kept_as_what_they_are(world: World, watcher: Watcher) -> None:
    """Labels that turn out wrong after the start are known as wrong: the policy keeps such a container closed."""
    world.answer = Look({JOINED.id: WRONG})
    watcher.wake()
    until(lambda: world.endpoints[JOINED.id].container == WRONG)


def test_an_endpoint_that_left_learns_nothing(world: World, watcher: Watcher) -> None:
    """What Docker still tells about an endpoint that left opens nothing."""
    world.endpoints[JOINED.id] = dataclasses.replace(JOINED, joined=False)
    world.answer = Look({JOINED.id: WEB})
    watcher.learn(world.answer.containers)
    assert world.endpoints[JOINED.id].container is None


def test_a_touched_ruleset_is_mended(world: World, watcher: Watcher) -> None:
    """When somebody changes the ruleset ours is looked at, and Docker's chain too."""
    until(lambda: world.ensured)
    world.flushed, world.number = 1, 2
    until(lambda: world.repaired)


def test_a_flush_in_the_middle_of_looking_is_mended_at_once(world: World, watcher: Watcher) -> None:
    """A flush while Docker's chain is being looked at is not taken for a doing of our own: it is mended right then."""

    def flush() -> None:
        world.at_ensure = lambda: None
        world.flushed, world.number = 1, world.number + 1

    until(lambda: world.ensured)
    world.at_ensure = flush
    watcher.wake()
    until(lambda: world.repaired, 1)


def test_a_flush_is_mended_while_iptables_waits(world: World, watcher: Watcher) -> None:
    """Docker's chain cannot be looked at (another tool holds iptables' lock): ours is mended all the same."""
    until(lambda: world.ensured)
    waiting, go_on = threading.Event(), threading.Event()

    def locked() -> None:
        waiting.set()
        assert go_on.wait(5)

    world.at_ensure = locked
    watcher.wake()
    assert waiting.wait(5)
    try:
        world.flushed, world.number = 1, world.number + 1
        until(lambda: world.repaired, 1)
    finally:
        world.at_ensure = lambda: None
        go_on.set()


def noted(world: World, watcher: Watcher, expected: set[str]) -> None:
    watcher.wake()
    until(lambda: world.foreign == expected)


def test_a_bridge_is_foreign_only_after_docker_told_its_own(world: World, watcher: Watcher) -> None:
    """Before Docker's list is known only the host's own uplink is foreign; a custom name may be Docker's."""
    world.bridges_now = {"br0": False, "uplink": False, "fw-x": True, "docker0": False, "br-0123456789ab": False}
    world.default = {"uplink", "docker0"}
    noted(world, watcher, {"uplink"})
    world.answer = Look({}, frozenset({"br0"}))
    noted(world, watcher, {"uplink"})
    world.bridges_now["virbr0"] = False
    noted(world, watcher, {"uplink", "virbr0"})


def test_a_bridge_that_docker_is_just_making_is_not_foreign(world: World, watcher: Watcher) -> None:
    """A new bridge with a name of the user's own is nobody's until a list of Docker's that is newer than it."""
    world.answer = Look()
    world.bridges_now = {"virbr0": False}
    noted(world, watcher, {"virbr0"})
    looking, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        # Docker answers with a list from before it made the bridge, and makes the bridge meanwhile.
        looking.set()
        world.bridges_now["front1"] = False
        assert go_on.wait(5)

    world.at_look = slow
    watcher.wake()
    assert looking.wait(5)
    passes = world.ensured
    world.number += 1
    until(lambda: world.ensured > passes)
    assert world.foreign == {"virbr0"}
    world.at_look = lambda: None
    go_on.set()
    looked = world.looked
    world.answer = Look({}, frozenset({"front1"}))
    watcher.wake()
    until(lambda: world.looked > looked)
    noted(world, watcher, {"virbr0"})
    assert world.foreign == {"virbr0"}


@pytest.mark.parametrize("name", ['a"b', "br*", "-x", "ü", "a;b", "$x", "a\\b"])
def test_an_odd_name_never_reaches_the_table(world: World, watcher: Watcher, name: str) -> None:
    """A bridge of any name on the host neither breaks the table's text nor means more than itself: it is left out."""
    world.answer = Look({}, frozenset({name + "2"}))
    world.bridges_now = {name: False, name + "2": False, "virbr0": False}
    noted(world, watcher, {"virbr0"})
    assert world.dockers == set()


def test_dockers_bridges_are_known_by_name_or_because_docker_told(world: World, watcher: Watcher) -> None:
    """What is forwarded as Docker says: bridges with Docker's own names at once, others when Docker has told them."""
    world.bridges_now = {"br0": False, "front1": False, "docker0": False, "br-0123456789ab": False}
    watcher.wake()
    until(lambda: world.dockers == {"docker0", "br-0123456789ab"})
    world.answer = Look({}, frozenset({"front1", "gone0"}))
    watcher.wake()
    until(lambda: world.dockers == {"docker0", "br-0123456789ab", "front1"})


def test_an_endpoint_that_docker_no_longer_has_is_forgotten(
    world: World, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Leave that never came does not leave an address open for ever; a container just starting is left in peace."""
    watcher.bury({})
    watcher.bury({})
    assert world.forgotten == []
    monkeypatch.setattr(watch, "GONE", 0.0)
    watcher.bury({JOINED.id: WEB})
    assert world.forgotten == []
    watcher.bury({})
    assert world.forgotten == [JOINED.id]
