"""Start plugins by a fork of a process that has loaded their modules: loading is most of what a start costs.

The fork is what `python -m gunicorn` is after its imports: it has the environment, the directory, the network namespace
and the log of its own that it is given, reads its settings from them, and runs gunicorn's master from its first line.

`python -m tests.kernel.preloaded FD` is that process. It has one thread, and reads requests from the socket FD until
its other end is closed.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.kernel.netns import inside

ROOT = Path(__file__).parents[2]
#: All that gunicorn and its worker load, but for `plugin.gunicorn_conf`, which reads the settings.
MODULES = (
    "gunicorn.app.wsgiapp",
    "gunicorn.workers.gthread",
    "plugin.daemon.early_table",
    "plugin.daemon.log_format",
    "plugin.daemon.plugin",
    "plugin.daemon.refuse_all",
)
_MOST = 1 << 16
_RESULT = struct.Struct("=i")


class Forked:
    """A program that was started so, with the part of `subprocess.Popen` that tests use."""

    def __init__(self, report: int) -> None:
        self._report = report
        self.pid: int = _RESULT.unpack(os.read(report, _RESULT.size))[0]
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return its status as `Popen` does, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Return its status as `Popen` does. Raises TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._report], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("gunicorn", timeout)
            self.returncode = os.waitstatus_to_exitcode(_RESULT.unpack(os.read(self._report, _RESULT.size))[0])
            os.close(self._report)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def start(netns: str, arguments: Sequence[str], environ: Mapping[str, str], log: int) -> Forked:
    """Start gunicorn with these arguments in the namespace of that file; `log` is its stdout and stderr."""
    report, writing = os.pipe()
    space = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        request = json.dumps({"arguments": list(arguments), "environ": dict(environ)}).encode()
        socket.send_fds(_process(), [request], [space, log, writing])
    finally:
        os.close(space)
        os.close(writing)
    return Forked(report)


@functools.cache
def _process() -> socket.socket:
    """Return the socket of this process's own, which the first call starts."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            cwd=ROOT,
            env={"PATH": os.environ.get("PATH", ""), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )

    def end() -> None:
        ours.close()
        process.wait(30)

    atexit.register(end)
    return ours


def main() -> None:
    """Serve requests."""
    for module in MODULES:
        importlib.import_module(module)
    requests = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel then forgets forks that have ended
    while True:
        data, fds, _, _ = socket.recv_fds(requests, _MOST, 3)
        if not data:
            return
        if os.fork() == 0:
            requests.close()
            _start(json.loads(data), *fds)
            return
        for fd in fds:
            os.close(fd)


def _start(request: dict[str, Any], space: int, log: int, report: int) -> None:
    """Fork gunicorn, and report its number and its end. Returns when gunicorn's master has ended, in its process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid:
        os.close(space)
        os.close(log)
        with contextlib.suppress(BrokenPipeError):  # the test does not wait for its end
            os.write(report, _RESULT.pack(pid))
            os.write(report, _RESULT.pack(os.waitpid(pid, 0)[1]))
        os._exit(0)
    os.close(report)
    for fd in (1, 2):
        os.dup2(log, fd)
    os.close(log)
    os.environ.clear()
    os.environ.update(request["environ"])
    sys.argv[:] = ["gunicorn", *request["arguments"]]
    from gunicorn.app.wsgiapp import run

    with inside(f"/proc/self/fd/{space}"):
        os.close(space)
        run(prog="gunicorn")


if __name__ == "__main__":
    main()
