"""Policies as the state file has them → `plugin.model`. Pure. Raises ValueError that names what is wrong.

Files of version 1 have only `fw.allow`, as `allow`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from plugin.jsonio import address, boolean, integer, items, port, protocol, published_protocol, text, within
from plugin.labels.grammar import LONGEST, MOST, UNITS, parse_prefix, remembered
from plugin.labels.keys import EVERYTHING, KEYS, LOGS, POLICIES
from plugin.labels.peer_kinds import HOST, NAMED, PREFIX
from plugin.model import Overriding, Peer, PolicySpec, Problem, Rate, RequestedPorts, Rule
from plugin.protocols import OTHER, PORTLESS


def spec(raw: Any) -> PolicySpec:
    """Return the policy of a record that has a `said`, or an `allow` as in version 1."""
    if "said" not in raw:
        return PolicySpec(allow=_rules(raw, "allow"))
    return one(raw["said"])


def one(value: Any) -> PolicySpec:
    """Return a policy from its fields; missing fields stay unset. Raises ValueError."""
    there = (field for field in _FIELDS if field in value or field in _ALWAYS)
    return PolicySpec(**{field: _FIELDS[field](value, field) for field in there})


def problem(raw: Any) -> Problem:
    """Return a problem of a label from its JSON. Raises ValueError."""
    # Files from before docker-fw protected Docker networks have no `closes`.
    closes = boolean(raw, "closes") if "closes" in raw else True
    confines = boolean(raw, "confines") if "confines" in raw else False
    return Problem(text(raw, "where"), text(raw, "value"), text(raw, "text"), closes, confines)


def overriding(raw: Any) -> Overriding:
    """Return an override from its JSON. Raises ValueError."""
    return Overriding(text(raw, "container"), rule(raw["rule"]), boolean(raw, "deny"), moment(raw["until"]))


def moment(value: Any) -> float:
    """Return a Unix time (up to 1e11 s, about the year 5138). Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e11:
        raise ValueError(f"{value!r} is not a Unix time")
    return value


def requested_ports(raw: Any) -> RequestedPorts:
    """Return host ports that a container requests from their JSON. Raises ValueError."""
    return RequestedPorts(
        published_protocol(raw, "proto"),
        address(raw["host_ip"]),
        within(raw, "first", 0, 65535),
        within(raw, "last", 0, 65535),
    )


def rule(raw: Any) -> Rule:
    """Return a rule from its JSON. Raises ValueError."""
    proto = text(raw, "proto")
    # A rule without peers is open to all, so anything but a list of them is an error.
    peers = tuple(map(_peer, items(raw, "peers"))) if "peers" in raw else ()
    origin = text(raw, "origin") if "origin" in raw else ""
    if proto == OTHER or proto in PORTLESS:
        return Rule(proto, 0, 0, peers, origin)
    found = Rule(protocol(raw, "proto"), port(raw, "first"), port(raw, "last"), peers, origin)
    if found.first > found.last:
        raise ValueError(f"{found} is not a range of ports")
    return found


def _rules(raw: Any, key: str) -> tuple[Rule, ...]:
    return tuple(map(rule, items(raw, key)))


def _egress(raw: Any, key: str) -> tuple[Rule, ...] | None:
    """Return an egress list. One with protocols that no rule can name is "all", maybe of fewer protocols than now."""
    rules = None if raw[key] is None else _rules(raw, key)
    return EVERYTHING if rules and any(rule.proto == OTHER and not rule.peers for rule in rules) else rules


def _peer(raw: Any) -> Peer:
    kind, value = text(raw, "kind"), text(raw, "value")
    if kind == PREFIX:
        if parse_prefix(value) != Peer(kind, value):
            raise ValueError(f"{value!r} is not a prefix")
    elif kind != HOST and kind not in NAMED:
        raise ValueError(f"{kind!r} is not a kind of peer")
    return Peer(kind, value)


def _rate(raw: Any) -> Rate:
    found = Rate(
        protocol(raw, "proto"),
        port(raw, "first"),
        port(raw, "last"),
        integer(raw, "count"),
        text(raw, "unit"),
        integer(raw, "burst"),
        text(raw, "origin") if "origin" in raw else "",
    )
    right = found.first <= found.last and found.unit in UNITS
    right = right and 1 <= found.count <= MOST and 1 <= found.burst <= 65535
    if not right or remembered(found.count, found.unit, found.burst) > LONGEST:
        raise ValueError(f"{found} is not a rate")
    return found


def _one_of(*words: str) -> Callable[[Any, str], str]:
    def read(raw: Any, key: str) -> str:
        value = text(raw, key)
        if value not in ("", *words):
            raise ValueError(f"{key} {value!r} is not a known value")
        return value

    return read


#: How each field of a PolicySpec is read; fields are written unchanged.
_FIELDS: dict[str, Callable[[Any, str], Any]] = {
    "allow": _rules,
    "deny": _rules,
    "policy": _one_of(*POLICIES),
    "egress": _egress,
    "rate": lambda raw, key: None if raw[key] is None else tuple(map(_rate, items(raw, key))),
    "log": _one_of(*LOGS),
}
#: Fields that every file of version 2 has. A field added later is unset in a file of a former release.
_ALWAYS = frozenset(("allow", "deny", "policy", "egress", "rate", "log"))
if _missing := {key.field for key in KEYS.values()} ^ _FIELDS.keys():
    raise TypeError(f"plugin.state.codec and the label keys do not agree on {', '.join(sorted(_missing))}")
