"""What Docker's own firewall says of a packet that docker-fw lets through: a drop in either of them is one. Pure.

`plugin.fwctl.api.docker_firewall` says the same of a whole rule, for `fwctl status`.
"""

from __future__ import annotations

from plugin.docker.engine import Engine
from plugin.model import BridgeNetwork, Network
from plugin.policy.verdict import Found, Packet, Step

#: By whom a step was said.
DOCKER = "Docker"


def dockers(
    source: Network | BridgeNetwork | None, target: Found, packet: Packet, engine: Engine, mark: int
) -> Step | None:
    """What Docker does with a packet to a container on one of its networks, from `source` (None: no such network)."""
    network = target.network
    if not isinstance(network, BridgeNetwork) or packet.source is None or (source and source.id == network.id):
        return None
    mode = network.mode4 if packet.target.version == 4 else network.mode6
    nftables = engine.backend.startswith("nftables")
    if isinstance(source, BridgeNetwork):
        if packet.by:
            return Step("docker-proxy takes it on; with userland-proxy=false Docker drops it", "", DOCKER)
        if nftables and mode == "nat-unprotected":
            return None
        return Step("Docker keeps its networks apart, whatever docker-fw accepts", "drop", DOCKER)
    if packet.by or mode == "nat-unprotected":
        return None
    ports = target.endpoint.published if target.endpoint else ()
    published = any(port.proto == packet.proto and port.container_port == packet.port for port in ports)
    if mode == "routed":
        if published:
            return None
        if isinstance(source, Network):
            return Step("from a network of docker-fw's own Docker lets through only what is published", "drop", DOCKER)
        return _unless_marked(mark) if nftables else None
    # Before 27 Docker leaves IPv6 alone; before 28 it lets through what is published to the container's address too.
    if engine.major and ((packet.target.version == 6 and engine.major < 27) or (published and engine.major < 28)):
        return None
    text = "on a nat network Docker drops what is for a container's own address; reach it by a published port (-p)"
    return Step(text, "drop", DOCKER)


def _unless_marked(mark: int) -> Step:
    # dockerd does not tell whether it was started with the option.
    text = f"Docker's nftables backend drops it, unless dockerd runs with --bridge-accept-fwmark={mark:#x}/{mark:#x}"
    return Step(text, "", DOCKER)
