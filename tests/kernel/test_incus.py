"""Test the bugs that Incus and LXD had in the same place, each under the name of its origin (docs/corpus.md).

The cases are written in our own words. Where another test covers a case, the registry (`tests.corpus`) points to it.
"""

from __future__ import annotations

import dataclasses
import itertools
import struct
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from typing import Any

import pytest

from plugin.kernel.links import bridge_mac
from plugin.model import Container, Endpoint, Published
from plugin.nftables import dump
from plugin.nftables.sets import Change, Element
from tests.kernel import packets as pk
from tests.kernel.netns import in_thread
from tests.kernel.packets import Packet, arrived, frame, icmp, new_flow, packed, ping, udp
from tests.kernel.site import BRIDGED_FRAMES_UNTRACKED, Box, Site, arriving, site_of_module
from tests.lab.netns import FORWARDING
from tests.specs import spec_of

site = site_of_module(FORWARDING | BRIDGED_FRAMES_UNTRACKED)
_ports = itertools.count(20000)
BRIDGE = "br-0123456789ab"
BASE = {"22/tcp", "80/tcp", "443/tcp"}


@dataclasses.dataclass(frozen=True)
class Boxes:
    """Three containers of one docker-fw network, one of another, and one on a Docker network."""

    victim: Box
    near: Box
    hostile: Box
    other: Box
    guest: Box


@pytest.fixture(scope="module")
def boxes(site: Site) -> Boxes:
    one, two = site.network(1), site.network(2)
    made = Boxes(*(site.box(one, n) for n in (2, 3, 4)), site.box(two, 2), site.docker_box(BRIDGE, 100))
    site.acquaint(made.victim, made.near, made.hostile)
    return made


@pytest.fixture(params=[0, 1], ids=["br_netfilter off", "br_netfilter on"])
def br_netfilter(request: pytest.FixtureRequest, site: Site) -> Iterator[int]:
    """Set whether packets inside a bridge pass the host's rules too."""
    names = [f"net/bridge/bridge-nf-call-{kind}" for kind in ("iptables", "ip6tables", "arptables")]
    site.host.sysctl(dict.fromkeys(names, request.param))
    yield request.param
    site.host.sysctl(dict.fromkeys(names, 0))


def known(box: Box, **labels: str) -> Endpoint:
    """Return the box's endpoint with these labels, as a container of its own."""
    return dataclasses.replace(box.endpoint, container=Container(box.endpoint.id, "web", spec_of(**labels)))


# --- CVE-2025-52889, CVE-2025-52890: what is accepted for its kind before the sender is checked -----------------------


def test_cve_2025_52889_no_service_of_the_host_is_open_to_a_forged_sender(
    site: Site, boxes: Boxes, br_netfilter: int
) -> None:
    """DHCP, DNS, neighbour discovery and ping of the host are reached only from a container's own MAC and addresses.

    Incus accepted DHCP, DNS and such ahead of its rules against forged senders.
    """
    hostile, near = boxes.hostile, boxes.near
    site.load(*(known(box, policy="open") for box in (boxes.victim, near, hostile)))
    gateways, own = ("10.1.0.1", "2001:db8:1::1"), hostile.endpoint.mac
    bridge = bridge_mac(hostile.endpoint.network_id)
    forged: list[Packet] = [udp("0.0.0.0", "255.255.255.255", 67, 68), udp("0.0.0.0", gateways[0], 67, 68)]
    stolen = (near.v4, near.v6), ("10.1.0.99", "2001:db8:1::99"), gateways, ("203.0.113.9", "2001:db8:77::9")
    for address, host in ((a, h) for pair in stolen for a, h in zip(pair, gateways, strict=True)):
        forged += [udp(str(address), host, port, next(_ports)) for port in (53, 67, 547)]
        forged.append(ping(str(address), host))
    forged.append(icmp(near.v6, gateways[1], 135, body=bytes(4) + packed(gateways[1])))
    true = [udp(hostile.v4, gateways[0], 53, next(_ports)), udp(hostile.v6, gateways[1], 53, next(_ports))]
    list(site.listener.read())
    site.listener.expect([*forged, *true])
    for packet in forged:
        frame(hostile.path, own, bridge, packet)
    for packet in true:
        frame(hostile.path, near.endpoint.mac, bridge, packet)  # its own address, another's MAC
        again = dataclasses.replace(packet, data=udp(hostile.v4, gateways[0], 53, next(_ports)).data)
        frame(hostile.path, "02:42:ff:ff:ff:01", bridge, again)
        forged += [packet, again]
    last = ping(hostile.v6, gateways[1])
    frame(hostile.path, own, bridge, last)
    (seen,) = arrived([site.listener], last)
    assert seen & set(forged) == set()


