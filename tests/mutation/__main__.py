"""`python -m tests.mutation`: weaken each rule and each condition, see which test fails, write docs/mutation.md."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.mutation import condition_sessions, conditions, report, rules, sessions
from tests.mutation.nft_text import Mutant as RuleMutant
from tests.mutation.sessions import ROOT, Result, UnfinishedError

#: Where results are kept between runs.
BUILD = ROOT / "build" / "mutation"
Mutants = dict[str, conditions.Mutant | RuleMutant]


def mutants_of(part: str) -> Mutants:
    """Return the mutants of a part, by name."""
    found = rules.all_mutants() if part == "rules" else conditions.all_mutants(f"plugin/{part}/")
    return {mutant.name: mutant for mutant in found}


def known(part: str) -> dict[str, Result]:
    """Return the results of earlier runs."""
    path = BUILD / f"{part}.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {each["name"]: each for each in found}


def chosen(part: str, options: argparse.Namespace) -> Mutants:
    """Return the mutants that are to be judged, by name."""
    found = {name: each for name, each in mutants_of(part).items() if options.only in name}
    judged = known(part)
    if options.new or options.unlisted:
        found = {n: each for n, each in found.items() if n not in judged or judged[n]["state"] == "survived"}
    if options.unlisted:
        unlisted = set(report.unlisted(part, list(found)))
        found = {n: each for n, each in found.items() if n not in judged or n in unlisted}
    return found


def judge(part: str, wanted: Mutants, options: argparse.Namespace, end: float, say: Callable[[str], None]) -> None:
    """Judge these mutants, and keep the results, also if the time is over. Raises UnfinishedError."""
    jobs, tests = options.jobs, options.tests
    directory = BUILD / part
    try:
        if part == "rules":
            mutants: Any = list(wanted.values())
            killers = {name: each["killer"] for name, each in known(part).items() if each["killer"]}
            found: Any = [(each, killers[name]) for name, each in mutants_of(part).items() if name in killers]
            rules.run(mutants, directory, jobs, end, say, tests or rules.TESTS, alone=options.alone, found=found)
        else:
            tests = tests or condition_sessions.TESTS[part]
            condition_sessions.run(list(wanted.values()), directory, jobs, end, say, tests)  # type: ignore[arg-type]
    finally:
        now = {**known(part), **{each["name"]: each for each in sessions.results("judge", directory)}}
        existing = mutants_of(part)
        lines = [json.dumps(each) + "\n" for name, each in now.items() if name in existing]
        (BUILD / f"{part}.jsonl").write_text("".join(lines))


def main(argv: list[str] | None = None) -> int:
    """Run the parts; the exit status is 0 only if the list of survivors is exact."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--part", choices=report.PARTS, action="append", help="only this part (again for another one)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only mutants whose name contains this")
    parser.add_argument("--new", action="store_true", help="only mutants that no run has judged, and survivors")
    parser.add_argument("--unlisted", action="store_true", help="the same, but for survivors that are listed")
    parser.add_argument(
        "--tests",
        nargs="+",
        default=[],
        metavar="PATH",
        help="only these tests: new ones, for what survived the others",
    )
    parser.add_argument(
        "--alone",
        type=int,
        default=rules.ALONE,
        metavar="N",
        help=f"rules: how many of its likeliest tests each mutant meets alone, before all are together ({rules.ALONE})",
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument("--minutes", type=float, default=60, help="after this time it ends and fails (60)")
    options = parser.parse_args(argv)
    if os.geteuid() != 0:
        parser.error("the rules are tested in network namespaces: run it as root")
    end = time.monotonic() + 60 * options.minutes

    def say(text: str) -> None:
        print(time.strftime("%H:%M:%S"), text, flush=True)

    BUILD.mkdir(parents=True, exist_ok=True)
    failed = False
    for part in options.part or report.PARTS:
        wanted = chosen(part, options)
        say(f"{part}: {len(wanted)} mutants")
        try:
            if wanted:
                judge(part, wanted, options, end, say)
        except UnfinishedError as error:
            say(f"{part}: {error}")
            failed = True
    found = {part: known(part) for part in report.PARTS}
    existing = {part: list(mutants_of(part)) for part in report.PARTS}
    mistakes = report.mistakes(existing, found)
    for mistake in mistakes:
        print(mistake)
    Path(ROOT / "docs" / "mutation.md").write_text(report.text(existing, found))
    return int(failed or bool(mistakes))


if __name__ == "__main__":
    sys.exit(main())
