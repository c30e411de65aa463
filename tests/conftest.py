"""Which tests need what, and which run side by side: those of one engine share it, so they stay in one process."""

from __future__ import annotations

import re
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.product import NEWEST, VERSIONS

#: Each of their tests makes an engine of its own.
SINGLE = ("test_packaging.py", "test_hosts.py")
#: These have engines of the file's own, one of each version.
OWN = ("test_swarm.py", "test_sidecar.py", "test_firewalls.py", "test_torture.py", "test_privilege.py")

#: Files that share an engine of the newest version.
PARTS = {"test_guard.py": "guard", "test_guard_windows.py": "guard", "test_core.py": "core", "test_survival.py": "core"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/engine/" in str(item.path):
            item.add_marker(pytest.mark.engine)


class Groups(LoadScopeScheduling):
    """Tests of one group run in one process, one after the other."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups:
    return Groups(config, log)


def group(nodeid: str) -> str:
    """`tests/engine/test_core.py::test_one[20.10.24-x]` → the group that the test belongs to."""
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
    # The newest has all tests, the others a part: on one engine those of the newest would be the longest of all groups.
    which = PARTS.get(name, "rest") if version == NEWEST else "all"
    return f"{which} {version}"
