"""Fewer random inputs for each test: more of them take most of the time of a run, and find hardly more mutants."""

from __future__ import annotations

from typing import Any

from hypothesis import settings

from tests import inputs

_inputs = inputs.inputs


def use(most: int) -> None:
    """Let tests that are imported from now on try this number of inputs at most."""

    def few(count: int, **more: Any) -> settings:
        return _inputs(min(count, most), **more)

    inputs.inputs = few
