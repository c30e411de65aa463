"""Test `fw.rate`: the number of new flows a source may open to an accepted port.

Sources over the rate are dropped, and no others.
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from plugin.model import PolicySpec, Published
from plugin.nftables import rate_chains, rate_quota
from plugin.nftables.client import NftError
from plugin.nftables.sets import Change, Element
from tests.kernel.packets import arrived, new_flow, ping, tcp
from tests.kernel.resets import resetting, served
from tests.kernel.site import Box, Site, of_endpoint, site_of_module
from tests.lab.netns import FORWARDING
from tests.specs import spec_of
from tests.waiting import until

_ports = itertools.cycle(range(20000, 60000))
BRIDGE = "br-000000000001"


site = site_of_module(FORWARDING)


@dataclass(frozen=True)
class Boxes:
    web: Box
    db: Box
    guest: Box


@pytest.fixture(scope="module")
def boxes(site: Site) -> Boxes:
    """Return two containers on a docker-fw network, one on a Docker network."""
    network = site.network(1)
    return Boxes(site.box(network, 2), site.box(network, 3), site.docker_box(BRIDGE, 101))


def load(site: Site, boxes: Boxes, spec: PolicySpec, db: PolicySpec | None = None) -> None:
    """Load the table: the containers web and guest have this policy, and db that one."""
    known = [Site.known(boxes.web, spec=spec), Site.known(boxes.db, spec=db or PolicySpec())]
    site.load(*known, more=site.docker_elements(boxes.guest, BRIDGE, spec=spec))


#: Separate sources: in IPv6, each in a /64 of its own.
def sources(version: int) -> tuple[Any, Any, Any]:
    if version == 4:
        return tuple(map(IPv4Address, ("203.0.113.7", "203.0.113.8", "192.0.2.9")))  # type: ignore[return-value]
    return tuple(map(IPv6Address, ("2001:db8:5::7", "2001:db8:5:1::7", "2001:db8:6::7")))  # type: ignore[return-value]


def passing(site: Site, box: Box, flows: list[tuple[Any, int]], proto: str = "tcp") -> list[bool]:
    """Return which of these new flows, (source, port) in that order, reach the box."""
    sent = [new_flow(proto, source, box.address(source.version), port, next(_ports)) for source, port in flows]
    got = site.deliver(sent, box, None, ping(site.wan.V6, box.v6))
    return [packet in got for packet in sent]


@pytest.mark.parametrize("version", [4, 6])
def test_the_next_flow_is_dropped_and_another_source_is_not(site: Site, boxes: Boxes, box: Box, version: int) -> None:
    """A source may open exactly as many flows as the burst; each other source too, whatever the first one does."""
    load(site, boxes, spec_of(rate="22 1/hour burst 3"))
    one, two, three = sources(version)
    assert passing(site, box, [(one, 22)] * 5) == [True] * 3 + [False] * 2
    assert passing(site, box, [(two, 22)] * 2) == [True] * 2
    assert passing(site, box, [(three, 22), (one, 22), (two, 22), (two, 22)]) == [True, False, True, False]


@pytest.mark.parametrize("version", [4, 6])
def test_other_ports_and_other_containers_are_not_concerned(site: Site, boxes: Boxes, version: int) -> None:
    """A rate is each port's own: a source over the rate at 22 reaches 443 and the same port of another container."""
    load(
        site,
        boxes,
        spec_of(rate="22 1/hour burst 1, 8000-8100 1/hour burst 2", allow="8000-8100, 53/udp"),
        PolicySpec(),
    )
    one, two, _ = sources(version)
    assert passing(site, boxes.web, [(one, 22)] * 2 + [(one, 443)] * 3) == [True, False, True, True, True]
    assert passing(site, boxes.db, [(one, 22)] * 4) == [True] * 4
    # Each port of a range by itself, single ports and blocks.
    assert passing(site, boxes.web, [(one, port) for port in (8000, 8016, 8100) * 3]) == [True] * 6 + [False] * 3
    assert passing(site, boxes.web, [(one, 53)] * 4, "udp") == [True] * 4, "of another protocol"
    assert passing(site, boxes.web, [(two, 22), (two, 8050)]) == [True] * 2


