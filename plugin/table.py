"""The table as text, as `nft -f` reads it: the static rules, and elements in nft's words. Pure.

Written so that a host's nft 1.0.6 can list it: `typeof` sets, no anonymous verdict maps.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from plugin.model import PROTO_NAME
from plugin.ruleset import CGROUP, GROUP, SETS, TABLE, TIERS, Element, SetSpec, Value

#: What the policy asks for, in both families: errors (path MTU discovery) and ping, for IPv6 neighbour discovery too.
_ICMP = "destination-unreachable, time-exceeded, parameter-problem, echo-request"
_ICMP6 = f"packet-too-big, {_ICMP}, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert"


def skeleton(mark: int, *, cgroups: bool = True, foreign: Iterable[str] = ()) -> str:
    """The table without elements, as `nft -f` reads it. `mark` is one bit.

    `cgroups`: the kernel can tell a socket's control group (≥ 5.13).
    `foreign`: bridges that are left alone by name, where their indices cannot be known yet (`plugin.boot`).
    """
    names = ", ".join(f'"{name}"' for name in sorted(foreign))
    no_out, no_in = (f" {way}ifname != {{ {names} }}" if names else "" for way in "oi")
    sets = "\n".join(_set_text(name, spec) for name, spec in SETS.items() if cgroups or CGROUP not in spec.key)
    unknown = f"\t\tct state new {CGROUP} @proxies goto to_unknown\n" if cgroups else ""
    allows = "\n".join(
        f"\t\t{f'{ip} daddr'} . meta l4proto . th dport{'' if n == 1 else f' & {0x10000 - n:#x}'} "
        f"@allow{ip[2:] or '4'}{suffix} accept"
        for ip in ("ip6", "ip")
        for n, suffix in TIERS
    )
    return f"""table inet {TABLE} {{
{sets}
	counter drops {{
	}}

	# Going out to one of our bridges, by the group that it is made with: closed before anybody knows the network. So is
	# every bridge of Docker's; one counts as such until it is known to be somebody else's.
	# And who begins a flow in a container's name must be where that container is (RFC 3704 section 2.2): otherwise the
	# way back of a forged packet would be an established flow to the container's closed ports.
	# The mark lets a packet pass Docker's own firewall, by one rule in DOCKER-USER or Docker's --bridge-accept-fwmark.
	chain forward {{
		type filter hook forward priority filter - 1; policy accept;
		meta mark set meta mark & {0xFFFFFFFF ^ mark:#010x}
		ct state established goto established
		ct state new fib saddr oifname @bridges fib saddr . iif oif missing goto deny
		oifgroup {GROUP:#x} meta mark set meta mark | {mark:#010x} goto inbound
		iifgroup {GROUP:#x} goto outbound
		meta iifkind "bridge" iif != @foreign{no_in} jump from_container
		meta oifkind "bridge" oif != @foreign{no_out} goto to_docker
		meta nfproto @no_transit goto transit
	}}

	# Docker accepts the established packets of its own networks by itself.
	chain established {{
		oifgroup {GROUP:#x} goto marked
		iifgroup {GROUP:#x} goto on_its_way
		accept
	}}

	# Docker's drop is overruled where a network's own addresses are to be reached, but never between two of Docker's.
	chain to_docker {{
		meta iifkind "bridge" iif != @foreign{no_in} goto inbound
		meta nfproto . oifname @routed meta mark set meta mark | {mark:#010x}
		goto inbound
	}}

	# A redirect counts as related to its flow, but none that is forwarded is right (RFC 1812 section 5.2.7.2).
	chain inbound {{
		iifname . oifname @same_bridge accept
		icmp type redirect goto deny
		ct state related accept
		oifname @internal goto deny
		iifname @internal goto deny
		rt type 0 goto deny
		meta l4proto icmp goto icmp_in
		meta l4proto ipv6-icmp goto icmp6_in
		ct state invalid goto deny
{allows}
		ct status dnat ip daddr . meta l4proto . th dport @dnat4 accept
		ct status dnat ip6 daddr . meta l4proto . th dport @dnat6 accept
		goto deny
	}}

	# RFC 4890 section 4.3: errors come before `invalid`, for path MTU discovery must work.
	chain icmp_in {{
		meta nfproto ipv4 icmp type {{ {_ICMP} }} accept
		goto deny
	}}

	chain icmp6_in {{
		iifgroup {GROUP:#x} icmpv6 type nd-router-advert goto deny
		meta iifkind "bridge" iif != @foreign{no_in} icmpv6 type nd-router-advert goto deny
		meta nfproto ipv6 icmpv6 type {{ {_ICMP6} }} accept
		goto deny
	}}

	chain outbound {{
		iifname @internal goto deny
		jump from_container
		meta oifkind "bridge" oif != @foreign{no_out} goto inbound
		goto marked
	}}

	# What goes to one of Docker's bridges is Docker's to decide.
	chain on_its_way {{
		meta oifkind "bridge" oif != @foreign{no_out} accept
		goto marked
	}}

	# A connection begins with a SYN: the next segment of one that was cut would otherwise bring it back as the
	# container's own (nf_conntrack_tcp_loose).
	chain from_container {{
		ct state new tcp flags & (fin | syn | rst | ack) != syn goto not_begun
		ct state new meta l4proto udp ip saddr . th sport . ip daddr . th dport @held4 goto deny
		ct state new meta l4proto udp ip6 saddr . th sport . ip6 daddr . th dport @held6 goto deny
		icmp type redirect goto deny
		icmpv6 type {{ nd-router-advert, nd-redirect }} goto deny
	}}

	# A container is told, so that it connects again at once. Who is on a bridge that nobody has claimed yet may be a
	# virtual machine, and its connection passes when that is known.
	chain not_begun {{
		iifgroup {GROUP:#x} counter name "drops" reject with tcp reset
		iifname @dockers counter name "drops" reject with tcp reset
		goto deny
	}}

	# What was never forwarded before docker-fw switched forwarding on stays so.
	chain transit {{
		iifname @dockers accept
		goto deny
	}}

	chain marked {{
		meta mark set meta mark | {mark:#010x} accept
	}}

	chain deny {{
		counter name "drops" drop
	}}

	# A container is no router for its host. And docker-proxy listens on published ports: what is not sent on by DNAT
	# arrives here, and is as closed as the container's port.
	chain input {{
		type filter hook input priority filter - 1; policy accept;
		iifname "lo" accept
		iifgroup {GROUP:#x} jump to_host
		meta iifkind "bridge" iif != @foreign{no_in} jump to_host
		meta nfproto . meta l4proto . th dport @proxied goto to_proxy
		ip daddr . meta l4proto . th dport @proxied4 goto to_proxy
		ip6 daddr . meta l4proto . th dport @proxied6 goto to_proxy
{unknown}	}}

	chain to_host {{
		icmp type redirect goto deny
		icmpv6 type {{ nd-router-advert, nd-redirect }} goto deny
	}}

	chain to_proxy {{
		ct state established,related accept
		iifname . meta l4proto . th dport @neighbour accept
		goto deny
	}}

	# docker-proxy is known by its control group before anybody knows for what it listens.
	chain to_unknown {{
		meta nfproto . meta l4proto . th dport @served accept
		ip daddr . meta l4proto . th dport @served4 accept
		ip6 daddr . meta l4proto . th dport @served6 accept
		iifname . meta l4proto . th dport @neighbour accept
		meta l4proto . th dport @dockerd accept
		goto deny
	}}

	# docker-proxy's listening side begins nothing: what it says after its flow was cut would bring the flow back.
	chain said {{
		type filter hook output priority filter - 1; policy accept;
		ct state new oifname != "lo" meta l4proto {{ tcp, udp, sctp }} goto by_proxy
	}}

	chain by_proxy {{
		oifname . meta l4proto . th sport @neighbour accept
		meta nfproto . meta l4proto . th sport @proxied goto deny
		ip saddr . meta l4proto . th sport @proxied4 goto deny
		ip6 saddr . meta l4proto . th sport @proxied6 goto deny
	}}

	chain prerouting {{
		type nat hook prerouting priority -101; policy accept;
		meta l4proto . th dport @published fib daddr type local goto publish
	}}

	chain output {{
		type nat hook output priority -101; policy accept;
		meta l4proto . th dport @published fib daddr type local goto publish
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
		oifgroup {GROUP:#x} return
		meta nfproto ipv4 iifname @masqueraded masquerade
	}}
}}
"""


def _set_text(name: str, spec: SetSpec) -> str:
    kind = "map" if spec.data else "set"
    typed = " . ".join(spec.key) + (" : " + " . ".join(spec.data) if spec.data else "")
    flags = "\t\tflags timeout\n" if spec.timed else ""
    return f"\t# {spec.comment}\n\t{kind} {name} {{\n\t\ttypeof {typed}\n{flags}\t}}\n"


def replace(mark: int, elements: Iterable[Element], *, cgroups: bool = True) -> str:
    """One transaction that puts the table there whole, whatever stood before."""
    return f"table inet {TABLE} {{}}\ndelete table inet {TABLE}\n{document(mark, elements, cgroups=cgroups)}"


def document(
    mark: int, elements: Iterable[Element], *, cgroups: bool = True, foreign: Iterable[str] = ()
) -> str:
    """The table with its elements, sorted, as a file for `nft -f`; without those that nft has no words for."""
    by_set: dict[str, list[str]] = {}
    wordy = (element for element in elements if not SETS[element.set].raw)
    for element in sorted(wordy, key=lambda e: (e.set, e.key, e.data)):
        by_set.setdefault(element.set, []).append(element_text(element))
    text = skeleton(mark, cgroups=cgroups, foreign=foreign)
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
