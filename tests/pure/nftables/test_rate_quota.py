"""Which rates the table holds when the quota is full, and that other containers' rate-limited ports are closed."""

from __future__ import annotations

import dataclasses
import logging
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from plugin.docker.tracker import EndpointTracker
from plugin.fwctl.api import status
from plugin.labels.parser import parse
from plugin.model import BridgeNetwork, Container, Defaults, Endpoint, Network, PolicySpec
from plugin.nftables import rate_quota
from plugin.nftables.compile import ElementCompiler
from plugin.nftables.rate_quota import Quota
from plugin.nftables.sets import DENIED, RATED, Element
from plugin.policy.facts import ElementOwner, Facts, Kind
from plugin.policy.rate_quota import FULL
from plugin.policy.saved import SavedState
from plugin.policy.verdict import Packet, verdict
from plugin.policy.view import PolicyView
from plugin.state import applier
from plugin.state.reconciler import Reconciler
from tests.pure.fakes import Disk, Kernel

NET = Network("a" * 64, "fw-a", IPv4Interface("10.1.0.1/24"))
OUT = IPv4Address("203.0.113.7")


def endpoint(number: int, rate: str = "22 5/minute burst 10", address: int = 0) -> Endpoint:
    spec = parse({"fw.rate": rate}).spec if rate else PolicySpec()
    container = Container(f"{number:064x}", f"c{number}", spec)
    at = IPv4Address(f"10.1.0.{address or number}")
    return Endpoint(f"{number:064x}", NET.id, at, joined=True, container=container)


def started(kernel: Kernel, *endpoints: Endpoint) -> Reconciler:
    made = Reconciler(kernel, Disk(), Defaults(), later=lambda work: None)  # type: ignore[arg-type]
    made.start(Facts(SavedState({NET.id: NET}, {each.id: each for each in endpoints})))
    return made


def closed(kernel: Kernel) -> set[int]:
    """Return the last byte of addresses whose port 22 is closed because the quota is full."""
    found = {e for e in kernel.table or () if e.set in RATED and e.data == (DENIED,)}
    return {int(e.key[0]) & 255 for e in found}  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_quota, "MOST", 2)