def test_a_rate_opens_nothing(site: Site, boxes: Boxes, box: Box) -> None:
    """A port with a rate that no rule opens stays closed, and `from` still applies."""
    load(site, boxes, spec_of(rate="8080 9/second burst 9, 22 9/second burst 9", allow="22 from 192.0.2.0/24"))
    one, _, three = sources(4)
    assert passing(site, box, [(one, 8080), (one, 22), (three, 22)]) == [False, False, True]


def test_ipv6_sources_are_counted_by_their_64(site: Site, boxes: Boxes, box: Box) -> None:
    """A client with a /64 has as many addresses as it likes, but is one source; the next /64 is another."""
    load(site, boxes, spec_of(rate="22 1/hour burst 2"))
    same = [IPv6Address("2001:db8:5:7::") + n for n in (1, 2**32, 2**64 - 1)]
    beside = [IPv6Address("2001:db8:5:8::1"), IPv6Address("2001:db8:5:6:ffff:ffff:ffff:ffff")]
    assert passing(site, box, [(source, 22) for source in same]) == [True, True, False]
    assert passing(site, box, [(source, 22) for source in beside]) == [True, True]


def test_it_is_a_rate(site: Site, boxes: Boxes) -> None:
    """A source over its rate may open a flow again each time that the rate permits one, and not sooner."""
    load(site, boxes, spec_of(rate="22 5/second burst 1"))
    one, _, _ = sources(4)
    began = time.monotonic()
    for _ in range(5):
        until(lambda: passing(site, boxes.web, [(one, 22)]) == [True], "the source may open another flow")
    assert time.monotonic() - began > 4 / 5


def test_established_flows_are_not_counted(site: Site, boxes: Boxes, box: Box) -> None:
    """An established connection may send any number of packets, and replies are not new flows."""
    load(site, boxes, spec_of(rate="80 1/hour burst 1"))
    with box.probe.serve(tcp=[80]):
        assert site.wan.probe.tcp(str(box.v6), 80) == "open"
        assert site.wan.probe.tcp(str(box.v6), 80, timeout=0.2) == "silent"
        assert box.probe.ping(str(Site.OUT6)) == "open"


@pytest.mark.parametrize("rate", ["80 1/hour burst 3", "80 2/minute burst 3"])
@pytest.mark.parametrize("version", [4, 6])
def test_a_new_connection_from_the_same_port_is_counted(
    site: Site, boxes: Boxes, box: Box, version: int, rate: str
) -> None:
    """After the server reset a connection, another one from the same port counts.

    It counts though to conntrack its SYN is the old connection's packet.
    """
    load(site, boxes, spec_of(rate=rate))
    site.forget_flows()
    with resetting(box, box.address(version), 80):
        assert served(site, box.address(version), 80, 6) == 3


@pytest.mark.parametrize("rate", ["5432 1/hour burst 3", "5432 2/minute burst 3"])
@pytest.mark.parametrize("version", [4, 6])
def test_a_new_connection_from_the_same_port_is_counted_at_docker_proxys_too(
    site: Site, boxes: Boxes, version: int, rate: str
) -> None:
    """The same where docker-proxy serves the container's port on the host's."""
    any_, host = [(IPv4Address("0.0.0.0"), Site.HOST4), (IPv6Address("::"), Site.HOST6)][version == 6]
    port = Published("tcp", any_, 15432, 5432)
    site.load(more=site.docker_elements(boxes.guest, BRIDGE, spec=spec_of(rate=rate, allow="5432"), published=(port,)))
    site.forget_flows()
    with resetting(site.host, host, 15432):
        assert served(site, host, 15432, 6) == 3


