"""Host ports for `docker run -p`, reserved as moby reserves them: a conflict is an error, an ephemeral port is free.

A reservation is a bound socket that ignores packets from outside: a socket filter, attached before bind, drops every
packet that is not addressed to loopback over `lo`. A packet that arrives here because the DNAT rules are gone gets no
answer: neither a SYN-ACK nor an RST. (moby: daemon/libnetwork/portallocator/osallocator_linux.go; its filter drops
all.) The relay carries loopback traffic, because `[::1]` cannot be DNATed and 127.0.0.1 only with route_localnet.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from itertools import chain
from typing import Protocol

from plugin.driver.host_socket import (
    BusyError,
    ephemeral_ports,
    host_has_ipv6,
    may_be_implied,
    overlap,
    reserve,
    same_port,
    shown,
)
from plugin.model import Address, FwError, PortBinding, Published
from plugin.protocols import BY_NAME, Proto

_LOG = logging.getLogger(__name__)

_ANY4, _ANY6 = IPv4Address("0.0.0.0"), IPv6Address("::")
_LOOPBACK4, _LOOPBACK6 = IPv4Address("127.0.0.1"), IPv6Address("::1")
Addresses = tuple[IPv4Address | None, IPv6Address | None]


class LoopbackRelay(Protocol):
    """Carries the loopback traffic of a reserved port to its container (`plugin.driver.relay_loop.Relay`)."""

    def serve(self, sock: socket.socket, host: Address, port: int) -> None:
        """Carry the traffic of `sock` to the container's address and port. Returns at once."""

    def drop(self, socks: Iterable[socket.socket]) -> None:
        """Close these sockets and every connection accepted by them, then return."""


@dataclass(slots=True)
class _Request:
    """Host addresses that must get the same host port out of `ports` (moby's needSamePort).

    `implied`: addresses that no binding names, which get the port if it is free there.
    """

    proto: Proto
    container_port: int
    ports: tuple[int, int]  # (0, 0): ephemeral
    host_ips: list[Address]
    implied: list[Address]

    def asked_at(self, port: int) -> list[Published]:
        """Return the published ports that are asked for if the host port is this one."""
        return [Published(self.proto, ip, port, self.container_port) for ip in self.host_ips]

    def implied_at(self, port: int) -> list[Published]:
        """Return the published ports that are implied if the host port is this one."""
        return [Published(self.proto, ip, port, self.container_port) for ip in self.implied]

    @property
    def every_host_ip(self) -> list[Address]:
        """All of these addresses."""
        return self.host_ips + self.implied

    @property
    def choice(self) -> int:
        """The number of ports that would fit. Requests with the smallest choice are first, as in moby."""
        return self.ports[1] - self.ports[0] + 1 if self.ports[0] else 1 << 16


@dataclass(slots=True)
class _Reservation:
    """The host ports of one endpoint.

    `requests`: None if unknown, as after a restart. `implied`: ports that the requests imply and no binding names. An
    endpoint that asks for one gets it. Until it is free again, it is in `implied` and not in `socks`.
    """

    addresses: Addresses
    requests: Sequence[_Request] | None = None
    socks: dict[Published, socket.socket | None] = field(default_factory=dict)  # None: no socket, in memory only
    implied: set[Published] = field(default_factory=set)


