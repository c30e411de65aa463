"""What a label opens and nobody can reach all the same, because Docker's own firewall drops it. Pure.

docker-fw cannot overrule Docker everywhere: on a network in `nat` mode Docker (≥ 28) drops what is sent to a
container's own address in raw prerouting, before any mark counts. Then the honest thing is to say so, and what to do.
"""

from __future__ import annotations

from dataclasses import dataclass

from plugin.model import Endpoint, Guarded, Rule


@dataclass(frozen=True, slots=True)
class Engine:
    """Docker's version as it tells it ("28.5.2", "" if unknown) and its firewall backend (≥ 29: "nftables")."""

    version: str = ""
    backend: str = ""

    @property
    def major(self) -> int:
        head = self.version.partition(".")[0]
        return int(head) if head.isascii() and head.isdigit() else 0


def without_effect(network: Guarded, endpoint: Endpoint, engine: Engine, mark: int) -> tuple[str, ...]:
    """One sentence for each rule of the container's labels that changes nothing on this network."""
    if endpoint.container is None:
        return ()
    notes = []
    for rule in endpoint.container.allow:
        if why := _why(network, endpoint, rule, engine, mark):
            notes.append(f"fw.allow={_text(rule)} has no effect on {network.name} because {why}")
    return tuple(notes)


def _why(network: Guarded, endpoint: Endpoint, rule: Rule, engine: Engine, mark: int) -> str:
    if network.internal:
        return "the network is internal; put the container on another one too"
    if any(p.proto == rule.proto and rule.first <= p.container_port <= rule.last for p in endpoint.published):
        return ""
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
                f"--bridge-accept-fwmark={mark:#x}/{mark:#x}; give it that option, or publish "
                f"the port (-p {port}{proto})"
            )
        return ""
    # Before 27 Docker leaves IPv6 alone, unless it is told to use ip6tables.
    if endpoint.addr6 and engine.major and engine.major < 27:
        return ""
    return (
        f"it is a nat network and the container's port is not published; publish it (-p {port}:{port}{proto}), or make "
        "the network with -o com.docker.network.bridge.gateway_mode_ipv6=routed (Docker ≥ 27), or with docker-fw's "
        "driver"
    )


def _text(rule: Rule) -> str:
    """As a user writes it: the protocol only where it is not tcp."""
    return str(rule).removesuffix("/tcp")
