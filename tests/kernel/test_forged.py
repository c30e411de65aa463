"""Test forged source addresses, sent by root in a container: a flow opens only from where its source belongs.

`NET_RAW` is among the capabilities that Docker gives by default, and no reply is needed: over UDP one packet is enough.
"""

from __future__ import annotations

import dataclasses
import itertools
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from plugin.model import Peer, Published, Rule
from plugin.nftables import table
from plugin.nftables.features import PROBES
from plugin.nftables.sets import Element
from tests.kernel.netns import inside
from tests.kernel.packets import Packet, arrived, icmp, mac, new_flow, packed, ping, portless, tcp, udp
from tests.kernel.site import Box, Site
from tests.lab.netns import FORWARDING

_ports = itertools.count(20000)
ONE, TWO = "br-0123456789ab", "br-ba9876543210"
#: The sources for which ports are open: the outsider, another network of the Internet, the host, two Docker networks.
FRIENDS = tuple(
    Peer("prefix", prefix)
    for prefix in (
        "203.0.113.0/24",
        "192.0.2.0/24",
        "198.51.100.0/24",
        "10.101.0.0/16",
        "10.2.0.0/16",
        "2001:db8:5::/48",
        "2001:db8:77::/48",
        "2001:db8:ffff::/64",
        "2001:db8:101::/64",
        "2001:db8:2::/64",
    )
)


