"""Traffic that costs the path under test and little else, from this process: no program, no compiler.

Everything a packet causes on a veth path (sending, forwarding, both bridges, the receiving socket) happens in the
sender's own system call, so the CPU time of the sending thread (CLOCK_THREAD_CPUTIME_ID, in nanoseconds) is the cost
of the whole path, whatever else the machine is busy with. Client and server are sockets of the same thread in two
network namespaces. Rates are therefore per second of one CPU.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
PORT = 5001
_NEWNET = 0x40000000
_BATCH = 1024  # UIO_MAXIOV: the most that sendmmsg takes
_FIRST = 1200  # source port of the first of the new flows
_IPV6_CHECKSUM = 7
_libc = ctypes.CDLL(None, use_errno=True)


def within(netns: str, function: Callable[[], T]) -> T:
    """Call `function` in a thread in the network namespace; sockets that it opens stay there."""
    result: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            with open(netns) as handle:
                if _libc.setns(handle.fileno(), _NEWNET):
                    raise OSError(ctypes.get_errno(), f"setns {netns}")
            result.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join(600)
    if failure:
        raise failure[0]
    return result[0]


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """struct msghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_Iovec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (("header", _Header), ("sent", ctypes.c_uint))


class Datagrams:
    """Datagrams ready to be sent, `size` bytes each, by a connected socket."""

    def __init__(self, count: int, content: bytes, size: int) -> None:
        """`content` holds `count` datagrams, or one that is sent `count` times."""
        self._content = ctypes.create_string_buffer(content, len(content))
        start = ctypes.addressof(self._content)
        step = size if len(content) > size else 0
        self._vectors = (_Iovec * count)(*(_Iovec(start + step * n, size) for n in range(count)))
        self._messages = (_Message * count)()
        for message, vector in zip(self._messages, self._vectors, strict=True):
            message.header.iov = ctypes.pointer(vector)
            message.header.iovlen = 1
        self.count = count

    def send(self, sock: socket.socket) -> float:
        """Send all; return the CPU nanoseconds for each."""
        fd, size = sock.fileno(), ctypes.sizeof(_Message)
        began, done = time.thread_time_ns(), 0
        while done < self.count:
            sent = _libc.sendmmsg(fd, ctypes.byref(self._messages, done * size), min(_BATCH, self.count - done), 0)
            if sent < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            done += sent
        return (time.thread_time_ns() - began) / self.count


def new_flows(count: int) -> Datagrams:
    """Return UDP headers of as many source ports, for a raw socket; the kernel adds the checksum (0 on IPv4)."""
    headers = b"".join(struct.pack("!HHHH8x", _FIRST + n, PORT, 16, 0) for n in range(count))
    return Datagrams(count, headers, 16)


@dataclass(frozen=True)
class Path:
    """A path from a client's namespace to a server's address.

    `settle` is called after runs that fill connection tracking.
    """

    name: str
    client: str
    server: str
    address: str
    settle: Callable[[], None]

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.address else socket.AF_INET

    def _sockets(self, kind: socket.SocketKind) -> tuple[socket.socket, socket.socket]:
        def server() -> socket.socket:
            sock = socket.socket(self.family, kind)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((self.address, PORT))
            sock.settimeout(2)
            return sock

        def client() -> socket.socket:
            sock = socket.socket(self.family, kind)
            sock.settimeout(2)
            return sock

        return within(self.client, client), within(self.server, server)

    def established(self, datagrams: Datagrams) -> tuple[float, float]:
        """Return the CPU nanoseconds for each packet of one answered UDP flow: towards the server, and from it."""
        client, server = self._sockets(socket.SOCK_DGRAM)
        with client, server:
            client.connect((self.address, PORT))
            client.send(b"?")
            _, peer = server.recvfrom(100)
            server.connect(peer)
            server.send(b"!")
            client.recv(100)
            before = self._arrived(self.server)
            inward = datagrams.send(client)
            self._must_have_arrived(self._arrived(self.server) - before, datagrams)
            return inward, datagrams.send(server)

    def new_flows(self, datagrams: Datagrams) -> float:
        """Return the CPU nanoseconds for each packet that is the first of its flow."""
        _, server = self._sockets(socket.SOCK_DGRAM)

        def raw() -> socket.socket:
            sock = socket.socket(self.family, socket.SOCK_RAW, socket.IPPROTO_UDP)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            if self.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_CHECKSUM, 6)
            sock.connect((self.address, 0))
            return sock

        with server, within(self.client, raw) as client:
            before = self._arrived(self.server)
            cost = datagrams.send(client)
            self._must_have_arrived(self._arrived(self.server) - before, datagrams)
        self.settle()
        return cost

    def connects(self, count: int) -> float:
        """Return the CPU nanoseconds for each TCP connection: opened, accepted, and reset (so its port is free)."""
        _, listener = self._sockets(socket.SOCK_STREAM)
        linger = struct.pack("ii", 1, 0)
        target, family = (self.address, PORT), self.family
        plain: Any = socket.SocketType  # the C type: without the cost of the class around it
        close, accept = os.close, plain._accept

        def run() -> float:
            began = time.thread_time_ns()
            for _ in range(count):
                sock = plain(family, socket.SOCK_STREAM)
                sock.connect(target)
                close(accept(listener)[0])
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                sock.close()
            return (time.thread_time_ns() - began) / count

        with listener:
            listener.listen(16)
            cost = within(self.client, run)
        self.settle()
        return cost

    def bulk(self, size: int) -> float:
        """Return the CPU nanoseconds for each byte of one TCP stream."""
        client, listener = self._sockets(socket.SOCK_STREAM)
        with client, listener:
            listener.listen(1)
            client.connect((self.address, PORT))
            server, _ = listener.accept()
            with server:
                client.setblocking(False)
                server.setblocking(False)
                return _pump(client, server, size)

    def _arrived(self, netns: str) -> int:
        def count() -> int:
            with open("/proc/thread-self/net/dev") as lines:
                return sum(int(line.split()[2]) for line in lines if "eth" in line)

        return within(netns, count)

    def _must_have_arrived(self, count: int, datagrams: Datagrams) -> None:
        if count < 0.99 * datagrams.count:
            raise RuntimeError(f"{self.name}: only {count} of {datagrams.count} packets arrived at {self.address}")


def _pump(client: socket.socket, server: socket.socket, size: int) -> float:
    """Send to a server that discards the data without copying it (MSG_TRUNC), so that the path determines the cost."""
    chunk, sink = bytes(1 << 18), bytearray(1 << 20)
    poll = select.poll()
    poll.register(client, select.POLLOUT)
    poll.register(server, select.POLLIN)
    began, got = time.thread_time_ns(), 0
    while got < size:
        idle = True
        try:
            client.send(chunk)
            idle = False
        except BlockingIOError:
            pass
        try:
            got += server.recv_into(sink, 0, socket.MSG_TRUNC)
            idle = False
        except BlockingIOError:
            pass
        if idle and not poll.poll(5000):
            raise RuntimeError("a TCP stream has stopped for 5 s")
    return (time.thread_time_ns() - began) / got
