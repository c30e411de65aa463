"""Test a Docker version that crashes with network plugins: the plugin keeps it alive, and an upgrade fixes all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.kernel.running import Running
from tests.kernel.site import Site
from tests.waiting import until

WHY = "upgrade Docker to 29.0.3 or newer"


@pytest.fixture
def fw(site: Site) -> Iterator[Running]:
    with closing(Running(site)) as made:
        made.docker.version = "29.0.2"
        yield made.start()


def becomes(fw: Running, version: str) -> None:
    """Replace the dockerd that answers; the former one ends its stream of events, which must have started before."""
    until(lambda: bool(fw.docker._streams), "docker-fw follows Docker", 15)
    fw.docker.version = version
    fw.docker.end_streams()


def test_networks_are_refused_on_an_engine_that_would_crash_until_it_is_upgraded(fw: Running) -> None:
    """On Docker 29.0.2 networks and containers of the driver are refused with what to do.

    The status and the log say so too; nothing half-made is left. Once 29.0.3 answers, without a restart of docker-fw,
    both work.
    """
    until(lambda: WHY in fw.status()["unfit"], "the version is known")
    assert WHY in fw.log.read_text()
    network = fw.network(1)
    assert WHY in fw.driver("CreateNetwork", network)["Err"]
    assert fw.links() == set()
    becomes(fw, "29.0.3")
    until(lambda: not fw.status()["unfit"], "the upgrade is known")
    fw.well("CreateNetwork", network)
    fw.stop_container(fw.start_container(network, 2))
    # A network from before a downgrade: its containers are refused before Docker has a gateway to remove from them.
    becomes(fw, "29.0.0")
    until(lambda: WHY in fw.status()["unfit"], "the downgrade is known")
    assert WHY in fw.driver("CreateEndpoint", fw.endpoint(network, 3))["Err"]
    fw.well("DeleteNetwork", network)


def test_docker_networks_are_still_protected_there(fw: Running) -> None:
    """Only docker-fw networks are refused: on Docker's bridge a container's label opens its port, the rest is closed.

    A removed container's exception is removed with it.
    """
    site = fw.site
    with site.inside():
        site.sysctl.forward({2, 10})
    box = site.docker_box("docker0", 7)
    fw.docker.bridge_network("b" * 64, "bridge", "10.7.0.0/24", "2001:db8:7::/64", bridge="docker0")
    fw.docker.container("web", box.endpoint.id, "b" * 64, {"fw.allow": "8080"})
    attached = fw.docker.containers[box.endpoint.id]["NetworkSettings"]["Networks"]["net"]
    attached.update(IPAddress=str(box.v4), GlobalIPv6Address=str(box.v6))
    becomes(fw, "29.0.1")
    until(lambda: fw.opens(str(box.v6)) >= {"8080/6"}, "the container is known", 15)
    assert "Docker 29.0.1 crashes" in fw.status()["unfit"]
    with box.probe.serve(tcp=[8080, 9090]):
        for address in map(str, (box.v4, box.v6)):
            assert site.wan.probe.tcp(address, 8080) == "open"
            assert site.wan.probe.tcp(address, 9090) == "silent"
        fw.docker.containers.clear()
        fw.docker.event("network", "disconnect")
        until(lambda: fw.opens(str(box.v6)) == set(), "its exception is gone")
        assert site.wan.probe.tcp(str(box.v6), 8080) == "silent"
