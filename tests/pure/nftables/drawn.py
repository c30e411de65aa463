"""Facts and packets at random, the same for the same seed: tables of every kind, and packets that reach their rules.

Addresses, ports and links of the tables' own elements are likely. A packet is one that a kernel can show: its headers
fit together, and so do its routes and the state of its flow.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import cache
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from random import Random
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from plugin.kernel.names import GROUP
from plugin.labels.ranges import LENGTHS
from plugin.model import (
    Address,
    BridgeNetwork,
    Container,
    Defaults,
    Endpoint,
    Peer,
    PolicySpec,
    Published,
    Rate,
    Rule,
    TrackedEndpoint,
)
from plugin.nftables import rate_chains
from plugin.nftables.ban_elements import ban_elements
from plugin.nftables.compile import ElementCompiler, compiled
from plugin.nftables.document import USUAL, document
from plugin.nftables.features import Features
from plugin.nftables.fields import CGROUP, TARGET
from plugin.nftables.sets import LOADING, RATED, WATCHED, Element, chains_for, limits, quarantine_gates
from plugin.policy.facts import BridgeFacts, Facts, ProxyFacts
from plugin.policy.saved import SavedState
from tests.pure import strategies
from tests.pure.nftables.examples import MARK, dual_network, golden
from tests.pure.nftables.packets import Arp, Flow, Link, Packet, Routes, Socket, icmp, ports, tcp
from tests.pure.nftables.path import Tables
from tests.pure.nftables.ways import DOCKERD, DOCKERS, ETH0, HOST, LO, OURS, TUNNEL, UNMANAGED

# --- facts ----------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """Tables: the facts as text (to see that they are the same at another commit), the elements, the features.

    `lines`: elements of the sets that a rate has, as text.
    """

    name: str
    facts: str
    elements: frozenset[Element]
    features: Features = USUAL
    lines: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """A short form of the facts."""
        return sha256(self.facts.encode()).hexdigest()[:16]

    @property
    def text(self) -> str:
        """The tables as text."""
        chains = {chain for element in self.elements for chain in chains_for(element)}
        text = document(MARK, self.features.loadable(self.elements), self.features, chains=chains)
        return text + "".join(f"{line}\n" for line in self.lines)

    @property
    def more(self) -> list[Element]:
        """The elements that text cannot express."""
        return [element for element in self.elements if element.set == "docker_proxy"]


#: The features of kernels: the usual ones most often, and each alone without one of them.
_FEATURES = (
    *[USUAL] * 4,
    *(Features(**{name: False}) for name in ("bridge", "listeners", "cgroups", "logs", "sctp", "late_fib", "labels")),
    Features(owned=True),
)
_public = st.sampled_from(["203.0.113.7", "203.0.113.0/24", "203.0.0.0/16", "2001:db8:9::9", "2001:db8:9::/48"])
_banned = st.dictionaries(_public.map(ip_network), st.just(0.0), max_size=2)
_flags = st.booleans()
_seldom = st.sampled_from([True, False, False, False])
_host_ips = st.sampled_from([IPv4Address("0.0.0.0"), IPv6Address("::"), HOST[4], HOST[6], IPv4Address("127.0.0.1")])
_published = st.lists(
    st.builds(Published, strategies.protos, _host_ips, st.integers(1, 65535), strategies.ports), max_size=3
).map(tuple)
_container = st.fixed_dictionaries(
    {"spec": strategies.specs, "known": st.sampled_from([True] * 5 + [False]), "published": _published}
)
#: Elements that follow from packets or from a moment, not from facts.
_momentary = st.fixed_dictionaries(
    {"watched": st.sampled_from([True] * 4 + [False]), "loading": _seldom, "cut": _seldom}
)
_host = st.fixed_dictionaries(
    {
        "bans": _banned,
        "internal": _seldom,
        "docker_internal": _seldom,
        "flat": _flags,
        "mode": st.sampled_from(["nat", "routed", "nat-unprotected"]),
        "switched": st.frozensets(st.sampled_from([2, 10])),
        "holding": _seldom,
        "dockerd": st.frozensets(st.tuples(st.just(6), st.integers(2375, 2377)), max_size=2),
        "unfound": st.frozensets(st.just(132)),
        "listening": _published,
        "suspects": _published,
        "served": _published,
    }
)


def compiled_facts(
    general: PolicySpec, host: dict[str, Any], containers: list[dict[str, Any]], *, published: bool = False
) -> ElementCompiler:
    """Return a docker-fw network and a Docker network with two containers each."""
    ours = replace(dual_network(), internal=host["internal"])
    theirs = BridgeNetwork(
        "g" * 64,
        "app",
        DOCKERS.name,
        (ip_network("172.19.0.0/16"), ip_network("2001:db8:3::/64")),
        host["docker_internal"],
        host["flat"],
        host["mode"],
        host["mode"],
    )
    ends = [_endpoint(ours.id, 18, 1, n, each) for n, each in enumerate(containers[:2], 2)]
    guests = [_endpoint(theirs.id, 19, 3, n, each) for n, each in enumerate(containers[2:], 2)]
    dockers = frozenset({DOCKERS.name})
    return compiled(
        Defaults(general, published),
        Facts(
            SavedState({ours.id: ours}, {each.id: each for each in ends}, switched=host["switched"], bans=host["bans"]),
            bridges=BridgeFacts(frozenset({UNMANAGED.index}), dockers, dockers, dockers | {UNMANAGED.name}),
            proxies=ProxyFacts(frozenset({DOCKERD}), host["holding"]),
            dockerd=host["dockerd"],
            served_ports=dict.fromkeys(host["served"], 1.0),
            unfound=host["unfound"],
            listening=frozenset(host["listening"]),
            suspects=frozenset(host["suspects"]),
            networks={theirs.id: theirs},
            guests={each.id: TrackedEndpoint(each, True) for each in guests},
            listed=True,
        ),
    )


def _endpoint(network: str, second: int, third: int, number: int, drawn: dict[str, Any]) -> Endpoint:
    key = f"{second}{number}".ljust(64, "e")
    return Endpoint(
        key,
        network,
        IPv4Address(f"172.{second}.0.{number}"),
        IPv6Address(f"2001:db8:{third}::{number}"),
        mac=f"02:42:00:00:{second}:0{number}",
        joined=True,
        container=Container(key, f"c{second}{number}", drawn["spec"]) if drawn["known"] else None,
        published=drawn["published"],
    )


def momentary(flags: dict[str, bool], random: Random) -> set[Element]:
    """Return elements that packets, the lease or a load of the table add.

    A new set that leads to one of these gets its element here, from the code that adds it.
    """
    found: set[Element] = set(WATCHED) if flags["watched"] else set()
    if flags["loading"]:
        found |= {*LOADING}
    if flags["cut"]:
        for inside, outside in (("172.18.0.2", "203.0.113.7"), ("2001:db8:1::2", "2001:db8:9::9")):
            found |= _quarantined(ip_address(inside), ip_address(outside), random)
            found |= _quarantined(ip_address(outside), ip_address(inside), random)
        found |= {*quarantine_gates(list(found))}
    return found


def _quarantined(source: Address, target: Address, random: Random) -> set[Element]:
    """Return entries of every kind for flows from one address to another."""
    v, proto, port = source.version, random.choice([17, 132]), random.randint(1, 65535)
    return {
        Element(f"quarantine{v}", (source, proto, port, target, 53)),
        Element(f"quarantine{v}_pairs", (source, 47, target)),
        Element(f"quarantine{v}_ports_from", (source, proto, port + 1 & 65535)),
        Element(f"quarantine{v}_ports_to", (target, proto, port)),
        Element(f"quarantine{v}_all_from", (source, 50)),
        Element(f"quarantine{v}_all_to", (target, 51)),
    }


def known_sources(elements: Iterable[Element], random: Random) -> tuple[str, ...]:
    """Return lines that add sources to the sets of rates, as packets do."""
    found = []
    for element in sorted((e for e in elements if e.set in RATED), key=lambda e: (e.set, e.key, e.data)):
        proto, port = element.key[-2:]
        sets = rate_chains.limit(str(element.data[0])).sets if limits(element) else {}
        for name in (each for each in sets if not each.startswith("networks") and random.randrange(2)):
            source = "2001:db8:9::" if "6" in name.partition("__")[0] else "203.0.113.7"
            found.append(f"add element inet docker-fw {name} {{ {proto} . {port} . {source} }}")
    return tuple(found)


# --- every rule of the text has a policy that leads to it ---------------------------------------------------------

#: A port, and blocks of each size.
_SIZED = ((5432, 5432), (9008, 9023), (9216, 9471), (12288, 16383), (1, 65535))
_NEAR: dict[int, Address] = {4: IPv4Address("203.0.113.7"), 6: IPv6Address("2001:db8:9:0:1234:5678:9abc:def0")}


def _around(proto: str, only: int, shift: int) -> tuple[Rule, ...]:
    """Return a rule for ports of each size, with peers of each length that is looked up; one of `only` so many."""
    found = []
    for number, (first, last) in enumerate(_SIZED, shift):
        lengths = [(v, n) for v, known in LENGTHS.items() for n in known][number % only :: only]
        peers = (strategies.prefix_peer(ip_network((_NEAR[v], n), strict=False)) for v, n in lengths)
        found.append(Rule(proto, first, last, tuple(sorted(peers))))
    return tuple(found)


def _through(container: int) -> tuple[Published, ...]:
    """Return published ports on all addresses of the host and on one, with other numbers for each."""
    wanted = (("tcp", 5432), ("tcp", 9010), ("udp", 5432), ("sctp", 5432), ("tcp", 80))
    return tuple(
        Published(proto, at, 20000 + 1000 * container + 100 * (not at.is_unspecified) + number, port)
        for number, (proto, port) in enumerate(wanted)
        for at in (IPv4Address(0), IPv6Address(0), HOST[4], HOST[6])
    )


def _dense(features: Features, number: int) -> Case:
    """Return tables in which most rules can match. They differ in what can only be one way or the other."""
    random = Random(number)
    free = tuple(Rule("udp", first, last) for first, last in _SIZED[: 1 + number % 4])
    twice = (Rate("tcp", 5432, 5432, 9, "hour", 3),) if number % 2 else ()
    rates = tuple(
        Rate("tcp", first, last, 5, random.choice(["second", "minute"]), 10) for first, last in _SIZED[: 2 + number % 4]
    )
    free_out = (Rule("tcp", 80, 95), Rule("tcp", 5000, 5000), Rule("tcp", 24576, 28671), Rule("tcp", 512, 767))
    specs = [
        PolicySpec(_around("tcp", 3, number), egress=(*_around("udp", 3, number), *free_out), rate=rates + twice),
        PolicySpec((*free, Rule("gre", 0, 0)), policy="open", deny=(Rule("sctp", 1, 65535),)),
        PolicySpec(_around("tcp", 5, number), egress=_to_host() if number % 2 else None, rate=rates),
        PolicySpec((*free, *_around("sctp", 7, number))),
    ]
    containers = [{"spec": spec, "known": True, "published": _through(n)} for n, spec in enumerate(specs)]
    host = _dense_host(number)
    flags = {"watched": bool(number % 3), "loading": number % 7 == 6, "cut": number % 4 > 1}
    made = compiled_facts(PolicySpec(), host, containers, published=bool(number % 2))
    elements = made.all_elements() | ban_elements(made.view.state.bans, 0)[0] | momentary(flags, random)
    facts = repr((containers, sorted(host.items()), flags, features))
    return Case(f"dense {number}", facts, frozenset(elements), features, known_sources(elements, random))


def _to_host() -> tuple[Rule, ...]:
    return tuple(Rule("udp", first, last, (Peer("host"),)) for first, last in _SIZED[:-1])


_BANNED = (
    "198.18.0.5",
    "198.18.3.0/24",
    "198.19.0.0/16",
    "2001:db8:bad::5",
    "2001:db8:bad:1::/64",
    "2001:db8:bae::/48",
)


def _dense_host(number: int) -> dict[str, Any]:
    other = Published("tcp", IPv4Address("0.0.0.0"), 3306, 0)
    several: tuple[Published, ...] = (
        other,
        replace(other, host_ip=IPv6Address("::")),
        replace(other, host_ip=HOST[4], host_port=3307),
    )
    several = (*several, replace(several[2], host_ip=HOST[6]))
    bans = (
        "198.18.0.5",
        "198.18.3.0/24",
        "198.19.0.0/16",
        "2001:db8:bad::5",
        "2001:db8:bad:1::/64",
        "2001:db8:bae::/48",
    )
    return {
        "bans": {ip_network(each): 0.0 for each in bans} if number % 2 else {},
        "internal": number % 5 == 4,
        "docker_internal": number % 7 == 6,
        "flat": bool(number % 2),
        "mode": ("nat", "routed")[number % 2],
        "switched": frozenset({2, 10} if number % 2 else ()),
        "holding": number % 3 == 1,
        "dockerd": frozenset({(6, 2377)}),
        "unfound": frozenset({132}),
        "listening": several[:: 1 + number % 2],
        "suspects": several[1:2],
        "served": several,
    }


@cache
def dense_cases() -> tuple[Case, ...]:
    """Return tables whose policies lead to most rules, for kernels with and without each feature."""
    return tuple(_dense(features, number) for number, features in enumerate(_FEATURES * 3))


class Drawn(NamedTuple):
    """Random facts: as text, compiled, with what else is so at the moment, and the kernel's features."""

    text: str
    compiler: ElementCompiler
    flags: dict[str, bool]
    features: Features

    @property
    def elements(self) -> set[Element]:
        """The elements of the facts."""
        return self.compiler.all_elements() | ban_elements(self.compiler.view.state.bans, 0)[0]


