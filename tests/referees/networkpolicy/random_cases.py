"""Cases by chance, the same for the same seed: several policies of any shape for the pods of the registry's cases."""

from __future__ import annotations

from random import Random

from tests.referees.networkpolicy.cases import Case, created
from tests.referees.networkpolicy.families.own import BLOCKS
from tests.referees.networkpolicy.placing import NAMESPACES, PODS
from tests.referees.networkpolicy.spec import (
    ALL,
    PROTOCOLS,
    Direction,
    NetworkPolicy,
    Peer,
    Port,
    Requirement,
    Rule,
    Selector,
    labelled,
    within,
)

#: Blocks of few prefixes: many with more would not fit into a label.
_BLOCKS = [block for name, block in BLOCKS.items() if name != "IPv6 pods with exceptions"]
_TYPES: list[tuple[Direction, ...] | None] = [
    ("ingress",),
    ("egress",),
    ("ingress", "egress"),
    ("ingress", "egress"),
    None,
]


def random_case(seed: int) -> Case:
    """Return the case of this seed: policies that are created in one step, and one that is replaced in the next."""
    draw = _Draw(seed)
    policies = [draw.policy(str(number)) for number in range(draw.random.randint(1, 4))]
    return Case(f"seed {seed}", (created(*policies), created(draw.policy("0"))), by_chance=True)


class _Draw:
    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def policy(self, name: str) -> NetworkPolicy:
        types = self.random.choice(_TYPES)
        namespace = self.random.choice(NAMESPACES)
        selector = self.random.choice([ALL, self._pods(), self._pods()])
        return NetworkPolicy(name, namespace, selector, self._rules(), self._rules(), types)

    def _rules(self) -> tuple[Rule, ...]:
        return tuple(self._rule() for _ in range(self.random.choice([0, 1, 1, 2, 3])))

    def _rule(self) -> Rule:
        ports = tuple(self._port() for _ in range(self.random.choice([0, 1, 1, 2])))
        return Rule(ports, tuple(self._peer() for _ in range(self.random.choice([0, 1, 1, 1, 2]))))

    def _port(self) -> Port:
        protocol = self.random.choice(PROTOCOLS)
        number = self.random.choice([52, 53, 80, 81, 85, 443, 7981])
        name = f"{protocol}-{self.random.choice([80, 81])}"
        port: int | str | None = self.random.choice([None, number, number, name])
        end = self.random.randint(number, number + 60) if port == number and self.random.random() < 0.3 else None
        return Port(protocol, port, end)

    def _peer(self) -> Peer:
        kind = self.random.randrange(4)
        if kind == 0:
            return Peer(block=self.random.choice(_BLOCKS))
        if kind == 1:
            return Peer(pods=self._pods())
        if kind == 2:
            return Peer(namespaces=self._namespaces())
        return Peer(self._pods(), self._namespaces())

    def _pods(self) -> Selector:
        some = self.random.sample(PODS, self.random.randint(1, 2))
        without = Selector(expressions=(Requirement("pod", "NotIn", tuple(some)),))
        return self.random.choice([ALL, labelled(pod=some[0]), within("pod", *some), without])

    def _namespaces(self) -> Selector:
        some = self.random.sample(NAMESPACES, self.random.randint(1, 2))
        without = Selector(expressions=(Requirement("ns", "NotIn", tuple(some)),))
        return self.random.choice([ALL, labelled(ns=some[0]), within("ns", *some), without])
