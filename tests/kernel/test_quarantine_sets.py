"""Test that each packet of a cut flow renews the flow's quarantine, in whichever set the flow is."""

from __future__ import annotations

import re

import pytest

from plugin.nftables.sets import QUARANTINE_SECONDS, QUARANTINE_SETS
from tests.kernel.packets import ping, udp
from tests.kernel.site import BR_DOCKER, Box, Site, site_of_module
from tests.lab.netns import FORWARDING

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
    source, target = f"{mine} . udp", f"{theirs} . udp"
    kind = name.partition("_")[2]
    keys = {
        "": f"{source} . {OPEN_PORT} . {theirs} . {CLIENTS_PORT}",
        "pairs": f"{source} . {theirs}",
        "ports_from": f"{source} . {OPEN_PORT}",
        "ports_to": f"{target} . {CLIENTS_PORT}",
        "all_from": source,
        "all_to": target,
    }
    site.run("nft", "add", "element", "inet", "docker-fw", name, f"{{ {keys[kind]} timeout 60s }}")
    answer = udp(mine, theirs, CLIENTS_PORT, OPEN_PORT)
    assert site.deliver([answer], site.wan, box, last=ping(mine, theirs)) == set()
    shown = site.run("nft", "list", "set", "inet", "docker-fw", name).stdout
    left = re.search(r"expires (?:(\d+)m)?(?:(\d+)s)?", shown)
    assert left
    assert 60 * int(left[1] or 0) + int(left[2] or 0) > QUARANTINE_SECONDS - 60
