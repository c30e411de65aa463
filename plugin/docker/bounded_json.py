"""Read Docker's JSON in pieces and within bounds, so that a huge container cannot exhaust the host's memory. Pure.

A container can have megabytes of labels, and Docker repeats them in each list and event. Lists are read element by
element. An element that is too large becomes a `Cut`, and the next one is read.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

#: Maximum bytes of one element of a list, and of an answer about one object. As Python objects they take about 25
#: times that.
LARGEST, INSPECTED = 1 << 22, 1 << 23
#: Bytes of an element that is always read, and of all larger elements of one list together.
SMALL, ALL = 1 << 16, 1 << 25
#: Bytes of a list that is parsed as a whole, which is twice as fast: some 2,500 containers.
AT_ONCE = 1 << 22
#: Number of characters kept of an element that is too large: enough for its ID and names, which are first.
_BEGINNING = 4096
_PIECE = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")
#: Everything up to a bracket or a string that has no end yet; the inside of a string.
#: (No possessive quantifiers: Python 3.11.2 backtracks into them.)
_PLAIN = re.compile(r'(?:[^"{}\[\]]+|"[^"\\]*(?:\\.[^"\\]*)*")*', re.DOTALL)
_INSIDE = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_decode = json.JSONDecoder().raw_decode


@dataclass(frozen=True, slots=True)
class Cut:
    """An element that was too large to be read. `id` and `name` are empty if they are not in its beginning."""

    id: str = ""
    name: str = ""
    CLOSED: ClassVar[str] = f"stays closed: its entry in Docker's list (labels, ports) exceeds {LARGEST >> 20} MiB"


def one_value(chunks: Iterable[bytes], limit: int = INSPECTED) -> Any:
    """Return one value. Raises ValueError if it is no JSON, or longer than `limit` bytes."""
    return json.loads(whole(chunks, limit))


def whole(chunks: Iterable[bytes], limit: int = INSPECTED) -> bytes:
    """Return the text. Raises ValueError if it is longer than `limit` bytes."""
    pieces, size = [], 0
    for chunk in chunks:
        pieces.append(chunk)
        size += len(chunk)
        if size > limit:
            raise ValueError(f"Docker answers with more than {limit} bytes")
    return b"".join(pieces)


def beginning(chunks: Iterable[bytes], limit: int = INSPECTED) -> tuple[Any, bool]:
    """Return one value, and True. If an object is longer than `limit` bytes, return its first members, and False.

    Only complete members are returned. Raises ValueError if it is no JSON.
    """
    pieces, size = [], 0
    for chunk in chunks:
        pieces.append(chunk)
        size += len(chunk)
        if size > limit:
            found = members(b"".join(pieces).decode(errors="replace"))
            # The last member may be incomplete.
            return dict(list(found.items())[:-1]), False
    return json.loads(b"".join(pieces)), True


def elements(chunks: Iterable[bytes]) -> Iterator[Any]:
    """Yield the elements of a list; a `Cut` for each that is too large. Raises ValueError if it is no list."""
    text, left = _Text(chunks), ALL
    text.more(AT_ONCE)
    if text.ended:
        with suppress(RecursionError):
            parsed = json.loads(text.buffer)
            if not isinstance(parsed, list):
                raise ValueError(f"not a list: {text.buffer[:60]!r}")
            yield from parsed
            return
    if text.next() != "[":
        raise ValueError(f"not a list: {text.buffer[:60]!r}")
    text.at += 1
    empty = text.next() == "]"
    while not empty:
        element, size = text.element(LARGEST)
        if size > SMALL:
            left -= size
        yield cut(text.beginning) if size > LARGEST or (size > SMALL and left < 0) else element
        if (mark := text.next()) not in (",", "]"):
            raise ValueError(f"not a list: {mark!r:.8} after an element")
        if mark == "]":
            break
        text.at += 1
    text.at += 1
    if text.next():
        raise ValueError("there is data after the list")


def cut(beginning: str) -> Cut:
    """Return the ID and the name in the first characters of an object."""
    found = members(beginning)
    names = found.get("Names")
    name = next((n for n in names if isinstance(n, str)), "") if isinstance(names, list) else found.get("Name")
    identity = found.get("Id")
    return Cut(identity if isinstance(identity, str) else "", str(name or "").lstrip("/"))


def members(text: str, at: int = 0) -> dict[str, Any]:
    """Return the complete members at the beginning of an object, and likewise of the objects in it."""
    found: dict[str, Any] = {}
    try:
        while text[at] in "{,":
            key, at = _decode(text, _after_spaces(text, at + 1))
            at = _after_spaces(text, at)
            if not isinstance(key, str) or text[at] != ":":
                break
            at = _after_spaces(text, at + 1)
            if text[at] == "{":
                found[key] = members(text, at)
            found[key], at = _decode(text, at)
            at = _after_spaces(text, at)
    except (ValueError, IndexError, RecursionError):
        pass
    return found


def _after_spaces(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]


class _Text:
    """Chunks as text. `buffer` is the text read and still needed; `at` is the position of the next value in it."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.buffer, self.at, self.ended = "", 0, False
        #: The first characters of the element that was read last, if it is large.
        self.beginning = ""

    def more(self, least: int = _PIECE) -> bool:
        """Read at least `least` more bytes, and drop the text before `at`. False at the end."""
        pieces, size = [], 0
        while size < least and not self.ended:
            chunk = next(self._chunks, None)
            if chunk is None:
                self.ended, chunk = True, b""
            pieces.append(chunk)
            size += len(chunk)
        self.buffer = self.buffer[self.at :] + self._decoder.decode(b"".join(pieces), final=self.ended)
        self.at = 0
        return size > 0

    def next(self) -> str:
        """Return the next character that is not white space; "" at the end."""
        while True:
            self.at = _after_spaces(self.buffer, self.at)
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if not self.more():
                return ""

    def element(self, limit: int) -> tuple[Any, int]:
        """Return the next value, and its size. A value longer than `limit` is skipped: then the result is None."""
        self.next()
        while True:
            known = len(self.buffer) - self.at
            try:
                value, end = _decode(self.buffer, self.at)
                if self.ended or (end < len(self.buffer) and not self._goes_on(value, end)):
                    size, self.at = end - self.at, end
                    if size > SMALL:
                        self.beginning = self.buffer[end - size : end - size + _BEGINNING]
                    return value, size
            except RecursionError:
                return None, self._skip(limit)
            except ValueError:
                if self.ended:
                    raise
            if known > limit:
                return None, self._skip(limit)
            if not self.more(max(known, _PIECE)) and not self.ended:
                raise ValueError("the list is incomplete")

    def _goes_on(self, value: Any, end: int) -> bool:
        """True if a number may continue at `end`: of `2.5e-7`, `2` can be read alone, and `2.5` too."""
        return isinstance(value, int | float) and self.buffer[end] in "0123456789.eE+-"

    def _skip(self, limit: int) -> int:
        """Go to the end of an object without keeping it. Returns a size above `limit`: the object is not read."""
        if self.buffer[self.at] != "{":
            raise ValueError(f"not an object: {self.buffer[self.at : self.at + 60]!r}")
        self.beginning = self.buffer[self.at : self.at + _BEGINNING]
        depth = 0
        while True:
            if self._over(_PLAIN):
                continue
            mark = self.buffer[self.at]
            self.at += 1
            if mark == '"':
                self._skip_string()
            else:
                depth += 1 if mark in "{[" else -1
                if not depth:
                    return limit + 1

    def _skip_string(self) -> None:
        while self._over(_INSIDE) or self.buffer[self.at] != '"':
            if self.at + 1 >= len(self.buffer):  # a backslash: keep it until its character is read
                self._must()
        self.at += 1

    def _over(self, pattern: re.Pattern[str]) -> bool:
        """Advance as far as the pattern matches; True if the match may continue.

        A match takes memory for each step, so it covers one piece at a time.
        """
        end = self.at + _PIECE + 2
        self.at = pattern.match(self.buffer, self.at, end).end()  # type: ignore[union-attr]
        if self.at == len(self.buffer):
            self._must()
            return True
        return self.at == end

    def _must(self) -> None:
        """Read more. Raises ValueError at the end."""
        if not self.more():
            raise ValueError("the list is incomplete")
