"""Test root in a container, with every capability over its own network, against its neighbours.

They are on a docker-fw network.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import socket
import struct

import pytest

from plugin.kernel.names import host_side
from plugin.model import Container, Endpoint, PolicySpec, Rule
from plugin.nftables.elements import link_local
from tests.kernel.netns import inside
from tests.kernel.packets import Packet, Sniffer, arrived, extended, frame, icmp, mac, new_flow, packed, ping, tcp, udp
from tests.kernel.site import BRIDGED_FRAMES_UNTRACKED, Box, Site, site_of_module

# Otherwise the host's conntrack reassembles fragments on their way through a bridge, and hides what stops them.
site = site_of_module(BRIDGED_FRAMES_UNTRACKED)


@pytest.fixture(scope="module")
def boxes(site: Site) -> list[Box]:
    """Return three containers of one network: a victim, its neighbour, a hostile one."""
    network = site.network(1)
    made = [site.box(network, number) for number in (2, 3, 4)]
    site.acquaint(*made)
    return made


def fdb(site: Site) -> list[str]:
    return site.run("bridge", "fdb", "show", "br", site.networks[next(iter(site.networks))].bridge).stdout.splitlines()


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_no_frame_leaves_from_another_mac(site: Site, boxes: list[Box], family: str) -> None:
    """No frame leaves from a neighbour's MAC or an invented one; from its own, frames pass."""
    victim, neighbour, hostile = boxes
    src, dst = str(getattr(hostile, family)), str(getattr(victim, family))
    sniffer = site.sniffer(victim)
    forged, invented, true = (new_flow("udp", src, dst, 9, sport) for sport in (4001, 4002, 4003))
    frame(hostile.path, neighbour.endpoint.mac, victim.endpoint.mac, forged)
    frame(hostile.path, "02:42:ff:ff:ff:01", victim.endpoint.mac, invented)
    frame(hostile.path, hostile.endpoint.mac, victim.endpoint.mac, true)
    (seen,) = arrived([sniffer], true)
    assert forged not in seen
    assert invented not in seen


def test_a_neighbours_frames_are_not_drawn_away(site: Site, boxes: list[Box]) -> None:
    """A sender with the victim's MAC does not get the victim's traffic: the bridge learns nothing from containers."""
    victim, neighbour, hostile = boxes
    frame(hostile.path, victim.endpoint.mac, neighbour.endpoint.mac, new_flow("udp", "10.1.0.4", "10.1.0.3", 9, 4101))
    sniffers = [site.sniffer(victim), site.sniffer(hostile)]
    packet = new_flow("udp", "10.1.0.3", "10.1.0.2", 9, 4102)
    site.send([packet], neighbour)
    assert packet in arrived(sniffers[:1], packet)[0]
    assert packet not in set(sniffers[1].read())


def test_the_bridges_table_cannot_be_filled(site: Site, boxes: list[Box]) -> None:
    """A hundred invented MACs leave no entry, and no container sees frames to an unused MAC."""
    victim, neighbour, hostile = boxes
    before = sorted(fdb(site))
    for number in range(100):
        lie = f"02:aa:00:00:00:{number:02x}"
        frame(hostile.path, lie, victim.endpoint.mac, new_flow("udp", "10.1.0.4", "10.1.0.2", 9, 4201))
    assert sorted(fdb(site)) == before
    sniffer: Sniffer = site.sniffer(hostile)
    lost, last = (new_flow("udp", "10.1.0.3", "10.1.0.4", 9, sport) for sport in (4202, 4203))
    frame(neighbour.path, neighbour.endpoint.mac, "02:aa:ff:ff:ff:ff", lost)
    frame(neighbour.path, neighbour.endpoint.mac, hostile.endpoint.mac, last)
    assert lost not in arrived([sniffer], last)[0]


def test_a_bridge_made_again_binds_its_ports_again(site: Site) -> None:
    """Ports that outlived their bridge are bound to their MAC, as before."""
    network = site.network(2)
    box = site.box(network, 2)
    port = host_side(box.endpoint.id)
    site.run("ip", "link", "del", network.bridge)
    with site.inside():
        site.links.make_bridge(network)
        site.links.reattach(network, [box.endpoint])
    shown = site.run("bridge", "-d", "link", "show", "dev", port).stdout
    assert "learning off" in shown
    assert " flood off" in shown
    assert "locked on" in shown
    assert f"{box.endpoint.mac} dev {port} master {network.bridge} static" in site.run("bridge", "fdb").stdout


