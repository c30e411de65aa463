"""Test every look-up by a block of ports and by a length of prefix: exactly the written ports and addresses match.

The table looks up single ports and blocks of 16, 256, 4,096 and all of them; for each, prefixes of some lengths. Every
rule here is of one block, and the packets are at its edges, from addresses at the edges of its prefixes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

import pytest

from plugin.labels.parser import parse
from plugin.model import Address, PolicySpec, Published
from plugin.nftables.sets import Element
from plugin.protocols import Proto
from tests.kernel.packets import Listener, Packet, Sniffer, arrived, new_flow, ping
from tests.kernel.site import Box, Site, claimed, egress_restricting, of_endpoint, site_of_module
from tests.lab import NamedNetns
from tests.lab.netns import FORWARDING

_ports = itertools.cycle(range(20000, 60000))
ANY = (IPv4Address("0.0.0.0"), IPv6Address("::"))
#: One rule for each size of block: its protocol, first and last port.
BLOCKS: tuple[tuple[Proto, int, int], ...] = (
    ("tcp", 7, 7),
    ("tcp", 32, 47),
    ("tcp", 512, 767),
    ("tcp", 4096, 8191),
    ("udp", 1, 65535),
)
#: Prefixes of three lengths in each family, with an address at each edge, inside and outside.
NARROW = "203.0.113.7 192.0.2.0/24 2001:db8:5::7 2001:db8:6:1::/64"
INSIDE = ("203.0.113.7", "192.0.2.255", "2001:db8:5::7", "2001:db8:6:1:ffff:ffff:ffff:ffff")
OUTSIDE = ("203.0.113.6", "192.0.3.0", "2001:db8:5::6", "2001:db8:6:2::")
ALL = "0.0.0.0/0 ::/0"


class Tried(NamedTuple):
    """A packet's protocol, port and other end."""

    proto: str
    port: int
    address: str


def written(blocks: Iterable[tuple[Proto, int, int]], peers: str) -> str:
    """Return the label that names these blocks; `peers`: what follows the ports."""
    return "\n".join(f"{first}-{last}/{proto} {peers}".replace("7-7/", "7/") for proto, first, last in blocks)


def edges(proto: str, first: int, last: int) -> Iterator[tuple[str, int, bool]]:
    """Yield the ports at the edges of a block, and whether they are inside."""
    yield from ((proto, port, True) for port in {first, last})
    yield from ((proto, port, False) for port in (first - 1, last + 1) if first > 1)


def tried(addresses: Iterable[str]) -> list[Tried]:
    return [Tried(proto, port, each) for block in BLOCKS for proto, port, _ in edges(*block) for each in addresses]


def inside(addresses: Iterable[str]) -> set[Tried]:
    return {
        Tried(proto, port, each)
        for block in BLOCKS
        for proto, port, within in edges(*block)
        if within
        for each in addresses
    }


def flow(proto: str, source: Address, target: Address, port: int) -> Packet:
    return new_flow(proto, source, target, port, next(_ports))


def heard(site: Site, ear: Sniffer | Listener, sent: dict[Packet, Tried], source: NamedNetns | None) -> set[Tried]:
    """Send the packets, then one that passes, and return which of them arrived."""
    list(ear.read())
    site.send(sent, source)
    last = ping(site.wan.V6, Site.HOST6) if ear is site.listener else None
    if last is None:
        last = ping(site.HOST6, Site.OUT6)
    site.send([last], None if ear is site.listener else site.host)
    (seen,) = arrived([ear], last)
    return {sent[packet] for packet in sent if packet in seen}


site = site_of_module(FORWARDING)


@pytest.fixture(scope="module")
def web(site: Site) -> Box:
    return site.box(site.network(1, bridge="front1"), 2)


@pytest.fixture(scope="module")
def docker(site: Site) -> Box:
    return site.docker_box("br-000000000001", 101)


@pytest.mark.parametrize(("peers", "reach"), [(NARROW, INSIDE), (ALL, INSIDE + OUTSIDE)], ids=["some", "all"])
def test_exactly_the_written_sources_reach_exactly_the_written_ports(
    site: Site, web: Box, peers: str, reach: tuple[str, ...]
) -> None:
    """`from` accepts the ports of each size of block from the prefixes of each length, and nothing beside them."""
    site.load(site.known(web, spec=parse({"fw.allow": written(BLOCKS, f"from {peers}")}).spec))
    sent = {
        flow(each.proto, ip_address(each.address), web.address(ip_address(each.address).version), each.port): each
        for each in tried(INSIDE + OUTSIDE)
    }
    got = site.deliver(sent, web, last=ping(site.wan.V6, web.v6))
    assert {sent[packet] for packet in got} == inside(reach)


@pytest.mark.parametrize("where", [ANY, (Site.HOST4, Site.HOST6)], ids=["all addresses", "one address"])
@pytest.mark.parametrize(("peers", "reach"), [(NARROW, INSIDE), (ALL, INSIDE + OUTSIDE)], ids=["some", "all"])
def test_exactly_the_written_sources_reach_a_published_port(
    site: Site, docker: Box, where: tuple[Address, Address], peers: str, reach: tuple[str, ...]
) -> None:
    """A port that docker-proxy serves has the sources of the container's port, in both families."""
    ports = tuple(Published("tcp", address, 8007, 7) for address in where)
    spec = parse({"fw.allow": f"7 from {peers}"}).spec
    site.load(more=site.docker_elements(docker, "br-000000000001", published=ports, spec=spec))
    sent = {}
    for each in INSIDE + OUTSIDE:
        source = ip_address(each)
        sent[flow("tcp", source, Site.HOST4 if source.version == 4 else Site.HOST6, 8007)] = Tried("tcp", 7, each)
    assert {each.address for each in heard(site, site.listener, sent, None)} == set(reach)


