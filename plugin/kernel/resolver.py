"""The name server that Docker's DNS asks for external names, if `fw.egress` cannot filter these requests.

Docker's embedded DNS (127.0.0.11) asks a name server that was given to the container (`--dns`, `dns` in daemon.json)
from the container's namespace, where its rules apply. A name server from the host's resolv.conf is asked from the
host's namespace: if it is on loopback (20.10.24, 26.1.5), or always (28.5.2; `ExtServers: [host(…)]` in the
container's resolv.conf). Then a name, and data encoded in it, leaves the host whatever the container may initiate.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

#: The host's file, because docker-fw has the host's network: Docker mounts it into a plugin and copies it for a
#: sidecar.
_HOSTS = "/etc/resolv.conf"
#: Docker reads this instead if systemd-resolved's stub is the only name server: it has the real name servers.
_SYSTEMD = ("/host/run/systemd/resolve/resolv.conf", "/run/systemd/resolve/resolv.conf")
_STUB = "127.0.0.53"
#: Docker's major versions that ask name servers not on loopback from the container's namespace. Not tried: 27.
_FROM_CONTAINERS = range(1, 27)


def asked_from_host(major: int, hosts: str = _HOSTS, systemd: tuple[str, ...] = _SYSTEMD) -> str:
    """Return the name server that dockerd asks from the host's namespace; "" if none.

    `major` is dockerd's major version (0: unknown). The name server is one of the host's.
    """
    servers = list(_servers(hosts))
    if servers == [_STUB]:
        servers = next(filter(None, (list(_servers(path)) for path in systemd)), servers)
    return next((server for server in servers if major not in _FROM_CONTAINERS or _is_loopback(server)), "")


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
