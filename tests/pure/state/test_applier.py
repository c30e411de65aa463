"""Elements that another program changed are restored, and nothing else is touched."""

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
    """How many were wrong where a ban of so many seconds should stand alone, and whether it stands alone then."""
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


def test_a_ban_that_is_about_to_end_stands_until_it_does() -> None:
    """Its last seconds are not taken for an element too much."""
    assert sync_elements(1.5, ban=True, stray=False) == (0, True)


def test_a_ban_that_somebody_deleted_comes_back_and_what_somebody_added_goes() -> None:
    """Both in one change; what is as it should be is none."""
    assert sync_elements(60, ban=False, stray=True) == (2, True)
    assert sync_elements(60, ban=True, stray=False) == (0, True)
