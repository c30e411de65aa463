"""Needs root; skipped without on a laptop, failed without in CI. Never touches this machine's own network."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
    """Tests run in an empty network namespace, so that a mistake in one cannot reach this machine's own."""
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("the kernel tier needs root, and CI must run it")
        pytest.skip("the kernel tier needs root")
    with nowhere():
        yield


@pytest.fixture
def site() -> Iterator[Site]:
    """A host of its own for one test, with an outsider."""
    with Site() as made:
        yield made


@pytest.fixture
def fw(site: Site) -> Iterator[Running]:
    """A plugin of one test's own, not started."""
    made = Running(site)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def own(fw: Running) -> Running:
    """The same, on a host that forwards."""
    fw.site.host.sysctl(FORWARDING)
    return fw


@pytest.fixture(params=["web", "guest"])
def box(request: pytest.FixtureRequest, boxes: Any) -> Box:
    """One of a module's `boxes`: on a network of docker-fw's own, and on one of Docker's."""
    found: Box = getattr(boxes, request.param)
    return found
