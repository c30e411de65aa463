"""Each kind of owner has its elements, and a view that nothing was compiled from says that rates are closed."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface

import pytest

from plugin.model import Container, Defaults, Endpoint, Network, Published
from plugin.nftables import rate_quota
from plugin.nftables.compile import ElementCompiler, compiled
from plugin.nftables.sets import Element
from plugin.policy.facts import BridgeFacts, ElementOwner, Facts, Kind, ProxyFacts
from plugin.policy.rate_quota import FULL
from plugin.policy.saved import SavedState
from plugin.policy.verdict import Packet, verdict
from plugin.policy.view import evaluated
from tests.specs import spec_of as spec


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_of_owner_is_compiled(kind: Kind) -> None:
    """A kind that was forgotten fails here; an owner that does not exist has no elements."""
    assert compiled(Defaults(), Facts()).elements(ElementOwner(kind, "nobody")) == frozenset()


def test_forwarding_that_was_switched_on_is_kept() -> None:
    """Families whose forwarding docker-fw switched on do not forward traffic between other networks."""
    found = compiled(Defaults(), Facts(SavedState(switched=frozenset({2, 10})))).elements(ElementOwner(Kind.FORWARDING))
    assert found == {Element("no_transit", (2,)), Element("no_transit", (10,))}


def test_the_host_has_its_elements() -> None:
    """The elements: bridges, docker-proxy's control group, dockerd's own ports, listening programs, and ports on which
    a docker-proxy may listen."""
    port, closed = Published("tcp", IPv4Address(0), 8080, 8080), Published("tcp", IPv4Address(0), 9090, 9090)
    facts = Facts(
        bridges=BridgeFacts(frozenset({7}), frozenset({"docker0"}), frozenset({"docker0"}), frozenset({"docker0"})),
        proxies=ProxyFacts(frozenset({12}), holding=True),
        dockerd=frozenset({(6, 2375)}),
        listening=frozenset({port}),
        suspects=frozenset({closed}),
    )
    assert compiled(Defaults(), facts).all_elements() == {
        Element("unmanaged", (7,)),
        Element("dockers", ("docker0",)),
        Element("protected_bridges", ("docker0",)),
        Element("same_bridge", ("docker0", "docker0")),
        Element("docker_proxy", (12,)),
        Element("proxy_unidentified", (2,)),
        Element("proxy_unidentified", (10,)),
        Element("dockerd_ports", (6, 2375)),
        Element("host_own", (2, 6, 8080)),
        Element("host_closed", (2, 6, 9090)),
    }


# --- room for rates -----------------------------------------------------------------------------------------------


NET = Network("a" * 64, "fw-a", IPv4Interface("10.1.0.1/24"))
WEB = Endpoint(
    "b" * 64,
    NET.id,
    IPv4Address("10.1.0.2"),
    joined=True,
    container=Container("c" * 64, "web", spec(rate="22 5/minute burst 10")),
)
FACTS = Facts(SavedState({NET.id: NET}, {WEB.id: WEB}))


def test_the_verdict_knows_of_room_only_from_what_compiles() -> None:
    """A view from which no elements are compiled does not know whether a rate has room: it counts as closed, in copies
    too. Other ports are not concerned."""

    def last(view: object, port: int) -> tuple[str, str]:
        packet = Packet(IPv4Address("203.0.113.7"), IPv4Address("10.1.0.2"), "tcp", port)
        step = verdict(view, packet).steps[-1]  # type: ignore[arg-type]
        return step.outcome, step.text

    view = evaluated(Defaults(), FACTS)
    for each in (view, view.copy()):
        assert last(each, 22) == ("drop", f"web: {FULL}")
        assert last(each, 443)[0] == "accept"
    ElementCompiler(view).start()
    for each in (view, view.copy(), compiled(Defaults(), FACTS).view):
        assert last(each, 22)[0] == "accept"


def test_the_verdict_agrees_with_the_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    """The view reports a port that the table closes because the quota is full, also after the facts are set anew."""
    monkeypatch.setattr(rate_quota, "MOST", 0)
    made, owner = compiled(Defaults(), FACTS), ElementOwner(Kind.ENDPOINT, WEB.id)
    assert made.view.rates_refused(owner)
    monkeypatch.setattr(rate_quota, "MOST", 1)
    assert made.view.rates_refused(owner)
    made.start()
    assert not made.view.rates_refused(owner)
