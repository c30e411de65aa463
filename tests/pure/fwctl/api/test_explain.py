"""`fwctl explain`: which packets a question covers, which rule decides, and what Docker's own firewall adds."""

from __future__ import annotations

import dataclasses
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest

from plugin.docker.engine import Engine
from plugin.fwctl.api.explain import NOTE, Around, explain
from plugin.labels.parser import parse
from plugin.model import BridgeNetwork, Defaults, FwError, Published
from plugin.policy.saved import SavedState
from tests.pure.site import ANY4, ANY6, BACK, FRONT, HOST, Site, container, guest, ours, published

pytestmark = pytest.mark.usefixtures("no_flows")

NOW = 1_000_000.0
OWN = frozenset(map(ip_address, HOST))
APART = {"tool": "has the host's network, which docker-fw does not filter"}
WEB = container("web", {"fw.allow": "8080, 5432 from container:api, gre"})
API, SHY = container("api"), container("shy", {"fw.egress": "443, 53/udp"})
APP = container("app", {"fw.allow": "8080"})


def around(version: str = "28.5.2", backend: str = "") -> Around:
    return Around(OWN, APART, Engine(version, backend), 0x08000000, NOW)


def ask(
    site: Site, source: str, target: str, what: str, *, engine: Around | None = None, family: int | None = None
) -> Any:
    return explain(site.state.snapshot(), source, target, what, engine or around(), family)


def spec(told: Any) -> str:
    return "\n".join(step["text"] for flow in told["flows"] for step in flow["steps"])


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


def test_each_family_that_both_ends_have_is_told(site: Site) -> None:
    """A container has two addresses, an address is a single one, and `family` selects one."""
    told = ask(site, "internet", "web", "8080")
    assert [(flow["family"], flow["to"]["address"]) for flow in told["flows"]] == [
        (4, "10.1.0.2"), (6, "2001:db8:1::2")
    ]  # fmt: skip
    assert told["accepted"]
    assert told["notes"] == [NOTE]
    assert [flow["family"] for flow in ask(site, "203.0.113.7", "web", "8080")["flows"]] == [4]
    assert [flow["family"] for flow in ask(site, "internet", "web", "8080", family=6)["flows"]] == [6]
    with pytest.raises(FwError, match="have no common address family"):
        ask(site, "203.0.113.7", "2001:db8:1::2", "80")
    with pytest.raises(FwError, match="have no common IPv6 address"):
        ask(site, "203.0.113.7", "web", "80", family=6)


def test_one_family_that_is_dropped_makes_it_dropped() -> None:
    """The exit status covers all families."""
    site = Site(ours(2, container("web", {"fw.allow": "9000 from 203.0.113.0/24 2001:db8:5::/48"})))
    assert ask(site, "203.0.113.7", "web", "9000")["accepted"]
    assert not ask(site, "internet", "web", "9000")["accepted"]


def test_the_internet_is_somebody_whom_no_rule_names() -> None:
    """`internet` represents all addresses that no label or ban names, whatever documentation addresses they use."""
    rules = "9000 from 203.0.113.0/24 198.51.100.0/24 3fff:fff::/64, 9001 from 0.0.0.0/0 ::/0"
    web = container("web", {"fw.allow": rules})
    bans = {ip_network("192.0.2.0/25"): 0.0}
    site = Site(ours(2, web), state=SavedState(bans=bans))
    told = ask(site, "internet", "web", "9000")
    assert [flow["accepted"] for flow in told["flows"]] == [False, False]
    assert "banned" not in spec(told)
    assert ask(site, "internet", "web", "9001")["accepted"]