def test_cve_2025_52890_an_established_flow_excuses_no_forged_sender(
    site: Site, boxes: Boxes, br_netfilter: int
) -> None:
    """A neighbour's established flow is not continued from another port of the bridge, to a neighbour or to outside.

    Incus accepted `ct state established`, ARP and neighbour discovery ahead of its rules against forged senders.
    """
    victim, near, hostile = boxes.victim, boxes.near, boxes.hostile
    site.load(*map(known, (victim, near, hostile)))
    for target in (victim, None):
        to = (victim.v4, victim.v6) if target else (Site.OUT4, Site.OUT6)
        where = target.endpoint.mac if target else bridge_mac(near.endpoint.network_id)
        for source, end in zip((near.v4, near.v6), to, strict=True):
            sport = next(_ports)
            site.send([udp(source, end, 9, sport, b"first")], near)
            site.send([udp(end, source, sport, 9, b"answer")], target)
            forged = udp(source, end, 9, sport, b"forged")
            sniffer = site.sniffer(target or site.wan)
            list(sniffer.read())
            frame(hostile.path, hostile.endpoint.mac, where, forged)
            frame(hostile.path, near.endpoint.mac, where, forged)
            site.send([last := udp(source, end, 9, sport, b"true")], near)
            (seen,) = arrived([sniffer], last)
            assert forged not in seen


@pytest.fixture(params=["victim", "guest"])
def box(request: pytest.FixtureRequest, site: Site, boxes: Boxes) -> Box:
    """Return a container without labels on each kind of network."""
    site.load(known(boxes.victim), more=site.docker_elements(boxes.guest, BRIDGE))
    found: Box = getattr(boxes, request.param)
    return found


# --- incus#4025: next headers behind extension headers ----------------------------------------------------------------


OPTIONS = b"\0\1\4" + bytes(4)
#: Ways to put a packet behind an extension header.
HIDE: dict[str, Callable[[Packet], Packet]] = {
    "hop-by-hop": lambda packet: pk.extended(packet, 0, OPTIONS),
    "destination": lambda packet: pk.extended(packet, 60, OPTIONS),
    "routing, type 2": lambda packet: pk.extended(packet, 43, bytes([2, 2, 0]) + bytes(20)),
    "routing, type 4": lambda packet: pk.extended(packet, 43, bytes([2, 4, 0]) + bytes(20)),
    "authentication": pk.authenticated,
    "fragment": lambda packet: pk.extended(packet, 44, struct.pack("!BHI", 0, 0, next(_ports))),
}
CHAINS = (*((name,) for name in HIDE), *itertools.permutations(("hop-by-hop", "destination", "fragment"), 2))


def test_incus_4025_no_extension_header_hides_a_port_or_a_type(site: Site, box: Box) -> None:
    """A closed port and a closed type of ICMPv6 stay closed behind extension headers; an open port is found there.

    The headers are hop-by-hop options, destination options, routing headers, authentication and fragments. Incus
    compared the IPv6 header's own next header, which is the first extension header.
    """
    hidden: dict[Packet, tuple[str, Packet]] = {}
    for names in CHAINS:
        for what, inner in (
            ("closed", new_flow("tcp", Site.OUT6, box.v6, 8080, next(_ports))),
            ("closed", new_flow("udp", Site.OUT6, box.v6, 53, next(_ports))),
            ("closed", icmp(Site.OUT6, box.v6, 133)),
            ("closed", icmp(Site.OUT6, box.v6, 137, body=next(_ports).to_bytes(4, "big") + bytes(36))),
            ("open", new_flow("tcp", Site.OUT6, box.v6, 80, next(_ports))),
        ):
            packet = inner
            for name in names:
                packet = HIDE[name](packet)
            hidden[packet] = (f"{what}, {' in '.join(names)}", inner)
    sniffer = site.sniffer(box)
    list(sniffer.read())
    site.send([*hidden, last := ping(Site.OUT6, box.v6)])
    (seen,) = arrived([sniffer], last)
    # The host reassembles fragments, so packets are recognised by their last part.
    found = {name for name, inner in hidden.values() if any(each.data.endswith(inner.data) for each in seen)}
    # AH is a protocol of its own, which no label here opens.
    assert found == {f"open, {' in '.join(names)}" for names in CHAINS if "authentication" not in names}


