"""Several policies for the same pods: they add up, and the two ends of a connection decide independently."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

from tests.referees.networkpolicy.cases import CYCLONUS, Case, family, single
from tests.referees.networkpolicy.families.base import DNS, egress, ingress, peers
from tests.referees.networkpolicy.placing import Layout
from tests.referees.networkpolicy.spec import ALL, Block, NetworkPolicy, Peer, Rule, labelled

_B, _C = labelled(pod="b"), labelled(pod="c")
EVERYTHING = Rule()
BY_POD = peers(Peer(namespaces=ALL))
BY_ADDRESS = peers(Peer(block=Block(ip_network("0.0.0.0/0"))))
#: Rules that match nothing, so that the policy denies everything.
NO_POD = peers(Peer(namespaces=labelled(never="here")))
NO_ADDRESS = peers(Peer(block=Block(ip_network("0.0.0.0/31"))))


def _to(name: str, *rules: Rule) -> NetworkPolicy:
    return ingress(name, "y", _C, *rules)


def _from(name: str, *rules: Rule) -> NetworkPolicy:
    return egress(name, "x", _B, *rules)


_DNS = _from("dns", DNS)


@family("conflicts", "policies that allow and policies that deny", CYCLONUS)
def _conflicts(_: Layout) -> Iterator[Case]:
    yield single("the source denies, the destination allows", _from("none"), _to("all", EVERYTHING), _DNS)
    yield single("the source allows, the destination denies", _from("all", EVERYTHING), _to("none"), _DNS)
    pairs: dict[str, tuple[tuple[Rule, ...], tuple[Rule, ...]]] = {
        "nothing; everything": ((), (EVERYTHING,)),
        "nothing; all pods": ((), (BY_POD,)),
        "nothing; all IPv4 addresses": ((), (BY_ADDRESS,)),
        "no address; all pods": ((NO_ADDRESS,), (BY_POD,)),
        "no pod; all IPv4 addresses": ((NO_POD,), (BY_ADDRESS,)),
    }
    for name, (one, other) in pairs.items():
        yield single(f"egress: {name}", _from("one", *one), _from("other", *other), _DNS)
        yield single(f"ingress: {name}", _to("one", *one), _to("other", *other))
    for name, rule in {"no address": NO_ADDRESS, "no pod": NO_POD}.items():
        yield single(f"egress: {name}", _from("one", rule), _DNS)
        yield single(f"ingress: {name}", _to("one", rule))
