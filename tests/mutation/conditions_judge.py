"""A pytest plugin that runs pure tests with one mutated function each time, in a process forked for it.

Each test runs once first (`condition_lines`), so it is known which lines it runs, and whether it passes as it is run
here. A mutant's tests are those that run a line of the expression, the quickest first, until one fails. What survives
the quick ones meets the others together with mutants of other functions.

FW_MUTATION_JOB is a JSON file: the mutants, the file for results (one JSON value in a line), how many processes.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import CodeType, FunctionType

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.mutation import few_inputs
from tests.mutation.condition_lines import Known, Session, in_processes
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


def _child(mutants: Sequence[Mutant], tests: Sequence[pytest.Item], running: Session, its: Functions, out: int) -> None:
    """Run the tests with the mutants in this process, write the one that fails, and end."""
    status = 1
    try:
        for mutant in mutants:
            code = mutated(mutant)
            for function in its[_place(code)]:
                function.__code__ = code
        killer = next((item.nodeid for item in tests if not running.passes(item)), "")
        os.write(out, killer.encode() or b"-")
        status = 0
    finally:
        os._exit(status)


class Children:
    """Forked processes that run tests with mutants, at most `most` at a time."""

    def __init__(self, running: Session, known: Known, most: int, write: Callable[[Mutant, str], None]) -> None:
        self.running, self.known, self.most, self.write = running, known, most, write
        self.functions = functions()
        self.alive: dict[int, tuple[int, Mutant, float]] = {}
        self.survivors: list[Mutant] = []

    def alone(self, mutant: Mutant) -> None:
        """Judge one mutant by its quick tests, as soon as another process has ended."""
        while len(self.alive) >= self.most:
            self.wait()
        tests = self.known.quick(mutant)
        if tests:
            reader, pid, end = self._fork([mutant], tests)
            self.alive[reader] = (pid, mutant, end)
        else:
            self.survivors.append(mutant)

    def wait(self) -> None:
        """Collect the processes that have ended, and end those that take too long."""
        ready, _, _ = select.select([*self.alive], [], [], 0.5)
        for reader, (pid, mutant, end) in list(self.alive.items()):
            if reader in ready or time.monotonic() > end:
                del self.alive[reader]
                if killer := self._answer(reader, pid):
                    self.write(mutant, killer)
                else:
                    self.survivors.append(mutant)

    def together(self, mutants: Sequence[Mutant]) -> None:
        """Judge mutants of different functions by all their tests, all in one process."""
        left = [*mutants]
        tests = self.known.tests(left)
        while left and tests:
            killer = self._ask(left, tests)
            if not killer:
                break
            place = next((n for n, item in enumerate(tests) if item.nodeid == killer), None)
            if place is None:  # it hangs, or crashes: which one?
                found = {each: self._ask([each], self.known.tests([each])) for each in left}
                tests = []
            else:
                item = tests[place]
                found = dict.fromkeys(
                    self._guilty([each for each in left if item in self.known.tests([each])], item), killer
                )
                # Nothing more to learn from a test that only several of them together fail.
                tests = tests[place + (not found) :]
            for each in [each for each in left if found.get(each)]:
                self.write(each, found[each])
                left.remove(each)
        for each in left:
            self.write(each, "")

    def _guilty(self, mutants: Sequence[Mutant], item: pytest.Item) -> list[Mutant]:
        """Return those with which the test fails, trying half of them at a time."""
        if not mutants or not self._ask(mutants, [item]):
            return []
        if len(mutants) == 1:
            return [*mutants]
        half = len(mutants) // 2
        return [*self._guilty(mutants[:half], item), *self._guilty(mutants[half:], item)]

    def _ask(self, mutants: Sequence[Mutant], tests: Sequence[pytest.Item]) -> str:
        """Return the test that fails with these mutants; "" if none does."""
        reader, pid, end = self._fork(mutants, tests)
        select.select([reader], [], [], max(0.0, end - time.monotonic()))
        return self._answer(reader, pid)

    def _fork(self, mutants: Sequence[Mutant], tests: Sequence[pytest.Item]) -> tuple[int, int, float]:
        """Start a process; return what it writes to, its ID, and when it has taken too long."""
        reader, writer = os.pipe()
        patience = max(LEAST, TIMES * sum(self.known.seconds[item.nodeid] for item in tests))
        pid = os.fork()
        if not pid:
            _child(mutants, tests, self.running, self.functions, writer)
        os.close(writer)
        return reader, pid, time.monotonic() + patience

    def _answer(self, reader: int, pid: int) -> str:
        """Return what the process found, and end it if it has found nothing yet."""
        hangs = not select.select([reader], [], [], 0)[0]
        if hangs:
            os.kill(pid, signal.SIGKILL)
        answer = os.read(reader, 4096).decode()
        os.close(reader)
        os.waitpid(pid, 0)
        return {"": "(a test hangs)" if hangs else "(crash)", "-": ""}.get(answer, answer)


def batches(mutants: Iterable[Mutant]) -> list[list[Mutant]]:
    """Return the mutants in as few lists as possible, each with one of a function at most."""
    found: list[dict[tuple[str, int], Mutant]] = []
    for mutant in mutants:
        function = (mutant.path, mutant.line)
        batch = next((each for each in found if function not in each), None)
        if batch is None:
            found.append(batch := {})
        batch[function] = mutant
    return [[*batch.values()] for batch in found]


def pytest_runtestloop(session: pytest.Session) -> bool:
    """Judge the mutants in place of running each test once."""
    job = json.loads(Path(os.environ["FW_MUTATION_JOB"]).read_text())
    wanted = [Mutant(*each) for each in job["mutants"]]
    running = Session(session)
    known = Known(running, Path(job["results"]).parent.parent / "condition-lines.jsonl", job["jobs"])
    with Path(job["results"]).open("a", buffering=1) as out:

        def write(mutant: Mutant, killer: str) -> None:
            value = {"name": mutant.name, "state": "killed" if killer else "survived", "killer": killer}
            out.write(json.dumps(value) + "\n")

        children = Children(running, known, job["jobs"], write)
        for mutant in wanted:
            children.alone(mutant)
        while children.alive:
            children.wait()

        def judge(_: int, batches: Sequence[Sequence[Mutant]]) -> None:
            for batch in batches:
                children.together(batch)

        in_processes(job["jobs"], batches(children.survivors), judge)
    session.testsfailed = 0  # failures are what is looked for
    return True
