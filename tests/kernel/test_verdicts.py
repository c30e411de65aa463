"""Test the kernel's verdict on real packets: the floor, ICMP, states, networks, the mark, published ports.

Nothing here waits for silence: the last packet after those of a test always passes, on the same path, and a packet that
has not arrived before it never will.
"""

from __future__ import annotations

import dataclasses
import itertools
import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, IPv6Interface
from typing import Any

import pytest

from plugin.kernel import conntrack
from plugin.model import Network, Peer, PolicySpec, Published, Rule
from plugin.nftables.sets import Element
from plugin.protocols import Proto
from tests.kernel import packets as pk
from tests.kernel.marks import Marks
from tests.kernel.packets import Fragment, Packet, arrived, icmp, icmp_error, new_flow, packed, ping
from tests.kernel.site import Box, Site, site_of_module
from tests.waiting import until

PROTOS: tuple[Proto, ...] = ("tcp", "udp", "sctp")
_ports = itertools.cycle(range(20000, 60000))


site = site_of_module()


@dataclasses.dataclass(frozen=True)
class Boxes:
    """One host's containers: two on one network, one on another, one with a chosen bridge name, one inside."""

    web: Box
    db: Box
    other: Box
    chosen: Box
    inner: Box
    four: Box
    six: Box


@pytest.fixture(scope="module")
def boxes(site: Site) -> Boxes:
    one, two = site.network(1), site.network(2)
    chosen = site.network(3, bridge="front0")
    inner = site.network(4, internal=True)
    four, six = site.network(5, gateway6=None), site.network(6, gateway4=None)
    return Boxes(
        site.box(one, 2),
        site.box(one, 3),
        site.box(two, 2),
        site.box(chosen, 2),
        site.box(inner, 2),
        site.box(four, 2),
        site.box(six, 2),
    )


@pytest.fixture(scope="module")
def docker(site: Site) -> Box:
    """Return a container on a Docker bridge."""
    return site.docker_box("br-0123456789ab", 100)


@pytest.fixture(scope="module")
def unmanaged(site: Site) -> Box:
    """Return a machine on a bridge that is neither docker-fw's nor Docker's."""
    return site.docker_box("virbr0", 101)


@pytest.fixture(scope="module")
def by_hand(site: Site) -> Box:
    """Return a container on a bridge that is called fw-… and that docker-fw did not create."""
    return site.docker_box("fw-by-hand", 103)


@pytest.fixture(scope="module")
def inner_two(site: Site, boxes: Boxes) -> Box:
    """Return a second container on the internal network."""
    return site.box(_of(boxes.inner), 3)


@pytest.fixture(scope="module")
def lan(site: Site) -> Box:
    """Return a machine on another link of the host that is no bridge."""
    return site.lan_box(102)


@pytest.fixture
def web(site: Site, boxes: Boxes) -> Box:
    """A container whose labels are known and set no policy; its neighbours are not known."""
    site.load(site.known(boxes.web))
    return boxes.web


def outside(box: Box) -> list[tuple[Any, Any]]:
    """Return (source, destination) for a packet from outside to the box, in each of its families."""
    pairs: list[tuple[Any, Any]] = [(Site.OUT4, box.endpoint.addr4), (Site.OUT6, box.endpoint.addr6)]
    return [(src, dst) for src, dst in pairs if dst]


def between(source: Box, box: Box) -> list[tuple[Any, Any]]:
    return [(source.v4, box.v4), (source.v6, box.v6)]


def arriving_ports(site: Site, pairs: Iterable[tuple[Any, Any]], to: Box, source: Box | None = None) -> set[str]:
    """Return the ports on which a new flow reaches the box, of the well-known and some other ports of each protocol."""
    sent = {
        new_flow(proto, src, dst, port, next(_ports)): f"{port}/{proto}"
        for src, dst in pairs
        for proto in PROTOS
        for port in (21, 22, 23, 53, 80, 81, 443, 444, 8080)
    }
    return {sent[packet] for packet in site.deliver(sent, to, source)}


BASE = {"22/tcp", "80/tcp", "443/tcp"}


def _of(box: Box) -> Network:
    assert box.network
    return box.network


# --- the floor ----------------------------------------------------------------------------------------------------


def test_without_configuration_22_80_443_and_nothing_else(site: Site, web: Box) -> None:
    """A container without labels answers on TCP 22, 80 and 443, in both families."""
    for pair in outside(web):
        assert arriving_ports(site, [pair], web) == BASE


def test_every_port_of_every_protocol(site: Site, web: Box) -> None:
    """All 65,535 ports are tried on IPv6: the three are open, and no other."""
    sent = {new_flow("tcp", Site.OUT6, web.v6, port, 30000): port for port in range(1, 65536)}
    assert {sent[packet] for packet in site.deliver(sent, web)} == {22, 80, 443}


