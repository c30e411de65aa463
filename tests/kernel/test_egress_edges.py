"""Test what an egress list never lets out: port 0, packets of no flow, and flows that the host's helpers expect."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from plugin.labels.parser import parse
from plugin.nftables.sets import Element
from tests.kernel.ct_helpers import helper
from tests.kernel.packets import Packet, arrived, new_flow, ping, tcp, udp
from tests.kernel.resets import was_reset
from tests.kernel.site import BR_DOCKER, MARK, Box, Site, site_of_module
from tests.lab.netns import FORWARDING

site = site_of_module(FORWARDING)
_ports = itertools.count(20000)
HOST = (Site.HOST4, Site.HOST6)
OUTSIDE = (Site.OUT4, Site.OUT6)


@pytest.fixture(scope="module")
def box(site: Site) -> Box:
    return site.docker_box(BR_DOCKER, 100)


@pytest.fixture(autouse=True)
def _no_flows(site: Site) -> None:
    site.forget_flows()


def load(site: Site, box: Box, egress: str, allow: str = "", *more: Element) -> None:
    label = parse({"fw.egress": egress, "fw.allow": allow} if allow else {"fw.egress": egress})
    assert not label.problems
    site.load(more={*site.docker_elements(box, BR_DOCKER, spec=label.spec), *more})


def sent_to(site: Site, box: Box, target: str, packets: list[Packet]) -> set[Packet]:
    """Let the container send packets to outside or to the host; return those that arrive."""
    last = ping(Site.HOST6, Site.OUT6) if target == "outside" else ping(Site.OUT6, Site.HOST6)
    ear = site.sniffer(site.wan) if target == "outside" else site.listener
    list(ear.read())
    site.send(packets, box)
    site.send([last], site.host if target == "outside" else site.wan)
    (seen,) = arrived([ear], last)
    return seen & set(packets)


def ends(box: Box, target: str) -> list[tuple[Any, Any]]:
    return list(zip((box.v4, box.v6), OUTSIDE if target == "outside" else HOST, strict=True))


#: The end of a rule, and where packets go that it lets out.
TARGETS = pytest.mark.parametrize(("to", "target"), [("", "outside"), ("", "host"), (" to host", "host")])


@TARGETS
def test_every_port_is_not_port_0(site: Site, box: Box, to: str, target: str) -> None:
    """A list of all ports of a protocol means the ports 1-65535, to outside and to the host."""
    load(site, box, "\n".join(f"*/{proto}{to}" for proto in ("tcp", "udp", "sctp")))
    sent = {
        new_flow(proto, *pair, port, next(_ports)): port
        for pair in ends(box, target)
        for proto in ("tcp", "udp", "sctp")
        for port in (0, 1, 65535)
    }
    assert sent_to(site, box, target, [*sent]) == {packet for packet, port in sent.items() if port}


@TARGETS
def test_a_packet_of_no_flow_does_not_leave(site: Site, box: Box, to: str, target: str) -> None:
    """Connection tracking calls a reset without a connection invalid: no port of the list is meant for it."""
    load(site, box, f"443{to}")
    resets = [tcp(*pair, 443, next(_ports), 0x04) for pair in ends(box, target)]
    opening = [tcp(*pair, 443, next(_ports)) for pair in ends(box, target)]
    assert sent_to(site, box, target, [*resets, *opening]) == set(opening)


def test_a_retry_after_a_reset_needs_a_rule(site: Site, box: Box) -> None:
    """Connection tracking assigns the SYN to the connection that was reset (tcp_conntracks, sIG); it is a new one."""
    load(site, box, "8080")
    tries = []
    for _, server in ends(box, "outside"):
        client, sport = was_reset(box, site.wan, server, 8080)
        tries.append(tcp(client, server, 8080, sport))
    load(site, box, "443")
    assert sent_to(site, box, "outside", tries) == set()
    load(site, box, "8080")
    assert sent_to(site, box, "outside", tries) == set(tries)


@pytest.mark.parametrize("target", ["outside", "host"])
def test_a_flow_that_a_helper_expects_needs_a_rule(site: Site, box: Box, target: str) -> None:
    """A client's request lets the host expect a flow from the container's server: `none` lets nothing out.

    Replies to the client from the port that it opened pass.
    """
    load(site, box, "none", "69/udp")
    with helper(site, "tftp"):
        expected, replies = [], []
        for mine, client in ends(box, target):
            port = next(_ports)
            request = udp(client, mine, 69, port, b"\0\1file\0octet\0")
            assert site.deliver([request], box, site.wan if target == "outside" else site.host) == {request}
            expected.append(udp(mine, client, port, next(_ports)))
            replies.append(udp(mine, client, port, 69))
        assert sent_to(site, box, target, [*expected, *replies]) == set(replies)


@pytest.mark.parametrize("target", ["outside", "host"])
def test_no_mark_of_other_programs_opens_a_way_out(site: Site, box: Box, target: str) -> None:
    """The mark's bit says within the rules that one matched; a packet that arrives with it gains nothing."""
    load(site, box, "443")
    rules = f"type filter hook prerouting priority -200; meta mark set meta mark | {MARK:#x};"
    site.run("nft", "-f", "-", input=f"table inet marking {{ chain p {{ {rules} }}; }}\n")
    try:
        sent = {new_flow("tcp", *pair, port, next(_ports)): port for pair in ends(box, target) for port in (443, 444)}
        assert sent_to(site, box, target, [*sent]) == {packet for packet, port in sent.items() if port == 443}
    finally:
        site.run("nft", "delete", "table", "inet", "marking")


def test_what_a_list_lets_out_passes_dockers_firewall_by_its_rules(site: Site, box: Box) -> None:
    """Of a Docker network, no packet leaves with the mark that overrules Docker's drop."""
    load(site, box, "443")
    rules = f"type filter hook forward priority 10; meta mark & {MARK:#x} == 0 drop;"
    site.run("nft", "-f", "-", input=f"table inet later {{ chain f {{ {rules} }}; }}\n")
    try:
        packets = [new_flow("tcp", *pair, 443, next(_ports)) for pair in ends(box, "outside")]
        assert sent_to(site, box, "outside", packets) == set()
    finally:
        site.run("nft", "delete", "table", "inet", "later")
    assert sent_to(site, box, "outside", packets) == set(packets)
