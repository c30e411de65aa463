"""The one strict reader of JSON from outside: Docker, its hooks, `fwctl`, the state file. Pure.

Each function reads one key of an object and checks its type and range. A mistake is a JsonError, which names the key,
what would be right and what was there. Documents are bounded in size and depth.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface
from typing import Any, TypeVar

from plugin.model import Address, FwError
from plugin.protocols import PUBLISHABLE, WITH_PORTS, Proto, listed
from plugin.text import shortened

T = TypeVar("T")
#: Bytes and levels of a document. A request of Docker's is a few KB; thousands of published ports make some 100 KB.
MAX_BYTES, MAX_DEPTH = 8 << 20, 64
#: Characters of a value in an error.
_SHOWN = 60
#: The kernel's rule for interface names (dev_valid_name), narrowed to names that need no quoting anywhere.
INTERFACE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
#: Docker's IDs of networks and endpoints.
ID = re.compile(r"[0-9A-Za-z]{1,128}")
MAC = re.compile(r"([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}")
_KINDS: dict[type, str] = {
    IPv4Address: "an IPv4 address",
    IPv6Address: "an IPv6 address",
    IPv4Interface: "an IPv4 address with a prefix length, like 172.18.0.1/16",
    IPv6Interface: "an IPv6 address with a prefix length, like 2001:db8::1/64",
}
_REQUIRED: Any = object()


class JsonError(FwError, ValueError):
    """A value that cannot be accepted. The text names its key, what would be right and what was there."""


def document(data: bytes) -> Any:
    """Parse a request's body. Raises JsonError if it is no JSON, too large or too deep."""
    if len(data) > MAX_BYTES:
        raise JsonError(f"the request has {len(data)} bytes; at most {MAX_BYTES} are read")
    try:
        value = json.loads(data, parse_constant=_no_constant)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise JsonError(f"the request is not JSON: {error}") from error
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return value
    raise _too_deep()


def _no_constant(name: str) -> None:
    """Refuse NaN and Infinity, which json reads although JSON has neither (RFC 8259 section 6)."""
    raise ValueError(f"{name} is no number")


def record(raw: Any, *fields: str, where: str = "the request") -> Mapping[str, Any]:
    """An object that has no other fields than these. `where`: what it is, for the error."""
    if not isinstance(raw, dict):
        raise JsonError(f"{where} must be a JSON object with {' and '.join(fields)}, not {_shown(raw)}")
    if unknown := [key for key in raw if key not in fields]:
        raise JsonError(f"{where} has a field {unknown[0][:40]!r}, which is none of {', '.join(fields)}")
    return raw


def wrong(raw: Any, key: str, right: str, *, where: str = "") -> JsonError:
    """The error for one key: `right` says what its value must be, `where` which object it is in."""
    if not isinstance(raw, dict):
        return JsonError(f"{where or 'a value'} must be a JSON object with {key}, not {_shown(raw)}")
    if key not in raw:
        return JsonError(f"{_path(where, key)} is missing: it must be {right}")
    return JsonError(f"{_path(where, key)} must be {right}, not {_shown(raw[key])}")


def text(raw: Any, key: str, right: str = "text", *, most: int | None = None, where: str = "") -> str:
    """A string, of at most `most` characters."""
    value = _get(raw, key, right, where)
    if not isinstance(value, str):
        raise wrong(raw, key, right, where=where)
    if most is not None and len(value) > most:
        raise JsonError(f"{_path(where, key)} is {len(value)} characters long; at most {most} are read")
    return value


def matching(raw: Any, key: str, pattern: re.Pattern[str], right: str = "") -> str:
    """A string that matches the whole pattern."""
    right = right or f"text like {pattern.pattern}"
    value = text(raw, key, right)
    if not pattern.fullmatch(value):
        raise wrong(raw, key, right)
    return value


def interface_name(raw: Any, key: str) -> str:
    """`raw[key]` as the name of a network interface, at most 15 characters. Raises JsonError."""
    return matching(raw, key, INTERFACE_NAME, "an interface's name")


def integer(raw: Any, key: str, right: str = "a whole number") -> int:
    """`raw[key]` as an integer; true and false are none. Raises JsonError."""
    value = _get(raw, key, right)
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong(raw, key, right)
    return value


def within(raw: Any, key: str, least: int, most: int) -> int:
    """`raw[key]` as an integer between `least` and `most`, both included. Raises JsonError."""
    right = f"a whole number, {least}-{most}"
    value = integer(raw, key, right)
    if not least <= value <= most:
        raise wrong(raw, key, right)
    return value


def port(raw: Any, key: str) -> int:
    """`raw[key]` as a port, 1-65535. Raises JsonError."""
    return within(raw, key, 1, 65535)


