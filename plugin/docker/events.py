"""Docker's stream of events: a JSON object a line. Pure.

docker-py waits for more where something is no JSON, for ever: not one event after it would be heard. Nor must a line
without end: events repeat a container's labels, of which there may be hundreds of megabytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from plugin.docker.bounded_json import members

#: Bytes of an event that is read whole. Of a longer one the beginning is, and the rest of its line is skipped.
LONGEST, _BEGINNING = 1 << 20, 4096
#: Somebody runs a program in a container: nobody comes or goes by it, and it repeats the command before it says whose.
_EXEC = re.compile(r'\s*\{\s*(?:"Type"\s*:\s*"container"\s*,\s*)?"(?:status|Action)"\s*:\s*"exec_')


def objects(chunks: Iterable[bytes | str]) -> Iterator[dict[str, Any] | None]:
    """None for an event that is too long and does not say at its beginning what it is: it may be anything.

    Raises ValueError at the first line that is none of Docker's: what it was to say is not known.
    """
    rest: list[bytes] = []
    size, skipping = 0, False
    for chunk in chunks:
        first, *lines = (chunk.encode() if isinstance(chunk, str) else chunk).split(b"\n")
        if not skipping:
            rest.append(first)
            size += len(first)
        for line in lines:
            if not skipping:
                yield from _object(b"".join(rest))
            rest, size, skipping = [line], len(line), False
        if size > LONGEST:
            # Told before its line has ended: it may be about somebody who goes.
            yield from _beginning(b"".join(rest)[:_BEGINNING])
            rest, size, skipping = [], 0, True


def _object(line: bytes) -> Iterator[dict[str, Any] | None]:
    if len(line) > LONGEST:
        yield from _beginning(line[:_BEGINNING])
    elif line.strip():
        try:
            told = json.loads(line)
        except RecursionError:
            raise ValueError("an object too deep to be read") from None
        if not isinstance(told, dict):
            raise ValueError(f"{told!r:.60} is no event")
        yield told


def _beginning(line: bytes) -> Iterator[dict[str, Any] | None]:
    """Type, action and whom it is about stand before the labels. A container's event has nothing else that counts."""
    text = line.decode(errors="replace")
    if _EXEC.match(text):
        return
    told = members(text[text.find("{") :])
    kind, action, actor = told.get("Type"), told.get("Action"), told.get("Actor")
    whom = actor.get("ID") if isinstance(actor, dict) else None
    if kind == "container" and isinstance(action, str) and action and isinstance(whom, str) and whom:
        yield {"Type": kind, "Action": action, "Actor": {"ID": whom}}
    else:
        yield None