class HostPorts:
    """The host ports of each endpoint. Thread-safe. Sockets are created in the calling thread's network namespace.

    Without a relay nothing answers on loopback: the reservations ignore it as well.
    """

    def __init__(self, relay: LoopbackRelay | None = None) -> None:
        self._relay = relay
        self._lock = threading.Lock()
        self._reserved: dict[str, _Reservation] = {}
        self._taken: dict[tuple[Proto, int], set[Address]] = {}
        self._next_ephemeral = 0

    def publish(
        self,
        endpoint_id: str,
        bindings: Sequence[PortBinding],
        *,
        default_host_ip: Address | None,
        addr4: IPv4Address | None,
        addr6: IPv6Address | None,
    ) -> tuple[Published, ...]:
        """Reserve a host port for each binding: all of them, or none and an FwError with Docker's wording.

        No host address (or the default 0.0.0.0) means every address of the families that the container has, with the
        same port in both. It implies the loopback address of the other family, by the relay (`[::1]:8080` to an
        IPv4-only container), unless a container asks for that address.

        A repeated call returns the current reservation if it fulfils the bindings, else replaces it (relayed
        connections end). A replacement that fails leaves the current one.
        """
        addresses = (addr4, addr6)
        requests = _requests(bindings, default_host_ip, addresses, relayed=self._relay is not None)
        with self._lock:
            old = self._reserved.get(endpoint_id, _Reservation(addresses))
            if old.addresses == addresses and _serves(old, requests):
                return tuple(old.socks)
            self._release(endpoint_id)
            try:
                new = self._reserve(requests, addresses)
                if new.socks:
                    self._reserved[endpoint_id] = new
                return tuple(new.socks)
            except BaseException:
                self._retake(endpoint_id, old)
                raise
            finally:
                self._retake_implied()

    def release(self, endpoint_id: str) -> None:
        """Free every port of the endpoint and end its relayed connections. An unknown endpoint is no error."""
        with self._lock:
            self._release(endpoint_id)
            self._retake_implied()

    def drop_addr6(self, endpoint_id: str) -> None:
        """Lead the endpoint's relayed connections to its IPv4 address: its IPv6 address is another container's now.

        Its host ports stay reserved, as far as no other program takes one at this moment. An endpoint without
        reservation is no error.
        """
        with self._lock:
            if old := self._reserved.get(endpoint_id):
                ports = _Reservation((old.addresses[0], None), old.requests, dict.fromkeys(old.socks), old.implied)
                self._release(endpoint_id)
                self._retake(endpoint_id, ports)

    def restore(
        self, endpoint_id: str, published: Iterable[Published], addr4: IPv4Address | None, addr6: IPv6Address | None
    ) -> tuple[Published, ...]:
        """Reserve the same host ports again after a restart; return, and log, those that are not available.

        Raises no FwError. A repeated call retries the missing ones. The saved state does not say which of them the
        request implied: all that it may have implied are taken for implied.
        """
        old = _Reservation((addr4, addr6), socks=dict.fromkeys(published))
        old.implied = {one for one in old.socks if may_be_implied(one, old.socks, old.addresses)}
        with self._lock:
            return self._retake(endpoint_id, old)

    def _reserve(self, requests: Sequence[_Request], addresses: Addresses) -> _Reservation:
        """Return a reservation that fulfils all requests. Raises FwError, and nothing is reserved then."""
        new = _Reservation(addresses, requests)
        try:
            chosen = [(request, self._choose(new, request)) for request in requests]
            # After all that was asked for, so that an implied address is in the way of none of it.
            for request, port in chosen:
                for one in request.implied_at(port):
                    with suppress(BusyError):
                        self._take(new, [one], replace_implied=False)
                        new.implied.add(one)
        except BaseException:
            self._give_back(new)
            raise
        return new

    def _release(self, endpoint_id: str) -> None:
        reservation = self._reserved.pop(endpoint_id, None)
        if reservation is not None:
            self._give_back(reservation)

    def _give_back(self, reservation: _Reservation) -> None:
        served = [sock for one, sock in reservation.socks.items() if sock and self._target(one, reservation.addresses)]
        if self._relay and served:
            self._relay.drop(served)
        self._forget(reservation.socks)

    def _forget(self, socks: Mapping[Published, socket.socket | None]) -> None:
        for one, sock in socks.items():
            if sock is not None:
                sock.close()
            addresses = self._taken[one.proto, one.host_port]
            addresses.remove(one.host_ip)
            if not addresses:
                del self._taken[one.proto, one.host_port]

    def _retake(self, endpoint_id: str, old: _Reservation) -> tuple[Published, ...]:
        """Reserve the ports of a former reservation again. Return, and log, those that are not available."""
        reservation = self._reserved.get(endpoint_id) or _Reservation(old.addresses, old.requests)
        lost = []
        for one in old.socks:
            if one not in reservation.socks:
                try:
                    self._take(reservation, [one], replace_implied=one not in old.implied)
                except FwError as error:
                    lost.append(one)
                    _LOG.warning("endpoint %.12s lost a published port: %s", endpoint_id, error)
        if lost:
            reservation.requests = None
        reservation.implied |= old.implied.difference(lost)
        if reservation.socks:
            self._reserved[endpoint_id] = reservation
        return tuple(lost)

    def _retake_implied(self) -> None:
        """Reserve implied ports again that other endpoints had asked for, and do not have any more."""
        for reservation in self._reserved.values():
            for one in reservation.implied - reservation.socks.keys():
                with suppress(FwError):
                    self._take(reservation, [one], replace_implied=False)

    def _choose(self, reservation: _Reservation, request: _Request) -> int:
        """Reserve and return the first free port of the request's range."""
        first, last = request.ports
        for port in range(first, last + 1) if first else self._ephemeral():
            try:
                self._take(reservation, request.asked_at(port), replace_implied=True)
            except BusyError:
                if first == last != 0:
                    raise
            else:
                self._next_ephemeral = self._next_ephemeral if first else port + 1
                return port
        where = (
            f"s {shown(request.host_ips[0])}:{first}-{last}"
            if first
            else f" {shown(request.host_ips[0])}:0 (ephemeral)"
        )
        raise FwError(f"failed to bind host port{where}/{request.proto}: all ports are allocated")

    def _ephemeral(self) -> Iterator[int]:
        """Return every port of the kernel's ephemeral range, starting after the last one given, as moby does."""
        first, last, reserved = ephemeral_ports()
        begin = self._next_ephemeral if first <= self._next_ephemeral <= last else first
        return (port for port in chain(range(begin, last + 1), range(first, begin)) if port not in reserved)

    def _take(self, reservation: _Reservation, published: Sequence[Published], *, replace_implied: bool) -> None:
        """Reserve all of these, or none."""
        socks: dict[Published, socket.socket | None] = {}
        try:
            for one in published:
                self._refuse_taken(one, replace_implied=replace_implied)
                socks[one] = reserve(one, relayed=self._target(one, reservation.addresses) is not None)
                self._taken.setdefault((one.proto, one.host_port), set()).add(one.host_ip)
        except BaseException:
            self._forget(socks)
            raise
        reservation.socks |= socks
        for one, sock in socks.items():
            target = self._target(one, reservation.addresses)
            if self._relay and sock and target:
                self._relay.serve(sock, target, one.container_port)

    def _refuse_taken(self, one: Published, *, replace_implied: bool) -> None:
        """Raise BusyError if an endpoint of docker-fw has the port.

        With `replace_implied`, an endpoint that has the port only by implication loses it until it is free again.
        """
        addresses = self._taken.get((one.proto, one.host_port), ())
        conflicts = {address for address in addresses if overlap(one.host_ip, address)}
        if not conflicts:
            return
        losing = [
            (reservation, other)
            for reservation in (self._reserved.values() if replace_implied else ())
            for other in reservation.implied & reservation.socks.keys()
            if same_port(one, other)
        ]
        if conflicts != {other.host_ip for _, other in losing}:
            where = f"{shown(one.host_ip)}:{one.host_port}"
            raise BusyError(f"Bind for {where} failed: port is already allocated")
        for reservation, other in losing:
            self._give_back(_Reservation(reservation.addresses, socks={other: reservation.socks.pop(other)}))

    def _target(self, one: Published, addresses: Addresses) -> Address | None:
        """Return the address to which the relay carries this port's loopback traffic, preferably of the same family."""
        reachable = one.host_ip.is_unspecified or one.host_ip.is_loopback
        if self._relay is None or not reachable or not BY_NAME[one.proto].relay:
            return None
        own, other = addresses if one.host_ip.version == 4 else addresses[::-1]
        return own or other


