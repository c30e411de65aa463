"""Write docs/performance.md and its picture from the results of a full run."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path

from tests.bench import picture
from tests.bench.rows import GROUPS, PEERS, PICTURED
from tests.bench.table import HOLDS, MISSED, UNMEASURED, Line, Table, shown, summary

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT, PICTURE = ROOT / "docs/performance.md", ROOT / "docs/performance.svg"
_STATES = {HOLDS: "holds", MISSED: "**missed**", UNMEASURED: "not measured"}
_INTRODUCTION = """\
# Performance

`make bench` measures docker-fw against Docker without it, and against hosts without a firewall. This page shows the
last full run; the run writes it, and no figure is entered by hand. A *protected* Docker bridge is a network of Docker's
bridge driver on a host with docker-fw. An *exception* is a port that a label opens.

A goal is a bound on a value, or on a ratio to a baseline of the same run. A ratio of packets is the median of pairs
that were measured directly after each other, so other work on the machine affects both alike.
"""
_REPEAT = """\
## Repeat it

As root on Debian, on an idle machine with two processors or more, in a checkout:

```sh
make bench
make bench ARGS=--document
make bench ARGS="--only packets --only join"
make bench ARGS="--read --document"
```

The first command measures everything within 25 minutes and writes `build/bench.json`; the second one writes this page
too. The third one measures some groups only, and the last one writes this page from the last full run. `ARGS=--quick`
is for trying the benchmark itself, and its figures mean nothing. The rows, their goals and the reasons are in
`tests/bench/rows.py`. The groups are:

{groups}.
"""
_PICTURE = """\
![CPU time of a packet against the number of containers]({name})

The CPU time that a packet, a new flow or a connection costs from an outsider to a container, over IPv6, relative to a
host without any rule. Points on solid lines are of real engines in this run. Dashed lines continue them beside
simulated crowds. Grey: other firewalls, measured before this run by the same method; their figures are below.
"""


def write(table: Table) -> None:
    """Write the document and the picture."""
    picture.draw(table.curves, PICTURE)
    DOCUMENT.write_text(written(table))


def written(table: Table) -> str:
    """Return the document."""
    lines = list(table.lines())
    parts = [
        _INTRODUCTION,
        _about(table),
        _PICTURE.format(name=PICTURE.name),
        f"## Missed goals\n\n{summary(lines)}.\n\n{_missed(lines)}",
        _REPEAT.format(groups=_wrapped(", ".join(f"`{group}`" for group in GROUPS))),
        *(_group(table, lines, group) for group in GROUPS),
        _peers(),
    ]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _about(table: Table) -> str:
    of = table.about
    return _wrapped(
        f"The last run: {of['date']}, docker-fw {of['docker-fw']} (commit {of['commit']}), Docker {of['engine']}, "
        f"Linux {of['kernel']}, nft {of['nft']}, {of['cpus']} × {of['cpu']}. It took {of['minutes']:g} minutes. "
        f"Load of the machine before and after: {of['load before']:g}, {of['load after']:g}."
    )


def _missed(lines: Iterable[Line]) -> str:
    rows = [
        [each.row.name, _against(each), _result(each), _goal(each), each.why] for each in lines if each.state == MISSED
    ]
    return _table(["measure", "compared with", "result", "goal", "reason"], rows) if rows else "All goals hold.\n"


def _group(table: Table, lines: Iterable[Line], group: str) -> str:
    """Return a group's section: its rows, and what was measured in addition."""
    text = f"## {group.capitalize()}\n\n{_wrapped(GROUPS[group])}\n"
    head = ["measure", "value", "unit", "compared with", "baseline", "ratio", "goal", "state"]
    rows = [_cells(each) for each in lines if each.row.group == group]
    if rows:
        text += f"\n{_table(head, rows)}"
    if found := table.details.get(group):
        more = [[name, shown(of.value), unit, shown(of.baseline), _ratio(of.ratio)] for name, unit, of in found]
        text += f"\nIn addition, without a goal:\n\n{_table(['measure', 'value', 'unit', 'baseline', 'ratio'], more)}"
    return text


def _cells(line: Line) -> list[str]:
    of = line.result
    values = [shown(of.value), shown(of.baseline), _ratio(of.ratio)] if of else ["", "", ""]
    state = "not measured: not built" if line.row.unbuilt and not of else _STATES[line.state]
    value, baseline, ratio = values
    return [line.row.name, value, line.row.unit, _against(line), baseline, ratio, _goal(line), state]


def _goal(line: Line) -> str:
    return line.row.goal.replace("<=", "≤").replace(">=", "≥")


def _against(line: Line) -> str:
    return line.row.baseline


def _result(line: Line) -> str:
    of = line.result
    if not of:
        return "not measured"
    return _ratio(of.ratio) if line.row.goal.startswith("ratio") else f"{shown(of.value)} {line.row.unit}".strip()


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3f}"


def _peers() -> str:
    head = ["firewall", "containers", *PICTURED]
    rows = [
        [peer.name, f"{count:,}", *(f"{ratio:.2f}" for ratio in ratios)]
        for peer in PEERS
        for count, ratios in peer.ratios.items()
    ]
    return (
        "## Other firewalls\n\nMeasured before this run, by the same method on such a machine: the ratio of their "
        f"rates to those of a host without any rule.\n\n{_table(head, rows)}"
    )


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
