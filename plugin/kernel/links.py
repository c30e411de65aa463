"""Bridges and veth pairs, by pyroute2.

A bridge is docker-fw's if it has docker-fw's device group. The rules match the group too, so a bridge is closed from
the moment it exists, whatever its name.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from plugin.kernel import conntrack, neighbours
from plugin.kernel.names import CONTAINER_PREFIX, GROUP, PORT_PREFIX, container_side, host_side
from plugin.kernel.sysctl import Sysctl
from plugin.model import Endpoint, FwError, Network

_IFA_F_NODAD = 0x02
_NUD_NOARP = 0x40  # a static entry of a bridge's table (linux/neighbour.h)
_NTF_MASTER = 0x04
#: linux/sockios.h, linux/if.h: the index of a link by its name, in struct ifreq.
_SIOCGIFINDEX, _IFNAMSIZ, _IFREQ = 0x8933, 16, "16si20x"
log = logging.getLogger(__name__)


def mac_of(addr4: IPv4Address | None, addr6: IPv6Address | None) -> str:
    """Return a locally administered MAC derived from the address, as Docker's bridge does.

    Neighbours need not update their entries when another container gets the address.
    """
    tail = addr4.packed if addr4 else hashlib.sha256(addr6.packed if addr6 else b"").digest()[:4]
    return ":".join(f"{byte:02x}" for byte in b"\x02\x42" + tail)


def exists(name: str) -> bool:
    """True if this network namespace has a link of that name. Raises OSError if the kernel cannot be asked."""
    return _index(name) is not None


def lives(endpoint_id: str) -> bool:
    """True if a container has the endpoint's inner side. Raises OSError if the kernel cannot be asked.

    Both sides disappear with the container's network namespace. But dockerd may have moved the inner one back to the
    host when it gave up waiting for docker-fw, so a pair with both sides on the host belongs to no container.
    """
    return exists(host_side(endpoint_id)) and not exists(container_side(endpoint_id))


@contextmanager
def _os_errors() -> Iterator[None]:
    """Raise the kernel's refusals as OSError, so that callers need not know the library."""
    try:
        yield
    except NetlinkError as error:
        raise OSError(error.code, str(error)) from error


