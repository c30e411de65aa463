"""A pytest plugin that runs pure tests with one mutated function each time, in a process forked for it.

Each test runs once first, so it is known which lines it runs, and whether it passes as it is run here. A mutant's tests
are those that run a line of the expression, the quickest first, until one fails.

FW_MUTATION_JOB is a JSON file: the mutants, the file for results (one JSON value in a line), how many processes.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.mutation import few_inputs
from tests.mutation.conditions import ROOT, Mutant, mutated

#: Random inputs of a test.
INPUTS = 25
# Before the tests are imported: the same examples in every run, and a failure needs no smaller example.
settings.register_profile(
    "mutation",
    max_examples=INPUTS,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("mutation")
few_inputs.use(INPUTS)

#: A mutant that loops is ended after this many seconds, or after so many times the tests' own time.
LEAST, TIMES = 60.0, 20.0


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


class Known:
    """The tests by the lines that they run, and how long they take."""

    def __init__(self, running: Session, lines: Lines) -> None:
        self.by: dict[tuple[str, int], list[pytest.Item]] = {}
        self.seconds: dict[str, float] = {}
        for item in running.session.items:
            lines.found.clear()
            start = time.process_time()
            sys.settrace(lines)
            try:
                passed = running.passes(item)
            finally:
                sys.settrace(None)
            self.seconds[item.nodeid] = time.process_time() - start
            for line in lines.found if passed else ():
                self.by.setdefault(line, []).append(item)

    def tests(self, mutant: Mutant) -> list[pytest.Item]:
        """Return the tests that run the expression, quickest first."""
        found = {item for n in range(mutant.first, mutant.last + 1) for item in self.by.get((mutant.path, n), ())}
        return sorted(found, key=lambda item: self.seconds[item.nodeid])


#: The functions of the product by the file, the name and the line of their code.
Functions = dict[tuple[str, str, int], list[FunctionType]]


def _place(code: CodeType) -> tuple[str, str, int]:
    return code.co_filename, code.co_qualname, code.co_firstlineno


def functions() -> Functions:
    """Return the product's functions in this process."""
    found: Functions = {}
    for each in gc.get_objects():
        if isinstance(each, FunctionType) and each.__code__.co_filename.startswith(str(ROOT / "plugin")):
            found.setdefault(_place(each.__code__), []).append(each)
    return found


def _child(mutant: Mutant, tests: list[pytest.Item], running: Session, its: Functions, out: int) -> None:
    """Run the tests with the mutant in this process, write the one that fails, and end."""
    status = 1
    try:
        code = mutated(mutant)
        for function in its[_place(code)]:
            function.__code__ = code
        killer = next((item.nodeid for item in tests if not running.passes(item)), "")
        os.write(out, killer.encode() or b"-")
        status = 0
    finally:
        os._exit(status)


class Children:
    """The forked processes, at most `most` at a time."""

    def __init__(self, running: Session, known: Known, most: int, out: Any) -> None:
        self.running, self.known, self.most, self.out = running, known, most, out
        self.functions = functions()
        self.alive: dict[int, tuple[int, Mutant, float, float, int]] = {}

    def start(self, mutant: Mutant) -> None:
        """Judge one mutant, as soon as another process has ended."""
        while len(self.alive) >= self.most:
            self.wait()
        tests = self.known.tests(mutant)
        if not tests:
            self._write(mutant, "survived", "", 0, 0.0)
            return
        reader, writer = os.pipe()
        now = time.monotonic()
        pid = os.fork()
        if not pid:
            _child(mutant, tests, self.running, self.functions, writer)
        os.close(writer)
        patience = max(LEAST, TIMES * sum(self.known.seconds[item.nodeid] for item in tests))
        self.alive[reader] = (pid, mutant, now, now + patience, len(tests))

    def wait(self) -> None:
        """Collect the processes that have ended, and end those that take too long."""
        ready, _, _ = select.select([*self.alive], [], [], 0.5)
        for reader, (pid, mutant, start, end, many) in list(self.alive.items()):
            late = time.monotonic() > end
            if reader not in ready and not late:
                continue
            if late and reader not in ready:
                os.kill(pid, signal.SIGKILL)
            answer = os.read(reader, 4096).decode()
            os.close(reader)
            os.waitpid(pid, 0)
            del self.alive[reader]
            killer = {"": "(a test hangs)" if late else "(crash)", "-": ""}.get(answer, answer)
            self._write(mutant, "killed" if killer else "survived", killer, many, time.monotonic() - start)

    def _write(self, mutant: Mutant, state: str, killer: str, ran: int, seconds: float) -> None:
        value = {"name": mutant.name, "state": state, "killer": killer, "ran": ran, "seconds": round(seconds, 2)}
        self.out.write(json.dumps(value) + "\n")


def pytest_runtestloop(session: pytest.Session) -> bool:
    """Judge the mutants in place of running each test once."""
    job = json.loads(Path(os.environ["FW_MUTATION_JOB"]).read_text())
    wanted = [Mutant(*each) for each in job["mutants"]]
    running = Session(session)
    known = Known(running, Lines({mutant.path for mutant in wanted}))
    with Path(job["results"]).open("a", buffering=1) as out:
        children = Children(running, known, job["jobs"], out)
        for mutant in wanted:
            children.start(mutant)
        while children.alive:
            children.wait()
    session.testsfailed = 0  # failures are what is looked for
    return True
