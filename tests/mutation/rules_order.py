"""Which tests a mutant of a rule meets, and in which order: by the rules that the packets of each test reach."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from tests.mutation.nft_text import Mutant, general, is_statement, places, whole_text

#: How many tests those that survive the likeliest meet together with others, and how many parameters of one function.
FURTHER, PARAMETERS = 100, 4
#: How many of the tests that found others of the chain, or of the chain that the rule leads to, are first.
NEAR = 20
#: A test's coverage: the rules that a packet reached, and those that matched, as `rule_name` writes them.
Covered = dict[str, list[str]]
#: The chain that a rule leads to.
_TARGET = re.compile(r"(?:goto|jump) (\S+)$")


def rule_name(family: str, chain: str, rule: str) -> str:
    """Return a rule as coverage names it."""
    return f"{family} {chain}: {general(rule)}"


def _target(rule: str) -> str:
    """Return the chain that a rule leads to; "" if it is one that only counts, logs and drops."""
    found = _TARGET.search(rule)
    return found[1] if found and not found[1].startswith("deny") else ""


def _only_if_matched(mutant: Mutant) -> bool:
    """True if only a packet that matches the rule can be treated differently."""
    change = mutant.change
    return change == "removed" or " is " in change or is_statement(change.removeprefix("without `").rstrip("`"))


def _few(tests: Iterable[str]) -> list[str]:
    """Return the tests, of each function the first few parameters only."""
    count: Counter[str] = Counter()
    found = []
    for test in tests:
        function = test.partition("[")[0]
        count[function] += 1
        if count[function] <= PARAMETERS:
            found.append(test)
    return found


class Chains:
    """Which rules a packet can meet from a chain, or from a rule, on."""

    def __init__(self, rules: Sequence[tuple[str, str, str]]) -> None:
        self._chains: dict[tuple[str, str], list[str]] = {}
        for family, chain, rule in rules:
            self._chains.setdefault((family, chain), []).append(rule)

    def within(self, family: str, chain: str) -> set[str]:
        """Return the rules of a chain, and of all chains that it leads to."""
        return self._from(family, [(chain, 0)])

    def after(self, mutant: Mutant) -> set[str]:
        """Return the rules after the mutant's: in its chain, and in those that jump there."""
        here = self._chains.get((mutant.family, mutant.chain), [])
        start = here.index(mutant.rule) + 1 if mutant.rule in here else 0
        callers = [
            (chain, number + 1)
            for (family, chain), rules in self._chains.items()
            for number, rule in enumerate(rules)
            if family == mutant.family and rule.endswith(f"jump {mutant.chain}")
        ]
        return self._from(mutant.family, [(mutant.chain, start), *callers])

    def _from(self, family: str, starts: Iterable[tuple[str, int]]) -> set[str]:
        found: set[str] = set()
        left = [*starts]
        while left:
            chain, first = left.pop()
            for rule in self._chains.get((family, chain), [])[first:]:
                name = rule_name(family, chain, rule)
                if name not in found and (target := _target(rule)):
                    left.append((target, 0))
                found.add(name)
        return found


