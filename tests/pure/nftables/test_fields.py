"""Each field of a set's key has one type, which says how it is packed, unpacked and written."""

from __future__ import annotations

import sys
from ipaddress import IPv4Address, IPv6Address

import pytest

from plugin.nftables import fields, rate_chains
from plugin.nftables.fields import CGROUP, FIELDS, TARGET, VERDICT, Value
from plugin.nftables.sets import SETS, SetSpec

V6 = IPv6Address("2001:db8::1")
#: By field: a value, its bytes in the kernel, its text in nft.
KNOWN: dict[str, tuple[Value, bytes, str]] = {
    "ip saddr": (IPv4Address("192.0.2.1"), b"\xc0\0\2\1", "192.0.2.1"),
    "ip daddr": (IPv4Address("192.0.2.1"), b"\xc0\0\2\1", "192.0.2.1"),
    "ip6 saddr": (V6, V6.packed, "2001:db8::1"),
    "ip6 daddr": (V6, V6.packed, "2001:db8::1"),
    TARGET: (V6, V6.packed, hex(int(V6))),
    "th sport": (443, b"\1\xbb", "443"),
    "th dport": (443, b"\1\xbb", "443"),
    "meta l4proto": (6, b"\6", "tcp"),
    "meta nfproto": (10, b"\x0a", "ipv6"),
    "iifname": ("br0", b"br0" + bytes(13), '"br0"'),
    "oifname": ("br0", b"br0" + bytes(13), '"br0"'),
    "fib saddr oifname": ("br0", b"br0" + bytes(13), '"br0"'),
    "oif": (7, (7).to_bytes(4, sys.byteorder), "7"),
    "meta iiftype": (1, (1).to_bytes(2, sys.byteorder), "1"),
    "ether saddr": ("02:42:0a:00:00:02", b"\2\x42\x0a\0\0\2", "02:42:0a:00:00:02"),
    CGROUP: (5, (5).to_bytes(8, sys.byteorder), "5"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_is_packed_unpacked_and_written(name: str) -> None:
    """A value that docker-fw writes into the kernel is read back unchanged, and is shown by `nft list`."""
    value, raw, text = KNOWN[name]
    assert FIELDS[name].pack(value) == raw
    assert FIELDS[name].width == len(raw)
    assert FIELDS[name].unpack(raw) == value
    assert FIELDS[name].text(value) == text


def test_every_set_consists_of_known_fields() -> None:
    """A set of a new kind of field needs an entry in the table of fields, and nothing else."""
    chain = rate_chains.limit("limit4__10.0.0.2__5_minute_5").sets
    specs: list[SetSpec] = [*SETS.values(), *chain.values()]
    used = {field for spec in specs for field in (*spec.key, *(spec.data if spec.data != VERDICT else ()))}
    assert used == FIELDS.keys()


def test_fields_of_a_key_fill_registers() -> None:
    """A concatenation is read as the kernel lays it out: each field in whole 32-bit registers; a single field as it
    is."""
    key = ("ip daddr", "meta l4proto", "th dport")
    raw = b"\xc0\0\2\1\6\0\0\0\1\xbb\0\0"
    values = (IPv4Address("192.0.2.1"), 6, 443)
    assert fields.packed(key, values) == raw
    assert fields.unpacked(key, raw) == values
    assert fields.length(key) == len(raw)
    assert fields.text(key, values) == "192.0.2.1 . tcp . 443"
    assert fields.packed(("meta l4proto",), (6,)) == b"\6"