@pytest.fixture(scope="module", params=[True, False], ids=["newer", "before 5.19"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """Yield a host for the tests of this module: of this kernel, and of one that looks routes up in prerouting only."""
    with pytest.MonkeyPatch.context() as patch, Site() as made:
        made.host.sysctl(FORWARDING)
        if not request.param:
            refused = {"late_fib": "delete table inet there-is-none\n"}
            patch.setattr(
                table, "PROBES", [each._replace(text=refused.get(each.feature, each.text)) for each in PROBES]
            )
        yield made


def test_a_source_is_looked_up_where_the_kernel_can(site: Site, request: pytest.FixtureRequest) -> None:
    """The table of an older kernel has a chain of its own for that; its hooks come before the packet is routed."""
    site.load()
    older = "before 5.19" in request.node.name
    assert site.nft.features.late_fib is not older
    assert ("chain reverse_path_early" in site.host.run(["nft", "list", "ruleset"]).stdout) is older


@dataclasses.dataclass(frozen=True)
class Boxes:
    """Containers on docker-fw networks, and on Docker networks."""

    ours: Box
    ours_too: Box
    docker: Box
    docker_too: Box


@pytest.fixture(scope="module")
def boxes(site: Site) -> Boxes:
    return Boxes(
        site.box(site.network(1), 2), site.box(site.network(2), 2), site.docker_box(ONE, 100), site.docker_box(TWO, 101)
    )


@pytest.fixture
def friendly(site: Site, boxes: Boxes) -> Boxes:
    """Return two containers, one on each kind of network, that accept UDP from friends; one also behind docker-proxy.

    The port of the second container on a docker-fw network is not bound to its addresses: it is not known, or the
    kernel has no bridge tables.
    """
    rules = tuple(Rule(proto, 53, 53, FRIENDS) for proto in ("udp", "sctp"))
    ports = tuple(Published("udp", any_, 15353, 53) for any_ in (IPv4Address("0.0.0.0"), IPv6Address("::")))
    site.load(
        site.known(boxes.ours, *rules),
        more=site.docker_elements(boxes.docker, ONE, *rules, published=ports)
        | site.docker_elements(boxes.docker_too, TWO),
    )
    return boxes


def forged(forger: Box) -> list[Any]:
    """Return sources that are not where the forger is: the Internet's, the host's, other networks', unused ones."""
    four = ["203.0.113.7", "192.0.2.9", Site.HOST4, "10.100.0.1", "10.2.0.2", "10.101.0.2"]
    six = ["2001:db8:5::7", "2001:db8:77::9", Site.HOST6, "2001:db8:100::1", "2001:db8:2::2", "2001:db8:101::2"]
    elsewhere = [*four, *six]
    return [source for source in elsewhere if str(source) not in (str(forger.v4), str(forger.v6))]


def to(target: tuple[Any, Any], source: Any) -> Any:
    return target[":" in str(source)]


@pytest.mark.parametrize("forger", ["docker_too", "ours_too"])
@pytest.mark.parametrize("target", ["ours", "docker", "host port", "outside"])
def test_a_flow_opens_only_where_its_source_belongs(site: Site, friendly: Boxes, forger: str, target: str) -> None:
    """A container gains nothing from the address of a source to which a port is open.

    Not at another network's container, and not at docker-proxy's port; an accomplice cannot be made to reply either.
    """
    sender = getattr(friendly, forger)
    ends: dict[str, tuple[Any, Any]] = {
        "ours": (friendly.ours.v4, friendly.ours.v6), "docker": (friendly.docker.v4, friendly.docker.v6),
        "host port": (Site.HOST4, Site.HOST6), "outside": (Site.OUT4, Site.OUT6),
    }  # fmt: skip
    there, port = ends[target], 15353 if target == "host port" else 53
    packets = [
        new_flow(proto, a, to(there, a), port, next(_ports)) for a in forged(sender) for proto in ("udp", "sctp")
    ]
    packets += [ping(a, to(there, a)) for a in forged(sender)]
    last = ping(sender.v6, there[1])
    ears = {"ours": friendly.ours, "docker": friendly.docker, "outside": site.wan}
    ear = site.listener if target == "host port" else site.sniffer(ears[target])
    list(ear.read())
    site.send([*packets, last], sender)
    (seen,) = arrived([ear], last)
    assert seen & set(packets) == set()
    # The same from where the sources belong.
    true = [udp(Site.OUT4, to(there, Site.OUT4), port, next(_ports)), udp(Site.OUT6, there[1], port, next(_ports))]
    if target != "outside":
        site.send(true)
        site.send([last := ping(Site.OUT6, there[1])])
        (seen,) = arrived([ear], last)
        assert seen >= set(true)


def test_untracked_forged_packets_are_dropped(site: Site, friendly: Boxes) -> None:
    """On a host that does not track some flows (notrack), a forged packet of them is dropped as well."""
    rules = "chain c { type filter hook prerouting priority raw\n udp dport 53 notrack\n }"
    site.run("nft", "-f", "-", input=f"table inet untracked {{\n{rules}\n}}\n")
    try:
        ours, sender = (friendly.ours.v4, friendly.ours.v6), friendly.docker_too
        packets = [udp(a, to(ours, a), 53, next(_ports)) for a in forged(sender)]
        assert site.deliver(packets, friendly.ours, sender, ping(sender.v6, friendly.ours.v6)) == set()
        true = [udp(Site.OUT4, friendly.ours.v4, 53, next(_ports)), udp(Site.OUT6, friendly.ours.v6, 53, next(_ports))]
        assert site.deliver(true, friendly.ours) == set(true)
    finally:
        site.run("nft", "delete", "table", "inet", "untracked")


def test_a_forged_packet_of_no_flow_is_dropped(site: Site, friendly: Boxes) -> None:
    """A segment that connection tracking calls invalid leaves a network only with a source that belongs there."""
    sender = friendly.docker_too
    packets = [tcp(a, to((Site.OUT4, Site.OUT6), a), 80, next(_ports), 0x06) for a in forged(sender)]
    assert site.deliver(packets, site.wan, sender, ping(sender.v6, Site.OUT6)) == set()
    own = [tcp(sender.v4, Site.OUT4, 80, next(_ports), 0x06), tcp(sender.v6, Site.OUT6, 80, next(_ports), 0x06)]
    assert site.deliver(own, site.wan, sender, ping(sender.v6, Site.OUT6)) == set(own)


@pytest.mark.parametrize("where", ["ours_too", "docker_too"])
def test_a_router_on_a_network_passes_where_the_host_has_a_route_back(site: Site, friendly: Boxes, where: str) -> None:
    """Packets from behind a router container pass if the host has a route back through it, else not.

    The container is a VPN or router that does not masquerade.
    """
    sender: Box = getattr(friendly, where)
    bridge = (
        TWO
        if where == "docker_too"
        else next(n for n in site.networks.values() if n.gateway4 and sender.v4 in n.gateway4.network).bridge
    )
    ours = (friendly.ours.v4, friendly.ours.v6)
    behind = [udp(a, to(ours, a), 53, next(_ports)) for a in ("192.0.2.9", "2001:db8:77::9")]
    last = ping(sender.v6, friendly.ours.v6)
    assert site.deliver(behind, friendly.ours, sender, last) == set()
    routes = [f"192.0.2.0/24 via {sender.v4}", f"2001:db8:77::/48 via {sender.v6}"]
    site.host.ip(*(f"route add {route} dev {bridge}" for route in routes))
    try:
        assert site.deliver(behind, friendly.ours, sender, ping(sender.v6, friendly.ours.v6)) == set(behind)
    finally:
        site.host.ip(*(f"route del {route} dev {bridge}" for route in routes))


def test_a_container_without_an_address_can_request_one(site: Site, friendly: Boxes) -> None:
    """Packets with an unspecified or link-local source reach the host.

    The unspecified source is that of DHCP, of duplicate address detection and of multicast reports.
    """
    sender = friendly.docker_too
    own = sender.run(["cat", "/sys/class/net/eth0/address"]).stdout.strip()
    listing = sender.run(["ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "link"]).stdout
    fe80 = listing.split("inet6 ")[1].split("/")[0]
    packets = {
        "icmpv6 type nd-neighbor-solicit ip6 saddr ::": icmp("::", "ff02::1", 135, body=bytes(4) + packed("fe80::9")),
        "icmpv6 type nd-router-solicit ip6 saddr ::": icmp("::", "ff02::1", 133, body=bytes(4)),
        "icmpv6 type mld2-listener-report ip6 saddr ::": icmp("::", "ff02::1", 143, body=bytes(4)),
        "udp dport 67 ip saddr 0.0.0.0": udp("0.0.0.0", "255.255.255.255", 67, 68),
        f"udp dport 547 ip6 saddr {fe80}": udp(fe80, "ff02::1", 547, 546),
        "udp dport 5353 ip saddr 203.0.113.7": udp("203.0.113.7", "255.255.255.255", 5353, 5353),
    }
    rules = "\n".join(f"{rule} counter" for rule in packets)
    text = f"table inet watch {{\nchain i {{\ntype filter hook input priority 10;\n{rules}\n}}\n}}\n"
    site.run("nft", "-f", "-", input=text)
    try:
        ears = site.listener
        list(ears.read())
        with inside(sender.path), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind(("eth0", 0))
            for packet in packets.values():
                six = len(packet.dst) == 16
                body = bytes(packet)[:7] + b"\xff" + bytes(packet)[8:] if six else bytes(packet)
                to_all = b"\x33\x33\0\0\0\1" if six else b"\xff" * 6
                sock.send(to_all + mac(own) + (b"\x86\xdd" if six else b"\x08\0") + body)
        last = ping(sender.v6, "2001:db8:101::1")
        site.send([last], sender)
        arrived([ears], last)
        shown = site.run("nft", "list", "table", "inet", "watch").stdout.splitlines()
        counts = [int(line.split("packets ")[1].split()[0]) for line in shown if "packets " in line]
        assert dict(zip(packets, counts, strict=True)) == {rule: int("203" not in rule) for rule in packets}
    finally:
        site.run("nft", "delete", "table", "inet", "watch")


@pytest.mark.parametrize("kind", ["ours_too", "docker_too"])
def test_neighbours_may_use_any_source_address(site: Site, friendly: Boxes, kind: str) -> None:
    """Where br_netfilter passes a bridge's internal packets to the rules, neighbours talk from any address.

    On an older kernel they need a source that the host has a route to there.
    """
    sender: Box = getattr(friendly, kind)
    near = neighbour(site, sender)
    site.host.sysctl({f"net/bridge/bridge-nf-call-{family}": 1 for family in ("iptables", "ip6tables")})
    try:
        packets = [udp(a, to((near.v4, near.v6), a), 9, next(_ports)) for a in ("192.0.2.9", "2001:db8:77::9")]
        expected = set(packets) if site.nft.features.late_fib else set()
        assert site.deliver(packets, near, sender, ping(sender.v6, near.v6)) == expected
    finally:
        site.host.sysctl({f"net/bridge/bridge-nf-call-{family}": 0 for family in ("iptables", "ip6tables")})


def test_no_neighbour_is_a_router_where_the_hosts_rules_see_it(site: Site, friendly: Boxes) -> None:
    """Where br_netfilter passes a Docker bridge's internal packets to the rules, router advertisements are dropped."""
    sender = friendly.docker_too
    near = neighbour(site, sender)
    site.host.sysctl({f"net/bridge/bridge-nf-call-{family}": 1 for family in ("iptables", "ip6tables")})
    try:
        advert = icmp(sender.v6, near.v6, 134, 0, bytes(12))
        assert site.deliver([advert], near, sender, ping(sender.v6, near.v6)) == set()
    finally:
        site.host.sysctl({f"net/bridge/bridge-nf-call-{family}": 0 for family in ("iptables", "ip6tables")})


def neighbour(site: Site, sender: Box) -> Box:
    """Return another container on the network of one of the two that forge, `.2` on network 2 or 101."""
    number = sender.v4.packed[1]
    near = next((b for b in site.boxes if str(b.v4) == f"10.{number}.0.3"), None)
    if near is None:
        near = site.docker_box(TWO, 101, 3) if number == 101 else site.box(_network(site, sender), 3)
        site.acquaint(sender, near)
    return near


def _network(site: Site, box: Box) -> Any:
    return next(n for n in site.networks.values() if n.gateway4 and box.v4 in n.gateway4.network)


def test_behind_an_unmanaged_bridge_any_source_is_accepted(site: Site, friendly: Boxes) -> None:
    """An unmanaged bridge (virtual machines, a LAN) is a link like any other.

    Hosts behind it may use any address that is no container's.
    """
    friend = next((b for b in site.boxes if str(b.v4) == "10.103.0.2"), None) or site.docker_box("virbr0", 103)
    site.forget_flows()
    rules = (Rule("udp", 53, 53, FRIENDS),)
    site.load(site.known(friendly.ours, *rules), more=[Element("unmanaged", (site.index("virbr0"),))])
    ours = (friendly.ours.v4, friendly.ours.v6)
    packets = [udp(a, to(ours, a), 53, next(_ports)) for a in ("192.0.2.9", "2001:db8:77::9")]
    assert site.deliver(packets, friendly.ours, friend, ping(friend.v6, friendly.ours.v6)) == set(packets)
    packets = [udp(a, to(ours, a), 53, next(_ports)) for a in ("10.2.0.2", "2001:db8:2::2")]
    assert site.deliver(packets, friendly.ours, friend, ping(friend.v6, friendly.ours.v6)) == set()


def test_protocols_without_ports_as_well(site: Site, friendly: Boxes) -> None:
    """Forged GRE, ESP and AH from a friend's address are dropped too, where they are open to friends."""
    protos = ("gre", "esp", "ah")
    site.load(site.known(friendly.ours, *(Rule(proto, 0, 0, FRIENDS) for proto in protos)))
    sender, ours = friendly.docker_too, (friendly.ours.v4, friendly.ours.v6)
    packets: list[Packet] = [portless(proto, a, to(ours, a)) for a in forged(sender) for proto in protos]
    assert site.deliver(packets, friendly.ours, sender, ping(sender.v6, friendly.ours.v6)) == set()
    packets = [portless(proto, a, to(ours, a)) for a in (Site.OUT4, Site.OUT6) for proto in protos]
    assert site.deliver(packets, friendly.ours) == set(packets), "the friend itself"


def test_the_hosts_own_address_as_a_source_gains_nothing(site: Site, friendly: Boxes) -> None:
    """An outsider with an address of the host, which may be in a network to which a port is open, gains nothing.

    It reaches neither a container nor docker-proxy's port. (Linux checks only IPv4 sources for such martians.)
    """
    own = [Site.HOST6, IPv6Address("2001:db8:2::1"), IPv6Address("2001:db8:101::1")]
    for to_, port, ear in (
        (friendly.ours.v6, 53, site.sniffer(friendly.ours)),
        (friendly.docker.v6, 53, site.sniffer(friendly.docker)),
        (Site.HOST6, 15353, site.listener),
    ):
        packets = [udp(a, to_, port, next(_ports)) for a in own]
        list(ear.read())
        last = ping(Site.OUT6, to_)
        site.send([*packets, last])
        (seen,) = arrived([ear], last)
        assert seen & set(packets) == set()
