"""The registry of label keys: one entry defines everything about a key. Pure.

A key's value becomes one field of `model.PolicySpec`. The code that reads labels, merges places, judges mistakes and
images, and documents keys uses the entry; a missing part of an entry is an error when this module is imported.
`plugin.settings` has the setting that an entry names, and `plugin.state.codec` reads the field from the state file:
both fail when they are imported if theirs is missing.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable
from typing import Any, Literal

from plugin.labels.grammar import parse_allow, parse_deny, parse_egress, parse_rate, taken_back, too_many_rates
from plugin.model import PolicySpec, Rate, Rule
from plugin.protocols import OTHER, PORTLESS, WITH_PORTS

PREFIX = "fw."
#: `fw.network.NAME.KEY`: any key, for this container's address on that network only.
ONE_NETWORK = "fw.network."
#: All flows: the base of `fw.policy: open`, and `fw.egress: all`.
EVERYTHING: tuple[Rule, ...] = (
    *(Rule(proto, 1, 65535) for proto in WITH_PORTS),
    *(Rule(proto, 0, 0) for proto in PORTLESS),
    Rule(OTHER, 0, 0),
)
#: The words of `fw.policy`, from the widest to the narrowest, and those of `fw.log`.
POLICIES, LOGS = ("open", "default", "closed"), ("drop", "none")
UNSET = PolicySpec()
#: Maps a value, and where it was written, to its meaning and its mistakes.
Reader = Callable[[str, str], tuple[PolicySpec, list[str]]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A label key.

    Documentation: `meaning`, `values`, `default`, `example` are the row of LABELS.md. `setting` gives the value if no
    other place does; None: no setting does.

    Reading: `read` parses one value; `field` of its result is the key's value. `several` returns the mistake in all
    values of the key at one place together; "" if there is none.

    Merging: `specific` is the effect of a more specific place: "adds" to the more general one, or "replaces" it.
    `twice` joins the values of the same key in different cases, at one place.

    Mistakes: a wrong value `closes` what the container accepts, or `confines` what it may initiate; neither: it opens
    nothing. `harmless` returns the rest of a place that has a mistake: nothing that opens. `may_close` is False for a
    text that can only open ports or has nothing to do with them. `only_opens` is the same for a parsed value, which
    then has no effect on a network that the container is not on.

    Images: `counts` is True for a text that can only close, so that it counts even if it came with an image.
    `closes_elsewhere`: an image's value counts if no other place sets one. `opens`: any other value opens something,
    which an image must not do; False: it is ignored for another reason.
    """

    name: str
    field: str
    meaning: str
    values: str
    default: str
    example: str
    setting: str | None
    read: Reader
    specific: Literal["adds", "replaces"]
    twice: Callable[[Any, Any], Any]
    closes: bool
    confines: bool
    harmless: Callable[[PolicySpec], PolicySpec]
    may_close: Callable[[str], bool]
    only_opens: Callable[[Any], bool]
    counts: Callable[[str], bool]
    closes_elsewhere: bool
    opens: bool
    several: Callable[[Any], str] = lambda _: ""

    def of(self, spec: PolicySpec) -> Any:
        """Return the key's value at a place."""
        return getattr(spec, self.field)

    def says(self, spec: PolicySpec) -> bool:
        """True if the place sets this key."""
        return bool(getattr(spec, self.field) != getattr(UNSET, self.field))


def _always(_: object) -> bool:
    return True


def _never(_: object) -> bool:
    return False


def _unchanged(spec: PolicySpec) -> PolicySpec:
    return spec


def _is(*words: str) -> Callable[[str], bool]:
    return lambda text: text.strip().lower() in words


def _from(rules: Iterable[Rule], where: str) -> tuple[Rule, ...]:
    return tuple(dataclasses.replace(rule, origin=where) for rule in sorted(set(rules)))


