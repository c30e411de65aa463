"""Label text → rules and problems. Pure: the standard library and `model` only.

The grammar is the same wherever it is written: container labels, `driver_opts` of a network or of a service's
attachment, settings. What is wrong becomes a `Problem`; nothing that is wrong ever becomes a rule.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from plugin.model import PROTO_NUMBER, Problem, Rule

#: Every key of the language: what it means, and an example. The README's table is checked against it.
KEYS: dict[str, tuple[str, str]] = {
    "fw.allow": ("inbound flows to accept besides TCP 22, 80, 443 and ICMP", "8080, 53/udp, 9000-9100"),
}
PREFIX = "fw."

#: A label is read up to this length (characters); a longer one is a mistake, not a parsing job.
MAX_LENGTH = 4096
#: More rules than this in one label is a mistake: nobody means it.
MAX_RULES = 256
#: Every mistake is told at once, up to about so many: more is no typo, and must cost neither time nor a novel.
MAX_PROBLEMS = 64

_PORTS = re.compile(r"([0-9]{1,5})(?:\s*-\s*([0-9]{1,5}))?", re.ASCII)
_PORTS_RIGHT = "a port (1-65535, a range like 9000-9100, or *)"


@dataclass(frozen=True, slots=True)
class Parsed:
    """What one place (a container's labels, a network's options) says. With problems, the rules say nothing."""

    allow: tuple[Rule, ...] = ()
    problems: tuple[Problem, ...] = ()


def parse(pairs: Mapping[str, object], where: str = "label ") -> Parsed:
    """Reads every `fw.` key among `pairs`; `where` says in messages where it stood (`label `, `network option `).

    Every mistake is reported at once, in the order of the keys. Other keys are not ours and are left alone.
    """
    rules: list[Rule] = []
    problems: list[Problem] = []
    for key in sorted(k for k in pairs if isinstance(k, str) and k.lower().startswith(PREFIX)):
        value = pairs[key]
        text = value if isinstance(value, str) else repr(value)
        if len(problems) >= MAX_PROBLEMS:
            problems.append(Problem(where + key, text, "was not read, nor what follows: there are too many mistakes"))
            break
        if key.lower() not in KEYS:
            problems.append(Problem(where + key, text, _unknown(key)))
        elif not isinstance(value, str):
            problems.append(Problem(where + key, text, 'must be text, like "8080"', closes=False))
        else:
            found, wrong = parse_allow(value)
            rules += found
            problems += [Problem(where + key, text, message, closes=False) for message in wrong]
    return Parsed((), tuple(problems)) if problems else Parsed(tuple(sorted(set(rules))))


def parse_allow(text: str) -> tuple[list[Rule], list[str]]:
    """`fw.allow`'s value → (rules, mistakes). list = rule *( ("," / newline) rule ); rule = ports [ "/" proto ]."""
    if len(text) > MAX_LENGTH:
        return [], [f"is {len(text)} characters long; at most {MAX_LENGTH} are read"]
    if not text.strip():
        return [], ['is empty; write ports, like "8080, 53/udp", or leave the label out']
    parts = [part.strip() for part in re.split(r"[,\n]", text)]
    if parts[-1] == "":  # a trailing comma or newline is harmless, and YAML's block text brings one
        parts.pop()
    if len(parts) > MAX_RULES:
        return [], [f"has {len(parts)} rules; at most {MAX_RULES} are read, use ranges like 9000-9100"]
    rules: list[Rule] = []
    mistakes: list[str] = []
    for part in parts:
        result = _rule(part)
        if isinstance(result, Rule):
            rules.append(result)
        else:
            mistakes.append(result)
    return rules, mistakes


def _rule(part: str) -> Rule | str:
    ports, slash, proto = part.partition("/")
    ports, proto = ports.strip(), proto.strip().lower()
    if not slash:
        proto = "tcp"
    if proto not in PROTO_NUMBER:
        return f'"{_cut(part)}": "{_cut(proto)}" is not a protocol (tcp, udp or sctp)'
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
        return f'"{_cut(part)}": the range runs backwards; did you mean {last}-{first}?'
    return Rule(proto, first, last)


def _unknown(key: str) -> str:
    near = difflib.get_close_matches(key.lower()[:64], KEYS, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else f" (known: {', '.join(KEYS)})"
    return f"is not a key of docker-fw{hint}"


def _cut(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "…"
