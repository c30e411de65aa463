"""`fwctl`'s side of the plugin's socket: finds it, asks, and turns what comes back into data or an error for people."""

from __future__ import annotations

import glob
import http.client
import json
import os
import socket
from typing import Any

from plugin.model import FwError

#: Where Docker finds plugins: a managed one in a directory of its own, a sidecar's beside them. Inside the plugin's
#: own container the host's /run stands under /host.
SOCKETS = ("/run/docker/plugins/*/fw.sock", "/run/docker/plugins/fw.sock", "/host/run/docker/plugins/*/fw.sock")
#: Seconds for an answer: a plan on a large host takes some.
_PATIENCE = 60


def find_socket() -> str:
    """The socket of the docker-fw that runs. Raises OSError that says what to do."""
    found = [path for pattern in SOCKETS for path in sorted(glob.glob(pattern))]
    if not found:
        raise OSError(f"no socket of docker-fw ({', '.join(SOCKETS)}); is the plugin enabled? (docker plugin ls)")
    return found[0]


def connect(path: str, timeout: float) -> socket.socket:
    """Raises OSError."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(timeout)
    directory = -1
    try:
        directory = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY)
        # The kernel takes 107 bytes of a socket's path; a directory's descriptor makes any path short.
        sock.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
    except OSError:
        sock.close()
        raise
    finally:
        if directory >= 0:
            os.close(directory)
    return sock


def ask(path: str, url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """GET, or POST where there is a body, over a unix socket.

    Raises OSError where nobody answers, ValueError where nobody understands it, FwError where docker-fw says no.
    """
    connection = http.client.HTTPConnection("fw")
    try:
        connection.sock = connect(path, _PATIENCE)
        connection.request("GET" if body is None else "POST", url, None if body is None else json.dumps(body))
        response = connection.getresponse()
        data = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f"{path} does not answer: {error}; does docker-fw run? (docker plugin ls)") from error
    finally:
        connection.close()
    try:
        told = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{path} answered {response.status} to {url}, and not in JSON") from error
    if isinstance(told, dict) and isinstance(told.get("Err"), str):
        raise FwError(told["Err"])
    if response.status != 200 or not isinstance(told, dict):
        raise ValueError(f"{path} answered {response.status} to {url}")
    return told
