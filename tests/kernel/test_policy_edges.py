"""Test edges of a container's policy: a retry after a reset, protocols without a name, messages of routers.

Connection tracking assigns the SYN of a retry to the connection that was reset, so it counts as established
(tcp_conntracks, sIG).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest

from plugin.labels.parser import parse
from plugin.model import PolicySpec, Rule
from plugin.nftables.sets import LOADING, Change, Element
from tests.kernel.ct_helpers import helper
from tests.kernel.packets import arrived, icmp, icmp_error, new_flow, ping, portless, tcp, udp
from tests.kernel.resets import was_reset
from tests.kernel.site import BR_DOCKER, BRIDGED_FRAMES_UNTRACKED, Box, Site, site_of_module
from tests.lab.netns import FORWARDING

site = site_of_module(FORWARDING)
_ports = itertools.count(20000)
OPEN = Rule("tcp", 8080, 8080)


@pytest.fixture(scope="module")
def boxes(site: Site) -> dict[str, Box]:
    """Return a container of each kind of network."""
    return {"docker-fw": site.box(site.network(1), 2), "Docker": site.docker_box(BR_DOCKER, 100)}


def load(site: Site, boxes: dict[str, Box], *allow: Rule, more: Iterable[Element] = ()) -> None:
    ours, dockers = boxes["docker-fw"], boxes["Docker"]
    site.load(site.known(ours, *allow), more={*site.docker_elements(dockers, BR_DOCKER, *allow), *more})


@pytest.mark.parametrize("meanwhile", ["closed", "loading"])
@pytest.mark.parametrize("kind", ["docker-fw", "Docker"])
def test_a_retry_after_a_reset_needs_an_open_port(site: Site, boxes: dict[str, Box], kind: str, meanwhile: str) -> None:
    """It is dropped once the port is closed, and while a new table is loaded; it passes while the port is open."""
    box = boxes[kind]
    load(site, boxes, OPEN)
    tries = []
    for address in (box.v4, box.v6):
        client, sport = was_reset(site.wan, box, address, 8080)
        tries.append(tcp(client, address, 8080, sport))
    load(site, boxes, *([OPEN] if meanwhile == "loading" else []))
    if meanwhile == "loading":
        site.nft.change(Change(), dict.fromkeys(LOADING, 60))
    assert site.deliver(tries, box, last=icmp(site.OUT6, box.v6, 135)) == set()
    load(site, boxes, OPEN)
    assert site.deliver(tries, box) == set(tries)


def test_nothing_enters_a_network_that_becomes_internal(site: Site, boxes: dict[str, Box]) -> None:
    """Neither a client's retry of a connection that the container reset, nor a flow that the host's helper expects.

    Both are to ports that are open as long as the network is not internal.
    """
    box = boxes["Docker"]
    allow, internal = (OPEN, Rule("udp", 30000, 30000)), Element("internal", (BR_DOCKER,))
    load(site, boxes, *allow)
    with helper(site, "tftp"):
        entering = []
        for mine, out in ((box.v4, site.OUT4), (box.v6, site.OUT6)):
            client, sport = was_reset(site.wan, box, mine, 8080)
            entering.append(tcp(client, mine, 8080, sport))
            request = udp(mine, out, 69, 30000, b"\0\1file\0octet\0")
            assert site.deliver([request], site.wan, box) == {request}
            entering.append(udp(out, mine, 30000, next(_ports)))
        load(site, boxes, *allow, more=[internal])
        assert site.deliver(entering, box, last=ping("2001:db8:100::1", box.v6), witness=site.host) == set()
    load(site, boxes, *allow)
    assert site.deliver(entering, box) == set(entering)


def test_a_container_that_accepts_other_protocols_keeps_its_ports_closed(site: Site, boxes: dict[str, Box]) -> None:
    """`policy: open` accepts protocols without a name; ports that are denied stay closed with every protocol."""
    protocols = ("tcp", "udp", "sctp")
    spec = PolicySpec(policy="open", deny=tuple(Rule(proto, 1, 65535) for proto in protocols))
    box = boxes["docker-fw"]
    site.load(site.known(box, spec=spec))
    pairs = ((site.OUT4, box.v4), (site.OUT6, box.v6))
    denied = [new_flow(proto, *pair, 8080, next(_ports)) for pair in pairs for proto in protocols]
    others = [portless("other", *pair) for pair in pairs]
    assert site.deliver([*denied, *others], box, last=ping(*pairs[1])) == set(others)


def restricted(site: Site, box: Box) -> set[Element]:
    """Return the elements of a container that accepts 53/udp and may initiate nothing."""
    label = parse({"fw.egress": "none", "fw.allow": "53/udp"})
    return site.docker_elements(box, BR_DOCKER, spec=label.spec)


def test_a_container_that_may_initiate_nothing_redirects_nothing(site: Site, boxes: dict[str, Box]) -> None:
    """It may report errors about a client's flow, but a redirect, which is about the flow as well, does not leave."""
    box = boxes["Docker"]
    site.load(more=restricted(site, box))
    request = udp(site.OUT4, box.v4, 53, next(_ports))
    assert site.deliver([request], box) == {request}
    unreachable, redirect = icmp_error(box.v4, request, 3, 3), icmp_error(box.v4, request, 5, 1)
    ear, last = site.sniffer(site.wan), ping(site.HOST6, site.OUT6)
    list(ear.read())
    site.send([redirect, unreachable], box)
    site.send([last], site.host)
    assert arrived([ear], last)[0] & {redirect, unreachable} == {unreachable}


def test_a_container_that_may_initiate_nothing_is_no_router_for_its_neighbours(
    site: Site, boxes: dict[str, Box]
) -> None:
    """Where br_netfilter passes a Docker bridge's internal packets to the rules, they drop router advertisements."""
    sender = boxes["Docker"]
    near = next((box for box in site.boxes if str(box.v4) == "10.100.0.3"), None)
    if near is None:
        near = site.docker_box(BR_DOCKER, 100, 3)
        site.acquaint(sender, near)
    site.load(more=restricted(site, sender))
    bridged = {f"net/bridge/bridge-nf-call-{family}": 1 for family in ("iptables", "ip6tables")}
    site.host.sysctl(bridged)
    try:
        advert = icmp(sender.v6, near.v6, 134, 0, bytes(12))
        assert site.deliver([advert], near, sender, ping(sender.v6, near.v6)) == set()
    finally:
        site.host.sysctl(BRIDGED_FRAMES_UNTRACKED)
