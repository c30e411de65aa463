"""Test that each packet of a cut flow renews the flow's quarantine, in whichever set the flow is."""

from __future__ import annotations

import re

import pytest

from plugin.nftables.fields import Value
from plugin.nftables.sets import QUARANTINE_SECONDS, QUARANTINE_SETS, Change, Element
from plugin.protocols import NUMBER
from tests.kernel.packets import ping, udp
from tests.kernel.site import BR_DOCKER, Box, Site, site_of_module
from tests.lab.netns import FORWARDING
from tests.waiting import until

site = site_of_module(FORWARDING)
OPEN_PORT, CLIENTS_PORT = 53, 20000


@pytest.fixture(scope="module")
def box(site: Site) -> Box:
    return site.docker_box(BR_DOCKER, 100)


@pytest.mark.parametrize("name", [name for version in (4, 6) for name in QUARANTINE_SETS[version]])
def test_a_packet_of_a_cut_flow_renews_its_quarantine(site: Site, box: Box, name: str) -> None:
    """Otherwise a side that keeps sending would reopen the flow when the time is over."""
    site.load(more=site.docker_elements(box, BR_DOCKER))
    site.forget_flows()
    version = 6 if name.startswith("quarantine6") else 4
    mine, theirs = (box.v6, site.OUT6) if version == 6 else (box.v4, site.OUT4)
    source, target = (mine, NUMBER["udp"]), (theirs, NUMBER["udp"])
    kind = name.partition("_")[2]
    keys: dict[str, tuple[Value, ...]] = {
        "": (*source, OPEN_PORT, theirs, CLIENTS_PORT),
        "pairs": (*source, theirs),
        "ports_from": (*source, OPEN_PORT),
        "ports_to": (*target, CLIENTS_PORT),
        "all_from": source,
        "all_to": target,
    }
    site.nft.change(Change(), {Element(name, keys[kind]): 60})
    answer = udp(mine, theirs, CLIENTS_PORT, OPEN_PORT)
    assert site.deliver([answer], site.wan, box, last=ping(mine, theirs)) == set()
    assert left(site, name) > QUARANTINE_SECONDS - 60


def test_a_packet_that_egress_drops_renews_the_quarantine_too(site: Site, box: Box) -> None:
    """Otherwise the flow comes back when the container's `fw.egress` ends."""
    known = {each for each in site.docker_elements(box, BR_DOCKER) if not each.set.startswith("egress_all")}
    site.load(more={*known, Element("egress_restricted", (BR_DOCKER,))})
    site.forget_flows()
    site.nft.change(Change(), {Element("quarantine6", (box.v6, NUMBER["udp"], 53, site.OUT6, CLIENTS_PORT)): 60})
    site.send([udp(box.v6, site.OUT6, CLIENTS_PORT, 53)], box)
    until(lambda: left(site, "quarantine6") > QUARANTINE_SECONDS - 60, "the quarantine is renewed")


def left(site: Site, name: str) -> int:
    """Return the seconds that the only element of a set has left."""
    shown = site.run("nft", "list", "set", "inet", "docker-fw", name).stdout
    found = re.search(r"expires (?:(\d+)m)?(?:(\d+)s)?", shown)
    assert found
    return 60 * int(found[1] or 0) + int(found[2] or 0)
