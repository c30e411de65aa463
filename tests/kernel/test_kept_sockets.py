"""Test the netfilter sockets that stay open: to close one delays the next transaction by some 10 ms."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest

from plugin.kernel import conntrack, netlink
from tests.kernel.netns import nowhere


def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the list of protocols of sockets that are opened from now on."""
    found: list[int] = []
    real = netlink.open_socket

    def noting(protocol: int = netlink.NETLINK_NETFILTER) -> object:
        found.append(protocol)
        return real(protocol)

    monkeypatch.setattr(netlink, "open_socket", noting)
    return found


def test_reading_flows_opens_one_socket_for_each_thread_and_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often flows are read or cut. A socket is of one namespace, and answers to one thread alone."""
    sockets = opened(monkeypatch)
    with nowhere():
        for _ in range(3):
            assert conntrack.tracked(4) == []
            conntrack.cut(6, lambda _: True)
        assert len(sockets) == 1
        thread = threading.Thread(target=conntrack.tracked, args=(4,))
        thread.start()
        thread.join(10)
        assert len(sockets) == 2
    with nowhere():
        conntrack.tracked(4)
    assert len(sockets) == 3


def test_a_socket_is_replaced_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the rest of an answer that was not read to its end would be there at the next question."""
    with nowhere():
        with netlink.kept_socket() as first:
            pass
        with suppress(TimeoutError), netlink.kept_socket() as sock:
            assert sock is first
            raise TimeoutError
        assert first.fileno() == -1
        with netlink.kept_socket() as second:
            assert second.fileno() >= 0
        assert conntrack.tracked(4) == []
