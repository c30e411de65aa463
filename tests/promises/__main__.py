"""Run `python -m tests.promises`: every promise on every engine, without docker-fw and with it, and write the table.

Exit status 0 if there is no difference but the documented ones, 1 otherwise.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

from tests.lab import ENGINES, Engine
from tests.product import Fw, with_plugin
from tests.promises import report, results, site
from tests.promises.judge import Row, judge
from tests.promises.model import Setup
from tests.promises.results import Tried
from tests.promises.world import RESOLVER, SETTINGS, Found, World, chosen, run


def setups(versions: list[str], profiles: list[str]) -> list[Setup]:
    """Return the set-ups that have promises."""
    every = [Setup(version, profile) for version in versions for profile in profiles]
    return [each for each in every if each.fits(site.PROFILE_VERSIONS.get(each.profile, ""))]


def referee(version: str, wanted: list[Setup]) -> Iterator[tuple[Setup, Tried]]:
    """Try all promises of these set-ups on one engine: without docker-fw, then with it. Yields what was found."""
    engine = Engine(version, site.PROFILES[wanted[0].profile], data=with_plugin(version))
    engine.host.write("/etc/resolv.conf", RESOLVER)
    with engine:
        without = {setup: attempt(engine, setup) for setup in wanted}
        fw = Fw.install(engine, *SETTINGS)
        for setup in wanted:
            yield setup, Tried(without[setup], attempt(engine, setup, fw))


def attempt(engine: Engine, setup: Setup, fw: Fw | None = None) -> Found:
    """Return what every probe finds, after a reboot: no rule and no link of another set-up remains."""
    began = time.monotonic()
    engine.reboot(start=False)
    engine.start(site.PROFILES[setup.profile])
    with World(engine, setup, chosen(setup), fw) as world:
        found = run(world)
    how = f"{'with' if fw else 'without'} docker-fw"
    say(f"Docker {setup.version}, {setup.profile}, {how}: {len(found)} probes, {time.monotonic() - began:.0f} s")
    return found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.promises", description=__doc__)
    parser.add_argument("--engine", action="append", choices=list(ENGINES), help="one of the engines (default: all)")
    parser.add_argument("--profile", action="append", choices=list(site.PROFILES), help="how dockerd is started")
    parser.add_argument("--judge", action="store_true", help="try nothing; judge what earlier runs found")
    options = parser.parse_args(argv)
    tried = results.load()
    wanted = setups(options.engine or list(ENGINES), options.profile or list(site.PROFILES))
    for version in () if options.judge else dict.fromkeys(setup.version for setup in wanted):
        for setup, found in referee(version, [each for each in wanted if each.version == version]):
            tried[setup] = found
            results.save(tried)
            show(setup, judged(setup, found))
    every = setups(list(ENGINES), list(site.PROFILES))
    rows = {setup: judged(setup, tried[setup]) for setup in every if setup in tried}
    if options.judge:
        for setup, its in rows.items():
            show(setup, its)
    report.write(rows, [setup for setup in every if setup not in tried])
    say(f"wrote docs/{report.DOCUMENT.name}")
    return int(any(row.wrong for its in rows.values() for row in its))


def judged(setup: Setup, tried: Tried) -> list[Row]:
    """Return a row for each promise of a set-up."""
    return judge(setup, chosen(setup), tried.without, tried.ours)


def say(line: str) -> None:
    print(line, flush=True)


def show(setup: Setup, rows: list[Row]) -> None:
    same, differ = sum(row.same for row in rows), sum(len(row.differ) for row in rows)
    wrong = [f"  WRONG {row.promise}: {problem}" for row in rows for problem in row.wrong]
    say(f"Docker {setup.version}, {setup.profile}: {len(rows)} promises, {same} probes find the same with docker-fw")
    say(f"  {differ} differ as documented, {len(wrong)} are wrong")
    for line in wrong:
        say(line)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
