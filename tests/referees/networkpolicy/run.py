"""Run families at both levels, in several processes, with progress, within a time."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event

from tests.kernel.netns import nowhere
from tests.referees.networkpolicy import families, pure, wire
from tests.referees.networkpolicy.cases import FAMILIES, Case
from tests.referees.networkpolicy.placing import LAYOUTS, Layout, imagined
from tests.referees.networkpolicy.probes import SAMPLE, Grid
from tests.referees.networkpolicy.pure import Result
from tests.referees.networkpolicy.random_cases import random_case

assert families.__all__, "importing the package registers the families"
PURE, KERNEL = "pure", "kernel"
CHANCE = "by chance"
#: The most cases of one task.
_CASES = 12
Compare = Callable[[Case, Grid], Result]


@dataclass(frozen=True)
class Task:
    """Some cases of one family, at one level, in one layout: the work of one process at a time.

    `first`, `last`: which cases, as of a slice; for cases by chance, their seeds. `end`: Unix time.
    """

    level: str
    layout: str
    family: str
    first: int
    last: int
    grid: Grid
    end: float

    def __str__(self) -> str:
        return f"{self.level}, {LAYOUTS[self.layout].meaning}, {self.family} {self.first}-{self.last - 1}"

    def cases(self) -> list[Case]:
        """Return the cases."""
        if self.family == CHANCE:
            return [random_case(seed) for seed in range(self.first, self.last)]
        return FAMILIES[self.family].cases(LAYOUTS[self.layout])[self.first : self.last]


#: In a process of the pool: that which started it, and whether it is to stop.
_parent: list[int] = []
_stop: list[Event] = []


def _start(parent: int, stop: Event) -> None:
    """Run in each process of the pool first."""
    _parent.append(parent)
    _stop.append(stop)


def _over(task: Task) -> bool:
    """True if a task must end: the time is over, or the process that started it stops or is gone."""
    return time.time() > task.end or any(each.is_set() for each in _stop) or _parent != [os.getppid()]


def work(task: Task) -> tuple[Result, bool]:
    """Compare the cases of a task. Return the result, and whether it has all of them: the time may be over."""
    result = Result()
    with comparing(task.level, LAYOUTS[task.layout]) as compare:
        for case in task.cases():
            if _over(task):
                return result, False
            result.add(compare(case, task.grid))
    return result, True


@contextmanager
def comparing(level: str, layout: Layout) -> Iterator[Compare]:
    """Make what a level needs; yield the function that compares a case."""
    if level == PURE:
        places = imagined(layout)
        yield lambda case, grid: pure.compare(layout, places, case, grid)
        return
    with nowhere(), wire.bed(layout) as bed:
        yield bed.compare


def tasks(levels: Sequence[str], names: Sequence[str], grid: Grid, end: float, seeds: range) -> list[Task]:
    """Return the tasks of a run. `grid`: for separate networks; the shared ones take the sample."""
    found = []
    for level in levels:
        for layout in LAYOUTS.values():
            here = grid if layout.name == "separate" else SAMPLE
            whole = [(name, range(len(FAMILIES[name].cases(layout)))) for name in names]
            found += [
                Task(level, layout.name, name, start, min(start + _CASES, numbers.stop), here, end)
                for name, numbers in (*whole, (CHANCE, seeds))
                for start in numbers[::_CASES]
            ]
    return found


@dataclass
class Run:
    """The results of a run by level and family, over all layouts. `complete`: all tasks were finished in time."""

    done: dict[str, dict[str, Result]] = field(default_factory=dict)
    complete: bool = True

    def take(self, task: Task, result: Result) -> None:
        """Add the result of a task."""
        self.done.setdefault(task.level, {}).setdefault(task.family, Result()).add(result)

    def total(self, level: str) -> Result:
        """Return the sum of a level's results."""
        total = Result()
        for result in self.done.get(level, {}).values():
            total.add(result)
        return total


def run(todo: Sequence[Task], jobs: int, say: Callable[[str], None]) -> Run:
    """Run tasks in so many processes; `say` prints a line for each that ends."""
    made, started = Run(), time.monotonic()
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(jobs, context, initializer=_start, initargs=(os.getpid(), stop)) as pool:
        waiting: dict[Future[tuple[Result, bool]], Task] = {pool.submit(work, task): task for task in todo}
        try:
            for number, future in enumerate(as_completed(waiting), 1):
                task, (result, complete) = waiting[future], future.result(0)
                made.take(task, result)
                made.complete &= complete
                for text in result.wrong[:3]:
                    say(f"DISAGREEMENT: {task}: {text}")
                when = f"{time.monotonic() - started:.0f} s"
                say(f"{number}/{len(todo)} {when} {task}: {summary(result)}{'' if complete else ' (OUT OF TIME)'}")
        except BaseException:
            stop.set()  # each process ends after its current case, and removes its namespaces
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return made


def summary(result: Result) -> str:
    """Return the counts in one line."""
    large = f", {result.too_large} states too large for labels" if result.too_large else ""
    return (
        f"{result.cases} cases, {result.states} states, {result.probes:,} connections, "
        f"{len(result.wrong)} disagreements{large}"
    )
