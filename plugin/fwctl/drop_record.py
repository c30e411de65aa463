"""A dropped packet: its header, read from its first bytes, and the record of it as data and as a line for people. Pure.

The bytes come from the network and may be anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Literal

from plugin.model import Address
from plugin.protocols import NUMBER, WITH_PORTS
from plugin.text import readable

_ICMP, _ICMP6 = 1, 58
_NAMES: dict[int, str] = {
    **{number: name for name, number in NUMBER.items()},
    _ICMP: "icmp",
    _ICMP6: "icmpv6",
}
#: IPv6 headers before the protocol's own: hop-by-hop, routing, destination options; the fragment header has 8 bytes.
_EXTENSIONS, _FRAGMENT = (0, 43, 60), 44


@dataclass(frozen=True, slots=True)
class Header:
    """`proto`: as labels name it, or its number. `port`, `from_port`: 0 if there are none, or they are not visible.

    `kind`: ICMP's type. `begins`: False for a TCP segment that does not open a connection.
    """

    source: Address
    target: Address
    proto: str
    port: int = 0
    from_port: int = 0
    kind: int | None = None
    begins: bool = True


@dataclass(frozen=True, slots=True)
class Drop:
    """One packet that was dropped. `number` counts from docker-fw's start; `time` is Unix time.

    `direction`: "to" a container, or "by" a container that sent it. `source`, `target`: containers' names, or None if
    it is unknown who has the address. `reason`: what the policy says about such a packet now, after the drop.
    """

    number: int
    time: float
    direction: Literal["to", "by"]
    header: Header
    source: str | None = None
    target: str | None = None
    came_by: str = ""
    went_by: str = ""
    mark: int = 0
    reason: str = ""

    @property
    def container(self) -> str | None:
        """The container that the drop concerns."""
        return self.target if self.direction == "to" else self.source

    @property
    def address(self) -> Address:
        """The address of the container that the drop concerns."""
        return self.header.target if self.direction == "to" else self.header.source

    def as_data(self) -> dict[str, Any]:
        """Return the record as `GET /drops` sends it."""
        header = self.header
        return {
            "number": self.number,
            "time": round(self.time, 3),
            "direction": self.direction,
            "container": self.container,
            "from": str(header.source),
            "from_container": self.source,
            "from_port": header.from_port or None,
            "to": str(header.target),
            "to_container": self.target,
            "proto": header.proto,
            "port": header.port or None,
            "icmp_type": header.kind,
            "in": self.came_by,
            "out": self.went_by,
            "mark": self.mark,
            "reason": self.reason,
        }


def header(data: bytes) -> Header | None:
    """Read an IP packet's first bytes; return None if they are no IP packet's. Takes any bytes."""
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= 20:
        length = 4 * (data[0] & 15)
        # A fragment that is not the first has no ports.
        rest = data[length:] if length >= 20 and not (data[6] & 0x1F or data[7]) else b""
        return _header(IPv4Address(data[12:16]), IPv4Address(data[16:20]), data[9], rest)
    if version == 6 and len(data) >= 40:
        return _header(IPv6Address(data[8:24]), IPv6Address(data[24:40]), *_behind(data[6], data[40:]))
    return None


def _behind(proto: int, rest: bytes) -> tuple[int, bytes]:
    """Return the protocol after IPv6 extension headers (like the kernel, stop at AH), and the bytes that follow."""
    while len(rest) >= 8 and (proto in _EXTENSIONS or proto == _FRAGMENT):
        if proto == _FRAGMENT and (rest[2] or rest[3] & 0xF8):
            return rest[0], b""
        length = 8 if proto == _FRAGMENT else 8 + 8 * rest[1]
        proto, rest = rest[0], rest[length:]
    return (proto, b"") if proto in _EXTENSIONS or proto == _FRAGMENT else (proto, rest)


def _header(source: Address, target: Address, proto: int, rest: bytes) -> Header:
    name = _NAMES.get(proto, str(proto))
    if name in WITH_PORTS and len(rest) >= 4:
        begins = name != "tcp" or len(rest) < 14 or rest[13] & 0x17 == 0x02
        return Header(
            source, target, name, int.from_bytes(rest[2:4], "big"), int.from_bytes(rest[:2], "big"), begins=begins
        )
    return Header(source, target, name, kind=rest[0] if proto in (_ICMP, _ICMP6) and rest else None)


def line(drop: Mapping[str, Any]) -> str:
    """Return a drop (`Drop.as_data`) as text: `web 2001:db8:1::2 5432/tcp from 2001:db8:9::1 (inbound; …)`."""
    what = drop["proto"] if drop["proto"] in _NAMES.values() else f"protocol {drop['proto']}"
    if drop["port"]:
        what = f"{drop['port']}/{drop['proto']}"
    elif drop["icmp_type"] is not None:
        what += f" type {drop['icmp_type']}"
    source = f"{drop['from_container'] or ''} {drop['from']}".strip()
    target = f"{drop['to_container'] or ''} {drop['to']}".strip()
    reason = f"; as of now: {drop['reason']}" if drop["reason"] else ""
    if drop["direction"] == "to":
        text = f"{target} {what} from {source} (inbound{reason})"
    else:
        text = f"{source} to {target} {what} (outbound{reason})"
    return readable(text)
