"""Docker's stream of events: one JSON object a line. Pure.

docker-py waits for more after anything that is no JSON, permanently, and would report no further event. A line must be
bounded, too: events repeat a container's labels, which may be hundreds of megabytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from plugin.docker.bounded_json import members

#: Bytes of an event that is read completely. Of a longer one only the beginning is read; the rest of its line is
#: skipped.
LONGEST, _BEGINNING = 1 << 20, 4096
#: An event of `docker exec`: it starts and stops no container, and the command precedes the ID.
_EXEC = re.compile(r'\s*\{\s*(?:"Type"\s*:\s*"container"\s*,\s*)?"(?:status|Action)"\s*:\s*"exec_')


def objects(chunks: Iterable[bytes | str]) -> Iterator[dict[str, Any] | None]:
    """Yield the events; None for one that is too long and whose beginning does not identify it: it may be any event.

    Raises ValueError at the first line that is no event: that may have been any event, too.
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
            # Reported before its line has ended: it may be about a container that stops.
            yield from _beginning(b"".join(rest)[:_BEGINNING])
            rest, size, skipping = [], 0, True


def _object(line: bytes) -> Iterator[dict[str, Any] | None]:
    if len(line) > LONGEST:
        yield from _beginning(line[:_BEGINNING])
    elif line.strip():
        try:
            event = json.loads(line)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        if not isinstance(event, dict):
            raise ValueError(f"{event!r:.60} is not an event")
        yield event


def _beginning(line: bytes) -> Iterator[dict[str, Any] | None]:
    """Yield the event from its first bytes: type, action and ID precede the labels.

    A container's event needs nothing else.
    """
    text = line.decode(errors="replace")
    if _EXEC.match(text):
        return
    event = members(text[text.find("{") :])
    kind, action, actor = event.get("Type"), event.get("Action"), event.get("Actor")
    container = actor.get("ID") if isinstance(actor, dict) else None
    if kind == "container" and isinstance(action, str) and action and isinstance(container, str) and container:
        yield {"Type": kind, "Action": action, "Actor": {"ID": container}}
    else:
        yield None
