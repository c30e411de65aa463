"""Weaken the table's text: one rule, one chain or one set at a time, as a mistake in plugin/nftables would.

A rule is read as matches, statements and a verdict. Each mutant has a name that is the same in every run: the chain,
the rule, and what was done to it. Addresses and rates of a rate's chains are left out: one name stands for all.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from plugin.nftables.document import skeleton
from plugin.nftables.hooks import HOOKS

_FIELD = (
    r"(?:meta \w+|ct \w+|[io]if(?:name|group)?|ip6? \w+|th [sd]port|tcp flags|icmp(?:v6)? type|igmp type|ether \w+"
    r"|arp \w+(?: ether| ip)?|fib \w+(?: \. [io]if)? (?:oifname|oif|type)|rt type|socket transparent|socket mark"
    r"|socket cgroupv2 level \d|frag [\w-]+|@\w+,\d+,\d+)"
)
_PART = rf"{_FIELD}(?: & (?:\([^)]*\)|\S+))?(?: \| \S+)?"
_KEY = rf"{_PART}(?: \. {_PART})*"
_VALUE = r'(?:@[\w.-]+|\{[^}]*\}|"[^"]*"|[\w:,./*-]+)'
_MATCH = re.compile(rf"(?P<key>{_KEY})(?P<op> !=| ==| >=)? (?P<value>{_VALUE})(?= |$)")
_STATEMENT = re.compile(
    r"meta mark set meta mark [|&] \S+|ct label set \d+|counter name \S+|(?:update|add) @\S+ \{[^}]*\}"
    r"|limit rate (?:over )?\S+(?: burst \d+ packets)?|log group \d+ snaplen \d+"
)
_VERDICT = re.compile(
    rf"(?:accept|drop|return|continue|masquerade|goto \S+|jump \S+|reject(?: with tcp reset)?|dnat ip6? to .*"
    rf"|{_KEY} vmap @\S+)$"
)
#: Chains that end in a drop.
DENYING = ("deny", "deny_host", "deny_inbound", "deny_egress", "stray", "no_syn", "lease_expired")
#: Chains that only accept.
ACCEPTING = ("permit", "accept_host")
_NAMED = re.compile(r"(limit|sources|networks|proven)(_host)?([46]?)__[\w.-]*?(\.\d)?(\.short)?(?![\w.-])")
_RATE = re.compile(r"\d+/(second|minute|hour|day) burst \d+ packets")


#: Chains of rates of each form, as elements name them.
RATES = (
    "limit4__10.1.0.2__100_second_5",
    "limit4__10.1.0.2__1_day_5",
    "limit6__2001-db8-1--2__100_second_5",
    "limit6__2001-db8-1--2__1_day_5",
    "limit4__10.1.0.2__5_minute_10__9_second_5",
    "limit_host4__10.1.0.2__100_second_5",
    "limit_host4__10.1.0.2__1_day_5",
)


class Part(NamedTuple):
    """One expression of a rule; `kind` is match, statement or verdict."""

    kind: str
    text: str


class Line(NamedTuple):
    """A line inside a chain or set: its place in the text, the table, the chain (or "set NAME"), its text."""

    number: int
    family: str
    chain: str
    text: str


def is_rule(line: Line) -> bool:
    """True if the line is a rule, not the head of a chain or a flag of a set."""
    return not line.chain.startswith("set ") and not line.text.startswith("type ")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change: of `rule` in `chain` of the table of `family`, or of the head of a chain or set."""

    family: str
    chain: str
    rule: str
    change: str

    @property
    def name(self) -> str:
        """The name by which `survivors` lists it."""
        return f"{self.family} {self.chain}: {self.rule} → {self.change}"


def general(text: str) -> str:
    """Return the text without the addresses and rates that the names of a rate's chains and sets contain."""
    text = _NAMED.sub(lambda m: f"{m[1]}{m[2] or ''}{m[3]}__{m[4] or ''}{m[5] or ''}", text)
    return _RATE.sub("RATE", text) if "__" in text else text


def lines(text: str) -> Iterator[Line]:
    """Yield the rules of all chains, the heads of base chains, and the flags of sets."""
    family = chain = ""
    for number, line in enumerate(text.splitlines()):
        words = line.split()
        if line.startswith("table "):
            family = words[1]
        elif line.startswith("\tchain ") or line.startswith("\tset ") or line.startswith("\tmap "):
            chain = words[1] if words[0] == "chain" else f"set {words[1]}"
        elif line == "\t}" or line.startswith("\tcounter "):
            chain = ""
        elif chain and line.startswith("\t\t") and words and not words[0].startswith("#"):
            yield Line(number, family, chain, line.strip())


