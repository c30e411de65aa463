"""The registry of case families. Importing `tests.referees.networkpolicy.families` fills it.

A case is a story: one or more steps that change a cluster, after each of which every connection is compared. Adding a
case is one entry in a family; adding a family is one decorated function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.referees.networkpolicy.placing import Layout
from tests.referees.networkpolicy.spec import Cluster, NetworkPolicy

Change = Callable[[Cluster], Cluster]


@dataclass(frozen=True)
class Step:
    """One change of the cluster. `text` names it, for people."""

    text: str
    change: Change


@dataclass(frozen=True)
class Case:
    """A story of steps.

    `node`: the labels also say that a container may open connections to its host, as Kubernetes always allows.
    `nearest`: the policy cannot be written as labels, for the `reason`; the policies that this makes of it can, and
    are narrower. `by_chance`: its policies may be too large for labels; such a state is counted and left out.
    """

    name: str
    steps: tuple[Step, ...]
    node: bool = True
    nearest: Change | None = None
    reason: str = ""
    by_chance: bool = False


@dataclass(frozen=True)
class Family:
    """Cases about one subject. `origin`: where the list is from."""

    name: str
    subject: str
    origin: str
    make: Callable[[Layout], Iterator[Case]]

    def cases(self, layout: Layout) -> list[Case]:
        """Return the cases; their names are unique."""
        cases = list(self.make(layout))
        assert len({case.name for case in cases}) == len(cases), f"{self.name} has two cases of one name"
        return cases


FAMILIES: dict[str, Family] = {}
CYCLONUS = "cyclonus"
DOCUMENTATION = "Kubernetes' documentation"
RECIPES = "network policy recipes"
OURS = "docker-fw"


def family(name: str, subject: str, origin: str) -> Callable[[Callable[[Layout], Iterator[Case]]], None]:
    """Return a decorator that registers a function as a family."""

    def register(make: Callable[[Layout], Iterator[Case]]) -> None:
        assert name not in FAMILIES, f"two families are named {name}"
        FAMILIES[name] = Family(name, subject, origin, make)

    return register


def created(*policies: NetworkPolicy) -> Step:
    """Return the step that creates these policies, or replaces those of the same names."""
    return Step(f"apply {', '.join(each.name for each in policies)}", lambda cluster: cluster.apply(*policies))


def single(name: str, *policies: NetworkPolicy) -> Case:
    """Return the case of one step that creates these policies."""
    return Case(name, (created(*policies),))
