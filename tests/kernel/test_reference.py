"""Compare the kernel with the reference: each packet meets the verdict of `policy.verdict`, whatever the policies are.

Policies of every kind apply at once to containers on docker-fw networks and Docker networks. Real packets are then sent
from outside, from other containers, to containers, to the host, to the outside, and through published ports. Nothing
waits for silence: the last packet always passes, and a packet that has not arrived before it never will.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from plugin.labels.keys import EVERYTHING
from plugin.model import (
    Address,
    BridgeNetwork,
    Container,
    Defaults,
    Endpoint,
    FwError,
    Network,
    Override,
    Peer,
    PolicySpec,
    Prefix,
    Problem,
    Published,
    Rate,
    Rule,
    TrackedEndpoint,
)
from plugin.nftables.ban_elements import ban_elements
from plugin.nftables.compile import ElementCompiler, compiled
from plugin.nftables.sets import WATCHED, Change, Element
from plugin.policy.bans import read
from plugin.policy.decide import prefix_of
from plugin.policy.facts import Facts
from plugin.policy.saved import SavedState
from plugin.policy.verdict import ICMP, Verdict, verdict
from plugin.policy.verdict import Packet as Asked
from plugin.policy.view import PolicyView
from plugin.protocols import OTHER, PORTLESS, Proto
from tests.inputs import inputs
from tests.kernel import packets as pk
from tests.kernel.packets import Packet, arrived, new_flow, ping
from tests.kernel.site import Box, Site, claimed
from tests.lab import Wan
from tests.lab.netns import FORWARDING

T = TypeVar("T")
PROTOS: tuple[Proto, ...] = ("tcp", "udp", "sctp")
#: Packets of one example.
MANY = 260
NOW = 1_000_000.0
ANY4, ANY6 = IPv4Address("0.0.0.0"), IPv6Address("::")
LOOPBACK4, LOOPBACK6 = IPv4Address("127.0.0.1"), IPv6Address("::1")
_ports = itertools.cycle(range(20000, 60000))


# --- the containers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seat:
    """A container's place: its box, the network's name, and the names that Docker and compose give it."""

    box: Box
    network: str
    name: str
    project: str = ""
    service: str = ""
    #: The first number of its published ports.
    first: int = 0


#: Docker networks, by name: their bridges, and numbers in the lab's addresses.
DOCKERS = {"dock0": ("br-0123456789ab", (100, 102)), "dock1": ("front1", (101,))}
#: docker-fw networks, by name: their numbers.
OURS = {"shop_front": 1, "back": 2, "inner": 3}
#: The targets of a container's published ports.
BEHIND: tuple[tuple[Proto, int], ...] = (("tcp", 22), ("tcp", 80), ("tcp", 5432), ("udp", 53), ("sctp", 9))


class Bed:
    """A host with all of them, and one more container, which always answers ping."""

    def __init__(self, site: Site) -> None:
        self.site = site
        site.host.sysctl(FORWARDING)
        nets = {name: site.network(number) for name, number in OURS.items()}
        hosts = itertools.count(1)

        def seat(box: Box, network: str, name: str, project: str = "", service: str = "") -> Seat:
            return Seat(box, network, name, project, service, 10000 + 100 * next(hosts))

        self.seats = [
            seat(site.box(nets["shop_front"], 2), "shop_front", "web", "shop", "web"),
            seat(site.box(nets["shop_front"], 3), "shop_front", "db", "shop", "db"),
            seat(site.box(nets["shop_front"], 4), "shop_front", "stray"),
            seat(site.box(nets["back"], 2), "back", "api", "shop", "api"),
            seat(site.box(nets["inner"], 2), "inner", "cache", "other", "db"),
            seat(site.docker_box(DOCKERS["dock0"][0], 100), "dock0", "proxy", "shop", "api"),
            seat(site.docker_box(DOCKERS["dock0"][0], 100, 3), "dock0", "job"),
            seat(site.docker_box(DOCKERS["dock1"][0], 101), "dock1", "mail", "other", "mail"),
        ]
        for name in nets.keys() | DOCKERS.keys():
            site.acquaint(*(each.box for each in self.seats if each.network == name))
        self.last = site.box(site.network(9), 2)
        self.networks = dict(site.networks)
        self.numbers = {**OURS, "dock0": 100, "dock1": 101}
        self.bridges = {name: bridge for name, (bridge, _) in DOCKERS.items()}
        self.by_id = {network.id: network for network in site.networks.values()}
        self.loaded: set[Element] | None = None
        self._dnat()

    def _dnat(self) -> None:
        """Load Docker's IPv4 DNAT rules for published ports of Docker networks: for all ports, published or not."""
        rules = "\n".join(
            f"ip daddr {Site.HOST4} {proto} dport {seat.first + i} dnat to {seat.box.v4}:{port}"
            for seat in self.seats
            if seat.network in DOCKERS
            for i, (proto, port) in enumerate(BEHIND)
        )
        chain = f"chain before {{ type nat hook prerouting priority dstnat;\n{rules}\n}}"
        self.site.run("nft", "-f", "-", input=f"table ip forwards {{\n{chain}\n}}\n")

    def show_bridges(self, shown: bool) -> bool:
        """Set whether the rules see packets within a bridge; return False where the kernel has no br_netfilter."""
        there = Path("/proc/sys/net/bridge")
        with self.site.inside():
            for kind in ("iptables", "ip6tables") if there.exists() else ():
                (there / f"bridge-nf-call-{kind}").write_text(str(int(shown)))
            return shown and there.exists()

    def place(self, name: str, drawn: dict[str, Any]) -> Network | BridgeNetwork:
        """Return the network of that name, as Docker reports it."""
        if name in OURS:
            known = self.networks[f"{OURS[name]:012x}".ljust(64, "0")]
            return dataclasses.replace(known, spec=drawn["said"], internal=drawn["internal"])
        number = self.numbers[name]
        subnets = (ip_network(f"10.{number}.0.0/24"), ip_network(f"2001:db8:{number}::/64"))
        return BridgeNetwork(
            name.ljust(64, "d"),
            name,
            self.bridges[name],
            subnets,
            drawn["internal"],
            drawn["flat"],
            spec=drawn["said"],
            problems=drawn["problems"],
        )

    def load(self, compiler: ElementCompiler, *, whole: bool) -> None:
        """Load the policies into the kernel, whole or as a difference from the active ones."""
        inventory = compiler.view
        lasting, timed = ban_elements(inventory.state.bans, NOW)
        elements = compiler.all_elements() | lasting | claimed(*self.bridges.values())
        elements -= set() if inventory.watched else set(WATCHED)
        loaded = {*elements, *timed}
        if whole or self.loaded is None:
            self.site.nft.replace(elements, timed)
        else:
            anew = {element: seconds for element, seconds in timed.items() if element not in self.loaded}
            self.site.nft.change(Change(tuple(self.loaded - loaded), tuple(elements - self.loaded)), anew)
        self.loaded = loaded


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with Site() as site:
        yield Bed(site)


