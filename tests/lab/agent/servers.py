"""Run echo servers in any network namespace."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from .namespaces import inside
from .sctp import sctp_packet

PKTINFO, RECVPKTINFO = 50, 49  # IPV6_PKTINFO, IPV6_RECVPKTINFO


def intro(name: str, peer: tuple[Any, ...], **more: Any) -> bytes:
    """Return a server's introduction to a client: its name, and the client's address."""
    address = peer[0].removeprefix("::ffff:")
    return json.dumps({"server": name, "peer": address, "peer_port": peer[1], **more}).encode() + b"\n"


class Servers:
    """Echo servers in one namespace, closed on request or when the watched process ends."""

    def __init__(self, netns: str, name: str, tcp: list[int], udp: list[int], sctp: list[int], watch: int) -> None:
        self.name, self.sctp = name, sctp
        self.seen: list[dict[str, Any]] = []  # received data: proto, port, peer, time
        self.loop = asyncio.get_running_loop()
        self.sockets: list[socket.socket] = []
        self.pidfd = os.pidfd_open(watch) if watch else -1
        if watch:
            self.loop.add_reader(self.pidfd, self.close)
        try:
            with inside(netns):
                for port in tcp:
                    self.listen(socket.SOCK_STREAM, port, self.accept)
                for port in udp:
                    self.listen(socket.SOCK_DGRAM, port, self.echo)
                if sctp:
                    for fam in (socket.AF_INET, socket.AF_INET6):
                        self.add(socket.socket(fam, socket.SOCK_RAW, 132), self.init_ack)
        except OSError:
            self.close()
            raise

    def add(self, sock: socket.socket, handle: Callable[[socket.socket], None]) -> None:
        """Call `handle` whenever there is data to read."""
        sock.setblocking(False)
        self.sockets.append(sock)
        self.loop.add_reader(sock, self.safely, handle, sock)

    def safely(self, handle: Callable[[socket.socket], None], sock: socket.socket) -> None:
        """Call `handle`; ignore an empty socket and a peer that has disconnected."""
        with contextlib.suppress(OSError):
            handle(sock)

    def listen(self, kind: socket.SocketKind, port: int, handle: Callable[[socket.socket], None]) -> None:
        """Listen for both families on one socket."""
        sock = socket.socket(socket.AF_INET6, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if kind == socket.SOCK_DGRAM:  # to answer from the address to which the request was sent
            sock.setsockopt(socket.IPPROTO_IPV6, RECVPKTINFO, 1)
        self.sockets.append(sock)
        try:
            sock.bind(("::", port))
        except OSError as error:
            raise OSError(error.errno, f"port {port}: {error.strerror}") from error
        if kind == socket.SOCK_STREAM:
            sock.listen(1024)
        self.sockets.pop()
        self.add(sock, handle)

    def note(self, proto: str, port: int, peer: tuple[Any, ...]) -> None:
        """Record an arrival."""
        if len(self.seen) < 100_000:
            self.seen.append(
                {"proto": proto, "port": port, "peer": peer[0].removeprefix("::ffff:"), "at": time.monotonic()}
            )

    def accept(self, sock: socket.socket) -> None:
        """Send the introduction, then echo."""
        client, peer = sock.accept()
        self.note("tcp", sock.getsockname()[1], peer)
        client.send(intro(self.name, peer))
        self.add(client, self.echo_tcp)

    def echo_tcp(self, client: socket.socket) -> None:
        """Echo until the client hangs up."""
        try:
            received = client.recv(65536)
            if received:
                client.send(received)
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self.loop.remove_reader(client)
        self.sockets.remove(client)
        client.close()

    def echo(self, sock: socket.socket) -> None:
        """Answer a datagram."""
        received, info, _, peer = sock.recvmsg(65536, 256)
        self.note("udp", sock.getsockname()[1], peer)
        # From the address to which it was sent, by any interface that leads back.
        info = [(level, kind, data[:16] + b"\0\0\0\0") for level, kind, data in info if kind == PKTINFO]
        sock.sendmsg([intro(self.name, peer, received=received.decode(errors="replace"))], info, 0, peer)

    def init_ack(self, sock: socket.socket) -> None:
        """Answer INIT on the server's ports with INIT-ACK, on others with ABORT."""
        received, peer = sock.recvfrom(65536)
        received = received if sock.family == socket.AF_INET6 else received[(received[0] & 15) * 4 :]
        if len(received) < 20 or received[12] != 1:
            return
        theirs, ours, _ = struct.unpack("!HHI", received[:8])
        self.note("sctp", ours, peer)
        tag = struct.unpack("!I", received[16:20])[0]
        if ours in self.sctp:
            body = struct.pack("!IIHHI", 2, 65536, 1, 1, 2) + struct.pack("!HH4s", 7, 8, b"lab!")
            sock.sendto(sctp_packet(ours, theirs, tag, 2, 0, body), (peer[0], 0, *peer[2:]))
        else:
            sock.sendto(sctp_packet(ours, theirs, tag, 6, 0, b""), (peer[0], 0, *peer[2:]))

    def close(self) -> None:
        """Close everything; harmless twice."""
        for sock in self.sockets:
            self.loop.remove_reader(sock)
            sock.close()
        self.sockets.clear()
        if self.pidfd >= 0:
            self.loop.remove_reader(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = -1
