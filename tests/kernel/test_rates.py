"""`fw.rate`: how many new flows a source may open to an accepted port; who comes too often is dropped, nobody else."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from plugin.labels import parse
from plugin.model import Published, Said
from plugin.sets import Change, Element
from tests.kernel.packets import Packet, arrived, new_flow, ping
from tests.kernel.site import Box, Site

_ports = itertools.cycle(range(20000, 60000))
BRIDGE = "br-000000000001"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site() as made:
        made.host.sysctl({"net/ipv4/ip_forward": 1, "net/ipv6/conf/all/forwarding": 1})
        yield made


@dataclass(frozen=True)
class Boxes:
    web: Box
    db: Box
    guest: Box


@pytest.fixture(scope="module")
def boxes(site: Site) -> Boxes:
    """Two containers on a network of ours, one on one of Docker's."""
    network = site.network(1)
    return Boxes(site.box(network, 2), site.box(network, 3), site.docker_box(BRIDGE, 101))


def label(**words: str) -> Said:
    parsed = parse({f"fw.{key}": value for key, value in words.items()})
    assert not parsed.problems
    return parsed.said


def load(site: Site, boxes: Boxes, said: Said, db: Said | None = None) -> None:
    """The containers web and guest say this, and db that."""
    known = [Site.known(boxes.web, said=said), Site.known(boxes.db, said=db or Said())]
    site.load(*known, more=site.guarded(boxes.guest, BRIDGE, said=said))


#: Sources of their own: of IPv6, each in a /64 of its own.
def sources(version: int) -> tuple[Any, Any, Any]:
    if version == 4:
        return tuple(map(IPv4Address, ("203.0.113.7", "203.0.113.8", "192.0.2.9")))  # type: ignore[return-value]
    return tuple(map(IPv6Address, ("2001:db8:5::7", "2001:db8:5:1::7", "2001:db8:6::7")))  # type: ignore[return-value]


def at(box: Box, version: int) -> Any:
    return box.v4 if version == 4 else box.v6


def passing(site: Site, box: Box, flows: list[tuple[Any, int]], proto: str = "tcp") -> list[bool]:
    """Which of these new flows, (source, port) in that order, reach the box."""
    sent = [new_flow(proto, source, at(box, source.version), port, next(_ports)) for source, port in flows]
    got = site.deliver(sent, box, None, ping(site.wan.V6, box.v6))
    return [packet in got for packet in sent]


@pytest.fixture(params=["web", "guest"])
def box(request: pytest.FixtureRequest, boxes: Boxes) -> Box:
    """On a network of docker-fw's own, and on one of Docker's."""
    found: Box = getattr(boxes, request.param)
    return found


@pytest.mark.parametrize("version", [4, 6])
def test_the_next_flow_is_dropped_and_another_source_is_not(site: Site, boxes: Boxes, box: Box, version: int) -> None:
    """A source may open as many flows as the burst says, and not one more; each other source likewise, whatever the
    first one does."""
    load(site, boxes, label(rate="22 1/hour burst 3"))
    one, two, three = sources(version)
    assert passing(site, box, [(one, 22)] * 5) == [True] * 3 + [False] * 2
    assert passing(site, box, [(two, 22)] * 2) == [True] * 2
    assert passing(site, box, [(three, 22), (one, 22), (two, 22), (two, 22)]) == [True, False, True, False]


@pytest.mark.parametrize("version", [4, 6])
def test_other_ports_and_other_containers_are_not_concerned(site: Site, boxes: Boxes, version: int) -> None:
    """A rate is each port's own: who came too often to 22 reaches 443 and the same port of another container."""
    load(site, boxes, label(rate="22 1/hour burst 1, 8000-8100 1/hour burst 2", allow="8000-8100, 53/udp"), Said())
    one, two, _ = sources(version)
    assert passing(site, boxes.web, [(one, 22)] * 2 + [(one, 443)] * 3) == [True, False, True, True, True]
    assert passing(site, boxes.db, [(one, 22)] * 4) == [True] * 4
    # Of a range each port by itself, single ports and blocks.
    assert passing(site, boxes.web, [(one, port) for port in (8000, 8016, 8100) * 3]) == [True] * 6 + [False] * 3
    assert passing(site, boxes.web, [(one, 53)] * 4, "udp") == [True] * 4, "of another protocol"
    assert passing(site, boxes.web, [(two, 22), (two, 8050)]) == [True] * 2


