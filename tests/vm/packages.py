"""Debian packages for a running machine: fetched by this machine's apt, installed by the machine's own."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.lab.roots import keyrings, mirror
from tests.lab.store import cached, call, digest
from tests.vm.machine import Machine

_INSTALL = 'export DEBIAN_FRONTEND=noninteractive; apt-get install -y --no-install-recommends "$1"/*.deb'


def fetched(vm: Machine, suite: str, packages: Sequence[str]) -> Path:
    """Return a directory of the cache with the .deb files of these packages, and all that they need there.

    What is needed follows from the packages that the machine has. LabError if the suite cannot satisfy them.
    """
    status = vm.read("/var/lib/dpkg/status")
    name = f"{suite}-{digest(suite, tuple(packages), status)}"

    def fetch(target: Path) -> None:
        target.mkdir()
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            _download(Path(scratch), suite, packages, status)
            for package in Path(scratch, "archives").glob("*.deb"):
                package.rename(target / package.name)

    return cached("vm-packages", name, f"packages of Debian {suite}: {', '.join(packages)}", fetch)


def _download(scratch: Path, suite: str, packages: Sequence[str], status: str) -> None:
    for name in ("lists/partial", "archives/partial", "keys"):
        (scratch / name).mkdir(parents=True)
    (scratch / "status").write_text(status)
    for number, keyring in enumerate(keyrings()):
        (scratch / f"keys/{number}.gpg").symlink_to(keyring)
    (scratch / "sources.list").write_text(f"deb {mirror()} {suite} main\n")
    options = {
        "Dir::State": scratch,
        "Dir::State::lists": scratch / "lists",
        "Dir::State::status": scratch / "status",
        "Dir::Cache": scratch,
        "Dir::Cache::archives": scratch / "archives",
        "Dir::Etc::sourcelist": scratch / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::Etc::preferencesparts": "-",
        "Dir::Etc::trusted": "/dev/null",
        "Dir::Etc::trustedparts": scratch / "keys",
        "APT::Architecture": "amd64",
        "APT::Sandbox::User": "root",
        "APT::Install-Recommends": "false",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Debug::NoLocking": "true",
    }
    apt = ["apt-get", "-qq", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    call([*apt, "update"], env=environment)
    call([*apt, "install", "--download-only", "-y", *packages], env=environment, timeout=600)


def install(vm: Machine, suite: str, packages: Sequence[str], timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """Install packages of a suite in the machine, and upgrade what they need there, as `apt install` does."""
    there = vm.put(fetched(vm, suite, packages))
    return vm.run(["sh", "-ec", _INSTALL, "install", there], timeout=timeout)
