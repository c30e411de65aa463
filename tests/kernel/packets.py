"""Build packets by hand, send them raw, and recognise them on arrival.

A packet is recognised by its addresses and everything above the IP header, which nothing on the path changes (but NAT).
So each packet that must be distinguished has a source port or a payload of its own.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path

from plugin.model import Address
from tests.kernel.netns import inside
from tests.lab.agent.probes import checksum
from tests.lab.agent.sctp import sctp_packet
from tests.waiting import until

ICMP, ICMP6 = 1, 58
_ETH_ALL = 3
_number = itertools.count(1)


@lru_cache(4096)
def packed(address: str | Address) -> bytes:
    """Return an address as in a header."""
    return ip_address(address).packed


@lru_cache(4096)
def written(address: bytes) -> str:
    """Return the address as text: the inverse of `packed`."""
    return str(ip_address(address))


@dataclass(frozen=True, slots=True)
class Packet:
    """An IP packet: `data` follows the (fixed) IP header; `proto` is the protocol that this header names."""

    src: bytes
    dst: bytes
    proto: int
    data: bytes

    def __bytes__(self) -> bytes:
        """Return the packet with hop limit 64, and for IPv4 with an identification of its own."""
        if len(self.dst) == 16:
            return struct.pack("!IHBB", 6 << 28, len(self.data), self.proto, 64) + self.src + self.dst + self.data
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(self.data), next(_number) & 0xFFFF or 1, 0, 64, self.proto, 0)
        head += self.src + self.dst
        return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + self.data

    @classmethod
    def read(cls, raw: bytes) -> Packet | None:
        """Return the packet that arrived; None if it is not IP."""
        if len(raw) >= 40 and raw[0] >> 4 == 6:
            length = struct.unpack_from("!H", raw, 4)[0]
            return cls(raw[8:24], raw[24:40], raw[6], raw[40 : 40 + length])
        if len(raw) >= 20 and raw[0] >> 4 == 4:
            head, length = (raw[0] & 15) * 4, struct.unpack_from("!H", raw, 2)[0]
            return cls(raw[12:16], raw[16:20], raw[9], raw[head:length])
        return None


class Fragment(Packet):
    """A part of an IPv4 packet; `place` is its offset in units of 8 bytes, with 0x2000 if more follow."""

    __slots__ = ("ident", "place")
    ident: int
    place: int

    def __init__(self, whole: Packet, place: int, ident: int, data: bytes) -> None:
        super().__init__(whole.src, whole.dst, whole.proto, data)
        object.__setattr__(self, "place", place)
        object.__setattr__(self, "ident", ident)

    def __bytes__(self) -> bytes:
        raw = super().__bytes__()
        head = raw[:4] + struct.pack("!HH", self.ident, self.place) + raw[8:10] + b"\0\0" + raw[12:20]
        return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + self.data


def _sum(src: bytes, dst: bytes, proto: int, data: bytes) -> int:
    """Return the checksum with the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1)."""
    return checksum(src + dst + struct.pack("!II" if len(src) == 16 else "!HH", len(data), proto) + data)


def tcp(
    src: str | Address, dst: str | Address, port: int, sport: int, flags: int = 0x02, ack: int = 0, seq: int = 1000
) -> Packet:
    """Return a TCP segment, by default a SYN."""
    here, there = packed(src), packed(dst)
    head = struct.pack("!HHIIBBHHH", sport, port, seq, ack, 5 << 4, flags, 65535, 0, 0)
    return Packet(here, there, 6, head[:16] + struct.pack("!H", _sum(here, there, 6, head)) + head[18:])


def udp(src: str | Address, dst: str | Address, port: int, sport: int, body: bytes = b"fw") -> Packet:
    """Return a UDP datagram."""
    here, there = packed(src), packed(dst)
    head = struct.pack("!HHHH", sport, port, 8 + len(body), 0) + body
    return Packet(here, there, 17, head[:6] + struct.pack("!H", _sum(here, there, 17, head) or 0xFFFF) + head[8:])


def udplite(src: str | Address, dst: str | Address, port: int, sport: int) -> Packet:
    """Return a datagram whose checksum covers all of it (RFC 3828).

    The checksum is as connection tracking computes it: with UDP's number, so a correct one from elsewhere is invalid to
    it (Linux 6.18).
    """
    here, there = packed(src), packed(dst)
    head = struct.pack("!HHHH", sport, port, 0, 0) + b"fw"
    return Packet(here, there, 136, head[:6] + struct.pack("!H", _sum(here, there, 17, head) or 0xFFFF) + head[8:])


def sctp_chunk(src: str | Address, dst: str | Address, port: int, sport: int, kind: int, *, tag: int) -> Packet:
    """Return one chunk with as much data as an INIT or a HEARTBEAT needs."""
    body = struct.pack("!IIHHI", 1, 65536, 1, 1, 1)
    return Packet(packed(src), packed(dst), 132, sctp_packet(sport, port, tag, kind, 0, body))


def sctp(src: str | Address, dst: str | Address, port: int, sport: int) -> Packet:
    """Return an SCTP INIT."""
    init = struct.pack("!IIHHI", 1, 65536, 1, 1, 1)
    return Packet(packed(src), packed(dst), 132, sctp_packet(sport, port, 0, 1, 0, init))


def new_flow(proto: str, src: str | Address, dst: str | Address, port: int, sport: int) -> Packet:
    """Return the first packet of a flow of a protocol with ports."""
    make: dict[str, Callable[[str | Address, str | Address, int, int], Packet]] = {"tcp": tcp, "udp": udp, "sctp": sctp}
    return make[proto](src, dst, port, sport)


def icmp(src: str | Address, dst: str | Address, kind: int, code: int = 0, body: bytes = b"") -> Packet:
    """Return an ICMP or ICMPv6 message, by the addresses; `body` follows the checksum (its own by default)."""
    here, there = packed(src), packed(dst)
    body = body or struct.pack("!HH", next(_number) & 0xFFFF, 1) + os.urandom(8)
    six = len(here) == 16
    head = struct.pack("!BBH", kind, code, 0) + body
    total = _sum(here, there, ICMP6, head) if six else checksum(head)
    return Packet(here, there, ICMP6 if six else ICMP, head[:2] + struct.pack("!H", total) + body)


def ping(src: str | Address, dst: str | Address) -> Packet:
    """Return a unique echo request."""
    return icmp(src, dst, 128 if len(packed(dst)) == 16 else 8)


def icmp_error(src: str | Address, about: Packet, kind: int, code: int = 0, word: int = 0) -> Packet:
    """Return an ICMP error about a packet, sent to its source; `word` is the error's own field (MTU, pointer)."""
    quoted = bytes(about)[: 512 if len(about.src) == 16 else 28]
    return icmp(src, written(about.src), kind, code, struct.pack("!I", word) + quoted)


