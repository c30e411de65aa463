"""Families that this project adds: both address families, selectors, names of ports, policyTypes, limits of labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network

from tests.referees.networkpolicy.cases import OURS, Case, Step, created, family, single
from tests.referees.networkpolicy.families.base import ANY, BASE, DNS, HTTP, egress, ingress, peers
from tests.referees.networkpolicy.placing import Layout
from tests.referees.networkpolicy.spec import (
    ALL,
    DIRECTIONS,
    Block,
    Cluster,
    NetworkPolicy,
    Peer,
    Port,
    Requirement,
    Rule,
    Selector,
    labelled,
    within,
)

_A, _B = labelled(pod="a"), labelled(pod="b")


def _block(cidr: str, *excepts: str) -> Block:
    return Block(ip_network(cidr), tuple(map(ip_network, excepts)))


BLOCKS = {
    "all IPv4": _block("0.0.0.0/0"),
    "all IPv6": _block("::/0"),
    "all IPv4 but private addresses": _block("0.0.0.0/0", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
    "all IPv6 but unique local and our own": _block("::/0", "fc00::/7", "2001:db8::/36"),
    "IPv6 pods": _block("2001:db8:20::/43"),
    "IPv6 pods with exceptions": _block("2001:db8:20::/43", "2001:db8:34::/48", "2001:db8:33::3/128"),
    "one IPv4 address outside": _block("203.0.113.7/32"),
    "one IPv6 address outside": _block("2001:db8:5::7/128"),
    "IPv4 outside with an exception": _block("203.0.113.0/24", "203.0.113.6/31"),
    "IPv6 outside with an exception": _block("2001:db8:4::/47", "2001:db8:5::/96"),
    "half of IPv4 but one address": _block("128.0.0.0/1", "192.0.2.77/32"),
    "an odd length": _block("10.32.0.0/13", "10.33.0.2/31", "10.35.0.0/29"),
}


@family("blocks", "ipBlocks of both address families, of machines outside and of pods", OURS)
def _blocks(_: Layout) -> Iterator[Case]:
    for direction in DIRECTIONS:
        make = ingress if direction == "ingress" else egress
        for name, block in BLOCKS.items():
            # Rules for all ports with these would be longer than a label may be: `limits` has such a case.
            ports = HTTP if name == "IPv6 pods with exceptions" else ()
            yield single(f"{direction}: {name}", make("block", "x", ALL, Rule(ports, (Peer(block=block),))))
    both = Rule((Port(port=80),), (Peer(block=BLOCKS["all IPv4"]), Peer(block=BLOCKS["all IPv6"])))
    yield single("ingress: all of both families on one port", ingress("block", "y", _A, both))
    yield single("egress: all of both families on one port", egress("block", "y", _A, both))


@family("selectors", "every operator, alone and together", OURS)
def _selectors(_: Layout) -> Iterator[Case]:
    found = {
        "not in": Selector(expressions=(Requirement("pod", "NotIn", ("a", "b")),)),
        "not in, without the label": Selector(expressions=(Requirement("tier", "NotIn", ("front",)),)),
        "exists": Selector(expressions=(Requirement("pod", "Exists"),)),
        "does not exist": Selector(expressions=(Requirement("pod", "DoesNotExist"),)),
        "labels and expressions": Selector((("pod", "b"),), (Requirement("pod", "In", ("a", "b")),)),
        "expressions that exclude each other": Selector(
            expressions=(Requirement("pod", "In", ("a",)), Requirement("pod", "NotIn", ("a",)))
        ),
        "a label that none has": labelled(pod="q"),
    }
    for name, selector in found.items():
        yield single(f"pods: {name}", ingress("selected", "x", selector))
        yield single(f"ingress peers: {name}", ingress("peers", "y", _A, peers(Peer(selector, within("ns", "x", "y")))))
        yield single(f"egress peers: {name}", egress("peers", "y", _A, peers(Peer(selector, within("ns", "x", "y")))))


@family("port names", "names that mean another number at each pod", OURS)
def _port_names(layout: Layout) -> Iterator[Case]:
    numbers = {"x/a": 80, "x/b": 81, "y/a": 85, "y/b": 7981, "z/c": 53}

    def rename(cluster: Cluster) -> Cluster:
        for pod, number in numbers.items():
            both = (("web", "tcp", number), ("web-udp", "udp", number))
            cluster = cluster.with_pod(replace(layout.pod(pod), ports=both))
        return cluster

    named = Step("name ports", rename)
    web, other = Port(port="web"), Port("udp", "web")
    for name, some in {
        "any peer": (),
        "pods of two namespaces": (Peer(within("pod", "a", "b"), within("ns", "x", "y")),),
        "a block of pods": (Peer(block=_block("10.32.0.0/11", "10.34.0.0/24")),),
        "machines outside": (Peer(block=_block("203.0.113.0/24")),),
    }.items():
        yield Case(f"ingress: {name}", (named, created(ingress("web", "x", ALL, Rule((web,), some)))))
        yield Case(f"egress: {name}", (named, created(egress("web", "z", ALL, Rule((web, Port("udp", 53)), some)))))
    yield Case("the name of another protocol", (named, created(ingress("web", "x", ALL, Rule((other,))))))


@family("policy types", "policyTypes that are left out, or name one direction", OURS)
def _types(_: Layout) -> Iterator[Case]:
    rule = Rule((Port(port=80),), (Peer(_B, ALL),))
    yield single("left out, no rules", NetworkPolicy("types", "x", _A))
    yield single("left out, ingress rules", NetworkPolicy("types", "x", _A, ingress=(rule,)))
    yield single("left out, egress rules", NetworkPolicy("types", "x", _A, egress=(rule,)))
    yield single("left out, both", NetworkPolicy("types", "x", _A, (rule,), (rule,)))
    yield single("Ingress, with egress rules", NetworkPolicy("types", "x", _A, (rule,), (rule,), ("ingress",)))
    yield single("Egress, with ingress rules", NetworkPolicy("types", "x", _A, (rule,), (rule,), ("egress",)))
    yield single("none selected", NetworkPolicy("types", "x", labelled(pod="q"), types=DIRECTIONS))


@family("combinations", "rules and policies that overlap", OURS)
def _combinations(_: Layout) -> Iterator[Case]:
    wide, narrow = Rule((Port("tcp", 53, 84),)), Rule((Port(port=80),), (Peer(_B),))
    yield single("a narrow rule beside a wide one", ingress("rules", "x", _A, narrow, wide))
    yield single("the same in two policies", ingress("one", "x", _A, narrow), ingress("two", "x", ALL, wide))
    yield single("everything beside a narrow rule", ingress("rules", "x", _A, narrow, *ANY))
    some = ingress("rules", "x", _A, peers(Peer(_B)), Rule((Port(port=81),)))
    yield single("all ports of some, one port of all", some)
    yield single("egress everything beside a narrow rule", egress("rules", "x", _A, narrow, *ANY))
    yield single("a pod that is its own peer", ingress("self", "x", ALL, peers(Peer(_A))), egress("self2", "x", ALL))
    chain = [("a", "b"), ("b", "c"), ("c", "a")]
    nexts = [ingress(f"chain-{one}", "x", labelled(pod=one), peers(Peer(labelled(pod=two)))) for one, two in chain]
    yield single("each pod accepts the next", *nexts)
    yield single("base policies of all namespaces", *(replace(BASE, namespace=name) for name in "xyz"))
    yield single("the same port in four forms", ingress("forms", "x", _A, *(Rule((port,)) for port in _FORMS)))


_FORMS = (Port(port=80), Port(port="tcp-80"), Port("tcp", 80, 80), Port("tcp", 79, 80))


@family("node", "labels that leave out the connections to the host, which Kubernetes always allows", OURS)
def _node(_: Layout) -> Iterator[Case]:
    policies = {
        "no egress": egress("none", "x", ALL),
        "DNS alone": egress("dns", "x", _A, DNS),
        "one port of some pods": egress("web", "y", ALL, Rule((Port(port=80),), (Peer(_B, ALL),))),
        "everything": egress("all", "x", _A, *ANY),
    }
    for name, policy in policies.items():
        yield Case(name, (created(policy),), node=False)


@family("limits", "policies that are too large for labels", OURS)
def _limits(_: Layout) -> Iterator[Case]:
    fine = _block("::/0", "2001:db8:5::7/128", "4001::1/128", "8001::1/128")
    round_ = _block("::/0", "2001:db8::/32", "4001::/16", "8001::/16")
    yield Case(
        "an IPv6 block without three single addresses",
        (created(ingress("limit", "x", _A, peers(Peer(block=fine)))),),
        nearest=lambda cluster: cluster.apply(ingress("limit", "x", _A, peers(Peer(block=round_)))),
        reason="it consists of more prefixes than the 4,096 characters of a value; the exceptions are made rounder",
    )
    ports = [Port(port=number) for number in range(3, 2603, 2)]
    yield Case(
        "1,300 single ports",
        (created(ingress("limit", "x", _A, Rule(tuple(ports)))),),
        nearest=lambda cluster: cluster.apply(ingress("limit", "x", _A, Rule(tuple(ports[:40])))),
        reason="a value has at most 256 rules; the ports beyond them stay closed",
    )
