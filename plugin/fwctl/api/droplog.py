"""Drops as they happen: what the kernel reports of a packet, with the names of the containers at its ends.

The last ones are kept for `fwctl log`. Drops of a container whose `fw.log` is "drop" are in docker-fw's own log too.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from plugin.fwctl.api.drop_names import Names, name
from plugin.fwctl.drop_record import Drop, Header, header, line
from plugin.kernel.nflog import LOCAL_IN, Logged, NfLog, TakenError
from plugin.nftables.document import LOG_GROUP
from plugin.policy.verdict import ICMP, Packet, number_of, verdict
from plugin.policy.view import PolicyView
from plugin.text import readable

log = logging.getLogger(__name__)
#: How many drops are kept.
MAX_DROPS = 1000
#: At most LINES lines in docker-fw's log for one container in SECONDS seconds.
LINES, SECONDS = 10, 10.0
#: Seconds until the next try after the kernel has refused to report drops.
RETRY = 10.0
#: Packets that are read in a second at most: another program's rules may send some to our group.
_RATE = 1000
#: The share of time for which reasons are computed at most, and the seconds at once: on a host with many containers
#: one verdict takes milliseconds, and hooks wait for the lock meanwhile.
_SHARE, _BURST = 0.05, 0.02
#: Types of an echo request, of ICMP and ICMPv6.
_ECHO = (8, 128)
NO_KERNEL = "this kernel has no nfnetlink_log: drops are counted, but not reported packet by packet"
TAKEN = (
    f"another program uses nfnetlink_log group {LOG_GROUP} ({LOG_GROUP:#x}), so only that program sees the drops; "
    "they appear here when it ends"
)


T = TypeVar("T")


class StateReader(Protocol):
    """The reconciler, as far as the drop log uses it."""

    def read(self, question: Callable[[PolicyView], T]) -> T:
        """Answer a question about what is known, while nothing changes."""


class Source(Protocol):
    """`NfLog`."""

    lost: int

    def read(self) -> Sequence[Logged]:
        """Packets since the last call. Raises OSError."""

    def close(self) -> None:
        """Leave the group."""


class Ring:
    """The last drops, numbered from 1. Thread-safe."""

    def __init__(self, size: int = MAX_DROPS) -> None:
        self._drops: deque[Drop] = deque(maxlen=size)
        self._changed = threading.Condition()

    @property
    def newest(self) -> int:
        """Number of the last drop; 0 if there is none."""
        return self._drops[-1].number if self._drops else 0

    def put(self, drops: Iterable[Drop]) -> None:
        """Add drops and wake the readers that wait for them."""
        with self._changed:
            self._drops.extend(drops)
            self._changed.notify_all()

    def after(self, number: int, seconds: float = 0) -> list[Drop]:
        """Return those with a higher number, oldest first; if there is none, wait for up to `seconds`."""
        with self._changed:
            if seconds:
                self._changed.wait_for(lambda: self.newest > number, seconds)
            return [drop for drop in self._drops if drop.number > number] if self.newest > number else []


class Lines:
    """How many lines a container may have in a period. Not thread-safe."""

    def __init__(self, most: int = LINES, seconds: float = SECONDS) -> None:
        self._most = most
        self._seconds = seconds
        self._counts: dict[str, list[float]] = {}  # start of the period, lines written, lines suppressed

    def allow(self, container: str, now: float) -> bool:
        """True if one more line may be written."""
        counts = self._counts.setdefault(container, [now, 0, 0])
        counts[1 if counts[1] < self._most else 2] += 1
        return not counts[2]

    def over(self, now: float) -> Iterator[tuple[str, int]]:
        """Yield the containers whose period is over, with the number of suppressed lines, if there were any."""
        for container, (since, _, suppressed) in list(self._counts.items()):
            if now - since >= self._seconds:
                del self._counts[container]
                if suppressed:
                    yield container, int(suppressed)


@dataclass(frozen=True, slots=True)
class _Line:
    container: str
    drop: Drop


class DropLog:
    """`drop_loop` runs in a thread of its own until `stop`; all else may be called from any.

    `supported`: False where the kernel has no nfnetlink_log.
    """

    def __init__(
        self,
        reconciler: StateReader,
        supported: Callable[[], bool],
        listen: Callable[[int], Source] = NfLog,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ring = Ring()
        #: Why no drops are reported now, for people; "" if they are.
        self.trouble = ""
        #: False once the server takes no more requests; it waits for open ones before it calls `stop`.
        self.serving: Callable[[], bool] = lambda: True
        self._reconciler = reconciler
        self._supported = supported
        self._listen = listen
        self._clock = clock
        self._names = Names(clock)
        self._lines = Lines()
        self._number = self._lost = 0
        self._credit = _BURST
        self._credited = clock()
        self._source: Source | None = None
        self._stop = threading.Event()

    @property
    def lost(self) -> int:
        """How often drops were lost because there were too many."""
        return self._lost + (self._source.lost if self._source else 0)

    @property
    def ending(self) -> bool:
        """True if followers must be disconnected, because docker-fw stops."""
        return self._stop.is_set() or not self.serving()

    def stop(self) -> None:
        """End the loop and every request that follows the log."""
        self._stop.set()

    def drop_loop(self) -> None:
        """Read what the kernel reports. Raises OSError when the kernel's socket breaks."""
        while not self._stop.is_set():
            try:
                source = self._listen(LOG_GROUP) if self._supported() else None
            except OSError as error:
                self._set_trouble(TAKEN if isinstance(error, TakenError) else f"the kernel reports no drops: {error}")
            else:
                if source:
                    self._set_trouble("")
                    self._take_all(source)
                    continue
                self._set_trouble(NO_KERNEL)
            self._stop.wait(RETRY)

    def _take_all(self, source: Source) -> None:
        with closing(source):
            self._source = source
            try:
                while not self._stop.is_set():
                    packets = source.read()
                    self.take(packets)
                    self._stop.wait(len(packets) / _RATE)
            finally:
                self._lost, self._source = self.lost, None

    def take(self, packets: Iterable[Logged]) -> None:
        """Put packets into the ring, and lines into the log."""
        drops, lines = [], []
        now = time.time()
        read = [(each, of) for each in packets if (of := header(each.payload))]
        links = {index: _link(index) for each, _ in read for index in (each.indev, each.outdev)}
        if read:
            named = self._reconciler.read(lambda known: [self._drop(known, each, of, now, links) for each, of in read])
            drops = [drop for drop, _ in named]
            lines = [_Line(drop.container or str(drop.address), drop) for drop, logs in named if logs]
            self.ring.put(drops)
        for written in lines:
            if self._lines.allow(written.container, self._clock()):
                log.info("dropped: %s", line(written.drop.as_data()))
        for container, suppressed in self._lines.over(self._clock()):
            log.info("dropped: %s: %d more were not logged", container, suppressed)

    def _drop(
        self, inventory: PolicyView, each: Logged, of: Header, now: float, links: dict[int, str]
    ) -> tuple[Drop, bool]:
        """Return the record, and whether it belongs into docker-fw's log."""
        for_host = each.hook == LOCAL_IN
        target, source = self._names.either(inventory, of.target, of.source)
        reason = ""
        if for_host and not source and (behind := self._names.behind(inventory, number_of(of.proto), of.port)):
            # Served by docker-proxy: the client is outside, and the container behind the port is the target.
            target, port = behind
            reason = f"published port of {port.container_port}/{port.proto}, which is not open to the client"
        direction: Literal["to", "by"] = "by" if (for_host and not target) or (source and not target) else "to"
        self._number += 1
        drop = Drop(
            self._number,
            now,
            direction,
            of,
            name(inventory, source),
            name(inventory, target),
            links[each.indev],
            links[each.outdev],
            each.mark,
            reason or readable(self._reason(inventory, of, for_host=for_host)),
        )
        policies = (inventory.decided(end.owner) for end in (target, source) if end)
        return drop, any(policy and policy.log == "drop" for policy in policies)

    def _reason(self, inventory: PolicyView, of: Header, *, for_host: bool) -> str:
        began = self._clock()
        self._credit = min(_BURST, self._credit + _SHARE * (began - self._credited))
        self._credited = began
        if self._credit <= 0:
            return ""
        proto = number_of(of.proto)
        steps = verdict(inventory, Packet(of.source, of.target, proto, of.port, for_host)).steps
        self._credit -= self._clock() - began
        if steps[-1].outcome == "drop":
            return steps[-1].text
        if not of.begins:
            return "it opens no connection, and belongs to no established one"
        if proto == ICMP and of.kind not in _ECHO:
            return "it is not a useful ICMP message"
        # Over a rate limit, one of many to an unknown address, from a forged source, or opened since.
        return next((step.text for step in steps if step.limited), "")

    def _set_trouble(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            if trouble:
                log.warning("%s", trouble)
            else:
                log.info("drops are reported again")


def _link(index: int) -> str:
    try:
        return readable(socket.if_indextoname(index)) if index else ""
    except OSError:
        return f"#{index}"  # removed meanwhile
