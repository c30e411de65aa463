"""Where dockerd and its docker-proxies live: their control group, by which the kernel knows their sockets.

Only where control groups are of version 2 throughout: elsewhere containers may share dockerd's group there.
"""

from __future__ import annotations

from pathlib import Path

from plugin.inventory import Noted, Owner
from plugin.sets import Element

#: systemd's unit of Docker's packages, and of the snap.
SERVICES = ("system.slice/docker.service", "system.slice/snap.docker.dockerd.service")


def dockerd(root: str) -> frozenset[int]:
    """The control group's number in the kernel: its directory's inode. Empty if it is not to be found.

    `root` is the host's /sys/fs/cgroup. systemd makes the directory anew with each start of dockerd.
    """
    if not (Path(root) / "cgroup.controllers").exists():
        return frozenset()
    found = set()
    for service in SERVICES:
        try:
            found.add((Path(root) / service).stat().st_ino)
        except OSError:
            continue
    return frozenset(found)


def shared(root: str) -> bool:
    """True if this process is in the host's namespace of control groups: the kernel counts their levels from there."""
    mine = next((line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line[:3] == "0::"), "/")
    return mine != "/" and (Path(root) / mine[1:]).is_dir()


def proxies(root: str) -> dict[Owner, Noted]:
    """What the table needs to know of it."""
    return {"proxies": Noted(frozenset(Element("proxies", (number,)) for number in dockerd(root)))}
