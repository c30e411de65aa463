"""Test a client's retry on a connection that the container reset: it is a new connection to the policy.

Connection tracking assigns the SYN to the connection that was reset, so it counts as established (tcp_conntracks, sIG).
"""

from __future__ import annotations

import itertools

import pytest

from plugin.model import Rule
from tests.kernel.packets import tcp
from tests.kernel.site import BR_DOCKER, Box, Site, site_of_module
from tests.lab.netns import FORWARDING

site = site_of_module(FORWARDING)
_ports = itertools.count(20000)
OPEN = Rule("tcp", 8080, 8080)


@pytest.fixture(scope="module")
def boxes(site: Site) -> dict[str, Box]:
    """Return containers without a program on any port: each SYN is answered by a reset."""
    return {"docker-fw": site.box(site.network(1), 2), "Docker": site.docker_box(BR_DOCKER, 100)}


def load(site: Site, boxes: dict[str, Box], *allow: Rule) -> None:
    ours, dockers = boxes["docker-fw"], boxes["Docker"]
    site.load(site.known(ours, *allow), more=site.docker_elements(dockers, BR_DOCKER, *allow))


@pytest.mark.parametrize("kind", ["docker-fw", "Docker"])
def test_a_retry_after_a_reset_needs_an_open_port(site: Site, boxes: dict[str, Box], kind: str) -> None:
    """It passes while the port is open, and is dropped once the port is closed."""
    box, sport = boxes[kind], next(_ports)
    load(site, boxes, OPEN)
    tries = [tcp(site.OUT4, box.v4, 8080, sport), tcp(site.OUT6, box.v6, 8080, sport)]
    for _ in range(2):
        assert site.deliver(tries, box) == set(tries)
    load(site, boxes)
    assert site.deliver(tries, box) == set()
    load(site, boxes, OPEN)
    assert site.deliver(tries, box) == set(tries)
