"""Test Docker's DNS with `fw.egress`: which restrictions apply to a container's look-ups, and where none do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.product import Fw, Net
from tests.waiting import until


@contextmanager
def resolver(fw: Fw, address: str) -> Iterator[None]:
    """Set the host's name server, until the end. Docker reads it at each start of a container."""
    fw.host.write("/etc/resolv.conf", f"nameserver {address}\n")
    try:
        yield
    finally:
        fw.host.write("/etc/resolv.conf", f"nameserver {fw.wan.FAR_V4}\n")


def egress_restricted(fw: Fw, net: Net, *options: str) -> str:
    """Start a container that may initiate nothing, and check that it cannot."""
    app = fw.run(net, "--label", "fw.egress=none", *options)
    until(lambda: fw.engine.netns(app).probe.tcp(fw.wan.FAR_V4, 8000, timeout=0.3) == "silent", "egress is restricted")
    return app


@pytest.mark.parametrize("driver", [None, "bridge"])
def test_names_leave_by_the_hosts_resolver(deep: Fw, driver: str | None) -> None:
    """As LABELS.md says of `fw.egress`, dockerd resolves names from the host, whatever the container may initiate.

    `fwctl status` reports it. With a server of the container's own no look-up leaves.
    """
    with (
        deep.network(driver=driver) as net,
        deep.host.probe.serve(udp=[53]) as host,
        deep.wan.probe.serve(udp=[53], tcp=[8000]) as far,
    ):

        def asks(app: str) -> None:
            deep.engine.try_docker("exec", app, "timeout", "2", "nslookup", "secret.example.com")

        with resolver(deep, "127.0.0.1"):
            asks(egress_restricted(deep, net, "--dns", deep.wan.FAR_V4))
            assert not host.seen()
            assert not [each for each in far.seen() if each["port"] == 53]
            asks(egress_restricted(deep, net))
            assert host.seen(), "the documented leak"
            spec = " ".join(deep.fwctl("status").split())
            assert "DNS queries bypass fw.egress: Docker's DNS forwards them to the host's resolver (127.0.0.1)" in spec
        # Another DNS server of the host may or may not be reached from the host: status reports which.
        asks(egress_restricted(deep, net))
        leaks = any(each["port"] == 53 for each in far.seen())
        assert ("DNS queries bypass fw.egress" in deep.fwctl("status")) is leaks
