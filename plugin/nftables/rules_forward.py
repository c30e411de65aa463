"""The table's rules for forwarded traffic, as nft's text: inbound, outbound, and between containers. Pure."""

from __future__ import annotations

from plugin.kernel.names import GROUP
from plugin.nftables import lookups
from plugin.nftables.features import Features
from plugin.protocols import PROTOCOLS

#: The ICMP types that the policy accepts in both families: errors (path MTU discovery) and ping. IPv6 adds neighbour
#: discovery.
_ICMP = "destination-unreachable, time-exceeded, parameter-problem, echo-request"
_ICMP_PROTOCOLS = "meta l4proto { icmp, ipv6-icmp }"
#: ICMP errors about a flow. A flow that a connection tracking helper expects (FTP's data, for example) is related too,
#: on any port that one end announces to the other: it needs a rule like any flow.
ERRORS = f"{_ICMP_PROTOCOLS} ct state related"
#: A segment that opens a TCP connection.
SYN = "tcp flags & (fin | syn | rst | ack) == syn"
#: The first segment of a connection that replaces one that has ended.
NEW_SYN = f"ct state established ct direction original {SYN}"
#: The labels of flows that were opened without any container: bits of 128, which other programs seldom use. Each such
#: flow has the first one, and it has the second one too if its first packet neither entered nor left by a bridge.
_LABEL, _NO_BRIDGE = 91, 92
#: A flow with such a label.
ELSEWHERE = f"ct label {_LABEL}"
#: Only the host has its own addresses as source. Linux checks this for IPv4 alone (martians). A host address is in
#: each of its networks, from which a port may be open.
NOT_OWN = "meta nfproto ipv6 fib saddr type local goto deny"
#: Without these packets to the host, a container has no network at all: neighbours, multicast groups.
LINK6 = "nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-report, mld2-listener-report"
_ICMP6 = f"packet-too-big, {_ICMP}, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert"
#: No rule means port 0, which no program can have. The block of all ports of a protocol contains it (`labels.ranges`).
PORT_0 = f"th dport 0 meta l4proto {{ {', '.join(each.nft for each in PROTOCOLS if each.ports)} }}"
#: Protocols that rules can name, and ICMP, which has rules of its own.
_NAMED = ", ".join((*(each.nft for each in PROTOCOLS), "icmp", "ipv6-icmp"))


#: Rules of `forward`: the source is looked up after the packet was routed.
_CHECKED = """\
		ct state != related jump reverse_path_forward
		ct state related meta l4proto != { icmp, ipv6-icmp } jump reverse_path_forward
"""


def _reverse_path_of_all(no_in: str) -> str:
    """Return the chain that leads to the look-up of a source."""
    return f"""\
	# A packet of no established flow must enter through the link that its source belongs to (RFC 3704 section 2.2).
	# From outside, a container's address is not a valid source: otherwise the reply to a forged packet would make an
	# established flow to a closed port of that container. From a bridge, the host must have a route to the source
	# through that bridge: otherwise a container could use what is open to another address. Routers and VPNs in
	# containers that do not masquerade need such a route. A look-up in the routes costs as much as all other rules of a
	# new flow; most packets need only the first one.
	chain reverse_path {{
		{_from_bridges(no_in)}
		fib saddr . iif oif exists return
		goto reverse_path_elsewhere
	}}

	chain reverse_path_elsewhere {{
		fib saddr oifname @protected_bridges goto deny
	}}
"""


def _from_bridges(no_in: str) -> str:
    """Return the rules for packets that enter by a bridge."""
    return f"""iifgroup {GROUP:#x} goto reverse_path_bridge
		meta iifkind "bridge" iif != @unmanaged{no_in} goto reverse_path_bridge"""


