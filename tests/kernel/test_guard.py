"""Test Docker networks' bridges that the table protects: real packets there meet the policy."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import subprocess
import sys
from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from plugin.kernel import conntrack, link_monitor
from plugin.kernel.link_monitor import Link, LinkChange
from plugin.model import AddressPolicy, BridgeNetwork, Container, Defaults, Policy, Published, Rule
from plugin.nftables.elements import guest_elements
from plugin.nftables.sets import WATCHED, Change, Element
from plugin.policy.decide import of
from plugin.policy.flows import Way
from plugin.protocols import NUMBER
from plugin.state.closed_flows import cut_closed
from tests.kernel.marks import Marks
from tests.kernel.packets import Packet, icmp, icmp_error, ping, sctp, tcp, udp
from tests.kernel.running import Running
from tests.kernel.site import BR_DOCKER, Box, Site, arriving, site_of_module
from tests.lab.netns import FORWARDING
from tests.waiting import until

PROTOS = ("tcp", "udp", "sctp")
_ports = itertools.cycle(range(20000, 60000))
CHOSEN = "front1"


site = site_of_module(FORWARDING)


@dataclasses.dataclass(frozen=True)
class Boxes:
    """Two containers on a bridge with Docker's name, one on another, one on a bridge with the user's name."""

    web: Box
    other: Box
    chosen: Box


@pytest.fixture(scope="module")
def boxes(site: Site) -> Boxes:
    return Boxes(site.docker_box(BR_DOCKER, 100), site.docker_box("br-ba9876543210", 101), site.docker_box(CHOSEN, 102))


@pytest.fixture(scope="module")
def ours(site: Site) -> Box:
    """Return a container on a docker-fw network."""
    return site.box(site.network(7), 2)


BASE = {"22/tcp", "80/tcp", "443/tcp"}


# --- no container is known --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["web", "chosen"])
def test_a_docker_bridge_is_closed_before_any_container_is_known(site: Site, boxes: Boxes, which: str) -> None:
    """With an empty table only ICMP reaches a container on a bridge, whatever the bridge's name."""
    site.load()
    assert arriving(site, getattr(boxes, which)) == set()


def test_the_base_opens_once_the_container_is_known(site: Site, boxes: Boxes) -> None:
    """An address has its base ports once its container is known, on its own bridge of any name, and on no other."""
    site.load(more=site.docker_elements(boxes.web, BR_DOCKER))
    assert arriving(site, boxes.web) == BASE
    assert arriving(site, boxes.other) == set()
    site.load(more=site.docker_elements(boxes.chosen, CHOSEN))
    assert arriving(site, boxes.chosen) == BASE


# --- which bridges are protected --------------------------------------------------------------------------------------


def test_an_unmanaged_bridge_is_left_alone(site: Site, boxes: Boxes) -> None:
    """A bridge of another owner (libvirt, br-lan) is reachable on every port, as without docker-fw."""
    everything = {f"{port}/{proto}" for port in (21, 22, 53, 80, 443, 8080) for proto in PROTOS}
    site.load(more=[Element("unmanaged", (site.index(CHOSEN),))])
    assert arriving(site, boxes.chosen) == everything
    assert arriving(site, boxes.chosen, boxes.web) == everything
    assert arriving(site, boxes.web, boxes.chosen) == set()


def test_an_exemption_is_of_the_bridge_not_of_its_name(site: Site) -> None:
    """A bridge is removed and another of its name is created: the exemption does not carry over."""
    old = site.docker_box("net7", 104)
    number = site.index("net7")
    site.load(more=[Element("unmanaged", (number,))])
    assert "8080/tcp" in arriving(site, old)
    site.host.ip("link del net7", "link del d104")
    new = site.docker_box("net7", 104)
    assert site.index("net7") != number
    assert arriving(site, new) == set()


def test_other_networks_come_from_outside_too(site: Site, boxes: Boxes, ours: Box) -> None:
    """From one Docker network to another the policy applies as for any source.

    The same is true from a container on a docker-fw network.
    """
    site.load(site.known(ours, Rule("tcp", 8080, 8080)), more=site.docker_elements(boxes.web, BR_DOCKER))
    assert arriving(site, boxes.web, boxes.other) == BASE
    assert arriving(site, boxes.web, ours) == BASE
    assert arriving(site, ours, boxes.web) == {*BASE, "8080/tcp"}


