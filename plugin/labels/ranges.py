"""Port ranges and address prefixes as keys of plain hash sets: a few masked look-ups instead of an interval set. Pure.

A range is cut into aligned blocks, and each stands under the port in its middle: `th dport & 0xfff0 | 0x8`. No two of
different sizes share a middle, so that one set holds all sizes; only single ports have one of their own. A prefix has
its length beside it, in the place of a source port, for nft has no words for a plain number in a key. (A set with
`flags interval` costs a packet 20 times as much, and a change seconds.)
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from plugin.model import Address, Prefix

#: Ports in a block; the last one is a whole protocol, of those without ports too.
BLOCKS = (16, 256, 4096, 65536)
#: Prefix lengths that are looked for, the likelier first. Others are cut into the next longer ones: at most 8 for IPv4,
#: 128 for IPv6 (a /57 into /64s).
LENGTHS = {
    4: (32, 24, 16, 8, 28, 20, 12, 4, 0),
    6: (128, 64, 48, 56, 32, 40, 120, 112, 104, 96, 88, 80, 72, 24, 16, 8, 0),
}


def blocks(first: int, last: int) -> Iterator[tuple[int, int]]:
    """Cuts a port range into the fewest aligned (size, first port) pieces of 1 port or a block."""
    if (first, last) == (1, 65535):
        first = 0  # port 0 cannot be reached, and with it the range is one whole protocol
    while first <= last:
        size = next((n for n in reversed(BLOCKS) if first % n == 0 and first + n - 1 <= last), 1)
        yield size, first
        first += size


@lru_cache(maxsize=4096)
def block_count(first: int, last: int) -> int:
    """How many pieces a port range is cut into."""
    return sum(1 for _ in blocks(first, last))


def block_key(size: int, first: int) -> int:
    """The key under which a block of ports is in a set: its middle."""
    return first + size // 2


def block_expression(size: int) -> str:
    """What nft looks up for the block that a packet's port is in."""
    return f"th dport & {0x10000 - size:#x} | {size // 2:#x}"


@lru_cache(maxsize=4096)
def pieces(prefix: Prefix) -> tuple[tuple[int, Address], ...]:
    """(length, first address) of the pieces of a prefix."""
    length = min(n for n in LENGTHS[prefix.version] if n >= prefix.prefixlen)
    return tuple((length, each.network_address) for each in prefix.subnets(new_prefix=length))


def piece_count(prefix: Prefix) -> int:
    """How many pieces a prefix is cut into."""
    return 1 << (min(n for n in LENGTHS[prefix.version] if n >= prefix.prefixlen) - prefix.prefixlen)


def masked(version: int, length: int, end: str = "saddr") -> str:
    """What nft looks up for the prefix of this length that a packet's address is in."""
    whole = 32 if version == 4 else 128
    ip, kind = ("ip", IPv4Address) if version == 4 else ("ip6", IPv6Address)
    return f"{ip} {end}" + ("" if length == whole else f" & {kind(((1 << length) - 1) << (whole - length))}")


def length_and_prefix(version: int, length: int, end: str = "saddr") -> str:
    """The same with its length in front, as it stands in one set with other lengths."""
    return f"th sport & 0x0 | {length} . {masked(version, length, end)}"
