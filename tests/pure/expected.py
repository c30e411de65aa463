"""The table's elements, compiled again from all facts: the incremental result must equal them."""

from __future__ import annotations

from plugin.nftables.ban_elements import ban_elements
from plugin.nftables.compile import compiled
from plugin.nftables.sets import Element
from plugin.state.reconciler import Reconciler


def desired(state: Reconciler) -> set[Element]:
    """Return every owner's elements and the permanent bans. Fail if a derived fact is missing."""
    fresh = compiled(state.read(lambda view: view.defaults), state.facts)
    assert fresh.view.facts == state.facts
    return fresh.all_elements() | ban_elements(state.state.bans, 0)[0]