# --- the policies -----------------------------------------------------------------------------------------------------

#: Addresses to draw prefixes around: outsiders, containers, the host, edges of ranges.
_HERE4 = [
    IPv4Address(a)
    for a in (
        "203.0.113.7",
        "203.0.113.8",
        "198.51.100.2",
        "10.1.0.2",
        "10.100.0.3",
        "10.2.0.2",
        "198.51.100.1",
        "128.0.0.0",
        "9.255.255.255",
        "192.0.2.77",
    )
]
_HERE6 = [
    IPv6Address(a)
    for a in (
        "2001:db8:5::7",
        "2001:db8:5:0:8000::",
        "2001:db8:ffff::2",
        "2001:db8:1::2",
        "2001:db8:100::3",
        "2001:db8:2::2",
        "2001:db8:ffff::1",
        "fd00:1:2:3::9",
        "2600::1",
    )
]


def _prefix(address: Address, length: int) -> Prefix:
    return ip_network((address, length), strict=False)


def _peer(prefix: Prefix) -> Peer:
    whole = prefix.prefixlen == prefix.max_prefixlen
    return Peer("prefix", str(prefix.network_address if whole else prefix))


#: Addresses that a container may be in are more likely.
prefixes: st.SearchStrategy[Prefix] = st.one_of(
    st.builds(_prefix, st.sampled_from(_HERE4), st.integers(0, 32)),
    st.builds(_prefix, st.sampled_from(_HERE6), st.integers(0, 128)),
    st.builds(_prefix, st.sampled_from(_HERE4), st.sampled_from([8, 16, 24, 31, 32])),
    st.builds(_prefix, st.sampled_from(_HERE6), st.sampled_from([32, 48, 64, 127, 128])),
)
peers: st.SearchStrategy[Peer] = st.one_of(
    prefixes.map(_peer),
    prefixes.map(_peer),
    st.sampled_from(
        [
            *(Peer("container", name) for name in ("web", "db", "api", "cache", "proxy", "job", "mail", "missing")),
            *(Peer("service", name) for name in ("web", "db", "api", "mail", "missing")),
            *(Peer("project", name) for name in ("shop", "other", "missing")),
            *(Peer("network", name) for name in ("front", "shop_front", "back", "dock0", "dock1", "inner", "missing")),
        ]
    ),
    st.just(Peer("host")),
)
#: Ports; the first ones are at the edge of a range.
ports = st.one_of(
    st.sampled_from([1, 15, 16, 22, 53, 80, 255, 256, 443, 4095, 4096, 5432, 8080, 61440, 65520, 65535]),
    st.integers(1, 65535),
)
protos: st.SearchStrategy[Proto] = st.sampled_from(["tcp", "tcp", "udp", "sctp"])


