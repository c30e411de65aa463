"""A test that hangs fails with its name, and the run ends."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
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


# --- waits ------------------------------------------------------------------------------------------------------------

#: Functions of `subprocess` that wait for a program.
RUNS = {"run", "call", "check_call", "check_output"}
#: Methods that wait until something happens, if no argument says how long.
WAITS = {"wait", "wait_for", "join", "result", "acquire", "get"}
#: Waits without an end, and why they may have none.
ENDLESS = {
    "tests/lab/__main__.py: subprocess.call(host.command(command or ['bash', '--norc'], env, cwd='/root'), …": (
        "a person's shell"
    ),
    "plugin/docker/follower.py: self._requested.wait()": "a loop of the daemon, which `stop` wakes",
    "plugin/docker/host_work.py: self._changed.wait()": "the same; while its queue is full the lease ends",
    "plugin/fwctl/api/droplog_http.py: places.acquire(blocking=False)": "does not wait",
    "plugin/fwctl/socket_client.py: http.client.HTTPConnection('fw')": "its socket is set, with a time-out, before use",
    "plugin/labels/parser.py: reading.result()": "a parser's own method",
    "plugin/daemon/loops.py: self._queue.get()": "a loop of the daemon, which an entry of the queue ends",
    "tests/lab/probe.py: Agent.get()": "the lab's own method",
    "tests/lab/wan.py: Agent.get()": "the lab's own method",
    "tests/mutation/conditions_judge.py: self.wait()": "its own method, which ends a mutant that takes too long",
    "tests/mutation/conditions_judge.py: children.wait()": "the same",
    "tests/torture/storm.py: done.result()": "the torture, which lasts as long as it is asked to",
}


def endless(source: str) -> Iterator[str]:
    """Return the calls in Python source that can wait without an end: no argument bounds them."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and _waits(node) and not {"timeout", None} & {each.arg for each in node.keywords}:
            yield ast.unparse(node)


def _waits(call: ast.Call) -> bool:
    if not isinstance(call.func, ast.Attribute):
        return getattr(call.func, "id", "") == "urlopen"
    name = call.func.attr
    if isinstance(call.func.value, ast.Name) and call.func.value.id == "subprocess":
        return name in RUNS
    return (
        (name in WAITS and not call.args)
        or name in ("communicate", "urlopen", "HTTPConnection", "HTTPSConnection")
        or (name == "create_connection" and len(call.args) < 2)
    )


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("subprocess.run(['x'], check=True)", True),
        ("subprocess.run(['x'], timeout=5)", False),
        ("subprocess.run(['x'], **more)", False),
        ("process.wait()", True),
        ("process.wait(5)", False),
        ("process.communicate('x')", True),
        ("process.communicate(timeout=5)", False),
        ("thread.join()", True),
        ("', '.join(words)", False),
        ("urllib.request.urlopen(url)", True),
        ("socket.create_connection(place)", True),
        ("socket.create_connection(place, 5)", False),
    ],
)
def test_waits_without_an_end_are_found(source: str, found: bool) -> None:
    """The next test sees each way to wait without an end."""
    assert bool([*endless(source)]) is found


def test_every_wait_has_an_end() -> None:
    """Neither the product nor a test waits for a program, a thread or a peer without an end, or the reason is given."""
    found = set()
    for path in sorted([*(ROOT / "tests").rglob("*.py"), *(ROOT / "plugin").rglob("*.py")]):
        for call in endless(path.read_text()):
            short = call if len(call) < 90 else f"{call.partition(', preexec')[0][:90]}, …"
            found.add(f"{path.relative_to(ROOT)}: {short}")
    assert found - ENDLESS.keys() == set(), "give it a time-out"
    assert ENDLESS.keys() - found == set(), "these are gone: remove them"
