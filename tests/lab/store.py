"""Keep the lab's cache (roots, images) and locks, and print progress lines.

Everything is outside the repository, below ``$FW_LAB_CACHE`` (default
``/var/cache/docker-fw-lab``). Things in the cache are named after a hash of their recipe, so a
changed recipe makes a new one and two checkouts can share a cache.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

#: Where the cache is without ``$FW_LAB_CACHE``.
DEFAULT_CACHE = Path("/var/cache/docker-fw-lab")


class LabError(Exception):
    """The lab could not do something; the text is for a person."""


def cache() -> Path:
    """Return the cache's directory (made if needed)."""
    path = Path(os.environ.get("FW_LAB_CACHE", DEFAULT_CACHE))
    path.mkdir(parents=True, exist_ok=True)
    return path


def say(text: str) -> None:
    """Print one progress line on stderr."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


def digest(*parts: object) -> str:
    """Return a short stable hash of `parts` (their repr), for names in the cache."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


@contextlib.contextmanager
def locked(name: str, *, wait: bool = True) -> Iterator[None]:
    """Take the machine-wide lock `name`; wait while another process has it, or raise BlockingIOError."""
    locks = cache() / "locks"
    locks.mkdir(exist_ok=True)
    with open(locks / f"{name}.lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            say(f"waiting for another process that is at {name}…")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def cached(kind: str, name: str, title: str, make: Callable[[Path], None]) -> Path:
    """Return the cached file or directory ``<cache>/<kind>/<name>``, made by `make` if it does not exist.

    `make` gets a path to create in a temporary directory on the same file system; the result is
    renamed into place, so everything in the cache is always complete. `title` is shown while it runs.
    """
    target = cache() / kind / name
    if target.exists():
        return target
    with locked(f"{kind}-{name}"):
        if target.exists():  # the process we waited for made it
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        say(f"making {title}…")
        began = time.monotonic()
        _remove_half_made(target.parent)
        scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=target.parent))
        with open(scratch / "owned", "w") as owned:
            fcntl.flock(owned, fcntl.LOCK_EX)
            try:
                make(scratch / "it")
                (scratch / "it").rename(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        say(f"  done in {time.monotonic() - began:.0f} s: {target}")
    return target


def keep_newest(made: Path, pattern: str, number: int) -> None:
    """Mark this entry of the cache as used now, and remove others of its kind: the last used `number` stay.

    Other processes do the same at any time, so each of them may be gone already.
    """
    os.utime(made)
    used: list[tuple[float, Path]] = []
    for each in made.parent.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            used.append((each.stat().st_mtime, each))
    for _, old in sorted(used)[:-number]:
        if old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.unlink(missing_ok=True)


def _remove_half_made(directory: Path) -> None:
    """Remove what killed processes were making here: its owner would have it locked."""
    for scratch in directory.glob(".making-*"):
        with contextlib.suppress(OSError):
            if time.time() - scratch.stat().st_mtime < 60:
                continue  # perhaps its owner is about to lock it
            with open(scratch / "owned", "a") as owned:
                fcntl.flock(owned, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(scratch, ignore_errors=True)


def call(argv: list[str], *, timeout: float = 300, **more: object) -> str:
    """Run a program of this machine and return its stdout; LabError with its stderr if it fails or takes too long."""
    try:
        done = subprocess.run(  # type: ignore[call-overload]
            argv, check=False, text=True, capture_output=True, timeout=timeout, **more
        )
    except subprocess.TimeoutExpired as late:
        raise LabError(f"{' '.join(argv[:6])} …: not done after {timeout:g} s") from late
    if done.returncode:
        raise LabError(f"{' '.join(argv[:6])} … failed ({done.returncode}):\n{done.stderr[-3000:]}")
    return str(done.stdout)
