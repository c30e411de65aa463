"""The registry of protocols: one entry is all that a new one needs. Pure.

Rules, elements, the table's text, messages, and what is read from Docker and conntrack follow from it. A protocol that
is not here is `OTHER`, which only `fw.policy: open` and `fw.egress: all` include.

An entry closes as well as it opens: `fw.deny: */NEW` takes the protocol out of `fw.policy: open`, because the table's
rule for other protocols leaves out everything that has an entry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

#: A protocol's `name`, where it is one that has ports.
Proto = str
#: Every protocol without an entry.
OTHER = "other"
#: Protocols (IANA numbers) whose flows conntrack distinguishes by their ports: TCP, UDP, SCTP, UDP-Lite. Since
#: Linux 6.16 it does not know DCCP's ports any more.
TRACKED_BY_PORT = frozenset({6, 17, 132, 136})
#: Protocols whose sockets the kernel finds for a packet (net/ipv4/netfilter/nf_socket_ipv4.c): TCP and UDP.
SOCKET_FOUND = frozenset({6, 17})


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """`name`: as labels and Docker write it. `number`: IANA's. `nft`: what nft calls it; its number will do.

    `ports`: rules are about ports of it. Otherwise it is named alone, and accepted whole.
    `socket`: how the host reserves a port that `-p` publishes; None if `-p` cannot publish it.
    `relay`: the relay serves a port that is published on loopback addresses.
    """

    name: str
    number: int
    nft: str
    ports: bool
    socket: Literal["stream", "datagram"] | None
    relay: bool

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9]*", self.name) or not 1 <= self.number <= 255:
            # Labels are read in lower case, and a packet's protocol has eight bits.
            raise TypeError(f"{self.name} (number {self.number}) is not a protocol that a label or a packet can have")
        if self.ports and self.number not in TRACKED_BY_PORT:
            # The first packet to an open port would make every other port part of an established flow.
            raise TypeError(f"{self.name} cannot have ports: conntrack does not distinguish its flows by their ports")
        if self.socket and not self.ports:
            raise TypeError(f"{self.name} has no ports, so it has no socket for a published one")
        if self.relay and not self.socket:
            raise TypeError(f"{self.name} cannot be published, so the relay cannot serve it")


#: In the order in which messages and the table name them.
PROTOCOLS = (
    Protocol(name="tcp", number=6, nft="tcp", ports=True, socket="stream", relay=True),
    Protocol(name="udp", number=17, nft="udp", ports=True, socket="datagram", relay=True),
    Protocol(name="sctp", number=132, nft="sctp", ports=True, socket="stream", relay=False),
    Protocol(name="gre", number=47, nft="gre", ports=False, socket=None, relay=False),
    Protocol(name="esp", number=50, nft="esp", ports=False, socket=None, relay=False),
    Protocol(name="ah", number=51, nft="ah", ports=False, socket=None, relay=False),
)
BY_NAME = {each.name: each for each in PROTOCOLS}
BY_NUMBER = {each.number: each for each in PROTOCOLS}
#: By name, the numbers: of all, of those with ports, of those without, and of those that `-p` can publish.
NUMBER = {each.name: each.number for each in PROTOCOLS}
WITH_PORTS = {each.name: each.number for each in PROTOCOLS if each.ports}
PORTLESS = {each.name: each.number for each in PROTOCOLS if not each.ports}
PUBLISHABLE = {each.name: each.number for each in PROTOCOLS if each.socket}
#: Those of the last whose listeners no rule can find, so that docker-proxy is not identified by its control group.
UNFOUND = {name: number for name, number in PUBLISHABLE.items() if number not in SOCKET_FOUND}

if len(BY_NAME) != len(PROTOCOLS) or len(BY_NUMBER) != len(PROTOCOLS) or OTHER in BY_NAME:
    raise TypeError("two protocols have the same name or number")


def name_of(number: int) -> str:
    """Return the name that rules use for the protocol with this number."""
    found = BY_NUMBER.get(number)
    return found.name if found else OTHER


def listed(names: dict[str, int], last: str = "or") -> str:
    """For messages: `tcp, udp or sctp`."""
    *most, end = names
    return f"{', '.join(most)} {last} {end}" if most else end
