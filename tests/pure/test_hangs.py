"""A test that hangs fails with its name, and the run ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HANGS = """
import subprocess, sys, pytest

@pytest.fixture
def slow_to_leave():
    yield
    subprocess.run(["sleep", "100"])

def test_waits_for_a_program():
    with subprocess.Popen(["sleep", "100"]):
        raise AssertionError("and so waits at the end of the block")

def test_leaves_late(slow_to_leave):
    raise AssertionError("and then a fixture hangs")

def test_goes_on():
    pass
"""


def pytest_in(directory: Path, *arguments: str, ignore: tuple[signal.Signals, ...] = ()) -> str:
    """Return the output of a separate pytest with the project's settings, started with these signals ignored."""
    ignoring = "".join(f"signal.signal({int(each)}, signal.SIG_IGN);" for each in ignore)
    program = f"import os, signal, sys;{ignoring}os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    options = ("-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(ROOT))
    command = [sys.executable, "-c", program, *options, "-c", str(ROOT / "pyproject.toml"), *arguments]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "300"}
    done = subprocess.run(command, cwd=directory, env=environ, capture_output=True, text=True, check=False, timeout=300)
    return done.stdout + done.stderr


def test_a_hanging_test_fails_by_its_name(tmp_path: Path) -> None:
    """A test that hangs fails with its name, also at the end of a `with` and in a fixture; the tests after it are
    run."""
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text().replace("AGAIN = 60", "AGAIN = 2"))
    (tmp_path / "test_hanging.py").write_text(HANGS)
    output = pytest_in(tmp_path, "-o", "timeout=2", "--confcutdir", str(tmp_path), str(tmp_path))
    assert "::test_waits_for_a_program - Failed: Timeout" in output, output
    assert "::test_leaves_late - Failed: Timeout" in output, output
    assert "1 passed" in output, output


def test_each_test_has_a_time_out(pytestconfig: pytest.Config) -> None:
    """The project's settings set it; it is longer for engines, which may have to be built."""
    assert pytestconfig.getini("timeout") == "600"
    assert signal.getitimer(signal.ITIMER_REAL)[0] > 0


@pytest.mark.parametrize("ignored", [(signal.SIGINT,), (signal.SIGINT, signal.SIGQUIT)], ids=["int", "both"])
def test_tests_pass_where_an_interrupt_is_ignored(ignored: tuple[signal.Signals, ...]) -> None:
    """`make test &` in a script, `nohup make test`: programs that the tests interrupt end anyway."""
    output = pytest_in(
        ROOT, "-o", "timeout=60", "tests/pure/fwctl/cli/test_main.py", "-k", "test_watch", ignore=ignored
    )
    assert "2 passed" in output, output
