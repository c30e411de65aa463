"""Test which packets pass Docker's own firewall by docker-fw's mark: those of docker-fw networks, and no others.

A later chain that drops every packet without the mark stands for Docker's: of Docker networks it must see all packets.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from plugin.model import Rule
from tests.kernel.packets import Packet, arrived, ping, udp
from tests.kernel.site import BR_DOCKER, MARK, Box, Site, site_of_module
from tests.lab import NamedNetns
from tests.lab.netns import FORWARDING

site = site_of_module(FORWARDING)
_ports = itertools.count(20000)
DROPS_WITHOUT_MARK = f"type filter hook forward priority 10; meta mark & {MARK:#x} == 0 drop;"
SETS_MARK = "type filter hook prerouting priority -300; meta mark set 0xffffffff;"
OPEN = Rule("udp", 53, 53)
End = tuple[NamedNetns, str, str]


@pytest.fixture(scope="module")
def boxes(site: Site) -> dict[str, Box]:
    return {"docker-fw": site.box(site.network(1), 2), "Docker": site.docker_box(BR_DOCKER, 100)}


@pytest.fixture
def ends(site: Site, boxes: dict[str, Box]) -> Iterator[dict[str, End]]:
    """Yield the containers, which accept UDP 53, and the outsider: each with its addresses."""
    ours, dockers = boxes["docker-fw"], boxes["Docker"]
    site.load(site.known(ours, OPEN), more=site.docker_elements(dockers, BR_DOCKER, OPEN))
    site.forget_flows()
    yield {
        **{name: (box, str(box.v4), str(box.v6)) for name, box in boxes.items()},
        "outside": (site.wan, str(site.OUT4), str(site.OUT6)),
    }
    site.run("nft", "delete", "table", "inet", "later", check=False)


def opened(site: Site, here: End, there: End) -> tuple[list[Packet], list[Packet]]:
    """Open a flow in each family; return its packets in both directions."""
    ports = [(a, b, next(_ports)) for a, b in zip(here[1:], there[1:], strict=True)]
    out, back = [udp(a, b, 53, port) for a, b, port in ports], [udp(b, a, port, 53) for a, b, port in ports]
    assert site.deliver(out, there[0], here[0]) == set(out)
    assert site.deliver(back, here[0], there[0]) == set(back)
    return out, back


@pytest.mark.parametrize(
    ("first", "second", "passing"),
    [
        ("outside", "docker-fw", (True, True)),
        ("docker-fw", "outside", (True, True)),
        ("outside", "Docker", (False, False)),
        ("Docker", "outside", (False, False)),
        ("docker-fw", "Docker", (False, True)),
    ],
)
@pytest.mark.parametrize("forged", ["", SETS_MARK], ids=["plain", "forged"])
def test_established_flows_pass_by_the_mark_on_docker_fw_networks_only(
    site: Site,
    boxes: dict[str, Box],
    ends: dict[str, End],
    first: str,
    second: str,
    passing: tuple[bool, bool],
    forged: str,
) -> None:
    """Docker's firewall decides about each packet to a Docker network, and about those from there to outside.

    Also if the packets come with the mark.
    """
    here, there = ends[first], ends[second]
    out, back = opened(site, here, there)
    chains = f"chain f {{ {DROPS_WITHOUT_MARK} }}; chain e {{ {forged} }};"
    site.run("nft", "-f", "-", input=f"table inet later {{ {chains} }}\n")
    ours = boxes["docker-fw"]
    ways = (out, there[0], here[0]), (back, here[0], there[0])
    for (packets, to, sender), passes in zip(ways, passing, strict=True):
        ears, last = [site.sniffer(to), site.sniffer(ours)], ping(site.OUT6, ours.v6)
        for ear in ears:
            list(ear.read())
        site.send(packets, sender)
        site.send([last])
        assert arrived(ears, last)[0] & set(packets) == (set(packets) if passes else set())
