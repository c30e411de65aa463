"""Drops as they happen: what the kernel tells of a packet, with the names of whoever is at its ends.

The last ones are kept for `fwctl log`; a container whose `fw.log` is "drop" has lines in docker-fw's own log too.
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
from plugin.policy.view import Inventory
from plugin.text import readable

log = logging.getLogger(__name__)
#: Drops that are kept.
KEPT = 1000
#: Lines in docker-fw's log for one container, in so many seconds.
LINES, SECONDS = 10, 10.0
#: Seconds until the kernel is asked again after it refused.
AGAIN = 10.0
#: Packets that are looked at in a second at most, should somebody else's rules send some to our group.
_RATE = 1000
#: The policy is asked why in this part of the time at most, and for so many seconds at once: on a host with many
#: containers one answer takes milliseconds, and hooks wait for the lock meanwhile.
_PART, _AT_ONCE = 0.05, 0.02
#: Types of an echo request, of ICMP and ICMPv6.
_ECHO = (8, 128)
NO_KERNEL = "this kernel has no nfnetlink_log: what is dropped is counted, but not told packet by packet"
TAKEN = (
    f"another program listens to nfnetlink_log group {LOG_GROUP} ({LOG_GROUP:#x}), so the drops are told to it alone; "
    "they show here when it ends"
)


T = TypeVar("T")


class Knows(Protocol):
    """The reconciler, as far as names go."""

    def read(self, question: Callable[[Inventory], T]) -> T: ...


class Tells(Protocol):
    """`NfLog`."""

    lost: int

    def read(self) -> Sequence[Logged]: ...

    def close(self) -> None: ...


class Ring:
    """The last drops, numbered from 1. Thread-safe."""

    def __init__(self, size: int = KEPT) -> None:
        self._drops: deque[Drop] = deque(maxlen=size)
        self._came = threading.Condition()

    @property
    def newest(self) -> int:
        return self._drops[-1].number if self._drops else 0

    def put(self, drops: Iterable[Drop]) -> None:
        with self._came:
            self._drops.extend(drops)
            self._came.notify_all()

    def after(self, number: int, seconds: float = 0) -> list[Drop]:
        """Those with a higher number, oldest first; where there is none waits for so long."""
        with self._came:
            if seconds:
                self._came.wait_for(lambda: self.newest > number, seconds)
            return [drop for drop in self._drops if drop.number > number] if self.newest > number else []


class Lines:
    """How many lines a container may have in a time. Not thread-safe."""

    def __init__(self, most: int = LINES, seconds: float = SECONDS) -> None:
        self._most = most
        self._seconds = seconds
        self._held: dict[str, list[float]] = {}  # since when, lines, and those that were held back

    def allow(self, who: str, now: float) -> bool:
        """True if one more may be written."""
        of = self._held.setdefault(who, [now, 0, 0])
        of[1 if of[1] < self._most else 2] += 1
        return not of[2]

    def over(self, now: float) -> Iterator[tuple[str, int]]:
        """For whom the time is over, and how many lines were held back in it, if some were."""
        for who, (since, _, held) in list(self._held.items()):
            if now - since >= self._seconds:
                del self._held[who]
                if held:
                    yield who, int(held)


@dataclass(frozen=True, slots=True)
class _Line:
    who: str
    drop: Drop


class DropLog:
    """`drop_loop` runs in a thread of its own until `stop`; all else may be called from any.

    `supported`: False where the kernel has no nfnetlink_log.
    """

    def __init__(
        self,
        state: Knows,
        supported: Callable[[], bool],
        listen: Callable[[int], Tells] = NfLog,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ring = Ring()
        #: Why no drop is told now, for people; "" if all is well.
        self.trouble = ""
        #: False when the server takes no more requests; it waits for those that stand before it calls `stop`.
        self.serving: Callable[[], bool] = lambda: True
        self._state = state
        self._supported = supported
        self._listen = listen
        self._clock = clock
        self._names = Names(clock)
        self._lines = Lines()
        self._number = self._lost = 0
        self._credit = _AT_ONCE
        self._credited = clock()
        self._source: Tells | None = None
        self._stop = threading.Event()

    @property
    def lost(self) -> int:
        """How often drops went untold because there were too many."""
        return self._lost + (self._source.lost if self._source else 0)

    @property
    def ending(self) -> bool:
        """True if whoever follows the drops must go: docker-fw stops."""
        return self._stop.is_set() or not self.serving()

    def stop(self) -> None:
        self._stop.set()

    def drop_loop(self) -> None:
        """Takes what the kernel tells. Raises OSError when the kernel's socket breaks."""
        while not self._stop.is_set():
            try:
                source = self._listen(LOG_GROUP) if self._supported() else None
            except OSError as error:
                self._troubled(TAKEN if isinstance(error, TakenError) else f"the kernel tells of no drops: {error}")
            else:
                if source:
                    self._troubled("")
                    self._take_all(source)
                    continue
                self._troubled(NO_KERNEL)
            self._stop.wait(AGAIN)

    def _take_all(self, source: Tells) -> None:
        with closing(source):
            self._source = source
            try:
                while not self._stop.is_set():
                    told = source.read()
                    self.take(told)
                    self._stop.wait(len(told) / _RATE)
            finally:
                self._lost, self._source = self.lost, None

    def take(self, told: Iterable[Logged]) -> None:
        """Puts packets into the ring, and lines into the log."""
        drops, lines = [], []
        now = time.time()
        read = [(each, of) for each in told if (of := header(each.payload))]
        links = {index: _link(index) for each, _ in read for index in (each.indev, each.outdev)}
        if read:
            named = self._state.read(lambda known: [self._drop(known, each, of, now, links) for each, of in read])
            drops = [drop for drop, _ in named]
            lines = [_Line(drop.container or str(drop.address), drop) for drop, logs in named if logs]
            self.ring.put(drops)
        for written in lines:
            if self._lines.allow(written.who, self._clock()):
                log.info("dropped: %s", line(written.drop.told()))
        for who, held in self._lines.over(self._clock()):
            log.info("dropped: %s: %d more were not logged", who, held)

    def _drop(
        self, inventory: Inventory, each: Logged, of: Header, now: float, links: dict[int, str]
    ) -> tuple[Drop, bool]:
        """The record, and whether it is to be in docker-fw's log."""
        for_host = each.hook == LOCAL_IN
        target, source = self._names.either(inventory, of.target, of.source)
        reason = ""
        if for_host and not source and (behind := self._names.behind(inventory, number_of(of.proto), of.port)):
            # By docker-proxy: who asked is an outsider, and who is asked has published the port.
            target, port = behind
            reason = f"published port of {port.container_port}/{port.proto}, which is not open to it"
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

    def _reason(self, inventory: Inventory, of: Header, *, for_host: bool) -> str:
        began = self._clock()
        self._credit = min(_AT_ONCE, self._credit + _PART * (began - self._credited))
        self._credited = began
        if self._credit <= 0:
            return ""
        proto = number_of(of.proto)
        steps = verdict(inventory, Packet(of.source, of.target, proto, of.port, for_host)).steps
        self._credit -= self._clock() - began
        if steps[-1].outcome == "drop":
            return steps[-1].text
        if not of.begins:
            return "it begins no connection, and is part of none that stands"
        if proto == ICMP and of.kind not in _ECHO:
            return "it is no useful ICMP message"
        # Over its rate, one of many to no container, from where its source cannot be, or just opened.
        few = ("a source may open", "no container is known")
        return next((step.text for step in steps if step.text.startswith(few)), "")

    def _troubled(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            if trouble:
                log.warning("%s", trouble)
            else:
                log.info("drops are told again")


def _link(index: int) -> str:
    try:
        return readable(socket.if_indextoname(index)) if index else ""
    except OSError:
        return f"#{index}"  # gone meanwhile
