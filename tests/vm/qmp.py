"""Talk to QEMU and to the guest agent: both read and write JSON, one message in a line, over a Unix socket."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.lab.store import LabError

#: Environment of programs that run in a machine.
_ENVIRONMENT = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8")


class Lines:
    """A connection that sends and receives JSON values, one in a line."""

    def __init__(self, path: Path) -> None:
        """Connect. OSError if nothing listens."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(path))
        self._received = b""

    def send(self, value: object, before: bytes = b"") -> None:
        """Send a value. LabError if the other side has ended."""
        try:
            self._socket.sendall(before + json.dumps(value).encode() + b"\n")
        except OSError as error:
            raise LabError(f"the machine has ended ({error})") from error

    def receive(self, end: float) -> Any:
        """Return the next value, or None if none has arrived at the time `end` (of `time.monotonic`)."""
        while b"\n" not in self._received:
            left = end - time.monotonic()
            if left <= 0:
                return None
            self._socket.settimeout(left)
            try:
                received = self._socket.recv(1 << 20)
            except TimeoutError:
                return None
            except OSError as error:
                raise LabError(f"the machine has ended ({error})") from error
            if not received:
                raise LabError("the machine has ended")
            self._received += received
        line, _, self._received = self._received.partition(b"\n")
        # 0xff is the agent's mark before the answer to guest-sync-delimited.
        with contextlib.suppress(ValueError):
            return json.loads(line.rpartition(b"\xff")[2])
        return {}

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()


class Monitor:
    """QEMU's monitor (QMP): commands, and events such as ``RESET``."""

    def __init__(self, path: Path) -> None:
        """Connect. OSError if QEMU does not listen yet."""
        self._lines = Lines(path)
        self._events: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._lines.receive(time.monotonic() + 30)  # the greeting
        self("qmp_capabilities")

    def __call__(self, command: str, /, *, timeout: float = 60, **arguments: Any) -> Any:
        """Return a command's result. LabError if it fails, or has no answer after `timeout` seconds."""
        with self._lock:
            self._lines.send({"execute": command, "arguments": arguments})
            end = time.monotonic() + timeout
            while (reply := self._lines.receive(end)) is not None:
                if "return" in reply:
                    return reply["return"]
                if "error" in reply:
                    raise LabError(f"QEMU refuses {command}: {reply['error']['desc']}")
                self._events.append(reply)
        raise LabError(f"QEMU has not answered {command} after {timeout:g} s")

    def event(self, *names: str, timeout: float = 60) -> str:
        """Return the first of these events since the last `forget`; LabError after `timeout` seconds without one."""
        end = time.monotonic() + timeout
        with self._lock:
            while True:
                for event in self._events:
                    if event.get("event") in names:
                        return str(event["event"])
                reply = self._lines.receive(end)
                if reply is None:
                    raise LabError(f"no {' or '.join(names)} of the machine within {timeout:g} s")
                self._events.append(reply)

    def forget(self) -> None:
        """Drop the events so far."""
        self("query-status")
        self._events.clear()

    def close(self) -> None:
        """Disconnect."""
        self._lines.close()


class Guest:
    """The guest agent of a machine (qemu-ga): runs programs and says what the clock shows."""

    _numbers = itertools.count(1)

    def __init__(self, path: Path) -> None:
        """`path` is QEMU's end of the agent's port; the machine may still be booting."""
        self._lines = Lines(path)
        self._lock = threading.Lock()
        self._late = False  # an answer may still arrive that is no longer waited for

    def wait(self, timeout: float) -> None:
        """Wait until the agent answers; LabError if it does not within `timeout` seconds."""
        with self._lock:
            self._synchronise(timeout)

    def _synchronise(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        while True:
            number = next(self._numbers)
            # The agent drops all that it has read before the mark; without it half a request might remain.
            self._lines.send({"execute": "guest-sync-delimited", "arguments": {"id": number}}, before=b"\xff")
            soon = min(end, time.monotonic() + 2)
            while (reply := self._lines.receive(soon)) is not None:
                if reply == {"return": number}:
                    self._late = False
                    return
            if time.monotonic() > end:
                raise LabError(f"the machine's agent does not answer within {timeout:g} s")

    def __call__(self, command: str, /, *, timeout: float = 60, **arguments: Any) -> Any:
        """Return a command's result. LabError if it fails, or has no answer after `timeout` seconds."""
        with self._lock:
            if self._late:
                self._synchronise(timeout)
            self._late = True
            self._lines.send({"execute": command, "arguments": arguments})
            reply = self._lines.receive(time.monotonic() + timeout)
            if reply is None:
                raise LabError(f"the machine has not answered {command} after {timeout:g} s")
            self._late = False
        if "return" in reply:
            return reply["return"]
        raise LabError(f"the machine refuses {command}: {reply.get('error', reply)}")

    def start(self, argv: Sequence[str], input: bytes = b"", env: Sequence[str] = ()) -> int:
        """Start a program; return its pid. Its output is kept until `finished` returns it."""
        arguments: dict[str, Any] = {
            "path": argv[0],
            "arg": list(argv[1:]),
            "env": [*_ENVIRONMENT, *env],
            "input-data": base64.b64encode(input).decode(),
            "capture-output": True,
        }
        return int(self("guest-exec", **arguments)["pid"])

    def finished(self, pid: int, timeout: float = 60) -> tuple[int, bytes, bytes] | None:
        """Return (status, stdout, stderr) of a program once it has ended; None if it runs after `timeout` seconds.

        The status is negative for a signal, as in `subprocess`.
        """
        end, pause = time.monotonic() + timeout, 0.01
        while True:
            found = self("guest-exec-status", pid=pid)
            if found["exited"]:
                status = -int(found["signal"]) if "signal" in found else int(found.get("exitcode", 0))
                out, err = (base64.b64decode(found.get(name, "")) for name in ("out-data", "err-data"))
                return status, out, err
            if time.monotonic() > end:
                return None
            time.sleep(pause)
            pause = min(pause * 1.5, 0.25)

    def clock(self) -> float:
        """Return the machine's time of day, in seconds."""
        return int(self("guest-get-time")) / 1e9

    def close(self) -> None:
        """Disconnect."""
        self._lines.close()
