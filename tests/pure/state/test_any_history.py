"""Any history of edits, events, lists, refusals, full disks and restarts ends in the state that a compile from scratch
gives, and is at no moment wider than before or after."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, ip_network
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from plugin.docker.tracker import EndpointTracker
from plugin.kernel import conntrack
from plugin.labels.parser import parse
from plugin.model import (
    AddressPolicy,
    BridgeNetwork,
    Container,
    Defaults,
    Endpoint,
    FwError,
    Network,
    Overriding,
    Published,
    Rule,
)
from plugin.nftables.applied import AppliedElements
from plugin.nftables.ban_elements import ban_elements
from plugin.nftables.compile import ElementCompiler, compiled
from plugin.nftables.rate_quota import Quota
from plugin.nftables.sets import Change, Element, spec_of
from plugin.policy.decide import passes
from plugin.policy.facts import BridgeFacts, Facts, ProxyFacts
from plugin.policy.overrides import with_one, without
from plugin.policy.peers import PeerIndex
from plugin.policy.saved import SavedState
from plugin.policy.view import PolicyView
from plugin.state import closed_flows
from plugin.state.flow_cutter import FlowCutter
from plugin.state.reconciler import Reconciler
from tests.pure.fakes import Disk, Kernel
from tests.pure.tracer import Packet, Table

SETTING = Defaults(parse({"fw.allow": "161/udp"}, "setting ").spec)
NETS = {n: Network(f"{n}" * 64, f"fw-{n}", IPv4Interface(f"10.{n}.0.1/24"), internal=n == 3) for n in (1, 2, 3)}
DOCKERS = {
    n: BridgeNetwork(f"{n}" * 64, f"app{n}", f"br-{n}", (IPv4Network(f"172.{n}.0.0/16"),), internal=n == 18)
    for n in (16, 17, 18)
}
LABELS = (
    {}, {"fw.allow": "8080"}, {"fw.allow": "5432 from service:api 203.0.113.0/24"}, {"fw.egress": "443"},
    {"fw.egress": "none", "fw.deny": "22"}, {"fw.policy": "closed"}, {"fw.policy": "open", "fw.deny": "80"},
    {"fw.rate": "22 5/minute burst 10"}, {"fw.allow": "808O"}, {"fw.allow": "22 from container:c1 network:front"},
)  # fmt: skip
OUTSIDERS = (IPv4Address("203.0.113.7"), IPv4Address("192.0.2.1"))
PORTS = (22, 80, 5432, 8080)
Edit = Callable[[SavedState], SavedState]
labels, who, hosts = st.sampled_from(LABELS), st.integers(1, 4), st.integers(2, 4)


def container(number: int, labels: Mapping[str, str], network: str = "") -> Container:
    parsed = parse(labels)
    service = "api" if number % 2 else "db"
    return Container(
        f"{number}" * 64, f"c{number}", parsed.spec, parsed.problems, network=network, project="shop", service=service
    )


def opens(elements: Iterable[Element]) -> set[Element]:
    return {element for element in elements if spec_of(element.set).effect == "opens"}


def closes(elements: Iterable[Element]) -> set[Element]:
    return {element for element in elements if spec_of(element.set).effect == "closes"}


class Watched(Kernel):
    """A table that calls `seen` after each transaction."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Callable[[], None] = lambda: None

    def change(self, change: Change, timed: Mapping[Element, int] = MappingProxyType({})) -> None:
        super().change(change, timed)
        self.seen()

    def replace(self, elements: Iterable[Element], timed: Mapping[Element, int] = MappingProxyType({})) -> None:
        super().replace(elements, timed)
        self.seen()


