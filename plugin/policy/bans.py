"""Banned addresses and prefixes: what can be banned, and which pieces the firewall looks up.

Each packet pays for each prefix length that is looked up, so there are few (`BAN_LENGTHS`). A prefix of another length
is split into pieces of the next longer one. An IPv6 prefix longer than /64 is widened to it, for one customer has that.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network

from plugin.labels.grammar import parse_prefix
from plugin.model import FwError, Prefix

#: Lengths of banned prefixes that are looked up, besides whole addresses.
BAN_LENGTHS = {4: (24, 16), 6: (64, 48)}
#: Pieces of one ban at most: a /8 of IPv4, a /40 of IPv6.
MAX_PIECES = 256
#: The shortest prefix that can be banned, so.
WIDEST = {4: 8, 6: 40}


def read(text: str) -> Prefix:
    """An address or a prefix to be banned. Raises FwError that says what would be right."""
    peer = parse_prefix(text.strip())
    if isinstance(peer, str):
        why, others, _ = peer.partition(", a prefix like")
        raise FwError(f"cannot ban: {why}" + (" or a prefix like 2001:db8::/32" if others else ""))
    prefix = ip_network(peer.value)
    if prefix.is_loopback or prefix.is_multicast or prefix.is_unspecified or prefix.is_link_local:
        raise FwError(f"cannot ban {text}: it is no address of anybody's on the Internet")
    if prefix.prefixlen < WIDEST[prefix.version]:
        raise FwError(f"cannot ban {text}: it is too wide, at most /8 of IPv4 and /40 of IPv6")
    if len(pieces(prefix)) > MAX_PIECES:  # of lengths that are not looked for, between two that are
        wider = prefix.supernet(new_prefix=min(BAN_LENGTHS[6]))
        raise FwError(f"cannot ban {text}: a /49 to /55 is too many pieces; ban {wider}, or its /56s one by one")
    shortest = max(BAN_LENGTHS[6])
    if prefix.version == 6 and shortest < prefix.prefixlen < prefix.max_prefixlen:
        return prefix.supernet(new_prefix=shortest)
    return prefix


def written(prefix: Prefix) -> str:
    """As a user writes it: an address without a length."""
    return str(prefix.network_address if prefix.prefixlen == prefix.max_prefixlen else prefix)


def told(prefix: Prefix, until: float) -> dict[str, object]:
    """For programs; `until` None is for ever."""
    return {"address": written(prefix), "until": until or None}


def holding(prefix: Prefix, bans: Mapping[Prefix, float], now: float) -> Prefix | None:
    """By what the prefix is banned now, if it is; the widest."""
    if not bans:
        return None
    for length in range(WIDEST[prefix.version], prefix.prefixlen + 1):
        wider = prefix.supernet(new_prefix=length)
        if wider in bans and not 0 < bans[wider] <= now:
            return wider
    return None


def pieces(prefix: Prefix) -> list[Prefix]:
    """Too many of them for what is too wide; never more than one over MAX_PIECES."""
    whole, lengths = prefix.max_prefixlen, BAN_LENGTHS[prefix.version]
    if prefix.prefixlen == whole:
        return [prefix]
    if prefix.version == 6 and prefix.prefixlen > max(lengths):
        return [prefix.supernet(new_prefix=max(lengths))]
    length = min((n for n in lengths if n >= prefix.prefixlen), default=whole)
    if 1 << (length - prefix.prefixlen) > MAX_PIECES:
        return [prefix] * (MAX_PIECES + 1)
    return list(prefix.subnets(new_prefix=length))
