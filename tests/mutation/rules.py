"""The part of the table's rules: first which rules each test reaches, then the mutants, in several sessions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tests.mutation import sessions
from tests.mutation.nft_text import Mutant, mutants, whole_text
from tests.mutation.sessions import ROOT, Result

#: Tests of the kernel tier that load the table in their own process and send packets.
TESTS = tuple(
    f"tests/kernel/test_{name}.py"
    for name in (
        "verdicts",
        "egress",
        "forged",
        "hostile",
        "quarantine",
        "bans",
        "conntrack",
        "docker29",
        "links",
        "peers",
        "ports",
        "rates",
        "revoke",
        "unused_addresses",
        "replacement",
        "reference",
        "icmpv6",
        "incus",
        "isolated",
        "guard",
        "new_listeners",
        "nflog",
        "helpers",
        "lookups",
        "elsewhere",
        "loading",
        "marks",
        "policy_edges",
        "rate_ranges",
        "host_edges",
        "quarantine_sets",
        "egress_edges",
    )
)


#: How many tests each mutant meets alone (two that found others of its rule are more).
ALONE = 3


def all_mutants() -> list[Mutant]:
    """Return every mutant of the tables as the product writes them, with chains of rates.

    Those of the many look-ups by ports and prefixes, which differ in a number, are last.
    """
    found = mutants(whole_text())
    return sorted(found, key=lambda mutant: "th sport & 0x0" in mutant.rule)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _current(each: Result, rules: str) -> bool:
    """True if neither the test's module nor the table changed since its coverage was measured."""
    module = ROOT / each["test"].partition("::")[0]
    return bool(each["rules"] == rules and module.exists() and each["module"] == _hash(module.read_text()))


def coverage(
    tests: Sequence[str], directory: Path, jobs: int, end: float, say: Callable[[str], None]
) -> dict[str, Result]:
    """Return which rules each test reaches; measured again for modules that changed. Raises UnfinishedError."""
    rules, known = _hash(whole_text()), directory / "coverage.jsonl"
    old = [json.loads(line) for line in known.read_text().splitlines()] if known.exists() else []
    kept = {each["test"]: each for each in old if _current(each, rules)}
    modules = {test.partition("::")[0] for test in kept}
    missing = [test for test in tests if test.partition("::")[0] not in modules]
    if missing:
        for stale in directory.glob("cover-*"):
            stale.unlink()
        shares = [share for i in range(jobs) if (share := missing[i::jobs])]
        running = [
            sessions.start("rules_judge", f"cover-{i}", directory, share, task="cover")
            for i, share in enumerate(shares)
        ]
        sessions.wait("cover", directory, running, len(missing), end, say)
        for each in sessions.results("cover", directory):
            module = (ROOT / each["test"].partition("::")[0]).read_text()
            kept[each["test"]] = {**each, "rules": rules, "module": _hash(module)}
        known.write_text("".join(json.dumps(each) + "\n" for each in kept.values()))
    wanted = tuple(tests)
    return {test: each for test, each in kept.items() if each["passed"] and test.startswith(wanted)}


def _as_json(mutant: Mutant) -> tuple[str, str, str, str]:
    return mutant.family, mutant.chain, mutant.rule, mutant.change


def _shares(wanted: Sequence[Mutant], jobs: int) -> list[list[Mutant]]:
    """Return the mutants of each session: all of a rule in the same one, which learns which test finds them."""
    by_rule: dict[tuple[str, str, str], list[Mutant]] = {}
    for each in wanted:
        by_rule.setdefault((each.family, each.chain, each.rule), []).append(each)
    groups = list(by_rule.values())
    return [[each for group in groups[i::jobs] for each in group] for i in range(jobs)]


def run(
    wanted: Sequence[Mutant],
    directory: Path,
    jobs: int,
    end: float,
    say: Callable[[str], None],
    tests: Iterable[str] = TESTS,
    *,
    alone: int = ALONE,
    found: Iterable[tuple[Mutant, str]] = (),
) -> None:
    """Judge these mutants; `sessions.results("judge", directory)` are the results. Raises UnfinishedError.

    `end`: the latest time, monotonic. `alone`: how many of the likeliest tests each meets by itself first. `found`:
    which tests found mutants in earlier runs; they are likely to find others near them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for stale in directory.glob("judge-*"):
        stale.unlink()
    tests = list(tests)
    covered = coverage(tests, directory, jobs, end, say)
    facts = {
        "coverage": {test: each["covered"] for test, each in covered.items()},
        "seconds": {test: each["seconds"] for test, each in covered.items()},
        "found": [(*_as_json(each), test) for each, test in found],
    }
    running = [
        sessions.start(
            "rules_judge",
            f"judge-{i}",
            directory,
            tests,
            task="judge",
            alone=alone,
            mutants=[_as_json(each) for each in share],
            **facts,
        )
        for i, share in enumerate(_shares(wanted, jobs) if alone else [wanted[i::jobs] for i in range(jobs)])
    ]
    sessions.wait("judge", directory, running, len(wanted), end, say)
