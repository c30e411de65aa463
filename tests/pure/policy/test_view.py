"""Test which bridges a view counts as internal, also before Docker has listed its networks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from plugin.model import BridgeNetwork, Defaults
from plugin.policy.facts import Facts
from plugin.policy.saved import SavedState
from plugin.policy.view import PolicyView

INTERNAL, OPEN = (BridgeNetwork(x * 64, x, f"br-{x}", internal=x == "a") for x in "ab")
LATER = BridgeNetwork("c" * 64, "c", "br-c", internal=True)


def facts(*networks: BridgeNetwork, last: Iterable[str] = (), listed: bool = False) -> Facts:
    """Return the facts; `last`: the internal bridges that are saved."""
    saved = SavedState(internal=frozenset(last))
    return Facts(saved, networks={network.id: network for network in networks}, listed=listed)


def settled(before: Facts, after: Facts) -> frozenset[str]:
    """Return the internal bridges after a change."""
    view = PolicyView(Defaults(), after)
    return view.settled(before, []).saved.internal


@pytest.mark.parametrize(("listed", "expected"), [(False, {"br-a", "br-old"}), (True, {"br-a"})])
def test_at_a_start(listed: bool, expected: set[str]) -> None:
    """Those of the last run remain until Docker has listed its networks: one of them may be there."""
    now = facts(INTERNAL, OPEN, last=["br-old"], listed=listed)
    assert settled(now, now) == expected


@pytest.mark.parametrize("listed", [True, False])
def test_a_network_that_appears_or_is_removed(listed: bool) -> None:
    """A new internal network counts at once; one that is removed ceases to, once Docker's list is there."""
    before = facts(INTERNAL, OPEN, last=["br-a"], listed=listed)
    assert settled(before, before.with_networks({LATER.id: LATER})) == {"br-a", "br-c"}
    left = settled(before, before.with_networks({}, [INTERNAL.id]))
    assert left == (set() if listed else {"br-a"})


def test_dockers_first_list_alone() -> None:
    """If it shows no other networks than were known, those of the last run cease to count."""
    before = facts(INTERNAL, last=["br-a", "br-old"])
    assert settled(before, replace(before, listed=True)) == {"br-a"}


def test_another_change_keeps_them() -> None:
    """A change that is not about networks changes no internal bridge."""
    before = facts(INTERNAL, OPEN, last=["br-a"], listed=True)
    assert settled(before, replace(before, suspended=True)) == {"br-a"}
