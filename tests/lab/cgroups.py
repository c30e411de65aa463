"""The cgroups of a capsule: one directory of its own in each hierarchy this machine has.

A capsule has a cgroup namespace, so inside, its directory looks like the root of each hierarchy.
Both layouts work: cgroup v2 alone (Debian's default), and v1 with or without v2 beside it.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from .store import LabError


@dataclass
class Cgroups:
    """The cgroups of a capsule's processes; the fields are those of `init.Spec`."""

    cgroups: list[str] = field(default_factory=list)
    leaf: list[str] = field(default_factory=list)
    cgroup_mounts: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def joins(self) -> list[str]:
        """Return the directories that a process joins to belong to the capsule."""
        return self.leaf or self.cgroups


def make(name: str) -> Cgroups:
    """Make directories called `name` in all hierarchies; LabError if no hierarchy is mounted."""
    made = Cgroups()
    own = {  # controllers, as the kernel writes them ("" for v2) → this process's cgroup
        line.split(":")[1]: line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines()
    }
    for kind, options, root, point in _mounted():
        if kind == "cgroup2" and point == "/sys/fs/cgroup":
            # v2 alone: beside the machine's own groups, where the controllers are
            directory = Path(point) / name
            _make(directory / "init")
            _enable(Path(point))
            made.leaf.append(str(directory / "init"))
            made.cgroup_mounts.append(("cgroup2", "", point))
        else:
            # v1: below this process's group, so that whatever limits it limits the capsule, too
            controllers = "" if kind == "cgroup2" else _controllers(options, set(own))
            directory = Path(point) / os.path.relpath(own[controllers], root) / name
            _make(directory)
            inside = f"/sys/fs/cgroup/{os.path.basename(point)}"
            flags = f"none,{controllers}" if controllers.startswith("name=") else controllers
            made.cgroup_mounts.append((kind, flags, inside))
        made.cgroups.append(str(directory))
    if not made.cgroups:
        raise LabError("no cgroup hierarchy is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup")
    return made


def remove(directories: list[str], timeout: float = 5) -> None:
    """Remove the directories and all below; wait while dying processes are in them, or raise OSError."""
    end = time.monotonic() + timeout
    for top in directories:
        while os.path.isdir(top):
            try:
                for path, _, _ in os.walk(top, topdown=False):
                    with contextlib.suppress(FileNotFoundError):
                        os.rmdir(path)
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)


def _mounted() -> list[tuple[str, str, str, str]]:
    """Yield (file system type, its options, root within the hierarchy, mount point) of each hierarchy."""
    found: dict[tuple[str, str], tuple[str, str, str, str]] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        kind, _, options = after.split()
        if kind in ("cgroup", "cgroup2"):
            found.setdefault((kind, "" if kind == "cgroup2" else options), (kind, options, root, point))
    return list(found.values())


def _controllers(options: str, known: set[str]) -> str:
    """Return the key of /proc/self/cgroup that the v1 mount with these options belongs to."""
    words = set(options.split(","))
    for key in known:
        if key and set(key.split(",")) <= words:
            return key
    raise LabError(f"cannot tell which cgroup hierarchy has the options {options}")


def _make(directory: Path) -> None:
    directory.mkdir(parents=True)
    for name in ("cpuset.cpus", "cpuset.mems"):  # v1: empty in a new group, which then takes no process
        if (directory / name).exists() and not (directory / name).read_text().strip():
            with contextlib.suppress(OSError):
                (directory / name).write_text((directory.parent / name).read_text())


def _enable(directory: Path) -> None:
    """Enable all controllers of `directory` for its children, as far as the kernel permits it."""
    for controller in (directory / "cgroup.controllers").read_text().split():
        with contextlib.suppress(OSError):
            (directory / "cgroup.subtree_control").write_text(f"+{controller}")
