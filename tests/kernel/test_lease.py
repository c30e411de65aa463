"""Test the lease: what Docker networks accept is active while docker-fw follows Docker, and ends soon after."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from plugin.nftables.client import NftError
from plugin.nftables.sets import WATCHED
from plugin.state.lease import SECONDS, Lease
from tests.kernel.running import Running
from tests.kernel.site import Box, Site
from tests.kernel.talks import Talks
from tests.waiting import until

DOCKER_NETWORK = "b" * 64
#: Docker's container; its published port, at docker-proxy's; a container on a docker-fw network.
DOCKERS = {("10.7.0.2", 8080), ("2001:db8:7::2", 8080), ("198.51.100.1", 18080), ("2001:db8:ffff::1", 18080)}
OURS = {("10.1.0.2", 8080), ("2001:db8:1::2", 8080)}


class Brief(Running):
    """A plugin whose lease lasts for a second."""

    command = (sys.executable, "-m", "gunicorn", "-c", "python:tests.kernel.brief")

    def __init__(self, site: Site) -> None:
        super().__init__(site, LEASE="1")

    def seat(self) -> tuple[Box, Box]:
        """Add a container on a Docker bridge, and one on a docker-fw network."""
        network = self.network(1)
        self.well("CreateNetwork", network)
        ours = self.move(self.start_container(network, 2, {"fw.allow": "8080"}))
        box = self.site.docker_box("docker0", 7)
        self.docker.bridge_network(DOCKER_NETWORK, "bridge", "10.7.0.0/24", "2001:db8:7::/64", bridge="docker0")
        self.docker.container("web", box.endpoint.id, DOCKER_NETWORK, {"fw.allow": "8080"})
        listed = self.docker.containers[box.endpoint.id]
        listed["NetworkSettings"]["Networks"]["net"].update(IPAddress=str(box.v4), GlobalIPv6Address=str(box.v6))
        port = {"PrivatePort": 8080, "PublicPort": 18080, "Type": "tcp"}
        listed["Ports"] = [{"IP": ip, **port} for ip in ("0.0.0.0", "::")]
        self.docker.event("network", "create")
        return box, ours

    def open(self) -> set[tuple[str, int]]:
        """Return where a new connection from outside is accepted."""
        asked = [("tcp", address, port) for address, port in sorted(DOCKERS | OURS)]
        verdicts = self.site.wan.probe(asked, timeout=0.3)
        return {(address, port) for (_, address, port), word in verdicts.items() if word == "open"}

    def kill(self) -> None:
        """Kill all of it by SIGKILL."""
        assert self.process
        for pid in (self.process.pid, worker := self.worker()):
            os.kill(pid, signal.SIGKILL)
        self.process.wait(15)
        self.process = None
        until(lambda: not os.path.exists(f"/proc/{worker}"), "the worker is dead")


def lasts(site: Site) -> list[float]:
    """Return the seconds that the lease still lasts, for each family."""
    shown = site.run("nft", "list", "set", "inet", "docker-fw", "lease").stdout
    expiries = re.findall(r"expires (?:(\d+)s)?(?:(\d+)ms)?", shown)
    return [int(seconds or 0) + int(more or 0) / 1000 for seconds, more in expiries]


def test_a_lease_is_renewed_to_its_full_time(site: Site) -> None:
    """A renewal gives the full time again, whether the lease is active or expired.

    If the table is absent, an error is raised.
    """
    lease = Lease(site.nft)
    with pytest.raises(NftError):
        lease.renew()
    assert not lease.left()
    site.nft.replace(())
    lease.renew()
    assert len(lasts(site)) == 2
    until(lambda: max(lasts(site)) < SECONDS - 0.5, "part of the lease has passed")
    lease.renew()
    assert min(lasts(site)) > SECONDS - 0.5
    assert lease.left() == dict.fromkeys(WATCHED, SECONDS)


@pytest.fixture
def fw(site: Site) -> Iterator[Brief]:
    with closing(Brief(site)) as made:
        yield made.start()  # type: ignore[misc]


def test_killed_or_stopped_docker_fw_leaves_no_docker_network_open(fw: Brief) -> None:
    """Docker's containers stay open while docker-fw runs, and close within the lease's time after it stops.

    It stops by SIGSTOP, or by SIGKILL without a restart. Then no new client reaches Docker's containers or their
    published ports, because an address's next owner would inherit them. Established flows stay, docker-fw networks are
    unchanged, and once it runs again all is open again.
    """
    site = fw.site
    box, ours = fw.seat()
    with (
        Talks() as talks,
        box.probe.serve(tcp=[8080]),
        ours.probe.serve(tcp=[8080]),
        site.host.probe.serve(tcp=[18080]),
    ):
        until(lambda: fw.open() == DOCKERS | OURS, "all ports are open", 10)
        began = time.monotonic()
        talks.open("in", "tcp", site.wan, box, str(box.v6), 443)
        until(lambda: time.monotonic() > began + 1.5 and fw.open() == DOCKERS | OURS, "the lease has been renewed", 10)
        os.kill(fw.worker(), signal.SIGSTOP)
        try:
            until(lambda: fw.open() == OURS, "Docker networks are closed", 10)
            assert talks.going("in") == {"in"}
        finally:
            os.kill(fw.worker(), signal.SIGCONT)
        until(lambda: fw.open() == DOCKERS | OURS, "docker-fw runs again, and all ports are open", 10)
        assert fw.status()["watched"]
        fw.kill()
        until(lambda: fw.open() == OURS, "Docker networks are closed", 10)
        assert talks.going("in") == {"in"}
