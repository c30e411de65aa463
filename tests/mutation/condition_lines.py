"""Which lines of the product each pure test runs, and how long it takes. Kept in a file between runs."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import pytest

from tests.mutation.conditions import MODULES, ROOT, Mutant

T = TypeVar("T")
#: Seconds of tests that each mutant meets alone; those that survive them meet all their tests together.
ALONE = 2.0
Record = dict[str, Any]


def in_processes(many: int, work: Sequence[T], do: Callable[[int, Sequence[T]], None]) -> None:
    """Do shares of the work in so many forked processes, each with its number. Raises ChildProcessError."""
    started = []
    for i in range(many):
        pid = os.fork()
        if pid:
            started.append(pid)
            continue
        status = 1
        try:
            do(i, work[i::many])
            status = 0
        finally:
            os._exit(status)
    ends = [os.waitpid(pid, 0)[1] for pid in started]
    if any(ends):
        raise ChildProcessError("a process that judges conditions failed")


class Lines:
    """The lines of some files that run."""

    def __init__(self, paths: set[str]) -> None:
        self.paths = {str(ROOT / path): path for path in paths}
        self.found: set[tuple[str, int]] = set()

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        """Trace a function of these files only."""
        path = self.paths.get(frame.f_code.co_filename)
        if path is None:
            return None
        found = self.found

        def line(inner: FrameType, event: str, arg: object) -> Any:
            if event == "line":
                found.add((path, inner.f_lineno))
            return line

        return line


class Session:
    """The tests of a session; any of them runs when it is wanted."""

    def __init__(self, session: pytest.Session) -> None:
        self.session = session
        self._failed = False
        session.config.pluginmanager.register(self)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember a failure."""
        self._failed = self._failed or report.failed

    def passes(self, item: pytest.Item) -> bool:
        """Run one test."""
        self._failed = False
        self.session._setupstate.teardown_exact(None)
        item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
        return not self._failed


def _hash(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


class Known:
    """The tests by the lines that they run, and how long they take."""

    def __init__(self, running: Session, kept: Path, jobs: int) -> None:
        self.by: dict[tuple[str, int], list[pytest.Item]] = {}
        self.seconds: dict[str, float] = {}
        product = _hash(*(ROOT / path for path in MODULES))
        hashes = {item.path: product + _hash(item.path) for item in running.session.items}
        known = self._read(kept)
        missing = [
            item for item in running.session.items if known.get(item.nodeid, {}).get("hash") != hashes[item.path]
        ]

        def trace(number: int, items: Sequence[pytest.Item]) -> None:
            with Path(f"{kept}.{number}").open("w") as out:
                for item in items:
                    out.write(json.dumps({**_traced(running, item), "hash": hashes[item.path]}) + "\n")

        in_processes(jobs, missing, trace)
        for number in range(jobs):
            known |= self._read(Path(f"{kept}.{number}"))
        kept.write_text("".join(json.dumps(each) + "\n" for each in known.values()))
        for item in running.session.items:
            each = known[item.nodeid]
            self.seconds[item.nodeid] = each["seconds"]
            for path, number in each["lines"] if each["passed"] else ():
                self.by.setdefault((path, number), []).append(item)

    @staticmethod
    def _read(path: Path) -> dict[str, Record]:
        lines = path.read_text().splitlines() if path.exists() else []
        return {each["test"]: each for each in map(json.loads, lines)}

    def tests(self, mutants: Iterable[Mutant]) -> list[pytest.Item]:
        """Return the tests that run one of the expressions, quickest first."""
        lines = {(each.path, n) for each in mutants for n in range(each.first, each.last + 1)}
        found = {item for line in lines for item in self.by.get(line, ())}
        return sorted(found, key=lambda item: self.seconds[item.nodeid])

    def quick(self, mutant: Mutant) -> list[pytest.Item]:
        """Return the quickest of these tests, of ALONE seconds together, at least one."""
        tests = self.tests([mutant])
        total = list(accumulate(self.seconds[item.nodeid] for item in tests))
        return tests[: max(1, sum(seconds < ALONE for seconds in total))]


def _traced(running: Session, item: pytest.Item) -> Record:
    """Run a test once, and return its record."""
    lines = Lines(set(MODULES))
    start = time.process_time()
    sys.settrace(lines)
    try:
        passed = running.passes(item)
    finally:
        sys.settrace(None)
    seconds = time.process_time() - start
    return {"test": item.nodeid, "seconds": seconds, "passed": passed, "lines": sorted(lines.found)}
