"""Test rates of ranges of ports, of a published port on one address, and what counts as a new flow."""

from __future__ import annotations

import itertools
import re
import time
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from plugin.model import Published
from plugin.nftables.rate_chains import NEW, NEW_OF_ONE
from tests.kernel.packets import Packet, arrived, new_flow, ping, tcp, udp
from tests.kernel.site import BR_DOCKER, Box, Site, site_of_module
from tests.lab.netns import FORWARDING
from tests.specs import spec_of

site = site_of_module(FORWARDING)
_ports = itertools.count(20000)
VERSIONS = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module")
def guest(site: Site) -> Box:
    return site.docker_box(BR_DOCKER, 100)


def ends(site: Site, guest: Box, version: int) -> tuple[Any, Any]:
    return site.OUT4 if version == 4 else site.OUT6, guest.address(version)


@VERSIONS
@pytest.mark.parametrize("ports", ["8000-8015", "8192-8447", "8192-12287", "1-65535"])
def test_each_port_of_a_range_has_the_rate(site: Site, guest: Box, version: int, ports: str) -> None:
    """The table keeps a range as blocks of 16, 256, 4,096 and 65,536 ports: the rate holds in each of them."""
    site.load(more=site.docker_elements(guest, BR_DOCKER, spec=spec_of(rate=f"{ports} 1/hour burst 1", allow=ports)))
    source, target = ends(site, guest, version)
    first, last = map(int, ports.split("-"))
    sent = [new_flow("tcp", source, target, port, next(_ports)) for port in (first, last) * 2]
    assert site.deliver(sent, guest) == set(sent[:2])


@VERSIONS
def test_a_segment_of_no_connection_is_a_new_flow(site: Site, guest: Box, version: int) -> None:
    """Connection tracking takes up a connection in its middle: such a segment counts like a SYN."""
    site.load(more=site.docker_elements(guest, BR_DOCKER, spec=spec_of(rate="80 1/hour burst 2")))
    source, target = ends(site, guest, version)
    sent = [tcp(source, target, 80, next(_ports), 0x10, 1) for _ in range(4)]
    assert site.deliver(sent, guest) == set(sent[:2])


@VERSIONS
@pytest.mark.parametrize("where", ["every address", "one address"])
def test_a_port_that_docker_proxy_serves_has_the_rate(site: Site, guest: Box, version: int, where: str) -> None:
    """Whether it is published on every address of the host or on one."""
    source, host = (site.OUT4, site.HOST4) if version == 4 else (site.OUT6, site.HOST6)
    any_ = IPv4Address("0.0.0.0") if version == 4 else IPv6Address("::")
    port = Published("tcp", any_ if where == "every address" else host, 15432, 5432)
    spec = spec_of(rate="5432 1/hour burst 2", allow="5432")
    site.load(more=site.docker_elements(guest, BR_DOCKER, spec=spec, published=(port,)))
    sent: list[Packet] = [new_flow("tcp", source, host, 15432, next(_ports)) for _ in range(4)]
    list(site.listener.read())
    last = ping(site.wan.V6, site.HOST6)
    site.send([*sent, last])
    (seen,) = arrived([site.listener], last)
    assert seen & set(sent) == set(sent[:2])


#: A source is forgotten when its burst is there again, after this number of seconds.
SLOW, MEMORY = "2/minute burst 1", 30


def most(at_once: int, began: float) -> float:
    """Return how many new sources pass since then at most (monotonic time), of which so many at once."""
    return at_once * (1 + (time.monotonic() - began + 2) / MEMORY)


@VERSIONS
def test_one_network_leaves_room_for_others(site: Site, guest: Box, version: int) -> None:
    """One client that tries thousands of ports is one network, which may add only a part of the sources."""
    ports = "10000-13000"
    spec = spec_of(rate=f"{ports}/udp {SLOW}", allow=f"{ports}/udp")
    site.load(more=site.docker_elements(guest, BR_DOCKER, spec=spec))
    source, target = ends(site, guest, version)
    scan = [udp(source, target, port, 9) for port in range(10000, 13000)]
    began = time.monotonic()
    passed = len(site.deliver(scan, guest))
    assert NEW_OF_ONE <= passed <= most(NEW_OF_ONE, began)
    other = udp("192.0.2.9" if version == 4 else "2001:db8:6::7", target, 12999, 9)
    assert site.deliver([other], guest) == {other}


