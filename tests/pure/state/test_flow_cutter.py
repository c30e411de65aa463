"""Which established flows each change cuts, also after a refusal, an error, or when the table was missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any, NamedTuple

import pytest

from plugin.kernel import conntrack
from plugin.model import (
    Address,
    AddressPolicy,
    BridgeNetwork,
    Container,
    Defaults,
    Endpoint,
    FwError,
    Network,
    Peer,
    PolicySpec,
    Prefix,
    Published,
    Rule,
    TrackedEndpoint,
)
from plugin.policy.facts import Facts
from plugin.policy.view import PolicyView
from plugin.state import closed_flows
from plugin.state.flow_cutter import FlowCutter
from plugin.state.reconciler import Reconciler
from tests.pure.fakes import Disk, Kernel

OURS = Network("1" * 64, "fw-1", IPv4Interface("10.1.0.1/24"))
DOCKERS = BridgeNetwork("2" * 64, "app", "br-2", (IPv4Network("172.18.0.0/16"),))
RESTRICTED, FREE = PolicySpec(egress=()), PolicySpec()


class Cuts(NamedTuple):
    """What was cut: by policies, from unknown addresses (prefixes, known addresses), published ports, addresses."""

    closed: list[Mapping[Address, AddressPolicy]]
    unknown: list[tuple[list[Prefix], Collection[Address]]]
    published: list[list[Published]]
    addresses: list[list[Address]]

    def clear(self) -> None:
        for each in self:
            each.clear()

    def forbids_opening(self, address: Address | None) -> bool:
        """True if all flows that the address opened were cut."""
        return any(policies[address].policy.egress == () for policies in self.closed if address in policies)


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> Cuts:
    made = Cuts([], [], [], [])
    monkeypatch.setattr(closed_flows, "cut_closed", lambda policies, _: made.closed.append(policies))
    monkeypatch.setattr(closed_flows, "cut_unknown", lambda within, known, _: made.unknown.append((within, known)))
    monkeypatch.setattr(conntrack, "cut_published", lambda ports, *_: made.published.append(list(ports)))
    monkeypatch.setattr(conntrack, "cut_addresses", lambda addresses: made.addresses.append(list(addresses)))
    return made


class World(NamedTuple):
    """A reconciler with its kernel, disk and queue of later work."""

    state: Reconciler
    kernel: Kernel
    disk: Disk
    later: list[Callable[[], object]]

    def finish(self) -> None:
        """Do all later work, and try again what was refused."""
        for _ in range(20):
            while self.later:
                self.later.pop(0)()
            self.state._behind._again = 0.0
            self.state.repair()
        assert not self.state.unfinished


@pytest.fixture
def world(cuts: Cuts) -> World:
    kernel, disk, later = Kernel(), Disk(), list[Callable[[], object]]()
    made = Reconciler(kernel, disk, Defaults(), later.append)  # type: ignore[arg-type]
    made.start(Facts())
    made.put_network(OURS)
    made.observe(lambda facts: facts.with_networks({DOCKERS.id: DOCKERS}))
    cuts.clear()
    return World(made, kernel, disk, later)


def member(number: int, spec: PolicySpec | None = FREE, **more: Any) -> Endpoint:
    """Return an endpoint on docker-fw's network; `spec` None: its labels are unknown."""
    container = Container(f"{number}" * 64, f"c{number}", spec) if spec is not None else None
    address = IPv4Address(f"10.1.0.{number}")
    return Endpoint(f"e{number}" * 32, OURS.id, address, joined=True, container=container, **more)


def guest(number: int, spec: PolicySpec, *, sure: bool = True) -> TrackedEndpoint:
    at = IPv4Address(f"172.18.0.{number}")
    endpoint = dataclasses.replace(member(number, spec), network_id=DOCKERS.id, addr4=at)
    return TrackedEndpoint(endpoint, listed=True, sure=sure)


def see(state: Reconciler, *guests: TrackedEndpoint) -> None:
    state.observe(lambda facts: facts.with_guests({each.endpoint.id: each for each in guests}))


