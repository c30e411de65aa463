"""What `fwctl allow`, `deny`, `ban` say: kept over restarts, ended by themselves. Pure, but for the clock it is given.

An override is a container's by its ID: one that is made anew under the same name is another. What was said before stays
under what was said later, and counts again when that has ended.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

from plugin.model import Override, Overriding, Peer
from plugin.policy.decide import minus
from plugin.policy.saved import SavedState

#: Who has no name, so that nobody is meant by it.
_NOBODY = (Peer("container", ""),)


def in_force(state: SavedState) -> dict[str, Override]:
    """By container, what overrides its labels: of two words on the same ports the later one counts."""
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
    """Adds a word. What it leaves no more time for goes: that would never count again."""
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
    """The state without what was said of these containers."""
    if not any(each.container in containers for each in state.overrides):
        return state
    return dataclasses.replace(state, overrides=tuple(e for e in state.overrides if e.container not in containers))


def ended(state: SavedState, now: float) -> list[Overriding]:
    """The words whose time is over."""
    return [each for each in state.overrides if 0 < each.until <= now]


def lapsed(state: SavedState, now: float, *, deny: bool) -> SavedState:
    """The state without the words of `fwctl deny`, or of `fwctl allow`, whose time is over."""
    gone = [each for each in ended(state, now) if each.deny is deny]
    return dataclasses.replace(state, overrides=tuple(each for each in state.overrides if each not in gone))


def swept(state: SavedState, now: float) -> SavedState:
    """The state without the bans whose time is over."""
    bans = dict(state.bans)
    for prefix in [prefix for prefix, until in bans.items() if 0 < until <= now]:
        del bans[prefix]
    return dataclasses.replace(state, bans=bans)


def expired(state: SavedState, now: float) -> SavedState:
    """The state without all that has ended."""
    return swept(lapsed(lapsed(state, now, deny=False), now, deny=True), now)


def unwatched(state: SavedState) -> SavedState:
    """What may be in force while nobody watches the clock: what was opened for a time is closed.

    A port that was opened to some for a time was closed to others, who do not get it back.
    """
    return dataclasses.replace(state, overrides=tuple(_unwatched(state)))


def _unwatched(state: SavedState) -> Iterator[Overriding]:
    for each in state.overrides:
        if each.deny or not each.until:
            yield each
        elif each.rule.peers:
            yield dataclasses.replace(each, rule=dataclasses.replace(each.rule, peers=_NOBODY))
