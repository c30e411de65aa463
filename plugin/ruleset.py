"""Policies → the table as data: a static skeleton and the elements of its sets. Pure.

The rules never change while docker-fw runs and know no port; all that is known about containers is elements of
plain hash sets, so that a packet pays the same with one container and with ten thousand (a set with `flags
interval` costs 20 times as much a packet and seconds a change). Port ranges are blocks of 1, 16, 256 and 4096.

Written so that a host's nft 1.0.6 can list it: `typeof` sets, no anonymous verdict maps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from plugin.model import PROTO_NAME, PROTO_NUMBER, Address, Endpoint, Network, Rule
from plugin.policy import accepted

TABLE = "fw"
#: Bridges that docker-fw names itself, from the network's ID. One wildcard closes them all, known or not.
BRIDGE_PREFIX = "fw-"
#: The device group of every bridge of ours, whatever its name: the kernel sets it before the link can carry a packet.
GROUP = 0x66770001

#: A value in a key: an address, an IP protocol or port or family number, an interface name.
Value = Address | int | str

_TIERS = ((1, ""), (16, "_16"), (256, "_256"), (4096, "_4096"))
#: What the policy asks for, in both families: errors (path MTU discovery) and ping, for IPv6 neighbour discovery too.
_ICMP = "destination-unreachable, time-exceeded, parameter-problem, echo-request"
_ICMP6 = f"packet-too-big, {_ICMP}, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert"
_ALLOW4 = ("ip daddr", "meta l4proto", "th dport")
_ALLOW6 = ("ip6 daddr", "meta l4proto", "th dport")


class SetSpec(NamedTuple):
    """A named set, or a map where `data` is not empty: the nft expressions its key and data are typed by."""
    key: tuple[str, ...]
    data: tuple[str, ...] = ()
    comment: str = ""


SETS: dict[str, SetSpec] = {
    **{f"allow4{suffix}": SetSpec(_ALLOW4, comment=f"what IPv4 accepts, in blocks of {n}") for n, suffix in _TIERS},
    **{f"allow6{suffix}": SetSpec(_ALLOW6, comment=f"what IPv6 accepts, in blocks of {n}") for n, suffix in _TIERS},
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
        size = next(n for n, _ in reversed(_TIERS) if first % n == 0 and first + n - 1 <= last)
        yield size, first
        first += size


def rule_elements(address: Address, rules: Iterable[Rule]) -> Iterator[Element]:
    """What makes `address` accept `rules`."""
    family = "allow4" if isinstance(address, IPv4Address) else "allow6"
    suffix = dict(_TIERS)
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


def skeleton(mark: int) -> str:
    """The table without elements, as `nft -f` reads it. `mark` is one bit."""
    sets = "\n".join(_set_text(name, spec) for name, spec in SETS.items())
    allows = "\n".join(
        f"\t\t{f'{ip} daddr'} . meta l4proto . th dport{'' if n == 1 else f' & {0x10000 - n:#x}'} "
        f"@allow{ip[2:] or '4'}{suffix} goto pass"
        for ip in ("ip6", "ip")
        for n, suffix in _TIERS
    )
    return f"""table inet {TABLE} {{
{sets}
	counter drops {{
	}}

	# Going out to a container network by name: closed before anybody knows the network.
	# And who begins a flow in a container's name must be where it is: else the answer finds closed ports open.
	chain forward {{
		type filter hook forward priority filter - 1; policy accept;
		meta mark set meta mark & {0xFFFFFFFF ^ mark:#010x}
		ct state new fib saddr oifname "{BRIDGE_PREFIX}*" fib saddr . iif oif missing goto deny
		ct state new fib saddr oifname @bridges fib saddr . iif oif missing goto deny
		oifname "{BRIDGE_PREFIX}*" goto inbound
		oifgroup {GROUP:#x} goto inbound
		iifname "{BRIDGE_PREFIX}*" goto outbound
		iifgroup {GROUP:#x} goto outbound
		meta nfproto @no_transit goto transit
	}}

	# A redirect counts as related to its flow, but none that is forwarded is right (RFC 1812 section 5.2.7.2).
	chain inbound {{
		ct state established goto pass
		iifname . oifname @same_bridge goto pass
		icmp type redirect goto deny
		ct state related goto pass
		oifname @internal goto deny
		iifname @internal goto deny
		rt type 0 goto deny
		meta l4proto icmp goto icmp_in
		meta l4proto ipv6-icmp goto icmp6_in
		ct state invalid goto deny
{allows}
		goto deny
	}}

	# RFC 4890 section 4.3: errors come before `invalid`, for path MTU discovery must work.
	chain icmp_in {{
		meta nfproto ipv4 icmp type {{ {_ICMP} }} goto pass
		goto deny
	}}

	chain icmp6_in {{
		iifname "{BRIDGE_PREFIX}*" icmpv6 type nd-router-advert goto deny
		iifgroup {GROUP:#x} icmpv6 type nd-router-advert goto deny
		meta nfproto ipv6 icmpv6 type {{ {_ICMP6} }} goto pass
		goto deny
	}}

	# Docker's own bridges decide for themselves: what goes there gets no mark.
	# Without a SYN (nf_conntrack_tcp_loose) a connection that was cut would be the container's own, and back.
	chain outbound {{
		ct state new tcp flags & (fin | syn | rst | ack) != syn goto deny
		iifname @internal goto deny
		icmp type redirect goto deny
		icmpv6 type {{ nd-router-advert, nd-redirect }} goto deny
		meta oifkind "bridge" oifname != @foreign accept
		goto pass
	}}

	# What was never forwarded before docker-fw switched forwarding on stays so.
	chain transit {{
		iifname @dockers accept
		oifname @dockers accept
		goto deny
	}}

	# The mark is honoured by one rule in DOCKER-USER, or by Docker's --bridge-accept-fwmark.
	chain pass {{
		meta mark set meta mark | {mark:#010x} accept
	}}

	chain deny {{
		counter name "drops" drop
	}}

	# A container is no router for its host.
	chain input {{
		type filter hook input priority filter - 1; policy accept;
		iifname "{BRIDGE_PREFIX}*" goto to_host
		iifgroup {GROUP:#x} goto to_host
	}}

	chain to_host {{
		icmp type redirect goto deny
		icmpv6 type {{ nd-router-advert, nd-redirect }} goto deny
	}}

	chain prerouting {{
		type nat hook prerouting priority -101; policy accept;
		fib daddr type local goto publish
	}}

	chain output {{
		type nat hook output priority -101; policy accept;
		fib daddr type local goto publish
	}}

	chain publish {{
		ip daddr 127.0.0.0/8 return
		ip6 daddr ::1 return
		meta nfproto ipv4 dnat ip to ip daddr . meta l4proto . th dport map @publish4
		meta nfproto ipv6 dnat ip6 to ip6 daddr . meta l4proto . th dport map @publish6
		meta nfproto ipv4 dnat ip to meta l4proto . th dport map @publish4_any
		meta nfproto ipv6 dnat ip6 to meta l4proto . th dport map @publish6_any
	}}

	# Hairpin: a container that reaches its own network by a published port must see the answers come back
	# through the host (self: with br_netfilter the bridge hands the packet on, and there is no iifname here).
	# Otherwise only IPv4 is masqueraded; IPv6 leaves as it is.
	chain postrouting {{
		type nat hook postrouting priority srcnat - 1; policy accept;
		ct status dnat iifname . oifname @same_bridge masquerade
		ct status dnat ip saddr . ip daddr @self4 masquerade
		ct status dnat ip6 saddr . ip6 daddr @self6 masquerade
		oifname "{BRIDGE_PREFIX}*" return
		oifgroup {GROUP:#x} return
		meta nfproto ipv4 iifname @masqueraded masquerade
	}}
}}
"""


def _set_text(name: str, spec: SetSpec) -> str:
    typed = " . ".join(spec.key) + (" : " + " . ".join(spec.data) if spec.data else "")
    return f"\t# {spec.comment}\n\t{'map' if spec.data else 'set'} {name} {{\n\t\ttypeof {typed}\n\t}}\n"


def replace(mark: int, elements: Iterable[Element]) -> str:
    """One transaction that puts the table there whole, whatever stood before."""
    return f"table inet {TABLE} {{}}\ndelete table inet {TABLE}\n{document(mark, elements)}"


def document(mark: int, elements: Iterable[Element]) -> str:
    """The table with its elements, sorted, as a file for `nft -f`."""
    by_set: dict[str, list[str]] = {}
    for element in sorted(elements, key=lambda e: (e.set, e.key, e.data)):
        by_set.setdefault(element.set, []).append(element_text(element))
    text = skeleton(mark)
    for name, texts in by_set.items():
        text += f"add element inet {TABLE} {name} {{ {', '.join(texts)} }}\n"
    return text


def element_text(element: Element) -> str:
    """An element in nft's words. Only numbers, addresses and checked interface names can get here."""
    spec = SETS[element.set]
    key = " . ".join(map(_value_text, spec.key, element.key))
    return f"{key} : {' . '.join(map(_value_text, spec.data, element.data))}" if spec.data else key


def _value_text(expression: str, value: Value) -> str:
    if isinstance(value, IPv4Address | IPv6Address):
        return str(value)
    if isinstance(value, int):
        if expression == "meta l4proto":
            return PROTO_NAME[value]
        return {2: "ipv4", 10: "ipv6"}[value] if expression == "meta nfproto" else str(value)
    return f'"{value}"'