def test_a_change_that_opens_again_saves_no_flow_that_an_earlier_one_ends(world: World, cuts: Cuts) -> None:
    """Queued work judges flows by the policy of its own change, whatever changes follow before it is done.

    A port that is closed for a moment ends its flows. A flow that was opened right afterwards may end too, and
    its client opens it again.
    """
    wide = PolicySpec(allow=(Rule("udp", 53, 53),))
    one = member(2, wide)
    world.state.put_endpoint(one)
    world.finish()
    cuts.clear()
    for spec in (FREE, wide):
        world.state.put_endpoint(dataclasses.replace(one, container=member(2, spec).container))
    world.finish()
    assert one.addr4
    judged = [policies[one.addr4].policy.accepts for policies in cuts.closed if one.addr4 in policies]
    assert any(not any(rule.proto == "udp" for rule in accepts) for accepts in judged)


def test_flows_of_unknown_containers_end_when_another_one_restricts_their_bridge(world: World, cuts: Cuts) -> None:
    """Before, any container on the bridge opened flows; afterwards only known ones and as their labels allow. So the
    flows end that unknown addresses opened, and those of a container whose labels are unknown."""
    unknown, free = member(2, None), member(3)
    for each in (unknown, free):
        world.state.put_endpoint(each)
    world.finish()
    cuts.clear()
    world.state.put_endpoint(member(4, RESTRICTED))
    world.finish()
    assert cuts.forbids_opening(unknown.addr4)
    assert not cuts.forbids_opening(free.addr4)
    assert [within for within, _ in cuts.unknown] == [list(OURS.subnets)]


def test_flows_of_unknown_addresses_end_if_the_kernel_takes_the_restriction_later(world: World, cuts: Cuts) -> None:
    """They end when the kernel accepts what it refused at first."""
    world.kernel.refuses = 3
    see(world.state, guest(4, RESTRICTED))
    assert not cuts.unknown
    world.finish()
    assert cuts.unknown
    assert all(within == list(DOCKERS.subnets) for within, _ in cuts.unknown)


def test_flows_of_a_container_in_doubt_end_on_a_restricted_bridge(world: World, cuts: Cuts) -> None:
    """It is unknown who has the address, so nothing may be opened from it, though the labels until now allowed all."""
    free = guest(3, FREE)
    see(world.state, guest(4, RESTRICTED), free)
    world.finish()
    cuts.clear()
    see(world.state, dataclasses.replace(free, sure=False))
    world.finish()
    assert cuts.forbids_opening(free.endpoint.addr4)


@pytest.mark.parametrize("again", ["start", "repair"])
def test_flows_of_unknown_addresses_through_a_missing_table_end(world: World, cuts: Cuts, again: str) -> None:
    """While there were no rules, an unknown address on a bridge with restricted egress opened flows."""
    world.state.put_endpoint(member(4, RESTRICTED))
    world.finish()
    cuts.clear()
    world.kernel.table = None
    if again == "start":
        world.state.start(world.state.facts)
    else:
        world.state.repair()
    assert [within for within, _ in cuts.unknown] == [list(OURS.subnets)]


def test_flows_of_unknown_addresses_on_docker_networks_end_with_the_first_list(world: World, cuts: Cuts) -> None:
    """The state file names the restricted bridge, but which addresses are on it only Docker's list says. The table may
    have been missing until the start."""
    world.state.start(Facts(dataclasses.replace(world.state.state, egress_restricted=frozenset({DOCKERS.bridge}))))
    assert not cuts.unknown
    world.state.observe(lambda facts: facts.with_networks({DOCKERS.id: DOCKERS}))
    world.state.cut_closed()
    world.finish()
    assert [within for within, _ in cuts.unknown] == [list(DOCKERS.subnets)]


