"""The times of bans and overrides, as operators write them: each has a bound, and a mistake is no time at all."""

from __future__ import annotations

import pytest

from plugin.labels.duration import LONGEST, left, parse


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("30s", 30), ("10m", 600), ("1h", 3600), ("2d", 172800), ("1h30m", 5400), ("1H", 3600)],
)
def test_a_time_is_read_in_its_units(text: str, seconds: int) -> None:
    """Seconds, minutes, hours, days, and several of them, in any case."""
    assert parse(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "1x", "1h 30m", "-1h", "1.5h", "1hx", "x1h", "١h", "1w", "1000000000s"])
def test_anything_else_is_refused(text: str) -> None:
    """No part of the text is ignored: an override for "1hx" would last longer, or shorter, than was meant."""
    with pytest.raises(ValueError, match="is not a time"):
        parse(text)


def test_the_time_has_bounds() -> None:
    """From a second to ten years; 0 would be no time, and it does not mean permanently."""
    assert parse("3650d") == LONGEST
    for text in ("0s", "0d0h", "3651d", f"{LONGEST + 1}s"):
        with pytest.raises(ValueError, match="from 1s to 3650d"):
            parse(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (0.4, "0 s"),
        (119, "119 s"),
        (120, "2 min"),
        (121, "2 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (3661, "1 h 1 min"),
        (86399, "23 h 59 min"),
        (86400, "1 d"),
        (90000, "1 d 1 h"),
    ],
)
def test_the_time_left_is_shown_in_its_two_greatest_units(seconds: float, text: str) -> None:
    """A unit that is zero is left out."""
    assert left(seconds) == text
