"""Forwarding and the bridges' own settings, written through the host's /proc/sys/net.

/proc/sys is read-only in a managed plugin, so the host's is mounted elsewhere. The process that opens it decides which
network namespace it shows: that is the host's.
"""

from __future__ import annotations

import logging
from pathlib import Path

from plugin.model import FwError, Network

log = logging.getLogger(__name__)


class Sysctl:
    """`root` is /proc/sys/net or a mount of it."""

    def __init__(self, root: str) -> None:
        self._root = Path(root)

    def prepare_bridge(self, network: Network) -> None:
        """Prepare a bridge before it is up: IPv6 on or off as configured, router advertisements and redirects ignored.

        moby: libnetwork/drivers/bridge/setup_device_linux.go, setup_ipv6_linux.go.
        """
        if not (self._root / "ipv4").is_dir():
            raise FwError(f"docker-fw needs the host's /proc/sys/net writable at {self._root}, and nothing is there")
        conf = f"ipv6/conf/{network.bridge}"
        if not (self._root / conf).exists():  # IPv6 is compiled out, or off by ipv6.disable=1
            if network.gateway6:
                raise FwError("this host has no IPv6 (ipv6.disable=1?); create the network without --ipv6")
            return
        self._write(f"{conf}/accept_ra", "0")
        self._write(f"{conf}/accept_redirects", "0", must=False)
        self._write(f"{conf}/disable_ipv6", "0" if network.gateway6 else "1")

    def prepare_port(self, name: str) -> None:
        """Prepare the host's side of a veth pair: it is only a port of the bridge, without an address of its own."""
        if (self._root / f"ipv6/conf/{name}").exists():
            self._write(f"ipv6/conf/{name}/disable_ipv6", "1", must=False)

    def proxy_ndp(self, interface: str) -> None:
        """Let the host answer neighbour solicitations on an interface for the proxied addresses."""
        self._write(f"ipv6/conf/{interface}/proxy_ndp", "1")

    def missing(self, network: Network) -> set[int]:
        """Return the families (AF_) that the network needs forwarded and the host does not forward."""
        missing: set[int] = set()
        if network.gateway4 and not network.internal and self._read("ipv4/ip_forward") == "0":
            missing.add(2)
        if network.gateway6 and not network.internal and self._read("ipv6/conf/all/forwarding") == "0":
            missing.add(10)
        return missing

    def forward(self, families: set[int]) -> None:
        """Enable forwarding for the families.

        With IPv6 forwarding, interfaces with accept_ra=1 ignore routers (Documentation/networking/ip-sysctl.rst): a
        host that depends on a router-advertised default route would lose it, so those are set to accept advertisements
        (2).
        """
        if 2 in families:
            self._write("ipv4/ip_forward", "1")
        if 10 in families:
            for path in sorted((self._root / "ipv6/conf").glob("*/accept_ra")):
                interface = path.parent.name
                if interface != "all" and self._read(f"ipv6/conf/{interface}/accept_ra") == "1":
                    self._write(f"ipv6/conf/{interface}/accept_ra", "2")
            self._write("ipv6/conf/all/forwarding", "1")

    def _read(self, name: str) -> str:
        try:
            return (self._root / name).read_text().strip()
        except OSError:
            return ""

    def _write(self, name: str, value: str, *, must: bool = True) -> None:
        if self._read(name) == value:
            return
        try:
            (self._root / name).write_text(value)
        except OSError as error:
            if must:
                raise FwError(
                    f"could not set net.{name.replace('/', '.')}={value}: {error.strerror}; "
                    f"docker-fw needs the host's /proc/sys/net writable at {self._root}"
                ) from error
            log.info("could not set %s: %s", name, error)