@pytest.mark.parametrize("netfilter", [0, 1])
def test_containers_of_one_network_talk_freely(site: Site, boxes: Boxes, netfilter: int) -> None:
    """Within one bridge every port is open, also where the firewall sees the packets of a bridge."""
    twin = next((b for b in site.boxes if b.v4 == IPv4Address("10.105.0.2")), None) or site.docker_box(BR_DOCKER, 105)
    site.host.ip(
        f"addr replace 10.105.0.1/24 dev {BR_DOCKER}", f"addr replace 2001:db8:105::1/64 dev {BR_DOCKER} nodad"
    )
    site.host.sysctl({f"net/bridge/bridge-nf-call-{kind}": netfilter for kind in ("iptables", "ip6tables")})
    mac = {b: b.run(["cat", "/sys/class/net/eth0/address"]).stdout.strip() for b in (twin, boxes.web)}
    boxes.web.ip(
        "route replace 10.105.0.0/24 dev eth0",
        "route replace 2001:db8:105::/64 dev eth0",
        f"neigh replace {twin.v4} lladdr {mac[twin]} dev eth0 nud permanent",
        f"neigh replace {twin.v6} lladdr {mac[twin]} dev eth0 nud permanent",
    )
    site.load(more=[Element("same_bridge", (BR_DOCKER, BR_DOCKER))])
    try:
        assert "8080/udp" in arriving(site, twin, boxes.web)
        assert arriving(site, twin) == set()
    finally:
        site.host.sysctl({f"net/bridge/bridge-nf-call-{kind}": 0 for kind in ("iptables", "ip6tables")})


def test_the_host_and_replies_and_the_way_out(site: Site, boxes: Boxes) -> None:
    """The host reaches every port of a container; a container reaches every address, and the replies arrive."""
    site.load(more=site.docker_elements(boxes.web, BR_DOCKER, known=False))
    with boxes.web.probe.serve(tcp=[5432], udp=[53]), site.wan.probe.serve(tcp=[9001], udp=[9001]):
        inside = [("tcp", str(boxes.web.v6), 5432), ("udp", str(boxes.web.v4), 53)]
        assert set(site.host.probe(inside).values()) == {"open"}
        away = [(proto, str(address), 9001) for address in (Site.OUT4, Site.OUT6) for proto in ("tcp", "udp")]
        assert set(boxes.web.probe(away).values()) == {"open"}
        assert site.wan.probe.tcp(str(boxes.web.v6), 5432, timeout=0.2) == "silent"


def test_ping_and_errors_pass_and_redirects_do_not(site: Site, boxes: Boxes) -> None:
    """Useful ICMP reaches a container on a bridge of Docker's: echo, and errors for path MTU discovery."""
    site.load(more=site.docker_elements(boxes.web, BR_DOCKER))
    about4, about6 = tcp(boxes.web.v4, Site.OUT4, 443, 1), tcp(boxes.web.v6, Site.OUT6, 443, 1)
    good = [
        ping(Site.OUT4, boxes.web.v4),
        ping(Site.OUT6, boxes.web.v6),
        icmp_error(Site.OUT4, about4, 3, 4, 1280),
        icmp_error(Site.OUT6, about6, 2, 0, 1280),
    ]
    bad = [icmp(Site.OUT4, boxes.web.v4, 13, 0, bytes(16)), icmp(Site.OUT6, boxes.web.v6, 139, 0, bytes(16))]
    assert site.deliver([*good, *bad], boxes.web) == set(good)


