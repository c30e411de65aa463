"""docs/torture.md: the last run for each engine and each load."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs/torture.md"
#: How often each kind is wanted in a run, and the head of its column.
KINDS = ("starts", "labels", "networks", "bans", "kills", "flushes", "restarts", "upgrades", "boots")
GOAL = 1000
BEGIN, END = "<!-- runs: written by `make torture` -->\n", "<!-- end of runs -->\n"


@dataclass(frozen=True)
class Run:
    """A row: all is text, as it stands in the table."""

    engine: str
    #: idle or busy: whether other work ran beside it; and the machine's load average
    load: str
    date: str
    minutes: str
    seed: str
    starts: str
    labels: str
    networks: str
    bans: str
    kills: str
    flushes: str
    restarts: str
    upgrades: str
    boots: str
    shots: str
    #: shots that a closed port answered
    answered: str
    #: seconds for which an open port gave no answer, and the blow: on docker-fw networks, on Docker networks
    longest_outage: str
    longest_on_Docker_networks: str
    #: seconds from the end of a blow until all that should be open was, and the blow
    slowest_back: str
    #: of the plugin's worker, in MB
    memory: str
    descriptors: str

    @property
    def key(self) -> tuple[str, str]:
        return self.engine, self.load.split()[0]

    def line(self) -> str:
        return f"| {' | '.join(str(getattr(self, each.name)) for each in fields(self))} |\n"


HEADS = [each.name.replace("_", " ") for each in fields(Run)]


def table(runs: list[Run]) -> str:
    """Return the table of these runs, in the order of engines and loads."""
    head = f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}\n"
    ordered = sorted(runs, key=lambda run: ([int(part) for part in run.engine.split(".")], run.load))
    return head + "".join(run.line() for run in ordered)


def parse(text: str) -> list[Run]:
    """Return the runs of a document."""
    lines = text.partition(BEGIN)[2].partition(END)[0].strip().splitlines()[2:]
    rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [Run(*row) for row in rows if len(row) == len(HEADS)]  # a row of an older form is left out


def written(text: str, run: Run) -> str:
    """Return the document with this run, in the place of the last one with its engine and load."""
    before, _, rest = text.partition(BEGIN)
    kept = [each for each in parse(text) if each.key != run.key]
    return f"{before}{BEGIN}\n{table([*kept, run])}\n{END}{rest.partition(END)[2]}"
