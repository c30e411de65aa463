"""A pytest plugin that runs the kernel tier's tests with a mutated table, many times in one session.

Each test runs once with counters in every rule, so it is known which rules its packets reach (task "cover"). Then, for
each mutant, the tests run whose packets reach its rule, until one fails (task "judge"). That test must pass with the
real table right afterwards; otherwise the fixtures are made again, and the mutant is tried again. Most mutants are
found by one of the first tests. Those that are not are many in the table at once for all other tests.

FW_MUTATION_JOB is a JSON file: the task, the mutants, the coverage, the file for results (one JSON value in a line).
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest

from plugin.nftables import document, optional_chains, table
from plugin.nftables.client import NftClient, NftError
from tests import waiting
from tests.kernel import packets
from tests.kernel.netns import nowhere
from tests.mutation import few_inputs
from tests.mutation.nft_text import Mutant, counting, mutated, places, whole_text
from tests.mutation.rules_order import Covered, Order, rule_name

#: Seconds, in place of the tests' own patience: a packet that a mutant drops is waited for in vain.
ARRIVAL, CONDITION = 1.0, 4.0
#: How often a mutant is tried whose killer then fails with the real table, too, until the fixtures are made again.
TRIES = 2
#: Random inputs of a test.
INPUTS = 15
#: How many mutants are in the table at once then.
MOST = 150
_COUNTER = re.compile(r"counter packets (\d+)")
_LATE = re.compile(r"did not arrive|not within \d|[Tt]imed? ?out")


few_inputs.use(INPUTS)


class Text:
    """The product's text on its way to the kernel: `change` is applied to it."""

    def __init__(self) -> None:
        self.change: Callable[[str], str] | None = None
        document.skeleton = self._changed(document.skeleton)
        optional_chains.added = self._changed(optional_chains.added)

    def _changed(self, make: Callable[..., str]) -> Callable[..., str]:
        def text(*args: Any, **named: Any) -> str:
            made = make(*args, **named)
            return self.change(made) if self.change else made

        return text


def loads(mutants: Sequence[Mutant]) -> bool:
    """True if the kernel takes the tables with these mutants, and they differ from the real ones."""
    text = whole_text()
    changed = mutated(mutants, text)
    if changed.splitlines() == text.splitlines():
        return False
    with nowhere():
        try:
            NftClient().run(changed)
        except NftError:
            return False
    return True


def refused(mutants: Sequence[Mutant]) -> list[Mutant]:
    """Return those that the kernel does not take; `mutants` are of different rules."""
    if not mutants or loads(mutants):
        return []
    if len(mutants) == 1:
        return [*mutants]
    half = len(mutants) // 2
    return [*refused(mutants[:half]), *refused(mutants[half:])]


class Coverage:
    """The rules that the packets of each test reach and match, by the counters of the tables loaded meanwhile."""

    def __init__(self) -> None:
        self.found: dict[str, set[str]] = {"reached": set(), "matched": set()}
        self._last: dict[tuple[int, str, int], tuple[int, int]] = {}
        self._tables: WeakSet[table.KernelTable] = WeakSet()
        #: The kernel lists a rule in other words, in the same place. A rate's chains have two forms: either's rule.
        self._rules: dict[str, set[str]] = {}
        for family, chain, rule, place in places(whole_text()):
            self._rules.setdefault(place, set()).add(rule_name(family, chain, rule))
        real = table.KernelTable.replace

        def replace(its: table.KernelTable, *args: Any, **named: Any) -> None:
            self._harvest(its)
            self._last.clear()
            self._tables.add(its)
            real(its, *args, **named)

        table.KernelTable.replace = replace  # type: ignore[method-assign, assignment]

    def collect(self) -> None:
        """Read the counters of all tables."""
        for each in list(self._tables):
            self._harvest(each)

    def harvest(self) -> Covered:
        """Return the rules since the last call."""
        self.collect()
        found = {
            kind: sorted({rule for place in them for rule in self._rules[place]}) for kind, them in self.found.items()
        }
        self.found = {"reached": set(), "matched": set()}
        return found

    def _harvest(self, its: table.KernelTable) -> None:
        for family in ("inet", "bridge"):
            code, text, _ = its._client._nft.cmd(f"list table {family} {its._name}")
            for number, (_, _, rule, place) in enumerate([] if code else places(text)):
                counts = [*map(int, _COUNTER.findall(rule)), 0, 0]
                if place in self._rules:
                    self._counted((id(its), family, number), place, (counts[0], counts[1]))

    def _counted(self, key: tuple[int, str, int], place: str, now: tuple[int, int]) -> None:
        before = self._last.get(key, (0, 0))
        self._last[key] = now
        for kind, count, earlier in zip(("reached", "matched"), now, before, strict=True):
            if count != earlier:
                self.found[kind].add(place)


