"""The table's elements, compiled again from all facts: what the incremental result must equal."""

from __future__ import annotations

from plugin.nftables.ban_elements import ban_elements
from plugin.nftables.sets import Element
from plugin.policy.view import evaluated
from plugin.state.reconciler import Reconciler


def desired(state: Reconciler) -> set[Element]:
    """Every owner's elements and the permanent bans. Fails if a fact does not follow from the others, as it must."""
    fresh = evaluated(state.read(lambda view: view.defaults), state.facts)
    assert fresh.facts == state.facts
    elements = {element for owner in fresh.owners() for element in fresh.elements(owner)}
    return elements | ban_elements(state.state.bans, 0)[0]
