"""Policies → the table as data: its sets and their elements. Pure. `plugin.table` is its rules, as text.

The rules never change while docker-fw runs and know no port; all that is known about containers is elements of
plain hash sets, so that a packet pays the same with one container and with ten thousand (a set with `flags
interval` costs 20 times as much a packet and seconds a change). Port ranges are blocks of 1, 16, 256 and 4096.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import NamedTuple

from plugin.model import PROTO_NUMBER, Address, Endpoint, Guarded, Network, Published, Rule
from plugin.policy import accepted, closed_ports, in_order

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
_FLOW4 = ("ip saddr", "th sport", "ip daddr", "th dport")
_FLOW6 = ("ip6 saddr", "th sport", "ip6 daddr", "th dport")
#: What nft calls the control group of the socket that a packet is for: system.slice/docker.service is of level 2.
CGROUP = "socket cgroupv2 level 2"
#: A published port on every address of a family.
_ANY = ("meta nfproto", "meta l4proto", "th dport")


class SetSpec(NamedTuple):
    """A named set, or a map where `data` is not empty: the nft expressions its key and data are typed by.

    `raw`: nft has no words for its elements, so they go by netlink alone. `timed`: each lasts for a time of its own.
    """

    key: tuple[str, ...]
    data: tuple[str, ...] = ()
    comment: str = ""
    raw: bool = False
    timed: bool = False


SETS: dict[str, SetSpec] = {
    **{f"allow4{suffix}": SetSpec(_ALLOW4, comment=f"what IPv4 accepts, in blocks of {n}") for n, suffix in TIERS},
    **{f"allow6{suffix}": SetSpec(_ALLOW6, comment=f"what IPv6 accepts, in blocks of {n}") for n, suffix in TIERS},
    "same_bridge": SetSpec(("iifname", "oifname"), comment="within one network, seen here with br_netfilter"),
    "bridges": SetSpec(("fib saddr oifname",), comment="every bridge but foreign ones"),
    "internal": SetSpec(("oifname",), comment="networks nobody enters or leaves"),
    "masqueraded": SetSpec(("iifname",), comment="networks whose IPv4 leaves with the host's address"),
    "self4": SetSpec(("ip saddr", "ip daddr"), comment="who publishes ports, and may come back to itself by them"),
    "self6": SetSpec(("ip6 saddr", "ip6 daddr"), comment="the same for IPv6"),
    "foreign": SetSpec(("oif",), comment="bridges that are neither ours nor Docker's, and are left alone"),
    "dockers": SetSpec(("iifname",), comment="bridges that Docker claims, which forward as it says"),
    "routed": SetSpec(("meta nfproto", "oifname"), comment="networks of Docker's that are reached by their addresses"),
    "dnat4": SetSpec(_ALLOW4, comment="what -p itself opens, reached by a published port (FW_PUBLISHED=allow)"),
    "dnat6": SetSpec(_ALLOW6, comment="the same for IPv6"),
    "proxied": SetSpec(_ANY, comment="published ports of the host behind which the container's port is closed"),
    "proxied4": SetSpec(_ALLOW4, comment="the same, published on one address"),
    "proxied6": SetSpec(_ALLOW6, comment="the same for IPv6"),
    "served": SetSpec(_ANY, comment="published ports of the host behind which the container's port is open"),
    "served4": SetSpec(_ALLOW4, comment="the same, published on one address"),
    "served6": SetSpec(_ALLOW6, comment="the same for IPv6"),
    "dockerd": SetSpec(("meta l4proto", "th dport"), comment="ports of dockerd's own: its API, swarm, metrics"),
    "proxies": SetSpec((CGROUP,), comment="the control group of dockerd and docker-proxy, by its number", raw=True),
    "neighbour": SetSpec(("iifname", "meta l4proto", "th dport"), comment="who shares a network with the container"),
    "held4": SetSpec(_FLOW4, comment="UDP flows that were cut: a container's next datagram begins none", timed=True),
    "held6": SetSpec(_FLOW6, comment="the same for IPv6", timed=True),
    "no_transit": SetSpec(("meta nfproto",), comment="families whose forwarding docker-fw switched on"),
    "published": SetSpec(("meta l4proto", "th dport"), comment="the host's ports that lead to our containers"),
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


def dockerd_elements(rules: Iterable[Rule]) -> Iterator[Element]:
    """Ports of dockerd's own, which are not its containers'."""
    for rule in rules:
        for port in range(rule.first, rule.last + 1):
            yield Element("dockerd", (PROTO_NUMBER[rule.proto], port))


def network_elements(network: Network) -> frozenset[Element]:
    """What a network needs besides its endpoints."""
    elements = {Element("same_bridge", (network.bridge, network.bridge)), Element("bridges", (network.bridge,))}
    if network.internal:
        elements.add(Element("internal", (network.bridge,)))
    elif network.masquerade and network.gateway4 is not None:
        elements.add(Element("masqueraded", (network.bridge,)))
    return frozenset(elements)


def guarded_elements(network: Guarded) -> frozenset[Element]:
    """What a network of Docker's needs besides its endpoints: the mark overrules Docker's drop where it is routed."""
    modes = ((2, network.mode4), (10, network.mode6))
    return frozenset(
        Element("routed", (family, network.bridge))
        for family, mode in modes
        if mode in ("routed", "nat-unprotected") and not network.internal
    )


def guest_elements(
    network: Guarded,
    endpoint: Endpoint,
    everywhere: tuple[Rule, ...],
    published: bool,
    closed: Collection[Published] | None = None,
) -> frozenset[Element]:
    """What an endpoint on a network of Docker's accepts, and which published ports docker-proxy may not serve.

    `closed`: those of the container's published ports that are closed, where it is on other networks too.
    """
    elements = _accepting(network, endpoint, everywhere) | _dnat(network, endpoint, published)
    shut = frozenset(closed_ports(network, endpoint, everywhere, published) if closed is None else closed)
    for port in endpoint.published:
        if port.host_ip.is_loopback:
            continue
        elements.add(proxied_element(port, "proxied" if port in shut else "served"))
        if network.flat:
            elements.add(Element("neighbour", (network.bridge, PROTO_NUMBER[port.proto], port.host_port)))
    return frozenset(elements)


def proxied_element(port: Published, name: str = "proxied") -> Element:
    """What closes (or, as "served", leaves open) a port of the host on which docker-proxy listens."""
    key: tuple[Value, ...] = (PROTO_NUMBER[port.proto], port.host_port)
    version = port.host_ip.version
    if port.host_ip.is_unspecified:
        return Element(name, (2 if version == 4 else 10, *key))
    return Element(f"{name}{version}", (port.host_ip, *key))


def _accepting(network: Network | Guarded, endpoint: Endpoint, everywhere: tuple[Rule, ...]) -> set[Element]:
    rules = accepted(network, endpoint, everywhere)
    return {
        element
        for address in (endpoint.addr4, endpoint.addr6)
        if address is not None
        for element in rule_elements(address, rules)
    }


def _dnat(network: Network | Guarded, endpoint: Endpoint, published: bool) -> set[Element]:
    """What the published ports themselves open, to who comes by them."""
    if not published or not in_order(network, endpoint):
        return set()
    return {
        Element(f"dnat{address.version}", (address, PROTO_NUMBER[port.proto], port.container_port))
        for port in endpoint.published
        for address in (endpoint.addr4, endpoint.addr6)
        if address is not None and address.version == port.host_ip.version and not port.host_ip.is_loopback
    }


def endpoint_elements(
    network: Network, endpoint: Endpoint, everywhere: tuple[Rule, ...], published: bool = False
) -> frozenset[Element]:
    """What an endpoint's addresses accept, and where its published ports lead."""
    elements = _accepting(network, endpoint, everywhere) | _dnat(network, endpoint, published)
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
        elements.add(Element("published", (PROTO_NUMBER[port.proto], port.host_port)))
        elements.add(Element("self4" if v4 else "self6", (target, target)))
    return frozenset(elements)
