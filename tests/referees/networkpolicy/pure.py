"""The pure level: the plugin's own reference (`plugin.policy.verdict`) judges every connection of a case."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from plugin.model import BridgeNetwork, Endpoint, Network, Policy
from plugin.nftables.compile import ElementCompiler
from plugin.policy.facts import ElementOwner
from plugin.policy.verdict import Packet, Verdict, verdict
from plugin.policy.view import PolicyView
from tests.referees.networkpolicy.cases import Case, Step
from tests.referees.networkpolicy.expected import Promises
from tests.referees.networkpolicy.placing import Layout, Place, compile_policies
from tests.referees.networkpolicy.probes import Grid, Probe, probes
from tests.referees.networkpolicy.spec import Cluster
from tests.referees.networkpolicy.translation import Translation

Labels = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class State:
    """A case after one of its steps: the cluster, the labels that are written for it, and docker-fw's promises."""

    case: Case
    step: Step
    cluster: Cluster
    labels: Labels
    promises: Promises


def states(layout: Layout, case: Case) -> Iterator[State]:
    """Yield the states of a case, one after each step."""
    cluster = layout.cluster()
    for step in case.steps:
        cluster = step.change(cluster)
        written = case.nearest(cluster) if case.nearest else cluster
        labels = Translation(written, case.node).all_labels()
        yield State(case, step, cluster, labels, Promises(layout, cluster, written, case.node))


class TooLarge(Exception):
    """The labels of a state are longer than docker-fw reads. It refuses them, so that they open nothing."""


def compiled(layout: Layout, places: Mapping[str, Place], state: State) -> ElementCompiler:
    """Return what the plugin makes of a state's labels.

    Raises TooLarge, and AssertionError if the plugin finds another mistake in them.
    """
    compiler = compile_policies(layout, places, state.cluster, state.labels)
    found = filter(None, map(compiler.view.endpoint, compiler.view.owners()))
    problems = [problem for _, endpoint in found if endpoint.container for problem in endpoint.container.problems]
    if any(re.search(r"at most \d+ are read|expands to more than", problem.text) for problem in problems):
        raise TooLarge(str(problems[0]))
    assert not problems, f"{state.case.name}, {state.step.text}: {'; '.join(map(str, problems))}"
    return compiler


def ready(
    layout: Layout, places: Mapping[str, Place], case: Case, result: Result
) -> Iterator[tuple[State, ElementCompiler]]:
    """Yield the states of a case, each with what the plugin makes of it.

    A state of a case by chance that is too large for labels is counted in the result, and left out.
    """
    for state in states(layout, case):
        try:
            compiler = compiled(layout, places, state)
        except TooLarge:
            if not case.by_chance:
                raise
            result.too_large += 1
        else:
            result.states += 1
            yield state, compiler


class StillView(PolicyView):
    """A view whose facts no longer change, so that each answer is computed once: there are thousands of packets."""

    def __init__(self, view: PolicyView) -> None:
        super().__init__(view.defaults, view.facts, view.overrides, view.directory, without_room=view.without_room)
        found = ((owner, view.endpoint(owner)) for owner in view.owners())
        self._found = {owner: place for owner, place in found if place}
        self._owners = list(self._found)
        self._policies: dict[ElementOwner, Policy] = {}

    def owners(self) -> list[ElementOwner]:
        """Return the owners that are endpoints: a verdict asks for no others."""
        return self._owners

    def endpoint(self, owner: ElementOwner) -> tuple[Network | BridgeNetwork, Endpoint] | None:
        """Return the owner's network and endpoint."""
        return self._found.get(owner)

    def effective(self, owner: ElementOwner, network: Network | BridgeNetwork, endpoint: Endpoint) -> Policy:
        """Return the policy that applies to an owner's addresses."""
        if owner not in self._policies:
            self._policies[owner] = super().effective(owner, network, endpoint)
        return self._policies[owner]


@dataclass
class Result:
    """Counts of one run. `too_large`: states whose policies are too large for labels; nothing is compared then.

    `differences`: probes by the name of the difference between Kubernetes and docker-fw.

    `wrong`: a text for each probe that ended in another way than promised.
    """

    cases: int = 0
    states: int = 0
    probes: int = 0
    too_large: int = 0
    differences: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def count(self, state: State, probe: Probe, expected: bool, difference: str, found: bool, why: str) -> None:
        """Count one probe. `why`: the reason of the outcome, for people."""
        self.probes += 1
        if difference:
            self.differences[difference] += 1
        if found is not expected:
            self.wrong.append(report(state, probe, expected, why))

    def add(self, other: Result) -> None:
        """Add the counts of another run."""
        self.cases += other.cases
        self.states += other.states
        self.probes += other.probes
        self.too_large += other.too_large
        self.differences.update(other.differences)
        self.wrong += other.wrong


def judged(view: PolicyView, probe: Probe) -> Verdict:
    """Return the plugin's verdict about a connection."""
    source = None if probe.source.node else probe.source.address
    host = probe.destination.node
    return verdict(view, Packet(source, probe.destination.address, probe.protocol, probe.port, host))


def compare(layout: Layout, places: Mapping[str, Place], case: Case, grid: Grid) -> Result:
    """Compare every connection after each step of a case."""
    result = Result(cases=1)
    for state, compiler in ready(layout, places, case, result):
        judge(state, compiler, probes(layout, state.cluster, grid), result)
    return result


def judge(state: State, compiler: ElementCompiler, asked: Iterable[Probe], result: Result) -> None:
    """Compare these connections of one state."""
    view = StillView(compiler.view)
    with view.deciding():
        for probe in asked:
            expected, difference = state.promises.of(probe)
            found = judged(view, probe)
            result.count(state, probe, expected, difference, found.accepted, found.steps[-1].text)


def report(state: State, probe: Probe, expected: bool, why: str) -> str:
    """Return the text for a probe that ended in another way than promised."""
    outcome = "must pass, and does not" if expected else "must not pass, and does"
    labels = {pod.id: dict(state.labels[pod.id]) for end in (probe.source, probe.destination) if (pod := end.pod)}
    return f"{state.case.name}, after {state.step.text!r}: {probe} {outcome}: {why}\n    {labels}"
