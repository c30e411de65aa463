"""Overrides and bans of `fwctl allow`, `deny`, `ban`: saved across restarts, they end by themselves. Pure, given time.

An override belongs to a container by its ID: a container created again under the same name does not have it. An earlier
override stays under a later one, and counts again when the later one has ended.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

from plugin.model import Override, Overriding, Peer
from plugin.policy.decide import minus
from plugin.policy.saved import SavedState

#: A peer without a name, which matches no container.
_NOBODY = (Peer("container", ""),)


def in_force(state: SavedState) -> dict[str, Override]:
    """Return the override of each container's labels: of two for the same ports the later one counts."""
    found: dict[str, Override] = {}
    for each in state.overrides:
        known, one = found.get(each.container, Override()), (each.rule,)
        if each.deny:
            found[each.container] = Override(tuple(minus(known.allow, one)), (*known.deny, each.rule))
        else:
            deny = known.deny if each.rule.peers else tuple(minus(known.deny, one))
            found[each.container] = Override((*known.allow, each.rule), deny)
    return found


def with_one(state: SavedState, new: Overriding) -> SavedState:
    """Add an override. Earlier ones that it repeats or outlasts are removed: they would never count again."""
    kept: list[Overriding] = []
    for each in state.overrides:
        outlived = not new.until or 0 < each.until <= new.until
        if each.container != new.container:
            kept.append(each)
        elif each.deny == new.deny:
            if dataclasses.replace(each, until=new.until) != new:
                kept.append(each)
        elif outlived and not new.rule.peers:
            kept += [dataclasses.replace(each, rule=rule) for rule in minus((each.rule,), (new.rule,))]
        else:
            kept.append(each)
    return dataclasses.replace(state, overrides=(*kept, new))


def without(state: SavedState, containers: Collection[str]) -> SavedState:
    """Return the state without the overrides of these containers."""
    if not any(each.container in containers for each in state.overrides):
        return state
    return dataclasses.replace(state, overrides=tuple(e for e in state.overrides if e.container not in containers))


def ended(state: SavedState, now: float) -> list[Overriding]:
    """Return the overrides that have expired."""
    return [each for each in state.overrides if 0 < each.until <= now]


def lapsed(state: SavedState, now: float, *, deny: bool) -> SavedState:
    """Return the state without the expired overrides of `fwctl deny`, or of `fwctl allow`."""
    gone = [each for each in ended(state, now) if each.deny is deny]
    return dataclasses.replace(state, overrides=tuple(each for each in state.overrides if each not in gone))


def swept(state: SavedState, now: float) -> SavedState:
    """Return the state without expired bans."""
    bans = dict(state.bans)
    for prefix in [prefix for prefix, until in bans.items() if 0 < until <= now]:
        del bans[prefix]
    return dataclasses.replace(state, bans=bans)


def expired(state: SavedState, now: float) -> SavedState:
    """Return the state without expired overrides and bans."""
    return swept(lapsed(lapsed(state, now, deny=False), now, deny=True), now)


def suspended(state: SavedState) -> SavedState:
    """Return the state to apply while no process checks the time: ports opened for a limited time are closed.

    A port opened to some peers for a limited time was closed to all others, and stays closed to them.
    """
    return dataclasses.replace(state, overrides=tuple(_suspended(state)))


def _suspended(state: SavedState) -> Iterator[Overriding]:
    for each in state.overrides:
        if each.deny or not each.until:
            yield each
        elif each.rule.peers:
            yield dataclasses.replace(each, rule=dataclasses.replace(each.rule, peers=_NOBODY))
