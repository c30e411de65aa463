"""Which flows are cut, depending on the kernel's answers; tests/kernel has the packets."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import pytest

from plugin.fwctl.cli.render import plain
from plugin.fwctl.cli.render_answers import banned
from plugin.kernel import conntrack
from plugin.kernel import netlink as nl


def _flow(source: str, target: str) -> bytes:
    """Return a flow as a dump contains it, after its header: IPv4, both directions."""

    def ends(one: str, other: str) -> bytes:
        return nl.nested(1, nl.attr(1, socket.inet_aton(one)), nl.attr(2, socket.inet_aton(other)))

    return nl.nested(1, ends(source, target)) + nl.nested(2, ends(target, source))


class Kernel:
    """A kernel with two flows of one peer, one of them in a flow table, and a flow of another peer."""

    def __init__(self) -> None:
        self.deleted = 0
        self.flows = [_flow("203.0.113.7", f"10.1.0.{n}") for n in (2, 3)] + [_flow("203.0.114.7", "10.1.0.2")]
        self._asked = 0

    def send(self, message: bytes) -> None:
        self._asked = int.from_bytes(message[8:12], "little")

    def replies(self, _: object) -> Iterator[tuple[int, int, bytes]]:
        yield from ((0, self._asked, nl.nfgen(socket.AF_INET) + flow) for flow in self.flows)
        yield nl.NLMSG_DONE, self._asked, b""

    def request(self, _sock: object, _kind: int, _flags: int, body: bytes) -> None:
        if socket.inet_aton("10.1.0.3") in body:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        self.deleted += 1

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: there is nothing to close."""


def test_flows_that_the_kernel_does_not_return_are_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Flows of a flow table, where Linux is older than 6.4: their number and how long they continue are reported; the
    others are cut."""
    kernel = Kernel()
    for name, what in (("kept_socket", lambda: kernel), ("replies", kernel.replies), ("request", kernel.request)):
        monkeypatch.setattr(conntrack.nl, name, what)
    cut = conntrack.cut_prefixes([ip_network("203.0.113.0/24")])
    assert (cut.deleted, cut.offloaded, kernel.deleted) == (1, 1, 1)
    assert "1 flows could not be cut: they are in a flow table of this host" in caplog.text
    answer: dict[str, Any] = {"banned": [], "cut": cut.deleted, "notes": cut.notes}
    assert plain(banned(answer, 0)).startswith(
        "connections ended: 1\n1 flows could not be cut: they are in a flow table"
    )
