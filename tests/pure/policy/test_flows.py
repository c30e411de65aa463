"""Established flows under a policy that has become narrower: which ones end, and which ones continue."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from plugin.model import Address, AddressPolicy, Flow, Peer, Policy, Rule
from plugin.policy.flows import Way, closed_flow, is_closed, is_from_unknown, leaves_internal, let_through, ways
from plugin.protocols import NUMBER, OTHER

WEB, NEIGHBOUR, HOST, OUTSIDE = (IPv4Address(text) for text in ("10.0.0.2", "10.0.0.3", "10.0.0.1", "192.0.2.9"))
SUBNET = ip_network("10.0.0.0/24")
HTTP = Rule("tcp", 80, 80)
#: The host's address on another link, outside of the subnet.
UPLINK = IPv4Address("198.51.100.1")
LOCAL = {HOST.packed, UPLINK.packed}
TCP, UDP, ICMP, GRE, UDPLITE = NUMBER["tcp"], NUMBER["udp"], 1, NUMBER["gre"], 136
ONLY_HOST = Rule("tcp", 80, 80, (Peer("host"),))
ONLY_PREFIX = Rule("tcp", 80, 80, (Peer("prefix", "203.0.113.0/24"),))


def flow(source: Address, responder: Address, proto: int = TCP, port: int = 80, icmp_type: int = 8) -> Flow:
    return Flow(source.packed, 40000, responder.packed, port, responder.packed, port, source.packed, proto, icmp_type)


def closed(one: Flow, policy: Policy, *, internal: bool = False) -> bool:
    return is_closed(one, {WEB.packed: AddressPolicy(SUBNET, policy, internal)}, LOCAL)


@pytest.mark.parametrize(
    ("one", "ends"),
    [
        (flow(OUTSIDE, WEB), False),
        (flow(OUTSIDE, WEB, port=22), True),
        (flow(OUTSIDE, WEB, UDP), True),
        (flow(NEIGHBOUR, WEB, port=22), False),
        (flow(HOST, WEB, port=22), False),
        (flow(UPLINK, WEB, port=22), False),
        (flow(OUTSIDE, WEB, ICMP), False),
        (flow(OUTSIDE, WEB, ICMP, icmp_type=13), True),
        (flow(OUTSIDE, WEB, GRE), True),
        (flow(OUTSIDE, NEIGHBOUR), False),
    ],
)
def test_a_flow_to_a_container_ends_where_no_rule_accepts_it(one: Flow, ends: bool) -> None:
    """Flows within the subnet, from the host, of useful ICMP, or to unprotected addresses are not the policy's."""
    assert closed(one, Policy((HTTP,), known=True)) is ends


@pytest.mark.parametrize(
    ("one", "egress", "ends"),
    [
        (flow(WEB, OUTSIDE), None, False),
        (flow(WEB, OUTSIDE), (HTTP,), False),
        (flow(WEB, OUTSIDE, port=22), (HTTP,), True),
        (flow(WEB, OUTSIDE), (), True),
        (flow(WEB, NEIGHBOUR), (), False),
        (flow(WEB, OUTSIDE, ICMP), (HTTP,), True),
        (flow(WEB, HOST), (), True),
        (flow(WEB, OUTSIDE, ICMP), (Rule(OTHER, 0, 0), Rule(OTHER, 80, 80)), True),
        (flow(WEB, HOST), (ONLY_HOST,), False),
        (flow(WEB, HOST, port=22), (ONLY_HOST,), True),
        (flow(WEB, HOST, UDP), (ONLY_HOST,), True),
        (flow(WEB, HOST), (Rule("tcp", 80, 80, (Peer("host"), *ONLY_PREFIX.peers)),), False),
        (flow(WEB, HOST), (ONLY_PREFIX,), True),
        (flow(WEB, OUTSIDE), (ONLY_HOST,), True),
    ],
)
def test_a_flow_of_a_container_ends_where_its_egress_does_not_list_it(
    one: Flow, egress: tuple[Rule, ...] | None, ends: bool
) -> None:
    """ICMP is in no egress list; the host is a peer only by its name."""
    assert closed(one, Policy(egress=egress, known=True)) is ends


@pytest.mark.parametrize("proto", [GRE, UDPLITE])
def test_numbers_in_place_of_ports_do_not_matter(proto: int) -> None:
    """A protocol without ports is accepted whole: connection tracking's keys for it are no ports."""
    rules = Rule("gre", 0, 0), Rule(OTHER, 0, 0)
    assert not closed(flow(OUTSIDE, WEB, proto, 99), Policy(rules, known=True))
    policies = {WEB: AddressPolicy(SUBNET, Policy(rules, known=True))}
    (way,) = ways(flow(OUTSIDE, WEB, proto, 99), {WEB.packed: policies[WEB]})
    assert let_through([way], policies, LOCAL) == [way]
    assert (way.source_port, way.peer_port) == ((0, 0) if proto == GRE else (99, 40000))


def test_what_only_a_published_port_opens_is_closed_to_direct_flows() -> None:
    """FW_PUBLISHED=allow opens a port for flows that were opened to the host's port, and for no others."""
    policy = Policy(published=(HTTP,), known=True)
    host_port = flow(OUTSIDE, WEB)._replace(addressed=HOST.packed, addressed_port=8080)
    assert not closed(host_port, policy)
    assert closed(flow(OUTSIDE, WEB), policy)
    assert not closed(flow(OUTSIDE, WEB), Policy((HTTP,), known=True))


