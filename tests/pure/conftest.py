"""Fixtures of pure tests that several packages need."""

from __future__ import annotations

import pytest

from tests.pure.fakes import cut_no_flows


@pytest.fixture
def no_flows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not use the kernel's connection tracking."""
    cut_no_flows(monkeypatch)