def test_a_forged_source_opens_no_way_back(site: Site, boxes: Boxes) -> None:
    """Only the container itself opens a flow with its source address, so that no forged reply passes as established."""
    site.forget_flows()
    site.load(more=site.docker_elements(boxes.web, BR_DOCKER) | site.docker_elements(boxes.other, "br-ba9876543210"))
    # Addresses that no host has, which would end the flow by a reset. The outsider sends to them through the host.
    far4, far6 = IPv4Address("203.0.113.99"), IPv6Address("2001:db8:5::99")
    site.wan.ip(f"route replace {far4} via {Site.HOST4}", f"route replace {far6} via {Site.HOST6}")
    pairs = [(boxes.web.v4, far4), (boxes.web.v6, far6)]
    forged = [packet for own, far in pairs for packet in (tcp(own, far, 4444, 8080), udp(own, far, 4444, 8080))]
    replies = [
        packet
        for own, far in pairs
        for packet in (tcp(far, own, 8080, 4444, 0x12, 1001), udp(far, own, 8080, 4444, b"reply"))
    ]
    # The outsider forges the container's source address, from the outside and from another bridge.
    for source in (None, boxes.other):
        site.send(forged, source)
        assert site.deliver(replies, boxes.web) == set()
    site.send(forged, boxes.web)
    assert site.deliver(replies, boxes.web) == set(replies), "the container itself gets its replies"


@pytest.mark.parametrize(
    ("mode", "source", "marked"),
    [("routed", "outside", True), ("nat", "outside", False), ("routed", "another", False), ("routed", "ours", False)],
)
def test_dockers_drop_is_overruled_only_where_a_network_is_routed(
    site: Site, boxes: Boxes, ours: Box, mode: str, source: str, marked: bool
) -> None:
    """The mark is on packets accepted from outside to a routed network, never on those between two Docker bridges."""
    guest = site.docker_elements(boxes.web, BR_DOCKER, mode4=mode, mode6=mode) | site.docker_elements(
        boxes.other, "br-ba9876543210"
    )
    site.load(site.known(ours), more=guest)
    start = {"outside": None, "another": boxes.other, "ours": ours}[source]
    froms = (Site.OUT4, Site.OUT6) if start is None else (start.v4, start.v6)
    packets = [tcp(src, dst, 80, next(_ports)) for src, dst in zip(froms, (boxes.web.v4, boxes.web.v6), strict=True)]
    with Marks(site, boxes.web.v4, boxes.web.v6) as marks:
        site.deliver(packets[:1], boxes.web, start, packets[1])
        assert marks.seen()[:2] == ((2, 0) if marked else (0, 2))


# --- published ports ----------------------------------------------------------------------------------------------


def published(box: Box, *ports: Published, allow: tuple[Rule, ...] = (), setting: bool = False) -> set[Element]:
    return Site.docker_elements(box, BR_DOCKER, *allow, published=ports, defaults=Defaults(published=setting))


def test_docker_proxys_port_is_as_closed_as_the_containers(site: Site, boxes: Boxes) -> None:
    """A host listener for a closed port is reachable only from the host itself and the container's network."""
    ports = [Published("tcp", any_, 15432, 5432) for any_ in (IPv4Address("0.0.0.0"), IPv6Address("::"))]
    ports += [Published("udp", Site.HOST4, 15353, 53), Published("tcp", IPv6Address("::"), 18080, 80)]
    targets = [("tcp", str(h), p) for h in (Site.HOST4, Site.HOST6) for p in (15432, 18080, 15433)]
    targets += [("udp", str(Site.HOST4), 15353), ("udp", str(Site.HOST6), 15353)]
    with site.host.probe.serve(tcp=[15432, 18080, 15433], udp=[15353]):
        site.load(more=published(boxes.web, *ports))
        silent = {t for t, v in site.wan.probe(targets, timeout=0.3).items() if v == "silent"}
        assert silent == {*(("tcp", str(h), 15432) for h in (Site.HOST4, Site.HOST6)), ("udp", str(Site.HOST4), 15353)}
        for near in (site.host, boxes.web):
            assert set(near.probe(targets).values()) == {"open"}
        assert boxes.other.probe.tcp(str(Site.HOST6), 15432, timeout=0.3) == "silent"
        site.load(more=published(boxes.web, *ports, allow=(Rule("tcp", 5432, 5432), Rule("udp", 53, 53))))
        assert set(site.wan.probe(targets).values()) == {"open"}


