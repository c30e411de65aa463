"""Make root file systems: a Debian with a Docker engine in it, made by mmdebstrap and cached.

A root in the cache is never changed after it was made: a `Capsule` mounts an overlay on it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

from .store import LabError, cache, cached, call, digest, say

#: engine version → Debian suite that has it
ENGINES = {"20.10.24": "bookworm", "26.1.5": "trixie", "28.5.2": "forky"}
#: the engine to use where any will do
DEFAULT = "26.1.5"

_COMMON = ("docker.io", "nftables", "iptables", "iproute2", "procps", "kmod", "make", "ca-certificates")
_BY_SUITE: dict[str, tuple[str, ...]] = {
    "bookworm": (),  # its docker.io has the CLI; its docker-compose is the old Python one
    "trixie": ("docker-cli", "docker-compose", "docker-registry"),
    "forky": ("docker-cli", "docker-compose"),
}
#: Seconds: a mirror that does not answer must not take the whole time of a test.
DEBOOTSTRAP_TIMEOUT = 1500
#: Files no test reads; without them a root is smaller and quicker to make.
_LEAVE_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")


def mirror() -> str:
    """Return the Debian mirror to use (``$FW_LAB_MIRROR``)."""
    return os.environ.get("FW_LAB_MIRROR", "http://deb.debian.org/debian")


def engine_root(version: str = DEFAULT, extra: tuple[str, ...] = ()) -> Path:
    """Return the directory with the root of engine `version`; the first call makes it (about 45 s).

    `extra` names more Debian packages to have in it (say ``("ufw",)``); each set is a root of its
    own. If Debian has another engine version meanwhile, a message on stderr says so.
    """
    suite = ENGINES.get(version)
    if suite is None:
        raise LabError(f"no recipe for engine {version}; there are {', '.join(ENGINES)}")
    packages = (*_COMMON, *_BY_SUITE[suite])
    made = cached(
        "roots",
        f"docker-{version}-{digest(suite, packages, _LEAVE_OUT)}",
        f"the Docker {version} root (Debian {suite}, about 45 s, once)",
        lambda path: debootstrap(suite, packages, path),
    )
    if extra:
        plain = made
        made = cached(
            "roots",
            f"docker-{version}-{digest(plain.name, extra)}",
            f"the Docker {version} root with {', '.join(extra)} (about 15 s, once)",
            lambda path: debootstrap(suite, extra, path, upon=plain),
        )
    found = engine_version(made)
    if found != version:
        say(f"warning: Debian {suite} was expected to have Docker {version}, and has {found}")
    return made


def engine_version(root: Path) -> str:
    """Return the version of the Docker engine installed in `root`, such as ``26.1.5``."""
    status = (root / "var/lib/dpkg/status").read_text()
    match = re.search(r"^Package: docker\.io\n(?:.+\n)*?Version: (?:\d+:)?([\d.]+)", status, re.MULTILINE)
    if match is None:
        raise LabError(f"no docker.io is installed in {root}")
    return match.group(1)


def debootstrap(
    suite: str, packages: tuple[str, ...], target: Path, *, overlay: Path | None = None, upon: Path | None = None
) -> None:
    """Make a minimal Debian `suite` with `packages` at `target`: a directory, or with `overlay` a tar.

    The files below `overlay` are copied over it at the end. With `upon`, the packages are installed in a copy of that
    root.
    """
    if shutil.which("mmdebstrap") is None:
        raise LabError("mmdebstrap is missing: apt install mmdebstrap debian-archive-keyring")
    # Its mounts and processes end with it, also if it is killed: a half-made root with /proc mounted cannot be removed.
    argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"]
    argv += ["mmdebstrap", "--quiet", "--mode=root"]
    if upon:  # mmdebstrap makes the devices
        copy = f"tar -C {shlex.quote(str(upon))} --exclude=./dev/* -cf - ."
        argv += ["--variant=custom", f'--setup-hook={copy} | tar -C "$1" -xf -']
        install = "apt-get install --yes --quiet --no-install-recommends"
        argv += [f'--customize-hook=chroot "$1" {install} {shlex.join(packages)}']
    else:
        argv += ["--variant=minbase", f"--include={','.join(packages)}"]
    argv += [f"--format={'tar' if overlay else 'directory'}"]
    if overlay:  # files only, so that directories (and links to some, as /bin) stay as they are
        pack = f"cd {shlex.quote(str(overlay))} && find . -type f -print0 | tar --null -cf - -T -"
        argv += [f'--customize-hook=({pack}) | tar -C "$1" -xf - --keep-directory-symlink']
    argv += ['--customize-hook=rm -f "$1"/var/cache/apt/*.bin']  # 90 MB, which mmdebstrap leaves
    argv += ["--dpkgopt=force-unsafe-io"]  # no fsync per file: a half-made root is thrown away anyway
    argv += [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEAVE_OUT]
    argv += [f"--keyring={keyring}" for keyring in keyrings()]
    argv += ['--aptopt=Acquire::Check-Valid-Until "false"', '--aptopt=Acquire::Retries "3"']
    proxy = call(["apt-config", "shell", "P", "Acquire::http::Proxy"]).strip()
    if proxy:  # mmdebstrap does not read the machine's apt configuration
        argv += [f"--aptopt=Acquire::http::Proxy {_unquote(proxy)};"]
    argv += [suite, str(target), f"deb {mirror()} {suite} main"]
    call(argv, env={**os.environ, "LC_ALL": "C.UTF-8"}, timeout=DEBOOTSTRAP_TIMEOUT)


def keyrings() -> list[Path]:
    """Return the files with Debian's keys: this machine's, and those in roots already made, which may be newer."""
    inside = "usr/share/keyrings/debian-archive-keyring.gpg"
    found = [Path("/") / inside, *sorted(cache().glob(f"roots/*/{inside}"))]
    found = [path for path in found if path.exists()]
    if not found:
        raise LabError("Debian's keys are missing: apt install debian-archive-keyring")
    return found


def _unquote(shell: str) -> str:
    """``P='http://…'`` → ``"http://…"``"""
    return '"' + shell.partition("=")[2].strip("'\"") + '"'
