"""Changes of single endpoints since the state file was written, in `FILE.log`: a line for each, not a file of all.

The first line says to which state file they belong; beside another one they are void. They need to survive our own
process only, like all that is known of endpoints, so nothing is flushed. A last line that is torn, by our own death
amid a change that nobody was told is done, is left out; where it is damaged otherwise, so is the rest, and it is kept.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from plugin.jsonio import text

log = logging.getLogger(__name__)


class Journal:
    """Not thread-safe. `length`: lines that stand in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._serial = ""
        self._fd = -1
        self.length = 0

    def begin(self, serial: str) -> None:
        """A new state file of this serial number stands; what was written before belongs to another."""
        if self._fd >= 0:
            os.close(self._fd)
        self._serial, self._fd, self.length = serial, -1, 0

    @property
    def begun(self) -> bool:
        """True if changes can be appended to the journal."""
        return bool(self._serial)

    def append(self, change: dict[str, Any]) -> None:
        """Raises OSError when the disk does not take it: then it is as it was, and `begin` must come next."""
        line = json.dumps(change, separators=(",", ":")).encode() + b"\n"
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            line = json.dumps({"serial": self._serial}).encode() + b"\n" + line
        before = os.lseek(self._fd, 0, os.SEEK_CUR)
        try:
            if os.write(self._fd, line) != len(line):
                raise OSError(28, os.strerror(28))  # ENOSPC: a disk that is full takes a part
        except OSError:
            with contextlib.suppress(OSError):  # a part of a line at the end is left out when it is read
                os.ftruncate(self._fd, before)
            raise
        self.length += 1

    def read(self, serial: str) -> list[dict[str, Any]]:
        """The changes since the state file of this serial number, in order. Never raises."""
        try:
            lines = self._path.read_bytes().split(b"\n")
        except OSError:
            return []
        try:
            if not serial or len(lines) < 2 or text(json.loads(lines[0]), "serial") != serial:
                return []
        except (ValueError, RecursionError) as error:
            log.error("%s is damaged at its beginning (%s): it is left out", self._path, error)
            self.keep()
            return []
        changes: list[dict[str, Any]] = []
        for line in lines[1:-1]:
            try:
                change = json.loads(line)
                if not isinstance(change, dict):
                    raise ValueError("no object")
            except (ValueError, RecursionError) as error:
                log.error("%s is damaged after %d changes (%s): the rest is left out", self._path, len(changes), error)
                self.keep()
                break
            changes.append(change)
        return changes

    def keep(self) -> None:
        """A copy of what stands in it, for a person to see: it is written over by and by. Never raises."""
        try:
            # Its time of change: one that is read again, because nothing has changed since, is not kept again.
            aside = self._path.with_name(f"{self._path.name}.corrupt-{self._path.stat().st_mtime_ns}")
            aside.write_bytes(self._path.read_bytes())
            log.error("%s is kept as %s", self._path, aside)
        except FileNotFoundError:
            return
        except OSError as error:
            log.error("%s could not be kept: %s", self._path, error)
