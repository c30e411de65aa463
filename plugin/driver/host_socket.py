"""The sockets behind host ports: bound, ignoring packets from outside, and the kernel's errors if a port is taken.

A socket filter, attached before bind, drops every packet that is not addressed to loopback over `lo`.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import resource
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

from plugin.model import Address, FwError, Published
from plugin.protocols import BY_NAME

_LOG = logging.getLogger(__name__)

_BACKLOG = 1024  # connections; the kernel caps it at net.core.somaxconn
IP_PKTINFO = 8  # ip(7); not in Python's socket module
_EPHEMERAL = (49153, 65535)  # moby's range if the kernel does not report its own

# Classic BPF (linux/filter.h): opcodes, and the negative offsets of data that is not payload.
_SO_ATTACH_FILTER = 26
_LD_WORD, _LD_BYTE, _JEQ, _RET = 0x20, 0x30, 0x15, 0x06
_IFINDEX = 0xFFFFF000 + 8  # SKF_AD_OFF + SKF_AD_IFINDEX
_IP_HEADER = 0xFFF00000  # SKF_NET_OFF
_LO = 1  # LOOPBACK_IFINDEX: the same in every network namespace
_FROM_LO = [(_LD_WORD, _IFINDEX, _LO)]  # (load, offset, the value it must have); with route_localnet a
# neighbour can send to 127.0.0.1 (CVE-2020-8558), so the destination alone does not prove that it is local
_LOOPBACK_ONLY = {
    socket.AF_INET: [*_FROM_LO, (_LD_BYTE, _IP_HEADER + 16, 127)],
    socket.AF_INET6: [*_FROM_LO, *((_LD_WORD, _IP_HEADER + 24 + 4 * i, int(i == 3)) for i in range(4))],
}


class BusyError(FwError):
    """The port is taken. In a range, the next one may be free."""


def reserve(one: Published, *, relayed: bool) -> socket.socket | None:
    """Return a bound (and, unless it is for datagrams, listening) socket; None if the kernel lacks the protocol."""
    family = socket.AF_INET if one.host_ip.version == 4 else socket.AF_INET6
    protocol = BY_NAME[one.proto]
    datagrams = protocol.socket == "datagram"
    kind = socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM
    sock = None
    try:
        sock = socket.socket(family, kind, protocol.number)
        _attach_filter(sock, _LOOPBACK_ONLY[family] if relayed else None)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if not datagrams:
            # Old connections in TIME_WAIT do not count. For datagrams this would let two processes share the port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        elif not relayed:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # never read: the kernel's minimum
        elif family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)  # for the relay, from the first datagram
        sock.bind((str(one.host_ip), one.host_port))
        if not datagrams:
            sock.listen(_BACKLOG)
        return sock
    except OSError as error:
        if sock is not None:
            sock.close()
        elif error.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
            return None
        raise _bind_error(one, error) from error


def _attach_filter(sock: socket.socket, tests: list[tuple[int, int, int]] | None) -> None:
    """Accept only packets for which each load returns its value; None: accept none."""
    code = []
    for i, (load, offset, value) in enumerate(tests or ()):
        to_drop = 2 * (len(tests or ()) - i) - 1
        code += [(load, 0, 0, offset), (_JEQ, 0, to_drop, value)]
    code += [(_RET, 0, 0, 0xFFFFFFFF)] * bool(tests) + [(_RET, 0, 0, 0)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in code))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(code), ctypes.addressof(program)))


def _bind_error(one: Published, error: OSError) -> FwError:
    start = f"failed to bind host port {shown(one.host_ip)}:{one.host_port}/{one.proto}"
    match error.errno:
        case errno.EADDRINUSE:
            return BusyError(f"{start}: address already in use")
        case errno.EADDRNOTAVAIL:
            return FwError(f"{start}: this host has no address {one.host_ip}; give one of its own, or none for all")
        case errno.EMFILE | errno.ENFILE:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            return FwError(
                f"{start}: the plugin has no file descriptor left (its limit is {limit}): publish fewer "
                "ports (a range costs one each), or raise LimitNOFILE of the Docker service"
            )
        case errno.EACCES | errno.EPERM:
            return FwError(f"{start}: permission denied; ports below 1024 need CAP_NET_BIND_SERVICE")
    return FwError(f"{start}: {(error.strerror or str(error)).lower()}")


def ephemeral_ports() -> tuple[int, int, set[int]]:
    """Return the kernel's range for automatic ports, and the ports that an administrator excluded from it."""
    sysctl = Path("/proc/sys/net/ipv4")
    try:
        first, last = map(int, (sysctl / "ip_local_port_range").read_text().split())
    except (OSError, ValueError):
        first, last = _EPHEMERAL
    reserved: set[int] = set()
    try:
        for part in filter(None, (sysctl / "ip_local_reserved_ports").read_text().strip().split(",")):
            low, _, high = part.partition("-")
            reserved.update(range(int(low), int(high or low) + 1))
    except (OSError, ValueError) as error:
        _LOG.info("could not read the reserved ports: %s", error)
    return first, last, reserved


def host_has_ipv6() -> bool:
    """True if sockets can be bound to IPv6 addresses in this network namespace."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def raise_fd_limit() -> int:
    """Raise the soft limit of open files to the hard limit, and return it: each published port needs a file."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def target_family(target: tuple[str, int]) -> socket.AddressFamily:
    """Return the address family of a container's address and port."""
    return socket.AF_INET6 if ":" in target[0] else socket.AF_INET


def shown(ip: Address) -> str:
    """Return the address as it is written before a port."""
    return str(ip) if ip.version == 4 else f"[{ip}]"


def overlap(one: Address, other: Address) -> bool:
    """True if the kernel would refuse both on one port (IPv6 sockets are V6ONLY)."""
    return one.version == other.version and (one == other or one.is_unspecified or other.is_unspecified)


def same_port(one: Published, other: Published) -> bool:
    """True if the kernel would refuse to bind both."""
    return (one.proto, one.host_port) == (other.proto, other.host_port) and overlap(one.host_ip, other.host_ip)


def may_be_implied(one: Published, among: Iterable[Published], addresses: Iterable[Address | None]) -> bool:
    """True if this may be the implied loopback address of a family that the container lacks.

    It is added to a port on all addresses of the other family. `addresses`: the container's own. A container on an
    IPv4-only and an IPv6-only network publishes on both: each has the other's loopback implied.
    """
    if not one.host_ip.is_loopback or any(own and own.version == one.host_ip.version for own in addresses):
        return False
    return any(
        other.host_ip.is_unspecified
        and other.host_ip.version != one.host_ip.version
        and (other.proto, other.host_port, other.container_port) == (one.proto, one.host_port, one.container_port)
        for other in among
    )
