"""The output of `fwctl check`: text for people, data for programs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from plugin.fwctl.check.compose.model import Note, Notes, Place
from plugin.fwctl.check.compose.stack import Service, Stack
from plugin.fwctl.check.judge import Judged, Opening
from plugin.labels.keys import EVERYTHING
from plugin.model import Rule
from plugin.text import printable

Found = tuple[Stack, list[Judged]]
_OPEN = {"everybody": "open to all", "host": "reachable from the host only"}


def as_text(paths: Sequence[str], found: Found | None, notes: Notes) -> str:
    """Return the services with what they accept, then mistakes and warnings as FILE:LINE: TEXT."""
    lines: list[str] = []
    if found:
        count = len(found[0].services)
        lines.append(f"{', '.join(paths)}: {count} service{'' if count == 1 else 's'}")
        for service in found[0].services.values():
            lines += _service(service, [each for each in found[1] if each.service is service], len(paths) > 1)
    for title, found_notes in (("mistakes", notes.mistakes), ("warnings", notes.warnings)):
        if found_notes:
            lines += [f"{title}:", *map(str, sorted(found_notes))]
    return "\n".join(map(printable, lines))


def _service(service: Service, judged: list[Judged], several: bool) -> Iterator[str]:
    if service.shares:
        whose = service.shares.replace(":", " ", 1)
        yield f"{service.name}  shares the network of {whose}, whose labels apply"
    for attachment in service.attachments:
        if attachment.net.kind == "apart":
            yield f"{service.name}  on {attachment.net.key} ({attachment.net.why})"
    # Networks with the same result are shown together.
    for _, alike in groupby(sorted(judged, key=_shown), key=_shown):
        nets = list(alike)
        first = nets[0]
        kind = first.net.why or {"own": "docker-fw network", "guarded": "Docker network"}[first.net.kind]
        inside = "; internal: no access from outside" if first.net.internal else ""
        yield f"{service.name}  on {', '.join(each.net.key for each in nets)} ({kind}{inside})"
        if first.refused:
            yield "  does not start: docker-fw refuses it until the mistakes are fixed"
            continue
        for line in _lines(first, several):
            yield f"  {line}"


def _shown(each: Judged) -> tuple[object, ...]:
    """Return what is shown of a network: those that are equal are shown together."""
    return (each.net.kind, each.net.why, each.net.internal, each.refused, *_lines(each, True))


def _lines(each: Judged, several: bool) -> list[str]:
    decided = each.policy
    accepts = [_group(rules, origin, each, several) for origin, rules in _by_origin(decided.accepts, each)]
    accepts += [f"{rule.what} (published)" for rule in decided.published]
    lines = [f"accepts: {', '.join(accepts) or 'ICMP only'}"]
    if any(problem.closes for problem in each.problems):
        lines[0] += " (closed by a mistake)"
    elif each.spec.policy == "closed" and not accepts:
        lines[0] += " (fw.policy: closed)"
    if decided.egress is None:
        lines.append("egress: everything")
    else:
        groups = [_group(rules, origin, each, several, "to") for origin, rules in _by_origin(decided.egress, each)]
        lines.append(f"egress: {', '.join(groups) or 'nothing'}")
    if decided.rates:
        lines.append(f"rate: {', '.join(map(str, decided.rates))}")
    if decided.log:
        lines.append(f"log: {decided.log}")
    return lines + [_published(opening, each) for opening in each.published]


def _by_origin(rules: Iterable[Rule], each: Judged) -> list[tuple[str, list[Rule]]]:
    """Group rules by origin: the base first, then the file from top to bottom."""
    found: dict[str, list[Rule]] = {}
    for rule in rules:
        found.setdefault(rule.origin, []).append(rule)
    return sorted(found.items(), key=lambda item: (item[0] != "base", each.places.get(item[0], Place(""))))


def _group(rules: list[Rule], origin: str, each: Judged, several: bool, preposition: str = "from") -> str:
    if set(rules) == set(EVERYTHING):
        text = "everything"
    else:
        text = ", ".join(r.what + (f" {preposition} {' '.join(map(str, r.peers))}" if r.peers else "") for r in rules)
    place = each.places.get(origin)
    where = "" if place is None else f", {place if several else f'line {place.line}'}"
    return f"{text} ({origin}{where})" if origin else text


def _published(opening: Opening, each: Judged) -> str:
    part, port = opening.part, opening.port
    partly = "" if (part.first, part.last) == (port.first, port.last) else f" {part.what}"
    if each.net.internal and opening.to != "host":
        how = "closed (the network is internal)"
    elif opening.to == "nobody":
        label = part.what.removesuffix("/tcp")
        how = f'closed to the outside (to open it: label fw.allow: "{label}")'
    elif opening.to == "some":
        peers = {str(p) for r in each.policy.accepts if _covers(r, part) for p in r.peers}
        how = f"open to {', '.join(sorted(peers))}"
    else:
        how = _OPEN[opening.to]
    return f"published {port}:{partly} {how}"


def _covers(rule: Rule, part: Rule) -> bool:
    return rule.proto == part.proto and rule.first <= part.last and part.first <= rule.last


def as_data(found: Found | None, notes: Notes) -> dict[str, Any]:
    """Return the same for programs; `services` is empty if the files cannot be read."""
    services = []
    for service in found[0].services.values() if found else ():
        not_guarded = (attachment.net for attachment in service.attachments if attachment.net.kind == "apart")
        networks = [{"network": net.key, "name": net.name, "kind": net.kind, "why": net.why} for net in not_guarded]
        networks += [_data(each) for each in found[1] if each.service is service] if found else []
        services.append({"service": service.name, "shares": service.shares or None, "networks": networks})
    return {
        "services": services,
        "mistakes": [_note(note) for note in sorted(notes.mistakes)],
        "warnings": [_note(note) for note in sorted(notes.warnings)],
    }


def _data(each: Judged) -> dict[str, Any]:
    decided, net = each.policy, each.net
    return {
        "network": net.key,
        "name": net.name,
        "kind": net.kind,
        "why": net.why,
        "internal": net.internal,
        "refused": each.refused,
        "accepts": [_rule(rule, each) for rule in (*decided.accepts, *decided.published)],
        "egress": None if decided.egress is None else [_rule(rule, each) for rule in decided.egress],
        "rates": [str(rate) for rate in decided.rates],
        "log": decided.log,
        "published": [
            {
                "host_ip": opening.port.host_ip,
                "host_port": opening.port.host,
                "container_port": opening.part.what,
                "open_to": opening.to,
            }
            for opening in each.published
        ],
    }


def _rule(rule: Rule, each: Judged) -> dict[str, Any]:
    place = each.places.get(rule.origin, Place(""))
    peers = [str(peer) for peer in rule.peers]
    return {"what": rule.what, "peers": peers, "origin": rule.origin, "file": place.file, "line": place.line}


def _note(note: Note) -> dict[str, Any]:
    return {"file": note.place.file, "line": note.place.line, "service": note.service, "text": note.text}
