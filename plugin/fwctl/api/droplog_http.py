"""`GET /drops?follow=1&since=N`: drops as JSON lines, for `fwctl log`.

A line is a drop (`plugin.fwctl.drop_record.Drop.as_data`), or the progress: `{"newest": N, "lost": N}`, after the drops
that are kept and then each second, so that each side notices when the other one is gone.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
from collections.abc import Iterator, Sequence

from flask import Flask, Response, request

from plugin.fwctl.api.droplog import DropLog
from plugin.fwctl.drop_record import Drop

#: Each follower takes one of the 16 threads that serve Docker's hooks.
FOLLOWERS = 4
#: Seconds between two lines of progress.
PULSE = 1.0
#: Milliseconds for which a client may stop reading.
_STALLED_MS = 5000
#: Drops that are written at once: some 20 KB, which a socket takes without blocking if it takes anything.
_CHUNK = 50
_CONTENT_TYPE = "application/x-ndjson"


def add_route(app: Flask, drops: DropLog) -> None:
    """Add the route to the application."""
    places = threading.BoundedSemaphore(FOLLOWERS)

    @app.get("/drops")
    def _drops() -> Response:
        since = request.args.get("since", 0, int)
        if since > drops.ring.newest:
            since = 0  # from before a restart, after which numbers start again
        if drops.trouble:
            return _refused(drops.trouble)
        if request.args.get("follow", "0") not in ("1", "true") or request.method == "HEAD":
            return Response([*_lines(drops.ring.after(since)), _pulse(drops)], content_type=_CONTENT_TYPE)
        if not places.acquire(blocking=False):
            return _refused(
                f"{FOLLOWERS} clients follow the drops already, and more would delay Docker's hooks; "
                "end one of them first"
            )
        client = _Client(request.environ.get("gunicorn.socket"))
        response = Response(_followed(drops, since, client), content_type=_CONTENT_TYPE)
        # Not at the end of the generator: one that was never started does not reach its end.
        response.call_on_close(places.release)
        return response


def _refused(text: str) -> Response:
    return Response(json.dumps({"Err": text}), status=503, content_type="application/json")


def _lines(found: Sequence[Drop]) -> Iterator[str]:
    for at in range(0, len(found), _CHUNK):
        yield "".join(json.dumps(drop.as_data()) + "\n" for drop in found[at : at + _CHUNK])


def _pulse(drops: DropLog) -> str:
    return json.dumps({"newest": drops.ring.newest, "lost": drops.lost}) + "\n"


def _followed(drops: DropLog, since: int, client: _Client) -> Iterator[str]:
    """Yield lines until docker-fw stops, has trouble, or the client is gone."""
    seconds = 0.0
    while not drops.ending and not drops.trouble:
        found = drops.ring.after(since, seconds)
        texts = [*_lines(found), *([] if found and seconds else [_pulse(drops)])]
        for text in texts:
            if not client.takes():
                return
            yield text
        since, seconds = found[-1].number if found else since, PULSE
    if drops.trouble and client.takes():
        yield json.dumps({"Err": drops.trouble}) + "\n"
    client.stop_reading()


class _Client:
    """The client's end of the request. Neither this class nor gunicorn waits for a client that does not read."""

    def __init__(self, sock: socket.socket | None) -> None:
        self._sock = sock
        self._poll = select.poll()
        if sock:
            self._poll.register(sock, select.POLLOUT)

    def takes(self) -> bool:
        """True if the client still reads; otherwise its connection is shut down."""
        if self._sock is None:
            return True
        events = self._poll.poll(_STALLED_MS)
        if events and events[0][1] == select.POLLOUT:
            return True
        self._shutdown(socket.SHUT_RDWR)  # otherwise gunicorn would block on its last bytes
        return False

    def stop_reading(self) -> None:
        """Read no more from the client: gunicorn would wait for it to hang up, and not serve Docker meanwhile."""
        self._shutdown(socket.SHUT_RD)

    def _shutdown(self, how: int) -> None:
        if self._sock:
            with contextlib.suppress(OSError):
                self._sock.shutdown(how)
