"""Docker's answers are read in pieces of any size; an entry that is too large is skipped alone, in little memory."""

from __future__ import annotations

import itertools
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.docker import bounded_json
from plugin.docker.bounded_json import Cut, beginning, elements, members, one_value
from tests.pure.strategies import examples, json_values

ID = "c" * 64


def pieces(data: bytes, size: int = 1 << 16) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def container(**labels: str) -> dict[str, Any]:
    """An entry as moby lists it: the ID first."""
    return {"Id": ID, "Names": ["/web"], "Image": "x", "Labels": labels, "State": "running", "Ports": []}


@given(st.lists(json_values, max_size=6), st.lists(st.integers(0, 600), max_size=8), st.booleans(), st.booleans())
@examples(200)
def test_a_list_is_read_in_pieces_of_any_size(entries: list[Any], cuts: list[int], spaced: bool, at_once: bool) -> None:
    """Each element is returned once and in order, as if the answer had been read as a whole; with spaces, and text of
    any script."""
    data = json.dumps(entries, indent=1 if spaced else None, ensure_ascii=spaced).encode() + b"\n"
    edges = [0, *sorted(min(at, len(data)) for at in cuts), len(data)]
    with pytest.MonkeyPatch.context() as patch:
        if not at_once:
            patch.setattr(bounded_json, "AT_ONCE", 1)
        found = list(elements(data[a:b] for a, b in itertools.pairwise(edges)))
    assert json.dumps(found) == json.dumps(entries)


@given(st.lists(json_values, max_size=4), st.integers(1, 40))
@examples(100)
def test_small_pieces_and_small_bounds(entries: list[Any], size: int) -> None:
    """Objects within bounds of a few bytes are read, larger ones are cut, and no other is affected."""
    data = json.dumps([{"Id": f"{n}", "Of": each} for n, each in enumerate(entries)]).encode()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("LARGEST", 60), ("SMALL", 20), ("_PIECE", size), ("AT_ONCE", 1)):
            patch.setattr(bounded_json, name, value)
        found = list(elements(pieces(data, size)))
    for number, (got, each) in enumerate(zip(found, entries, strict=True)):
        right = {"Id": f"{number}", "Of": each}
        if len(json.dumps(right)) <= 60:
            assert json.dumps(got) == json.dumps(right)  # as text: a NaN does not equal itself
        else:
            assert got == Cut(f"{number}")


#: Made when a test runs: every process reads this file.
LARGE: dict[str, Callable[[], dict[str, str]]] = {
    "one label": lambda: {"fw.allow": "x" * (bounded_json.LARGEST + 1)},
    "many labels": lambda: {f"fw.{n}": "" for n in range(600_000)},
    "escapes": lambda: {"fw.allow": '\\"' * bounded_json.LARGEST, "}]": "{["},
    "brackets": lambda: {"fw.allow": "[{" * bounded_json.LARGEST},
}


@pytest.mark.parametrize("labels", LARGE.values(), ids=LARGE)
@pytest.mark.parametrize("size", [1 << 16, 4099])
def test_only_an_entry_that_is_too_large_is_cut(labels: Callable[[], dict[str, str]], size: int) -> None:
    """The ID and the name of a large entry are known; the entries before and after it are read."""
    data = json.dumps([container(), container(**labels()), container(a="b")]).encode()
    assert list(elements(pieces(data, size))) == [container(), Cut(ID, "web"), container(a="b")]


def test_the_beginning_of_a_large_inspection_is_read() -> None:
    """The fields that Docker sends before the labels are read, as far as they are complete."""
    document = {
        "Id": ID,
        "HostConfig": {"PortBindings": {"80/tcp": [{"HostPort": "8080"}]}},
        "Config": {"a": 1, "b": "x"},
    }
    data = json.dumps(document).encode()
    assert beginning([data]) == (document, True)
    start = {key: document[key] for key in ("Id", "HostConfig")}
    for length in range(data.index(b"8080") - 4, len(data)):
        got, whole = beginning([data[:length], data[length:]], length - 1)
        assert not whole
        assert got in ({}, {"Id": ID}, start), length
    assert got == start