def parts(rule: str) -> list[Part]:
    """Return a rule's expressions. Raises ValueError if one is not understood."""
    found: list[Part] = []
    rest = rule
    while rest:
        for kind, pattern in (("verdict", _VERDICT), ("statement", _STATEMENT), ("match", _MATCH)):
            if match := pattern.match(rest):
                found.append(Part(kind, match[0]))
                rest = rest[match.end() :].lstrip()
                break
        else:
            raise ValueError(f"not understood: {rest!r} in {rule!r}")
    return found


def is_statement(text: str) -> bool:
    """True if the text is a statement of a rule, such as a limit, and no match."""
    return bool(_STATEMENT.match(text))


def _joined(found: list[Part]) -> str:
    return " ".join(part.text for part in found)


def _negated(text: str) -> str:
    match = _MATCH.match(text)
    assert match
    opposite = " ==" if match["op"] == " !=" else " !="
    value = match["value"]
    if "," in value and not value.startswith("{"):
        value = f"{{ {value.replace(',', ', ')} }}"  # nft compares with the union of the bits otherwise
    return f"{match['key']}{opposite} {value}"


def _smaller(text: str) -> Iterator[tuple[str, str]]:
    """Yield each value that a match can lose, and the match without it."""
    match = _MATCH.match(text)
    assert match
    value = match["value"]
    inner = value.strip("{} ")
    values = inner.split(", ") if value.startswith("{") else inner.split(",")
    if len(values) < 2:
        return
    for gone in values:
        left = [each for each in values if each != gone]
        shown = f"{{ {', '.join(left)} }}" if value.startswith("{") else ",".join(left)
        yield gone, f"{match['key']}{match['op'] or ''} {shown}"


def _other_verdicts(verdict: str) -> tuple[str, ...]:
    word, _, chain = verdict.partition(" ")
    if word in ("drop", "reject") or chain in DENYING:
        return ("accept",)
    if chain in ACCEPTING:
        return ("return",)
    if word in ("goto", "jump"):
        return ("accept", "return") if word == "goto" else ("accept",)
    return {"accept": ("drop",), "return": ("accept",)}.get(word, ())


def changes(rule: str) -> dict[str, str]:
    """Return by description what can be done to a rule, and the rule that remains ("": none)."""
    found = parts(rule)
    made = {"removed": ""}
    for i, part in enumerate(found):
        before, after = found[:i], found[i + 1 :]
        if part.kind == "match":
            made[f"without `{part.text}`"] = _joined(before + after)
            made[f"`{part.text}` negated"] = _joined([*before, Part("match", _negated(part.text)), *after])
            for gone, smaller in _smaller(part.text):
                made[f"without {gone}"] = _joined([*before, Part("match", smaller), *after])
        elif part.kind == "statement" and not part.text.startswith(("counter", "log")) and len(found) > 1:
            made[f"without `{general(part.text)}`"] = _joined(before + after)
        elif part.kind == "verdict":
            for other in _other_verdicts(part.text):
                made[f"{part.text} is {other}"] = _joined([*before, Part("verdict", other)])
    return {general(change): text for change, text in made.items()}


_LATER = {
    "filter - 3": "filter + 10",
    "filter - 2": "filter + 10",
    "filter - 1": "filter + 10",
    "priority filter;": "priority filter + 10;",
    "-101": "-50",
    "srcnat - 1": "srcnat + 10",
}


def head_changes(head: str) -> dict[str, str]:
    """Return what can be done to the head of a base chain: it loses its hook, or is asked later (if others follow)."""
    later = [head.replace(old, new) for old, new in _LATER.items() if old in head]
    return {"not hooked": "", **dict(zip(["later"], later, strict=False))}


#: Look-ups by a prefix differ in its length only: the shortest, one between and the longest; for blocks of ports one.
_LENGTH = re.compile(r"th sport & 0x0 \| (\d+)")
_LENGTHS = {"4": ("24", "0", "32"), "6": ("64", "0", "128")}
#: These chains have a copy for each family, which one function writes: each change is made in one of the two.
_COPIES = re.compile(
    r"(?:inbound|peer_ports|quarantine|egress_allow|rate_limit|(?:host_)?from|egress_to|limit)([46])"
    r"(?:_\d+|__(?:\.short)?)?"
)
#: Copies of a rate's chain, which one function writes: for ports of the host, and if a port has several rates.
_OTHER_RATES = re.compile(r"(?:set )?(?:limit|sources|networks|proven)(?:_host[46]__|[46]__\.\d)")


