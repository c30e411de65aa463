"""The data types that docker-fw's packages exchange.

Everything here is frozen data; nothing here accesses Docker, the kernel or the disk.
Names follow Docker's (network, endpoint, container, published port) and nftables' (set, element).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import ClassVar, NamedTuple

from plugin.protocols import WITH_PORTS, Proto
from plugin.text import printable, shortened

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network


class FwError(Exception):
    """An error that a user can fix. Docker shows the text unchanged: it names the value and what would be right."""


class DockerUnavailable(Exception):
    """Docker's API did not answer, or not in time. Anything that stays unknown stays closed."""


class NewerStateError(FwError):
    """The state file is from a newer version; this one must not guess its meaning."""


@dataclass(frozen=True, slots=True, order=True)
class Peer:
    """The other end of a flow: `prefix` (the value is its text), `container`, `service`, `project`, `network`, `host`.

    A name follows its containers as they are added and removed; a name without a container matches nothing.
    """

    kind: str
    value: str = ""

    def __str__(self) -> str:
        return self.value if self.kind == "prefix" else f"{self.kind}:{self.value}" if self.value else self.kind


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """Flows to accept: a protocol, container ports and peers.

    The protocol is one of `plugin.protocols`, or "other". The range of ports includes both ends (1-65535; 0-0 for a
    portless protocol). No peers: any. `origin` is where the rule was written ("label fw.allow"), for people; it is not
    compared.
    """

    proto: str
    first: int
    last: int
    peers: tuple[Peer, ...] = ()
    origin: str = field(default="", compare=False)

    def __str__(self) -> str:
        return self.what + (f" from {' '.join(map(str, self.peers))}" if self.peers else "")

    @property
    def what(self) -> str:
        """The ports and the protocol as labels write them: `80/tcp`, `gre`."""
        if self.proto not in WITH_PORTS:
            return self.proto
        ports = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{ports}/{self.proto}"


@dataclass(frozen=True, slots=True, order=True)
class Rate:
    """The number of new flows that a source may open to each of the ports: `count` per `unit`, and `burst` at once.

    A source is an IPv4 address or an IPv6 /64; a unit is second, minute, hour or day.
    """

    proto: str
    first: int
    last: int
    count: int
    unit: str
    burst: int
    origin: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{Rule(self.proto, self.first, self.last).what} {self.count}/{self.unit} burst {self.burst}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in user input: where it was written (`label fw.allow`), its value, and what would be right.

    `closes`: it may have been meant to close, so on a Docker network the container answers on ICMP only; a mistake in
    `fw.allow` only opens nothing. `confines`: it concerns egress, so the container may open no connections. On a
    docker-fw network every mistake does both.
    """

    where: str
    value: str
    text: str
    closes: bool = True
    confines: bool = False

    def __str__(self) -> str:
        # It is written to logs and terminals, and may come from an image.
        return printable(f'{shortened(self.where, 200)}="{shortened(self.value, 200)}": {self.text}')


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """The policy from one source in the label language: a container's labels, network options, an attachment, settings.

    Anything that it does not set is empty or None. `egress`: () is none, `plugin.policy.decide.EVERYTHING` is all.
    """

    allow: tuple[Rule, ...] = ()
    deny: tuple[Rule, ...] = ()
    policy: str = ""
    egress: tuple[Rule, ...] | None = None
    rate: tuple[Rate, ...] | None = None
    log: str = ""


@dataclass(frozen=True, slots=True)
class Network:
    """A docker-fw network, made at Docker's request. Gateways include the subnet's prefix length.

    `flat`, `problems`: as for a BridgeNetwork. Its containers always reach each other; with a mistake in its options it
    is refused.
    """

    flat: ClassVar[bool] = True
    problems: ClassVar[tuple[Problem, ...]] = ()
    id: str
    bridge: str
    gateway4: IPv4Interface | None = None
    gateway6: IPv6Interface | None = None
    internal: bool = False
    mtu: int = 1500
    masquerade: bool = True
    host_ip: Address | None = None
    iface_prefix: str = "eth"
    spec: PolicySpec = PolicySpec()

    @property
    def name(self) -> str:
        """The bridge's name, for messages: Docker does not report the network's name when it creates the network."""
        return self.bridge

    @property
    def subnets(self) -> tuple[Prefix, ...]:
        """The network's subnets, one or none of each family."""
        return tuple(gateway.network for gateway in (self.gateway4, self.gateway6) if gateway)


