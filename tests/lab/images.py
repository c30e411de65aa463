"""Make images without a registry: busybox, and images of Debian packages."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .roots import debootstrap, mirror
from .store import LabError, cached, digest

_CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
#: As in Debian's official images: apt leaves no packages and no caches of its lists (90 MB) behind.
_APT_CONF = "/etc/apt/apt.conf.d/docker-clean"
_APT_CLEAN = """\
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };
APT::Update::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
"""


@dataclass(frozen=True)
class Rootfs:
    """An image as a root file system; `Daemon.load` makes it an image called `name`."""

    tar: Path
    name: str
    #: lines of a Dockerfile, such as ``CMD ["nginx", "-g", "daemon off;"]``
    changes: tuple[str, ...] = ()


def rootfs_image(
    name: str,
    packages: tuple[str, ...],
    files: Mapping[str, str | bytes] | None = None,
    changes: tuple[str, ...] = (),
    suite: str = "trixie",
) -> Rootfs:
    """Return an image of Debian packages, such as ``rootfs_image("nginx", ("nginx-light",), changes=(…))``.

    `files` (path → content, mode 0644) are added on top. The first call takes about 25 s; cached
    by its contents.
    """
    laid = {path: text.encode() if isinstance(text, str) else text for path, text in (files or {}).items()}
    stamp = digest(suite, sorted(packages), sorted(laid.items()), mirror())
    title = f"the image {name} ({', '.join(packages)}; about 25 s, once)"
    stem = name.replace("/", "-").replace(":", "-")

    def make(path: Path) -> None:
        with tempfile.TemporaryDirectory() as overlay:
            for inside, content in laid.items():
                there = Path(overlay) / inside.lstrip("/")
                there.parent.mkdir(parents=True, exist_ok=True)
                there.write_bytes(content)
            debootstrap(suite, packages, path, overlay=Path(overlay))

    return Rootfs(cached("images", f"{stem}-{stamp}.tar", title, make), name, changes)


def debian_base(name: str = "debian:trixie-slim") -> Rootfs:
    """Return a substitute for Debian's official base image, with this machine's trusted certificates."""
    trusted = _CA_BUNDLE.read_bytes() if _CA_BUNDLE.exists() else None
    files: dict[str, str | bytes] = {_APT_CONF: _APT_CLEAN}
    if trusted:
        files[str(_CA_BUNDLE)] = trusted
    suite = name.partition(":")[2].removesuffix("-slim")
    return rootfs_image(name, ("ca-certificates",), files, ('CMD ["bash"]',), suite)


def busybox() -> Rootfs:
    """Return the image ``busybox``: this machine's static one with all its applets (about 2 MB)."""
    binary = Path(shutil.which("busybox") or "/bin/busybox").resolve()
    if not binary.exists():
        raise LabError("busybox is missing: apt install busybox-static")
    stat = binary.stat()
    name = f"busybox-{digest(str(binary), stat.st_size, stat.st_mtime_ns)}.tar"
    tar = cached("images", name, "the busybox image", lambda path: _make_busybox(binary, path))
    return Rootfs(tar, "busybox:latest", ('CMD ["sh"]',))


def _add(tar: tarfile.TarFile, path: str, content: bytes) -> None:
    entry = tarfile.TarInfo(path.lstrip("/"))
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _make_busybox(binary: Path, target: Path) -> None:
    listed = subprocess.run([str(binary), "--list"], capture_output=True, text=True, check=True, timeout=60)
    with tarfile.open(target, "w") as tar:
        for directory in ("bin", "etc", "root", "tmp", "var", "var/www"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if directory == "tmp" else 0o755
            tar.addfile(entry)
        for name, text in (("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"), ("etc/group", "root:x:0:\n")):
            _add(tar, name, text.encode())
        entry = tarfile.TarInfo("bin/busybox")
        entry.size, entry.mode = binary.stat().st_size, 0o755
        with open(binary, "rb") as source:
            tar.addfile(entry, source)
        for applet in listed.stdout.split():
            if applet != "busybox":
                entry = tarfile.TarInfo(f"bin/{applet}")
                entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, "busybox", 0o777
                tar.addfile(entry)