class Flows:
    """Established flows over TCP. The calls that cut flows remove them here.

    `there`: those of outsiders, as (source, address, port). `out`: those to outsiders, as (bridge, address, target,
    port).
    """

    def __init__(self) -> None:
        self.there: set[tuple[IPv4Address, IPv4Address, int]] = set()
        self.out: set[tuple[str, IPv4Address, IPv4Address, int]] = set()

    def cut_closed(self, policies: Mapping[Any, AddressPolicy], *_: object) -> None:
        def may_continue(flow: tuple[IPv4Address, IPv4Address, int]) -> bool:
            source, address, port = flow
            if address not in policies:
                return True
            policy = policies[address].policy
            return passes((*policy.accepts, *policy.published), "tcp", port, source)

        def may_go_on(flow: tuple[str, IPv4Address, IPv4Address, int]) -> bool:
            _, address, target, port = flow
            if address not in policies:
                return True
            known = policies[address]
            egress = known.policy.egress
            return not known.internal and (egress is None or passes(egress, "tcp", port, target))

        self.there = set(filter(may_continue, self.there))
        self.out = set(filter(may_go_on, self.out))

    def cut_unknown(self, prefixes: Iterable[Any], known: Collection[Any], *_: object) -> None:
        self.out = {f for f in self.out if f[1] in known or not any(f[1] in prefix for prefix in prefixes)}

    def cut_addresses(self, addresses: Iterable[Any]) -> None:
        gone = set(addresses)
        self.there = {flow for flow in self.there if flow[1] not in gone}
        self.out = {flow for flow in self.out if flow[1] not in gone}


class Bug(Exception):
    """An error that the product does not expect."""


#: Calls within a change that may fail unexpectedly, before or after they have done their work.
STEPS = (
    (PolicyView, "changed"),
    (PolicyView, "settled"),
    (PolicyView, "who"),
    (PolicyView, "decide"),
    (PeerIndex, "put"),
    (Quota, "change"),
    (ElementCompiler, "elements"),
    (AppliedElements, "departing"),
    (AppliedElements, "change"),
    (AppliedElements, "write"),
    (FlowCutter, "departed"),
    (FlowCutter, "closed"),
    (FlowCutter, "later"),
    (Watched, "change"),
    (Watched, "replace"),
    (Disk, "save"),
)


