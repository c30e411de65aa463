"""Real Debian machines under QEMU, for tests. See README.md."""

from __future__ import annotations

from tests.vm.disk import Disk, disk
from tests.vm.machine import Machine, Program
from tests.vm.states import State, prepared, ready
from tests.vm.systems import DEFAULT, SYSTEMS, System

__all__ = ["DEFAULT", "SYSTEMS", "Disk", "Machine", "Program", "State", "System", "disk", "prepared", "ready"]
