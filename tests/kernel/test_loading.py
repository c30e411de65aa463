"""Test what passes while a new table is loaded without its elements: neighbour discovery, and established flows."""

from __future__ import annotations

import pytest

from plugin.nftables.sets import LOADING, Change
from tests.kernel.packets import Packet, arrived, icmp, packed
from tests.kernel.site import BR_DOCKER, Box, Site, site_of_module
from tests.lab import NamedNetns
from tests.lab.netns import FORWARDING

site = site_of_module(FORWARDING)
#: Router solicitation and advertisement, neighbour solicitation and advertisement.
DISCOVERY = (133, 134, 135, 136)
#: Echo request, reports of multicast groups, router renumbering, a type that is not assigned.
OTHERS = (128, 131, 138, 143, 200)


@pytest.fixture(scope="module")
def guest(site: Site) -> Box:
    """Return a container on a Docker network."""
    return site.docker_box(BR_DOCKER, 100)


@pytest.fixture
def loading(site: Site, guest: Box) -> Box:
    """Return it; the table is being loaded."""
    site.load(more=site.docker_elements(guest, BR_DOCKER))
    site.forget_flows()
    site.nft.change(Change(), dict.fromkeys(LOADING, 60))
    return guest


def message(source: str, target: str, kind: int) -> Packet:
    return icmp(source, target, kind, body=bytes(4) + packed(source) + bytes([1, 1, 2, 0, 0, 0, 0, kind]))


def received(site: Site, kinds: tuple[int, ...], ends: tuple[str, str], sender: NamedNetns) -> set[int]:
    """Send the host a message of each type; return the types that it receives."""
    sent = {message(*ends, kind): kind for kind in kinds}
    last = icmp(*ends, 135)
    list(site.listener.read())
    site.send([*sent, last], sender)
    (seen,) = arrived([site.listener], last)
    return {sent[packet] for packet in seen if packet in sent}


def test_the_host_hears_neighbour_discovery_alone(site: Site, loading: Box) -> None:
    """Without it the host would have no network meanwhile; a ping is a new flow, and is dropped."""
    assert received(site, (*DISCOVERY, *OTHERS), (str(Site.OUT6), str(Site.HOST6)), site.wan) == set(DISCOVERY)


def test_a_container_is_no_router_meanwhile(site: Site, loading: Box) -> None:
    """Of a container the host hears no router advertisement, as at any time."""
    host = "2001:db8:100::1"
    assert received(site, (*DISCOVERY, *OTHERS), (str(loading.v6), host), loading) == set(DISCOVERY) - {134}


def test_neighbour_discovery_opens_nothing_else_meanwhile(site: Site, loading: Box) -> None:
    """Of neighbour discovery from outside, containers get what they get at any time: no solicitation of routers."""
    sent = {message(str(Site.OUT6), str(loading.v6), kind): kind for kind in (*DISCOVERY, *OTHERS)}
    last = icmp(Site.OUT6, loading.v6, 135)
    assert {sent[packet] for packet in site.deliver(sent, loading, last=last)} == {134, 135, 136}
