"""`fwctl explain`: what becomes of a flow, step by step, with the rule that decides and who said it. Pure.

`plugin.policy.verdict` is the policy's word on one packet; here is which packets a question is about, and what else is
in the way: published ports, and Docker's own firewall.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from plugin.docker.engine import Engine
from plugin.fwctl.api.docker_firewall_drops import dockers
from plugin.fwctl.api.flow_ends import End, ends, nobody, pairs
from plugin.labels.grammar import parse_deny
from plugin.model import PORTLESS, PROTO_NUMBER, Address, BridgeNetwork, FwError, Published
from plugin.policy.verdict import ICMP, Found, Packet, Step, find, number_of, verdict
from plugin.policy.view import Inventory

NOTE = "not asked: ufw, firewalld and whatever else stands in this host's firewall; their drop is one too"
_PING = ("icmp", "icmpv6", "icmp6", "ping")


@dataclass(frozen=True, slots=True)
class Around:
    """What is known besides the policy. `own`: the host's addresses; `now`: Unix time."""

    own: Collection[Address]
    not_guarded: Mapping[str, str]
    engine: Engine
    mark: int
    now: float


def explain(
    inventory: Inventory, source: str, target: str, what: str, around: Around, family: int | None = None
) -> dict[str, Any]:
    """`family`: 4 or 6 alone. Raises FwError that says what would be right."""
    proto, port = _what(what)
    sources, targets = (ends(inventory, text, around.own, around.not_guarded) for text in (source, target))
    if not sources and not targets:
        raise FwError("what goes from the Internet to the Internet does not come by here")
    sources = sources or nobody(inventory, targets, around.now)
    targets = targets or nobody(inventory, sources, around.now)
    met = [pair for pair in pairs(sources, targets) if family in (None, pair[0].address.version)]
    if not met:
        raise FwError(f"{source} and {target} have no address of {f'IPv{family}' if family else 'one family'} both")
    flows = [flow for pair in met for flow in _flows(inventory, *pair, proto, port, around)]
    return {"flows": flows, "accepted": all(flow["accepted"] for flow in flows), "notes": [NOTE]}


def _what(text: str) -> tuple[str, int]:
    """`8080`, `53/udp`, `gre`, `icmp` → (protocol, port)."""
    if text.strip().lower() in _PING:
        return ICMP, 0
    rules, mistakes = parse_deny(text)
    if mistakes:
        raise FwError(f"{mistakes[0]}; besides, {', '.join(PORTLESS)} and icmp have no ports")
    if len(rules) > 1 or rules[0].first != rules[0].last:
        raise FwError(f'"{text[:40]}" is more than one port; ask about one of them')
    return number_of(rules[0].proto), rules[0].first


def _flows(
    inventory: Inventory, source: End, target: End, proto: str, port: int, around: Around
) -> Iterator[dict[str, Any]]:
    """One for each place that the packet may be led to."""
    first = None if source.host else source.address
    doors = list(_doors(inventory, source, target, proto, port)) if target.host else []
    if source.container and source.container == target.container:
        steps = [Step(f"{source.name} talks to itself, which never leaves it", "accept")]
        yield _told(source, target, proto, port, steps)
    elif not doors:
        packet = Packet(first, target.address, proto, port, host=target.host)
        yield _told(source, target, proto, port, [*_judged(inventory, packet, around)])
    found = [_through(inventory, source, target, proto, port, door, around) for door in doors]
    # docker-proxy serves whoever may reach one of the container's places.
    served = [steps for door, steps in zip(doors, found, strict=True) if door.proxy and steps[-1].outcome == "accept"]
    for door, steps in zip(doors, found, strict=True):
        if not (door.proxy and served) or steps is served[0]:
            yield _told(source, target, proto, port, steps)


@dataclass(frozen=True, slots=True)
class _Door:
    """A published port of the host, and where it leads. `proxy`: docker-proxy serves it, for this source."""

    port: Published
    place: Found
    target: Address
    proxy: bool


def _doors(inventory: Inventory, source: End, target: End, proto: str, port: int) -> Iterator[_Door]:
    if proto not in PROTO_NUMBER:
        return
    there = find(inventory, source.address) if source.network else None
    version = target.address.version
    for owner in inventory.owners():
        if (place := inventory.endpoint(owner)) is None or place[0].internal:
            continue
        network, endpoint = place
        own = endpoint.addr4 if version == 4 else endpoint.addr6
        guarded = isinstance(network, BridgeNetwork)
        leads = own or (endpoint.addr4 or endpoint.addr6 if guarded else None)
        for published in endpoint.published:
            if (published.proto, published.host_port, published.host_ip.version) != (proto, port, version) or not leads:
                continue
            if published.host_ip.is_loopback and not source.host:
                continue
            if published.host_ip.is_unspecified or published.host_ip == target.address or target.any:
                proxy = guarded and (own is None or bool(there and isinstance(there.network, BridgeNetwork)))
                yield _Door(published, Found(network, endpoint, owner), leads, proxy)


def _through(
    inventory: Inventory, source: End, target: End, proto: str, port: int, door: _Door, around: Around
) -> list[Step]:
    first = None if source.host else source.address
    steps: list[Step] = []
    if door.proxy and source.network:  # docker-proxy is a program of the host: its client goes to the host
        there = verdict(inventory, Packet(first, target.address, proto, port, host=True), around.now)
        if not there.accepted:
            return list(there.steps)
        steps += there.steps[:-1]
    by = "docker-proxy" if door.proxy else "DNAT"
    leads = f"{door.place.name}'s port {door.port.container_port}/{proto} ({door.target}) by {by}"
    steps.append(Step(f"the host's port {port}/{proto} leads to {leads}", "", "-p"))
    packet = Packet(first, door.target, proto, door.port.container_port, by="proxy" if door.proxy else "dnat")
    return [*steps, *_judged(inventory, packet, around)]


def _judged(inventory: Inventory, packet: Packet, around: Around) -> list[Step]:
    """docker-fw's word, and Docker's where docker-fw accepts."""
    steps = list(verdict(inventory, packet, around.now).steps)
    target = None if packet.host else find(inventory, packet.target)
    if steps[-1].outcome == "accept" and target and packet.source:
        there = find(inventory, packet.source)
        if spec := dockers(there.network if there else None, target, packet, around.engine, around.mark):
            if spec.outcome:
                return [*steps[:-1], Step(steps[-1].text, "", steps[-1].origin), spec]
            steps.insert(-1, spec)
    return steps


def _told(source: End, target: End, proto: str, port: int, steps: list[Step]) -> dict[str, Any]:
    return {
        "family": target.address.version,
        "from": {"name": source.name, "address": None if source.host else str(source.address)},
        "to": {"name": target.name, "address": str(target.address)},
        "what": f"{port}/{proto}" if proto in PROTO_NUMBER else proto,
        "steps": [{"text": step.text, "outcome": step.outcome, "origin": step.origin} for step in steps],
        "accepted": steps[-1].outcome == "accept",
    }
