"""Run `python -m tests.bench`: it measures, prints the table, and writes build/bench.json."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from tests.bench import guard, hooks, leaving, rules, sources, starts
from tests.bench.bed import FULL, QUICK, Bed
from tests.bench.memory import Memory
from tests.bench.packets import Packets
from tests.bench.table import Table, say
from tests.lab import DEFAULT, ENGINES, LabError

GROUPS = {
    "hooks": "time inside the plugin of each hook, with few endpoints and with many",
    "run": "docker run and rm -f, and the first answer to an outsider, on our network and on Docker's, protected, "
    "against a Docker without docker-fw",
    "guard": "how long after Docker's events a container on Docker's own network is open, and closed again",
    "memory": "the plugin's processes idle, with many containers, on Docker networks too, with many endpoints; the "
    "kernel's sets",
    "packets": "established, new flows, connects, bulk, on our network and on Docker's, protected, against a rule-free "
    "path and a Docker without docker-fw",
    "sources": "`from`: new flows and changes beside ten thousand containers with a list of their own",
    "leaving": "how soon the kernel has it that a container has gone, beside ten thousand whose rules name peers; what "
    "4 KB of labels cost to read",
    "rules": "one element in or out of the table, against libnftables",
}
#: A group, and its runs in turn: first on an empty engine, then with the crowd, then with all its endpoints.
Step = tuple[str, Callable[[Bed, Table], None]]
OUTPUT = Path(__file__).resolve().parents[2] / "build/bench.json"


def steps(bed: Bed) -> list[Step]:
    memory, packets, scale = Memory(), Packets(), bed.scale

    def crowd(bed: Bed, table: Table) -> None:
        bed.containers()
        memory.measure(bed, table, f"{scale.containers} containers")

    def protected(bed: Bed, table: Table) -> None:
        bed.protected()
        memory.measure(bed, table, f"{scale.containers} containers, on a network of Docker's too")

    def endpoints(bed: Bed, table: Table) -> None:
        bed.endpoints()
        memory.measure(bed, table, f"{scale.endpoints:,} endpoints of {scale.containers} containers")

    return [
        ("memory", lambda bed, table: memory.measure(bed, table, "idle")),
        ("packets", packets.one),
        ("run", starts.measure),
        ("guard", guard.alone),
        ("rules", rules.measure),
        ("sources", sources.measure),
        ("leaving", leaving.measure),
        ("memory", crowd),
        ("memory", protected),
        ("packets", packets.many),
        ("guard", guard.crowded),
        ("memory", endpoints),
        ("hooks", hooks.measure),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Speed and memory of docker-fw against a Docker without it and no firewall at all. Needs root.",
        epilog="groups: " + "; ".join(f"{name}: {text}" for name, text in GROUPS.items()),
    )
    parser.add_argument("--engine", default=DEFAULT, choices=list(ENGINES), help="Docker's version (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="less of everything: two or three minutes, and rougher")
    parser.add_argument(
        "--only",
        action="append",
        choices=list(GROUPS),
        metavar="GROUP",
        help="only this group (again for more): %(choices)s",
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the JSON goes (%(default)s)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: terminated; what was measured until then follows"))
    table = Table()
    try:
        say(f"starting Docker {options.engine} with the plugin…")
        with Bed(options.engine, QUICK if options.quick else FULL) as bed:
            for group, step in steps(bed):
                if not options.only or group in options.only:
                    step(bed, table)
            say("done; taking the engine away")
    except (LabError, RuntimeError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        if table.rows:
            table.write(options.output)
            print(table)
    say(f"written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
