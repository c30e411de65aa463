"""Parse one value of the label language into rules, or mistakes. Pure: the standard library and `model` only.

list = rule *( ("," / newline) rule ) · rule = what [ "from" peer *( peer ) ] ("to" in fw.egress)
what = ports [ "/" proto ] / portless · ports = port / port "-" port / "*" · proto, portless: `plugin.protocols`
peer = address / prefix / kind ":" name / "host" / "any" · kind: `plugin.labels.peer_kinds`

A wrong value never becomes a rule. Each mistake quotes the wrong part and has the correct form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from ipaddress import IPv6Network, ip_network
from operator import attrgetter
from typing import TypeVar

from plugin.labels.peer_kinds import HOST, NAMED, PREFIX
from plugin.labels.ranges import block_count, piece_count
from plugin.model import Peer, Rate, Rule
from plugin.protocols import PORTLESS, WITH_PORTS, listed

#: A value is read up to this length (characters); a longer one is a mistake and is not parsed.
MAX_LENGTH = 4096
#: More rules than this in one value count as a mistake.
MAX_RULES = 256
#: The number of different rates that one value may name: each takes kernel memory for each address of the container.
MAX_RATES = 8
#: The highest count of a rate.
MOST = 1_000_000
#: Seconds of the units of a rate.
UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}

#: Maximum seconds that a source is remembered: nft does not accept time-outs of any length.
LONGEST = 30 * 86400
#: Maximum number of elements of one value: ports in blocks, times prefixes in pieces.
MAX_ELEMENTS = 20_000
#: The number of elements assumed for a peer by name, because the real number is not known yet.
NAMED_PEERS = 32

#: The number of wrong peers of one rule that are reported: reading on would take time without benefit.
MOST_WRONG = 8

_PORTS = re.compile(r"([0-9]{1,5})(?:\s*-\s*([0-9]{1,5}))?", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)
_PORTS_RIGHT = "a port (1-65535, a range like 9000-9100, or *)"
#: A part of an address, or of a peer by name, anywhere in a wrong text.
_LIKE_A_PEER = re.compile(rf"\.[0-9]+\.[0-9]+\.|:[0-9a-f]*:|({'|'.join(NAMED)}):", re.ASCII | re.IGNORECASE)
#: The number of words of the longest text for ports: "80 - 443 / tcp".
_MOST_WORDS = 5
_PEER_RIGHT = f"an address, a prefix like 2001:db8::/32, {', '.join(f'{kind}:NAME' for kind in NAMED)}, host or any"
_RATE_RIGHT = "a rate, like 22 5/minute burst 10 (per second, minute, hour or day)"
T = TypeVar("T")


def parse_allow(text: str) -> tuple[list[Rule], list[str]]:
    """Parse the value of `fw.allow` into (rules, mistakes)."""
    return _list(text, lambda part: _with_peers(part, "from"), '"8080, 53/udp"')


def parse_egress(text: str) -> tuple[list[Rule], list[str]]:
    """Parse the list of `fw.egress` into (rules, mistakes)."""
    return _list(text, lambda part: _with_peers(part, "to"), 'all, none or "443, 53/udp"')


def parse_deny(text: str) -> tuple[list[Rule], list[str]]:
    """Parse the value of `fw.deny` into (rules, mistakes).

    It removes ports from the base for all sources, so it has no peers.
    """
    return _list(text, _denied, '"22, 80"')


def parse_rate(text: str) -> tuple[list[Rate], list[str]]:
    """Parse the value of `fw.rate` into (rates, mistakes)."""
    rates, mistakes = _list(text, _rate, '"22 5/minute burst 10"')
    if mistake := too_many_rates(rates):
        return [], [*mistakes, mistake]
    return rates, mistakes


def too_many_rates(rates: Iterable[Rate]) -> str:
    """Return the mistake if there are too many different rates; "" if there is none."""
    different = {(rate.count, rate.unit, rate.burst) for rate in rates}
    if len(different) <= MAX_RATES:
        return ""
    return f"names {len(different)} different rates; a container may have {MAX_RATES}: give several ports the same one"


def taken_back(text: str) -> list[Rule]:
    """Return the ports that a wrong `fw.allow` was to restrict: those of each part with a `from` or a peer.

    If they are unclear, it returns all ports. A user who wrote "22 from 10.0.0.0/33", "22 form 10.0.0.0/8" or
    "10.0.0.0/8:22" did not mean 22 to be open to all sources.
    """
    if len(text) > MAX_LENGTH:
        return _all_ports() if "from" in text.lower() else []
    return [rule for part in filter(None, re.split(r"[,\n]", text)) for rule in _restricted(part)]


def _restricted(part: str) -> list[Rule]:
    """Return the ports that one part of a wrong value was to restrict."""
    what, word, _ = _split(part, "from")
    if word or "from" in part.lower():
        found = _what(what.strip())
        return [found] if isinstance(found, Rule) else _all_ports()
    if isinstance(_what(part), Rule):
        return []  # a right rule without peers
    words, with_peer = part.split(), _LIKE_A_PEER.search(part) is not None
    # "22 form 10.0.0.0/8", "22 10.0.0.0/8", "80 - 443 / tcp form 10.0.0.0/8"
    for count in range(min(_MOST_WORDS, len(words) - 1), 0, -1):
        first = _what(" ".join(words[:count]))
        if isinstance(first, Rule):
            several = with_peer and any(isinstance(_what(word), Rule) for word in words[count:])
            return _all_ports() if several else [first]
    return _all_ports() if with_peer else []


def _all_ports() -> list[Rule]:
    return [*(Rule(proto, 1, 65535) for proto in WITH_PORTS), *(Rule(proto, 0, 0) for proto in PORTLESS)]


def _list(text: str, read: Callable[[str], T | str], example: str) -> tuple[list[T], list[str]]:
    if len(text) > MAX_LENGTH:
        return [], [f"is {len(text)} characters long; at most {MAX_LENGTH} are read"]
    if not text.strip():
        kind = "ports, like " if example.startswith('"') else ""
        return [], [f"is empty; write {kind}{example}, or leave the label out"]
    parts = [part.strip() for part in re.split(r"[,\n]", text)]
    if parts[-1] == "":  # a trailing comma or newline is harmless, and YAML's block text adds one
        parts.pop()
    if len(parts) > MAX_RULES:
        return [], [f"has {len(parts)} rules; at most {MAX_RULES} are read, use ranges like 9000-9100"]
    found: list[T] = []
    mistakes: list[str] = []
    for part in parts:
        result = read(part)
        if isinstance(result, str):
            mistakes.append(result)
        else:
            found.append(result)
    if sum(map(elements, found)) > MAX_ELEMENTS:
        return [], [f"expands to more than {MAX_ELEMENTS} rules: ports times peers; use rounder ranges and prefixes"]
    return found, mistakes


def elements(each: object) -> int:
    """Return the number of elements of a rule: its ports in blocks, times its peers, prefixes in pieces."""
    if isinstance(each, Rate):
        return block_count(each.first, each.last)
    if not isinstance(each, Rule):
        return 1
    return block_count(each.first, each.last) * max(1, sum(map(_peer_elements, each.peers)))


def _peer_elements(peer: Peer) -> int:
    if peer.kind == PREFIX:
        return piece_count(ip_network(peer.value)) if "/" in peer.value else 1
    return 1 if peer.kind == HOST else NAMED_PEERS


def _split(part: str, word: str) -> tuple[str, str, str]:
    """ "8080 from A B" → ("8080", "from", "A B")."""
    match = re.search(rf"(?:^|\s){word}(?:\s|$)", part, re.IGNORECASE)
    return (part[: match.start()], word, part[match.end() :]) if match else (part, "", "")


def _with_peers(part: str, word: str) -> Rule | str:
    what, there, peers = _split(part, word)
    rule = _what(what.strip())
    other = "to" if word == "from" else "from"
    if not there and _split(part, other)[1] and not isinstance(rule, Rule):
        return f'"{_cut(part)}": write "{word}" here, not "{other}"'
    if not there:
        return rule
    found: set[Peer] = set()
    wrong: list[str] = []
    for token in peers.split():
        peer = _peer(token)
        if isinstance(peer, Peer):
            found.add(peer)
        else:
            wrong.append(peer)
            if len(wrong) == MOST_WRONG:
                break
    if wrong:
        ports = [rule] if isinstance(rule, str) else []
        return f'"{_cut(part)}": {"; ".join((*ports, *wrong))}'
    if isinstance(rule, str):
        return rule
    if not found:
        return f'"{_cut(part)}" names no peer; write {word} and {_PEER_RIGHT}'
    if Peer("any") in found:
        return rule
    return Rule(rule.proto, rule.first, rule.last, tuple(sorted(found, key=attrgetter("kind", "value"))))


def _denied(part: str) -> Rule | str:
    if _split(part, "from")[1]:
        right = 'to open it to some, write fw.allow: "22 from 2001:db8::/32"'
        return f'"{_cut(part)}": a denied port is closed to all sources; {right}'
    return _what(part)


def _what(part: str) -> Rule | str:
    ports, slash, proto = part.partition("/")
    ports, proto = ports.strip(), proto.strip().lower()
    if not slash and ports.lower() in PORTLESS:
        return Rule(ports.lower(), 0, 0)
    if not slash:
        proto = "tcp"
    if proto not in WITH_PORTS:
        hint = "; it has no ports, write it alone" if proto in PORTLESS else ""
        return f'"{_cut(part)}": "{_cut(proto)}" is not a protocol ({listed(WITH_PORTS)}){hint}'
    if ports == "*":
        return Rule(proto, 1, 65535)
    match = _PORTS.fullmatch(ports)
    if match is None:
        return f'"{_cut(part)}" is not {_PORTS_RIGHT}'
    first = int(match[1])
    last = int(match[2]) if match[2] else first
    if not (1 <= first <= 65535 and 1 <= last <= 65535):
        return f'"{_cut(part)}" is not {_PORTS_RIGHT}'
    if first > last:
        return f'"{_cut(part)}": the range is reversed; did you mean {last}-{first}?'
    return Rule(proto, first, last)


def _peer(token: str) -> Peer | str:
    kind, colon, name = token.partition(":")
    if colon and (named := NAMED.get(kind.lower())):
        if not named.pattern.fullmatch(name):
            return f'"{_cut(token)}" has no {named.what} after the colon'
        return Peer(named.kind, name)
    if token.lower() in ("host", "any"):
        return Peer(token.lower())
    return parse_prefix(token)


def parse_prefix(token: str) -> Peer | str:
    """Parse an address or a prefix into a peer, or return the mistake."""
    # Python's own parser accepts more (netmasks, zones) and guesses.
    if not re.fullmatch(r"[0-9A-Fa-f:.]+(/[0-9]{1,3})?", token, re.ASCII):
        return f'"{_cut(token)}" is not {_PEER_RIGHT}'
    try:
        prefix = ip_network(token)
    except ValueError as error:
        if "host bits" in str(error):
            return f'"{token}" has bits beyond its length; did you mean {ip_network(token, strict=False)}?'
        return f'"{_cut(token)}" is not {_PEER_RIGHT}'
    is_address = prefix.prefixlen == prefix.max_prefixlen
    if isinstance(prefix, IPv6Network) and (mapped := prefix.network_address.ipv4_mapped) is not None:
        right = str(mapped) if is_address else f"{mapped}/{prefix.prefixlen - 96}"
        return f'"{_cut(token)}" is an IPv4-mapped IPv6 address; write {right}'
    return Peer("prefix", str(prefix.network_address if is_address else prefix))


def _rate(part: str) -> Rate | str:
    found = _rate_parts(part)
    if found is None:
        return f'"{_cut(part)}" is not {_RATE_RIGHT}'
    what, counted, unit, most = found
    rule = _what(what)
    if isinstance(rule, str):
        return rule
    if rule.proto in PORTLESS:
        return f'"{_cut(part)}": {rule.proto} has no ports; only {listed(WITH_PORTS, "and")} can be limited'
    count, burst = int(counted), int(most)
    if unit not in UNITS or not 1 <= count <= MOST or not 1 <= burst <= 65535:
        return f'"{_cut(part)}" is not {_RATE_RIGHT}'
    if remembered(count, unit, burst) > LONGEST:
        return f'"{_cut(part)}": a source would have to be remembered for over 30 days; write a smaller burst'
    return Rate(rule.proto, rule.first, rule.last, count, unit, burst)


def _rate_parts(part: str) -> tuple[str, str, str, str] | None:
    """Split "22/tcp 5 / minute burst 10" into ("22/tcp", "5", "minute", "10"); None if it has no such parts.

    It is read from its end, word by word: a regular expression for all of it takes time quadratic in its length.
    """
    words, burst = part.split(), "5"
    if len(words) > 2 and words[-2].lower() == "burst":
        *words, _, burst = words
    rest, slash, unit = " ".join(words).rpartition("/")
    what, _, count = rest.rstrip().rpartition(" ")
    unit = unit.strip()
    right = slash and what and _NUMBER.fullmatch(count) and _NUMBER.fullmatch(burst) and unit.isascii()
    return (what, count, unit.lower(), burst) if right and unit.isalpha() else None


def remembered(count: int, unit: str, burst: int) -> int:
    """Return the seconds after which a source has all of its burst again, and may be forgotten."""
    return burst * UNITS[unit] // count + 1


def _cut(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "…"