class Links:
    """The host's links, in the network namespace of the process. Every method may raise OSError."""

    def __init__(self, sysctl: Sysctl) -> None:
        self._ipr = IPRoute()
        self._sysctl = sysctl

    def make_bridge(self, network: Network) -> bool:
        """Create the network's bridge, or complete it. True if it was created now.

        Raises FwError if a link that is not docker-fw's has the name; no incomplete bridge remains.
        """
        made = False
        try:
            self._ipr.link("add", ifname=network.bridge, kind="bridge", group=GROUP, address=bridge_mac(network.id))
            made = True
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise FwError(f"could not make bridge {network.bridge}: {error}") from error
            if not self._ours(network.bridge, network.id):
                raise FwError(
                    f"bridge name {network.bridge} is taken by an interface that is not this network's; "
                    "choose another with -o com.docker.network.bridge.name=…"
                ) from error
        try:
            self._configure(network)
        except (NetlinkError, OSError, FwError) as error:
            if made:
                self.delete(network.bridge)
            if isinstance(error, FwError):
                raise
            raise FwError(f"could not set up bridge {network.bridge}: {error}") from error
        if made:  # from now on the rules refuse forged sources of its subnets
            conntrack.cut_forwarded(network.subnets)
        return made

    def _configure(self, network: Network) -> None:
        index = socket.if_nametoindex(network.bridge)
        self._ipr.link("set", index=index, ifalias=_alias(network.id), mtu=network.mtu)
        # Otherwise two queries of a container (MLD, RFC 3810) keep neighbour solicitations from its neighbours.
        self._ipr.link("set", index=index, kind="bridge", br_mcast_snooping=0)
        self._sysctl.prepare_bridge(network)
        for gateway in (network.gateway4, network.gateway6):
            if gateway is None:
                continue
            flags = _IFA_F_NODAD if gateway.version == 6 else 0
            self._ipr.addr(
                "replace", index=index, address=str(gateway.ip), prefixlen=gateway.network.prefixlen, flags=flags
            )
        self._ipr.link("set", index=index, state="up")

    def attach(self, network: Network, endpoint: Endpoint) -> None:
        """Create the endpoint's veth pair, its host side on the bridge, the other side ready for Docker to move.

        Raises FwError, with nothing left behind. A pair of an earlier try is created anew.
        """
        bridge = _index(network.bridge)
        if bridge is None:
            raise FwError(f"the bridge {network.bridge} of network {network.id[:12]} is missing; recreate the network")
        outer, inner = host_side(endpoint.id), container_side(endpoint.id)
        self.delete(outer)
        try:
            self._ipr.link(
                "add",
                ifname=outer,
                kind="veth",
                mtu=network.mtu,
                peer={"ifname": inner, "address": endpoint.mac, "mtu": network.mtu},
            )
            index = socket.if_nametoindex(outer)
            self._sysctl.prepare_port(outer)
            self._join(bridge, index, endpoint)
        except (NetlinkError, OSError) as error:
            self.delete(outer)
            if getattr(error, "code", 0) == errno.EXFULL:
                raise FwError(
                    f"network {network.id[:12]} is full: a bridge of the kernel holds 1023 ports; use another network"
                ) from error
            raise FwError(f"could not connect the container to {network.bridge}: {error}") from error

    def detach(self, network: Network | None, endpoint: Endpoint) -> None:
        """Delete the endpoint's veth pair, and the host's entries for its addresses."""
        try:
            self.delete(host_side(endpoint.id))
        finally:
            self.forget_addresses(network, endpoint)

    def forget_addresses(self, network: Network | None, endpoint: Endpoint) -> None:
        """Delete the host's entries for the endpoint's addresses, because these are not the endpoint's any more."""
        if network and (bridge := _index(network.bridge)) is not None:
            neighbours.remove(bridge, endpoint)

    def hairpin(self, endpoint: Endpoint) -> None:
        """Let the bridge send a frame back to the port that it arrived on.

        With br_netfilter a container's packet to its own published port is turned round inside the bridge. Raises
        FwError.
        """
        if (index := _index(host_side(endpoint.id))) is None:
            return
        try:
            self._ipr.brport("set", index=index, mode=1)
        except NetlinkError as error:
            raise FwError(f"could not set hairpin mode on {host_side(endpoint.id)}: {error}") from error

    @_os_errors()
    def reattach(self, network: Network, endpoints: Iterable[Endpoint]) -> None:
        """Reattach host sides that outlived their bridge, or that an older docker-fw left without MAC binding.

        One failure, which is logged, never stops the others.
        """
        bridge = _index(network.bridge)
        for endpoint in endpoints:
            port = host_side(endpoint.id)
            try:
                if not _joined(port) and (index := _index(port)) is not None:
                    self._join(bridge, index, endpoint)
            except (NetlinkError, OSError) as error:
                log.error("could not connect %s to %s again: %s", port, network.bridge, error)

    def restore_addresses(self, networks: Mapping[str, Iterable[Endpoint]]) -> None:
        """Make the host's entries on each bridge those of the endpoints there: a crash may have left others behind."""
        neighbours.restore({index: there for name, there in networks.items() if (index := _index(name)) is not None})

    def _join(self, bridge: int | None, index: int, endpoint: Endpoint) -> None:
        """Make a host side a port that belongs to the endpoint's MAC alone.

        A container cannot send from another MAC, nor divert a neighbour's frames to itself, nor fill the bridge's
        table so that frames are flooded. A kernel before 5.18 does not know `locked`: there a container can send from
        another MAC.
        """
        self._ipr.link("set", index=index, master=bridge)
        if endpoint.mac:
            self._ipr.fdb("replace", ifindex=index, lladdr=endpoint.mac, state=_NUD_NOARP, flags=_NTF_MASTER)
        self._ipr.brport("set", index=index, learning=0, unicast_flood=0, IFLA_BRPORT_LOCKED=1)
        self._ipr.link("set", index=index, state="up")
        if bridge is not None:
            neighbours.add(bridge, endpoint)

    @_os_errors()
    def sweep(self, keep: set[str]) -> None:
        """Delete host sides that no endpoint owns, left behind by a crash between two steps.

        A host side whose other side is in a container is kept: if the saved state was lost, its neighbours still want
        to reach it.
        """
        for link in self._ipr.link("dump", kind="veth"):
            name = link.get("ifname") or ""
            if (
                name.startswith(PORT_PREFIX)
                and len(name) == 15
                and name not in keep
                and exists(CONTAINER_PREFIX + name[3:])
            ):
                self.delete(name)

    def delete(self, name: str) -> None:
        """Delete a link; it is no error if it does not exist."""
        index = _index(name)
        if index is None:
            return
        try:
            self._ipr.link("del", index=index)
        except NetlinkError as error:
            if error.code not in (errno.ENODEV, errno.EINVAL):
                log.warning("could not remove %s: %s", name, error)

    @_os_errors()
    def delete_bridge_of(self, network_id: str) -> None:
        """Delete the bridge of a network that docker-fw does not know any more, identified by its alias."""
        for link in self._ipr.link("dump", kind="bridge"):
            if link.get("group") == GROUP and link.get("ifalias") == _alias(network_id):
                self.delete(link.get("ifname"))

    def delete_bridge(self, network: Network) -> None:
        """Delete the network's bridge, unless a link of that name is not docker-fw's."""
        if self._ours(network.bridge, network.id):
            self.delete(network.bridge)

    @_os_errors()
    def bridges(self) -> dict[str, bool]:
        """Return every bridge of the host by name, and True if docker-fw created it."""
        found: dict[str, bool] = {}
        for link in self._ipr.link("dump", kind="bridge"):
            name, group = link.get("ifname"), link.get("group")
            info = link.get("linkinfo")
            if name and info is not None and info.get("kind") == "bridge":
                found[name] = group == GROUP
        return found

    @_os_errors()
    def default_route_links(self) -> set[str]:
        """Return the links of the default routes."""
        names: set[str] = set()
        for family in (socket.AF_INET, socket.AF_INET6):
            for route in self._ipr.route("dump", family=family, dst_len=0, table=254):
                if route["dst_len"] == 0 and (index := route.get("oif")):
                    try:
                        names.add(socket.if_indextoname(index))
                    except OSError:
                        continue
        return names

    @_os_errors()
    def overlap(self, network: Network) -> str | None:
        """Return which link of the host already has (part of) the network's subnets, or None.

        For IPv6 a subnet inside a wider on-link prefix is allowed, as long as it contains no address of the host.
        """
        for message in self._ipr.addr("dump"):
            name = _name(message["index"])
            address = message.get("address")
            if name in (None, network.bridge) or not address:
                continue
            existing = _subnet(address, message["prefixlen"])
            for subnet in network.subnets:
                if existing.version != subnet.version:
                    continue
                inside = _in(address, subnet)
                if inside or (subnet.version == 4 and _overlaps(existing, subnet)):
                    return f"{subnet} overlaps {address}/{message['prefixlen']} on {name}"
        return None

    def _ours(self, name: str, network_id: str) -> bool:
        index = _index(name)
        if index is None:
            return False
        try:
            (link,) = self._ipr.link("get", index=index)
        except NetlinkError:
            return False
        # The kernel sets a link's group with its name, and its alias only later: a crash may have happened in between.
        return bool(link.get("group") == GROUP and link.get("ifalias") in (None, "", _alias(network_id)))


