"""The registry of ways: packets of each kind that a host with docker-fw sees, with the verdict of each.

A way is one packet at each hook through which it passes. `tests/golden/path.json` has the work for each of them. A new
way is one entry of a function below; each exists in both families.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import NamedTuple

from plugin.kernel.names import GROUP
from plugin.model import Address, BridgeNetwork, Container, Defaults, Endpoint, Prefix, Published, TrackedEndpoint
from plugin.nftables.ban_elements import ban_elements
from plugin.nftables.compile import ElementCompiler, compiled
from plugin.nftables.document import document
from plugin.nftables.sets import WATCHED, Element, chains_for
from plugin.policy.facts import BridgeFacts, Facts, ProxyFacts
from plugin.policy.saved import SavedState
from tests.pure.nftables.examples import MARK, dual_network, labels
from tests.pure.nftables.packets import Arp, Flow, Link, Packet, Routes, Socket, icmp, ports, tcp
from tests.pure.nftables.path import Tables

# --- the host -----------------------------------------------------------------------------------------------------

LO = Link("lo", 1)
ETH0 = Link("eth0", 2)
TUNNEL = Link("wg0", 3, "wireguard")
OURS = Link("fw-aaaaaaaaaaaa", 10, "bridge", GROUP)
PORT = Link("fwvdddddddddddd", 11, "veth")
DOCKERS = Link("br-app", 20, "bridge")
UNMANAGED = Link("virbr0", 30, "bridge")
LINKS = (LO, ETH0, TUNNEL, OURS, PORT, DOCKERS, UNMANAGED)
#: Addresses by version: the host's, an outsider's, one beyond the tunnel, one of an unmanaged bridge.
HOST: dict[int, Address] = {4: IPv4Address("198.51.100.1"), 6: IPv6Address("2001:db8:f::1")}
OUTSIDE: dict[int, Address] = {4: IPv4Address("203.0.113.7"), 6: IPv6Address("2001:db8:9::9")}
BEYOND: dict[int, Address] = {4: IPv4Address("10.77.0.5"), 6: IPv6Address("2001:db8:77::5")}
MACHINE: dict[int, Address] = {4: IPv4Address("192.168.122.5"), 6: IPv6Address("2001:db8:122::5")}
#: The host's address on the docker-fw network, a container there, and one on a Docker network.
GATEWAY: dict[int, Address] = {4: IPv4Address("172.18.0.1"), 6: IPv6Address("2001:db8:1::1")}
WEB: dict[int, Address] = {4: IPv4Address("172.18.0.2"), 6: IPv6Address("2001:db8:1::2")}
GUEST: dict[int, Address] = {4: IPv4Address("172.19.0.2"), 6: IPv6Address("2001:db8:3::2")}
WEB_MAC = 0x024200000001
#: The number of dockerd's control group, at level 2.
DOCKERD = 4242
_ANY: dict[int, Address] = {4: IPv4Address("0.0.0.0"), 6: IPv6Address("::")}
#: The features of which a host may use none: what its containers' labels add, and its bans.
FEATURES: dict[str, dict[str, str]] = {
    "plain": {},
    "rates": {"rate": "8080 100/second burst 200"},
    "slow rates": {"rate": "8080 5/minute burst 10"},
    "from": {
        "allow": "8080, 53/udp, 20000-21023, 5432 from 203.0.113.0/24 2001:db8:9::/48, 9000 from 10.0.0.0/8 fd00::/8"
    },
    "bans": {},
    "egress": {"egress": "443, 53/udp, 5432 to 203.0.113.0/24 2001:db8:9::/48"},
}
BANS: dict[Prefix, float] = {ip_network(each): 0.0 for each in ("192.0.2.5", "192.0.3.0/24", "2001:db8:bad::/48")}
_ALLOWED = {"allow": "8080, 53/udp, 20000-21023"}


def facts(feature: str) -> ElementCompiler:
    """Return a docker-fw network and a Docker network with a container each, which use this feature."""
    spec = labels(**{**_ALLOWED, **FEATURES[feature]})
    ours = dataclasses.replace(dual_network(), id="a" * 64)
    subnets = (IPv4Network("172.19.0.0/16"), IPv6Network("2001:db8:3::/64"))
    theirs = BridgeNetwork("g" * 64, "app", DOCKERS.name, subnets)
    web = Endpoint("d" * 64, ours.id, WEB[4], WEB[6], mac="02:42:00:00:00:01", joined=True)  # type: ignore[arg-type]
    web = dataclasses.replace(web, container=Container("e" * 64, "web", spec), published=_published(8443, 443))
    guest = Endpoint("4" * 64, theirs.id, GUEST[4], GUEST[6], joined=True)  # type: ignore[arg-type]
    through = (*_published(18080, 8080), *_published(18081, 9999))
    guest = dataclasses.replace(guest, container=Container("5" * 64, "guest", spec), published=through)
    dockers = frozenset({DOCKERS.name})
    return compiled(
        Defaults(),
        Facts(
            SavedState({ours.id: ours}, {web.id: web}, bans=BANS if feature == "bans" else {}),
            bridges=BridgeFacts(frozenset({UNMANAGED.index}), dockers, dockers, dockers | {UNMANAGED.name}),
            proxies=ProxyFacts(frozenset({DOCKERD})),
            networks={theirs.id: theirs},
            guests={guest.id: TrackedEndpoint(guest, True)},
            listed=True,
        ),
    )


def _published(host_port: int, port: int) -> tuple[Published, ...]:
    return tuple(Published("tcp", address, host_port, port) for address in _ANY.values())


def elements(compiler: ElementCompiler) -> set[Element]:
    """Return all elements of a host whose docker-fw follows Docker, with its bans."""
    return compiler.all_elements() | set(WATCHED) | ban_elements(compiler.view.state.bans, 0)[0]


@cache
def tables(feature: str) -> Tables:
    """Return the tables of the host above."""
    made = elements(facts(feature))
    chains = {chain for element in made for chain in chains_for(element)}
    return Tables(document(MARK, made, chains=chains), more=[e for e in made if e.set == "docker_proxy"])


# --- ways ---------------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """A packet as one hook sees it."""

    family: str
    hook: str
    packet: Packet


class Way(NamedTuple):
    """A named way: the steps of one packet, and its verdict at the last one."""

    name: str
    steps: tuple[Step, ...]
    verdict: str = "accept"
    feature: str = "plain"


def _routes(source: Link, iif: Link | None, target: str = "unicast") -> Routes:
    here = source is iif
    return Routes(source.name, here, target_type=target)


def _forwarded(packet: Packet, source: Link) -> Iterator[Step]:
    """Yield the steps of a packet that is forwarded without a change of its addresses."""
    packet = dataclasses.replace(packet, routes=_routes(source, packet.iif))
    yield Step("inet", "prerouting", dataclasses.replace(packet, oif=None))
    yield Step("inet", "forward", packet)
    yield Step("inet", "postrouting", packet)


def _to_host(packet: Packet, source: Link) -> Iterator[Step]:
    packet = dataclasses.replace(packet, routes=_routes(source, packet.iif, "local"))
    yield Step("inet", "prerouting", packet)
    yield Step("inet", "input", packet)


def _from_host(packet: Packet) -> Iterator[Step]:
    packet = dataclasses.replace(packet, routes=Routes(source_type="local"))
    yield Step("inet", "output", packet)
    yield Step("inet", "postrouting", packet)


def _packet(
    source: Address, target: Address, header: bytes, iif: Link | None, oif: Link | None, flow: Flow | None = None
) -> Packet:
    """Return a packet; the length of its header tells its protocol."""
    proto = 6 if len(header) == 20 else 17
    return Packet(source, target, proto, header, iif, oif, flow or Flow())


_SYN = tcp(40000, 8080)
_DATA = tcp(40000, 8080, "ack")
_REPLY = tcp(8080, 40000, "ack")
_OPEN = Flow("established", status=frozenset({"assured"}))
_ANSWER = Flow("established", reply=True, status=frozenset({"assured"}))


def _until_drop(steps: Iterator[Step]) -> tuple[Step, ...]:
    """Return the steps without the last one, which a dropped packet does not reach."""
    return tuple(steps)[:-1]


def _established(v: int) -> Iterator[Way]:
    for what, link, address in (("a docker-fw network", OURS, WEB[v]), ("a Docker network", DOCKERS, GUEST[v])):
        for proto, data, reply in (("TCP", _DATA, _REPLY), ("UDP", ports(40000, 53), ports(53, 40000))):
            inward = _packet(OUTSIDE[v], address, data, ETH0, link, _OPEN)
            yield Way(f"established {proto} into {what}", tuple(_forwarded(inward, ETH0)))
            outward = _packet(address, OUTSIDE[v], reply, link, ETH0, _ANSWER)
            yield Way(f"established {proto} out of {what}", tuple(_forwarded(outward, link)))
    between = _packet(WEB[v], GUEST[v], _DATA, OURS, DOCKERS, _OPEN)
    yield Way("established TCP from a docker-fw network to a Docker network", tuple(_forwarded(between, OURS)))


def _inbound(v: int) -> Iterator[Way]:
    for what, link, address in (("a docker-fw network", OURS, WEB[v]), ("a Docker network", DOCKERS, GUEST[v])):
        for name, header, accepted in (
            ("UDP flow to an open port", ports(40000, 53), True),
            ("UDP flow to a closed port", ports(40000, 54), False),
            ("TCP connection to an open port", _SYN, True),
            ("TCP connection to a base port", tcp(40000, 443), True),
            ("TCP connection to a port of an open range", tcp(40000, 20500), True),
            ("TCP connection to a closed port", tcp(40000, 8081), False),
        ):
            steps = _forwarded(_packet(OUTSIDE[v], address, header, ETH0, link), ETH0)
            ends = tuple(steps) if accepted else _until_drop(steps)
            yield Way(f"new {name} of {what}", ends, "accept" if accepted else "drop")
        echo = dataclasses.replace(
            _packet(OUTSIDE[v], address, b"", ETH0, link), proto={4: 1, 6: 58}[v], header=icmp({4: 8, 6: 128}[v])
        )
        yield Way(f"ping to {what}", tuple(_forwarded(echo, ETH0)))
        forged = _packet(WEB[v] + 1, address, _SYN, ETH0, link)
        yield Way(f"forged source to {what}", _until_drop(_forwarded(forged, OURS)), "drop")


def _outbound(v: int) -> Iterator[Way]:
    for what, link, address in (("a docker-fw network", OURS, WEB[v]), ("a Docker network", DOCKERS, GUEST[v])):
        for name, header in (("UDP flow", ports(40000, 53)), ("TCP connection", tcp(40000, 443))):
            steps = _forwarded(_packet(address, OUTSIDE[v], header, link, ETH0), link)
            yield Way(f"new {name} out of {what}", tuple(steps))
    between = _packet(WEB[v], GUEST[v], _SYN, OURS, DOCKERS)
    yield Way("new TCP connection from a docker-fw network to a Docker network", tuple(_forwarded(between, OURS)))
    old = _packet(WEB[v], OUTSIDE[v], _DATA, OURS, ETH0)
    yield Way(
        "segment of an unknown connection out of a docker-fw network", _until_drop(_forwarded(old, OURS)), "reject"
    )


def _through_host(v: int) -> Iterator[Way]:
    """Published ports: by DNAT on docker-fw networks, by docker-proxy on Docker networks (where Docker has no DNAT)."""
    arriving = _packet(OUTSIDE[v], HOST[v], tcp(40000, 8443), ETH0, None)
    arriving = dataclasses.replace(arriving, routes=_routes(ETH0, ETH0, "local"))
    behind = _packet(OUTSIDE[v], WEB[v], tcp(40000, 443), ETH0, OURS, Flow(status=frozenset({"dnat"})))
    first, *rest = _forwarded(behind, ETH0)
    yield Way("new TCP connection to a published port, by DNAT", (first._replace(packet=arriving), *rest))
    proxy = Socket((17, DOCKERD))
    for name, port, accepted in (("an open", 18080, True), ("a closed", 18081, False)):
        packet = dataclasses.replace(_packet(OUTSIDE[v], HOST[v], tcp(40000, port), ETH0, None), socket=proxy)
        verdict = "accept" if accepted else "drop"
        yield Way(
            f"new TCP connection to {name} published port, to docker-proxy", tuple(_to_host(packet, ETH0)), verdict
        )
        data = dataclasses.replace(packet, header=tcp(40000, port, "ack"), flow=_OPEN)
        yield Way(f"established TCP to {name} published port, to docker-proxy", tuple(_to_host(data, ETH0)))


def _host(v: int) -> Iterator[Way]:
    program = Socket((17, 99))
    syn = dataclasses.replace(_packet(OUTSIDE[v], HOST[v], tcp(40000, 22), ETH0, None), socket=program)
    yield Way("new TCP connection to the host's own program", tuple(_to_host(syn, ETH0)))
    data = dataclasses.replace(syn, header=tcp(40000, 22, "ack"), flow=_OPEN)
    yield Way("established TCP to the host's own program", tuple(_to_host(data, ETH0)))
    answer = _packet(HOST[v], OUTSIDE[v], tcp(22, 40000, "ack"), None, ETH0, _ANSWER)
    yield Way("established TCP from the host", tuple(_from_host(answer)))
    for name, header in (("UDP flow", ports(40000, 53)), ("TCP connection", tcp(40000, 443))):
        yield Way(
            f"new {name} of the host to outside", tuple(_from_host(_packet(HOST[v], OUTSIDE[v], header, None, ETH0)))
        )
    yield Way(
        "new TCP connection of the host to a container",
        tuple(_from_host(_packet(GATEWAY[v], WEB[v], _SYN, None, OURS))),
    )
    asked = dataclasses.replace(_packet(WEB[v], GATEWAY[v], ports(40000, 53), OURS, None), socket=program)
    yield Way("new UDP flow of a container to the host", tuple(_to_host(asked, OURS)))
    nobody = _packet(OUTSIDE[v], HOST[v], tcp(40000, 23), ETH0, None)
    yield Way("new TCP connection to a port of the host without a listener", tuple(_to_host(nobody, ETH0)), "reject")
    local = _packet(HOST[v], HOST[v], tcp(40000, 22), LO, None)
    yield Way("new TCP connection within the host", tuple(_to_host(local, LO)))


def _elsewhere(v: int) -> Iterator[Way]:
    """Forwarded packets of other programs: a router's, a virtual machine's."""
    for what, address, link in (
        ("through a tunnel", BEYOND[v], TUNNEL),
        ("of a virtual machine", MACHINE[v], UNMANAGED),
    ):
        for name, header, flow in (
            ("new TCP connection", _SYN, Flow()),
            ("new UDP flow", ports(40000, 53), Flow()),
            ("established TCP", _DATA, dataclasses.replace(_OPEN, labels=frozenset({91, 92}))),
        ):
            labelled = flow if link is TUNNEL or not flow.labels else dataclasses.replace(flow, labels=frozenset())
            packet = _packet(address, OUTSIDE[v], header, link, ETH0, labelled)
            yield Way(f"{name} {what}, not docker-fw's", tuple(_forwarded(packet, link)))


def _features(v: int) -> Iterator[Way]:
    def inward(header: bytes, flow: Flow | None = None) -> tuple[Step, ...]:
        return tuple(_forwarded(_packet(OUTSIDE[v], WEB[v], header, ETH0, OURS, flow), ETH0))

    def outward(header: bytes, flow: Flow | None = None) -> tuple[Step, ...]:
        return tuple(_forwarded(_packet(WEB[v], OUTSIDE[v], header, OURS, ETH0, flow), OURS))

    for rate in ("rates", "slow rates"):
        yield Way("new TCP connection to a port with a rate", inward(_SYN), feature=rate)
        yield Way("established TCP into a docker-fw network", inward(_DATA, _OPEN), feature=rate)
        yield Way("established TCP out of a docker-fw network", outward(_REPLY, _ANSWER), feature=rate)
    yield Way("new TCP connection to a port with `from`", inward(tcp(40000, 5432)), feature="from")
    yield Way("new TCP connection to a port with `from`, no peer", inward(tcp(40000, 9000))[:-1], "drop", "from")
    yield Way("new TCP connection to an open port of a docker-fw network", inward(_SYN), feature="from")
    yield Way("new TCP connection to a closed port of a docker-fw network", inward(tcp(1, 8081))[:-1], "drop", "from")
    yield Way("new TCP connection to an open port of a docker-fw network", inward(_SYN), feature="bans")
    yield Way("established TCP into a docker-fw network", inward(_DATA, _OPEN), feature="bans")
    yield Way("established TCP out of a docker-fw network", outward(_REPLY, _ANSWER), feature="bans")
    yield Way("new TCP connection out, to any destination", outward(tcp(40000, 443)), feature="egress")
    yield Way("new UDP flow out, to any destination", outward(ports(40000, 53)), feature="egress")
    yield Way("new TCP connection out, to some destinations", outward(tcp(40000, 5432)), feature="egress")
    yield Way("new TCP connection out, not allowed", outward(tcp(40000, 80))[:-1], "drop", "egress")
    yield Way("established TCP out of a docker-fw network", outward(_REPLY, _ANSWER), feature="egress")


def _frames(v: int) -> Iterator[Way]:
    """Frames from a container's port of a docker-fw bridge; others (VLAN, for example) have no family."""
    own = dataclasses.replace(_packet(WEB[v], OUTSIDE[v], _DATA, PORT, None), source_mac=WEB_MAC)
    forged = dataclasses.replace(own, saddr=OUTSIDE[v])
    yield Way("frame of a container", (Step("bridge", "prerouting", own),))
    yield Way("frame of a container with a forged source", (Step("bridge", "prerouting", forged),), "drop")
    if v == 6:
        target = int(WEB[6])
        asks = dataclasses.replace(own, proto=58, header=icmp(135), neighbour=target)
        yield Way("neighbour solicitation of a container", (Step("bridge", "prerouting", asks),))
        answers = dataclasses.replace(own, proto=58, header=icmp(136), neighbour=target)
        yield Way("neighbour advertisement of a container", (Step("bridge", "prerouting", answers),))
    else:
        arp = Packet(iif=PORT, source_mac=WEB_MAC, arp=Arp(WEB[4], WEB_MAC))
        yield Way("ARP request of a container", (Step("bridge", "prerouting", arp),))
    other = dataclasses.replace(own, iif=Link("eth1", 4))
    yield Way("frame from another bridge port", (Step("bridge", "prerouting", other),))


_OF: tuple[Callable[[int], Iterator[Way]], ...] = (
    _established,
    _inbound,
    _outbound,
    _through_host,
    _host,
    _elsewhere,
    _features,
    _frames,
)


def ways() -> dict[str, Way]:
    """Return all ways by their names: what the packet is, its family, the feature that the host uses."""
    found: dict[str, Way] = {}
    for v in (6, 4):
        for way in (each for of in _OF for each in of(v)):
            used = "" if way.feature == "plain" else f", with {way.feature}"
            name = f"{way.name}, IPv{v}{used}"
            if name in found:
                raise ValueError(f"two ways have the name {name!r}")
            found[name] = way
    return found
