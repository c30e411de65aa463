"""Engines on which docker-fw cannot do all of its work are reported, or refused."""

from __future__ import annotations

import logging

import pytest

from plugin.docker.connection import checked
from plugin.docker.engine import Engine, refusal, unfit


@pytest.mark.parametrize("version", ["29.0.0", "29.0.1", "29.0.2", "29.0.0-rc.1", "29.0.2+dfsg1", "29.0"])
def test_engines_that_die_of_network_plugins_are_refused(version: str) -> None:
    """Docker 29.0.0 to 29.0.2 crash with any network plugin: each join is refused, and the message says what to do."""
    assert version in refusal(Engine(version))
    assert "upgrade Docker to 29.0.3 or newer" in refusal(Engine(version))
    assert unfit(Engine(version)) == refusal(Engine(version))


@pytest.mark.parametrize(
    "version", ["20.10.0", "20.10.24+dfsg1", "26.1.5", "28.5.2", "29.0.3", "29.1.0", "30.0.0", "", "dev"]
)
def test_other_engines_get_no_message(version: str) -> None:
    """Supported and unknown versions cause no message."""
    assert refusal(Engine(version)) == unfit(Engine(version)) == ""


@pytest.mark.parametrize("version", ["19.03.15", "20.9.1", "1.13.1"])
def test_old_engines_are_reported_and_not_refused(version: str) -> None:
    """Docker before 20.10 is not supported: the message says so, and containers start."""
    assert "upgrade Docker to 20.10 or newer" in unfit(Engine(version))
    assert not refusal(Engine(version))


def test_the_log_has_one_error_for_each_version(caplog: pytest.LogCaptureFixture) -> None:
    """An error is logged at the first answer of such an engine, and not with every later connection."""
    known = Engine()
    with caplog.at_level(logging.ERROR):
        for version in ("29.0.1", "29.0.1", "29.0.3", "29.0.3"):
            known = checked(Engine(version), known)
    assert [record.message for record in caplog.records] == [unfit(Engine("29.0.1"))]
    assert known.version == "29.0.3"
