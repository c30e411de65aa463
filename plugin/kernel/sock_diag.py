"""Listeners on the host's ports, by sock_diag(7), and which of them are the host's own programs.

docker-proxy listens on a published port before Docker lists the container, and on a port that docker-fw may not have
known before. If it is not identified by its control group, every listener may be a docker-proxy until its owner is
known:

- A socket that was created by a user other than root is none: docker-proxy runs as dockerd does.
- Docker's list that was requested after the socket appeared has the ports of every running container. The ports that a
  stopped container requests are known from its inspection. A socket that none of them accounts for is the host's.

Sockets are identified, not ports: another socket on the same port is examined anew. But while Docker is unavailable no
answer identifies the owner, and sshd may be restarted: then a port that was the host's stays so (`PATIENCE`).
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from plugin.kernel import netlink as nl
from plugin.model import Published, RequestedPorts
from plugin.protocols import BY_NAME, NUMBER, PROTOCOLS, Proto

_SOCK_DIAG, _BY_FAMILY = 4, 20
#: linux/tcp_states.h: TCP_LISTEN; TCP_CLOSE (of sockets for datagrams, those without a peer)
_STATES = {"stream": 1 << 10, "datagram": 1 << 7}
#: linux/inet_diag.h: the offset of the answer's attributes, and INET_DIAG_SKV6ONLY.
_ATTRIBUTES, _V6ONLY = 72, 11
_ANY4 = IPv4Address(0)
#: At most this many host ports are written to the kernel's table; those of short-lived sockets are left out first.
MOST = 8192
#: Seconds that a restarted program of the host waits for Docker's answer, on a port that Docker's last list left to
#: the host and that no container requests.
PATIENCE = 5.0


class Listener(NamedTuple):
    """A socket: the kernel's number for it, its address and port, and whether root created it."""

    cookie: int
    port: Published
    root: bool


def listening() -> set[Listener]:
    """Return all listeners in this network namespace except those on loopback. Raises OSError."""
    found: set[Listener] = set()
    with nl.open_socket(_SOCK_DIAG) as sock:
        for protocol in PROTOCOLS:
            if not protocol.socket:
                continue
            for family in (socket.AF_INET, socket.AF_INET6):
                # struct inet_diag_req_v2: family, protocol, extensions, padding, states, and a socket's identity (any).
                asked = struct.pack("=BBBBI", family, protocol.number, 0, 0, _STATES[protocol.socket]) + bytes(48)
                try:
                    replies = nl.request(sock, _BY_FAMILY, nl.NLM_F_DUMP, asked)
                except FileNotFoundError:  # a kernel without this protocol has no sockets of it
                    continue
                for _, body in replies:
                    found.update(_read(protocol.name, family, body))
    return found


def _read(proto: Proto, family: int, body: bytes) -> Iterator[Listener]:
    (port,) = struct.unpack_from("!H", body, 4)
    host = ip_address(body[8 : 8 + (4 if family == socket.AF_INET else 16)])
    if isinstance(host, IPv6Address) and host.ipv4_mapped:
        host = host.ipv4_mapped
    if not port or host.is_loopback:
        return
    (cookie,), (user,) = struct.unpack_from("=Q", body, 44), struct.unpack_from("=I", body, 64)
    yield Listener(cookie, Published(proto, host, port, port), not user)
    if host == IPv6Address(0) and nl.attributes(body[_ATTRIBUTES:]).get(_V6ONLY) == b"\0":
        yield Listener(cookie, Published(proto, _ANY4, port, port), not user)


