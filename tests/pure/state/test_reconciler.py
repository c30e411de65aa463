"""For any failures of disk and kernel, the table equals the facts, and closing never waits."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Interface, ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from plugin.model import (
    Container,
    Defaults,
    Endpoint,
    FwError,
    Network,
    Overriding,
    Peer,
    PolicySpec,
    Problem,
    Published,
    Rate,
    RequestedPorts,
    Rule,
)
from plugin.nftables.client import NftError
from plugin.nftables.sets import Change, Element
from plugin.policy.facts import BridgeFacts, Facts
from plugin.policy.overrides import with_one, without
from plugin.policy.saved import SavedState
from plugin.state import closed_flows
from plugin.state.reconciler import Reconciler
from plugin.state.store import Store
from tests.inputs import inputs
from tests.pure.expected import desired
from tests.pure.fakes import Disk, Kernel

EVERYWHERE = Defaults(PolicySpec(allow=(Rule("udp", 161, 161),)))
MORE, DNS, SSH = Rule("tcp", 8080, 8080), Rule("udp", 53, 53), Rule("tcp", 22, 22)


@pytest.fixture(autouse=True)
def cut(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record each cut of flows to closed ports, by the policies given. The real kernel's flows are not touched here."""
    calls: list[Any] = []
    monkeypatch.setattr(closed_flows, "cut_closed", lambda policies, _: calls.append(policies))
    return calls


def reconciler() -> tuple[Reconciler, Kernel, Disk]:
    kernel, disk = Kernel(), Disk()
    made = Reconciler(kernel, disk, EVERYWHERE)  # type: ignore[arg-type]
    made.start(Facts(SavedState()))
    return made, kernel, disk


def network(number: int, *, internal: bool = False) -> Network:
    return Network(f"{number}" * 64, f"fw-{number}", IPv4Interface(f"10.{number}.0.1/24"), internal=internal)


def endpoint(number: int, on: int, address: int) -> Endpoint:
    return Endpoint(f"e{number}" * 32, f"{on}" * 64, IPv4Address(f"10.{on}.0.{address}"))


_SPECS = [
    PolicySpec(),
    PolicySpec(allow=(MORE,)),
    PolicySpec(allow=(MORE, DNS)),
    PolicySpec(allow=(Rule("tcp", 5432, 5432, (Peer("service", "api"), Peer("prefix", "10.9.0.0/16"))),)),
    PolicySpec(allow=(Rule("tcp", 22, 22, (Peer("network", "front"),)),), deny=(Rule("tcp", 80, 80),), policy="closed"),
    PolicySpec(egress=(Rule("tcp", 443, 443, (Peer("container", "web"), Peer("host"))),)),
    PolicySpec(egress=()),
    PolicySpec(rate=(Rate("tcp", 22, 22, 5, "minute", 10),), log="drop", policy="open"),
]
_containers = st.builds(
    Container,
    st.sampled_from(["c" * 64, "d" * 64]),
    st.sampled_from(["web", "db"]),
    st.sampled_from(_SPECS),
    st.sampled_from([(), (), (Problem("label fw.allow", "x", "wrong"),)]),
    network=st.sampled_from(["", "shop_front"]),
    project=st.sampled_from(["", "shop"]),
    service=st.sampled_from(["api", "db"]),
)
_published = st.sampled_from([(), (Published("tcp", IPv4Address("0.0.0.0"), 8081, 80),)])