# --- another container's address --------------------------------------------------------------------------------------

IP4, IP6, ARP, VLAN, QINQ = b"\x08\x00", b"\x86\xdd", b"\x08\x06", b"\x81\x00", b"\x88\xa8"
OWN4, NEXT4, GATE4 = "10.1.0.4", "10.1.0.3", "10.1.0.1"
OWN6, NEXT6, GATE6 = "2001:db8:1::4", "2001:db8:1::3", "2001:db8:1::1"
ALL = "ff02::1"
Frame = tuple[bytes, bytes]


@pytest.fixture
def bound(site: Site, boxes: list[Box]) -> list[Box]:
    """The same three containers, known to docker-fw."""
    site.load(*map(known, boxes))
    return boxes


def known(box: Box, *allow: Rule) -> Endpoint:
    """Return the box's endpoint, with a container of its own."""
    return dataclasses.replace(box.endpoint, container=Container(box.endpoint.id, "web", PolicySpec(allow=allow)))


def lladdr(box: Box) -> str:
    return str(link_local(box.endpoint.mac))


def heard(by: Box, hostile: Box, frames: dict[str, Frame], source: str = "") -> set[str]:
    """Return which of these frames, sent by the hostile one with its own MAC (or `source`), the other receives."""
    last = bytes(new_flow("udp", OWN4, "10.1.0.2", 9, next(_ports)))
    with inside(by.path), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as ears:
        ears.bind(("eth0", 3))
        ears.settimeout(2)
        with inside(hostile.path), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as mouth:
            mouth.bind(("eth0", 0))
            for kind, body in frames.values():
                mouth.send(mac(by.endpoint.mac) + mac(source or hostile.endpoint.mac) + kind + body)
            mouth.send(mac(by.endpoint.mac) + mac(hostile.endpoint.mac) + IP4 + last)
        seen: list[bytes] = []
        while not seen or last not in seen[-1]:
            seen.append(ears.recv(4096))
    return {name for name, (_, body) in frames.items() if any(body[-26:] in each for each in seen)}


_ports = itertools.count(20000)


def datagram(source: str, target: str) -> Frame:
    return (IP6 if ":" in source else IP4, bytes(new_flow("udp", source, target, 9, next(_ports))))


def arp(operation: int, sender: str, address: str, *, kind: int = 1, target: str = "10.1.0.2") -> Frame:
    """Return an ARP frame (RFC 826), with a tail of its own."""
    head = struct.pack("!HHBBH", kind, 0x0800, 6, 4, operation)
    return (ARP, head + mac(sender) + packed(address) + bytes(6) + packed(target) + os.urandom(18))


def discovery(packet: Packet) -> Frame:
    """Return a message with hop limit 255 (RFC 4861 section 6.1.2)."""
    return (IP6, bytes(packet)[:7] + b"\xff" + bytes(packet)[8:])


def neighbour(kind: int, source: str, target: str, hardware: str, to: str = ALL) -> Packet:
    """Return a solicitation (135), or an advertisement (136) that overrides, with the sender's hardware address."""
    flags, option = (b"\x20\0\0\0", 2) if kind == 136 else (bytes(4), 1)
    return icmp(source, to, kind, body=flags + packed(target) + bytes([option, 1]) + mac(hardware) + tail())


def router(source: str, kind: int = 134) -> Packet:
    """Return an advertisement of a router for everything, or a redirect."""
    body = b"\x40\xc8\xff\xff" + bytes(8) if kind == 134 else bytes(4) + packed(OWN6) + packed(NEXT6)
    return icmp(source, ALL, kind, body=body + tail())


def tail() -> bytes:
    """Return an unknown option, different each time."""
    return b"\xfe\6" + os.urandom(46)


def igmp(target: str, kind: int, source: str = OWN4) -> Frame:
    return (IP4, bytes(Packet(packed(source), packed(target), 2, bytes([kind]) + os.urandom(40))))


def part(packet: Packet, place: int) -> Packet:
    """Return an IPv6 packet as a fragment at offset `place` bytes; more follow."""
    return extended(packet, 44, struct.pack("!BHI", 0, place | 1, 77))