def _rule(proto: str, one: int, other: int, whom: Iterable[Peer]) -> Rule:
    return Rule(proto, min(one, other), max(one, other), tuple(sorted(set(whom))))


def rules_with(whom: st.SearchStrategy[Iterable[Peer]]) -> st.SearchStrategy[Rule]:
    """Return single ports, ranges, whole protocols, those without ports."""
    return st.one_of(
        st.builds(lambda proto, port, whom: _rule(proto, port, port, whom), protos, ports, whom),
        st.builds(_rule, protos, ports, ports, whom),
        st.builds(lambda proto, whom: _rule(proto, 1, 65535, whom), protos, whom),
        st.builds(lambda proto, whom: _rule(proto, 0, 0, whom), st.sampled_from(sorted(PORTLESS)), whom),
    )


some_peers: st.SearchStrategy[Iterable[Peer]] = st.one_of(st.just(()), st.lists(peers, min_size=1, max_size=3))
rules = st.lists(rules_with(some_peers), max_size=3).map(tuple)
denied = st.one_of(st.just(()), st.lists(rules_with(st.just(())), max_size=2).map(tuple))
egress: st.SearchStrategy[tuple[Rule, ...] | None] = st.one_of(
    *[st.none()] * 4,
    st.just(()),
    st.just(EVERYTHING),
    *[st.lists(rules_with(some_peers), min_size=1, max_size=3).map(tuple)] * 3,
)
#: So many that the limit is never reached: these rates change a packet's path, but not its verdict.
PLENTY = (Rate("tcp", 1, 65535, 1_000_000, "second", 65535), Rate("udp", 53, 5353, 999_999, "second", 65000))
rates = st.sampled_from([None, None, None, (), PLENTY[:1], PLENTY])
policies = st.sampled_from(["", "", "", "default", "closed", "open", "open"])
spec = st.builds(PolicySpec, rules, denied, policies, egress, rates)
#: Policies with a wider scope: rarely many.
general = st.one_of(*[st.just(PolicySpec())] * 6, *[st.builds(PolicySpec, rules, denied)] * 3, spec)
mostly = st.sampled_from([True] * 11 + [False])
problems = st.one_of(
    *[st.just(())] * 9,
    st.builds(Problem, st.just("a"), st.just("b"), st.just("c"), st.booleans(), st.booleans()).map(lambda p: (p,)),
)
networks = st.fixed_dictionaries(
    {
        "said": general,
        "internal": st.sampled_from([False] * 7 + [True]),
        "flat": st.booleans(),
        "problems": problems,
    }
)
#: 0.0.0.0 and ::, or one address of the host, or its loopback.
_host_ips = st.sampled_from([(ANY4, ANY6), (Site.HOST4, Site.HOST6), (ANY4,), (ANY6,), (LOOPBACK4, LOOPBACK6)])
published = st.lists(st.tuples(st.integers(0, len(BEHIND) - 1), _host_ips), max_size=3, unique_by=lambda each: each[0])
containers = st.fixed_dictionaries(
    {
        "known": mostly,
        "there": mostly,
        "joined": mostly,
        "sure": mostly,
        "said": spec,
        "attached": st.one_of(st.just(PolicySpec()), st.just(PolicySpec()), general),
        "problems": problems,
        "override": st.one_of(st.just(Override()), st.just(Override()), st.builds(Override, rules, denied)),
        "published": published,
    }
)
settings_ = st.builds(Defaults, general, st.booleans())


