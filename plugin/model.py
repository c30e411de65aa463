"""The nouns: what the rooms of docker-fw hand to one another.

Everything here is frozen data; nothing here touches Docker, the kernel or the disk.
Names follow Docker's (network, endpoint, container, published port) and nftables' (set, element).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import NamedTuple

from plugin.protocols import WITH_PORTS, Proto
from plugin.text import printable, shortened

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network


class FwError(Exception):
    """Something a user can mend. The text is shown by Docker as it is: it names the value and what would be right."""


class DockerUnavailable(Exception):
    """Docker's API did not answer, or not in time. Anything that stays unknown stays closed."""


class NewerStateError(FwError):
    """The state is a newer version's: what it means is not ours to guess."""


@dataclass(frozen=True, slots=True, order=True)
class Peer:
    """Who is at the other end: `prefix` (the value is its text), `container`, `service`, `project`, `network`, `host`.

    A name follows its containers as they come and go; one that matches nobody matches nothing.
    """

    kind: str
    value: str = ""

    def __str__(self) -> str:
        return self.value if self.kind == "prefix" else f"{self.kind}:{self.value}" if self.value else self.kind


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """Flows to accept: a protocol (of `plugin.protocols`, or "other"), a closed range of container ports
    (1-65535; 0-0 for a portless protocol), and with whom. No peers: anybody.

    `origin` is where it was said ("label fw.allow"), for people; it makes no difference.
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
    """How many new flows a source (an IPv4 address, an IPv6 /64) may open to each of the ports: `count` per `unit`
    (second, minute, hour, day), and `burst` at once.
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
    """One mistake in what a user wrote: where it stands (`label fw.allow`), its value, and what would be right.

    `closes`: it may have been meant to close, so on a guarded network the container answers on ICMP only; a mistake
    in `fw.allow` just opens nothing. `confines`: it was about what the container may reach, which is nobody then.
    (On a network of docker-fw's own every mistake does both.)
    """

    where: str
    value: str
    text: str
    closes: bool = True
    confines: bool = False

    def __str__(self) -> str:
        # It goes to logs and terminals, and an image may have written it.
        return printable(f'{shortened(self.where, 200)}="{shortened(self.value, 200)}": {self.text}')


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """What one place says in the label language: a container's labels, a network's options, an attachment, settings.

    What it does not say is empty or None. `egress`: () is none, `plugin.policy.decide.EVERYTHING` is all.
    """

    allow: tuple[Rule, ...] = ()
    deny: tuple[Rule, ...] = ()
    policy: str = ""
    egress: tuple[Rule, ...] | None = None
    rate: tuple[Rate, ...] | None = None
    log: str = ""


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
    spec: PolicySpec = PolicySpec()


@dataclass(frozen=True, slots=True)
class BridgeNetwork:
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
    spec: PolicySpec = PolicySpec()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Container:
    """What Docker told about the container behind an endpoint, as far as the policy of that endpoint needs it.

    `said`: its labels, those for this network alone (`fw.network.NAME.…`) included; `image_spec`: what its image says,
    which counts where nobody else says anything. `problems` not empty: its labels are wrong. `notices`: what counts for
    nothing, and why. `network`: the name of the endpoint's network, if known. `project`, `service`: compose's.
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


class Flow(NamedTuple):
    """A connection as conntrack tracks it, of IPv4 or IPv6: who opened it, whom that addressed, and who answers.

    Addresses are packed. A published port's container answers, not the host that was addressed. Ports are those that
    conntrack names, 0 where it names none.
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
    """A container's place on a network. `container` None means its labels are not known yet: ICMP only.
    `unlisted`: Docker does not list yet which ports the container publishes.
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
    """An endpoint on one of Docker's own networks.

    `listed`: Docker lists the container as running. Until then it has just been connected, and is starting.
    `sure`: Docker would tell if it went.
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
        """Without its container where it is in doubt who has the addresses: closed."""
        return self.endpoint if self.sure else replace(self.endpoint, container=None)


@dataclass(frozen=True, slots=True)
class Defaults:
    """What settings say for every container, and whether `-p` itself opens a port."""

    spec: PolicySpec = PolicySpec()
    published: bool = False


@dataclass(frozen=True, slots=True)
class Override:
    """What `fwctl allow` and `fwctl deny` say of a container, above all else."""

    allow: tuple[Rule, ...] = ()
    deny: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class Overriding:
    """One word of `fwctl allow` or `fwctl deny`: of a container by its ID, until when (Unix time; 0: for ever)."""

    container: str
    rule: Rule
    deny: bool = False
    until: float = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """What the addresses of an endpoint accept and may begin, decided.

    `known`: it is known who has the addresses. `labels_valid`: False if they answer on ICMP only. `accepts`: in
    addition to ICMP.
    `published`: what `-p` itself opens to those who come by the published port. `egress`: None is everything. `log`:
    "drop", "none", or "" where nobody said.
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
    """An address's policy, with peers by address alone, and its subnet: within it, and from the host, all is free.

    `internal`: its network is, which is entered and left by nobody.
    """

    subnet: Prefix
    policy: Policy
    internal: bool = False