class Order:
    """Which tests to run for a mutant, and in which order.

    One module after the other, because fixtures of modules are costly; those whose tests are quick are first.
    """

    def __init__(self, coverage: dict[str, Covered], seconds: dict[str, float], alone: int) -> None:
        self.alone = alone
        by_module: dict[str, list[float]] = {}
        for test in coverage:
            by_module.setdefault(test.partition("::")[0], []).append(seconds[test])
        self.modules = sorted(by_module, key=lambda module: sum(by_module[module]) / len(by_module[module]))
        self.by: dict[tuple[str, str], set[str]] = {}
        for test, covered in coverage.items():
            for kind, rules in covered.items():
                for rule in rules:
                    self.by.setdefault((kind, rule), set()).add(test)
        #: Seconds times rules: a quick test of few rules is about them.
        self.cost = {test: seconds[test] * (1 + len(covered["matched"])) for test, covered in coverage.items()}
        self.kills: Counter[tuple[str, str]] = Counter()
        self.rules = [(family, chain, general(rule)) for family, chain, rule, _ in places(whole_text())]
        self.chains = Chains(self.rules)
        self._best: dict[Mutant, set[str]] = {}
        self._tests: dict[Mutant, set[str]] = {}
        self._others: dict[Mutant, list[str]] = {}

    def tests(self, mutant: Mutant) -> set[str]:
        """Return the tests whose packets reach the rule, or match it if only a match makes a difference."""
        if mutant not in self._tests:
            self._tests[mutant] = self._found(mutant)
        return self._tests[mutant]

    def _found(self, mutant: Mutant) -> set[str]:
        return self._those("matched" if _only_if_matched(mutant) and "__" not in mutant.chain else "reached", mutant)

    def _those(self, kind: str, mutant: Mutant) -> set[str]:
        return {test for rule in self._reached(mutant) for test in self.by.get((kind, rule), ())}

    def likeliest(self, mutant: Mutant, module: str) -> list[str]:
        """Return the module's tests that meet the mutant alone: a few, and those that found others of its rule."""
        tests = self.tests(mutant)
        siblings = sorted(
            (test for test in tests if self.kills[mutant.rule, test]), key=lambda t: -self.kills[mutant.rule, t]
        )
        found = self.best(mutant, tests).union(siblings[:2], self._near(mutant)[:3])
        mine = (test for test in found if test.startswith(f"{module}::"))
        return sorted(mine, key=lambda test: (-self._likely(mutant, test), self.cost[test]))

    def best(self, mutant: Mutant, tests: set[str]) -> set[str]:
        """Return the likeliest tests, of different functions."""
        if mutant not in self._best:
            by_function: dict[str, str] = {}
            for test in self._by_likelihood(mutant, tests):
                by_function.setdefault(test.partition("[")[0], test)
            self._best[mutant] = set([*by_function.values()][: self.alone])
        return self._best[mutant]

    def others(self, mutant: Mutant, module: str) -> list[str]:
        """Return the module's tests that meet the mutant together with others."""
        if mutant not in self._others:
            near = _few(self._near(mutant))[:NEAR]
            further = _few(self._by_likelihood(mutant, self.tests(mutant)))[:FURTHER]
            self._others[mutant] = list(dict.fromkeys([*near, *further]))
        return [test for test in self._others[mutant] if test.startswith(f"{module}::")]

    def _by_likelihood(self, mutant: Mutant, tests: Iterable[str]) -> list[str]:
        """Sort tests: those about what follows, and those that send a packet to be treated differently.

        If the rule leads to another chain, first those that match the rarest rules there: nearly every test reaches
        some such rules, and only the tests that are about that chain notice that packets do not get there.
        """
        matched = self._those("matched", mutant)
        wider = not _only_if_matched(mutant) and mutant.change.startswith("without `")
        by_cost = sorted(tests, key=lambda test: ((test in matched) == wider, self.cost[test]))
        target = _target(mutant.rule)
        if target:
            return list(dict.fromkeys([*self._rarest(self.chains.within(mutant.family, target), by_cost), *by_cost]))
        following = self._rarest(self.chains.after(mutant), by_cost)
        return list(dict.fromkeys(test for pair in zip_longest(by_cost, following) for test in pair if test))

    def _near(self, mutant: Mutant) -> list[str]:
        """Return its tests that found mutants near it, and the same with other parameters: most finds first."""
        places = (mutant.rule, mutant.chain, _target(mutant.rule))
        tests = {test: sum(self.kills[place, test] for place in places) for test in self.tests(mutant)}
        functions: Counter[str] = Counter()
        for test, kills in tests.items():
            functions[test.partition("[")[0]] += kills
        found = [test for test in tests if functions[test.partition("[")[0]]]
        return sorted(found, key=lambda t: (-tests[t], -functions[t.partition("[")[0]], self.cost[t]))

    def _rarest(self, rules: Iterable[str], tests: Sequence[str]) -> list[str]:
        """Return for each rule, beginning with the one that the fewest tests match, the first test that matches it."""
        matching = {rule: [test for test in tests if test in self.by.get(("matched", rule), ())] for rule in rules}
        rarest = sorted((found for found in matching.values() if found), key=len)
        return list(dict.fromkeys(found[0] for found in rarest))

    def _reached(self, mutant: Mutant) -> Iterable[str]:
        """Return the rules that a packet must reach to be treated differently."""
        name = mutant.chain.removeprefix("set ")
        # The copies of a rate's chains differ in their rules' places, so a test of any is a test of all.
        rate = mutant.chain.startswith("limit") and "__" in mutant.chain
        for family, chain, rule in self.rules:
            if rate and chain.startswith("limit") and "__" in chain:
                yield f"{family} {chain}: {rule}"
            here = chain == mutant.chain and (mutant.rule.startswith("type ") or rule == mutant.rule)
            uses = name != mutant.chain and f"@{name} " in f"{rule} "
            if family == mutant.family and (here or uses):
                yield f"{family} {chain}: {rule}"

    def _likely(self, mutant: Mutant, test: str) -> int:
        return 10 * self.kills[mutant.rule, test] + self.kills[mutant.chain, test]

    def killed(self, mutant: Mutant, test: str) -> None:
        """Remember which test found it: it is likely to find others of this rule and chain."""
        self.kills[mutant.rule, test] += 1
        self.kills[mutant.chain, test] += 1