@pytest.mark.parametrize(
    ("one", "ends"),
    [
        (flow(NEIGHBOUR, OUTSIDE), True),
        (flow(NEIGHBOUR, HOST), True),
        (flow(NEIGHBOUR, WEB), False),
        (flow(WEB, OUTSIDE), False),
        (flow(HOST, OUTSIDE), False),
        (flow(OUTSIDE, NEIGHBOUR), False),
        (flow(OUTSIDE, UPLINK), False),
    ],
)
def test_an_unknown_address_may_continue_only_within_its_network(one: Flow, ends: bool) -> None:
    """The host is not within it, though the address of its bridge is."""
    assert is_from_unknown(one, [SUBNET, ip_network("10.7.0.0/24")], {WEB.packed}, LOCAL) is ends


def test_nothing_enters_or_leaves_an_internal_network() -> None:
    """Only flows with the host and within the subnet continue, whatever the rules accept."""
    policy = Policy((HTTP,), known=True)
    assert closed(flow(OUTSIDE, WEB, ICMP), policy, internal=True)
    assert closed(flow(WEB, OUTSIDE), policy, internal=True)
    assert not closed(flow(WEB, HOST), policy, internal=True)
    assert not closed(flow(NEIGHBOUR, WEB), policy, internal=True)


@pytest.mark.parametrize(
    ("one", "ends"),
    [
        (flow(WEB, OUTSIDE), True),
        (flow(OUTSIDE, NEIGHBOUR), True),
        (flow(WEB, NEIGHBOUR), False),
        (flow(WEB, HOST), False),
        (flow(HOST, WEB), False),
        (flow(UPLINK, WEB), False),
        (flow(WEB, UPLINK), False),
        (flow(OUTSIDE, HOST), False),
        (flow(OUTSIDE, IPv4Address("192.0.2.1")), False),
    ],
)
def test_flows_across_the_border_of_an_internal_network(one: Flow, ends: bool) -> None:
    """A flow ends if exactly one end is on one of the internal networks, and the other is not the host."""
    assert leaves_internal(one, [ip_network("10.7.0.0/24"), SUBNET], LOCAL) is ends


def test_a_flow_with_two_containers_ends_if_one_of_them_is_closed_to_it() -> None:
    """The responder must accept the flow, and its initiator must be allowed to open it."""
    far = IPv4Address("10.1.0.2")
    open_, shut = Policy((HTTP,), known=True), Policy(egress=(), known=True)

    def ends(initiator: Policy, responder: Policy) -> bool:
        there = AddressPolicy(ip_network("10.1.0.0/24"), initiator)
        return is_closed(flow(far, WEB), {WEB.packed: AddressPolicy(SUBNET, responder), far.packed: there}, LOCAL)

    assert not ends(open_, open_)
    assert ends(shut, open_)
    assert ends(open_, shut)


def test_a_quarantine_ends_when_the_answered_flow_would_be_accepted_again() -> None:
    """The way of an answer leads from responder to initiator; the flow that counts is the other direction's."""
    policies = {WEB: AddressPolicy(SUBNET, Policy((Rule("udp", 53, 53),), known=True))}
    packed = {address.packed: policy for address, policy in policies.items()}
    dns, ntp = (way for port in (53, 123) for way in ways(flow(OUTSIDE, WEB, UDP, port), packed))
    assert dns == Way(WEB, UDP, 53, OUTSIDE, 40000, WEB)
    assert let_through([dns, ntp], policies, LOCAL) == [dns]
    assert not [*ways(flow(OUTSIDE, WEB), packed)], "TCP begins with a SYN, so an answer opens nothing"


def test_a_quarantine_belongs_to_the_container() -> None:
    """Whichever end it is: the responder, or the initiator of a flow to outside."""
    packed = {WEB.packed: AddressPolicy(SUBNET, Policy(known=True))}
    assert [way.whose for way in ways(flow(OUTSIDE, WEB, UDP), packed)] == [WEB]
    assert [way.whose for way in ways(flow(WEB, OUTSIDE, UDP), packed)] == [WEB]


@pytest.mark.parametrize("proto", [TCP, UDP])
def test_over_ipv6_an_answer_could_hide_behind_an_authentication_header(proto: int) -> None:
    """So AH between the ends of a cut flow is a way, too, unless `ah` is accepted anyway. IPv4 has no such way."""
    web, out, ah = IPv6Address("2001:db8:1::2"), IPv6Address("2001:db8:5::7"), NUMBER["ah"]
    one = flow(out, web, proto)

    def protocols(*rules: Rule, known: bool = True) -> list[int]:
        policies = {web.packed: AddressPolicy(ip_network("2001:db8:1::/64"), Policy(rules, known=True))}
        return [way.proto for way in ways(one, policies if known else {})]

    plain = [UDP] if proto == UDP else []
    assert protocols() == [*plain, ah]
    assert protocols(known=False) == [*plain, ah]
    assert protocols(Rule("ah", 0, 0)) == plain
    assert [way.proto for way in ways(flow(OUTSIDE, WEB, proto), {})] == plain


@pytest.mark.parametrize(("proto", "name"), [(TCP, "tcp"), (GRE, None)])
def test_a_closed_flow_is_reported_with_its_protocol(proto: int, name: str | None) -> None:
    """Protocols without ports have no name in this report."""
    assert closed_flow(flow(OUTSIDE, WEB, proto)).proto == name
