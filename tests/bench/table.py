"""Rows of the result, printed and saved."""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
class Row:
    """One result. `ratio` is value / baseline. `aim` is a bound on the value or the ratio, and only shown."""

    name: str
    value: float
    unit: str
    baseline: float | None = None
    aim: str = ""

    @property
    def ratio(self) -> float | None:
        return self.value / self.baseline if self.baseline else None

    @property
    def missed(self) -> bool:
        """Return True if the aim (`value < N`, `ratio < N`, `ratio > N`) is not reached."""
        if not self.aim:
            return False
        what, sign, bound = self.aim.split()
        got = self.value if what == "value" else self.ratio
        return got is None or not (got < float(bound) if sign == "<" else got > float(bound))


class Table:
    """All rows of a run, in order."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.notes: list[str] = []

    def add(self, name: str, value: float, unit: str, baseline: float | None = None, aim: str = "") -> None:
        self.rows.append(Row(name, value, unit, baseline, aim))

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {
                "name": row.name,
                "value": _rounded(row.value),
                "unit": row.unit,
                "baseline": _rounded(row.baseline),
                "ratio": _rounded(row.ratio),
            }
            for row in self.rows
        ]
        path.write_text(json.dumps(rows, indent=1) + "\n")

    def __str__(self) -> str:
        width = max((len(row.name) for row in self.rows), default=4)
        lines = [f"{'name':<{width}}  {'value':>9} {'unit':<11} {'baseline':>9} {'ratio':>6}  aim"]
        for row in self.rows:
            aim = f"{row.aim}{'  MISSED' if row.missed else '  ok'}" if row.aim else ""
            lines.append(
                f"{row.name:<{width}}  {_shown(row.value):>9} {row.unit:<11} {_shown(row.baseline):>9} "
                f"{'' if row.ratio is None else f'{row.ratio:.2f}':>6}  {aim}".rstrip()
            )
        return "\n".join([*lines, *(f"* {note}" for note in self.notes)])


def _rounded(value: float | None) -> float | None:
    """Return the number with four significant digits."""
    return None if value is None else float(f"{value:.4g}")


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}" if abs(value) >= 0.01 else f"{value:.2g}"
