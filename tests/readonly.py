"""A proxy before Docker's socket that passes only the configured calls, as SECURITY.md proposes.

with ReadOnly(listen, docker, ["/version", "/networks/ID"]) as proxy:
    …
    proxy.passed, proxy.refused                    # the calls, as in the table of SECURITY.md
    with proxy.hold("/networks/ID") as held:       # Docker's answers to this call are kept back
        held.wait(20)                              # until the first one has come
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingMixIn, UnixStreamServer
from urllib.parse import urlsplit

_REFUSED = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


class ReadOnly:
    """Pass only GET of `paths`, where ID matches any text without a slash. One connection, one request."""

    def __init__(self, listen: Path, docker: Path, paths: Iterable[str]) -> None:
        self._patterns = {path: re.compile(re.escape(path).replace("ID", "[^/]+")) for path in paths}
        self._listen = listen
        self.passed: set[str] = set()
        self.refused: list[str] = []
        #: By call: an answer has come, and answers may be passed on.
        self._held: dict[str, tuple[threading.Event, threading.Event]] = {}
        proxy = self

        class Handler(StreamRequestHandler):
            def handle(self) -> None:
                line = self.rfile.readline(8192).decode("latin-1")
                head = list(iter(lambda: self.rfile.readline(8192), b"\r\n"))
                call = proxy._allowed(line) if line else ""
                if not call:
                    self.wfile.write(_REFUSED)
                    return
                kept = b"".join(each for each in head if not each.lower().startswith(b"connection:"))
                with socket.socket(socket.AF_UNIX) as to:
                    to.connect(str(docker))
                    to.sendall(line.encode("latin-1") + kept + b"Connection: close\r\n\r\n")
                    waited = False
                    while data := to.recv(65536):
                        waited = waited or proxy._waited(call)
                        self.wfile.write(data)

        class Server(ThreadingMixIn, UnixStreamServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: object) -> None:
                pass  # one of the two hung up

        listen.unlink(missing_ok=True)
        self._server = Server(str(listen), Handler)

    def __enter__(self) -> ReadOnly:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._listen.unlink(missing_ok=True)

    @contextmanager
    def hold(self, call: str) -> Iterator[threading.Event]:
        """Keep Docker's answers to a call back; yield an event that is set as soon as there is one.

        If the call is held once more meanwhile, that concerns the answers from then on.
        """
        mine = came, passed_on = threading.Event(), threading.Event()
        self._held[call] = mine
        try:
            yield came
        finally:
            if self._held.get(call) is mine:
                del self._held[call]
            passed_on.set()

    def _waited(self, call: str) -> bool:
        """Return when an answer to this call may be passed on: True if it was held until now."""
        if held := self._held.get(call):
            came, passed_on = held
            came.set()
            passed_on.wait(120)
        return bool(held)

    def _allowed(self, line: str) -> str:
        """Return the call, as in the table of SECURITY.md; "" if it is refused."""
        method, _, rest = line.partition(" ")
        path = re.sub(r"^/v[0-9.]+", "", urlsplit(rest.rsplit(" ", 1)[0]).path)
        found = next((name for name, pattern in self._patterns.items() if pattern.fullmatch(path)), "")
        if method != "GET" or not found:
            self.refused.append(line.strip())
            return ""
        self.passed.add(found)
        return found
