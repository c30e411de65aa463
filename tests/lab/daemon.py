"""dockerd in a capsule, with its CLI, its API and its log."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .capsule import Capsule, Process
from .images import Rootfs, busybox
from .store import LabError

#: What systemd does before it starts dockerd: a control group of its own for it and what it starts.
SERVICE = (
    "sh",
    "-ec",
    """
for top in /sys/fs/cgroup /sys/fs/cgroup/unified; do
    if [ -e $top/cgroup.controllers ]; then
        mkdir -p $top/system.slice/docker.service
        echo $$ >$top/system.slice/docker.service/cgroup.procs
    fi
done
exec "$@"
""",
    "docker.service",
)


class DockerError(LabError):
    """A docker command or API call failed; the text has Docker's message."""


class Daemon:
    """A dockerd that can be started and ended, in a capsule that the caller owns."""

    def __init__(
        self, capsule: Capsule, args: Sequence[str] = (), *, live_restore: bool = False, with_busybox: bool = True
    ) -> None:
        """`args` are more arguments for dockerd; with live-restore its containers outlive it."""
        self.capsule, self.args = capsule, list(args)
        self.live_restore = live_restore
        self._wants_busybox = with_busybox
        self._process: Process | None = None

    @property
    def log(self) -> Path:
        """Return dockerd's log, of all its starts."""
        return self.capsule.share / "dockerd.log"

    @property
    def socket(self) -> Path:
        """Return the API's socket, ``/run/docker.sock`` inside, as seen from this machine."""
        return self.capsule.inside / "run/docker.sock"

    @property
    def pid(self) -> int:
        """Return dockerd's pid as this machine numbers it; 0 if it does not run."""
        return self._process.pid if self._process and self._process.status is None else 0

    def start(self, args: Sequence[str] | None = None, *, wait: bool = True) -> None:
        """Start dockerd (the host must be running), with new `args` if given, and wait until it is ready.

        With ``wait=False`` returns at once; see `ready`.
        """
        if self._process and self._process.status is None:
            raise LabError("dockerd is running already")
        if args is not None:
            self.args = list(args)
        argv = [*SERVICE, "dockerd", *(["--live-restore"] if self.live_restore else []), *self.args]
        with open(self.log, "ab") as log:
            log.write(f"--- {' '.join(argv)}\n".encode())
            self._process = self.capsule.popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        if wait:
            self.ready()

    def ready(self, timeout: float = 60) -> None:
        """Wait until the API answers; LabError with the log's end if dockerd ends or takes too long."""
        end = time.monotonic() + timeout
        while True:
            if self._process is None or self._process.status is not None:
                raise LabError(f"dockerd has ended:\n{self.log_tail()}")
            try:
                self.api("GET", "/_ping", timeout=5)
                break
            except (OSError, DockerError) as error:
                if time.monotonic() > end:
                    raise LabError(f"dockerd is not ready after {timeout:g} s ({error}):\n{self.log_tail()}") from error
                time.sleep(0.02)
        if self._wants_busybox:
            self._wants_busybox = False  # it is kept on the disk
            self.load(busybox())

    def log_tail(self, lines: int = 25) -> str:
        """Return the last lines of dockerd's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self, timeout: float = 60) -> None:
        """End dockerd in an orderly way (SIGTERM); containers end, too, unless it has live-restore."""
        self._end(signal.SIGTERM, timeout)

    def kill(self) -> None:
        """Send SIGKILL to dockerd only: containers, their shims and containerd still run."""
        self._end(signal.SIGKILL, 10)

    def restart(self, args: Sequence[str] | None = None) -> None:
        """Stop and start."""
        self.stop()
        self.start(args)

    def forget(self) -> None:
        """Note that the capsule was halted, and dockerd with it."""
        if self._process:
            self._process.wait(30)
            self._process = None

    def _end(self, number: int, timeout: float) -> None:
        if self._process and self._process.status is None:
            self._process.signal(number)
            self._process.wait(timeout)
        self._process = None

    # ── commands and API calls ──

    def docker(self, *args: str, input: str | None = None, timeout: float = 120) -> str:
        """Run the docker CLI inside; return its stdout without the last newline. DockerError if it fails."""
        done = self.try_docker(*args, input=input, timeout=timeout)
        if done.returncode:
            output = f"{done.stdout}{done.stderr}"
            raise DockerError(f"docker {' '.join(args)}: status {done.returncode}\n{output}")
        return done.stdout.rstrip("\n")

    def try_docker(
        self, *args: str, input: str | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run the docker CLI inside; the caller checks returncode, stdout and stderr."""
        return self.capsule.run(["docker", *args], check=False, input=input, timeout=timeout)

    def api(self, method: str, path: str, body: object = None, *, timeout: float = 30) -> Any:
        """Call the API, such as ``api("GET", "/containers/json?all=1")``; return the decoded JSON, or None.

        DockerError if the status is 400 or above; OSError if no process answers.
        """
        connection = _UnixConnection(str(self.socket), timeout)
        try:
            headers = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            reply = connection.getresponse()
            raw = reply.read()
        except http.client.HTTPException as error:
            raise OSError(f"{method} {path}: {error!r}") from error
        finally:
            connection.close()
        if reply.status >= 400:
            raise DockerError(f"{method} {path}: {reply.status} {raw.decode(errors='replace').strip()}")
        if "json" not in reply.headers.get("Content-Type", ""):
            return None
        return json.loads(raw) if raw.strip() else None

    # ── images ──

    def load(self, image: Path | Rootfs) -> None:
        """Load an image: a tar that `docker save` wrote, or a root file system (`docker import`)."""
        tar = image.tar if isinstance(image, Rootfs) else image
        with self._visible(tar) as inside:
            if isinstance(image, Rootfs):
                changes = [word for line in image.changes for word in ("--change", line)]
                self.docker("import", *changes, inside, image.name, timeout=300)
            else:
                self.docker("load", "--quiet", "--input", inside, timeout=300)

    @contextlib.contextmanager
    def _visible(self, path: Path) -> Iterator[str]:
        """Make a file visible inside for a while, by a hard link (or a copy) in the share."""
        there = self.capsule.share / f"{time.monotonic_ns()}-{path.name}"
        try:
            os.link(path, there)
        except OSError:
            shutil.copy(path, there)
        try:
            yield f"/lab/{there.name}"
        finally:
            there.unlink(missing_ok=True)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("docker", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the path."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
