"""Read a network as `GET /networks/ID` shows it, and parse only the endpoints in question of a thousand. Pure.

Within a JSON string each quote follows a backslash. So in a text without backslashes each quote is the start or the end
of a string, whatever names and labels contain. Docker writes compact JSON; any other text is parsed as a whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

#: The endpoints, up to the name of the first one; and their end, because no endpoint contains an object.
_CONTAINERS, _END = re.compile(rb'"Containers":(?=\{"[A-Za-z0-9_.-]+":\{"Name":")'), b"}}"
#: IDs and names of containers as Docker writes them: JSON escapes none of these characters.
_PLAIN = re.compile(r"[A-Za-z0-9_.-]+")
#: The end of the text before an endpoint's object, with its key. A key has 67 characters at most.
_KEY, _LONGEST = re.compile(rb'[{,]"([A-Za-z0-9_.-]+)":\Z'), 80
#: Stands for the endpoints while the network is parsed without them.
_LEFT_OUT: Any = {"left out": None}


def network(text: bytes) -> Any:
    """Return the network, without its endpoints if there are any. Raises ValueError."""
    return _read(text)


def of_endpoint(text: bytes, endpoint_id: str) -> Any:
    """Return the network, and of its endpoints the one with this ID, if it is there. Raises ValueError."""
    return _read(text, (b'"EndpointID":"%s"', endpoint_id), (b'"ep-%s":{', endpoint_id))


def of_container(text: bytes, container_id: str, name: str) -> Any:
    """Return the network, and of its endpoints those of the container with this ID or name. Raises ValueError."""
    return _read(text, (b'"%s":{', container_id), (b'{"Name":"%s"', name))


def _read(text: bytes, *marks: tuple[bytes, str]) -> Any:
    if all(_PLAIN.fullmatch(word) for _, word in marks):
        try:
            return _reduced(text, [mark % word.encode() for mark, word in marks])
        except ValueError:
            pass
    return json.loads(text)


def _reduced(text: bytes, marks: list[bytes]) -> Any:
    """Return the network, and of its endpoints those with one of the marks. Raises ValueError if that is unsure."""
    containers = _CONTAINERS.search(text)
    begin = containers.end() if containers else 0
    end = text.find(_END, begin) + 1
    if not containers or not end or text.find(b"\\", begin, end) >= 0:
        raise ValueError("it is unsure where the endpoints end")
    reduced = json.loads(text[:begin] + json.dumps(_LEFT_OUT).encode() + text[end + 1 :])
    if not isinstance(reduced, dict) or reduced.get("Containers") != _LEFT_OUT:
        raise ValueError("other endpoints than the network's were left out")
    places = sorted(at for mark in marks for at in _places(text, begin, end, mark))
    reduced["Containers"] = dict(_endpoint(text, begin, end, at) for at in places)
    return reduced


def _places(text: bytes, begin: int, end: int, mark: bytes) -> Iterator[int]:
    """Yield places within the objects of endpoints that have the mark."""
    at = text.find(mark, begin, end)
    while at >= 0:
        yield at + len(mark)
        at = text.find(mark, at + 1, end)


def _endpoint(text: bytes, begin: int, end: int, at: int) -> tuple[str, Any]:
    """Return the key and the value of the endpoint in whose object this place is. Raises ValueError."""
    first, last = text.rfind(b"{", begin + 1, at), text.find(b"}", at, end) + 1
    key = _KEY.search(text, max(begin, first - _LONGEST), first)
    if first < 0 or not last or not key:
        raise ValueError("it is unsure where an endpoint ends")
    if key.start() != begin and text[key.start() - 1 : key.start()] != b"}":
        raise ValueError("an object within an endpoint is no endpoint")
    return key[1].decode(), json.loads(text[first:last])
