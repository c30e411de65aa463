"""Reads `ports:` of a compose service, in the short and the long form. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from plugin.fwctl.check.compose.model import Notes, Place, Value
from plugin.protocols import PUBLISHABLE, listed

_RIGHT = 'a port, like "8080:80", "127.0.0.1:8080:80/udp" or "9000-9010:9000-9010"'
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Port:
    """A published port, or a range of them: `first` to `last` are the container's. `host`: as written; "": any."""

    proto: str
    first: int
    last: int
    host: str
    host_ip: str
    place: Place

    def __str__(self) -> str:
        address = f"[{self.host_ip}]" if ":" in self.host_ip else self.host_ip
        there = f"{address}:" if address else ""
        ports = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{there}{self.host or '(any)'}->{ports}/{self.proto}"

    @property
    def local(self) -> bool:
        """True if it is published on loopback only."""
        return bool(self.host_ip) and ip_address(self.host_ip).is_loopback


def ports(values: Iterable[Value], service: str, notes: Notes) -> Iterator[Port]:
    """Yield each port once; note a mistake for each that compose would refuse."""
    seen = set()
    for value in values:
        port = _long(value) if value.map else _short(value)
        if isinstance(port, str):
            notes.mistake(value.place, f"ports: {port}", service)
        elif (key := (port.proto, port.first, port.last, port.host, port.host_ip)) not in seen:
            seen.add(key)
            yield port


def _short(value: Value) -> Port | str:
    rest, _, proto = value.text.partition("/")
    rest, _, port = rest.rpartition(":")
    address, _, host = rest.rpartition(":")
    return _port(value.text, port, host, address, proto, value.place)


def _long(value: Value) -> Port | str:
    port, host, address, proto = (
        value.map[key].text if key in value.map else "" for key in ("target", "published", "host_ip", "protocol")
    )
    shown = ", ".join(f"{key}: {each.text}" for key, each in value.map.items())
    return _port(f"{{{shown}}}", port, host, address, proto, value.place)


def _port(shown: str, port: str, host: str, address: str, proto: str, place: Place) -> Port | str:
    shown = shown if len(shown) <= 60 else shown[:60] + "…"
    proto, host = proto.lower() or "tcp", "" if host == "0" else host
    if proto not in PUBLISHABLE:
        return f'"{shown}": "{proto[:40]}" is not a protocol ({listed(PUBLISHABLE)})'
    inside, outside = _range(port), _range(host)
    if inside is None or (host and outside is None):
        return f'"{shown}" is not {_RIGHT}'
    # One container port may be published on any port of a range of the host.
    if outside and inside[0] != inside[1] and inside[1] - inside[0] != outside[1] - outside[0]:
        return f'"{shown}": the two ranges are not of equal length'
    address = address[1:-1] if address.startswith("[") and address.endswith("]") else address
    try:
        shown_ip = str(ip_address(address)) if address else ""
    except ValueError:
        return f'"{shown}": "{address[:60]}" is not an address of the host'
    return Port(proto, *inside, host, shown_ip, place)


def _range(text: str) -> tuple[int, int] | None:
    match = _RANGE.fullmatch(text)
    if match is None:
        return None
    first, last = int(match[1]), int(match[2] or match[1])
    return (first, last) if 1 <= first <= last <= 65535 else None