def test_a_label_opens_its_port_on_its_container_only(site: Site, boxes: Boxes) -> None:
    """8080 opened for one container stays closed on its neighbour."""
    site.load(site.known(boxes.web, Rule("tcp", 8080, 8080)), site.known(boxes.db))
    assert arriving_ports(site, outside(boxes.web), boxes.web) == {*BASE, "8080/tcp"}
    assert arriving_ports(site, outside(boxes.db), boxes.db) == BASE


def test_an_address_is_closed_until_it_is_known(site: Site, boxes: Boxes) -> None:
    """A network's containers accept ICMP only until their labels are known: not even the base."""
    site.load()
    for box in (boxes.web, boxes.chosen):
        assert arriving_ports(site, outside(box), box) == set()
        for src, dst in outside(box):
            echo = ping(src, dst)
            assert site.deliver([echo], box) == {echo}


def test_an_address_that_a_container_gives_itself_is_closed(site: Site, boxes: Boxes) -> None:
    """An address that is not registered (self-assigned, SLAAC) accepts nothing, whatever its labels allow."""
    site.load(site.known(boxes.web, Rule("tcp", 1, 65535)))
    extra = IPv6Address("2001:db8:1::99")
    boxes.web.ip(f"addr add {extra}/64 dev eth0 nodad")
    mac = boxes.web.endpoint.mac
    site.host.ip(f"neigh replace {extra} lladdr {mac} dev {_of(boxes.web).bridge} nud permanent")
    try:
        assert arriving_ports(site, [(Site.OUT6, extra)], boxes.web) == set()
    finally:
        boxes.web.ip(f"addr del {extra}/64 dev eth0")


def test_single_stack_networks(site: Site, boxes: Boxes) -> None:
    """A network of one family only has the same floor."""
    site.load(site.known(boxes.four), site.known(boxes.six))
    assert arriving_ports(site, outside(boxes.four), boxes.four) == BASE
    assert arriving_ports(site, outside(boxes.six), boxes.six) == BASE


def test_a_chosen_bridge_name_is_closed_too(site: Site, boxes: Boxes) -> None:
    """A bridge that is not called fw-… is recognised by its device group, from its first packet, known or not."""
    site.load(site.known(boxes.chosen))
    assert arriving_ports(site, outside(boxes.chosen), boxes.chosen) == BASE
    site.nft.replace(())
    assert arriving_ports(site, outside(boxes.chosen), boxes.chosen) == set()


def test_a_network_is_closed_before_it_is_known(site: Site, boxes: Boxes, by_hand: Box) -> None:
    """With an empty table (a restart without its state) only ICMP passes to every container network."""
    site.nft.replace(())
    for box in (boxes.web, boxes.other, boxes.chosen, boxes.four, boxes.six, by_hand):
        assert arriving_ports(site, outside(box), box) == set()


def test_other_protocols_are_dropped(site: Site, web: Box) -> None:
    """Protocols without ports, and packets with a truncated header, do not pass."""
    sent = [
        Packet(packed(src), packed(dst), proto, data)
        for src, dst in outside(web)
        for proto, data in (
            (47, b"\0" * 8),
            (50, b"\0" * 16),
            (51, b"\0" * 24),
            (4, b"\0" * 20),
            (41, b"\0" * 40),
            (33, b"\0\x50\0\x50" * 5),
            (136, b"\0\x50\0\x50\0\x08\0\0"),
            (253, b"x"),
            (6, b"\0\x50"),
            (17, b"\0"),
            (132, b"\0\x50\0\x50"),
        )
    ]
    assert site.deliver(sent, web) == set()


def test_an_authentication_header_is_a_protocol(site: Site, boxes: Boxes) -> None:
    """AH is filtered as AH in both families, whatever it carries: an open port behind it is closed, `ah` opens all."""
    src, dst = outside(boxes.web)[1]
    wrapped = [
        pk.authenticated(new_flow(proto, src, dst, port, next(_ports)))
        for proto, port in (("tcp", 80), ("tcp", 8080), ("udp", 53))
    ]
    plain = [pk.portless("ah", *pair) for pair in outside(boxes.web)]
    site.load(site.known(boxes.web, Rule("udp", 53, 53)))
    assert site.deliver([*wrapped, *plain], boxes.web, last=ping(src, dst)) == set()
    site.load(site.known(boxes.web, Rule("ah", 0, 0)))
    assert site.deliver([*wrapped, *plain], boxes.web, last=ping(src, dst)) == {*wrapped, *plain}


