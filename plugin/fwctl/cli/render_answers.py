"""fwctl's output of `explain`, `plan`, `bans`, and of changes: lines as in `plugin.fwctl.cli.render`. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from plugin.fwctl.cli.render import Line, accepted, override, until

_STYLE = {"+": "good", "-": "bad"}
_OUTCOME = {"accept": ("accepted", "good"), "drop": ("dropped", "bad")}


def explain(answer: dict[str, Any]) -> Iterator[Line]:
    """Yield each flow with its steps."""
    for flow in answer["flows"]:
        source, target = (_end(flow[end]) for end in ("from", "to"))
        verdict, style = _OUTCOME["accept" if flow["accepted"] else "drop"]
        yield [(f"{source} → {target}, {flow['what']}, IPv{flow['family']}: ", "name"), (verdict, style)]
        for step in flow["steps"]:
            outcome, style = _OUTCOME.get(step["outcome"], ("", ""))
            origin = f"  ({step['origin']})" if step["origin"] else ""
            yield [(f"  {step['text']}", ""), (origin, "dim"), (f": {outcome}" if outcome else "", style)]
    yield from ([(note, "dim")] for note in answer["notes"])


def _end(end: dict[str, Any]) -> str:
    if not end["address"] or end["address"] == end["name"]:
        return str(end["name"])
    return f"{end['name']} ({end['address']})"


def plan(answer: dict[str, Any]) -> Iterator[Line]:
    """Yield a diff: - would be removed, + would be added."""
    for part, head in (
        ("drift", "the table in the kernel has changed; docker-fw would repair it:"),
        ("policy", "with these settings:"),
        ("elements", "elements of the table:"),
        ("rules", "rules of the table:"),
    ):
        if answer[part]:
            yield [(head, "name")]
        for line in answer[part]:
            who = f"{line['who']}: " if part == "policy" else ""
            behind = f"  ({line['origin']})" if line.get("origin") else ""
            behind = f"  {line['who']}" if part != "policy" and line["who"] else behind
            yield [(f"{line['sign']} {who}{line['text']}", _STYLE[line["sign"]]), (behind, "dim")]
    if not answer["changes"]:
        yield [("no change", "good")]
    yield from ([(note, "dim")] for note in answer["notes"])


def bans(answer: dict[str, Any]) -> Iterator[Line]:
    """Yield the banned addresses, those that end first at the top."""
    found = sorted(answer["bans"], key=lambda ban: (ban["until"] or float("inf"), ban["address"]))
    for ban in found:
        yield [(f"{ban['address']:<43} ", ""), (until(ban["until"], answer["now"]), "dim")]
    if not found:
        yield [("no address is banned", "good")]


def overridden(answer: dict[str, Any], now: float) -> Iterator[Line]:
    """Yield what `fwctl allow` or `deny` has changed, and what the container accepts now."""
    for each in answer["said"]:
        yield [(f"{answer['container']}: {override(each, now)}", "good")]
    for place in answer["places"]:
        yield [(f"  on {place['network']} ({' '.join(place['addresses'])}) it accepts {accepted(place)}", "")]
        yield from ([(f"  {text}", "bad")] for text in place["problems"])
        yield from ([(f"  {text}", "warn")] for text in place["no_effect"])


def reverted(answer: dict[str, Any]) -> Iterator[Line]:
    """Yield the containers whose overrides are removed."""
    for each in answer["reverted"]:
        yield [(f"{each['container'] or each['id'][:12]}: its labels apply again", "good")]
    if not answer["reverted"]:
        yield [("there was no override", "")]


def banned(answer: dict[str, Any], now: float) -> Iterator[Line]:
    """Yield the new bans, and how many connections they ended."""
    for each in answer["banned"]:
        yield [(f"banned: {each['address']}, {until(each['until'], now)}", "good")]
    if answer["cut"]:
        yield [(f"connections ended: {answer['cut']}", "")]
    yield from ([(note, "bad")] for note in answer["notes"])


def unbanned(answer: dict[str, Any]) -> Iterator[Line]:
    """Yield the bans that are removed, and those that remain."""
    yield from ([(f"no longer banned: {address}", "good")] for address in answer["unbanned"])
    yield from ([(f"was not banned: {address}", "")] for address in answer["absent"])
    for each in answer["still"]:
        yield [(f"{each['address']} is still banned, as a part of {each['by']}", "warn")]
    if not answer["unbanned"] and not answer["absent"]:
        yield [("no address was banned", "")]
