"""Elements that another program changed are restored, and no others are touched."""

from __future__ import annotations

import time
from ipaddress import ip_network

import pytest

from plugin.model import Defaults
from plugin.nftables.ban_elements import ban_elements
from plugin.nftables.drift import TableDump
from plugin.nftables.sets import SETS, Element
from plugin.policy.facts import Facts
from plugin.policy.saved import SavedState
from plugin.policy.view import PolicyView
from plugin.state.applier import TableApplier
from tests.pure.fakes import Kernel

pytestmark = pytest.mark.usefixtures("no_flows")

BANNED = ip_network("203.0.113.7/32")
STRAY = Element("egress_restricted", ("br0",))


def sync_elements(ends: float, *, ban: bool, stray: bool) -> tuple[int, bool]:
    """Return how many elements were wrong in a table that should contain only a ban ending in `ends` seconds, and
    whether that table is correct afterwards."""
    state = SavedState(bans={BANNED: time.time() + ends})
    known, kernel = PolicyView(Defaults(), Facts(state)), Kernel()
    lasting, timed = ban_elements(known.state.bans, time.time())
    kernel.table = {*lasting, STRAY} if stray else set(lasting)
    kernel.timed = dict(timed) if ban else {}
    found = frozenset((*kernel.table, *kernel.timed))
    wrong = TableApplier(kernel, known, lambda _: None).sync_elements(  # type: ignore[arg-type]
        TableDump(1, frozenset(SETS), found, frozenset(), ())
    )
    return wrong, kernel.table == lasting and kernel.timed.keys() == timed.keys()


def test_a_ban_about_to_end_stays_until_its_end() -> None:
    """A ban in its last seconds is not taken for a surplus element."""
    assert sync_elements(1.5, ban=True, stray=False) == (0, True)


def test_deleted_elements_are_restored_and_added_ones_removed() -> None:
    """Both are repaired in one change; a correct table needs no change."""
    assert sync_elements(60, ban=False, stray=True) == (2, True)
    assert sync_elements(60, ban=True, stray=False) == (0, True)
