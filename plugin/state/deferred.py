"""What one change leaves for later is computed bit by bit, so that whoever goes meanwhile is closed in between."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from plugin.nftables.table import NftError
from plugin.policy.facts import ElementOwner
from plugin.state.applier import TableApplier

#: Seconds between two bits, in which others get the lock.
_BREATH = 0.001
#: Seconds of computing after which other work has its turn, such as flows to be cut.
_AT_A_TIME = 0.05
#: A change that the kernel refused is tried again after so many seconds, or so many times as long as that took.
_PATIENCE, _TIMES = 1.0, 10
log = logging.getLogger(__name__)


class Behind:
    """`apply` makes the kernel as these owners are known; `later` takes work that may last, and returns at once."""

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
        #: When what the kernel refused is tried again.
        self._again = 0.0
        self.failed = False

    def later(self) -> None:
        """To be called under the lock, after each change."""
        if self._writer.behind and not self._running:
            self._running = True
            self._later(self._catch_up)

    def again(self) -> None:
        """To be called under the lock, now and then: what was refused is tried again."""
        if self.failed and time.monotonic() >= self._again:
            self.later()

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
                    log.error("what the kernel refused is not up to date: %s", error)
                except BaseException:
                    self._running = False
                    raise
            if self._running and time.monotonic() >= end:
                self._later(self._catch_up)
                return
            time.sleep(_BREATH)
