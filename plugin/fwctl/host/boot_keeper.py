"""Keeps the boot table current: what docker-fw closes now is closed from the start of the next boot on.

There are two files. One is beside the state file: docker-fw's own start loads it before anything else (`daemon.start`).
The other is on the host, for a sidecar; it is kept only if `fwctl boot install` has written it and docker-fw sees the
host's directory. Once a second is often enough: a power cut loses at most what the last second brought.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plugin.docker.bridges import Bridges
from plugin.fwctl.host import boot_table, boot_unit
from plugin.fwctl.socket_client import ask
from plugin.model import FwError
from plugin.paths import BOOT_FILE, LONGEST_BOOT_FILE
from plugin.policy.saved import SavedState
from plugin.settings import Settings

log = logging.getLogger(__name__)
#: Seconds between two checks; more if writing takes long (50,000 bans), so that it never takes more than a processor's
#: twentieth.
EVERY = 1.0
_SHARE = 20
#: The word in `GET /status` that says the file is kept current.
KEPT = "kept"
_REMOVED = "the boot table is not kept current: /etc/docker-fw was removed from the host; restart docker-fw"
#: Inode, modification time and size: whether the file is still the one that was written.
_Fingerprint = tuple[int, int, int]


class _File:
    """One of the files."""

    def __init__(self, path: Path, mode: int) -> None:
        self.path = path
        self._mode = mode
        self._written: tuple[_Fingerprint, tuple[Any, ...]] | None = None

    def exists(self) -> bool:
        return _fingerprint(self.path) is not None

    def text(self) -> str:
        """Return its text, "" if it cannot be read: it is written again soon, and the log says why if that fails."""
        try:
            short = self.path.is_file() and self.path.stat().st_size <= LONGEST_BOOT_FILE
            return self.path.read_text() if short else ""
        except (OSError, ValueError):
            return ""

    def keep(self, known: tuple[Any, ...], text: Callable[[], str]) -> None:
        """Write it if what it must close has changed, or if another program has written it. Raises OSError."""
        found = _fingerprint(self.path)
        if self._written and self._written[0] == found and _same(self._written[1], known):
            return
        boot_unit.write(self.path, text(), suffix="kept", mode=self._mode)
        found = _fingerprint(self.path)
        # `fwctl boot install` may have written it at the same moment.
        self._written = (found, known) if found and self.path.read_bytes() == text().encode() else None


class BootTableKeeper:
    """Rewrites the files when what they close changes.

    `listed`: whether Docker has listed its networks. Until then the bridges that only Docker's list has are taken from
    the file of the last run: a power cut must not leave a file that closes less. `late_fib`: what this kernel
    supports, see `Features`.
    """

    def __init__(
        self,
        settings: Settings,
        state: Callable[[], SavedState],
        bridges: Bridges,
        listed: Callable[[], bool],
        late_fib: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._own = _File(Path(settings.state).with_name(BOOT_FILE), 0o600)
        self._hosts = _File(Path(settings.boot, os.path.basename(boot_unit.FILE)), 0o644)
        self._state = state
        self._bridges = bridges
        self._listed = listed
        self._late_fib = late_fib
        self._former = boot_table.named_in(self._own.text(), "dockers")
        self._stop = threading.Event()
        #: For the host's file: KEPT, or why it is not kept current; "" if there is none that docker-fw can see.
        self.report = ""
        self._failed = ""

    def boot_loop(self) -> None:
        """Write the files again whenever they differ, until `stop`."""
        took = 0.0
        while not self._stop.wait(max(EVERY, _SHARE * took)):
            start = time.thread_time()
            self.keep()
            took = time.thread_time() - start

    def stop(self) -> None:
        """End the loop."""
        self._stop.set()

    def keep(self) -> None:
        """Rewrite the files if what they must close has changed, or if another program has written them."""
        known = self._known()
        text = functools.cache(lambda: self._text(*known))
        try:
            self._own.keep(known, text)
            failed = ""
        except OSError as error:
            failed = f"{self._own.path} is not kept current, which a slow start needs: {error.strerror}"
        if failed != self._failed:
            self._failed = failed
            log.log(logging.ERROR if failed else logging.INFO, "%s", failed or f"{self._own.path} is current again")
        self._report(self._keep_hosts(known, text))

    def _keep_hosts(self, known: tuple[Any, ...], text: Callable[[], str]) -> str:
        try:
            if not self._hosts.exists():
                return _REMOVED if _removed(self._hosts.path.parent) else ""
            self._hosts.keep(known, text)
        except OSError as error:
            return f"the boot table {self._hosts.path} is not kept current: {error.strerror}"
        return KEPT

    def _report(self, report: str) -> None:
        if report != self.report:
            self.report = report
            level = logging.INFO if report in ("", KEPT) else logging.ERROR
            log.log(level, "boot table: %s", report or "there is none")

    def _known(self) -> tuple[Any, ...]:
        state = self._state()
        saved = (state.bans, state.proxied, state.egress_restricted, state.internal, state.networks)
        if self._listed():
            self._former = frozenset()
        return (*saved, self._bridges.dockers() | self._former, self._bridges.unmanaged())

    def _text(self, *known: Any) -> str:
        bans, proxied, egress_restricted, internal, networks, dockers, unmanaged = known
        state = SavedState(
            networks=networks, proxied=proxied, egress_restricted=egress_restricted, bans=bans, internal=internal
        )
        return boot_table.closing_text(state, dockers, unmanaged, self._settings, late_fib=self._late_fib())


def why_not_kept(root: Path, clock: Callable[[], float] = time.monotonic) -> str:
    """Return why no docker-fw keeps the file that was just written current, or "". Waits for up to three seconds."""
    end = clock() + 3 * EVERY
    while True:
        status = ask_running(root, "/status")
        report = str(status.get("boot", ""))
        if report == KEPT:
            return ""
        if clock() > end or not status:
            break
        time.sleep(EVERY / 4)
    if not status:
        return "no docker-fw is running here"
    return report or "docker-fw does not see /etc/docker-fw (compose-examples/sidecar.yml mounts it)"


def ask_running(root: Path, url: str) -> dict[str, Any]:
    """Return the answer of the docker-fw that runs on this host; an empty one if none runs."""
    for path in sorted((root / "run/docker/plugins").glob("**/fw.sock")):
        with contextlib.suppress(FwError):
            return ask(str(path), url)
    return {}


def _removed(directory: Path) -> bool:
    """True if the directory that is mounted here was removed on the host, by hand."""
    try:
        return directory.stat().st_nlink == 0
    except FileNotFoundError:  # the managed plugin, which starts before other containers
        return False


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Compare by identity first: a blocklist is long, and seldom replaced."""
    return all(a is b or a == b for a, b in zip(one, other, strict=True))


def _fingerprint(path: Path) -> _Fingerprint | None:
    """None if there is no such file."""
    try:
        stat = path.lstat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
