"""A dropped packet: what its first bytes say, and the record of it as data and as a line for people. Pure.

The bytes are from outside and may be anything.
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
#: IPv6 headers in front of the protocol's own: hop-by-hop, routing, destination options; the fragment's has 8 bytes.
_EXTENSIONS, _FRAGMENT = (0, 43, 60), 44


@dataclass(frozen=True, slots=True)
class Header:
    """`proto` as labels name it, or its number. `port`, `from_port`: 0 where there are none, or they cannot be seen.

    `kind`: of ICMP, its type. `begins`: False for a TCP segment that begins no connection.
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

    `direction`: "to" a container, or "by" one that began it. Containers by name, None where it is not known who has the
    address. `reason`: what the policy says of such a packet now, which may have changed since.
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
        """Whose drop it is."""
        return self.target if self.direction == "to" else self.source

    @property
    def address(self) -> Address:
        """The address of whose drop it is."""
        return self.header.target if self.direction == "to" else self.header.source

    def told(self) -> dict[str, Any]:
        """As `GET /drops` tells it."""
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
    """What the first bytes of an IP packet say; None where they are not one's. Takes any bytes."""
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= 20:
        length = 4 * (data[0] & 15)
        # The part of a packet that is not its first has no ports.
        rest = data[length:] if length >= 20 and not (data[6] & 0x1F or data[7]) else b""
        return _header(IPv4Address(data[12:16]), IPv4Address(data[16:20]), data[9], rest)
    if version == 6 and len(data) >= 40:
        return _header(IPv6Address(data[8:24]), IPv6Address(data[24:40]), *_behind(data[6], data[40:]))
    return None


def _behind(proto: int, rest: bytes) -> tuple[int, bytes]:
    """The protocol behind IPv6 extension headers (the kernel too stops at AH), and what is there of its bytes."""
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


def line(told: Mapping[str, Any]) -> str:
    """A drop (`Drop.told`) for people: `web 2001:db8:1::2 5432/tcp from 2001:db8:9::1 (to container; …)`."""
    what = told["proto"] if told["proto"] in _NAMES.values() else f"protocol {told['proto']}"
    if told["port"]:
        what = f"{told['port']}/{told['proto']}"
    elif told["icmp_type"] is not None:
        what += f" type {told['icmp_type']}"
    source = f"{told['from_container'] or ''} {told['from']}".strip()
    target = f"{told['to_container'] or ''} {told['to']}".strip()
    reason = f"; as of now: {told['reason']}" if told["reason"] else ""
    if told["direction"] == "to":
        text = f"{target} {what} from {source} (to container{reason})"
    else:
        text = f"{source} to {target} {what} (begun by container{reason})"
    return readable(text)
