"""Wait for a condition instead of for a time: a test that waits is as fast as the machine and has no race with it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable


def until(
    condition: Callable[[], object], what: str | Callable[[], str] = "the condition holds", timeout: float = 20.0
) -> None:
    """Return as soon as `condition()` is true. Raises AssertionError that names `what` after `timeout` seconds.

    `what` may be a function, for what is known only then.

    If more processes want to run than four for each processor, the time-out is longer in proportion.
    Between two looks it waits as long as a look takes, 2 to 100 ms: what starts a program each time would otherwise
    take a processor from what is waited for.
    """
    start = time.monotonic()
    while True:
        began = time.monotonic()
        if condition():
            return
        now = time.monotonic()
        if now > start + timeout * crowded():
            reason = what() if callable(what) else what
            raise AssertionError(f"not within {timeout * crowded():g} s: {reason}")
        time.sleep(min(max(0.002, now - began), 0.1))


def crowded() -> float:
    """Return how many times slower than usual a process runs, because others want to run: 1 on most machines."""
    return max(1.0, os.getloadavg()[0] / (4 * (os.cpu_count() or 1)))
