"""Docker's stream of events: a JSON object a line. Pure.

docker-py waits for more where something is no JSON, for ever: not one event after it would be heard.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

#: Bytes of an event; a container's labels are in it.
LONGEST = 1 << 24


def objects(chunks: Iterable[bytes | str]) -> Iterator[dict[str, Any]]:
    """Raises ValueError at the first line that is none of Docker's: what it was to say is not known."""
    rest: list[bytes] = []
    size = 0
    for chunk in chunks:
        first, *lines = (chunk.encode() if isinstance(chunk, str) else chunk).split(b"\n")
        rest.append(first)
        size += len(first)
        for line in lines:
            yield from _object(b"".join(rest))
            rest, size = [line], len(line)
        if size > LONGEST:
            raise ValueError(f"a line of more than {LONGEST} bytes")


def _object(line: bytes) -> Iterator[dict[str, Any]]:
    if line.strip():
        try:
            told = json.loads(line)
        except RecursionError:
            raise ValueError("an object too deep to be read") from None
        if not isinstance(told, dict):
            raise ValueError(f"{told!r:.60} is no event")
        yield told