def test_wrong_questions_say_what_would_be_right(site: Site) -> None:
    """A typo, a range, a container with the host's network, an unknown protocol."""
    for question, why in (
        (("internet", "wbe", "80"), "did you mean web"), (("internet", "tool", "80"), "it has the host's network"),
        (("internet", "web", "1-100"), "more than one port"), (("internet", "web", "*"), "more than one port"),
        (("internet", "web", "80, 443"), "more than one port"), (("internet", "web", "80/icmp"), "is not a protocol"),
        (("internet", "web", "http"), '"http" is not a port'),
        (("internet", "internet", "80"), "are both the Internet"),
        (("internet", "web", ""), "is empty"), (("10.0.0.0/8", "web", "80"), "no container '10.0.0.0/8'"),
    ):  # fmt: skip
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
    told = ask(site, *question)
    assert told["accepted"] == accepted
    assert words in spec(told)
    last = told["flows"][0]["steps"][-1]
    assert last["outcome"] == ("accept" if accepted else "drop")


def test_who_said_it_is_told() -> None:
    """The origins are base, setting, label and fwctl."""
    defaults = Defaults(parse({"fw.allow": "9100"}, "setting ").spec)
    site = Site(ours(2, WEB), defaults=defaults)
    origins = {}
    for port in ("80", "9100", "8080"):
        origins[port] = ask(site, "internet", "web", port)["flows"][0]["steps"][-1]["origin"]
    assert origins == {"80": "base", "9100": "setting fw.allow", "8080": "label fw.allow"}


def test_bans_come_first_and_end(site: Site) -> None:
    """A banned address is dropped before every rule; an expired ban has no effect."""
    bans = {ip_network("203.0.113.0/24"): NOW + 60, ip_network("198.51.100.7"): NOW - 1, ip_network("10.1.0.3"): 0.0}
    banned = Site(ours(2, WEB), ours(3, API), state=SavedState(bans=bans))
    told = ask(banned, "203.0.113.7", "web", "80")
    assert (told["accepted"], spec(told)) == (False, "203.0.113.7 is banned (203.0.113.0/24 for a time)")
    assert ask(banned, "198.51.100.7", "web", "80")["accepted"]
    assert not ask(banned, "api", "web", "80", family=4)["accepted"]


# --- published ports --------------------------------------------------------------------------------------------------


def test_a_published_port_leads_to_its_container(site: Site) -> None:
    """TO host, or the host's address: the container and port to which it is forwarded, and that container's policy."""
    told = ask(site, "internet", "host", "18080")
    assert told["accepted"]
    assert "the host's port 18080/tcp is forwarded to web's port 8080/tcp (10.1.0.2) by DNAT" in spec(told)
    assert [flow["to"]["address"] for flow in told["flows"]] == ["198.51.100.1", "2001:db8:ffff::1"]
    assert not ask(site, "internet", "198.51.100.1", "15432")["accepted"]
    assert ask(site, "api", "host", "15432")["accepted"]  # on one network, whichever way
    told = ask(site, "internet", "host", "5432")
    assert told["accepted"]
    assert "the host itself, which docker-fw does not filter" in spec(told)


def test_docker_proxy_serves_the_hosts_ipv6_of_who_has_ipv4_alone(site: Site) -> None:
    """Through the host's address of the other family: the container's port still decides, by the client's own
    address."""
    told = ask(site, "internet", "host", "27000", family=6)
    assert told["accepted"]
    assert "is forwarded to deep's port 7000/tcp (172.19.0.2) by docker-proxy" in spec(told)
    assert not ask(site, "internet", "host", "29000")["accepted"]
    some = container("some", {"fw.allow": "7000 from 2001:db8:5::/48"})
    only = Site(guest(BACK, 2, some, *published(7000, 27000)))
    assert ask(only, "2001:db8:5::1", "host", "27000")["accepted"]
    assert not ask(only, "internet", "host", "27000", family=6)["accepted"]


