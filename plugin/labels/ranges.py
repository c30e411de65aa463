"""Port ranges and prefixes as keys of plain hash sets: a few masked look-ups instead of an interval set. Pure.

A range is cut into aligned blocks, and each is stored under the port in its middle: `th dport & 0xfff0 | 0x8`. No two
blocks of different sizes share a middle, so that one set holds all sizes; only single ports have a set of their own. A
prefix is stored with its length, in the field of a source port, because nft has no syntax for a plain number in a key.
(A set with `flags interval` costs a packet 20 times as much, and a change takes seconds.)
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from plugin.model import Address, Prefix

#: Ports in a block; the last one is a whole protocol, also for protocols without ports.
BLOCKS = (16, 256, 4096, 65536)
#: Prefix lengths that are looked up, the most likely first. Others are cut into the next longer ones: at most 8 pieces
#: for IPv4, 128 for IPv6 (a /57 into /64s).
LENGTHS = {
    4: (32, 24, 16, 8, 28, 20, 12, 4, 0),
    6: (128, 64, 48, 56, 32, 40, 120, 112, 104, 96, 88, 80, 72, 24, 16, 8, 0),
}


def blocks(first: int, last: int) -> Iterator[tuple[int, int]]:
    """Cut a port range into the fewest aligned (size, first port) pieces of 1 port or a block."""
    if (first, last) == (1, 65535):
        first = 0  # with port 0, which the rules drop, the range is one whole protocol
    while first <= last:
        size = next((n for n in reversed(BLOCKS) if first % n == 0 and first + n - 1 <= last), 1)
        yield size, first
        first += size


@lru_cache(maxsize=4096)
def block_count(first: int, last: int) -> int:
    """Return the number of pieces of a port range."""
    return sum(1 for _ in blocks(first, last))


def block_key(size: int, first: int) -> int:
    """Return the key of a block of ports in a set: its middle."""
    return first + size // 2


def block_expression(size: int) -> str:
    """Return nft's expression for the block that contains a packet's port."""
    return f"th dport & {0x10000 - size:#x} | {size // 2:#x}"


@lru_cache(maxsize=4096)
def pieces(prefix: Prefix) -> tuple[tuple[int, Address], ...]:
    """Return (length, first address) of the pieces of a prefix."""
    length = min(n for n in LENGTHS[prefix.version] if n >= prefix.prefixlen)
    return tuple((length, each.network_address) for each in prefix.subnets(new_prefix=length))


def piece_count(prefix: Prefix) -> int:
    """Return the number of pieces of a prefix."""
    return 1 << (min(n for n in LENGTHS[prefix.version] if n >= prefix.prefixlen) - prefix.prefixlen)


def masked(version: int, length: int, end: str = "saddr") -> str:
    """Return nft's expression for the prefix of this length that contains a packet's address."""
    bits = 32 if version == 4 else 128
    ip, kind = ("ip", IPv4Address) if version == 4 else ("ip6", IPv6Address)
    return f"{ip} {end}" + ("" if length == bits else f" & {kind(((1 << length) - 1) << (bits - length))}")


def length_and_prefix(version: int, length: int, end: str = "saddr") -> str:
    """Return the same with its length in front, as it is stored in one set with other lengths."""
    return f"th sport & 0x0 | {length} . {masked(version, length, end)}"