def _joined(port: str) -> bool:
    """True if the port is set up as by `_join`.

    At a start this is checked for thousands of ports, and netlink takes 1 ms for each.
    """
    try:
        return Path(f"/sys/class/net/{port}/brport/learning").read_text() == "0\n"
    except OSError:
        return False


def _alias(network_id: str) -> str:
    return f"docker-fw {network_id}"


def bridge_mac(network_id: str) -> str:
    """Return a permanent MAC. Without one the kernel takes the lowest of the ports', and changes it with the ports."""
    return "02:66:" + ":".join(f"{byte:02x}" for byte in hashlib.sha256(network_id.encode()).digest()[:4])


def _index(name: str) -> int | None:
    """Return a link's index; None if there is none of that name. Raises OSError if the kernel cannot be asked.

    `socket.if_nametoindex` does not tell one from the other.
    """
    encoded = name.encode()
    if len(encoded) >= _IFNAMSIZ:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            found = fcntl.ioctl(sock, _SIOCGIFINDEX, struct.pack(_IFREQ, encoded, 0))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
    return int(struct.unpack(_IFREQ, found)[1])


def _name(index: int) -> str | None:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return None


def _subnet(address: str, prefixlen: int) -> IPv4Network | IPv6Network:
    kind = IPv6Network if ":" in address else IPv4Network
    return kind((address.partition("%")[0], prefixlen), strict=False)


def _in(address: str, subnet: IPv4Network | IPv6Network) -> bool:
    kind: Any = IPv6Address if ":" in address else IPv4Address
    return kind(address.partition("%")[0]) in subnet


def _overlaps(a: Any, b: Any) -> bool:
    return bool(a.overlaps(b))
