"""What a label opens and nobody can reach all the same, because Docker's own firewall drops it. Pure.

docker-fw cannot overrule Docker everywhere: on a network in `nat` mode Docker (≥ 28) drops what is sent to a
container's own address in raw prerouting, before any mark counts. Then the honest thing is to say so, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable

from plugin.docker.engine import Engine
from plugin.model import PROTO_NUMBER, BridgeNetwork, Endpoint, Network, Policy, Rule
from plugin.policy.decide import prefix_of
from plugin.policy.view import subnets


def without_effect(
    network: BridgeNetwork, endpoint: Endpoint, engine: Engine, mark: int, more: Iterable[Rule] = ()
) -> tuple[str, ...]:
    """One sentence for each rule of the container's labels that changes nothing on this network.

    `more`: rules of `fwctl allow`.
    """
    if endpoint.container is None:
        return ()
    notes = []
    spoken = [("fw.allow=", rule) for rule in endpoint.container.spec.allow]
    for word, rule in (*spoken, *(("fwctl allow ", rule) for rule in more)):
        if why := _why(network, endpoint, rule, engine, mark):
            notes.append(f"{word}{_text(rule)} has no effect on {network.name} because {why}")
    return tuple(notes)


def within(network: Network | BridgeNetwork, endpoint: Endpoint, policy: Policy) -> tuple[str, ...]:
    """One sentence for each rule that speaks of peers on the endpoint's own network alone, where all talk freely."""
    own = subnets(network)
    if isinstance(network, BridgeNetwork) and not network.flat:
        return ()
    notes = []
    for word, rules in (("fw.allow", policy.accepts), ("fw.egress", policy.egress or ())):
        for rule in rules:
            prefixes = [prefix_of(peer) for peer in rule.peers if peer.kind == "prefix"]
            inside = [p for p in prefixes if any(p.version == s.version and p.subnet_of(s) for s in own)]  # type: ignore[arg-type]
            if prefixes and len(inside) == len(rule.peers):
                whom = ", ".join(map(str, inside[:4]))
                notes.append(f"{word}={rule.what} for {whom} changes nothing: containers of one network talk freely")
    return tuple(notes)


def _why(network: BridgeNetwork, endpoint: Endpoint, rule: Rule, engine: Engine, mark: int) -> str:
    if network.internal:
        return "the network is internal; put the container on another one too"
    if any(p.proto == rule.proto and rule.first <= p.container_port <= rule.last for p in endpoint.published):
        return ""
    ports = rule.proto in PROTO_NUMBER
    port = rule.first if rule.first == rule.last else f"{rule.first}-{rule.last}"
    proto = "" if rule.proto == "tcp" else f"/{rule.proto}"
    modes = {mode for address, mode in ((endpoint.addr4, network.mode4), (endpoint.addr6, network.mode6)) if address}
    if "nat-unprotected" in modes:
        return ""
    if "routed" in modes:
        if engine.backend.startswith("nftables"):
            # dockerd does not tell whether it was started with the option.
            return (
                "Docker's nftables backend drops it, unless dockerd runs with "
                f"--bridge-accept-fwmark={mark:#x}/{mark:#x}; give it that option"
                + (f", or publish the port (-p {port}{proto})" if ports else "")
            )
        return ""
    # Before 27 Docker leaves IPv6 alone, unless it is told to use ip6tables.
    if endpoint.addr6 and engine.major and engine.major < 27:
        return ""
    why = "it is a nat network and "
    if ports:
        why += f"the container's port is not published; publish it (-p {port}:{port}{proto}), or "
    else:
        why += f"{rule.proto} cannot be published; "
    return (
        f"{why}make the network with -o com.docker.network.bridge.gateway_mode_ipv6=routed (Docker ≥ 27), "
        "or with docker-fw's driver"
    )


def _text(rule: Rule) -> str:
    """As a user writes it: the protocol only where it is not tcp."""
    return str(rule).replace("/tcp", "", 1)