def random_facts(count: int) -> list[Drawn]:
    """Return random policies on a host. The same count gives the same ones."""
    found: list[Drawn] = []

    @seed(20)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.sampled_from([PolicySpec()]) | strategies.specs,
        _host,
        st.lists(_container, min_size=4, max_size=4),
        _momentary,
        st.sampled_from(_FEATURES),
    )
    def collect(general: PolicySpec, host: Any, containers: Any, flags: Any, features: Features) -> None:
        text = repr((general, sorted(host.items(), key=str), containers, flags, features))
        found.append(Drawn(text, compiled_facts(general, host, containers), flags, features))

    collect()
    return found


def random_cases(count: int) -> list[Case]:
    """Return tables of random policies."""
    found = []
    for number, drawn in enumerate(random_facts(count)):
        elements = drawn.elements | momentary(drawn.flags, Random(drawn.text))
        lines = known_sources(elements, Random(drawn.text))
        found.append(Case(f"random {number}", drawn.text, frozenset(elements), drawn.features, lines))
    return found


def cases(count: int) -> list[Case]:
    """Return the golden tables, each while docker-fw follows Docker, dense ones, and as many random ones."""
    named = [Case(name, name, frozenset(made.all_elements() | set(WATCHED))) for name, made in golden().items()]
    return [*named, *dense_cases(), *random_cases(count)]


