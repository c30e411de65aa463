"""A transaction as netlink messages, as the kernel reads it."""

from __future__ import annotations

from plugin.kernel import netlink as nl
from plugin.nftables.client import DELSETELEM, NEWSETELEM, batch


def test_a_transaction_is_numbered_and_its_last_message_acknowledged() -> None:
    """A batch is a begin message, the messages in their order, and an end message; only the last message asks for an
    acknowledgement, which confirms all of them."""
    data = batch([(DELSETELEM, 0, b"gone"), (NEWSETELEM, 0x400, b"here")], 7)
    assert [(kind, seq) for kind, seq, _ in nl.messages(data)] == [(16, 7), (DELSETELEM, 8), (NEWSETELEM, 9), (17, 10)]
    assert [body for _, _, body in nl.messages(data)][1:3] == [b"gone", b"here"]
    flags, at = [], 0
    while at < len(data):
        flags.append(int.from_bytes(data[at + 6 : at + 8], "little"))
        at += int.from_bytes(data[at : at + 4], "little")
    assert flags == [1, 1, 1 | 4 | 0x400, 1], "NLM_F_REQUEST, and NLM_F_ACK once"