@pytest.mark.parametrize("proto", ["gre", "esp", "ah"])
def test_a_protocol_can_be_denied_on_an_open_container(site: Site, boxes: Boxes, proto: str) -> None:
    """`policy: open` accepts every protocol; `deny`, and a rule with `from`, exclude one without ports as well."""
    src, dst = outside(boxes.web)[1]
    sent = {pk.portless(each, *pair): each for each in ("gre", "esp", "ah", "other") for pair in outside(boxes.web)}
    one_prefix = Rule(proto, 0, 0, (Peer("prefix", "192.0.2.0/24"),))
    for spec, passing in (
        (PolicySpec(policy="open"), {"gre", "esp", "ah", "other"}),
        (PolicySpec(policy="open", deny=(Rule(proto, 0, 0),)), {"gre", "esp", "ah", "other"} - {proto}),
        (PolicySpec(policy="open", allow=(one_prefix,)), {"gre", "esp", "ah", "other"} - {proto}),
        (PolicySpec(allow=(Rule(proto, 0, 0),)), {proto}),
    ):
        site.load(site.known(boxes.web, spec=spec))
        got = site.deliver(sent, boxes.web, last=ping(src, dst))
        assert got == {packet for packet, each in sent.items() if each in passing}


@pytest.mark.parametrize("spec", ["open", "every port"])
def test_port_0_is_never_open(site: Site, boxes: Boxes, spec: str) -> None:
    """`*` means the ports 1-65535: a packet to port 0, which no program can have, is dropped, also with `fw.policy`."""
    every = tuple(Rule(proto, 1, 65535) for proto in PROTOS)
    known = site.known(boxes.web, spec=PolicySpec(policy="open") if spec == "open" else PolicySpec(allow=every))
    site.load(known)
    sent = {
        new_flow(proto, src, dst, port, next(_ports)): port
        for src, dst in outside(boxes.web)
        for proto in PROTOS
        for port in (0, 1, 65535)
    }
    got = site.deliver(sent, boxes.web)
    assert got == {packet for packet, port in sent.items() if port}


@pytest.mark.parametrize("by_port", [True, False], ids=["tracked by port", "tracked by address"])
def test_sctp_of_an_established_flow(monkeypatch: pytest.MonkeyPatch, by_port: bool) -> None:
    """Where the kernel does not track SCTP by port, each packet needs an open port, also one of an established flow.

    Otherwise one open port would open all (CONFIG_NF_CT_PROTO_SCTP is off). This kernel has it, so the test shows that
    an established flow to a port that is closed now passes in the one case, and not in the other.
    """
    if not by_port:
        monkeypatch.setattr(conntrack, "distinguishes_sctp", lambda: False)
    with Site() as site:
        web = site.box(site.network(1), 2)
        site.load(site.known(web, Rule("sctp", 7, 7)))
        sport, out = next(_ports), Site.OUT6
        init = new_flow("sctp", out, web.v6, 7, sport)
        assert site.deliver([init], web) == {init}
        answer = pk.sctp_chunk(web.v6, out, sport, 7, 2, tag=1)
        assert site.deliver([answer], site.wan, web) == {answer}
        more = pk.sctp_chunk(out, web.v6, 7, sport, 10, tag=1)
        assert site.deliver([more], web) == {more}
        site.load(site.known(web))
        more = pk.sctp_chunk(out, web.v6, 7, sport, 11 if by_port else 10, tag=1)
        assert (site.deliver([more], web) == {more}) is by_port


# --- ICMP ---------------------------------------------------------------------------------------------------------

ACCEPTED = {
    4: {3: "destination-unreachable", 8: "echo-request", 11: "time-exceeded", 12: "parameter-problem"},
    6: {1: "destination-unreachable", 2: "packet-too-big", 3: "time-exceeded", 4: "parameter-problem",
        128: "echo-request", 134: "nd-router-advert", 135: "nd-neighbor-solicit", 136: "nd-neighbor-advert"},
}  # fmt: skip


@pytest.mark.parametrize("version", [4, 6])
def test_just_the_listed_icmp_passes(site: Site, web: Box, version: int) -> None:
    """Of all 256 types, unsolicited, exactly those of the list arrive; the errors belong to no known flow."""
    (src, dst) = outside(web)[version == 6]
    stranger = new_flow("udp", dst, src, 9, 9)
    sent = {}
    for kind in range(256):
        errors = kind in ((3, 4, 5, 11, 12) if version == 4 else range(1, 128))
        packet = icmp_error(src, stranger, kind) if errors else icmp(src, dst, kind)
        sent[packet] = kind
    assert {sent[packet] for packet in site.deliver(sent, web)} == set(ACCEPTED[version])


def test_icmp_of_the_other_family_is_no_way_in(site: Site, web: Box) -> None:
    """ICMP over IPv6 and ICMPv6 over IPv4 (which no host sends) are dropped, whatever their type."""
    four, six = (tuple(map(packed, pair)) for pair in outside(web))
    sent = [Packet(*six, 1, bytes([kind, 0, 0, 0] + [0] * 8)) for kind in (3, 8, 128)]
    sent += [Packet(*four, 58, bytes([kind, 0, 0, 0] + [0] * 8)) for kind in (1, 8, 128)]
    assert site.deliver(sent, web) == set()


def test_ping_is_answered(site: Site, web: Box) -> None:
    """Ping works from outside, in both families, and back."""
    for _, dst in outside(web):
        assert site.wan.probe.ping(str(dst)) == "open"
    for out in (Site.OUT4, Site.OUT6):
        assert web.probe.ping(str(out)) == "open"


