"""Which tests need what, and which run side by side: those of one engine share it, so they stay in one process."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from tests.product import NEWEST

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before xdist looks for its groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
        if "tests/engine/" in str(item.path):
            item.add_marker(pytest.mark.engine)


def _group(item: pytest.Item) -> str:
    where = item.path.relative_to(HERE)
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    engine = parameters.get("each") or parameters.get("fw")
    if where.name in ("test_swarm.py", "test_sidecar.py", "test_firewalls.py"):  # engines of the file's own
        return f"{where.name} {engine}" if engine else item.name
    if engine:
        return str(engine)
    if where.name in ("test_packaging.py", "test_hosts.py") or _asks_for(item, "engines"):
        return item.name  # an engine of the test's own
    return NEWEST if where.parts[0] == "engine" else str(where)


def _asks_for(item: pytest.Item, fixture: str) -> bool:
    """True if the test itself names the fixture, not just another one that does."""
    return fixture in inspect.signature(getattr(item, "function", lambda: None)).parameters
