"""The table's rules for forwarded traffic, as nft's text: inbound, outbound, and between containers. Pure."""

from __future__ import annotations

from plugin.kernel.names import GROUP
from plugin.nftables import lookups
from plugin.protocols import PROTOCOLS

#: The ICMP types that the policy accepts in both families: errors (path MTU discovery) and ping. IPv6 adds neighbour
#: discovery.
_ICMP = "destination-unreachable, time-exceeded, parameter-problem, echo-request"
#: ICMP errors about a flow. A flow that a connection tracking helper expects (FTP's data, for example) is related too,
#: on any port that one end announces to the other: it needs a rule like any flow.
ERRORS = "meta l4proto { icmp, ipv6-icmp } ct state related"
#: The first segment of a connection that replaces one that has ended.
BEGINS_ANEW = "ct state established ct direction original tcp flags & (fin | syn | rst | ack) == syn"
#: Only the host has its own addresses as source. Linux checks this for IPv4 alone (martians). A host address is in
#: each of its networks, from which a port may be open.
NOT_OWN = "meta nfproto ipv6 fib saddr type local goto deny"
#: Without these packets to the host, a container has no network at all: neighbours, multicast groups.
LINK6 = "nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-report, mld2-listener-report"
_ICMP6 = f"packet-too-big, {_ICMP}, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert"
#: Protocols that rules can name, and ICMP, which has rules of its own.
_NAMED = ", ".join((*(each.nft for each in PROTOCOLS), "icmp", "ipv6-icmp"))


