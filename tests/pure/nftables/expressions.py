"""A rule's text → the expressions that the kernel evaluates for it, as `nft --debug=netlink` lists them.

One line of text is several expressions: each part of a key is loaded, maybe masked, and then compared or looked up. nft
adds matches that a field depends on (`ip6 daddr` in an inet table: `meta nfproto ipv6`). A rule ends at the first
expression that fails. All that this module does not know is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple, Protocol

from plugin.protocols import PROTOCOLS
from tests.mutation.nft_text import parts
from tests.pure.nftables.packets import ETHER_TYPES, NFPROTO, STATES, STATUS, TCP_FLAGS, Packet


class Walk(Protocol):
    """What an expression reads and changes: `tests.pure.nftables.path` has it."""

    packet: Packet
    mark: int
    labels: set[int]
    registers: list[Any]
    verdict: tuple[str, str]

    def look_up(self, name: str, key: tuple[Any, ...], *, inverted: bool) -> Any:
        """Return the element's data (True for a set's), None if there is none."""

    def update(self, name: str, key: tuple[Any, ...], limit: Limit | None) -> bool:
        """Add or renew an element, and return whether its limit matches."""

    def within(self, limit: Limit) -> bool:
        """Return whether a limit matches."""

    def note(self, what: str, name: str) -> None:
        """Record an effect that is neither a verdict nor a mark."""


class Cost(NamedTuple):
    """Work for one packet: expressions, and among them look-ups in named sets and in the routes.

    Look-ups in unnamed sets are not counted apart: their keys are one byte, and the kernel has bitmaps for them.
    """

    expressions: int = 0
    lookups: int = 0
    fib: int = 0

    def plus(self, other: Cost) -> Cost:
        """Return the sum."""
        return Cost(*(one + more for one, more in zip(self, other, strict=True)))


@dataclass(frozen=True, slots=True)
class Expression:
    """One expression: the kernel's name of its kind, and its effect; it returns False if the rule ends here."""

    kind: str
    run: Callable[[Any], bool]
    lookup: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """`costs`: by how many expressions were evaluated. `sets`: those that the rule names, `chains` likewise."""

    text: str
    expressions: tuple[Callable[[Any], bool], ...]
    kinds: tuple[str, ...]
    costs: tuple[Cost, ...]
    sets: frozenset[str]
    chains: frozenset[str]


class UnknownText(ValueError):
    """Text whose meaning is not known here."""


# --- fields -------------------------------------------------------------------------------------------------------

_ICMP = {
    "destination-unreachable": 3,
    "redirect": 5,
    "echo-request": 8,
    "time-exceeded": 11,
    "parameter-problem": 12,
}
_ICMP6 = {
    "destination-unreachable": 1,
    "packet-too-big": 2,
    "time-exceeded": 3,
    "parameter-problem": 4,
    "echo-request": 128,
    "mld-listener-query": 130,
    "mld-listener-report": 131,
    "nd-router-solicit": 133,
    "nd-router-advert": 134,
    "nd-neighbor-solicit": 135,
    "nd-neighbor-advert": 136,
    "nd-redirect": 137,
    "mld2-listener-report": 143,
}
_PROTOCOLS = {"icmp": 1, "ipv6-icmp": 58, "igmp": 2, **{each.nft: each.number for each in PROTOCOLS}}
_FAMILIES = {"ipv4": 2, "ipv6": 10}
#: `fib type`: RTN_ of linux/rtnetlink.h.
_ROUTES = {"unicast": 1, "local": 2, "broadcast": 3, "anycast": 4, "multicast": 5}
_PACKETS = {"host": 0, "broadcast": 1, "multicast": 2}


class Field(NamedTuple):
    """A field of a key: its kind of expression, how it is read (None: the rule ends), what a word of text means.

    `needs`: the dependencies by name. `bits`: a value without an operator means any of these bits. `cut`: it is not of
    whole bytes, so nft masks it.
    """

    kind: str
    read: Callable[[Any], Any]
    value: Callable[[str], Any]
    needs: tuple[str, ...] = ()
    bits: bool = False
    cut: bool = False