# --- packets --------------------------------------------------------------------------------------------------------

#: A port of a docker-fw bridge whose container is unknown.
UNKNOWN_PORT = Link("fwvffffffffffff", 98, "veth")
#: The links of the networks above, and of the golden tables.
_SUBNETS = {
    ip_network(subnet): name
    for name, subnets in {
        OURS.name: ("172.18.0.0/16", "2001:db8:1::/64"),
        DOCKERS.name: ("172.19.0.0/16", "2001:db8:3::/64"),
        "backend0": ("10.9.0.0/24",),
        "fw-cccccccccccc": ("2001:db8:2::/64",),
    }.items()
    for subnet in subnets
}
_HOOKS = (
    *[("inet", "forward")] * 6,
    *[("inet", "input")] * 4,
    *[("inet", "prerouting")] * 2,
    ("inet", "output"),
    ("inet", "postrouting"),
    *[("bridge", "prerouting")] * 2,
)
_ICMP = {4: (0, 3, 5, 8, 11, 12, 13), 6: (1, 2, 3, 4, 128, 129, 130, 131, 132, 133, 134, 135, 136, 137, 143, 151)}
_FLAGS = ("syn", "syn", "syn", "ack", "syn,ack", "rst", "fin,ack", "psh,ack", "", "fin,syn", "fin,syn,rst,ack")
_PROTOS = (6, 6, 6, 6, 17, 17, 17, 132, 47, 50, 51, 136, 89, 2)
_STATES = (*["new"] * 5, *["established"] * 5, "related", "related", "invalid", "untracked")
_STATUS: tuple[Collection[str], ...] = (frozenset(), {"assured"}, {"assured"}, {"dnat"}, {"dnat", "assured"}, {"snat"})
_LABELS: tuple[Collection[int], ...] = (frozenset(), frozenset(), frozenset(), {91}, {92}, {91, 92}, {5})


