"""One request to Docker's API, answered within bounds of size and time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import docker
from requests.exceptions import ConnectionError as BrokenError
from requests.exceptions import RequestException, Timeout
from urllib3.exceptions import HTTPError, ReadTimeoutError

from plugin.docker import bounded_json

#: Seconds for a whole answer. A client's time-out is for each read, and an answer may arrive byte by byte.
LONGEST = 60.0
_PIECE = 1 << 16
#: The newest API version that docker-fw needs: the first that shows each variant of an image.
NEWEST = (1, 49)


class TooLongError(ValueError):
    """An answer started and did not end in time."""


def late(error: Exception) -> bool:
    """True if this one request was not answered in time. Docker may answer others."""
    inner = error.args[0] if isinstance(error, RequestException) and error.args else None
    return isinstance(error, Timeout | TooLongError) or isinstance(inner, ReadTimeoutError)


def version(versions: Mapping[str, Any]) -> str:
    """Return the API version to use, from `GET /version`: 20.10 supports up to 1.41, 29 from 1.44.

    docker-py itself would stop at 1.45; nothing that it sends differs in 1.45.
    """
    least, most = _numbers(versions.get("MinAPIVersion") or "1.0"), _numbers(versions["ApiVersion"])
    return ".".join(map(str, max(least, min(NEWEST, most))))


def _numbers(text: Any) -> tuple[int, ...]:
    return tuple(map(int, str(text).split(".")))


def one(client: docker.APIClient, path: str, *names: str, **query: str) -> Any:
    """Return the answer about one object; `names` replace `{0}` in the path.

    Raises APIError, ValueError beyond the bound.
    """
    with _answer(client, path, names, query) as chunks:
        return bounded_json.one_value(chunks)


def text(client: docker.APIClient, path: str, *names: str) -> bytes:
    """Return the answer about one object, not parsed. Raises APIError, ValueError beyond the bound."""
    with _answer(client, path, names, {}) as chunks:
        return bounded_json.whole(chunks)


def beginning(client: docker.APIClient, path: str, *names: str) -> tuple[Any, bool]:
    """Return the same, and True; beyond the bound, the answer's first members, and False.

    Raises APIError, ValueError.
    """
    with _answer(client, path, names, {}) as chunks:
        return bounded_json.beginning(chunks)


def several(
    client: docker.APIClient, path: str, needed: Callable[[Any], Any] = lambda each: each, **query: str
) -> list[Any]:
    """Return a list, each element reduced by `needed`, or a `Cut` if it is too large. Raises APIError, ValueError."""
    with _answer(client, path, (), query) as chunks:
        return [each if isinstance(each, bounded_json.Cut) else needed(each) for each in bounded_json.elements(chunks)]


@contextmanager
def stream(client: docker.APIClient, path: str, **query: str) -> Iterator[Iterator[bytes]]:
    """Yield a stream, in chunks as they arrive, and end it. Raises APIError."""
    with _response(client, path, (), query) as response:
        # docker-py would read each chunk as a whole, of any length.
        yield iter(response.iter_content(_PIECE))


@contextmanager
def _answer(
    client: docker.APIClient, path: str, names: tuple[str, ...], query: Mapping[str, str]
) -> Iterator[Iterator[bytes]]:
    with _response(client, path, names, query) as response:
        yield _in_time(_pieces(response.raw))


@contextmanager
def _response(client: docker.APIClient, path: str, names: tuple[str, ...], query: Mapping[str, str]) -> Iterator[Any]:
    """Yield a response whose body is not read yet.

    Closing it ends its connection if a part of the body is unread, and otherwise keeps the connection for the next
    request.
    """
    raw: Any = client
    response = raw._get(raw._url(path, *names), params=query, stream=True)
    try:
        raw._raise_for_status(response)
        yield response
    finally:
        response.close()


def _pieces(raw: Any) -> Iterator[bytes]:
    """Yield pieces as they arrive. requests itself waits until a piece is full, which a slow answer never fills."""
    try:
        while piece := raw.read1(_PIECE, decode_content=True):
            yield piece
    except HTTPError as error:
        raise BrokenError(error) from error


def _in_time(chunks: Iterator[bytes]) -> Iterator[bytes]:
    end = time.monotonic() + LONGEST
    for chunk in chunks:
        yield chunk
        if time.monotonic() > end:
            raise TooLongError(f"Docker did not answer within {LONGEST:.0f} s")
