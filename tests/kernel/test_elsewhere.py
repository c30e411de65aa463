"""Test flows that are opened without any container, with the addresses of one that gets them later.

The table labels such flows, so that none of their packets passes to or from the container. `test_forged_before` tests
the same with docker-fw and Docker; here the host has no route to the container's network until it appears.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from plugin.kernel.names import AF
from plugin.model import Address
from plugin.nftables.sets import Element
from tests.kernel.ct_helpers import helper
from tests.kernel.packets import Packet, arrived, icmp, icmp_error, ping, udp, written
from tests.kernel.site import BR_DOCKER, Box, Site, claimed
from tests.lab import NamedNetns
from tests.lab.netns import FORWARDING

#: Addresses that the outsider can receive at, and send from, by the host.
FAR4, FAR6 = "203.0.113.99", "2001:db8:5::99"
#: Types of ICMP, by the length of an address.
ECHO_REPLY, UNREACHABLE = {4: 0, 16: 129}, {4: 3, 16: 1}
UNMANAGED, UNKNOWN = "virbr0", "br9"
#: By the number of their networks.
BRIDGES = {100: BR_DOCKER, 101: UNKNOWN, 103: UNMANAGED}
_ports = itertools.count(20000)


@dataclasses.dataclass(frozen=True)
class Flows:
    """Flows of UDP and pings over both families: the packets that open them, and the replies."""

    first: list[Packet]
    replies: list[Packet]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site() as made:
        made.host.sysctl(FORWARDING)
        made.wan.ip(f"route add {FAR4} via {made.HOST4}", f"route add {FAR6} via {made.HOST6}")
        yield made


@pytest.fixture(scope="module")
def boxes(site: Site) -> dict[str, Box]:
    """Return a container of each kind, and a virtual machine on an unmanaged bridge."""
    return {
        "docker-fw": site.box(site.network(1), 2),
        "Docker": site.docker_box(BR_DOCKER, 100),
        "unknown": site.docker_box(UNKNOWN, 101),
        "unmanaged": site.docker_box(UNMANAGED, 103),
    }


@pytest.fixture
def loaded(site: Site, boxes: dict[str, Box]) -> dict[str, Box]:
    """Return them, with the table that knows all bridges but one."""
    load(site, boxes, Element("unmanaged", (site.index(UNMANAGED),)))
    site.forget_flows()
    return boxes


def load(site: Site, boxes: dict[str, Box], *more: Element) -> None:
    site.load(site.known(boxes["docker-fw"]), more={*site.docker_elements(boxes["Docker"], BR_DOCKER), *more})


def flows(here: tuple[Any, Any], there: tuple[Any, Any]) -> Flows:
    """Return flows from one end to another, each with an address of both families."""
    made = Flows([], [])
    for a, b in zip(here, there, strict=True):
        port, request = next(_ports), ping(a, b)
        made.first.extend((udp(a, b, 53, port), request))
        made.replies.extend((udp(b, a, port, 53), icmp(b, a, ECHO_REPLY[len(request.dst)], body=request.data[4:])))
    return made


def of(box: Box) -> tuple[Address, Address]:
    return box.v4, box.v6


@contextmanager
def absent(site: Site, box: Box) -> Iterator[None]:
    """Let the host have no route to a container's network, as before the network exists."""
    number = box.v4.packed[1]
    bridge = box.network.bridge if box.network else BRIDGES[number]
    routes = (f"10.{number}.0.0/24 dev {bridge}", f"2001:db8:{number}::/64 dev {bridge}")
    site.host.ip(*(f"route del {route}" for route in routes))
    try:
        yield
    finally:
        site.host.ip(*(f"route add {route}" for route in routes))


KINDS = ("docker-fw", "Docker", "unknown")