class AnyOrder(RuleBasedStateMachine):
    """Calls in any order, with a disk that fills up and a kernel that refuses changes."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.kernel, self.disk = reconciler()

    def attempt(self, call: Callable[[], object]) -> None:
        """Make the call: it succeeds, or it is refused with an FwError and leaves the facts unchanged."""
        before = self.state.state
        try:
            call()
        except FwError:
            assert self.state.state == before

    @rule(n=st.integers(1, 3), internal=st.booleans(), spec=st.sampled_from(_SPECS[-3:]) | st.just(PolicySpec()))
    def put_network(self, n: int, internal: bool, spec: PolicySpec) -> None:
        self.attempt(lambda: self.state.put_network(dataclasses.replace(network(n, internal=internal), spec=spec)))

    @rule(container=st.sampled_from(["c" * 64, "d" * 64]), spec=st.sampled_from([SSH, MORE, DNS]), deny=st.booleans())
    def override(self, container: str, spec: Rule, deny: bool) -> None:
        word = Overriding(container, spec, deny)
        self.attempt(lambda: self.state.edit_state(lambda s: with_one(s, word)))

    @rule(container=st.sampled_from(["c" * 64, "d" * 64]))
    def revert(self, container: str) -> None:
        self.attempt(lambda: self.state.edit_state(lambda s: without(s, {container})))

    @rule(prefix=st.sampled_from(["203.0.113.7", "203.0.113.0/24", "2001:db8::/48"]), gone=st.booleans())
    def ban(self, prefix: str, gone: bool) -> None:
        banned = ip_network(prefix)

        def edit(state: SavedState) -> SavedState:
            left = {k: until for k, until in state.bans.items() if k != banned}
            return dataclasses.replace(state, bans=left if gone else {**left, banned: 0})

        self.attempt(lambda: self.state.edit_state(edit))

    @rule(names=st.sampled_from([frozenset[str](), frozenset({"shop_front"}), frozenset({"front"})]))
    def know_networks(self, names: frozenset[str]) -> None:
        self.state.observe(lambda facts: dataclasses.replace(facts, names=names))
        self.try_again()

    def try_again(self) -> None:
        """Observed facts remain: a change that the kernel refused is applied at the next try."""
        if self.state.unfinished:
            self.kernel.refuses = 0
            self.state.observe(lambda facts: dataclasses.replace(facts, listed=not facts.listed))

    @rule(n=st.integers(1, 3))
    def drop_network(self, n: int) -> None:
        self.attempt(lambda: self.state.drop_network(network(n).id))

    @rule(n=st.integers(1, 4), on=st.integers(1, 3), address=st.integers(2, 3))
    def put_endpoint(self, n: int, on: int, address: int) -> None:
        self.attempt(lambda: self.state.put_endpoint(endpoint(n, on, address)))

    @rule(
        n=st.integers(1, 4), container=st.none() | _containers, published=_published, spec=st.sampled_from(_SPECS[:2])
    )
    def join(self, n: int, container: Container | None, published: tuple[Published, ...], spec: PolicySpec) -> None:
        joined = dict[str, Any](joined=True, container=container, published=published, spec=spec)
        self.attempt(lambda: self.state.edit_endpoint(endpoint(n, 1, 2).id, lambda e: dataclasses.replace(e, **joined)))

    @rule(n=st.integers(1, 4))
    def leave(self, n: int) -> None:
        left = dict[str, Any](joined=False, container=None, published=())
        self.attempt(lambda: self.state.edit_endpoint(endpoint(n, 1, 2).id, lambda e: dataclasses.replace(e, **left)))

    @rule(n=st.integers(1, 4))
    def drop_endpoint(self, n: int) -> None:
        self.attempt(lambda: self.state.drop_endpoint(endpoint(n, 1, 2).id))

    @rule(families=st.sets(st.sampled_from([2, 10])))
    def note_switched(self, families: set[int]) -> None:
        self.attempt(lambda: self.state.note_switched(families))

    @rule(names=st.frozensets(st.sampled_from(["br0", "br1"])))
    def see_bridges(self, names: frozenset[str]) -> None:
        self.state.observe(lambda facts: dataclasses.replace(facts, bridges=BridgeFacts(dockers=names)))
        self.try_again()

    @rule(full=st.booleans())
    def fill_disk(self, full: bool) -> None:
        self.disk.full = full

    @rule(times=st.integers(0, 3))
    def refuse(self, times: int) -> None:
        self.kernel.refuses = times

    @rule()
    def flush_ruleset(self) -> None:
        self.kernel.table = None

    @precondition(lambda self: not self.kernel.refuses)
    @rule()
    def repair(self) -> None:
        gone, refused = self.kernel.table is None, self.kernel.incomplete
        # A change that the kernel has refused is retried, but not at once.
        assert self.state.repair() in ({gone, True} if refused else {gone})
        assert self.kernel.table == desired(self.state)

    @invariant()
    def the_table_equals_the_facts(self) -> None:
        if self.kernel.table is not None:
            assert self.kernel.table == desired(self.state)

    @invariant()
    def the_next_start_finds_it(self) -> None:
        if not self.disk.full and not self.kernel.refuses:
            self.state.put_network(network(9))
            self.state.drop_network(network(9).id)
            kept = self.disk.kept
            assert dict(kept.networks) == dict(self.state.networks)
            assert dict(kept.endpoints) == dict(self.state.endpoints)
            assert (kept.overrides, dict(kept.bans)) == (self.state.state.overrides, dict(self.state.state.bans))
            assert kept.egress_restricted == {e.key[0] for e in desired(self.state) if e.set == "egress_restricted"}


AnyOrder.TestCase.settings = inputs(80, steps=25)


class TestAnyOrder(AnyOrder.TestCase):  # type: ignore[name-defined,misc]
    """For any order and any failures, the kernel's table equals the facts, and a refused change leaves no trace."""


