"""Run cases and judge them by what the attacked side received."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass

from .bed import Bed, Seen
from .case import KINDS, REPLIES, SENDERS, Case, Kind


@dataclass(frozen=True)
class Result:
    """A case that was run on one kind of network; no problems: it did exactly what was expected."""

    case: Case
    kind: Kind
    seen: Seen
    problems: tuple[str, ...]

    def __str__(self) -> str:
        arrived = ", ".join(sorted(self.seen.arrived)) or "nothing"
        return (
            f"{self.case.title} [{self.kind}] arrived: {arrived}{''.join(f'  WRONG: {each}' for each in self.problems)}"
        )


def run(cases: Iterable[Case], lanes: int) -> Iterator[Result]:
    """Run all cases, `lanes` of each kind of network at once, and yield each result as it is known.

    The cases of a hostile neighbour run one after the other: they disturb their whole network.
    """
    with Bed.made(lanes) as bed, ExitStack() as stack:
        pools = {
            (sender, kind): stack.enter_context(ThreadPoolExecutor(1 if sender == "neighbour" else lanes))
            for sender in SENDERS
            for kind in KINDS
        }
        waiting = [pools[case.sender, kind].submit(_one, bed, case, kind) for case in cases for kind in case.kinds]
        try:
            for done in as_completed(waiting):
                yield done.result(timeout=0)  # it is done
        finally:
            for each in waiting:
                each.cancel()


def _one(bed: Bed, case: Case, kind: Kind) -> Result:
    with bed.spot(case.sender, kind) as spot:
        seen = spot.attack(case)
        return Result(case, kind, seen, tuple(problems(case, seen, bed.accepted[str(spot.target.v6)])))


def problems(case: Case, seen: Seen, accepted: frozenset[str]) -> Iterator[str]:
    """Yield each difference from what a case expects, and each arrival that `fwctl status` does not list as open."""
    arrived = seen.arrived - REPLIES if case.sender == "outsider" else seen.arrived
    if more := arrived - case.arrives:
        yield f"not expected: {sorted(more)}"
    if missing := case.arrives - arrived:
        yield f"did not arrive: {sorted(missing)}"
    if case.sender == "outsider":
        ports = {each for each in arrived | seen.served if not each.startswith("icmp")}
        if closed := {each.removeprefix("part of ") for each in ports} - accepted - {"icmpv6 128"}:
            yield f"closed, but reached: {sorted(closed)}"
    if seen.changed != case.changes:
        yield f"changed: {sorted(seen.changed)}, expected: {sorted(case.changes)}"
    state, protocol = case.finds
    if state:
        found = {f"{protocol} {port}" for port in re.findall(rf"\b(\d+)/{state}/{protocol}/", seen.printed)}
        listed = {each for each in accepted if each.startswith(protocol)}
        if found != listed:
            yield f"nmap says {state}: {sorted(found)}; fwctl status lists: {sorted(listed)}"