def test_a_new_rate_at_run_time_leaves_the_table_where_it_is(site: Site, boxes: Boxes) -> None:
    """The first container with another rate is added while the table is active.

    Its sets and rules are added, in one transaction. Nothing else is touched: no counter, no counted source, no rule;
    and it is not reported as a change by another program.
    """
    slow = spec_of(rate="22 1/hour burst 1")
    quick = spec_of(rate="22 2/hour burst 2, 8000-8100 3/day burst 3", allow="8080")
    load(site, boxes, slow)
    one, two, _ = sources(6)
    assert passing(site, boxes.web, [(one, 22)] * 2) == [True, False]
    with site.inside():
        dropped = site.nft.dropped()[boxes.web.v6]
    handle = _handle(site)
    generation = site.nft.generation()
    anew = _elements(site, boxes, quick) - _elements(site, boxes, PolicySpec())
    site.nft.change(Change(add=tuple(anew)))
    assert site.nft.generation() == generation + 2, "rules, and elements"
    assert site.nft.intact()
    assert _handle(site) == handle
    assert passing(site, boxes.db, [(one, 22)] * 3) == [True, True, False]
    assert passing(site, boxes.db, [(one, 8080)] * 4) == [True, True, True, False]
    assert passing(site, boxes.web, [(one, 22), (two, 22), (two, 22)]) == [False, True, False]
    with site.inside():
        assert site.nft.dropped()[boxes.web.v6][0] == dropped[0] + 2
    # On removal the elements are removed, and the port is as it was.
    site.nft.change(Change(remove=tuple(anew)))
    assert passing(site, boxes.db, [(one, 22)] * 4) == [True] * 4
    assert site.nft.intact()
    # The whole table loaded again, with the same rates, is equivalent.
    load(site, boxes, slow, quick)
    assert passing(site, boxes.db, [(one, 22)] * 3) == [True, True, False]


def _elements(site: Site, boxes: Boxes, spec: PolicySpec) -> set[Element]:
    endpoint = Site.known(boxes.db, spec=spec)
    return set(of_endpoint(site.inventory(endpoint), endpoint))


def _handle(site: Site) -> str:
    """Return the kernel's handle of the active table."""
    shown = site.run("nft", "-a", "list", "table", "inet", "docker-fw").stdout
    return shown.splitlines()[0]


def test_rates_are_not_mixed_up(site: Site, boxes: Boxes) -> None:
    """Several rates apply to one container, also on the same port.

    Each port has its own, and the same port all of them.
    """
    load(site, boxes, spec_of(rate="22 1/hour burst 4, 80 1/hour burst 2, 20-90 2/hour burst 3", allow="25"))
    one, _, _ = sources(4)
    assert passing(site, boxes.web, [(one, 80)] * 3) == [True, True, False]
    assert passing(site, boxes.web, [(one, 22)] * 4) == [True, True, True, False]
    assert passing(site, boxes.web, [(one, 25)] * 4) == [True, True, True, False]


def flood(site: Site, box: Box, sources: Iterable[Any], then: Iterable[Any] = ()) -> list[bool]:
    """Send a SYN to 22 from each of these sources, and without a pause from those of `then`.

    Return which of the latter arrive.
    """
    packets = [tcp(source, box.address(source.version), 22, next(_ports)) for source in sources]
    last, got = [tcp(source, box.address(source.version), 22, next(_ports)) for source in then], set()
    for start in range(0, len(packets), 5000):  # no more at once than the kernel's queues hold
        part = packets[start : start + 5000]
        more = last if start + 5000 >= len(packets) else []
        got |= site.deliver([*part, *more], box, None, ping(site.wan.V6, box.v6))
        site.forget_flows()
    return [packet in got for packet in last]


def forged(count: int = 3 * rate_chains.NEW) -> list[IPv4Address]:
    """Return sources all over the Internet: more than fit in a set, and no network of theirs is too large a part."""
    return [IPv4Address("1.0.0.1") + 256 * n for n in range(count)]


def forged6() -> list[IPv6Address]:
    """Return as many sources of IPv6, each of a network of its own."""
    return [IPv6Address("2a00::1") + (n << 80) for n in range(3 * rate_chains.NEW)]


@pytest.fixture
def forgetting(monkeypatch: pytest.MonkeyPatch) -> int:
    """A source is forgotten after two seconds instead of a minute, unless it is proven."""
    monkeypatch.setattr(rate_chains, "SHORT", 2)
    return 2


def remembered(site: Site, kind: str) -> int:
    """Return the number of sources in the sets of this kind ("sources4", …)."""
    sets = {key for chain in site.nft.rate_chains() for key in rate_chains.limit(chain).sets if key.startswith(kind)}
    return sum(site.run("nft", "list", "set", "inet", "docker-fw", key).stdout.count("expires") for key in sets)


