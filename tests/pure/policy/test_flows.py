"""Established flows under a policy that has become narrower: which ones end, and which ones continue."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_network

import pytest

from plugin.model import Address, AddressPolicy, Flow, Peer, Policy, Rule
from plugin.policy.flows import Way, is_closed, is_from_unknown, leaves_internal, let_through, ways
from plugin.protocols import NUMBER

WEB, NEIGHBOUR, HOST, OUTSIDE = (IPv4Address(text) for text in ("10.0.0.2", "10.0.0.3", "10.0.0.1", "192.0.2.9"))
SUBNET = ip_network("10.0.0.0/24")
HTTP = Rule("tcp", 80, 80)
LOCAL = {HOST.packed}
TCP, UDP, ICMP, GRE = NUMBER["tcp"], NUMBER["udp"], 1, NUMBER["gre"]


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
        (flow(WEB, HOST), (Rule("tcp", 80, 80, (Peer("host"),)),), False),
        (flow(WEB, OUTSIDE), (Rule("tcp", 80, 80, (Peer("host"),)),), True),
    ],
)
def test_a_flow_of_a_container_ends_where_its_egress_does_not_list_it(
    one: Flow, egress: tuple[Rule, ...] | None, ends: bool
) -> None:
    """ICMP is in no egress list; the host is a peer only by its name."""
    assert closed(one, Policy(egress=egress, known=True)) is ends


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
    ],
)
def test_an_unknown_address_may_continue_only_within_its_network(one: Flow, ends: bool) -> None:
    """The host is not within it, though the address of its bridge is."""
    assert is_from_unknown(one, [SUBNET], {WEB.packed}, LOCAL) is ends


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
        (flow(OUTSIDE, HOST), False),
        (flow(OUTSIDE, IPv4Address("192.0.2.1")), False),
    ],
)
def test_flows_across_the_border_of_an_internal_network(one: Flow, ends: bool) -> None:
    """A flow ends if exactly one end is on the internal network, and the other is not the host."""
    assert leaves_internal(one, [SUBNET], LOCAL) is ends


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
