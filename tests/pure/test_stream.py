"""Docker's stream of events comes in pieces of any size, and what is none of it is noticed at once."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.stream import LONGEST, objects
from tests.pure.strategies import examples, json_values

EVENTS = st.lists(st.dictionaries(st.text(max_size=8), json_values, max_size=3), max_size=4)


@given(EVENTS, st.lists(st.integers(0, 400), max_size=8))
@examples(60)
def test_in_whatever_pieces_it_comes(events: list[dict[str, object]], cuts: list[int]) -> None:
    """Every event is told, once and in order, wherever the pieces begin and end; an event's end is its line's end."""
    whole = b"".join(json.dumps(each).encode() + b"\n" for each in events)
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    pieces = [whole[a:b] for a, b in itertools.pairwise(edges)]
    assert json.dumps(list(objects(pieces))) == json.dumps(events)


def test_an_event_is_told_when_its_line_has_come() -> None:
    """Nothing waits for what comes after it, and an empty line is nothing."""
    told = objects(['{"a": 1}\n{"b"', b': "\xc3', b'\xa9"}\r\n\n', b'{"c"'])
    assert list(told) == [{"a": 1}, {"b": "é"}]


@pytest.mark.parametrize("nonsense", [b"\xff", b"timed out", b"[" * 100_000, b"[]", b"5", b'{"a": 1} {"b": 2}'])
def test_what_is_no_event_ends_it(nonsense: bytes) -> None:
    """What it was to say is not known: whoever reads must not go on as if nothing had been."""
    told = objects([b'{"a": 1}\n', nonsense + b"\n", b'{"c": 3}\n'])
    assert next(told) == {"a": 1}
    with pytest.raises(ValueError):  # noqa: PT011 (whatever it says)
        next(told)


def test_a_line_without_an_end_ends_it() -> None:
    """It is not kept in memory for ever."""

    def endless() -> Iterator[bytes]:
        while True:
            yield b"{" * (1 << 20)

    with pytest.raises(ValueError, match=f"more than {LONGEST} bytes"):
        next(objects(endless()))
