"""What the attachments of containers say (`driver_opts`), which Docker tells of one container at a time. Thread-safe.

A container that is starting cannot be inspected: Docker holds its lock. So it is asked when it has been created, and
once each time it has started.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from typing import Any

#: By network, by name.
Options = Mapping[str, Mapping[str, Any]]


class Attachments:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[tuple[str, ...], Options]] = {}

    def fits(self, container_id: str, places: tuple[str, ...]) -> bool:
        """True if it was asked since the container has these endpoints."""
        with self._lock:
            return container_id in self._known and self._known[container_id][0] == places

    def put(self, container_id: str, places: tuple[str, ...], options: Options) -> None:
        with self._lock:
            self._known[container_id] = (places, options)

    def of(self, container_id: str) -> Options:
        with self._lock:
            return self._known[container_id][1] if container_id in self._known else {}

    def get(self, container_id: str, network: str) -> Mapping[str, Any] | None:
        """None if it is not known."""
        return self.of(container_id).get(network)

    def retain(self, existing: Collection[str]) -> None:
        """Only these containers exist."""
        with self._lock:
            self._known = {k: v for k, v in self._known.items() if k in existing}
