"""The results of a run: a row of the table each, and details without a goal; printed, and saved as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.rows import GROUPS, ROWS, Row

HOLDS, MISSED, UNMEASURED = "holds", "missed", "not measured"
_began = time.monotonic()


def say(text: str) -> None:
    """Print one line of progress on stderr."""
    print(f"bench {time.monotonic() - _began:4.0f} s: {text}", file=sys.stderr, flush=True)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile: a measured value."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


@dataclass(frozen=True)
class Result:
    """The result of a row, or a detail. A `ratio` of pairs is not exactly value / baseline."""

    value: float
    baseline: float | None = None
    ratio: float | None = None

    @staticmethod
    def of(value: float, baseline: float | None = None, ratio: float | None = None) -> Result:
        """Return a result whose ratio is value / baseline unless it is given."""
        return Result(value, baseline, value / baseline if ratio is None and baseline else ratio)


@dataclass(frozen=True)
class Line:
    """A row with its result, as it is shown: `state` is whether the goal holds."""

    row: Row
    result: Result | None
    state: str

    @property
    def why(self) -> str:
        """Why the goal is missed; "" if it is not."""
        return (self.row.why or "the reason is not known yet") if self.state == MISSED else ""


def line(row: Row, result: Result | None) -> Line:
    if result is None:
        return Line(row, None, MISSED if row.unbuilt else UNMEASURED)
    return Line(row, result, HOLDS if row.holds(result.value, result.ratio) else MISSED)


class Table:
    """All results of a run. `about`: what was run, where, and when."""

    def __init__(self) -> None:
        self.results: dict[str, Result] = {}
        #: By group: name, unit and result.
        self.details: dict[str, list[tuple[str, str, Result]]] = {}
        #: What the picture shows: [containers, ratio to the rule-free path] by path and kind.
        self.curves: dict[str, list[list[float]]] = {}
        self.about: dict[str, Any] = {}

    def put(self, key: str, value: float, baseline: float | None = None, ratio: float | None = None) -> None:
        """Store a row's result. KeyError if there is no such row: `rows` has all."""
        self.results[ROWS[key].key] = Result.of(value, baseline, ratio)

    def merge(self, other: Table) -> None:
        """Add the results of another table, which has none of this one's."""
        self.results |= other.results
        for group, found in other.details.items():
            self.details.setdefault(group, []).extend(found)
        for name, points in other.curves.items():
            self.curves.setdefault(name, []).extend(points)

    def detail(
        self, group: str, name: str, value: float, unit: str, baseline: float | None = None, ratio: float | None = None
    ) -> None:
        """Store a result that is no row of the table, and has no goal."""
        self.details.setdefault(group, []).append((name, unit, Result.of(value, baseline, ratio)))

    def curve(self, path: str, kind: str, count: int, ratio: float) -> None:
        """Store a point of the picture: the ratio to the rule-free path beside so many containers."""
        self.curves.setdefault(f"{path}, {kind}", []).append([count, float(f"{ratio:.4g}")])

    def lines(self) -> Iterator[Line]:
        """Yield every row, also those that were not measured."""
        return (line(row, self.results.get(row.key)) for row in ROWS.values())

    # --- JSON -----------------------------------------------------------------------------------------------------

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.json())

    def json(self) -> str:
        """Return all rows with their goals, so that the file is complete without this code."""
        rows = [
            {
                "key": each.row.key,
                "group": each.row.group,
                "name": each.row.name,
                **_rounded(each.result),
                "unit": each.row.unit,
                "against": each.row.baseline,
                "goal": each.row.goal,
                "state": each.state,
                "why": each.why,
            }
            for each in self.lines()
        ]
        details = {
            group: [{"name": name, "unit": unit, **_rounded(result)} for name, unit, result in found]
            for group, found in self.details.items()
        }
        text = {"about": self.about, "rows": rows, "details": details, "curves": self.curves}
        return json.dumps(text, indent=1, ensure_ascii=False) + "\n"

    @staticmethod
    def read(text: str) -> Table:
        """Return the table of a JSON text. Rows that do not exist any more are left out; goals are the present ones."""
        data, table = json.loads(text), Table()
        table.about, table.curves = data["about"], data["curves"]
        for each in data["rows"]:
            if each["value"] is not None and each["key"] in ROWS:
                table.results[each["key"]] = _result(each)
        for group, found in data["details"].items():
            table.details[group] = [(each["name"], each["unit"], _result(each)) for each in found]
        return table

    # --- text -----------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        lines = list(self.lines())
        width = max(len(each.row.name) for each in lines)
        head = f"{'value':>9} {'unit':<10} {'baseline':>9} {'ratio':>6}  {'goal':<14}"
        out = [f"{'measure':<{width}}  {head}"]
        for group in GROUPS:
            of_group = [each for each in lines if each.row.group == group]
            out += [_text(each, width) for each in of_group]
            out += [
                f"{name:<{width}}  {_cells(result, unit)}".rstrip()
                for name, unit, result in self.details.get(group, [])
            ]
        return "\n".join([*out, summary(lines)])


def summary(lines: Sequence[Line]) -> str:
    """Return how many goals hold."""
    count = {state: sum(each.state == state for each in lines) for state in (HOLDS, MISSED, UNMEASURED)}
    return f"{len(lines)} goals: {count[HOLDS]} hold, {count[MISSED]} missed, {count[UNMEASURED]} not measured"


def shown(value: float | None) -> str:
    """Return a number for people, with three or four digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _text(each: Line, width: int) -> str:
    result = each.result or Result(math.nan)
    cells = _cells(result, each.row.unit) if each.result else f"{'':>37}"
    state = UNMEASURED + ": not built, " + MISSED if each.row.unbuilt and not each.result else each.state
    why = f"  ({each.why})" if each.why and each.result else ""
    return f"{each.row.name:<{width}}  {cells}  {each.row.goal:<14} {state}{why}"


def _cells(result: Result, unit: str) -> str:
    ratio = "" if result.ratio is None else f"{result.ratio:.3f}"
    return f"{shown(result.value):>9} {unit:<10} {shown(result.baseline):>9} {ratio:>6}"


def _rounded(result: Result | None) -> dict[str, float | None]:
    """Return the numbers with four significant digits."""
    values = dataclasses.asdict(result) if result else dict.fromkeys(("value", "baseline", "ratio"))
    return {name: None if value is None else float(f"{value:.4g}") for name, value in values.items()}


def _result(data: Mapping[str, Any]) -> Result:
    return Result(data["value"], data["baseline"], data["ratio"])
