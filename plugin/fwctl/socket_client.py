"""The client of the plugin's unix socket: finds it, sends a request, returns the answer. Raises FwError only."""

from __future__ import annotations

import contextlib
import glob
import http.client
import json
import os
import socket
from collections.abc import Generator
from typing import Any

from plugin.model import FwError

#: Where Docker finds plugins: a managed plugin has a directory of its own, a sidecar has its socket beside those. In
#: the plugin's own container the host's /run is mounted below /host.
SOCKETS = ("/run/docker/plugins/*/fw.sock", "/run/docker/plugins/fw.sock", "/host/run/docker/plugins/*/fw.sock")
#: Seconds to wait for an answer: a plan on a large host takes some.
_ANSWER_TIMEOUT = 60
#: Seconds to wait for the next line of a stream; docker-fw sends one each second.
_LINE_TIMEOUT = 10
_ADVICE = "is docker-fw running? (docker plugin ls)"


def find_socket() -> str:
    """Return the path of the running docker-fw's socket. Raises FwError if there is none."""
    found = [path for pattern in SOCKETS for path in sorted(glob.glob(pattern))]
    if not found:
        raise FwError(
            f"docker-fw's socket was not found ({', '.join(SOCKETS)}); is the plugin enabled? (docker plugin ls)"
        )
    return found[0]


def ask(path: str, url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Send GET, or POST if there is a body, and return the answer.

    Raises FwError if nothing answers, the answer is not docker-fw's, or docker-fw refuses the request.
    """
    with _connection(path, _ANSWER_TIMEOUT) as connection:
        try:
            connection.request("GET" if body is None else "POST", url, None if body is None else json.dumps(body))
            response = connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise _no_answer(path, error) from error
    return _answer(path, url, response.status, data)


def stream(path: str, url: str) -> Generator[dict[str, Any], None, None]:
    """Send GET and yield the lines of the answer, each a JSON object. Raises FwError as `ask` does."""
    with _connection(path, _LINE_TIMEOUT) as connection:
        try:
            connection.request("GET", url, headers={"Connection": "close"})
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise _no_answer(path, error) from error
        while line := _line(response):
            yield _answer(path, url, response.status, line)


@contextlib.contextmanager
def _connection(path: str, timeout: float) -> Generator[http.client.HTTPConnection, None, None]:
    with contextlib.closing(http.client.HTTPConnection("fw")) as connection:
        try:
            connection.sock = _connect(path, timeout)
        except OSError as error:
            raise _no_answer(path, error) from error
        yield connection


def _connect(path: str, timeout: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(timeout)
    directory = -1
    try:
        directory = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY)
        # The kernel takes at most 107 bytes of a socket's path; a directory's descriptor makes any path short.
        sock.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
    except OSError:
        sock.close()
        raise
    finally:
        if directory >= 0:
            os.close(directory)
    return sock


def _line(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.readline()
    except TimeoutError as error:
        raise FwError(f"docker-fw does not answer any more; {_ADVICE}") from error
    except (http.client.HTTPException, ConnectionError):
        return b""  # docker-fw was killed in the middle of a line


def _answer(path: str, url: str, status: int, data: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(data)
    except ValueError as error:
        raise FwError(f"{path} answered {status} to {url}, but not in JSON") from error
    if isinstance(answer, dict) and isinstance(answer.get("Err"), str):
        raise FwError(answer["Err"])
    if status != 200 or not isinstance(answer, dict):
        raise FwError(f"{path} answered {status} to {url}")
    return answer


def _no_answer(path: str, error: Exception) -> FwError:
    return FwError(f"{path} does not answer: {error}; {_ADVICE}")
