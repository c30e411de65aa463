"""A rule that opens nothing, because Docker drops the packets, is reported with advice; an effective rule is not."""

from __future__ import annotations

import dataclasses
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network

import pytest

from plugin.docker.engine import Engine
from plugin.fwctl.api.docker_firewall import within, without_effect
from plugin.labels.parser import parse
from plugin.model import BridgeNetwork, Container, Endpoint, Network, Policy, Published, Rule

MARK = 0x08000000
FRONT = BridgeNetwork("f" * 64, "front", "br-f", (IPv4Network("172.18.0.0/16"), IPv6Network("2001:db8:1::/64")))
ROUTED = dataclasses.replace(FRONT, mode6="routed")
V4, V6 = IPv4Address("172.18.0.2"), IPv6Address("2001:db8:1::2")
PORT = Published("tcp", IPv4Address("0.0.0.0"), 18080, 8080)


def endpoint(allow: str, *ports: Published, four: bool = True) -> Endpoint:
    spec = parse({"fw.allow": allow}).spec
    return Endpoint(
        "e", FRONT.id, V4 if four else None, V6, joined=True, container=Container("c", "web", spec), published=ports
    )


def notes(
    network: BridgeNetwork, where: Endpoint, version: str = "28.5.2", backend: str = "iptables"
) -> tuple[str, ...]:
    return without_effect(network, where, Engine(version, backend), MARK)


def test_on_a_nat_network_a_port_must_be_published() -> None:
    """Docker drops packets to the container's own address there; the advice names the port."""
    assert notes(FRONT, endpoint("8080, 53/udp")) == tuple(
        f"fw.allow={port} has no effect on front because it is a nat network and the container's port is not "
        f"published; publish it (-p {publish}), or create the network with "
        "-o com.docker.network.bridge.gateway_mode_ipv6=routed (Docker ≥ 27), or with docker-fw's driver"
        for port, publish in (("8080", "8080:8080"), ("53/udp", "53:53/udp"))
    )
    (note,) = notes(FRONT, endpoint("9000-9100 from 10.0.0.0/8"))
    assert note.startswith("fw.allow=9000-9100 from 10.0.0.0/8 has no effect on front")
    assert "(-p 9000-9100:9000-9100)" in note


def test_a_protocol_without_ports_cannot_be_published() -> None:
    """The advice for a protocol without ports is another network."""
    (note,) = notes(FRONT, endpoint("gre"))
    assert note.startswith(
        "fw.allow=gre has no effect on front because it is a nat network and gre cannot be published; create"
    )
    (note,) = notes(ROUTED, endpoint("esp"), "29.0.1", "nftables")
    assert note.endswith("--bridge-accept-fwmark=0x8000000/0x8000000; give it that option")


@pytest.mark.parametrize(
    ("network", "where", "version"),
    [
        (FRONT, endpoint("8080", PORT), "28.5.2"),
        (FRONT, endpoint("8000-8100", PORT), "28.5.2"),
        (ROUTED, endpoint("8080"), "28.5.2"),
        (dataclasses.replace(FRONT, mode4="nat-unprotected"), endpoint("8080"), "28.5.2"),
        (FRONT, endpoint("8080"), "26.1.4"),  # Docker does not filter its IPv6
    ],
)
def test_a_label_with_an_effect_gets_no_message(network: BridgeNetwork, where: Endpoint, version: str) -> None:
    """Published ports, networks whose containers are reached by their own addresses, IPv6 of old engines."""
    assert notes(network, where, version) == ()


def test_publishing_covers_its_own_protocol_only() -> None:
    """`-p 8080:8080` publishes TCP only."""
    assert len(notes(FRONT, endpoint("8080/udp", PORT))) == 1


def test_dockers_nftables_needs_an_option() -> None:
    """Docker 29's nftables backend drops the packets even on a routed network, unless dockerd runs with the mark."""
    (note,) = notes(ROUTED, endpoint("8080"), "29.0.1", "nftables")
    assert note == (
        "fw.allow=8080 has no effect on front because Docker's nftables backend drops it, unless dockerd runs with "
        "--bridge-accept-fwmark=0x8000000/0x8000000; give it that option, or publish the port (-p 8080)"
    )


def test_an_internal_network_is_unreachable_from_outside() -> None:
    """No traffic from outside enters, whatever a label allows."""
    (note,) = notes(dataclasses.replace(FRONT, internal=True), endpoint("8080", PORT))
    assert note.endswith("because the network is internal; connect the container to another network too")


def test_an_override_without_effect_is_reported() -> None:
    """An override without effect is reported as an override, not as a label."""
    (note,) = without_effect(FRONT, endpoint("8080", PORT), Engine(), MARK, [Rule("tcp", 9000, 9000)])
    assert note.startswith("fwctl allow 9000 has no effect on front because")
    assert without_effect(FRONT, dataclasses.replace(endpoint("1"), container=None), Engine(), MARK) == ()


@pytest.mark.parametrize(
    ("version", "major"), [("28.5.2", 28), ("20.10.24+dfsg1", 20), ("", 0), ("dev", 0), ("٢٨.1", 0)]
)
def test_the_engines_version(version: str, major: int) -> None:
    """The first number of the version; 0 if it is unknown."""
    assert Engine(version).major == major


# --- peers on the same network ------------------------------------------------------------------------------------


def rules(text: str, word: str = "from") -> Policy:
    spec = parse({"fw.allow" if word == "from" else "fw.egress": text}).spec
    return Policy(accepts=spec.allow, egress=spec.egress)


def test_between_neighbours_a_rule_changes_nothing() -> None:
    """Containers on one network communicate freely: a rule whose peers are all on it has no effect."""
    own = Network("n", "fw-n", IPv4Interface("172.18.0.1/16"))
    for network in (FRONT, own):
        assert within(network, endpoint("1"), rules("5432 from 172.18.0.9 172.18.1.0/24")) == (
            "fw.allow=5432/tcp for 172.18.0.9/32, 172.18.1.0/24 has no effect: containers on one network talk freely",
        )
        assert within(network, endpoint("1"), rules("53/udp to 172.18.0.9", "to")) == (
            "fw.egress=53/udp for 172.18.0.9/32 has no effect: containers on one network talk freely",
        )


@pytest.mark.parametrize(
    "text",
    [
        "5432",
        "5432 from 172.18.0.9 203.0.113.7",
        "5432 from 172.0.0.0/8",
        "5432 from ::/0",
        "22 from 172.18.0.9 service:api",
    ],
)
def test_a_rule_for_other_peers_too_is_not_reported(text: str) -> None:
    """The rule has an effect for the other peers."""
    assert within(FRONT, endpoint("1"), rules(text)) == ()


def test_a_rule_between_isolated_neighbours_has_an_effect() -> None:
    """On a network with enable_icc=false it has an effect."""
    flat = dataclasses.replace(FRONT, flat=False)
    assert within(flat, endpoint("1"), rules("5432 from 172.18.0.9")) == ()
