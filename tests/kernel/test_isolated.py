"""Test isolated Docker networks (gateway mode `isolated`, Docker ≥ 28): internal, and the host has no address on them.

With br_netfilter the rules see the packets between their containers, and the host has no route to either of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from plugin.nftables.sets import WATCHED, Element
from tests.kernel.packets import arrived, icmp_error, new_flow, ping, tcp, udp
from tests.kernel.site import BRIDGED_FRAMES_UNTRACKED, Box, Site, site_of_module
from tests.lab.netns import FORWARDING

PROTOS = ("tcp", "udp", "sctp")
ISOLATED, OTHER = "br-150000000110", "br-150000000111"
_ports = itertools.cycle(range(20000, 60000))

site = site_of_module(FORWARDING)
Pair = tuple[Box, Box]


@pytest.fixture(scope="module")
def pair(site: Site) -> Pair:
    """Return two containers on a bridge on which the host has no address."""
    one, two = site.docker_box(ISOLATED, 110), site.docker_box(ISOLATED, 110, 3)
    site.acquaint(one, two)
    site.host.ip(f"addr flush dev {ISOLATED} scope global")
    return one, two


@pytest.fixture(scope="module")
def other(site: Site) -> Box:
    """Return a container on another Docker network."""
    return site.docker_box(OTHER, 111)


@pytest.fixture(params=[0, 1], ids=["br_netfilter off", "br_netfilter on"])
def netfilter(request: pytest.FixtureRequest, site: Site) -> Iterator[int]:
    """Set whether the rules see the packets within a bridge."""
    site.host.sysctl(dict.fromkeys(BRIDGED_FRAMES_UNTRACKED, request.param))
    yield request.param
    site.host.sysctl(BRIDGED_FRAMES_UNTRACKED)


@pytest.fixture
def loaded(site: Site, pair: Pair, other: Box) -> None:
    """Load the table as it is when docker-fw knows both networks, and the other one's container."""
    both = {Element("same_bridge", (each, each)) for each in (ISOLATED, OTHER)}
    bridges = {Element(name, (each,)) for name in ("dockers", "protected_bridges") for each in (ISOLATED, OTHER)}
    internal = {Element("internal", (ISOLATED,))}
    site.load(more=both | bridges | internal | set(WATCHED) | site.docker_elements(other, OTHER))
    site.forget_flows()


def families(one: Box, two: Box) -> list[tuple[Any, Any]]:
    return [(one.v4, two.v4), (one.v6, two.v6)]


@pytest.mark.usefixtures("loaded", "netfilter")
def test_containers_of_an_isolated_network_talk(site: Site, pair: Pair) -> None:
    """They reach each other on every port, as with Docker alone, whether the rules see their packets or not."""
    for one, two in (pair, pair[::-1]):
        sent = [new_flow(proto, *ends, 5432, next(_ports)) for ends in families(one, two) for proto in PROTOS]
        assert site.deliver(sent, two, one) == set(sent)


@pytest.mark.usefixtures("loaded", "netfilter")
def test_nothing_enters_or_leaves(site: Site, pair: Pair, other: Box) -> None:
    """A container of an isolated network is not reached from outside or from another network, and reaches neither."""
    one, two = pair
    for source in (None, other):
        ends = [(Site.OUT4, one.v4), (Site.OUT6, one.v6)] if source is None else families(other, one)
        sent = [new_flow(proto, *each, 80, next(_ports)) for each in ends for proto in PROTOS]
        last = ping(two.v6, one.v6)
        assert site.deliver(sent, one, source, last, two) == set()
    for target in (site.wan, other):
        ends = [(one.v4, Site.OUT4), (one.v6, Site.OUT6)] if target is site.wan else families(one, other)
        sent = [new_flow(proto, *each, 80, next(_ports)) for each in ends for proto in PROTOS]
        last = ping(other.v6, Site.OUT6) if target is site.wan else ping(Site.OUT6, other.v6)
        assert site.deliver(sent, target, one, last, other if target is site.wan else site.wan) == set()


@pytest.mark.usefixtures("loaded", "netfilter")
@pytest.mark.parametrize("where", ["outside", "another network", "the host"])
def test_a_flow_that_two_containers_forge_is_no_way_out(site: Site, pair: Pair, other: Box, where: str) -> None:
    """One container sends its accomplice packets from a foreign address; what the accomplice replies does not leave.

    Nor does an ICMP error about such a packet, nor do replies reach the host as a flow that it opened itself.
    """
    one, two = pair
    far4, far6 = IPv4Address("203.0.113.99"), IPv6Address("2001:db8:5::99")
    foreign: list[tuple[Any, Any]] = {
        "outside": [(far4, two.v4), (far6, two.v6)],
        "another network": families(other, two),
        "the host": [(Site.HOST4, two.v4), (Site.HOST6, two.v6)],
    }[where]
    # The outsider has no such address, which would answer a reply by a reset. It sees the packets on its link.
    forged = [packet for src, dst in foreign for packet in (tcp(src, dst, 4444, 8080), udp(src, dst, 4444, 8080))]
    back = [
        packet
        for src, dst in foreign
        for packet in (tcp(dst, src, 8080, 4444, 0x12, 1001), udp(dst, src, 8080, 4444, b"reply"))
    ]
    for (src, dst), about in zip(foreign, forged[1::2], strict=True):
        unreachable = (3, 3) if src.version == 4 else (1, 4)
        back.append(icmp_error(dst, about, *unreachable))
    site.send(forged, one)
    hears = {"outside": site.sniffer(site.wan), "another network": site.sniffer(other), "the host": site.listener}[
        where
    ]
    last = {
        "outside": ping(other.v6, Site.OUT6),
        "another network": ping(Site.OUT6, other.v6),
        "the host": ping(Site.OUT6, Site.HOST6),
    }[where]
    list(hears.read())
    site.send(back, two)
    site.send([last], other if where == "outside" else site.wan)
    (seen,) = arrived([hears], last)
    assert not seen & set(back)
