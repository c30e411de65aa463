"""What is right and does nothing all the same: peers that are nobody, rules on what is open or out of reach. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial

from plugin.fwctl.check.compose.model import Notes
from plugin.fwctl.check.compose.stack import Stack, near
from plugin.fwctl.check.judge import Judged
from plugin.labels.keys import EVERYTHING
from plugin.labels.parser import split
from plugin.model import Peer, Rule
from plugin.policy import decide
from plugin.protocols import PUBLISHABLE

#: A rule as it is told: where it was said, and its words.
PolicySpec = tuple[str, str]

_FREE = "containers of one network talk freely"


def hints(stack: Stack, judged: Iterable[Judged], notes: Notes) -> None:
    """Warnings, each at the line of the key that is without effect on every network for which it is said."""
    nobody = lru_cache(maxsize=None)(partial(_nobody, stack))
    services: dict[str, list[tuple[Judged, set[str], dict[PolicySpec, str]]]] = {}
    for each in judged:
        found = dict(_of(stack, each, nobody))
        services.setdefault(each.service.name, []).append((each, _origins(each), found))
    for name, nets in services.items():
        told: set[PolicySpec] = set()
        for each, _, found in nets:
            for (origin, what), why in found.items():
                everywhere = all((origin, what) in there for _, origins, there in nets if origin in origins)
                if origin in each.places and everywhere and (origin, what) not in told:
                    told.add((origin, what))
                    notes.warn(each.places[origin], f"{origin}: {what} {why}", name)


def _origins(each: Judged) -> set[str]:
    """Where the rules stand that hold on a network."""
    spec = each.spec
    rates = {rate.origin for rate in spec.rate or ()}
    return rates | {rule.origin for rule in (*spec.allow, *spec.deny, *(spec.egress or ()))}


def _of(stack: Stack, each: Judged, nobody: Callable[[Peer], str]) -> Iterator[tuple[PolicySpec, str]]:
    """Every rule of a service's on a network that does nothing there, and why."""
    spec = each.spec
    egress = spec.egress if spec.egress and spec.egress != EVERYTHING else ()
    for rule in (*spec.allow, *egress):
        for peer in rule.peers:
            if why := nobody(peer):
                yield (rule.origin, str(peer)), why
    base = {"closed": (), "open": EVERYTHING}.get(spec.policy, decide.BASE)
    yield from _allow(stack, each, base)
    for rule in egress:
        if free := _free(stack, each, rule, inbound=False):
            yield (rule.origin, f"{rule.what} to {' '.join(map(str, rule.peers))}"), f"has no effect: {free}"
    for rule in spec.deny:
        # A wrong fw.allow denies what it was to restrict.
        if split(rule.origin.rpartition(" ")[2])[1] == "fw.deny" and not _meets(rule, base):
            why = "fw.allow opens it all the same" if _meets(rule, spec.allow) else "it is closed anyway"
            yield (rule.origin, rule.what), f"has no effect: it only takes ports out of the base, and {why}"
    for rate in spec.rate or ():
        ports = Rule(rate.proto, rate.first, rate.last)
        if not each.problems and not _meets(ports, (*each.policy.accepts, *each.policy.published)):
            yield (rate.origin, ports.what), "is limited, and closed anyway"


def _allow(stack: Stack, each: Judged, base: Iterable[Rule]) -> Iterator[tuple[PolicySpec, str]]:
    for rule in each.spec.allow:
        if _meets(rule, base):  # then a rule with peers restricts, and that is an effect
            continue
        if free := _free(stack, each, rule, inbound=True):
            yield (rule.origin, str(rule)), f"has no effect: {free}"
        elif why := _unreachable(each, rule):
            yield (rule.origin, rule.what), f"has no effect: {why}"


def _nobody(stack: Stack, peer: Peer) -> str:
    """Why a peer matches nobody, as far as the files tell."""
    services = stack.services
    if peer.kind == "service":
        if peer.value not in services:
            return f"is no service of these files, and matches nobody{near(peer.value, services)}"
        if not any(net.kind != "apart" for net in stack.on(peer.value)) or services[peer.value].shares:
            return "matches nobody: it has no address of its own on a network that docker-fw knows"
    if peer.kind == "container":
        names = {service.container for service in services.values()}
        if peer.value in services and peer.value not in names:
            called = services[peer.value].container
            return f"matches nobody: the container of that service is called {called}; write service:{peer.value}"
        if peer.value not in names and all(service.named for service in services.values()):
            return f"is no container_name of these files, and matches nobody here{near(peer.value, names)}"
    return ""


def _free(stack: Stack, each: Judged, rule: Rule, *, inbound: bool) -> str:
    """Why all the rule's peers may anyway; "" if one of them needs the rule, or it has none."""
    found = [_may_anyway(stack, each, peer, inbound=inbound) for peer in rule.peers]
    return "; ".join([*dict.fromkeys(found)][:3]) if found and all(found) else ""


def _may_anyway(stack: Stack, each: Judged, peer: Peer, *, inbound: bool) -> str:
    if peer.kind == "host":
        return "the host itself always may" if inbound else ""
    theirs = {net.key for name in _services(stack, peer) for net in stack.on(name)}
    for net in stack.on(each.service.name):
        there = peer.value in net.names if peer.kind == "network" else net.key in theirs
        if there and net.flat and net.kind != "apart":
            return f"{peer} is on {net.key} too, and {_FREE}"
    return ""


def _services(stack: Stack, peer: Peer) -> list[str]:
    if peer.kind == "service":
        return [peer.value]
    if peer.kind == "container":
        return [service.name for service in stack.services.values() if service.container == peer.value]
    return []


def _unreachable(each: Judged, rule: Rule) -> str:
    net = each.net
    if net.internal:
        return "the network is internal; put the container on another one too"
    if net.direct or rule.proto not in PUBLISHABLE or not _labelled(rule):
        return ""
    if _meets(rule, (Rule(port.proto, port.first, port.last) for port in each.service.ports)):
        return ""
    ports = rule.what.partition("/")[0]
    wish = f"{ports}:{ports}" + ("" if rule.proto == "tcp" else f"/{rule.proto}")
    return (
        f"it is not published, and from outside nobody reaches a container of a nat network; publish it (ports: "
        f'["{wish}"]), or give the network gateway mode routed or docker-fw\'s driver'
    )


def _labelled(rule: Rule) -> bool:
    """Said of this container; what a network or the settings say is for whoever publishes it."""
    return rule.origin.startswith("label ")


def _meets(rule: Rule, others: Iterable[Rule]) -> bool:
    """True if a port of the rule's is one of another's."""
    return any(rule.proto == o.proto and rule.first <= o.last and o.first <= rule.last for o in others)
