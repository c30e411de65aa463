"""Directories of /var/lib/docker, copied from one engine to others: its images and its plugins.

`docker load` and `docker plugin create` take ten seconds of a processor each, a copy almost none. Only the data of a
dockerd that has ended may be copied, and only before the first start of the dockerd that gets it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from .store import LabError, call

#: Trees whose files dockerd and containers replace and remove, but never write to, by directory: the layers of images
#: (an overlay is mounted on them), and the files and archives of plugins. A copy has the same files, by hard links.
_LINKED = {"image": (), "overlay2": ("*/diff",), "plugins": ("*/rootfs", "storage/blobs")}
#: What an overlay works in while it is mounted: remains of it may be devices, and no layer needs them.
_EMPTIED = {"overlay2": ("*/work",)}
#: Written when a copy for the cache is complete: none of its files may be newer.
_MARK = "complete"


def keep(directories: Iterable[Path], target: Path) -> None:
    """Copy directories of /var/lib/docker to a new directory, from which `fill` copies them again."""
    target.mkdir()
    fill(target, directories)
    (target / _MARK).touch()


def fill(target: Path, directories: Iterable[Path]) -> None:
    """Copy directories that `keep` made into a new /var/lib/docker.

    Raises LabError if a file of them was written to meanwhile: all copies have it.
    """
    for directory in directories:
        mark = directory.parent / _MARK
        if mark.exists() and (written := call(["find", str(directory), "-type", "f", "-newer", str(mark)])):
            raise LabError(f"files that engines share were written to, remove {directory.parent}:\n{written}")
        linked = {path for pattern in _LINKED[directory.name] for path in directory.glob(pattern)}
        emptied = {path for pattern in _EMPTIED.get(directory.name, ()) for path in directory.glob(pattern)}
        _copy(directory, target / directory.name, linked, emptied)


def _copy(source: Path, target: Path, linked: set[Path], emptied: set[Path]) -> None:
    if source in emptied:
        target.mkdir()
        shutil.copystat(source, target)
    elif source in linked:
        same = source.stat().st_dev == target.parent.stat().st_dev
        call(["cp", "-al" if same else "-a", str(source), str(target)])
    elif source.is_dir() and not source.is_symlink():
        target.mkdir()
        for each in source.iterdir():
            _copy(each, target / each.name, linked, emptied)
        shutil.copystat(source, target)
    else:
        shutil.copy2(source, target, follow_symlinks=False)
