"""Ranges and prefixes as keys of hash sets: a masked look-up finds exactly the inserted ones.

The keys that nft looks up are read from the expressions that `plugin.labels.ranges` writes, not computed a second time.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from plugin.labels.ranges import BLOCKS, LENGTHS, block_expression, block_key, blocks, length_and_prefix, masked, pieces
from plugin.model import Prefix
from tests.pure.strategies import examples, ipv4, ipv6, near4, near6, ports, prefixes4, prefixes6
from tests.pure.tracer import Packet, value

SIZES = (1, *BLOCKS)
V4, V6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")


def asked(port: int) -> dict[int, int]:
    """Return the keys that the table looks up for a packet to this port, by size of block."""
    packet = Packet(V4, V4, 6, port)
    return {n: int(value(block_expression(n), packet)) if n > 1 else port for n in SIZES}  # type: ignore[arg-type]


# --- ports --------------------------------------------------------------------------------------------------------


@given(ports, ports)
@example(1, 65535)
@example(1, 1)
@example(65535, 65535)
@example(1, 65534)
@example(4081, 65519)
@example(2, 65535)
@examples(250)
def test_blocks_cover_exactly_the_range(a: int, b: int) -> None:
    """A range opens each of its ports and no other, and costs at most 104 elements."""
    first, last = sorted((a, b))
    cut = list(blocks(first, last))
    assert cut[0][1] == (0 if (first, last) == (1, 65535) else first)
    assert cut[-1][1] + cut[-1][0] - 1 == last
    assert all(port + size == following for (size, port), (_, following) in pairwise(cut))
    assert all(size in SIZES and port % size == 0 for size, port in cut)
    assert len(cut) <= 104


def test_blocks_are_as_few_as_measured() -> None:
    """20000-21023 needs 19 elements, the range of all ports one, and no range more than 104."""
    assert len(list(blocks(20000, 21023))) == 19
    assert list(blocks(1, 65535)) == list(blocks(0, 65535)) == [(65536, 0)]
    assert len(list(blocks(1, 65534))) == 104  # 3 × 15 up to a block of 4096, 14 of those, 3 × 15 down again


@given(ports, ports)
@examples(100)
def test_no_smaller_number_of_blocks_would_do(a: int, b: int) -> None:
    """No two neighbouring blocks are halves of one larger block."""
    first, last = sorted((a, b))
    cut = set(blocks(first, last))
    for size, larger in pairwise(SIZES):
        for port in {port // larger * larger for n, port in cut if n == size}:
            assert not {(size, start) for start in range(port, port + larger, size)} <= cut


def test_blocks_of_different_sizes_never_share_a_key() -> None:
    """All sizes are in one set: each of the 4369 blocks has its own key, within the range of ports."""
    keys = [block_key(size, first) for size in BLOCKS for first in range(0, 65536, size)]
    assert len(keys) == len(set(keys)) == 4096 + 256 + 16 + 1
    assert all(0 < key < 65536 for key in keys)


@pytest.mark.parametrize("size", BLOCKS)
def test_every_port_finds_its_own_block(size: int) -> None:
    """The masked look-up uses exactly the block that contains the port, for each of the 65536 ports."""
    for first in range(0, 65536, size):
        for port in {first, first + 1, first + size // 2, first + size - 1}:
            assert asked(port)[size] == block_key(size, first)


@given(st.lists(st.tuples(ports, ports), max_size=4), st.lists(ports, max_size=4))
@examples(200)
def test_a_port_is_found_if_and_only_if_a_range_has_it(ranges: list[tuple[int, int]], drawn: list[int]) -> None:
    """A port is found if and only if one of the ranges contains it, for any ranges in the two sets."""
    single: set[int] = set()
    larger: set[int] = set()
    for a, b in ranges:
        for size, first in blocks(*sorted((a, b))):
            (single if size == 1 else larger).add(first if size == 1 else block_key(size, first))
    edges = {port + step for pair in ranges for port in pair for step in (-17, -16, -1, 0, 1, 16, 17)}
    for port in {*edges, *drawn, 1, 8, 128, 2048, 32768, 65535}:
        if 1 <= port <= 65535:
            keys = asked(port)
            found = keys.pop(1) in single or bool(larger & set(keys.values()))
            assert found is any(min(pair) <= port <= max(pair) for pair in ranges)


# --- addresses ----------------------------------------------------------------------------------------------------


@given(prefixes4 | prefixes6)
@example(ip_network("0.0.0.0/0"))
@example(ip_network("::/0"))
@example(ip_network("0.0.0.0/1"))
@example(ip_network("::/1"))
@example(ip_network("2001:db8::/57"))
@examples(250)
def test_pieces_cover_exactly_the_prefix(prefix: Prefix) -> None:
    """A prefix is cut into pieces of lengths that are looked up: all of it and no more, in at most 8 pieces for IPv4 or
    128 for IPv6."""
    cut = [ip_network((address, length)) for length, address in pieces(prefix)]
    assert all(each.prefixlen in LENGTHS[prefix.version] for each in cut)
    assert sum(each.num_addresses for each in cut) == prefix.num_addresses
    assert all(each.subnet_of(prefix) for each in cut)  # type: ignore[arg-type]
    assert len(set(cut)) == len(cut) <= (8 if prefix.version == 4 else 128)


@pytest.mark.parametrize(
    "prefix",
    [
        "10.0.0.0/24",
        "10.0.0.1/32",
        "2001:db8::/48",
        "2001:db8::/32",
        "2001:db8::1/128",
        "2001:db8::/64",
        "::/0",
        "10.0.0.0/8",
    ],
)
def test_a_usual_prefix_is_one_piece(prefix: str) -> None:
    """A usual prefix needs one element."""
    assert len(pieces(ip_network(prefix))) == 1


@given(st.lists(prefixes4, max_size=4), ipv4 | near4)
@examples(200)
def test_an_ipv4_address_is_found_if_and_only_if_it_is_in_one(listed: list[IPv4Network], address: IPv4Address) -> None:
    """An address is found by one of the look-ups if and only if one of the prefixes contains it, for any prefixes in a
    set."""
    assert _found(listed, address) is any(address in prefix for prefix in listed)
    for prefix in listed:
        for edge in (prefix.network_address, prefix.broadcast_address):
            assert _found(listed, edge)


@given(st.lists(prefixes6, max_size=4), ipv6 | near6)
@examples(200)
def test_an_ipv6_address_is_found_if_and_only_if_it_is_in_one(listed: list[IPv6Network], address: IPv6Address) -> None:
    """An IPv6 address is found by one of the look-ups if and only if one of the prefixes contains it."""
    assert _found(listed, address) is any(address in prefix for prefix in listed)
    for prefix in listed:
        for edge in (prefix.network_address, prefix.broadcast_address):
            assert _found(listed, edge)


def _found(listed: list[IPv4Network] | list[IPv6Network], address: IPv4Address | IPv6Address) -> bool:
    table = {piece for prefix in listed for piece in pieces(prefix)}
    packet = Packet(address, address, 6, 22)
    for length in LENGTHS[address.version]:
        expressions = length_and_prefix(address.version, length).split(" . ")
        if tuple(value(expression, packet) for expression in expressions) in table:
            return True
    return False


@given(ipv4 | near4 | ipv6 | near6, st.data())
@examples(100)
def test_a_mask_leaves_the_prefix_of_its_length(address: IPv4Address | IPv6Address, data: st.DataObject) -> None:
    """The look-up for a length uses the address's own prefix of that length, at either end of a packet."""
    length = data.draw(st.integers(0, address.max_prefixlen))
    prefix = ip_network((address.packed, length), strict=False)
    other = V4 if address.version == 4 else V6
    assert value(masked(address.version, length), Packet(address, other, 6)) == prefix.network_address
    assert value(masked(address.version, length, "daddr"), Packet(other, address, 6)) == prefix.network_address


def test_every_length_is_looked_up_once() -> None:
    """The lengths are distinct: no look-up is made twice, and the whole address is looked up first."""
    for version, whole in ((4, 32), (6, 128)):
        assert len(set(LENGTHS[version])) == len(LENGTHS[version])
        assert LENGTHS[version][0] == whole
        assert 0 in LENGTHS[version]
