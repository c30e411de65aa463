"""Networks + endpoints + their policies → what each address accepts and may initiate. Pure.

`of` is the whole decision; `plugin.policy.verdict` is the reference for one packet, against which the kernel is tested.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache, reduce
from ipaddress import ip_network
from operator import itemgetter

from plugin.labels.keys import EVERYTHING
from plugin.labels.parser import over
from plugin.model import (
    Address,
    BridgeNetwork,
    Container,
    Defaults,
    Endpoint,
    Network,
    Override,
    Peer,
    Policy,
    PolicySpec,
    Prefix,
    Published,
    Rule,
)

#: The base that needs no configuration: ssh, http (Let's Encrypt's verification), https.
BASE: tuple[Rule, ...] = tuple(Rule("tcp", port, port, origin="base") for port in (22, 80, 443))
NOTHING = Override()
_UNSET = Defaults()


@lru_cache(maxsize=16384)
def prefix_of(peer: Peer) -> Prefix:
    """Return the prefix of a `prefix` peer."""
    return ip_network(peer.value)


def of(
    network: Network | BridgeNetwork, endpoint: Endpoint, defaults: Defaults = _UNSET, override: Override = NOTHING
) -> Policy:
    """Return the policy of an endpoint's addresses.

    They accept nothing until the endpoint is joined and its container's labels are known and valid: an unknown address
    is closed. On an internal network, which no outside host reaches, they accept nothing.
    """
    spec = words(network, endpoint, defaults)
    log, known = spec.log, endpoint.joined and endpoint.container is not None
    if not labels_valid(network, endpoint):
        return Policy(egress=_confined(network, endpoint, spec), log=log, known=known)
    base, by_port = BASE, published(endpoint) if defaults.published else ()
    if spec.policy == "closed":
        base, by_port = (), ()
    elif spec.policy == "open":
        base = tuple(dataclasses.replace(rule, origin="fw.policy: open") for rule in EVERYTHING)
    if isinstance(network, BridgeNetwork):
        base = () if endpoint.unlisted else tuple(minus(base, for_host_alone(endpoint)))
    # A rule with peers removes its ports from the base, whichever peers it has.
    allow = (*spec.allow, *override.allow)
    taken = (*spec.deny, *(rule for rule in allow if rule.peers), *override.deny)
    accepts = [*minus(base, taken), *minus(spec.allow, override.deny), *override.allow]
    return Policy(
        accepts=tuple(sorted(dict.fromkeys(accepts))),
        published=tuple(sorted(set(minus(by_port, taken)))),
        egress=_confined(network, endpoint, spec),
        rates=spec.rate or (),
        log=log,
        labels_valid=True,
        known=known,
    )


def unconfirmed(policy: Policy) -> Policy:
    """Return the policy while it is unknown which container has the addresses: closed; restricted egress is none."""
    return Policy(egress=None if policy.egress is None else (), log=policy.log)


def words(network: Network | BridgeNetwork, endpoint: Endpoint, defaults: Defaults) -> PolicySpec:
    """Merge the policies that apply, the most specific last: image, settings, network, container, attachment."""
    container = endpoint.container or Container("", "")
    return reduce(over, (container.image_spec, defaults.spec, network.spec, container.spec, endpoint.spec))


def labels_valid(network: Network | BridgeNetwork, endpoint: Endpoint) -> bool:
    """Return False if the endpoint answers on ICMP only.

    On a Docker network docker-fw cannot refuse a start, so a mistake in `fw.allow` opens nothing and leaves the base.
    """
    container = endpoint.container
    if network.internal or not endpoint.joined or container is None:
        return False
    if isinstance(network, BridgeNetwork):
        return not any(problem.closes for problem in (*network.problems, *container.problems))
    return not container.problems


def _confined(network: Network | BridgeNetwork, endpoint: Endpoint, spec: PolicySpec) -> tuple[Rule, ...] | None:
    """Return the connections that the endpoint may open; None: all. After a mistake that may concern egress: none."""
    problems = endpoint.container.problems if endpoint.container else ()
    if isinstance(network, BridgeNetwork):
        problems = tuple(problem for problem in (*network.problems, *problems) if problem.confines)
    if problems:
        return ()
    return None if spec.egress is None or spec.egress == EVERYTHING else spec.egress


def published(endpoint: Endpoint) -> tuple[Rule, ...]:
    """Return the container's ports that are published on other than loopback addresses, as rules."""
    ports = (p for p in endpoint.published if not p.host_ip.is_loopback)
    return tuple(dict.fromkeys(Rule(p.proto, p.container_port, p.container_port, origin="-p") for p in ports))


