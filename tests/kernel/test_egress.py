"""Test `fw.egress`: what a container may initiate to other networks and to the host.

Replies and traffic with neighbours still work.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from plugin.labels.parser import parse
from plugin.model import BridgeNetwork, Container, PolicySpec
from plugin.nftables.elements import guest_elements
from plugin.nftables.sets import Element
from plugin.policy.decide import of
from tests.kernel.packets import Listener, Packet, Sniffer, arrived, frame, icmp, new_flow, packed, ping, portless, udp
from tests.kernel.site import (
    BRIDGED_FRAMES_UNTRACKED,
    Box,
    Site,
    claimed,
    egress_restricting,
    of_endpoint,
    site_of_module,
)
from tests.lab import NamedNetns
from tests.lab.netns import FORWARDING

PROTOS = ("tcp", "udp", "sctp")
PORTS = (22, 53, 80, 443, 8080)
_ports = itertools.cycle(range(20000, 60000))


site = site_of_module(FORWARDING | BRIDGED_FRAMES_UNTRACKED)


@dataclasses.dataclass(frozen=True)
class Boxes:
    """Two containers on one network, one on another of the same kind."""

    web: Box
    twin: Box
    other: Box
    bridge: str
    bridge2: str
    gateways: tuple[IPv4Address, IPv6Address]

    def elements(self, site: Site, *words: str, twin: bool = False) -> set[Element]:
        """Return the table's elements for the web container with this `fw.egress`, and for the other, which is open.

        The web container accepts 9/udp; `twin` may be known too.
        """
        label = parse({"fw.allow": "9/udp"} | ({"fw.egress": "\n".join(words)} if words else {}))
        assert not label.problems
        spec = [(self.web, self.bridge, label.spec), (self.other, self.bridge2, PolicySpec(policy="open"))]
        if twin:
            spec.append((self.twin, self.bridge, PolicySpec()))
        found: set[Element] = set()
        for box, bridge, what in spec:
            if box.network:
                endpoint = Site.known(box, spec=what)
                found |= of_endpoint(site.inventory(endpoint), endpoint)
            else:
                found |= site.docker_elements(box, bridge, spec=what)
        return found


@pytest.fixture(scope="module")
def ours(site: Site) -> Boxes:
    one, two = site.network(1, bridge="front1"), site.network(2, bridge="front2")
    web, twin, other = site.box(one, 2), site.box(one, 3), site.box(two, 2)
    return Boxes(web, twin, other, "front1", "front2", (IPv4Address("10.1.0.1"), IPv6Address("2001:db8:1::1")))


@pytest.fixture(scope="module")
def dockers(site: Site) -> Boxes:
    web, twin = site.docker_box("br-000000000001", 101), site.docker_box("br-000000000001", 101, 3)
    gateways = (IPv4Address("10.101.0.1"), IPv6Address("2001:db8:101::1"))
    other = site.docker_box("br-000000000002", 102)
    return Boxes(web, twin, other, "br-000000000001", "br-000000000002", gateways)


@pytest.fixture(params=["ours", "docker"])
def boxes(request: pytest.FixtureRequest) -> Boxes:
    """Return containers on a docker-fw network, and on a Docker network."""
    made: Boxes = request.getfixturevalue("ours" if request.param == "ours" else "dockers")
    return made


def load(site: Site, boxes: Boxes, *egress: str, twin: bool = False, more: Iterable[Element] = ()) -> None:
    site.load(more={*boxes.elements(site, *egress, twin=twin), *more})


def pairs(source: Box, *targets: Any) -> list[tuple[Any, Any]]:
    """Return (source, target) in both families; a target is a box, or an address of each family."""
    found = []
    for target in targets:
        four, six = (target.v4, target.v6) if isinstance(target, Box) else target
        found += [(source.v4, four), (source.v6, six)]
    return found


OUTSIDE = (Site.OUT4, Site.OUT6)
HOST = (Site.HOST4, Site.HOST6)


def left(site: Site, source: Box, target: Box | None) -> set[str]:
    """Return the ports on which a flow of the box reaches the outside, or another box, in both families.

    It tries some ports of each protocol, "ping", and protocols without ports.
    """
    to = target or OUTSIDE
    sent: dict[Packet, tuple[str, int]] = {}
    for src, dst in pairs(source, to):
        for proto, port in itertools.product(PROTOS, PORTS):
            sent[new_flow(proto, src, dst, port, next(_ports))] = (f"{port}/{proto}", dst.version)
        sent[ping(src, dst)] = ("ping", dst.version)
        sent |= {portless(proto, src, dst): (proto, dst.version) for proto in ("gre", "esp", "ah", "other")}
    last = ping(site.wan.V6, target.v6) if target else ping(site.HOST6, Site.OUT6)
    sniffer = site.sniffer(target or site.wan)
    list(sniffer.read())
    site.forget_flows()
    site.send(sent, source)
    got = _seen(site, sniffer, last, site.host if target is None else None)
    return _names({sent[packet] for packet in sent if packet in got})


def _seen(site: Site, hears: Sniffer | Listener, last: Packet, sender: NamedNetns | None) -> set[Packet]:
    """Send the last packet and return what was received before it."""
    site.send([last], sender)
    (seen,) = arrived([hears], last)
    return seen


def _names(got: set[tuple[str, int]]) -> set[str]:
    names = {name for name, _ in got}
    assert got == {(name, version) for name in names for version in (4, 6)}, "both families are alike"
    return names


def host_hears(site: Site, source: Box, targets: tuple[Any, Any]) -> set[str]:
    """Return which of the same packets the host itself accepts."""
    sent: dict[Packet, tuple[str, int]] = {}
    for src, dst in pairs(source, targets):
        for proto, port in itertools.product(PROTOS, PORTS):
            sent[new_flow(proto, src, dst, port, next(_ports))] = (f"{port}/{proto}", dst.version)
        sent[ping(src, dst)] = ("ping", dst.version)
    list(site.listener.read())
    site.forget_flows()
    site.send(sent, source)
    last = ping(site.wan.V6, Site.HOST6)
    got = _seen(site, site.listener, last, None)
    return _names({sent[packet] for packet in sent if packet in got})


EVERYTHING = {f"{port}/{proto}" for port in PORTS for proto in PROTOS} | {"ping"}
PORTLESS = {"gre", "esp", "ah", "other"}


def test_none_forbids_every_outbound_flow(site: Site, boxes: Boxes) -> None:
    """With `none` no flow of any protocol leaves to the outside, to another network, or to the host; no ping either."""
    load(site, boxes)
    assert left(site, boxes.web, None) == EVERYTHING | PORTLESS, "the way is there"
    assert left(site, boxes.web, boxes.other) == EVERYTHING | PORTLESS
    load(site, boxes, "none")
    assert left(site, boxes.web, None) == set()
    assert left(site, boxes.web, boxes.other) == set()
    assert host_hears(site, boxes.web, HOST) == host_hears(site, boxes.web, boxes.gateways) == set()


def test_a_forged_flow_to_a_neighbour_or_to_itself_is_no_way_out(site: Site, dockers: Boxes) -> None:
    """A flow that a restricted container forges from outside to itself or a neighbour, through the host, is no bypass.

    The packets that answer it are no replies, and do not leave.
    """
    load(site, dockers, "none")
    site.forget_flows()
    web, twin = dockers.web, dockers.twin
    own, host = (
        at.run(["ip", "-o", "link", "show", link]).stdout.split("link/ether ")[1].split()[0]
        for at, link in ((web, "eth0"), (site.host, dockers.bridge))
    )
    sniffer = site.sniffer(site.wan)
    list(sniffer.read())
    answers = []
    for outside, to in [*zip(OUTSIDE, (web.v4, web.v6), strict=True), *zip(OUTSIDE, (twin.v4, twin.v6), strict=True)]:
        port, sport = next(_ports), next(_ports)
        frame(web.path, own, host, udp(outside, to, port, sport))
        answers.append(udp(to, outside, sport, port))
        site.send(answers[-1:], web if to in (web.v4, web.v6) else twin)
    assert _seen(site, sniffer, ping(site.HOST6, Site.OUT6), site.host) & set(answers) == set()


def test_the_host_accepts_a_source_only_from_where_it_belongs(site: Site, boxes: Boxes) -> None:
    """No host but the owner of an address reaches the host with it, to use what that container may.

    This holds for another container and for the outsider.
    """
    site.load(
        more={
            *boxes.elements(site, "none"),
            Element("egress_host6", (boxes.other.v6, 17, 8125)),
            Element("egress_host4", (boxes.other.v4, 17, 8125)),
        }
    )
    for sender in (boxes.web, site.wan):
        forged = [
            udp(src, dst, 8125, next(_ports))
            for src, dst in ((boxes.other.v4, Site.HOST4), (boxes.other.v6, Site.HOST6))
        ]
        list(site.listener.read())
        site.forget_flows()
        site.send(forged, sender)
        assert not set(forged) & _seen(site, site.listener, ping(site.wan.V6, Site.HOST6), None)
    own = [udp(boxes.other.v4, Site.HOST4, 8125, next(_ports)), udp(boxes.other.v6, Site.HOST6, 8125, next(_ports))]
    site.send(own, boxes.other)
    assert set(own) <= _seen(site, site.listener, ping(site.wan.V6, Site.HOST6), None)


def test_a_list_is_all_that_leaves(site: Site, boxes: Boxes) -> None:
    """Only the ports of a list leave, to the peers they are for.

    Its rules apply to the host too, if they are for all.
    """
    load(site, boxes, "443, 53/udp", f"8080 to {Site.OUT4} {Site.OUT6}", "22 to host", "gre")
    assert left(site, boxes.other, None) == EVERYTHING | PORTLESS, "other containers are not affected"
    assert left(site, boxes.web, boxes.other) == {"443/tcp", "53/udp", "gre"}
    assert host_hears(site, boxes.web, HOST) == {"443/tcp", "53/udp", "22/tcp"}
    assert host_hears(site, boxes.web, boxes.gateways) == {"443/tcp", "53/udp", "22/tcp"}
    assert left(site, boxes.web, None) == {"443/tcp", "53/udp", "8080/tcp", "gre"}


def test_all_is_everything(site: Site, boxes: Boxes) -> None:
    """`all` on a network that is egress-restricted itself: everything leaves, of this container only."""
    load(site, boxes, "all", more=egress_restricting(boxes.bridge))
    assert left(site, boxes.web, None) == EVERYTHING | PORTLESS
    assert host_hears(site, boxes.web, HOST) == EVERYTHING
    assert left(site, boxes.twin, None) == set()


def test_an_unknown_address_beside_a_restricted_container_initiates_nothing(site: Site, boxes: Boxes) -> None:
    """An unregistered address beside a restricted container is no way out; a known one without a list is free."""
    load(site, boxes, "none", twin=False)
    assert left(site, boxes.twin, None) == set()
    assert host_hears(site, boxes.twin, HOST) == set()
    load(site, boxes, "none", twin=True)
    assert left(site, boxes.twin, None) == EVERYTHING | PORTLESS
    assert left(site, boxes.other, None) == EVERYTHING | PORTLESS, "another network is not restricted"
    # Neither is an address that it assigns itself.
    boxes.web.ip("addr add 10.222.0.9/32 dev eth0", "addr add 2001:db8:222::9/128 dev eth0 nodad")
    own = [
        new_flow("tcp", a, b, 443, next(_ports))
        for a, b in ((IPv4Address("10.222.0.9"), Site.OUT4), (IPv6Address("2001:db8:222::9"), Site.OUT6))
    ]
    list(site.sniffer(site.wan).read())
    site.send(own, boxes.web)
    boxes.web.ip("addr del 10.222.0.9/32 dev eth0", "addr del 2001:db8:222::9/128 dev eth0")
    seen = _seen(site, site.sniffer(site.wan), ping(site.HOST6, Site.OUT6), site.host)
    assert not seen & set(own)


def test_answers_leave(site: Site, boxes: Boxes) -> None:
    """Inbound traffic gets its replies, from any initiator: clients outside, the host, neighbours, pings.

    The same is true of ICMP errors about it, which are no flow of the container's own.
    """
    load(site, boxes, "none", twin=True)
    with boxes.web.probe.serve(tcp=[80], udp=[8080]):
        for address in (boxes.web.v4, boxes.web.v6):
            assert site.wan.probe.tcp(str(address), 80) == "open"
            assert site.wan.probe.ping(str(address)) == "open"
            assert boxes.other.probe.tcp(str(address), 80) == "open"
            near = [("tcp", str(address), 80), ("udp", str(address), 8080), ("ping", str(address))]
            assert set(site.host.probe(near).values()) == {"open"}
            assert boxes.twin.probe.udp(str(address), 8080) == "open"
            for far in (site.host, site.wan):
                assert far.probe.udp(str(address), 9) == "refused", "no process listens there, and the host reports it"


def test_neighbours_are_found(site: Site, boxes: Boxes) -> None:
    """An egress-restricted container and its host find each other, from scratch: IPv6 neighbour discovery passes."""
    load(site, boxes, "443", twin=True)
    for address in (boxes.web.v4, boxes.web.v6):
        site.host.ip(f"neigh del {address} dev {boxes.bridge}")
        assert site.host.probe.ping(str(address)) == "open"
    boxes.web.ip(*(f"neigh del {gateway} dev eth0" for gateway in boxes.gateways))
    with site.wan.probe.serve(tcp=[443]):
        assert {boxes.web.probe.tcp(str(out), 443) for out in OUTSIDE} == {"open"}


def test_the_host_accepts_only_neighbour_discovery(site: Site, boxes: Boxes) -> None:
    """Solicitations, their replies and multicast reports reach the host; other ICMP of the container does not."""
    load(site, boxes, "none")
    gateway, web = boxes.gateways[1], boxes.web.v6
    sent = {  # an advertisement is of its own address
        kind: icmp(web, gateway, kind, body=bytes(4) + packed(web if kind == 136 else gateway))
        for kind in (128, 131, 133, 134, 135, 136, 137, 139, 143, 200)
    }
    list(site.listener.read())
    site.send(sent.values(), boxes.web)
    seen = _seen(site, site.listener, ping(site.wan.V6, Site.HOST6), None)
    assert {kind for kind, packet in sent.items() if packet in seen} == {131, 133, 135, 136, 143}


def test_containers_of_one_network_talk_whatever_their_egress_label(site: Site, boxes: Boxes) -> None:
    """Within a network no container is restricted, also where the bridge passes its packets to the rules."""
    load(site, boxes, "none")
    for netfilter in (0, 1):
        site.host.sysctl({f"net/bridge/bridge-nf-call-{kind}": netfilter for kind in ("iptables", "ip6tables")})
        try:
            sent = [new_flow("tcp", a, b, 5432, next(_ports)) for a, b in pairs(boxes.web, boxes.twin)]
            last = ping(boxes.web.v6, boxes.twin.v6)
            assert site.deliver(sent, boxes.twin, boxes.web, last) == set(sent)
        finally:
            site.host.sysctl({f"net/bridge/bridge-nf-call-{kind}": 0 for kind in ("iptables", "ip6tables")})


def test_a_restricted_network_is_so_before_any_container_is_known(site: Site, boxes: Boxes) -> None:
    """On a network whose own options set `none` no container may initiate, from the network's first moment on."""
    site.load(more={*egress_restricting(boxes.bridge), *claimed("br-000000000001")})
    assert left(site, boxes.web, None) == left(site, boxes.twin, None) == set()
    assert host_hears(site, boxes.web, HOST) == set()
    assert left(site, boxes.other, None) == EVERYTHING | PORTLESS


