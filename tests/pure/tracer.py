"""A packet's way through the rules' text and the sets' elements, as the kernel evaluates them.

Only the output of `plugin.nftables.lookups` is understood: keys of sets, `jump`, `goto`, `accept`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from plugin.nftables.document import skeleton
from plugin.nftables.hooks import HOOKS
from plugin.nftables.sets import Element
from plugin.protocols import PROTOCOLS

Value = IPv4Address | IPv6Address | int
_FIELD = r"(?:ip6? [sd]addr|meta (?:l4proto|nfproto)|th [sd]port)"
_PART = rf"{_FIELD}(?: & [0-9a-fx.:]+)?(?: \| [0-9a-fx]+)?"
_LOOKUP = re.compile(rf"({_PART}(?: \. {_PART})*) @(\w+) ")
_OTHERS = re.compile(r"meta l4proto != \{ ([^}]*) \} ")
_NUMBERS = {"icmp": 1, "ipv6-icmp": 58, **{each.nft: each.number for each in PROTOCOLS}}


@dataclass(frozen=True)
class Packet:
    source: IPv4Address | IPv6Address
    target: IPv4Address | IPv6Address
    number: int
    port: int = 0
    source_port: int = 40000


def value(expression: str, packet: Packet) -> Value | None:
    """Return the value of one part of a key for this packet; None if the packet is of the other family."""
    return _compiled(expression)(packet)


@cache
def _compiled(expression: str) -> Callable[[Packet], Value | None]:
    field, _, rest = expression.partition(" & ")
    mask, _, more = rest.partition(" | ")
    read: Callable[[Packet], Value]
    match field.split():
        case [("ip" | "ip6") as family, end]:
            version, kind = (4, IPv4Address) if family == "ip" else (6, IPv6Address)
            bits = int(ip_address(mask)) if mask else (1 << (32 if version == 4 else 128)) - 1

            def masked(packet: Packet) -> Value | None:
                address = packet.source if end == "saddr" else packet.target
                return kind(int(address) & bits) if address.version == version else None

            return masked
        case ["meta", "l4proto"]:
            read = lambda packet: packet.number  # noqa: E731
        case ["meta", "nfproto"]:
            read = lambda packet: {4: 2, 6: 10}[packet.target.version]  # noqa: E731
        case ["th", "sport"]:
            read = lambda packet: packet.source_port  # noqa: E731
        case ["th", "dport"]:
            read = lambda packet: packet.port  # noqa: E731
        case _:
            raise ValueError(expression)
    if not mask:
        return read
    keep, add = int(mask, 0), int(more or "0", 0)
    return lambda packet: int(read(packet)) & keep | add  # type: ignore[arg-type]


class Line(NamedTuple):
    """One rule: the protocols that it excludes, the key that it looks up in which set, and the next step."""

    never: tuple[int, ...]
    key: tuple[Callable[[Packet], Value | None], ...]
    set: str
    word: str
    to: str


@cache
def _line(text: str) -> Line:
    rest, never, key, name = text, (), "", ""
    if match := _OTHERS.match(rest):
        never, rest = tuple(_NUMBERS[each] for each in match[1].split(", ")), rest[match.end() :]
    if match := _LOOKUP.match(rest):
        key, name, rest = match[1], match[2], rest[match.end() :]
    elif not rest.startswith("goto "):
        raise ValueError(f"not understood: {text}")
    word, _, to = rest.partition(" ")
    return Line(never, tuple(map(_compiled, key.split(" . "))) if key else (), name, word, to)


class Table:
    """The static rules, and these elements in the sets."""

    def __init__(self, elements: Iterable[Element]) -> None:
        self.sets: dict[str, set[tuple[object, ...]]] = {}
        for element in elements:
            self.sets.setdefault(element.set, set()).add(element.key)

    def finds(self, key: str, name: str, packet: Packet) -> bool:
        """True if the set contains the key's value for this packet."""
        return self._finds(tuple(map(_compiled, key.split(" . "))), name, packet)

    def _finds(self, key: tuple[Callable[[Packet], Value | None], ...], name: str, packet: Packet) -> bool:
        there = self.sets.get(name)
        return there is not None and tuple(read(packet) for read in key) in there

    def found(self, lines: Iterable[str], packet: Packet) -> list[str]:
        """Return the targets of the rules that match the packet."""
        return [line.to for line in map(_line, lines) if self._finds(line.key, line.set, packet)]

    def verdict(self, chain: str, packet: Packet) -> str:
        """Return the chain in which a packet that enters this one ends, or "accept", or "" if the chain returns."""
        return self._run(chain, packet)

    def _run(self, chain: str, packet: Packet) -> str:
        if chain in _ENDS:
            return chain
        for line in map(_line, CHAINS[chain]):
            if packet.number in line.never:
                continue
            if line.key and not self._finds(line.key, line.set, packet):
                continue
            if line.word == "accept":
                return "accept"
            found = self._run(line.to, packet)
            if found or line.word == "goto":
                return found
        return ""


_ENDS = ("permit", "accept_host", "deny", "deny_host")
#: Every chain's rules, without comments and the hook's line.
CHAINS = {
    name: [line.strip() for line in body.splitlines() if line.strip() and not line.strip().startswith(("#", "type "))]
    for name, body in re.findall(
        r"chain (\w+) \{\n(.*?)^\t\}", skeleton(0x08000000, chains=HOOKS), re.DOTALL | re.MULTILINE
    )
}