@pytest.mark.parametrize("watched", [True, False], ids=["followed", "not followed"])
def test_a_neighbours_published_port_is_no_way_to_anothers(site: Site, boxes: Boxes, watched: bool) -> None:
    """Two networks publish one port number, on two addresses of the host or in two families.

    A container on one network reaches its own neighbour's closed port through docker-proxy, and not the other
    network's.
    """
    more4, more6 = IPv4Address("198.51.100.9"), IPv6Address("2001:db8:ffff::9")
    site.host.ip(f"addr replace {more4}/24 dev eth0", f"addr replace {more6}/64 dev eth0 nodad")
    any4, any6 = IPv4Address("0.0.0.0"), IPv6Address("::")
    mine = [Published("tcp", host, 15432, 5432) for host in (more4, more6)]
    mine += [Published("tcp", any4, 15433, 5432), Published("tcp", any6, 15434, 5432)]
    theirs = [Published("tcp", host, 15432, 5432) for host in (Site.HOST4, Site.HOST6)]
    theirs += [Published("tcp", any6, 15433, 5432), Published("tcp", any4, 15434, 5432)]
    elements = site.docker_elements(boxes.web, BR_DOCKER, published=tuple(mine))
    elements |= site.docker_elements(boxes.other, "br-ba9876543210", published=tuple(theirs))
    site.load(more=elements if watched else elements - set(WATCHED))
    hosts = (more4, more6, Site.HOST4, Site.HOST6)
    tried = [("tcp", str(host), port) for host in hosts for port in (15432, 15433, 15434)]
    with site.host.probe.serve(tcp=[15432, 15433, 15434]):
        for box, own in ((boxes.web, mine), (boxes.other, theirs)):
            reached = {
                ("tcp", str(host), port.host_port)
                for host in hosts
                for port in own
                if port.host_ip in (host, any4 if host.version == 4 else any6)
            }
            assert {t for t, v in box.probe(tried, timeout=0.3).items() if v == "open"} == reached


def test_docker_proxys_packets_to_a_neighbour_reach_no_other_network(site: Site, boxes: Boxes) -> None:
    """docker-proxy's side of a closed port opens a flow to the port's own network only.

    It does so from the address and in the family that is published there: another network's equal port number lets
    nothing out, and nothing leaves to outside.
    """
    more6 = IPv6Address("2001:db8:ffff::9")
    site.host.ip(f"addr replace {more6}/64 dev eth0 nodad")
    mine = (
        Published("udp", more6, 15353, 53),
        Published("udp", IPv4Address("0.0.0.0"), 15354, 53),
        Published("udp", Site.HOST4, 15355, 53),
        Published("sctp", Site.HOST4, 15357, 53),
    )
    theirs = (Published("udp", Site.HOST6, 15353, 53), Published("udp", IPv6Address("::"), 15354, 53))
    site.load(
        more=site.docker_elements(boxes.web, BR_DOCKER, published=mine)
        | site.docker_elements(boxes.other, "br-ba9876543210", published=theirs)
    )
    web = boxes.web
    spec = {
        udp(more6, web.v6, 9, 15353): True, udp(Site.HOST6, web.v6, 9, 15353): False,
        udp(Site.HOST4, web.v4, 9, 15354): True, udp(Site.HOST6, web.v6, 9, 15354): False,
        udp(Site.HOST4, web.v4, 9, 15355): True, udp(Site.HOST4, Site.OUT4, 9, 15355): False,
        udp(Site.HOST6, Site.OUT6, 9, 15353): False, udp(Site.HOST4, Site.OUT4, 9, 15356): True,
        sctp(Site.HOST4, Site.OUT4, 9, 15357): False,
    }  # fmt: skip
    passed = set()
    for packet in spec:
        with contextlib.suppress(PermissionError):  # the drop in output is reported as this error
            site.send([packet], site.host)
            passed.add(packet)
    assert passed == {packet for packet, passes in spec.items() if passes}