def test_a_full_set_of_sources_refuses(site: Site, boxes: Boxes) -> None:
    """While more sources arrive than fit, new ones are dropped, and remembered ones pass: when full, the set refuses.

    Other ports and the other family are not affected.
    """
    load(site, boxes, spec_of(rate="22 1/hour burst 2"))
    one, two, _ = sources(4)
    assert passing(site, boxes.web, [(one, 22)]) == [True]
    assert flood(site, boxes.web, forged(), [two, one, one, sources(6)[0]]) == [False, True, False, True]
    assert remembered(site, "sources4") < 2 * rate_chains.NEW
    assert passing(site, boxes.web, [(two, 443)]) == [True]


def test_a_flood_of_one_container_does_not_close_another(site: Site, boxes: Boxes) -> None:
    """Forged sources fill the set of one container's rate; the same rate of another container is not affected."""
    spec = spec_of(rate="22 5/minute burst 10")
    load(site, boxes, spec, spec)
    one, two, _ = sources(4)
    assert flood(site, boxes.web, forged(), [one]) == [False]
    assert passing(site, boxes.db, [(one, 22), (two, 22)]) == [True] * 2
    assert passing(site, boxes.guest, [(one, 22), (two, 22)]) == [True] * 2


def test_a_flood_that_ends_locks_no_source_out(site: Site, boxes: Boxes) -> None:
    """A moment after the last forged packet a new source passes, even where a source is remembered for days."""
    load(site, boxes, spec_of(rate="22 1/day burst 5"))
    one, _, _ = sources(6)
    assert flood(site, boxes.web, forged6(), [one]) == [False]
    until(lambda: passing(site, boxes.web, [(one, 22)])[0])
    assert remembered(site, "proven6") == 0, "no source completed a handshake"


def test_one_network_does_not_fill_a_set(site: Site, boxes: Boxes) -> None:
    """A client with a /48 has 65,536 sources, and one with a single address as many ports: others still pass."""
    load(site, boxes, spec_of(rate="22 1/hour burst 2, 10000-30000/udp 1/hour burst 2", allow="10000-30000/udp"))
    one, _, three = sources(6)
    own = [IPv6Address("2001:db8:77::1") + (n << 64) for n in range(65536)]
    assert flood(site, boxes.web, own[:-1], [own[-1], one, three]) == [False, True, True]
    assert rate_chains.NEW_OF_ONE <= remembered(site, "sources6") <= 2 * rate_chains.NEW_OF_ONE + 10
    scan = [new_flow("udp", sources(4)[0], boxes.web.v4, port, next(_ports)) for port in range(10000, 22000)]
    site.deliver(scan[:6000], boxes.web, None, ping(site.wan.V6, boxes.web.v6))
    site.deliver(scan[6000:], boxes.web, None, ping(site.wan.V6, boxes.web.v6))
    assert passing(site, boxes.web, [(IPv4Address("192.0.2.9"), 12345)], "udp") == [True]


@pytest.mark.parametrize("version", [4, 6])
def test_a_proven_source_is_remembered_as_long_as_the_rate_says(
    site: Site, boxes: Boxes, box: Box, version: int, forgetting: int
) -> None:
    """A source that completed a TCP handshake is not evicted with those that may be forged.

    A source that has used its burst waits for an hour.
    """
    load(site, boxes, spec_of(rate="22 1/hour burst 3"))
    site.forget_flows()
    forger, _, _ = sources(version)
    with box.probe.serve(tcp=[22]):
        found = [site.wan.probe.tcp(str(box.address(version)), 22, timeout=0.3) for _ in range(4)]
        assert found == ["open", "open", "open", "silent"]
        assert passing(site, box, [(forger, 22)] * 4) == [True] * 3 + [False]
        until(lambda: remembered(site, f"sources{version}") == 0)
        assert remembered(site, f"proven{version}") == 1
        assert site.wan.probe.tcp(str(box.address(version)), 22, timeout=0.3) == "silent"
    assert passing(site, box, [(forger, 22)]) == [True], "nothing proves a single packet"


