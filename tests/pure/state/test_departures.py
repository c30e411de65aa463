"""A container that leaves is closed before anything is computed, and stays closed whatever happens next."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface
from types import MappingProxyType
from typing import Any

import pytest

from plugin.docker.tracker import EndpointTracker
from plugin.model import (
    BridgeNetwork,
    Container,
    Defaults,
    Endpoint,
    FwError,
    Network,
    Peer,
    Published,
    Rule,
)
from plugin.nftables.client import NftError
from plugin.nftables.compile import ElementCompiler
from plugin.nftables.sets import Change, Element
from plugin.policy import decide, peers
from plugin.policy.facts import ElementOwner, Facts, Kind
from plugin.policy.saved import SavedState
from plugin.state import applier, deferred
from plugin.state.reconciler import Reconciler
from tests.pure.expected import desired
from tests.pure.fakes import Disk, Kernel, cut_no_flows
from tests.specs import spec_of as spec

pytestmark = pytest.mark.usefixtures("no_flows")

OURS = Network("a" * 64, "fw-a", IPv4Interface("10.1.0.1/16"), IPv6Interface("2001:db8:1::1/64"))
DOCKERS = BridgeNetwork("d" * 64, "dock", "br-dddddddddddd", (IPv4Network("172.18.0.0/16"),))
MEMBERS = 100
ANY = IPv4Address("0.0.0.0")


class Recorder(Kernel):
    """A kernel that records the order of its changes and of policy computations."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Change | str] = []

    def change(self, change: Change, timed: Mapping[Element, int] = MappingProxyType({})) -> None:
        super().change(change, timed)
        if change or timed:
            self.steps.append(change)

    def first(self) -> Change:
        step = self.steps[0]
        assert isinstance(step, Change), f"computed before the kernel was told: {self.steps[:3]}"
        return step


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    for where, name in ((decide, "of"), (peers.PeerIndex, "resolved"), (ElementCompiler, "elements")):
        monkeypatch.setattr(where, name, _recorded(made, name, getattr(where, name)))
    return made


