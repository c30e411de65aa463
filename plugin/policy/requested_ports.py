"""Host ports that containers request, from `GET /containers/ID/json`: docker-proxy listens on them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from plugin.jsonio import address, published_protocol, within
from plugin.model import Address, Published
from plugin.protocols import PUBLISHABLE, Proto

#: A container that requests more ranges than this is treated as if it requested every port.
MOST = 200
_EVERY: tuple[Address, ...] = (IPv4Address(0), IPv6Address(0))


@dataclass(frozen=True, slots=True, order=True)
class Asked:
    """Requested host ports, from `first` to `last`; 0: Docker chooses one each time the container starts."""

    proto: Proto
    host_ip: Address
    first: int
    last: int

    def may_be(self, port: Published) -> bool:
        """True if a program that listens there may be this container's docker-proxy."""
        if self.proto != port.proto or not self.first <= port.host_port <= self.last:
            return False
        if self.host_ip.version != port.host_ip.version:
            return False
        return self.host_ip == port.host_ip or self.host_ip.is_unspecified or port.host_ip.is_unspecified


def asked(raw: Any) -> tuple[Asked, ...]:
    """Return the ports that an inspected container requests. Raises ValueError, TypeError, KeyError and the like."""
    config = raw["HostConfig"]
    mode = str(config.get("NetworkMode") or "")
    if mode == "host" or mode.startswith("container:"):
        return ()
    found = [_choice(proto) for proto in PUBLISHABLE] if config.get("PublishAllPorts") else []
    for name, bindings in (config.get("PortBindings") or {}).items():
        proto = published_protocol({"protocol": name.partition("/")[2] or "tcp"}, "protocol")
        for binding in bindings or [{}]:
            found += _binding(proto, binding or {})
    joined = tuple(_joined(found))
    return joined if len(joined) <= MOST else tuple(Asked(p, host, 0, 65535) for p in PUBLISHABLE for host in _EVERY)


def read(raw: Any) -> Asked:
    """Return a saved request from its JSON. Raises ValueError."""
    return Asked(
        published_protocol(raw, "proto"),
        address(raw["host_ip"]),
        within(raw, "first", 0, 65535),
        within(raw, "last", 0, 65535),
    )


def _choice(proto: Proto) -> Asked:
    return Asked(proto, _EVERY[0], 0, 0)


def _binding(proto: Proto, binding: Any) -> list[Asked]:
    text = str(binding.get("HostPort") or "0")
    if not re.fullmatch(r"[0-9]{1,5}(-[0-9]{1,5})?", text):
        raise ValueError(f"HostPort: {text!r:.40} is neither a port nor a range")
    first, last = (int(part) for part in (text.split("-") * 2)[:2])
    if not 0 <= first <= last <= 65535:
        raise ValueError(f"HostPort: {text} is not a range of ports")
    if not last:
        return [_choice(proto)]
    host = binding.get("HostIp")
    given = address(host) if host else _EVERY[0]
    # An unspecified address means all addresses to Docker, of both families in most versions.
    return [Asked(proto, each, first, last) for each in (_EVERY if given.is_unspecified else (given,))]


def _joined(found: list[Asked]) -> Iterator[Asked]:
    """Yield consecutive ports as one range: `-p 8000-8999:8000-8999` is a thousand bindings."""
    first: Asked | None = None
    last: Asked | None = None
    for each in sorted(set(found), key=lambda each: (each.proto, str(each.host_ip), each.first, each.last)):
        alike = last is not None and (last.proto, last.host_ip, last.last + 1) == (each.proto, each.host_ip, each.first)
        if first and last and not (alike and last.first):
            yield replace(first, last=last.last)
            first = None
        first, last = first or each, each
    if first and last:
        yield replace(first, last=last.last)