@pytest.mark.parametrize("kind", [*KINDS, "unmanaged"])
def test_a_flow_between_outside_links_belongs_to_no_container(site: Site, loaded: dict[str, Box], kind: str) -> None:
    """No packet of it passes to or from the container that gets its address; a virtual machine is not filtered."""
    box = loaded[kind]
    forged = flows(of(box), (FAR4, FAR6))
    with absent(site, box):
        site.send(forged.first)
        assert site.deliver(forged.replies, site.wan) == set(forged.replies), "the host forwards between its links"
    passes = kind == "unmanaged"
    assert site.deliver(forged.replies, box) == (set(forged.replies) if passes else set())
    assert site.deliver(forged.first, site.wan, box) == (set(forged.first) if passes else set())
    own = flows(of(box), (FAR4, FAR6))
    assert site.deliver(own.first, site.wan, box) == set(own.first), "what the container opens itself"
    assert site.deliver(own.replies, box) == set(own.replies)
    assert site.deliver(own.first, site.wan, box) == set(own.first)


@pytest.mark.parametrize("kind", ["docker-fw", "Docker"])
@pytest.mark.parametrize("opener", ["machine", "outsider"])
def test_a_flow_of_a_virtual_machine_belongs_to_no_container(
    site: Site, loaded: dict[str, Box], kind: str, opener: str
) -> None:
    """Neither the machine nor a client of it can use the address of a container that exists later."""
    box, machine = loaded[kind], loaded["unmanaged"]
    there, other = ((FAR4, FAR6), site.wan) if opener == "machine" else (of(machine), machine)
    forged = flows(of(box), there)
    with absent(site, box):
        ears, source = (site.wan, machine) if opener == "machine" else (machine, site.wan)
        assert site.deliver(forged.first, ears, source) == set(forged.first)
    assert site.deliver(forged.replies, box, other) == set()
    assert site.deliver(forged.first, other, box) == set()


@pytest.mark.parametrize("opener", ["machine", "outsider"])
def test_flows_of_a_bridge_pass_until_it_is_known_to_be_dockers(
    site: Site, loaded: dict[str, Box], opener: str
) -> None:
    """After a start it is uncertain for some time which bridges are Docker's: flows of virtual machines continue."""
    machine = loaded["unmanaged"]
    ends = [of(machine), (FAR4, FAR6)] if opener == "machine" else [(FAR4, FAR6), of(machine)]
    talk = flows(ends[0], ends[1])
    here, there = (machine, site.wan) if opener == "machine" else (site.wan, machine)

    def passing() -> set[Packet]:
        return site.deliver(talk.first, there, here) | site.deliver(talk.replies, here, there)

    assert passing() == {*talk.first, *talk.replies}
    load(site, loaded)
    assert passing() == {*talk.first, *talk.replies}
    load(site, loaded, *claimed(UNMANAGED))
    assert passing() == set()


@pytest.mark.parametrize("kind", KINDS)
def test_a_flow_to_the_host_belongs_to_no_container(site: Site, loaded: dict[str, Box], kind: str) -> None:
    """The outsider opens it with the address of a container, which then sends in it: none of that reaches the host."""
    box, host = loaded[kind], (site.HOST4, site.HOST6)
    forged = flows(of(box), host)
    with absent(site, box):
        assert to_host(site, forged.first, site.wan) == set(forged.first)
    assert to_host(site, forged.first, box) == set()
    # Only Linux' own check of IPv4 sources keeps an outsider from sending as the host.
    replies = [packet for packet in forged.replies if len(packet.dst) == 16]
    assert site.deliver(replies, box, last=ping(FAR6, box.v6)) == set()
    own = flows(of(box), host)
    for _ in range(2):
        assert to_host(site, own.first, box) == set(own.first), "what the container opens itself"


def to_host(site: Site, packets: list[Packet], source: NamedNetns) -> set[Packet]:
    """Send packets to the host itself; return those that it accepts."""
    list(site.listener.read())
    site.send(packets, source)
    last = ping(written(packets[-1].src), site.HOST6)
    site.send([last], source)
    (seen,) = arrived([site.listener], last)
    return seen & set(packets)


