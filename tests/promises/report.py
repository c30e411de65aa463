"""The tables of docs/docker-promises.md, written from the results of all set-ups."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.lab import ENGINES
from tests.promises.differences import REASONS, UNTRIED
from tests.promises.judge import Row
from tests.promises.model import Setup
from tests.promises.registry import PROMISES

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/docker-promises.md"
BEGIN, END = "<!-- make referee-docker writes this part -->", "<!-- end -->"

Results = Mapping[Setup, list[Row]]


def document(results: Results, missing: Sequence[Setup] = ()) -> str:
    """Return the generated part of the document. `missing`: set-ups that have not been run since they changed."""
    return "\n".join((*_missing(missing), *_table(results), "", *_differences(results), "", *_untried()))


def write(results: Results, missing: Sequence[Setup] = ()) -> None:
    """Write the generated part between its markers."""
    text = DOCUMENT.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{document(results, missing)}\n\n{END}{after}")


def promises_in(text: str) -> list[str]:
    """Return the names of the promises that a document's table has."""
    return re.findall(r"^\| \*\*(.+?)\*\*", text, re.MULTILINE)


def _missing(missing: Sequence[Setup]) -> Iterator[str]:
    if missing:
        names = ", ".join(f"{setup.version} {setup.profile}" for setup in missing)
        yield f"**Not run yet**, so that the numbers below lack them: {names}.\n"


def _table(results: Results) -> Iterator[str]:
    yield f"| promise | origin | {' | '.join(ENGINES)} |"
    yield f"|---|---|{'---|' * len(ENGINES)}"
    for promise in PROMISES:
        cells = [_cell([row for setup, row in _rows(results, promise.name) if setup.version == v]) for v in ENGINES]
        yield f"| **{promise.name}**: {promise.says} | {promise.origin} | {' | '.join(cells)} |"


def _rows(results: Results, name: str) -> Iterator[tuple[Setup, Row]]:
    for setup, rows in results.items():
        yield from ((setup, row) for row in rows if row.promise == name)


def _cell(rows: list[Row]) -> str:
    if not rows:
        return "-"
    same = f"{sum(row.same for row in rows)} same"
    reasons: dict[str, int] = {}
    for row in rows:
        for reason, *_ in row.differ:
            reasons[reason] = reasons.get(reason, 0) + 1
    differ = [f"{count} differ: {reason}" for reason, count in reasons.items()]
    wrong = [f"**{sum(len(row.wrong) for row in rows)} wrong**"] if any(row.wrong for row in rows) else []
    return ", ".join([same, *differ, *wrong])


def _differences(results: Results) -> Iterator[str]:
    yield "### Differences, and why"
    for reason, text in REASONS.items():
        yield f"\n**{reason}**: {text}"
        seen: dict[str, set[str]] = {}
        for setup, rows in results.items():
            for each in (each for row in rows for each in row.differ if each[0] == reason):
                seen.setdefault(f"`{each[1]}`: {each[2]} with Docker alone, {each[3]} with docker-fw", set()).add(
                    setup.version
                )
        yield from (f"- {line} ({', '.join(v for v in ENGINES if v in versions)})" for line, versions in seen.items())


def _untried() -> Iterator[str]:
    yield "### Not tried here\n"
    yield from (f"- {what}: {why}" for what, why in UNTRIED.items())