def test_an_endpoint_that_has_not_joined_has_no_flows(world: World, cuts: Cuts) -> None:
    """Docker may give its address to the next container before it is deleted: that one's flows continue."""
    free = member(3)
    world.state.put_endpoint(dataclasses.replace(free, id="f" * 64, joined=False, container=None))
    world.state.put_endpoint(free)
    world.state.put_endpoint(member(4, RESTRICTED))
    world.finish()
    assert not cuts.forbids_opening(free.addr4)


def test_flows_of_a_departed_container_end_if_its_link_cannot_be_deleted(world: World, cuts: Cuts) -> None:
    """An error in what a Leave does between closing and cutting leaves the next container no flows."""
    web = member(2)
    world.state.put_endpoint(web)

    def fails() -> None:
        raise OSError("no netlink")

    with pytest.raises(OSError, match="no netlink"):
        world.state.edit_endpoint(web.id, lambda e: dataclasses.replace(e, joined=False, container=None), fails)
    assert cuts.addresses == [[web.addr4]]


@pytest.mark.parametrize(("where", "call"), [(PolicyView, "departing"), (FlowCutter, "departed")])
def test_flows_of_a_departed_container_end_after_an_unexpected_error(
    world: World, cuts: Cuts, monkeypatch: pytest.MonkeyPatch, where: type, call: str
) -> None:
    """Also if the error comes before it is known whose flows are to be cut: the next container would inherit them."""
    gone = member(2)
    world.state.put_endpoint(gone)
    world.finish()
    real = getattr(where, call)

    def fails_once(*_: object) -> None:
        monkeypatch.setattr(where, call, real)
        raise RuntimeError

    monkeypatch.setattr(where, call, fails_once)
    with pytest.raises(RuntimeError):
        world.state.drop_endpoint(gone.id)
    world.finish()
    assert cuts.addresses == [[gone.addr4]]


def test_flows_that_a_refused_change_owed_end_with_the_next_refusal(world: World, cuts: Cuts) -> None:
    """The kernel refuses a narrower policy of a container, and then an edit of the same container: the table that is
    written after that has the narrower policy, so flows are cut with it."""
    wide, narrow = member(2, PolicySpec(allow=(Rule("tcp", 8080, 8080),))), member(2)
    world.state.put_endpoint(wide)
    world.finish()
    cuts.clear()
    world.kernel.refuses = 3
    world.state.observe(lambda facts: facts.keeping(lambda state: state.with_endpoint(narrow)))
    world.kernel.refuses = 3
    port = Published("tcp", IPv4Address(0), 8443, 443)
    with pytest.raises(FwError):
        world.state.edit_endpoint(wide.id, lambda e: dataclasses.replace(e, published=(port,)))
    assert world.kernel.refuses == 0
    world.finish()
    assert world.kernel.opens(wide.addr4) == {22, 80, 443}
    assert any(wide.addr4 in policies for policies in cuts.closed)


def test_what_was_closed_for_a_refused_rename_is_open_again(world: World) -> None:
    """A container's rule names the container itself. It is closed to its old name before the disk refuses the new one;
    afterwards it is open to the old name as before."""
    spec = PolicySpec(allow=(Rule("tcp", 5432, 5432, (Peer("container", "c2"),)),))
    world.state.put_endpoint(web := member(2, spec))
    before = set(world.kernel.table or ())
    more = Container("2" * 64, "other", dataclasses.replace(spec, allow=(*spec.allow, Rule("tcp", 1, 1))))
    world.disk.full = True
    with pytest.raises(FwError):
        world.state.edit_endpoint(web.id, lambda e: dataclasses.replace(e, container=more))
    world.finish()
    assert world.kernel.table == before


def test_flows_to_the_first_suspected_port_end(world: World, cuts: Cuts) -> None:
    """Its listener was there before docker-fw saw it, on a kernel that cannot hold up new listeners."""
    port = Published("tcp", IPv4Address(0), 8080, 80)
    world.state.observe(lambda facts: dataclasses.replace(facts, suspects=frozenset({port})))
    world.finish()
    assert cuts.published == [[port]]
