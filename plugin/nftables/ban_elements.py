"""Translate bans into elements of the table's sets, and the difference of two lists of bans into a change."""

from __future__ import annotations

from collections.abc import Mapping

from plugin.kernel.names import AF
from plugin.model import Prefix
from plugin.nftables.sets import Change, Element
from plugin.policy.bans import BAN_LENGTHS, WIDEST, pieces

#: A ban that ends within this many seconds is left to expire by itself.
_SOON = 2


def _element(piece: Prefix) -> Element:
    v, is_address = piece.version, piece.prefixlen == piece.max_prefixlen
    return Element(f"banned{v}" if is_address else f"banned{v}_{piece.prefixlen}", (piece.network_address,))


def _asking(prefix: Prefix) -> tuple[Element, ...]:
    """Return the elements that make packets of the family be looked up.

    They have no timeout: they remain as long as the ban is known.
    """
    family = (AF[prefix.version],)
    exact = prefix.version == 4 and prefix.prefixlen > max(BAN_LENGTHS[4])
    if exact or prefix.prefixlen == prefix.max_prefixlen:
        return (Element("ban_families", family),)
    return Element("ban_families", family), Element("ban_prefix_families", family)


def ban_elements(bans: Mapping[Prefix, float], now: float) -> tuple[set[Element], dict[Element, int]]:
    """Return permanent elements, and those with a timeout in seconds.

    `bans`: end (Unix time) by prefix; 0: permanent.
    """
    lasting: set[Element] = set()
    timed: dict[Element, int] = {}
    for prefix, until in bans.items():
        lasting.update(_asking(prefix))
        for element in map(_element, pieces(prefix)):
            if not until:
                lasting.add(element)
            elif until > now:
                timed[element] = max(timed.get(element, 0), _left(until, now))
    return lasting, {element: seconds for element, seconds in timed.items() if element not in lasting}


def ban_change(
    before: Mapping[Prefix, float], after: Mapping[Prefix, float], now: float
) -> tuple[Change, dict[Element, int]]:
    """Return the change from one list to the other, and the elements to add with a timeout in seconds.

    Only the difference is examined: a blocklist is long, and a ban must not delay a container that starts.
    """
    differing = _differing(before, after)
    remove: set[Element] = set()
    add: set[Element] = set()
    timed: dict[Element, int] = {}
    for piece in {piece for prefix in differing for piece in pieces(prefix)}:
        element = _element(piece)
        was, will = _until(piece, before, now), _until(piece, after, now)
        if was == will or (was and will and abs(was - will) <= 1):
            continue
        # An element that is about to expire may be gone before it is removed.
        if was is not None and not (will is None and was and was - now < _SOON):
            remove.add(element)
        if will == 0:
            add.add(element)
        elif will is not None:
            timed[element] = _left(will, now)
    add.update(element for prefix in differing if prefix in after for element in _asking(prefix))
    gone = {element for prefix in differing if prefix not in after for element in _asking(prefix)} - add
    if gone:
        for prefix in after:
            gone.difference_update(_asking(prefix))
            if not gone:
                break
    return Change(tuple(remove | gone), tuple(add)), timed


def _left(until: float, now: float) -> int:
    return int(until - now) + 1


def _differing(before: Mapping[Prefix, float], after: Mapping[Prefix, float]) -> set[Prefix]:
    """Return the prefixes that differ. They are compared as objects: to hash 50,000 prefixes would take 100 ms."""
    one, other = ({id(prefix): until for prefix, until in bans.items()} for bans in (before, after))
    changed = {key for key, _ in one.items() ^ other.items()}
    return {prefix for bans in (before, after) for prefix in bans if id(prefix) in changed} if changed else set()


def _until(piece: Prefix, bans: Mapping[Prefix, float], now: float) -> float | None:
    """Return until when the piece is banned, by any prefix that contains it; 0: permanently, None: not."""
    lengths, length = BAN_LENGTHS[piece.version], piece.prefixlen
    widest = max((n for n in lengths if n < length), default=WIDEST[piece.version] - 1)
    if piece.version == 6 and length == piece.max_prefixlen:
        widest = length - 1  # prefixes in between have been widened
    found = [
        until
        for n in range(widest + 1, length + 1)
        if (until := bans.get(piece.supernet(new_prefix=n), -1.0)) == 0 or until > now
    ]
    return 0 if 0 in found else max(found, default=None)
