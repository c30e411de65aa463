"""Record what a lab owns on this machine, so that it can be removed again.

A `Claim` is a directory ``<cache>/run/NAME`` with a record of namespaces, processes, mounts and
cgroups. The record names the owning process by pid and start time: `sweep` removes what dead
owners left. No process is ever identified by its name.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from . import cgroups
from .store import LabError, cache, call, locked, say

_counter = itertools.count(1)
_open: list[Claim] = []
#: processes of this lab that visit namespaces of others for a moment: never killed with them
spared: set[int] = {os.getpid()}


def start_time(pid: int) -> int | None:
    """Return the start time of the process, in clock ticks since boot; None if there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


@dataclass
class Record:
    """The record of a claim, as it is kept in ``claim.json``."""

    owner: tuple[int, int]  # pid, start time
    pids: list[tuple[int, int]] = field(default_factory=list)
    netns: list[str] = field(default_factory=list)
    mounts: list[str] = field(default_factory=list)
    cgroups: list[str] = field(default_factory=list)


class Claim:
    """A directory and the objects recorded in it; `release` removes all of them."""

    def __init__(self, kind: str) -> None:
        if not _open:
            with contextlib.suppress(BlockingIOError), locked("sweep", wait=False):
                _sweep()
        runs = cache() / "run"
        runs.mkdir(exist_ok=True)
        while True:
            # Short, for it also names links (15 bytes) and Unix sockets (107).
            self.name = f"fwlab{os.getpid()}{kind}{next(_counter)}"
            with contextlib.suppress(FileExistsError):
                (runs / self.name).mkdir()
                break
        self.directory = runs / self.name
        self.record = Record((os.getpid(), start_time(os.getpid()) or 0))
        self.save()
        _open.append(self)

    def save(self) -> None:
        """Write the record; call it before creating the objects that it names."""
        partial = self.directory / "claim.json.new"
        partial.write_text(json.dumps(asdict(self.record)))
        partial.rename(self.directory / "claim.json")

    def add_pid(self, pid: int) -> None:
        """Record a process."""
        self.record.pids.append((pid, start_time(pid) or 0))
        self.save()

    def release(self) -> None:
        """Remove everything; harmless if it is removed already."""
        if self in _open:
            _open.remove(self)
        _take_away(self.directory, self.record)


def sweep() -> list[str]:
    """Remove what dead processes left; return the names of their claims.

    It waits for another process's sweep; afterwards nothing is left in either case.
    """
    with locked("sweep"):
        return _sweep()


def _sweep() -> list[str]:
    swept = []
    for directory in sorted((cache() / "run").glob("fwlab*")):
        try:
            raw = json.loads((directory / "claim.json").read_text())
            record = Record(**raw)
        except (FileNotFoundError, ValueError, TypeError):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - directory.stat().st_mtime < 60:
                    continue  # being created at this moment
            if not directory.exists():
                continue  # released at this moment by its owner
            record = Record((0, 0))
        if start_time(record.owner[0]) == record.owner[1] != 0:
            continue
        say(f"removing {directory.name}, left by a process that has ended")
        _take_away(directory, record)
        swept.append(directory.name)
    return swept


def kill(pid: int, started: int | None = None, timeout: float = 20) -> None:
    """Send SIGKILL to a process (if it is still the one that started then) and wait for its end.

    LabError if it still exists after `timeout` seconds, because the kernel keeps it.
    """
    started = started or start_time(pid)
    end = time.monotonic() + timeout
    while started and start_time(pid) == started:
        if time.monotonic() > end:
            raise LabError(f"process {pid} does not die")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def kill_inside(netns: str) -> None:
    """Kill every process in the named network namespace, except for the lab's own."""
    with contextlib.suppress(FileNotFoundError):
        wanted = os.stat(f"/run/netns/{netns}")
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if entry.isdigit() and int(entry) not in spared:
                    found = os.stat(f"/proc/{entry}/ns/net")
                    if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                        kill(int(entry))


def delete_netns(name: str) -> None:
    """Delete a named network namespace and its processes; harmless if it does not exist."""
    if os.path.exists(f"/run/netns/{name}"):
        kill_inside(name)
        call(["ip", "netns", "delete", name])


def _take_away(directory: Path, record: Record) -> None:
    with contextlib.ExitStack() as steps:  # in reverse order; each is done even if others fail
        steps.callback(shutil.rmtree, directory, ignore_errors=True)
        for mount in record.mounts:
            steps.callback(subprocess.run, ["umount", "--lazy", mount], check=False, capture_output=True)
        steps.callback(cgroups.remove, record.cgroups)
        for netns in record.netns:
            steps.callback(delete_netns, netns)
        for pid, started in record.pids:
            steps.callback(kill, pid, started)


@atexit.register
def _at_exit() -> None:
    for claim in reversed(_open.copy()):
        with contextlib.suppress(Exception):  # the other steps must still run
            claim.release()