def test_a_wrong_egress_label_forbids_every_outbound_flow(site: Site, dockers: Boxes) -> None:
    """Where no start can be refused a wrong `fw.egress` is `none`; the ports that are open stay open."""
    label = parse({"fw.egress": "443 too 203.0.113.7"})
    network, container = (
        BridgeNetwork("d" * 64, "app", dockers.bridge),
        Container("c", "web", label.spec, label.problems),
    )
    endpoint = dataclasses.replace(dockers.web.endpoint, container=container)
    bridge = claimed(dockers.bridge) | egress_restricting(dockers.bridge)
    site.load(more={*guest_elements(network, endpoint, of(network, endpoint)), *bridge})
    assert left(site, dockers.web, None) == set()
    with dockers.web.probe.serve(tcp=[80]):
        assert site.wan.probe.tcp(str(dockers.web.v6), 80) == "open"


def test_refused_outbound_packets_are_counted_by_container(site: Site, boxes: Boxes) -> None:
    """`dropped` reports how many packets of each address were refused: outbound, to the host, and inbound.

    Packets of other addresses are not counted.
    """
    load(site, boxes, "none", twin=True)
    web, twin = boxes.web, boxes.twin
    outbound = [udp(a, b, 53, next(_ports)) for a, b in pairs(web, OUTSIDE, HOST, OUTSIDE)]
    site.send(outbound, web)
    inbound = [udp(b, a, 53, next(_ports)) for a, b in pairs(web, OUTSIDE)]
    assert site.deliver(inbound, web, None, ping(site.wan.V6, web.v6)) == set()
    with site.inside():
        dropped = site.nft.dropped()
    assert (dropped[web.v4], dropped[web.v6]) == ((1, 3), (1, 3))
    assert (dropped[twin.v4], dropped[twin.v6]) == ((0, 0), (0, 0))
    load(site, boxes, "none")
    with site.inside():
        dropped = site.nft.dropped()
    assert dropped[web.v4] == (0, 0), "counted since the table was loaded"
    assert twin.v4 not in dropped
