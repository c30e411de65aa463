"""Netlink messages as bytes: the few that docker-fw sends itself, because a library would cost milliseconds.

Layout: RFC 3549 section 2.3 (headers) and linux/netlink.h (attributes: 16-bit length and type, padded to 4).
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 1, 4, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
_NESTED = 0x8000
#: `kept_socket`'s of this thread: `sock`, and `where`, the process and the network namespace that it is of.
_kept = threading.local()


def attr(kind: int, payload: bytes) -> bytes:
    """Return one attribute. Raises struct.error if the payload exceeds 64 KiB, the format's own limit."""
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """Return an attribute that consists of attributes."""
    return attr(kind | _NESTED, b"".join(attributes))


def message(kind: int, flags: int, seq: int, body: bytes) -> bytes:
    """Return a request with its header (struct nlmsghdr)."""
    return struct.pack("=IHHII", 16 + len(body), kind, flags | NLM_F_REQUEST, seq, 0) + body


def nfgen(family: int, resource: int = 0) -> bytes:
    """Return struct nfgenmsg (linux/netfilter/nfnetlink.h): family, version 0, resource id in network order."""
    return struct.pack("!BBH", family, 0, resource)


def attributes(data: bytes) -> dict[int, bytes]:
    """Return the attributes of a message body, by type, without the nested flag."""
    found: dict[int, bytes] = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def each(data: bytes) -> Iterator[bytes]:
    """Yield the payloads of a list's attributes, all of one type."""
    while len(data) >= 4:
        length, _ = struct.unpack_from("=HH", data)
        if length < 4:
            break
        yield data[4:length]
        data = data[(length + 3) & ~3 :]


def open_socket(protocol: int = NETLINK_NETFILTER) -> socket.socket:
    """Return a netlink socket that never waits permanently: a read gives up after 5 s (TimeoutError)."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    sock.bind((0, 0))
    sock.settimeout(5)
    return sock


@contextmanager
def kept_socket() -> Iterator[socket.socket]:
    """Yield this thread's netfilter socket, which stays open.

    When one is closed, the kernel waits until nothing reads what earlier transactions of nftables removed, and holds
    up the next transaction meanwhile (nf_tables_api.c: nft_rcv_nl_event). That takes some 10 ms, for which a container
    that departs would stay open.

    After an error it is closed, because answers may be left in it.
    """
    here = os.getpid(), os.stat("/proc/thread-self/ns/net").st_ino
    if getattr(_kept, "where", None) != here:
        _kept.sock, _kept.where = open_socket(), here
    try:
        yield _kept.sock
    except BaseException:
        _kept.where = None
        _kept.sock.close()
        raise


def replies(sock: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    """Yield (type, sequence number, body) of each message that arrives; the caller stops when it has its answer."""
    while True:
        yield from messages(sock.recv(1 << 18))


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield (type, sequence number, body) of each message in the data of one read."""
    at = 0
    while at + 16 <= len(data):
        length, kind, _, seq, _ = struct.unpack_from("=IHHII", data, at)
        yield kind, seq, data[at + 16 : at + length]
        at += max(16, (length + 3) & ~3)


def error_of(body: bytes) -> int:
    """Return the errno (positive, 0 is an acknowledgement) of an NLMSG_ERROR message."""
    return -int(struct.unpack_from("=i", body)[0])


def request(sock: socket.socket, kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
    """Send one message and return the (type, body) of its answers. Raises OSError with the kernel's errno."""
    seq = int.from_bytes(os.urandom(3), "little") + 1
    sock.send(message(kind, flags, seq, body))
    answers: list[tuple[int, bytes]] = []
    for answer, number, payload in replies(sock):
        if number != seq:
            continue
        if answer == NLMSG_DONE:
            break
        if answer == NLMSG_ERROR:
            if code := error_of(payload):
                raise OSError(code, os.strerror(code))
            break
        answers.append((answer, payload))
        if not flags & (NLM_F_DUMP | NLM_F_ACK):
            break
    return answers


def netfilter_fds() -> set[tuple[int, str]]:
    """Return the open sockets to nfnetlink, each with its identity, because a number can be reused."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if (what := os.readlink(f"/proc/self/fd/{name}")).startswith("socket:"):
                with socket.socket(fileno=os.dup(int(name))) as sock:
                    if sock.family == socket.AF_NETLINK and sock.proto == NETLINK_NETFILTER:
                        found.add((int(name), what))
        except OSError:
            continue  # the directory's own descriptor, closed by now
    return found
