"""Run the whole suite many times in a row, each time in another order: a test that fails now and then shows itself.

Prints a line for each run, with its seed, seconds and failures, and keeps each run's output and results in
build/test-many. Ends at the first run that fails, unless asked to go on.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "build" / "test-many"
SUITE = ("-n", "4", "--no-loadscope-reorder")
#: A process that takes a core until its parent ends.
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(1_000_000))\n"


@dataclass(frozen=True)
class Run:
    """One run of the suite. `failed` has the names of tests; `note` says why the run itself failed, or is empty."""

    number: int
    seed: int
    seconds: float
    passed: int
    failed: tuple[str, ...]
    note: str = ""

    @property
    def good(self) -> bool:
        return not self.failed and not self.note

    def row(self) -> str:
        """Return the run's row of the table."""
        what = ", ".join(filter(None, (self.note, *self.failed))) or "none"
        return f"{self.number:>4}  {self.seed:>10}  {self.seconds:>7.0f}  {self.passed:>6}  {what}"


HEAD = f"{'run':>4}  {'seed':>10}  {'seconds':>7}  {'passed':>6}  failures"


def one(number: int, seed: int, arguments: Sequence[str], timeout: float) -> Run:
    """Run the suite once; a run that takes longer than `timeout` seconds is ended, and has failed."""
    log, results = KEPT / f"{number:02}.log", KEPT / f"{number:02}.xml"
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", *SUITE, f"--randomly-seed={seed}", f"--junit-xml={results}", *arguments]
    began, note = time.monotonic(), ""
    with log.open("wb") as output:
        # TEST_TIMES=1: other inputs in each run, as many as always.
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={"TEST_TIMES": "1", **os.environ},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            status = process.wait(timeout)
            note = "" if status in (0, 1) else f"pytest ended with status {status}, see {log.relative_to(ROOT)}"
        except subprocess.TimeoutExpired:
            note = f"not done after {timeout:.0f} s, see {log.relative_to(ROOT)}"
        finally:
            end(process)
    passed, failed = read(results)
    if not note and not passed and not failed:
        note = f"no test ran, see {log.relative_to(ROOT)}"
    return Run(number, seed, time.monotonic() - began, passed, failed, note)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group, if it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


def read(results: Path) -> tuple[int, tuple[str, ...]]:
    """Return from pytest's results the number of tests that passed, and the names of those that failed."""
    if not results.exists():
        return 0, ()
    passed, failed = 0, set()
    for case in ElementTree.parse(results).iter("testcase"):  # noqa: S314 (pytest's own file)
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            failed.add(f"{case.get('classname')}::{case.get('name')}")
        elif "skipped" not in kinds:
            passed += 1
    return passed, tuple(sorted(failed))


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep this many processes busy meanwhile, which compete with the tests for the processors."""
    with ExitStack() as stack:
        for _ in range(processes):
            process = subprocess.Popen([sys.executable, "-c", BUSY], start_new_session=True)
            stack.callback(end, process)
        yield


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m tests.many", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="how many (default: %(default)s)")
    parser.add_argument("--load", type=int, default=0, metavar="N", help="keep N busy loops running meanwhile")
    parser.add_argument("--keep-going", action="store_true", help="go on after a run that failed")
    parser.add_argument("--seed", type=int, help="the first run's seed, from an earlier table (default: a new one)")
    parser.add_argument("--timeout", type=float, default=7200, help="seconds for one run (default: %(default).0f)")
    parser.add_argument("pytest", nargs="*", help="further arguments for pytest, after --: say, tests/pure")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if all runs passed, 1 otherwise."""
    given = options(arguments)
    KEPT.mkdir(parents=True, exist_ok=True)
    found: list[Run] = []
    print(HEAD, flush=True)
    with busy(given.load):
        for number in range(1, given.runs + 1):
            seed = given.seed if given.seed is not None and number == 1 else secrets.randbelow(2**32)
            found.append(one(number, seed, given.pytest, given.timeout))
            print(found[-1].row(), flush=True)
            if not found[-1].good and not given.keep_going:
                break
    (KEPT / "table.txt").write_text("\n".join([HEAD, *(run.row() for run in found)]) + "\n")
    good = sum(run.good for run in found)
    print(f"{good} of {len(found)} runs passed, {given.runs} were asked for; output in {KEPT.relative_to(ROOT)}/")
    return 0 if good == given.runs else 1


if __name__ == "__main__":
    sys.exit(main())
