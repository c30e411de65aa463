"""A packet, or a frame, as the rules of one hook see it: all that the text of the tables can ask about."""

from __future__ import annotations

from dataclasses import dataclass

from plugin.model import Address

#: `ct state`, as bits (nf_conntrack_common.h).
STATES = {"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64}
#: `ct status`, as bits.
STATUS = {"assured": 4, "snat": 16, "dnat": 32}
TCP_FLAGS = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32}
NFPROTO = {4: 2, 6: 10}
ETHER_TYPES = {"ip": 0x0800, "arp": 0x0806, "ip6": 0x86DD}


@dataclass(frozen=True, slots=True)
class Link:
    """A link: `kind` as the kernel names it (bridge, veth, vrf); None for hardware and the loopback."""

    name: str
    index: int
    kind: str | None = None
    group: int = 0
    type: int = 1


@dataclass(frozen=True, slots=True)
class Flow:
    """Connection tracking's view. A packet that is invalid or untracked has only a state."""

    state: str = "new"
    reply: bool = False
    status: frozenset[str] = frozenset()
    labels: frozenset[int] = frozenset()

    @property
    def known(self) -> bool:
        """True if the packet belongs to a flow."""
        return self.state not in ("invalid", "untracked")


@dataclass(frozen=True, slots=True)
class Routes:
    """What the host's routes answer about a packet's addresses: `fib`.

    `source_link`: the link of the route to the source; "" for none and for the host's own addresses (nft_fib6_eval).
    `source_here`, `target_here`: a route to that address leaves through the link by which the packet arrived.
    """

    source_link: str = ""
    source_here: bool = False
    target_here: bool = False
    source_type: str = "unicast"
    target_type: str = "unicast"


@dataclass(frozen=True, slots=True)
class Socket:
    """The socket of a packet to the host. `groups`: its control groups, level 1 first. `whole`: not in TIME-WAIT."""

    groups: tuple[int, ...] = ()
    transparent: bool = False
    mark: int = 0
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Arp:
    """The body of an ARP frame."""

    sender: Address
    sender_mac: int
    operation: int = 1
    hardware: int = 1


@dataclass(frozen=True, slots=True)
class Packet:
    """`header`: the transport header as far as this packet has it. `fragment`: its offset; None: not fragmented.

    `over`: which rate limits are exceeded: 0 none, 255 all; each bit is for some of them, by their text. `full`: every
    set that packets fill is full. `frame_type`: of the link layer; 0: it follows from the source. `next`: the type of
    the header after IPv6's; None: the protocol.
    """

    saddr: Address | None = None
    daddr: Address | None = None
    proto: int | None = None
    header: bytes = b""
    iif: Link | None = None
    oif: Link | None = None
    flow: Flow = Flow()
    routes: Routes = Routes()
    socket: Socket | None = None
    mark: int = 0
    fragment: int | None = None
    next: int | None = None
    routing_header: int | None = None
    pkttype: int = 0
    frame_type: int = 0
    source_mac: int = 0
    target_mac: int = 0
    neighbour: int | None = None
    arp: Arp | None = None
    over: int = 0
    full: bool = False

    @property
    def version(self) -> int:
        """4, 6, or 0 for a frame that is neither."""
        return self.saddr.version if self.saddr is not None else 0

    @property
    def ethertype(self) -> int:
        """The type of the frame."""
        return self.frame_type or {4: 0x0800, 6: 0x86DD, 0: 0x0806}[self.version]

    @property
    def opens(self) -> bool:
        """True if the packet opens a flow: also one that a helper expects, but no ICMP error about a flow."""
        return self.flow.state == "new" or (self.flow.state == "related" and self.proto not in (1, 58))

    def at(self, first: int, count: int) -> int | None:
        """Return these bytes of the transport header; None if the packet does not have them."""
        if self.fragment or len(self.header) < first + count:
            return None
        return int.from_bytes(self.header[first : first + count], "big")


def tcp(sport: int, dport: int, flags: str = "syn") -> bytes:
    """Return a TCP header with these flags: `syn`, `syn,ack`."""
    bits = sum(TCP_FLAGS[flag] for flag in flags.split(",") if flag)
    return sport.to_bytes(2, "big") + dport.to_bytes(2, "big") + bytes(8) + bytes([0x50, bits]) + bytes(6)


def ports(sport: int, dport: int) -> bytes:
    """Return the start of a header with ports: UDP's, SCTP's."""
    return sport.to_bytes(2, "big") + dport.to_bytes(2, "big") + bytes(4)


def icmp(kind: int) -> bytes:
    """Return the header of an ICMP or ICMPv6 message of this type, or of IGMP."""
    return bytes([kind, 0, 0x12, 0x34]) + bytes(4)
