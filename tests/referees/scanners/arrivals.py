"""Say what an attacked network namespace received: every frame, read before any rule of that namespace.

The reading is independent of the product, of the kernel's connection tracking and of the attacking tool: extension
headers are walked and fragments are put together here. Anything that cannot be read has a name of its own
("unreadable", "part of an unknown packet"), so it counts as an arrival.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address

from tests.kernel.netns import inside

_ETH_ALL, _SO_RCVBUFFORCE = 3, 33
_IPV4, _IPV6, _ARP = 0x0800, 0x86DD, 0x0806
_FRAGMENT, _AH = 44, 51
#: Extension headers with a length in units of 8 bytes: hop-by-hop, routing, destination options, mobility, HIP, shim6.
_OPTIONS = (0, 43, 60, 135, 139, 140)
_PORTS = {6: "tcp", 17: "udp", 33: "dccp", 132: "sctp", 136: "udplite"}
_ICMP = {1: "icmp", 58: "icmpv6"}


@dataclass(frozen=True)
class Frame:
    """A frame as it arrived: the sender's MAC, the EtherType, the payload."""

    mac: str
    kind: int
    data: bytes


@dataclass(frozen=True)
class Upper:
    """An IP packet after its header and extension headers: what a fragment is matched by, and the upper layer.

    `offset` is None for a whole packet, else this fragment's place in bytes; `more` is true if others follow it.
    """

    src: bytes
    dst: bytes
    proto: int
    data: bytes
    ident: int = 0
    offset: int | None = None
    more: bool = False


class Ears:
    """Read the frames that enter a namespace by `eth0` (or another link)."""

    def __init__(self, netns: str, link: str = "eth0") -> None:
        with inside(netns):
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_ALL))
            self._sock.bind((link, _ETH_ALL))
        self._sock.setblocking(False)
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 24)

    def read(self) -> Iterator[Frame]:
        """Yield the frames since the last call."""
        with contextlib.suppress(BlockingIOError):
            while True:
                data, (_, kind, direction, _, mac) = self._sock.recvfrom(1 << 17)
                if direction != socket.PACKET_OUTGOING:
                    yield Frame(mac.hex(":"), kind, data)

    def close(self) -> None:
        self._sock.close()


@dataclass
class Arrivals:
    """The names of what arrived: "tcp 8080", "icmpv6 128", "arp", "part of a fragment" …"""

    names: set[str] = field(default_factory=set)
    _parts: dict[tuple[bytes, bytes, int], list[Upper]] = field(default_factory=dict)

    @classmethod
    def of(cls, frames: Iterable[Frame]) -> frozenset[str]:
        """Return the names for these frames; fragments of which others are missing have names of their own."""
        found = cls()
        for frame in frames:
            found.add(frame)
        for parts in found._parts.values():
            found.names.add(f"part of {_of_first(parts[0])}")
        return frozenset(found.names)

    def add(self, frame: Frame) -> None:
        """Add one frame; one that completes a fragmented packet adds that packet."""
        if frame.kind == _ARP:
            self.names.add("arp")
            return
        if frame.kind not in (_IPV4, _IPV6):
            self.names.add(f"EtherType {frame.kind:#06x}")
            return
        try:
            part = (_six if frame.kind == _IPV6 else _four)(frame.data)
            packet = self._whole(part) if part.offset is not None else part
            if packet:
                self.names.add(_named(packet))
        except (struct.error, IndexError, ValueError):
            self.names.add("unreadable")

    def _whole(self, part: Upper) -> Upper | None:
        """Return the packet that this fragment completes. Raises ValueError if fragments overlap."""
        key = (part.src, part.dst, part.ident)
        parts = sorted([*self._parts.get(key, ()), part], key=lambda each: each.offset or 0)
        self._parts[key] = parts
        end = 0
        for each in parts:
            if each.offset != end:
                if (each.offset or 0) < end:
                    raise ValueError("fragments overlap")
                return None
            end += len(each.data)
        if parts[-1].more:
            return None
        del self._parts[key]
        data = b"".join(each.data for each in parts)
        whole = Upper(part.src, part.dst, parts[0].proto, data)
        return _six_upper(whole, parts[0].proto, data) if len(part.src) == 16 else whole


