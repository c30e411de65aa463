"""Test internal Docker networks over a start of docker-fw: Docker's list, which names them, may come late."""

from __future__ import annotations

import pytest

from tests.kernel.running import Running
from tests.kernel.site import BR_DOCKER
from tests.lab import Wan
from tests.waiting import until

INTERNAL = "a" * 64


@pytest.mark.parametrize("end", ["docker-fw is killed", "the host reboots"])
def test_an_internal_network_stays_internal_while_docker_is_silent(own: Running, end: str) -> None:
    """No container on it opens a connection to outside, also before Docker's API answers a docker-fw that starts.

    Docker's list opens the bridge again if it belongs to another network by then.
    """
    fw, site = own, own.site
    fw.docker.bridge_network(INTERNAL, "inner", "10.100.0.0/24", bridge=BR_DOCKER)
    fw.docker.networks[INTERNAL]["Internal"] = True
    box, free = site.docker_box(BR_DOCKER, 100), site.docker_box("br-ba9876543210", 101)
    with site.wan.probe.serve(tcp=[80]):
        assert box.probe.tcp(Wan.FAR_V4, 80) == "open"
        fw.start()
        until(lambda: box.probe.tcp(Wan.FAR_V4, 80) == "silent", "the network is internal")
        fw.docker.mode = "hang"
        if end == "docker-fw is killed":
            fw.kill_worker()
        else:
            fw.stop()
            site.run("nft", "flush", "ruleset")
            site.forget_flows()
            fw.start()
        assert box.probe.tcp(Wan.FAR_V4, 80) == "silent"
        assert free.probe.tcp(Wan.FAR_V4, 80) == "open"
        fw.docker.networks[INTERNAL]["Internal"] = False
        fw.docker.mode = "answer"
        until(lambda: box.probe.tcp(Wan.FAR_V4, 80) == "open", "Docker's list is believed", 30)