# --- incus#4022: rules with peers of both families --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peers", "four", "six"),
    [
        ("203.0.113.7", True, False),
        ("2001:db8:5::/48", False, True),
        ("203.0.113.0/24 2001:db8:77::/48", True, False),
        ("192.0.2.9 2001:db8:5::7", False, True),
        ("203.0.113.7 2001:db8:5::7", True, True),
        ("service:nobody 203.0.113.7", True, False),
    ],
)
def test_incus_4022_a_rule_of_one_family_opens_nothing_in_the_other(
    site: Site, boxes: Boxes, peers: str, four: bool, six: bool
) -> None:
    """Each family of a rule has its own peers: one without any is closed, and neither is dropped or wider.

    It holds for `fw.allow` and `fw.egress`. Incus left the source out of the other family's rule.
    """
    site.load(known(boxes.other, allow=f"8080 from {peers}", egress=f"8080 to {peers}"))
    for out, own, opens in ((Site.OUT4, boxes.other.v4, four), (Site.OUT6, boxes.other.v6, six)):
        inbound, outbound = (new_flow("tcp", *ends, 8080, next(_ports)) for ends in ((out, own), (own, out)))
        assert (site.deliver([inbound], boxes.other) == {inbound}) is opens
        last = ping(site.HOST6, Site.OUT6)
        assert (site.deliver([outbound], site.wan, boxes.other, last, site.host) == {outbound}) is opens


# --- incus#2077, #2631, #3910: rules of other programs ----------------------------------------------------------------

STRANGE = """
table inet strange {
	set services {
		type inet_service
		flags interval
		elements = { 22, 8000-9000 }
	}
	set typed {
		typeof ip saddr . tcp dport . meta mark
		flags timeout
		elements = { 192.0.2.1 . 22 . 0x7 timeout 1h }
	}
	map verdicts {
		type ipv4_addr . inet_service : verdict
		elements = { 192.0.2.1 . 22 : drop, 192.0.2.2 . 23 : continue }
	}
	counter docker-fw {
		packets 7 bytes 9
		comment "} elements = { docker-fw }"
	}
	limit lim {
		rate 5/second burst 6 packets
	}
	ct helper ftp {
		type "ftp" protocol tcp
	}
	chain odd {
		comment "docker-fw { chain inbound {"
		meta hour "04:00"-"05:00" counter
		numgen inc mod 4 1 counter
		jhash ip saddr . ip daddr mod 16 seed 0xdeadbeef 1 counter
		@nh,8,16 0x1234 tcp option maxseg size set rt mtu
		ip daddr . tcp dport vmap @verdicts
		limit name "lim" counter name "docker-fw"
		log prefix "table inet docker-fw { }" flags all
		ct helper set "ftp"
		exthdr hbh exists counter
	}
	chain forward {
		type filter hook forward priority -5; policy accept;
		tcp dport @services jump odd
	}
}
table netdev strange {
	chain ingress {
		type filter hook ingress device "eth0" priority 7; policy accept;
		vlan id 5 drop
	}
}
table arp strange {
	chain input {
		type filter hook input priority 0; policy accept;
		arp operation request counter
	}
}
table bridge strange {
	chain input {
		type filter hook input priority 0; policy accept;
		vlan type ip counter
	}
}
"""