def _requests(
    bindings: Sequence[PortBinding], default_host_ip: Address | None, addresses: Addresses, *, relayed: bool
) -> list[_Request]:
    requests: list[_Request] = []
    for binding in bindings:
        ports = _port_range(binding)
        host_ips, implied = _host_ips(binding, default_host_ip, addresses, relayed=relayed)
        for request in requests:
            same = (request.proto, request.container_port, request.ports) == (
                binding.proto,
                binding.container_port,
                ports,
            )
            if same and not any(overlap(ip, other) for ip in host_ips + implied for other in request.every_host_ip):
                request.host_ips += host_ips
                request.implied += implied
                break
        else:
            requests.append(_Request(binding.proto, binding.container_port, ports, host_ips, implied))
    return sorted(requests, key=lambda request: request.choice)


def _port_range(binding: PortBinding) -> tuple[int, int]:
    first, last = binding.host_port, binding.host_port_end or binding.host_port
    if not 0 <= first <= last <= 65535 or (first == 0 and last != 0):
        raise FwError(
            f"host ports {first}-{last} to publish {binding.container_port}/{binding.proto}: "
            "a port is 1-65535, and the first port of a range is the lower one"
        )
    if not 1 <= binding.container_port <= 65535:
        raise FwError(f"container port {binding.container_port}/{binding.proto}: a port is 1-65535")
    return first, last


