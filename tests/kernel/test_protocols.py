"""Test that a protocol is one entry of `plugin.protocols`, in the kernel too."""

from __future__ import annotations

from pathlib import Path

from tests.pure.registries import ADDED_PROTOCOL, check, copied


def test_packets_of_a_new_protocol_are_judged_by_its_entry_alone(tmp_path: Path) -> None:
    """UDP-Lite has no entry. With one, real packets of it obey labels, and its flows end with their permission."""
    check(copied(tmp_path, ADDED_PROTOCOL), "tests/kernel/protocol_added.py")
