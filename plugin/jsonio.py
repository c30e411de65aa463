"""Typed reads from JSON that somebody else wrote. Each raises ValueError that names the key and what was there."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from typing import Any, TypeVar

from plugin.model import Address
from plugin.protocols import PUBLISHABLE, WITH_PORTS, Proto, listed
from plugin.text import shortened

T = TypeVar("T")
#: Linux's own rule for interface names (dev_valid_name), narrowed to what needs no quoting anywhere.
INTERFACE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
#: Docker's IDs of networks and endpoints.
ID = re.compile(r"[0-9A-Za-z]{1,128}")
MAC = re.compile(r"([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}")


def text(raw: Any, key: str) -> str:
    """`raw[key]` as text. Raises ValueError."""
    value = _get(raw, key)
    if not isinstance(value, str):
        raise ValueError(f"{key} must be text, not {_shown(value)}")
    return value


def integer(raw: Any, key: str) -> int:
    """`raw[key]` as an integer. Raises ValueError."""
    value = _get(raw, key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{key} must be a whole number, not {_shown(value)}")
    return value


def port(raw: Any, key: str) -> int:
    """`raw[key]` as a port, 1-65535. Raises ValueError."""
    return within(raw, key, 1, 65535)


def within(raw: Any, key: str, least: int, most: int) -> int:
    """`raw[key]` as an integer between two bounds, both included. Raises ValueError."""
    value = integer(raw, key)
    if not least <= value <= most:
        raise ValueError(f"{key} must be {least}-{most}, not {_shown(value)}")
    return value


def matching(raw: Any, key: str, pattern: re.Pattern[str]) -> str:
    """`raw[key]` as text that matches a pattern as a whole. Raises ValueError."""
    value = text(raw, key)
    if not pattern.fullmatch(value):
        raise ValueError(f"{key} is {_shown(value)}")
    return value


def boolean(raw: Any, key: str) -> bool:
    """`raw[key]` as a boolean. Raises ValueError."""
    value = _get(raw, key)
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false, not {_shown(value)}")
    return value


def items(raw: Any, key: str) -> list[Any]:
    """`raw[key]` as a list. Raises ValueError."""
    value = _get(raw, key)
    if not isinstance(value, list):
        raise ValueError(f"{key} must be a list, not {_shown(value)}")
    return value


def protocol(raw: Any, key: str) -> Proto:
    """One that has ports."""
    return _protocol(raw, key, WITH_PORTS)


def published_protocol(raw: Any, key: str) -> Proto:
    """One whose ports `-p` can publish."""
    return _protocol(raw, key, PUBLISHABLE)


def _protocol(raw: Any, key: str, names: dict[str, int]) -> Proto:
    value = _get(raw, key)
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"{key} must be {listed(names)}, not {_shown(value)}")
    return value


def interface_name(raw: Any, key: str) -> str:
    """`raw[key]` as the name of a link. Raises ValueError."""
    value = text(raw, key)
    if not INTERFACE_NAME.fullmatch(value):
        raise ValueError(f"{key} must be an interface's name, not {_shown(value)}")
    return value


def address(value: Any) -> Address:
    """An IPv4 or IPv6 address without a zone. Raises ValueError."""
    if not isinstance(value, str) or "%" in value:
        raise ValueError(f"{_shown(value)} is not an address")
    return ip_address(value)


def interface(value: Any) -> IPv4Interface | IPv6Interface:
    """An address with its prefix length, like 172.18.0.1/16. Raises ValueError."""
    if not isinstance(value, str) or "/" not in value or "%" in value:
        raise ValueError(f"{_shown(value)} is not an address with a prefix length, like 172.18.0.1/16")
    return ip_interface(value)


def only(kind: type[T], read: Callable[[Any], object]) -> Callable[[Any], T]:
    """`read`, for what must be of one kind, such as the IPv4 ones among the addresses."""

    def checked(value: Any) -> T:
        found = read(value)
        if not isinstance(found, kind):
            raise ValueError(f"{_shown(value)} is of the wrong kind")
        return found

    return checked


def optional(raw: Any, key: str, read: Callable[[Any], T]) -> T | None:
    """`read(raw[key])`, or None where the value is null or missing."""
    value = _get(raw, key)
    return None if value is None else read(value)


def _get(raw: Any, key: str) -> Any:
    if not isinstance(raw, dict):
        raise ValueError(f"expected an object with {key}, not {_shown(raw)}")
    if key not in raw:
        raise ValueError(f"{key} is missing")
    return raw[key]


def _shown(value: Any) -> str:
    return shortened(repr(value), 60)
