"""Durations as people write and read them: `--for 1h`, "59 min left". Pure."""

from __future__ import annotations

import re

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_RIGHT = "30s, 10m, 1h, 2d, or several, like 1h30m"
#: The longest time accepted; for a longer one the time is left out.
LONGEST = 3650 * 86400


def parse(text: str) -> int:
    """Return seconds. Raises ValueError with the correct format."""
    parts = re.findall(r"([0-9]{1,9})([smhd])", text.lower(), re.ASCII)
    if not parts or "".join(number + unit for number, unit in parts) != text.lower():
        raise ValueError(f"{text[:40]!r} is not a time ({_RIGHT})")
    seconds = sum(int(number) * _SECONDS[unit] for number, unit in parts)
    if not 0 < seconds <= LONGEST:
        raise ValueError(f"{text[:40]!r} is not from 1s to 3650d; without --for there is no time limit")
    return seconds


def left(seconds: float) -> str:
    """Return the remaining time in its two greatest units."""
    rounded = max(0, round(seconds))
    for name, unit, smaller, small in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if rounded >= unit:
            rest = rounded % unit // small
            return f"{rounded // unit} {name}" + (f" {rest} {smaller}" if rest else "")
    return f"{rounded // 60} min" if rounded >= 120 else f"{rounded} s"