@pytest.mark.parametrize("version", [4, 6])
def test_a_proven_source_is_remembered_at_docker_proxys_too(
    site: Site, boxes: Boxes, version: int, forgetting: int
) -> None:
    """The same where docker-proxy serves the container's port on the host's."""
    any_, host = [(IPv4Address("0.0.0.0"), Site.HOST4), (IPv6Address("::"), Site.HOST6)][version == 6]
    port = Published("tcp", any_, 15432, 5432)
    spec = spec_of(rate="5432 1/hour burst 2", allow="5432")
    site.load(more=site.docker_elements(boxes.guest, BRIDGE, spec=spec, published=(port,)))
    site.forget_flows()
    with site.host.probe.serve(tcp=[15432]):
        found = [site.wan.probe.tcp(str(host), 15432, timeout=0.3) for _ in range(3)]
        assert found == ["open", "open", "silent"]
        until(lambda: remembered(site, f"sources_host{version}") == 0)
        assert site.wan.probe.tcp(str(host), 15432, timeout=0.3) == "silent"


def test_removed_rates_leave_nothing(site: Site, boxes: Boxes) -> None:
    """With the last element that refers to them a rate's chains and sets are removed, and nothing else."""
    load(site, boxes, PolicySpec(), PolicySpec())
    plain = _names(site)
    spec = spec_of(rate="22 1/hour burst 1, 20-90 2/day, 9/udp 5/second", allow="9/udp")
    anew = _elements(site, boxes, spec) - _elements(site, boxes, PolicySpec())
    for _ in range(2):
        site.nft.change(Change(add=tuple(anew)))
        assert site.nft.intact()
        assert len(site.nft.rate_chains()) == 2 * 3, (
            "of each family: of 22, which has two rates; of the others; of 9/udp"
        )
        site.nft.change(Change(remove=tuple(anew)))
        assert site.nft.intact()
        assert _names(site) == plain


def _names(site: Site) -> set[str]:
    """Return the chains and sets of the table."""
    shown = site.run("nft", "list", "table", "inet", "docker-fw").stdout
    return {line.strip() for line in shown.splitlines() if re.match(r"\t(set|map|chain) ", line)}


def test_a_rate_that_changes_never_opens_the_port(site: Site, boxes: Boxes) -> None:
    """A port is never without a limit while its container's rate changes.

    Nor while the rate is removed with the container and added again.
    """
    rated = [_elements(site, boxes, spec_of(rate=f"22 1/hour burst {n}")) for n in (1, 2)]
    load(site, boxes, PolicySpec(), spec_of(rate="22 1/hour burst 1"))
    # The address stays known: pings to others are limited to a few, and the last packet of each round is one.
    gone = {element for element in rated[1] if element.set.startswith("ingress_drops")}
    changes = [(rated[0], rated[1]), (rated[1], gone), (gone, rated[1]), (rated[1], rated[0])]
    done = threading.Event()

    def change() -> None:
        for before, after in changes * 25:
            site.nft.change(Change(tuple(before - after), tuple(after - before)))
        done.set()

    thread, passed, rounds = threading.Thread(target=change), 0, 0
    thread.start()
    while not done.is_set():
        source = IPv6Address("2001:db8:9000::1") + (rounds << 80)
        passed = max(passed, sum(passing(site, boxes.db, [(source, 22)] * 40)))
        rounds += 1
    thread.join(60)
    assert rounds > 10
    # A burst of each rate that was active in the meantime, and not one more.
    assert passed < 20
    assert site.nft.intact()


def test_others_that_change_the_ruleset_do_not_block_a_rate(site: Site, boxes: Boxes) -> None:
    """Another program, such as iptables-nft, may commit at the moment when a rate is added or removed.

    The change is then written again, it is not taken for another program's change of the table, and the table is not
    replaced.
    """
    load(site, boxes, PolicySpec(), PolicySpec())
    handle = _handle(site)
    others = "while :; do nft 'add table ip other; delete table ip other'; done"
    noise = site.host.popen(["sh", "-c", others])
    try:
        for n in range(30):
            anew = _elements(site, boxes, spec_of(rate=f"22 {n + 1}/hour burst 1")) - _elements(
                site, boxes, PolicySpec()
            )
            site.nft.change(Change(add=tuple(anew)))
            assert site.nft.intact()
            site.nft.change(Change(remove=tuple(anew)))
            assert site.nft.intact()
    finally:
        noise.kill()
        noise.wait(30)
    assert _handle(site) == handle


