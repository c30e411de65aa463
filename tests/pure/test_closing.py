"""The process that closes before anybody is served: what it does first, and that it never fails in silence."""

from __future__ import annotations

import logging
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from plugin import closing
from plugin.settings import read


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(closing.hostlinks, "links", dict)
    return read({"FW_STATE": str(tmp_path / "state.json")})


def test_whatever_goes_wrong_is_told_and_the_start_goes_on(
    settings: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An error that nobody foresaw is in the log with where it happened, not lost with the process."""

    def fails(_: object) -> object:
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(closing, "Nft", fails)
    handler = logging.StreamHandler(sys.stderr)
    closing.log.addHandler(handler)
    try:
        closing.close_first(settings)
    finally:
        closing.log.removeHandler(handler)
    told = capfd.readouterr().err
    assert "could not close the bridges" in told
    assert "RuntimeError: nobody foresaw this" in told


def test_a_kernel_that_does_not_answer_does_not_hold_up_the_start(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker would disable the plugin, and all be open at the next boot."""

    def hangs(_: object) -> object:
        signal.alarm(2)
        signal.pause()
        raise AssertionError

    monkeypatch.setattr(closing, "Nft", hangs)
    monkeypatch.setattr(closing, "LONGEST", 0.1)
    began = time.monotonic()
    closing.close_first(settings)
    assert time.monotonic() - began < 1
