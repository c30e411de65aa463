"""Test packets to ports of the host that docker-proxy serves or may serve, which belong to no connection."""

from __future__ import annotations

import itertools
import socket
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from plugin.kernel.names import AF
from plugin.labels.parser import parse
from plugin.model import Peer, Published, Rule
from plugin.nftables.sets import WATCHED, Element
from tests.kernel.netns import inside
from tests.kernel.packets import Packet, arrived, ping, sctp, tcp, udp
from tests.kernel.resets import was_reset
from tests.kernel.site import BR_DOCKER, Box, Site, site_of_module
from tests.kernel.watched import watched
from tests.lab import NamedNetns
from tests.lab.netns import FORWARDING
from tests.waiting import until

site = site_of_module(FORWARDING)
_ports = itertools.count(20000)
OTHER = "br-ba9876543210"
HOST, OUTSIDE = (Site.HOST4, Site.HOST6), (Site.OUT4, Site.OUT6)
EVERYWHERE = IPv4Address("0.0.0.0"), IPv6Address("::")
#: The outsider may use the ports; 15080 is the container's 80, and 15053 its 53.
FRIENDS = (Peer("prefix", "203.0.113.0/24"), Peer("prefix", "2001:db8:5::/48"))
RULES = (Rule("tcp", 8080, 8080, FRIENDS), Rule("udp", 53, 53, FRIENDS))
PORTS = tuple(
    Published(p, any_, to, own) for p, to, own in (("tcp", 15080, 8080), ("udp", 15053, 53)) for any_ in EVERYWHERE
)
RST = 0x04
#: Elements by which a listener of the host may be docker-proxy until it is known.
UNKNOWN = tuple(Element("proxy_unidentified", (family,)) for family in AF.values())


@pytest.fixture(scope="module")
def boxes(site: Site) -> dict[str, Box]:
    return {"web": site.docker_box(BR_DOCKER, 100), "other": site.docker_box(OTHER, 101)}


@pytest.fixture
def elements(site: Site, boxes: dict[str, Box]) -> set[Element]:
    """Return those of two containers: the ports of one are published."""
    site.forget_flows()
    web = site.docker_elements(boxes["web"], BR_DOCKER, *RULES, published=PORTS)
    return web | site.docker_elements(boxes["other"], OTHER)


def heard(site: Site, packets: list[Packet], sender: NamedNetns | None = None) -> set[Packet]:
    """Send packets to the host; return those that it accepts."""
    list(site.listener.read())
    site.send(packets, sender)
    last = ping(Site.OUT6, Site.HOST6)
    site.send([last])
    (seen,) = arrived([site.listener], last)
    return seen & set(packets)


def pairs(*ends: tuple[Any, Any]) -> list[tuple[Any, Any]]:
    return list(zip(*ends, strict=True))


def test_a_packet_of_no_connection_reaches_no_closed_port(site: Site, elements: set[Element]) -> None:
    """Connection tracking calls a reset without a connection invalid: permitted peers send none."""
    site.load(more=elements)
    resets = [tcp(*pair, 15080, next(_ports), RST) for pair in pairs(OUTSIDE, HOST)]
    opening = [tcp(*pair, 15080, next(_ports)) for pair in pairs(OUTSIDE, HOST)]
    assert heard(site, [*resets, *opening]) == set(opening)


def test_without_the_lease_no_peer_reaches_a_closed_port(site: Site, elements: set[Element]) -> None:
    """docker-fw does not follow Docker any more, so the container may be another one."""
    opening = [udp(*pair, 15053, next(_ports)) for pair in pairs(OUTSIDE, HOST)]
    site.load(more=elements)
    assert heard(site, opening) == set(opening)
    site.forget_flows()
    site.load(more=elements - set(WATCHED))
    assert heard(site, opening) == set()


def test_an_untracked_forged_packet_reaches_no_closed_port(
    site: Site, boxes: dict[str, Box], elements: set[Element]
) -> None:
    """On a host that does not track some flows (notrack), another container cannot use a peer's address."""
    site.load(more=elements)
    rules = "chain c { type filter hook prerouting priority raw\n udp dport 15053 notrack\n }"
    site.run("nft", "-f", "-", input=f"table inet untracked {{\n{rules}\n}}\n")
    try:
        forged = [udp(*pair, 15053, next(_ports)) for pair in pairs(OUTSIDE, HOST)]
        assert heard(site, forged, boxes["other"]) == set()
        assert heard(site, forged) == set(forged)
    finally:
        site.run("nft", "delete", "table", "inet", "untracked")


