"""Following Docker: a departure closes at once, an arrival is looked up, and after silence everything is listed."""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network
from types import MappingProxyType
from typing import Any
from unittest.mock import MagicMock

import pytest

from plugin.docker import driver_sync, host_work
from plugin.docker import follower as follow
from plugin.docker.bridges import SETTLE, Bridges
from plugin.docker.driver_sync import DriverSync
from plugin.docker.follower import DockerFollower
from plugin.docker.parse import Event
from plugin.docker.proxy_ports import ProxyPorts
from plugin.docker.snapshot import DockerSnapshot
from plugin.driver.driver import Driver
from plugin.kernel.link_monitor import Link
from plugin.kernel.sock_diag import Listeners
from plugin.model import (
    BridgeNetwork,
    Container,
    Defaults,
    DockerUnavailable,
    Endpoint,
    FwError,
    Network,
    Overriding,
    PolicySpec,
    Problem,
    Rule,
)
from plugin.policy.facts import Facts
from plugin.policy.saved import SavedState
from plugin.state.reconciler import Reconciler
from tests.pure.fakes import Disk, Kernel
from tests.waiting import until

WEB = Container("c" * 64, "web", PolicySpec(allow=(Rule("tcp", 8080, 8080),)))
WRONG = dataclasses.replace(WEB, spec=PolicySpec(), problems=(Problem("label fw.allow", "x", "is not a port"),))
JOINED = Endpoint("e" * 64, "n" * 64, IPv4Address("10.0.0.2"), joined=True)
NETWORK = BridgeNetwork("n" * 64, "app", "br-app", (IPv4Network("172.18.0.0/16"), IPv6Network("2001:db8:1::/64")))
GUEST = Endpoint(
    "g" * 64, NETWORK.id, IPv4Address("172.18.0.2"), IPv6Address("2001:db8:1::2"), joined=True, container=WEB
)


class World:
    """Docker, the reconciler and the tracker, as the follower sees them; `calls` lists the calls to the tracker."""

    def __init__(self) -> None:
        self.answer: DockerSnapshot | None = None
        self.place: tuple[BridgeNetwork, Endpoint] | None = (NETWORK, GUEST)
        self.listings = 0
        self.endpoints = {JOINED.id: JOINED}
        self.forgotten: list[str] = []
        #: Endpoints that the disk refuses, and how many times it refuses a full save.
        self.refused: set[str] = set()
        self.facts = Facts(SavedState(egress_restricted=frozenset({"gone0"})))
        #: Everything that was observed.
        self.steps: list[Facts] = []
        self.owed = 0
        self.unsure_ = False
        self.calls: list[tuple[Any, ...]] = []
        self.on_listing: Callable[[], object] = lambda: None
        self.bridge_reads = 0
        self.created_: list[str] = []
        self.sure = True
        self.two_names_ = False
        self._events: queue.Queue[Event | None] = queue.Queue()

    # Docker
    def look(self) -> DockerSnapshot:
        self.listings += 1
        self.on_listing()
        if self.answer is None:
            raise DockerUnavailable("connection refused")
        return self.answer

    def bridges(self) -> tuple[frozenset[str], bool]:
        return frozenset(network.bridge for network in (self.answer or DockerSnapshot()).networks), True

    def guest(self, network_id: str, container_id: str) -> tuple[BridgeNetwork, Endpoint, bool] | None:
        if self.place is None:
            raise DockerUnavailable("connection refused")
        return (*self.place, self.sure)

    def created(self, container_id: str, name: str) -> None:
        self.created_.append(container_id)

    def running(self, container_id: str) -> list[Endpoint]:
        return [GUEST]

    def two_names(self) -> bool:
        return self.two_names_

    def events(self) -> Iterator[Event]:
        while (event := self._events.get(timeout=60)) is not None:
            yield event

    def emit(self, what: str, id: str = "", container: str = "", kind: str = "bridge") -> None:
        self._events.put(Event(what, id, container, kind))

    def hang_up(self) -> None:
        self._events.put(None)

    # the reconciler
    def edit_endpoint(self, endpoint_id: str, edit: Callable[[Endpoint], Endpoint]) -> Endpoint:
        if endpoint_id in self.refused:
            raise FwError("the disk is full")
        self.endpoints[endpoint_id] = edit(self.endpoints[endpoint_id])
        return self.endpoints[endpoint_id]

    @property
    def state(self) -> SavedState:
        return self.facts.saved

    def observe(self, edit: Callable[[Facts], Facts]) -> None:
        self.facts = edit(self.facts)
        self.steps.append(self.facts)

    @property
    def unlabelled(self) -> bool:
        return any(e.joined and e.container is None for e in self.endpoints.values())

    @property
    def all_known(self) -> bool:
        """Return True if all networks are known, and none restricts egress."""
        return not self.state.egress_restricted

    @property
    def unsaved_reason(self) -> str:
        return "the disk is full" * self.owed

    def save_again(self) -> None:
        if self.owed and (left := self.owed - 1):
            self.owed = left
            raise FwError(self.unsaved_reason)
        self.owed = 0

    networks: Mapping[str, Network] = MappingProxyType({})

    def undo(self, gone: Endpoint | Network) -> None:
        self.forgotten.append(gone.id)

    def note(self) -> None:
        self.bridge_reads += 1

    # the tracker
    def now(self) -> int:
        return len(self.calls)

    def unsure(self) -> bool:
        return self.unsure_

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name not in (
            "start_over",
            "returns",
            "leaves",
            "forget",
            "renamed",
            "network_gone",
            "mark_unknown",
            "put",
            "replace",
            "cut_closed",
            "connected",
            "listed",
        ):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.calls.append((name, *args, *kwargs.values())) or True

    def called(self, *call: Any) -> bool:
        return any(each[: len(call)] == call for each in self.calls)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def bridges() -> Bridges:
    return Bridges(set)


