"""`fwctl explain`: which packets a question covers, which rule decides, and what Docker's own firewall adds."""

from __future__ import annotations

import dataclasses
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import pytest

from plugin.docker.engine import Engine
from plugin.fwctl.api.explain import NOTE, Around, explain
from plugin.labels.parser import parse
from plugin.model import BridgeNetwork, Defaults, FwError, Overriding, Published, Rule
from plugin.policy.overrides import with_one
from plugin.policy.saved import SavedState
from tests.pure.site import BACK, FRONT, HOST, Site, container, guest, ours, published

pytestmark = pytest.mark.usefixtures("no_flows")

NOW = 1_000_000.0
OWN = frozenset(map(ip_address, HOST))
NOT_PROTECTED = {"tool": "has the host's network, which docker-fw does not filter"}
WEB = container("web", {"fw.allow": "8080, 5432 from container:api, gre"})
API, SHY = container("api"), container("shy", {"fw.egress": "443, 53/udp"})
APP = container("app", {"fw.allow": "8080"})


def around(version: str = "28.5.2", backend: str = "") -> Around:
    return Around(OWN, NOT_PROTECTED, Engine(version, backend), 0x08000000, NOW)


def ask(
    site: Site, source: str, target: str, what: str, *, engine: Around | None = None, family: int | None = None
) -> Any:
    return explain(site.state.snapshot(), source, target, what, engine or around(), family)


def steps(answer: Any) -> str:
    return "\n".join(step["text"] for flow in answer["flows"] for step in flow["steps"])


@pytest.fixture
def site() -> Site:
    return Site(
        ours(2, WEB, *published(8080, 18080), *published(5432, 15432)),
        ours(3, API),
        ours(4, SHY),
        guest(FRONT, 2, APP, *published(8080, 28080), *published(9000, 29000)),
        guest(FRONT, 3, container("mate")),
        guest(BACK, 2, container("deep", {"fw.allow": "7000"}), *published(7000, 27000)),
    )


# --- source and target ------------------------------------------------------------------------------------------------


def test_each_common_family_is_explained(site: Site) -> None:
    """A container has two addresses, an address is a single one, and `family` selects one."""
    answer = ask(site, "internet", "web", "8080")
    assert [(flow["family"], flow["to"]["address"]) for flow in answer["flows"]] == [
        (4, "10.1.0.2"),
        (6, "2001:db8:1::2"),
    ]
    assert answer["accepted"]
    assert answer["notes"] == [NOTE]
    assert [flow["family"] for flow in ask(site, "203.0.113.7", "web", "8080")["flows"]] == [4]
    assert [flow["family"] for flow in ask(site, "internet", "web", "8080", family=6)["flows"]] == [6]
    with pytest.raises(FwError, match="have no common address family"):
        ask(site, "203.0.113.7", "2001:db8:1::2", "80")
    with pytest.raises(FwError, match="have no common IPv6 address"):
        ask(site, "203.0.113.7", "web", "80", family=6)


def test_one_dropped_family_makes_the_answer_dropped() -> None:
    """The answer is accepted only if every family is."""
    site = Site(ours(2, container("web", {"fw.allow": "9000 from 0.0.0.0/0, 9001 from 0.0.0.0/0 ::/0"})))
    answer = ask(site, "internet", "web", "9000")
    assert {flow["family"]: flow["accepted"] for flow in answer["flows"]} == {4: True, 6: False}
    assert not answer["accepted"]
    assert ask(site, "internet", "web", "9001")["accepted"]


def test_the_internet_is_an_address_that_no_rule_names() -> None:
    """`internet` represents all addresses that no label or ban names, whatever documentation addresses they use."""
    rules = "9000 from 203.0.113.0/24 198.51.100.0/24 3fff:fff::/64, 9001 from 0.0.0.0/0 ::/0"
    web = container("web", {"fw.allow": rules})
    bans = {ip_network("192.0.2.0/25"): 0.0}
    site = Site(ours(2, web), state=SavedState(bans=bans))
    answer = ask(site, "internet", "web", "9000")
    assert [flow["accepted"] for flow in answer["flows"]] == [False, False]
    assert "banned" not in steps(answer)
    assert ask(site, "internet", "web", "9001")["accepted"]


