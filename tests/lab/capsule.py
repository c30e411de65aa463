"""A root file system with its own processes, mounts, name and cgroups, like a small VM.

A capsule does not make its network namespace: `Host` gives it one of its own.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from . import cgroups, claims, init
from .netns import Netns, finish
from .store import LabError, call

#: directories on a plain directory instead of the overlay: Docker's overlay2 cannot sit on one
PLAIN = ("/var/lib/docker", "/var/lib/docker-fw")
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
_CA_BUNDLE = "etc/ssl/certs/ca-certificates.crt"


class Capsule:
    """A small machine, see the module. `disk` survives `halt` and a new `boot`; `close` removes everything.

    `share` is a directory of this machine that is ``/lab`` inside. ``/run`` and ``/tmp`` are empty
    at each boot. If the process that made the capsule dies for any reason, everything in the
    capsule dies at once, and the next lab's sweep removes its files.
    """

    def __init__(
        self, root: Path, *, netns: Netns | None = None, kind: str = "c", binds: Mapping[str, Path] | None = None
    ) -> None:
        """`root` is read only; `netns` None means this machine's own network; `binds` (path inside →
        directory of this machine) adds to `PLAIN`, or replaces one of them."""
        self.root = root
        self._net = netns
        self._claim = claims.Claim(kind)
        self.name = self._claim.name
        self._boots = 0
        self._init: subprocess.Popen[bytes] | None = None
        self._lifeline: IO[bytes] | None = None
        self._init_pid = 0
        self._cgroups = cgroups.Cgroups()
        top = self._claim.directory
        self._scratch_if_overlay(top)
        self.share, self.disk = top / "share", top / "disk"
        for path in (self.share, self.disk, top / "merged"):
            path.mkdir()
        self._binds = {"/lab": self.share}
        for inside in PLAIN:
            self._binds[inside] = top / "plain" / inside.strip("/").replace("/", "-")
            self._binds[inside].mkdir(parents=True, mode=0o710)
        self._binds |= binds or {}
        modules = Path("/lib/modules")
        if modules.is_dir():
            self._binds["/usr/lib/modules"] = modules.resolve()
        self._write_etc()

    def __enter__(self) -> Capsule:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def init_pid(self) -> int:
        """Return PID 1 of the capsule, as this machine numbers it; LabError if it is not running."""
        if not self._init_pid:
            raise LabError(f"{self.name} is not running: boot() it first")
        return self._init_pid

    @property
    def running(self) -> bool:
        """Return True if it is booted."""
        return bool(self._init_pid)

    @property
    def inside(self) -> Path:
        """Return the capsule's root directory as seen from this machine; this works for sockets too.

        Beware of absolute symbolic links (``/var/run``): the kernel follows them on this machine.
        """
        return Path(f"/proc/{self.init_pid}/root")

    def plain(self, inside: str) -> Path:
        """Return the directory of this machine that is at a path of `PLAIN` inside, also before `boot`."""
        return self._binds[inside]

    def boot(self) -> None:
        """Start PID 1: namespaces, mounts, empty /run and /tmp. Takes about 50 ms."""
        if self._init_pid:
            raise LabError(f"{self.name} is running already")
        self._boots += 1
        self._cgroups = cgroups.make(f"{self.name}b{self._boots}")
        self._claim.record.cgroups = self._cgroups.cgroups
        self._claim.save()
        top = self._claim.directory
        spec: init.Spec = {
            "hostname": self.name,
            "netns": self._net.path if self._net else None,
            "lower": str(self.root),
            "upper": str(self.disk),
            "work": str(top / "work"),
            "merged": str(top / "merged"),
            "binds": [(str(a), b) for b, a in self._binds.items()],
            **asdict(self._cgroups),  # type: ignore[typeddict-item]
        }
        (top / "work").mkdir(exist_ok=True)
        self._init = subprocess.Popen(
            [sys.executable, "-I", "-S", init.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        lifeline, output, errors = self._init.stdin, self._init.stdout, self._init.stderr
        assert lifeline is not None
        assert output is not None
        assert errors is not None
        lifeline.write(json.dumps(spec).encode() + b"\n")
        lifeline.flush()
        reply = output.readline().decode().split()
        if reply[:1] != ["ok"]:
            trouble = " ".join(reply) or errors.read().decode()
            self._init.wait(30)
            raise LabError(f"{self.name} does not boot: {trouble}")
        output.close()
        errors.close()
        self._lifeline = lifeline
        self._init_pid = int(reply[1])
        self._claim.add_pid(self._init_pid)

    def halt(self) -> None:
        """Halt it like a power failure: when this returns no process is left, and no mount."""
        if self._init is None or not self._init_pid:
            return
        claims.kill(self._init_pid)
        self._init.wait(30)
        if self._lifeline:
            self._lifeline.close()
        self._init_pid = 0
        self._claim.record.pids.clear()
        cgroups.remove(self._cgroups.cgroups)

    def close(self) -> None:
        """Halt it and remove everything, including the disk."""
        self.halt()
        self._claim.release()

    def command(self, argv: Sequence[str], env: Mapping[str, str] | None = None, cwd: str = "/") -> list[str]:
        """Return the command that runs `argv` inside, for callers that start processes themselves."""
        joins = "; ".join(f"echo 0 >{shlex.quote(path)}/cgroup.procs" for path in self._cgroups.joins)
        variables = [f"{key}={value}" for key, value in (_ENVIRONMENT | dict(env or {})).items()]
        enter = [
            "nsenter",
            f"--target={self.init_pid}",
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--cgroup",
            "env",
            "-i",
            f"--chdir={cwd}",
            *variables,
            *argv,
        ]
        return ["sh", "-ec", f'{joins}; exec "$@"', "enter", *enter]

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        input: str | None = None,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside and wait; LabError with its output if it fails and `check` is true."""
        return finish(self.command(argv, env), check=check, input=input, timeout=timeout, shown=argv)

    def popen(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **more: Any) -> Process:
        """Start a program inside (keywords as of `subprocess.Popen`)."""
        return Process(subprocess.Popen(self.command(argv, env), **more))

    def write(self, path: str, text: str) -> None:
        """Write a file inside, making its directory; before `boot`, only on the disk (not /run, /tmp, …)."""
        if self._init_pid:  # by a program inside: its links have other targets than this machine's
            self.run(["sh", "-ec", 'mkdir -p "$(dirname "$1")"; cat >"$1"', "write", path], input=text)
            return
        target = self.disk / path.lstrip("/")
        if target.resolve() != self.disk.resolve() / path.lstrip("/"):
            raise LabError(f"{path} leads through a link; write it while {self.name} is running")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def put(self, source: Path) -> str:
        """Copy a file or directory into the share (replacing it there); return its path inside."""
        target = self.share / source.name
        call(["rm", "-rf", str(target)])
        call(["cp", "-a", "--reflink=auto", str(source), str(target)])
        return f"/lab/{source.name}"

    def _write_etc(self) -> None:
        self.write("/etc/hostname", f"{self.name}\n")
        self.write("/etc/hosts", f"127.0.0.1 localhost {self.name}\n::1 localhost ip6-localhost\n")
        bundle = Path("/") / _CA_BUNDLE
        if bundle.exists():  # programs inside trust the same certificates as this machine
            (self.disk / _CA_BUNDLE).parent.mkdir(parents=True)
            shutil.copy(bundle, self.disk / _CA_BUNDLE)

    def _scratch_if_overlay(self, top: Path) -> None:
        """Put the disks in memory where this machine's own root is an overlay (a container).

        An overlay's upper directory cannot be on another overlay.
        """
        if call(["stat", "-f", "-c", "%T", str(top)]).strip() == "overlayfs":
            self._claim.record.mounts.append(str(top))
            self._claim.save()
            call(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(top)])
            self._claim.save()


class Process:
    """A program running in a capsule."""

    def __init__(self, outer: subprocess.Popen[Any]) -> None:
        self.outer = outer  # `nsenter`, which waits for the program and ends as it does

    @property
    def pid(self) -> int:
        """Return the program's pid, as this machine numbers it; 0 if it has ended or not started."""
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[1]) == self.outer.pid and fields[0] != "Z":
                    return int(entry)
        return 0

    def signal(self, number: int) -> None:
        """Send a signal to the program itself."""
        pid = self.pid
        if pid:
            os.kill(pid, number)

    def wait(self, timeout: float = 30) -> int:
        """Wait for its end and return the exit status. LabError if it takes longer than `timeout` seconds."""
        try:
            return self.outer.wait(timeout)
        except subprocess.TimeoutExpired as late:
            raise LabError(f"process {self.pid} has not ended after {timeout:g} s") from late

    @property
    def status(self) -> int | None:
        """Return its exit status, or None while it runs."""
        return self.outer.poll()
