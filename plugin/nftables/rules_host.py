"""The table's rules for traffic to and from the host, and for published ports, as nft's text. Pure."""

from __future__ import annotations

from plugin.kernel.names import GROUP
from plugin.nftables import lookups
from plugin.nftables.features import Features
from plugin.nftables.rules_forward import ELSEWHERE, ERRORS, LINK6, NEW_SYN, NOT_OWN, PORT_0, SYN
from plugin.protocols import PROTOCOLS

#: Where docker-proxy is identified by its control group.
_SERVED_PORT = """\
	# What is left of an ended connection (TIME-WAIT) has no control group, and a new connection from the same source
	# goes to whichever program listens now, maybe docker-proxy. Only a whole socket has a mark.
	chain served_port {
		socket mark >= 0x0 return
		socket transparent 0 goto unlisted_proxy
	}

"""
#: Where sockets can be matched.
_INPUT_LAST = """\
	# The kernel looks the socket up after the rules. Without this chain docker-proxy could open its socket in between.
	# It is after IP Virtual Server (priorities 98 and 99), which takes packets to addresses and ports without a socket.
	chain input_last {{
		type filter hook input priority 150; policy accept;
		{flows}ct state established jump host_established
		iifname "lo" accept
{new}	}}

	chain new_to_host_last {{
		meta l4proto {{ tcp, udp }} jump no_listener
		goto new_to_host
	}}

	# The kernel would refuse the packet a moment later. Packets to the address of an ipvlan (mode l3s) are not for the
	# host. A socket that is bound to a link in a VRF is not found here. A reset to a link-local address would leave by
	# any link.
	chain no_listener {{
		socket transparent >= 0 return
		meta iifkind "vrf" return
		fib daddr type != {{ local, broadcast, anycast, multicast }} return
		meta pkttype != host drop
		ip6 saddr fe80::/10 reject
		meta l4proto tcp reject with tcp reset
		reject
	}}

"""
#: The protocols that docker-proxy serves.
_PUBLISHABLE = ", ".join(each.nft for each in PROTOCOLS if each.socket)


