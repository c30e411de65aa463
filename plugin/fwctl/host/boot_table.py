"""The sidecar's boot table is kept as docker-fw's own table is: what closes now closes from the next boot's start on.

Only where `fwctl boot install` has put the file, and docker-fw sees the host's directory. Each second is soon enough: a
change that is lost with a power cut is one that the last second brought.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from plugin.daemon.early_table import shut
from plugin.docker.bridges import Bridges
from plugin.docker.snapshot import DockerSnapshot
from plugin.fwctl.cli.client import ask
from plugin.fwctl.host import boot_unit
from plugin.jsonio import INTERFACE_NAME
from plugin.model import BridgeNetwork, FwError
from plugin.nftables.elements import guarded_elements
from plugin.policy.saved import State
from plugin.policy.view import evaluated
from plugin.settings import Settings

log = logging.getLogger(__name__)
#: Seconds between two looks.
EVERY = 1.0
KEPT = "kept"
_REMOVED = "the boot table is not kept current: the host's /etc/docker-fw was removed; start docker-fw again"
#: What the operating system says of a file, by which it is known to be the one that was written.
_Mark = tuple[int, int, int]


class BootFile:
    """`networks`: Docker networks as they are known now."""

    def __init__(
        self,
        settings: Settings,
        state: Callable[[], State],
        bridges: Bridges,
        networks: Callable[[], Iterable[BridgeNetwork]],
    ) -> None:
        self._settings = settings
        self._path = Path(settings.boot, os.path.basename(boot_unit.FILE))
        self._state = state
        self._bridges = bridges
        self._networks = networks
        self._written: tuple[_Mark, tuple[Any, ...]] | None = None
        self._stop = threading.Event()
        #: KEPT, or why the file is not kept current; "" where there is none, or docker-fw does not see it.
        self.word = ""

    def boot_loop(self) -> None:
        while not self._stop.wait(EVERY):
            self.keep()

    def stop(self) -> None:
        self._stop.set()

    def keep(self) -> None:
        """Writes the file anew if something else closes than when it was written, or if another program wrote it."""
        try:
            word = self._kept()
        except OSError as error:
            word = f"the boot table {self._path} is not kept current: {error.strerror}"
        if word != self.word:
            self.word = word
            log.log(logging.INFO if word in ("", KEPT) else logging.ERROR, "boot table: %s", word or "there is none")

    def _kept(self) -> str:
        known, mark = self._known(), _mark(self._path)
        if mark is None:
            return _REMOVED if _removed(self._path.parent) else ""
        if self._written is None or self._written[0] != mark or not _same(self._written[1], known):
            text = self._text(*known)
            boot_unit.write(self._path, text, beside="kept")
            mark = _mark(self._path)
            # `fwctl boot install` may have written it at the same moment.
            self._written = (mark, known) if mark and self._path.read_text() == text else None
        return KEPT

    def _known(self) -> tuple[Any, ...]:
        state = self._state()
        kept = (state.bans, state.proxied, state.egress_restricted, state.networks)
        internal = frozenset(network for network in self._networks() if network.internal)
        return (*kept, self._bridges.dockers(), self._bridges.unmanaged(), internal)

    def _text(self, *known: Any) -> str:
        bans, proxied, egress_restricted, networks, dockers, unmanaged, internal = known
        state = State(networks=networks, proxied=proxied, egress_restricted=egress_restricted, bans=bans)
        return text(state, internal, dockers, unmanaged, self._settings)


def text(
    state: State,
    internal: Iterable[BridgeNetwork],
    dockers: Collection[str],
    unmanaged: Collection[str],
    settings: Settings,
) -> str:
    """The file. `internal`: Docker networks that nobody enters or leaves; `dockers`, `foreign`: bridges by name."""
    named = frozenset(filter(INTERFACE_NAME.fullmatch, unmanaged))
    elements = shut(state, settings).union(*map(guarded_elements, internal))
    return boot_unit.nft_text(settings.mark, dockers, named, elements, state.bans)


def first_text(
    look: DockerSnapshot, bridges: tuple[Collection[str], Collection[str]], root: Path, settings: Settings
) -> str:
    """The file as `fwctl boot install` writes it, by what Docker lists and by what a docker-fw that runs says."""
    known = evaluated(settings.defaults, look.facts()).state
    told = _asked(root, "/bans").get("bans", [])
    state = dataclasses.replace(known, bans={ip_network(each["address"]): each["until"] or 0 for each in told})
    return text(state, [network for network in look.networks if network.internal], *bridges, settings)


def why_not_kept(root: Path, clock: Callable[[], float] = time.monotonic) -> str:
    """Why no docker-fw keeps the file that was just written; "" if one does. Takes some seconds."""
    end = clock() + 3 * EVERY
    while True:
        told = _asked(root, "/status")
        word = str(told.get("boot", ""))
        if word == KEPT:
            return ""
        if clock() > end or not told:
            break
        time.sleep(EVERY / 4)
    return word or (
        "docker-fw does not see /etc/docker-fw (compose-examples/sidecar.yml mounts it)"
        if told
        else "no docker-fw runs here that answers"
    )


def _asked(root: Path, url: str) -> dict[str, Any]:
    """What the docker-fw that runs on this host says; nothing if none does."""
    for path in sorted((root / "run/docker/plugins").glob("**/fw.sock")):
        with contextlib.suppress(OSError, ValueError, FwError):
            return ask(str(path), url)
    return {}


def _removed(directory: Path) -> bool:
    """True if what is mounted here was removed on the host, by hand."""
    try:
        return directory.stat().st_nlink == 0
    except FileNotFoundError:  # the managed plugin, which starts before other containers and needs no boot table
        return False


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """A blocklist is long, and seldom another one."""
    return all(a is b or a == b for a, b in zip(one, other, strict=True))


def _mark(path: Path) -> _Mark | None:
    """None: there is no such file."""
    try:
        of = path.lstat()
    except FileNotFoundError:
        return None
    return of.st_ino, of.st_mtime_ns, of.st_size
