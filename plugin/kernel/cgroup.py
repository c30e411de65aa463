"""The control group of dockerd and its docker-proxies, by which the kernel identifies their sockets.

Only if all control groups are of version 2: otherwise containers may share dockerd's group there.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def dockerd(root: str, groups: Iterable[str]) -> frozenset[int]:
    """Return the control group's number in the kernel, its directory's inode. Empty if it is not found.

    `root` is the host's /sys/fs/cgroup; `groups` are the paths below it where dockerd may be. systemd creates the
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
    """True if this process is in the host's cgroup namespace: the kernel counts levels from its root."""
    mine = next((line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line[:3] == "0::"), "/")
    return mine != "/" and (Path(root) / mine[1:]).is_dir()


def proxies(root: str, groups: Iterable[str]) -> tuple[frozenset[int], bool]:
    """Return docker-proxy's control groups, and True if they do not identify it.

    In that case any new listener is blocked at first.
    """
    known = dockerd(root, groups)
    return known, not known or not shared(root)
