"""Keys and values, wherever they are written → what they say, with every mistake at once. Pure.

The language is the same for container labels, `driver_opts` of a network or of a service's attachment, and settings.
`plugin.labels.grammar` reads one value.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from plugin.labels import grammar
from plugin.labels.grammar import parse_allow, parse_deny, parse_egress, parse_rate, taken_back
from plugin.model import PolicySpec, Problem, Rule
from plugin.protocols import OTHER, PORTLESS, WITH_PORTS


class Key(NamedTuple):
    """A row of the language's table: the README's is checked against it."""

    meaning: str
    values: str
    default: str
    example: str


KEYS: dict[str, Key] = {
    "fw.allow": Key(
        "inbound flows to accept besides the base; `from` restricts a rule to some and takes its ports out of the base",
        "list of rules",
        "–",
        "8080, 53/udp, 9000-9100, 5432 from 2001:db8:5::/48 service:api",
    ),
    "fw.deny": Key("takes ports out of the base", "list of ports", "–", "22, 80"),
    "fw.policy": Key(
        "the base: TCP 22, 80, 443 and ICMP · ICMP only · everything",
        "`default`, `closed`, `open`",
        "`default`",
        "closed",
    ),
    "fw.egress": Key(
        "what the container may begin, to other networks and to the host; a list makes everything else drop",
        "`all`, `none`, or a list of rules with `to`",
        "`all`",
        "443, 53/udp to 2001:4860:4860::8888",
    ),
    "fw.rate": Key(
        "new flows that a source (IPv4 address, IPv6 /64) may open to an accepted port",
        "list of ports with a rate",
        "–",
        "22 5/minute burst 10",
    ),
    "fw.log": Key("log what is dropped, rate-limited, with the container's name", "`drop`, `none`", "`FW_LOG`", "drop"),
}
PREFIX = "fw."
#: `fw.network.NAME.KEY`: any key, for this container's address on that network only.
ONE_NETWORK = "fw.network."
#: What every flow is: the base of `fw.policy: open`, and `fw.egress: all`.
EVERYTHING: tuple[Rule, ...] = (
    *(Rule(proto, 1, 65535) for proto in WITH_PORTS),
    *(Rule(proto, 0, 0) for proto in PORTLESS),
    Rule(OTHER, 0, 0),
)
#: Every mistake is told at once, up to about so many: more is no typo, and must cost neither time nor a novel.
MAX_PROBLEMS = 64
#: Keys of docker-fw's at one place, rules in all of them, and what these may become in the table: others wait for them.
MAX_KEYS, MAX_RULES, MAX_ALL = 256, 2048, 40_000
#: Characters of a key.
MAX_KEY = 512


SILENT = PolicySpec()


@dataclass(frozen=True, slots=True)
class ParsedLabels:
    """What one place says, and what is wrong with it. What is wrong opens nothing and stands in `problems`.

    `networks`: what it says for one network alone, by the name that is written.
    """

    spec: PolicySpec = SILENT
    problems: tuple[Problem, ...] = ()
    networks: tuple[tuple[str, PolicySpec], ...] = ()


def parse(pairs: Mapping[str, object], where: str = "label ") -> ParsedLabels:
    """Reads every `fw.` key among `pairs`; `where` says in messages where it stood (`label `, `network option `).

    Every mistake is reported at once, in the order of the keys. Other keys are not ours and are left alone. A mistake
    in one value leaves the other keys as they are, but opens nothing: with any mistake no `fw.allow` counts.
    """
    places: dict[str, PolicySpec] = {}
    problems: list[Problem] = []
    keys = sorted(k for k in pairs if isinstance(k, str) and k.lower().startswith(PREFIX))
    rules = elements = 0
    for number, key in enumerate(keys):
        value = pairs[key]
        text = _short(value if isinstance(value, str) else repr(value))
        if why := _too_many(number, len(problems), rules, elements):
            what = f"was not read, nor what follows: {why}"
            problems.append(Problem(_short(where + key), text, what, confines=True))
            break
        if len(key) > MAX_KEY:
            what = f"is a key of {len(key)} characters; docker-fw has none of more than {MAX_KEY}"
            problems.append(Problem(_short(where + key), text, what, confines=True))
            continue
        network, name = split(key)
        if name not in KEYS or (network is None and key.lower().startswith(ONE_NETWORK)):
            problems.append(_unknown(where + key, key, text))
            continue
        if network is not None and where != "label ":
            text_ = f"is for container labels; here write {name}"
            problems.append(Problem(where + key, text, text_, confines=name == "fw.egress"))
            continue
        closes, confines = name not in ("fw.allow", "fw.egress", "fw.log"), name == "fw.egress"
        if isinstance(value, str):
            spec, mistakes = _READ[name](value, where + key)
        else:
            spec, mistakes = PolicySpec(), [f'must be text, like "{KEYS[name].example}"']
        problems += [Problem(where + key, text, mistake, closes, confines) for mistake in mistakes]
        found = (*spec.allow, *spec.deny, *(spec.egress or ()), *(spec.rate or ()))
        rules, elements = rules + len(found), elements + sum(map(grammar.elements, found))
        places[network or ""] = _both(places.get(network or "", PolicySpec()), spec)
        if name == "fw.rate" and (mistake := grammar.too_many_rates(places[network or ""].rate or ())):
            problems.append(Problem(where + key, text, mistake))
            places[network or ""] = dataclasses.replace(places[network or ""], rate=None)
    if problems:
        places = {k: _opening_nothing(spec) for k, spec in places.items()}
    rest = tuple(sorted((k, v) for k, v in places.items() if k and v != PolicySpec()))
    return ParsedLabels(places.get("", PolicySpec()), tuple(problems), rest)


def _too_many(keys: int, problems: int, rules: int, elements: int) -> str:
    """Why no more is read; "" if it is."""
    if problems >= MAX_PROBLEMS:
        return "there are too many mistakes"
    if keys >= MAX_KEYS:
        return f"at most {MAX_KEYS} keys are read"
    if rules > MAX_RULES:
        return f"there are more than {MAX_RULES} rules before it"
    return f"what stands before it means more than {MAX_ALL} rules: ports times peers" if elements > MAX_ALL else ""


def _short(text: str) -> str:
    """As much of it as is ever shown: it is kept."""
    return text if len(text) <= 2 * MAX_KEY else text[: 2 * MAX_KEY]


def split(key: str) -> tuple[str | None, str]:
    """`fw.network.NAME.KEY` → (NAME, fw.KEY); any other key → (None, the key). Keywords are read in any case."""
    if key.lower().startswith(ONE_NETWORK):
        name, _, last = key[len(ONE_NETWORK) :].rpartition(".")
        return name or None, PREFIX + last.lower()
    return None, key.lower()


def for_network(parsed: ParsedLabels, names: Collection[str]) -> PolicySpec:
    """What holds on the network that is called by any of `names`: the general part, and what is for it alone."""
    spec = parsed.spec
    for name, more in parsed.networks:
        if name in names:
            spec = over(spec, more)
    return spec


def over(general: PolicySpec, special: PolicySpec) -> PolicySpec:
    """Lists of ports add up; of the others the more specific one wins."""
    return PolicySpec(
        tuple(dict.fromkeys((*general.allow, *special.allow))),
        tuple(dict.fromkeys((*general.deny, *special.deny))),
        special.policy or general.policy,
        general.egress if special.egress is None else special.egress,
        general.rate if special.rate is None else special.rate,
        special.log or general.log,
    )


def only_closing(pairs: Mapping[str, str]) -> dict[str, str]:
    """Of labels that an image brought those that can only close: they count, whoever wrote them."""
    return {
        key: value
        for key, value in pairs.items()
        for word in (value.strip().lower(),)
        if split(key)[1] == "fw.deny" or (split(key)[1], word) in (("fw.policy", "closed"), ("fw.egress", "none"))
    }


def _both(one: PolicySpec, other: PolicySpec) -> PolicySpec:
    """The same key twice, in different cases: lists add up; where one must win, the closer one does."""
    rank = ("", "open", "default", "closed")
    egress = [e for e in (one.egress, other.egress) if e is not None]
    rates = [r for r in (one.rate, other.rate) if r is not None]
    return PolicySpec(
        tuple(sorted({*one.allow, *other.allow})),
        tuple(sorted({*one.deny, *other.deny})),
        max(one.policy, other.policy, key=rank.index),
        min(egress, key=lambda e: (e == EVERYTHING, len(e))) if egress else None,
        tuple(sorted({rate for each in rates for rate in each})) if rates else None,
        max(one.log, other.log),
    )


def _opening_nothing(spec: PolicySpec) -> PolicySpec:
    """A base and a way out that are wide open stay out too; what closes, or may close elsewhere, stays."""
    return dataclasses.replace(
        spec,
        allow=(),
        policy="" if spec.policy == "open" else spec.policy,
        egress=None if spec.egress == EVERYTHING else spec.egress,
        # A rule with `from` takes its ports out of the base, and still does.
        deny=tuple(sorted({*spec.deny, *(dataclasses.replace(r, peers=()) for r in spec.allow if r.peers)})),
    )


def _allow(text: str, where: str) -> tuple[PolicySpec, list[str]]:
    rules, mistakes = parse_allow(text)
    if mistakes:
        return PolicySpec(deny=_from(taken_back(text), where)), mistakes
    return PolicySpec(allow=_from(rules, where)), []


def _deny(text: str, where: str) -> tuple[PolicySpec, list[str]]:
    rules, mistakes = parse_deny(text)
    return PolicySpec(deny=_from(rules, where)), mistakes


def _policy(text: str, where: str) -> tuple[PolicySpec, list[str]]:
    word = text.strip().lower()
    if word in ("default", "closed", "open"):
        return PolicySpec(policy=word), []
    return PolicySpec(), [_one_of(text, "default", "closed", "open")]


def _egress(text: str, where: str) -> tuple[PolicySpec, list[str]]:
    word = text.strip().lower()
    if word in ("all", "none"):
        return PolicySpec(egress=EVERYTHING if word == "all" else ()), []
    rules, mistakes = parse_egress(text)
    return PolicySpec(egress=() if mistakes else _from(rules, where)), mistakes


def _rate(text: str, where: str) -> tuple[PolicySpec, list[str]]:
    rates, mistakes = parse_rate(text)
    return PolicySpec(
        rate=tuple(dataclasses.replace(rate, origin=where) for rate in sorted(set(rates))) or None
    ), mistakes


def _log(text: str, where: str) -> tuple[PolicySpec, list[str]]:
    word = text.strip().lower()
    return (PolicySpec(log=word), []) if word in ("drop", "none") else (PolicySpec(), [_one_of(text, "drop", "none")])


_READ: dict[str, Callable[[str, str], tuple[PolicySpec, list[str]]]] = {
    "fw.allow": _allow,
    "fw.deny": _deny,
    "fw.policy": _policy,
    "fw.egress": _egress,
    "fw.rate": _rate,
    "fw.log": _log,
}


def _from(rules: Iterable[Rule], where: str) -> tuple[Rule, ...]:
    return tuple(dataclasses.replace(rule, origin=where) for rule in sorted(set(rules)))


def _one_of(text: str, *words: str) -> str:
    shown = text if len(text) <= 40 else text[:40] + "…"
    near = difflib.get_close_matches(text.strip().lower()[:64], words, n=1, cutoff=0.5)
    return f'"{shown}" is not {", ".join(words[:-1])} or {words[-1]}' + (f"; did you mean {near[0]}?" if near else "")


def _unknown(where: str, key: str, text: str) -> Problem:
    network, name = split(key)
    short = name[:64]
    near = difflib.get_close_matches(short, KEYS, n=1, cutoff=0.5)
    if network is None and key.lower().startswith(ONE_NETWORK.rstrip(".")):
        what = "is not a key of docker-fw; for one network write fw.network.NAME.allow"
        return Problem(where, text, what, confines=True)
    shown = [key[: len(ONE_NETWORK)] + network[:64] + near[0][2:]] if network and near else near
    hint = f"; did you mean {shown[0]}?" if shown else f" (known: {', '.join(KEYS)}, {ONE_NETWORK}NAME.KEY)"
    return Problem(where, text, f"is not a key of docker-fw{hint}", confines=not near or near[0] == "fw.egress")
