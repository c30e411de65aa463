"""Where Docker's DNS asks for names that it does not know, as far as `fw.egress` cannot hold them back.

Docker's embedded DNS (127.0.0.11) asks from the container's namespace, past every rule of the container's. But where
the host's resolver is on loopback, which a container cannot reach, dockerd asks it from the host's (libnetwork's
`HostLoopback`): then a name, and what is coded in it, leaves whatever the container may begin.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

#: The host's, for docker-fw has the host's network: Docker mounts it into a plugin and copies it for a sidecar.
_HOSTS = "/etc/resolv.conf"
#: Docker reads this in its place where systemd-resolved's stub is the only name server: it has the real ones.
_SYSTEMD = ("/host/run/systemd/resolve/resolv.conf", "/run/systemd/resolve/resolv.conf")
_STUB = "127.0.0.53"


def on_loopback(hosts: str = _HOSTS, systemd: tuple[str, ...] = _SYSTEMD) -> str:
    """The host's name server that dockerd asks from the host's namespace; "" if there is none, or it is not known."""
    servers = list(_servers(hosts))
    if servers == [_STUB]:
        servers = next(filter(None, (list(_servers(path)) for path in systemd)), servers)
    return next((server for server in servers if _is_loopback(server)), "")


def _servers(path: str) -> Iterator[str]:
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines()[:100]:
        words = line.split()
        if words[:1] == ["nameserver"] and len(words) > 1:
            yield words[1]


def _is_loopback(server: str) -> bool:
    try:
        return ip_address(server.partition("%")[0]).is_loopback
    except ValueError:
        return False