def _host_ips(
    binding: PortBinding, default_host_ip: Address | None, addresses: Addresses, *, relayed: bool
) -> tuple[list[Address], list[Address]]:
    """Return the host addresses that a binding asks for, and those that it implies. Raises FwError."""
    has4, has6 = addresses[0] is not None, addresses[1] is not None
    relayed = relayed and BY_NAME[binding.proto].relay
    what = f"publish {binding.container_port}/{binding.proto}"
    if not has4 and not has6:
        raise FwError(f"cannot {what}: the container has no address on this network")
    host_ip = binding.host_ip or default_host_ip
    if host_ip is None or (binding.host_ip is None and host_ip == _ANY4):
        return _every_host_ip(has4=has4, has6=has6, relayed=relayed)
    if isinstance(host_ip, IPv6Address) and host_ip.ipv4_mapped:
        host_ip = host_ip.ipv4_mapped
    if not addresses[host_ip.version == 6] and not (host_ip.is_loopback and relayed):
        family, other = ("IPv4", "IPv6") if host_ip.version == 4 else ("IPv6", "IPv4")
        raise FwError(
            f"cannot {what} on host address {host_ip}: the container has no {family} address; "
            f"give an {other} host address, or the network an {family} subnet"
        )
    return [host_ip], []


def _every_host_ip(*, has4: bool, has6: bool, relayed: bool) -> tuple[list[Address], list[Address]]:
    """Return every address of the families that the container has, and the loopback address of the other family."""
    asked: list[Address] = [_ANY4] if has4 else []
    implied: list[Address] = [_LOOPBACK4] if relayed and not has4 else []
    if host_has_ipv6():  # moby's IsV6Listenable: implicit, so a host without IPv6 is no error
        asked += [_ANY6] if has6 else []
        implied += [_LOOPBACK6] if relayed and not has6 else []
    return (asked, implied) if asked else (implied, [])


def _serves(reservation: _Reservation, requests: Sequence[_Request]) -> bool:
    """True if the reservation fulfils these requests. Their ports then count as requested from now on."""
    if reservation.requests == requests:
        return True
    implied = _fulfilled(requests, reservation)
    if implied is None:
        return False
    reservation.requests = requests
    reservation.implied = implied & (reservation.implied | reservation.socks.keys())
    return True


def _fulfilled(requests: Iterable[_Request], reservation: _Reservation) -> set[Published] | None:
    """Return the ports that the requests only imply; None unless what they ask for is reserved, and nothing else."""
    left = reservation.socks.keys() - reservation.implied
    asked: set[Published] = set()
    implied: set[Published] = set()
    for request in requests:
        first, last = request.ports
        for port in sorted({one.host_port for one in left}):
            if left.issuperset(request.asked_at(port)) and (first <= port <= last or first == 0):
                left.difference_update(request.asked_at(port))
                asked.update(request.asked_at(port))
                implied.update(request.implied_at(port))
                break
        else:
            return None
    implied -= asked
    return implied if implied.issuperset(reservation.socks.keys() - asked) else None