def forward(mark: int, *, log: str, no_in: str, no_out: str) -> str:
    """Return the chains for forwarded traffic.

    `log`: the statement that logs a drop. `no_in`, `no_out`: the exceptions for bridges that are unmanaged by name.
    """
    passes = f"meta mark set meta mark | {mark:#010x} return"
    return f"""\
	# Going out to one of our bridges, by the group that it is made with: closed before anybody knows the network. So is
	# every bridge of Docker's; one counts as such until it is known to be somebody else's.
	# The mark lets a packet pass Docker's own firewall, by one rule in DOCKER-USER or Docker's --bridge-accept-fwmark.
	chain forward {{
		type filter hook forward priority filter - 1; policy accept;
		meta mark set meta mark & {0xFFFFFFFF ^ mark:#010x}
		meta nfproto @ban_families jump banned
		ct state established jump established
		ct state != related jump reverse_path
		ct state related meta l4proto != {{ icmp, ipv6-icmp }} jump reverse_path
		ct state new jump quarantine
		iifname @egress_restricted jump egress
		oifgroup {GROUP:#x} meta mark set meta mark | {mark:#010x} goto inbound
		iifgroup {GROUP:#x} goto outbound
		meta iifkind "bridge" iif != @unmanaged{no_in} jump from_container
		meta oifkind "bridge" oif != @unmanaged{no_out} goto to_docker
		iifname @internal goto deny
		meta nfproto @no_transit goto transit
	}}

	# A packet that belongs to no flow comes from where its source belongs (RFC 3704 section 2.2). From outside, the
	# source is no container's: otherwise the answer to a forged packet would be an established flow to a closed port of
	# that container. From a bridge, the host has a route to the source through that bridge: otherwise a container has
	# what is opened for another address. Routers and VPNs that do not masquerade need such a route.
	chain reverse_path {{
		iifgroup {GROUP:#x} goto reverse_path_bridge
		meta iifkind "bridge" iif != @unmanaged{no_in} goto reverse_path_bridge
		fib saddr oifname @protected_bridges fib saddr . iif oif missing goto deny
	}}

	# A neighbour is looked for from any address, and from none. DHCP's 0.0.0.0 is not missing (nft_fib4_eval).
	# Within one network anybody may be the source, unless not all may leave it: what answers a packet that a container
	# forged from outside, to itself by way of the host, would leave as established. Link-local sources do not.
	chain reverse_path_bridge {{
		icmpv6 type {{ {LINK6} }} return
		ip6 saddr fe80::/10 iifname . oifname @same_bridge return
		iifname != @egress_restricted iifname != @internal iifname . oifname @same_bridge return
		fib saddr . iif oif missing goto deny
	}}

	# Nothing from them and nothing to them, before everything.
	chain banned {{
		meta nfproto @loading jump loading
{lookups.bans(nets=False)}
		meta nfproto @ban_prefix_families jump banned_prefixes
	}}

	chain banned_prefixes {{
{lookups.bans(nets=True)}
	}}

	# Neighbour discovery is the host's own; a lost packet of anything else is sent again.
	chain loading {{
		{BEGINS_ANEW} goto deny
		ct state established return
		icmpv6 type {{ nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert }} return
		goto deny
	}}

	# A flow that was cut has no state left, so that the next packet of who answered in it would begin one of its own
	# the other way round, in which all that comes back is established. TCP is not among them: it begins with a SYN.
	chain quarantine {{
		meta l4proto {{ tcp, icmp, ipv6-icmp }} return
		meta nfproto ipv6 goto quarantine6
		goto quarantine4
	}}

	chain quarantine6 {{
{lookups.quarantine(6)}
	}}

	chain quarantine4 {{
{lookups.quarantine(4)}
	}}

	# Docker accepts the established packets of its own networks by itself. A connection begins with a SYN: one from the
	# same port as a connection that the other side reset is of the old one to conntrack (tcp_conntracks, sIG).
	chain established {{
		{BEGINS_ANEW} return
		oifgroup {GROUP:#x} goto accept_marked
		iifgroup {GROUP:#x} goto established_outbound
		accept
	}}

	# Docker's drop is overruled where a network's own addresses are to be reached, but never between two of Docker's.
	chain to_docker {{
		meta iifkind "bridge" iif != @unmanaged{no_in} goto inbound
		meta nfproto . oifname @routed meta mark set meta mark | {mark:#010x}
		goto inbound
	}}

	# A redirect counts as related to its flow, but none that is forwarded is right (RFC 1812 section 5.2.7.2).
	# What Docker's networks accept stands while docker-fw follows Docker: nobody else tells when a container goes.
	chain inbound {{
		iifname . oifname @same_bridge accept
		oifgroup {GROUP:#x} meta iifkind "bridge" iif != @unmanaged{no_in} jump from_container
		oifname @egress_restricted ct state new tcp flags & (fin | syn | rst | ack) != syn goto deny
		icmp type redirect goto deny
		{ERRORS} goto to_known_address
		oifname @internal goto deny
		iifname @internal goto deny
		rt type 0 goto deny
		meta l4proto icmp goto icmp_in
		meta l4proto ipv6-icmp goto icmp6_in
		ct state invalid goto deny
		oifgroup != {GROUP:#x} meta nfproto != @lease goto deny
		{NOT_OWN}
		ct status dnat ip daddr . meta l4proto . th dport @allow_published4 goto permit
		ct status dnat ip6 daddr . meta l4proto . th dport @allow_published6 goto permit
		meta nfproto ipv6 goto inbound6
		meta nfproto ipv4 goto inbound4
		goto deny
	}}

	chain inbound6 {{
{lookups.allowed(6)}
		meta nfproto @peer_families jump peer_ports6
		meta l4proto != {{ {_NAMED} }} ip6 daddr @allow_other6 goto permit
		goto deny
	}}

	chain inbound4 {{
{lookups.allowed(4)}
		meta nfproto @peer_families jump peer_ports4
		meta l4proto != {{ {_NAMED} }} ip daddr @allow_other4 goto permit
		goto deny
	}}

	# What is accepted from some: the port first, then from whom.
	chain peer_ports6 {{
{lookups.peer_ports(6)}
	}}

	chain peer_ports4 {{
{lookups.peer_ports(4)}
	}}

{lookups.peer_chains(6, "from", "goto permit")}
{lookups.peer_chains(4, "from", "goto permit")}
	chain permit {{
		accept
	}}

	# Accepted, but a source may open just so many flows in a time. This is reached by a chain that is there only while
	# ports have a rate (plugin.limits), and comes after the chain above: what that drops is not counted.
	chain rate_limit {{
		{BEGINS_ANEW} goto rate_limit_new
		ct state established goto rate_limit_known
		goto rate_limit_new
	}}

	chain rate_limit_new {{
		iifname . oifname @same_bridge accept
		meta nfproto ipv6 goto rate_limit6
		goto rate_limit4
	}}

	# Which sources have completed a handshake.
	chain rate_limit_known {{
		meta l4proto != tcp accept
		ct direction reply accept
		ct status & assured == 0x0 accept
		ip6 daddr @rate_proven6 goto rate_limit6
		ip daddr @rate_proven4 goto rate_limit4
	}}

	chain rate_limit6 {{
{lookups.rate_limit(6)}
	}}

	chain rate_limit4 {{
{lookups.rate_limit(4)}
	}}

	# On a network where not everybody may begin everything, nobody may who is not known to. Our bit of the mark says
	# that a rule was found.
	chain egress {{
		iifname . oifname @same_bridge return
		{ERRORS} return
		iifgroup != {GROUP:#x} meta nfproto != @lease goto deny
		iifname . ip6 saddr @egress_all6 return
		iifname . ip saddr @egress_all4 return
		jump egress_allow
		meta mark & {mark:#010x} == 0x0 goto deny
		meta mark set meta mark & {0xFFFFFFFF ^ mark:#010x}
	}}

	chain egress_allow {{
		ct state invalid return
		meta nfproto ipv6 goto egress_allow6
		goto egress_allow4
	}}

	chain egress_allow6 {{
{lookups.egress_allow(6, passes)}
	}}

	chain egress_allow4 {{
{lookups.egress_allow(4, passes)}
	}}

{lookups.peer_chains(6, "egress_to", passes)}
{lookups.peer_chains(4, "egress_to", passes)}
	# RFC 4890 section 4.3: errors come before `invalid`, for path MTU discovery must work.
	chain icmp_in {{
		meta nfproto ipv4 icmp type {{ {_ICMP} }} goto to_known_address
		goto deny
	}}

	chain icmp6_in {{
		iifgroup {GROUP:#x} icmpv6 type nd-router-advert goto deny
		meta iifkind "bridge" iif != @unmanaged{no_in} icmpv6 type nd-router-advert goto deny
		meta nfproto ipv6 icmpv6 type {{ {_ICMP6} }} goto to_known_address
		goto deny
	}}

	chain outbound {{
		iifname @internal goto deny
		jump from_container
		meta oifkind "bridge" oif != @unmanaged{no_out} goto inbound
		goto accept_marked
	}}

	# What goes to one of Docker's bridges is Docker's to decide.
	chain established_outbound {{
		meta oifkind "bridge" oif != @unmanaged{no_out} accept
		goto accept_marked
	}}

	# A connection begins with a SYN: the next segment of one that was cut would otherwise bring it back as the
	# container's own (nf_conntrack_tcp_loose).
	chain from_container {{
		ct state new tcp flags & (fin | syn | rst | ack) != syn goto no_syn
		icmp type redirect goto deny
		icmpv6 type {{ nd-router-advert, nd-redirect }} goto deny
	}}

	# A container is told, so that it connects again at once. Who is on a bridge that nobody has claimed yet may be a
	# virtual machine, and its connection passes when that is known.
	chain no_syn {{
		iifgroup {GROUP:#x} counter name "drops" reject with tcp reset
		iifname @dockers counter name "drops" reject with tcp reset
		goto deny
	}}

	# What was never forwarded before docker-fw switched forwarding on stays so.
	chain transit {{
		iifname @dockers accept
		goto deny
	}}

	chain accept_marked {{
		meta mark set meta mark | {mark:#010x} accept
	}}

	# Accepted where a container is known to have the address. Any other address is a new entry in the host's neighbour
	# table (RFC 6583), so few packets go there. `!=` leaves an element's counter alone; `==` would count a drop.
	chain to_known_address {{
		ip6 daddr != @ingress_drops6 goto to_unknown_address
		ip daddr != @ingress_drops4 goto to_unknown_address
		accept
	}}

	# A limit for each network, and one for all together: the kernel keeps 1,024 entries by default, of all links.
	chain to_unknown_address {{
		update @unknown_address_limit {{ oifname limit rate 10/second burst 50 packets }} goto to_unknown_limited
		goto deny
	}}

	chain to_unknown_limited {{
		limit rate 30/second burst 100 packets accept
		goto deny
	}}

	# Counted for whom it was, and told to who listens, a few for each container in a second.
	chain deny {{
		ip6 daddr @ingress_drops6 goto deny_inbound
		ip daddr @ingress_drops4 goto deny_inbound
		ip6 saddr @egress_drops6 goto deny_egress
		ip saddr @egress_drops4 goto deny_egress
		counter name "drops" drop
	}}

	chain deny_inbound {{
		{lookups.logged("log_limit6", "ip6 daddr", log)}
		{lookups.logged("log_limit4", "ip daddr", log)}
		counter name "drops" drop
	}}

	chain deny_egress {{
		{lookups.logged("log_limit_egress6", "ip6 saddr", log)}
		{lookups.logged("log_limit_egress4", "ip saddr", log)}
		counter name "drops" drop
	}}
"""