def inventory_of(
    bed: Bed,
    defaults: Defaults,
    nets: dict[str, Any],
    drawn: list[dict[str, Any]],
    bans: Mapping[Prefix, float] = MappingProxyType({}),
) -> ElementCompiler:
    """Return the facts that follow from these policies, and their elements."""
    places = {name: bed.place(name, each) for name, each in nets.items()}
    ours = {**bed.networks, **{p.id: p for p in places.values() if isinstance(p, Network)}}
    guests: dict[str, TrackedEndpoint] = {}
    endpoints: dict[str, Endpoint] = {}
    for seat, each in zip(bed.seats, drawn, strict=True):
        if not each["there"]:
            continue
        place = places[seat.network]
        container = Container(
            seat.name,
            seat.name,
            each["said"],
            each["problems"],
            network=seat.network,
            project=seat.project,
            service=seat.service,
        )
        open_to = tuple(
            Published(BEHIND[index][0], host_ip, seat.first + index, BEHIND[index][1])
            for index, host_ips in each["published"]
            for host_ip in host_ips
        )
        endpoint = dataclasses.replace(
            seat.box.endpoint,
            network_id=place.id,
            spec=each["attached"],
            published=open_to,
            container=container if each["known"] else None,
            joined=each["joined"] or isinstance(place, BridgeNetwork),
        )
        if isinstance(place, Network):
            endpoints[endpoint.id] = endpoint
        else:
            guests[endpoint.id] = TrackedEndpoint(endpoint, True, each["sure"])
    facts = Facts(
        SavedState(ours, endpoints, bans=bans),
        names=frozenset(places),
        guests=guests,
        listed=True,
        networks={p.id: p for p in places.values() if isinstance(p, BridgeNetwork)},
    )
    compiler = compiled(defaults, facts)
    inventory = compiler.view
    inventory.overrides = {s.name: t["override"] for s, t in zip(bed.seats, drawn, strict=True)}
    inventory.take(inventory.settled(inventory.facts, inventory.owners()), ())
    compiler.reindex(inventory.owners())
    return compiler


# --- packets ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shot:
    """A packet as it is sent (by a box, or from outside), as it would arrive, and the expected verdict."""

    source: Box | None
    sent: Packet
    lands: Packet
    verdicts: tuple[Verdict, ...]

    @property
    def passes(self) -> bool:
        return all(each.accepted for each in self.verdicts)

    def __str__(self) -> str:
        steps = "\n".join(f"    {s.text}: {s.outcome}" for each in self.verdicts for s in each.steps)
        ends = f"{pk.written(self.sent.src)} → {pk.written(self.sent.dst)}, arriving at {pk.written(self.lands.dst)}"
        return f"protocol {self.sent.proto}, {ends}, {self.sent.data[:12].hex()}; verdict:\n{steps}"


