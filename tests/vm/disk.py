"""Make the disks of machines: a Debian with systemd, Docker and a kernel, cached by its recipe."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.lab.roots import debootstrap, mirror
from tests.lab.store import LabError, cache, cached, call, digest, locked
from tests.vm import initrd
from tests.vm.systems import SYSTEMS

GUEST = Path(__file__).parent / "guest"
#: What a small server has. The guest agent runs programs for the tests; python3-minimal runs the tests' servers.
_PACKAGES = (
    "systemd",
    "systemd-sysv",
    "udev",
    "dbus",
    "kmod",
    "procps",
    "iproute2",
    "iptables",
    "nftables",
    "ca-certificates",
    "make",
    "qemu-guest-agent",
    "python3-minimal",
)
#: Units that only cost emulated time, or that start at a time of their own amid a test.
_MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "logrotate.timer",
    "man-db.timer",
    "systemd-tmpfiles-clean.timer",
    "systemd-timesyncd.service",
    "systemd-pstore.service",
    "systemd-networkd-wait-online.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
    "getty-static.service",
    "console-getty.service",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
)
_FILES = {
    "etc/hostname": "machine\n",
    "etc/hosts": "127.0.0.1 localhost machine\n::1 localhost ip6-localhost\n",
    "etc/fstab": "/dev/vda / ext4 defaults 0 0\n",
    "etc/resolv.conf": "nameserver 203.0.113.7\n",
    "etc/machine-id": "5b1f0c0e5a0b4d0f9a51d0a4a2b0c3de\n",
    "etc/systemd/journald.conf.d/lab.conf": "[Journal]\nStorage=persistent\nSystemMaxUse=64M\nRateLimitIntervalSec=0\n",
    # Programs under emulation are slow; a unit that would start on a real machine must start here too.
    "etc/systemd/system.conf.d/lab.conf": "[Manager]\nDefaultTimeoutStartSec=600\nDefaultTimeoutStopSec=60\n",
    "etc/systemd/network/lab.network": "[Match]\nName=eth0\n[Link]\nRequiredForOnline=no\n",
}
_ENABLED = {
    "multi-user.target.wants": ("systemd-networkd.service",),
    "sysinit.target.wants": ("lab-address.service",),
}
#: The file system has no feature that the oldest kernel does not know.
_EXT4 = ("-q", "-t", "ext4", "-O", "^orphan_file,^metadata_csum_seed", "-E", "root_owner=0:0")
_SIZE = "6G"


@dataclass(frozen=True)
class Disk:
    """A disk in the cache, never changed after it was made, and the kernel that boots it."""

    directory: Path

    @property
    def name(self) -> str:
        """Return its name, which changes with its recipe."""
        return self.directory.name

    @property
    def image(self) -> Path:
        """Return the raw disk."""
        return self.directory / "disk.raw"

    @property
    def kernel(self) -> Path:
        """Return the kernel."""
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """Return the initial RAM disk."""
        return self.directory / "initrd"

    def versions(self) -> dict[str, str]:
        """Return the versions of the packages that matter: kernel, docker, nftables, systemd."""
        return dict(json.loads((self.directory / "versions.json").read_text()))


def recipe(system: str, extra: tuple[str, ...] = ()) -> tuple[str, tuple[str, ...], Path]:
    """Return what `disk` makes: its name in the cache, its packages, and its path, which may not exist yet."""
    if system not in SYSTEMS:
        raise LabError(f"no system {system}; there are {', '.join(SYSTEMS)}")
    entry = SYSTEMS[system]
    packages = (*_PACKAGES, entry.kernel, *entry.docker, *extra)
    guest = [(path.name, path.read_text()) for path in sorted(GUEST.iterdir()) if path.is_file()]
    parts = (packages, _MASKED, _FILES, _ENABLED, _EXT4, _SIZE, guest, initrd.MODULES, initrd.INIT)
    name = f"{system}-{digest(*parts)}"
    return name, packages, cache() / "vm" / name


def disk(system: str, extra: tuple[str, ...] = ()) -> Disk:
    """Return the disk of a system, with `extra` Debian packages; the first call makes it (two minutes)."""
    name, packages, there = recipe(system, extra)
    if there.exists():
        return Disk(there)
    more = f" with {', '.join(extra)}" if extra else ""
    title = f"the disk of a machine{more} (Debian {system} from {mirror()}, about two minutes, once)"
    with locked("vm-disk"):  # one after the other: each needs all of a processor and some gigabytes of disk
        return Disk(cached("vm", name, title, lambda path: _make(system, packages, path)))


def _make(system: str, packages: tuple[str, ...], target: Path) -> None:
    root = target.parent / "root"
    debootstrap(SYSTEMS[system].suite, packages, root)
    target.mkdir()
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    shutil.copy(kernel, target / "vmlinuz")
    initrd.write(root, target / "initrd")
    for old in (*(root / "boot").glob("initrd*"), *(root / "boot").glob("System.map*")):
        old.unlink()
    _configure(root)
    (target / "versions.json").write_text(json.dumps(_versions(root)))
    call(["mke2fs", *_EXT4, "-d", str(root), str(target / "disk.raw"), _SIZE], timeout=1800)
    shutil.rmtree(root)


def _configure(root: Path) -> None:
    for path, text in _FILES.items():
        there = root / path
        there.parent.mkdir(parents=True, exist_ok=True)
        there.unlink(missing_ok=True)
        there.write_text(text)
    units = root / "etc/systemd/system"
    for unit in _MASKED:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    lab = root / "usr/local/lib/lab"
    lab.mkdir(parents=True)
    for source in GUEST.iterdir():
        if source.is_file():
            shutil.copy(source, units if source.suffix == ".service" else lab)
    for target, wanted in _ENABLED.items():
        (units / target).mkdir(exist_ok=True)
        for unit in wanted:
            where = "/etc" if (units / unit).exists() else "/lib"
            link = units / target / unit
            link.unlink(missing_ok=True)
            link.symlink_to(f"{where}/systemd/system/{unit}")


def _versions(root: Path) -> dict[str, str]:
    status = (root / "var/lib/dpkg/status").read_text()
    found = dict(re.findall(r"^Package: (\S+)\n(?:.+\n)*?Version: (\S+)", status, re.MULTILINE))
    wanted = {"docker": "docker.io", "nftables": "nftables", "systemd": "systemd", "iptables": "iptables"}
    (modules,) = (root / "lib/modules").iterdir()
    return {"kernel": modules.name, **{name: found[package] for name, package in wanted.items()}}
