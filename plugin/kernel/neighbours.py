"""The host's own entries for containers' addresses: the first packet to a container waits for no neighbour discovery.

Address, MAC and port of a container are known, so its entries are permanent (linux/neighbour.h). Without them an
outsider's packets to an address that is not there yet leave an incomplete entry, and the kernel asks again only after
a second (RFC 4861 section 7.2.2). No ARP reply or neighbour advertisement changes a permanent entry, so none may
outlive its container: its address may be another's next. docker-fw's entries have a protocol number of their own.

On Docker's networks containers may change their MACs, so there the entries are the kernel's own. Only one that leads
nowhere is replaced when a container is connected, by one that the kernel verifies as it verifies any other.

No function raises an error: without its entry the kernel finds a container by itself.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address

from plugin.kernel import netlink as nl
from plugin.model import Endpoint

log = logging.getLogger(__name__)
#: linux/rtnetlink.h and linux/neighbour.h: struct ndmsg (family, index, state, flags, type), then attributes.
_NEWNEIGH, _DELNEIGH, _GETNEIGH = 28, 29, 30
_NDMSG, _DST, _LLADDR, _PROTOCOL = "=B3xiHBB", 1, 2, 12
_NUD_INCOMPLETE, _NUD_STALE, _NUD_FAILED, _NUD_PERMANENT = 0x01, 0x04, 0x20, 0x80
_REPLACE, _CREATE = 0x100, 0x400
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
#: The protocol of docker-fw's entries (a number that linux/rtnetlink.h assigns to no program, RTPROT_*).
PROTOCOL = 0x66
#: An entry's bridge and address, and its MAC.
_Entries = dict[tuple[int, bytes], bytes]


def add(bridge: int, endpoint: Endpoint) -> None:
    """Add the entries of an endpoint on the bridge with this index, or replace others of its addresses."""
    _put_all(_wanted(bridge, endpoint))


def remove(bridge: int, endpoint: Endpoint) -> None:
    """Remove the entries of an endpoint; it is no error if there are none."""

    def work(sock: socket.socket) -> None:
        for address in _addresses(endpoint):
            _remove(sock, bridge, address.packed)

    _ask(work)


def restore(bridges: Mapping[int, Iterable[Endpoint]]) -> None:
    """Make docker-fw's entries on these bridges those of these endpoints: others were left behind by a crash."""
    wanted: _Entries = {}
    for bridge, endpoints in bridges.items():
        for endpoint in endpoints:
            wanted |= _wanted(bridge, endpoint)

    def work(sock: socket.socket) -> None:
        for (bridge, address), mac in _permanent(sock):
            if bridge in bridges and wanted.get((bridge, address)) != mac:
                _remove(sock, bridge, address)
            else:
                wanted.pop((bridge, address), None)

    _ask(work)
    _put_all(wanted)


def connected(bridge: str, endpoint: Endpoint) -> None:
    """Have the host find a container that has just been connected to one of Docker's bridges.

    An entry of its addresses that has no MAC, because an outsider's packets came first, gets the one that Docker
    reported. All others stay as they are, and so does an address without an entry.
    """

    def work(sock: socket.socket) -> None:
        index = socket.if_nametoindex(bridge)
        for (_, address), mac in _wanted(index, endpoint).items():
            if _state(sock, index, address) & (_NUD_INCOMPLETE | _NUD_FAILED):
                nl.request(
                    sock, _NEWNEIGH, nl.NLM_F_ACK | _REPLACE, _entry(index, address, _NUD_STALE) + nl.attr(_LLADDR, mac)
                )

    if endpoint.mac:
        _ask(work)


def _addresses(endpoint: Endpoint) -> list[IPv4Address | IPv6Address]:
    return [address for address in (endpoint.addr4, endpoint.addr6) if address]


def _wanted(bridge: int, endpoint: Endpoint) -> _Entries:
    if not endpoint.mac:
        return {}
    mac = bytes.fromhex(endpoint.mac.replace(":", ""))
    return {(bridge, address.packed): mac for address in _addresses(endpoint)}


def _ask(work: Callable[[socket.socket], None]) -> None:
    try:
        with nl.open_socket(nl.NETLINK_ROUTE) as sock:
            work(sock)
    except OSError as error:
        log.warning("the host's neighbour entries could not be changed: %s", error)


def _put_all(entries: _Entries) -> None:
    def work(sock: socket.socket) -> None:
        for (bridge, address), mac in entries.items():
            _put(sock, bridge, address, mac)

    if entries:
        _ask(work)


def _permanent(sock: socket.socket) -> list[tuple[tuple[int, bytes], bytes]]:
    """Return docker-fw's permanent entries. Raises OSError."""
    found = []
    for _, body in nl.request(sock, _GETNEIGH, nl.NLM_F_DUMP, struct.pack(_NDMSG, socket.AF_UNSPEC, 0, 0, 0, 0)):
        _, index, state, _, _ = struct.unpack_from(_NDMSG, body)
        known = nl.attributes(body[struct.calcsize(_NDMSG) :])
        if known.get(_PROTOCOL, b"")[:1] == bytes([PROTOCOL]) and state & _NUD_PERMANENT:
            found.append(((index, known[_DST]), known.get(_LLADDR, b"")))
    return found


def _state(sock: socket.socket, bridge: int, address: bytes) -> int:
    """Return the state of an entry (NUD_*); 0 if there is none. Raises OSError."""
    try:
        found = nl.request(sock, _GETNEIGH, 0, _entry(bridge, address, 0))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return 0
        raise
    return next((struct.unpack_from(_NDMSG, body)[2] for _, body in found), 0)


def _put(sock: socket.socket, bridge: int, address: bytes, mac: bytes) -> None:
    more = nl.attr(_LLADDR, mac) + nl.attr(_PROTOCOL, bytes([PROTOCOL]))
    try:
        nl.request(sock, _NEWNEIGH, nl.NLM_F_ACK | _CREATE | _REPLACE, _entry(bridge, address, _NUD_PERMANENT) + more)
    except OSError as error:
        log.debug("neighbour entry of %s: %s", address.hex(":"), error)
        _remove(sock, bridge, address)  # a wrong one would stay


def _remove(sock: socket.socket, bridge: int, address: bytes) -> None:
    try:
        nl.request(sock, _DELNEIGH, nl.NLM_F_ACK, _entry(bridge, address, 0))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            log.debug("neighbour entry of %s: %s", address.hex(":"), error)


def _entry(bridge: int, address: bytes, state: int) -> bytes:
    head = struct.pack(_NDMSG, _FAMILIES[4 if len(address) == 4 else 6], bridge, state, 0, 0)
    return head + nl.attr(_DST, address)
