"""Reads a compose file's text into values with the line of every key.

YAML as compose reads it (go-yaml): `22:22` and `on` are text, 0x50 is a number. PyYAML's nodes carry the positions and
leave aliases unexpanded; only what is asked for is walked, and never more than `MAX_VALUES`, so that a few lines of
aliases cannot become a billion values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from decimal import Decimal

import yaml

from plugin.fwctl.check.compose.model import Notes, Place, Shape, Unreadable, Value

#: Characters of one file, and values of all files together. Far beyond any compose file.
MAX_TEXT = 1 << 20
MAX_VALUES = 50_000
MAX_DEPTH = 24

#: Replaces variables in a text; None if that failed (the mistake is noted).
Expand = Callable[[str, Place], str | None]

_NULL = ("", "~", "null", "Null", "NULL")
_BOOLEAN = {"true": "true", "True": "true", "TRUE": "true", "false": "false", "False": "false", "FALSE": "false"}
_INTEGER = re.compile(r"([-+]?)(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO][0-7]+|0[0-7]*|[1-9][0-9]*)", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)


def documents(text: str, file: str) -> list[yaml.Node]:
    """Return the documents of a file as PyYAML's nodes. Raises Unreadable with the wrong line."""
    if len(text) > MAX_TEXT:
        raise Unreadable(Place(file), f"is longer than {MAX_TEXT} characters, which no compose file is")
    try:
        # The base loader makes text of every scalar: what compose makes of it is decided below.
        return [node for node in yaml.compose_all(text, yaml.BaseLoader) if node is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(str(part) for part in (error.context, error.problem) if part)
        raise Unreadable(Place(file, mark.line + 1 if mark else 0), f"is not YAML: {what}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise Unreadable(Place(file, line), f"is not YAML: the character #x{ord(text[error.position]):04x}") from error
    except RecursionError as error:
        raise Unreadable(Place(file), "is nested too deeply") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML makes characters of escapes (\UFFFFFFFF) and numbers of versions without looking.
        raise Unreadable(Place(file), f"is not YAML: {error}") from error


class Walker:
    """Makes values of PyYAML's nodes, within the bounds of one run."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._left = MAX_VALUES

    def value(self, node: yaml.Node, file: str, shape: Shape | None, expand: Expand) -> Value | None:
        """Return the node's value; None if its variables could not be replaced."""
        return self._value(node, Place(file, node.start_mark.line + 1), shape, expand, 0)

    def _value(self, node: yaml.Node, place: Place, shape: Shape | None, expand: Expand, depth: int) -> Value | None:
        self._count(place, depth)
        tag = {"!reset": "reset", "!override": "override"}.get(node.tag, "")
        if isinstance(node, yaml.ScalarNode):
            text = scalar(node)
            written = node.value if text is not None and text != node.value else ""
            if text is not None and "$" in text and (text := expand(text, place)) is None:
                return None
            return Value(text, place, tag, written)
        if isinstance(node, yaml.SequenceNode):
            items = (self._value(n, Place(place.file, _line(n)), shape, expand, depth + 1) for n in node.value)
            return Value([item for item in items if item is not None], place, tag)
        found: dict[str, Value] = {}
        for key, line, child in self._pairs(node, place.file, depth):
            inner = None if shape is None else shape.get(key, shape.get("*"))
            # A label outside of labels: must not be overlooked.
            if shape is None or key in shape or "*" in shape or key.lower().startswith("fw."):
                value = self._value(child, Place(place.file, line), inner, expand, depth + 1)
                if value is not None:
                    found[key] = value
        return Value(found, place, tag)

    def _pairs(self, node: yaml.Node, file: str, depth: int) -> Iterator[tuple[str, int, yaml.Node]]:
        """Yield the entries of a map: those that `<<` merges first, then its own, which win."""
        own: dict[str, int] = {}
        found: list[tuple[str, int, yaml.Node]] = []
        for key, child in node.value:
            place = Place(file, _line(key))
            self._count(place, depth)
            if not isinstance(key, yaml.ScalarNode):
                self._notes.mistake(place, "a key must be text, not a list or a map")
            elif key.value == "<<" and key.style is None:
                # Of several that are merged the first wins, so it is put last.
                for other in reversed(child.value if isinstance(child, yaml.SequenceNode) else [child]):
                    if isinstance(other, yaml.MappingNode):
                        yield from self._pairs(other, file, depth + 1)
                    else:
                        self._notes.mistake(place, "<< merges maps: write an alias of one, like <<: *common")
            elif key.value in own:
                self._notes.mistake(place, f'"{key.value}" is already defined in line {own[key.value]}')
            else:
                own[key.value] = place.line
                found.append((key.value, place.line, child))
        yield from found

    def _count(self, place: Place, depth: int) -> None:
        self._left -= 1
        if self._left < 0:
            raise Unreadable(place, f"there are more than {MAX_VALUES} values here; aliases of aliases?")
        if depth > MAX_DEPTH:
            raise Unreadable(place, f"is nested more than {MAX_DEPTH} deep; an alias of itself?")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def scalar(node: yaml.ScalarNode) -> str | None:
    """Return a scalar as the text that compose makes of it: 022 is 18, 80.0 is 80, True is true; None is null."""
    text = str(node.value)
    if node.style is not None:
        return text
    if text in _NULL:
        return None
    bare = text.replace("_", "")
    if text[0] not in "+-.0123456789" or len(bare) > 64:
        return _BOOLEAN.get(text, text)
    if match := _INTEGER.fullmatch(bare):
        digits = match[2].lower()
        base = {"0x": 16, "0b": 2, "0o": 8}.get(digits[:2], 8 if digits[0] == "0" else 10)
        return str(int(match[1] + (digits[2:] if digits[:2] in ("0x", "0b", "0o") else digits), base))
    return _float(float(bare)) if _FLOAT.fullmatch(bare) else text


def _float(number: float) -> str:
    """Format a number as Go does: the shortest digits, with an exponent from a million on."""
    if number in (0, float("inf"), float("-inf")):
        return "0" if not number else "+Inf" if number > 0 else "-Inf"
    exact = Decimal(repr(number))
    exponent = exact.adjusted()
    if -4 <= exponent < 6:
        return f"{exact.normalize():f}"
    mantissa = f"{exact.scaleb(-exponent).normalize():f}"
    return f"{mantissa}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"