def for_host_alone(endpoint: Endpoint) -> list[Rule]:
    """Return the container's ports that are published on loopback addresses only.

    On Docker networks they are not in the base: Docker's rules for such a port admit any host with a route to the
    container. docker-fw networks are reached by address, so there the base stays.
    """
    ports = [(p.host_ip.is_loopback, (p.proto, p.container_port)) for p in endpoint.published]
    alone = {port for loopback, port in ports if loopback} - {port for loopback, port in ports if not loopback}
    return [Rule(proto, port, port) for proto, port in alone]


def minus(rules: Iterable[Rule], holes: Iterable[Rule]) -> Iterator[Rule]:
    """Yield the rules without the ports that the holes cover; the peers of a rule do not change."""
    covered: dict[str, list[tuple[int, int]]] = {}
    for hole in sorted(holes):
        ranges = covered.setdefault(hole.proto, [])
        if ranges and hole.first <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(ranges[-1][1], hole.last))
        else:
            ranges.append((hole.first, hole.last))
    for rule in rules:
        yield from _without(rule, covered.get(rule.proto, []))


def _without(rule: Rule, covered: Sequence[tuple[int, int]]) -> Iterator[Rule]:
    """Yield the parts of a rule outside `covered`: sorted ranges that do not overlap."""
    first = rule.first
    for index in range(bisect_left(covered, first, key=itemgetter(1)), len(covered)):
        start, end = covered[index]
        if rule.last < start:
            break
        if first < start:
            yield dataclasses.replace(rule, first=first, last=start - 1)
        first = end + 1
    if first == rule.first:
        yield rule
    elif first <= rule.last:
        yield dataclasses.replace(rule, first=first)


def closed_ports(policy: Policy, endpoint: Endpoint) -> tuple[Published, ...]:
    """Return the endpoint's published ports that are not open to all sources; the host itself may always use them."""
    rules = (*policy.accepts, *policy.published)
    return tuple(
        port
        for port in endpoint.published
        if not port.host_ip.is_loopback
        and not any(not rule.peers for rule in rules if covers(rule, port.proto, port.container_port))
    )


def closed_together(places: Collection[frozenset[Published]], *, doubted: bool) -> frozenset[Published]:
    """Return a container's published ports on Docker networks that are not open to all sources, from its endpoints'.

    Docker publishes a port for a container, not for one endpoint: the port is closed if it is closed at each endpoint,
    or at any endpoint while it is unknown who has the addresses of one.
    """
    if doubted or not places:
        return frozenset().union(*places)
    return frozenset.intersection(*places)


def covers(rule: Rule, proto: str, port: int) -> bool:
    """True if the rule covers this port (0 for a protocol without ports), with any peer."""
    return rule.proto == proto and rule.first <= port <= rule.last


def passes(rules: Iterable[Rule], proto: str, port: int, peer: Address) -> bool:
    """True if one of the rules covers this flow with this peer; the rules' peers are addresses."""
    return any(
        covers(rule, proto, port) and (not rule.peers or any(_is(peer, each) for each in rule.peers)) for rule in rules
    )


def _is(address: Address, peer: Peer) -> bool:
    return peer.kind == "prefix" and address in prefix_of(peer)
