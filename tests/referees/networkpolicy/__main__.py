"""Compare docker-fw with Kubernetes' NetworkPolicy: `make referee-policy`.

Every case is a set of policies for pods. It is translated into labels; then every connection (source, destination,
protocol, port, address family) is judged by the plugin's reference, and sent as a packet through the real table, in
network namespaces of its own. Both must let pass what an independent evaluator of the specification lets pass, except
for the differences that docs/networkpolicy.md lists. Exit status: 0 all agree, 1 a disagreement, 2 out of time.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time

from tests.referees.networkpolicy import report
from tests.referees.networkpolicy.cases import FAMILIES
from tests.referees.networkpolicy.placing import LAYOUTS
from tests.referees.networkpolicy.probes import FULL, SAMPLE
from tests.referees.networkpolicy.run import KERNEL, PURE, run, summary, tasks


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests.referees.networkpolicy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"all, or some of: {', '.join(FAMILIES)}")
    parser.add_argument("--level", choices=(PURE, KERNEL, "both"), default="both", help="default: both")
    parser.add_argument("--random", type=int, default=50, metavar="N", help="cases by chance, too (default: 50)")
    parser.add_argument("--seed", type=int, help="of the first case by chance (default: a new one, which is printed)")
    parser.add_argument("--minutes", type=float, default=60, help="time for everything (default: 60)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per processor)")
    parser.add_argument("--quick", action="store_true", help="fewer ports and fewer machines outside")
    parser.add_argument("--list", action="store_true", help="print the cases and exit")
    parser.add_argument("--write", action="store_true", help="write the counts into docs/networkpolicy.md")
    found = parser.parse_args()
    if unknown := set(found.families) - set(FAMILIES):
        parser.error(f"no such family: {', '.join(sorted(unknown))}")
    if found.write and (found.families or found.quick):
        parser.error("--write needs a whole run: all families, not --quick")
    if found.level != PURE and os.geteuid() != 0:
        parser.error("the kernel level needs root; --level pure does not")
    return found


def print_cases(names: list[str]) -> None:
    for name in names:
        layout = LAYOUTS["separate"]
        for case in FAMILIES[name].cases(layout):
            print(f"{name}: {case.name}: {'; '.join(step.text for step in case.steps)}")


def main() -> int:
    wanted = options()
    names = wanted.families or list(FAMILIES)
    if wanted.list:
        print_cases(names)
        return 0
    seed = random.SystemRandom().randrange(1_000_000) if wanted.seed is None else wanted.seed
    levels = (PURE, KERNEL) if wanted.level == "both" else (wanted.level,)
    print(f"cases by chance: --random {wanted.random} --seed {seed}", flush=True)
    end = time.time() + wanted.minutes * 60
    grid = SAMPLE if wanted.quick else FULL
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    todo = tasks(levels, names, grid, end, range(seed, seed + wanted.random))
    done = run(todo, wanted.jobs, lambda text: print(text, flush=True))
    for level in levels:
        print(f"{level}: {summary(done.total(level))}", flush=True)
    if any(done.total(level).wrong for level in levels):
        return 1
    if not done.complete:
        print(f"OUT OF TIME after {wanted.minutes:g} minutes; --minutes gives more", file=sys.stderr)
        return 2
    for level in levels if wanted.write else ():
        report.FILE.write_text(report.with_run(report.FILE.read_text(), level, done.done[level]))
        print(f"wrote the counts of level {level} into {report.FILE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