def _six(raw: bytes) -> Upper:
    if raw[0] >> 4 != 6:
        raise ValueError("not IPv6")
    length, proto = struct.unpack_from("!HB", raw, 4)
    return _six_upper(Upper(raw[8:24], raw[24:40], proto, b""), proto, raw[40 : 40 + length])


def _six_upper(packet: Upper, proto: int, data: bytes) -> Upper:
    """Walk the extension headers up to the upper layer, or to a fragment header."""
    while True:
        if proto in _OPTIONS:
            size = (data[1] + 1) * 8
        elif proto == _AH:
            size = (data[1] + 2) * 4
        elif proto == _FRAGMENT:
            place, ident = struct.unpack_from("!HI", data, 2)
            if place & 0xFFF9:
                return Upper(packet.src, packet.dst, data[0], data[8:], ident, place & 0xFFF8, bool(place & 1))
            size = 8
        else:
            return Upper(packet.src, packet.dst, proto, data)
        if size > len(data):
            raise ValueError("a header ends after the packet")
        proto, data = data[0], data[size:]


def _four(raw: bytes) -> Upper:
    if raw[0] >> 4 != 4:
        raise ValueError("not IPv4")
    head = (raw[0] & 15) * 4
    length, ident, place = struct.unpack_from("!HHH", raw, 2)
    packet = Upper(raw[12:16], raw[16:20], raw[9], raw[head:length])
    if not place & 0x3FFF:
        return packet
    return Upper(
        packet.src, packet.dst, raw[9], packet.data, ident << 8 | raw[9], (place & 0x1FFF) * 8, bool(place & 0x2000)
    )


def _of_first(part: Upper) -> str:
    """Return the name of the packet that a first fragment shows."""
    with contextlib.suppress(struct.error, IndexError, ValueError):
        if not part.offset:
            return _named(_six_upper(part, part.proto, part.data) if len(part.src) == 16 else part)
    return "an unknown packet"


def _named(packet: Upper) -> str:
    if packet.proto in _PORTS:
        return f"{_PORTS[packet.proto]} {struct.unpack_from('!H', packet.data, 2)[0]}"
    if packet.proto in _ICMP:
        return f"{_ICMP[packet.proto]} {packet.data[0]}"
    return f"protocol {packet.proto}"


def to(frames: Iterable[Frame], *addresses: object) -> list[Frame]:
    """Return the frames with an IP packet to one of these addresses."""
    wanted = {ip_address(str(each)).packed for each in addresses}
    return [f for f in frames if (f.data[24:40] if f.kind == _IPV6 else f.data[16:20]) in wanted]


def from_mac(frames: Iterable[Frame], mac: str) -> list[Frame]:
    """Return the frames that this MAC sent."""
    return [frame for frame in frames if frame.mac == mac]


def is_from_the_link(frame: Frame) -> bool:
    """Return True for neighbour discovery that was not forwarded: its hop limit is 255, so the host itself sent it."""
    return frame.kind == _IPV6 and frame.data[6:8] == b"\x3a\xff" and 133 <= frame.data[40] <= 137


def is_own_housekeeping(frame: Frame, own: set[str]) -> bool:
    """Return True for what a container's kernel sends by itself, and truthfully; `own` are its addresses.

    Reports of its groups, router solicitations, and solicitations and advertisements of its own addresses.
    """
    if Arrivals.of([frame]) <= {"icmpv6 133", "icmpv6 143"}:
        return True
    if frame.kind != _IPV6 or frame.data[6] != 58 or frame.data[40] not in (135, 136):
        return False
    claimed = frame.data[8:24] if frame.data[40] == 135 else frame.data[48:64]
    return str(ip_address(claimed)) in own