def test_a_rate_whose_rules_were_changed_is_noticed(site: Site, boxes: Boxes) -> None:
    """No rate is added to rules that another program changed, and that change is not forgotten."""
    load(site, boxes, PolicySpec(), PolicySpec())
    anew = tuple(_elements(site, boxes, spec_of(rate="22 9/hour")) - _elements(site, boxes, PolicySpec()))
    site.nft.change(Change(add=anew))
    site.run("nft", "flush", "chain", "inet", "docker-fw", min(site.nft.rate_chains()), check=False)
    if site.nft.features.owned:
        return
    assert not site.nft.intact()
    with pytest.raises(NftError, match="another program changed the rules"):
        site.nft.change(Change(add=tuple(_elements(site, boxes, spec_of(rate="80 8/hour")))))
    assert not site.nft.intact()


def test_hundreds_of_rates_take_little_of_the_kernels_memory(site: Site, boxes: Boxes) -> None:
    """The sets of rates grow with use: without sources a rate takes some kilobytes, and the last is added quickly."""
    load(site, boxes, PolicySpec(), PolicySpec())
    wanted = [
        Element("rate_limit4", (IPv4Address("10.200.0.0") + n, 6, 22), (f"limit4__10.200.{n >> 8}.{n & 255}__1_day_5",))
        for n in range(600)
    ]
    site.nft.change(Change(add=tuple(wanted[:10])))
    before = _kernel_memory()
    site.nft.change(Change(add=tuple(wanted[10:-1])))
    began = time.perf_counter()
    site.nft.change(Change(add=(wanted[-1],)))
    seconds = time.perf_counter() - began
    until(lambda: (_kernel_memory() - before) / 590 < 30, "a rate takes less than 30 KiB")
    assert seconds < 0.5
    assert site.nft.intact()
    site.nft.change(Change(remove=tuple(wanted)))
    assert site.nft.intact()
    assert not site.nft.rate_chains()


def _kernel_memory() -> int:
    """Return the KiB that the kernel allocated for itself, on the whole machine."""
    with open("/proc/meminfo") as lines:
        sizes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return sizes["Slab"] + sizes["VmallocUsed"] + sizes["Percpu"]


def test_rates_without_room_close_their_ports(site: Site, boxes: Boxes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host has room for a limited number of rates; later containers' rated ports are closed, and no others.

    They open when there is room.
    """
    monkeypatch.setattr(rate_quota, "MOST", 2)
    spec = spec_of(rate="22 1/hour burst 1")
    load(site, boxes, spec, spec)
    one, two, _ = sources(4)
    assert passing(site, boxes.web, [(one, 22)] * 2) == [True, False]
    assert passing(site, boxes.db, [(one, 22), (two, 22), (one, 443)]) == [False, False, True]
    load(site, boxes, PolicySpec(), spec)
    assert passing(site, boxes.db, [(one, 22)] * 2) == [True, False]


@pytest.mark.parametrize("version", [4, 6])
def test_docker_proxys_port_has_its_containers_rate(site: Site, boxes: Boxes, version: int) -> None:
    """Where docker-proxy serves the host's port, the rate of the container's port applies there, for each source.

    This holds also where `from` restricts the sources.
    """
    any_, host = [(IPv4Address("0.0.0.0"), Site.HOST4), (IPv6Address("::"), Site.HOST6)][version == 6]
    port = Published("tcp", any_, 15432, 5432)
    one, two, three = sources(version)
    for allow in ("5432", "5432 from 203.0.113.0/24 2001:db8:5::/48"):
        spec = spec_of(rate="5432 1/hour burst 2", allow=allow)
        site.load(more=site.docker_elements(boxes.guest, BRIDGE, spec=spec, published=(port,)))
        sent = [new_flow("tcp", source, host, 15432, next(_ports)) for source in (one, one, one, two, two, two, three)]
        list(site.listener.read())
        last = ping(site.wan.V6, Site.HOST6)
        site.send([*sent, last])
        (seen,) = arrived([site.listener], last)
        wanted = [True, True, False, True, True, False, allow == "5432"]
        assert [packet in seen for packet in sent] == wanted
