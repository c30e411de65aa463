"""The outsider: shoots at closed and open ports all the time, and knows which answers are permitted."""

from __future__ import annotations

import itertools
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab import Wan

from .shooter import PASSES, Order

ROOT = Path(__file__).resolve().parents[2]
#: Seconds between two shots.
EVERY = 0.001


@dataclass(frozen=True)
class Port:
    """A port to shoot at. `source`: the outsider's address, "" is its usual one."""

    protocol: str
    address: str
    number: int
    source: str = ""

    def __str__(self) -> str:
        where = f"[{self.address}]" if ":" in self.address else self.address
        return f"{where}:{self.number}/{self.protocol}" + (f" from {self.source}" if self.source else "")

    @property
    def sender(self) -> str:
        return self.source or (Wan.V6 if ":" in self.address else Wan.V4)


@dataclass(frozen=True)
class Answer:
    """An answer to a shot; times are `time.monotonic()`. `how`: syn-ack, reset, datagram or unreachable.

    The shot was sent at some moment from `sent` to `left`: on a busy machine the shooter may have to wait between them.
    """

    port: Port
    sent: float
    left: float
    came: float
    how: str


@dataclass
class Permission:
    """When a port that changes may answer: spans of time, the last one possibly without an end."""

    spans: list[tuple[float, float]] = field(default_factory=list)

    def begin(self) -> None:
        self.spans.append((time.monotonic(), float("inf")))

    def end(self) -> None:
        """End the span. Shots from now on must not be answered."""
        if self.spans and self.spans[-1][1] == float("inf"):
            self.spans[-1] = (self.spans[-1][0], time.monotonic())

    def covers(self, answer: Answer) -> bool:
        """Return True if the shot may have been sent within a span."""
        return any(since <= answer.left and answer.sent <= until for since, until in self.spans[-100:])


class Outsider:
    """Shots from the wan's namespace. `closed` ports must never answer, `changing` ones only if they are permitted."""

    def __init__(
        self,
        wan: Wan,
        closed: Iterable[Port],
        opened: Iterable[Port],
        changing: Iterable[Port] = (),
        every: float = EVERY,
    ) -> None:
        self.closed, self.opened = tuple(dict.fromkeys(closed)), tuple(dict.fromkeys(opened))
        self.permissions = {port: Permission() for port in changing}
        self.ports = (*self.closed, *self.permissions, *self.opened)
        self.answers: list[Answer] = []
        #: called at once for an answer that must not be
        self.alarm: Callable[[Answer], None] = lambda _: None
        self._marks: queue.Queue[list[int]] = queue.Queue()
        self._process = wan.popen(
            [sys.executable, "-S", "-m", f"{__package__}.shooter"],
            text=True,
            bufsize=1,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        order = Order(
            targets=[(port.protocol, port.address, port.number, port.sender) for port in self.ports],
            # An open port makes work for its server, too.
            passes=[PASSES // 2 if port in self.opened else PASSES for port in self.ports],
            every=every,
        )
        self._say(json.dumps(order))
        self._reader = threading.Thread(target=self._read, name="outsider", daemon=True)
        self._reader.start()

    def close(self) -> None:
        """End the shots."""
        assert self._process.stdin
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._reader.join(10)

    def permit(self, ports: Iterable[Port]) -> None:
        """Permit answers of these from now on: call it before they are opened."""
        for port in ports:
            self.permissions[port].begin()

    def forbid(self, ports: Iterable[Port]) -> None:
        """No more: call it after they were closed."""
        for port in ports:
            self.permissions[port].end()

    def lawful(self, answer: Answer) -> bool:
        """Return True if the port may have answered this shot."""
        permission = self.permissions.get(answer.port)
        return permission.covers(answer) if permission else answer.port in self.opened

    def shots(self) -> int:
        """Return how many shots at ports that must not answer, or only at times, were sent so far.

        Raises AssertionError if the shooter has ended, for then nothing is tested any more.
        """
        self._say("mark")
        try:
            sent = self._marks.get(timeout=20)
        except queue.Empty:
            raise AssertionError(f"the outsider does not shoot any more: {self._process.poll()}") from None
        return sum(sent[: len(self.ports) - len(self.opened)])

    def outage(self, ports: Iterable[Port], since: float) -> float:
        """Return for how long, at the most, one of these ports gave no answer since then, in seconds."""
        times = {port: [since] for port in ports}
        for answer in itertools.takewhile(lambda each: each.came >= since, reversed(self.answers)):
            if answer.port in times and answer.sent >= since:
                times[answer.port].append(answer.sent)
        now = time.monotonic()
        return max(b - a for each in times.values() for a, b in itertools.pairwise([*sorted(each), now]))

    def _say(self, line: str) -> None:
        assert self._process.stdin
        with suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            number, *rest = line.split()
            if number == "mark":
                self._marks.put([int(each) for each in rest])
                continue
            sent, left, came, how = rest
            answer = Answer(self.ports[int(number)], float(sent), float(left), float(came), how)
            self.answers.append(answer)
            if not self.lawful(answer):
                self.alarm(answer)
