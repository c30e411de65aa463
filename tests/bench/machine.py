"""Describe the machine and the versions of a run."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plugin import __version__

_ROOT = Path(__file__).resolve().parents[2]


def about(engine: str) -> dict[str, Any]:
    """Return the date, the commit, the versions and the machine."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "docker-fw": __version__,
        "commit": _commit(),
        "engine": engine,
        "kernel": platform.release(),
        "nft": _output("nft", "--version").partition(" (")[0].removeprefix("nftables "),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "load before": load(),
    }


def load() -> float:
    """Return how many processes wanted to run in the last minute, on average."""
    return round(os.getloadavg()[0], 2)


def _commit() -> str:
    changed = " with changes" if _output("git", "status", "--porcelain", "--untracked-files=no") else ""
    return _output("git", "rev-parse", "--short=10", "HEAD") + changed


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return " ".join(value.split())
    return platform.machine()