def test_a_rate_opens_nothing(site: Site, boxes: Boxes, box: Box) -> None:
    """A port with a rate that nothing opens stays closed, and `from` is asked for as ever."""
    load(site, boxes, label(rate="8080 9/second burst 9, 22 9/second burst 9", allow="22 from 192.0.2.0/24"))
    one, _, three = sources(4)
    assert passing(site, box, [(one, 8080), (one, 22), (three, 22)]) == [False, False, True]


def test_ipv6_sources_are_counted_by_their_64(site: Site, boxes: Boxes, box: Box) -> None:
    """Whoever has a /64 has as many addresses as he likes, and is one source; the next /64 is another."""
    load(site, boxes, label(rate="22 1/hour burst 2"))
    same = [IPv6Address("2001:db8:5:7::") + n for n in (1, 2**32, 2**64 - 1)]
    beside = [IPv6Address("2001:db8:5:8::1"), IPv6Address("2001:db8:5:6:ffff:ffff:ffff:ffff")]
    assert passing(site, box, [(source, 22) for source in same]) == [True, True, False]
    assert passing(site, box, [(source, 22) for source in beside]) == [True, True]


def test_it_is_a_rate(site: Site, boxes: Boxes) -> None:
    """With time a source may come again, at the rate that is said."""
    load(site, boxes, label(rate="22 4/second burst 1"))
    one, _, _ = sources(4)
    assert passing(site, boxes.web, [(one, 22)] * 3) == [True, False, False]
    time.sleep(0.3)
    assert passing(site, boxes.web, [(one, 22)] * 2) == [True, False]


def test_flows_that_stand_are_not_counted(site: Site, boxes: Boxes, box: Box) -> None:
    """A connection that is open may say as much as it likes, and answers are no flows."""
    load(site, boxes, label(rate="80 1/hour burst 1"))
    with box.probe.serve(tcp=[80]):
        assert site.wan.probe.tcp(str(box.v6), 80) == "open"
        assert site.wan.probe.tcp(str(box.v6), 80, timeout=0.2) == "silent"
        assert box.probe.ping(str(Site.OUT6)) == "open"


def test_a_new_rate_at_run_time_leaves_the_table_where_it_is(site: Site, boxes: Boxes) -> None:
    """The first container with another rate comes while the table stands: its sets and rules are added, in one
    transaction, nothing else is touched: no counter, no source that was counted, no rule; nobody calls it a touch."""
    slow = label(rate="22 1/hour burst 1")
    quick = label(rate="22 2/hour burst 2, 8000-8100 3/day burst 3", allow="8080")
    load(site, boxes, slow)
    one, two, _ = sources(6)
    assert passing(site, boxes.web, [(one, 22)] * 2) == [True, False]
    dropped = site.nft.dropped()[boxes.web.v6]
    handle = _handle(site)
    generation = site.nft.generation()
    anew = _elements(site, boxes, quick) - _elements(site, boxes, Said())
    site.nft.change(Change(add=tuple(anew)))
    assert site.nft.generation() == generation + 2, "rules, and elements"
    assert site.nft.intact()
    assert _handle(site) == handle
    assert passing(site, boxes.db, [(one, 22)] * 3) == [True, True, False]
    assert passing(site, boxes.db, [(one, 8080)] * 4) == [True, True, True, False]
    assert passing(site, boxes.web, [(one, 22), (two, 22), (two, 22)]) == [False, True, False]
    assert site.nft.dropped()[boxes.web.v6][0] == dropped[0] + 2
    # And it goes: the elements do, and the port is as it was.
    site.nft.change(Change(remove=tuple(anew)))
    assert passing(site, boxes.db, [(one, 22)] * 4) == [True] * 4
    assert site.nft.intact()
    # The whole table anew, with the same rates, is as good.
    load(site, boxes, slow, quick)
    assert passing(site, boxes.db, [(one, 22)] * 3) == [True, True, False]


