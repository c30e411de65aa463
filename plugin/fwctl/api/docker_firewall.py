"""Traffic that Docker's own firewall drops although docker-fw accepts it: of a whole rule, and of one packet. Pure.

docker-fw cannot overrule Docker everywhere: on a network in `nat` mode Docker (≥ 28) drops packets to a container's own
address in raw prerouting, before any mark counts. `fwctl status` and `fwctl explain` then say so, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable

from plugin.docker.engine import Engine
from plugin.model import BridgeNetwork, Endpoint, Network, Policy, Rule
from plugin.policy.decide import prefix_of
from plugin.policy.verdict import Found, Packet, Step
from plugin.protocols import PUBLISHABLE

#: The origin of a step that is Docker's.
DOCKER = "Docker"


def without_effect(
    network: BridgeNetwork, endpoint: Endpoint, engine: Engine, mark: int, more: Iterable[Rule] = ()
) -> tuple[str, ...]:
    """Return a sentence for each rule of the container's labels that has no effect on this network.

    `more`: rules of `fwctl allow`.
    """
    if endpoint.container is None:
        return ()
    notes = []
    labelled = [("fw.allow=", rule) for rule in endpoint.container.spec.allow]
    for origin, rule in (*labelled, *(("fwctl allow ", rule) for rule in more)):
        if why := _why(network, endpoint, rule, engine, mark):
            notes.append(f"{origin}{_text(rule)} has no effect on {network.name} because {why}")
    return tuple(notes)


def within(network: Network | BridgeNetwork, endpoint: Endpoint, policy: Policy) -> tuple[str, ...]:
    """Return a sentence for each rule whose peers are all on the endpoint's network, where all traffic is allowed."""
    own = network.subnets
    if not network.flat:
        return ()
    notes = []
    for key, rules in (("fw.allow", policy.accepts), ("fw.egress", policy.egress or ())):
        for rule in rules:
            prefixes = [prefix_of(peer) for peer in rule.peers if peer.kind == "prefix"]
            inside = [p for p in prefixes if any(p.version == s.version and p.subnet_of(s) for s in own)]  # type: ignore[arg-type]
            if prefixes and len(inside) == len(rule.peers):
                peers = ", ".join(map(str, inside[:4]))
                notes.append(f"{key}={rule.what} for {peers} has no effect: containers on one network talk freely")
    return tuple(notes)


def _why(network: BridgeNetwork, endpoint: Endpoint, rule: Rule, engine: Engine, mark: int) -> str:
    if network.internal:
        return "the network is internal; connect the container to another network too"
    if any(p.proto == rule.proto and rule.first <= p.container_port <= rule.last for p in endpoint.published):
        return ""
    ports = rule.proto in PUBLISHABLE
    port = rule.first if rule.first == rule.last else f"{rule.first}-{rule.last}"
    proto = "" if rule.proto == "tcp" else f"/{rule.proto}"
    modes = {mode for address, mode in ((endpoint.addr4, network.mode4), (endpoint.addr6, network.mode6)) if address}
    if "nat-unprotected" in modes:
        return ""
    if "routed" in modes:
        if engine.backend.startswith("nftables"):
            # Docker's API does not report whether dockerd was started with the option.
            return (
                "Docker's nftables backend drops it, unless dockerd runs with "
                f"--bridge-accept-fwmark={mark:#x}/{mark:#x}; give it that option"
                + (f", or publish the port (-p {port}{proto})" if ports else "")
            )
        return ""
    # Before 27 Docker does not filter IPv6, unless ip6tables is configured.
    if endpoint.addr6 and engine.major and engine.major < 27:
        return ""
    why = "it is a nat network and "
    if ports:
        why += f"the container's port is not published; publish it (-p {port}:{port}{proto}), or "
    else:
        why += f"{rule.proto} cannot be published; "
    return (
        f"{why}create the network with -o com.docker.network.bridge.gateway_mode_ipv6=routed (Docker ≥ 27), "
        "or with docker-fw's driver"
    )


def _text(rule: Rule) -> str:
    """Return the rule as a user writes it: without the protocol if it is tcp."""
    return str(rule).replace("/tcp", "", 1)


def docker_step(
    source: Network | BridgeNetwork | None, target: Found, packet: Packet, engine: Engine, mark: int
) -> Step | None:
    """Return what Docker does with a packet that docker-fw accepts; None if Docker accepts it too.

    `source`: the packet's source network; None if it has none.
    """
    network = target.network
    if not isinstance(network, BridgeNetwork) or packet.source is None or (source and source.id == network.id):
        return None
    mode = network.mode4 if packet.target.version == 4 else network.mode6
    nftables = engine.backend.startswith("nftables")
    if isinstance(source, BridgeNetwork):
        if packet.by:
            return Step("docker-proxy forwards it; with userland-proxy=false Docker drops it", "", DOCKER)
        if nftables and mode == "nat-unprotected":
            return None
        return Step("Docker isolates its networks from each other, whatever docker-fw accepts", "drop", DOCKER)
    if packet.by or mode == "nat-unprotected":
        return None
    ports = target.endpoint.published if target.endpoint else ()
    published = any(port.proto == packet.proto and port.container_port == packet.port for port in ports)
    if mode == "routed":
        if published:
            return None
        if isinstance(source, Network):
            return Step("from a docker-fw network Docker accepts published ports only", "drop", DOCKER)
        return _unless_marked(mark) if nftables else None
    # Before 27 Docker does not filter IPv6; before 28 it accepts published ports on the container's address too.
    if engine.major and ((packet.target.version == 6 and engine.major < 27) or (published and engine.major < 28)):
        return None
    text = "on a nat network Docker drops packets to a container's own address; use a published port (-p)"
    return Step(text, "drop", DOCKER)


def _unless_marked(mark: int) -> Step:
    # Docker's API does not report whether dockerd was started with the option.
    text = f"Docker's nftables backend drops it, unless dockerd runs with --bridge-accept-fwmark={mark:#x}/{mark:#x}"
    return Step(text, "", DOCKER)
