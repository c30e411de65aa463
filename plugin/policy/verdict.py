"""The reference: whether the first packet of a flow passes, step by step, by the policy alone. Pure.

`fwctl explain` shows this, and a test compares the kernel with it: where they differ, one of them is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Literal

from plugin.model import Address, BridgeNetwork, Endpoint, Network, Policy, Rule
from plugin.policy.bans import holding, written
from plugin.policy.decide import covers, for_host_alone, passes
from plugin.policy.facts import ElementOwner, Kind
from plugin.policy.rate_quota import FULL
from plugin.policy.view import PolicyView
from plugin.protocols import NUMBER, OTHER

#: ICMP and ICMPv6 under one name, as a user writes it; it means useful messages, such as echo-request.
ICMP = "icmp"
_NOBODY = ElementOwner(Kind.ENDPOINT)


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a flow.

    `source` None: a program of the host itself. `proto`: one of `plugin.protocols`, icmp or "other"; `port` 0 if it has
    none. `host`: the target is one of the host's own addresses. `by`: the packet arrived at a published port that leads
    to this target and port, and is forwarded ("dnat") or served by docker-proxy ("proxy").
    """

    source: Address | None
    target: Address
    proto: str
    port: int = 0
    host: bool = False
    by: Literal["", "dnat", "proxy"] = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One check and its outcome: "" (continue), "accept" or "drop". `origin`: the label, setting or command behind it.

    `limited`: a rate limit applies, so a packet may be dropped although the last step accepts it.
    """

    text: str
    outcome: str = ""
    origin: str = ""
    limited: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """The steps of a packet's path; the last one decides."""

    steps: tuple[Step, ...]

    @property
    def accepted(self) -> bool:
        """True if the packet is accepted."""
        return self.steps[-1].outcome == "accept"


@dataclass(frozen=True, slots=True)
class Found:
    """An address within a network, and the endpoint that has it (None: unknown)."""

    network: Network | BridgeNetwork
    endpoint: Endpoint | None = None
    owner: ElementOwner = _NOBODY

    @property
    def name(self) -> str:
        """The container's name for messages."""
        return self.endpoint.container.name if self.endpoint and self.endpoint.container else "an unknown address"


def verdict(inventory: PolicyView, packet: Packet, now: float = 0) -> Verdict:
    """Return whether docker-fw lets a packet through, and why; Docker's firewall and the host's are not considered.

    `now`: Unix time, for bans.
    """
    return Verdict(tuple(_until_decided(_steps(inventory, packet, now))))


def _until_decided(steps: Iterator[Step]) -> Iterator[Step]:
    for step in steps:
        yield step
        if step.outcome:
            return


def _steps(inventory: PolicyView, packet: Packet, now: float) -> Iterator[Step]:
    if packet.source is None:
        yield Step("the host reaches every container", "accept")
        return
    # docker-proxy's connection to the container starts on the host, where bans are not checked.
    for address in (packet.source,) if packet.by == "proxy" else (packet.source, packet.target):
        if prefix := holding(ip_network(address), inventory.state.bans, now):
            for_a_time = " for a time" if inventory.state.bans[prefix] else ""
            yield Step(f"{address} is banned ({written(prefix)}{for_a_time})", "drop", "fwctl ban")
    source, target = find(inventory, packet.source), None if packet.host else find(inventory, packet.target)
    together = source and target and source.network.id == target.network.id
    if source and together and (packet.by != "proxy" or source.network.flat):
        yield Step(f"both are on {source.network.name}, where containers talk freely", "accept")
    if source and packet.by != "proxy":  # packets to docker-proxy go to the host, and are judged as such
        yield from _leaves(inventory, packet, source)
    if target is None:
        where = "the host itself, which docker-fw does not filter" if packet.host else "not on a container network"
        yield Step(f"{packet.target} is {where}", "accept")
        return
    yield from _enters(inventory, packet, target)


def _leaves(inventory: PolicyView, packet: Packet, source: Found) -> Iterator[Step]:
    network = source.network
    if network.internal and not packet.host:
        yield Step(f"{network.name} is internal: no traffic leaves it", "drop")
    if not egress_restricted(inventory, network):
        yield Step(f"on {network.name} every container may open any connection")
        return
    yield from _unwatched(inventory, network)
    policy = policy_of(inventory, source)
    if policy is None or (policy.egress is None and not policy.known):
        text = f"egress on {network.name} is restricted, and it is unknown which rules apply to {source.name}"
        yield Step(text, "drop")
        return
    if policy.egress is None:
        yield Step(f"{source.name} may open any connection")
        return
    rule = _host_rule(policy, packet) or _rule(policy.egress, packet.proto, packet.port, packet.target)
    if rule is None:
        allowed = ", ".join(map(str, policy.egress)).replace(" from ", " to ")
        text = f"may open {allowed}, not this" if allowed else "may open no connections"
        yield Step(f"{source.name} {text}", "drop", "fw.egress")
    else:
        yield Step(f"{source.name} may open this: {str(rule).replace(' from ', ' to ')}", "", rule.origin)


