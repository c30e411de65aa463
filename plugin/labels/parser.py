"""Parse keys and values from any place into a policy, with every mistake at once. Pure.

The language is the same for container labels, `driver_opts` of a network or of a service's attachment, and settings.
`plugin.labels.grammar` reads one value.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from plugin.labels import grammar
from plugin.labels.keys import KEYS, ONE_NETWORK, PREFIX, UNSET, Key
from plugin.model import PolicySpec, Problem

#: Every mistake is reported at once, up to about this many: more are no typo, and must not cost time or a long report.
MAX_PROBLEMS = 64
#: Limits for one place: docker-fw keys, rules in all of them, and their elements in the table. Other containers wait
#: while these are read.
MAX_KEYS, MAX_RULES, MAX_ALL = 256, 2048, 40_000
#: Maximum characters of a key.
MAX_KEY = 512


@dataclass(frozen=True, slots=True)
class ParsedLabels:
    """The parsed labels of one place, and their mistakes. A wrong value opens nothing and is listed in `problems`.

    `networks`: the part for one network alone, by the name that is written.
    """

    spec: PolicySpec = UNSET
    problems: tuple[Problem, ...] = ()
    networks: tuple[tuple[str, PolicySpec], ...] = ()


def parse(pairs: Mapping[str, object], where: str = "label ") -> ParsedLabels:
    """Read every `fw.` key among `pairs`; `where` is the place named in messages (`label `, `network option `).

    Every mistake is reported at once, in the order of the keys. Keys of other programs are ignored. A mistake in one
    value leaves the other keys as they are, but opens nothing: with any mistake no `fw.allow` counts.
    """
    reading = _Reading(where)
    keys = sorted(key for key in pairs if isinstance(key, str) and key.lower().startswith(PREFIX))
    for number, key in enumerate(keys):
        value = pairs[key]
        shown = _short(value if isinstance(value, str) else repr(value))
        if why := reading.too_many(number):
            what = f"was not read, nor the keys after it: {why}"
            reading.problems.append(Problem(_short(where + key), shown, what, confines=True))
            break
        if wrong := _wrong_key(where, key, shown):
            reading.problems.append(wrong)
        else:
            reading.add(key, value, shown)
    return reading.result()


class _Reading:
    """The keys of one place that are read so far: a spec for each network named in keys ("": general), and mistakes."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._specs: dict[str, PolicySpec] = {}
        self.problems: list[Problem] = []
        self._rules = 0
        self._elements = 0

    def too_many(self, keys: int) -> str:
        """Return why no more keys are read; "" if they are. `keys`: how many have been."""
        if len(self.problems) >= MAX_PROBLEMS:
            return "there are too many mistakes"
        if keys >= MAX_KEYS:
            return f"at most {MAX_KEYS} keys are read"
        if self._rules > MAX_RULES:
            return f"there are more than {MAX_RULES} rules before it"
        if self._elements > MAX_ALL:
            return f"the keys before it expand to more than {MAX_ALL} rules: ports times peers"
        return ""

    def add(self, key: str, value: object, shown: str) -> None:
        """Read the value of a known key. `shown`: the value in messages."""
        network, name = split(key)
        entry, place, where = KEYS[name], network or "", self._where + key
        if isinstance(value, str):
            spec, mistakes = entry.read(value, where)
        else:
            spec, mistakes = UNSET, [f'must be text, like "{entry.example}"']
        rules = list(_rules(spec))
        self._rules += len(rules)
        self._elements += sum(map(grammar.elements, rules))
        # The key may have been read before, in another case.
        merged = _both(self._specs.get(place, UNSET), spec)
        if mistake := entry.several(entry.of(merged)):
            mistakes = [*mistakes, mistake]
            merged = _without(merged, entry)
        self._specs[place] = merged
        self.problems += [Problem(where, shown, mistake, entry.closes, entry.confines) for mistake in mistakes]

    def result(self) -> ParsedLabels:
        """Return everything that was read; with any mistake, without the parts that open."""
        specs = self._specs
        if self.problems:
            specs = {network: _opening_nothing(spec) for network, spec in specs.items()}
        networks = sorted((network, spec) for network, spec in specs.items() if network and spec != UNSET)
        return ParsedLabels(specs.get("", UNSET), tuple(self.problems), tuple(networks))


