"""How many random inputs a test tries: in `make test` the same in every run, in `make test-long` more, and new ones.

TEST_TIMES=N tries N times as many, different ones in each run; a failure prints its input.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import settings

#: Without the prefix FW_, for a setting of that name would be unknown to the product.
TIMES = int(os.environ.get("TEST_TIMES", "0"))


def inputs(count: int, *, steps: int | None = None, **more: Any) -> settings:
    """Return settings for this number of inputs (of `steps` steps each, if it is a state machine).

    They have no deadline, which fails on a busy machine. `more` are further settings of hypothesis.
    """
    if steps is not None:
        more["stateful_step_count"] = steps
    return settings(max_examples=count * max(TIMES, 1), derandomize=not TIMES, deadline=None, **more)
