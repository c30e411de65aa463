"""`fwctl explain`: why a connection is accepted or dropped, step by step, with the origin of each rule. Pure.

`plugin.policy.verdict` decides about one packet. This module finds the packets that a question is about, and adds what
else is in their way: published ports and Docker's own firewall.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from plugin.docker.engine import Engine
from plugin.fwctl.api.docker_firewall import docker_step
from plugin.fwctl.api.flow_ends import End, ends, internet, pairs
from plugin.labels.grammar import parse_deny
from plugin.model import Address, BridgeNetwork, FwError, Published
from plugin.policy.verdict import ICMP, Found, Packet, Step, find, number_of, verdict
from plugin.policy.view import PolicyView
from plugin.protocols import PORTLESS, PUBLISHABLE, WITH_PORTS

NOTE = "not checked: ufw, firewalld and other firewalls of this host, which may drop the packet too"
_PING = ("icmp", "icmpv6", "icmp6", "ping")


@dataclass(frozen=True, slots=True)
class Around:
    """The circumstances of a packet, in addition to the policy. `own`: the host's addresses; `now`: Unix time."""

    own: Collection[Address]
    not_guarded: Mapping[str, str]
    engine: Engine
    mark: int
    now: float


def explain(
    inventory: PolicyView, source: str, target: str, what: str, around: Around, family: int | None = None
) -> dict[str, Any]:
    """Answer a question. `family`: 4 or 6 only. Raises FwError that says what is wrong with the question."""
    proto, port = _what(what)
    sources, targets = (ends(inventory, text, around.own, around.not_guarded) for text in (source, target))
    if not sources and not targets:
        raise FwError("FROM and TO are both the Internet; name a container, an address or host for one of them")
    sources = sources or internet(inventory, targets, around.now)
    targets = targets or internet(inventory, sources, around.now)
    met = [pair for pair in pairs(sources, targets) if family in (None, pair[0].address.version)]
    if not met:
        common = f"IPv{family} address" if family else "address family"
        raise FwError(f"{source} and {target} have no common {common}")
    flows = [flow for pair in met for flow in _flows(inventory, *pair, proto, port, around)]
    return {"flows": flows, "accepted": all(flow["accepted"] for flow in flows), "notes": [NOTE]}


def _what(text: str) -> tuple[str, int]:
    """`8080`, `53/udp`, `gre`, `icmp` → (protocol, port)."""
    if text.strip().lower() in _PING:
        return ICMP, 0
    rules, mistakes = parse_deny(text)
    if mistakes:
        raise FwError(f"{mistakes[0]}; protocols without ports: {', '.join(PORTLESS)}, icmp")
    if len(rules) > 1 or rules[0].first != rules[0].last:
        raise FwError(f'"{text[:40]}" is more than one port; ask about one port')
    return number_of(rules[0].proto), rules[0].first


def _flows(
    inventory: PolicyView, source: End, target: End, proto: str, port: int, around: Around
) -> Iterator[dict[str, Any]]:
    """Yield one answer for each place that the packet may be forwarded to."""
    first = None if source.host else source.address
    doors = list(_doors(inventory, source, target, proto, port)) if target.host else []
    if source.container and source.container == target.container:
        steps = [Step(f"{source.name} sends to itself: the packet does not leave the container", "accept")]
        yield _answer(source, target, proto, port, steps)
    elif not doors:
        packet = Packet(first, target.address, proto, port, host=target.host)
        yield _answer(source, target, proto, port, [*_judged(inventory, packet, around)])
    found = [_through(inventory, source, target, proto, port, door, around) for door in doors]
    # docker-proxy serves every client that may reach one of the container's addresses.
    served = [steps for door, steps in zip(doors, found, strict=True) if door.proxy and steps[-1].outcome == "accept"]
    for door, steps in zip(doors, found, strict=True):
        if not (door.proxy and served) or steps is served[0]:
            yield _answer(source, target, proto, port, steps)


@dataclass(frozen=True, slots=True)
class _Door:
    """A published port of the host, and its target. `proxy`: docker-proxy serves this source, instead of DNAT."""

    port: Published
    place: Found
    target: Address
    proxy: bool


def _doors(inventory: PolicyView, source: End, target: End, proto: str, port: int) -> Iterator[_Door]:
    if proto not in PUBLISHABLE:
        return
    there = find(inventory, source.address) if source.network else None
    version = target.address.version
    for owner in inventory.owners():
        if (place := inventory.endpoint(owner)) is None or place[0].internal:
            continue
        network, endpoint = place
        own = endpoint.addr4 if version == 4 else endpoint.addr6
        on_docker_network = isinstance(network, BridgeNetwork)
        leads = own or (endpoint.addr4 or endpoint.addr6 if on_docker_network else None)
        for published in endpoint.published:
            if (published.proto, published.host_port, published.host_ip.version) != (proto, port, version) or not leads:
                continue
            if published.host_ip.is_loopback and not source.host:
                continue
            if published.host_ip.is_unspecified or published.host_ip == target.address or target.any:
                proxy = on_docker_network and (own is None or bool(there and isinstance(there.network, BridgeNetwork)))
                yield _Door(published, Found(network, endpoint, owner), leads, proxy)


def _through(
    inventory: PolicyView, source: End, target: End, proto: str, port: int, door: _Door, around: Around
) -> list[Step]:
    first = None if source.host else source.address
    steps: list[Step] = []
    if door.proxy and source.network:  # docker-proxy is a process of the host: its client sends to the host
        there = verdict(inventory, Packet(first, target.address, proto, port, host=True), around.now)
        if not there.accepted:
            return list(there.steps)
        steps += there.steps[:-1]
    by = "docker-proxy" if door.proxy else "DNAT"
    forwarded = f"{door.place.name}'s port {door.port.container_port}/{proto} ({door.target}) by {by}"
    steps.append(Step(f"the host's port {port}/{proto} is forwarded to {forwarded}", "", "-p"))
    packet = Packet(first, door.target, proto, door.port.container_port, by="proxy" if door.proxy else "dnat")
    return [*steps, *_judged(inventory, packet, around)]


def _judged(inventory: PolicyView, packet: Packet, around: Around) -> list[Step]:
    """Return docker-fw's verdict, and Docker's if docker-fw accepts."""
    steps = list(verdict(inventory, packet, around.now).steps)
    target = None if packet.host else find(inventory, packet.target)
    if steps[-1].outcome == "accept" and target and packet.source:
        there = find(inventory, packet.source)
        docker = docker_step(there.network if there else None, target, packet, around.engine, around.mark)
        if docker and docker.outcome:
            return [*steps[:-1], Step(steps[-1].text, "", steps[-1].origin), docker]
        if docker:
            steps.insert(-1, docker)
    return steps


def _answer(source: End, target: End, proto: str, port: int, steps: list[Step]) -> dict[str, Any]:
    return {
        "family": target.address.version,
        "from": {"name": source.name, "address": None if source.host else str(source.address)},
        "to": {"name": target.name, "address": str(target.address)},
        "what": f"{port}/{proto}" if proto in WITH_PORTS else proto,
        "steps": [{"text": step.text, "outcome": step.outcome, "origin": step.origin} for step in steps],
        "accepted": steps[-1].outcome == "accept",
    }