def _reverse_path(no_in: str, no_out: str) -> str:
    """Return the chains that look a source up after the packet was routed."""
    return f"""\
{_reverse_path_of_all(no_in)}
	chain reverse_path_forward {{
		{_from_bridges(no_in)}
		meta iifkind "vrf" jump reverse_path_own
		fib saddr . iif oif exists return
		jump reverse_path_own
		goto reverse_path_elsewhere
	}}

	# A route back through the same link is none to an own address, except in a VRF, which has routes of its own.
	chain reverse_path_own {{
		oifgroup {GROUP:#x} {NOT_OWN}
		meta oifkind "bridge" oif != @unmanaged{no_out} {NOT_OWN}
	}}

	# Neighbour discovery uses any source address, or none. DHCP's 0.0.0.0 is not missing (nft_fib4_eval). Within one
	# network any source passes, unless egress from it is restricted: a container could forge a packet from an outside
	# address to itself through the host, and its reply would leave as established. Replies to link-local sources stay
	# on the network.
	chain reverse_path_bridge {{
		icmpv6 type {{ {LINK6} }} return
		iifname . oifname @same_bridge goto reverse_path_within
		fib saddr . iif oif missing goto deny
	}}

	chain reverse_path_within {{
		ip6 saddr fe80::/10 return
		iifname != @egress_restricted goto within_bridge
		fib saddr . iif oif missing goto deny
	}}

	# On an isolated network (Docker's gateway mode) the host has no address, so it has no route to sources either. A
	# packet that the host could not route to its destination on the bridge was not routed: br_netfilter shows it here.
	chain within_bridge {{
		iifname != @internal return
		fib saddr type != local fib daddr . iif oif missing return
		fib saddr . iif oif missing goto deny
	}}
"""


def _reverse_path_early(no_in: str, flows: str) -> str:
    """Return the same for a kernel that looks routes up before a packet is routed only: a base chain does it there.

    It is not known yet whether the packet stays on its network, so sources are checked within a network too. The
    kernel forwards no packet with a link-local source.
    """
    return f"""\
	chain reverse_path_early {{
		type filter hook prerouting priority -90; policy accept;
		iifname "lo" accept
		{NEW_SYN} goto reverse_path
		{flows}ct state established accept
		{ERRORS} accept
		goto reverse_path
	}}

{_reverse_path_of_all(no_in)}
	chain reverse_path_bridge {{
		icmpv6 type {{ {LINK6} }} return
		ip6 saddr fe80::/10 return
		fib saddr . iif oif missing goto deny
	}}
"""


def _elsewhere(no_in: str, no_out: str) -> str:
    """Return the chains for flows that were opened without any container."""
    return f"""
	# A flow that was opened elsewhere belongs to no container, whichever addresses it has: an outsider may have used
	# that of a container that did not exist yet, so that the host had no route by which to refuse it. Flows of
	# unmanaged bridges pass while it is uncertain whether these are Docker's.
	chain label_elsewhere {{
		{ERRORS} return
		meta iifkind "bridge" goto label_bridges
		meta oifkind "bridge" goto label_bridges
		ct label set {_NO_BRIDGE}
		ct label set {_LABEL}
	}}

	chain label_bridges {{
		meta iifkind "bridge" iif != @unmanaged{no_in} return
		ct label set {_LABEL}
	}}

	chain elsewhere {{
		oifgroup {GROUP:#x} goto deny
		iifgroup {GROUP:#x} goto deny
		oifname @dockers goto deny
		iifname @dockers goto deny
		meta oifkind "bridge" oif != @unmanaged{no_out} ct label {_NO_BRIDGE} goto deny
		meta iifkind "bridge" iif != @unmanaged{no_in} ct label {_NO_BRIDGE} goto deny
	}}
"""