def _unwatched(inventory: PolicyView, network: Network | BridgeNetwork) -> Iterator[Step]:
    if isinstance(network, BridgeNetwork) and not inventory.watched:
        text = f"docker-fw is behind Docker's events: it is unknown which containers are on {network.name} now"
        yield Step(text, "drop")


def _host_rule(policy: Policy, packet: Packet) -> Rule | None:
    rules = (rule for rule in policy.egress or () if any(peer.kind == "host" for peer in rule.peers))
    return next((rule for rule in rules if packet.host and covers(rule, packet.proto, packet.port)), None)


def _enters(inventory: PolicyView, packet: Packet, target: Found) -> Iterator[Step]:
    network = target.network
    if network.internal:
        yield Step(f"{network.name} is internal: no traffic from outside enters it", "drop")
    if packet.proto == ICMP:
        text = "useful ICMP (errors, ping) is always accepted"
        if target.endpoint is None:
            text = f"no container is known to have {packet.target}: a few packets of useful ICMP a second are accepted"
        yield Step(text, "accept", "base", limited=target.endpoint is None)
    yield from _unwatched(inventory, network)
    policy = policy_of(inventory, target)
    if policy is None or not policy.known:
        yield Step(f"it is unknown which container has {packet.target}: it answers on ICMP only", "drop")
        return
    yield Step(f"{packet.target} is {target.name} on {network.name}")
    if not policy.labels_valid:
        yield Step(f"{target.name} has a mistake in its labels, and answers on ICMP only", "drop")
    rules = (*policy.accepts, *(policy.published if packet.by else ()))
    rule = _rule(rules, packet.proto, packet.port, packet.source) if packet.source else None
    if rule is None:
        yield Step(f"{target.name} {_not_accepted(packet, target, policy)}", "drop")
        return
    yield from _rates(inventory, packet, target, policy)
    yield Step(f"{target.name} accepts {rule}", "accept", rule.origin)


def _not_accepted(packet: Packet, target: Found, policy: Policy) -> str:
    """Return that a container does not accept a packet, and from whom it accepts such packets."""
    what = Rule(packet.proto, packet.port, packet.port).what
    near = [rule for rule in policy.accepts if covers(rule, packet.proto, packet.port)]
    if near:
        return f"accepts {what} from others: " + "; ".join(f"{rule} ({rule.origin})" for rule in near)
    on_bridge = target.endpoint if isinstance(target.network, BridgeNetwork) else None
    alone = for_host_alone(on_bridge) if on_bridge else ()
    if any(covers(each, packet.proto, packet.port) for each in alone):
        return f"does not accept {what}, which is published on the host's loopback only"
    return f"does not accept {what}"


def _rates(inventory: PolicyView, packet: Packet, target: Found, policy: Policy) -> Iterator[Step]:
    """Yield the rate limits of the packet's port, which every accepted packet passes."""
    for rate in policy.rates:
        if rate.proto == packet.proto and rate.first <= packet.port <= rate.last:
            if inventory.rates_refused(target.owner):
                yield Step(f"{target.name}: {FULL}", "drop", rate.origin)
            yield Step(f"each source is limited: {rate}", "", rate.origin, limited=True)


def _rule(rules: tuple[Rule, ...], proto: str, port: int, peer: Address) -> Rule | None:
    return next((rule for rule in rules if passes((rule,), proto, port, peer)), None)


def policy_of(inventory: PolicyView, found: Found) -> Policy | None:
    """Return the policy of an address, with addresses instead of names; None if its endpoint is unknown."""
    if found.endpoint is None:
        return None
    return inventory.effective(found.owner, found.network, found.endpoint)


def egress_restricted(inventory: PolicyView, network: Network | BridgeNetwork) -> bool:
    """True if egress of any container on the network is restricted; unknown addresses there may then open nothing."""
    if inventory.confines(network):
        return True
    there = (found for owner in inventory.owners() if (found := inventory.endpoint(owner)) and found[0] == network)
    return any(inventory.decide(*found).egress is not None for found in there if found[1].joined)


def find(inventory: PolicyView, address: Address) -> Found | None:
    """Return the network of the address and the endpoint that has it; None if it is in no network."""
    network: Network | BridgeNetwork | None = None
    for owner in inventory.owners():
        found = inventory.endpoint(owner)
        if found and found[1].joined and address in (found[1].addr4, found[1].addr6):
            return Found(found[0], found[1], owner)
    for candidate in inventory.networks():
        if any(address in subnet for subnet in candidate.subnets):
            network = candidate
    return Found(network) if network else None


def number_of(proto: str) -> str:
    """Return the name that rules use for a protocol that a user wrote."""
    proto = proto.lower()
    if proto in NUMBER or proto in (ICMP, OTHER):
        return proto
    return ICMP if proto in ("icmpv6", "icmp6", "ping") else OTHER
