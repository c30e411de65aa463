"""Docker's event stream is read in pieces of any size, and a line that is no event ends it at once."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.docker import parse
from plugin.docker.events import LONGEST, objects
from tests.pure.strategies import examples, json_values

EVENTS = st.lists(st.dictionaries(st.text(max_size=8), json_values, max_size=3), max_size=4)


@given(EVENTS, st.lists(st.integers(0, 400), max_size=8))
@examples(60)
def test_events_are_read_in_pieces_of_any_size(events: list[dict[str, object]], cuts: list[int]) -> None:
    """Every event is returned once and in order, wherever the pieces are cut; an event ends with its line."""
    whole = b"".join(json.dumps(each).encode() + b"\n" for each in events)
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    pieces = [whole[a:b] for a, b in itertools.pairwise(edges)]
    assert json.dumps(list(objects(pieces))) == json.dumps(events)


def test_an_event_is_returned_when_its_line_is_complete() -> None:
    """An event is returned without waiting for the next one, and an empty line is ignored."""
    events = objects(['{"a": 1}\n{"b"', b': "\xc3', b'\xa9"}\r\n\n', b'{"c"'])
    assert list(events) == [{"a": 1}, {"b": "é"}]


@pytest.mark.parametrize("nonsense", [b"\xff", b"timed out", b"[" * 100_000, b"[]", b"5", b'{"a": 1} {"b": 2}'])
def test_a_line_that_is_no_event_ends_the_stream(nonsense: bytes) -> None:
    """The content of the line is unknown: the reader must not continue as if no event had happened."""
    events = objects([b'{"a": 1}\n', nonsense + b"\n", b'{"c": 3}\n'])
    assert next(events) == {"a": 1}
    with pytest.raises(ValueError):  # noqa: PT011 (whatever it says)
        next(events)


def event(action: str, **more: Any) -> bytes:
    """An event as moby writes it: the deprecated fields first, then the actor's ID, then its labels."""
    labels = {"a": "x" * (LONGEST + 1), "Type": "network", "ID": "f" * 64}
    message = {
        "status": action,
        "id": "c" * 64,
        "from": "x",
        "Type": "container",
        "Action": action,
        "Actor": {"ID": "c" * 64, "Attributes": labels},
        "scope": "local",
        **more,
    }
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


SMALL = {"Type": "container", "Action": "start", "Actor": {"ID": "d" * 64}}


@pytest.mark.parametrize("size", [1 << 16, 1001, 1 << 24])
def test_the_beginning_of_a_long_line_names_its_container(size: int) -> None:
    """A container with megabytes of labels: its departure is read, and the events after it. Programs that run in a
    container (exec), whose commands may be as long, are neither an arrival nor a departure."""
    lines = [event("create"), event("die"), event("exec_create: " + "y" * (2 * LONGEST)), event("destroy")]
    data = json.dumps(SMALL).encode() + b"\n" + b"".join(lines) + json.dumps(SMALL).encode() + b"\n"
    found = list(objects(data[at : at + size] for at in range(0, len(data), size)))
    actor = {"ID": "c" * 64}
    departures = [{"Type": "container", "Action": each, "Actor": actor} for each in ("create", "die", "destroy")]
    assert found == [SMALL, *departures, SMALL]


@pytest.mark.parametrize(
    "beginning",
    [
        b"{" * 5000,
        b'{"Type":"network","Action":"connect","Actor":{"ID":"n","Attributes":{"container":"c","x":"',
        b'{"Type":"container","Action":"die","Actor":{"Attributes":{"ID":"c","x":"',
        b'{"status":"die","from":"',
        b"\xff",
        b'{"Type":"container","Actor":{"ID":"c","Attributes":{"x":"',
    ],
)
def test_a_long_line_without_a_name_is_reported_as_incomplete(beginning: bytes) -> None:
    """The event is reported as incomplete before its end has arrived, once, and the events after it are read."""

    def chunks() -> Iterator[bytes]:
        yield beginning
        yield b"y" * (LONGEST + 1)
        reported.append("more")
        yield from [b"y" * (1 << 16)] * 64
        yield b'"}\n' + json.dumps(SMALL).encode() + b"\n"

    reported: list[Any] = []
    for each in objects(chunks()):
        reported.append(each)
    assert reported == [None, "more", SMALL]
    unread = parse.event(None)
    assert not unread.complete


def test_a_line_without_an_end_takes_no_memory() -> None:
    """A gigabyte without a line end takes no more memory than a line that is read."""
    tracemalloc.start()
    assert list(objects(itertools.repeat(b"{" * (1 << 16), 1 << 14))) == [None]
    assert tracemalloc.get_traced_memory()[1] < 8 * LONGEST
    tracemalloc.stop()