def _words(known: dict[str, int]) -> Callable[[str], int]:
    return lambda text: known[text] if text in known else int(text, 0)


def _text(text: str) -> str:
    if not re.fullmatch(r'"[^"]*"', text):
        raise UnknownText(text)
    return text[1:-1]


def _address(text: str) -> int:
    return int(ip_address(text))


def _mac(text: str) -> int:
    return int(text.replace(":", ""), 16)


def _number(text: str) -> int:
    return int(text, 0)


def _end(end: str, version: int) -> Callable[[Any], int | None]:
    def read(walk: Any) -> int | None:
        address = getattr(walk.packet, end)
        return int(address) if address is not None and address.version == version else None

    return read


def _header(first: int, count: int) -> Callable[[Any], int | None]:
    return lambda walk: walk.packet.at(first, count)


def _name(way: str) -> Callable[[Any], str]:
    return lambda walk: link.name if (link := getattr(walk.packet, way)) else ""


def _of_link(way: str, what: str) -> Callable[[Any], Any]:
    return lambda walk: getattr(link, what) if (link := getattr(walk.packet, way)) else None


def _of_flow(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda walk: read(walk) if walk.packet.flow.known else None


def _group(level: int) -> Callable[[Any], int | None]:
    def read(walk: Any) -> int | None:
        socket = walk.packet.socket
        return socket.groups[level - 1] if socket and socket.whole and len(socket.groups) >= level else None

    return read


def _next_header(walk: Walk) -> int | None:
    packet = walk.packet
    return packet.proto if packet.next is None else packet.next


def _target(walk: Walk) -> int | None:
    """Return 16 bytes right after IPv6's header and eight bytes more; they exist in a longer packet only."""
    return walk.packet.neighbour


_NAMES = {f"{way}name": Field("meta", _name(way), _text) for way in ("iif", "oif")}
_LINKS = {
    f"{word}{what}": Field("meta", _of_link(way, key), value)
    for way in ("iif", "oif")
    for word, what, key, value in (
        (f"{way}", "group", "group", _number),
        (f"meta {way}", "kind", "kind", _text),
        (f"meta {way}", "type", "type", _words({"ether": 1})),
    )
}
_ENDS = {
    f"{ip} {end}": Field("payload", _end(end, version), _address, (ip,))
    for ip, version in (("ip", 4), ("ip6", 6))
    for end in ("saddr", "daddr")
}
FIELDS: dict[str, Field] = {
    **_NAMES,
    **_LINKS,
    **_ENDS,
    "iif": Field("meta", lambda walk: walk.packet.iif.index if walk.packet.iif else 0, _number),
    "oif": Field("meta", lambda walk: walk.packet.oif.index if walk.packet.oif else 0, _number),
    "meta mark": Field("meta", lambda walk: walk.mark, _number),
    "meta nfproto": Field("meta", lambda walk: NFPROTO[walk.packet.version], _words(_FAMILIES)),
    "meta l4proto": Field("meta", lambda walk: walk.packet.proto, _words(_PROTOCOLS)),
    "meta protocol": Field("meta", lambda walk: walk.packet.ethertype, _words(ETHER_TYPES)),
    "meta pkttype": Field("meta", lambda walk: walk.packet.pkttype, _words(_PACKETS)),
    "ct state": Field("ct", lambda walk: STATES[walk.packet.flow.state], _words(STATES), bits=True),
    "ct direction": Field(
        "ct", _of_flow(lambda walk: int(walk.packet.flow.reply)), _words({"original": 0, "reply": 1})
    ),
    "ct status": Field(
        "ct", _of_flow(lambda walk: sum(STATUS[each] for each in walk.packet.flow.status)), _words(STATUS), bits=True
    ),
    "ct label": Field(
        "ct", _of_flow(lambda walk: sum(1 << bit for bit in walk.labels)), lambda text: 1 << int(text), bits=True
    ),
    "ip6 nexthdr": Field(
        "payload",
        _next_header,
        _words(_PROTOCOLS),
        ("ip6",),
    ),
    "th sport": Field("payload", _header(0, 2), _number),
    "th dport": Field("payload", _header(2, 2), _number),
    "tcp flags": Field("payload", _header(13, 1), _words(TCP_FLAGS), ("tcp",)),
    "icmp type": Field("payload", _header(0, 1), _words(_ICMP), ("ip", "icmp")),
    "icmpv6 type": Field("payload", _header(0, 1), _words(_ICMP6), ("ip6", "ipv6-icmp")),
    "igmp type": Field("payload", _header(0, 1), _number, ("ip", "igmp")),
    "ether type": Field("payload", lambda walk: walk.packet.ethertype, _words(ETHER_TYPES), ("ether",)),
    "ether saddr": Field("payload", lambda walk: walk.packet.source_mac, _mac, ("ether",)),
    "ether daddr": Field("payload", lambda walk: walk.packet.target_mac, _mac, ("ether",)),
    "arp htype": Field("payload", lambda walk: (arp := walk.packet.arp) and arp.hardware, _number, ("arp",)),
    "arp operation": Field(
        "payload", lambda walk: (arp := walk.packet.arp) and arp.operation, _words({"request": 1, "reply": 2}), ("arp",)
    ),
    "arp saddr ip": Field("payload", lambda walk: (arp := walk.packet.arp) and int(arp.sender), _address, ("arp",)),
    "arp saddr ether": Field("payload", lambda walk: (arp := walk.packet.arp) and arp.sender_mac, _mac, ("arp",)),
    "frag frag-off": Field("exthdr", lambda walk: walk.packet.fragment, _number, ("ip6",), cut=True),
    "rt type": Field("exthdr", lambda walk: walk.packet.routing_header, _number, ("ip6",)),
    "@nh,384,128": Field("payload", _target, _number),
    "fib saddr oifname": Field("fib", lambda walk: walk.packet.routes.source_link, _text),
    "fib saddr . iif oif": Field("fib", lambda walk: int(walk.packet.routes.source_here), _number),
    "fib daddr . iif oif": Field("fib", lambda walk: int(walk.packet.routes.target_here), _number),
    "fib saddr type": Field("fib", lambda walk: _ROUTES[walk.packet.routes.source_type], _words(_ROUTES)),
    "fib daddr type": Field("fib", lambda walk: _ROUTES[walk.packet.routes.target_type], _words(_ROUTES)),
    "socket transparent": Field("socket", lambda walk: (s := walk.packet.socket) and int(s.transparent), _number),
    "socket mark": Field("socket", lambda walk: s.mark if (s := walk.packet.socket) and s.whole else None, _number),
    **{f"socket cgroupv2 level {n}": Field("socket", _group(n), _number) for n in range(1, 9)},
}
#: A match on which a field depends: the field and its value. In a bridge table the frame's type is asked for, in
#: one of two ways.
_DEPENDS = {
    **{each: ("meta l4proto", each) for each in ("tcp", "icmp", "ipv6-icmp", "igmp")},
    "inet ip": ("meta nfproto", "ipv4"),
    "inet ip6": ("meta nfproto", "ipv6"),
    "inet ether": ("meta iiftype", "ether"),
    **{f"bridge {each}": ("ether type", each) for each in ETHER_TYPES},
    **{f"bridge address {each}": ("meta protocol", each) for each in ETHER_TYPES},
}
#: An explicit match that makes a dependency superfluous.
_PROVES = {
    ("meta nfproto", "ipv4"): "ip",
    ("meta nfproto", "ipv6"): "ip6",
    **{("ether type", each): each for each in ETHER_TYPES},
    **{("meta l4proto", each): each for each in ("tcp", "icmp", "ipv6-icmp", "igmp")},
}


# --- the parts of a rule ----------------------------------------------------------------------------------------------

_FIELD = "|".join(re.escape(name) for name in sorted(FIELDS, key=len, reverse=True))
_PART = rf"(?:{_FIELD})(?= |$)(?: & (?:\([^)]*\)|[^\s()]+))?(?: \| [^\s()]+)?"
_ONE = re.compile(rf"({_FIELD})(?= |$)(?: & (\([^)]*\)|[^\s()]+))?(?: \| ([^\s()]+))?")
_KEY = rf"{_PART}(?: \. {_PART})*"
_MATCH = re.compile(rf"({_KEY})(?: (!=|==|>=))? (@\S+|\{{[^}}]*\}}|\S+)")
_MARK = re.compile(r"meta mark set (meta mark (?:&|\|) 0x[0-9a-f]+)")
_LIMIT = r"limit rate (over )?\d+/(?:second|minute|hour|day)(?: burst \d+ packets)?"
_DYNSET = re.compile(rf"(?:update|add) @(\S+) \{{ ({_KEY})(?: ({_LIMIT}))?(?: timeout \d+s)? \}}")
_VMAP = re.compile(rf"({_KEY}) vmap @(\S+)")
_DNAT = re.compile(rf"dnat (?:ip6?) to ({_KEY}) map @(\S+)")
_ANY = (1 << 128) - 1


class _Builder:
    """Collects the expressions of one rule of a table of this family."""

    def __init__(self, family: str) -> None:
        self.family = family
        self.found: list[Expression] = []
        self.proven: set[str] = set() if family == "inet" else {"ether"}
        self.sets: set[str] = set()
        self.chains: set[str] = set()

    def add(self, kind: str, run: Callable[[Any], bool], *, lookup: bool = False) -> None:
        self.found.append(Expression(kind, run, lookup))

    def need(self, name: str, part: str = "") -> None:
        """Add the match that a field depends on, unless it was there."""
        if name in self.proven:
            return
        address = "address " if self.family == "bridge" and part.startswith(("ip ", "ip6 ")) else ""
        field, word = _DEPENDS[name] if name in _DEPENDS else _DEPENDS[f"{self.family} {address}{name}"]
        self.proven.add(name)
        self.load(field)
        self.compare("==", FIELDS[field].value(word))

    def load(self, part: str) -> Field:
        """Add the load of one part of a key, and its mask."""
        match = _ONE.fullmatch(part)
        if not match:
            raise UnknownText(part)
        field = FIELDS[match[1]]
        read = field.read

        def run(walk: Any) -> bool:
            value = read(walk)
            walk.registers.append(value)
            return value is not None

        self.add(field.kind, run)
        if field.cut:
            self.add("bitwise", lambda _: True)
        if match[2] or match[3]:
            keep = _bits(field, match[2].strip("()")) if match[2] else _ANY
            more = field.value(match[3]) if match[3] else 0
            # nft changes `| bits` into a mask without these bits and an exclusive or.
            self.add("bitwise", _masking(keep & ~more, more))
        return field

    def key(self, text: str) -> list[Field]:
        """Add the loads of a key; first all that its fields depend on."""
        pieces = [match[0] for match in re.finditer(_PART, text)]
        for piece in pieces:
            for name in FIELDS[_ONE.fullmatch(piece)[1]].needs:  # type: ignore[index]
                self.need(name, piece)
        return [self.load(piece) for piece in pieces]

    def compare(self, op: str, value: Any) -> None:
        """Add a comparison of the register with a value."""
        tests: dict[str, Callable[[Any], bool]] = {
            "==": lambda walk: bool(walk.registers.pop() == value),
            "!=": lambda walk: bool(walk.registers.pop() != value),
            ">=": lambda walk: bool(walk.registers.pop() >= value),
        }
        self.add("cmp", tests[op])

    def look_up(self, name: str, *, inverted: bool) -> None:
        """Add a look-up of the key in a named set."""
        self.sets.add(name)

        def run(walk: Any) -> bool:
            key = tuple(walk.registers)
            walk.registers.clear()
            return (walk.look_up(name, key, inverted=inverted) is not None) is not inverted

        self.add("lookup", run, lookup=True)


def _bits(field: Field, text: str) -> int:
    found = 0
    for word in text.split(" | "):
        found |= field.value(word)
    return found


def _masking(keep: int, more: int) -> Callable[[Any], bool]:
    def run(walk: Any) -> bool:
        walk.registers[-1] = walk.registers[-1] & keep | more
        return True

    return run


def _match(rule: _Builder, text: str) -> None:
    found = _MATCH.fullmatch(text)
    if not found:
        raise UnknownText(text)
    key, op, value = found[1], found[2] or "", found[3]
    fields = rule.key(key)
    if value.startswith("@"):
        if op not in ("", "!="):
            raise UnknownText(text)
        rule.look_up(value[1:], inverted=op == "!=")
        return
    if len(fields) != 1:
        raise UnknownText(text)
    field = fields[0]
    if value.startswith("{"):
        _one_of(rule, field, op, value)
    elif field.bits and not op and " & " not in key:
        rule.add("bitwise", _masking(_bits(field, value.replace(",", " | ")), 0))
        rule.compare("!=", 0)
    else:
        _compare(rule, field, op or "==", value)
        if op != "!=" and (key, value) in _PROVES:
            rule.proven.add(_PROVES[key, value])


def _one_of(rule: _Builder, field: Field, op: str, value: str) -> None:
    """Add a look-up in a set without a name."""
    if field.bits or op not in ("", "!="):
        raise UnknownText(value)
    values = {field.value(word) for word in value.strip("{} ").split(", ")}
    rule.add("lookup", lambda walk: (walk.registers.pop() in values) is not (op == "!="))


def _compare(rule: _Builder, field: Field, op: str, value: str) -> None:
    """Add the comparison with one value: a number, a word, a name that may end in a wildcard, a prefix."""
    if field.kind == "fib" and value in ("missing", "exists"):
        rule.compare(op, int(value == "exists"))
    elif field.value is _text and value.endswith('*"'):
        if op != "==":
            raise UnknownText(value)
        start = _text(value)[:-1]
        rule.add("cmp", lambda walk: walk.registers.pop().startswith(start))
    elif field.value is _address and "/" in value:
        prefix = ip_network(value)
        # nft loads whole bytes only, without a mask.
        add = rule.add if prefix.prefixlen % 8 else _free(rule)
        add("bitwise", _masking(int(prefix.netmask), 0))
        rule.compare(op, int(prefix.network_address))
    elif op == ">=":
        if field is not FIELDS["socket transparent"]:  # one byte has no order
            rule.add("byteorder", lambda _: True)
        rule.compare(op, field.value(value))
    elif "," in value:
        raise UnknownText(value)
    else:
        rule.compare(op, field.value(value))


def _free(rule: _Builder) -> Callable[[str, Callable[[Any], bool]], None]:
    """Return a function that makes the last expression do more, at no cost."""

    def add(_kind: str, run: Callable[[Any], bool]) -> None:
        last = rule.found.pop()
        rule.add(last.kind, lambda walk: last.run(walk) and run(walk))

    return add


class Limit(NamedTuple):
    """A rate limit by its text; `over`: it matches packets over it, not those within it."""

    text: str
    over: bool


def _limit(text: str | None) -> Limit | None:
    return None if text is None else Limit(text, text.startswith("limit rate over "))


def _statement(rule: _Builder, text: str) -> None:
    if found := _MARK.fullmatch(text):
        rule.load(found[1])
        rule.add("meta", _set_mark)
    elif found := re.fullmatch(r"ct label set (\d+)", text):
        rule.add("immediate", lambda _: True)
        rule.add("ct", _set_label(int(found[1])))
    elif found := re.fullmatch(r"counter name (\S+)", text):
        rule.add("objref", _noting("counter", found[1].strip('"')))
    elif re.fullmatch(r"log group \d+ snaplen \d+", text):
        rule.add("log", _noting("log", ""))
    elif re.fullmatch(_LIMIT, text):
        limit = _limit(text)
        rule.add("limit", lambda walk: bool(walk.within(limit)))
    elif found := _DYNSET.fullmatch(text):
        rule.key(found[2])
        _dynset(rule, found[1], _limit(found[3]))
    else:
        raise UnknownText(text)


def _set_mark(walk: Any) -> bool:
    walk.mark = walk.registers.pop()
    return True


def _set_label(bit: int) -> Callable[[Any], bool]:
    def run(walk: Any) -> bool:
        if walk.packet.flow.known:  # nft_ct_set_eval does nothing otherwise, and the rule continues
            walk.labels.add(bit)
        return True

    return run


def _noting(what: str, name: str) -> Callable[[Any], bool]:
    def run(walk: Any) -> bool:
        walk.note(what, name)
        return True

    return run


def _dynset(rule: _Builder, name: str, limit: Limit | None) -> None:
    rule.sets.add(name)

    def run(walk: Any) -> bool:
        key = tuple(walk.registers)
        walk.registers.clear()
        return bool(walk.update(name, key, limit))

    rule.add("dynset", run, lookup=True)


def _verdict(rule: _Builder, text: str) -> None:
    word, _, rest = text.partition(" ")
    if text in ("accept", "drop", "return", "continue"):
        rule.add("immediate", _deciding(word))
    elif word in ("goto", "jump") and re.fullmatch(r"\S+", rest):
        rule.chains.add(rest)
        rule.add("immediate", _deciding(word, rest))
    elif text == "masquerade":
        rule.add("masq", _deciding("nat", text))
    elif text in ("reject", "reject with tcp reset"):
        rule.add("reject", _deciding("reject"))
    elif found := _VMAP.fullmatch(text):
        rule.key(found[1])
        _mapped(rule, found[2], lambda walk, data: _deciding(*data)(walk))
    elif found := _DNAT.fullmatch(text):
        rule.key(found[1])
        _mapped(rule, found[2], _keep)
        rule.add("nat", lambda walk: _deciding("nat", f"dnat {walk.registers.pop()}")(walk))
    else:
        raise UnknownText(text)


def _keep(walk: Any, data: Any) -> bool:
    walk.registers.append(data)
    return True


def _deciding(word: str, chain: str = "") -> Callable[[Any], bool]:
    def run(walk: Any) -> bool:
        walk.verdict = (word, chain)
        return True

    return run


def _mapped(rule: _Builder, name: str, use: Callable[[Any, Any], bool]) -> None:
    """Add a look-up in a map; `use` gets the element's data."""
    rule.sets.add(name)

    def run(walk: Any) -> bool:
        key = tuple(walk.registers)
        walk.registers.clear()
        data = walk.look_up(name, key, inverted=False)
        return data is not None and use(walk, data)

    rule.add("lookup", run, lookup=True)


_ADD = {"match": _match, "statement": _statement, "verdict": _verdict}


@cache
def compiled(family: str, text: str) -> Rule:
    """Return a rule of a table of this family (inet, bridge). Raises UnknownText."""
    rule = _Builder(family)
    if "reject with tcp reset" in text and not text.startswith("meta l4proto tcp "):
        rule.need("tcp")  # nft puts this match first
    try:
        for part in parts(text):
            _ADD[part.kind](rule, part.text)
    except (ValueError, KeyError) as exc:
        raise UnknownText(f"not understood: {exc} in {text!r}") from exc
    return Rule(
        text,
        tuple(each.run for each in rule.found),
        tuple(each.kind for each in rule.found),
        tuple(_costs(rule.found)),
        frozenset(rule.sets),
        frozenset(rule.chains),
    )


def _costs(found: list[Expression]) -> Iterator[Cost]:
    cost = Cost()
    yield cost
    for each in found:
        cost = cost.plus(Cost(1, int(each.lookup), int(each.kind == "fib")))
        yield cost
