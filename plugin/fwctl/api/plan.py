"""The changes that other settings would make, as data: + would be added, - would be removed. Pure."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping

from plugin.model import BridgeNetwork, Container, Endpoint, Network, Policy
from plugin.nftables.compile import ElementCompiler
from plugin.nftables.document import skeleton
from plugin.nftables.drift import DriftLine, drift_line
from plugin.nftables.sets import Change
from plugin.policy.facts import Facts
from plugin.policy.frozen import FrozenDict
from plugin.policy.view import PolicyView


def with_containers(known: Mapping[str, Container]) -> Callable[[Facts], Facts]:
    """Labels as they would be read, by the endpoint's ID."""

    def change(facts: Facts) -> Facts:
        guests = {k: dataclasses.replace(g, endpoint=_with(g.endpoint, known)) for k, g in facts.guests.items()}
        endpoints = {key: _with(endpoint, known) for key, endpoint in facts.saved.endpoints.items()}
        saved = dataclasses.replace(facts.saved, endpoints=FrozenDict(endpoints))
        return dataclasses.replace(facts, saved=saved, guests=FrozenDict(guests))

    return change


def _with(endpoint: Endpoint, known: Mapping[str, Container]) -> Endpoint:
    container = known.get(endpoint.id)
    return dataclasses.replace(endpoint, container=container) if container and endpoint.container else endpoint


def policies(before: PolicyView, after: PolicyView) -> list[DriftLine]:
    """Return what each container would accept and may open in addition, and what it no longer would."""
    found: list[DriftLine] = []
    for owner in before.owners():
        old, new = before.endpoint(owner), after.endpoint(owner)
        if old and new and old[1].container:
            was, will = (
                dict(_sentences(inventory.decide(*place))) for inventory, place in ((before, old), (after, new))
            )
            who = f"{old[1].container.name} on {_called(old[0], old[1])}"
            found += [drift_line("-", "policy", text, who) | {"origin": was[text]} for text in was if text not in will]
            found += [drift_line("+", "policy", text, who) | {"origin": will[text]} for text in will if text not in was]
    return sorted(found, key=lambda line: (line["who"], line["sign"] == "+"))


def _sentences(policy: Policy) -> Iterator[tuple[str, str]]:
    """Yield a policy as sentences, each with its origin."""
    if not policy.labels_valid:
        yield "answers on ICMP only", ""
    for rule in policy.accepts:
        yield f"accepts {rule}", rule.origin
    for rule in policy.published:
        yield f"accepts {rule.what} through its published port", rule.origin
    if policy.egress is None:
        yield "egress: everything", ""
    elif not policy.egress:
        yield "egress: nothing", ""
    for rule in policy.egress or ():
        yield f"egress: {rule}".replace(" from ", " to ", 1), rule.origin
    for rate in policy.rates:
        yield f"rate limit: {rate}", rate.origin
    if policy.log:
        yield f"logs drops: {policy.log}", ""


def _called(network: Network | BridgeNetwork, endpoint: Endpoint) -> str:
    if isinstance(network, BridgeNetwork):
        return network.name
    return (endpoint.container.network if endpoint.container else "") or network.bridge


def difference(before: ElementCompiler, after: ElementCompiler) -> Change:
    """Return the elements that would be removed and added."""
    old, new = before.all_elements(), after.all_elements()
    return Change(tuple(old - new), tuple(new - old))


def rule_differences(before: int, after: int) -> list[DriftLine]:
    """Return the rules that differ by the mark."""
    one, other = skeleton(before).splitlines(), skeleton(after).splitlines()
    lines = (line for line in difflib.ndiff(one, other) if line[:2] in ("- ", "+ "))
    return [drift_line(line[0], "rule", line[2:].strip(), "") for line in lines]
