"""The part of conditions: one session for each package, with the tests that are about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tests.mutation import sessions
from tests.mutation.conditions import Mutant

#: By package, the tests that run with its mutants.
TESTS = {
    "policy": tuple(f"tests/pure/{name}" for name in ("policy", "state", "nftables", "fwctl", "docker", "driver")),
    "labels": tuple(
        f"tests/pure/{name}"
        for name in (
            "labels",
            "policy/test_decide.py",
            "policy/test_peers.py",
            "test_mistakes.py",
            "registries",
            "fwctl",
        )
    ),
}


def run(
    wanted: Sequence[Mutant],
    directory: Path,
    jobs: int,
    end: float,
    say: Callable[[str], None],
    tests: Iterable[str],
) -> None:
    """Judge these mutants; `sessions.results("judge", directory)` are the results. Raises UnfinishedError."""
    directory.mkdir(parents=True, exist_ok=True)
    mutants = [dataclasses.astuple(each) for each in wanted]
    running = sessions.start("conditions_judge", "judge-0", directory, tests, mutants=mutants, jobs=jobs)
    sessions.wait("judge", directory, [running], len(wanted), end, say)