def test_a_wrong_question_is_answered_with_advice(site: Site) -> None:
    """A typo, a range, a container with the host's network, an unknown protocol."""
    for question, why in (
        (("internet", "wbe", "80"), "did you mean web"),
        (("internet", "tool", "80"), "tool has the host's network"),
        (("internet", "web", "1-100"), "more than one port"),
        (("internet", "web", "*"), "more than one port"),
        (("internet", "web", "80, 443"), "more than one port"),
        (("internet", "web", "80/icmp"), "is not a protocol"),
        (("internet", "web", "http"), '"http" is not a port'),
        (("internet", "internet", "80"), "are both the Internet"),
        (("internet", "web", ""), "is empty"),
        (("10.0.0.0/8", "web", "80"), "no container '10.0.0.0/8'"),
    ):
        with pytest.raises(FwError) as error:
            ask(site, *question)
        assert why in str(error.value), question


# --- the policy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "accepted", "words"),
    [
        (("internet", "web", "8080"), True, "web accepts 8080/tcp"),
        (("internet", "web", "22"), True, "web accepts 22/tcp"),
        (("internet", "web", "gre"), True, "web accepts gre"),
        (("internet", "web", "esp"), False, "web does not accept esp"),
        (("internet", "web", "icmp"), True, "useful ICMP"),
        (("internet", "web", "ping"), True, "useful ICMP"),
        (("internet", "web", "8080/udp"), False, "web does not accept 8080/udp"),
        (("internet", "web", "5432"), False, "web accepts 5432/tcp from others: 5432/tcp from 10.1.0.3"),
        (("api", "web", "1"), True, "both are on fw-ffffffffffff, where containers talk freely"),
        (("api", "api", "1"), True, "api sends to itself"),
        (("host", "web", "1"), True, "the host reaches every container"),
        (("shy", "internet", "443"), True, "shy may open this"),
        (("shy", "internet", "80"), False, "shy may open 443/tcp, 53/udp, not this"),
        (("web", "internet", "80"), True, "web may open any connection"),
        (("internet", "10.1.0.9", "80"), False, "it is unknown which container has 10.1.0.9"),
        (("internet", "192.0.2.200", "80"), True, "not on a container network"),
        (("mate", "app", "1"), True, "both are on front"),
    ],
)
def test_steps_name_the_rule_that_decides(
    site: Site, question: tuple[str, str, str], accepted: bool, words: str
) -> None:
    """The last step decides, and has the origin of its rule."""
    answer = ask(site, *question)
    assert answer["accepted"] == accepted
    assert words in steps(answer)
    last = answer["flows"][0]["steps"][-1]
    assert last["outcome"] == ("accept" if accepted else "drop")


def test_the_origin_of_each_rule_is_reported() -> None:
    """The origins are base, setting, label and fwctl."""
    defaults = Defaults(parse({"fw.allow": "9100"}, "setting ").spec)
    override = Overriding(WEB.id, Rule("tcp", 9200, 9200, origin="fwctl allow"))
    site = Site(ours(2, WEB), defaults=defaults)
    site.state.edit_state(lambda state: with_one(state, override))
    origins = {}
    for port in ("80", "9100", "8080", "9200"):
        origins[port] = ask(site, "internet", "web", port)["flows"][0]["steps"][-1]["origin"]
    assert origins == {"80": "base", "9100": "setting fw.allow", "8080": "label fw.allow", "9200": "fwctl allow"}


