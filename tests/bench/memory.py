"""Measure memory: the plugin's processes (private, plus their share of shared memory), and its cgroup."""

from __future__ import annotations

from pathlib import Path

from tests.bench.bed import Bed
from tests.bench.table import Table, say

_AIM = "value < 80"
_MB = 1e6


class Memory:
    """One measurement in each state; the first is the baseline of the others."""

    def __init__(self) -> None:
        self._first: tuple[float, float | None] | None = None

    def measure(self, bed: Bed, table: Table, state: str) -> None:
        say(f"memory, {state}")
        processes = sum(_pss(pid) for pid in bed.plugin_pids()) / _MB
        group = _cgroup(bed.plugin_pids()[0])
        first = self._first or (None, None)
        against = " vs idle" if self._first else ""
        table.add(f"memory: processes (PSS), {state}{against}", processes, "MB", first[0], _AIM)
        if group is not None:
            table.add(f"memory: cgroup without page cache, {state}{against}", group / _MB, "MB", first[1])
        self._first = self._first or (processes, None if group is None else group / _MB)


def _pss(pid: int) -> float:
    """Return the bytes of smaps_rollup's Pss."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return 1024 * float(line.split()[1])
    raise RuntimeError(f"/proc/{pid}/smaps_rollup tells no Pss")


def _cgroup(pid: int) -> float | None:
    """Return the bytes charged to the process's cgroup, or None if not accounted.

    They include kernel memory, but not the page cache.
    """
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            group = Path("/sys/fs/cgroup/memory") / path.lstrip("/")
            used, cache = "memory.usage_in_bytes", "total_cache"
        elif not controllers:
            group, used, cache = Path("/sys/fs/cgroup") / path.lstrip("/"), "memory.current", "file"
        else:
            continue
        try:
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            return float((group / used).read_text()) - float(stat[cache])
        except (OSError, KeyError):
            continue
    return None
