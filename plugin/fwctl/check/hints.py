"""Correct rules that have no effect: peers that match no container, ports that are open or unreachable. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import NamedTuple

from plugin.fwctl.check.compose.model import Notes
from plugin.fwctl.check.compose.stack import Net, Stack, near
from plugin.fwctl.check.judge import Judged
from plugin.labels.keys import EVERYTHING
from plugin.labels.parser import split
from plugin.labels.peer_kinds import NAMED
from plugin.model import Peer, Rule
from plugin.policy import decide
from plugin.protocols import PUBLISHABLE

#: A rule as it is shown: its origin and its text.
ShownRule = tuple[str, str]

_FREE = "containers on one network talk freely"


def hints(stack: Stack, judged: Iterable[Judged], notes: Notes) -> None:
    """Add warnings, each at the line of a key that has no effect on any network it applies to."""
    unmatched = lru_cache(maxsize=None)(partial(_unmatched, stack))
    services: dict[str, list[tuple[Judged, set[str], dict[ShownRule, str]]]] = {}
    for each in judged:
        found = dict(_of(stack, each, unmatched))
        services.setdefault(each.service.name, []).append((each, _origins(each), found))
    for name, nets in services.items():
        noted: set[ShownRule] = set()
        for each, _, found in nets:
            for (origin, what), why in found.items():
                everywhere = all((origin, what) in there for _, origins, there in nets if origin in origins)
                if origin in each.places and everywhere and (origin, what) not in noted:
                    noted.add((origin, what))
                    notes.warn(each.places[origin], f"{origin}: {what} {why}", name)


def _origins(each: Judged) -> set[str]:
    """Return the origins of the rules that apply on a network."""
    spec = each.spec
    rates = {rate.origin for rate in spec.rate or ()}
    return rates | {rule.origin for rule in (*spec.allow, *spec.deny, *(spec.egress or ()))}


def _of(stack: Stack, each: Judged, unmatched: Callable[[Peer], str]) -> Iterator[tuple[ShownRule, str]]:
    """Yield every rule of a service that has no effect on a network, and why."""
    spec = each.spec
    egress = spec.egress if spec.egress and spec.egress != EVERYTHING else ()
    for rule in (*spec.allow, *egress):
        for peer in rule.peers:
            if why := unmatched(peer):
                yield (rule.origin, str(peer)), why
    base = {"closed": (), "open": EVERYTHING}.get(spec.policy, decide.BASE)
    yield from _allow(stack, each, base)
    for rule in egress:
        if free := _free(stack, each, rule, inbound=False):
            yield (rule.origin, f"{rule.what} to {' '.join(map(str, rule.peers))}"), f"has no effect: {free}"
    for rule in spec.deny:
        # A wrong fw.allow denies what it was to restrict.
        if split(rule.origin.rpartition(" ")[2])[1] == "fw.deny" and not _meets(rule, base):
            why = "fw.allow opens this one" if _meets(rule, spec.allow) else "this one is closed anyway"
            yield (rule.origin, rule.what), f"has no effect: fw.deny only removes ports from the base, and {why}"
    for rate in spec.rate or ():
        ports = Rule(rate.proto, rate.first, rate.last)
        if not each.problems and not _meets(ports, (*each.policy.accepts, *each.policy.published)):
            yield (rate.origin, ports.what), "has no effect: the port is closed"


def _allow(stack: Stack, each: Judged, base: Iterable[Rule]) -> Iterator[tuple[ShownRule, str]]:
    for rule in each.spec.allow:
        if _meets(rule, base):  # then a rule with peers restricts the port, which is an effect
            continue
        if free := _free(stack, each, rule, inbound=True):
            yield (rule.origin, str(rule)), f"has no effect: {free}"
        elif why := _unreachable(each, rule):
            yield (rule.origin, rule.what), f"has no effect: {why}"


def _unmatched(stack: Stack, peer: Peer) -> str:
    """Return why a peer matches no container of these files, or ""."""
    return _HINTS[peer.kind].unmatched(stack, peer.value) if peer.kind in _HINTS else ""


def _no_service(stack: Stack, name: str) -> str:
    services = stack.services
    if name not in services:
        return f"is not a service in these files, so it matches no container{near(name, services)}"
    if not any(net.kind != "apart" for net in stack.on(name)) or services[name].shares:
        return "matches no container: it has no address of its own on a network that docker-fw protects"
    return ""


def _no_container(stack: Stack, name: str) -> str:
    services = stack.services
    names = {service.container for service in services.values()}
    if name in services and name not in names:
        named = services[name].container
        return f"matches no container: the container of that service is named {named}; write service:{name}"
    if name not in names and all(service.named for service in services.values()):
        return f"is not a container_name in these files, so it matches no container here{near(name, names)}"
    return ""


def _free(stack: Stack, each: Judged, rule: Rule, *, inbound: bool) -> str:
    """Return why all the rule's peers have access anyway; "" if one of them needs the rule, or it has none."""
    found = [_has_access(stack, each, peer, inbound=inbound) for peer in rule.peers]
    return "; ".join([*dict.fromkeys(found)][:3]) if found and all(found) else ""


