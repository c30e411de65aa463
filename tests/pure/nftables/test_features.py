"""The parts of the tables that a kernel may lack: without one of them nothing else is missing."""

from __future__ import annotations

import itertools
import re

import pytest

from plugin.nftables.document import skeleton
from plugin.nftables.features import PROBES, Features
from plugin.nftables.sets import SETS, Element

MARK = 0x08000000
EVERY = [Features(*five) for five in itertools.product((False, True), repeat=5)]


@pytest.mark.parametrize("features", EVERY, ids=str)
def test_elements_are_left_out_exactly_where_their_sets_are(features: Features) -> None:
    """A kernel without a feature gets the elements of all sets in its tables, and no others: those would be refused."""
    written = set(re.findall(r"^\t(?:set|map) (\w+) {", skeleton(MARK, features), re.MULTILINE))
    loadable = {element.set for element in features.loadable([Element(name, ()) for name in SETS])}
    assert loadable == written


@pytest.mark.parametrize("features", EVERY, ids=str)
def test_every_kernel_gets_every_hook_of_the_main_table(features: Features) -> None:
    """A missing feature takes rules away, and no chain that the kernel calls."""
    assert hooks(features) == hooks(Features())


def hooks(features: Features) -> list[str]:
    main = skeleton(MARK, features).partition("\ntable bridge ")[0]
    return re.findall(r"type \w+ hook [^;]+; policy \w+", main)


def test_a_probe_leaves_nothing_behind() -> None:
    """A feature that is tried is one of the fields, and its table is removed in the same transaction."""
    for probe in PROBES:
        assert hasattr(Features(), probe.feature)
        first, *_, last = probe.text.splitlines()
        made = re.match(r"create (table \w+ [\w-]+)", first)
        assert made
        assert last == f"delete {made[1]}"
