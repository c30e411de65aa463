"""Policies of every shape: one part of the base is replaced by every form that it can have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network
from itertools import combinations

from tests.referees.networkpolicy.cases import CYCLONUS, Case, family, single
from tests.referees.networkpolicy.families.base import (
    ANY,
    BASE,
    with_peers,
    with_ports,
    with_rules,
)
from tests.referees.networkpolicy.placing import NAMESPACES, Layout
from tests.referees.networkpolicy.spec import (
    ALL,
    DIRECTIONS,
    NAME_LABEL,
    PROTOCOLS,
    Block,
    Peer,
    Port,
    labelled,
    within,
)

#: Addresses of namespaces y and z; without pod b of y.
NEAR = ip_network("10.32.0.0/11")
HOLES = tuple(map(ip_network, ("10.34.0.0/24", "10.33.0.3/32")))
_X, _C = labelled(ns="x"), labelled(pod="c")
PEERS = {
    "all pods of the same namespace": Peer(pods=ALL),
    "pods by label in the same namespace": Peer(pods=_C),
    "all namespaces": Peer(namespaces=ALL),
    "all pods of all namespaces": Peer(ALL, ALL),
    "pods by label in all namespaces": Peer(_C, ALL),
    "namespaces by label": Peer(namespaces=_X),
    "all pods of namespaces by label": Peer(ALL, _X),
    "pods by label in namespaces by label": Peer(_C, _X),
    "a block": Peer(block=Block(NEAR)),
    "a block with exceptions": Peer(block=Block(NEAR, HOLES)),
}


@family("targets", "the pods that a policy selects", CYCLONUS)
def _targets(_: Layout) -> Iterator[Case]:
    for namespace in NAMESPACES:
        yield single(f"in namespace {namespace}", replace(BASE, namespace=namespace))
    selectors = {"all pods": ALL, "pods by label": labelled(pod="a"), "pods by expression": within("pod", "a", "b")}
    for name, selector in selectors.items():
        yield single(name, replace(BASE, pods=selector))


@family("rules", "no rule at all, and a rule that allows everything", CYCLONUS)
def _rules(_: Layout) -> Iterator[Case]:
    for direction in DIRECTIONS:
        yield single(f"{direction}: no rule", with_rules(direction, ()))
        yield single(f"{direction}: an empty rule", with_rules(direction, ANY))


@family("peers", "none, one and two peers of every form", CYCLONUS)
def _peers(_: Layout) -> Iterator[Case]:
    for direction in DIRECTIONS:
        yield single(f"{direction}: no peers", with_peers(direction))
        for name, peer in PEERS.items():
            yield single(f"{direction}: {name}", with_peers(direction, peer))
        for (one, first), (other, second) in combinations(PEERS.items(), 2):
            yield single(f"{direction}: {one}; {other}", with_peers(direction, first, second))


def _ports() -> dict[str, Port]:
    """Return a port of every form."""
    found = {"port left out, protocol left out": Port()}
    for number in (80, 81):
        found[f"{number}, protocol left out"] = Port(port=number)
    for protocol in PROTOCOLS:
        found[f"all of {protocol}"] = Port(protocol)
        for number in (80, 81):
            found[f"{number}/{protocol}"] = Port(protocol, number)
            found[f"named {protocol}-{number}"] = Port(protocol, f"{protocol}-{number}")
        for end in (80, 84):
            found[f"53-{end}/{protocol}"] = Port(protocol, 53, end)
    # No pod serves these.
    found["a name of another protocol"] = Port("tcp", "udp-81")
    found["a name that no pod has"] = Port("tcp", "udp-7981")
    found["a number that no pod serves"] = Port("tcp", 7981)
    return found


_PAIRS = {
    "all of TCP; 80": (Port(), Port(port=80)),
    "all of TCP; named tcp-80": (Port(), Port(port="tcp-80")),
    "all of TCP; all of UDP": (Port(), Port("udp")),
    "80; 81": (Port(port=80), Port(port=81)),
    "80; named tcp-81": (Port(port=80), Port(port="tcp-81")),
    "80; named udp-81": (Port(port=80), Port("udp", "udp-81")),
    "80/udp; named udp-81": (Port("udp", 80), Port("udp", "udp-81")),
}


@family("ports", "none, one and two ports of every form: numbers, names, ranges, protocols", CYCLONUS)
def _ports_family(_: Layout) -> Iterator[Case]:
    for direction in DIRECTIONS:
        yield single(f"{direction}: no ports", with_ports(direction))
        for name, port in _ports().items():
            yield single(f"{direction}: {name}", with_ports(direction, port))
        for name, pair in _PAIRS.items():
            yield single(f"{direction}: {name}", with_ports(direction, *pair))


@family("default label", "a namespace by the label that Kubernetes gives to all", CYCLONUS)
def _default_label(_: Layout) -> Iterator[Case]:
    for direction in DIRECTIONS:
        yield single(f"{direction}: namespace z", with_peers(direction, Peer(namespaces=labelled(**{NAME_LABEL: "z"}))))