def test_path_mtu_discovery_works(site: Site, web: Box) -> None:
    """A too-big message about a flow of the container's reaches it: PMTU discovery works in both directions."""
    for src, dst, kind, code in ((Site.OUT4, web.v4, 3, 4), (Site.OUT6, web.v6, 2, 0)):
        flow = new_flow("tcp", dst, src, 80, next(_ports))
        site.send([flow], web)
        error = icmp_error(src, flow, kind, code, 1300)
        assert site.deliver([error], web) == {error}


@pytest.mark.parametrize("to", ["outside", "host", "other network"])
def test_no_router_advertisement_nor_redirect_from_a_container(site: Site, boxes: Boxes, to: str) -> None:
    """Router advertisements and redirects from a container are dropped, to any destination (CVE-2020-13401)."""
    site.load(site.known(boxes.web), site.known(boxes.other))
    web = boxes.web
    target6 = {"outside": Site.OUT6, "host": IPv6Address("2001:db8:1::1"), "other network": boxes.other.v6}[to]
    target4 = {"outside": Site.OUT4, "host": IPv4Address("10.1.0.1"), "other network": boxes.other.v4}[to]
    # About an existing flow, so that connection tracking calls the redirect related.
    flow6, flow4 = (new_flow("tcp", t, w, 80, next(_ports)) for w, t in ((web.v6, target6), (web.v4, target4)))
    site.send([flow4, flow6], {"outside": None, "host": site.host, "other network": boxes.other}[to])
    advert = icmp(web.v6, target6, 134, body=struct.pack("!BBHII", 64, 0, 1800, 0, 0))
    redirect6 = icmp(web.v6, target6, 137, body=bytes(4) + bytes(32) + bytes(flow6)[:100])
    redirect4 = icmp_error(web.v4, flow4, 5, 1)
    sent = [advert, redirect6, redirect4]
    if to == "host":
        watch_input(site, "icmpv6 type { nd-router-advert, nd-redirect } counter", "icmp type redirect counter")
        site.send([*sent, icmp(web.v6, target6, 128), icmp(web.v4, target4, 8)], web)
        until(lambda: counted(site)[2:] == [1, 1], "both pings arrived")
        assert counted(site) == [0, 0, 1, 1]
        site.run("nft", "delete", "table", "inet", "watch")
    elif to == "outside":
        assert delivered_outside(site, sent, web) == set()
    else:
        assert site.deliver(sent, boxes.other, web, icmp(web.v6, target6, 128)) == set()


@pytest.mark.parametrize("name", ["chosen name", "fw- by hand"])
def test_no_router_advertisement_from_any_bridge_of_ours(site: Site, boxes: Boxes, by_hand: Box, name: str) -> None:
    """A bridge is docker-fw's by its device group or by its name; either identifies a container's advertisement."""
    site.load(site.known(boxes.other))
    source = boxes.chosen if name == "chosen name" else by_hand
    advert = icmp(source.v6, boxes.other.v6, 134, body=struct.pack("!BBHII", 64, 0, 1800, 0, 0))
    assert site.deliver([advert], boxes.other, source, ping(source.v6, boxes.other.v6)) == set()


def test_a_related_error_of_any_other_type_passes(site: Site, web: Box) -> None:
    """Errors that connection tracking relates to a container's own flow pass, also of types not on the list."""
    flow = new_flow("udp", web.v4, Site.OUT4, 9, next(_ports))
    site.send([flow], web)
    quench = icmp_error(Site.OUT4, flow, 4)
    assert site.deliver([quench], web) == {quench}
    stranger = icmp_error(Site.OUT4, new_flow("udp", web.v4, Site.OUT4, 9, next(_ports)), 4)
    assert site.deliver([stranger], web) == set()


def watch_input(site: Site, *rules: str) -> None:
    """Count on the host, after the chain `input`: the rules' packets, and pings of both families."""
    lines = "\n".join([*rules, "icmpv6 type echo-request counter", "icmp type echo-request counter"])
    text = f"table inet watch {{\nchain i {{\ntype filter hook input priority 10;\n{lines}\n}}\n}}\n"
    site.run("nft", "-f", "-", input=text)


def counted(site: Site) -> list[int]:
    shown = site.run("nft", "list", "table", "inet", "watch").stdout
    return [int(line.split("packets ")[1].split()[0]) for line in shown.splitlines() if "packets " in line]


def delivered_outside(site: Site, sent: list[Packet], source: Box) -> set[Packet]:
    """Return which of the box's packets arrive at the outsider; an echo request follows them."""
    return site.deliver(sent, site.wan, source, icmp(source.v6, Site.OUT6, 128))


# --- connection states --------------------------------------------------------------------------------------------


