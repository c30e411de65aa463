"""Fixtures of the kernel tier, which needs root: without it, it is skipped on a laptop and fails in CI.

Never touches this machine's own network.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.netns import nowhere
from tests.kernel.running import Running
from tests.kernel.site import Box, Site
from tests.lab.netns import FORWARDING

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.kernel)


@pytest.fixture(scope="package", autouse=True)
def _safe() -> Iterator[None]:
    """Run tests in an empty network namespace, so that a mistake in one cannot reach this machine's own."""
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("the kernel tier needs root, and CI must run it")
        pytest.skip("the kernel tier needs root")
    with nowhere():
        yield


@pytest.fixture
def site() -> Iterator[Site]:
    """Yield a separate host for one test, with an outsider."""
    with Site() as made:
        yield made


@pytest.fixture
def fw(site: Site) -> Iterator[Running]:
    """Yield a plugin for one test, not started."""
    with closing(Running(site)) as made:
        yield made


@pytest.fixture
def own(fw: Running) -> Running:
    """Return the same, on a host that forwards."""
    fw.site.host.sysctl(FORWARDING)
    return fw


@pytest.fixture(params=["web", "guest"])
def box(request: pytest.FixtureRequest, boxes: Any) -> Box:
    """Return one of a module's `boxes`: on a docker-fw network, and on a Docker network."""
    found: Box = getattr(boxes, request.param)
    return found