def host(features: Features, *, log: str, unknown: str, no_in: str) -> str:
    """Return the chains for the host.

    `log`: the statement that logs a drop. `unknown`: the rule that identifies docker-proxy. `no_in`: the exceptions
    for bridges that are unmanaged by name.
    """
    checked = "\t\tct state new,invalid,untracked jump reverse_path\n" if features.late_fib else ""
    labelled = "\t\tct state new,related jump label_elsewhere\n" if features.labels else ""
    refused = f"\t\t{ELSEWHERE} jump elsewhere\n" if features.labels else ""
    last = _INPUT_LAST.format(flows=features.flows, new=_new("new_to_host_last")) if features.listeners else ""
    former = _SERVED_PORT if features.cgroups and features.listeners else ""
    return f"""\
	# A frame to a reserved bridge address (IEEE 802.1D table 7-10) arrives from the bridge port, not from the bridge,
	# so the rules for bridges would not match it. No valid IP packet has such a destination. docker-proxy listens on
	# published ports: traffic to them without DNAT arrives here, and the container's rules apply.
	chain input {{
		type filter hook input priority filter - 2; policy accept;
		iifname "lo" accept
		meta pkttype multicast ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 goto deny
{checked}{labelled}		iifgroup {GROUP:#x} jump container_to_host
		meta iifkind "bridge" iif != @unmanaged{no_in} jump container_to_host
		{features.flows}ct state established jump host_established
		meta nfproto . meta l4proto . th dport @host_closed goto host_closed
		ip daddr . meta l4proto . th dport @host_closed4 goto host_closed
		ip6 daddr . meta l4proto . th dport @host_closed6 goto host_closed
{_new("new_to_host")}	}}

{last}	chain new_to_host {{
		meta nfproto != @lease jump lease_expired
{unknown}	}}

	# A container is not a router for the host, so it may not send redirects or router advertisements.
	chain container_to_host {{
{refused}		icmp type redirect goto deny
		icmpv6 type {{ nd-router-advert, nd-redirect }} goto deny
	}}

	chain egress_to_host {{
		{features.flows}ct state established accept
		{ERRORS} accept
		icmpv6 type {{ {LINK6} }} accept
		meta l4proto igmp accept
		iifgroup != {GROUP:#x} meta nfproto != @lease goto deny
		iifname . ip6 saddr @egress_all6 accept
		iifname . ip saddr @egress_all4 accept
		jump egress_allow_host
		jump egress_allow
		goto deny
	}}

	chain egress_allow_host {{
		ct state invalid return
		{PORT_0} return
{lookups.egress_host(6, "accept")}
{lookups.egress_host(4, "accept")}
	}}

	chain host_closed {{
{_neighbours("accept")}
		ct state invalid goto deny
		meta nfproto != @lease goto deny_host
		jump not_own_address
		meta nfproto ipv6 goto host_from6
		goto host_from4
	}}

	# Packets from the host to itself in a VRF arrive from the VRF's link.
	chain not_own_address {{
		meta iifkind "vrf" return
		{NOT_OWN}
	}}

	chain host_established {{
		{SYN} ct direction original return
		accept
	}}

	chain host_from6 {{
{lookups.host_from(6)}
		goto deny_host
	}}

	chain host_from4 {{
{lookups.host_from(4)}
		goto deny_host
	}}

	chain accept_host {{
		accept
	}}

	# Like `rate_limit`, for ports of the host.
	chain rate_limit_host {{
		iifname "lo" accept
		{NEW_SYN} goto rate_limit_host_new
		ct state established goto rate_limit_host_known
		goto rate_limit_host_new
	}}

	chain rate_limit_host_new {{
{_neighbours("accept")}
		goto rate_limit_host_ports
	}}

	chain rate_limit_host_known {{
		meta l4proto != tcp accept
		ct direction reply accept
		ct status & assured == 0x0 accept
		goto rate_limit_host_ports
	}}

	chain rate_limit_host_ports {{
		meta nfproto . meta l4proto . th dport vmap @rate_limit_host
		ip daddr . meta l4proto . th dport vmap @rate_limit_host4
		ip6 daddr . meta l4proto . th dport vmap @rate_limit_host6
	}}

	# While docker-fw does not receive Docker's events, it does not see that a container with a published port leaves.
	# So these ports are closed, however docker-proxy is identified.
	chain lease_expired {{
{_neighbours("return")}
		meta nfproto . meta l4proto . th dport @host_open goto deny_host
		ip daddr . meta l4proto . th dport @host_open4 goto deny_host
		ip6 daddr . meta l4proto . th dport @host_open6 goto deny_host
	}}

	# docker-proxy is not identified by its control group here: any listener may be docker-proxy, except the host's own
	# known programs. A segment without SYN belongs to an accepted connection, or to one that the host opened.
	chain new_listener {{
		tcp flags & (fin | syn | rst | ack) != syn return
		meta nfproto . meta l4proto . th dport @host_own return
		ip daddr . meta l4proto . th dport @host_own4 return
		ip6 daddr . meta l4proto . th dport @host_own6 return
		goto unlisted_proxy
	}}

{former}	# docker-proxy is identified by its control group before it is known which container it serves. A list of
	# sources is asked in `input_last`; the chain `input` has asked it before.
	chain unlisted_proxy {{
		meta nfproto . meta l4proto . th dport @host_open accept
		ip daddr . meta l4proto . th dport @host_open4 accept
		ip6 daddr . meta l4proto . th dport @host_open6 accept
{_neighbours("accept")}
		meta l4proto . th dport @dockerd_ports accept
		meta nfproto . meta l4proto . th dport @host_closed goto host_closed
		ip daddr . meta l4proto . th dport @host_closed4 goto host_closed
		ip6 daddr . meta l4proto . th dport @host_closed6 goto host_closed
		goto deny_host
	}}

	# A published port is on a host address, so drops are logged for each port, not for each container.
	chain deny_host {{
		{lookups.logged("log_limit_host", "meta l4proto . th dport", log)}
		counter name "drops" drop
	}}

	# docker-proxy opens no connection from a published port: its packets after the flow was cut would reopen the flow.
	chain output_filter {{
		type filter hook output priority filter - 2; policy accept;
		ct state new goto output_new
	}}

	chain output_new {{
		meta nfproto @quarantine_families oifname != "lo" jump quarantine
		oifname != "lo" meta l4proto {{ {_PUBLISHABLE} }} goto output_docker_proxy
	}}

	chain output_docker_proxy {{
		meta nfproto . meta l4proto . th sport @host_closed goto output_closed
		ip saddr . meta l4proto . th sport @host_closed4 goto output_closed
		ip6 saddr . meta l4proto . th sport @host_closed6 goto output_closed
	}}

	chain output_closed {{
{_neighbours("accept", "oifname", "saddr", "sport")}
		goto deny
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

	# Hairpin: if a container reaches its own network by a published port, the replies must return through the host.
	# With br_netfilter there is no iifname here for a container that reaches itself, so that is matched by address.
	# Other traffic to outside is masqueraded for IPv4 only; IPv6 keeps its source.
	chain postrouting {{
		type nat hook postrouting priority srcnat - 1; policy accept;
		ct status dnat jump hairpin
		oifgroup {GROUP:#x} return
		meta nfproto ipv4 iifname @masqueraded masquerade
	}}

	chain hairpin {{
		iifname . oifname @same_bridge masquerade
		ip saddr . ip daddr @hairpin4 masquerade
		ip6 saddr . ip6 daddr @hairpin6 masquerade
	}}
"""


def _new(chain: str) -> str:
    """Return the rules for packets that may open a flow."""
    return f"""\
		ct state new goto {chain}
		{NEW_SYN} goto {chain}
		ct state invalid,untracked tcp flags & (fin | syn | rst | ack) == syn goto {chain}
"""


def _neighbours(verdict: str, link: str = "iifname", end: str = "daddr", port: str = "dport") -> str:
    """Return the rules for containers that share a network with the one that publishes a port.

    The port is published on the host address that the packet is sent to.
    """
    key = f"meta l4proto . th {port}"
    return f"""\
		{link} . meta nfproto . {key} @host_neighbours {verdict}
		{link} . ip {end} . {key} @host_neighbours4 {verdict}
		{link} . ip6 {end} . {key} @host_neighbours6 {verdict}"""
