"""A packet's way through the text of the tables: which rules match, its verdict and mark, and the work for all of that.

The text is that of `plugin.nftables.document`, with elements. Work is counted in expressions, never in time
(`expressions.Cost`). A chain of addresses (nat) is asked for the first packet of a flow only, as in the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple
from zlib import crc32

from plugin.nftables.sets import Element
from tests.pure.nftables.expressions import FIELDS, Cost, Limit, Rule, UnknownText, compiled
from tests.pure.nftables.packets import Packet

Key = tuple[Any, ...]
_PRIORITIES = {"filter": 0, "srcnat": 100}
_HEAD = re.compile(r"type (filter|nat) hook (\w+) priority (?:([a-z]+)(?: - (\d+))?|(-?\d+)); policy accept;")
_ELEMENTS = re.compile(r"(add|delete) element (inet|bridge) \S+ (\S+) \{ (.*) \}")


@dataclass(slots=True)
class Set:
    """A set or map: its fields, its elements with their data (True in a set), and what they do beside.

    `counted`: its elements count packets. `limited`: packets add elements with a limit.
    """

    key: tuple[str, ...]
    data: tuple[str, ...] = ()
    elements: dict[Key, Any] = field(default_factory=dict)
    counted: bool = False
    limited: bool = False

    def parse(self, text: str) -> tuple[Key, Any]:
        """Return an element of the text as key and data."""
        text = re.sub(r" timeout \d+s", "", text)
        if not self.data:
            return _values(self.key, text), True
        key, _, data = text.partition(" : ")
        if self.data == ("verdict",):
            word, _, chain = data.partition(" ")
            return _values(self.key, key), (word, chain)
        return _values(self.key, key), data


def _values(fields: tuple[str, ...], text: str) -> Key:
    return tuple(FIELDS[name].value(word) for name, word in zip(fields, text.split(" . "), strict=True))


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain's rules; `hook` is empty for a chain that no hook calls."""

    name: str
    rules: tuple[Rule, ...]
    kind: str = ""
    hook: str = ""
    priority: int = 0


@dataclass(slots=True)
class Table:
    """A table of one family (inet, bridge)."""

    family: str
    sets: dict[str, Set] = field(default_factory=dict)
    chains: dict[str, Chain] = field(default_factory=dict)

    def base(self, hook: str) -> list[Chain]:
        """Return the chains of a hook, in their order: of one priority, the one that was added last comes first."""
        found = [chain for chain in reversed(self.chains.values()) if chain.hook == hook]
        return sorted(found, key=lambda chain: chain.priority)

    def check(self) -> None:
        """Raise UnknownText if a rule names a chain or set that does not exist."""
        for chain in self.chains.values():
            for rule in chain.rules:
                missing = (rule.chains - self.chains.keys()) | (rule.sets - self.sets.keys())
                if missing:
                    raise UnknownText(f"{sorted(missing)} of {rule.text!r} is not in the table")
                for name in re.findall(r"(?:update|add) @(\S+) \{[^}]* limit ", rule.text):
                    self.sets[name].limited = True


class _Reader:
    """Reads the text line by line; each state is a method that takes a line."""

    def __init__(self) -> None:
        self.tables: dict[str, Table] = {}
        self._table: Table | None = None
        self._state: Callable[[str], None] = self._outside
        self._name = ""
        self._lines: list[str] = []

    def read(self, text: str) -> dict[str, Table]:
        for line in text.splitlines():
            if (stripped := line.strip()) and not stripped.startswith("#"):
                self._state(stripped)
        if self._state != self._outside:
            raise UnknownText("the text ends within a table")
        for table in self.tables.values():
            table.check()
        return self.tables

    def _outside(self, line: str) -> None:
        if found := re.fullmatch(r"table (inet|bridge) \S+ \{", line):
            self._table = self.tables[found[1]] = Table(found[1])
            self._state = self._inside
        elif found := _ELEMENTS.fullmatch(line):
            of = self.tables[found[2]].sets[found[3]]
            for text in found[4].split(", "):
                key, data = of.parse(text)
                if found[1] == "add":
                    of.elements[key] = data
                else:
                    del of.elements[key]
        else:
            raise UnknownText(line)

    def _inside(self, line: str) -> None:
        if line == "}":
            self._state = self._outside
        elif found := re.fullmatch(r"(set|map|chain|counter) (\S+) \{", line):
            self._name, self._lines = found[2], []
            self._state = self._chain if found[1] == "chain" else self._set if found[1] != "counter" else self._counter
        elif line != "flags owner, persist;":
            raise UnknownText(line)

    def _counter(self, line: str) -> None:
        if line != "}":
            raise UnknownText(line)
        self._state = self._inside

    def _set(self, line: str) -> None:
        assert self._table
        if line == "}":
            self._state = self._inside
        elif line.startswith("typeof "):
            key, _, data = line.removeprefix("typeof ").partition(" : ")
            self._table.sets[self._name] = Set(tuple(key.split(" . ")), tuple(data.split(" . ")) if data else ())
        elif line == "counter":
            self._table.sets[self._name].counted = True
        elif not re.fullmatch(r"flags (?:dynamic,)?timeout|timeout \d+s|size \d+", line):
            raise UnknownText(line)

    def _chain(self, line: str) -> None:
        assert self._table
        if line != "}":
            self._lines.append(line)
            return
        self._state = self._inside
        head = _HEAD.fullmatch(self._lines[0]) if self._lines and self._lines[0].startswith("type ") else None
        if self._lines and self._lines[0].startswith("type ") and head is None:
            raise UnknownText(self._lines[0])
        rules = tuple(compiled(self._table.family, line) for line in self._lines[bool(head) :])
        if head:
            priority = int(head[5]) if head[5] else _PRIORITIES[head[3]] - int(head[4] or 0)
            chain = Chain(self._name, rules, head[1], head[2], priority)
        else:
            chain = Chain(self._name, rules)
        self._table.chains[self._name] = chain