# --- closing ------------------------------------------------------------------------------------------------------


@pytest.fixture
def web() -> tuple[Reconciler, Kernel, Disk]:
    """Make one network, with a container that answers on 22, 80, 443 and 8080, and has a published port."""
    state, kernel, disk = reconciler()
    state.put_network(network(1))
    state.put_endpoint(
        dataclasses.replace(
            endpoint(1, 1, 2),
            joined=True,
            container=Container("c", "web", PolicySpec(allow=(MORE,))),
            published=(Published("tcp", IPv4Address("0.0.0.0"), 8081, 80),),
        )
    )
    assert len(opened(kernel)) == 8
    return state, kernel, disk


def opened(kernel: Kernel) -> set[Element]:
    return {e for e in kernel.table or () if e.set.startswith(("allow", "from", "publish", "hairpin"))}


_CLOSINGS: dict[str, Callable[[Reconciler], object]] = {
    "Leave": lambda s: s.edit_endpoint(
        endpoint(1, 1, 2).id, lambda e: dataclasses.replace(e, joined=False, container=None, published=())
    ),
    "DeleteEndpoint": lambda s: s.drop_endpoint(endpoint(1, 1, 2).id),
    "DeleteNetwork": lambda s: s.drop_network(network(1).id),
    "a label that turned out wrong": lambda s: s.edit_endpoint(
        endpoint(1, 1, 2).id,
        lambda e: dataclasses.replace(e, published=(), container=Container("c", "w", problems=(Problem("", "", ""),))),
    ),
}


@pytest.mark.parametrize("close", _CLOSINGS.values(), ids=_CLOSINGS)
def test_a_full_disk_keeps_nothing_open(
    web: tuple[Reconciler, Kernel, Disk], close: Callable[[Reconciler], object]
) -> None:
    """A change that closes an address is applied even when the disk is full: the address's next owner inherits no open
    port."""
    state, kernel, disk = web
    disk.full = True
    close(state)
    assert opened(kernel) == set()
    kernel.table = None
    assert state.repair()
    assert opened(kernel) == set()
    assert "No space left" in state.unsaved_reason
    with pytest.raises(FwError):
        state.save_again()
    disk.full = False
    state.save_again()
    assert state.unsaved_reason == ""
    assert not [e for e in disk.kept.endpoints.values() if e.joined and e.container and not e.container.problems]


def test_flows_opened_through_a_flushed_table_are_cut(web: tuple[Reconciler, Kernel, Disk], cut: list[Any]) -> None:
    """Flows to closed ports that were opened after another program flushed the ruleset do not survive as established,
    whether the periodic check repairs the table, a hook that comes first, or a start."""
    state, kernel, _ = web
    cut.clear()  # the cut at the start
    assert not state.repair()
    assert cut == []
    kernel.table = None
    assert state.repair()
    (policies,) = cut
    assert policies.keys() == {IPv4Address("10.1.0.2")}
    assert SSH in policies[IPv4Address("10.1.0.2")].policy.accepts
    kernel.table = None
    state.put_network(network(2))
    assert len(cut) == 2
    state.start(Facts(SavedState(state.networks, state.endpoints)))
    assert len(cut) == 3