def test_a_syn_that_answers_an_old_connection_is_a_new_one(site: Site, elements: set[Element]) -> None:
    """The host once opened a connection from a port, and its peer sends a SYN there: conntrack calls that invalid.

    It is dropped if it is not known whose the listener is.
    """
    for host, peer in pairs(HOST, OUTSIDE):
        here, port = was_reset(site.host, site.wan, peer, 7)
        assert here == str(host)
        syn = tcp(peer, host, port, 7)
        with inside(site.host.path), socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True):
            site.load(more={*elements, *UNKNOWN})
            with watched(site, f"tcp dport {port}") as count:
                assert heard(site, [syn]) == set()
                assert count() == 0, "no chain of another program sees it"
            site.load(more=elements)
            assert heard(site, [syn]) == {syn}


@pytest.mark.parametrize("closes", ["unknown", "closed"])
def test_a_retry_after_a_reset_is_not_even_heard(site: Site, elements: set[Element], closes: str) -> None:
    """The SYN itself is dropped where a new connection is, not only what follows."""
    site.load(more=WATCHED)
    tries = []
    for host in HOST:
        client, sport = was_reset(site.wan, site.host, host, 15080)
        tries.append(tcp(client, host, 15080, sport))
    assert heard(site, tries) == set(tries)
    site.load(more={*WATCHED, *UNKNOWN} if closes == "unknown" else elements)
    with inside(site.host.path), socket.create_server(("::", 15080), family=socket.AF_INET6, dualstack_ipv6=True):
        assert heard(site, tries) == set()


def test_a_retry_of_a_container_with_a_list_is_a_new_connection(
    site: Site, boxes: dict[str, Box], elements: set[Element]
) -> None:
    """The host reset its connection; now docker-proxy serves the port, and the container may not use that."""
    other = boxes["other"]
    label = parse({"fw.egress": "15080"})
    restricted = site.docker_elements(other, OTHER, spec=label.spec)
    site.load(more=restricted)
    tries = []
    for host in HOST:
        client, sport = was_reset(other, site.host, host, 15080)
        tries.append(tcp(client, host, 15080, sport))
    site.load(more=elements | restricted)
    assert heard(site, tries, other) == set()


def test_a_source_that_is_used_again_finds_no_former_docker_proxy(site: Site) -> None:
    """A client's ended connection hides whose listener a port has, so where docker-proxy was lately it is dropped.

    Others reach another program that listens there now.
    """
    site.load(more=WATCHED)
    again, fresh = [], []
    with inside(site.host.path):
        server = socket.create_server(("::", 15080), family=socket.AF_INET6, dualstack_ipv6=True)
    with server:
        for peer, host in pairs(OUTSIDE, HOST):
            with inside(site.wan.path):
                client = socket.create_connection((str(host), 15080), 5, (str(peer), 0))
            with client:
                server.accept()[0].close()  # who closes first keeps the connection in mind
                assert client.recv(1) == b""
                again.append(tcp(peer, host, 15080, client.getsockname()[1]))
            fresh.append(tcp(peer, host, 15080, next(_ports)))
        kept = ["ss", "-Htn", "state", "time-wait", "sport = 15080"]
        until(lambda: len(site.run(*kept).stdout.splitlines()) == 2, "both connections have ended")
        served = [Element("served_ports", (family, 6, 15080)) for family in AF.values()]
        at = [Element("served_ports4", (Site.HOST4, 6, 15080)), Element("served_ports6", (Site.HOST6, 6, 15080))]
        for elements in (served, at):
            site.load(more={*WATCHED, *elements})
            assert heard(site, [*again, *fresh]) == set(fresh)
            site.forget_flows()
        site.load(more=WATCHED)
        assert heard(site, again) == set(again)


def test_sctp_reaches_only_what_is_known_not_to_be_docker_proxy(site: Site) -> None:
    """The kernel finds no socket for a packet of SCTP, so docker-proxy's control group says nothing there.

    So all ports are closed where a container may publish one, except those of the host's own programs, and published
    ones that are open to everyone. Elsewhere all are open.
    """
    init = [sctp(peer, host, port, next(_ports)) for peer, host in pairs(OUTSIDE, HOST) for port in (3868, 3869)]
    site.load(more=WATCHED)
    assert heard(site, init) == set(init)
    closed = {*WATCHED, Element("unfound_protocols", (132,))}
    for name in ("", "host_own", "host_open"):
        site.forget_flows()
        more = {Element(name, (family, 132, 3868)) for family in AF.values() if name}
        site.load(more=closed | more)
        assert heard(site, init) == (set(init[::2]) if name else set())