def test_packets_of_no_flow_are_dropped(site: Site, boxes: Boxes) -> None:
    """A segment that connection tracking calls invalid, or a bad checksum, passes on no port, not even an open one."""
    site.load(site.known(boxes.web, Rule("udp", 53, 53)))
    web = boxes.web
    sent = []
    for src, dst in outside(web):
        # SYN+RST, SYN+FIN, no flags at all, all flags: no TCP sends them
        sent += [pk.tcp(src, dst, 80, next(_ports), flags) for flags in (0x06, 0x03, 0x00, 0x3F, 0x29)]
        bad = new_flow("tcp", src, dst, 80, next(_ports))
        sent.append(dataclasses.replace(bad, data=bad.data[:16] + b"\xba\xad" + bad.data[18:]))
        bad = new_flow("udp", src, dst, 53, next(_ports))
        sent.append(dataclasses.replace(bad, data=bad.data[:6] + b"\xba\xad" + bad.data[8:]))
    assert site.deliver(sent, web) == set()


def test_connections_work_both_ways(site: Site, web: Box) -> None:
    """A connection to an open port, and one that the container opens, work completely; a closed port is silent."""
    with web.probe.serve(tcp=[80, 8080], udp=[53]), site.wan.probe.serve(tcp=[9000], udp=[9000]):
        for _, dst in outside(web):
            assert site.wan.probe.tcp(str(dst), 80) == "open"
            assert site.wan.probe([("tcp", str(dst), 8080), ("udp", str(dst), 53)], timeout=0.2) == {
                ("tcp", str(dst), 8080): "silent",
                ("udp", str(dst), 53): "silent",
            }
        for out in (Site.OUT4, Site.OUT6):
            assert web.probe([("tcp", str(out), 9000), ("udp", str(out), 9000)]) == {
                ("tcp", str(out), 9000): "open",
                ("udp", str(out), 9000): "open",
            }


def test_an_icmp_error_about_a_containers_flow_arrives(site: Site, web: Box) -> None:
    """A container that sends to a closed port outside learns so at once."""
    for out in (Site.OUT4, Site.OUT6):
        assert web.probe.udp(str(out), 9) == "refused"


def test_a_redirect_about_a_containers_flow_does_not_arrive(site: Site, web: Box) -> None:
    """Connection tracking calls it related, like other errors, but no router forwards it (RFC 1812 section 5.2.7.2)."""
    flow = new_flow("udp", web.v4, Site.OUT4, 9, next(_ports))
    assert site.deliver([flow], site.wan, web) == {flow}
    errors = {kind: icmp_error(Site.OUT4, flow, kind, 1) for kind in (3, 5)}
    assert site.deliver(errors.values(), web, last=ping(Site.OUT4, web.v4)) == {errors[3]}


@pytest.mark.parametrize("inner", ["tcp", "echo", "udp"])
def test_a_routing_header_0_is_dropped(site: Site, boxes: Boxes, inner: str) -> None:
    """Source routing (RFC 5095) passes with no payload: not to an open port, not with a ping."""
    site.load(site.known(boxes.web, Rule("udp", 53, 53)))
    src, dst = outside(boxes.web)[1]

    def fresh() -> Packet:
        if inner == "echo":
            return ping(src, dst)
        return new_flow(inner, src, dst, {"tcp": 80, "udp": 53}[inner], next(_ports))

    plain = fresh()
    assert site.deliver([plain], boxes.web) == {plain}
    # next header, length 2 (×8 bytes), type 0, segments left, reserved, one address
    routed = [pk.extended(fresh(), 43, bytes([2, 0, left]) + bytes(4) + dst.packed) for left in (0, 1)]
    assert site.deliver(routed, boxes.web) == set()


def test_other_extension_headers_hide_nothing(site: Site, web: Box) -> None:
    """Behind hop-by-hop or destination options a port is filtered as without."""
    src, dst = outside(web)[1]
    sent = {}
    for header in (0, 60):
        for port in (80, 8080):
            packet = pk.extended(new_flow("tcp", src, dst, port, next(_ports)), header, bytes([0, 1, 4, 0, 0, 0, 0]))
            sent[packet] = port
    assert {sent[packet] for packet in site.deliver(sent, web)} <= {80}


def test_fragments_are_judged_as_wholes(site: Site, web: Box) -> None:
    """A flow in fragments passes on an open port, and on a closed one not a fragment of it does."""
    src, dst = outside(web)[0]
    with web.probe.serve(udp=[53]):
        site.load(site.known(web, Rule("udp", 53, 53)))
        host_side = site.sniffer(web)
        for port, passes in ((53, True), (54, False)):
            whole = pk.udp(src, dst, port, next(_ports), b"x" * 64)
            first, rest = whole.data[:32], whole.data[32:]
            for _ in host_side.read():
                pass
            last = icmp(src, dst, 8)
            ident = next(_ports)
            site.send([Fragment(whole, 0x2000, ident, first), Fragment(whole, 4, ident, rest), last])
            (seen,) = arrived([host_side], last)
            assert bool([p for p in seen if p.proto == 17]) is passes


# --- within and between networks ----------------------------------------------------------------------------------


