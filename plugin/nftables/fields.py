"""The types of the fields in keys and data of the table's sets: packed, unpacked, as nft's text.

A field has nft's name, an expression (`ip saddr`, `th dport`). A new type is one entry of `FIELDS`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple

from plugin.model import Address
from plugin.protocols import BY_NUMBER

#: A value in a key: an address, an IP protocol or port or family number, an interface name, a MAC.
Value = Address | int | str
#: nft's name for the control group of the socket that a packet is for.
CGROUP = "socket cgroupv2 level 2"
#: The target of a neighbour solicitation or advertisement right after the IPv6 header (RFC 4861 section 4.3). nft
#: 1.0.6 has no name for it. A newer one lists `@th,64,128` by its name, which then does not match the set's type.
TARGET = "@nh,384,128"
#: Data of a map whose elements name the chain to jump to. It is not a field: `codec` packs it as a verdict.
VERDICT = ("verdict",)
_PROTOCOLS = {number: each.nft for number, each in BY_NUMBER.items()}
_FAMILIES = {2: "ipv4", 10: "ipv6"}


class Field(NamedTuple):
    """A type of field: how many bytes it has in the kernel, a value as these bytes and back, and as nft's text."""

    width: int
    pack: Callable[[Any], bytes]
    unpack: Callable[[bytes], Value]
    text: Callable[[Any], str] = str


def _packed(address: Address) -> bytes:
    return address.packed


def _number(layout: str, text: Callable[[Any], str] = str) -> Field:
    packer = struct.Struct(layout)
    return Field(packer.size, packer.pack, lambda data: int(packer.unpack(data)[0]), text)


_ADDRESS4 = Field(4, _packed, IPv4Address)
_ADDRESS6 = Field(16, _packed, IPv6Address)
_PORT = _number("!H")
_NAME = Field(
    16,
    lambda name: name.encode().ljust(16, b"\0"),
    lambda data: data.rstrip(b"\0").decode("utf-8", "replace"),
    '"{}"'.format,
)
_MAC = Field(
    6,
    lambda mac: bytes.fromhex(mac.replace(":", "")),
    lambda data: data.hex(":"),
    lambda mac: bytes.fromhex(mac.replace(":", "")).hex(":"),
)
FIELDS: dict[str, Field] = {
    "ip saddr": _ADDRESS4,
    "ip daddr": _ADDRESS4,
    "ip6 saddr": _ADDRESS6,
    "ip6 daddr": _ADDRESS6,
    TARGET: _ADDRESS6._replace(text=lambda address: hex(int(address))),
    "th sport": _PORT,
    "th dport": _PORT,
    "meta l4proto": _number("=B", lambda number: _PROTOCOLS.get(number, str(number))),
    "meta nfproto": _number("=B", lambda number: _FAMILIES.get(number, str(number))),
    "iifname": _NAME,
    "oifname": _NAME,
    "fib saddr oifname": _NAME,
    "oif": _number("=I"),
    "meta iiftype": _number("=H"),
    "ether saddr": _MAC,
    CGROUP: _number("=Q"),
}


def packed(fields: tuple[str, ...], values: tuple[Value, ...]) -> bytes:
    """Return the values in the kernel's encoding.

    In a concatenation each field fills whole 32-bit registers; a single field is not padded.
    """
    parts = [FIELDS[name].pack(value) for name, value in zip(fields, values, strict=True)]
    return parts[0] if len(parts) == 1 else b"".join(part + b"\0" * (-len(part) % 4) for part in parts)


def unpacked(fields: tuple[str, ...], data: bytes) -> tuple[Value, ...]:
    """Return the values of a key or data as the kernel reports it."""
    found: list[Value] = []
    for name in fields:
        width = FIELDS[name].width
        found.append(FIELDS[name].unpack(data[:width]))
        data = data[_registers(width) :]
    return tuple(found)


def length(fields: tuple[str, ...]) -> int:
    """Return how many bytes `packed` returns for these fields."""
    widths = [FIELDS[name].width for name in fields]
    return widths[0] if len(widths) == 1 else sum(map(_registers, widths))


def text(fields: tuple[str, ...], values: tuple[Value, ...]) -> str:
    """Return the values in nft's syntax."""
    return " . ".join(FIELDS[name].text(value) for name, value in zip(fields, values, strict=True))


def _registers(width: int) -> int:
    return (width + 3) & ~3
