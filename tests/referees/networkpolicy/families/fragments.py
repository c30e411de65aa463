"""Policies that people start with: the documentation's and the recipes', written for the pods of our cluster."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

from tests.referees.networkpolicy.cases import DOCUMENTATION, RECIPES, Case, family, single
from tests.referees.networkpolicy.families.base import ANY, DNS, both, egress, ingress, peers
from tests.referees.networkpolicy.placing import Layout
from tests.referees.networkpolicy.spec import ALL, Block, NetworkPolicy, Peer, Port, Rule, labelled, within

_A, _B, _C = (labelled(pod=name) for name in "abc")
_Y, _Z = labelled(ns="y"), labelled(ns="z")
_EXTERNAL = Block(ip_network("203.0.113.0/24"))


@family("recipes", "simple policies, one for each purpose", RECIPES)
def _recipes(_: Layout) -> Iterator[Case]:
    yield single("nothing to an application", ingress("r", "x", _A))
    yield single("to an application from another", ingress("r", "x", _A, peers(Peer(_B))))
    yield single("everything to an application", ingress("r", "x", _A, *ANY))
    yield single("nothing to a namespace", ingress("r", "x", ALL))
    yield single("to a namespace from itself", ingress("r", "x", ALL, peers(Peer(ALL))))
    yield single("to an application from all namespaces", ingress("r", "x", _A, peers(Peer(namespaces=ALL))))
    yield single("the same, all pods of all namespaces", ingress("r", "x", _A, peers(Peer(ALL, ALL))))
    yield single("to an application from a namespace", ingress("r", "x", _A, peers(Peer(namespaces=_Y))))
    yield single("from some pods of another namespace", ingress("r", "x", _A, peers(Peer(_B, _Y))))
    yield single("from outside too", ingress("r", "x", _A, Rule(peers=())))
    yield single("to one port from some pods", ingress("r", "x", _A, Rule((Port(port=81),), (Peer(_B),))))
    yield single("from several selectors", ingress("r", "x", _A, peers(Peer(_B), Peer(_C), Peer(_A, _Z))))
    yield single("no egress of an application", egress("r", "x", _A))
    yield single("no egress of an application but DNS", egress("r", "x", _A, DNS))
    yield single("no egress of a namespace", egress("r", "x", ALL))
    to_pods = Rule(DNS.ports, (Peer(namespaces=ALL),))
    yield single("DNS to pods of the cluster alone", egress("r", "x", _A, to_pods))
    yield single("nothing in, nothing out", both("r", "x", _A, (), ()))
    yield single("egress to a namespace", egress("r", "x", _A, peers(Peer(namespaces=_Y))))
    yield single("egress of a namespace to anything", egress("r", "x", ALL, *ANY))


@family("documentation", "the examples of the concept page", DOCUMENTATION)
def _documentation(_: Layout) -> Iterator[Case]:
    yield single("block, namespace and pods in one list", one_list())
    yield single("namespace and pods in one peer", ingress("and", "x", _A, peers(Peer(_B, _Y))))
    yield single("namespace and pods in two peers", ingress("or", "x", _A, peers(Peer(namespaces=_Y), Peer(_B))))
    yield single("default deny of ingress", NetworkPolicy("none", "x", types=("ingress",)))
    yield single("allow all ingress", NetworkPolicy("all", "x", ingress=ANY, types=("ingress",)))
    yield single("default deny of egress", NetworkPolicy("none", "x", types=("egress",)))
    yield single("allow all egress", NetworkPolicy("all", "x", egress=ANY, types=("egress",)))
    yield single("default deny of both", NetworkPolicy("none", "x", types=("ingress", "egress")))
    ports = Rule((Port("tcp", 52, 84),), (Peer(block=_EXTERNAL),))
    yield single("a range of ports to a block", egress("range", "x", _A, ports))
    several = Rule((Port(port=80),), (Peer(namespaces=within("ns", "y", "z")),))
    yield single("several namespaces by label", egress("several", "x", _A, several))


def one_list() -> NetworkPolicy:
    """Return the form of the page's first example: a block with an exception, a namespace, pods; and egress."""
    block = Block(ip_network("10.48.0.0/12"), (ip_network("10.50.0.0/16"),))
    entering = Rule((Port(port=81),), (Peer(block=block), Peer(namespaces=_Y), Peer(_C)))
    leaving = Rule((Port(port=85),), (Peer(block=_EXTERNAL),))
    return both("list", "x", _A, (entering,), (leaving,))
