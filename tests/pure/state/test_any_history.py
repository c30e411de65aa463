"""Any history of edits, events, lists, refusals, full disks and restarts ends in the state that a compile from scratch
gives, and is at no moment wider than before or after."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, ip_network
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from plugin.docker.tracked import Guests
from plugin.docker.tracker import EndpointTracker
from plugin.kernel import conntrack, link_monitor
from plugin.labels.parser import parse
from plugin.model import (
    BridgeNetwork,
    Container,
    Defaults,
    Endpoint,
    Flow,
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
from plugin.policy.facts import BridgeFacts, Facts, ProxyFacts
from plugin.policy.located import Located
from plugin.policy.overrides import with_one, without
from plugin.policy.peers import PeerIndex
from plugin.policy.saved import SavedState
from plugin.policy.view import PolicyView
from plugin.state.flow_cutter import FlowCutter
from plugin.state.reconciler import Reconciler
from tests.inputs import inputs
from tests.pure.fakes import Disk, Kernel
from tests.pure.tracer import CHAINS, Packet, Table

SPEC = parse({"fw.allow": "161/udp"}, "setting ").spec
NETS = {n: Network(f"{n}" * 64, f"fw-{n}", IPv4Interface(f"10.{n}.0.1/24"), internal=n == 3) for n in (1, 2, 3)}
DOCKERS = {
    n: BridgeNetwork(f"{n}" * 64, f"app{n}", f"br-{n}", (IPv4Network(f"172.{n}.0.0/16"),), internal=n == 18)
    for n in (16, 17, 18)
}
LABELS = (
    {}, {"fw.allow": "8080"}, {"fw.allow": "5432 from service:api 203.0.113.0/24"}, {"fw.egress": "443, 22 to host"},
    {"fw.egress": "none", "fw.deny": "22"}, {"fw.policy": "closed"}, {"fw.policy": "open", "fw.deny": "80"},
    {"fw.rate": "22 5/minute burst 10"}, {"fw.allow": "808O"}, {"fw.allow": "22 from container:c1 network:front"},
)  # fmt: skip
OUTSIDERS = (IPv4Address("203.0.113.7"), IPv4Address("192.0.2.1"))
HOST = IPv4Address("198.51.100.1")
GATEWAYS = {
    **{network.bridge: network.gateway4.ip for network in NETS.values() if network.gateway4},
    **{network.bridge: IPv4Address(int(network.subnets[0].network_address) + 1) for network in DOCKERS.values()},
}
#: The host's own addresses, packed.
LOCAL = {HOST.packed, *(address.packed for address in GATEWAYS.values())}
PORTS = (22, 80, 5432, 8080)
TCP = 6
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


def flow(source: IPv4Address, address: IPv4Address, port: int, at: tuple[IPv4Address, int] | None = None) -> Flow:
    """Return a TCP connection as conntrack reports it; `at`: the published port to which it was opened."""
    addressed, addressed_port = at or (address, port)
    return Flow(source.packed, 40000, addressed.packed, addressed_port, address.packed, port, source.packed, proto=TCP)


def described(flow: Flow) -> str:
    ends = [IPv4Address(end) for end in (flow.source, flow.addressed, flow.responder)]
    return f"{ends[0]} to {ends[1]}:{flow.addressed_port}, answered by {ends[2]}:{flow.responder_port}"


class Flows:
    """The kernel's established flows over TCP, which `conntrack.cut` searches and deletes."""

    def __init__(self) -> None:
        self.there: set[Flow] = set()

    def cut(
        self,
        version: int,
        chosen: Callable[[Flow], bool],
        marks: Collection[bytes] = (),
        before: Callable[[Collection[Flow]], None] | None = None,
    ) -> conntrack.Cut:
        found = [each for each in self.there if version != 6 and chosen(each)]
        if before and found:
            before(found)
        self.there.difference_update(found)
        return conntrack.Cut(len(found))


class Rules:
    """Which flows this table lets anyone open."""

    def __init__(self, elements: Collection[Element]) -> None:
        self._table = Table(elements)
        self._there = {(element.set, element.key) for element in elements}

    def permit(self, flow: Flow) -> bool:
        """True if the flow's first packet would pass now."""
        source, target = IPv4Address(flow.source), IPv4Address(flow.responder)
        here, there = _bridge(source), _bridge(target)
        packet = Packet(source, target, TCP, flow.responder_port)
        if target.packed in LOCAL:
            return self._enters_host(packet) if here is None else self._leaves(here, packet, to_host=True)
        if here == there:
            return True
        if any(("internal", (bridge,)) in self._there for bridge in (here, there)):
            return False
        dnat = (flow.addressed, flow.addressed_port) != (flow.responder, flow.responder_port)
        return (here is None or self._leaves(here, packet)) and (there is None or self._enters(packet, dnat=dnat))

    def _enters(self, packet: Packet, *, dnat: bool) -> bool:
        """True if the container accepts the packet."""
        if dnat and ("allow_published4", (packet.target, TCP, packet.port)) in self._there:
            return True
        return self._table.verdict("inbound4", packet) == "permit"

    def _leaves(self, bridge: str, packet: Packet, *, to_host: bool = False) -> bool:
        """True if the source on this bridge may send the packet."""
        if ("egress_restricted", (bridge,)) not in self._there:
            return True
        if ("egress_all4", (bridge, packet.source)) in self._there:
            return True
        hosts = [line for line in CHAINS["egress_allow_host"] if line.startswith("ip saddr")]
        if to_host and self._table.found(hosts, packet):
            return True
        return self._table.verdict("egress_allow4", packet) == "accept"

    def _enters_host(self, packet: Packet) -> bool:
        """True if the host port, on which docker-proxy listens, accepts the packet from outside."""
        key = (2, TCP, packet.port)
        if ("host_closed", key) in self._there:
            return self._table.verdict("host_from4", packet) == "accept_host"
        return ("host_open", key) in self._there


