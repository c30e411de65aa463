"""The parts of the tables that a kernel may lack: without one of them nothing else is missing."""

from __future__ import annotations

import dataclasses
import itertools
import re

import pytest

from plugin.nftables.document import skeleton
from plugin.nftables.features import FORGET, PROBES, Features
from plugin.nftables.sets import SETS
from tests.pure.nftables.examples import blank

MARK = 0x08000000
EVERY = [Features(*five) for five in itertools.product((False, True), repeat=5)]
EVERY += [Features(sctp=False), Features(late_fib=False), Features(*[False] * len(dataclasses.fields(Features)))]


@pytest.mark.parametrize("features", EVERY, ids=str)
def test_elements_are_left_out_exactly_where_their_sets_are(features: Features) -> None:
    """A kernel without a feature gets the elements of all sets in its tables, and no others: those would be refused."""
    written = set(re.findall(r"^\t(?:set|map) (\w+) {", skeleton(MARK, features), re.MULTILINE))
    loadable = {element.set for element in features.loadable(map(blank, SETS))}
    assert loadable == written


@pytest.mark.parametrize("features", EVERY, ids=str)
def test_every_kernel_gets_every_hook_of_the_main_table(features: Features) -> None:
    """A missing feature takes rules away; one adds a chain, and without sockets none looks for them."""
    early = [] if features.late_fib else ["type filter hook prerouting priority -90; policy accept"]
    last = [] if features.listeners else ["type filter hook input priority 150; policy accept"]
    assert sorted(hooks(features) + last) == sorted(hooks(Features()) + early)


def test_an_old_kernel_looks_routes_up_only_where_it_can() -> None:
    """Before Linux 5.19 `fib` returns a link in prerouting only; a chain that another hook reaches would be refused."""
    for late_fib, expected in ((True, {"forward", "input"}), (False, {"prerouting"})):
        text = skeleton(MARK, Features(late_fib=late_fib)).partition("\ntable bridge ")[0]
        chains = dict(re.findall(r"^\tchain (\w+) {\n(.*?)^\t}", text, re.MULTILINE | re.DOTALL))
        found = set()
        for body in chains.values():
            if hook := re.search(r"type \w+ hook (\w+)", body):
                reached, todo = set[str](), {body}
                while todo:
                    reached |= todo
                    todo = {chains[n] for each in todo for n in re.findall(r"(?:jump|goto) (\w+)", each)} - reached
                if any(re.search(r"fib [^@{]*\boif", each) for each in reached):
                    found.add(hook[1])
        assert found == expected


def hooks(features: Features) -> list[str]:
    main = skeleton(MARK, features).partition("\ntable bridge ")[0]
    return re.findall(r"type \w+ hook [^;]+; policy \w+", main)


def test_a_probe_leaves_nothing_behind() -> None:
    """A feature that is tried is one of the fields, and its table is removed afterwards."""
    for probe in PROBES:
        assert hasattr(Features(), probe.feature)
        first, *_, last = (probe.text + FORGET * probe.leaves).splitlines()
        made = re.match(r"(?:create )?(table \w+ [\w-]+)", first)
        assert made
        assert last == f"delete {made[1]}"
