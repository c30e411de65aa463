"""The rules for frames from a port of docker-fw's bridges, as nft's text. They prevent address spoofing. Pure.

They add what the bridge itself does not check: it binds a port to a MAC, but not to addresses. Neighbours of one
network reach each other without a rule of the inet table. So a forged ARP reply or neighbour advertisement (RFC 4861
section 11.1) would divert a neighbour's flows, and a forged source would get what is opened for another container.
"""

from __future__ import annotations

from plugin.kernel.names import PORT_PREFIX
from plugin.nftables.fields import TARGET

_FROM = "iifname . ether saddr . "
#: IGMP: a membership query (RFC 3376), a multicast router's advertisement (RFC 4286), which ICMPv6 has too.
_QUERY, _ROUTER, _ROUTER6 = 0x11, 0x30, 151


def bridge() -> str:
    """Return the chains for bridge ports.

    A port whose container is not known, because the saved state was lost, keeps its network; no source is accepted as
    that container's.
    """
    return f"""\
	# Each known container may send frames only from its own MAC and IP addresses: IPv4, IPv6 and ARP. VLAN tags and
	# other frame types are dropped, because they would bypass the rules.
	chain frames {{
		type filter hook prerouting priority filter; policy accept;
		iifname "{PORT_PREFIX}*" goto bridge_port
	}}

	chain bridge_port {{
		ether type ip meta l4proto != igmp {_FROM}ip saddr @bound4 accept
		ether type ip6 meta l4proto != ipv6-icmp {_FROM}ip6 saddr @bound6 accept
		ether type ip6 meta l4proto ipv6-icmp goto bridge_port_icmp6
		ether type arp goto bridge_port_arp
		ether type ip igmp type != {{ {_QUERY}, {_ROUTER} }} {_FROM}ip saddr @bound4 accept
		goto stray
	}}

	# An ARP probe (RFC 5227 section 1.1) claims no address, so it may have the source 0.0.0.0.
	chain bridge_port_arp {{
		arp htype != 1 goto stray
		{_FROM}arp saddr ip @bound4 iifname . arp saddr ether . arp saddr ip @bound4 accept
		arp operation request arp saddr ip 0.0.0.0 accept
		goto stray
	}}

	# Only the host is a router and a multicast querier here. A query that reaches only the bridge would make it forget
	# group members, and neighbour discovery would fail (RFC 4541). A link without an address may probe for duplicates
	# and join groups (RFC 4862 section 5.4.2, RFC 3810 section 5.2.13). A first fragment may end before the type
	# (RFC 7113 section 2.1): no rule matches such a type, so it is dropped. Only later fragments have no type.
	chain bridge_port_icmp6 {{
		frag frag-off != 0 {_FROM}ip6 saddr @bound6 accept
		icmpv6 type != {{ nd-router-advert, nd-redirect, mld-listener-query, {_ROUTER6} }} goto bridge_port_icmp6_host
		goto stray
	}}

	chain bridge_port_icmp6_host {{
		icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} ip6 nexthdr != ipv6-icmp goto stray
		icmpv6 type nd-neighbor-advert {_FROM}{TARGET} != @bound_targets goto stray
		{_FROM}ip6 saddr @bound6 accept
		ip6 saddr :: icmpv6 type nd-neighbor-solicit {_FROM}{TARGET} @bound_targets accept
		ip6 saddr :: icmpv6 type mld2-listener-report accept
		goto stray
	}}

	chain stray {{
		iifname @ports drop
		meta iiftype @loading_ports drop
	}}
"""
