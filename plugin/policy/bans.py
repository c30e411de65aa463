"""Banned addresses and prefixes: what can be banned, and which pieces the firewall looks up.

Each prefix length that is looked up costs time for each packet, so there are few (`BAN_LENGTHS`). A prefix of another
length is split into pieces of the next longer one. An IPv6 prefix longer than /64 is widened to /64, because one
customer has a /64.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network

from plugin.labels.grammar import parse_prefix
from plugin.model import FwError, Prefix

#: Lengths of banned prefixes that are looked up, in addition to whole addresses.
BAN_LENGTHS = {4: (24, 16), 6: (64, 48)}
#: Most pieces of one ban: a /8 of IPv4, a /40 of IPv6.
MAX_PIECES = 256
#: The shortest prefix that can be banned, because of that.
WIDEST = {4: 8, 6: 40}


def read(text: str) -> Prefix:
    """Return the prefix to be banned. Raises FwError that says what would be right."""
    peer = parse_prefix(text.strip())
    if isinstance(peer, str):
        why, others, _ = peer.partition(", a prefix like")
        raise FwError(f"cannot ban: {why}" + (" or a prefix like 2001:db8::/32" if others else ""))
    prefix = ip_network(peer.value)
    if prefix.is_loopback or prefix.is_multicast or prefix.is_unspecified or prefix.is_link_local:
        raise FwError(f"cannot ban {text}: it is not an address on the Internet")
    if prefix.prefixlen < WIDEST[prefix.version]:
        raise FwError(f"cannot ban {text}: it is too wide, at most /8 of IPv4 and /40 of IPv6")
    if len(pieces(prefix)) > MAX_PIECES:  # of a length between two that are looked up
        wider = prefix.supernet(new_prefix=min(BAN_LENGTHS[6]))
        raise FwError(f"cannot ban {text}: a /49 to /55 is too many pieces; ban {wider}, or its /56s one by one")
    shortest = max(BAN_LENGTHS[6])
    if prefix.version == 6 and shortest < prefix.prefixlen < prefix.max_prefixlen:
        return prefix.supernet(new_prefix=shortest)
    return prefix


def written(prefix: Prefix) -> str:
    """Return the prefix as a user writes it: an address without a length."""
    return str(prefix.network_address if prefix.prefixlen == prefix.max_prefixlen else prefix)


def as_data(prefix: Prefix, until: float) -> dict[str, object]:
    """Return a ban as JSON for programs; `until` is None for a permanent one."""
    return {"address": written(prefix), "until": until or None}


def holding(prefix: Prefix, bans: Mapping[Prefix, float], now: float) -> Prefix | None:
    """Return the widest ban in force that covers the prefix; None if there is none."""
    if not bans:
        return None
    for length in range(WIDEST[prefix.version], prefix.prefixlen + 1):
        wider = prefix.supernet(new_prefix=length)
        if wider in bans and not 0 < bans[wider] <= now:
            return wider
    return None


def pieces(prefix: Prefix) -> list[Prefix]:
    """Return the pieces of a ban that the firewall looks up.

    For a prefix that is too wide these are MAX_PIECES + 1, never more.
    """
    longest, lengths = prefix.max_prefixlen, BAN_LENGTHS[prefix.version]
    if prefix.prefixlen == longest:
        return [prefix]
    if prefix.version == 6 and prefix.prefixlen > max(lengths):
        return [prefix.supernet(new_prefix=max(lengths))]
    length = min((n for n in lengths if n >= prefix.prefixlen), default=longest)
    if 1 << (length - prefix.prefixlen) > MAX_PIECES:
        return [prefix] * (MAX_PIECES + 1)
    return list(prefix.subnets(new_prefix=length))