def _has_access(stack: Stack, each: Judged, peer: Peer, *, inbound: bool) -> str:
    if peer.kind == "host":
        return "the host itself always has access" if inbound else ""
    for net in stack.on(each.service.name):
        there = peer.kind in _HINTS and _HINTS[peer.kind].on(stack, peer.value, net)
        if there and net.flat and net.kind != "apart":
            return f"{peer} is on {net.key} too, and {_FREE}"
    return ""


def _service_on(stack: Stack, name: str, net: Net) -> bool:
    return net.key in {each.key for each in stack.on(name)}


def _container_on(stack: Stack, name: str, net: Net) -> bool:
    services = (service.name for service in stack.services.values() if service.container == name)
    return any(_service_on(stack, each, net) for each in services)


class _Hint(NamedTuple):
    """The facts that files contain about a kind of peers.

    `unmatched`: why a name matches no container ("" if it may match one). `on`: True if all that it matches is on a
    network.
    """

    unmatched: Callable[[Stack, str], str]
    on: Callable[[Stack, str, Net], bool]


_HINTS = {
    "container": _Hint(_no_container, _container_on),
    "service": _Hint(_no_service, _service_on),
    "project": _Hint(lambda *_: "", lambda *_: False),
    "network": _Hint(lambda *_: "", lambda _, name, net: name in net.names),
}
if _missing := NAMED.keys() ^ _HINTS.keys():
    raise TypeError(f"plugin.fwctl.check.hints and the kinds of peers do not agree on {', '.join(sorted(_missing))}")


def _unreachable(each: Judged, rule: Rule) -> str:
    net = each.net
    if net.internal:
        return "the network is internal; connect the service to another network too"
    if net.direct or rule.proto not in PUBLISHABLE or not _labelled(rule):
        return ""
    if _meets(rule, (Rule(port.proto, port.first, port.last) for port in each.service.ports)):
        return ""
    ports = rule.what.partition("/")[0]
    wish = f"{ports}:{ports}" + ("" if rule.proto == "tcp" else f"/{rule.proto}")
    return (
        f"it is not published, and a container on a nat network cannot be reached from outside; publish it (ports: "
        f'["{wish}"]), or give the network gateway mode routed or docker-fw\'s driver'
    )


def _labelled(rule: Rule) -> bool:
    """True for a rule of this container; a rule of a network or a setting is for containers that publish the port."""
    return rule.origin.startswith("label ")


def _meets(rule: Rule, others: Iterable[Rule]) -> bool:
    """True if a port of the rule's is one of another's."""
    return any(rule.proto == o.proto and rule.first <= o.last and o.first <= rule.last for o in others)