@VERSIONS
def test_many_networks_do_not_fill_the_set(site: Site, guest: Box, version: int) -> None:
    """Forged sources from all over the Internet are refused when the set has as many as it may add at once."""
    site.load(more=site.docker_elements(guest, BR_DOCKER, spec=spec_of(rate=f"53/udp {SLOW}", allow="53/udp")))
    _, target = ends(site, guest, version)
    networks = [
        f"20.{i >> 8}.{i & 255}.9" if version == 4 else f"2001:db8:{i:x}:1::9" for i in range(0x600, 0x600 + 6000)
    ]
    sent = [udp(source, target, 53, 9) for source in networks]
    last, began = ping(*ends(site, guest, version)), time.monotonic()
    passed = len(site.deliver(sent, guest, last=last))
    assert NEW <= passed <= most(NEW, began)


@VERSIONS
@pytest.mark.parametrize("where", ["container", "host"])
def test_each_syn_counts(site: Site, guest: Box, version: int, where: str) -> None:
    """Once the server has answered, another SYN from the same port is of an established flow; it counts, too."""
    host, any_ = (site.HOST4, IPv4Address("0.0.0.0")) if version == 4 else (site.HOST6, IPv6Address("::"))
    spec = spec_of(rate="80 1/hour burst 2")
    published = (Published("tcp", any_, 15080, 80),)
    site.load(more=site.docker_elements(guest, BR_DOCKER, spec=spec, published=published))
    site.forget_flows()
    source, sport = "192.0.2.9" if version == 4 else "2001:db8:6::7", next(_ports)
    server, target, dport = (guest, guest.address(version), 80) if where == "container" else (site.host, host, 15080)
    ear = site.sniffer(guest) if where == "container" else site.listener
    sent = [tcp(source, target, dport, sport, seq=1000 + n) for n in range(4)]
    with server.probe.serve(tcp=[dport]):
        list(ear.read())
        site.send([*sent, last := ping(site.OUT6, guest.v6 if where == "container" else site.HOST6)])
        (seen,) = arrived([ear], last)
    assert seen & set(sent) == set(sent[:2])


@VERSIONS
@pytest.mark.parametrize("where", ["container", "host"])
def test_a_forged_source_proves_nothing(site: Site, guest: Box, version: int, where: str) -> None:
    """Once the server has answered, a second SYN and a reset are of an established flow: a forged source sends those.

    Only a handshake lets a source be remembered for as long as its rate says, also at a port of docker-proxy's.
    """
    host, any_ = (site.HOST4, IPv4Address("0.0.0.0")) if version == 4 else (site.HOST6, IPv6Address("::"))
    port = Published("tcp", any_, 15080, 80)
    spec = spec_of(rate="80 1/hour burst 9")
    site.load(more=site.docker_elements(guest, BR_DOCKER, spec=spec, published=(port,)))
    site.forget_flows()
    source, sport = "192.0.2.9" if version == 4 else "2001:db8:6::7", next(_ports)
    server, target, dport = (guest, guest.address(version), 80) if where == "container" else (site.host, host, 15080)
    with server.probe.serve(tcp=[dport]):
        for flags, seq in ((0x02, 1000), (0x02, 1000), (0x04, 1001)):
            site.send([tcp(source, target, dport, sport, flags, seq=seq)])
        assert site.wan.probe.ping(str(target)) == "open"
    assert elements_of(site, "sources") == 1
    assert elements_of(site, "proven") == 0


def elements_of(site: Site, kind: str) -> int:
    """Return the number of the sets of this kind that have elements."""
    sets = re.findall(rf"set {kind}\w*\S* \{{\n(.*?)\n\t\}}", site.run("nft", "list", "ruleset").stdout, re.DOTALL)
    assert sets
    return sum("elements" in text for text in sets)
