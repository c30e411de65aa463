"""Receive the kernel's reports of changed elements, as `nft monitor` does: no process is polled meanwhile.

A report may be received late, never early: a time measured with it is an upper bound.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator

from plugin.kernel import netlink as nl
from plugin.nftables import fields
from plugin.nftables.client import DELSETELEM, NEWSETELEM
from plugin.nftables.sets import SETS, Element
from tests.bench.traffic import within

ADDED, REMOVED = NEWSETELEM, DELSETELEM
#: linux/netlink.h and linux/netfilter/nfnetlink.h: SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES
_SOL_NETLINK, _ADD_MEMBERSHIP, _NFTABLES = 270, 1, 7
_SO_RCVBUFFORCE, _BUFFER = 33, 1 << 26
_SET_NAME = 2  # NFTA_SET_ELEM_LIST_SET
#: Sets whose elements open something by themselves.
_OPENING = ("allow", "from")
_PATIENCE = 15.0


class Kernel:
    """Receive every change of the sets that open something, of one host, with its time (Unix, nanoseconds)."""

    def __init__(self, netns: str) -> None:
        self._sock = within(netns, nl.open_socket)
        self._sock.setsockopt(1, _SO_RCVBUFFORCE, _BUFFER)
        self._sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _NFTABLES)
        self._sock.settimeout(0.5)
        self._heard: list[tuple[int, int, bytes]] = []
        self._news = threading.Condition()
        self._stop = False
        self._thread = threading.Thread(target=self._hear, daemon=True, name="kernel")

    def __enter__(self) -> Kernel:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join(10)
        self._sock.close()

    def forget(self) -> None:
        """Forget the reports until now."""
        with self._news:
            self._heard.clear()

    def when(self, kind: int, key: bytes, since: int) -> int:
        """Return when the first such change of the element was received; it may still be outstanding."""
        if self.heard(kind, key, since, _PATIENCE):
            return next(self.times(kind, key, since))
        what = "added" if kind == ADDED else "removed"
        raise RuntimeError(f"the element {key.hex()} has not been {what} within {_PATIENCE:g} s")

    def heard(self, kind: int, key: bytes, since: int, patience: float) -> bool:
        """Return True as soon as such a change is received, False after so many seconds."""
        with self._news:
            return self._news.wait_for(lambda: any(self.times(kind, key, since)), patience)

    def times(self, kind: int, part: bytes, since: int) -> Iterator[int]:
        """Yield the times of the changes of elements with these bytes that were received until now."""
        return (at for at, what, body in self._heard if at >= since and what == kind and part in body)

    def _hear(self) -> None:
        with contextlib.suppress(OSError):  # not allowed everywhere; then a busy machine makes it late
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))  # this thread, not the whole process
        while not self._stop:
            try:
                for kind, _, body in nl.replies(self._sock):
                    if kind in (ADDED, REMOVED):
                        self._note(time.time_ns(), kind, body)
            except TimeoutError:
                continue
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # a large crowd's elements, which none waits for here
                    raise

    def _note(self, at: int, kind: int, body: bytes) -> None:
        name = nl.attributes(body[4:]).get(_SET_NAME, b"").rstrip(b"\0").decode()
        if name.startswith(_OPENING):
            with self._news:
                self._heard.append((at, kind, body))
                self._news.notify_all()


def key(element: Element) -> bytes:
    """Return an element's key as the kernel reports it."""
    return fields.packed(SETS[element.set].key, element.key)