def test_a_container_waiting_for_quota_delays_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that needs more than the remaining quota may have thousands of ports with a rate: while it waits,
    other containers join and leave without a check of each of these ports."""
    checked: list[str] = []
    known, limited = Quota(), rate_quota.limits
    monkeypatch.setattr(rate_quota, "limits", lambda element: checked.append(str(element.key[0])) or limited(element))

    def wants(address: str, *chains: str) -> frozenset[Element]:
        ports = enumerate(chains * 100, 1)
        return frozenset(Element("rate_limit4", (IPv4Address(address), 6, port), (chain,)) for port, chain in ports)

    known.change({"small": wants("10.1.0.1", "limit4__10.1.0.1__5_minute_1")})
    known.change({"waits": wants("10.1.0.2", *(f"limit4__10.1.0.2__{n}_minute_1" for n in (1, 2)))})
    assert "waits" in known.refused
    checked.clear()
    known.change({"other": wants("10.1.0.3", "limit4__10.1.0.3__5_minute_1")})
    known.change({"other": frozenset()})
    assert "10.1.0.2" not in checked
    known.change({"small": frozenset()})
    assert "waits" not in known.refused


def test_a_newcomer_above_the_quota_is_closed_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    """A container whose rates do not fit the quota has its ports with a rate closed; log, status and explain report it.
    Containers within the quota are not affected."""
    kernel = Kernel()
    state = started(kernel, endpoint(2), endpoint(3))
    with caplog.at_level(logging.WARNING):
        state.put_endpoint(endpoint(4))
        state.put_endpoint(endpoint(5, rate=""))
    assert closed(kernel) == {4}
    assert [r.getMessage() for r in caplog.records] == [f"c4: {FULL}"]
    problems = {e["container"]: e["problems"] for e in _endpoints(state)}
    assert problems == {"c2": [], "c3": [], "c4": [FULL], "c5": []}
    for number, port, accepted in ((2, 22, True), (4, 22, False), (4, 443, True)):
        packet = Packet(OUT, IPv4Address(f"10.1.0.{number}"), "tcp", port)
        assert verdict(state.read(lambda known: known), packet).accepted is accepted


def _endpoints(state: Reconciler) -> list[dict[str, object]]:
    known = state.snapshot()
    return [status._endpoint(known, ElementOwner(Kind.ENDPOINT, e.id), NET, e, {}) for e in state.endpoints.values()]


def test_freed_quota_is_given_to_waiting_containers(caplog: pytest.LogCaptureFixture) -> None:
    """The quota is reassigned in the same change in which another container leaves, in the order of waiting."""
    kernel = Kernel()
    state = started(kernel, *map(endpoint, (2, 3, 4, 5)))
    assert closed(kernel) == {4, 5}
    state.drop_endpoint(endpoint(2).id)
    assert closed(kernel) == {5}
    state.put_endpoint(endpoint(3, rate=""))
    assert closed(kernel) == set()


def test_quota_is_kept_over_a_restart() -> None:
    """docker-fw finds in the table which containers had quota after a restart, in whatever order they are reported."""
    kernel = Kernel()
    first = started(kernel, endpoint(2), endpoint(3))
    first.put_endpoint(endpoint(4))
    started(kernel, *map(endpoint, (4, 3, 2)))
    assert closed(kernel) == {4}


def test_quota_is_reserved_for_previous_containers() -> None:
    """Until all previous containers have been seen, a newcomer does not get the quota of one of them."""
    quota = Quota()
    quota.keep(["limit4__10.1.0.2__5_minute_10", "limit4__10.1.0.9__5_minute_10"])
    two, nine, new = (_wanted(f"10.1.0.{n}") for n in (2, 9, 4))
    quota.change({"new": new})
    assert "new" in quota.refused
    quota.change({"two": two})
    assert "two" not in quota.refused
    assert quota.settle() == ["new"]
    quota.change({"nine": nine})
    assert list(quota.refused) == ["nine"]


DOCKERS = BridgeNetwork("d" * 64, "dock", "br-dddddddddddd", (IPv4Network("10.1.0.0/24"),))


def guest(number: int) -> Endpoint:
    return dataclasses.replace(endpoint(number), network_id=DOCKERS.id)


def test_quota_is_reserved_until_docker_has_listed_all() -> None:
    """Containers that join before Docker's list at a start of docker-fw get no quota of previous ones; the unused rest
    is given away after it, even if no container is on a Docker network."""
    kernel = Kernel()
    kernel.table = set(_wanted("10.1.0.2") | _wanted("10.1.0.3"))
    state = started(kernel)
    tracker = EndpointTracker(state)
    tracker.put(DOCKERS, [guest(4)], listed=True, asked=tracker.now())
    state.put_endpoint(endpoint(5))
    assert closed(kernel) == {4, 5}
    tracker.replace([DOCKERS], [guest(2), guest(3), guest(4)], asked=tracker.now())
    assert closed(kernel) == {4, 5}

    kernel.table = set(_wanted("10.1.0.2") | _wanted("10.1.0.3"))
    state = started(kernel)
    tracker = EndpointTracker(state)
    state.put_endpoint(endpoint(5))
    assert closed(kernel) == {5}
    tracker.replace([], [], asked=tracker.now())
    assert closed(kernel) == set()


def _wanted(address: str, rate: str = "5_minute_10") -> frozenset[Element]:
    chain = f"limit4__{address}__{rate}"
    return frozenset({Element("rate_limit4", (IPv4Address(address), 6, 22), (chain,))})


def test_one_address_has_one_limit() -> None:
    """If two endpoints claim an address, with different rates for a port, the first one's rate applies, and the table
    has one element for the port; when the first is removed, the other's rate applies."""
    quota, one, other = Quota(), _wanted("10.1.0.2"), _wanted("10.1.0.2", "1_day_5")
    assert quota.change({"one": one}) == []
    quota.change({"other": other})
    assert (quota.within("one", one), quota.within("other", other)) == (one, frozenset())
    assert quota.change({"one": frozenset()}) == ["other"]
    assert quota.within("other", other) == other


def test_a_port_with_a_new_owner_always_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new owner gets its own limit in the same transaction that removes the other's, however much else is to be
    computed."""
    monkeypatch.setattr(applier, "AT_ONCE", 0)
    kernel = Kernel()
    state = started(kernel, endpoint(2))
    state.put_endpoint(endpoint(3, "22 1/day", address=2))
    state.drop_endpoint(endpoint(2).id)
    assert [e.data for e in kernel.table or () if e.set in RATED] == [("limit4__10.1.0.2__1_day_5",)]


def test_rates_that_were_not_admitted_open_nothing() -> None:
    """Rates of an owner that was not admitted open nothing."""
    view = PolicyView(Defaults(), Facts(SavedState({NET.id: NET}, {endpoint(2).id: endpoint(2)})))
    owner = ElementOwner(Kind.ENDPOINT, endpoint(2).id)
    found = {e.data for e in ElementCompiler(view).elements(owner) if e.set in RATED}
    assert found == {(DENIED,)}


def test_a_snapshot_is_its_own() -> None:
    """`fwctl` reads which rates have room from a copy, which does not change while containers come and leave."""
    state = started(Kernel(), *map(endpoint, (2, 3, 4)))
    owner = ElementOwner(Kind.ENDPOINT, endpoint(4).id)
    copy = state.snapshot()
    state.drop_endpoint(endpoint(2).id)
    assert (copy.rates_refused(owner), state.snapshot().rates_refused(owner)) == (True, False)