def _sampled(line: Line) -> bool:
    if _OTHER_RATES.match(general(line.chain)):
        return False
    length = _LENGTH.search(line.text)
    if length is None:
        return True
    wanted = _LENGTHS["6" if "ip6" in line.text or "6" in line.chain else "4"]
    return length[1] in (wanted if re.search(r"[46]$", line.chain) else wanted[:1])


def _one_of_the_copies(line: Line, number: int) -> bool:
    """True if this change (by its number) of the line is made in this family."""
    copy = _COPIES.fullmatch(general(line.chain))
    return copy is None or copy[1] == "64"[number % 2]


def _of(line: Line) -> dict[str, str]:
    if line.chain.startswith("set "):
        return {"removed": ""} if line.text.startswith("flags") else {}
    return head_changes(line.text) if line.text.startswith("type ") else changes(line.text)


def _only_closes(rule: str, change: str) -> bool:
    """True if a rule that accepts is removed or made narrower: nothing passes that did not."""
    found = parts(rule)
    verdict = found[-1].text.removeprefix("goto ").removeprefix("jump ")
    if found[-1].kind != "verdict" or verdict not in ("accept", *ACCEPTING):
        return False
    narrower = change.startswith("without ") and not change.startswith("without `")
    positive = any(part.kind == "match" and " != " not in part.text and change[8:] in part.text for part in found)
    return change == "removed" or " is " in change or (narrower and positive)


#: Chains that change addresses: no packet passes or is dropped because of them.
_NAT = ("prerouting", "output", "publish", "postrouting", "hairpin")


def _opens_nothing(line: Line, change: str) -> bool:
    """True if the change concerns addresses or the log only, or closes."""
    return line.chain in _NAT or (is_rule(line) and (" log group " in line.text or _only_closes(line.text, change)))


def mutants(text: str) -> list[Mutant]:
    """Return the mutants of the tables' text, in the order of its lines, each once."""
    found: dict[Mutant, None] = {}
    for line in filter(_sampled, lines(text)):
        for number, change in enumerate(_of(line)):
            if not _one_of_the_copies(line, number) or _opens_nothing(line, change):
                continue
            found[Mutant(line.family, general(line.chain), general(line.text), change)] = None
    return list(found)


@lru_cache(16)
def _keyed(text: str) -> tuple[tuple[Line, tuple[str, str, str]], ...]:
    return tuple((line, (line.family, general(line.chain), general(line.text))) for line in lines(text))


def mutated(mutants: Iterable[Mutant], text: str) -> str:
    """Return the text with these changes, wherever the rules occur; the same text if they do not."""
    wanted: dict[tuple[str, str, str], Mutant] = {}
    for mutant in mutants:
        wanted[mutant.family, mutant.chain, mutant.rule] = mutant
    whole = text.splitlines()
    for line, key in _keyed(text):
        if key in wanted:
            after = _of(line).get(wanted[key].change)
            if after is not None:
                whole[line.number] = f"\t\t{after}"
    return "\n".join(whole) + "\n"


def counting(text: str) -> str:
    """Return the tables with two counters in each rule: of packets that reach it, and of those that match."""
    whole = text.splitlines()
    for line in lines(text):
        if not is_rule(line):
            continue
        found = parts(line.text)
        first = next((i for i, part in enumerate(found) if part.kind != "match"), len(found))
        whole[line.number] = f"\t\tcounter {_joined(found[:first])} counter {_joined(found[first:])}"
    return "\n".join(whole) + "\n"


def whole_text() -> str:
    """Return the tables with all chains, those of rates too."""
    return skeleton(0x08000000, chains=(*HOOKS, *RATES))


def places(text: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield the table, the chain, the rule, and the rule's place, as coverage names it."""
    count: Counter[tuple[str, str]] = Counter()
    for line in filter(is_rule, lines(text)):
        number = count[line.family, line.chain]
        count[line.family, line.chain] += 1
        yield line.family, general(line.chain), line.text, f"{line.family} {general(line.chain)}#{number}"
