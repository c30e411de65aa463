"""The mutators themselves: they understand all of the table, and what the judge calls killed is killed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.mutation import condition_sessions, conditions, report, rules, sessions
from tests.mutation.nft_text import Mutant, changes, is_rule, lines, mutants, mutated, parts
from tests.mutation.rules_order import Order

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", ["empty.nft", "words.nft"])
def test_every_rule_is_understood(name: str) -> None:
    """No rule of the table escapes: each is read completely, as matches, statements and a verdict."""
    whole = [line.text for line in filter(is_rule, lines((GOLDEN / name).read_text()))]
    assert len(whole) > 400
    assert [" ".join(part.text for part in parts(rule)) for rule in whole] == whole


def test_a_rule_is_weakened_in_each_way() -> None:
    """Removed; without a match or a value; a match negated; another verdict."""
    assert changes("ct state new,invalid iifname != @internal goto deny") == {
        "removed": "",
        "without `ct state new,invalid`": "iifname != @internal goto deny",
        "`ct state new,invalid` negated": "ct state != { new, invalid } iifname != @internal goto deny",
        "without new": "ct state invalid iifname != @internal goto deny",
        "without invalid": "ct state new iifname != @internal goto deny",
        "without `iifname != @internal`": "ct state new,invalid goto deny",
        "`iifname != @internal` negated": "ct state new,invalid iifname == @internal goto deny",
        "goto deny is accept": "ct state new,invalid iifname != @internal accept",
    }


def test_every_mutant_differs_from_the_table_in_its_place_only() -> None:
    """Each mutant has a name of its own, and changes one line, except the rules that occur more than once."""
    text = (GOLDEN / "words.nft").read_text()
    found = mutants(text)
    assert len({mutant.name for mutant in found}) == len(found) > 1300
    for mutant in found[::40]:
        changed = [a for a, b in zip(text.splitlines(), mutated([mutant], text).splitlines(), strict=True) if a != b]
        assert len(changed) == 1 or "__" in mutant.chain, mutant.name


def test_the_list_of_survivors_names_mutants_that_exist() -> None:
    """A rule or condition that is edited or removed leaves no stale reason behind."""
    for part in ("policy", "labels"):
        assert report.missing(part, [mutant.name for mutant in conditions.all_mutants(f"plugin/{part}/")]) == []


def test_a_rule_of_the_list_exists_too() -> None:
    """The same for the table's rules."""
    assert report.missing("rules", [mutant.name for mutant in rules.all_mutants()]) == []


def test_an_inexact_list_is_reported() -> None:
    """A survivor without a reason fails the run, and the report names it."""
    alive = {"name": "x", "state": "survived", "killer": ""}
    found = {"rules": {}, "policy": {"x": alive}, "labels": {}}
    (mistake,) = [each for each in report.mistakes({"policy": ["x"]}, found) if "does not exist" not in each]
    assert mistake == "policy: survives, and is not listed: x"


@pytest.mark.timeout(1800)  # a session of pytest: a second, but not on a busy machine
def test_killed_and_surviving_conditions_differ(tmp_path: Path) -> None:
    """A condition that is removed makes a test fail; a change that the same tests cannot see does not."""
    wanted = {
        "if `egress is None` → True": "killed",
        "if `not to_host and initiator.internal` → False": "killed",
        "if `flow.proto in _PORT_NUMBERS` → True": "survived",
    }
    mutants = [each for each in conditions.mutants("plugin/policy/flows.py") if each.change in wanted]
    mutants = [each for each in mutants if each.function in ("_may_open", "_ends")]
    names = ("test_nothing_enters_or_leaves_an_internal_network", "test_a_flow_with_two_containers_ends_if_one_of")
    tests = [f"tests/pure/policy/test_flows.py::{name}" for name in (names[0], f"{names[1]}_them_is_closed_to_it")]
    condition_sessions.run(mutants, tmp_path, 2, time.monotonic() + 1700, lambda _: None, tests)
    states = {each["name"]: each["state"] for each in sessions.results("judge", tmp_path)}
    assert states == {each.name: wanted[each.change] for each in mutants}
    assert len(states) == len(wanted)


def test_a_mutant_is_a_place_in_a_chain() -> None:
    """The same rule in two chains makes two mutants."""
    one, two = (Mutant("inet", chain, "iifname @internal goto deny", "removed") for chain in ("forward", "outbound"))
    assert one.name != two.name


def test_a_rule_that_leads_to_a_chain_meets_the_tests_of_its_rarest_rules() -> None:
    """Every test reaches the rule, and quick ones are first otherwise; the test that is about the chain finds more."""
    here, common, rare = (
        "inet input: ct state new goto new_to_host",
        "inet new_to_host: meta nfproto != @lease jump lease_expired",
        "inet lease_expired: ip daddr . meta l4proto . th dport @host_open4 goto deny_host",
    )
    covered = {f"m::quick{n}": [here, common] for n in range(3)} | {"m::of_the_lease": [here, common, rare]}
    coverage = {test: {"reached": them, "matched": them} for test, them in covered.items()}
    order = Order(coverage, {test: 1.0 if "quick" in test else 9.0 for test in coverage}, 1)
    mutant = Mutant("inet", "input", "ct state new goto new_to_host", "removed")
    assert order.likeliest(mutant, "m") == ["m::of_the_lease"]
    other = Mutant("inet", "new_to_host", "meta nfproto != @lease jump lease_expired", "removed")
    assert order.likeliest(other, "m") == ["m::of_the_lease"]
    assert rare in order.chains.within("inet", "new_to_host")
    assert rare not in order.chains.after(other)


def test_the_tests_that_found_a_mutant_meet_others_of_its_chain_first() -> None:
    """A rule's neighbours in its chain are about the same, and so is the chain that it leads to."""
    here, there = (
        "inet input: ct state new goto new_to_host",
        "inet new_to_host: meta nfproto != @lease jump lease_expired",
    )
    coverage = {f"m::quick{n}": {"reached": [here, there], "matched": [here, there]} for n in range(200)}
    coverage["m::slow[4]"] = coverage["m::slow[6]"] = coverage["m::quick0"]
    order = Order(coverage, {test: 1.0 if "quick" in test else 9.0 for test in coverage}, 0)
    order.killed(Mutant("inet", "new_to_host", "goto unlisted_proxy", "removed"), "m::slow[4]")
    for chain, rule in (each.removeprefix("inet ").split(": ") for each in (here, there)):
        assert order.others(Mutant("inet", chain, rule, "removed"), "m")[:2] == ["m::slow[4]", "m::slow[6]"]


def test_what_a_rule_does_is_missed_by_packets_that_match_it() -> None:
    """A rule without its statement treats no other packet differently; one without a match does."""
    match = "ip saddr . meta l4proto @quarantine4_all_from"
    statement = "update @quarantine4_all_from { ip saddr . meta l4proto timeout 600s }"
    rule = f"{match} {statement} goto deny"
    name = f"inet quarantine4: {rule}"
    coverage = {"m::one": {"reached": [name], "matched": []}, "m::other": {"reached": [name], "matched": [name]}}
    order = Order(coverage, dict.fromkeys(coverage, 1.0), 1)
    without = {part: Mutant("inet", "quarantine4", rule, f"without `{part}`") for part in (match, statement)}
    assert order.tests(without[statement]) == {"m::other"}
    assert order.likeliest(without[match], "m") == ["m::one"]