class Listeners:
    """Not thread-safe. `listed` is `listening`.

    `known`: the ports of the host's own programs in a table that existed before this start; None if that table blocked
    no listener. Then the listeners that exist already are the host's, except on ports that containers are known to
    request, `asked`, and on those from `passing` on, of which Docker chooses some.
    """

    def __init__(
        self,
        listed: Callable[[], set[Listener]] = listening,
        known: Collection[Published] | None = None,
        asked: Iterable[RequestedPorts] = (),
        passing: int = 32768,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listed = listed
        self._known = known
        self._asked = tuple(asked)
        self._passing = passing
        #: The clock of the moments passed to `judge`.
        self.now = clock
        self._first = True
        self._hosts: set[Listener] = set()
        #: The time since when listeners exist whose owner is unknown, or which are known to be docker-proxies.
        self._others: dict[Listener, float] = {}
        self._proxies: set[Listener] = set()
        self._judged = 0.0
        #: Ports of root's sockets that were the host's when Docker was asked last.
        self._homes: set[Published] = set()

    def poll(self) -> frozenset[Published]:
        """Read the current listeners; return the ports of the host's own programs. Raises OSError."""
        there, now = self._listed(), self.now()
        self._hosts &= there
        self._others = {each: since for each, since in self._others.items() if each in there}
        self._proxies &= self._others.keys()
        host_ports = {each.port for each in self._hosts}
        for each in there - self._hosts - self._others.keys():
            # A port is shared only by sockets that all agree to it, which docker-proxy does not.
            if not each.root or each.port in host_ports or (self._first and self._before(each.port)):
                self._hosts.add(each)
            else:
                self._others[each] = now
        self._first = False
        for each in [each for each, since in self._others.items() if self._is_back(each, since, now)]:
            self._hosts.add(each)
            del self._others[each]
        ports = {each.port for each in self._hosts}
        if len(ports) > MOST:
            ports = set(
                sorted(ports, key=lambda port: (BY_NAME[port.proto].socket == "datagram", port.host_port))[:MOST]
            )
        return frozenset(ports)

    def doubt(self) -> None:
        """Note that Docker created a container: its last list left ports to the host that this one may request."""
        self._homes.clear()

    def _is_back(self, each: Listener, since: float, now: float) -> bool:
        return each.port in self._homes and each not in self._proxies and max(since, self._judged) + PATIENCE < now

    def _before(self, port: Published) -> bool:
        if self._known is not None:
            return port in self._known
        return port.host_port < self._passing and not any(each.may_be(port) for each in self._asked)

    def waiting(self) -> bool:
        """True if a listener appeared since Docker was asked last."""
        return any(since >= self._judged for since in self._others.values())

    def everybody(self) -> set[tuple[int, int]]:
        """Return protocol and port of all listeners of the last poll."""
        ports = (each.port for each in (*self._hosts, *self._others))
        return {(NUMBER[port.proto], port.host_port) for port in ports}

    def held(self) -> list[Published]:
        """Return the ports whose owner is unknown."""
        return sorted({each.port for each in self._others.keys() - self._proxies}, key=str)

    def judge(
        self, asked: float, running: Iterable[Published], wanted: Iterable[RequestedPorts], *, known: bool
    ) -> None:
        """Apply Docker's answer to a request made at this moment (of `now`).

        The answer has the ports of the running containers, and those that all containers request. If not `known`, it
        does not cover all containers.
        """
        theirs = [RequestedPorts(port.proto, port.host_ip, port.host_port, port.host_port) for port in running]
        now_theirs, wants = ByPort(theirs), ByPort([*theirs, *wanted])
        self._judged = asked
        for each in [each for each in self._hosts if each.root and now_theirs.may_be(each.port)]:
            self._hosts.discard(each)
            self._others[each] = 0.0
        self._proxies = {each for each in self._others if wants.may_be(each.port)}
        for each in [each for each, since in self._others.items() if since < asked]:
            if known and not self._passes(each.port, wants) and each not in self._proxies:
                self._hosts.add(each)
                del self._others[each]
        if known:
            there = (each.port for each in self._hosts if each.root)
            self._homes = {port for port in there if not (wants.may_be(port) or self._passes(port, wants))}
        else:
            self._homes = {port for port in self._homes if not wants.may_be(port)}

    def _passes(self, port: Published, wants: ByPort) -> bool:
        return wants.chooses and port.host_port >= self._passing


class ByPort:
    """Index of the ports that containers request: there may be thousands of them, and thousands of listeners."""

    def __init__(self, asked: Iterable[RequestedPorts]) -> None:
        self._single: dict[int, list[RequestedPorts]] = {}
        self._ranges: list[RequestedPorts] = []
        #: A container lets Docker choose a port.
        self.chooses = False
        for each in set(asked):
            self.chooses |= not each.first
            if each.first == each.last:
                self._single.setdefault(each.first, []).append(each)
            else:
                self._ranges.append(each)

    def may_be(self, port: Published) -> bool:
        """True if one of the requests may be for this port."""
        return any(each.may_be(port) for each in (*self._single.get(port.host_port, ()), *self._ranges))
