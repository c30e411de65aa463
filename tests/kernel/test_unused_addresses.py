"""Test packets to unused addresses: each would be an entry in the host's neighbour table (RFC 6583).

That table holds 1,024 entries for the whole kernel by default, and an address without an entry is not reached when it
is full. So few such packets are forwarded, and the table is counted.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from typing import Any

import pytest

from plugin.model import Rule
from plugin.nftables.sets import Element
from tests.kernel.packets import Packet, icmp_error, new_flow, ping
from tests.kernel.site import Box, Site
from tests.lab.netns import FORWARDING

DOCKERS = "br-0123456789ab"
#: The number of addresses to try.
MANY = 240
_ports = itertools.count(20000)


@dataclasses.dataclass(frozen=True)
class Boxes:
    ours: Box
    docker: Box
    other: Box


@pytest.fixture
def fresh(site: Site) -> Boxes:
    """All three are known, one of each kind of network accepts UDP 9; no address was resolved before."""
    site.host.sysctl(FORWARDING)
    made = Boxes(site.box(site.network(1), 2), site.docker_box(DOCKERS, 100), site.box(site.network(2), 2))
    more = site.docker_elements(made.docker, DOCKERS, Rule("udp", 9, 9))
    site.load(site.known(made.ours, Rule("udp", 9, 9)), site.known(made.other), more=more)
    return made


def bridge(site: Site, box: Box) -> str:
    return box.network.bridge if box.network else DOCKERS


def neighbours(site: Site, link: str) -> int:
    """Return the number of entries of both families, in any state."""
    shown = [site.run("ip", family, "neigh", "show", "dev", link, "nud", "all").stdout for family in ("-4", "-6")]
    return sum(len(text.splitlines()) for text in shown)


def few(since: float) -> float:
    """Return the permitted number of entries since then: a burst, and ten a second.

    IPv6 adds one each for the solicited-node group (RFC 4291 section 2.7.1).
    """
    return 2 * (50 + 10 * (time.monotonic() - since)) + 10


def unused_addresses(box: Box, family: int) -> list[str]:
    """Return addresses of the box's network that no container has."""
    number = str(box.v4).split(".")[1]
    if family == 4:
        return [f"10.{number}.0.{n}" for n in range(10, 10 + MANY)]
    return [f"2001:db8:{number}::{n:x}" for n in range(0x1000, 0x1000 + MANY)]


def source_of(source: Box | None, family: int) -> Any:
    if source is None:
        return Site.OUT4 if family == 4 else Site.OUT6
    return source.v4 if family == 4 else source.v6


@pytest.mark.parametrize("kind", ["echo requests", "errors"])
@pytest.mark.parametrize("source", ["outside", "another network"])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("target", ["ours", "docker"])
def test_few_packets_to_unused_addresses_pass(
    site: Site, fresh: Boxes, target: str, family: int, source: str, kind: str
) -> None:
    """A client that tries all addresses of a network, by ping or by unsolicited errors, creates few entries.

    A container there is reached meanwhile as usual, with pings and errors both.
    """
    box: Box = getattr(fresh, target)
    start = fresh.other if source == "another network" else None
    src = source_of(start, family)
    own = box.v4 if family == 4 else box.v6

    def packet(dst: Any) -> Packet:
        if kind == "echo requests":
            return ping(src, dst)
        about = new_flow("udp", dst, src, 9, next(_ports))
        return icmp_error(src, about, 3, 1) if family == 4 else icmp_error(src, about, 1, 4)

    before, began = neighbours(site, bridge(site, box)), time.monotonic()
    site.send(map(packet, unused_addresses(box, family)), start)
    true = [packet(own) for _ in range(100)]
    assert site.deliver(true, box, start) == set(true)
    assert neighbours(site, bridge(site, box)) - before <= few(began)
    # Some pass: a container that docker-fw does not know answers ping.
    assert neighbours(site, bridge(site, box)) - before >= 40


def test_few_related_packets_to_unused_addresses_pass(site: Site, fresh: Boxes) -> None:
    """A container forges neighbours that do not exist, and an accomplice outside returns errors about them.

    Few of these pass, while a container's own errors all do.
    """
    box = fresh.docker
    before, began = neighbours(site, DOCKERS), time.monotonic()
    sent = [new_flow("udp", source, Site.OUT6, 9, next(_ports)) for source in unused_addresses(box, 6)]
    assert len(site.deliver(sent, site.wan, box, ping(box.v6, Site.OUT6))) == MANY
    site.send([icmp_error(Site.OUT6, packet, 1, 4) for packet in sent])
    own = [new_flow("udp", box.v6, Site.OUT6, 9, next(_ports)) for _ in range(100)]
    site.deliver(own, site.wan, box, ping(box.v6, Site.OUT6))
    errors = [icmp_error(Site.OUT6, packet, 1, 4) for packet in own]
    assert site.deliver(errors, box) == set(errors)
    assert neighbours(site, DOCKERS) - before <= few(began)


def test_one_networks_flood_is_not_anothers(site: Site, fresh: Boxes) -> None:
    """While one network is flooded, a container of another that docker-fw does not know yet answers ping."""
    site.load(site.known(fresh.ours), more=site.docker_elements(fresh.docker, DOCKERS))
    site.send(ping(Site.OUT6, address) for address in unused_addresses(fresh.docker, 6))
    pings = [ping(Site.OUT6, fresh.other.v6) for _ in range(20)]
    assert site.deliver(pings, fresh.other) == set(pings)


def test_an_internal_networks_flood_is_no_other_networks(site: Site, fresh: Boxes) -> None:
    """While a container of an internal network tries all addresses, one that docker-fw does not know answers ping."""
    internal = {*site.docker_elements(fresh.docker, DOCKERS), Element("internal", (DOCKERS,))}
    site.load(site.known(fresh.ours), more=internal)
    site.send((ping(fresh.docker.v6, address) for address in unused_addresses(fresh.other, 6)), fresh.docker)
    pings = [ping(Site.OUT6, fresh.other.v6) for _ in range(20)]
    assert site.deliver(pings, fresh.other) == set(pings)


def test_all_networks_together_have_a_limit(site: Site, fresh: Boxes) -> None:
    """The table is the kernel's, so trying the addresses of several networks creates few entries too."""
    links = [bridge(site, box) for box in (fresh.ours, fresh.docker, fresh.other)]
    before, began = sum(neighbours(site, link) for link in links), time.monotonic()
    for box in (fresh.ours, fresh.docker, fresh.other):
        site.send(ping(Site.OUT4, address) for address in unused_addresses(box, 4)[:60])
    pings = [ping(Site.OUT4, fresh.other.v4)]
    assert site.deliver(pings, fresh.other) == set(pings)
    made = sum(neighbours(site, link) for link in links) - before
    assert made <= 110 + 30 * (time.monotonic() - began)


def test_only_dropped_packets_are_counted(site: Site, fresh: Boxes) -> None:
    """A container that is reached by ping has no drops for it."""
    pings = [ping(Site.OUT6, fresh.ours.v6) for _ in range(20)]
    assert site.deliver(pings, fresh.ours) == set(pings)
    with site.inside():
        assert not any(site.nft.dropped()[fresh.ours.v6])
