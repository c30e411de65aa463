"""One question to Docker's API, answered within bounds of size and time."""

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

#: Seconds for the whole of an answer; the time-out of a client is for each read, and an answer may come in drops.
LONGEST = 60.0
_PIECE = 1 << 16
#: The newest API version that anything here needs: the first that shows each variant of an image.
NEWEST = (1, 49)


class TooLongError(ValueError):
    """An answer began, and did not end in time."""


def late(error: Exception) -> bool:
    """True if Docker was asked and did not answer in time: it need not be silent for all that."""
    inner = error.args[0] if isinstance(error, RequestException) and error.args else None
    return isinstance(error, Timeout | TooLongError) or isinstance(inner, ReadTimeoutError)


def version(told: Mapping[str, Any]) -> str:
    """The API version to ask in, by what `GET /version` tells: 20.10 tops out at 1.41, 29 starts at 1.44.

    docker-py itself would stop at 1.45, which it says nothing different in.
    """
    least, most = _numbers(told.get("MinAPIVersion") or "1.0"), _numbers(told["ApiVersion"])
    return ".".join(map(str, max(least, min(NEWEST, most))))


def _numbers(text: Any) -> tuple[int, ...]:
    return tuple(map(int, str(text).split(".")))


def one(client: docker.APIClient, path: str, *names: str, **query: str) -> Any:
    """The answer about one thing; `names` take the place of `{0}`. Raises APIError, ValueError beyond the bound."""
    with _answer(client, path, names, query) as chunks:
        return bounded_json.whole(chunks)


def beginning(client: docker.APIClient, path: str, *names: str) -> tuple[Any, bool]:
    """The same, and True; of an answer beyond the bound its first members, and False. Raises APIError, ValueError."""
    with _answer(client, path, names, {}) as chunks:
        return bounded_json.beginning(chunks)


def several(
    client: docker.APIClient, path: str, needed: Callable[[Any], Any] = lambda each: each, **query: str
) -> list[Any]:
    """A list: of each element what is `needed`, or an `answers.Cut` if it is too large. Raises APIError, ValueError."""
    with _answer(client, path, (), query) as chunks:
        return [each if isinstance(each, bounded_json.Cut) else needed(each) for each in bounded_json.elements(chunks)]


def stream(client: docker.APIClient, path: str, **query: str) -> Iterator[bytes]:
    """An answer that goes on, as it comes. Raises APIError."""
    raw: Any = client
    response = raw._get(raw._url(path), params=query, stream=True)
    raw._raise_for_status(response)
    # docker-py would read each chunk whole, whatever its length.
    return iter(response.iter_content(_PIECE))


@contextmanager
def _answer(
    client: docker.APIClient, path: str, names: tuple[str, ...], query: Mapping[str, str]
) -> Iterator[Iterator[bytes]]:
    raw: Any = client
    response = raw._get(raw._url(path, *names), params=query, stream=True)
    try:
        raw._raise_for_status(response)
        yield _in_time(_pieces(response.raw))
    finally:
        response.close()


def _pieces(raw: Any) -> Iterator[bytes]:
    """As they come: requests itself waits until a piece is full, which an answer in drops is after days."""
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
            raise TooLongError(f"Docker took more than {LONGEST:.0f} s for an answer")