@pytest.fixture
def follower(world: World, bridges: Bridges) -> Iterator[DockerFollower]:
    proxies = ProxyPorts(world, Listeners(set), ())  # type: ignore[arg-type]
    made = DockerFollower(  # type: ignore[arg-type]
        world, world, world, bridges, proxies, world.note, world.undo, connected=world.connected, listed=world.listed
    )
    loops = (made.listen, made.look_loop, made.place_loop, made.host_loop)
    threads = [threading.Thread(target=loop) for loop in loops]
    for thread in threads:
        thread.start()
    yield made
    made.stop()
    world.hang_up()
    for thread in threads:
        thread.join(5)


def test_a_subscription_is_followed_by_a_full_listing(world: World, follower: DockerFollower) -> None:
    """Each new subscription discards the earlier reports and lists everything; then flows are cut."""
    world.answer = DockerSnapshot(
        networks=(NETWORK,), endpoints=(GUEST,), not_guarded={"tool": "has the host's network"}
    )

    def names() -> list[str]:
        called = [call[0] for call in world.calls]
        return called[called.index("start_over") :] if "start_over" in called else []

    world.emit("subscribed")
    until(lambda: "cut_closed" in names())
    assert names().index("replace") < names().index("cut_closed")
    until(lambda: "listed" in names(), "it is reported that everything is listed")
    assert world.called("replace", (NETWORK,), (GUEST,))
    assert follower.not_guarded == {"tool": "has the host's network"}


