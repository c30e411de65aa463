"""Define the needs of tests, their order, and which run side by side: those of one engine share it, in one process.

The order is new in every run (pytest-randomly, which prints its seed): of the tests of a group, and of the groups.
Only the groups that take longest always come first, so that short ones fill the end and no process works alone then.
No test hangs: each has a time-out (pytest-timeout), and programs that it starts can be interrupted.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from tests.product import NEWEST, VERSIONS

#: Each of their tests starts an engine of its own.
SINGLE = ("test_packaging.py", "test_hosts.py")
#: These have engines of the file's own, one of each version.
OWN = ("test_swarm.py", "test_sidecar.py", "test_firewalls.py", "test_torture.py", "test_privilege.py")

#: Files that share an engine of the newest version.
PARTS = {
    "test_guard.py": "guard",
    "test_guard_windows.py": "guard",
    "test_core.py": "core",
    "test_survival.py": "core",
    "test_labels.py": "labels",
    "test_dns.py": "labels",
    "test_rights.py": "labels",
}

#: Files without docker-fw on an engine that take a minute or more, and seconds for each of their tests.
#: `test_slow_start.py` mostly waits: alone at the end it would keep all processors idle.
LONG = {
    "kernel/test_socket.py": 2,
    "kernel/test_docker29.py": 2,
    "kernel/test_nft.py": 2,
    "kernel/test_quarantine.py": 2,
    "kernel/test_slow_start.py": 15,
    "kernel/test_reference.py": 30,
    "kernel/test_scanners.py": 60,
    "test_lab.py": 4,
}

#: Seconds for a test of an engine: its root file system and image may have to be built first.
ENGINE_TIMEOUT = 1800
#: Seconds for a test of a virtual machine that sets none: its disk and its state may have to be made first.
MACHINE_TIMEOUT = 2400
#: Seconds after which a test that still hangs is interrupted again, for example while it waits for a program's end.
AGAIN = 60
#: Seconds for the end of the run after its last test.
END = 300
#: Python then compiles each module once, and not in each of the processes of a run.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
_settings = pytest.StashKey[Any]()
_lab = pytest.StashKey["Preparing"]()
ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    # `make test &` and `nohup` start programs with these ignored, and child programs inherit that, but not a handler.
    for each in (signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(each) == signal.SIG_IGN:
            signal.signal(each, lambda *_: None)


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None, None, None]:
    _leave_out_machines(config, items)
    for item in items:
        if "tests/engine/" in str(item.path):
            item.add_marker(pytest.mark.engine)
            item.add_marker(pytest.mark.timeout(ENGINE_TIMEOUT), append=False)
    yield  # pytest deselects by markers, and groups by fixtures
    longest_first(items)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if seed := config.getoption("randomly_seed", None):
        terminalreporter.write_line(f"order of the tests: --randomly-seed={seed}")


def longest_first(items: list[pytest.Item]) -> None:
    """Sort by how long the groups take, engines' first; equally long groups, and the tests of each, stay in order."""
    groups = [group(item.nodeid) for item in items]
    seconds: Counter[str] = Counter()
    for name, item in zip(groups, items, strict=True):
        seconds[name] += expected(item.nodeid)
    # A group's tests are in several files, and must be together: by the place of the group's first test.
    first = {name: index for index, name in reversed([*enumerate(groups)])}

    def place(item: pytest.Item) -> tuple[bool, int, int]:
        name = group(item.nodeid)
        return not is_engines(item.nodeid), -seconds[name] // 60, first[name]

    items.sort(key=place)


def expected(nodeid: str) -> int:
    """Return about how many seconds a test takes, as far as it matters for the order."""
    path = nodeid.partition("::")[0]
    if "from_make_install" in nodeid:
        return 120
    if path.endswith("engine/test_promises.py"):
        return 60
    if "engine/" in path:
        return 6
    return LONG.get(path.removeprefix("tests/"), 0)


def _leave_out_machines(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of virtual machines, except for the short ones, unless they are asked for."""
    for item in items:
        if "tests/vm/" in str(item.path):
            item.add_marker(pytest.mark.vm)
            item.add_marker(pytest.mark.timeout(MACHINE_TIMEOUT), append=False)
    if any("tests/vm" in argument for argument in config.args) or "vm" in (config.option.markexpr or ""):
        return
    left = [item for item in items if item.get_closest_marker("vm") and not item.get_closest_marker("engine")]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Generator[None, Any, Any]:
    """Interrupt repeatedly: pytest-timeout does so once, and the test's own clean-up may hang then, too."""
    done = yield
    item.stash[_settings] = settings
    if settings.method == "signal":
        signal.setitimer(signal.ITIMER_REAL, settings.timeout, AGAIN)
    return done


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    """Interrupt hanging fixtures too: pytest-timeout removes the timer from a test that has failed."""
    if _settings in item.stash:
        item.config.hook.pytest_timeout_set_timer(item=item, settings=item.stash[_settings])
    return (yield)


class Groups(LoadScopeScheduling):
    """Tests of one group run in one process, one after the other.

    Those of engines come first, but while the lab's cache is not complete the others do: the short ones, so that a
    process is free soon after it is.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)

    def schedule(self) -> None:
        if self.collection is None and self.collection_is_completed:
            collected = next(iter(self.registered_collections.values()), [])
            if any(is_engines(nodeid) for nodeid in collected):
                self.config.stash[_lab] = Preparing()
        super().schedule()

    def _assign_work_unit(self, node: WorkerController) -> None:
        lab = self.config.stash.get(_lab, None)
        if lab and not lab.done:
            for name, tests in reversed(self.workqueue.items()):
                if not is_engines(next(iter(tests))):
                    self.workqueue.move_to_end(name, last=False)
                    break
        super()._assign_work_unit(node)


class Preparing:
    """The process that completes the lab's cache, see `tests.prepare`."""

    def __init__(self) -> None:
        self.done = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.prepare"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        assert self._process.stdout
        self._process.stdout.readline()  # or its end: then the tests say what cannot be made
        self.done = True

    def close(self) -> None:
        """End it, if it is still at work."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait(60)


def is_engines(nodeid: str) -> bool:
    """Return True if a test needs an engine, or a machine with one."""
    path = nodeid.partition("::")[0]
    return "engine/" in path or "vm/" in path or path.endswith("test_lab.py")


def pytest_unconfigure(config: pytest.Config) -> None:
    if lab := config.stash.get(_lab, None):
        lab.close()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Bound the end, too: if the run hangs after its last test it is ended, and says where it was."""
    if not hasattr(session.config, "workerinput"):  # the processes that run tests wait there until all are done
        faulthandler.dump_traceback_later(END, exit=True, file=sys.__stderr__)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups:
    return Groups(config, log)


def group(nodeid: str) -> str:
    """Return the group of a test, such as `tests/engine/test_core.py::test_one[20.10.24-x]`."""
    path, _, test = nodeid.partition("::")
    name = path.rpartition("/")[2]
    if "engine/" not in path:
        return path
    versions = [version for version in re.findall(r"[\w.]+", test.partition("[")[2]) if version in VERSIONS]
    if name in SINGLE or (name in OWN and not versions):
        return nodeid
    version = versions[0] if versions else NEWEST
    if name in OWN:
        return f"{name} {version}"
    # The newest has all tests, the others a part: on one engine the newest's tests would be the longest of all groups.
    which = PARTS.get(name, "rest") if version == NEWEST else "all"
    return f"{which} {version}"
