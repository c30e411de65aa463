"""The names of docker-fw's links, and the device group that marks its bridges.

Every name derives from a Docker ID, so a repeated call finds its own links, and has at most 15 bytes (IFNAMSIZ,
linux/if.h).
"""

from __future__ import annotations

#: The prefix of bridges that docker-fw names itself, from the network's ID. One wildcard closes them all, known or
#: not.
BRIDGE_PREFIX = "fw-"
#: The prefixes of the host's side of an endpoint's veth pair, a port of its bridge, and of the side that Docker moves
#: into the container.
PORT_PREFIX, CONTAINER_PREFIX = "fwv", "fwc"
#: The device group of every docker-fw bridge, whatever its name: the kernel sets it before the link can carry a
#: packet.
GROUP = 0x66770001
#: Address families by IP version: AF_INET, AF_INET6 (linux/socket.h).
AF = {4: 2, 6: 10}


def bridge_name(network_id: str) -> str:
    """Return the name of a network's bridge, if the network's options do not set one."""
    return BRIDGE_PREFIX + network_id[:12].lower()


def host_side(endpoint_id: str) -> str:
    """Return the name of an endpoint's port of the bridge."""
    return PORT_PREFIX + endpoint_id[:12].lower()


def container_side(endpoint_id: str) -> str:
    """Return the name of an endpoint's other side, until Docker moves it into the container."""
    return CONTAINER_PREFIX + endpoint_id[:12].lower()