class Judge:
    """Runs tests of a session, whichever are wanted next, and knows whether they failed."""

    def __init__(self, session: pytest.Session) -> None:
        self.session = session
        self.items = {item.nodeid: item for item in session.items}
        by_module: dict[str, list[pytest.Item]] = {}
        for item in session.items:
            by_module.setdefault(item.nodeid.partition("::")[0], []).append(item)
        self.by_module = by_module
        self.module = ""
        #: Called after each test, while its fixtures exist.
        self.ending: Callable[[], None] = lambda: None
        self._failed = False
        #: The last failure was something that did not come in time: on a machine that is busy, it may come.
        self.late = False
        #: It was a table that the kernel refused.
        self.refused = False
        session.config.pluginmanager.register(self)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember a failure."""
        self._failed = self._failed or report.failed
        if report.failed:
            text = str(report.longrepr)
            self.late, self.refused = bool(_LATE.search(text)), "NftError" in text

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self) -> None:
        """Look at the tables before the fixtures are removed."""
        self.ending()

    def passes(self, test: str) -> bool:
        """Run one test; the fixtures of its module remain for the next one of it."""
        item = self.items[test]
        module = test.partition("::")[0]
        if module != self.module:
            self.forget()
            self.module = module
        sibling = next((each for each in self.by_module[module] if each is not item), None)
        self._failed = False
        item.ihook.pytest_runtest_protocol(item=item, nextitem=sibling)
        if sibling is None:
            self.module = ""
        return not self._failed

    def forget(self) -> None:
        """Remove the fixtures of the module whose tests ran last."""
        self.session._setupstate.teardown_exact(None)
        self.module = ""


class Verdicts:
    """Runs tests with mutants, and makes the fixtures again if they are no longer sound."""

    def __init__(self, judge: Judge, text: Text, order: Order) -> None:
        self.judge, self.text, self.order = judge, text, order
        self.unreliable: set[str] = set()
        #: The last failure was a table that the kernel refused.
        self.refused = False
        self._ran: dict[Mutant, set[str]] = {}

    def alone(self, mutant: Mutant, module: str) -> str:
        """Return the test that fails with this mutant and passes without it, of the likeliest; "" if none does."""
        ran = self._ran.setdefault(mutant, set())
        for test in self.order.likeliest(mutant, module):
            ran.add(test)
            if self._fails(test, [mutant]):
                self.order.killed(mutant, test)
                return test
        return ""

    def together(self, mutants: Sequence[Mutant], module: str) -> Iterator[tuple[Mutant, str]]:
        """Yield mutants, each with the test that fails with it, of those that did not run with it alone.

        Mutants of different rules are in the table at once. If a test fails, half of them at a time are.
        """
        found: set[Mutant] = set()
        wanted: dict[str, list[Mutant]] = {}
        for mutant in mutants:
            for test in self.order.others(mutant, module):
                if test not in self._ran.get(mutant, ()):
                    wanted.setdefault(test, []).append(mutant)
        for test, them in wanted.items():
            for batch in batches([mutant for mutant in them if mutant not in found]):
                for mutant in self._found(test, batch):
                    found.add(mutant)
                    yield mutant, test

    def _found(self, test: str, batch: Sequence[Mutant]) -> list[Mutant]:
        """Return those of the batch with which the test fails; each is tried again alone."""
        if not batch or test in self.unreliable or self._passes(test, batch):
            return []
        if len(batch) == 1:
            return [*batch] if self._fails(test, batch) else []
        half = len(batch) // 2
        return [*self._found(test, batch[:half]), *self._found(test, batch[half:])]

    def _fails(self, test: str, mutants: Sequence[Mutant]) -> bool:
        """True if the test fails with these mutants, and passes without; it is too late only if it is so twice."""
        for _ in range(TRIES):
            if test in self.unreliable or self._passes(test, mutants):
                return False
            late, self.refused = self.judge.late, self.judge.refused
            if self._passes(test):
                return not late or not self._passes(test, mutants)
            self.judge.forget()
            if not (self._passes(test) and self._passes(test)):
                self.unreliable.add(test)
                return False
        # With new fixtures it passes, also a second time: what the mutants did has lasted.
        return True

    def _passes(self, test: str, mutants: Sequence[Mutant] = ()) -> bool:
        self.text.change = (lambda made: mutated(mutants, made)) if mutants else None
        try:
            return self.judge.passes(test)
        finally:
            self.text.change = None


def batches(mutants: Iterable[Mutant]) -> list[list[Mutant]]:
    """Return the mutants in few lists, each with one of a rule at most, and with MOST at most."""
    found: list[list[Mutant]] = []
    for mutant in mutants:
        place = (mutant.family, mutant.chain, mutant.rule)
        for batch in found:
            if len(batch) < MOST and place not in ((each.family, each.chain, each.rule) for each in batch):
                batch.append(mutant)
                break
        else:
            found.append([mutant])
    return found


def cover(session: pytest.Session, job: dict[str, Any], out: Any) -> None:
    """Run each test without counters and with: how long it takes, and whether it passes as it is run here, twice."""
    text, judge, coverage = Text(), Judge(session), Coverage()
    judge.ending = coverage.collect
    for test in judge.items:
        start = time.monotonic()
        passed = judge.passes(test)
        seconds = time.monotonic() - start
        coverage.harvest()
        text.change = counting
        passed = judge.passes(test) and passed
        found = coverage.harvest()
        text.change = None
        out.write(json.dumps({"test": test, "seconds": seconds, "passed": passed, "covered": found}) + "\n")


def judge_all(session: pytest.Session, job: dict[str, Any], out: Any) -> None:
    """Judge each mutant of the job: alone with the likeliest tests of each module, then together with the others."""

    def write(mutant: Mutant, state: str, killer: str = "") -> None:
        out.write(json.dumps({"name": mutant.name, "state": state, "killer": killer}) + "\n")

    order = Order(job["coverage"], job["seconds"], job["alone"])
    for *mutant, test in job["found"]:
        order.killed(Mutant(*mutant), test)
    verdicts = Verdicts(Judge(session), Text(), order)
    alive = [Mutant(*each) for each in job["mutants"]]
    for module in order.modules if job["alone"] else ():
        left = []
        for mutant in alive:
            if killer := verdicts.alone(mutant, module):
                # A table that the kernel refuses fails every test.
                write(mutant, "refused" if verdicts.refused and not loads([mutant]) else "killed", killer)
            else:
                left.append(mutant)
        alive = left
    for batch in batches(alive):
        for mutant in refused(batch):
            write(mutant, "refused")
            alive.remove(mutant)
    for number, module in enumerate(order.modules):
        for mutant, killer in verdicts.together([*alive], module):
            write(mutant, "killed", killer)
            alive.remove(mutant)
        for mutant in [*alive]:
            if not any(order.others(mutant, later) for later in order.modules[number + 1 :]):
                write(mutant, "survived")
                alive.remove(mutant)


def pytest_runtestloop(session: pytest.Session) -> bool:
    """Do the task in place of running each test once."""
    packets.arrived.__defaults__ = (ARRIVAL,)
    waiting.until.__defaults__ = ("the condition holds", CONDITION)
    job = json.loads(Path(os.environ["FW_MUTATION_JOB"]).read_text())
    with Path(job["results"]).open("a", buffering=1) as out:
        {"cover": cover, "judge": judge_all}[job["task"]](session, job, out)
    session._setupstate.teardown_exact(None)
    session.testsfailed = 0  # failures are what is looked for
    return True
