"""Test the benchmark's rows and its document: every row is there with its goal, measured or not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import document, picture
from tests.bench.rows import FAMILIES, GROUPS, KINDS, PEERS, PICTURED, ROWS, Row
from tests.bench.table import HOLDS, MISSED, UNMEASURED, Table, line, summary

ROOT = Path(__file__).resolve().parents[2]
#: The results of a quick run, which mean nothing, and the document that follows from them.
EXAMPLE, DOCUMENT = ROOT / "tests/golden/bench.json", ROOT / "tests/golden/performance.md"


@pytest.fixture
def example() -> Table:
    return Table.read(EXAMPLE.read_text())


# --- rows ---------------------------------------------------------------------------------------------------------


def test_every_row_has_a_goal_and_a_group() -> None:
    """A goal is a bound on the value, or on the ratio to a baseline that the row names; no two rows have one name."""
    for row in ROWS.values():
        what, sign, bound = row.goal.split()
        assert what in ("value", "ratio")
        assert sign in ("<=", ">=", "<")
        assert float(bound) > 0
        assert row.group in GROUPS
        assert bool(row.baseline) is (what == "ratio"), row
    assert len({(row.name, row.unit, row.goal, row.baseline) for row in ROWS.values()}) == len(ROWS)


def test_packets_are_measured_in_both_families() -> None:
    """Each row of packets exists for IPv6 and for IPv4."""
    names = [row.name for row in ROWS.values() if row.unit in KINDS.values()]
    for name in names:
        assert {re.sub(r"IPv.$", family, name) for family in FAMILIES.values()} <= set(names)


@pytest.mark.parametrize(
    ("goal", "value", "ratio", "holds"),
    [
        ("value <= 2", 2.0, None, True),
        ("value <= 2", 2.1, None, False),
        ("value < 1", 1.0, None, False),
        ("ratio >= 0.97", 1.0, 0.97, True),
        ("ratio >= 0.97", 1.0, 0.969, False),
        ("ratio <= 1.03", 9.0, 1.03, True),
        ("ratio <= 1.03", 1.0, None, False),
    ],
)
def test_a_goal_holds_at_its_bound(goal: str, value: float, ratio: float | None, holds: bool) -> None:
    """A result at the bound reaches the goal, unless the goal excludes it; a missing ratio reaches none."""
    assert Row("key", "packets", "name", "ms", goal).holds(value, ratio) is holds


# --- results ------------------------------------------------------------------------------------------------------


def test_a_row_that_was_not_measured_is_in_the_table() -> None:
    """All rows are shown; those of a feature that is not built count as missed, with that reason."""
    lines = list(Table().lines())
    assert len(lines) == len(ROWS)
    for each in lines:
        assert each.state == (MISSED if each.row.unbuilt else UNMEASURED)
        assert ("not built" in each.why) is each.row.unbuilt
    assert all(row.name in str(Table()) for row in ROWS.values())


def test_a_missed_goal_has_a_reason() -> None:
    """A row names why it is missed; without a reason it says that none is known, and a row that holds has none."""
    row = Row("key", "packets", "name", "ms", "value <= 2")
    with_reason = Row("key", "packets", "name", "ms", "value <= 2", why="the reason")
    assert [line(each, None).why for each in (row, with_reason)] == ["", ""]
    slow = Table()
    slow.put("load boot", 5.0)
    fast = Table()
    fast.put("load boot", 0.01)
    (missed,) = (each for each in slow.lines() if each.row.key == "load boot")
    (held,) = (each for each in fast.lines() if each.row.key == "load boot")
    assert (missed.state, held.state) == (MISSED, HOLDS)
    assert missed.why
    assert not held.why


def test_a_result_without_a_row_is_an_error() -> None:
    """What is measured has a row with a goal; anything else is a detail."""
    with pytest.raises(KeyError):
        Table().put("no such row", 1.0)


def test_results_survive_the_file(example: Table) -> None:
    """build/bench.json has everything that the table and the document show."""
    again = Table.read(example.json())
    assert list(again.lines()) == list(example.lines())
    assert (again.details, again.curves, again.about) == (example.details, example.curves, example.about)


def test_the_file_is_complete_without_the_code(example: Table) -> None:
    """Each row in the file has its name, value, unit, baseline, ratio and goal, and whether it holds."""
    rows = json.loads(example.json())["rows"]
    assert [row["key"] for row in rows] == list(ROWS)
    for row in rows:
        assert {"name", "value", "unit", "against", "baseline", "ratio", "goal", "state", "why"} <= set(row)


def test_results_of_several_processes_become_one_table(example: Table) -> None:
    """The groups are measured in processes of their own."""
    table = Table()
    table.merge(example)
    other = Table()
    other.put("load boot", 0.05)
    other.curve("fw", "new UDP flows", 7, 0.5)
    table.merge(other)
    assert {"load boot", *example.results} == set(table.results)
    assert [7, 0.5] in table.curves["fw, new UDP flows"]


# --- the document ---------------------------------------------------------------------------------------------------


def test_the_document_follows_from_the_results(example: Table) -> None:
    """`FW_GOLDEN=write` writes the expected document again."""
    text = document.written(example)
    if os.environ.get("FW_GOLDEN") == "write":
        DOCUMENT.write_text(text)
    assert text == DOCUMENT.read_text()


def test_the_document_has_every_row_and_every_reason(example: Table) -> None:
    """Each row is in its group's table, and each missed one in the list of missed goals, with its reason."""
    text = document.written(example)
    missed = text.partition("## Missed goals")[2].partition("\n## ")[0]
    assert summary(list(example.lines())) in missed
    for each in example.lines():
        section = text.partition(f"\n## {each.row.group.capitalize()}\n")[2].partition("\n## ")[0]
        assert each.row.name in section
        assert (f"| {each.row.name} |" in missed) or each.state != MISSED
        assert each.why in missed