def test_a_cut_flow_by_docker_proxy_is_not_reopened(site: Site, boxes: Boxes) -> None:
    """A client talks through docker-proxy to a port that closes: its flow is cut.

    The proxy's next packet does not reopen it, over UDP and TCP.
    """
    port = [Published(proto, IPv6Address("::"), 15432, 5432) for proto in ("tcp", "udp")]
    site.run("nft", "add table inet track; add chain inet track i { type filter hook input priority 0; }")
    script = """
import socket, sys
t, u = socket.socket(socket.AF_INET6), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
t.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
t.bind(("::", 15432)); t.listen(); u.bind(("::", 15432))
print("ready", flush=True)
c, _ = t.accept(); _, peer = u.recvfrom(9)
print("connected", flush=True)
sys.stdin.readline()
for say in (lambda: c.send(b"more"), lambda: u.sendto(b"more", peer)):
    try:
        say()
    except OSError:  # refused by the host's own output
        pass
print("sent", flush=True)
c.settimeout(3); u.settimeout(3)
for read in (c.recv, u.recv):
    try:
        print(read(9).decode() or "end", flush=True)
    except OSError:
        print("nothing", flush=True)
"""
    client = """
import socket, sys
t, u = socket.socket(socket.AF_INET6), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
t.connect((sys.argv[1], 15432)); u.connect((sys.argv[1], 15432)); u.send(b"hello")
sys.stdin.readline()
for s in (t, u):
    try:
        s.send(b"evil")
    except OSError:
        pass
"""
    site.load(more=published(boxes.web, *port, allow=(Rule("tcp", 5432, 5432), Rule("udp", 5432, 5432))))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = site.host.popen([sys.executable, "-c", script], **pipes)
    try:
        assert server.stdin
        assert server.stdout
        assert server.stdout.readline() == "ready\n"
        outsider = site.wan.popen([sys.executable, "-c", client, str(Site.HOST6)], **pipes)
        try:
            assert outsider.stdin
            assert server.stdout.readline() == "connected\n"
            site.load(more=published(boxes.web, *port))
            with site.inside():
                conntrack.cut_published(port)
            server.stdin.write("\n")
            server.stdin.flush()
            assert server.stdout.readline() == "sent\n"
            outsider.stdin.write("\n")
            outsider.stdin.flush()
            assert [server.stdout.readline(), server.stdout.readline()] == ["nothing\n", "nothing\n"]
        finally:
            outsider.kill()
            outsider.communicate(timeout=30)
    finally:
        server.kill()
        server.communicate(timeout=30)


def test_cut_udp_is_not_reopened_by_the_container(site: Site, boxes: Boxes) -> None:
    """An open UDP port closes while a peer is talking: the flow is cut.

    The container's next datagram to that peer opens no new flow; its other datagrams do.
    """
    opened = site.docker_elements(boxes.web, BR_DOCKER, Rule("udp", 5353, 5353))
    closed = site.docker_elements(boxes.web, BR_DOCKER)
    for out, mine, subnet in (
        (Site.OUT4, boxes.web.v4, IPv4Network("10.100.0.0/24")),
        (Site.OUT6, boxes.web.v6, IPv6Network("2001:db8:100::/64")),
    ):
        site.load(more=opened)
        asked, answer = udp(out, mine, 5353, 7777), udp(mine, out, 7777, 5353)
        assert site.deliver([asked], boxes.web) == {asked}
        assert site.deliver([answer], site.wan, boxes.web) == {answer}
        site.load(more=closed)
        assert site.deliver([asked], boxes.web) == {asked}, "established, until it is cut"

        def hold(ways: Collection[Way]) -> None:
            found = [way for way in ways if way.proto == NUMBER["udp"]]
            site.nft.change(Change(), {Element(f"quarantine{way.source.version}", tuple(way)[:5]): 60 for way in found})

        with site.inside():
            cut_closed({mine: AddressPolicy(subnet, Policy())}, hold)
        other = udp(mine, out, 7778, 5353)
        assert site.deliver([answer, other], site.wan, boxes.web) == {other}
        assert site.deliver([asked], boxes.web) == set()


