"""A protocol is one entry of `plugin.protocols`."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugin.protocols import PROTOCOLS, TRACKED_BY_PORT, Protocol
from tests.pure.registries import ADDED_PROTOCOL, check, copied


def test_a_new_protocol_is_one_entry(tmp_path: Path) -> None:
    """The decision, the table, the check of flows, the state file and messages know a protocol by one more entry.

    Above all, `fw.policy: open` with `fw.deny: */NEW` closes it in all of them.
    """
    where = copied(tmp_path, ADDED_PROTOCOL)
    check(where, "tests/pure/registries/protocol_added.py")


def test_the_table_decides_as_the_policy_for_a_new_protocol(tmp_path: Path) -> None:
    """The tests of any rules and packets against the table pass with one more entry."""
    where = copied(tmp_path, ADDED_PROTOCOL)
    tests = (
        "test_the_sets_decide_as_the_policy_does",
        "test_a_rule_with_peers_accepts_exactly_those_peers",
        "test_the_egress_sets_decide_as_the_policy_does",
        "test_rules_without_peers_need_no_source",
        "test_a_rate_counts_exactly_its_ports",
    )
    check(where, *(f"tests/pure/nftables/test_elements.py::{name}" for name in tests))


def test_an_incomplete_entry_is_an_error() -> None:
    """An entry with a missing part fails when it is imported, and the message names the part."""
    with pytest.raises(TypeError, match="'socket' and 'relay'"):
        Protocol(name="udplite", number=136, nft="udplite", ports=True)  # type: ignore[call-arg]


def test_a_protocol_has_ports_only_where_conntrack_knows_them() -> None:
    """A protocol has ports only if conntrack distinguishes flows by them: otherwise one open port would open all,
    because packets after the first are established."""
    with pytest.raises(TypeError, match="conntrack does not distinguish its flows"):
        Protocol(name="new", number=253, nft="253", ports=True, socket=None, relay=False)
    with pytest.raises(TypeError, match="conntrack does not distinguish its flows"):  # since Linux 6.16
        Protocol(name="dccp", number=33, nft="dccp", ports=True, socket=None, relay=False)
    assert all(each.number in TRACKED_BY_PORT for each in PROTOCOLS if each.ports)


def test_a_protocol_without_ports_is_not_published() -> None:
    """The relay does not serve an unpublished protocol either."""
    with pytest.raises(TypeError, match="has no ports"):
        Protocol(name="new", number=253, nft="253", ports=False, socket="datagram", relay=False)
    with pytest.raises(TypeError, match="cannot be published"):
        Protocol(name="new", number=136, nft="136", ports=True, socket=None, relay=True)


@pytest.mark.parametrize(("name", "number"), [("New", 253), ("a b", 253), ("*", 253), ("new", 0), ("new", 256)])
def test_a_protocol_that_nothing_could_name_is_an_error(name: str, number: int) -> None:
    """A name that no label could match, or a number that no packet has, is an error when it is imported."""
    with pytest.raises(TypeError, match="is not a protocol that a label or a packet can have"):
        Protocol(name=name, number=number, nft=str(number), ports=False, socket=None, relay=False)