def _elements(site: Site, boxes: Boxes, said: Said) -> set[Element]:
    endpoint = Site.known(boxes.db, said=said)
    return set(site.inventory(endpoint).elements(endpoint.id))


def _handle(site: Site) -> str:
    """What the kernel calls the table that stands."""
    shown = site.run("nft", "-a", "list", "table", "inet", "docker-fw").stdout
    return shown.splitlines()[0]


def test_rates_are_not_mixed_up(site: Site, boxes: Boxes) -> None:
    """Several rates on one container, on the same port too: each port obeys its own, the same port all of them."""
    load(site, boxes, label(rate="22 1/hour burst 4, 80 1/hour burst 2, 20-90 2/hour burst 3", allow="25"))
    one, _, _ = sources(4)
    assert passing(site, boxes.web, [(one, 80)] * 3) == [True, True, False]
    assert passing(site, boxes.web, [(one, 22)] * 4) == [True, True, True, False]
    assert passing(site, boxes.web, [(one, 25)] * 4) == [True, True, True, False]


def test_a_full_set_of_sources_refuses(site: Site, boxes: Boxes) -> None:
    """When 65,535 sources are remembered one more is refused, and who is remembered may come: unsure is closed."""
    load(site, boxes, label(rate="53/udp 1/hour burst 2", allow="53/udp"))
    box, size = boxes.web, 65535
    first = IPv4Address("1.0.0.0")
    rest = [new_flow("udp", first + n, box.v4, 53, next(_ports)) for n in range(size)]
    sniffer = site.sniffer(box)
    got: set[Packet] = set()
    list(sniffer.read())
    for start in range(0, size, 5000):  # no more at once than a sniffer holds
        last = ping(site.wan.V6, box.v6)
        site.send([*rest[start : start + 5000], last])
        got |= arrived([sniffer], last)[0]
        site.forget_flows()
    missing = set(rest) - got
    assert not missing
    late = [(first + size + n, 53) for n in range(3)]
    assert passing(site, box, [*late, (first, 53), (first + size - 1, 53)], "udp") == [False] * 3 + [True] * 2
    assert passing(site, box, [(first, 53)], "udp") == [False], "its own third"
    assert passing(site, box, [(first + size, 22)]) == [True], "a port without a rate"


@pytest.mark.parametrize("version", [4, 6])
def test_docker_proxys_port_has_its_containers_rate(site: Site, boxes: Boxes, version: int) -> None:
    """Where docker-proxy serves the host's port the rate of the container's port is asked for there, for each source;
    also where only some may come."""
    any_, host = [(IPv4Address("0.0.0.0"), Site.HOST4), (IPv6Address("::"), Site.HOST6)][version == 6]
    port = Published("tcp", any_, 15432, 5432)
    one, two, three = sources(version)
    for allow in ("5432", "5432 from 203.0.113.0/24 2001:db8:5::/48"):
        said = label(rate="5432 1/hour burst 2", allow=allow)
        site.load(more=site.guarded(boxes.guest, BRIDGE, said=said, published=(port,)))
        sent = [new_flow("tcp", source, host, 15432, next(_ports)) for source in (one, one, one, two, two, two, three)]
        list(site.listener.read())
        last = ping(site.wan.V6, Site.HOST6)
        site.send([*sent, last])
        (seen,) = arrived([site.listener], last)
        wanted = [True, True, False, True, True, False, allow == "5432"]
        assert [packet in seen for packet in sent] == wanted
