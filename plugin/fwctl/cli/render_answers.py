"""The lines of `fwctl explain`, `plan`, `bans`, and of what was changed. Pure; see `plugin.fwctl.cli.render`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from plugin.fwctl.cli.render import Line, accepted, override, until

_STYLE = {"+": "good", "-": "bad"}
_OUTCOME = {"accept": ("accepted", "good"), "drop": ("dropped", "bad")}


def explain(told: dict[str, Any]) -> Iterator[Line]:
    for flow in told["flows"]:
        source, target = (_end(flow[end]) for end in ("from", "to"))
        verdict, style = _OUTCOME["accept" if flow["accepted"] else "drop"]
        yield [(f"{source} → {target}, {flow['what']}, IPv{flow['family']}: ", "name"), (verdict, style)]
        for step in flow["steps"]:
            words, style = _OUTCOME.get(step["outcome"], ("", ""))
            origin = f"  ({step['origin']})" if step["origin"] else ""
            yield [(f"  {step['text']}", ""), (origin, "dim"), (f": {words}" if words else "", style)]
    yield from ([(note, "dim")] for note in told["notes"])


def _end(end: dict[str, Any]) -> str:
    if not end["address"] or end["address"] == end["name"]:
        return str(end["name"])
    return f"{end['name']} ({end['address']})"


def plan(told: dict[str, Any]) -> Iterator[Line]:
    """- is what would go, + what would come."""
    for part, head in (
        ("drift", "the table in the kernel is not as it should be; to mend it:"),
        ("policy", "with these settings:"),
        ("elements", "which in the table is:"),
        ("rules", "and in the table's rules:"),
    ):
        if told[part]:
            yield [(head, "name")]
        for line in told[part]:
            who = f"{line['who']}: " if part == "policy" else ""
            behind = f"  ({line['origin']})" if line.get("origin") else ""
            behind = f"  {line['who']}" if part != "policy" and line["who"] else behind
            yield [(f"{line['sign']} {who}{line['text']}", _STYLE[line["sign"]]), (behind, "dim")]
    if not told["changes"]:
        yield [("nothing would change", "good")]
    yield from ([(note, "dim")] for note in told["notes"])


def bans(told: dict[str, Any]) -> Iterator[Line]:
    there = sorted(told["bans"], key=lambda ban: (ban["until"] or float("inf"), ban["address"]))
    for ban in there:
        yield [(f"{ban['address']:<43} ", ""), (until(ban["until"], told["now"]), "dim")]
    if not there:
        yield [("nobody is banned", "good")]


def overridden(told: dict[str, Any], now: float) -> Iterator[Line]:
    """What `fwctl allow` and `deny` did, and what it has led to."""
    for each in told["said"]:
        yield [(f"{told['container']}: {override(each, now)}", "good")]
    for place in told["places"]:
        yield [(f"  on {place['network']} ({' '.join(place['addresses'])}) it answers on {accepted(place)}", "")]
        yield from ([(f"  {text}", "bad")] for text in place["problems"])
        yield from ([(f"  {text}", "warn")] for text in place["no_effect"])


def reverted(told: dict[str, Any]) -> Iterator[Line]:
    for each in told["reverted"]:
        yield [(f"{each['container'] or each['id'][:12]}: as its labels say", "good")]
    if not told["reverted"]:
        yield [("nothing was overridden", "")]


def banned(told: dict[str, Any], now: float) -> Iterator[Line]:
    for each in told["banned"]:
        yield [(f"banned: {each['address']}, {until(each['until'], now)}", "good")]
    if told["cut"]:
        yield [(f"flows cut: {told['cut']}", "")]
    yield from ([(note, "bad")] for note in told["notes"])


def unbanned(told: dict[str, Any]) -> Iterator[Line]:
    yield from ([(f"not banned any more: {address}", "good")] for address in told["unbanned"])
    yield from ([(f"was not banned: {address}", "")] for address in told["absent"])
    for each in told["still"]:
        yield [(f"{each['address']} is still banned, with all of {each['by']}", "warn")]
    if not told["unbanned"] and not told["absent"]:
        yield [("nobody is banned", "")]