def egress(site: Site, box: Box, bridge: str, spec: PolicySpec) -> set[Element]:
    """Return the elements of a box with this policy, on a docker-fw network or on a Docker network."""
    if box.network:
        endpoint = site.known(box, spec=spec)
        return set(of_endpoint(site.inventory(endpoint), endpoint))
    return site.docker_elements(box, bridge, spec=spec)


@pytest.mark.parametrize(
    ("peers", "reach"),
    [(f"to {NARROW}", INSIDE), (f"to {ALL}", INSIDE + OUTSIDE), ("", INSIDE + OUTSIDE)],
    ids=["some", "all", "any"],
)
def test_exactly_the_written_destinations_are_reached(site: Site, web: Box, peers: str, reach: tuple[str, ...]) -> None:
    """`fw.egress` lets the ports of each size of block leave, to the prefixes of each length, and nothing beside."""
    site.load(more=egress(site, web, "front1", parse({"fw.egress": written(BLOCKS, peers)}).spec))
    sent = {
        flow(each.proto, web.address(ip_address(each.address).version), ip_address(each.address), each.port): each
        for each in tried(INSIDE + OUTSIDE)
    }
    assert heard(site, site.sniffer(site.wan), sent, web) == inside(reach)


def test_exactly_the_written_ports_of_the_host_are_reached(site: Site, web: Box) -> None:
    """`to host` is for the host's ports of each size of block, and for no other host."""
    site.load(more=egress(site, web, "front1", parse({"fw.egress": written(BLOCKS, "to host")}).spec))
    addresses = (str(Site.HOST4), str(Site.HOST6))
    sent = {
        flow(each.proto, web.address(ip_address(each.address).version), ip_address(each.address), each.port): each
        for each in tried((*addresses, *OUTSIDE))
    }
    assert heard(site, site.listener, sent, web) == inside(addresses)
    beyond = {packet: each for packet, each in sent.items() if each.address in OUTSIDE}
    assert not heard(site, site.sniffer(site.wan), beyond, web)


#: One port inside each block.
OF_EACH: tuple[tuple[Proto, int], ...] = tuple((proto, first + (first == 1)) for proto, first, _ in BLOCKS)


@pytest.mark.parametrize(
    "peers", ["", f"to {ALL}", "to 10.101.0.2 2001:db8:101::2", "to 10.101.0.0/24 2001:db8:101::/64", None]
)
def test_what_may_leave_may_not_enter_elsewhere(site: Site, web: Box, docker: Box, peers: str | None) -> None:
    """`fw.egress` is about the way out: another container's closed port stays closed to it, in both families.

    That is so for any list (`peers`: what follows its ports), and for a container without one.
    """
    label = "all" if peers is None else written(BLOCKS, peers)
    elements = egress(site, web, "front1", parse({"fw.egress": label}).spec) | egress_restricting("front1")
    site.load(more=elements | site.docker_elements(docker, "br-000000000001"))
    sent = {
        flow(proto, web.address(version), docker.address(version), port)
        for proto, port in OF_EACH
        for version in (4, 6)
    }
    assert not site.deliver(sent, docker, web, last=ping(site.wan.V6, docker.v6), witness=site.wan)


@pytest.mark.parametrize("label", [written(BLOCKS, "to host"), written(BLOCKS, ""), "all"], ids=["host", "list", "all"])
def test_what_may_reach_the_host_may_not_reach_its_closed_ports(site: Site, web: Box, docker: Box, label: str) -> None:
    """The same for ports that docker-proxy serves for another container, which does not accept them."""
    elements = egress(site, web, "front1", parse({"fw.egress": label}).spec) | egress_restricting("front1")
    ports = tuple(Published(proto, address, port, 9000) for proto, port in OF_EACH for address in ANY)
    site.load(more=elements | site.docker_elements(docker, "br-000000000001", published=ports))
    sent = {
        flow(proto, web.address(host.version), host, port): Tried(proto, port, str(host))
        for proto, port in OF_EACH
        for host in (Site.HOST4, Site.HOST6)
    }
    assert not heard(site, site.listener, sent, web)


@pytest.mark.parametrize("target", ["outside", "host"])
def test_docker_networks_have_their_egress_while_docker_fw_follows_docker(site: Site, docker: Box, target: str) -> None:
    """Without it an address may have another owner: nothing leaves a Docker network that is egress-restricted.

    That is so for the ports of a list, and for a container without one on such a network.
    """
    addresses = (Site.HOST4, Site.HOST6) if target == "host" else (Site.OUT4, Site.OUT6)
    ear = site.listener if target == "host" else site.sniffer(site.wan)
    for labels in ({"fw.egress": "443"}, {"fw.egress": "443 to host, 443 to 203.0.113.7 2001:db8:5::7"}, {}):
        elements = egress(site, docker, "br-000000000001", parse(labels).spec)
        elements |= egress_restricting("br-000000000001")
        for followed in (True, False):
            site.load(more=elements if followed else elements - claimed())
            sent = {
                flow("tcp", docker.address(address.version), address, 443): Tried("tcp", 443, str(address))
                for address in addresses
            }
            assert bool(heard(site, ear, sent, docker)) is followed
