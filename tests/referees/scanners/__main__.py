"""Run all cases of the scanners, print each result, and exit with 1 if one is not as expected."""

from __future__ import annotations

import argparse
import shutil
import sys
import time

from . import report
from .referee import Result, run
from .registry import CASES, PROGRAMS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.referees.scanners", description=__doc__)
    parser.add_argument("--only", default="", help="cases whose title contains this text")
    parser.add_argument("--lanes", type=int, default=12, help="how many cases run at once on each kind of network (12)")
    parser.add_argument("--write", action="store_true", help="write docs/scanners.md from this run (of all cases)")
    parser.add_argument(
        "--verbose", action="store_true", help="print the tools' output of cases that are not as expected"
    )
    given = parser.parse_args()
    if missing := [package for package, program in PROGRAMS.items() if not shutil.which(program)]:
        print(f"not installed: {', '.join(missing)} (apt-get install {' '.join(missing)})", file=sys.stderr)
        return 2
    cases = [case for case in CASES if given.only in case.title]
    total, start = sum(len(case.kinds) for case in cases), time.monotonic()
    results: list[Result] = []
    for result in run(cases, given.lanes):
        results.append(result)
        print(f"{len(results)}/{total} {result.seen.seconds:5.1f} s  {result}", flush=True)
        if given.verbose and result.problems:
            print(result.seen.printed[-2000:], flush=True)
    wrong = [result for result in results if result.problems]
    print(f"{total} runs in {time.monotonic() - start:.0f} s, {len(wrong)} not as expected")
    for result in wrong:
        print(result)
    if given.write:
        report.write(results)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
