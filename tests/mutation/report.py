"""Compare the results with the list of survivors, and write docs/mutation.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from tests.mutation.sessions import Result
from tests.mutation.survivors import SURVIVORS

#: The parts of a run, with what is changed in each.
PARTS = {
    "rules": "each rule, base chain and set of the tables",
    "policy": "each condition of `plugin/policy/`",
    "labels": "each condition of `plugin/labels/`",
}
_HEAD = """# Mutation: does a test notice a weaker firewall?

`make mutation` weakens the product at one place at a time: a rule of the table is removed, one of its matches is
removed or negated, a drop becomes an accept; or a condition in the code that decides is removed or reversed. Then the
tests run that reach this place. A mutant is *killed* if a test fails: for rules, a test of the kernel tier that sends
packets; texts of whole tables (`tests/golden/`) do not count. The survivors are listed here with the reason, and the
run fails if the list is not exact. This file is written by the run.

Left out is what opens nothing: rules that accept are not removed or made narrower, and rules that only change
addresses (NAT) or write to the log are not changed. These are sampled:

- Look-ups by port and prefix that differ in the prefix's length only: the shortest, one between, the longest. For
  blocks of ports: one of these lengths.
- Chains with a copy for each family, which one function writes: each change is made in one of the two, in turn.
- Chains of a rate: those for ports of the host, and for ports with several rates, are copies too, and left out.
- Tests with random inputs try 15 of them for each mutant of a rule, 25 for each of a condition.

A mutant meets the tests that are likeliest to find it alone, and the others together with other mutants: of a rule's
mutants, a hundred tests that send it a packet, with four parameters of one test at most. If a rule leads to another
chain, the tests that reach the rarest rules there are first, with those that found other mutants of either chain, also
in earlier runs. A test that fails with several is tried with half of them at a time, and with each in the end. A
failure counts if the test passes without the mutant right afterwards, twice if it failed before; and if something only
came too late, it must fail twice.

| part | changed | mutants | killed | the kernel refuses | survive | not judged |
|---|---|---|---|---|---|---|
"""


def unlisted(part: str, names: Sequence[str]) -> list[str]:
    """Return the mutants that no entry of the list names."""
    return [name for name in names if not any(each.part == part and each.listed(name) for each in SURVIVORS)]


def missing(part: str, names: Sequence[str]) -> list[str]:
    """Return the names in the list that no mutant has."""
    return [
        name
        for each in SURVIVORS
        if each.part == part
        for name, pattern in each.patterns.items()
        if not any(pattern.fullmatch(mutant) for mutant in names)
    ]


def mistakes(existing: Mapping[str, Sequence[str]], found: Mapping[str, Mapping[str, Result]]) -> list[str]:
    """Return what is wrong with the list of survivors, a line for each."""
    wrong = []
    for part, names in existing.items():
        results = found[part]
        alive = [name for name in names if name in results and results[name]["state"] == "survived"]
        killed = [name for name in names if name in results and results[name]["state"] == "killed"]
        wrong += [f"{part}: survives, and is not listed: {name}" for name in unlisted(part, alive)]
        wrong += [f"{part}: is listed, and does not exist: {name}" for name in missing(part, names)]
        rightly = set(unlisted(part, killed))
        listed = [name for name in killed if name not in rightly]
        wrong += [f"{part}: is listed, and {results[name]['killer']} fails: {name}" for name in listed]
    return wrong


def text(existing: Mapping[str, Sequence[str]], found: Mapping[str, Mapping[str, Result]]) -> str:
    """Return docs/mutation.md."""
    rows = ""
    for part, names in existing.items():
        states = Counter(found[part][name]["state"] if name in found[part] else "" for name in names)
        counts = [len(names), *(states[state] for state in ("killed", "refused", "survived", ""))]
        rows += f"| {part} | {PARTS[part]} | {' | '.join(map(str, counts))} |\n"
    survivors = ""
    for part, names in existing.items():
        alive = [name for name in names if found[part].get(name, {}).get("state") == "survived"]
        survivors += f"\n## Survivors: {part}\n"
        for each in (each for each in SURVIVORS if each.part == part):
            survivors += f"\n{each.reason}\n\n"
            survivors += "".join(f"- {_shown(name)}\n" for name in alive if each.listed(name))
    return _HEAD + rows + survivors


def _shown(name: str) -> str:
    place, _, change = name.partition(": " if name.startswith("plugin/") else " → ")
    return f"`{place}`: {change}"