class Packets:
    """Draws packets for these tables."""

    def __init__(self, tables: Iterable[Tables], drawing: Random) -> None:
        self.random = drawing
        self._elements: list[tuple[tuple[str, ...], tuple[Any, ...], str]] = []
        self._by_set: dict[str, list[int]] = {}
        self.addresses: dict[int, set[Address]] = {
            4: {HOST[4], IPv4Address("203.0.113.7"), IPv4Address("127.0.0.1"), IPv4Address(0)},
            6: {HOST[6], IPv6Address("2001:db8:9::9"), IPv6Address("::1"), IPv6Address("::"), IPv6Address("fe80::5")},
        }
        self.ports = {0, 22, 53, 80, 443, 8080, 65535}
        self.links = {link.name: link for link in (LO, ETH0, TUNNEL, OURS, DOCKERS, UNMANAGED, UNKNOWN_PORT)}
        for table in (each for those in tables for each in those.tables.values()):
            for name, of in table.sets.items():
                for key in of.elements:
                    self._by_set.setdefault(name, []).append(len(self._elements))
                    self._elements.append((of.key, key, name))
                    self._collect(of.key, key)
        #: The packet belongs to an element, and is not to miss its rules for another reason.
        self._fitting = False
        self._pools = {v: sorted(known, key=int) for v, known in self.addresses.items()}
        self._ports = sorted(self.ports)

    def _collect(self, fields: tuple[str, ...], key: tuple[Any, ...]) -> None:
        for name, value in zip(fields, key, strict=True):
            if name in ("ip saddr", "ip daddr"):
                self.addresses[4] |= {IPv4Address(value), IPv4Address(value + 1 & 0xFFFFFFFF)}
            elif name in ("ip6 saddr", "ip6 daddr"):
                self.addresses[6] |= {IPv6Address(value), IPv6Address(value + 1 & (1 << 128) - 1)}
            elif name == "th dport":
                self.ports |= {value, value + 1 & 65535, value - 1 & 65535}
            elif name in ("iifname", "oifname", "fib saddr oifname") and value not in self.links:
                kind = "veth" if value.startswith("fwv") else "bridge"
                self.links[value] = Link(value, 100 + len(self.links), kind, GROUP if kind == "bridge" else 0)

    def draw(self) -> tuple[str, str, Packet]:
        """Return a family, a hook, and a packet as that hook sees it."""
        family, hook = self.random.choice(_HOOKS)
        packet = self._plain(family)
        self._fitting = self._by_set != {} and not self._one_in(3)
        for _ in range(1 if self._fitting else self._pick([0, 1, 1, 2])):
            packet, name = self._like_an_element(packet)
            if self._fitting:
                family, hook = self._hook_of(name, packet, family, hook)
        if self._one_in(2 if hook == "output" else 6):
            packet = self._turned(packet)
        packet = self._placed(packet, family, hook)
        return family, hook, replace(packet, routes=self._routes(packet), flow=self._flow(packet))

    def _hook_of(self, name: str, packet: Packet, family: str, hook: str) -> tuple[str, str]:
        """Return a hook whose rules look up this set."""
        if packet.arp or name in ("ports", "loading_ports") or name.startswith("bound"):
            return "bridge", "prerouting"
        if name.startswith(("host_", "served", "docker", "rate_limit_host", "egress_host", "unfound", "proxy")):
            return "inet", self._pick(["input", "input", "input", "output"])
        if name.startswith("publish"):
            return "inet", "prerouting"
        if name.startswith(("from", "rate", "proven", "sources", "banned", "egress")):
            return "inet", self._pick(["forward", "forward", "input"])
        return ("inet", hook) if family == "bridge" else (family, hook)

    def _pick(self, among: Any) -> Any:
        return self.random.choice(among)

    def _one_in(self, count: int) -> bool:
        return self.random.randrange(count) == 0

    def _plain(self, family: str) -> Packet:
        v = self._pick([4, 6])
        packet = Packet(
            self._pick(self._pools[v]),
            self._pick(self._pools[v]),
            iif=self._link(port=family == "bridge"),
            oif=self._link(),
            socket=self._socket(),
            mark=self._pick([0, 0, MARK, MARK | 5, 0xFFFFFFFF]),
            pkttype=self._pick([0, 0, 0, 1, 2]),
            target_mac=self._pick([0x024200000001, 0x0180C2000000, 0x0180C200000E]),
            source_mac=0x024200001802,
            over=self._pick([0, 0, 0, 255, self.random.randrange(256)]),
            full=self._one_in(12),
            routing_header=self._pick([0, 2, 4]) if v == 6 and self._one_in(30) else None,
        )
        if family == "bridge" and self._one_in(4):
            sender = self._pick([*self._pools[4]])
            arp = Arp(sender, packet.source_mac, self._pick([1, 1, 2]), self._pick([1, 1, 1, 6]))
            return replace(packet, saddr=None, daddr=None, arp=arp)
        if family == "bridge" and self._one_in(20):
            packet = replace(packet, frame_type=self._pick([0x8100, 0x88A8, 0x8864]))
        return self._with_header(packet, self._pick(_PROTOS), self._pick(self._ports))

    def _with_header(self, packet: Packet, proto: int, port: int, sport: int | None = None) -> Packet:
        """Return the packet with a transport header of the protocol; sometimes one of ICMP, or of a fragment."""
        v = packet.version
        of_port = packet.iif is not None and packet.iif.kind == "veth"
        if (of_port or not self._fitting) and self._one_in(2 if of_port else 6):
            proto = {4: 1, 6: 58}[v] if not self._one_in(20) else {4: 58, 6: 1}[v]
        sport = self._pick([40000, self._pick(self._ports)]) if sport is None else sport
        if proto in (1, 58, 2):
            header = icmp(self._pick(_ICMP[v] if proto != 2 else (17, 22, 23, 48)))
        elif proto == 6:
            header = tcp(sport, port, self._pick(_FLAGS if not self._fitting else ("syn", "syn", "syn", "ack")))
        else:
            header = ports(sport, port)
        target = int(self._pick(self._pools[6])) if proto == 58 and not self._one_in(8) else None
        packet = replace(packet, proto=proto, header=header, neighbour=target, fragment=None, next=self._next(v))
        return self._fragmented(packet) if self._one_in(5 if of_port else 15) else packet

    def _next(self, version: int) -> int | None:
        return self._pick([0, 43, 60]) if version == 6 and self._one_in(15) else None

    def _fragmented(self, packet: Packet) -> Packet:
        """Return the packet as a first fragment, maybe without its whole header, or as a later one."""
        cut = self._pick([0, 1, 3, 8, len(packet.header)])
        first = self._one_in(2)
        if packet.version == 6:
            packet = replace(packet, next=44)
        return replace(
            packet, fragment=0 if first else 185, header=packet.header[:cut] if first else b"", neighbour=None
        )

    def _like_an_element(self, packet: Packet) -> tuple[Packet, str]:
        """Return the packet with the values of an element: of any set with the same likelihood, or of any element."""
        if not self._by_set:
            return packet, ""
        of_set = self._by_set[self._pick(sorted(self._by_set))]
        fields, key, name = self._elements[self._pick(of_set)] if self._one_in(2) else self._pick(self._elements)
        values = dict(zip(fields, key, strict=True))
        prefixed = name.startswith(("from", "host_from", "egress_to"))
        length = values.pop("th sport", None) if prefixed else None
        packet = self._addressed(packet, values, length)
        for field, value in values.items():
            packet = self._with_link(packet, field, value)
        if name.startswith("bound") and packet.saddr is not None:
            packet = self._with_header(packet, self._pick([2, *_PROTOS[::4]]), self._pick(self._ports))
            if self._one_in(3):
                packet = replace(packet, saddr=self._pick(self._pools[packet.version]))
        port, proto = values.get("th dport"), values.get("meta l4proto")
        if packet.saddr is not None and (port is not None or proto is not None):
            if port is not None and name.endswith("_blocks"):
                half = port & -port
                port += self.random.randrange(-half, half)
            port = self._pick(self._ports) if port is None else port
            port = 0 if self._one_in(30) else port
            packet = self._with_header(packet, proto or self._pick(_PROTOS), port & 65535, values.get("th sport"))
        return packet, name

    def _turned(self, packet: Packet) -> Packet:
        """Return a packet of the other direction."""
        if packet.saddr is None:
            return packet
        header = packet.header
        if packet.proto not in (1, 58) and len(header) > 3:
            header = header[2:4] + header[:2] + header[4:]
        return replace(packet, saddr=packet.daddr, daddr=packet.saddr, iif=packet.oif, oif=packet.iif, header=header)

    def _addressed(self, packet: Packet, values: dict[str, Any], length: int | None) -> Packet:
        for v, ip, kind in ((4, "ip", IPv4Address), (6, "ip6", IPv6Address)):
            ends = {name.split()[1]: value for name, value in values.items() if name in (f"{ip} saddr", f"{ip} daddr")}
            if not ends or packet.arp:
                continue
            bits = {4: 32, 6: 128}[v]
            if length is not None:  # the prefix is the field that comes last
                last = list(ends)[-1]
                ends[last] += self.random.randrange(1 << (bits - length)) if length < bits else 0
            other = {end: self._pick(self._pools[v]) for end in ("saddr", "daddr") if end not in ends}
            both = {end: kind(value) for end, value in ends.items()} | other
            turned = packet.version != v
            packet = replace(packet, **both)
            if turned:
                packet = self._with_header(packet, self._pick(_PROTOS), self._pick(self._ports))
        return packet

    def _with_link(self, packet: Packet, field: str, value: Any) -> Packet:
        if field in ("iifname", "oifname"):
            ways = (field[:3],) if not self._one_in(3) else ("iif", "oif")
            return replace(packet, **{way: self._named(value) for way in ways})
        if field == "oif":
            link = next((each for each in self.links.values() if each.index == value), UNMANAGED)
            return replace(packet, **{self._pick(["iif", "oif"]): link})
        if field == "ether saddr":
            return replace(packet, source_mac=value)
        if field == TARGET:
            return replace(packet, neighbour=value)
        if field == CGROUP:
            return replace(packet, socket=Socket((17, value)))
        return packet

    def _named(self, name: str) -> Link:
        """Return a link of this name; sometimes of another kind or group than the known one."""
        link = self.links.get(name) or Link(name, 99, "bridge")
        if self._one_in(8):
            kind, group = self._pick(["bridge", "veth", "vrf", None]), self._pick([0, GROUP, 7])
            link = replace(link, kind=kind, group=group)
        return link

    def _link(self, *, port: bool = False) -> Link:
        """Return any link; `port`: most often a port of a docker-fw bridge."""
        if port and not self._one_in(4):
            return self._pick([link for link in self.links.values() if link.kind == "veth"])
        if self._one_in(10):
            kind = self._pick(["bridge", "veth", "vrf", "wireguard", None])
            return Link("other0", 77, kind, self._pick([0, 0, GROUP, 7]))
        return self._named(self._pick(sorted(self.links)))

    def _placed(self, packet: Packet, family: str, hook: str) -> Packet:
        """Return the packet with the links that a hook shows."""
        if family == "inet" and not self._one_in(3):
            packet = replace(packet, iif=self._behind(packet.saddr), oif=self._behind(packet.daddr))
        if family == "bridge" or hook in ("prerouting", "input"):
            packet = replace(packet, oif=None)
        if hook == "output" or (hook == "postrouting" and self._one_in(3)):
            packet = replace(packet, iif=None)
        same = packet.iif and packet.oif and packet.iif.name == packet.oif.name  # and so of one kind
        if hook == "forward" and (same or self._one_in(8)):
            packet = replace(packet, oif=packet.iif)
        if hook != "input":
            packet = replace(packet, socket=None)
        return packet

    def _behind(self, address: Address | None) -> Link:
        """Return the link that leads to an address."""
        name = next((name for subnet, name in _SUBNETS.items() if address in subnet), ETH0.name)
        return self._named(name)

    def _socket(self) -> Socket | None:
        groups = self._pick(
            [(17, DOCKERD), (17, 99), (DOCKERD,), (1, 2, DOCKERD), (1, 2, 3, DOCKERD), (), (1, 2, 3, 4, DOCKERD)]
        )
        return None if self._one_in(3) else Socket(groups, self._one_in(4), self._pick([0, 7]), not self._one_in(4))

    def _routes(self, packet: Packet) -> Routes:
        """Return what routes answer: the host's own address, none, one through this link, another, or through several.

        A route through several links has one by which it is named, and may be found through another.
        """
        to = self._pick(["unicast", "unicast", "local"])
        target = self._one_in(3)
        kind = self._pick(["here"] * (12 if self._fitting else 3) + ["elsewhere", "several", "none", "own"])
        if kind in ("own", "none") or packet.iif is None:
            return Routes(target_here=target, source_type="local" if kind == "own" else "unicast", target_type=to)
        name = packet.iif.name if kind == "here" else self._pick(sorted(self.links))
        return Routes(name, kind == "several" or name == packet.iif.name, target, target_type=to)

    def _flow(self, packet: Packet) -> Flow:
        state = self._pick(_STATES if not self._fitting or self._one_in(3) else ("new",))
        if state in ("invalid", "untracked"):
            return Flow(state)
        reply = state != "new" and self._one_in(2)
        status = frozenset(self._pick(_STATUS)) - (frozenset({"assured"}) if state == "new" else frozenset())
        return Flow(state, reply, status, frozenset(self._pick(_LABELS)))


def drawing(tables: Iterable[Tables], number: int) -> Callable[[], tuple[str, str, Packet]]:
    """Return a function that draws packets for tables: the same ones for the same number and elements."""
    return Packets(tables, Random(number)).draw
