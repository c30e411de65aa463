"""Test every row of docs/icmpv6.md with real packets: each type and code that RFC 4890 names, in every direction."""

from __future__ import annotations

import dataclasses
import itertools
from ipaddress import IPv6Address
from typing import Any

import pytest

from tests.icmpv6 import (
    ACCEPT,
    ACCEPTED4,
    DIRECTIONS,
    DROP_BY_OURS,
    ECHO_REPLY,
    INFORMATIONAL,
    REDIRECT,
    ROUTER_ADVERT,
    ROWS,
)
from tests.kernel.packets import Packet, arrived, icmp, icmp_error, new_flow, packed, ping, udp
from tests.kernel.site import BRIDGED_FRAMES_UNTRACKED, Box, Site, site_of_module
from tests.lab.netns import FORWARDING

BRIDGE = "br-0123456789ab"
site = site_of_module(FORWARDING | BRIDGED_FRAMES_UNTRACKED)
_ports = itertools.cycle(range(20000, 60000))


@dataclasses.dataclass(frozen=True)
class Boxes:
    """Containers on a docker-fw network, and one on a Docker network."""

    web: Box
    near: Box
    guest: Box


@pytest.fixture(scope="module")
def boxes(site: Site) -> Boxes:
    network = site.network(1)
    made = Boxes(site.box(network, 2), site.box(network, 3), site.docker_box(BRIDGE, 100))
    site.acquaint(made.web, made.near)
    return made


@pytest.fixture(autouse=True)
def policy(site: Site, boxes: Boxes) -> None:
    """Containers without labels."""
    site.load(site.known(boxes.web), site.known(boxes.near), more=site.docker_elements(boxes.guest, BRIDGE))


def gateway(box: Box) -> IPv6Address:
    """Return the host's address on the box's network."""
    return IPv6Address(int(box.v6) - 1)


def message(source: Any, target: Any, kind: int, code: int, about: Packet) -> Packet:
    """Return a message as its type has it: an error quotes a packet, neighbour discovery names the sender."""
    if kind < INFORMATIONAL:
        return icmp_error(source, about, kind, code, next(_ports))
    if kind in (135, 136):
        own = (2 if kind == 136 else 1, 1)
        tail = next(_ports).to_bytes(6, "big")
        return icmp(source, target, kind, code, bytes(4) + packed(source) + bytes(own) + tail)
    if kind in (ROUTER_ADVERT, REDIRECT):
        return icmp(source, target, kind, code, next(_ports).to_bytes(4, "big") + bytes(36))
    return icmp(source, target, kind, code)


def sent_in(direction: str, source: Any, target: Any, about: Packet) -> dict[Packet, tuple[str, int, int]]:
    """Return a packet for each type and code of each row that has a verdict in this direction."""
    return {
        message(source, target, kind, code, about): (row.name, kind, code)
        for row in ROWS
        if getattr(row, direction)
        for kind, code in row.messages()
    }


def expected(direction: str, box: Box) -> set[tuple[str, int, int]]:
    """Return the messages of this direction that pass, for a box on this kind of network."""
    passing = (ACCEPT,) if box.network else (ACCEPT, DROP_BY_OURS)
    return {(row.name, *each) for row in ROWS if getattr(row, direction) in passing for each in row.messages()}


def stranger(box: Box, target: Any) -> Packet:
    """Return a packet of the box that opened no flow: it was never sent."""
    return udp(box.v6, target, 9, next(_ports))


def test_from_outside_about_no_flow(site: Site, box: Box) -> None:
    """From outside a container receives the errors that the Internet needs, pings and the base's list, and no other."""
    sent = sent_in("inbound", Site.OUT6, box.v6, stranger(box, Site.OUT6))
    assert {sent[packet] for packet in site.deliver(sent, box)} == expected("inbound", box)


def test_from_outside_in_a_flow_of_the_container(site: Site, box: Box) -> None:
    """Errors about a flow that the container opened, and the reply to its own ping, arrive."""
    flow, request = new_flow("udp", box.v6, Site.OUT6, 9, next(_ports)), ping(box.v6, Site.OUT6)
    site.send([flow, request], box)
    sent = sent_in("in_flow", Site.OUT6, box.v6, flow)
    sent = {packet: what for packet, what in sent.items() if what[1] != ECHO_REPLY}
    reply = icmp(Site.OUT6, box.v6, ECHO_REPLY, body=request.data[4:])
    sent |= {reply: ("echo reply", ECHO_REPLY, 0)}
    wanted = {each for each in expected("in_flow", box) if each[1] != ECHO_REPLY or each[2] == 0}
    assert {sent[packet] for packet in site.deliver(sent, box)} == wanted