def test_a_port_of_one_host_address_is_not_one_of_another() -> None:
    """`-p 198.51.100.1:…` is found by that address, or by `host`; `-p 127.0.0.1:…` is for the host only."""
    here = Published("tcp", IPv4Address("198.51.100.1"), 18080, 80)
    loop = Published("tcp", IPv4Address("127.0.0.1"), 18081, 80)
    site = Site(ours(2, container("web"), here, loop))
    assert "is forwarded to" in spec(ask(site, "internet", "198.51.100.1", "18080"))
    assert "is forwarded to" in spec(ask(site, "internet", "host", "18080", family=4))
    assert "is forwarded to" not in spec(ask(site, "host", "127.0.0.1", "18080"))
    assert "is forwarded to" not in spec(ask(site, "internet", "host", "18081", family=4))
    assert "is forwarded to" in spec(ask(site, "host", "127.0.0.1", "18081"))


def test_published_is_open_by_itself_where_the_setting_says_so() -> None:
    """FW_PUBLISHED=allow: open through the published port, and not through the container's own address."""
    site = Site(ours(2, container("web"), *published(9000, 19000)), defaults=Defaults(published=True))
    told = ask(site, "internet", "host", "19000")
    assert told["accepted"]
    assert told["flows"][0]["steps"][-1]["origin"] == "-p"
    assert not ask(site, "internet", "web", "9000")["accepted"]


def test_a_confined_container_is_judged_on_its_way_to_the_host_too(site: Site) -> None:
    """With DNAT its packet is for the container; with docker-proxy, for the host."""
    inside = container("inside", {"fw.egress": "8080"})
    egress_restricted = Site(
        guest(FRONT, 2, inside), guest(BACK, 2, APP, *published(8080, 28080)), ours(2, WEB, *published(8080, 18080))
    )
    assert ask(egress_restricted, "inside", "host", "18080")["accepted"]  # to web's port 8080
    told = ask(egress_restricted, "inside", "host", "28080", family=4)
    assert not told["accepted"]
    assert "inside may open 8080/tcp, not this" in spec(told)


def test_a_container_on_several_networks_is_met_where_both_are() -> None:
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
def test_docker_drops_what_is_for_an_own_address_on_a_nat_network(
    network: BridgeNetwork, engine: Around, accepted: dict[int, bool]
) -> None:
    """Docker drops the packets even if docker-fw accepts them; older engines do not filter IPv6."""
    site = Site(guest(network, 2, APP))
    site.guard.replace([network], site.guests, asked=1 << 30)
    told = ask(site, "internet", "app", "8080", engine=engine)
    assert {flow["family"]: flow["accepted"] for flow in told["flows"]} == accepted
    for flow in told["flows"]:
        assert (flow["steps"][-1]["origin"] == "Docker") == (not flow["accepted"])
    assert not ask(site, "internet", "app", "9000", engine=engine)["accepted"]


def test_docker_keeps_its_networks_apart(site: Site) -> None:
    """From another Docker network the container's own address is blocked; docker-proxy forwards connections to its
    published port."""
    told = ask(site, "mate", "deep", "7000")
    assert not told["accepted"]
    assert "Docker isolates its networks from each other" in spec(told)
    told = ask(site, "mate", "host", "27000", family=4)
    assert told["accepted"]
    assert "docker-proxy forwards it; with userland-proxy=false Docker drops it" in spec(told)
    # For Docker, a container on a docker-fw network is outside.
    assert not ask(site, "api", "deep", "7000")["accepted"]
    assert ask(site, "mate", "web", "8080")["accepted"]


def test_nftables_behind_a_mark_is_told_as_a_condition() -> None:
    """dockerd does not report whether it accepts the mark."""
    site = Site(guest(_mode("routed"), 2, APP))
    site.guard.replace([_mode("routed")], site.guests, asked=1 << 30)
    told = ask(site, "internet", "app", "8080", engine=around("29.7.2", "nftables"))
    assert told["accepted"]
    assert "unless dockerd runs with --bridge-accept-fwmark=0x8000000/0x8000000" in spec(told)


def test_addresses_of_the_host_are_the_host(site: Site) -> None:
    """Loopback too; as a source the host has access to every container."""
    for address in (IPv4Address("198.51.100.1"), IPv6Address("2001:db8:ffff::1")):
        assert ask(site, str(address), "web", "1")["accepted"]
    assert ANY4 not in OWN
    assert ANY6 not in OWN