def test_bans_come_first_and_end(site: Site) -> None:
    """A banned address is dropped before every rule; an expired ban has no effect."""
    bans = {ip_network("203.0.113.0/24"): NOW + 60, ip_network("198.51.100.7"): NOW - 1, ip_network("10.1.0.3"): 0.0}
    banned = Site(ours(2, WEB), ours(3, API), state=SavedState(bans=bans))
    answer = ask(banned, "203.0.113.7", "web", "80")
    assert (answer["accepted"], steps(answer)) == (False, "203.0.113.7 is banned (203.0.113.0/24 for a time)")
    assert ask(banned, "198.51.100.7", "web", "80")["accepted"]
    assert not ask(banned, "api", "web", "80", family=4)["accepted"]


# --- published ports --------------------------------------------------------------------------------------------------


def test_a_published_port_leads_to_its_container(site: Site) -> None:
    """TO host, or the host's address: the container and port to which it is forwarded, and that container's policy."""
    answer = ask(site, "internet", "host", "18080")
    assert answer["accepted"]
    assert "the host's port 18080/tcp is forwarded to web's port 8080/tcp (10.1.0.2) by DNAT" in steps(answer)
    assert [flow["to"]["address"] for flow in answer["flows"]] == ["198.51.100.1", "2001:db8:ffff::1"]
    assert not ask(site, "internet", "198.51.100.1", "15432")["accepted"]
    assert ask(site, "api", "host", "15432")["accepted"]  # on one network, whichever way
    answer = ask(site, "internet", "host", "5432")
    assert answer["accepted"]
    assert "the host itself, which docker-fw does not filter" in steps(answer)


def test_docker_proxy_serves_ipv6_for_a_container_with_ipv4_only(site: Site) -> None:
    """Through the host's address of the other family: the container's port still decides, by the client's own
    address."""
    answer = ask(site, "internet", "host", "27000", family=6)
    assert answer["accepted"]
    assert "is forwarded to deep's port 7000/tcp (172.19.0.2) by docker-proxy" in steps(answer)
    assert not ask(site, "internet", "host", "29000")["accepted"]
    some = container("some", {"fw.allow": "7000 from 2001:db8:5::/48"})
    only = Site(guest(BACK, 2, some, *published(7000, 27000)))
    assert ask(only, "2001:db8:5::1", "host", "27000")["accepted"]
    assert not ask(only, "internet", "host", "27000", family=6)["accepted"]


def test_a_port_is_published_on_its_host_address_only() -> None:
    """`-p 198.51.100.1:…` is found by that address, or by `host`; `-p 127.0.0.1:…` is for the host only."""
    here = Published("tcp", IPv4Address("198.51.100.1"), 18080, 80)
    loop = Published("tcp", IPv4Address("127.0.0.1"), 18081, 80)
    site = Site(ours(2, container("web"), here, loop))
    assert "is forwarded to" in steps(ask(site, "internet", "198.51.100.1", "18080"))
    assert "is forwarded to" in steps(ask(site, "internet", "host", "18080", family=4))
    assert "is forwarded to" not in steps(ask(site, "host", "127.0.0.1", "18080"))
    assert "is forwarded to" not in steps(ask(site, "internet", "host", "18081", family=4))
    assert "is forwarded to" in steps(ask(site, "host", "127.0.0.1", "18081"))


def test_a_published_port_is_open_where_the_setting_allows_it() -> None:
    """FW_PUBLISHED=allow: open through the published port, and not through the container's own address."""
    site = Site(ours(2, container("web"), *published(9000, 19000)), defaults=Defaults(published=True))
    answer = ask(site, "internet", "host", "19000")
    assert answer["accepted"]
    assert answer["flows"][0]["steps"][-1]["origin"] == "-p"
    assert not ask(site, "internet", "web", "9000")["accepted"]


def test_egress_rules_apply_to_published_ports_of_the_host(site: Site) -> None:
    """An egress-restricted container's packet to the host's port is for the published container with DNAT, and for the
    host with docker-proxy."""
    inside = container("inside", {"fw.egress": "8080"})
    egress_restricted = Site(
        guest(FRONT, 2, inside), guest(BACK, 2, APP, *published(8080, 28080)), ours(2, WEB, *published(8080, 18080))
    )
    assert ask(egress_restricted, "inside", "host", "18080")["accepted"]  # to web's port 8080
    answer = ask(egress_restricted, "inside", "host", "28080", family=4)
    assert not answer["accepted"]
    assert "inside may open 8080/tcp, not this" in steps(answer)


