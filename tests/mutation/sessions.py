"""pytest sessions that judge mutants: they are started, watched, bounded, and their results are read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
#: A result: the mutant's name, its state ("killed", "survived", "refused" by the kernel), the test that failed.
Result = dict[str, Any]


class UnfinishedError(RuntimeError):
    """A session failed or took too long; the results so far are there."""


def start(plugin: str, name: str, directory: Path, tests: Iterable[str], **job: Any) -> subprocess.Popen[bytes]:
    """Start pytest with these tests and a plugin of this package, which writes results to `directory`/`name`.jsonl."""
    asked = directory / f"{name}.json"
    asked.write_text(json.dumps({"results": str(directory / f"{name}.jsonl"), **job}))
    (directory / f"{name}.jsonl").write_text("")
    command = [sys.executable, "-m", "pytest", "-q", "-p", f"tests.mutation.{plugin}", "-p", "no:xdist"]
    command += ["-p", "no:cacheprovider", "--timeout=120", "--tb=line", *tests]
    with (directory / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "FW_MUTATION_JOB": str(asked), "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )


def results(name: str, directory: Path) -> list[Result]:
    """Return the results so far of the sessions whose names begin like this."""
    found = []
    for path in sorted(directory.glob(f"{name}-*.jsonl")):
        # A session that was ended may have left half a line.
        found += [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return found


def wait(
    name: str,
    directory: Path,
    running: Sequence[subprocess.Popen[bytes]],
    total: int,
    end: float,
    say: Callable[[str], None],
) -> None:
    """Show progress until the sessions have ended, by the time `end` (monotonic). Raises UnfinishedError."""
    shown, late = 0.0, False
    try:
        while any(each.poll() is None for each in running) and not late:
            if time.monotonic() - shown > 20:
                shown = time.monotonic()
                say(f"{name}: {len(results(name, directory))} of {total}")
            time.sleep(0.2)
            late = time.monotonic() > end
    finally:
        for each in running:
            each.terminate()
        for each in running:
            each.wait(60)
    done = len(results(name, directory))
    if late:
        raise UnfinishedError(f"{name}: the time is over, {done} of {total} are done; --new continues")
    if any(each.returncode for each in running):
        raise UnfinishedError(f"{name}: a session failed after {done} of {total}: see {directory}/{name}-*.log")
