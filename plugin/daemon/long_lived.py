"""Python's garbage collector looks at objects that stay, such as containers' labels, once and not at each list.

Beside 10,000 containers it looked at all objects twice during each of Docker's lists, for 0.2 s each time, and found
nothing. All threads wait meanwhile, also those that close departing containers.
"""

from __future__ import annotations

import gc

#: Calls until everything is looked at once more: about an hour. Otherwise cycles of objects that ended after they had
#: been set aside would stay until docker-fw ends.
EACH = 120


class LongLived:
    """Call it after each list. Not thread-safe."""

    def __init__(self) -> None:
        self._calls = 0

    def __call__(self) -> None:
        """Free unreachable cycles of objects that are new since the last call, and set the other new ones aside."""
        self._calls += 1
        if self._calls % EACH == 0:
            gc.unfreeze()
        gc.collect()
        gc.freeze()
