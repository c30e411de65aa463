"""The host's own way to a published port: 127.0.0.1 and [::1], carried to the container in user space.

One background thread with one asyncio loop serves the reservation sockets that `host_ports` hands over; their
socket filter lets nothing but loopback packets in. It does what docker-proxy does with a process for each port
(moby: cmd/docker-proxy). The container sees the host's address on its network as the client.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import logging
import resource
import socket
import struct
import threading
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from ipaddress import ip_address

from plugin.driver.relay_udp import AT_ONCE, Clients, UdpPort, family
from plugin.model import Address

_LOG = logging.getLogger(__name__)

_RETRY_ACCEPT = 1.0  # s; as asyncio's own server waits when the process is out of file descriptors
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_CALL = 5.0  # s; how long a hook waits for the loop, which never blocks: longer means that it is dead
_CHUNK = 1 << 16  # bytes read at once, if few connections share:
_MEMORY = 1 << 24  # bytes that may wait in user space on all TCP connections together
_RESET = struct.pack("@ii", 1, 0)  # SO_LINGER, 0 s: close with an RST


class Relay:
    """Carries loopback connections and datagrams to containers. Thread-safe.

    It works in the network namespace of the thread that calls `start`. connect_timeout and udp_idle are seconds. At
    most max_connections TCP connections (more are reset) and max_associations UDP clients (the one idle longest gives
    way) exist at once, fewer where the limit of open files is low.
    """

    def __init__(
        self,
        *,
        connect_timeout: float = 10.0,
        udp_idle: float = 90.0,
        max_connections: int = 4096,
        max_associations: int = 2048,
    ) -> None:
        self._settings = (connect_timeout, udp_idle, max_connections, max_associations)
        self._shared: Shared | None = None
        self._thread: threading.Thread | None = None
        self._ports: dict[socket.socket, _TcpPort | UdpPort] = {}  # touched in the loop's thread only

    def start(self) -> None:
        """Start the thread. Started already: nothing happens."""
        if self._thread is None:
            self._shared = Shared(*self._settings)
            self._thread = threading.Thread(target=self._shared.run, name="relay", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Close every port and connection, and end the thread. Stopped already: nothing happens."""
        if self._shared is not None and self._thread is not None:
            self.drop(None)
            self._shared.loop.call_soon_threadsafe(self._shared.loop.stop)
            self._thread.join(_CALL)
            self._shared = self._thread = None

    @property
    def connections(self) -> int:
        """TCP connections that are open (or being opened) now."""
        return self._shared.connections if self._shared is not None else 0

    @property
    def associations(self) -> int:
        """UDP clients that are remembered now."""
        return len(self._shared.clients) if self._shared is not None else 0

    def serve(self, sock: socket.socket, host: Address, port: int) -> None:
        """Carry what comes in on a bound udp or listening tcp socket to host:port. Returns at once.

        From now on the socket is the relay's: give it back with `drop`. Raises RuntimeError if not started.
        """
        if self._shared is None:
            raise RuntimeError("the relay serves nothing before start()")
        self._shared.loop.call_soon_threadsafe(self._serve, self._shared, sock, (str(host), port))

    def drop(self, socks: Iterable[socket.socket] | None) -> None:
        """Close these sockets (None: all) and every connection that came in by them, then return."""
        if self._shared is None:
            return
        work = self._drop(None if socks is None else list(socks))
        try:
            asyncio.run_coroutine_threadsafe(work, self._shared.loop).result(_CALL)
        except concurrent.futures.TimeoutError:
            _LOG.error("the relay did not let go of its sockets within %s s", _CALL)

    def _serve(self, shared: Shared, sock: socket.socket, target: tuple[str, int]) -> None:
        sock.setblocking(False)
        self._ports[sock] = (UdpPort if sock.type == socket.SOCK_DGRAM else _TcpPort)(shared, sock, target)

    async def _drop(self, socks: list[socket.socket] | None) -> None:
        ports = [self._ports.pop(sock, None) for sock in (list(self._ports) if socks is None else socks)]
        ending = {task for port in ports if port is not None for task in port.close()}
        if ending:
            await asyncio.wait(ending)