def test_packets_with_the_containers_own_addresses_pass(bound: list[Box]) -> None:
    """With its own MAC and addresses, a container's traffic with neighbours passes, fragments as well."""
    victim, _, hostile = bound
    own, fe80 = hostile.endpoint.mac, lladdr(hostile)
    whole = new_flow("udp", OWN6, "2001:db8:1::2", 9, next(_ports))
    frames = {
        "IPv4": datagram(OWN4, "10.1.0.2"),
        "IPv6": datagram(OWN6, "2001:db8:1::2"),
        "its link-local address": datagram(fe80, ALL),
        "a fragment": (IP6, bytes(part(whole, 8))),
        "a destination option": (IP6, bytes(extended(whole, 60, b"\0\1\4" + bytes(4)))),
        "an ARP request": arp(1, own, OWN4),
        "an ARP reply": arp(2, own, OWN4),
        "an ARP probe": arp(1, own, "0.0.0.0", target=OWN4),
        "a solicitation": discovery(neighbour(135, OWN6, "2001:db8:1::2", own)),
        "an advertisement": discovery(neighbour(136, fe80, OWN6, own)),
        "an advertisement of its link-local address": discovery(neighbour(136, fe80, fe80, own)),
        "duplicate address detection for its address": discovery(
            icmp("::", ALL, 135, body=bytes(4) + packed(OWN6) + tail())
        ),
        "a report of its groups": discovery(icmp("::", "ff02::16", 143, body=bytes(4) + os.urandom(40))),
        "an echo request": discovery(ping(OWN6, ALL)),
        "a report of its IPv4 groups": igmp("224.0.0.22", 0x22),
    }
    assert heard(victim, hostile, frames) == set(frames)


def test_no_packet_leaves_with_anothers_address(bound: list[Box]) -> None:
    """No packet leaves with a source address that is not the container's own, and no claim to another's address.

    This covers the neighbours' and the host's addresses, in ARP, neighbour discovery, fragments and VLANs, and behind
    extension headers. No container is a router.
    """
    victim, nextdoor, hostile = bound
    own, fe80 = hostile.endpoint.mac, lladdr(hostile)
    stolen = new_flow("udp", NEXT6, "2001:db8:1::2", 9, next(_ports))
    option = b"\0\1\4" + bytes(4)
    # An unknown option to be skipped. Its own address is where the target would be without the header.
    hides = b"\2\x1e\x14" + bytes(4) + packed(OWN6)
    frames = {
        "a neighbour's IPv4": datagram(NEXT4, "10.1.0.2"),
        "the host's IPv4": datagram(GATE4, "10.1.0.2"),
        "an outsider's": datagram("203.0.113.7", "10.1.0.2"),
        "no IPv4": datagram("0.0.0.0", "255.255.255.255"),
        "a neighbour's IPv6": datagram(NEXT6, "2001:db8:1::2"),
        "the host's IPv6": datagram(GATE6, "2001:db8:1::2"),
        "a private address that it was not given": datagram("2001:db8:1:0:a5:1c3:77:9", "2001:db8:1::2"),
        "a neighbour's link-local address": datagram(lladdr(nextdoor), ALL),
        "an invented link-local address": datagram("fe80::1", ALL),
        "IPv4 within IPv6": datagram("::ffff:10.1.0.3", "2001:db8:1::2"),
        "no IPv6": datagram("::", ALL),
        "in a fragment": (IP6, bytes(part(stolen, 1480))),
        "behind options": (IP6, bytes(extended(stolen, 60, option))),
        "ARP for a neighbour": arp(2, own, NEXT4),
        "ARP for the host": arp(2, own, GATE4),
        "an ARP request as the host": arp(1, own, GATE4),
        "ARP with a neighbour's MAC": arp(2, nextdoor.endpoint.mac, OWN4),
        "an ARP reply from no address": arp(2, own, "0.0.0.0"),
        "ARP of another kind of link": arp(2, own, NEXT4, kind=6),
        "its own in ARP of another kind of link": arp(2, own, OWN4, kind=6),
        "an advertisement for a neighbour": discovery(neighbour(136, fe80, NEXT6, own)),
        "and from its address": discovery(neighbour(136, NEXT6, NEXT6, own)),
        "an advertisement for the host": discovery(neighbour(136, OWN6, GATE6, own)),
        "a solicitation as the host": discovery(neighbour(135, GATE6, "2001:db8:1::2", own)),
        "an advertisement behind options": discovery(extended(neighbour(136, fe80, NEXT6, own), 60, option)),
        "an advertisement behind its own address": discovery(extended(neighbour(136, fe80, NEXT6, own), 60, hides)),
        "an advertisement in a fragment": discovery(part(neighbour(136, fe80, NEXT6, own), 0)),
        "that a neighbour's address is taken": discovery(icmp("::", ALL, 135, body=bytes(4) + packed(NEXT6) + tail())),
        "and behind its own address": discovery(
            extended(icmp("::", ALL, 135, body=bytes(4) + packed(NEXT6) + tail()), 60, hides)
        ),
        "a solicitation as a neighbour": discovery(neighbour(135, NEXT6, OWN6, own)),
        "an advertisement from no address": discovery(icmp("::", ALL, 136, body=b"\x20\0\0\0" + packed(OWN6) + tail())),
        "a neighbour's IPv6 groups": discovery(icmp(lladdr(nextdoor), "ff02::16", 143, body=bytes(4) + os.urandom(40))),
        "a later fragment of a ping": (IP6, bytes(part(Packet(packed(NEXT6), packed(ALL), 58, os.urandom(64)), 1232))),
        "a router": discovery(router(fe80)),
        "a router, the host's address": discovery(router(GATE6)),
        "a router behind options": discovery(extended(router(fe80), 60, option)),
        "a router hop by hop": discovery(extended(router(fe80), 0, option)),
        "a router in a fragment": discovery(part(router(fe80), 0)),
        "a redirect": discovery(router(fe80, 137)),
        "a query for groups": (IP6, bytes(icmp(fe80, ALL, 130, body=struct.pack("!HH", 1, 0) + bytes(16) + tail()))),
        "a query for IPv4's groups": igmp("224.0.0.1", 0x11),
        "a multicast router, IPv4": igmp("224.0.0.106", 0x30),
        "a neighbour's groups": igmp("224.0.0.22", 0x22, NEXT4),
        "a multicast router": (IP6, bytes(icmp(fe80, "ff02::6a", 151, body=bytes(4) + tail()))),
        "a redirect as the host": (IP4, bytes(icmp(GATE4, "10.1.0.2", 5, 1, packed(OWN4) + os.urandom(40)))),
        "a neighbour's in VLAN 0": (VLAN, b"\0\0" + b"".join(datagram(NEXT4, "10.1.0.2"))),
        "its own in a VLAN": (VLAN, b"\0\5" + b"".join(datagram(OWN4, "10.1.0.2"))),
        "in two VLANs": (QINQ, b"\0\5\x81\0\0\0" + b"".join(datagram(NEXT6, "2001:db8:1::2"))),
        "PPPoE": (b"\x88\x64", os.urandom(60)),
        "a bridge's": (struct.pack("!H", 60), b"\x42\x42\3" + os.urandom(57)),
    }
    assert heard(victim, hostile, frames) == set()


