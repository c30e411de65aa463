"""Run as PID 1 of a capsule: enter its namespaces, make its mounts, pivot, then reap and wait.

This is a script of its own (``python3 -I -S init.py``), so it imports nothing of the lab. The first
line of its stdin is JSON, see `Spec`. It prints one line on stdout, ``ok PID`` or an error, and ends
when its stdin ends, which happens whenever the process that started it dies.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from typing import TypedDict


class Spec(TypedDict):
    """The parts of a capsule; all paths are the starter's."""

    hostname: str
    netns: str | None  # None: stay in the starter's network namespace
    lower: str  # the root, never written to
    upper: str
    work: str
    merged: str  # an empty directory to mount on
    binds: list[tuple[str, str]]  # (source, path inside)
    cgroups: list[str]  # directories to join: they become the capsule's cgroup roots
    leaf: list[str]  # directories to move on to once the cgroup namespace is made
    cgroup_mounts: list[tuple[str, str, str]]  # (file system type, options, path inside)


NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWPID, NEWNET = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x20000000, 0x40000000)
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE, MS_SHARED = (2, 4, 8, 4096, 16384, 1 << 18, 1 << 20)
MNT_DETACH = 2
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    """Raise OSError if a call of the C library failed."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Call mount(2); create the target directory if it does not exist."""
    if not os.path.lexists(target):
        os.makedirs(target)
    check(
        libc.mount(
            source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), options.encode() or None
        ),
        f"mount {kind or source} on {target}",
    )


def setns(path: str, kind: int) -> None:
    """Call setns(2) for a path such as /run/netns/NAME."""
    with open(path) as handle:
        check(libc.setns(handle.fileno(), kind), f"setns {path}")


def join(cgroups: list[str]) -> None:
    """Move this process to each of the cgroup directories."""
    for path in cgroups:
        with open(f"{path}/cgroup.procs", "w") as procs:
            procs.write("0")


def delegate(directory: str) -> None:
    """Enable all controllers of a v2 group for its children, as far as the kernel permits it."""
    with open(f"{directory}/cgroup.controllers") as controllers:
        for name in controllers.read().split():
            try:
                with open(f"{directory}/cgroup.subtree_control", "w") as control:
                    control.write(f"+{name}")
            except OSError:
                pass


def make_mounts(spec: Spec) -> None:
    """Mount the capsule's file system at spec["merged"], in this (private) mount namespace."""
    top = spec["merged"]
    ours = os.open("/", os.O_PATH | os.O_DIRECTORY)
    to_real_root()
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    os.fchdir(ours)
    os.close(ours)
    os.chroot(".")  # the paths in `spec` are the starter's
    mount(
        "overlay", top, "overlay", options=f"lowerdir={spec['lower']},upperdir={spec['upper']},workdir={spec['work']}"
    )
    mount("proc", f"{top}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    # A fresh sysfs belongs to this network namespace: /sys/class/net shows the capsule's own links.
    mount("sysfs", f"{top}/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    if not any(path == "/sys/fs/cgroup" for _, _, path in spec["cgroup_mounts"]):
        mount("tmpfs", f"{top}/sys/fs/cgroup", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=755")
    for kind, options, path in spec["cgroup_mounts"]:
        mount("cgroup", top + path, kind, MS_NOSUID | MS_NODEV | MS_NOEXEC, options)
    mount("/dev", f"{top}/dev", flags=MS_BIND)
    mount("devpts", f"{top}/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5")
    for path, mode in (("/dev/shm", "1777"), ("/run", "755"), ("/tmp", "1777")):
        mount("tmpfs", top + path, "tmpfs", MS_NOSUID | MS_NODEV, f"mode={mode}")
    os.makedirs(f"{top}/run/lock", exist_ok=True)
    for source, path in spec["binds"]:
        mount(source, top + path, flags=MS_BIND)


def to_real_root() -> None:
    """Make the mount namespace's root this process's root.

    It is already, unless the starter is in a chroot. There "/" is no mount point, and mount and
    pivot_root refuse it. Entering its own mount namespace resets a process's root.
    """
    setns("/proc/self/ns/mnt", NEWNS)


def pivot(top: str) -> None:
    """Make `top` the root and unmount everything else."""
    there = os.open(top, os.O_PATH | os.O_DIRECTORY)
    to_real_root()
    os.fchdir(there)
    os.close(there)
    check(libc.syscall(SYS_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    check(libc.umount2(b".", MNT_DETACH), "umount of the old root")
    os.chdir("/")
    mount("none", "/", flags=MS_REC | MS_SHARED)  # as systemd has it; Docker's propagation options need it


def be_init(spec: Spec) -> None:
    """Do the work of PID 1 until the lifeline ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans are reaped by the kernel
    socket.sethostname(spec["hostname"])
    make_mounts(spec)
    pivot(spec["merged"])


def main() -> None:
    """Start PID 1 and stay as its parent, so that the starter can wait for its end."""
    spec: Spec = json.loads(sys.stdin.buffer.readline())
    join(spec["cgroups"])
    if spec["netns"]:
        setns(spec["netns"], NEWNET)
    check(libc.unshare(NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWPID), "unshare")
    join(spec["leaf"])
    for leaf in spec["leaf"]:  # only now: a v2 group that has processes cannot hand controllers down
        delegate(os.path.dirname(leaf))
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            be_init(spec)
        except OSError as error:
            os.write(writer, str(error).encode())
            os._exit(1)
        os.close(writer)
        os.close(1)
        os.read(0, 1)  # until the lifeline ends
        os._exit(0)
    os.close(writer)
    trouble = os.read(reader, 4096).decode()
    os.write(1, f"{trouble or f'ok {child}'}\n".encode())
    os.close(1)
    os.waitpid(child, 0)


if __name__ == "__main__":
    main()
