"""Fixtures of several modules: a machine of one's own for a test that changes it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vm import Machine
from tests.vm.product import MachineFw, installed, with_sidecar


@pytest.fixture
def fw() -> Iterator[MachineFw]:
    """Yield a machine with the managed plugin."""
    with Machine(state=installed()) as vm:
        yield MachineFw(vm)


@pytest.fixture
def sidecar() -> Iterator[MachineFw]:
    """Yield a machine with the sidecar and its boot unit."""
    with Machine(state=with_sidecar()) as vm:
        yield MachineFw(vm, driver="fw")
