"""Busy loops beside a run: a loaded machine finds other races than an idle one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager


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
