"""Busy loops beside a run: a loaded machine finds other races than an idle one."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def loops(number: int, seconds: float) -> Iterator[None]:
    """Run so many loops, each with a process of its own that ends after these seconds even if this one was killed."""
    started = [
        subprocess.Popen(["timeout", f"{seconds:.0f}", "sh", "-c", "while :; do :; done"]) for _ in range(number)
    ]
    try:
        yield
    finally:
        for each in started:
            each.terminate()  # timeout hands it on to its child
        for each in started:
            each.wait(60)


def others_work(seconds: float = 3) -> bool:
    """Return True if other programs use more than a quarter of the processors. The load average tells of the past."""
    began, before = time.monotonic(), _idle()
    time.sleep(seconds)
    return _idle() - before < 0.75 * (time.monotonic() - began) * (os.cpu_count() or 1)


def _idle() -> float:
    """Return how many seconds the processors have been idle since the boot (proc_uptime(5))."""
    return float(Path("/proc/uptime").read_text().split()[1])
