"""Answer for containers on the host's own link (neighbour discovery proxy, RFC 4389 in spirit, ip-neighbour(8) proxy).

Many hosts get one /64 on their uplink and no routed prefix: the router asks for each address by neighbour solicitation
on that link. If a network's subnet is within a prefix that is on-link elsewhere, the host answers for the endpoints'
addresses there, with one entry each. A routed prefix needs no entries, and gets none.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address, IPv6Interface

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from plugin.kernel import netlink as nl
from plugin.kernel.sysctl import Sysctl
from plugin.model import Endpoint, FwError, Network

_NTF_PROXY = 0x08
_NUD_PERMANENT = 0x80
#: linux/neighbour.h: struct ndmsg (family, index, state, flags, type), NDA_DST; rtnetlink.h: RTM_GETNEIGH
_NDMSG, _DST, _GETNEIGH = "=B3xiHBB", 1, 30
#: linux/if_addr.h: struct ifaddrmsg (family, prefix length, flags, scope, index), IFA_ADDRESS; RTM_GETADDR
_IFADDRMSG, _ADDRESS, _GETADDR = "=xBxBI", 1, 22
log = logging.getLogger(__name__)


class Neighbours:
    """Keeps the proxy entries for addresses of docker-fw networks up to date.

    Entries of other programs are left alone.
    """

    def __init__(self, sysctl: Sysctl) -> None:
        self._ipr = IPRoute()
        self._sysctl = sysctl
        self._added: set[tuple[int, IPv6Address]] = set()

    def sync(self, networks: Mapping[str, Network], endpoints: Iterable[Endpoint]) -> None:
        """Add missing entries and remove obsolete ones, for addresses within docker-fw networks' subnets."""
        subnets = {n.id: n.gateway6.network for n in networks.values() if n.gateway6 and not n.internal}
        links: dict[str, list[int]] = {}
        ours = {network.bridge for network in networks.values()}
        for index, on_link in self._on_link(ours):
            for network_id, subnet in subnets.items():
                if subnet.subnet_of(on_link.network):
                    links.setdefault(network_id, []).append(index)
        wanted = {
            (index, endpoint.addr6)
            for endpoint in (endpoints if links else ())
            if endpoint.joined and endpoint.addr6
            for index in links.get(endpoint.network_id, ())
        }
        present = {
            (index, address)
            for index, address in self._proxied()
            if any(address in subnet for subnet in subnets.values())
        }
        for index in {index for index, _ in wanted}:
            self._switch_on(index)
        for index, address in wanted - present:
            self._neigh("replace", index, address)
        # Only entries that docker-fw added: an administrator may have entries of his own within these subnets.
        for index, address in (present & self._added) - wanted:
            self._neigh("del", index, address)
        self._added = wanted

    def _on_link(self, ours: set[str]) -> Iterable[tuple[int, IPv6Interface]]:
        # Without pyroute2: each container on a Docker network with IPv6 gives the host an address.
        with nl.open_socket(nl.NETLINK_ROUTE) as sock:
            answers = nl.request(sock, _GETADDR, nl.NLM_F_DUMP, struct.pack("=B7x", socket.AF_INET6))
        for _, body in answers:
            prefixlen, scope, index = struct.unpack_from(_IFADDRMSG, body)
            address = nl.attributes(body[8:]).get(_ADDRESS)
            if not address or prefixlen >= 127 or scope != 0:
                continue
            try:
                if socket.if_indextoname(index) not in ours:
                    yield index, IPv6Interface((address, prefixlen))
            except OSError:
                continue

    def _proxied(self) -> Iterable[tuple[int, IPv6Address]]:
        # Without pyroute2: its dump uses `flags` as a filter of its own, and the kernel lists proxies only if
        # requested.
        asked = struct.pack(_NDMSG, socket.AF_INET6, 0, 0, _NTF_PROXY, 0)
        with nl.open_socket(nl.NETLINK_ROUTE) as sock:
            for _, body in nl.request(sock, _GETNEIGH, nl.NLM_F_DUMP, asked):
                _, index, _, flags, _ = struct.unpack_from(_NDMSG, body)
                address = nl.attributes(body[12:]).get(_DST)
                if flags & _NTF_PROXY and address is not None:
                    yield index, IPv6Address(address)

    def _switch_on(self, index: int) -> None:
        try:
            self._sysctl.proxy_ndp(socket.if_indextoname(index))
        except (OSError, FwError) as error:
            log.warning("could not answer neighbour discovery for containers on link %d: %s", index, error)

    def _neigh(self, command: str, index: int, address: IPv6Address) -> None:
        try:
            self._ipr.neigh(
                command,
                family=socket.AF_INET6,
                dst=str(address),
                ifindex=index,
                flags=_NTF_PROXY,
                state=_NUD_PERMANENT,
            )
        except NetlinkError as error:
            log.debug("neighbour proxy %s %s on link %d: %s", command, address, index, error)