def _bridge(address: IPv4Address) -> str | None:
    """Return the bridge that the address is behind; None for an address outside."""
    for network in (*NETS.values(), *DOCKERS.values()):
        if any(address in subnet for subnet in network.subnets):
            return network.bridge
    return None


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
        self.patch.setattr(conntrack, "cut", self.flows.cut)
        self.patch.setattr(link_monitor, "addresses", lambda: LOCAL)
        self.setting = Defaults(SPEC)
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
        self.state = Reconciler(self.kernel, self.disk, self.setting, self.later.append)  # type: ignore[arg-type]
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
        fresh = compiled(self.setting, self.state.facts)
        assert fresh.view.facts == self.state.facts or self.state._unsettled
        return fresh.all_elements() | ban_elements(self.state.state.bans, 0)[0]

    @initialize(says=st.lists(labels, min_size=4, max_size=4), published=st.booleans())
    def some_are_there(self, says: list[dict[str, str]], published: bool) -> None:
        """`published`: FW_PUBLISHED=allow."""
        self.setting = Defaults(SPEC, published)
        self.begin(SavedState())
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
        self.flows.there = {flow for flow in self.flows.there if not self.concerns_docker(flow)}

    def concerns_docker(self, flow: Flow) -> bool:
        ends = [IPv4Address(end) for end in (flow.source, flow.responder)]
        proxied = flow.responder == HOST.packed and _bridge(ends[0]) is None
        return proxied or any(end in IPv4Network("172.0.0.0/8") for end in ends)

    @rule()
    def talk(self) -> None:
        """All flows that are permitted are opened."""
        rules = Rules(self.kernel.table or ())
        self.flows.there.update(filter(rules.permit, self.tried()))

    def tried(self) -> Iterator[Flow]:
        """Yield the flows that are tried: to containers, from them, and from addresses that no container has."""
        facts = self.state.facts
        known = [e for e in self.state.endpoints.values() if e.joined]
        known += [guest.endpoint for guest in facts.guests.values()]
        addresses = [e.addr4 for e in known if e.addr4]
        for address in addresses:
            for source in (*OUTSIDERS, *addresses):
                yield from (flow(source, address, port) for port in PORTS)
        for e in known:
            for source in OUTSIDERS:
                for port in e.published if e.addr4 else ():
                    assert e.addr4
                    yield flow(source, e.addr4, port.container_port, (HOST, port.host_port))
                    if e.network_id not in facts.saved.networks:  # docker-proxy may serve it
                        yield flow(source, HOST, port.host_port)
        for network in (*facts.saved.networks.values(), *facts.networks.values()):
            gateway, subnet = GATEWAYS[network.bridge], network.subnets[0]
            for source in (gateway + 8, *(each for each in addresses if each in subnet)):
                for target in (*OUTSIDERS, HOST, gateway):
                    yield from (flow(source, target, port) for port in (22, 443))

    # --- invariants -----------------------------------------------------------------------------------------------

    @invariant()
    def what_is_known_is_on_the_disk(self) -> None:
        """The disk has the facts as soon as it accepts a write."""
        if not self.state.unsaved_reason:
            assert self.disk.kept == self.state.state

    @invariant()
    def the_index_is_as_if_made_from_all(self) -> None:
        """The index of endpoints has those that exist, where they are, whatever was refused or failed."""
        facts = self.state._view.facts
        one, other = self.state._view._located, Located(facts)
        assert (one._on, one._unlabelled) == (other._on, other._unlabelled)
        assert {k: set(v) for k, v in one._at.items()} == {k: set(v) for k, v in other._at.items()}
        mirrored, made = self.tracker._mirror(facts), Guests(facts.guests.values())
        assert (mirrored._guests, mirrored._of, mirrored._on) == (made._guests, made._of, made._on)

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
        rules = Rules(self.kernel.table or ())
        closed = [described(each) for each in self.flows.there if not rules.permit(each)]
        assert not closed, closed


AnyHistory.TestCase.settings = inputs(100, steps=25)


class TestAnyHistory(AnyHistory.TestCase):
    """For any calls in any order, table and disk reach the known facts, and no step on the way is wider."""