def _recorded(kernel: Recorder, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def recorded(*args: Any, **kwargs: Any) -> Any:
        kernel.steps.append(name)
        return real(*args, **kwargs)

    return recorded


def member(number: int, network: Network | BridgeNetwork = OURS, *published: Published, **words: str) -> Endpoint:
    """Return a container of the project `shop`; all members accept each other."""
    words = words or {"allow": "5432 from project:shop, 8080", "egress": "all"}
    container = Container(f"{number:064x}", f"m{number}", spec(**words), project="shop", service=f"s{number}")
    first = IPv4Address("10.1.1.0" if network is OURS else "172.18.1.0") + number
    six = IPv6Address(f"2001:db8:1::{number + 256:x}") if network is OURS else None
    return Endpoint(f"{number:064x}", network.id, first, six, joined=True, container=container, published=published)


def made(kernel: Recorder, members: Iterable[Endpoint], later: list[Callable[[], None]]) -> Reconciler:
    disk = Disk()
    reconciler = Reconciler(kernel, disk, Defaults(), later.append)  # type: ignore[arg-type]
    reconciler.start(Facts(SavedState({OURS.id: OURS}, {each.id: each for each in members})))
    return reconciler


def open_for(elements: Iterable[Element], endpoint: Endpoint) -> set[Element]:
    """Return the elements that let packets pass to, from or through the endpoint's addresses."""
    names = ("allow", "from", "host_from", "egress_to", "egress_allow", "egress_all", "publish", "hairpin", "host_open")
    addresses = {endpoint.addr4, endpoint.addr6}
    return {e for e in elements if e.set.startswith(names) and addresses & {*e.key, *e.data}}


def done(later: list[Callable[[], None]]) -> None:
    while later:
        later.pop(0)()


# --- the order ----------------------------------------------------------------------------------------------------

LEAVE: dict[str, Callable[[Reconciler, Endpoint], object]] = {
    "Leave": lambda s, e: s.edit_endpoint(
        e.id, lambda e: dataclasses.replace(e, joined=False, container=None, published=())
    ),
    "DeleteEndpoint": lambda s, e: s.drop_endpoint(e.id),
}


@pytest.mark.parametrize("leave", LEAVE.values(), ids=LEAVE)
def test_a_departing_container_is_closed_before_anything_is_computed(
    kernel: Recorder, leave: Callable[[Reconciler, Endpoint], object]
) -> None:
    """One of a hundred members of a project leaves. The first step is one transaction, after which neither its own
    ports nor others' ports are open to its addresses. The others' rules are computed after that, and not in the hook.
    """
    later: list[Callable[[], None]] = []
    members = [member(n, OURS, Published("tcp", ANY, 9000 + n, 8080)) for n in range(MEMBERS)]
    state, gone = made(kernel, members, later), members[7]
    opened = open_for(kernel.table or (), gone)
    assert len(opened) > 2 * MEMBERS
    kernel.steps.clear()
    leave(state, gone)
    assert set(kernel.first().remove) >= opened
    assert open_for(kernel.table or (), gone) == set()
    assert kernel.steps.count("elements") < 5
    done(later)
    assert kernel.table == desired(state)


def with_docker_network(
    kernel: Recorder, later: list[Callable[[], None]]
) -> tuple[Reconciler, EndpointTracker, list[Endpoint]]:
    members = [member(n, DOCKERS, Published("tcp", ANY, 9000 + n, 8080)) for n in range(MEMBERS)]
    state = made(kernel, (), later)
    tracker = EndpointTracker(state)
    tracker.replace([DOCKERS], members, asked=tracker.now())
    done(later)
    kernel.steps.clear()
    return state, tracker, members


def test_a_departure_from_a_docker_network_closes_before_anything_is_computed(kernel: Recorder) -> None:
    """Docker's event of a container's end closes all its addresses first, and a published port that was open to all
    sources."""
    later: list[Callable[[], None]] = []
    state, tracker, members = with_docker_network(kernel, later)
    tracker.leaves("", members[7].container.id)  # type: ignore[union-attr]
    assert Element("host_open", (2, 6, 9007)) in kernel.first().remove
    assert Element("host_closed", (2, 6, 9007)) in kernel.first().add
    assert open_for(kernel.first().remove, members[7]) >= {Element("allow4", (members[7].addr4, 6, 8080))}  # type: ignore[arg-type]
    assert open_for(kernel.table or (), members[7]) == set()
    done(later)
    assert kernel.table == desired(state)


def test_an_unknown_bridge_is_closed_before_anything_is_computed(kernel: Recorder) -> None:
    """The containers on the bridge are unknown now: all of it is closed at once, docker-proxy's ports by an element."""
    later: list[Callable[[], None]] = []
    state, tracker, members = with_docker_network(kernel, later)
    tracker.mark_unknown(DOCKERS.bridge)
    assert all(open_for(kernel.first().remove, each) for each in members)
    assert {Element("host_closed", (2, 6, 9000 + n)) for n in range(MEMBERS)} <= set(kernel.first().add)
    assert not any(open_for(kernel.table or (), each) for each in members)
    done(later)
    assert kernel.table == desired(state)


def test_a_renamed_container_is_no_longer_accepted_by_its_old_name(kernel: Recorder) -> None:
    """Before the rules that match its new name are computed, containers whose rules name its old name stop accepting
    it."""
    later: list[Callable[[], None]] = []
    asker = member(1, OURS, allow="22 from container:m2 10.1.1.3")
    state = made(kernel, (asker, member(2), member(3)), later)
    kernel.steps.clear()
    state.edit_endpoint(member(2).id, lambda e: dataclasses.replace(e, container=Container("x", "other")))
    went = {(e.set, e.key[-1]) for e in kernel.first().remove}
    assert went == {("from4", member(2).addr4), ("from6", member(2).addr6)}
    assert Element("from4", (asker.addr4, 6, 22, 32, member(3).addr4)) in (kernel.table or ())  # type: ignore[arg-type]


def test_a_removed_address_is_removed_from_the_containers_other_links(kernel: Recorder) -> None:
    """A container may send from all of its addresses through each of its links. After an address is removed this ends
    before anything is computed; the bindings of the address's own port remain as long as the port."""
    later: list[Callable[[], None]] = []
    one, two = (dataclasses.replace(member(n), mac=f"02:00:00:00:00:0{n}") for n in (1, 2))
    two = dataclasses.replace(two, container=one.container)
    state = made(kernel, (one, two), later)
    bound = {e for e in kernel.table or () if e.set.startswith("bound") and two.addr4 in e.key}
    assert len(bound) == 2
    kernel.steps.clear()
    state.edit_endpoint(two.id, lambda e: dataclasses.replace(e, joined=False, container=None))
    assert {e.key[1] for e in set(kernel.first().remove) & bound} == {one.mac}
    assert {e.key[1] for e in set(kernel.table or ()) & bound} == {two.mac}


def test_an_address_accepted_by_another_rule_is_accepted_again(kernel: Recorder) -> None:
    """An address that is also accepted by another name, or by a rule with its address, is accepted again once the rest
    is computed."""
    later: list[Callable[[], None]] = []
    asker = member(1, OURS, allow="5432 from project:shop 10.1.1.2, 22 from container:m2")
    state = made(kernel, (asker, member(2)), later)
    state.drop_endpoint(member(2).id)
    done(later)
    assert Element("from4", (asker.addr4, 6, 5432, 32, member(2).addr4)) in (kernel.table or ())  # type: ignore[arg-type]
    assert kernel.table == desired(state)


# --- failures afterwards ------------------------------------------------------------------------------------------


@pytest.fixture
def three(kernel: Recorder) -> tuple[Reconciler, list[Endpoint], list[Callable[[], None]]]:
    later: list[Callable[[], None]] = []
    members = [member(n) for n in range(3)]
    return made(kernel, members, later), members, later


@pytest.mark.parametrize("leave", LEAVE.values(), ids=LEAVE)
@pytest.mark.parametrize("trouble", ["full disk", "no policy", "refusing kernel"])
def test_a_departed_container_stays_closed(
    kernel: Recorder,
    three: tuple[Reconciler, list[Endpoint], list[Callable[[], None]]],
    trouble: str,
    leave: Callable[[Reconciler, Endpoint], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a full disk, a policy that cannot be computed, or a kernel that refuses the rest: no rollback reopens what
    has been closed, and the facts agree with the kernel."""
    state, members, later = three
    if trouble == "full disk":
        monkeypatch.setattr(Disk, "save", _fails(FwError("no space")))
    elif trouble == "no policy":
        real = ElementCompiler.elements

        def fails(self: ElementCompiler, owner: ElementOwner) -> frozenset[Element]:
            if owner.id != members[0].id:
                return real(self, owner)
            raise ArithmeticError("a mistake of ours")

        monkeypatch.setattr(ElementCompiler, "elements", fails)
    else:
        change = kernel.change

        def refuses_what_follows(what: Change, timed: Mapping[Element, int] = MappingProxyType({})) -> None:
            if any(e.set.startswith("ingress_drops") for e in what.remove):  # not a closing element
                raise NftError("refused")
            change(what, timed)

        kernel.change = refuses_what_follows  # type: ignore[method-assign]
    try:
        leave(state, members[0])
    except (FwError, ArithmeticError):
        assert trouble == "no policy"
    assert open_for(kernel.table or (), members[0]) == set()
    monkeypatch.undo()
    cut_no_flows(monkeypatch)
    assert state.endpoints.get(members[0].id) is None or not state.endpoints[members[0].id].joined
    state.put_endpoint(member(9))
    done(later)
    assert open_for(kernel.table or (), members[0]) == set()
    assert kernel.table is not None
    assert {e for e in kernel.table if e.set.startswith(("allow", "from"))} == {
        e for e in desired(state) if e.set.startswith(("allow", "from"))
    }


def _fails(error: Exception) -> Callable[..., None]:
    def fails(*_: object, **__: object) -> None:
        raise error

    return fails


def test_a_refusal_does_not_reopen_a_departed_container(kernel: Recorder) -> None:
    """The kernel refuses everything except closing: a later change of another container does not reopen the departed
    one."""
    later: list[Callable[[], None]] = []
    state, tracker, members = with_docker_network(kernel, later)
    change, replace = kernel.change, kernel.replace

    def refuses(what: Change, timed: Mapping[Element, int] = MappingProxyType({})) -> None:
        if any(e.set.startswith("ingress_drops") for e in what.remove):
            raise NftError("refused")
        change(what, timed)

    kernel.change, kernel.replace = refuses, _fails(NftError("refused"))  # type: ignore[method-assign]
    tracker.leaves("", members[7].container.id)  # type: ignore[union-attr]
    assert state.unfinished or later
    kernel.change, kernel.replace = change, replace  # type: ignore[method-assign]
    assert open_for(kernel.table or (), members[7]) == set()
    tracker.put(DOCKERS, [member(108, DOCKERS)], listed=True, asked=tracker.now())
    assert open_for(kernel.table or (), members[7]) == set()
    done(later)
    assert kernel.table == desired(state)


# --- what one change computes -------------------------------------------------------------------------------------


def test_one_change_computes_a_part_and_the_rest_follows(kernel: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newcomer that hundreds of rules name is accepted at once by as many containers as one change may compute, and
    by all of them soon."""
    monkeypatch.setattr(applier, "AT_ONCE", 300)
    monkeypatch.setattr(applier, "A_BIT", 100)
    later: list[Callable[[], None]] = []
    state = made(kernel, [member(n) for n in range(60)], later)
    kernel.steps.clear()
    state.put_endpoint(member(70))
    assert 1 < kernel.steps.count("elements") < 10
    assert len(later) == 1
    done(later)
    assert kernel.table == desired(state)


def test_deferred_work_does_not_delay_cutting_flows(kernel: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers that join and leave constantly, and are named by many rules, do not delay cutting other flows: work
    requested meanwhile runs after a short time of computing, not when nothing is left to compute."""
    monkeypatch.setattr(applier, "A_BIT", 1)
    monkeypatch.setattr(deferred, "_AT_A_TIME", 0.0, raising=False)
    later: list[Callable[[], None]] = []
    members = [member(n) for n in range(MEMBERS)]
    state, left = made(kernel, members, later), list[int]()
    state.drop_endpoint(members[7].id)
    kernel.steps.clear()
    later.append(lambda: left.append(kernel.steps.count("elements")))
    done(later)
    assert left[0] < 10 < MEMBERS - 1 <= kernel.steps.count("elements")
    assert kernel.table == desired(state)


def test_a_new_network_recomputes_only_rules_that_may_mean_it(kernel: Recorder) -> None:
    """The network that a rule means depends on which networks exist; rules that name another network are not
    recomputed."""
    later: list[Callable[[], None]] = []
    state = made(kernel, [member(n, OURS, allow=f"22 from network:net{n}") for n in range(50)], later)
    state.observe(lambda facts: dataclasses.replace(facts, names=frozenset({"net1"})))
    kernel.steps.clear()
    state.observe(lambda facts: dataclasses.replace(facts, names=frozenset({"net1", "shop_net2"})))
    assert kernel.steps.count("elements") == 1


# --- bounds -------------------------------------------------------------------------------------------------------


def test_names_with_too_many_addresses_open_nothing(kernel: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    """A rule whose names resolve to so many addresses, at so many ports, that it needs more than 10,000 elements
    accepts no peer through them. The container's other rules still apply, and log and status report it."""
    later: list[Callable[[], None]] = []
    wide = ", ".join(f"{256 * n + 1}-{256 * n + 254} from project:shop" for n in range(10))
    state = made(kernel, [member(n) for n in range(1, MEMBERS)], later)
    before = len(kernel.table or ())
    asker = member(0, OURS, allow=f"{wide}, 22 from container:m1, 8080", egress=f"{wide.replace('from', 'to')}, 53/udp")
    state.put_endpoint(asker)
    assert len(kernel.table or ()) < before + 2 * peers.MAX_NAMED + 2 * MEMBERS
    found = {e for e in kernel.table or () if asker.addr4 in e.key}
    assert Element("allow4", (asker.addr4, 6, 8080)) in found  # type: ignore[arg-type]
    assert Element("from4", (asker.addr4, 6, 22, 32, member(1).addr4)) in found  # type: ignore[arg-type]
    messages = state.read(lambda known: known).too_many(ElementOwner(Kind.ENDPOINT, asker.id))
    assert messages[0].startswith("fw.allow=")
    assert any(text.startswith("fw.egress=") and "project:shop" in text for text in messages)
    assert [r.getMessage() for r in caplog.records if "more than 10000" in r.getMessage()] == [
        f"m0: {text}" for text in messages
    ]
    caplog.clear()
    state.put_endpoint(member(200))
    done(later)
    assert not [r for r in caplog.records if r.getMessage().startswith("m0: ")]
    assert kernel.table == desired(state)


def test_published_ports_count_towards_the_bound() -> None:
    """docker-proxy's ports need separate elements for each peer: a thousand ports for a hundred peers are too many,
    where the range alone is not."""
    known = peers.PeerIndex()
    for n in range(MEMBERS):
        known.put(str(n), peers.who(member(n)))
    rule = Rule("tcp", 4096, 8191, (Peer("project", "shop"),))
    wanted = decide.Policy(accepts=(rule,))
    ports = [Published("tcp", ANY, n, n) for n in range(4096, 5096)]
    assert known.resolved(wanted, None).accepts
    assert known.resolved(wanted, None, ports).accepts == ()


def test_addresses_times_published_ports_are_bounded(kernel: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    """One label of 2,690 characters, within every bound of labels, becomes 19,200 pieces of prefixes: at 1,000 ports
    that docker-proxy serves, this would be 19 million elements and gigabytes of memory. Such a rule opens nothing; the
    container's other rules still apply, log and status report it, and a rule that fits is unaffected."""
    lists = "* from " + " ".join(f"2001:db8:{n:x}::/121" for n in range(150))
    ports = [Published("tcp", IPv6Address(0), n, n) for n in range(8000, 9000)]
    later: list[Callable[[], None]] = []
    state = made(kernel, [], later)
    tracker = EndpointTracker(state)
    few = member(1, DOCKERS, *ports[:1], allow=lists)
    many = member(2, DOCKERS, *ports, allow=f"{lists}, 22 from 192.0.2.1")
    tracker.replace([DOCKERS], [few, many], asked=tracker.now())
    found = kernel.table or set()
    assert sum(e.set.startswith("host_from") for e in found) == 150 * 128
    assert Element("from4", (many.addr4, 6, 22, 32, IPv4Address("192.0.2.1"))) in found  # type: ignore[arg-type]
    assert not any(e.set.startswith("from") and many.addr4 in e.key and 32768 in e.key for e in found)
    assert state.read(lambda known: known).too_many(ElementOwner(Kind.TRACKED, few.id)) == []
    two = member(4, DOCKERS, *ports[1:3], allow=lists)
    tracker.put(DOCKERS, [two], listed=False, asked=tracker.now())
    assert state.read(lambda known: known).too_many(ElementOwner(Kind.TRACKED, two.id)), "38,400 delay others"
    (messages,) = state.read(lambda known: known).too_many(ElementOwner(Kind.TRACKED, many.id))
    assert messages in caplog.text
    ours = member(3, OURS, *ports, allow=lists)
    assert state.read(lambda known: known).resolved(OURS, ours).accepts, "docker-fw networks have no docker-proxy"


def test_the_bound_applies_rule_by_rule() -> None:
    """The parts that fit stay: the addresses of a rule whose names exceed the bound, and smaller rules after it."""
    known = peers.PeerIndex()
    for n in range(MEMBERS):
        known.put(str(n), peers.who(member(n)))
    shop, one = Peer("project", "shop"), Peer("prefix", "192.0.2.1")
    first, second = Rule("tcp", 1, 65534, (one, shop)), Rule("tcp", 5000, 5000, (shop,))
    policy = decide.Policy(accepts=(first, second))
    (message,) = known.too_many(policy, None)
    assert message.startswith("fw.allow=1-65534/tcp")
    found = known.resolved(policy, None).accepts
    assert found[0].peers == (one,)
    assert len(found[1].peers) == 2 * MEMBERS
    small = decide.Policy(accepts=(Rule("tcp", 1, 4095, (one, shop)), second))
    assert list(known.too_many(small, None)) == []