@pytest.mark.parametrize("restricted", [False, True], ids=["first on its bridge", "beside a restricted one"])
def test_what_a_container_opened_before_its_labels_were_known_is_cut(
    web: tuple[Reconciler, Kernel, Disk], cut: list[Any], restricted: bool
) -> None:
    """A container may initiate flows while its labels are unknown, if no other one restricts egress on its bridge. Its
    flows are cut when its labels become known and restrict its egress, also if another container's did so meanwhile.
    """
    state, _, _ = web
    spec, late = PolicySpec(egress=()), endpoint(2, 1, 3)
    state.put_endpoint(dataclasses.replace(late, joined=True))
    if restricted:
        other = dataclasses.replace(endpoint(3, 1, 4), joined=True, container=Container("o", "other", spec))
        state.put_endpoint(other)
    cut.clear()
    state.edit_endpoint(late.id, lambda e: dataclasses.replace(e, container=Container("d", "db", spec)))
    assert [guarded.keys() for guarded in cut] == [{late.addr4}]


def test_a_full_disk_opens_nothing(web: tuple[Reconciler, Kernel, Disk]) -> None:
    """A change that opens must be on the disk first: a Join on a full disk is refused, and none of it is applied."""
    state, kernel, disk = web
    state.put_endpoint(endpoint(2, 1, 3))
    before = set(kernel.table or ())
    disk.full = True
    with pytest.raises(FwError, match="No space left"):
        state.edit_endpoint(
            endpoint(2, 1, 3).id, lambda e: dataclasses.replace(e, joined=True, container=Container("d", "db"))
        )
    assert kernel.table == before
    assert not state.endpoints[endpoint(2, 1, 3).id].joined


@pytest.mark.parametrize("refused", ["", "disk", "kernel"])
def test_no_reader_sees_a_change_that_may_be_refused(web: tuple[Reconciler, Kernel, Disk], refused: str) -> None:
    """A reader without the lock gets the former facts until disk and kernel have the change."""
    state, kernel, disk = web
    before, seen = state.facts, list[bool]()
    save, change = disk.save, kernel.change

    def read() -> None:
        seen.append((state.facts, state.state, state.networks) == (before, before.saved, before.saved.networks))

    def save_and_read(kept: SavedState, *, alone: tuple[str, str] | None = None) -> None:
        read()
        disk.full = refused == "disk"
        save(kept)

    def change_and_read(*arguments: Any) -> None:
        read()
        kernel.refuses = 2 * (refused == "kernel")  # the change, and the whole table after it
        change(*arguments)

    disk.save, kernel.change = save_and_read, change_and_read  # type: ignore[method-assign]
    try:
        state.put_network(network(2))
    except FwError:
        assert refused
        assert state.facts == before
    else:
        assert not refused
        assert network(2).id in state.networks
    assert seen
    assert all(seen)


def test_a_slow_disk_delays_no_other_change(web: tuple[Reconciler, Kernel, Disk]) -> None:
    """While a new network waits for the disk, which may take seconds, a container that leaves is closed at once."""
    state, kernel, disk = web
    state.put_endpoint(endpoint(2, 1, 3))
    state.edit_endpoint(endpoint(2, 1, 3).id, lambda e: dataclasses.replace(e, joined=True))
    began, proceed = threading.Event(), threading.Event()

    def slow() -> None:
        began.set()
        assert proceed.wait(20)

    disk.flushing = slow

    def is_known() -> bool:
        return any("10.1.0.3" in map(str, element.key) for element in kernel.table or ())

    assert is_known()
    with ThreadPoolExecutor(2) as pool:
        created = pool.submit(lambda: (state.put_network(network(2)), state.wait_saved()))
        assert began.wait(20)
        pool.submit(state.drop_endpoint, endpoint(2, 1, 3).id).result(20)
        assert not is_known()
        assert not created.done()
        proceed.set()
        created.result(20)
    assert network(2).id in state.networks


def test_a_disk_that_cannot_be_flushed_is_reported_and_tried_again(
    web: tuple[Reconciler, Kernel, Disk],
) -> None:
    """A change that the disk has written and cannot flush is in effect; who waits for the disk gets the error."""
    state, _, disk = web

    def fails() -> None:
        disk.unsaved_reason = "could not flush the state file"
        raise FwError(disk.unsaved_reason)

    disk.flushing = fails
    state.put_network(network(2))
    assert network(2).id in state.networks
    assert state.unflushed.is_set()
    for call in (state.wait_saved, state.flush):
        with pytest.raises(FwError, match="could not flush the state file"):
            call()
    assert not state.unflushed.is_set()
    state.save_again()
    assert state.unflushed.is_set()
    assert not state.unsaved_reason