def test_the_common_network_of_two_containers_is_explained() -> None:
    """Docker's DNS returns the address on the common network; from elsewhere each address is explained."""
    front, back = guest(FRONT, 2, APP), guest(BACK, 2, APP)
    mate = guest(BACK, 3, container("mate"))
    site = Site(front, back, mate)
    for source, met in (("mate", ["172.19.0.2"]), ("203.0.113.7", ["172.18.0.2", "172.19.0.2"])):
        assert [flow["to"]["address"] for flow in ask(site, source, "app", "80")["flows"]] == met


# --- Docker's own firewall --------------------------------------------------------------------------------------------


def _mode(mode: str) -> BridgeNetwork:
    return dataclasses.replace(FRONT, mode4=mode, mode6=mode)


@pytest.mark.parametrize(
    ("network", "engine", "accepted"),
    [
        (FRONT, around("28.5.2"), {4: False, 6: False}),
        (FRONT, around("26.1.5"), {4: False, 6: True}),
        (FRONT, around(""), {4: False, 6: False}),
        (_mode("routed"), around("28.5.2"), {4: True, 6: True}),
        (_mode("nat-unprotected"), around("28.5.2"), {4: True, 6: True}),
        (_mode("nat-unprotected"), around("29.7.2", "nftables"), {4: True, 6: True}),
    ],
)
def test_docker_drops_packets_to_a_containers_own_address_behind_nat(
    network: BridgeNetwork, engine: Around, accepted: dict[int, bool]
) -> None:
    """Docker drops the packets even if docker-fw accepts them; older engines do not filter IPv6."""
    site = Site(guest(network, 2, APP))
    site.tracker.replace([network], site.guests, asked=1 << 30)
    answer = ask(site, "internet", "app", "8080", engine=engine)
    assert {flow["family"]: flow["accepted"] for flow in answer["flows"]} == accepted
    for flow in answer["flows"]:
        assert (flow["steps"][-1]["origin"] == "Docker") == (not flow["accepted"])
    assert not ask(site, "internet", "app", "9000", engine=engine)["accepted"]


def test_docker_isolates_its_networks(site: Site) -> None:
    """A container's own address is blocked from another Docker network; docker-proxy forwards connections to its
    published port."""
    answer = ask(site, "mate", "deep", "7000")
    assert not answer["accepted"]
    assert "Docker isolates its networks from each other" in steps(answer)
    answer = ask(site, "mate", "host", "27000", family=4)
    assert answer["accepted"]
    assert "docker-proxy forwards it; with userland-proxy=false Docker drops it" in steps(answer)
    # For Docker, a container on a docker-fw network is outside.
    assert not ask(site, "api", "deep", "7000")["accepted"]
    assert ask(site, "mate", "web", "8080")["accepted"]


def test_dockers_nftables_mark_is_reported_as_a_condition() -> None:
    """dockerd does not report whether it accepts the mark."""
    site = Site(guest(_mode("routed"), 2, APP))
    site.tracker.replace([_mode("routed")], site.guests, asked=1 << 30)
    answer = ask(site, "internet", "app", "8080", engine=around("29.7.2", "nftables"))
    assert answer["accepted"]
    assert "unless dockerd runs with --bridge-accept-fwmark=0x8000000/0x8000000" in steps(answer)


def test_addresses_of_the_host_are_the_host(site: Site) -> None:
    """The host has access to every container, as a source by each of its addresses, also loopback."""
    for address in ("198.51.100.1", "2001:db8:ffff::1", "127.0.0.1", "::1"):
        assert ask(site, address, "web", "1")["accepted"]
