"""Test what Python's garbage collector looks at."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from plugin.daemon import long_lived
from plugin.daemon.long_lived import LongLived


class Cycle:
    """An object that reference counts alone never free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _none_set_aside() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_what_stays_is_looked_at_once() -> None:
    """An object that was there at the last list is left out of later collections, which so stay short."""
    there = Cycle()
    LongLived()()
    assert not any(each is there for each in gc.get_objects())
    assert gc.get_freeze_count() > 0


def test_cycles_that_end_are_freed() -> None:
    """At once if they are younger than the last list, and within about an hour if they are older."""
    settle = LongLived()
    older = Cycle()
    settle()
    younger = Cycle()
    old, young = weakref.ref(older), weakref.ref(younger)
    del older, younger
    settle()
    assert young() is None
    assert old() is not None
    for _ in range(long_lived.EACH):
        settle()
    assert old() is None