@pytest.fixture(params=[0, 1], ids=["br_netfilter off", "br_netfilter on"])
def br_netfilter(request: pytest.FixtureRequest, site: Site) -> Iterator[int]:
    """Set whether packets inside a bridge pass the host's rules too."""
    names = [f"net/bridge/bridge-nf-call-{kind}" for kind in ("iptables", "ip6tables", "arptables")]
    site.host.sysctl(dict.fromkeys(names, request.param))
    yield request.param
    site.host.sysctl(dict.fromkeys(names, 0))


def test_containers_of_one_network_talk_freely(site: Site, boxes: Boxes, br_netfilter: int) -> None:
    """Containers talk on any port, whether their labels are known or not, also where the rules see bridged packets."""
    site.load()
    sent = [
        new_flow(proto, src, dst, port, next(_ports))
        for src, dst in between(boxes.web, boxes.db)
        for proto in PROTOS
        for port in (22, 53, 8080)
    ]
    assert site.deliver(sent, boxes.db, boxes.web) == set(sent)


def test_neighbours_find_each_other(site: Site, boxes: Boxes, br_netfilter: int) -> None:
    """Address resolution within a network works from scratch, also IPv6's, which br_netfilter passes to the rules."""
    site.load()
    for one, two in ((boxes.web, boxes.db), (boxes.db, boxes.web)):
        one.ip(*(f"neigh flush to {a}" for a in (two.v4, two.v6)))
        for address in (two.v4, two.v6):
            assert one.probe.ping(str(address)) == "open"


def test_inside_an_internal_network_containers_talk(
    site: Site, boxes: Boxes, inner_two: Box, br_netfilter: int
) -> None:
    """An internal network is closed to all others, not to its own containers."""
    site.load()
    sent = [new_flow("tcp", src, dst, 5432, next(_ports)) for src, dst in between(inner_two, boxes.inner)]
    assert site.deliver(sent, boxes.inner, inner_two) == set(sent)


def test_a_router_on_the_same_bridge_is_no_way_round(site: Site, boxes: Boxes, br_netfilter: int) -> None:
    """From another network the neighbour's closed port stays closed, with br_netfilter too."""
    site.load(site.known(boxes.web), site.known(boxes.other))
    assert arriving_ports(site, between(boxes.other, boxes.web), boxes.web, boxes.other) == BASE


def test_between_two_networks_the_policy_applies(site: Site, boxes: Boxes) -> None:
    """A container is an outsider to containers of other networks: the base and the ports that labels open apply."""
    site.load(site.known(boxes.web, Rule("tcp", 8080, 8080)), site.known(boxes.other))
    assert arriving_ports(site, between(boxes.other, boxes.web), boxes.web, boxes.other) == {*BASE, "8080/tcp"}
    assert arriving_ports(site, between(boxes.web, boxes.other), boxes.other, boxes.web) == BASE
    assert arriving_ports(site, between(boxes.chosen, boxes.web), boxes.web, boxes.chosen) == {*BASE, "8080/tcp"}


def test_from_docker_bridges_the_policy_applies(site: Site, boxes: Boxes, docker: Box) -> None:
    """A container on a Docker bridge is an outsider, too."""
    site.load(site.known(boxes.web))
    assert arriving_ports(site, between(docker, boxes.web), boxes.web, docker) == BASE


@pytest.mark.parametrize("forger", ["another network", "Docker's bridge", "another link"])
def test_a_forged_packet_opens_no_way_back(site: Site, boxes: Boxes, docker: Box, lan: Box, forger: str) -> None:
    """A packet with a container's forged source address does not make its closed ports answer an accomplice."""
    site.load(site.known(boxes.web), site.known(boxes.other), site.known(boxes.chosen))
    where = {"another network": boxes.other, "Docker's bridge": docker, "another link": lan}[forger]
    for victim in (boxes.web, boxes.chosen):
        forged, back = [], []
        for proto in ("tcp", "udp"):
            for out, target in outside(victim):
                port = next(_ports)
                forged.append(new_flow(proto, target, out, port, 8080))
                back.append(new_flow(proto, out, target, 8080, port))
        assert not site.deliver(forged, site.wan, where, last=ping(where.v6, Site.OUT6)) & set(forged)
        assert not site.deliver(back, victim) & set(back)


def any_flow(src: Any, dst: Any) -> list[Packet]:
    return [*(new_flow(proto, src, dst, 80, next(_ports)) for proto in PROTOS), ping(src, dst)]


@pytest.mark.parametrize("source", ["outside", "another network", "Docker's bridge"])
def test_no_packet_enters_an_internal_network(site: Site, boxes: Boxes, docker: Box, source: str) -> None:
    """No packet enters from outside or from other networks, whatever labels open; this includes ping."""
    inner = boxes.inner
    everything = Rule("tcp", 1, 65535)
    site.load(site.known(inner, everything), site.known(boxes.web, everything))
    start = {"outside": None, "another network": boxes.web, "Docker's bridge": docker}[source]
    pairs = outside(inner) if start is None else between(start, inner)
    sent = [packet for pair in pairs for packet in any_flow(*pair)]
    last = ping(pairs[1][0], boxes.other.v6)
    sniffers = [site.sniffer(inner), site.sniffer(boxes.other)]
    for sniffer in sniffers:
        list(sniffer.read())
    site.send([*sent, last], start)
    seen, _ = arrived(sniffers, last)
    assert not seen & set(sent)