def test_only_an_entry_that_is_nested_too_deep_is_cut() -> None:
    """Python cannot read an object with a hundred thousand levels."""
    deep = b'{"Id": "d", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert list(elements([b"[" + deep + b', {"Id": "e"}]'])) == [Cut("d"), {"Id": "e"}]


def test_large_entries_are_cut_when_their_sum_is_too_large() -> None:
    """Small entries are read, whatever the large ones take."""
    large, small = container(a="x" * (bounded_json.LARGEST // 2)), container(a="x")
    data = json.dumps([large] * 40).encode()[:-1] + b"," + json.dumps([small] * 3).encode()[1:]
    found = list(elements(pieces(data)))
    assert found[:15] == [large] * 15
    assert found[16:] == [Cut(ID, "web")] * 24 + [small] * 3


def test_a_container_of_256_mebibytes_takes_the_memory_of_a_small_one() -> None:
    """A list with such a container is read with memory for a few of its pieces, and in seconds."""

    def answer(mebibytes: int) -> Iterator[bytes]:
        yield json.dumps([container()])[:-1].encode() + b',{"Id":"' + ID.encode() + b'","Labels":{"a":"'
        yield from itertools.repeat(b'\\"{[' * (1 << 14), mebibytes << 4)
        yield b'"}},' + json.dumps(container()).encode() + b"]"

    def seconds(mebibytes: int) -> float:
        began = time.process_time()
        assert list(elements(answer(mebibytes))) == [container(), Cut(ID), container()]
        return time.process_time() - began

    tracemalloc.start()
    sixteenth, whole = seconds(16), seconds(256)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 64 << 20
    assert whole < 4 * 16 * sixteenth + 1, "in proportion to its length, whatever this machine's speed"


@pytest.mark.parametrize(
    "nonsense",
    [
        b"",
        b"{}",
        b"5",
        b"null",
        b"[",
        b"[1",
        b"[1,",
        b"[1,]",
        b"[1 2]",
        b"[}",
        b"[1]]",
        b"[1] x",
        b'["\xff"]',
        b'[{"a":',
        b"[" + b" " * 100_000,
        b'["' + b"x" * (20 << 20) + b'"]',
        b'[{"a": "' + b"x" * (5 << 20),
    ],
    ids=lambda each: each[:8],
)
@pytest.mark.parametrize("at_once", [1, bounded_json.AT_ONCE])
def test_an_answer_must_be_a_list(monkeypatch: pytest.MonkeyPatch, nonsense: bytes, at_once: int) -> None:
    """An answer that is no list is an error: Docker counts as silent."""
    monkeypatch.setattr(bounded_json, "AT_ONCE", at_once)
    with pytest.raises(ValueError):  # noqa: PT011 (whatever it says)
        list(elements(pieces(nonsense)))


def test_an_answer_about_one_object_is_bounded() -> None:
    """An answer is not read beyond the bound."""
    assert one_value([b'{"a"', b": 1}"]) == {"a": 1}

    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * (1 << 16)

    with pytest.raises(ValueError, match="more than"):
        one_value(endless())


@given(st.dictionaries(st.text(max_size=4), json_values, max_size=4), st.integers(0, 80))
@examples(200)
def test_complete_members_of_a_cut_object_are_read(document: dict[str, Any], end: int) -> None:
    """The complete members of an object cut at any point are read, in order, and so are those of a nested object that
    is cut."""
    found = members(json.dumps(document, separators=(",", ":"))[:end])
    for key, value in list(found.items())[:-1]:
        assert value == document[key]
    assert list(found) == list(document)[: len(found)]


@pytest.mark.parametrize("number", ["2.5", "2e-7", "-0.25E+3", "120"])
def test_a_number_is_read_completely_wherever_its_pieces_end(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk may end within a number, and the digits so far would be a number too."""
    monkeypatch.setattr(bounded_json, "AT_ONCE", 1)
    data = f"[{number}]".encode()
    for at in range(1, len(data)):
        assert list(elements(iter([data[:at], data[at:]]))) == [json.loads(number)]
