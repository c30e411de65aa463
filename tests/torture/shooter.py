"""Shoot at ports from raw sockets and report each answer: a process in the outsider's namespace, see `outsider`.

Raw packets cost a tenth of a connection, so that a port is tried many times a second on a busy machine. The first line
on stdin is JSON, see `Order`. Every answer is a line on stdout: the target's number, the moments before and after its
shot was sent, when the answer came (all `time.monotonic()`), and what it was. A line `mark` on stdin is answered by
`mark` and the numbers of shots at each target. The process ends when stdin does.

An answer is a SYN-ACK or a datagram; and also a reset or "port unreachable" whose TTL shows that a container behind the
host sent it, because the shot reached the container then. The host's own resets and errors are no answers.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import sys
import time
from typing import TypedDict

#: A hop less than Linux sends: the host has forwarded it.
FORWARDED = 63
SYN, RST, ACK, SYN_ACK = 0x02, 0x04, 0x10, 0x12
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
ETH_P = {socket.AF_INET: 0x0800, socket.AF_INET6: 0x86DD}
IPV6_CHECKSUM = 7
MAGIC = b"torture!"
#: So many shots are remembered; an answer to an older one is not counted.
MEMORY = 1 << 16
#: Source ports of shots: most have a new one; every fourth has its target's own, whose flow conntrack may still know.
PORTS, OWN_PORT, OWN_EVERY = (30000, 60000), 60100, 4
#: No target has any of these ports.
OURS = range(PORTS[0], 1 << 16)


class Order(TypedDict):
    """What to shoot at."""

    #: protocol, address, port, source address
    targets: list[tuple[str, str, int, str]]
    #: for each target, in how many of `PASSES` passes over all targets it gets a shot
    passes: list[int]
    #: seconds between two shots
    every: float


PASSES = 4


def folded(data: bytes) -> int:
    """Return the sum of the 16-bit words, for the Internet checksum."""
    return int(sum(struct.unpack(f"!{len(data) // 2}H", data)))


class Aim:
    """One target, and the socket and packets for it."""

    def __init__(self, number: int, protocol: str, address: str, port: int, source: str) -> None:
        self.number, self.port, self.address = number, port, address
        self.tcp, self.v4 = protocol == "tcp", ":" not in address
        family = socket.AF_INET if self.v4 else socket.AF_INET6
        self.socket = socket.socket(family, socket.SOCK_RAW, TCP if self.tcp else UDP)
        self.socket.setblocking(False)
        self.socket.bind((source, 0))
        # It only sends: what arrives is read from the packet sockets, for all targets.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        if not self.v4:
            self.socket.setsockopt(socket.IPPROTO_IPV6, IPV6_CHECKSUM, 16 if self.tcp else 6)
        ends = b"".join(socket.inet_pton(family, each) for each in (source, address))
        self.pseudo = folded(ends) + TCP + 20 if self.v4 else 0

    def packet(self, shot: int) -> bytes:
        """Return the packet of a shot, which carries the shot's number."""
        source = OWN_PORT + self.number if shot % OWN_EVERY == 0 else _port(shot)
        if not self.tcp:
            body = MAGIC + struct.pack("!I", shot)
            return struct.pack("!HHHH", source, self.port, 8 + len(body), 0) + body
        header = struct.pack("!HHIIBBHHH", source, self.port, shot, 0, 0x50, SYN, 64240, 0, 0)
        if not self.v4:
            return header
        total = self.pseudo + folded(header)
        total = (total & 0xFFFF) + (total >> 16)
        total = (total & 0xFFFF) + (total >> 16)
        return header[:16] + struct.pack("!H", ~total & 0xFFFF) + header[18:]

    def shoot(self, shot: int) -> bool:
        """Send a shot; return False if this namespace cannot, for example because the host has no link now."""
        try:
            self.socket.sendto(self.packet(shot), (self.address, 0))
        except OSError:
            return False
        return True


def _port(shot: int) -> int:
    """Return the source port of a shot that does not have its target's own."""
    low, high = PORTS
    return low + shot % (high - low)