@pytest.mark.parametrize("target", ["outside", "another network", "Docker's bridge"])
def test_no_packet_leaves_an_internal_network(site: Site, boxes: Boxes, docker: Box, target: str) -> None:
    """Containers of an internal network reach only one another; this includes ping."""
    inner = boxes.inner
    everything = Rule("tcp", 1, 65535)
    site.load(site.known(inner, everything), site.known(boxes.web, everything))
    end = {"outside": None, "another network": boxes.web, "Docker's bridge": docker}[target]
    pairs = [(inner.v4, Site.OUT4), (inner.v6, Site.OUT6)] if end is None else between(inner, end)
    sent = [packet for pair in pairs for packet in any_flow(*pair)]
    # None of them may arrive, so the last packet is another container's, sent after.
    last = ping(boxes.other.v6, pairs[1][1])
    sniffer = site.sniffer(end or site.wan)
    list(sniffer.read())
    site.send(sent, inner)
    site.send([last], boxes.other)
    (seen,) = arrived([sniffer], last)
    assert not seen & set(sent)


# --- the mark -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forge", [False, True], ids=["plain", "forged"])
@pytest.mark.parametrize(
    ("way", "marked"),
    [
        ("outside → ours, accepted", True),
        ("outside → ours, ping", True),
        ("ours → outside", True),
        ("ours → ours", True),
        ("ours → unmanaged bridge", True),
        ("ours → Docker's bridge", False),
        ("Docker's bridge → outside", False),
        ("outside → Docker's bridge", False),
        ("Docker's bridge → unmanaged bridge", False),
        ("unmanaged bridge → outside", False),
    ],
)
def test_the_mark_is_exact(
    site: Site, boxes: Boxes, docker: Box, unmanaged: Box, way: str, marked: bool, forge: bool
) -> None:
    """docker-fw's mark is on packets that its table accepted and on no other, whatever mark they came with.

    The mark lets a packet pass Docker's own firewall, so no packet to a Docker bridge has it.
    """
    guest = site.docker_elements(docker, "br-0123456789ab")
    site.load(
        site.known(boxes.web), site.known(boxes.other), more=[Element("unmanaged", (site.index("virbr0"),)), *guest]
    )
    places: dict[str, tuple[Any, Any]] = {
        "outside": (None, (Site.OUT4, Site.OUT6)),
        "ours": (boxes.web, (boxes.web.v4, boxes.web.v6)),
        "Docker's bridge": (docker, (docker.v4, docker.v6)),
        "unmanaged bridge": (unmanaged, (unmanaged.v4, unmanaged.v6)),
    }
    path, _, what = way.partition(", ")
    start, _, end = path.partition(" → ")
    source, froms = places[start]
    if path == "ours → ours":
        tos, target = (boxes.other.v4, boxes.other.v6), boxes.other
    else:
        target, tos = places[end]
    packets = [new_flow("tcp", src, dst, 80, next(_ports)) for src, dst in zip(froms, tos, strict=True)]
    if what == "ping":
        packets = [ping(src, dst) for src, dst in zip(froms, tos, strict=True)]
    with Marks(site, *tos, forge=forge) as marks:
        last = packets.pop()
        site.deliver(packets, target or site.wan, source, last)
        assert marks.seen() == ((2, 0, 2) if marked else (0, 2, 2))


def test_answers_of_dockers_containers_to_ours_are_marked(site: Site, boxes: Boxes, docker: Box) -> None:
    """Accepted packets to docker-fw bridges have the mark, replies too: Docker's DROP does not stop them."""
    site.load(site.known(boxes.web), more=site.docker_elements(docker, "br-0123456789ab"))
    web = boxes.web
    with docker.probe.serve(tcp=[80]), Marks(site, web.v4, web.v6) as marks:
        assert web.probe.tcp(str(docker.v6), 80) == "open"
        marked, not_marked, _ = marks.seen()
    assert marked >= 2  # SYN+ACK, data
    assert not_marked == 0


