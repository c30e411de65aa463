"""Measure packets beside crowds of endpoints, and beside features in use, which real engines do not carry here.

Each host is a network namespace with the tables that `KernelTable` writes for so many endpoints: half of them on
docker-fw networks, half on Docker networks, of a hundred containers each. Two containers of each host are real, one on
a network of each kind. All hosts are measured in turn. Nothing here needs Docker.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_network
from random import Random
from types import MappingProxyType

from plugin.model import BridgeNetwork, Container, Defaults, Endpoint, Network, Peer, PolicySpec, Prefix, Rate, Rule
from plugin.nftables.ban_elements import ban_elements
from plugin.nftables.compile import compiled
from plugin.nftables.elements import guarded_elements, guest_elements
from plugin.nftables.sets import Element
from plugin.policy import decide
from plugin.policy.facts import Facts
from plugin.policy.saved import SavedState
from tests.bench.paths import Target, cable, compare, flush, route
from tests.bench.rows import COMPARED, FEATURES, SIMULATED
from tests.bench.scale import Scale
from tests.bench.table import Table, say
from tests.bench.traffic import PORT
from tests.kernel.site import Box, Site, claimed, docker_network

#: Containers of each network of a crowd, and prefixes of each `from` list.
_SIZE, _LIST = 100, 5
_RATES, _LISTS, _BANS = 1_000, 10_000, 50_000
_BRIDGE = "br-bench"
#: What a container that others are measured beside opens; the measured one has the same.
_OPEN = (Rule("udp", PORT, PORT), Rule("tcp", PORT, PORT))
_PLAIN = PolicySpec(allow=_OPEN)
_DEFAULTS = Defaults()
#: The policy of the nth container of a crowd.
Spec = Callable[[int], PolicySpec]


@dataclass
class Host:
    """A host with two real containers, and a crowd in its tables."""

    site: Site
    fw: Box
    protected: Box

    @staticmethod
    def make(
        stack: ExitStack, count: int, spec: Spec = lambda _: _PLAIN, bans: Mapping[Prefix, float] = MappingProxyType({})
    ) -> Host:
        """Make a host with a crowd of `count` containers, the real ones included."""
        site = stack.enter_context(Site())
        host = Host(site, site.box(site.network(1), 2), site.docker_box(_BRIDGE, 2))
        site.nft.replace({*host._elements(count - 1, spec), *ban_elements(bans, 0)[0]})
        cable(site.wan, site.host, 1)
        for box in (host.fw, host.protected):
            route(site.wan, 1, {4: str(box.v4), 6: str(box.v6)})
        return host

    def _elements(self, count: int, spec: Spec) -> set[Element]:
        own = self.site.known(self.fw, spec=_PLAIN)
        networks, endpoints = _driver_crowd(count - count // 2, spec)
        state = SavedState({**networks, **self.site.networks}, {**endpoints, own.id: own})
        found = compiled(_DEFAULTS, Facts(state)).all_elements()
        for network, members in _docker_crowd(count // 2, spec):
            found |= {*guarded_elements(network), *claimed(network.bridge)}
            for each in members:
                found |= {*guest_elements(network, each, decide.of(network, each, _DEFAULTS))}
        return found | self.site.docker_elements(self.protected, _BRIDGE, spec=_PLAIN)

    def target(self, kind: str) -> Target:
        box = self.fw if kind == "fw" else self.protected
        path = self.site.host.path
        return Target(self.site.wan.path, box.path, {4: str(box.v4), 6: str(box.v6)}, lambda: flush(path))


def measure(table: Table, scale: Scale, groups: Collection[str]) -> None:
    for group, work in (("crowds", _crowds), ("features", _features)):
        if group in groups:
            work(table, scale)


def _crowds(table: Table, scale: Scale) -> None:
    with ExitStack() as stack:
        hosts = {}
        for count in (1, *SIMULATED):
            say(f"crowds: a host with {scale.crowd(count):,} endpoints…")
            hosts[count] = Host.make(stack, scale.crowd(count))
        for family, kind in itertools.product(scale.families, ("fw", "protected")):
            say(f"crowds: IPv{family}, {kind}…")
            targets = {str(count): host.target(kind) for count, host in hosts.items()}
            costs = compare(targets, family, scale.rounds, COMPARED)
            for packets, count in itertools.product(COMPARED, SIMULATED):
                costs.put(table, f"{kind}@{count} {packets} {family}", packets, str(count), "1")
                if family == 6:
                    table.curve(f"simulated {kind}", packets, count, costs.ratio(packets, str(count), "1"))


def _features(table: Table, scale: Scale) -> None:
    rates, lists = scale.crowd(_RATES), scale.crowd(_LISTS)
    bans: dict[Prefix, float] = {ip_network(IPv6Address((0x20010DB8BA << 88) + n)): 0.0 for n in range(_BANS // 2)}
    bans |= {ip_network(IPv4Address((100 << 24) + n)): 0.0 for n in range(_BANS // 2)}
    bans = dict(itertools.islice(bans.items(), 0, None, scale.divisor))
    with ExitStack() as stack:
        say("features: four hosts…")
        hosts = {
            "none": Host.make(stack, 1),
            "rates": Host.make(stack, rates, lambda _: replace(_PLAIN, rate=(Rate("tcp", 22, 22, 5, "minute", 10),))),
            "lists": Host.make(stack, lists, _listed(Random(1))),
            "bans": Host.make(stack, 1, bans=bans),
        }
        for family in scale.families:
            say(f"features: IPv{family}…")
            targets = {name: host.target("fw") for name, host in hosts.items()}
            costs = compare(targets, family, scale.rounds, COMPARED)
            for packets, feature in itertools.product(COMPARED, FEATURES):
                costs.put(table, f"{feature}/none {packets} {family}", packets, feature, "none")


def _driver_crowd(count: int, spec: Spec) -> tuple[dict[str, Network], dict[str, Endpoint]]:
    """Return docker-fw networks and their endpoints."""
    networks, endpoints = {}, {}
    for n in range(count):
        network = _network(n // _SIZE)
        networks[network.id] = network
        each = _endpoint(n, network.id, 0, spec)
        endpoints[each.id] = each
    return networks, endpoints


def _docker_crowd(count: int, spec: Spec) -> Iterator[tuple[BridgeNetwork, list[Endpoint]]]:
    """Yield Docker networks, each with its endpoints."""
    for first in range(0, count, _SIZE):
        number = first // _SIZE
        network = replace(docker_network(f"n{number}", f"br-{number:012x}", 0), subnets=())
        yield network, [_endpoint(n, network.id, 1, spec) for n in range(first, min(count, first + _SIZE))]


def _network(number: int) -> Network:
    four, six = _address(4, 0, number, 1), _address(6, 0, number, 1)
    assert isinstance(four, IPv4Address)
    assert isinstance(six, IPv6Address)
    gateways = IPv4Interface((four, 25)), IPv6Interface((six, 64))
    return Network(f"b{number:063x}", f"fw-{number:011x}", *gateways, masquerade=False)


def _endpoint(number: int, network: str, kind: int, spec: Spec) -> Endpoint:
    """Return the nth container; `kind` distinguishes those of docker-fw and of Docker networks."""
    four, six = (_address(version, kind, number // _SIZE, number % _SIZE + 2) for version in (4, 6))
    assert isinstance(four, IPv4Address)
    assert isinstance(six, IPv6Address)
    identity = f"{kind}{number:063x}"
    container = Container(identity, f"c{kind}-{number}", spec(number))
    return Endpoint(identity, network, four, six, joined=True, container=container)


def _address(version: int, kind: int, network: int, host: int) -> IPv4Address | IPv6Address:
    """Return an address of a network of a crowd: 10.64.0.0/10 or 10.128.0.0/10, in /25; or 2001:db8:c000::/36."""
    if version == 4:
        return IPv4Address((10 << 24) + (64 << 16 << kind) + 128 * network + host)
    return IPv6Address((0x20010DB8C000 << 80) + (kind << 92) + (network << 64) + host)


def _listed(random: Random) -> Spec:
    """Return policies with a list of sources of their own, of the prefix lengths that the rules look up."""

    def spec(_: int) -> PolicySpec:
        prefixes = (f"2001:db8:{random.randrange(1 << 16):x}:{random.randrange(1 << 16):x}::/64" for _ in range(_LIST))
        peers = tuple(Peer("prefix", each) for each in dict.fromkeys(prefixes))
        return PolicySpec(allow=(Rule("udp", PORT, PORT, peers),))

    return spec
