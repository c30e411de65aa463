"""Run a measurement in a process of its own, `python -m tests.bench.MODULE COUNT`, which prints its result as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def measured(module: str, count: int, *before: str, timeout: float = 900) -> dict[str, Any]:
    """Return the result of `tests.bench.MODULE`, run by the command `before` if there is one.

    RuntimeError with the end of its stderr if it fails; subprocess.TimeoutExpired after `timeout` seconds.
    """
    done = subprocess.run(
        [*before, sys.executable, "-m", f"tests.bench.{module}", str(count)],
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if done.returncode:
        raise RuntimeError(f"tests.bench.{module} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