def _union(one: Iterable[Any], other: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(sorted({*one, *other}))


def _allow(text: str, where: str) -> tuple[PolicySpec, list[str]]:
    rules, mistakes = parse_allow(text)
    if mistakes:
        return PolicySpec(deny=_from(taken_back(text), where)), mistakes
    return PolicySpec(allow=_from(rules, where)), []


def _no_allow(spec: PolicySpec) -> PolicySpec:
    """Drop `fw.allow`. A rule with `from` removes its ports from the base, and still does."""
    restricted = (dataclasses.replace(rule, peers=()) for rule in spec.allow if rule.peers)
    return dataclasses.replace(spec, allow=(), deny=_union(spec.deny, restricted))


def _deny(text: str, where: str) -> tuple[PolicySpec, list[str]]:
    rules, mistakes = parse_deny(text)
    return PolicySpec(deny=_from(rules, where)), mistakes


def _policy(text: str, _: str) -> tuple[PolicySpec, list[str]]:
    word = text.strip().lower()
    return (PolicySpec(policy=word), []) if word in POLICIES else (UNSET, [one_of(text, "default", "closed", "open")])


def _narrower(one: str, other: str) -> str:
    return max(one, other, key=("", *POLICIES).index)


def _egress(text: str, where: str) -> tuple[PolicySpec, list[str]]:
    word = text.strip().lower()
    if word in ("all", "none"):
        return PolicySpec(egress=EVERYTHING if word == "all" else ()), []
    rules, mistakes = parse_egress(text)
    return PolicySpec(egress=() if mistakes else _from(rules, where)), mistakes


def _narrower_egress(one: tuple[Rule, ...] | None, other: tuple[Rule, ...] | None) -> tuple[Rule, ...] | None:
    """Return the rules of each list that are within the other one."""
    if one is None or other is None:
        return other if one is None else one
    if EVERYTHING in (one, other):
        return other if one == EVERYTHING else one
    within = (rule for rules, those in ((one, other), (other, one)) for rule in rules if _is_within(rule, those))
    return tuple(sorted(set(within)))


def _is_within(rule: Rule, rules: Iterable[Rule]) -> bool:
    """True if one of the rules allows at least what this rule allows."""
    wider = (each for each in rules if each.proto == rule.proto and each.first <= rule.first and rule.last <= each.last)
    return any(not each.peers or (rule.peers and set(rule.peers) <= set(each.peers)) for each in wider)


def _rate(text: str, where: str) -> tuple[PolicySpec, list[str]]:
    rates, mistakes = parse_rate(text)
    found = tuple(dataclasses.replace(rate, origin=where) for rate in sorted(set(rates)))
    return PolicySpec(rate=found or None), mistakes


def _all_rates(one: tuple[Rate, ...] | None, other: tuple[Rate, ...] | None) -> tuple[Rate, ...] | None:
    return None if one is None and other is None else _union(one or (), other or ())


def _log(text: str, _: str) -> tuple[PolicySpec, list[str]]:
    word = text.strip().lower()
    return (PolicySpec(log=word), []) if word in LOGS else (UNSET, [one_of(text, *LOGS)])


def one_of(text: str, *words: str) -> str:
    """Return the mistake of a text that is none of the words."""
    shown = text if len(text) <= 40 else text[:40] + "…"
    near = difflib.get_close_matches(text.strip().lower()[:64], words, n=1, cutoff=0.5)
    return f'"{shown}" is not {", ".join(words[:-1])} or {words[-1]}' + (f"; did you mean {near[0]}?" if near else "")


_ENTRIES = (
    Key(
        name="fw.allow",
        field="allow",
        meaning="inbound flows to accept in addition to the base; `from` restricts a rule to some sources and removes "
        "its ports from the base",
        values="list of rules",
        default="–",
        example="8080, 53/udp, 9000-9100, 5432 from 2001:db8:5::/48 service:api",
        setting="FW_ALLOW",
        read=_allow,
        specific="adds",
        twice=_union,
        closes=False,
        confines=False,
        harmless=_no_allow,
        may_close=lambda text: bool(taken_back(text)),
        only_opens=lambda rules: not any(rule.peers for rule in rules),
        counts=_never,
        closes_elsewhere=False,
        opens=True,
    ),
    Key(
        name="fw.deny",
        field="deny",
        meaning="removes ports from the base",
        values="list of ports",
        default="–",
        example="22, 80",
        setting="FW_DENY",
        read=_deny,
        specific="adds",
        twice=_union,
        closes=True,
        confines=False,
        harmless=_unchanged,
        may_close=_always,
        only_opens=_never,
        counts=_always,
        closes_elsewhere=False,
        opens=False,
    ),
    Key(
        name="fw.policy",
        field="policy",
        meaning="the base: TCP 22, 80, 443 and ICMP · ICMP only · everything",
        values="`default`, `closed`, `open`",
        default="`default`",
        example="closed",
        setting="FW_POLICY",
        read=_policy,
        specific="replaces",
        twice=_narrower,
        closes=True,
        confines=False,
        harmless=lambda spec: dataclasses.replace(spec, policy="") if spec.policy == "open" else spec,
        may_close=lambda text: not _is("open")(text),
        only_opens=_never,
        counts=_is("closed"),
        closes_elsewhere=False,
        opens=True,
    ),
    Key(
        name="fw.egress",
        field="egress",
        meaning="connections that the container may open, to other networks and to the host; with a list all others "
        "are dropped",
        values="`all`, `none`, or a list of rules with `to`",
        default="`all`",
        example="443, 53/udp to 2001:4860:4860::8888",
        setting="FW_EGRESS",
        read=_egress,
        specific="replaces",
        twice=_narrower_egress,
        closes=False,
        confines=True,
        harmless=lambda spec: dataclasses.replace(spec, egress=None) if spec.egress == EVERYTHING else spec,
        may_close=_never,
        only_opens=_never,
        counts=_is("none"),
        closes_elsewhere=True,
        opens=True,
    ),
    Key(
        name="fw.rate",
        field="rate",
        meaning="new flows that a source (IPv4 address, IPv6 /64) may open to an accepted port",
        values="list of ports with a rate",
        default="–",
        example="22 5/minute burst 10",
        setting="FW_RATE",
        read=_rate,
        specific="replaces",
        twice=_all_rates,
        several=lambda rates: too_many_rates(rates or ()),
        closes=True,
        confines=False,
        harmless=_unchanged,
        may_close=_always,
        only_opens=_never,
        counts=_never,
        # Each rate costs the kernel memory, and an image must not spend the host's.
        closes_elsewhere=False,
        opens=False,
    ),
    Key(
        name="fw.log",
        field="log",
        meaning="log dropped packets, at a limited rate, with the container's name",
        values="`drop`, `none`",
        default="`FW_LOG`",
        example="drop",
        setting="FW_LOG",
        read=_log,
        specific="replaces",
        twice=max,
        closes=False,
        confines=False,
        harmless=_unchanged,
        may_close=_never,
        only_opens=_always,
        counts=_never,
        closes_elsewhere=False,
        opens=False,
    ),
)
KEYS = {key.name: key for key in _ENTRIES}


def _incomplete() -> str:
    """Return the first mismatch between the entries and `model.PolicySpec`."""
    fields = {each.name for each in dataclasses.fields(PolicySpec)}
    for key in _ENTRIES:
        if key.field not in fields:
            return f"{key.name} sets PolicySpec.{key.field}, which plugin.model does not have"
        if key.name != key.name.lower() or not key.name.startswith(PREFIX) or key.name.startswith(ONE_NETWORK):
            return f"{key.name} is not a name for a key"
    if missing := fields - {key.field for key in _ENTRIES}:
        return f"no label key sets PolicySpec.{min(missing)}"
    alike = len(KEYS) != len(_ENTRIES) or len(fields) != len(KEYS)
    return "two label keys have the same name or field" if alike else ""


if _why := _incomplete():
    raise TypeError(_why)
