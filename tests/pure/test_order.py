"""The order of tests is new in every run, and short where it matters: what takes longest begins first."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from tests import conftest, many
from tests.conftest import Groups, group, longest_first
from tests.lab.store import DEFAULT_CACHE
from tests.product import NEWEST, ROOT

CORE = [f"tests/engine/test_core.py::test_{n}[{NEWEST}]" for n in range(12)]
SURVIVAL = [f"tests/engine/test_survival.py::test_{n}[{NEWEST}]" for n in range(5)]
LONG = [f"tests/kernel/test_socket.py::test_{n}" for n in range(90)]
SHORT = [f"tests/pure/test_{name}.py::test_{n}" for name in "abc" for n in range(3)]


def names(items: list[Any]) -> list[str]:
    return [item.nodeid for item in items]


@pytest.mark.parametrize("seed", range(5))
def test_the_longest_groups_come_first_in_any_order(seed: int) -> None:
    """Engines' tests come first, then long files, then all others; each group's tests are together, in drawn order."""
    drawn = [*CORE, *SURVIVAL, *LONG, *SHORT]
    random.Random(seed).shuffle(drawn)
    items: list[Any] = [SimpleNamespace(nodeid=each) for each in drawn]
    longest_first(items)
    assert sorted(names(items)) == sorted(drawn)
    groups = [group(each) for each in names(items)]
    starts = [name for name, before in zip(groups, [None, *groups], strict=False) if name != before]
    assert len(starts) == len(set(groups)), "each group is in one piece"
    assert starts[:2] == [f"core {NEWEST}", "tests/kernel/test_socket.py"]
    for name in starts:
        assert [each for each in names(items) if group(each) == name] == [each for each in drawn if group(each) == name]


def assigned(*, done: bool | None) -> str:
    """Return the group that a free process gets, while the lab's cache is complete or not, or nothing needs it."""
    groups = Groups.__new__(Groups)
    groups.workqueue = OrderedDict((group(each), {each: False}) for each in (CORE[0], LONG[0], SHORT[0]))
    node = Mock()
    groups.assigned_work, groups.registered_collections = {}, {node: [CORE[0], LONG[0], SHORT[0]]}
    groups.config = SimpleNamespace(stash={})  # type: ignore[assignment]
    if done is not None:
        groups.config.stash[conftest._lab] = SimpleNamespace(done=done)  # type: ignore[assignment]
    groups._assign_work_unit(node)
    (name,) = groups.assigned_work[node]
    return str(name)


def test_engines_wait_for_their_root_file_systems_and_nothing_else_does() -> None:
    """On a fresh machine short tests run while the engines' files are made; otherwise the longest group is first."""
    assert assigned(done=False) == group(SHORT[0])
    assert assigned(done=True) == assigned(done=None) == group(CORE[0])


def test_a_fresh_machine_runs_the_same_tests(tmp_path: Path) -> None:
    """Which tests there are does not depend on what the lab's cache has, so none is left out silently."""

    def collected(**env: str) -> list[str]:
        argv = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-o", "addopts=", "-p", "no:randomly"]
        done = subprocess.run(
            [*argv, "-p", "no:cacheprovider", "tests/kernel", "tests/engine"],
            cwd=ROOT,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        return [line for line in done.stdout.splitlines() if "::" in line]

    found = collected()
    assert len(found) > 1000
    assert found == collected(FW_LAB_CACHE=str(tmp_path))
    paths = [path for path in (ROOT / "tests").rglob("*.py") if str(DEFAULT_CACHE) in path.read_text()]
    assert [path.name for path in paths] == ["store.py"], "the cache's path is known in one place"


# --- many runs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> list[int]:
    """Let the second of many runs fail, without running a test; return the seeds of the runs."""
    seeds: list[int] = []

    def one(number: int, seed: int, *_: object) -> many.Run:
        seeds.append(seed)
        return many.Run(number, seed, 1.0, 7, ("tests.test_x::test_y",) if number == 2 else ())

    monkeypatch.setattr(many, "one", one)
    monkeypatch.setattr(many, "ROOT", tmp_path)
    monkeypatch.setattr(many, "KEPT", tmp_path / "kept")
    return seeds


def test_many_runs_end_at_the_first_that_fails(runs: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    """Each run has a seed of its own; the table names the failures, and the status is 1."""
    assert many.main(["--runs", "5"]) == 1
    assert len(set(runs)) == 2
    shown = capsys.readouterr().out
    assert "tests.test_x::test_y" in shown
    assert f"{runs[1]}" in shown
    assert "1 of 2 runs passed, 5 were asked for" in shown


def test_many_runs_go_on_if_asked(runs: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    """`--keep-going` runs all of them, and the status is still 1; without a failure it is 0."""
    assert many.main(["--runs", "4", "--keep-going", "--seed", "77"]) == 1
    assert len(runs) == 4
    assert runs[0] == 77
    assert "3 of 4 runs passed" in capsys.readouterr().out
    assert many.main(["--runs", "1"]) == 0


def test_results_name_what_failed(tmp_path: Any) -> None:
    """Failures and errors of fixtures count as failures, tests that are left out do not count at all."""
    case = '<testcase classname="a" name="{}">{}</testcase>'
    cases = [("ok", ""), ("bad", "<failure/>"), ("broken", "<error/>"), ("left", "<skipped/>")]
    text = "".join(case.format(*each) for each in cases)
    (tmp_path / "x.xml").write_text(f"<testsuites><testsuite>{text}</testsuite></testsuites>")
    assert many.read(tmp_path / "x.xml") == (1, ("a::bad", "a::broken"))
    assert many.read(tmp_path / "none.xml") == (0, ())
