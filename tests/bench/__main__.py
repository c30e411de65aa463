"""Run `python -m tests.bench`: it measures, prints the table, writes build/bench.json and, on request, the document."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

from tests.bench import child, document, events, flushes, machine, starts
from tests.bench.bed import Bed
from tests.bench.packets import Packets
from tests.bench.rows import GROUPS
from tests.bench.scale import FULL, QUICK, Scale
from tests.bench.table import Table, say
from tests.lab import ENGINES, LabError

#: A group, and its runs in turn: first on an empty engine, then with the crowd. A flush leaves none of Docker's rules.
Step = tuple[str, Callable[[Bed, Table], None]]
#: The groups that need no engine, by the module that measures them, in a process and in network namespaces of its own.
SIMULATED: dict[str, tuple[str, ...]] = {
    "crowds": ("crowds", "features"),
    "processes": ("load", "events", "memory", "cpu", "join", "start"),
    "rules": ("rules",),
}
OUTPUT = Path(__file__).resolve().parents[2] / "build/bench.json"


def steps() -> list[Step]:
    packets = Packets()
    return [
        ("packets", packets.one),
        ("run", starts.measure),
        ("packets", packets.many),
        ("events", events.measure),
        ("flush", flushes.measure),
    ]


def run(table: Table, engine: str, scale: Scale, groups: Collection[str]) -> None:
    """Measure these groups."""
    if wanted := [work for group, work in steps() if group in groups]:
        say(f"starting Docker {engine} with the plugin…")
        with Bed(engine, scale) as bed:
            for work in wanted:
                work(bed, table)
            say("taking the engine away")
    for module, measured in SIMULATED.items():
        if some := [group for group in measured if group in groups]:
            child.measure(module, scale, table, some)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Speed and memory of docker-fw against a Docker without it and no firewall at all. Needs root.",
        epilog=f"Groups: {', '.join(GROUPS)}. docs/performance.md describes them.",
    )
    parser.add_argument("--engine", default=[*ENGINES][-1], choices=[*ENGINES], help="Docker's version (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="less of everything, to try it: some minutes, no figures")
    parser.add_argument(
        "--only",
        action="append",
        choices=list(GROUPS),
        metavar="GROUP",
        help="only this group (again for more): %(choices)s",
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the JSON is written (%(default)s)")
    parser.add_argument("--document", action="store_true", help="write docs/performance.md; for a full run only")
    parser.add_argument(
        "--read", action="store_true", help="measure nothing: show the last full run, or write the document from it"
    )
    found = parser.parse_args()
    if found.document and (found.quick or found.only):
        parser.error("docs/performance.md shows full runs only: leave --quick and --only out")
    return found


def main() -> int:
    chosen = options()
    if chosen.read and not chosen.output.exists():
        print(f"bench: {chosen.output} does not exist; make bench measures and writes it", file=sys.stderr)
        return 1
    if chosen.read:
        table, complete = Table.read(chosen.output.read_text()), True
        print(table)
    else:
        table = Table()
        complete = measure(table, chosen)
    if not complete:
        return 1
    if chosen.document:
        if not table.about["full"]:
            print(f"bench: {chosen.output} is not of a full run", file=sys.stderr)
            return 1
        document.write(table)
        say(f"written to {document.DOCUMENT} and {document.PICTURE}")
    return 0


def measure(table: Table, chosen: argparse.Namespace) -> bool:
    """Measure, print and save; False after an error. What was measured until then is saved too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: terminated; what was measured until then follows"))
    began, complete = time.monotonic(), False
    table.about = machine.about(chosen.engine) | {"full": False}
    try:
        run(table, chosen.engine, QUICK if chosen.quick else FULL, chosen.only or list(GROUPS))
        complete = True
    except (LabError, RuntimeError, OSError, AssertionError, subprocess.SubprocessError) as error:
        print(f"bench: {error}", file=sys.stderr)
    finally:
        table.about |= {
            "full": complete and not chosen.quick and not chosen.only,
            "minutes": round((time.monotonic() - began) / 60, 1),
            "load after": machine.load(),
        }
        table.write(chosen.output)
        print(table)
        say(f"written to {chosen.output}")
    return complete


if __name__ == "__main__":
    sys.exit(main())
