"""Run blows in random order until the time is over; exit with 1 if a promise was broken."""

from __future__ import annotations

import argparse
import random
import sys
import time
from dataclasses import dataclass

from plugin.kernel.names import GROUP
from tests.lab import ENGINES, Engine
from tests.product import NEWEST, Fw
from tests.waiting import until

from .bed import HEADER, Bed, Row
from .blows import BLOWS

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


def run(fw: Fw, seed: int, minutes: float) -> tuple[list[Row], list[Usage]]:
    """Strike until the time is over; print each blow as it ends, and the plugin's resources after each round."""
    draw, end = random.Random(seed), time.monotonic() + minutes * 60
    rows: list[Row] = []
    used: list[Usage] = []
    with Bed(fw).created() as bed:
        print(HEADER, flush=True)
        while time.monotonic() < end:
            for blow in draw.sample(BLOWS, len(BLOWS)):
                rows.append(bed.strike(blow))
                print(rows[-1], *rows[-1].opened[:5], flush=True)
                if time.monotonic() > end:
                    break
            until(fw.answers, "the plugin answers")
            used.append(Usage.of(fw))
            print(f"  {used[-1]}", flush=True)
    return rows, used


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="the order of the blows")
    parser.add_argument("--minutes", type=float, default=15, help="how long (15)")
    parser.add_argument("--engine", default=NEWEST, choices=ENGINES, help=f"Docker's version ({NEWEST})")
    given = parser.parse_args()
    print(f"seed {given.seed}, engine {given.engine}, {given.minutes:g} minutes", flush=True)
    with Engine(given.engine) as engine:
        fw = Fw.install(engine)
        rows, used = run(fw, given.seed, given.minutes)
        left = leaks(fw)
    broken = [row for row in rows if row.broken]
    print(
        f"{len(rows)} blows, {sum(row.shots for row in rows)} shots, {sum(len(row.opened) for row in rows)} opened,"
        f" slowest back {max(row.back for row in rows):.2f} s, {len(broken)} broken{left}"
    )
    return 1 if broken or left or any(each.too_much for each in used) else 0


if __name__ == "__main__":
    sys.exit(main())
