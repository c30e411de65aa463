"""TCP over loopback: accepted connections are spliced to the container, each direction until its own end of data.

The container sees the host's address on its network as the client, as with docker-proxy (moby: cmd/docker-proxy).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from contextlib import suppress
from functools import partial
from ipaddress import ip_address

from plugin.driver.host_socket import target_family

_LOG = logging.getLogger(__name__)

_ACCEPTS_AT_ONCE = 64  # connections taken from one socket before other sockets get their turn
_RETRY_ACCEPT = 1.0  # s; as asyncio's own server waits when the process is out of file descriptors
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_CHUNK = 1 << 16  # bytes read at once, if few connections share the memory:
_MEMORY = 1 << 24  # bytes that may wait in user space on all TCP connections together
_RESET = struct.pack("@ii", 1, 0)  # SO_LINGER, 0 s: close with an RST


class Connections:
    """The state that all TCP ports share: the loop, the limit, the memory. Used in the loop's thread only."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connect_timeout: float, limit: int) -> None:
        self.loop = loop
        self.connect_timeout = connect_timeout
        self.limit = limit
        self.count = 0
        self._buffer = memoryview(bytearray(_CHUNK))

    def buffer(self) -> memoryview:
        """Return the buffer to read into, one for all connections: each sends its data before the next one reads.

        A connection keeps the data that it could not send and reads nothing more. With many connections each may keep
        less, so that all together keep about _MEMORY if no peer reads (at worst fourfold, if they stall one after the
        other).
        """
        return self._buffer[: _MEMORY // (2 * max(self.count, 1))]


class TcpPort:
    """One listening socket and the connections accepted by it."""

    def __init__(self, connections: Connections, sock: socket.socket, target: tuple[str, int]) -> None:
        self._connections, self._sock, self._target = connections, sock, target
        self._loop = connections.loop
        self._tasks: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._listen()

    def close(self) -> set[asyncio.Task[None]]:
        """Stop at once; return the tasks that are still closing their connections."""
        self._loop.remove_reader(self._sock)
        if self._retry is not None:
            self._retry.cancel()
        self._sock.close()
        for task in self._tasks:
            task.cancel()
        return self._tasks

    def _listen(self) -> None:
        self._loop.add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                client, peer = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    return  # that one connection broke (accept(2))
                _LOG.warning("the relay accepts no connections to %s for a moment: %s", self._target, error)
                self._loop.remove_reader(self._sock)
                self._retry = self._loop.call_later(_RETRY_ACCEPT, self._listen)
                return
            if _is_local(peer[0], client) and self._connections.count < self._connections.limit:
                self._connections.count += 1
                task = self._loop.create_task(self._carry(client))
                self._tasks.add(task)
                task.add_done_callback(partial(self._done, client))
            else:
                _LOG.debug("the relay refuses a connection from %s", peer)
                _reset(client)
                client.close()

    def _done(self, client: socket.socket, task: asyncio.Task[None]) -> None:
        client.close()  # a task that is cancelled before its first step does nothing at all
        self._connections.count -= 1
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("a relayed connection to %s failed", self._target, exc_info=error)

    async def _carry(self, client: socket.socket) -> None:
        ends = [client]
        try:
            ends.append(upstream := socket.socket(target_family(self._target)))
            for sock in ends:
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(self._connections.connect_timeout):
                await self._loop.sock_connect(upstream, self._target)
            await _Splice(self._connections, client, upstream).over
        except BaseException as error:
            for sock in ends:
                _reset(sock)  # so that the other end does not take partial data for all of it
            if not isinstance(error, OSError):  # TimeoutError is one
                raise
            _LOG.debug("a relayed connection to %s broke: %s", self._target, error)
        finally:
            for sock in ends:
                self._loop.remove_reader(sock)
                self._loop.remove_writer(sock)
                sock.close()


class _Splice:
    """Two connected sockets: data read from one is sent on the other, each direction until its own end of data.

    A direction reads only if all that it read before is sent. `over` is done when both have ended, or one broke.
    """

    def __init__(self, connections: Connections, one: socket.socket, other: socket.socket) -> None:
        self._connections, self._loop = connections, connections.loop
        self.over: asyncio.Future[None] = self._loop.create_future()
        self._ended = 0
        self._loop.add_reader(one, self._read, one, other)
        self._loop.add_reader(other, self._read, other, one)

    def _read(self, source: socket.socket, sink: socket.socket) -> None:
        buffer = self._connections.buffer()
        try:
            size = source.recv_into(buffer)
            if size == 0:
                self._loop.remove_reader(source)
                sink.shutdown(socket.SHUT_WR)
                self._end(None)
                return
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error)
            return
        rest = self._send(sink, buffer[:size])
        if rest:
            self._loop.remove_reader(source)
            self._loop.add_writer(sink, self._flush, source, sink, rest)

    def _flush(self, source: socket.socket, sink: socket.socket, data: bytes) -> None:
        rest = self._send(sink, data)
        if rest:
            self._loop.add_writer(sink, self._flush, source, sink, rest)
        else:
            self._loop.remove_writer(sink)
            self._loop.add_reader(source, self._read, source, sink)

    def _send(self, sink: socket.socket, data: bytes | memoryview) -> bytes:
        """Return a copy of the data that could not be sent yet."""
        try:
            return bytes(data[sink.send(data) :])
        except BlockingIOError:
            return bytes(data)
        except OSError as error:
            self._end(error)
            return b""

    def _end(self, error: OSError | None) -> None:
        self._ended += 1
        if self.over.done():
            return
        if error is not None:
            self.over.set_exception(error)
        elif self._ended == 2:
            self.over.set_result(None)


def _is_local(peer: str, accepted: socket.socket) -> bool:
    """True if the peer is on this host.

    The socket filter ensures this already. It is checked again because a mistake there would open a port.
    """
    return ip_address(peer).is_loopback or peer == accepted.getsockname()[0]


def _reset(sock: socket.socket) -> None:
    """Make the close of this TCP socket an RST."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