def test_an_untracked_connection_of_a_container_is_reset(site: Site, boxes: Boxes) -> None:
    """An untracked connection of a container (opened before docker-fw started) ends with a reset.

    So it reconnects at once, and nothing hangs.
    """
    site.load(more=site.docker_elements(boxes.web, BR_DOCKER))
    segment = tcp(boxes.web.v6, Site.OUT6, 9001, next(_ports), 0x18, 1)
    sniffer = site.sniffer(boxes.web)
    list(sniffer.read())
    site.send([segment], boxes.web)
    seen: set[Packet] = set()

    def reset() -> bool:
        seen.update(sniffer.read())
        return any(p.proto == 6 and p.src == segment.dst and p.data[13] & 0x04 for p in seen)

    until(reset, "the connection is reset")


def test_a_virtual_machines_connection_survives_the_wait(site: Site, boxes: Boxes) -> None:
    """A bridge that is not yet claimed may be a virtual machine's, so its untracked segment is dropped without a reset.

    The segment passes when the bridge is known to be unmanaged.
    """
    segment = tcp(boxes.chosen.v6, Site.OUT6, 9001, next(_ports), 0x18, 1)
    sniffer = site.sniffer(boxes.chosen)
    site.load()
    list(sniffer.read())
    assert site.deliver([segment], site.wan, boxes.chosen) == set()
    last = ping(boxes.chosen.v6, Site.OUT6)
    site.send([last], boxes.chosen)
    assert not any(p.proto == 6 and p.src == segment.dst for p in sniffer.read())
    site.load(more=[Element("unmanaged", (site.index(CHOSEN),))])
    assert site.deliver([segment], site.wan, boxes.chosen) == {segment}


def test_without_icc_docker_proxy_is_no_way_around(site: Site, boxes: Boxes) -> None:
    """On a network with enable_icc=false (swarm's docker_gwbridge) a closed published port is closed to the others."""
    port = Published("tcp", IPv6Address("::"), 15432, 5432)
    network = BridgeNetwork("d" * 64, "docker_gwbridge", BR_DOCKER, flat=False)
    endpoint = dataclasses.replace(boxes.other.endpoint, container=Container("c", "c"), published=(port,))
    with site.host.probe.serve(tcp=[15432]):
        site.load(more=guest_elements(network, endpoint, of(network, endpoint)))
        assert boxes.web.probe.tcp(str(Site.HOST6), 15432, timeout=0.3) == "silent"
        assert site.host.probe.tcp(str(Site.HOST6), 15432) == "open"


def test_a_port_that_is_published_for_the_host_alone_is_closed_by_address(site: Site, boxes: Boxes) -> None:
    """`-p 127.0.0.1:8080:80`: a client with a route to the container does not reach its port 80.

    The rest of the base is unchanged. Other permissions open port 80: a label, `fw.allow` of the network, another
    publication that is not for the host alone.
    """
    alone = tuple(Published("tcp", IPv4Address("127.0.0.1"), 8080 + n, port) for n, port in ((0, 80), (1, 5432)))
    alone += (Published("tcp", IPv6Address("::1"), 8443, 443),)
    site.load(more=published(boxes.web, *alone))
    assert arriving(site, boxes.web) == {"22/tcp"}
    site.load(more=published(boxes.web, *alone, allow=(Rule("tcp", 80, 80),)))
    assert arriving(site, boxes.web) == {"22/tcp", "80/tcp"}
    site.load(more=published(boxes.web, *alone, Published("tcp", Site.HOST4, 8080, 80)))
    assert arriving(site, boxes.web) == {"22/tcp", "80/tcp"}
    site.load(more=published(boxes.web, *alone, setting=True))
    assert arriving(site, boxes.web) == {"22/tcp"}
    with boxes.web.probe.serve(tcp=[80]):
        assert site.host.probe.tcp(str(boxes.web.v6), 80) == "open"


