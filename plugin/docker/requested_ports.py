"""Host ports that containers request, from `GET /containers/ID/json`: docker-proxy listens on them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from plugin.jsonio import address, published_protocol
from plugin.model import Address, RequestedPorts
from plugin.protocols import PUBLISHABLE, Proto

#: A container that requests more ranges than this is treated as if it requested every port.
MOST = 200
_EVERY: tuple[Address, ...] = (IPv4Address(0), IPv6Address(0))


def requested(raw: Any) -> tuple[RequestedPorts, ...]:
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
    if len(joined) > MOST:
        return tuple(RequestedPorts(proto, host, 0, 65535) for proto in PUBLISHABLE for host in _EVERY)
    return joined


def _choice(proto: Proto) -> RequestedPorts:
    return RequestedPorts(proto, _EVERY[0], 0, 0)


def _binding(proto: Proto, binding: Any) -> list[RequestedPorts]:
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
    return [RequestedPorts(proto, each, first, last) for each in (_EVERY if given.is_unspecified else (given,))]


def _joined(found: list[RequestedPorts]) -> Iterator[RequestedPorts]:
    """Yield consecutive ports as one range: `-p 8000-8999:8000-8999` is a thousand bindings."""
    first: RequestedPorts | None = None
    last: RequestedPorts | None = None
    for each in sorted(set(found), key=lambda each: (each.proto, str(each.host_ip), each.first, each.last)):
        alike = last is not None and (last.proto, last.host_ip, last.last + 1) == (each.proto, each.host_ip, each.first)
        if first and last and not (alike and last.first):
            yield replace(first, last=last.last)
            first = None
        first, last = first or each, each
    if first and last:
        yield replace(first, last=last.last)