_PORTLESS = {"gre": 47, "esp": 50, "ah": 51, "other": 253}


def portless(proto: str, src: str | Address, dst: str | Address) -> Packet:
    """Return a unique packet of a protocol without ports; "other" is an unassigned one."""
    head = {"gre": b"\0\0\x08\0", "esp": b"\0\0\0\1\0\0\0\1", "ah": b"\xfe\4\0\0\0\0\0\1\0\0\0\1", "other": b""}[proto]
    return Packet(packed(src), packed(dst), _PORTLESS[proto], head + os.urandom(16))


def authenticated(packet: Packet) -> Packet:
    """Return an IPv6 packet behind an authentication header."""
    return extended(packet, 51, b"\4\0\0\0\0\0\1\0\0\0\1" + os.urandom(12))


def extended(packet: Packet, header: int, body: bytes) -> Packet:
    """Return an IPv6 packet with an extension header in front; `body` is that header after its next-header byte."""
    return Packet(packet.src, packet.dst, header, bytes([packet.proto]) + body + packet.data)


def mac(text: str) -> bytes:
    """Return `02:42:0a:01:00:02` as in a frame."""
    return bytes.fromhex(text.replace(":", ""))


def frame(netns: str, source: str, target: str, packet: Packet) -> None:
    """Send a packet by `eth0` of a network namespace, in a frame between two MACs, each of which may be false."""
    kind = b"\x86\xdd" if len(packet.dst) == 16 else b"\x08\x00"
    with inside(netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("eth0", 0))
        sock.send(mac(target) + mac(source) + kind + bytes(packet))


def queued(processor: int) -> int:
    """Return how many packets of all namespaces wait for this processor (softnet_seq_show, net/core/net-procfs.c)."""
    lines = (line.split() for line in Path("/proc/net/softnet_stat").read_text().splitlines())
    return next(int(line[11], 16) for line in lines if int(line[12], 16) == processor)


class Sender:
    """Send packets as they are, from a network namespace."""

    def __init__(self, netns: str) -> None:
        with inside(netns):
            self._four = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
            self._six = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
        for sock in (self._four, self._six):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)

    def __call__(self, packets: Iterable[Packet]) -> None:
        """Send on one processor: the kernel then handles the packets on it in the order in which they are sent.

        All namespaces share its queue of 1,000 packets (net.core.netdev_max_backlog), and on a busy machine the kernel
        drops what does not fit, packets of other tests as well. So a mass of packets waits for the queue.
        """
        mine = os.sched_getaffinity(0)
        processor = min(mine)
        os.sched_setaffinity(0, {processor})
        try:
            for number, packet in enumerate(packets):
                if number % 64 == 63:
                    until(lambda: queued(processor) < 128, "the kernel handles packets")
                (self._six if len(packet.dst) == 16 else self._four).sendto(bytes(packet), (written(packet.dst), 0))
        finally:
            os.sched_setaffinity(0, mine)

    def close(self) -> None:
        self._four.close()
        self._six.close()


