"""Make an initial RAM disk: busybox, and the modules that the kernel needs to mount its disk.

Debian's own would take a minute of emulated time to make, and seconds to boot.
"""

from __future__ import annotations

import lzma
import re
import shutil
from pathlib import Path

from tests.lab.store import LabError

#: Modules to load, with all that they need; a kernel may have some built in.
MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
INIT = """#!/bin/busybox sh
bb=/bin/busybox
$bb mkdir -p /proc /dev /disk
$bb mount -t proc proc /proc
$bb mount -t devtmpfs dev /dev
for module in /modules/*; do $bb insmod $module; done
until $bb mount -t ext4 /dev/vda /disk; do $bb sleep 0.1; done
$bb mount -o move /dev /disk/dev
$bb umount /proc
exec $bb switch_root /disk /sbin/init
"""


def write(root: Path, target: Path) -> None:
    """Write the RAM disk for the one kernel that is installed in `root`. LabError if it lacks a module."""
    (modules,) = (root / "lib/modules").iterdir()
    entries = [_entry(name, 0o040755, b"") for name in ("bin", "modules")]
    entries.append(_entry("init", 0o100755, INIT.encode()))
    entries.append(_entry("bin/busybox", 0o100755, _busybox().read_bytes()))
    for number, path in enumerate(needed(modules)):
        entries.append(_entry(f"modules/{number:02}-{path.name.removesuffix('.xz')}", 0o100644, _content(path)))
    entries.append(_entry("TRAILER!!!", 0, b""))
    target.write_bytes(b"".join(entries))


def needed(modules: Path) -> list[Path]:
    """Return the files of `MODULES` below a kernel's directory, each behind those that it needs."""
    depends: dict[str, tuple[str, list[str]]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        depends[_name(path)] = (path, others.split())
    builtin = {_name(line) for line in (modules / "modules.builtin").read_text().split()}
    found: list[Path] = []
    for name in MODULES:
        if name in builtin:
            continue
        if name not in depends:
            if name.startswith("crc32c"):  # no module of its own since Linux 6.16
                continue
            raise LabError(f"the kernel in {modules} has no {name}")
        file, needs = depends[name]
        found += [modules / each for each in (*reversed(needs), file)]
    return list(dict.fromkeys(found))


def _name(path: str) -> str:
    return re.sub(r"\.ko(\.\w+)?$", "", path.rpartition("/")[2]).replace("-", "_")


def _content(path: Path) -> bytes:
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix != ".ko":
        raise LabError(f"no program here unpacks {path.name}")
    return path.read_bytes()


def _busybox() -> Path:
    found = shutil.which("busybox")
    if not found:
        raise LabError("busybox is missing: apt install busybox-static")
    return Path(found).resolve()


def _entry(name: str, mode: int, content: bytes) -> bytes:
    """Return one file in the format that the kernel unpacks ("newc" of cpio)."""
    path = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)