def test_no_message_of_neighbour_discovery_hides_in_later_fragments(bound: list[Box]) -> None:
    """A first fragment of ICMPv6 shows the message's type, or does not leave: the rules judge by the type.

    Its extension headers may fill it, as thc-ipv6 makes them (fake_router26 -E D, fake_advertise6 -D; RFC 7113 section
    2.1); later fragments have no type. A large echo request still passes in fragments.
    """
    victim, _, hostile = bound
    own, fe80 = hostile.endpoint.mac, lladdr(hostile)
    hidden = {
        "a router": router(fe80),
        "a redirect": router(fe80, 137),
        "an advertisement for a neighbour": neighbour(136, fe80, NEXT6, own),
        "a query for groups": icmp(fe80, ALL, 130, body=struct.pack("!HH", 1, 0) + bytes(16) + tail()),
    }
    frames: dict[str, Frame] = {}
    for name, message in hidden.items():
        for place, size in (("after", 12), ("just after", 13), ("long after", 100)):
            # 96 bytes of destination options, which end with this fragment, or in a later one.
            options = bytes([size - 1, 1, 92]) + os.urandom(92)
            filled = extended(Packet(message.src, message.dst, 58, b""), 60, options)
            frames[f"{name} {place} the fragment"] = discovery(part(filled, 0))
        frames[f"{name} without a type"] = discovery(part(Packet(message.src, message.dst, 58, b""), 0))
    assert heard(victim, hostile, frames) == set()
    large = ping(OWN6, "2001:db8:1::2")
    rest = Packet(large.src, large.dst, 58, os.urandom(64))
    pieces = {"the first": (IP6, bytes(part(large, 0))), "the second": (IP6, bytes(part(rest, 1232)))}
    assert heard(victim, hostile, pieces) == set(pieces)