@pytest.mark.parametrize("sign", ["network create", "a full listing"])
def test_flows_from_before_a_bridge_was_protected_are_cut(
    world: World, follower: DockerFollower, bridges: Bridges, sign: str
) -> None:
    """If a bridge that was unmanaged becomes Docker's, flows that its containers do not accept are cut after a listing.

    They were opened between the network's creation and Docker's report of it, when nothing filtered them.
    """
    world.answer = DockerSnapshot()
    world.emit("subscribed")
    until(lambda: world.called("cut_closed"))
    bridges.see([Link(5, NETWORK.bridge, bridge=True)])
    bridges.set_listed(frozenset(), bridges.now() + SETTLE)
    assert bridges.unmanaged() == {NETWORK.bridge}
    before = len(world.calls)
    world.answer = DockerSnapshot(networks=(NETWORK,), endpoints=(GUEST,))
    world.emit(sign, NETWORK.id) if sign == "network create" else follower.wake()
    until(lambda: "cut_closed" in [call[0] for call in world.calls[before:]])
    names = [call[0] for call in world.calls[before:]]
    assert names.index("replace") < names.index("cut_closed")
    assert bridges.dockers() == {NETWORK.bridge}


def test_flows_are_cut_also_after_bridges_could_not_be_written(
    world: World, follower: DockerFollower, bridges: Bridges, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the bridges of a new network could not be written at once, the listing that follows writes them, and flows
    from before that are cut: nothing filtered them."""
    world.answer = DockerSnapshot()
    world.emit("subscribed")
    until(lambda: world.called("cut_closed"))
    bridges.see([Link(5, NETWORK.bridge, bridge=True)])
    bridges.set_listed(frozenset(), bridges.now() + SETTLE)
    before, failed = len(world.calls), threading.Event()
    world.answer = DockerSnapshot(networks=(NETWORK,), endpoints=(GUEST,))

    def fails() -> None:
        if not failed.is_set():
            failed.set()
            raise OSError("No buffer space available")

    monkeypatch.setattr(follower, "_write_bridges", fails)
    world.emit("network create", NETWORK.id)
    assert failed.wait(60)
    until(lambda: "cut_closed" in [call[0] for call in world.calls[before:]])


def test_a_departure_closes_while_docker_hangs(world: World, follower: DockerFollower) -> None:
    """While a listing hangs in Docker's API, a departure event still closes at once."""
    looking, resume = threading.Event(), threading.Event()

    def hang() -> None:
        looking.set()
        assert resume.wait(5)

    world.answer, world.on_listing = DockerSnapshot(), hang
    follower.wake()
    assert looking.wait(5)
    try:
        world.emit("network disconnect", NETWORK.id, WEB.id)
        world.emit("container die", WEB.id)
        world.emit("network destroy", NETWORK.id)
        until(lambda: world.called("network_gone", NETWORK.id))
        assert world.called("leaves", NETWORK.id, WEB.id)
        assert world.called("leaves", "", WEB.id)
    finally:
        world.on_listing = lambda: None
        resume.set()


def test_a_new_name_is_looked_up(world: World, follower: DockerFollower) -> None:
    """When a container is renamed, answers about it from before do not count.

    It is looked up at once, also while a list takes long, and everything is listed.
    """
    looking, resume = threading.Event(), threading.Event()

    def hang() -> None:
        looking.set()
        assert resume.wait(5)

    world.answer, world.on_listing = DockerSnapshot(), hang
    follower.wake()
    assert looking.wait(5)
    try:
        world.emit("container rename", WEB.id)
        until(lambda: world.called("put", None, [GUEST]), "it is looked up")
        assert world.called("renamed", WEB.id)
    finally:
        world.on_listing = lambda: None
        listings = world.listings
        resume.set()
    until(lambda: world.listings > listings, "everything is listed")


def test_a_list_with_two_names_of_a_container_is_not_the_last(world: World, follower: DockerFollower) -> None:
    """While Docker renames a container it lists it by both names, and reports nothing afterwards: docker-fw asks again.

    At once, and then each second: a Docker that always lists two names is not asked without pause.
    """
    world.answer = DockerSnapshot(renaming=True)
    world.emit("subscribed")
    until(lambda: world.called("start_over"), "docker-fw follows Docker")
    listings = world.listings
    began = time.monotonic()
    until(lambda: world.listings >= listings + 3, "it asks again")
    assert time.monotonic() - began > follow.UNSURE
    world.answer = DockerSnapshot()
    follower.wake()
    listings = world.listings
    until(lambda: world.listings > listings, "everything is listed")
    assert follower._renaming == 0


def test_an_answer_with_two_names_of_a_container_is_followed_by_a_list(world: World, follower: DockerFollower) -> None:
    """A look-up amid a rename may report the former name after a list has reported the new one."""
    world.answer, world.endpoints = DockerSnapshot(), {}
    world.emit("subscribed")
    until(lambda: world.called("cut_closed"), "docker-fw follows Docker")
    listings, world.two_names_ = world.listings, True
    world.emit("container start", WEB.id)
    until(lambda: world.listings > listings, "everything is listed")
    names = [call[0] for call in world.calls]
    assert "put" in names[: len(names) - names[::-1].index("replace")]


def test_a_docker_that_fails_amid_a_rename_is_not_asked_without_pause(world: World, follower: DockerFollower) -> None:
    """A list with two names is repeated soon; if that fails, the next one follows after the usual pause."""
    world.answer = DockerSnapshot(renaming=True)
    world.emit("subscribed")
    until(lambda: follower._renaming == 1, "Docker lists two names")
    world.answer = None
    listings, began = world.listings, time.monotonic()
    until(lambda: world.listings >= listings + 3, "it asks again")
    assert time.monotonic() - began > follow.RETRY


@pytest.mark.parametrize(
    "what", ["container die", "container start", "network connect", "network disconnect", "network destroy"]
)
def test_a_departure_without_a_name_marks_every_container_unknown(
    world: World, follower: DockerFollower, what: str
) -> None:
    """An event that does not name its container marks every container unknown until everything has been listed."""
    world.answer = DockerSnapshot()
    until(lambda: world.listings)
    listings = world.listings
    world.emit(what, "n" if what == "network connect" else "", "")
    until(lambda: world.called("mark_unknown") and world.listings > listings)
    assert not world.called("leaves")
    world.emit("container prune")
    world.emit("container die", WEB.id)
    until(lambda: world.called("leaves", "", WEB.id))
    assert len([call for call in world.calls if call[0] == "mark_unknown"]) == 1


def test_an_incomplete_list_removes_no_container(world: World, follower: DockerFollower) -> None:
    """If Docker's list could not be read completely, a missing container keeps its `fwctl deny` overrides and its
    closed ports."""
    world.answer = DockerSnapshot(container_ids=frozenset({"a"}))
    world.facts = Facts(SavedState(proxied={"p": ()}, overrides=(Overriding("d", Rule("tcp", 1, 1), True),)))
    follower.wake()
    until(lambda: world.called("replace", (), (), frozenset({"a"})))
    world.answer = DockerSnapshot(container_ids=frozenset({"a"}), complete=False)
    follower.wake()
    until(lambda: world.called("replace", (), (), frozenset("adp")))


def test_a_connected_container_is_looked_up_alone(world: World, follower: DockerFollower) -> None:
    """An exception needs a look-up of one container, not a full listing; the container's start reports its published
    ports."""
    world.answer = DockerSnapshot()
    world.endpoints = {}
    until(lambda: world.listings == 1)
    world.emit("network connect", NETWORK.id, WEB.id)
    until(lambda: world.called("put", NETWORK, [GUEST], False))
    world.emit("container start", WEB.id)
    until(lambda: world.called("put", None, [GUEST], True))
    assert world.listings == 1
    assert world.called("returns", NETWORK.id, WEB.id)
    assert world.called("connected", NETWORK.bridge, GUEST), "an outsider's packets may wait for it"
    world.emit("container destroy", WEB.id)
    until(lambda: world.called("forget", WEB.id))


def test_a_failed_look_up_is_followed_by_a_full_listing(world: World, follower: DockerFollower) -> None:
    """If Docker did not answer about one container while its events continued, everything is listed."""
    world.answer, world.place = DockerSnapshot(), None
    world.emit("subscribed")
    until(lambda: world.called("cut_closed"))
    listings = world.listings
    world.emit("network connect", NETWORK.id, WEB.id)
    until(lambda: world.listings > listings)


def test_the_follower_reports_whether_it_follows_docker(world: World, follower: DockerFollower) -> None:
    """The follower reports that it follows Docker from the subscription to the end of the stream, and no longer."""
    assert not follower.listening
    world.emit("subscribed")
    until(lambda: follower.listening)
    world.hang_up()
    until(lambda: not follower.listening)


def test_a_new_network_may_own_a_recent_bridge(world: World, bridges: Bridges, follower: DockerFollower) -> None:
    """The bridge is protected before Docker's next list arrives."""
    bridges.see([Link(5, "front1", bridge=True)])
    bridge_reads = world.bridge_reads
    world.emit("network create", NETWORK.id)
    until(lambda: world.bridge_reads > bridge_reads)
    assert bridges.unmanaged() == set()


def test_an_unknown_bridge_is_asked_about_again(
    world: World, bridges: Bridges, follower: DockerFollower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bridge that is not Docker's is exempt a few seconds after it appeared, without any Docker event."""
    clock = [100.0]
    monkeypatch.setattr(bridges, "now", lambda: clock[0])
    monkeypatch.setattr(follow, "SETTLE", 0.05)
    bridges.see([Link(5, "virbr0", bridge=True)])
    world.answer = DockerSnapshot()
    follower.wake()
    until(lambda: world.listings)
    clock[0] += SETTLE
    until(lambda: world.state.unmanaged == {"virbr0"})


def test_networks_are_known_before_their_containers(world: World, follower: DockerFollower) -> None:
    """A rule may name a network, even an empty one. Which containers were egress-restricted before is known again after
    a listing."""
    world.answer = DockerSnapshot(network_names=frozenset({"front", "bridge"}))
    world.emit("subscribed")
    until(lambda: world.all_known)
    first = next(facts for facts in world.steps if facts.names)
    assert (first.names, first.saved.egress_restricted) == ({"front", "bridge"}, {"gone0"})


def test_an_old_answer_confirms_no_container(
    world: World, follower: DockerFollower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list that is too old on arrival is requested again; until then egress restrictions remain."""
    world.answer = DockerSnapshot()
    monkeypatch.setattr(World, "__getattr__", lambda self, name: lambda *_, **__: self.calls.append((name,)))
    listings = world.listings
    world.emit("subscribed")
    until(lambda: world.listings > listings + 1)
    assert not world.all_known


def test_an_attachments_options_are_requested_when_it_is_created(world: World, follower: DockerFollower) -> None:
    """An attachment's options are requested when the endpoint has been created; a container whose options are still
    unknown is not confirmed."""
    world.answer = DockerSnapshot()
    world.emit("container create", WEB.id)
    until(lambda: world.created_ == [WEB.id])
    world.sure = False
    world.emit("network connect", NETWORK.id, WEB.id)
    until(lambda: any(call[0] == "put" and call[1] == NETWORK and call[-1] is False for call in world.calls))


# --- the driver's endpoints ---------------------------------------------------------------------------------------


def test_unknown_labels_are_read_when_docker_answers(world: World, follower: DockerFollower) -> None:
    """A container that joined while Docker's API was silent gets its exceptions as soon as the API answers."""
    follower.wake()
    until(lambda: world.listings)
    assert world.endpoints[JOINED.id].container is None
    world.answer = DockerSnapshot({JOINED.id: WEB})
    follower.wake()
    until(lambda: world.endpoints[JOINED.id].container == WEB)


def test_a_start_triggers_a_listing_while_labels_are_unknown(world: World, follower: DockerFollower) -> None:
    """A container's start triggers a full listing as long as an endpoint's labels are unknown."""
    until(lambda: world.listings)
    world.answer = DockerSnapshot({JOINED.id: WEB})
    world.emit("container start", WEB.id)
    until(lambda: world.endpoints[JOINED.id].container == WEB)


def test_labels_found_wrong_later_keep_the_container_closed(world: World, follower: DockerFollower) -> None:
    """Labels that turn out to be wrong after the start are recorded as wrong: the policy keeps the container closed."""
    world.answer = DockerSnapshot({JOINED.id: WRONG})
    follower.wake()
    until(lambda: world.endpoints[JOINED.id].container == WRONG)


def test_a_report_about_a_departed_endpoint_opens_nothing(world: World) -> None:
    """A Docker report about an endpoint that has left opens nothing."""
    world.endpoints[JOINED.id] = dataclasses.replace(JOINED, joined=False)
    DriverSync(world, world.undo).update_labels({JOINED.id: WEB})  # type: ignore[arg-type]
    assert world.endpoints[JOINED.id].container is None


@pytest.mark.parametrize("joined", [True, False])
def test_an_endpoint_that_docker_no_longer_has_is_removed(
    world: World, monkeypatch: pytest.MonkeyPatch, joined: bool
) -> None:
    """A missing Leave does not leave an address open permanently, and a missing Join does not leave a record behind; a
    container that is just starting is not affected."""
    world.endpoints[JOINED.id] = dataclasses.replace(JOINED, joined=joined)
    found = DriverSync(world, world.undo)  # type: ignore[arg-type]
    found.prune({}, None)
    found.prune({}, None)
    assert world.forgotten == []
    monkeypatch.setattr(driver_sync, "GONE", 0.0)
    found.prune({JOINED.id: WEB}, None)
    assert world.forgotten == []
    found.prune({}, None)
    assert world.forgotten == [JOINED.id]


def test_a_network_that_docker_no_longer_has_is_removed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """dockerd died before it saved a new network, or docker-fw died before it saved a removal: the subnet is free again
    after a minute. A network that has an endpoint stays, and none is removed while Docker's networks are not all known.
    """
    monkeypatch.setattr(driver_sync, "GONE", 30.0)
    moment = [100.0]
    monkeypatch.setattr("plugin.docker.driver_sync.time.monotonic", lambda: moment[0])
    mine, empty, known = (Network(each * 64, f"fw-{each}") for each in ("n", "a", "b"))
    world.networks = {each.id: each for each in (mine, empty, known)}
    found = DriverSync(world, world.undo)  # type: ignore[arg-type]
    for networks, after in ((None, 0), (None, 40), ({known.id}, 0), ({known.id}, 29), ({known.id, empty.id}, 40)):
        moment[0] += after
        found.prune({JOINED.id: WEB}, networks)
    assert world.forgotten == []
    for after in (0, 31):
        moment[0] += after
        found.prune({JOINED.id: WEB}, {known.id})
    assert world.forgotten == [empty.id]


def test_a_refused_removal_is_retried_and_delays_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that the kernel or the disk refuses is retried at the next listing."""
    monkeypatch.setattr(driver_sync, "GONE", 0.0)
    other = dataclasses.replace(JOINED, id="f" * 64)
    world.endpoints[other.id] = other

    def undo(gone: Endpoint | Network) -> None:
        world.undo(gone)
        if gone.id == JOINED.id:
            raise FwError("the disk is full")

    found = DriverSync(world, undo)  # type: ignore[arg-type]
    for _ in range(2):
        found.prune({}, None)
    assert world.forgotten == [JOINED.id, other.id] * 2


def test_a_missing_object_is_removed_through_the_driver() -> None:
    """The driver removes an endpoint, and a network with its bridge."""
    disk, nothing, links = Disk(), MagicMock(), MagicMock()
    state = Reconciler(Kernel(), disk, Defaults())  # type: ignore[arg-type]
    made = Driver(state, links, nothing, nothing, nothing)
    network = Network(JOINED.network_id, "fw-n", IPv4Interface("10.0.0.1/24"))
    endpoint = dataclasses.replace(JOINED, joined=False)
    state.start(Facts(SavedState({network.id: network}, {endpoint.id: endpoint})))
    made.forget(endpoint)
    assert disk.kept.endpoints == {}
    made.forget(network)
    assert disk.kept.networks == {}
    links.delete_bridge.assert_called_once_with(network)


def test_labels_that_the_disk_refuses_delay_no_others(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Labels that cannot be saved open nothing, and are reported once; the labels of all other containers are learned,
    and these ones are retried."""
    other = dataclasses.replace(JOINED, id="f" * 64)
    world.endpoints[other.id] = other
    found, labels = DriverSync(world, world.undo), {JOINED.id: WEB, other.id: WEB}  # type: ignore[arg-type]
    world.refused = {JOINED.id}
    for _ in range(3):
        found.update_labels(labels)
    assert [world.endpoints[each].container for each in labels] == [None, WEB]
    assert caplog.text.count("web (endpoint eeeeeeeeeeee) keeps its old labels: the disk is full") == 1
    world.refused = set()
    found.update_labels(labels)
    assert world.endpoints[JOINED.id].container == WEB


@pytest.mark.parametrize("unsure", [False, True])
def test_a_refused_write_is_retried(
    world: World, follower: DockerFollower, monkeypatch: pytest.MonkeyPatch, unsure: bool
) -> None:
    """No event is needed: the write is retried periodically, whatever other container is waited for."""
    monkeypatch.setattr(follow, "UNSURE", 0.01)
    world.answer = DockerSnapshot()
    world.owed, world.unsure_, follower.listening = 3, unsure, True
    follower.wake()
    until(lambda: world.owed == 0)


def test_an_event_that_never_completes_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence does not count as stuck. An event in progress counts as healthy for the length of one renewal, and not
    after that until it is done."""
    docker, done, started = World(), threading.Event(), threading.Event()
    follower = DockerFollower(docker, docker, docker, Bridges(set), ProxyPorts(docker, Listeners(set), ()), docker.note)  # type: ignore[arg-type]
    monkeypatch.setattr(follow, "EVERY", 0.0)

    def leaves(*_: object) -> None:
        started.set()
        assert done.wait(5)

    monkeypatch.setattr(docker, "leaves", leaves, raising=False)
    thread = threading.Thread(target=follower.listen)
    thread.start()
    try:
        assert follower.keeps_up()
        docker.emit("network disconnect", "n", "c")
        assert started.wait(5)
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


class Slow:
    """The poll of the host's listeners: each waits until it is let go. `polls` counts those that were started."""

    def __init__(self) -> None:
        self.polls = 0
        self.go = threading.Semaphore(0)

    def __call__(self) -> None:
        self.polls += 1
        assert self.go.acquire(timeout=60)


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def behind(world: World, bridges: Bridges, slow: Slow) -> Iterator[DockerFollower]:
    """A follower whose polls of the host's listeners wait."""
    proxies = ProxyPorts(world, Listeners(set), ())  # type: ignore[arg-type]
    made = DockerFollower(world, world, world, bridges, proxies, world.note, sighted=slow)  # type: ignore[arg-type]
    threads = [threading.Thread(target=loop) for loop in (made.listen, made.host_loop)]
    for thread in threads:
        thread.start()
    yield made
    made.stop()
    world.hang_up()
    for _ in range(100):
        slow.go.release()
    for thread in threads:
        thread.join(5)


def test_a_departure_waits_for_no_poll_of_the_host(world: World, behind: DockerFollower, slow: Slow) -> None:
    """While the host's listeners are polled for a new container, one that leaves is closed."""
    world.emit("container create", "new")
    until(lambda: slow.polls == 1)
    for what in ("die", "destroy"):
        world.emit(f"container {what}", "c")
    world.emit("network disconnect", "n", "c")
    until(lambda: world.called("leaves", "n", "c"))
    assert world.called("leaves", "", "c")
    assert world.called("forget", "c")
    assert slow.polls == 1


def test_connections_and_departures_keep_their_order(world: World, behind: DockerFollower, slow: Slow) -> None:
    """No departure overtakes a connection that Docker reported earlier: its answer could then open the former place."""
    world.emit("container create", "new")
    until(lambda: slow.polls == 1)
    for _ in range(20):
        world.emit("network connect", "n", "c")
        world.emit("container start", "c")
        world.emit("network disconnect", "n", "c")
        world.emit("container die", "c")
    until(lambda: len(world.calls) == 80)
    assert [call[0] for call in world.calls] == ["returns", "returns", "leaves", "leaves"] * 20


def test_ports_of_new_and_removed_containers_keep_their_order(
    world: World, behind: DockerFollower, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that is removed while polls wait is not known afterwards; one that is created then is."""
    done: list[tuple[str, str]] = []
    monkeypatch.setattr(ProxyPorts, "created", lambda _, each: done.append(("created", each)))
    monkeypatch.setattr(ProxyPorts, "forget", lambda _, each: done.append(("forget", each)))
    for what, which in [("create", "a"), ("destroy", "a"), ("create", "b"), ("destroy", "c")]:
        world.emit(f"container {what}", which)
    slow.go.release()
    slow.go.release()
    until(lambda: len(done) == 4)
    assert done == [("created", "a"), ("forget", "a"), ("created", "b"), ("forget", "c")]


def test_bridges_of_a_new_network_wait_for_one_poll_at_most(
    world: World, behind: DockerFollower, slow: Slow, bridges: Bridges, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When Docker creates a network, no bridge is left alone from then on, before the other work that waits."""
    written: list[int] = []
    monkeypatch.setattr(behind, "_write_bridges", lambda: written.append(slow.polls))
    marked = threading.Event()
    monkeypatch.setattr(bridges, "mark_unknown", marked.set)
    world.emit("container create", "a")
    until(lambda: slow.polls == 1)
    for each in "bc":
        world.emit("container create", each)
    world.emit("network create", "n")
    assert marked.wait(60)
    slow.go.release()
    until(lambda: bool(written))
    assert written == [1]


def test_too_much_that_waits_closes_docker_networks(
    world: World, behind: DockerFollower, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If more events wait than have room, ports on Docker networks close until all is listed; no event is lost."""
    monkeypatch.setattr(host_work, "MOST", 3)
    for n in range(10):
        world.emit("container create", str(n))
    until(lambda: world.called("mark_unknown"))
    assert slow.polls == 1
    for _ in range(10):
        slow.go.release()
    until(lambda: slow.polls == 10)
    assert world.created_ == [str(n) for n in range(10)]


def test_an_error_in_work_that_waited_ends_no_other(
    world: World, behind: DockerFollower, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an unexpected error everything is listed, and the next events are handled."""
    woken = threading.Event()
    monkeypatch.setattr(behind, "wake", woken.set)
    behind._host._failed = woken.set

    def refused(*_: object) -> None:
        raise RuntimeError("unexpected")

    with monkeypatch.context() as patch:
        patch.setattr(ProxyPorts, "created", refused)
        world.emit("container create", "a")
        assert woken.wait(60)
    world.emit("container create", "b")
    until(lambda: slow.polls == 1)


def test_work_on_the_host_that_never_ends_is_detected(
    world: World, behind: DockerFollower, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a poll is stuck, the lease is not renewed: what it would close could stay open."""
    world.emit("container create", "a")
    until(lambda: slow.polls == 1)
    assert behind.keeps_up()
    monkeypatch.setattr(follow, "EVERY", 0.0)
    assert not behind.keeps_up()
    slow.go.release()
    until(behind.keeps_up)