class Sniffer:
    """See every IP packet that enters by a link of a network namespace, before any rule there."""

    def __init__(self, netns: str, link: str) -> None:
        with inside(netns):
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_ALL))
            self._sock.bind((link, _ETH_ALL))
        self._sock.setblocking(False)
        self._sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
        self.fd = self._sock.fileno()

    def read(self) -> Iterator[Packet]:
        """Yield the packets since the last call."""
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    raw, address = self._sock.recvfrom(65536)
                except OSError as error:
                    if error.errno == errno.ENETDOWN:  # reported once, for a link that was down at the start
                        continue
                    raise
                packet = Packet.read(raw)
                if packet is not None and address[2] != socket.PACKET_OUTGOING:
                    yield packet

    def close(self) -> None:
        self._sock.close()


class Listener:
    """Receive every packet that a network namespace accepts for itself: those that its input rules accept.

    A packet to a port without a socket is refused: so `expect` opens one where there is none, until `arrived` returns.
    """

    def __init__(self, netns: str) -> None:
        self._netns = netns
        self._bound: dict[tuple[int, int], socket.socket | None] = {}
        others = (6, 17, 47, 50, 51, 132, 253)
        of = {socket.AF_INET: (ICMP, *others), socket.AF_INET6: (ICMP6, *others)}
        self._socks: list[tuple[socket.socket, int]] = []
        self._ready = select.epoll()
        with inside(netns):
            for family, protos in of.items():
                self._socks += [(socket.socket(family, socket.SOCK_RAW, proto), proto) for proto in protos]
        for sock, _ in self._socks:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            self._ready.register(sock, select.EPOLLIN)
        self.fd = self._ready.fileno()

    def read(self) -> Iterator[Packet]:
        """Yield the packets since the last call."""
        for sock, proto in self._socks:
            with contextlib.suppress(BlockingIOError):
                while True:
                    data, ancillary, _, source = sock.recvmsg(65536, 64)
                    if sock.family == socket.AF_INET6:  # without its header
                        yield Packet(packed(source[0].partition("%")[0]), ancillary[0][2][:16], proto, data)
                    elif packet := Packet.read(data):
                        yield packet

    def expect(self, packets: Iterable[Packet]) -> None:
        """Open a socket for both families on each TCP and UDP port to which one of these packets is sent here."""
        wanted = {(each.dst, each.proto, int.from_bytes(each.data[2:4], "big")) for each in packets}
        wanted = {each for each in wanted if each[1] in (6, 17) and each[1:] not in self._bound and each[2]}
        if wanted:
            with inside(self._netns):
                here = {dst for dst in {dst for dst, _, _ in wanted} if _is_local(written(dst))}
                for proto, port in {(proto, port) for dst, proto, port in wanted if dst in here}:
                    self._bound[proto, port] = _bound(proto, port)

    def release(self) -> None:
        """Close the sockets that `expect` has opened."""
        for sock in filter(None, self._bound.values()):
            sock.close()
        self._bound.clear()

    def close(self) -> None:
        self.release()
        self._ready.close()
        for sock, _ in self._socks:
            sock.close()


def _is_local(address: str) -> bool:
    """True if this namespace has the address."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((address, 0))
        except OSError:
            return False
        return True


def _bound(proto: int, port: int) -> socket.socket | None:
    """Return a socket that listens on this port, None if one does already."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM if proto == 6 else socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    try:
        sock.bind(("::", port))
        if proto == 6:
            sock.listen()
    except OSError as error:
        sock.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    return sock


def arrived(sniffers: Collection[Sniffer | Listener], last: Packet, seconds: float = 5) -> list[set[Packet]]:
    """Return what each sniffer has seen by the time that one of them sees `last`, which was sent last."""
    seen: list[set[Packet]] = [set() for _ in sniffers]
    end = time.monotonic() + seconds
    while True:
        for sniffer, packets in zip(sniffers, seen, strict=True):
            packets.update(sniffer.read())
        if any(last in packets for packets in seen):
            for sniffer in sniffers:
                if isinstance(sniffer, Listener):
                    sniffer.release()
            return seen
        left = end - time.monotonic()
        assert left > 0, f"the last packet, to {written(last.dst)}, which must always pass, did not arrive"
        select.select([s.fd for s in sniffers], [], [], left)
