"""Probe steadily in the background."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from .probes import probe


class Hammer:
    """Probes sent at a steady pace. One without an answer does not delay the next."""

    def __init__(self, netns: str, targets: list[list[Any]], every: float, timeout: float, source: str | None) -> None:
        self.netns, self.targets, self.source = netns, targets, source
        self.every, self.timeout = every, timeout
        self.shots: list[list[Any]] = []  # target's index, time sent, verdict
        self.flying: set[asyncio.Task[None]] = set()
        self.task = asyncio.create_task(self.run())

    async def run(self) -> None:
        """Send probes until cancelled."""
        due = time.monotonic()
        while True:
            for index in range(len(self.targets)):
                task = asyncio.create_task(self.shoot(index))
                self.flying.add(task)
                task.add_done_callback(self.flying.discard)
                due += self.every
                # after a stall (two cores, a busy dockerd) go on, do not catch up in a burst
                due = max(due, time.monotonic() - self.every)
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def shoot(self, index: int) -> None:
        """Send one probe."""
        proto, target, port = self.targets[index]
        sent = time.monotonic()
        found = await probe(self.netns, proto, target, port, self.timeout, 0, self.source)
        self.shots.append([index, sent, found["verdict"]])

    async def stop(self) -> list[list[Any]]:
        """Stop, wait for the last answers, and return all shots in the order in which they were sent."""
        self.task.cancel()
        await asyncio.gather(*self.flying)
        return sorted(self.shots, key=lambda shot: shot[1])