class AnyHistory(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.flows = pytest.MonkeyPatch(), Flows()
        #: After this many more calls of `STEPS` and returns from them, one fails; 0: none does.
        self.bug = 0
        for where, name in STEPS:
            self.patch.setattr(where, name, self.failing(getattr(where, name)))
        self.patch.setattr(closed_flows, "cut_closed", self.flows.cut_closed)
        self.patch.setattr(conntrack, "cut_addresses", self.flows.cut_addresses)
        self.patch.setattr(conntrack, "cut_published", lambda *_: None)
        self.patch.setattr(conntrack, "cut_prefixes", lambda *_: conntrack.Cut())
        self.patch.setattr(closed_flows, "cut_unknown", self.flows.cut_unknown)
        self.kernel, self.disk, self.later = Watched(), Disk(), list[Callable[[], object]]()
        #: Endpoints on Docker networks, as Docker lists them: by network and host number.
        self.there: dict[tuple[int, int], Endpoint] = {}
        self.serial = 0
        self.begin(SavedState())

    def teardown(self) -> None:
        self.patch.undo()

    def failing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def tick() -> None:
            if self.bug:
                self.bug -= 1
                if not self.bug:
                    raise Bug

        def failing(*args: Any, **kwargs: Any) -> Any:
            tick()
            found = call(*args, **kwargs)
            tick()
            return found

        return failing

    def begin(self, state: SavedState) -> None:
        self.state = Reconciler(self.kernel, self.disk, SETTING, self.later.append)  # type: ignore[arg-type]
        self.state.start(Facts(state, proxies=ProxyFacts(frozenset({7}))))
        self.tracker = EndpointTracker(self.state)

    def step(self, call: Callable[[], object]) -> None:
        """Make one call; at no moment during it is anything wider than before or after."""
        before, tables = set(self.kernel.table or ()), list[set[Element]]()
        self.kernel.seen = lambda: tables.append(set(self.kernel.table or ()))
        known = self.state.facts
        try:
            call()
        except FwError:
            assert dataclasses.replace(self.state.facts, saved=known.saved) == known
            assert self.state.facts.saved == known.saved
        except Bug:
            tables = [set(self.kernel.table or ())]  # the failed change may have been in the table for a moment
        self.bug = 0
        after = self.desired()
        for table in tables:
            assert opens(table) <= opens(before) | opens(after)
            assert closes(table) >= closes(before) & closes(after)

    def desired(self) -> set[Element]:
        """Return the elements computed from the facts alone."""
        fresh = compiled(SETTING, self.state.facts)
        assert fresh.view.facts == self.state.facts or self.state._unsettled
        return fresh.all_elements() | ban_elements(self.state.state.bans, 0)[0]

    @initialize(says=st.lists(labels, min_size=4, max_size=4))
    def some_are_there(self, says: list[dict[str, str]]) -> None:
        for n in NETS:
            self.put_network(n, {})
        self.list_all(None)
        for n, each in enumerate(says[:2], 1):
            self.start_container(n, n, n + 1, each, published=True)
        for n, each in enumerate(says[2:], 1):
            self.connect(15 + n, n + 1, n, each, sure=True)
        self.connect(17, 4, 1, says[2], sure=True)  # the first container's second endpoint
        for n in (1, 2):  # containers whose labels are unknown
            self.create_endpoint(n + 2, n, 4)
            self.join(n + 2, None, published=False)
        self.talk()

    @rule(n=who, on=st.sampled_from(list(NETS)), host=hosts, says=labels, published=st.booleans())
    def start_container(self, n: int, on: int, host: int, says: dict[str, str], published: bool) -> None:
        """Start a container with the usual calls."""
        self.create_endpoint(n, on, host)
        self.join(n, says, published)

    # --- hooks and fwctl ------------------------------------------------------------------------------------------

    @rule(n=st.sampled_from(list(NETS)), says=st.sampled_from([{}, {"fw.egress": "none"}, {"fw.allow": "8080"}]))
    def put_network(self, n: int, says: dict[str, str]) -> None:
        network = dataclasses.replace(NETS[n], spec=parse(says).spec)
        self.step(lambda: self.state.put_network(network))

    @rule(n=st.sampled_from(list(NETS)))
    def drop_network(self, n: int) -> None:
        self.step(lambda: self.state.drop_network(NETS[n].id))

    @rule(n=who, on=st.sampled_from(list(NETS)), host=hosts)
    def create_endpoint(self, n: int, on: int, host: int) -> None:
        made = Endpoint(f"e{n}" * 32, NETS[on].id, IPv4Address(f"10.{on}.0.{host}"))
        self.step(lambda: self.state.add_endpoint(made.id, lambda _: made))

    @rule(n=who, says=st.none() | labels, published=st.booleans())
    def join(self, n: int, says: dict[str, str] | None, published: bool) -> None:
        ports = (Published("tcp", IPv4Address(0), 18000 + n, 8080),) if published else ()
        known = container(n, says) if says is not None else None
        joined = dict[str, Any](joined=True, container=known, published=ports)
        self.step(lambda: self.state.edit_endpoint(f"e{n}" * 32, lambda e: dataclasses.replace(e, **joined)))

    @rule(n=who)
    def leave(self, n: int) -> None:
        left = dict[str, Any](joined=False, container=None, published=())
        self.step(lambda: self.state.edit_endpoint(f"e{n}" * 32, lambda e: dataclasses.replace(e, **left)))

    @rule(n=who)
    def delete_endpoint(self, n: int) -> None:
        self.step(lambda: self.state.drop_endpoint(f"e{n}" * 32))

    @rule(n=who, port=st.sampled_from(PORTS), deny=st.booleans(), until=st.sampled_from([0.0, 1e12]))
    def override(self, n: int, port: int, deny: bool, until: float) -> None:
        word = Overriding(f"{n}" * 64, Rule("tcp", port, port), deny, until)
        self.step(lambda: self.state.edit_state(lambda state: with_one(state, word)))

    @rule(n=who)
    def revert(self, n: int) -> None:
        self.step(lambda: self.state.edit_state(lambda state: without(state, {f"{n}" * 64})))

    @rule(prefix=st.sampled_from(["203.0.113.7", "2001:db8::/48"]), gone=st.booleans())
    def ban(self, prefix: str, gone: bool) -> None:
        def edit(state: SavedState) -> SavedState:
            left = {k: until for k, until in state.bans.items() if str(k) != str(ip_network(prefix))}
            return dataclasses.replace(state, bans=left if gone else {**left, ip_network(prefix): 0})

        self.step(lambda: self.state.edit_state(edit))

    @rule(suspended=st.booleans())
    def suspend(self, suspended: bool) -> None:
        self.step(lambda: self.state.observe(lambda facts: dataclasses.replace(facts, suspended=suspended)))

    # --- Docker ---------------------------------------------------------------------------------------------------

    @rule(on=st.sampled_from(list(DOCKERS)), host=hosts, n=who, says=labels, sure=st.booleans())
    def connect(self, on: int, host: int, n: int, says: dict[str, str], sure: bool) -> None:
        if (on, host) in self.there:
            return
        self.serial += 1
        network = DOCKERS[on]
        ports = (Published("tcp", IPv4Address(0), 28000 + n, 8080), Published("tcp", IPv4Address(0), 29000 + n, 80))
        at = IPv4Address(int(network.subnets[0].network_address) + host)
        known = container(n + 4, says, network.name)
        made = Endpoint(
            f"{self.serial:x}".rjust(64, "d"), network.id, at, joined=True, container=known, published=ports
        )
        self.there[on, host] = made
        self.tracker.returns(network.id, known.id)
        self.step(lambda: self.tracker.put(network, [made], listed=False, asked=self.tracker.now(), sure=sure))

    @rule(on=st.sampled_from(list(DOCKERS)), host=hosts)
    def disconnect(self, on: int, host: int) -> None:
        if gone := self.there.pop((on, host), None):
            assert gone.container
            identity = gone.container.id
            self.step(lambda: self.tracker.leaves(DOCKERS[on].id, identity))

    @rule(says=st.none() | labels)
    def list_all(self, says: dict[str, str] | None) -> None:
        """Docker lists everything; one container's labels may have changed."""
        if says is not None and self.there:
            place, first = next(iter(self.there.items()))
            assert first.container
            spec = dataclasses.replace(first.container, spec=parse(says).spec, problems=parse(says).problems)
            self.there[place] = dataclasses.replace(first, container=spec)
        there, asked = list(self.there.values()), self.tracker.now()
        existing = {e.container.id for e in there if e.container}
        self.step(lambda: self.tracker.replace(DOCKERS.values(), there, existing, asked=asked))

    @rule(on=st.none() | st.sampled_from(list(DOCKERS)))
    def doubt(self, on: int | None) -> None:
        self.step(lambda: self.tracker.mark_unknown(DOCKERS[on].bridge if on else None))

    @rule(names=st.sampled_from([frozenset({"shop_front"}), frozenset({"front"}), frozenset({"app16"})]))
    def know_networks(self, names: frozenset[str]) -> None:
        self.step(lambda: self.state.observe(lambda facts: dataclasses.replace(facts, names=names)))

    @rule(names=st.frozensets(st.sampled_from(["br-16", "br-17"])))
    def see_bridges(self, names: frozenset[str]) -> None:
        seen = BridgeFacts(dockers=names, guarded=names, there=names)
        there = {*(network.bridge for network in NETS.values()), *names}

        def edit(facts: Facts) -> Facts:
            facts = facts if facts.bridges == seen else dataclasses.replace(facts, bridges=seen)
            return facts.keeping(lambda state: state.with_bridges(there))

        self.step(lambda: self.state.observe(edit))

    # --- trouble --------------------------------------------------------------------------------------------------

    @rule(seldom=st.integers(0, 3))
    def fill_disk(self, seldom: int) -> None:
        self.disk.full = not seldom

    @rule(times=st.sampled_from([0, 0, 1, 2, 3]))
    def refuse(self, times: int) -> None:
        self.kernel.refuses = times

    @rule(at=st.integers(1, 60))
    def break_down(self, at: int) -> None:
        """The next change fails unexpectedly in the middle, if it makes so many calls."""
        self.bug = at

    @rule()
    def do_deferred_work(self) -> None:
        """Do one piece of the deferred work."""
        if self.later:
            self.step(self.later.pop(0))

    @precondition(lambda self: not self.state.unsaved_reason)
    @rule()
    def restart(self) -> None:
        """docker-fw is killed; the next process has its state file and the kernel's table."""
        self.kernel.refuses, self.bug, self.later[:] = 0, 0, []
        self.step(lambda: self.begin(self.disk.kept))
        # Docker's networks are not yet listed; flows opened meanwhile are checked with the first list.
        self.flows.there = {flow for flow in self.flows.there if flow[1] not in IPv4Network("172.0.0.0/8")}
        self.flows.out = {flow for flow in self.flows.out if flow[1] not in IPv4Network("172.0.0.0/8")}

    @rule()
    def talk(self) -> None:
        """Outsiders and containers open all flows that are permitted, also containers whose labels are unknown."""
        known = [e for e in self.state.endpoints.values() if e.joined]
        known += [guest.endpoint for guest in self.state.facts.guests.values()]
        tried = {(source, e.addr4, port) for e in known if e.addr4 for source in OUTSIDERS for port in PORTS}
        self.flows.there |= {flow for flow in tried if self.permitted(*flow)}
        bridges = {network.id: network.bridge for network in (*NETS.values(), *DOCKERS.values())}
        senders = [(bridges[e.network_id], e.addr4) for e in known if e.addr4]
        out = {(*sender, target, port) for sender in senders for target in OUTSIDERS for port in PORTS}
        self.flows.out |= {flow for flow in out if self.may_open(*flow)}

    def permitted(self, source: IPv4Address, address: IPv4Address, port: int) -> bool:
        return Table(self.kernel.table or ()).verdict("inbound4", Packet(source, address, 6, port)) == "permit"

    def may_open(self, bridge: str, address: IPv4Address, target: IPv4Address, port: int) -> bool:
        table = self.kernel.table or set()
        if Element("internal", (bridge,)) in table:
            return False
        free = (
            Element("egress_restricted", (bridge,)) not in table or Element("egress_all4", (bridge, address)) in table
        )
        return free or Table(table).verdict("egress_allow4", Packet(address, target, 6, port)) == "mark"

    # --- invariants -----------------------------------------------------------------------------------------------

    @invariant()
    def what_is_known_is_on_the_disk(self) -> None:
        """The disk has the facts as soon as it accepts a write."""
        if not self.state.unsaved_reason:
            assert self.disk.kept == self.state.state

    @invariant()
    def in_the_end_it_is_as_if_compiled_from_scratch(self) -> None:
        """After any refusals, once the deferred work is done, the table is complete, and every remaining flow could be
        opened again."""
        if self.kernel.refuses or self.bug:
            return
        for _ in range(1000):
            if self.later:
                self.step(self.later.pop(0))
            elif self.state.unfinished:
                self.state._behind._again = 0.0
                self.step(self.state.repair)
            else:
                break
        assert not self.state._unsettled
        assert self.kernel.table == self.desired()
        assert {flow for flow in self.flows.there if not self.permitted(*flow)} == set()
        assert {flow for flow in self.flows.out if not self.may_open(*flow)} == set()


AnyHistory.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None, derandomize=True)


class TestAnyHistory(AnyHistory.TestCase):
    """For any calls in any order, table and disk reach the known facts, and no step on the way is wider."""
