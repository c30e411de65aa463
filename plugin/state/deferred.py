"""Deferred work of a change, computed in small steps so that a departing container is closed between two steps."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from plugin.nftables.client import NftError
from plugin.policy.facts import ElementOwner
from plugin.state.applier import TableApplier

#: Seconds between two steps, in which other threads get the lock.
_BREATH = 0.001
#: Seconds of computing after which other queued work runs, such as cutting flows.
_AT_A_TIME = 0.05
#: A refused change is tried again after this many seconds, or this many times as long as the try took.
_PATIENCE, _TIMES = 1.0, 10
log = logging.getLogger(__name__)


class Behind:
    """Applies deferred owners. `apply` writes these owners to the kernel; `later` queues long work, returns at once."""

    def __init__(
        self,
        writer: TableApplier,
        lock: threading.RLock,
        apply: Callable[[Iterable[ElementOwner]], None],
        later: Callable[[Callable[[], object]], object],
    ) -> None:
        self._writer = writer
        self._lock = lock
        self._apply = apply
        self._later = later
        self._running = False
        #: When to try again what the kernel refused.
        self._again = 0.0
        self.failed = False

    def later(self) -> None:
        """Queue the deferred work, if there is any. Call under the lock, after each change."""
        if self._writer.behind and not self._running:
            self._running = True
            self._later(self._catch_up)

    def again(self) -> None:
        """Try refused work again, if it is time. Call under the lock, now and then."""
        if self.failed and time.monotonic() >= self._again:
            self.later()

    def retry(self) -> None:
        """Have `again` try the deferred work now: an unexpected error left it undone. Call under the lock."""
        self.failed = True

    def _catch_up(self) -> None:
        end = time.monotonic() + _AT_A_TIME
        while self._running:
            began = time.monotonic()
            with self._lock:
                try:
                    self._apply(self._writer.next_behind())
                    self._running = bool(self._writer.behind)
                    self.failed = False
                except (NftError, OSError) as error:
                    self._running, self.failed = False, True
                    self._again = time.monotonic() + max(_PATIENCE, _TIMES * (time.monotonic() - began))
                    log.error(
                        "the kernel refused a part of the table, which is out of date until the next try: %s", error
                    )
                except BaseException:
                    self._running, self.failed = False, True
                    self._again = time.monotonic() + max(_PATIENCE, _TIMES * (time.monotonic() - began))
                    raise
            if self._running and time.monotonic() >= end:
                self._later(self._catch_up)
                return
            time.sleep(_BREATH)
