"""The policy that many cases start from, with one part replaced, and the parts that several families use.

It selects pod a of namespace x. TCP 80 may enter from pods b and c of x and y; TCP 80 may leave to pods a and b of y
and z, and DNS to all.
"""

from __future__ import annotations

from dataclasses import replace

from tests.referees.networkpolicy.spec import (
    DIRECTIONS,
    Direction,
    NetworkPolicy,
    Peer,
    Port,
    Rule,
    Selector,
    labelled,
    within,
)

DNS = Rule((Port("udp", 53), Port("tcp", 53)))
HTTP = (Port("tcp", 80),)
ANY = (Rule(),)

_INGRESS = Rule(HTTP, (Peer(within("pod", "b", "c"), within("ns", "x", "y")),))
_EGRESS = Rule(HTTP, (Peer(within("pod", "a", "b"), within("ns", "y", "z")),))
BASE = NetworkPolicy("base", "x", labelled(pod="a"), (_INGRESS,), (_EGRESS, DNS), DIRECTIONS)


def with_rules(direction: Direction, rules: tuple[Rule, ...]) -> NetworkPolicy:
    """Return the base with other rules in one direction."""
    return replace(BASE, ingress=rules) if direction == "ingress" else replace(BASE, egress=rules)


def with_peers(direction: Direction, *peers: Peer) -> NetworkPolicy:
    """Return the base with other peers in the first rule of one direction."""
    first, *rest = BASE.rules(direction)
    return with_rules(direction, (replace(first, peers=peers), *rest))


def with_ports(direction: Direction, *ports: Port) -> NetworkPolicy:
    """Return the base with other ports in the first rule of one direction."""
    first, *rest = BASE.rules(direction)
    return with_rules(direction, (replace(first, ports=ports), *rest))


def ingress(name: str, namespace: str, pods: Selector, *rules: Rule) -> NetworkPolicy:
    """Return a policy about inbound connections alone."""
    return NetworkPolicy(name, namespace, pods, ingress=rules, types=("ingress",))


def egress(name: str, namespace: str, pods: Selector, *rules: Rule) -> NetworkPolicy:
    """Return a policy about outbound connections alone."""
    return NetworkPolicy(name, namespace, pods, egress=rules, types=("egress",))


def both(
    name: str, namespace: str, pods: Selector, entering: tuple[Rule, ...], leaving: tuple[Rule, ...]
) -> NetworkPolicy:
    """Return a policy about both directions."""
    return NetworkPolicy(name, namespace, pods, entering, leaving, DIRECTIONS)


def peers(*some: Peer) -> Rule:
    """Return the rule that allows all ports with these peers."""
    return Rule(peers=some)
