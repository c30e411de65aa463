"""Which tests need what, and which run side by side: those of one engine share it, so they stay in one process."""

from __future__ import annotations

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
    if "each" in parameters:
        return str(parameters["each"])
    if where.name in ("test_packaging.py", "test_hosts.py"):  # each makes an engine of its own
        return item.name
    return NEWEST if where.parts[0] == "engine" else str(where)