class Gun:
    """Generate packets near the edges of the policies: around ports and prefixes that a rule names."""

    def __init__(self, bed: Bed, inventory: PolicyView, seed: int, *, bridges: bool) -> None:
        self.bed, self.inventory, self.random, self.bridges = bed, inventory, Random(seed), bridges
        seats = {seat.box.endpoint.id: seat for seat in bed.seats}
        self.where = {address: seat.network for seat in bed.seats for address in (seat.box.v4, seat.box.v6)}
        #: The container with the rule, the rule, and whether it is about inbound traffic.
        self.spec: list[tuple[Seat, Rule, bool]] = []
        for found in filter(None, map(inventory.endpoint, inventory.owners())):
            policy = inventory.directory.resolved(inventory.decide(*found), found[1].container)
            seat = seats[found[1].id]
            self.spec += [(seat, rule, True) for rule in (*policy.accepts, *policy.published)]
            self.spec += [(seat, rule, False) for rule in policy.egress or ()]
        self.gated = [each for each in self.spec if each[1].peers]
        spoken = [rule for _, rule, _ in self.spec]
        edges = {p for rule in spoken for p in (rule.first - 1, rule.first, rule.last, rule.last + 1)}
        edges |= {
            p
            for rule in spoken
            for n in (16, 256, 4096)
            for p in (rule.first // n * n, rule.last // n * n - 1, rule.last // n * n)
        }
        edges |= {22, 23, 53, 80, 443, 5432, 8080}
        self.ports = sorted(p for p in edges if 0 <= p <= 65535)
        about = {prefix_of(peer) for rule in spoken for peer in rule.peers if peer.kind == "prefix"}
        about |= set(inventory.state.bans)
        around: set[Address] = {Site.OUT4, Site.OUT6, *_HERE4, *_HERE6}
        for prefix in about:
            first, last = int(prefix.network_address), int(prefix.broadcast_address)
            make = IPv4Address if prefix.version == 4 else IPv6Address
            top = (1 << prefix.max_prefixlen) - 1
            around |= {make(n) for n in (first - 1, first, last, last + 1, (first + last) // 2) if 0 <= n <= top}
        self.strangers = {v: sorted(a for a in around if a.version == v and self._strange(a)) for v in (4, 6)}
        self.portless: set[frozenset[Any]] = set()

    def _strange(self, address: Address) -> bool:
        """Return an address that an outside host may have, and that the host has a route to."""
        if address in (Site.OUT4, Site.OUT6):
            return True
        if address.version == 6:
            outside = address in ip_network("2000::/3") or address in ip_network("fc00::/7")
            own = address in ip_network("2001:db8:ffff::/64")
        else:
            outside = 1 <= int(address) >> 24 <= 223 and not address.is_loopback and not address.is_link_local
            own = address in ip_network("198.51.100.0/24")
        numbers = (*self.bed.numbers.values(), 9)
        inside = any(address in ip_network(s.format(n)) for n in numbers for s in ("10.{}.0.0/24", "2001:db8:{}::/64"))
        return outside and not own and not inside

    def shots(self, many: int) -> list[Shot]:
        kinds: list[Callable[[], Shot | None]] = [
            self._in,
            self._behind,
            self._between,
            self._out,
            self._to_host,
            self._published,
            *[self._meant] * 3,
        ]
        found = (self.random.choice(kinds)() for _ in range(many))
        return [shot for shot in found if shot]

    def _pick(self, among: list[T]) -> T:
        return self.random.choice(among)

    def _at(self, box: Box, version: int) -> Address:
        return box.v4 if version == 4 else box.v6

    def _in(self) -> Shot | None:
        version, box = self._pick([4, 6]), self._pick(self.bed.seats).box
        return self._shot(None, self._pick(self.strangers[version]), self._at(box, version))

    def _between(self) -> Shot | None:
        version, source, target = self._pick([4, 6]), *(self._pick(self.bed.seats).box for _ in range(2))
        if source is target:
            return None
        return self._shot(source, self._at(source, version), self._at(target, version))

    def _out(self) -> Shot | None:
        version, box = self._pick([4, 6]), self._pick(self.bed.seats).box
        return self._shot(box, self._at(box, version), self._pick(self.strangers[version]))

    def _meant(self) -> Shot | None:
        """Return an address that a rule with peers covers, or one close to it."""
        if not self.spec:
            return None
        seat, rule, inbound = self._pick(self.gated or self.spec)
        version = self._pick([4, 6])
        prefixes = [p for peer in rule.peers if peer.kind == "prefix" and (p := prefix_of(peer)).version == version]
        mine = self._at(seat.box, version)
        if prefixes and not (Peer("host") in rule.peers and self.random.random() < 0.5):
            prefix = self._pick(prefixes)
            near = [a for a in self.strangers[version] if a in prefix or self.random.random() < 0.1]
            near += [a for s in self.bed.seats if (a := self._at(s.box, version)) in prefix]
        else:
            near = [self.host(version)] if not inbound else self.strangers[version]
        if not near:
            return None
        other = self._pick(near)
        whose = next((s.box for s in self.bed.seats if other == self._at(s.box, version)), None)
        if whose is seat.box:
            return None
        port = self._pick([rule.first, rule.last, (rule.first + rule.last) // 2, rule.first - 1, rule.last + 1])
        flow = (rule.proto, min(max(port, 0), 65535))
        if inbound:
            return self._shot(whose, other, mine, flow=flow)
        return self._shot(seat.box, mine, other, host=other == self.host(version), flow=flow)

    def host(self, version: int) -> Address:
        return Site.HOST4 if version == 4 else Site.HOST6

    def _to_host(self) -> Shot | None:
        version, seat = self._pick([4, 6]), self._pick(self.bed.seats)
        number = self.bed.numbers[seat.network]
        gateway = ip_address(f"10.{number}.0.1" if version == 4 else f"2001:db8:{number}::1")
        target = self._pick([gateway, self.host(version)])
        if self.random.random() < 0.2:
            return self._shot(None, self._pick(self.strangers[version]), target, host=True)
        return self._shot(seat.box, self._at(seat.box, version), target, host=True)

    def _shot(
        self, source: Box | None, src: Address, dst: Address, *, host: bool = False, flow: tuple[str, int] | None = None
    ) -> Shot | None:
        """`flow`: of this protocol, to this port."""
        near = src in self.where and self.where[src] == self.where.get(dst)
        if near and not self.bridges and self.inventory.state.bans:
            return None  # no ban applies where no rule sees the packet
        what = self.random.random()
        if what < 0.04:
            packet = ping(src, dst)
            return self._judged(source, packet, packet, Asked(src, dst, ICMP, 0, host))
        likely = ["tcp", "tcp", "tcp", "udp", "udp", "sctp", *PORTLESS, OTHER]
        proto, port = flow or (self._pick(likely), self._pick(self.ports))
        if proto not in PROTOS:
            return self._without_ports(source, src, dst, proto, host=host)
        if host and not port and proto in ("tcp", "udp"):
            return None  # the host refuses it: no program can have port 0
        packet = new_flow(proto, src, dst, port, next(_ports))
        if what < 0.06 and src.version == 6 and not host:  # AH is a protocol over IPv6 too, whatever it carries
            packet = pk.authenticated(packet)
            return self._judged(source, packet, packet, Asked(src, dst, "ah"))
        return self._judged(source, packet, packet, Asked(src, dst, proto, port, host))

    def _without_ports(self, source: Box | None, src: Address, dst: Address, proto: str, *, host: bool) -> Shot | None:
        # A packet in the other direction would belong to the same flow.
        flow = frozenset((src, dst, proto))
        if flow in self.portless:
            return None
        self.portless.add(flow)
        packet = pk.portless(proto, src, dst)
        return self._judged(source, packet, packet, Asked(src, dst, proto, 0, host))

    def _behind(self) -> Shot | None:
        """Return the address and port behind the published port."""
        version, box = self._pick([4, 6]), self._pick(self.bed.seats).box
        return self._shot(None, self._pick(self.strangers[version]), self._at(box, version), flow=self._pick([*BEHIND]))

    def _published(self) -> Shot | None:
        """Return a packet to a host port that leads to a container.

        It leads there by DNAT, or by a docker-proxy that would listen there.
        """
        version, seat, index = self._pick([4, 6]), self._pick(self.bed.seats), self._pick(list(range(len(BEHIND))))
        proto, port = BEHIND[index]
        host, number = self.host(version), seat.first + index
        by = self._pick([None, None, *self.bed.seats])
        if by and by.network == seat.network and (seat.network in OURS or version == 4):
            return None  # a hairpin: it arrives by another address
        source = by.box if by else None
        src = self._at(source, version) if source else self._pick(self.strangers[version])
        there = (found[1] for owner in self.inventory.owners() if (found := self.inventory.endpoint(owner)))
        is_published = any(
            port.host_port == number and port.host_ip.version == version and not port.host_ip.is_loopback
            for endpoint in there
            if endpoint.id == seat.box.endpoint.id and endpoint.joined
            for port in endpoint.published
        )
        sport, target = next(_ports), self._at(seat.box, version)
        packet = new_flow(proto, src, host, number, sport)
        if is_published if seat.network in OURS else version == 4:
            lands = new_flow(proto, src, target, port, sport)
            return self._judged(source, packet, lands, Asked(src, target, proto, port, by="dnat"))
        asked = [Asked(src, host, proto, number, host=True)]
        if is_published:
            asked.append(Asked(src, target, proto, port, by="proxy"))
        return self._judged(source, packet, packet, *asked)

    def _judged(self, source: Box | None, sent: Packet, lands: Packet, *asked: Asked) -> Shot:
        return Shot(source, sent, lands, tuple(verdict(self.inventory, each, NOW) for each in asked))


def compare(bed: Bed, compiler: ElementCompiler, seed: int, *, whole: bool, bridges: bool) -> None:
    """Load the policies, send, and compare each packet's fate with its verdict.

    `bridges`: the rules see packets within one.
    """
    site = bed.site
    bridges = bed.show_bridges(bridges)
    bed.load(compiler, whole=whole)
    site.forget_flows()
    shots = Gun(bed, compiler.view, seed, bridges=bridges).shots(MANY)
    sniffers = [*(site.sniffer(each) for each in (site.wan, bed.last, *(s.box for s in bed.seats))), site.listener]
    for sniffer in sniffers:
        for _ in sniffer.read():
            pass
    # By sender, and in any order: none of them belongs to another's flow.
    by_source: dict[Box | None, list[Packet]] = {}
    for shot in shots:
        by_source.setdefault(shot.source, []).append(shot.sent)
    for source, packets in by_source.items():
        site.send(packets, source)
    last = ping(site.wan.V6, bed.last.v6)
    site.send([last])
    seen = set().union(*arrived(sniffers, last))
    wrong = [shot for shot in shots if (shot.lands in seen) is not shot.passes]
    report = "\n".join(f"{'passed' if shot.lands in seen else 'did not pass'}: {shot}" for shot in wrong[:5])
    assert not wrong, f"{len(wrong)} of {len(shots)} packets:\n{report}"


all_containers = st.lists(containers, min_size=8, max_size=8)
each_network = st.fixed_dictionaries(dict.fromkeys((*OURS, *DOCKERS), networks))
seeds = st.integers(0, 2**32)


def examples(count: int) -> settings:
    """Return that many examples, see `inputs`.

    A failure names the packet and the reason; minutes of shrinking would add little.
    """
    return inputs(count, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])


@given(
    settings_, each_network, all_containers, seeds, st.sampled_from([True] * 5 + [False]), st.booleans(), st.booleans()
)
@examples(60)
def test_the_kernels_verdict_is_the_references(
    bed: Bed,
    defaults: Defaults,
    nets: dict[str, Any],
    drawn: list[dict[str, Any]],
    seed: int,
    watched: bool,
    whole: bool,
    bridges: bool,
) -> None:
    """Each packet passes exactly if the reference says so, for any policies.

    This holds whether or not docker-fw is up to date with Docker.
    """
    compiler = inventory_of(bed, defaults, nets, drawn)
    compiler.view.watched = watched
    compare(bed, compiler, seed, whole=whole, bridges=bridges)


def _bannable(prefix: Prefix) -> bool:
    """Return True if the last packet's path stays free."""
    try:
        prefix = read(str(prefix))
    except FwError:
        return False
    return not any(IPv6Address(a) in prefix for a in (Wan.V6, "2001:db8:9::2"))


#: Banned permanently, or for some minutes more.
_banned = prefixes.filter(_bannable).map(lambda prefix: read(str(prefix)))
banned = st.dictionaries(_banned, st.sampled_from([0.0, NOW + 300]), min_size=1, max_size=5)


@given(settings_, each_network, all_containers, banned, seeds, st.booleans(), st.booleans())
@examples(30)
def test_bans_are_the_references(
    bed: Bed,
    defaults: Defaults,
    nets: dict[str, Any],
    drawn: list[dict[str, Any]],
    bans: dict[Prefix, float],
    seed: int,
    whole: bool,
    bridges: bool,
) -> None:
    """Addresses and prefixes of any length are banned, anywhere: nothing from them, nothing to them."""
    compare(bed, inventory_of(bed, defaults, nets, drawn, bans), seed, whole=whole, bridges=bridges)
