"""Wait for a condition instead of for a time: a test that waits is as fast as the machine and has no race with it."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(condition: Callable[[], object], what: str = "the condition holds", timeout: float = 20.0) -> None:
    """Return as soon as `condition()` is true. Raises AssertionError that names `what` after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout} s: {what}"
        time.sleep(0.002)
