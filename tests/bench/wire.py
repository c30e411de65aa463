"""Speak HTTP over unix sockets with minimal overhead.

The connection is kept, as dockerd does it. A time is from the request's first byte to the answer's last.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class _Stream:
    """One side of an HTTP/1.1 connection: complete messages in and out."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._kept = b""

    def read(self) -> tuple[str, bytes]:
        """Return a message: its first line and its body. Raises EOFError when the connection ends between messages."""
        head = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self._until(b"\r\n").split(b";")[0], 16):
                body += self._take(size)
                self._until(b"\r\n")
            self._until(b"\r\n")
            return head[0], body
        return head[0], self._take(int(headers.get("content-length", "0")))

    def write(self, first: str, body: bytes, kind: str) -> None:
        head = f"{first}\r\nHost: bench\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.sock.sendall(head.encode() + body)

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._kept:
            self._more()
        found, _, self._kept = self._kept.partition(mark)
        return found

    def _take(self, size: int) -> bytes:
        while len(self._kept) < size:
            self._more()
        found, self._kept = self._kept[:size], self._kept[size:]
        return found

    def _more(self) -> None:
        data = self.sock.recv(1 << 16)
        if not data:
            raise EOFError("the connection was closed")
        self._kept += data


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes
    seconds: float

    def json(self) -> Any:
        return json.loads(self.body) if self.body.strip() else None


class Client:
    """A persistent connection to a unix socket. Not for two threads at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: _Stream | None = None

    def call(self, method: str, url: str, body: object = None) -> Reply:
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        stream = self._connected()
        began = time.perf_counter()
        try:
            stream.write(f"{method} {url} HTTP/1.1", data, "application/json")
            first, answer = stream.read()
        except (OSError, EOFError):
            self.close()
            raise
        seconds = time.perf_counter() - began
        return Reply(int(first.split()[1]), answer, seconds)

    def must(self, method: str, url: str, body: object = None) -> Reply:
        """`call`, but a refusal (of HTTP, or a driver's {"Err": …}) is a RuntimeError."""
        reply = self.call(method, url, body)
        if reply.status >= 400 or reply.body.startswith(b'{"Err"'):
            raise RuntimeError(f"{method} {url}: {reply.status} {reply.body[:300].decode(errors='replace')}")
        return reply

    def socket(self) -> socket.socket:
        """Return the connection itself."""
        return self._connected().sock

    def _connected(self) -> _Stream:
        if self._stream is None:
            self._stream = _Stream(_connect(self._path))
        return self._stream

    def close(self) -> None:
        if self._stream is not None:
            self._stream.sock.close()
            self._stream = None


def _connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(60)
    # A socket's path may have 107 bytes, and the plugin's has more; a directory's descriptor is short.
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        sock.connect(f"/proc/self/fd/{fd}/{path.name}")
    finally:
        os.close(fd)
    return sock