def test_no_list_of_docker_waits_for_the_disk(web: tuple[Reconciler, Kernel, Disk]) -> None:
    """What the disk refused is saved again by the thread that lists Docker's containers; another one flushes it."""
    state, _, disk = web
    disk.flushing = lambda: pytest.fail("it waits for the disk")
    disk.unsaved_reason = "could not flush the state file"
    state.save_again()
    assert state.unflushed.is_set()


def test_a_change_after_a_full_disk_is_flushed(web: tuple[Reconciler, Kernel, Disk]) -> None:
    """A change that the disk had no room for is saved with the next one, and must survive a power cut."""
    state, _, disk = web
    disk.full = True
    state.edit_state(lambda saved: dataclasses.replace(saved, bans={ip_network("198.51.100.7/32"): 0.0}))
    with pytest.raises(FwError, match="No space left"):
        state.wait_saved()
    disk.full = False
    state.unflushed.clear()
    state.put_endpoint(endpoint(2, 1, 3))
    assert state.unflushed.is_set()


def test_a_refusing_kernel_and_a_full_disk_change_nothing(web: tuple[Reconciler, Kernel, Disk]) -> None:
    """Even if the rollback fails too, the facts and the kernel's table agree."""
    state, kernel, disk = web
    state.put_endpoint(endpoint(2, 1, 3))
    before = set(kernel.table or ())
    kernel.refuses = 2
    save = disk.save

    def full_after_the_first(kept: SavedState, *, alone: tuple[str, str] | None = None) -> None:
        save(kept)
        disk.full = True

    disk.save = full_after_the_first  # type: ignore[method-assign]
    with pytest.raises(FwError):
        state.edit_endpoint(
            endpoint(2, 1, 3).id, lambda e: dataclasses.replace(e, joined=True, container=Container("d", "db"))
        )
    assert kernel.table == before
    assert not state.endpoints[endpoint(2, 1, 3).id].joined


def test_a_start_saves_an_egress_restriction_that_was_lost() -> None:
    """A network's egress restriction is saved for the next boot, when no container is known yet: also if docker-fw died
    after it saved the container, and before it saved the network."""
    state, _, disk = reconciler()
    egress_restricted = dataclasses.replace(
        endpoint(1, 1, 2), joined=True, container=Container("c", "web", PolicySpec(egress=()))
    )
    state.start(Facts(SavedState({network(1).id: network(1)}, {egress_restricted.id: egress_restricted})))
    assert state.state.egress_restricted == disk.kept.egress_restricted == {network(1).bridge}


