"""The judge of the table's rules: packets find a rule that is weakened (`make mutation` weakens all of them)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.mutation import rules, sessions

_INTO_BRIDGES = "inet forward: oifgroup 0x66770001 meta mark set meta mark | 0x08000000 goto inbound"
_TEST = "tests/kernel/test_verdicts.py::test_a_label_opens_its_port_on_its_container_only"


@pytest.mark.timeout(1800)  # two sessions of pytest, with hosts of their own: a second each, but not on a busy machine
def test_packets_find_a_weakened_rule(tmp_path: Path) -> None:
    """A rule that closes is missed if it is removed, or accepts; one that matches no packet of this test is not."""
    wanted = {
        # Without this rule, the rule for bridges of others filters the same packets: only their mark differs.
        f"{_INTO_BRIDGES} → removed": "survived",
        f"{_INTO_BRIDGES} → goto inbound is accept": "killed",
        "inet inbound4: goto deny → goto deny is accept": "killed",
        "inet inbound: rt type 0 goto deny → without `rt type 0`": "killed",
    }
    mutants = [each for each in rules.all_mutants() if each.name in wanted]
    rules.run(mutants, tmp_path, 1, time.monotonic() + 1700, lambda _: None, [_TEST])
    states = {each["name"]: each["state"] for each in sessions.results("judge", tmp_path)}
    assert states == wanted