class Shared:
    """What all ports have in common: the loop, the limits, the memory. Touched in the loop's thread only."""

    def __init__(self, connect_timeout: float, udp_idle: float, max_connections: int, max_associations: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.connect_timeout = connect_timeout
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.max_connections = min(max_connections, files // 4)  # a connection takes two
        self.connections = 0
        self.clients = Clients(self.loop, udp_idle, min(max_associations, files // 4))
        self._buffer = memoryview(bytearray(_CHUNK))

    def run(self) -> None:
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def buffer(self) -> memoryview:
        """Where a read goes: one buffer for all, for what was read is sent before the next read.

        What could not be sent is kept, and nothing more read. Of many connections each may keep less, so that all
        together keep about _MEMORY when nobody takes what was sent (at worst, one stalling after the other, fourfold).
        """
        return self._buffer[: _MEMORY // (2 * max(self.connections, 1))]


class _TcpPort:
    """One listening socket and the connections that came in by it."""

    def __init__(self, shared: Shared, sock: socket.socket, target: tuple[str, int]) -> None:
        self._shared, self._sock, self._target = shared, sock, target
        self._tasks: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._listen()

    def close(self) -> set[asyncio.Task[None]]:
        """Stop at once; returns the tasks that are still closing their connections."""
        self._shared.loop.remove_reader(self._sock)
        if self._retry is not None:
            self._retry.cancel()
        self._sock.close()
        for task in self._tasks:
            task.cancel()
        return self._tasks

    def _listen(self) -> None:
        self._shared.loop.add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                client, peer = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    return  # that one connection broke (accept(2))
                _LOG.warning("the relay takes no connection for %s for a while: %s", self._target, error)
                self._shared.loop.remove_reader(self._sock)
                self._retry = self._shared.loop.call_later(_RETRY_ACCEPT, self._listen)
                return
            if _is_local(peer[0], client) and self._shared.connections < self._shared.max_connections:
                self._shared.connections += 1
                task = self._shared.loop.create_task(self._carry(client))
                self._tasks.add(task)
                task.add_done_callback(partial(self._done, client))
            else:
                _LOG.debug("the relay refuses a connection from %s", peer)
                _reset(client)
                client.close()

    def _done(self, client: socket.socket, task: asyncio.Task[None]) -> None:
        client.close()  # a task that is cancelled before its first step does nothing at all
        self._shared.connections -= 1
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("a relayed connection to %s failed", self._target, exc_info=error)

    async def _carry(self, client: socket.socket) -> None:
        loop = self._shared.loop
        ends = [client]
        try:
            ends.append(upstream := socket.socket(family(self._target)))
            for sock in ends:
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(self._shared.connect_timeout):
                await loop.sock_connect(upstream, self._target)
            await _Splice(self._shared, client, upstream).over
        except BaseException as error:
            for sock in ends:
                _reset(sock)  # so that the other end does not take what it got for everything
            if not isinstance(error, OSError):  # TimeoutError is one
                raise
            _LOG.debug("a relayed connection to %s broke: %s", self._target, error)
        finally:
            for sock in ends:
                loop.remove_reader(sock)
                loop.remove_writer(sock)
                sock.close()


class _Splice:
    """Two connected sockets: what comes in on one goes out on the other, each direction until its own end of data.

    A direction reads only when nothing that it read is unsent. `over` is done when both have ended, or one broke.
    """

    def __init__(self, shared: Shared, one: socket.socket, other: socket.socket) -> None:
        self._shared = shared
        self.over: asyncio.Future[None] = shared.loop.create_future()
        self._ended = 0
        shared.loop.add_reader(one, self._read, one, other)
        shared.loop.add_reader(other, self._read, other, one)

    def _read(self, source: socket.socket, sink: socket.socket) -> None:
        buffer = self._shared.buffer()
        try:
            size = source.recv_into(buffer)
            if size == 0:
                self._shared.loop.remove_reader(source)
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
            self._shared.loop.remove_reader(source)
            self._shared.loop.add_writer(sink, self._flush, source, sink, rest)

    def _flush(self, source: socket.socket, sink: socket.socket, data: bytes) -> None:
        rest = self._send(sink, data)
        if rest:
            self._shared.loop.add_writer(sink, self._flush, source, sink, rest)
        else:
            self._shared.loop.remove_writer(sink)
            self._shared.loop.add_reader(source, self._read, source, sink)

    def _send(self, sink: socket.socket, data: bytes | memoryview) -> bytes:
        """Returns a copy of what could not be sent yet."""
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
    """The socket filter has seen to this already; here it is checked again where a mistake would open a door."""
    return ip_address(peer).is_loopback or peer == accepted.getsockname()[0]


def _reset(sock: socket.socket) -> None:
    """Make the close of this TCP socket an RST."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