class Matched(NamedTuple):
    """A rule that matched."""

    chain: str
    rule: str

    def __str__(self) -> str:
        return f"{self.chain}: {self.rule}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a packet at one hook.

    `verdict`: accept, drop or reject. `nat`: how its addresses change. `labels`: of its flow. `effects`: counters, the
    log, and elements that it added or renewed.
    """

    verdict: str
    mark: int
    labels: frozenset[int]
    nat: str
    matched: tuple[Matched, ...]
    cost: Cost
    effects: tuple[tuple[Any, ...], ...]

    @property
    def lasting(self) -> tuple[Any, ...]:
        """What later chains, the kernel or people notice: a dropped packet has no mark, and its flow no labels."""
        passed = self.verdict == "accept"
        kept = (self.mark, self.labels, self.nat) if passed else ()
        return (self.verdict, *kept, self.effects)


class Tables:
    """The tables of a text, and elements that nft has no syntax for."""

    def __init__(self, text: str, more: Iterable[Element] = ()) -> None:
        self.tables = _Reader().read(text)
        for element in more:
            for table in self.tables.values():
                if element.set in table.sets:
                    table.sets[element.set].elements[_key(element)] = True

    def walk(self, family: str, hook: str, packet: Packet, seen: set[tuple[str, int]] | None = None) -> Outcome:
        """Return what becomes of a packet at a hook. `seen`: gets each rule that was reached, and each that matched."""
        return _Walk(self.tables[family], packet, seen).hook(hook)

    def rules(self, family: str) -> Iterator[tuple[str, int, str]]:
        """Yield chain, number and text of each rule."""
        for chain in self.tables[family].chains.values():
            for number, rule in enumerate(chain.rules):
                yield chain.name, number, rule.text


def _key(element: Element) -> Key:
    return tuple(int(each) if isinstance(each, IPv4Address | IPv6Address) else each for each in element.key)


class _Walk:
    """One packet at one hook."""

    def __init__(self, table: Table, packet: Packet, seen: set[tuple[str, int]] | None) -> None:
        self._table = table
        self.packet = packet
        self.mark = packet.mark
        self.labels = set(packet.flow.labels)
        self.registers: list[Any] = []
        self.verdict = ("", "")
        self._added: dict[str, set[Key]] = {}
        self._matched: list[Matched] = []
        self._effects: list[tuple[Any, ...]] = []
        self._counts: list[Cost] = []
        self._seen = seen

    def hook(self, hook: str) -> Outcome:
        end, nat = "accept", ""
        for chain in self._table.base(hook):
            if chain.kind == "nat" and not self.packet.opens:
                continue
            word, what = self._run(chain)
            if word in ("drop", "reject"):
                end = word
                break
            nat = what if word == "nat" else nat
        cost = Cost(*(sum(each) for each in zip(*self._counts, strict=True))) if self._counts else Cost()
        return Outcome(end, self.mark, frozenset(self.labels), nat, tuple(self._matched), cost, tuple(self._effects))

    def _run(self, chain: Chain) -> tuple[str, str]:
        """Return the verdict of a chain: a final one, or ("return", "")."""
        for number, rule in enumerate(chain.rules):
            verdict = self._rule(chain, number, rule)
            word, to = verdict
            if word in ("goto", "jump"):
                verdict = self._run(self._table.chains[to])
                if word == "goto" or verdict[0] != "return":
                    return verdict
            elif word not in ("", "continue"):
                return verdict
        return "return", ""

    def _rule(self, chain: Chain, number: int, rule: Rule) -> tuple[str, str]:
        """Return the verdict of a rule, ("", "") if it has none or does not match."""
        if self._seen is not None:
            self._seen.add((chain.name, number))
        self.registers.clear()
        self.verdict = ("", "")
        done = len(rule.expressions)
        for index, run in enumerate(rule.expressions):
            if not run(self):
                done = index + 1
                self.verdict = ("", "")
                break
        else:
            self._matched.append(Matched(chain.name, rule.text))
            if self._seen is not None:
                self._seen.add((chain.name, ~number))
        self._counts.append(rule.costs[done])
        return self.verdict

    # What expressions call (`expressions.Walk`).

    def look_up(self, name: str, key: Key, *, inverted: bool) -> Any:
        found = self._table.sets[name]
        data = found.elements.get(key)
        if data is None and key in self._added.get(name, ()):
            data = True
        if data is not None and not inverted:
            if found.limited:
                raise UnknownText(f"a look-up in {name} that finds an element counts against its limit")
            if found.counted:
                self._effects.append(("count", name, key))
        return data

    def within(self, limit: Limit) -> bool:
        exceeded = bool(self.packet.over >> (crc32(limit.text.encode()) & 7) & 1)
        return exceeded is limit.over

    def update(self, name: str, key: Key, limit: Limit | None) -> bool:
        """An element with a limit decides as the limit does; a full set takes no new element, and the rule ends."""
        there = key in self._table.sets[name].elements or key in self._added.get(name, ())
        if not there and self.packet.full:
            return False
        self._added.setdefault(name, set()).add(key)
        self._effects.append(("update", name, key))
        return limit is None or self.within(limit)

    def note(self, what: str, name: str) -> None:
        self._effects.append((what, name))
