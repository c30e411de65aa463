"""States of machines: a disk and a memory, saved when a machine was ready for tests, in the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.images import busybox
from tests.lab.store import cache, cached, digest, keep_newest, locked
from tests.vm import hardware
from tests.vm.disk import Disk, disk
from tests.vm.systems import DEFAULT

if TYPE_CHECKING:
    from tests.vm.machine import Machine

#: States of one name that stay in the cache; a machine that has an older one running keeps its files open.
_KEPT = 8


@dataclass(frozen=True)
class State:
    """A machine's disk, and its memory if `directory` is not None; without one it was never booted."""

    disk: Disk
    directory: Path | None = None

    @property
    def name(self) -> str:
        """Return its name, which changes with all that it was made of."""
        return self.directory.name if self.directory else self.disk.name

    @property
    def image(self) -> Path:
        """Return the disk."""
        return self.directory / "disk.qcow2" if self.directory else self.disk.image

    @property
    def format(self) -> str:
        """Return the disk's format, as QEMU names it."""
        return "qcow2" if self.directory else "raw"

    @property
    def memory(self) -> Path | None:
        """Return the memory."""
        return self.directory / "memory" if self.directory else None


def prepared(base: State, name: str, parts: tuple[object, ...], prepare: Callable[[Machine], None]) -> State:
    """Return the state after `prepare` has run on a machine in state `base`; the first call makes it.

    `parts`: all that changes the result, next to the base itself (`repr`; file contents, not times). The state's name
    is a hash of them.
    """
    full = state_name(base, name, parts)

    def make(target: Path) -> None:
        from tests.vm.machine import Machine

        with Machine(state=base) as vm:
            prepare(vm)
            vm.save(target)

    kept = cache() / "vm" / full
    if not kept.exists():
        with locked("vm-state"):  # one after the other: each needs both processors
            cached("vm", full, f"the machine {full} (minutes, once)", make)
    keep_newest(kept, f"{full.rpartition('-')[0]}-????????????", _KEPT)
    return State(base.disk, kept)


def cached_state(base: State, name: str, parts: tuple[object, ...]) -> State | None:
    """Return the state that `prepared` would return, if it is in the cache."""
    there = cache() / "vm" / state_name(base, name, parts)
    return State(base.disk, there) if there.exists() else None


def state_name(base: State, name: str, parts: tuple[object, ...]) -> str:
    """Return the name of the state that `prepared` makes of the same arguments, without making it."""
    system = base.disk.name.partition("-")[0]
    command = hardware.hardware(Disk(Path("disk")), 1)
    return f"{system}-{name}-{digest(base.name, name, parts, hardware.version(), command)}"


def ready(system: str = DEFAULT, extra: tuple[str, ...] = ()) -> State:
    """Return the state of a booted system whose Docker answers and has the image ``busybox``; made at first use."""
    box = busybox()
    base = State(disk(system, extra))
    return prepared(base, "ready", (box.tar.name,), lambda vm: vm.load(box))
