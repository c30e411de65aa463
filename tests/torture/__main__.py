"""Run blows in random order until the time is over; exit with 1 if a promise was broken."""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from dataclasses import dataclass

from plugin.kernel.names import GROUP
from tests.lab import ENGINES, Engine, Registry, Wan
from tests.product import NEWEST, ROOT, Fw, with_plugin
from tests.waiting import until

from .bed import HEADER, Bed, Row
from .blows import BLOWS, LASTING, Blow
from .load import loops, others_work
from .report import DOCUMENT, KINDS, Run, written
from .storm import kills_storm, starts_storm
from .versions import pushed

#: Single blows after each pair of storms.
SINGLE = 4

#: Limits for the plugin's worker with two networks: file descriptors, MB. After a start it has about 50 and 65.
DESCRIPTORS, MEMORY = 100, 100.0


def leaks(fw: Fw) -> str:
    """Return the remains of removed places: elements, except those that expire, and host sides of links."""

    def left() -> list[str]:
        table = fw.host.run(["nft", "list", "table", "inet", "docker-fw"]).stdout.replace(", ", "\n").splitlines()
        ours = [line.strip() for line in table if "10.89." in line or "2001:db8:89:" in line]
        links = fw.host.run(["ip", "-br", "link", "show", "group", hex(GROUP)], check=False).stdout.splitlines()
        return [line for line in ours if " expires " not in line] + links

    try:
        until(lambda: not left(), "nothing is left", 5)
    except AssertionError:
        return f", left behind: {left()}"
    return ""


@dataclass(frozen=True)
class Usage:
    """The resources of the plugin's worker."""

    descriptors: int
    memory: float

    @classmethod
    def of(cls, fw: Fw) -> Usage:
        worker = fw.pids()[-1]
        fds = len(fw.host.run(["ls", f"/proc/{worker}/fd"]).stdout.split())
        rss = fw.host.run(["grep", "VmRSS", f"/proc/{worker}/status"]).stdout.split()[1]
        return cls(fds, int(rss) / 1024)

    @property
    def too_much(self) -> bool:
        return self.descriptors > DESCRIPTORS or self.memory > MEMORY

    def __str__(self) -> str:
        words = f"the plugin has {self.descriptors} descriptors, {self.memory:.1f} MB"
        return f"{words}, which is TOO MUCH" if self.too_much else words


def run(bed: Bed, given: argparse.Namespace) -> tuple[list[Row], list[Usage]]:
    """Strike until the time is over; print each blow as it ends, and counts and resources after each round."""
    draw, end = random.Random(given.seed), time.monotonic() + given.minutes * 60
    rows: list[Row] = []
    used: list[Usage] = []
    waiting: list[Blow] = []
    storms = (starts_storm(given.storm), kills_storm(given.storm)) if given.storm else ()
    singles = [blow for blow in BLOWS if not given.blows or blow.__name__ in given.blows]
    print(HEADER, flush=True)
    while time.monotonic() < end:
        while len(waiting) < SINGLE:
            waiting += draw.sample(singles, len(singles))
        for blow in (*storms, *(waiting.pop(0) for _ in range(SINGLE))):
            rows.append(bed.strike(blow))
            print(rows[-1], *map(str, rows[-1].opened[:5]), flush=True)
            if time.monotonic() > end:
                break
        until(bed.fw.answers, "the plugin answers")
        used.append(Usage.of(bed.fw))
        print(f"  {used[-1]}; {', '.join(f'{bed.counts[kind]} {kind}' for kind in KINDS)}", flush=True)
    return rows, used


def summary(given: argparse.Namespace, bed: Bed, rows: list[Row], used: list[Usage], busy: bool) -> Run:
    """Return the run's row for the document."""
    load = os.getloadavg()[2]
    slowest = max(rows, key=lambda row: row.back)
    outage = max(lasting(rows), key=lambda row: row.outage)
    docker = max(lasting(rows), key=lambda row: row.docker_outage)
    return Run(
        engine=given.engine,
        load=f"{'busy' if busy else 'idle'} ({load:.0f})",
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        minutes=f"{given.minutes:g}",
        seed=str(given.seed),
        shots=str(sum(row.shots for row in rows)),
        answered=str(sum(len(row.opened) for row in rows)),
        longest_outage=f"{outage.outage:.1f} ({outage.blow})",
        longest_on_Docker_networks=f"{docker.docker_outage:.1f} ({docker.blow})",
        slowest_back=f"{slowest.back:.1f} ({slowest.blow})",
        memory=f"{max(each.memory for each in used):.0f}",
        descriptors=str(max(each.descriptors for each in used)),
        **{kind: str(bed.counts[kind]) for kind in KINDS},
    )


def lasting(rows: list[Row]) -> list[Row]:
    """Return the blows whose outages are docker-fw's: others stop containers or dockerd, or close on purpose."""
    return [row for row in rows if row.blow in LASTING] or rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="the order of the blows")
    parser.add_argument("--minutes", type=float, default=30, help="how long (30)")
    parser.add_argument("--engine", default=NEWEST, choices=ENGINES, help=f"Docker's version ({NEWEST})")
    parser.add_argument("--load", type=int, default=0, help="busy loops beside it (0)")
    parser.add_argument("--storm", type=float, default=30, help="seconds of each storm (30); 0 is none")
    parser.add_argument(
        "--blows", nargs="+", metavar="BLOW", choices=[blow.__name__ for blow in BLOWS], help="only these"
    )
    return parser.parse_args()


def main() -> int:
    given = arguments()
    print(f"seed {given.seed}, engine {given.engine}, {given.minutes:g} minutes, {given.load} loops", flush=True)
    busy = given.load > 0 or others_work()
    records = ROOT / "build/torture" / str(given.seed)
    data = with_plugin(given.engine)
    with (
        Wan() as wan,
        Registry(wan) as registry,
        Engine(given.engine, [registry.insecure], wan=wan, data=data) as engine,
    ):
        versions = pushed(engine, registry)
        fw = Fw.install(engine)
        bed = Bed(fw, proxied=True, records=records)
        bed.versions = versions
        with loops(given.load, given.minutes * 60 + 600), bed.created():
            rows, used = run(bed, given)
        left = leaks(fw)
    row = summary(given, bed, rows, used, busy)
    DOCUMENT.write_text(written(DOCUMENT.read_text(), row))
    broken = [row for row in rows if row.broken]
    print(f"{len(rows)} blows, {row.shots} shots, {row.answered} answered, {len(broken)} broken{left}")
    print(*(f"{bed.counts[kind]:6} {kind}" for kind in KINDS), sep="\n")
    for each in bed.recorder.kept if bed.recorder else ():
        print(f"recorded in {each}")
    return 1 if broken or left or any(each.too_much for each in used) else 0


if __name__ == "__main__":
    sys.exit(main())
