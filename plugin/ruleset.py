"""Policies → the table as data: its sets and their elements. Pure. `plugin.table` is its rules, as text.

The rules never change while docker-fw runs and know no port; all that is known about containers is elements of
plain hash sets, so that a packet pays the same with one container and with ten thousand (a set with `flags
interval` costs 20 times as much a packet and seconds a change). Port ranges are blocks of 1, 16, 256 and 4096.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import NamedTuple

from plugin.model import PROTO_NUMBER, Address, Endpoint, Network, Rule
from plugin.policy import accepted

TABLE = "fw"
#: Bridges that docker-fw names itself, from the network's ID. One wildcard closes them all, known or not.
BRIDGE_PREFIX = "fw-"
#: The device group of every bridge of ours, whatever its name: the kernel sets it before the link can carry a packet.
GROUP = 0x66770001

#: A value in a key: an address, an IP protocol or port or family number, an interface name.
Value = Address | int | str

TIERS = ((1, ""), (16, "_16"), (256, "_256"), (4096, "_4096"))
_ALLOW4 = ("ip daddr", "meta l4proto", "th dport")
_ALLOW6 = ("ip6 daddr", "meta l4proto", "th dport")


class SetSpec(NamedTuple):
    """A named set, or a map where `data` is not empty: the nft expressions its key and data are typed by."""

    key: tuple[str, ...]
    data: tuple[str, ...] = ()
    comment: str = ""


SETS: dict[str, SetSpec] = {
    **{f"allow4{suffix}": SetSpec(_ALLOW4, comment=f"what IPv4 accepts, in blocks of {n}") for n, suffix in TIERS},
    **{f"allow6{suffix}": SetSpec(_ALLOW6, comment=f"what IPv6 accepts, in blocks of {n}") for n, suffix in TIERS},
    "same_bridge": SetSpec(("iifname", "oifname"), comment="within one network, seen here with br_netfilter"),
    "bridges": SetSpec(("fib saddr oifname",), comment="every bridge of ours, whatever its name"),
    "internal": SetSpec(("oifname",), comment="networks nobody enters or leaves"),
    "masqueraded": SetSpec(("iifname",), comment="networks whose IPv4 leaves with the host's address"),
    "self4": SetSpec(("ip saddr", "ip daddr"), comment="who publishes ports, and may come back to itself by them"),
    "self6": SetSpec(("ip6 saddr", "ip6 daddr"), comment="the same for IPv6"),
    "foreign": SetSpec(("oifname",), comment="bridges that are neither ours nor Docker's"),
    "dockers": SetSpec(("oifname",), comment="Docker's own bridges, which Docker guards"),
    "no_transit": SetSpec(("meta nfproto",), comment="families whose forwarding docker-fw switched on"),
    "publish4": SetSpec(("ip daddr", "meta l4proto", "th dport"), ("ip daddr", "th dport"), "-p HOSTIP:…"),
    "publish6": SetSpec(("ip6 daddr", "meta l4proto", "th dport"), ("ip6 daddr", "th dport"), "-p [HOSTIP]:…"),
    "publish4_any": SetSpec(("meta l4proto", "th dport"), ("ip daddr", "th dport"), "-p on every IPv4 address"),
    "publish6_any": SetSpec(("meta l4proto", "th dport"), ("ip6 daddr", "th dport"), "-p on every IPv6 address"),
}


class Element(NamedTuple):
    """One element of one set: the key's values in the order of `SETS`, and the data's for a map."""

    set: str
    key: tuple[Value, ...]
    data: tuple[Value, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """One transaction: what goes and what comes."""

    remove: tuple[Element, ...] = ()
    add: tuple[Element, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.remove or self.add)


def blocks(first: int, last: int) -> Iterator[tuple[int, int]]:
    """Cuts a port range into the fewest aligned (block size, first port) pieces of 1, 16, 256 and 4096 ports."""
    while first <= last:
        size = next(n for n, _ in reversed(TIERS) if first % n == 0 and first + n - 1 <= last)
        yield size, first
        first += size


def rule_elements(address: Address, rules: Iterable[Rule]) -> Iterator[Element]:
    """What makes `address` accept `rules`."""
    family = "allow4" if isinstance(address, IPv4Address) else "allow6"
    suffix = dict(TIERS)
    for rule in rules:
        # `*` is 1-65535; port 0 cannot be reached, and with it the range is sixteen blocks instead of 58.
        first = 0 if (rule.first, rule.last) == (1, 65535) else rule.first
        for size, port in blocks(first, rule.last):
            yield Element(family + suffix[size], (address, PROTO_NUMBER[rule.proto], port))


def network_elements(network: Network) -> frozenset[Element]:
    """What a network needs besides its endpoints."""
    elements = {Element("same_bridge", (network.bridge, network.bridge)), Element("bridges", (network.bridge,))}
    if network.internal:
        elements.add(Element("internal", (network.bridge,)))
    elif network.masquerade and network.gateway4 is not None:
        elements.add(Element("masqueraded", (network.bridge,)))
    return frozenset(elements)


def endpoint_elements(network: Network, endpoint: Endpoint, everywhere: tuple[Rule, ...]) -> frozenset[Element]:
    """What an endpoint's addresses accept, and where its published ports lead."""
    elements: set[Element] = set()
    rules = accepted(network, endpoint, everywhere)
    for address in (endpoint.addr4, endpoint.addr6):
        if address is not None:
            elements.update(rule_elements(address, rules))
    for port in endpoint.published if endpoint.joined else ():
        # Loopback is served by the relay: a packet to 127.0.0.1 or ::1 cannot be sent on to a container.
        v4 = isinstance(port.host_ip, IPv4Address)
        target = endpoint.addr4 if v4 else endpoint.addr6
        if target is None or port.host_ip.is_loopback:
            continue
        key: tuple[Value, ...] = (PROTO_NUMBER[port.proto], port.host_port)
        name = "publish4" if v4 else "publish6"
        if port.host_ip.is_unspecified:
            name += "_any"
        else:
            key = (port.host_ip, *key)
        elements.add(Element(name, key, (target, port.container_port)))
        elements.add(Element("self4" if v4 else "self6", (target, target)))
    return frozenset(elements)
