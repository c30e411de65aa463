"""Work that events cause on the host's ports and bridges, done one piece after the other in a thread of its own.

It polls the host's sockets (70 ms for 10,000 listeners) and dumps its routes. The thread that reads Docker's events
does not wait for it, so a departure that is reported meanwhile closes at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

log = logging.getLogger(__name__)
#: Most pieces of work that wait.
MOST = 1000


class HostWork:
    """Thread-safe. `full` is called when no more work fits, `failed` after an unexpected error of a piece."""

    def __init__(self, full: Callable[[], None], failed: Callable[[], None]) -> None:
        self._full = full
        self._failed = failed
        self._changed = threading.Condition()
        self._waiting: deque[Callable[[], object]] = deque()
        self._stopped = False
        #: The time since when a piece is being done; 0: none is.
        self.since = 0.0

    def put(self, work: Callable[[], object], *, first: bool = False) -> None:
        """Queue work; with `first` before all that waits.

        Returns at once, unless too much waits: then after `full`, and when there is room. No work is ever left out,
        because it closes ports.
        """
        with self._changed:
            room = len(self._waiting) < MOST
        if not room:
            self._full()
        with self._changed:
            while len(self._waiting) >= MOST and not self._stopped:
                self._changed.wait()
            if first:
                self._waiting.appendleft(work)
            else:
                self._waiting.append(work)
            self._changed.notify_all()

    def stop(self) -> None:
        """End the loop; work that waits is not done."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def loop(self) -> None:
        """Until `stop`: do queued work, in order."""
        while True:
            with self._changed:
                while not (self._waiting or self._stopped):
                    self._changed.wait()
                if self._stopped:
                    return
                work = self._waiting.popleft()
                self._changed.notify_all()
            self.since = time.monotonic()
            try:
                work()
            except Exception:
                log.exception("an event of Docker was not handled completely; docker-fw lists all containers")
                self._failed()
            finally:
                self.since = 0.0
