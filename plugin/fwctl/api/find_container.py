"""Which container a user means: by its name, or by the beginning of its ID. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from plugin.model import FwError
from plugin.policy.view import Inventory

#: Characters of an ID that are enough, if there is one such container only.
_ENOUGH = 4


def containers(inventory: Inventory) -> dict[str, str]:
    """The name of every container that is on a network, by its ID."""
    places = (found for owner in inventory.owners() if (found := inventory.endpoint(owner)))
    return {endpoint.container.id: endpoint.container.name for _, endpoint in places if endpoint.container}


def whom(there: Mapping[str, str], text: str, not_guarded: Mapping[str, str]) -> str:
    """The ID of the container that is meant. Raises FwError that says who there is.

    `there`: names by ID. `apart`: containers without a network of their own by name, with the reason.
    """
    named = [identity for identity, name in there.items() if name == text]
    found = named or [identity for identity in there if len(text) >= _ENOUGH and identity.startswith(text.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(sorted(f"{there[identity]} ({identity[:12]})" for identity in found)[:8])
        raise FwError(f"{text[:80]!r} may be {several}; write more of the ID")
    if text in not_guarded:
        raise FwError(f"{text} has no network of its own: it {not_guarded[text]}")
    near = difflib.get_close_matches(text[:128], sorted({*there.values(), *not_guarded}), n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; `fwctl status` lists those that are"
    raise FwError(f"no container {text[:80]!r} is on a network that docker-fw knows{hint}")