def test_incus_2631_rules_of_other_programs_stop_nothing(site: Site, boxes: Boxes) -> None:
    """Tables with expressions, names and comments that docker-fw does not know stop no load, change, watch or repair.

    Incus and LXD read nft's listing of all tables, and did not start where it had a form that they did not know.
    """
    site.run("nft", "-f", "-", input=STRANGE)
    try:
        site.load(site.known(boxes.other))
        assert site.nft.intact()
        opened = Element("allow6", (boxes.other.v6, 6, 8080))
        site.nft.change(Change(add=(opened,)))
        found = in_thread(site.host.path, dump.read)
        assert opened in found.elements
        assert found.elements >= {*site.inventory(site.known(boxes.other)).all_elements()}
        assert in_thread(site.host.path, site.nft.closes)
        before = site.nft.foreign_changes()
        site.run("nft", "add rule inet strange odd counter accept")
        assert site.nft.foreign_changes() != before
        assert site.nft.intact()
        assert arriving(site, boxes.other, pairs=[(Site.OUT6, boxes.other.v6)]) == {*BASE, "8080/tcp"}
        site.run("nft", "delete", "table", "inet", "docker-fw")
        assert not site.nft.intact()
        site.load(site.known(boxes.other))
        assert arriving(site, boxes.other) == BASE
    finally:
        for family in ("inet", "netdev", "arp", "bridge"):
            site.run("nft", "delete", "table", family, "strange", check=False)


# --- incus#1919, #3307: names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "egress", ["", "53, 53/udp", "53/udp to 203.0.113.7 2001:db8:5::7, 53 to 203.0.113.7 2001:db8:5::7"]
)
def test_incus_1919_names_are_resolved(site: Site, boxes: Boxes, egress: str) -> None:
    """A container reaches a DNS server over UDP and TCP, in both families, by default and with an egress list for it.

    With a list, the list must name port 53. Incus dropped DNS as soon as a network had any rule.
    """
    labels = {"egress": egress} if egress else {}
    site.load(known(boxes.other, **labels))
    with site.wan.probe.serve(tcp=[53], udp=[53]):
        targets = [(proto, str(out), 53) for proto in ("udp", "tcp") for out in (Site.OUT4, Site.OUT6)]
        assert boxes.other.probe(targets, timeout=5) == dict.fromkeys(targets, "open")


# --- incus-os#1273: forwards ------------------------------------------------------------------------------------------


def test_incus_os_1273_a_neighbours_rules_change_no_published_port(site: Site, boxes: Boxes) -> None:
    """A published port works whatever labels a neighbour has, and leads only to the port and container that it names.

    Incus' forwards stopped when another instance of the bridge got rules.
    """
    any4 = IPv4Address(0)
    web = dataclasses.replace(
        known(boxes.victim), published=(Published("tcp", any4, 8080, 80), Published("tcp", any4, 8081, 8080))
    )
    strict = known(boxes.near, policy="closed", egress="none")
    site.load(web, strict)
    with boxes.victim.probe.serve(tcp=[80, 8080]), boxes.near.probe.serve(tcp=[80, 8080]):
        assert site.wan.probe.tcp(str(Site.HOST4), 8080, timeout=5) == "open"
        closed = [("tcp", str(Site.HOST4), 8081), ("tcp", str(boxes.near.v4), 80), ("tcp", str(boxes.near.v4), 8080)]
        assert site.wan.probe(closed, timeout=0.5) == dict.fromkeys(closed, "silent")
    # A forward of the host's own to the neighbour is filtered by the neighbour's rules, not by the published port's.
    rule = f"tcp dport 8090 dnat ip to {boxes.near.v4}:80"
    site.run(
        "nft", "-f", "-", input=f"table ip own {{ chain c {{ type nat hook prerouting priority -110; {rule}\n }}\n }}"
    )
    try:
        sent = [new_flow("tcp", Site.OUT4, Site.HOST4, 8090, next(_ports))]
        lands: set[Any] = {(p.data[:2], 80) for p in sent}
        sniffer = site.sniffer(boxes.near)
        list(sniffer.read())
        site.send([*sent, last := ping(Site.OUT4, boxes.near.v4)])
        (seen,) = arrived([sniffer], last)
        assert not {(p.data[:2], struct.unpack_from("!H", p.data, 2)[0]) for p in seen if p.proto == 6} & lands
    finally:
        site.run("nft", "delete", "table", "ip", "own")
