"""Test what a recording of the torture shows of rules that are created while it runs."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.kernel.netns import empty, inside
from tests.lab import NamedNetns
from tests.torture.recording import Listener, trace
from tests.waiting import until

_TABLE = """\
add table inet {0}
add chain inet {0} out {{ type filter hook output priority 0; }}
add rule inet {0} out meta nftrace set 1
add rule inet {0} out udp dport 9 counter
"""


@pytest.fixture
def netns() -> Iterator[NamedNetns]:
    with empty() as made:
        yield made


def test_a_recording_traces_packets_through_tables_that_are_newer_than_itself(netns: NamedNetns) -> None:
    """The trace shows rules of a table that is created later, as after a flush. Each change of rules is reported."""
    way, rules = trace(netns)
    try:
        netns.run(["nft", "-f", "-"], input=_TABLE.format("one"))
        until(lambda: _traced(netns, way, "one"), "a packet is traced")
        netns.run(["nft", "-f", "-"], input="delete table inet one\n" + _TABLE.format("two"))
        until(lambda: _traced(netns, way, "two"), "a packet is traced in the new table")
    finally:
        way.stop()
        rules.stop()
    assert sum(" out meta nftrace set 1" in line for _, line in rules.lines if line.startswith("add rule")) == 2


def _traced(netns: NamedNetns, way: Listener, table: str) -> bool:
    """Send a packet; return True if it, or an earlier one, was traced in the table."""
    with inside(netns.path), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"", ("::1", 9))
    return any(f"inet {table} out rule udp dport 9 counter" in line for _, line in list(way.lines))