@pytest.mark.parametrize("locked", [True, False], ids=["newer", "before 5.18"])
def test_no_frame_leaves_with_anothers_mac(site: Site, bound: list[Box], locked: bool) -> None:
    """Otherwise the bridge would send the other's packets to it, whatever the frame contains.

    The rules alone prevent it, too: an older kernel has no locked ports.
    """
    victim, nextdoor, hostile = bound
    own, fe80, port = hostile.endpoint.mac, lladdr(hostile), host_side(hostile.endpoint.id)
    frames = {
        "ARP": arp(2, own, OWN4),
        "IPv4": datagram(OWN4, "10.1.0.2"),
        "IPv6": datagram(OWN6, "2001:db8:1::2"),
        "a solicitation": discovery(neighbour(135, OWN6, "2001:db8:1::2", own)),
        "an advertisement": discovery(neighbour(136, fe80, OWN6, own)),
        "a fragment": (IP6, bytes(part(new_flow("udp", OWN6, "2001:db8:1::2", 9, next(_ports)), 8))),
    }
    site.run("bridge", "link", "set", "dev", port, "locked", "on" if locked else "off")
    try:
        assert heard(victim, hostile, frames, nextdoor.endpoint.mac) == set()
    finally:
        site.run("bridge", "link", "set", "dev", port, "locked", "on")


def test_while_the_table_is_loaded_no_port_sends_for_others(site: Site, boxes: list[Box]) -> None:
    """Without elements no port is known, and one that is not known keeps its network; but not while they are loaded."""
    site.load()
    victim, _, hostile = boxes
    frames = {"IPv4": datagram(NEXT4, "10.1.0.2"), "ARP": arp(2, hostile.endpoint.mac, NEXT4)}
    assert heard(victim, hostile, frames) == set(frames)
    site.run("nft", "add", "element", "bridge", "docker-fw", "loading_ports", "{ ether timeout 60s }")
    try:
        with pytest.raises(TimeoutError):
            heard(victim, hostile, frames)
    finally:
        site.load()


def test_the_hosts_neighbour_entries_stay_true(site: Site, bound: list[Box]) -> None:
    """The host's entry for a neighbour's MAC stays, whatever another container claims: none is reached in its place."""
    _, nextdoor, hostile = bound
    own = hostile.endpoint.mac
    bridge = site.networks[next(iter(site.networks))].bridge
    addresses = {NEXT4: nextdoor.endpoint.mac, NEXT6: nextdoor.endpoint.mac}
    for address, true in addresses.items():
        site.host.ip(f"neigh replace {address} lladdr {true} dev {bridge} nud stale")
    try:
        claims = {
            "ARP": arp(2, own, NEXT4, target=GATE4), "ARP, asked": arp(1, own, NEXT4, target=GATE4),
            "ND": discovery(neighbour(136, lladdr(hostile), NEXT6, own)),
            "ND, asked": discovery(neighbour(135, NEXT6, GATE6, own)),
        }  # fmt: skip
        heard(bound[0], hostile, claims)
        known = site.run("ip", "neigh", "show", "dev", bridge).stdout.splitlines()
        assert {line.split()[0]: line.split()[2] for line in known if line.split()[0] in addresses} == addresses
    finally:
        for address, true in addresses.items():
            site.host.ip(f"neigh replace {address} lladdr {true} dev {bridge} nud permanent")


def test_a_neighbours_address_gains_nothing(site: Site, boxes: list[Box]) -> None:
    """A container that takes a neighbour's address gets no packet out with it.

    Neither a reply to the outsider who opened a flow, nor a flow of its own.
    """
    victim, nextdoor, hostile = boxes
    site.load(*map(known, (victim, hostile)), known(nextdoor, Rule("tcp", 8080, 8080)))
    port = next(_ports)
    flow = tcp(Site.OUT4, NEXT4, 8080, port)
    assert site.deliver([flow], nextdoor) == {flow}
    answer = tcp(NEXT4, Site.OUT4, port, 8080, flags=0x12, ack=1001)
    begun = new_flow("udp", NEXT4, Site.OUT4, 53, next(_ports))
    assert site.deliver([answer, begun], site.wan, hostile, ping(OWN4, Site.OUT4)) == set()
    assert site.deliver([answer], site.wan, nextdoor, ping(NEXT4, Site.OUT4)) == {answer}


