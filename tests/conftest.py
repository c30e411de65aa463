"""Define the needs of tests, and which run side by side: those of one engine share it, so they stay in one process.

No test hangs: each has a time-out (pytest-timeout), and programs that it starts can be interrupted.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Generator
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.product import NEWEST, VERSIONS

#: Each of their tests starts an engine of its own.
SINGLE = ("test_packaging.py", "test_hosts.py")
#: These have engines of the file's own, one of each version.
OWN = ("test_swarm.py", "test_sidecar.py", "test_firewalls.py", "test_torture.py", "test_privilege.py")

#: Files that share an engine of the newest version.
PARTS = {"test_guard.py": "guard", "test_guard_windows.py": "guard", "test_core.py": "core", "test_survival.py": "core"}

#: Seconds for a test of an engine: its root file system and image may have to be built first.
ENGINE_TIMEOUT = 1800
#: Seconds for a test of a virtual machine that sets none: its disk and its state may have to be made first.
MACHINE_TIMEOUT = 2400
#: Seconds after which a test that still hangs is interrupted again, for example while it waits for a program's end.
AGAIN = 60
_settings = pytest.StashKey[Any]()


def pytest_configure() -> None:
    # `make test &` and `nohup` start programs with these ignored, and child programs inherit that, but not a handler.
    for each in (signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(each) == signal.SIG_IGN:
            signal.signal(each, lambda *_: None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _leave_out_machines(config, items)
    for item in items:
        if "tests/engine/" in str(item.path):
            item.add_marker(pytest.mark.engine)
            item.add_marker(pytest.mark.timeout(ENGINE_TIMEOUT), append=False)


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
    """Tests of one group run in one process, one after the other."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


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