def boolean(raw: Any, key: str) -> bool:
    """`raw[key]` as a boolean. Raises JsonError."""
    value = _get(raw, key, "true or false")
    if not isinstance(value, bool):
        raise wrong(raw, key, "true or false")
    return value


def switch(raw: Any, key: str, default: bool) -> bool:
    """A boolean or, as Docker's command line sends it, the text of one."""
    value = _get(raw, key, "true or false", default=default)
    match value if isinstance(value, bool) else str(value).lower():
        case True | "true" | "1" | "t":
            return True
        case False | "false" | "0" | "f":
            return False
    raise wrong(raw, key, "true or false")


def items(raw: Any, key: str, right: str = "a list", *, most: int | None = None, default: Any = _REQUIRED) -> list[Any]:
    """A list of at most `most` entries. `default`: of a list that is missing or null."""
    value = _get(raw, key, right, default=default)
    if not isinstance(value, list):
        raise wrong(raw, key, right)
    if most is not None and len(value) > most:
        raise JsonError(f"{key} has {len(value)} entries; at most {most} are read")
    return value


def mapping(raw: Any, key: str, right: str = "an object", *, default: Any = _REQUIRED) -> dict[str, Any]:
    """An object within the object. `default`: of one that is missing or null."""
    value = _get(raw, key, right, default=default)
    if not isinstance(value, dict):
        raise wrong(raw, key, right)
    return value


def protocol(raw: Any, key: str) -> Proto:
    """A protocol that has ports."""
    return _protocol(raw, key, WITH_PORTS)


def published_protocol(raw: Any, key: str) -> Proto:
    """A protocol whose ports `-p` can publish."""
    return _protocol(raw, key, PUBLISHABLE)


def _protocol(raw: Any, key: str, names: dict[str, int]) -> Proto:
    value = text(raw, key, listed(names))
    if value not in names:
        raise wrong(raw, key, listed(names))
    return value


def address(value: Any) -> Address:
    """An IP address without a zone. An IPv4-mapped IPv6 address is the IPv4 address, as for Docker (Go's net.IP)."""
    found = _parsed(ip_address, value, "an address")
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found


def interface(value: Any) -> IPv4Interface | IPv6Interface:
    """An IP address with its prefix length."""
    right = "an address with a prefix length, like 172.18.0.1/16"
    if not isinstance(value, str) or "/" not in value:
        raise JsonError(f"{_shown(value)} is not {right}")
    return _parsed(ip_interface, value, right)


def only(kind: type[T], read: Callable[[Any], object]) -> Callable[[Any], T]:
    """`read`, narrowed to one kind of value, such as the IPv4 ones among the addresses."""

    def checked(value: Any) -> T:
        found = read(value)
        if not isinstance(found, kind):
            raise JsonError(f"{_shown(value)} is not {_KINDS.get(kind, kind.__name__)}")
        return found

    return checked


def optional(raw: Any, key: str, read: Callable[[Any], T], *, where: str = "") -> T | None:
    """Return the value as `read` returns it; None for null."""
    value = _get(raw, key, "there, or null", where)
    return None if value is None else _named(key, read, value, where)


def stated(raw: Any, key: str, read: Callable[[Any], T], *, where: str = "") -> T | None:
    """Return the value as `read` returns it; None for a missing one, which Docker writes as nothing, null or ""."""
    value = _get(raw, key, "", where, default=None)
    return _named(key, read, value, where) if value else None


def _named(key: str, read: Callable[[Any], T], value: Any, where: str) -> T:
    try:
        return read(value)
    except ValueError as error:
        raise JsonError(f"{_path(where, key)}: {error}") from error


def _parsed(parse: Callable[[str], T], value: Any, right: str) -> T:
    # ipaddress takes integers for addresses, and zones, which no packet carries.
    if isinstance(value, str) and "%" not in value:
        try:
            return parse(value)
        except ValueError:
            pass
    raise JsonError(f"{_shown(value)} is not {right}")


def _get(raw: Any, key: str, right: str, where: str = "", *, default: Any = _REQUIRED) -> Any:
    if not isinstance(raw, dict):
        raise wrong(raw, key, right, where=where)
    value = raw.get(key, _REQUIRED)
    if value is _REQUIRED or (value is None and default is not _REQUIRED):
        if default is _REQUIRED:
            raise wrong(raw, key, right, where=where)
        return default
    return value


def _path(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _too_deep() -> JsonError:
    return JsonError(f"the request is not JSON that docker-fw reads: it is nested more than {MAX_DEPTH} deep")


def _shown(value: Any) -> str:
    """The value as JSON, cut."""
    return shortened(json.dumps(value, ensure_ascii=False, default=repr), _SHOWN)