def test_an_icmp_error_or_a_reply_labels_no_flow(site: Site, loaded: dict[str, Box]) -> None:
    """An outsider who knows the ports of a flow between a container and the host cannot end it with one packet."""
    box = loaded["Docker"]
    own = flows(of(box), (site.HOST4, site.HOST6))
    assert to_host(site, own.first, box) == set(own.first)
    far = {4: FAR4, 16: FAR6}
    sent = [icmp_error(far[len(each.dst)], each, UNREACHABLE[len(each.dst)], 3) for each in own.replies]
    assert to_host(site, sent, site.wan) == set(sent)
    assert to_host(site, own.first, box) == set(own.first)


def test_a_redirect_about_a_flow_does_not_reach_the_host(site: Site, loaded: dict[str, Box]) -> None:
    """It is related to the flow, and no container may change the host's routes."""
    box = loaded["Docker"]
    own = flows(of(box), (site.HOST4, site.HOST6))
    assert to_host(site, own.first, box) == set(own.first)
    redirect = icmp_error(box.v4, own.replies[0], 5, 1)
    assert to_host(site, [redirect, *own.first], box) == set(own.first)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flow_that_a_helper_expects_belongs_to_no_container(site: Site, loaded: dict[str, Box], kind: str) -> None:
    """A forged request lets the host's connection tracking expect flows to the container's address."""
    box = loaded[kind]
    with helper(site, "tftp"):
        with absent(site, box):
            expected = []
            for a, far in zip(of(box), (FAR4, FAR6), strict=True):
                port, theirs = next(_ports), next(_ports)
                site.send([udp(a, far, 69, port, b"\0\1file\0octet\0")])
                expected += [udp(far, a, port, theirs), udp(a, far, theirs, port)]
            site.send(expected)
        assert "helper=tftp" in site.run("conntrack", "-L", "-o", "extended").stdout
        assert site.deliver(expected[::2], box, last=ping(FAR6, box.v6)) == set()
        assert site.deliver(expected[1::2], site.wan, box, last=ping(box.v6, FAR6)) == set()


def test_a_flow_to_the_host_that_a_helper_expects_belongs_to_no_container(site: Site, loaded: dict[str, Box]) -> None:
    """The outsider forges both ends of the request, of which the host's is possible over IPv6 alone."""
    box, host = loaded["Docker"], site.HOST6
    with helper(site, "tftp"):
        port = next(_ports)
        expected = udp(box.v6, host, port, next(_ports))
        with absent(site, box):
            site.send([udp(host, box.v6, 69, port, b"\0\1file\0octet\0")])
            assert to_host(site, [expected], site.wan) == {expected}
        assert to_host(site, [expected], box) == set()


def test_links_that_did_not_forward_before_docker_fw_forward_nothing(site: Site, loaded: dict[str, Box]) -> None:
    """Neither between outside links, nor to or from bridges of others; containers reach all of them."""
    docker, machine, unknown = loaded["Docker"], loaded["unmanaged"], loaded["unknown"]
    families = (Element("no_transit", (family,)) for family in AF.values())
    load(site, loaded, Element("unmanaged", (site.index(UNMANAGED),)), *families)
    far = FAR4, FAR6
    for box in (unknown, machine):
        out = flows(of(box), far).first
        assert site.deliver(out, site.wan, box, ping(docker.v6, FAR6), docker) == set()
    into, between = flows(far, of(machine)).first, flows(of(unknown), far).first
    assert site.deliver(into, machine, site.wan, ping(docker.v6, machine.v6), docker) == set()
    with absent(site, unknown):
        assert site.deliver(between, site.wan, site.wan, ping(docker.v6, FAR6), docker) == set()
    for own, ear in ((flows(of(docker), far), site.wan), (flows(of(docker), of(machine)), machine)):
        assert site.deliver(own.first, ear, docker) == set(own.first)
