"""Changes of single endpoints since the state file was written, in `FILE.log`: one line each, not a whole file.

The first line names the state file to which they belong; with another state file they are void. Like all facts about
endpoints, they need to survive only docker-fw's own process, so nothing is flushed. A torn last line is left out: the
process died during a change that was not reported as done. Any other damage ends the reading, and the file is kept.
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
    """The file `FILE.log`. Not thread-safe. `length`: the changes that it has; `size`: their bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._serial = ""
        self._fd = -1
        self.length = self.size = 0

    def begin(self, serial: str) -> None:
        """Start a journal for a new state file with this serial number; earlier lines belong to another file."""
        if self._fd >= 0:
            os.close(self._fd)
        self._serial, self._fd, self.length, self.size = serial, -1, 0, 0

    @property
    def begun(self) -> bool:
        """True if changes can be appended to the journal."""
        return bool(self._serial)

    def append(self, change: dict[str, Any]) -> None:
        """Append a change. Raises OSError if the disk refuses it: the file is unchanged, and `begin` must follow."""
        line = json.dumps(change, separators=(",", ":")).encode() + b"\n"
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            line = json.dumps({"serial": self._serial}).encode() + b"\n" + line
        before = os.lseek(self._fd, 0, os.SEEK_CUR)
        try:
            if os.write(self._fd, line) != len(line):
                raise OSError(28, os.strerror(28))  # ENOSPC: a full disk writes a part
        except OSError:
            with contextlib.suppress(OSError):  # `read` leaves out an incomplete last line
                os.ftruncate(self._fd, before)
            raise
        self.length, self.size = self.length + 1, self.size + len(line)

    def read(self, serial: str) -> list[dict[str, Any]]:
        """Return the changes since the state file with this serial number, in order. Never raises."""
        try:
            lines = self._path.read_bytes().split(b"\n")
        except OSError:
            return []
        try:
            if not serial or len(lines) < 2 or text(json.loads(lines[0]), "serial") != serial:
                return []
        except (ValueError, RecursionError) as error:
            log.error("%s is damaged at its beginning (%s): it is ignored", self._path, error)
            self.keep()
            return []
        changes: list[dict[str, Any]] = []
        for line in lines[1:-1]:
            try:
                change = json.loads(line)
                if not isinstance(change, dict):
                    raise ValueError("no object")
            except (ValueError, RecursionError) as error:
                log.error("%s is damaged after %d changes (%s): the rest is ignored", self._path, len(changes), error)
                self.keep()
                break
            changes.append(change)
        return changes

    def keep(self) -> None:
        """Copy the file for a person to inspect: later changes overwrite it. Never raises."""
        try:
            # Named by modification time: a file that has not changed since is not kept twice.
            aside = self._path.with_name(f"{self._path.name}.corrupt-{self._path.stat().st_mtime_ns}")
            aside.write_bytes(self._path.read_bytes())
            log.error("%s is kept as %s", self._path, aside)
        except FileNotFoundError:
            return
        except OSError as error:
            log.error("%s could not be kept: %s", self._path, error)
