"""Where dockerd and its docker-proxies live: their control group, by which the kernel knows their sockets.

Only where control groups are of version 2 throughout: elsewhere containers may share dockerd's group there.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def dockerd(root: str, groups: Iterable[str]) -> frozenset[int]:
    """The control group's number in the kernel: its directory's inode. Empty if it is not to be found.

    `root` is the host's /sys/fs/cgroup; `groups` are the paths below it where dockerd may be. systemd makes the
    directory anew with each start of dockerd.
    """
    if not (Path(root) / "cgroup.controllers").exists():
        return frozenset()
    found = set()
    for group in groups:
        try:
            found.add((Path(root) / group).stat().st_ino)
        except OSError:
            continue
    return frozenset(found)


def shared(root: str) -> bool:
    """True if this process is in the host's namespace of control groups: the kernel counts their levels from there."""
    mine = next((line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line[:3] == "0::"), "/")
    return mine != "/" and (Path(root) / mine[1:]).is_dir()


def proxies(root: str, groups: Iterable[str]) -> tuple[frozenset[int], bool]:
    """Docker-proxy's control groups, and whether it is not known by them: then whatever begins to listen is held."""
    known = dockerd(root, groups)
    return known, not known or not shared(root)