def forward(mark: int, features: Features, *, log: str, no_in: str, no_out: str) -> str:
    """Return the chains for forwarded traffic.

    `log`: the statement that logs a drop. `no_in`, `no_out`: the exceptions for bridges that are unmanaged by name.
    """
    flows, checked, reverse_path, not_own = features.flows, _CHECKED, _reverse_path(no_in, no_out), ""
    if not features.late_fib:
        checked, reverse_path, not_own = "", _reverse_path_early(no_in, flows), f"\t\t{NOT_OWN}\n"
    labelled = refused = elsewhere = ""
    if features.labels:
        labelled = "\t\tct state new,related jump label_elsewhere\n"
        refused = f"\t\t{ELSEWHERE} jump elsewhere\n"
        elsewhere = _elsewhere(no_in, no_out)
    return f"""\
	# docker-fw's bridges are matched by their device group, so they are closed before their network is known. Every
	# other bridge is filtered as one of Docker's until it is known not to be Docker's. The mark lets a packet pass
	# Docker's own firewall, by one rule in DOCKER-USER or Docker's --bridge-accept-fwmark.
	chain forward {{
		type filter hook forward priority filter - 2; policy accept;
		{flows}ct state established jump established
		meta mark set meta mark & {0xFFFFFFFF ^ mark:#010x}
{checked}		meta nfproto @quarantine_families ct state new jump quarantine
		oifgroup {GROUP:#x} meta mark set meta mark | {mark:#010x} goto inbound
		iifgroup {GROUP:#x} goto outbound
		meta iifkind "bridge" iif != @unmanaged{no_in} jump from_container
		meta oifkind "bridge" oif != @unmanaged{no_out} goto to_docker
{labelled}		meta nfproto @no_transit goto transit
	}}

{reverse_path}{elsewhere}
	# Packets from and to banned addresses are dropped before any other rule.
	chain banned {{
{lookups.bans(nets=False)}
		meta nfproto @ban_prefix_families jump banned_prefixes
	}}

	chain banned_prefixes {{
{lookups.bans(nets=True)}
	}}

	# While the table is being loaded, new flows are dropped: their senders retry. The host needs neighbour discovery.
	chain loading {{
		{NEW_SYN} goto deny
		ct state established return
		icmpv6 type {{ nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert }} return
		goto deny
	}}

	# A cut flow has no conntrack entry. The responder's next packet would create one in the reverse direction, and the
	# initiator's packets would be established in it. TCP needs no quarantine: a connection starts with a SYN.
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

	# Docker itself accepts established packets of Docker networks. A SYN opens a new connection, but if it reuses the
	# port of a connection that the peer reset, conntrack assigns it to the old one (tcp_conntracks, sIG).
	chain established {{
		{SYN} ct direction original return
{refused}		oifgroup {GROUP:#x} goto accept_marked
		iifgroup {GROUP:#x} goto established_outbound
		meta mark set meta mark & {0xFFFFFFFF ^ mark:#010x} accept
	}}

	# The mark overrides Docker's drop if a network is reached by container addresses, but never between Docker
	# networks.
	chain to_docker {{
		meta iifkind "bridge" iif != @unmanaged{no_in} goto inbound
		meta nfproto . oifname @routed meta mark set meta mark | {mark:#010x}
		goto inbound
	}}

	# A redirect is related to its flow, but must not be forwarded (RFC 1812 section 5.2.7.2). Docker networks have
	# exceptions only while docker-fw receives Docker's events, which report that a container leaves.
	chain inbound {{
		iifname . oifname @same_bridge accept
		oifgroup {GROUP:#x} meta iifkind "bridge" iif != @unmanaged{no_in} jump from_container
		{_ICMP_PROTOCOLS} goto inbound_icmp
		rt type 0 goto deny
		ct state invalid goto deny
		oifgroup != {GROUP:#x} meta nfproto != @lease goto deny
		{PORT_0} goto deny
{not_own}		ct status dnat jump inbound_published
		meta nfproto ipv6 goto inbound6
		meta nfproto ipv4 goto inbound4
		goto deny
	}}

	chain inbound_published {{
		ip daddr . meta l4proto . th dport @allow_published4 goto permit
		ip6 daddr . meta l4proto . th dport @allow_published6 goto permit
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

	# Ports that are open to some sources only: first the port is looked up, then the source.
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

	# Limits the new flows that each source may open to a port with fw.rate.
	chain rate_limit {{
		{NEW_SYN} goto rate_limit_new
		ct state established goto rate_limit_known
		goto rate_limit_new
	}}

	chain rate_limit_new {{
		iifname . oifname @same_bridge accept
		meta nfproto ipv6 goto rate_limit6
		goto rate_limit4
	}}

	# Sources that have completed a handshake are recorded as proven.
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

	# On a network with restricted egress, a container may open only what a rule allows.
	chain egress {{
		{NEW_SYN} goto egress_new
		{flows}ct state established accept
		goto egress_new
	}}

	chain egress_new {{
		iifname . oifname @same_bridge accept
		{ERRORS} accept
		iifgroup != {GROUP:#x} meta nfproto != @lease goto deny
		iifname . ip6 saddr @egress_all6 accept
		iifname . ip saddr @egress_all4 accept
		jump egress_allow
		goto deny
	}}

	chain egress_allow {{
		ct state invalid return
		{PORT_0} return
		meta nfproto ipv6 goto egress_allow6
		goto egress_allow4
	}}

	chain egress_allow6 {{
{lookups.egress_allow(6, "accept")}
	}}

	chain egress_allow4 {{
{lookups.egress_allow(4, "accept")}
	}}

{lookups.peer_chains(6, "egress_to", "accept")}
{lookups.peer_chains(4, "egress_to", "accept")}
	# No flow enters or leaves an internal network: two of its containers can forge one, with a source address outside.
	chain to_internal {{
		{ERRORS} accept
		{NEW_SYN} goto deny
		{flows}ct state established accept
		goto deny
	}}

	# ICMP errors are accepted before `invalid` is dropped: path MTU discovery needs them (RFC 4890 section 4.3).
	chain inbound_icmp {{
		icmp type redirect goto deny
		{ERRORS} goto to_known_address
		rt type 0 goto deny
		meta l4proto icmp goto icmp_in
		meta l4proto ipv6-icmp goto icmp6_in
		goto deny
	}}

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
		jump from_container
		meta oifkind "bridge" oif != @unmanaged{no_out} goto inbound
		goto accept_marked
	}}

	# Packets to a bridge of Docker's are not marked, so Docker's own rules apply to them too.
	chain established_outbound {{
		meta oifkind "bridge" oif != @unmanaged{no_out} meta mark set meta mark & {0xFFFFFFFF ^ mark:#010x} accept
		goto accept_marked
	}}

	# A connection must start with a SYN. Otherwise the next segment of a cut connection would reopen it, as one that
	# the container initiated (nf_conntrack_tcp_loose).
	chain from_container {{
		ct state new tcp flags & (fin | syn | rst | ack) != syn goto no_syn
		{_ICMP_PROTOCOLS} jump from_container_icmp
	}}

	chain from_container_icmp {{
		icmp type redirect goto deny
		icmpv6 type {{ nd-router-advert, nd-redirect }} goto deny
	}}

	# A container receives a reset, so that it reconnects at once. A bridge that may not be Docker's gets none: it may
	# belong to a virtual machine, whose connection continues once that is known.
	chain no_syn {{
		iifgroup {GROUP:#x} counter name "drops" reject with tcp reset
		iifname @dockers counter name "drops" reject with tcp reset
		goto deny
	}}

	# docker-fw enabled forwarding: links that did not forward before do not forward now.
	chain transit {{
		iifname @dockers accept
		goto deny
	}}

	chain accept_marked {{
		meta mark set meta mark | {mark:#010x} accept
	}}

	# Packets to a known container's address are accepted. Any other address makes an entry in the host's neighbour
	# table (RFC 6583), so these packets are limited. `!=` does not change an element's counter; a match would count a
	# drop.
	chain to_known_address {{
		ip6 daddr != @ingress_drops6 goto to_unknown_address
		ip daddr != @ingress_drops4 goto to_unknown_address
		accept
	}}

	# One limit for each network, and one for all networks: by default the kernel keeps 1,024 entries for all links.
	chain to_unknown_address {{
		update @unknown_address_limit {{ oifname limit rate 10/second burst 50 packets }} goto to_unknown_limited
		goto deny
	}}

	chain to_unknown_limited {{
		limit rate 30/second burst 100 packets accept
		goto deny
	}}

	# Drops are counted for each container, and logged to nfnetlink_log, a few a second for each container.
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
