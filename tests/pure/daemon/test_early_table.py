"""The process that closes the bridges before the socket exists: its errors are logged, and the start continues."""

from __future__ import annotations

import logging
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from plugin.daemon import early_table
from plugin.settings import read


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(early_table.link_monitor, "links", dict)
    return read({"FW_STATE": str(tmp_path / "state.json")})


def test_any_error_is_logged_and_the_start_continues(
    settings: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An unexpected error is in the log with its traceback."""

    def fails(*_: object) -> object:
        raise RuntimeError("an unexpected error")

    monkeypatch.setattr(early_table, "KernelTable", fails)
    handler = logging.StreamHandler(sys.stderr)
    early_table.log.addHandler(handler)
    try:
        early_table.close_first(settings)
    finally:
        early_table.log.removeHandler(handler)
    output = capfd.readouterr().err
    assert "could not load the early table" in output
    assert "RuntimeError: an unexpected error" in output


def test_a_kernel_that_does_not_answer_does_not_delay_the_start(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start waits for the kernel for a bounded time; otherwise Docker would disable the plugin, and all ports would
    be open at the next boot."""

    def hangs(*_: object) -> object:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # this is a child, and the handler belongs to the test's time-out
        signal.alarm(60)
        signal.pause()
        raise AssertionError

    monkeypatch.setattr(early_table, "KernelTable", hangs)
    monkeypatch.setattr(early_table, "LONGEST", 0.1)
    start = time.monotonic()
    early_table.close_first(settings)
    assert time.monotonic() - start < 30
