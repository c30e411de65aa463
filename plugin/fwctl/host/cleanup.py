"""`fwctl cleanup`: removes docker-fw's tables, its rule in DOCKER-USER and its links from this network namespace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from plugin.kernel.docker_user import DockerUser
from plugin.kernel.links import Links
from plugin.kernel.sysctl import Sysctl
from plugin.model import FwError
from plugin.nftables import identity
from plugin.nftables.sets import TABLE
from plugin.settings import Settings

#: The sysctl that enables forwarding, by family.
_FORWARDING = {"ipv4": "net.ipv4.ip_forward", "ipv6": "net.ipv6.conf.all.forwarding"}


@dataclass(frozen=True, slots=True)
class Removed:
    """The result of `cleanup`, what it removed and left: `unmanaged` tables are another program's.

    `forwarding`: the families ("ipv4", "ipv6") for which docker-fw had enabled forwarding, which stays enabled.
    """

    bridges: int
    tables: tuple[str, ...]
    unmanaged: tuple[str, ...]
    forwarding: tuple[str, ...]


def cleanup(settings: Settings) -> Removed:
    """Remove everything that docker-fw made here. Raises FwError, and changes nothing then if docker-fw still runs."""
    try:
        if _is_served(settings.socket):
            raise FwError(
                "docker-fw runs on this host and would put everything back; stop it first "
                "(docker plugin disable -f fw:latest, or docker compose -f sidecar.yml down -v)"
            )
    except OSError as error:  # unsure whether it runs: change nothing
        raise FwError(f"could not find out whether docker-fw runs ({error}); nothing was removed") from error
    try:
        forwarding = identity.forwarding_enabled()
    except OSError as error:
        raise FwError(
            f"could not read the nftables tables ({error.strerror}); run this with --network host and "
            "--cap-add NET_ADMIN. Nothing was removed"
        ) from error
    links = Links(Sysctl(settings.sysctl))
    bridges = [name for name, ours in links.bridges().items() if ours]
    for name in bridges:
        links.delete(name)
    links.sweep(set())
    DockerUser(settings.mark).remove()
    try:
        removed, unmanaged = identity.remove()
    except OSError as error:
        raise FwError(
            f"table inet {TABLE} could not be removed ({error.strerror}); stop the program that owns it first"
        ) from error
    return Removed(len(bridges), tuple(map(str, removed)), tuple(map(str, unmanaged)), forwarding)


def report(removed: Removed) -> str:
    """Return what was removed, and what remains, for people."""
    tables = " and ".join(f"table {table}" for table in removed.tables) or "no table"
    lines = [f"removed {removed.bridges} bridges, {tables}"]
    lines += [f"table {table} remains: docker-fw did not make it" for table in removed.unmanaged]
    for family in removed.forwarding:  # Docker's networks may need it by now
        lines.append(
            f"{family.replace('ip', 'IP')} forwarding, which docker-fw had enabled, remains enabled, and packets "
            "between the host's other links are not dropped any more. Unless Docker's networks need it: "
            f"sysctl -w {_FORWARDING[family]}=0"
        )
    return "\n".join(lines)


def _is_served(path: str) -> bool:
    """True if a process in this network namespace listens on this socket, even if its file is not visible from here.

    The path is compared as the plugin knows it: cleanup runs in a container that may not see the host's /run.
    """
    # The flags contain __SO_ACCEPTCON if the socket listens; the path is the eighth field, if there is one.
    lines = (line.split(maxsplit=7) for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    return any(len(line) == 8 and int(line[3], 16) & 0x10000 and line[7] == path for line in lines)
