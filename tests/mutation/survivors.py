"""The mutants that no test finds, and why that is right: they open nothing. A run fails if the list is not exact."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Survivors:
    """Mutants of one part that survive for one reason. In `names`, "…" stands for any text."""

    part: str
    reason: str
    names: tuple[str, ...]

    @cached_property
    def patterns(self) -> dict[str, re.Pattern[str]]:
        """The names as patterns."""
        return {name: re.compile(".*".join(map(re.escape, name.split("…"))), re.DOTALL) for name in self.names}

    def listed(self, mutant: str) -> bool:
        """True if this mutant is one of them."""
        return any(pattern.fullmatch(mutant) for pattern in self.patterns.values())


def _read(path: Path) -> tuple[Survivors, ...]:
    listed = tomllib.loads(path.read_text())["survivors"]
    return tuple(Survivors(each["part"], each["reason"], tuple(each["names"])) for each in listed)


SURVIVORS = _read(Path(__file__).with_name("survivors.toml"))
