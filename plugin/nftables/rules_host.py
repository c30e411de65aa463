"""The table's rules for what goes to the host and comes from it, and for published ports, as nft's text. Pure."""

from __future__ import annotations

from plugin.kernel.names import GROUP
from plugin.nftables import lookups
from plugin.nftables.rules_forward import BEGINS_ANEW, ERRORS, LINK6, NOT_OWN
from plugin.protocols import PROTOCOLS

#: What docker-proxy serves.
_PUBLISHABLE = ", ".join(each.nft for each in PROTOCOLS if each.socket)


def host(mark: int, *, log: str, unknown: str, no_in: str) -> str:
    """`log`: the statement that tells of a drop. `unknown`: the rule by which docker-proxy is known. `no_in`: but for
    bridges that are left alone by name.
    """
    passes = f"meta mark set meta mark | {mark:#010x} return"
    return f"""\
	# What is for a bridge itself (IEEE 802.1D table 7-10) comes as from its port, past all that is said of the bridge;
	# no IP packet has such a target.
	# A container is no router for its host. And docker-proxy listens on published ports: what is not sent on
	# by DNAT arrives here, and is as closed as the container's port.
	chain input {{
		type filter hook input priority filter - 1; policy accept;
		iifname "lo" accept
		meta nfproto @banning jump banned
		meta pkttype multicast ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 goto deny
		ct state new,invalid,untracked jump reverse_path
		iifgroup {GROUP:#x} jump to_host
		meta iifkind "bridge" iif != @foreign{no_in} jump to_host
		meta nfproto . meta l4proto . th dport @proxied goto to_proxy
		ip daddr . meta l4proto . th dport @proxied4 goto to_proxy
		ip6 daddr . meta l4proto . th dport @proxied6 goto to_proxy
		ct state new goto begun
		{BEGINS_ANEW} goto begun
		ct state invalid,untracked tcp flags & (fin | syn | rst | ack) == syn goto begun
	}}

	chain begun {{
		meta nfproto != @watched jump unwatched
{unknown}	}}

	chain to_host {{
		icmp type redirect goto deny
		icmpv6 type {{ nd-router-advert, nd-redirect }} goto deny
		iifname @confined goto confined_host
	}}

	chain confined_host {{
		ct state established return
		{ERRORS} return
		icmpv6 type {{ {LINK6} }} return
		meta l4proto igmp return
		iifgroup != {GROUP:#x} meta nfproto != @watched goto deny
		iifname . ip6 saddr @free6 return
		iifname . ip saddr @free4 return
		meta mark set meta mark & {0xFFFFFFFF ^ mark:#010x}
		jump to_host_only
		jump leaving
		meta mark & {mark:#010x} == 0x0 goto deny
		meta mark set meta mark & {0xFFFFFFFF ^ mark:#010x}
	}}

	chain to_host_only {{
		ct state invalid return
{lookups.to_host(6, passes)}
{lookups.to_host(4, passes)}
	}}

	chain to_proxy {{
		ct state established jump standing
{_neighbours("accept")}
		ct state invalid goto deny
		meta nfproto != @watched goto deny_host
		jump not_own
		meta nfproto ipv6 goto via6
		goto via4
	}}

	# What the host says to itself in a VRF comes by the VRF's link.
	chain not_own {{
		meta iifkind "vrf" return
		{NOT_OWN}
	}}

	chain standing {{
		{BEGINS_ANEW} return
		accept
	}}

	chain via6 {{
{lookups.via(6)}
		goto deny_host
	}}

	chain via4 {{
{lookups.via(4)}
		goto deny_host
	}}

	chain permit_host {{
		accept
	}}

	# As `rating` is for what is forwarded.
	chain rating_host {{
		iifname "lo" accept
		{BEGINS_ANEW} goto counted_host
		ct state established goto remembering_host
		goto counted_host
	}}

	chain counted_host {{
{_neighbours("accept")}
		goto rated_host
	}}

	chain remembering_host {{
		meta l4proto != tcp accept
		ct direction reply accept
		ct status & assured == 0x0 accept
		goto rated_host
	}}

	chain rated_host {{
		meta nfproto . meta l4proto . th dport vmap @rated_host
		ip daddr . meta l4proto . th dport vmap @rated_host4
		ip6 daddr . meta l4proto . th dport vmap @rated_host6
	}}

	# Nobody tells when the container goes whose port it is, however docker-proxy is known.
	chain unwatched {{
{_neighbours("return")}
		meta nfproto . meta l4proto . th dport @served goto deny_host
		ip daddr . meta l4proto . th dport @served4 goto deny_host
		ip6 daddr . meta l4proto . th dport @served6 goto deny_host
	}}

	# docker-proxy is not known by its control group here: whatever listens on a port of the host may be one, but for
	# the host's own programs. A flow that is under way began before, or was asked for.
	chain to_fresh {{
		tcp flags & (fin | syn | rst | ack) != syn return
		meta nfproto . meta l4proto . th dport @listening return
		ip daddr . meta l4proto . th dport @listening4 return
		ip6 daddr . meta l4proto . th dport @listening6 return
		goto to_unknown
	}}

	# docker-proxy is known by its control group before anybody knows for what it listens.
	chain to_unknown {{
		meta nfproto . meta l4proto . th dport @served accept
		ip daddr . meta l4proto . th dport @served4 accept
		ip6 daddr . meta l4proto . th dport @served6 accept
{_neighbours("accept")}
		meta l4proto . th dport @dockerd accept
		goto deny_host
	}}

	# A published port is the host's: whose it is, is known by the port.
	chain deny_host {{
		update @noticed_host {{ meta l4proto . th dport limit rate 5/second burst 20 packets }} {log}
		counter name "drops" drop
	}}

	# docker-proxy's listening side begins nothing: what it says after its flow was cut would bring the flow back. Nor
	# do the host's programs bring back what a container began and may not any more.
	chain said {{
		type filter hook output priority filter - 1; policy accept;
		ct state new oifname != "lo" jump held
		ct state new oifname @confined jump to_confined
		ct state new oifname != "lo" meta l4proto {{ {_PUBLISHABLE} }} goto by_proxy
	}}

	chain to_confined {{
		tcp flags & (fin | syn | rst | ack) != syn goto deny
	}}

	chain by_proxy {{
{_neighbours("accept", "oifname", "saddr", "sport")}
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
"""


def _neighbours(verdict: str, link: str = "iifname", end: str = "daddr", port: str = "dport") -> str:
    """Who shares a network with the container that publishes this port on this address of the host."""
    key = f"meta l4proto . th {port}"
    return f"""\
		{link} . meta nfproto . {key} @neighbour {verdict}
		{link} . ip {end} . {key} @neighbour4 {verdict}
		{link} . ip6 {end} . {key} @neighbour6 {verdict}"""
