"""The nouns: what the rooms of docker-fw hand to one another.

Everything here is frozen data; nothing here touches Docker, the kernel or the disk.
Names follow Docker's (network, endpoint, container, published port) and nftables' (set, element).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Literal

Address = IPv4Address | IPv6Address
Proto = Literal["tcp", "udp", "sctp"]

#: IP protocol numbers (IANA), as Docker's port map and the kernel spell them.
PROTO_NUMBER: dict[Proto, int] = {"tcp": 6, "udp": 17, "sctp": 132}
PROTO_NAME: dict[int, Proto] = {number: name for name, number in PROTO_NUMBER.items()}


class FwError(Exception):
    """Something a user can mend. The text is shown by Docker as it is: it names the value and what would be right."""


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """Inbound flows to accept: one protocol, a closed range of container ports (1-65535)."""

    proto: Proto
    first: int
    last: int

    def __str__(self) -> str:
        ports = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{ports}/{self.proto}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in what a user wrote: where it stands (`label fw.allow`), its value, and what would be right.

    `closes`: it may have been meant to close, so on a guarded network the container answers on ICMP only; a mistake
    in `fw.allow` just opens nothing. (On a network of docker-fw's own every mistake closes.)
    """

    where: str
    value: str
    text: str
    closes: bool = True

    def __str__(self) -> str:
        where, value = (text if len(text) <= 200 else text[:200] + "…" for text in (self.where, self.value))
        return f'{where}="{value}": {self.text}'


@dataclass(frozen=True, slots=True)
class Network:
    """A network that Docker asked us to make. Gateways carry the subnet's prefix length."""

    id: str
    bridge: str
    gateway4: IPv4Interface | None = None
    gateway6: IPv6Interface | None = None
    internal: bool = False
    mtu: int = 1500
    masquerade: bool = True
    host_ip: Address | None = None
    iface_prefix: str = "eth"
    allow: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class Guarded:
    """A network of Docker's own bridge driver, as its API lists it: docker-fw guards it, and did not make it.

    `flat`: its containers talk freely (not so with enable_icc=false, as on swarm's docker_gwbridge).
    `mode4`, `mode6`: Docker's gateway modes (nat, nat-unprotected, routed, isolated).
    """

    id: str
    name: str
    bridge: str
    subnets: tuple[IPv4Network | IPv6Network, ...] = ()
    internal: bool = False
    flat: bool = True
    mode4: str = "nat"
    mode6: str = "nat"
    allow: tuple[Rule, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Container:
    """What Docker told about the container behind an endpoint, as far as the policy needs it.

    `problems` not empty means: its labels are wrong.
    """

    id: str
    name: str
    allow: tuple[Rule, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Answers:
    """What an address accepts from outside its subnet; within, the neighbours and the host talk freely."""

    subnet: IPv4Network | IPv6Network
    accepts: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class PortBinding:
    """A wish to publish a port, as `docker run -p` spells it (libnetwork's PortBinding).

    host_ip None: every host address (both families). host_port 0: pick one. host_port..host_port_end is a range
    to pick one from.
    """

    proto: Proto
    container_port: int
    host_ip: Address | None = None
    host_port: int = 0
    host_port_end: int = 0


@dataclass(frozen=True, slots=True, order=True)
class Published:
    """A published port that stands: one protocol, one host port, on one host address.

    host_ip is never None here: 0.0.0.0 and :: say "every address of this family".
    """

    proto: Proto
    host_ip: Address
    host_port: int
    container_port: int


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A container's place on a network. `container` None means its labels are not known yet: ICMP only."""

    id: str
    network_id: str
    addr4: IPv4Address | None = None
    addr6: IPv6Address | None = None
    mac: str = ""
    joined: bool = False
    allow: tuple[Rule, ...] = ()
    container: Container | None = None
    published: tuple[Published, ...] = ()


@dataclass(frozen=True, slots=True)
class Guest:
    """An endpoint on one of Docker's own networks.

    `listed`: Docker lists the container as running. Until then it has just been connected, and is starting.
    `since`: the moment when it was told of. `sure`: Docker would tell if it went.
    """

    endpoint: Endpoint
    listed: bool
    since: int = field(compare=False)
    sure: bool = True

    @property
    def container_id(self) -> str:
        return self.endpoint.container.id if self.endpoint.container else ""

    @property
    def as_known(self) -> Endpoint:
        """Without its container where it is in doubt who has the addresses: closed."""
        return self.endpoint if self.sure else replace(self.endpoint, container=None)
