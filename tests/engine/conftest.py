"""Engines with docker-fw installed, one of each version for the whole session."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest

from tests.lab import Engine
from tests.product import DEEP, NEWEST, VERSIONS, Fw, with_plugin

#: Lines of a log that a failure shows.
LINES = 200


@pytest.fixture(autouse=True, scope="session")
def _root() -> None:
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("the engine tests need root")
        pytest.skip("needs root: engines run in namespaces")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what dockerd and the plugin logged last when a test fails: many failures need a loaded machine."""
    report = yield
    if report.failed:
        used = getattr(item, "funcargs", {}).values()
        for engine in [each.engine for each in used if isinstance(each, Fw)]:
            report.sections.append((f"log of dockerd {engine.version}", engine.log_tail(LINES)))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Fail a test in which the kernel refused one of docker-fw's changes.

    Its table is its own on these engines: no other program interferes, so such a change is a mistake of docker-fw.
    """
    used = [each for each in getattr(item, "funcargs", {}).values() if isinstance(each, Fw)]
    before = [each.engine.log.stat().st_size for each in used]
    yield
    assert [line for fw, since in zip(used, before, strict=True) for line in fw.refused(since)] == []


class Engines:
    """Engines by version, each started and given the plugin at its first use."""

    def __init__(self) -> None:
        self._running: dict[str, Fw] = {}

    def get(self, version: str) -> Fw:
        if version not in self._running:
            engine = Engine(version, data=with_plugin(version)).__enter__()
            try:
                self._running[version] = Fw.install(engine)
            except BaseException:
                engine.close()
                raise
        return self._running[version]

    def close(self) -> None:
        for fw in self._running.values():
            fw.engine.close()


@pytest.fixture(scope="session")
def engines(_root: None) -> Iterator[Engines]:
    kept = Engines()
    try:
        yield kept
    finally:
        kept.close()


@pytest.fixture(scope="session", params=VERSIONS)
def each(request: pytest.FixtureRequest, engines: Engines) -> Fw:
    """Return docker-fw on every engine: for the core promises."""
    return engines.get(request.param)


@pytest.fixture(scope="session", params=DEEP)
def deep(request: pytest.FixtureRequest, engines: Engines) -> Fw:
    """Return docker-fw on one engine, or on all requested ones: for tests with equal results on the others."""
    return engines.get(request.param)


@pytest.fixture(scope="session")
def fw(engines: Engines) -> Fw:
    """Return docker-fw on one engine: for tests that do not depend on its version."""
    return engines.get(NEWEST)