def _wrong_key(where: str, key: str, shown: str) -> Problem | None:
    """Return why a key is not read; None if it is."""
    if len(key) > MAX_KEY:
        what = f"is a key of {len(key)} characters; docker-fw has none of more than {MAX_KEY}"
        return Problem(_short(where + key), shown, what, confines=True)
    network, name = split(key)
    if name not in KEYS or (network is None and key.lower().startswith(ONE_NETWORK)):
        return _unknown(where + key, key, shown)
    if network is not None and where != "label ":
        what = f"is for container labels; here write {name}"
        return Problem(where + key, shown, what, confines=KEYS[name].confines)
    return None


def _short(text: str) -> str:
    """Return the part of the text that can be shown: it is stored."""
    return text if len(text) <= 2 * MAX_KEY else text[: 2 * MAX_KEY]


def split(key: str) -> tuple[str | None, str]:
    """Split `fw.network.NAME.KEY` into (NAME, fw.KEY), any other key into (None, the key).

    Keywords are read in any case.
    """
    if key.lower().startswith(ONE_NETWORK):
        name, _, last = key[len(ONE_NETWORK) :].rpartition(".")
        return name or None, PREFIX + last.lower()
    return None, key.lower()


def for_network(parsed: ParsedLabels, names: Collection[str]) -> PolicySpec:
    """Return the policy on the network with any of `names`: the general part, and the part for that network alone.

    If labels use two names of the network, their values are merged like those of a key in different cases.
    """
    return over(parsed.spec, reduce(_both_names, (spec for name, spec in parsed.networks if name in names), UNSET))


#: By field, whether a more specific place adds to it, and its value if it is not set.
_MERGE = tuple((key.field, key.specific == "adds", key.of(UNSET)) for key in KEYS.values())


def over(general: PolicySpec, special: PolicySpec) -> PolicySpec:
    """Merge two specs: lists of ports add up; for all other fields the more specific value wins."""
    if special == UNSET:
        return general
    if general == UNSET:
        return special
    merged: dict[str, Any] = {}
    for field, adds, unset in _MERGE:  # called several times for each endpoint: no function calls
        one, other = getattr(general, field), getattr(special, field)
        merged[field] = one if other == unset else tuple(dict.fromkeys((*one, *other))) if adds else other
    return PolicySpec(**merged)


def only_closing(pairs: Mapping[str, str]) -> dict[str, str]:
    """Return those of an image's labels that can only close: they count, whatever their origin."""
    entries = ((key, KEYS.get(split(key)[1])) for key in pairs)
    return {key: pairs[key] for key, entry in entries if entry and entry.counts(pairs[key])}


def _rules(spec: PolicySpec) -> Iterator[object]:
    """Yield all rules and rates of a place."""
    for key in KEYS.values():
        if isinstance(found := key.of(spec), tuple):
            yield from found


def _both(one: PolicySpec, other: PolicySpec) -> PolicySpec:
    """Merge two values of the same key at one place: lists add up; if one value must win, the narrower one does."""
    return PolicySpec(**{key.field: key.twice(key.of(one), key.of(other)) for key in KEYS.values()})


def _both_names(one: PolicySpec, other: PolicySpec) -> PolicySpec:
    """Merge the values for two names of one network. If both together are too many, those of the last name count."""
    merged = _both(one, other)
    for key in KEYS.values():
        if key.several(key.of(merged)):
            merged = dataclasses.replace(merged, **{key.field: key.of(other)})
    return merged


def _without(spec: PolicySpec, key: Key) -> PolicySpec:
    return dataclasses.replace(spec, **{key.field: key.of(UNSET)})


def _opening_nothing(spec: PolicySpec) -> PolicySpec:
    """Return the spec without parts that open.

    An open base and unrestricted egress are dropped too; parts that close, or may close elsewhere, remain.
    """
    for key in KEYS.values():
        spec = key.harmless(spec)
    return spec


def _unknown(where: str, key: str, text: str) -> Problem:
    network, name = split(key)
    short = name[:64]
    near = difflib.get_close_matches(short, KEYS, n=1, cutoff=0.5)
    if network is None and key.lower().startswith(ONE_NETWORK.rstrip(".")):
        what = "is not a key of docker-fw; for one network write fw.network.NAME.allow"
        return Problem(where, text, what, confines=True)
    shown = [key[: len(ONE_NETWORK)] + network[:64] + near[0][2:]] if network and near else near
    hint = f"; did you mean {shown[0]}?" if shown else f" (known: {', '.join(KEYS)}, {ONE_NETWORK}NAME.KEY)"
    return Problem(where, text, f"is not a key of docker-fw{hint}", confines=not near or KEYS[near[0]].confines)