def answered(packet: bytes, v4: bool) -> tuple[int, str] | None:
    """Return the shot that a packet answers, and how; None if it answers none."""
    if v4:
        protocol, hops, body = packet[9], packet[8], packet[(packet[0] & 15) * 4 :]
    else:
        protocol, hops, body = packet[6], packet[7], packet[40:]
    if protocol == TCP and len(body) >= 20:
        return _of_tcp(body, hops)
    # A host without a route to the target returns the shot itself, by its default route.
    if protocol == UDP and body[8:16] == MAGIC and int.from_bytes(body[2:4], "big") in OURS:
        return struct.unpack("!I", body[16:20])[0], "datagram"
    unreachable = (3, 3) if v4 else (1, 4)
    if protocol in (ICMP, ICMPV6) and (body[0], body[1]) == unreachable and hops == FORWARDED:
        quoted = body[8:]
        payload = quoted[(quoted[0] & 15) * 4 + 8 :] if v4 else quoted[48:]
        if payload.startswith(MAGIC) and len(payload) >= 12:
            return struct.unpack("!I", payload[8:12])[0], "unreachable"
    return None


def _of_tcp(body: bytes, hops: int) -> tuple[int, str] | None:
    shot, flags = (struct.unpack("!I", body[8:12])[0] - 1) & 0xFFFFFFFF, body[13]
    port = int.from_bytes(body[2:4], "big")
    if port < OWN_PORT and port != _port(shot):  # of a connection that another probe opened
        return None
    if flags & SYN_ACK == SYN_ACK:
        return shot, "syn-ack"
    if flags & RST and flags & ACK and hops == FORWARDED:
        return shot, "reset"
    return None


class Shooter:
    """The loop: send what is due, report what came."""

    def __init__(self, order: Order) -> None:
        aims = [Aim(number, *target) for number, target in enumerate(order["targets"])]
        self.sequence = [aim for turn in range(PASSES) for aim in aims if turn < order["passes"][aim.number]]
        self.every, self.shots = order["every"], [0] * len(aims)
        self.last = int.from_bytes(os.urandom(3), "big") << 6
        self.sent = [(0, 0, 0.0, 0.0)] * MEMORY
        self.ears = {self.ear(family): family == socket.AF_INET for family in ETH_P}

    @staticmethod
    def ear(family: socket.AddressFamily) -> socket.socket:
        """Return a socket that gets each packet of a family that arrives from the hosts."""
        made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P[family]))
        made.bind(("lan", ETH_P[family]))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        made.setblocking(False)
        return made

    def run(self) -> None:
        """Shoot until stdin ends."""
        turn, due = 0, time.monotonic()
        while True:
            wait = max(0.0, due - time.monotonic())
            ready, _, _ = select.select([sys.stdin, *self.ears], [], [], wait)
            if sys.stdin in ready and not self.obey():
                return
            for ear in self.ears:
                if ear in ready:
                    self.hear(ear)
            now = time.monotonic()
            if now >= due:
                self.fire(self.sequence[turn % len(self.sequence)], now)
                turn += 1
                # After a stall it goes on, and does not catch up in a burst.
                due = max(due + self.every, now)

    def fire(self, aim: Aim, now: float) -> None:
        """Send one shot."""
        self.last += 1
        self.shots[aim.number] += aim.shoot(self.last)
        self.sent[self.last % MEMORY] = (self.last, aim.number, now, time.monotonic())

    def obey(self) -> bool:
        """Answer a mark; return False at the end of stdin."""
        if not os.read(sys.stdin.fileno(), 4096):
            return False
        print("mark", *self.shots, flush=True)
        return True

    def hear(self, ear: socket.socket) -> None:
        """Report the answers that have arrived."""
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    found = answered(ear.recv(2048), self.ears[ear])
                except IndexError:  # a packet too short to be an answer
                    continue
                if found is None:
                    continue
                shot, how = found
                number, target, before, after = self.sent[shot % MEMORY]
                if number == shot:
                    print(target, before, after, time.monotonic(), how, flush=True)


if __name__ == "__main__":
    # Unbuffered: `select` sees only what Python has not read ahead.
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as commands:
        order = json.loads(commands.readline())
    Shooter(order).run()
