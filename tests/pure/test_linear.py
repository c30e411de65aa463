"""The cost of reading a text grows no faster than its length: no expression backtracks, no reader repeats.

Speed itself is measured by `make bench`. These tests count work, and analyse the expressions.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.docker import bounded_json
from plugin.labels import parser
from plugin.labels.grammar import MAX_LENGTH, parse_allow, parse_deny, parse_egress, parse_rate, taken_back
from plugin.labels.keys import KEYS
from plugin.model import Rule
from plugin.policy.decide import minus
from tests.pure.strategies import examples

PLUGIN = sorted((Path(__file__).parents[2] / "plugin").rglob("*.py"))
_parser: Any = re._parser  # type: ignore[attr-defined]
EVERY = frozenset(map(chr, range(128)))


# --- expressions --------------------------------------------------------------------------------------------------


def _expressions() -> Iterator[Any]:
    """Yield every constant expression that is passed to `re`, and whether it may match anywhere in the text."""
    for path in PLUGIN:
        source = path.read_text()
        if not re.search(r"\bre\.", source):  # each process of a run collects these: most files need no parser
            continue
        for node in ast.walk(ast.parse(source)):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "re":
                assert isinstance(node, ast.Call)
                text = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
                if isinstance(text, str):
                    anywhere = called.attr in ("search", "split", "sub", "findall", "finditer")
                    yield pytest.param(text, anywhere, id=f"{path.stem}:{node.lineno}")


def _chars(op: str, value: Any) -> frozenset[str]:
    """Return the ASCII characters that one step of an expression accepts."""
    match op:
        case "LITERAL":
            return frozenset(chr(value))
        case "NOT_LITERAL":
            return EVERY - {chr(value)}
        case "RANGE":
            return frozenset(map(chr, range(value[0], min(value[1], 127) + 1)))
        case "CATEGORY":
            return frozenset(c for c in EVERY if re.fullmatch(_CATEGORIES[str(value)], c))
        case "IN":
            found = frozenset().union(*(_chars(str(o), v) for o, v in value if str(o) != "NEGATE"))
            return EVERY - found if str(value[0][0]) == "NEGATE" else found
    return EVERY


_CATEGORIES = {"CATEGORY_SPACE": r"\s", "CATEGORY_NOT_SPACE": r"\S", "CATEGORY_DIGIT": r"\d", "CATEGORY_WORD": r"\w"}


class _Nested(Exception):
    """A repeat within a repeat."""


def _ways(parsed: Any) -> list[list[tuple[frozenset[str], bool]]]:
    """Return each path through an expression: the characters of each step, and whether it repeats without a bound."""
    ways: list[list[tuple[frozenset[str], bool]]] = [[]]
    for op, value in parsed:
        name = str(op)
        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, inner = value
            within = _ways(inner)
            if most > 100:
                if any(again for way in within for _, again in way):
                    raise _Nested
                heads = frozenset().union(*(chars for way in within for chars, _ in way))
                each = [[(heads, True)]]
            else:
                each = within
            more = [*each, *([[]] if not least else [])]
        elif name == "SUBPATTERN":
            more = _ways(value[3])
        elif name == "BRANCH":
            more = [way for branch in value[1] for way in _ways(branch)]
        elif name == "AT":
            continue
        else:
            more = [[(_chars(name, value), False)]]
        ways = [[*way, *end] for way in ways for end in more]
    return ways


def _backtracks(text: str, *, anywhere: bool) -> str:
    """Return why an expression may take more steps than in proportion to the text; "" if it does not."""
    try:
        ways = _ways(_parser.parse(text, re.VERBOSE if "\n" in text else 0))
    except _Nested:
        return "a repeat is within another"
    for way in ways:
        for at, (chars, again) in enumerate(way):
            if not again:
                continue
            if anywhere and at == 0 and len(way) > 1:
                return "it begins anywhere, with a repeat that something must follow"
            for other, twice in way[at + 1 :]:
                if twice and other & chars:
                    return "two repeats share the same characters"
                if not twice and not other & chars:
                    break  # the end of the first one is unambiguous
    return ""


@pytest.mark.parametrize(("text", "anywhere"), list(_expressions()))
def test_no_expression_backtracks(text: str, anywhere: bool) -> None:
    """Two repeats without a bound never share a stretch of the text, and none is nested in another."""
    if text.startswith(r"[ \t]*(?:export"):
        pytest.skip("a whole .env file, by `fwctl check` alone, of which each line ends the match")
    if text in (bounded_json._PLAIN.pattern, bounded_json._INSIDE.pattern):
        pytest.skip("nothing follows it, so that wherever it ends is a match, and nothing is tried twice")
    assert _backtracks(text, anywhere=anywhere) == ""


@pytest.mark.parametrize(
    ("text", "anywhere"), [(r"(.+?)\s+([0-9]+)", False), (r"a*b?a*", False), (r"(a+)+", False), (r"\s*x", True)]
)
def test_an_expression_that_backtracks_is_detected(text: str, anywhere: bool) -> None:
    """The test above detects backtracking."""
    assert _backtracks(text, anywhere=anywhere)


# --- readers ------------------------------------------------------------------------------------------------------

_UNITS = [
    "a", "1", " ", "/", "1 ", "22 ", "22 5/minute ", "22 5/minute,", "22-", "22 - ", "from ", "22 from ", "1 burst ",
    "burst 1 ", "0 0/", "1 1/a burst 1 ", "container:a ", "1 from container:a,", "1 from ::/9,", "22 from 10.0.0.1/33,",
    "2 form 1,", "::", "1 from 1::1 ", "10.0.0.1/8 ", "-", "\n", ",", ":", "*", "1/tcp,", "\t", "x ", "ſ",
]  # fmt: skip
_BEFORE = ["", "22 ", "22 from ", "22 5/minute burst ", "1" + " " * 400]


def steps(work: Callable[[], object]) -> int:
    """Return the number of calls, of Python and C functions, that the work takes when its expressions are compiled."""
    count = 0
    work()

    def count_call(*_: object) -> None:
        nonlocal count
        count += 1

    sys.setprofile(count_call)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("read", [parse_allow, parse_deny, parse_egress, parse_rate, taken_back])
def test_a_value_twice_as_long_takes_twice_the_work(read: Callable[[str], object]) -> None:
    """Every reader of a value takes at most about twice the work for any repeated text of twice the length."""
    for before in _BEFORE:
        for unit in _UNITS:
            half, whole = (before + (unit * length)[:length] for length in (MAX_LENGTH // 4, MAX_LENGTH // 2))
            assert steps(lambda text=whole: read(text)) <= 2.5 * steps(lambda text=half: read(text)) + 200, unit


@pytest.mark.parametrize("key", KEYS)
def test_four_kilobytes_of_labels_take_bounded_work(key: str) -> None:
    """Reading any text takes at most 16 calls a character, which takes some milliseconds."""
    for before in _BEFORE:
        for unit in _UNITS:
            value = (before + unit * MAX_LENGTH)[:MAX_LENGTH]
            assert steps(lambda value=value: parser.parse({key: value})) <= 16 * MAX_LENGTH, unit


def test_only_the_first_of_many_wrong_peers_are_read() -> None:
    """More than that is no typo; the rest is not even read."""
    ((spec),) = parse_allow("22 from " + "1 " * 2000)[1]
    assert spec.count("is not an address") == 8


def test_thousands_of_denied_ports_take_work_in_proportion() -> None:
    """`fw.policy: open` without 2,000 ports does not take 2,000 times 2,000 steps."""
    everything = [Rule("tcp", 1, 65535)]

    def work(holes: int) -> int:
        return steps(lambda: list(minus(everything, [Rule("tcp", 8 * n, 8 * n) for n in range(1, holes)])))

    assert work(2000) <= 2.5 * work(1000)


# --- rates: read word by word, equal to the language's expression ---------------------------------------------------

_RATE = re.compile(r"(.+?)\s+([0-9]{1,9})\s*/\s*([A-Za-z]+)(?:\s+burst\s+([0-9]{1,9}))?", re.ASCII | re.IGNORECASE)
_WORDS = ["22", "5", "/", "minute", "burst", "10", " ", "  ", "/tcp", "5/minute", "second", "-", "hour", "B", "0", "é"]


@given(st.lists(st.sampled_from(_WORDS), max_size=9).map("".join))
@examples(500)
def test_a_rate_is_read_as_the_expression_matches(text: str) -> None:
    """Each text that the expression matches is a rate with these parts; any other is a mistake that quotes it."""
    text = text.strip()
    if not text or "," in text:
        return
    match = _RATE.fullmatch(text)
    rates, mistakes = parse_rate(text)
    assert len(rates) + len(mistakes) == 1
    if match is None:
        assert not rates
        assert "is not a rate" in mistakes[0]
    elif rates:
        assert (rates[0].count, rates[0].unit, rates[0].burst) == (int(match[2]), match[3].lower(), int(match[4] or 5))