def test_to_outside(site: Site, box: Box) -> None:
    """A container may send any message to outside, except those of a router."""
    sent = sent_in("outbound", box.v6, Site.OUT6, stranger_to(box, Site.OUT6))
    assert {sent[packet] for packet in site.deliver(sent, site.wan, box)} == expected("outbound", box)


def stranger_to(box: Box, source: Any) -> Packet:
    """Return a packet to the box that was never sent."""
    return udp(source, box.v6, 9, next(_ports))


def test_to_the_host(site: Site, box: Box) -> None:
    """The host receives every message of a container except those of a router."""
    host = gateway(box)
    sent = sent_in("to_host", box.v6, host, stranger_to(box, host))
    list(site.listener.read())
    site.send([*sent, last := ping(box.v6, host)], box)
    (seen,) = arrived([site.listener], last)
    assert {sent[packet] for packet in seen if packet in sent} == expected("to_host", box)


def test_from_the_host(site: Site, box: Box) -> None:
    """The host may send every message to its containers."""
    host = gateway(box)
    sent = sent_in("from_host", host, box.v6, stranger(box, host))
    assert {sent[packet] for packet in site.deliver(sent, box, site.host)} == expected("from_host", box)


def test_from_outside_to_the_host(site: Site) -> None:
    """Messages to the host itself are the host's own firewall's business: docker-fw drops none."""
    sent = sent_in("from_host", Site.OUT6, Site.HOST6, udp(Site.HOST6, Site.OUT6, 9, next(_ports)))
    list(site.listener.read())
    site.send([*sent, last := ping(Site.OUT6, Site.HOST6)])
    (seen,) = arrived([site.listener], last)
    assert seen >= set(sent)


def test_to_a_neighbour_of_a_docker_fw_network(site: Site, boxes: Boxes) -> None:
    """On one docker-fw network every message passes, except those of routers and multicast queriers."""
    sent = sent_in("neighbour", boxes.web.v6, boxes.near.v6, stranger_to(boxes.web, boxes.near.v6))
    assert {sent[packet] for packet in site.deliver(sent, boxes.near, boxes.web)} == expected("neighbour", boxes.web)


@pytest.mark.parametrize("sender", ["web", "guest"])
def test_from_another_network(site: Site, boxes: Boxes, sender: str) -> None:
    """A container receives from another network what it receives from outside, but for router advertisements."""
    ends = (boxes.web, boxes.guest) if sender == "web" else (boxes.guest, boxes.web)
    sent = sent_in("inbound", ends[0].v6, ends[1].v6, stranger_to(ends[0], ends[1].v6))
    wanted = {each for each in expected("inbound", ends[1]) if each[1] != ROUTER_ADVERT}
    assert {sent[packet] for packet in site.deliver(sent, ends[1], ends[0])} == wanted


def test_over_ipv4(site: Site, box: Box) -> None:
    """Of all 256 types of ICMP over IPv4, about no flow, a container receives the document's."""
    about = udp(box.v4, Site.OUT4, 9, next(_ports))
    sent = {
        icmp_error(Site.OUT4, about, kind) if kind in (3, 4, 5, 11, 12) else icmp(Site.OUT4, box.v4, kind): kind
        for kind in range(256)
    }
    assert {sent[packet] for packet in site.deliver(sent, box)} == set(ACCEPTED4)


def test_every_direction_is_tested() -> None:
    """Each column of the table has a test above."""
    tests = "\n".join(name for name in globals() if name.startswith("test_"))
    words = {
        "inbound": "from_outside_about_no_flow",
        "in_flow": "in_a_flow",
        "outbound": "to_outside",
        "to_host": "to_the_host",
        "from_host": "from_the_host",
        "neighbour": "to_a_neighbour",
    }
    assert words.keys() == DIRECTIONS.keys()
    assert all(word in tests for word in words.values())
