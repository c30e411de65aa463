"""The host's own path to a published port: 127.0.0.1 and [::1], carried to the container in user space.

One background thread with one asyncio loop serves the reservation sockets that `host_ports` passes on; their socket
filter accepts only loopback packets. It replaces docker-proxy, which runs one process for each port.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import resource
import socket
import threading
from collections.abc import Iterable

from plugin.driver.relay_tcp import Connections, TcpPort
from plugin.driver.relay_udp import Clients, UdpPort
from plugin.model import Address

_LOG = logging.getLogger(__name__)

_CALL = 5.0  # s; time a hook waits for the loop, which never blocks: longer means that it is dead


class _Loop:
    """The running loop and the ports that it serves. All of it is used in the loop's own thread only."""

    def __init__(self, connect_timeout: float, udp_idle: float, max_connections: int, max_associations: int) -> None:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.loop = asyncio.new_event_loop()
        # A TCP connection takes two files.
        self.connections = Connections(self.loop, connect_timeout, min(max_connections, files // 4))
        self.clients = Clients(self.loop, udp_idle, min(max_associations, files // 4))
        self._ports: dict[socket.socket, TcpPort | UdpPort] = {}

    def run(self) -> None:
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def serve(self, sock: socket.socket, target: tuple[str, int]) -> None:
        sock.setblocking(False)
        if sock.type == socket.SOCK_DGRAM:
            self._ports[sock] = UdpPort(self.clients, sock, target)
        else:
            self._ports[sock] = TcpPort(self.connections, sock, target)

    async def drop(self, socks: list[socket.socket] | None) -> None:
        ports = [self._ports.pop(sock, None) for sock in (list(self._ports) if socks is None else socks)]
        ending = {task for port in ports if port is not None for task in port.close()}
        if ending:
            await asyncio.wait(ending)


class Relay:
    """Carries loopback connections and datagrams to containers. Thread-safe.

    It works in the network namespace of the thread that calls `start`. connect_timeout and udp_idle are seconds. At
    most max_connections TCP connections (more are reset) and max_associations UDP clients (a new one replaces the one
    that is idle longest) exist at once, fewer if the limit of open files is low.
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
        self._running: _Loop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread. Does nothing if it is running."""
        if self._thread is None:
            self._running = _Loop(*self._settings)
            self._thread = threading.Thread(target=self._running.run, name="relay", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Close every port and connection, and end the thread. Does nothing if it is not running."""
        if self._running is not None and self._thread is not None:
            self.drop(None)
            self._running.loop.call_soon_threadsafe(self._running.loop.stop)
            self._thread.join(_CALL)
            self._running = self._thread = None

    def serve(self, sock: socket.socket, host: Address, port: int) -> None:
        """Carry the traffic of a bound udp or listening tcp socket to host:port. Returns at once.

        From now on the relay owns the socket; `drop` closes it. Raises RuntimeError if not started.
        """
        if self._running is None:
            raise RuntimeError("the relay is not started yet")
        self._running.loop.call_soon_threadsafe(self._running.serve, sock, (str(host), port))

    def drop(self, socks: Iterable[socket.socket] | None) -> None:
        """Close these sockets (None: all) and every connection accepted by them, then return."""
        if self._running is None:
            return
        work = self._running.drop(None if socks is None else list(socks))
        try:
            asyncio.run_coroutine_threadsafe(work, self._running.loop).result(_CALL)
        except concurrent.futures.TimeoutError:
            _LOG.error("the relay did not close its sockets within %s s", _CALL)