def test_with_the_setting_a_published_port_is_open_by_itself(site: Site, boxes: Boxes) -> None:
    """FW_PUBLISHED=allow: by DNAT to the container's closed port, but not directly to it."""
    port = Published("tcp", IPv4Address("0.0.0.0"), 15432, 5432)
    rules = "\n".join(f"ip daddr {Site.HOST4} tcp dport 1{p} dnat to {boxes.web.v4}:{p}" for p in (5432, 5433))
    chain = f"chain before {{ type nat hook prerouting priority dstnat;\n{rules}\n}}"
    site.run("nft", "-f", "-", input=f"table ip forwards {{\n{chain}\n}}\n")
    try:
        with boxes.web.probe.serve(tcp=[5432, 5433]):
            tried = [("tcp", str(Site.HOST4), 15432), ("tcp", str(Site.HOST4), 15433), ("tcp", str(boxes.web.v4), 5432)]
            site.load(more=published(boxes.web, port))
            assert list(site.wan.probe(tried, timeout=0.3).values()) == ["silent"] * 3
            site.load(more=published(boxes.web, port, setting=True))
            assert list(site.wan.probe(tried, timeout=0.3).values()) == ["open", "silent", "silent"]
    finally:
        site.run("nft", "delete", "table", "ip", "forwards")


# --- the kernel's reports of links ------------------------------------------------------------------------------------


def test_added_and_removed_links_are_reported(site: Site) -> None:
    """A bridge is reported when it is added and removed, a port when it leaves; the list agrees."""
    with site.inside():
        changes = link_monitor.Changes()
        try:
            site.host.ip(
                "link add br-feedfeedfeed type bridge",
                "link add vp0 type veth peer name vp1",
                "link set vp0 master br-feedfeedfeed",
            )
            there = {link.name: link for link in link_monitor.links().values()}
            bridge = there["br-feedfeedfeed"]
            assert bridge == Link(bridge.index, "br-feedfeedfeed", bridge=True)
            assert there["vp0"].master == bridge.index
            site.host.ip("link del vp0", "link del br-feedfeedfeed")
            reports: list[LinkChange] = []
            until(
                lambda: bool(reports.extend(changes.read())) or LinkChange("removed", bridge) in reports,
                "the bridge's removal is reported",
            )
        finally:
            changes.close()
    assert LinkChange("added", bridge) in reports
    port = there["vp0"]
    left = [t for t in reports if t.link and t.link.index == port.index]
    assert any(t.link and t.link.master == bridge.index for t in left)
    assert left[-1].what == "removed"


def test_link_local_addresses_are_not_reported(site: Site) -> None:
    """Each container on a Docker network gives the host a link-local address: none of them costs a list of all."""
    with site.inside():
        site.host.ip("link add vp7 type veth peer name vp8")
        changes = link_monitor.Changes()
        try:
            site.host.ip("addr add fe80::7/64 dev vp7", "addr add 169.254.7.7/16 dev vp7", "link set vp7 mtu 1400")
            reports: list[LinkChange] = []
            until(lambda: bool(reports.extend(changes.read())) or bool(reports), "the link's change is reported")
            assert {report.what for report in reports} == {"added"}
            site.host.ip("addr add 2001:db8:7::7/64 dev vp7")
            until(
                lambda: bool(reports.extend(changes.read())) or LinkChange("address") in reports,
                "the other address is reported",
            )
        finally:
            changes.close()


def test_a_bridge_that_docker_may_have_taken_is_closed_at_once(fw: Running) -> None:
    """Docker created a network and does not answer any more: all unmanaged bridges are closed.

    The new network may be on any of them. The log says so. When Docker answers, bridges that are not Docker's are left
    alone again.
    """
    fw.site.host.ip("link add vm0 type bridge", "link set vm0 up")
    fw.docker.networks["b" * 64] = {"Id": "b" * 64, "Name": "other", "Driver": "null"}
    fw.start()
    until(lambda: "vm0" in fw.status()["foreign"], "the bridge is left alone", 15)
    fw.docker.mode = "hang"
    fw.docker.event("network", "create")
    until(lambda: fw.status()["foreign"] == [], "no bridge is exempt")
    until(lambda: re.search("closed until Docker's API answers: .*vm0", fw.log.read_text()), "the log says so", 15)
    fw.docker.mode = "answer"
    until(lambda: "vm0" in fw.status()["foreign"], "the bridge is left alone again", 15)