@dataclass(frozen=True, slots=True)
class BridgeNetwork:
    """A Docker network (of Docker's bridge driver), as the API lists it: docker-fw protects it, and did not make it.

    `flat`: its containers reach each other freely (not with enable_icc=false, as on swarm's docker_gwbridge).
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
    spec: PolicySpec = PolicySpec()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Container:
    """The container of an endpoint as Docker reported it, as far as that endpoint's policy needs it.

    `spec`: its labels, including those for this network only (`fw.network.NAME.…`). `image_spec`: its image's labels,
    which count where nothing else is configured. `problems` not empty: its labels are wrong. `notices`: ignored labels,
    and why. `network`: the name of the endpoint's network, if known. `project`, `service`: compose's.
    """

    id: str
    name: str
    spec: PolicySpec = PolicySpec()
    problems: tuple[Problem, ...] = ()
    notices: tuple[str, ...] = ()
    network: str = ""
    project: str = ""
    service: str = ""
    image_spec: PolicySpec = PolicySpec()


@dataclass(frozen=True, slots=True)
class PortBinding:
    """A request to publish a port, as `docker run -p` writes it (libnetwork's PortBinding).

    `host_ip` None: every host address (both families). `host_port` 0: choose one. `host_port` to `host_port_end` is a
    range to choose one from.
    """

    proto: Proto
    container_port: int
    host_ip: Address | None = None
    host_port: int = 0
    host_port_end: int = 0


@dataclass(frozen=True, slots=True, order=True)
class Published:
    """An active published port: one protocol, one host port, on one host address.

    `host_ip` is never None here: 0.0.0.0 and :: mean "every address of this family".
    """

    proto: Proto
    host_ip: Address
    host_port: int
    container_port: int


@dataclass(frozen=True, slots=True, order=True)
class RequestedPorts:
    """Host ports that a container requests, from `first` to `last`; 0: Docker chooses one each time it starts."""

    proto: Proto
    host_ip: Address
    first: int
    last: int

    def may_be(self, port: Published) -> bool:
        """True if a program that listens there may be this container's docker-proxy."""
        if self.proto != port.proto or not self.first <= port.host_port <= self.last:
            return False
        if self.host_ip.version != port.host_ip.version:
            return False
        return self.host_ip == port.host_ip or self.host_ip.is_unspecified or port.host_ip.is_unspecified


class Flow(NamedTuple):
    """A connection as conntrack tracks it, of IPv4 or IPv6: its source, the address it was opened to, the responder.

    Addresses are packed. The responder at a published port is the container, not the host that was addressed. Ports are
    those that conntrack names, 0 where it names none.
    """

    source: bytes
    source_port: int
    addressed: bytes
    addressed_port: int
    responder: bytes
    responder_port: int
    answered: bytes
    proto: int
    icmp_type: int = 0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A container's attachment to a network.

    `container` None: its labels are not known yet, so it answers on ICMP only. `unlisted`: Docker does not list yet
    which ports the container publishes.
    """

    id: str
    network_id: str
    addr4: IPv4Address | None = None
    addr6: IPv6Address | None = None
    mac: str = ""
    joined: bool = False
    spec: PolicySpec = PolicySpec()
    container: Container | None = None
    published: tuple[Published, ...] = ()
    unlisted: bool = False

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The addresses that the endpoint has: IPv4, IPv6 or both."""
        return tuple(address for address in (self.addr4, self.addr6) if address)


@dataclass(frozen=True, slots=True)
class TrackedEndpoint:
    """An endpoint on a Docker network.

    `listed`: Docker lists the container as running. Until then it has just been connected, and is starting.
    `sure`: Docker would report its departure.
    """

    endpoint: Endpoint
    listed: bool
    sure: bool = True

    @property
    def container_id(self) -> str:
        """The container's ID; "" if it is unknown."""
        return self.endpoint.container.id if self.endpoint.container else ""

    @property
    def as_known(self) -> Endpoint:
        """The endpoint; without its container, and so closed, while it is unknown who has the addresses."""
        return self.endpoint if self.sure else replace(self.endpoint, container=None)


@dataclass(frozen=True, slots=True)
class Defaults:
    """The policy from settings for every container, and whether `-p` itself opens a port."""

    spec: PolicySpec = PolicySpec()
    published: bool = False


@dataclass(frozen=True, slots=True)
class Override:
    """Rules from `fwctl allow` and `fwctl deny` for a container; they take precedence over all others."""

    allow: tuple[Rule, ...] = ()
    deny: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class Overriding:
    """One rule from `fwctl allow` or `fwctl deny`: for a container by its ID, `until` (Unix time; 0: permanent)."""

    container: str
    rule: Rule
    deny: bool = False
    until: float = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """The decided policy of an endpoint's addresses: what they accept and may initiate.

    `known`: the container that has the addresses is known. `labels_valid`: False if they answer on ICMP only.
    `accepts`: in addition to ICMP. `published`: rules that `-p` itself opens, for traffic through the published port.
    `egress`: None is everything. `log`: "drop", "none", or "" if not configured.
    """

    accepts: tuple[Rule, ...] = ()
    published: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] | None = None
    rates: tuple[Rate, ...] = ()
    log: str = ""
    labels_valid: bool = False
    known: bool = False


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """An address's policy, with peers by address only, and its subnet: traffic within it and from the host is free.

    `internal`: its network is internal: no traffic enters or leaves it.
    """

    subnet: Prefix
    policy: Policy
    internal: bool = False
