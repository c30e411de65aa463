"""The host's own entries for containers' addresses: the first packet to a container waits for no neighbour discovery.

Address, MAC and port of a container are known, so its entries are permanent (linux/neighbour.h). Without them an
outsider's packets to an address that is not there yet leave an incomplete entry, and the kernel asks again only after
a second (RFC 4861 section 7.2.2). No ARP reply or neighbour advertisement changes a permanent entry.
"""

from __future__ import annotations

import logging
import socket
import struct
from ipaddress import IPv4Address, IPv6Address

from plugin.kernel import netlink as nl
from plugin.model import Endpoint

log = logging.getLogger(__name__)
#: linux/rtnetlink.h and linux/neighbour.h: struct ndmsg (family, index, state, flags, type), then attributes.
_NEWNEIGH, _DELNEIGH = 28, 29
_NDMSG, _DST, _LLADDR = "=B3xiHBB", 1, 2
_NUD_PERMANENT = 0x80
_REPLACE, _CREATE = 0x100, 0x400
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


def add(bridge: int, endpoint: Endpoint) -> None:
    """Add the entries of an endpoint on the bridge with this index, or replace others of its addresses.

    If the kernel refuses one, it finds the container by itself later.
    """
    if endpoint.mac:
        mac = bytes.fromhex(endpoint.mac.replace(":", ""))
        _each(_NEWNEIGH, _CREATE | _REPLACE, bridge, endpoint, _NUD_PERMANENT, nl.attr(_LLADDR, mac))


def remove(bridge: int, endpoint: Endpoint) -> None:
    """Remove the entries of an endpoint; it is no error if there are none."""
    _each(_DELNEIGH, 0, bridge, endpoint)


def _each(kind: int, flags: int, bridge: int, endpoint: Endpoint, state: int = 0, more: bytes = b"") -> None:
    addresses = [address for address in (endpoint.addr4, endpoint.addr6) if address]
    try:
        with nl.open_socket(nl.NETLINK_ROUTE) as sock:
            for address in addresses:
                try:
                    nl.request(sock, kind, nl.NLM_F_ACK | flags, _entry(bridge, address, state) + more)
                except OSError as error:
                    log.debug("neighbour entry of %s: %s", address, error)
    except OSError as error:  # there are no file descriptors left
        log.debug("neighbour entries of endpoint %s: %s", endpoint.id[:12], error)


def _entry(bridge: int, address: IPv4Address | IPv6Address, state: int) -> bytes:
    head = struct.pack(_NDMSG, _FAMILIES[address.version], bridge, state, 0, 0)
    return head + nl.attr(_DST, address.packed)