def test_a_partial_or_quick_run_is_not_documented() -> None:
    """docs/performance.md never has figures of a run that left something out."""
    for option in (["--quick"], ["--only", "join"]):
        command = [sys.executable, "-m", "tests.bench", "--document", *option]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 2
        assert "full runs only" in done.stderr


def test_last_results_of_a_quick_run_are_not_documented(tmp_path: Path) -> None:
    """`--read --document` refuses them too."""
    file = tmp_path / "bench.json"
    file.write_text(EXAMPLE.read_text())
    command = [sys.executable, "-m", "tests.bench", "--document", "--read", "--output", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, "is not of a full run" in done.stderr) == (1, True)


# --- the picture ----------------------------------------------------------------------------------------------------


def test_the_picture_shows_each_kind_and_each_peer(example: Table, tmp_path: Path) -> None:
    """It is an SVG with a panel for each kind of packets, and the same results give the same file."""
    for name in ("one.svg", "two.svg"):
        picture.draw(example.curves, tmp_path / name)
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text()
    assert text.startswith("<?xml")
    assert text.rstrip().endswith("</svg>")
    for name in (*PICTURED, *(peer.name for peer in PEERS), "docker-fw network"):
        assert name in text


def test_simulated_crowds_continue_the_cost_of_one_container() -> None:
    """A simulated point is relative to one endpoint; the picture shows it relative to a host without rules."""
    curves = {"fw, new UDP flows": [[200, 0.4], [1, 0.5]], "simulated fw, new UDP flows": [[10_000, 0.8]]}
    assert picture.costs(curves, "fw", "new UDP flows") == ([(1, 2.0), (200, 2.5)], [(10_000, 2.5)])


def test_without_one_container_simulated_crowds_are_not_shown() -> None:
    """There is nothing to relate them to."""
    assert picture.costs({"simulated fw, bulk": [[10_000, 0.8]]}, "fw", "bulk") == ([], [])
