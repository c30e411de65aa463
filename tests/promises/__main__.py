"""Run `python -m tests.promises`: every promise on every engine, without docker-fw and with it, and write the table.

Exit status 0 if there is no difference but the documented ones, 1 otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.lab import ENGINES, Engine
from tests.product import Fw
from tests.promises import report, site
from tests.promises.differences import DIFFERENCES
from tests.promises.judge import Row, judge
from tests.promises.model import Setup
from tests.promises.world import RESOLVER, SETTINGS, Found, World, chosen, run

#: What earlier runs found, so that one engine can be run at a time.
RESULTS = Path(__file__).resolve().parents[2] / "build/promises.json"


def setups(versions: list[str], profiles: list[str]) -> list[Setup]:
    """Return the set-ups that have promises."""
    every = [Setup(version, profile) for version in versions for profile in profiles]
    return [each for each in every if each.fits(site.PROFILE_VERSIONS.get(each.profile, ""))]


def referee(version: str, wanted: list[Setup]) -> Iterator[tuple[Setup, list[Row]]]:
    """Try all promises of these set-ups on one engine: without docker-fw, then with it. Yields each one's rows."""
    engine = Engine(version, site.PROFILES[wanted[0].profile])
    engine.host.write("/etc/resolv.conf", RESOLVER)
    with engine:
        without = {setup: attempt(engine, setup) for setup in wanted}
        fw = Fw.install(engine, *SETTINGS)
        for setup in wanted:
            yield setup, judge(setup, chosen(setup), without[setup], attempt(engine, setup, fw))


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
    chosen_ones = parser.parse_args(argv)
    results = load()
    wanted = setups(chosen_ones.engine or list(ENGINES), chosen_ones.profile or list(site.PROFILES))
    for version in dict.fromkeys(setup.version for setup in wanted):
        for setup, rows in referee(version, [each for each in wanted if each.version == version]):
            results[setup] = rows
            show(setup, rows)
            save(results)
    every = setups(list(ENGINES), list(site.PROFILES))
    report.write({each: results[each] for each in every if each in results}, [e for e in every if e not in results])
    say(f"wrote docs/{report.DOCUMENT.name}")
    return int(any(row.wrong for setup in wanted for row in results[setup]))


def say(line: str) -> None:
    print(line, flush=True)


def show(setup: Setup, rows: list[Row]) -> None:
    same, differ = sum(row.same for row in rows), sum(len(row.differ) for row in rows)
    wrong = [f"  WRONG {row.promise}: {problem}" for row in rows for problem in row.wrong]
    say(f"Docker {setup.version}, {setup.profile}: {len(rows)} promises, {same} probes find the same with docker-fw")
    say(f"  {differ} differ as documented, {len(wrong)} are wrong")
    for line in wrong:
        say(line)


def fingerprint(setup: Setup) -> str:
    """Return a digest of what is tried in a set-up: results of other promises do not count."""
    what = repr((chosen(setup), site.BOXES, site.NETWORKS, site.PROFILES[setup.profile], DIFFERENCES))
    return hashlib.sha256(what.encode()).hexdigest()[:12]


def load() -> dict[Setup, list[Row]]:
    try:
        kept = json.loads(RESULTS.read_text())
    except FileNotFoundError:
        return {}
    there = {Setup(*key.split(" ")): each for key, each in kept.items()}
    return {
        setup: [Row.from_json(row) for row in each["rows"]]
        for setup, each in there.items()
        if each["fingerprint"] == fingerprint(setup)
    }


def save(results: dict[Setup, list[Row]]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    kept = {
        f"{setup.version} {setup.profile}": {"fingerprint": fingerprint(setup), "rows": [row.as_json() for row in rows]}
        for setup, rows in results.items()
    }
    RESULTS.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
