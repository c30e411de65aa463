"""UDP over loopback: each client gets a socket of its own towards the container, so that replies reach it."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from plugin.driver.host_socket import IP_PKTINFO, target_family

_DATAGRAMS_AT_ONCE = 64  # datagrams taken from one socket before other sockets get their turn
_MAX_DATAGRAM = 65535  # bytes
_IN_PKTINFO = struct.Struct("@I4s4s")  # interface, local address, destination


@dataclass(slots=True)
class _Client:
    upstream: socket.socket
    last: float  # loop time, s


class Clients(OrderedDict[tuple[Any, ...], _Client]):
    """UDP clients by (port, client address, loopback address that it sent to), the one idle longest first."""

    def __init__(self, loop: asyncio.AbstractEventLoop, idle: float, limit: int) -> None:
        super().__init__()
        self.loop, self._idle, self._limit = loop, idle, limit
        self._timer: asyncio.TimerHandle | None = None

    def touch(self, key: tuple[Any, ...]) -> _Client | None:
        """Return the client with this key and renew its time of last use; None if there is none."""
        client = self.get(key)
        if client is not None:
            client.last = self.loop.time()
            self.move_to_end(key)
        return client

    def add(self, key: tuple[Any, ...], upstream: socket.socket) -> _Client:
        """Add a client; if there are too many, drop the one that was idle longest."""
        self._timer = self._timer or self.loop.call_later(self._idle, self._expire)
        while len(self) >= self._limit:
            self.forget(next(iter(self)))
        self[key] = _Client(upstream, self.loop.time())
        return self[key]

    def forget(self, key: tuple[Any, ...]) -> None:
        """Close a client's socket and drop it."""
        client = self.pop(key)
        self.loop.remove_reader(client.upstream)
        client.upstream.close()

    def _expire(self) -> None:
        self._timer = None
        while self:
            key, client = next(iter(self.items()))
            if client.last + self._idle > self.loop.time():
                self._timer = self.loop.call_at(client.last + self._idle, self._expire)
                return
            self.forget(key)


class UdpPort:
    """One bound UDP socket. Each client gets a socket of its own towards the container, so that replies reach it."""

    def __init__(self, clients: Clients, sock: socket.socket, target: tuple[str, int]) -> None:
        self._clients, self._sock, self._target = clients, sock, target
        clients.loop.add_reader(sock, self._from_clients)

    def close(self) -> set[asyncio.Task[None]]:
        """Stop at once; there is nothing to wait for."""
        self._clients.loop.remove_reader(self._sock)
        self._sock.close()
        for key in [key for key in self._clients if key[0] is self]:
            self._clients.forget(key)
        return set()

    def _from_clients(self) -> None:
        for _ in range(_DATAGRAMS_AT_ONCE):
            try:
                data, ancillary, _, client = self._sock.recvmsg(_MAX_DATAGRAM, socket.CMSG_SPACE(_IN_PKTINFO.size))
            except OSError:  # BlockingIOError: no more datagrams
                return
            if not ip_address(client[0]).is_loopback:
                continue
            local_address = next(
                (_IN_PKTINFO.unpack(info)[1] for _, kind, info in ancillary if kind == IP_PKTINFO), b""
            )
            key = (self, client, local_address)
            with suppress(OSError):  # a datagram may get lost
                known = self._clients.touch(key) or self._clients.add(key, self._connect(key))
                known.upstream.send(data)

    def _connect(self, key: tuple[Any, ...]) -> socket.socket:
        upstream = socket.socket(target_family(self._target), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            upstream.connect(self._target)
        except OSError:
            upstream.close()
            raise
        self._clients.loop.add_reader(upstream, self._from_container, key, upstream)
        return upstream

    def _from_container(self, key: tuple[Any, ...], upstream: socket.socket) -> None:
        _, client, local_address = key
        source = (
            [(socket.IPPROTO_IP, IP_PKTINFO, _IN_PKTINFO.pack(0, local_address, bytes(4)))] if local_address else []
        )
        for _ in range(_DATAGRAMS_AT_ONCE):
            try:
                data = upstream.recv(_MAX_DATAGRAM)
            except OSError:  # BlockingIOError: no more datagrams; ConnectionRefusedError: no program listens there yet
                return
            self._clients.touch(key)
            with suppress(OSError):
                self._sock.sendmsg([data], source, 0, client)