def test_a_port_whose_container_is_not_known_keeps_its_network(site: Site, boxes: list[Box]) -> None:
    """If docker-fw's state was lost, running containers are not cut off; they are bound when they start again."""
    site.load()
    true = datagram(OWN4, "10.1.0.2")
    assert heard(boxes[0], boxes[2], {"its own": true}) == {"its own"}


@pytest.mark.parametrize("kind", ["ours", "Docker's"])
def test_frames_to_a_bridges_own_addresses_bypass_no_rule(site: Site, kind: str) -> None:
    """Frames to 01:80:c2:00:00:00-0f, which a bridge consumes itself, bring the host no packet past its rules.

    This holds for any source, on any kind of network.
    """
    box = site.box(site.network(4), 2) if kind == "ours" else site.docker_box("br-aaaaaaaaaaaa", 9)
    net = 4 if kind == "ours" else 9
    site.load(
        *([known(box)] if kind == "ours" else []), more=site.docker_elements(box, "br-aaaaaaaaaaaa") if net == 9 else ()
    )
    own = box.endpoint.mac or box.run(["cat", "/sys/class/net/eth0/address"]).stdout.strip()
    for source, host in (("203.0.113.9", f"10.{net}.0.1"), ("2001:db8:77::9", f"2001:db8:{net}::1")):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with site.inside(), socket.socket(family, socket.SOCK_DGRAM) as server:
            server.bind((host, 5353))
            server.settimeout(5)
            for last in range(16):
                frame(box.path, own, f"01:80:c2:00:00:{last:02x}", udp(source, host, 5353, 1000 + last))
            site.send([udp(str(box.v6 if ":" in host else box.v4), host, 5353, 2000)], box)
            assert server.recvfrom(99)[1][1] == 2000


# --- from another network -----------------------------------------------------------------------------------------


def test_no_trick_reaches_a_closed_port_of_another_network(site: Site, bound: list[Box]) -> None:
    """A closed port of another network is reached by none of these evasions.

    The test tries a tunnel, IPv4 within IPv6, extension headers, fragments too small for a port, a source port of usual
    replies, and unsolicited replies. A flow of the container's own to the outsider opens nothing for other clients.
    """
    hostile = bound[2]
    network = site.network(3)
    victim = site.box(network, 2)
    site.load(known(hostile), known(victim))
    four, six = str(victim.v4), str(victim.v6)
    syn4, syn6 = (new_flow("tcp", own, to, 8080, next(_ports)) for own, to in ((OWN4, four), (OWN6, six)))
    options = b"\0\1\4" + bytes(4)
    pieces = [part(Packet(syn6.src, syn6.dst, 6, syn6.data[:8]), 0), extended(syn6, 44, struct.pack("!BHI", 0, 8, 77))]
    tricks = [
        Packet(packed(OWN6), packed(six), 41, bytes(syn4)), Packet(packed(OWN4), packed(four), 41, bytes(syn6)),
        Packet(packed(OWN4), packed(four), 4, bytes(syn4)),
        Packet(packed(OWN6), packed(f"::ffff:{four}"), 6, syn4.data),
        extended(syn6, 60, options), extended(syn6, 0, options), extended(extended(syn6, 60, options), 60, options),
        extended(syn6, 43, bytes([2, 4, 0]) + bytes(20)), *pieces,
        *(new_flow(proto, own, to, 8080, port) for proto in ("tcp", "udp") for port in (53, 80, 443)
          for own, to in ((OWN4, four), (OWN6, six))),
        *(tcp(OWN4, four, 8080, next(_ports), flags, ack=1) for flags in (0x10, 0x12, 0x04, 0x11, 0x00, 0x29)),
    ]  # fmt: skip
    assert site.deliver(tricks, victim, hostile, ping(OWN4, four)) == set()
    own = new_flow("udp", OWN4, Site.OUT4, 8080, 8080)
    assert site.deliver([own], site.wan, hostile, ping(OWN4, Site.OUT4)) == {own}
    back = [new_flow("udp", Site.OUT4, four, 8080, 8080), new_flow("udp", Site.OUT4, NEXT4, 8080, 8080)]
    assert site.deliver(back[:1], victim) == set()
    assert site.deliver(back[1:], bound[1]) == set()
