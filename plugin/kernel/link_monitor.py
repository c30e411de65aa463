"""Report changes of the host's links from the kernel: which bridges exist, and when a port leaves one.

A bridge is identified by its index, which the kernel does not reuse: a name can be reused by another program's link.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Literal

from plugin.kernel import netlink as nl
from plugin.kernel.names import GROUP
from plugin.model import Prefix

_NEWLINK, _DELLINK, _GETLINK, _NEWADDR, _DELADDR, _GETADDR = 16, 17, 18, 20, 21, 22
#: linux/if_addr.h: IFA_ADDRESS, IFA_LOCAL
_ADDRESS, _LOCAL = 1, 2
#: linux/rtnetlink.h: RTMGRP_LINK, _IPV4_IFADDR, _IPV6_IFADDR
_GROUPS = 0x1 | 0x10 | 0x100
#: linux/if.h: IFF_UP
_UP = 1
#: linux/if_link.h: IFLA_IFNAME, _MASTER, _LINKINFO, _GROUP, _EXT_MASK; IFLA_INFO_KIND; RTEXT_FILTER_SKIP_STATS
_NAME, _MASTER, _LINKINFO, _GROUP, _EXT_MASK, _KIND, _SKIP_STATS = 3, 10, 18, 27, 29, 1, 8
_ROUTE = 0
#: Number of messages after which the reader returns, so that it can do something else.
_MANY = 500


@dataclass(frozen=True, slots=True)
class Link:
    """A link of the host.

    `bridge`: it is a bridge. `ours`: docker-fw created it. `master`: the index of the bridge that it is a port of, or
    0. `up`: the host routes to its subnets; two links that differ only in this are equal.
    """

    index: int
    name: str
    bridge: bool = False
    ours: bool = False
    master: int = 0
    up: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class LinkChange:
    """A report from the kernel: a link was added or changed ("added") or removed ("removed").

    "all": something was missed; list everything. "address": a link got an address, or lost one, which is not
    link-local: what `subnets` returns may differ.
    """

    what: Literal["added", "removed", "all", "address"]
    link: Link | None = None


def links() -> dict[int, Link]:
    """Return the host's links by index. Raises OSError."""
    with nl.open_socket(_ROUTE) as sock:
        mask = nl.attr(_EXT_MASK, struct.pack("=I", _SKIP_STATS))
        answers = nl.request(sock, _GETLINK, nl.NLM_F_DUMP, bytes(16) + mask)
    return {link.index: link for kind, body in answers if kind == _NEWLINK and (link := _read(body))}


def addresses() -> set[bytes]:
    """Return the host's own addresses of both families, packed. Raises OSError."""
    with nl.open_socket(_ROUTE) as sock:
        answers = nl.request(sock, _GETADDR, nl.NLM_F_DUMP, bytes(8))
    found = (nl.attributes(body[8:]) for _, body in answers)
    return {fields.get(_LOCAL, fields.get(_ADDRESS, b"")) for fields in found}


def subnets() -> dict[int, frozenset[Prefix]]:
    """Return the subnets of the host's links by index, without link-local ones. Raises OSError."""
    with nl.open_socket(_ROUTE) as sock:
        answers = nl.request(sock, _GETADDR, nl.NLM_F_DUMP, bytes(8))
    found: dict[int, frozenset[Prefix]] = {}
    for _, body in answers:
        (index,) = struct.unpack_from("=I", body, 4)
        if prefix := _subnet(body):
            found[index] = found.get(index, frozenset()) | {prefix}
    return found


def _subnet(body: bytes) -> Prefix | None:
    """Return the subnet of an address; None if it is link-local. Docker's links have one each."""
    address = nl.attributes(body[8:]).get(_ADDRESS)
    prefix = ip_network((address, body[1]), strict=False) if address else None
    return None if prefix is None or prefix.is_link_local else prefix


class Changes:
    """Reports of link changes, subscribed when created: list all links after that, and then read."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _ROUTE)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._sock.bind((0, _GROUPS))
        self._sock.settimeout(0.2)

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def read(self) -> Iterator[LinkChange]:
        """Yield reports until there is none for 0.2 s, or after many.

        Raises OSError; an overrun yields "all" instead.
        """
        try:
            for count, (kind, _, body) in enumerate(nl.replies(self._sock)):
                if count == _MANY:
                    yield LinkChange("all")  # the rest of the same message is lost
                    return
                if kind in (_NEWLINK, _DELLINK):
                    # The bridge's own reports on its ports and neighbours (AF_BRIDGE) do not mean that a link was
                    # added or removed.
                    if body[0] == socket.AF_UNSPEC and (link := _read(body)):
                        yield LinkChange("added" if kind == _NEWLINK else "removed", link)
                elif kind in (_NEWADDR, _DELADDR):
                    if _subnet(body):
                        yield LinkChange("address")
                else:
                    yield LinkChange("all")
        except TimeoutError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            yield LinkChange("all")


def _read(body: bytes) -> Link | None:
    (index,) = struct.unpack_from("=i", body, 4)
    fields = nl.attributes(body[16:])
    name = fields.get(_NAME, b"").rstrip(b"\0").decode("utf-8", "replace")
    if not name:
        return None
    kind = nl.attributes(fields.get(_LINKINFO, b"")).get(_KIND, b"").rstrip(b"\0")
    ours = fields.get(_GROUP, b"") == struct.pack("=I", GROUP)
    master = struct.unpack("=I", fields[_MASTER])[0] if _MASTER in fields else 0
    (flags,) = struct.unpack_from("=I", body, 8)
    return Link(index, name, kind == b"bridge", ours, master, up=bool(flags & _UP))