def test_a_table_that_may_be_wrong_is_written_again_until_that_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected error comes after the kernel has taken what a Join opens, and the next one when the whole table is
    written. The Join is refused, and what it opened is not forgotten when the deferred work is done."""
    kernel, later = Kernel(), list[Callable[[], object]]()
    state = Reconciler(kernel, Disk(), EVERYWHERE, later.append)  # type: ignore[arg-type]
    state.start(Facts(SavedState()))
    state.put_network(network(1))
    state.put_endpoint(endpoint(1, 1, 2))
    change = kernel.change

    def fails(*args: Any) -> None:
        raise RuntimeError

    def fails_afterwards(*args: Any) -> None:
        monkeypatch.setattr(kernel, "change", change)
        change(*args)
        raise RuntimeError

    with monkeypatch.context() as broken:
        broken.setattr(kernel, "replace", fails)
        monkeypatch.setattr(kernel, "change", fails_afterwards)
        with pytest.raises(RuntimeError):
            state.edit_endpoint(
                endpoint(1, 1, 2).id, lambda e: dataclasses.replace(e, joined=True, container=Container("c", "web"))
            )
    assert opened(kernel)
    state.put_network(network(2))  # which has all deferred work done
    for _ in range(10):  # as the loops do it
        while later:
            later.pop(0)()
        if state.incomplete or state.unfinished:
            state._behind._again = 0.0
            state.repair()
    assert not opened(kernel)
    assert not state.unfinished


# --- one address, two endpoints; many calls at once ---------------------------------------------------------------


def test_two_endpoints_with_one_address_do_not_close_each_other(web: tuple[Reconciler, Kernel, Disk]) -> None:
    """Docker may reuse an address before the old endpoint is deleted: the new one keeps its ports."""
    state, kernel, _ = web
    again = dataclasses.replace(endpoint(2, 1, 2), joined=True, container=Container("d", "next"))
    state.put_endpoint(again)
    state.drop_endpoint(endpoint(1, 1, 2).id)
    assert {e.key[2] for e in opened(kernel)} == {22, 80, 443, 161}


def test_concurrent_calls_lose_nothing() -> None:
    """Compose creates its networks and starts its containers concurrently: each of them is known afterwards."""
    state, kernel, _ = reconciler()
    barrier = threading.Barrier(8)

    def work(worker: int) -> None:
        barrier.wait(60)
        for round_ in range(20):
            number = 100 + worker * 20 + round_
            net = dataclasses.replace(network(1), id=f"{number:064}", bridge=f"fw-{number}")
            state.put_network(net)
            end = dataclasses.replace(endpoint(1, 1, 2), id=f"{number:064x}", network_id=net.id, joined=True)
            state.put_endpoint(end)
            state.edit_endpoint(end.id, lambda e: dataclasses.replace(e, container=Container("c", "web")))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(state.networks) == len(state.endpoints) == 160
    assert kernel.table == desired(state)


def test_a_stop_leaves_a_whole_state_file(tmp_path: Path) -> None:
    """A former version that runs next, after a downgrade, reads the ports of every container from the file itself."""
    path = tmp_path / "state.json"
    made = Reconciler(Kernel(), Store(str(path)), EVERYWHERE)  # type: ignore[arg-type]
    made.start(Facts(SavedState(boot="b")), SavedState())
    asked = {"c" * 64: (RequestedPorts("tcp", IPv4Address(0), 8080, 8080),)}
    made.observe(lambda facts: facts.keeping(lambda state: dataclasses.replace(state, asked=asked)))
    assert not json.loads(path.read_text())["asked"]
    made.suspend()
    assert json.loads(path.read_text())["asked"].keys() == asked.keys()
    (tmp_path / "state.json.log").unlink()
    assert Store(str(path)).load() == made.state


def test_a_full_disk_ends_no_stop(web: tuple[Reconciler, Kernel, Disk]) -> None:
    """If the whole file cannot be written at the stop, the log has the rest, and the stop goes on."""
    made, _, disk = web
    disk.full = True
    made.suspend()
    assert made.facts.suspended


def test_elements_that_the_kernel_refuses_do_not_delay_closing() -> None:
    """One container's elements that the kernel refuses (here: a rate that is not accepted) do not delay closing by the
    same change: the ports of a container that leaves."""
    state, kernel, _ = reconciler()
    state.put_network(network(1))
    any4 = IPv4Address(0)
    state.observe(lambda facts: dataclasses.replace(facts, listening=frozenset({Published("tcp", any4, 8080, 8080)})))
    assert Element("host_own", (2, 6, 8080)) in (kernel.table or ())
    change, replace = kernel.change, kernel.replace

    def takes(elements: Iterable[Element]) -> None:
        if any(element.set == "rate_limit4" for element in elements):
            raise NftError("Value too large")

    def change_(what: Change, timed: Mapping[Element, int] = MappingProxyType({})) -> None:
        takes(what.add)
        change(what, timed)

    def replace_(elements: Iterable[Element], *args: Any, **kwargs: Any) -> None:
        elements = list(elements)
        takes(elements)
        replace(elements, *args, **kwargs)

    kernel.change, kernel.replace = change_, replace_  # type: ignore[method-assign]
    limited = Container("c" * 64, "web", PolicySpec(rate=(Rate("tcp", 22, 22, 5, "minute", 10),)))
    bad = dataclasses.replace(endpoint(1, 1, 2), joined=True, container=limited)
    state.observe(
        lambda facts: dataclasses.replace(
            facts.keeping(lambda known: known.with_endpoint(bad)),
            listening=frozenset(),
            suspects=frozenset({Published("tcp", any4, 5432, 5432)}),
        )
    )
    assert kernel.table is not None
    assert not [element for element in kernel.table if element.set in ("host_own", "rate_limit4")]
    assert Element("host_closed", (2, 6, 5432)) in kernel.table
