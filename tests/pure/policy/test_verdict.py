"""The verdict on a flow's first packet and its explanation, case by case, written by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, ip_address, ip_network
from typing import Any

import pytest

from plugin.model import (
    BridgeNetwork,
    Container,
    Defaults,
    Endpoint,
    Network,
    Override,
    PolicySpec,
    Problem,
    Published,
    Rule,
    TrackedEndpoint,
)
from plugin.policy.facts import Facts
from plugin.policy.saved import SavedState
from plugin.policy.verdict import Packet, egress_restricted, find, number_of, policy_of, verdict
from plugin.policy.view import PolicyView, evaluated
from tests.specs import spec_of as spec

FRONT = Network("f" * 64, "fw-front", IPv4Interface("10.1.0.1/24"), IPv6Interface("2001:db8:1::1/64"))
BACK = Network("b" * 64, "fw-back", IPv4Interface("10.2.0.1/24"))
INNER = Network("i" * 64, "fw-inner", IPv4Interface("10.3.0.1/24"), internal=True)
APP = BridgeNetwork("a" * 64, "app", "br-app", (IPv4Network("172.18.0.0/16"),))
ISOLATED = BridgeNetwork("p" * 64, "apart", "br-apart", (IPv4Network("172.19.0.0/16"),), flat=False)
OUT, NEAR = "203.0.113.7", "10.9.9.9"


def on(
    network: Network | BridgeNetwork, address: str, name: str, labels: PolicySpec | None, **more: object
) -> Endpoint:
    """Return an endpoint of a container; without labels the container is unknown."""
    first, *rest = (ip_address(each) for each in address.split())
    known = labels is not None
    container = (
        Container(name.ljust(64, "0"), name, labels or PolicySpec(), project="shop", service=name) if known else None
    )
    endpoint = Endpoint(
        name.ljust(64, "e"),
        network.id,
        first if isinstance(first, IPv4Address) else None,
        next((each for each in rest if isinstance(each, IPv6Address)), None),
        joined=True,
        container=container,
    )
    return dataclasses.replace(endpoint, **more)  # type: ignore[arg-type]


def world(
    *there: Endpoint,
    networks: Iterable[Network | BridgeNetwork] = (),
    settings: PolicySpec | None = None,
    published: bool = False,
    bans: dict[str, float] | None = None,
    override: dict[str, Override] | None = None,
    unsure: Iterable[str] = (),
) -> PolicyView:
    known = {net.id: net for net in (FRONT, BACK, INNER, APP, ISOLATED)} | {net.id: net for net in networks}
    state = SavedState(
        {k: net for k, net in known.items() if isinstance(net, Network)},
        {e.id: e for e in there if isinstance(known[e.network_id], Network)},
        bans={ip_network(prefix): until for prefix, until in (bans or {}).items()},
    )
    guests = [e for e in there if isinstance(known[e.network_id], BridgeNetwork)]
    unknown = set(unsure)
    facts = Facts(
        state,
        networks={k: net for k, net in known.items() if isinstance(net, BridgeNetwork)},
        listed=True,
        guests={
            e.id: TrackedEndpoint(e, True, (e.container.name if e.container else "") not in unknown) for e in guests
        },
    )
    made = evaluated(Defaults(settings or PolicySpec(), published), facts)
    if override:
        made.overrides = override
        made.reindex(made.owners())
    return made


WEB = on(FRONT, "10.1.0.2 2001:db8:1::2", "web", spec())
API = on(FRONT, "10.1.0.3", "api", spec(allow="5432 from service:web, 8080"))
DB = on(BACK, "10.2.0.2", "db", spec(allow="5432 from service:web 10.9.0.0/16", deny="22"))
SHUT = on(APP, "172.18.0.2", "shut", spec(policy="closed"))
WIDE = on(APP, "172.18.0.3", "wide", spec(policy="open", deny="25"))
MUTE = on(APP, "172.18.0.4", "mute", spec(egress="none"))
SOME = on(BACK, "10.2.0.4", "some", spec(egress="443, 53/udp to 10.9.0.0/16 service:web, 8125/udp to host"))
INSIDE = on(INNER, "10.3.0.2", "inside", spec(allow="8080"))
UNKNOWN = on(FRONT, "10.1.0.9", "unknown", None)
WRONG = on(FRONT, "10.1.0.8", "wrong", spec(), container=Container("w", "wrong", problems=(Problem("", "", ""),)))
ALL = (WEB, API, DB, SHUT, WIDE, INSIDE, UNKNOWN, WRONG)

Case = tuple[str | None, str, str, int, bool, str]
#: Source, target, protocol, port; whether it is accepted, and the beginning of the last step's text.
CASES: dict[str, Case] = {
    "the base": (OUT, "10.1.0.2", "tcp", 443, True, "web accepts 443/tcp"),
    "the base by IPv6": ("2001:db8:9::1", "2001:db8:1::2", "tcp", 22, True, "web accepts 22/tcp"),
    "another port": (OUT, "10.1.0.2", "tcp", 8080, False, "web does not accept 8080/tcp"),
    "the base's port, another protocol": (OUT, "10.1.0.2", "udp", 443, False, "web does not accept 443/udp"),
    "ping": (OUT, "10.1.0.2", "icmp", 0, True, "useful ICMP (errors, ping) is always accepted"),
    "gre": (OUT, "10.1.0.2", "gre", 0, False, "web does not accept gre"),
    "from the host": (None, "10.1.0.2", "tcp", 8080, True, "the host reaches every container"),
    "from a neighbour": ("10.1.0.2", "10.1.0.3", "tcp", 9, True, "both are on fw-front, where containers talk freely"),
    "from an unknown neighbour": ("10.1.0.77", "10.1.0.3", "tcp", 9999, True,
                                  "both are on fw-front, where containers talk freely"),
    "what a label opens": (OUT, "10.1.0.3", "tcp", 8080, True, "api accepts 8080/tcp"),
    "a service is let in": ("10.1.0.2", "10.2.0.2", "tcp", 5432, True, "db accepts 5432/tcp from 10.1.0.2"),
    "a prefix is let in": (NEAR, "10.2.0.2", "tcp", 5432, True, "db accepts 5432/tcp from 10.1.0.2 10.9.0.0/16"),
    "others are not": (OUT, "10.2.0.2", "tcp", 5432, False, "db accepts 5432/tcp from others: 5432/tcp from 10.1.0.2"),
    "a denied port": (OUT, "10.2.0.2", "tcp", 22, False, "db does not accept 22/tcp"),
    "a closed base": (OUT, "172.18.0.2", "tcp", 443, False, "shut does not accept 443/tcp"),
    "ping of a closed base": (OUT, "172.18.0.2", "icmp", 0, True, "useful ICMP"),
    "an open base": (OUT, "172.18.0.3", "tcp", 9999, True, "wide accepts 26-65535/tcp"),
    "an open base, another protocol": (OUT, "172.18.0.3", "other", 0, True, "wide accepts other"),
    "an open base, denied": (OUT, "172.18.0.3", "tcp", 25, False, "wide does not accept 25/tcp"),
    "from another network": ("10.1.0.2", "172.18.0.3", "tcp", 9999, True, "wide accepts 26-65535/tcp"),
    "into an internal network": (OUT, "10.3.0.2", "tcp", 80, False, "fw-inner is internal: no traffic from"),
    "ping into an internal network": (OUT, "10.3.0.2", "icmp", 0, False, "fw-inner is internal: no traffic from"),
    "out of an internal network": ("10.3.0.2", "10.1.0.2", "tcp", 80, False, "fw-inner is internal: no traffic leaves"),
    "within an internal network": ("10.3.0.2", "10.3.0.9", "tcp", 80, True, "both are on fw-inner"),
    "who is not known": (OUT, "10.1.0.9", "tcp", 80, False, "it is unknown which container has 10.1.0.9"),
    "ping of who is not known": (OUT, "10.1.0.9", "icmp", 0, True, "useful ICMP"),
    "ping to unused": (OUT, "10.1.0.99", "icmp", 0, True, "no container is known to have 10.1.0.99: a few packets of"),
    "without a container": (OUT, "10.1.0.99", "tcp", 22, False, "it is unknown which container has 10.1.0.99"),
    "wrong labels": (OUT, "10.1.0.8", "tcp", 443, False, "wrong has a mistake in its labels, and answers on ICMP only"),
    "to the outside": ("10.1.0.2", "198.51.100.1", "tcp", 25, True, "198.51.100.1 is not on a container network"),
    "between strangers": (OUT, "198.51.100.1", "tcp", 25, True, "198.51.100.1 is not on a container network"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_packet_has_its_verdict(case: Case) -> None:
    """Each flow is accepted or dropped as designed, and the last step says why."""
    source, target, proto, port, accepted, text = case
    found = verdict(world(*ALL), Packet(ip_address(source) if source else None, ip_address(target), proto, port))
    assert found.accepted is accepted
    assert found.steps[-1].text.startswith(text)
    assert [step.outcome for step in found.steps[:-1]] == [""] * (len(found.steps) - 1)


def ask(
    there: PolicyView, source: str, target: str, proto: str = "tcp", port: int = 443, **more: object
) -> tuple[bool, str]:
    found = verdict(there, Packet(ip_address(source), ip_address(target), proto, port, **more))  # type: ignore[arg-type]
    return found.accepted, found.steps[-1].text


# --- leaving ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "proto", "port", "host", "accepted"),
    [
        ("10.2.0.4", OUT, "tcp", 443, False, True),
        ("10.2.0.4", OUT, "tcp", 80, False, False),
        ("10.2.0.4", OUT, "udp", 53, False, False),
        ("10.2.0.4", NEAR, "udp", 53, False, True),
        ("10.2.0.4", "10.1.0.2", "udp", 53, False, False),  # permitted by egress, and not accepted by web
        ("10.2.0.4", "10.1.0.2", "tcp", 443, False, True),
        ("10.2.0.4", "10.1.0.2", "icmp", 0, False, False),
        ("10.2.0.4", "10.2.0.1", "udp", 8125, True, True),
        ("10.2.0.4", "10.2.0.1", "udp", 8126, True, False),
        ("10.2.0.4", OUT, "udp", 8125, False, False),
        ("10.2.0.4", "10.2.0.2", "tcp", 9, False, True),  # a neighbour
        ("10.2.0.2", OUT, "tcp", 80, False, True),  # without fw.egress
        ("10.2.0.77", OUT, "tcp", 443, False, False),  # an unknown container
        ("10.1.0.77", OUT, "tcp", 443, False, True),  # an unrestricted network
        ("172.18.0.4", OUT, "tcp", 443, False, False),
        ("172.18.0.4", "172.18.0.1", "udp", 53, True, False),
    ],
)
def test_egress_decides_by_the_containers_labels(
    source: str, target: str, proto: str, port: int, host: bool, accepted: bool
) -> None:
    """On an egress-restricted network each container may open the connections that its labels permit, and an unknown
    one may open none."""
    there = world(WEB, API, DB, SHUT, WIDE, SOME, MUTE)
    assert ask(there, source, target, proto, port, host=host)[0] is accepted


def test_a_refused_connection_lists_the_permitted_ones() -> None:
    """The permitted connections are reported in the form of a label."""
    there = world(SOME, MUTE)
    assert ask(there, "172.18.0.4", OUT) == (False, "mute may open no connections")
    assert ask(there, "10.2.0.4", OUT, "tcp", 80) == (
        False,
        "some may open 443/tcp, 53/udp to 10.9.0.0/16, 8125/udp to host, not this",
    )
    assert ask(there, "10.2.0.77", OUT) == (
        False,
        "egress on fw-back is restricted, and it is unknown which rules apply to an unknown address",
    )
    steps = verdict(there, Packet(ip_address("10.2.0.4"), ip_address(NEAR), "udp", 53)).steps
    assert steps[0].text == "some may open this: 53/udp to 10.9.0.0/16"
    assert steps[0].origin == "label fw.egress"


def test_a_network_or_a_setting_may_restrict_egress() -> None:
    """A network's option or FW_EGRESS applies to every container there, unless the container's labels override it."""
    back = dataclasses.replace(BACK, spec=spec(egress="443"))
    free = on(BACK, "10.2.0.5", "free", spec(egress="all"))
    for there in (world(DB, free, networks=[back]), world(DB, free, settings=spec(egress="443"))):
        assert ask(there, "10.2.0.2", OUT, port=443)[0]
        assert not ask(there, "10.2.0.2", OUT, port=80)[0]
        assert ask(there, "10.2.0.5", OUT, port=80)[0]
        assert not ask(there, "10.2.0.77", OUT, port=443)[0]
        assert egress_restricted(there, back)
    assert not egress_restricted(world(DB), BACK)
    assert egress_restricted(world(SOME), BACK)
    assert egress_restricted(world(WRONG), FRONT)


# --- bans, fwctl, unknown containers ------------------------------------------------------------------------------


def test_bans_come_first() -> None:
    """Nothing from a banned address and nothing to it passes, not even ping; the host itself is exempt."""
    there = world(*ALL, bans={"203.0.113.0/24": 0, "198.51.100.1": 100})
    assert ask(there, OUT, "10.1.0.2") == (False, "203.0.113.7 is banned (203.0.113.0/24)")
    assert ask(there, OUT, "10.1.0.2", "icmp", 0) == (False, "203.0.113.7 is banned (203.0.113.0/24)")
    assert ask(there, "10.1.0.2", OUT) == (False, "203.0.113.7 is banned (203.0.113.0/24)")
    assert ask(there, "198.51.100.1", "10.1.0.2") == (False, "198.51.100.1 is banned (198.51.100.1 for a time)")
    assert ask(there, "198.51.100.2", "10.1.0.2")[0]
    assert verdict(there, Packet(None, ip_address("10.1.0.2"), "tcp", 1)).accepted
    late = verdict(there, Packet(ip_address("198.51.100.1"), ip_address("10.1.0.2"), "tcp", 443), 100)
    assert late.accepted


def test_overrides_have_precedence() -> None:
    """`fwctl allow` opens and `fwctl deny` closes, with precedence over labels, and the origin is reported."""
    more = Rule("tcp", 9000, 9000, origin="fwctl allow")
    assert WEB.container
    there = world(*ALL, override={WEB.container.id: Override((more,), (Rule("tcp", 22, 22),))})
    assert ask(there, OUT, "10.1.0.2", port=9000)[0]
    assert not ask(there, OUT, "10.1.0.2", port=22)[0]
    last = verdict(there, Packet(ip_address(OUT), ip_address("10.1.0.2"), "tcp", 9000)).steps[-1]
    assert last.origin == "fwctl allow"


def test_the_last_step_has_the_rules_origin() -> None:
    """The last step names the label, or the base."""
    origins = {
        port: verdict(world(*ALL), Packet(ip_address(OUT), ip_address("10.1.0.3"), "tcp", port)).steps[-1].origin
        for port in (443, 8080)
    }
    assert origins == {443: "base", 8080: "label fw.allow"}


def test_an_unknown_container_is_closed() -> None:
    """While the container of an address is unknown, the address answers ICMP only, and if it was egress-restricted, it
    opens no connection."""
    there = world(WIDE, MUTE, unsure=["wide", "mute"])
    assert ask(there, OUT, "172.18.0.3") == (
        False,
        "it is unknown which container has 172.18.0.3: it answers on ICMP only",
    )
    assert not ask(there, "172.18.0.3", OUT)[0]
    assert ask(world(WIDE, unsure=["wide"]), "172.18.0.3", OUT)[0]


def test_a_rate_is_reported() -> None:
    """A port with a rate is accepted, and the limit of each source is reported."""
    limited = on(FRONT, "10.1.0.4", "limited", spec(rate="22 5/minute burst 10, 80/udp 1/day"))
    there = world(limited)
    there.without_room = frozenset()
    steps = verdict(there, Packet(ip_address(OUT), ip_address("10.1.0.4"), "tcp", 22)).steps
    assert [step.text for step in steps[1:]] == [
        "each source is limited: 22/tcp 5/minute burst 10",
        "limited accepts 22/tcp",
    ]
    steps = verdict(there, Packet(ip_address(OUT), ip_address("10.1.0.4"), "tcp", 80)).steps
    assert len(steps) == 2


# --- by a published port ------------------------------------------------------------------------------------------

PUBLISHED = (Published("tcp", IPv4Address("0.0.0.0"), 18080, 8080),)


def test_a_port_opened_by_publishing_is_open_there_only() -> None:
    """A published port is open through its publication with FW_PUBLISHED=allow; the container's own port is not
    open."""
    plain = dataclasses.replace(WEB, published=PUBLISHED)
    for way, accepted in (("", False), ("dnat", True), ("proxy", True)):
        assert ask(world(plain, published=True), OUT, "10.1.0.2", port=8080, by=way)[0] is accepted
        assert not ask(world(plain), OUT, "10.1.0.2", port=8080, by=way)[0]


def test_through_docker_proxy_a_container_reaches_the_host() -> None:
    """Traffic through docker-proxy came to the host: the client's egress rules for containers do not apply, and
    neighbours that communicate freely also do so through it."""
    there = world(WIDE, MUTE, on(ISOLATED, "172.19.0.2", "one", spec()), on(ISOLATED, "172.19.0.3", "two", spec()))
    assert ask(there, "172.18.0.4", "172.18.0.3", port=25, by="proxy")[0]
    assert not ask(there, "172.19.0.3", "172.19.0.2", port=25, by="proxy")[0]
    assert ask(there, "172.19.0.3", "172.19.0.2", port=443, by="proxy")[0]


# --- the container of an address ----------------------------------------------------------------------------------


def test_an_address_has_its_network_and_endpoint() -> None:
    """An address is found with its network and its endpoint."""
    there = world(*ALL)
    found = find(there, IPv6Address("2001:db8:1::2"))
    assert found
    assert (found.network, found.endpoint, found.name) == (FRONT, WEB, "web")
    empty = find(there, IPv4Address("10.1.0.200"))
    assert empty
    assert (empty.network, empty.endpoint, empty.name) == (FRONT, None, "an unknown address")
    assert policy_of(there, empty) is None
    assert find(there, IPv4Address(OUT)) is None
    guest = find(there, IPv4Address("172.18.0.2"))
    assert guest
    assert (guest.network, guest.name) == (APP, "shut")


def test_a_decided_policy_has_resolved_names() -> None:
    """A policy that is shown has addresses in place of names."""
    there = world(*ALL)
    found = find(there, IPv4Address("10.2.0.2"))
    assert found
    policy = policy_of(there, found)
    assert policy
    assert "5432/tcp from 10.1.0.2 10.9.0.0/16 2001:db8:1::2" in map(str, policy.accepts)


@pytest.mark.parametrize(
    ("text", "proto"),
    [
        ("TCP", "tcp"),
        ("udp", "udp"),
        ("gre", "gre"),
        ("icmp", "icmp"),
        ("ICMPv6", "icmp"),
        ("ping", "icmp"),
        ("ospf", "other"),
        ("89", "other"),
        ("other", "other"),
        ("", "other"),
    ],
)
def test_a_protocol_is_read_by_name(text: str, proto: str) -> None:
    """A protocol as a user writes it; a protocol that no rule can name is "other"."""
    assert number_of(text) == proto


# --- docker-fw that is behind Docker's events -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "more", "accepted"),
    [
        ("203.0.113.7", "172.18.0.3", {}, False),
        ("203.0.113.7", "172.18.0.3", {"by": "dnat"}, False),
        ("203.0.113.7", "172.18.0.3", {"by": "proxy"}, False),
        ("10.1.0.2", "172.18.0.3", {}, False),
        ("203.0.113.7", "172.18.0.3", {"proto": "icmp", "port": 0}, True),
        ("172.18.0.2", "172.18.0.3", {}, True),
        ("172.18.0.2", "203.0.113.7", {}, False),  # egress is restricted there, and the containers are unknown now
        ("203.0.113.7", "10.1.0.2", {}, True),
        ("10.1.0.2", "203.0.113.7", {}, True),
    ],
)
def test_without_the_lease_docker_networks_are_closed(
    source: str, target: str, more: dict[str, Any], accepted: bool
) -> None:
    """`fwctl explain` reports that the lease has expired: no source from outside has access, not even through a
    published port, and on an egress-restricted network no container may open connections. Neighbours and ping pass,
    and docker-fw networks are unaffected."""
    there = world(WEB, SHUT, WIDE, MUTE)
    packet = dataclasses.replace(Packet(ip_address(source), ip_address(target), "tcp", 443), **more)
    there.watched = False
    outcome = verdict(there, packet)
    assert outcome.accepted is accepted
    assert accepted or outcome.steps[-1].text == (
        "docker-fw is behind Docker's events: it is unknown which containers are on app now"
    )