# --- forwarding that docker-fw enabled --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [4, 6])
def test_paths_that_were_never_forwarded_stay_closed(
    site: Site, boxes: Boxes, docker: Box, unmanaged: Box, lan: Box, family: int
) -> None:
    """A host that was no router before does not become one between its other links, in the enabled families."""
    number = {4: 2, 6: 10}[family]
    index = family == 6
    pair = [(Site.OUT4, lan.v4), (Site.OUT6, lan.v6)][index]
    known = (site.known(boxes.web), site.known(boxes.other))
    sent = [new_flow("tcp", *pair, 80, next(_ports))]
    site.load(*known)
    assert site.deliver(sent, lan) == set(sent), "the way is there"
    site.load(*known, more=[Element("no_transit", (number,)), *site.docker_elements(docker, "br-0123456789ab")])
    sent = [new_flow(proto, *pair, 80, next(_ports)) for proto in PROTOS] + [ping(*pair)]
    # The family that was forwarded before continues: its packet is the last.
    last = ping(*[(Site.OUT4, lan.v4), (Site.OUT6, lan.v6)][not index])
    assert site.deliver(sent, lan, None, last) == set()
    # Nor through a bridge that is not known; containers on docker-fw and Docker networks are reached as before.
    sent = [new_flow("udp", [unmanaged.v4, unmanaged.v6][index], [lan.v4, lan.v6][index], 80, next(_ports))]
    site.send(sent, unmanaged)
    assert site.deliver(sent, lan, None, ping(*[(Site.OUT4, lan.v4), (Site.OUT6, lan.v6)][not index])) == set()
    assert arriving_ports(site, [outside(boxes.web)[index]], boxes.web) == BASE
    packet = new_flow("tcp", [Site.OUT4, Site.OUT6][index], [docker.v4, docker.v6][index], 80, next(_ports))
    assert site.deliver([packet], docker) == {packet}
    packet = new_flow("tcp", [docker.v4, docker.v6][index], [Site.OUT4, Site.OUT6][index], 80, next(_ports))
    assert delivered_outside(site, [packet], docker) == {packet}
    packet = new_flow("tcp", [boxes.web.v4, boxes.web.v6][index], [Site.OUT4, Site.OUT6][index], 80, next(_ports))
    assert delivered_outside(site, [packet], boxes.web) == {packet}


# --- published ports ----------------------------------------------------------------------------------------------


def test_a_published_port_obeys_the_policy(site: Site, boxes: Boxes) -> None:
    """`-p 8081:80` leads to an open port; `-p 8082:8080` leads to a closed one and is closed, though published."""
    published = tuple(
        Published(proto, any_, host, port)  # type: ignore[arg-type]
        for any_ in (IPv4Address("0.0.0.0"), IPv6Address("::"))
        for proto, host, port in (("tcp", 8081, 80), ("tcp", 8082, 8080), ("udp", 5353, 53))
    )
    web = boxes.web
    with web.probe.serve(tcp=[80, 8080], udp=[53]):
        site.load(site.known(web, published=published))
        for host in (str(Site.HOST4), str(Site.HOST6)):
            found = site.wan.probe([("tcp", host, 8081), ("tcp", host, 8082), ("udp", host, 5353)], timeout=0.3)
            assert list(found.values()) == ["open", "silent", "silent"]
        site.load(site.known(web, Rule("udp", 53, 53), Rule("tcp", 8080, 8080), published=published))
        for host in (str(Site.HOST4), str(Site.HOST6)):
            found = site.wan.probe([("tcp", host, 8081), ("tcp", host, 8082), ("udp", host, 5353)], timeout=0.5)
            assert list(found.values()) == ["open"] * 3
        site.load(dataclasses.replace(web.endpoint, container=None, published=published))
        assert site.wan.probe.tcp(str(Site.HOST6), 8081, timeout=0.2) == "silent"


# --- outbound source addresses ----------------------------------------------------------------------------------------


def test_ipv4_leaves_with_the_hosts_address_and_ipv6_with_its_own(site: Site) -> None:
    """IPv4 is masqueraded where the network requests it, IPv6 never."""
    network = site.network(7, masquerade=True)
    box = site.box(network, 2)
    site.load(site.known(box))
    with site.wan.probe.serve(tcp=[9001]):
        assert box.probe.one(("tcp", str(Site.OUT4), 9001)).peer == str(Site.HOST4)
        assert box.probe.one(("tcp", str(Site.OUT6), 9001)).peer == str(box.v6)


def test_without_masquerading_ipv4_keeps_its_address(site: Site, web: Box) -> None:
    """A routed IPv4 network is seen with its own addresses."""
    with site.wan.probe.serve(tcp=[9002]):
        assert web.probe.one(("tcp", str(Site.OUT4), 9002)).peer == str(web.v4)


def test_between_networks_nothing_is_masqueraded(site: Site, boxes: Boxes) -> None:
    """A container of another network sees the source address of the caller."""
    network = site.networks.get(f"{7:012x}".ljust(64, "0")) or site.network(7, masquerade=True)
    box = site.box(network, 9)
    site.load(site.known(boxes.web), site.known(box))
    with boxes.web.probe.serve(tcp=[80]):
        assert box.probe.one(("tcp", str(boxes.web.v4), 80)).peer == str(box.v4)


def test_an_on_link_prefix_of_documentation() -> None:
    """The lab uses the addresses that the tests name."""
    assert IPv6Interface(f"{Site.HOST6}/64").network == IPv6Interface("2001:db8:ffff::2/64").network
