"""Test bans: no traffic from or to a banned address, before all other rules and despite established flows.

A ban lasts for a time, or permanently.
"""

from __future__ import annotations

import dataclasses
import itertools
import socket
import time
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any

import pytest

from plugin.fwctl.api.commands import AdminCommands
from plugin.model import Address, Defaults, PolicySpec, Prefix, Rule
from plugin.nftables.ban_elements import ban_change, ban_elements
from plugin.nftables.sets import LOADING, Change
from plugin.policy.facts import Facts
from plugin.policy.saved import SavedState
from plugin.state.reconciler import Reconciler
from plugin.state.store import Store
from tests.kernel.netns import inside
from tests.kernel.packets import Packet, arrived, new_flow, ping, udp
from tests.kernel.site import Box, Site, of_endpoint, site_of_module
from tests.lab import NamedNetns
from tests.lab.netns import FORWARDING
from tests.waiting import until

#: Seconds of a ban for a time. If a machine is so slow that it ends before the test has looked, the next one is tried.
LONG_ENOUGH = (1.5, 6, 24, 96)
_ports = itertools.cycle(range(20000, 60000))
BRIDGE = "br-000000000001"
OPEN = PolicySpec(allow=(Rule("udp", 53, 53), Rule("tcp", 8080, 8080)))


site = site_of_module(FORWARDING)


@dataclass(frozen=True)
class Boxes:
    web: Box
    other: Box
    guest: Box


@pytest.fixture(scope="module")
def boxes(site: Site) -> Boxes:
    """Return containers on two docker-fw networks, and on a Docker network."""
    return Boxes(site.box(site.network(1), 2), site.box(site.network(2), 2), site.docker_box(BRIDGE, 101))


def bans(*prefixes: str, until: float = 0) -> dict[Prefix, float]:
    return {ip_network(prefix): until for prefix in prefixes}


def load(site: Site, boxes: Boxes, banned: dict[Prefix, float]) -> None:
    lasting, timed = ban_elements(banned, time.time())
    known = (Site.known(boxes.web, spec=OPEN), Site.known(boxes.other, spec=OPEN))
    elements = set().union(*(of_endpoint(site.inventory(e), e) for e in known))
    elements |= site.inventory().all_elements()
    elements |= site.docker_elements(boxes.guest, BRIDGE, spec=OPEN)
    site.nft.replace({*elements, *lasting}, timed)


BANNED = {4: IPv4Address("192.0.2.66"), 6: IPv6Address("2001:db8:66::66")}
NEXT = {4: IPv4Address("192.0.2.67"), 6: IPv6Address("2001:db8:66::67")}


def heard(site: Site, hears: Any, shots: list[tuple[NamedNetns | None, Packet]], last: Packet) -> list[bool]:
    """Return which of the packets, each with its source, were received."""
    for _ in hears.read():
        pass
    for source, packet in shots:
        site.send([packet], source)
    site.send([last])
    seen = arrived([hears], last)[0]
    return [packet in seen for _, packet in shots]


@pytest.mark.parametrize("version", [4, 6])
def test_nothing_new_from_a_banned_address(site: Site, boxes: Boxes, box: Box, version: int) -> None:
    """A banned address reaches no port of a container, no ping, and not the host itself; the next address does."""
    load(site, boxes, bans(str(BANNED[version])))
    to = box.address(version)
    for source, passes in ((BANNED[version], False), (NEXT[version], True)):
        shots = [
            (None, new_flow("tcp", source, to, 8080, next(_ports))),
            (None, ping(source, to)),
            (None, udp(source, to, 53, next(_ports))),
        ]
        assert heard(site, site.sniffer(box), shots, ping(site.wan.V6, box.v6)) == [passes] * 3
        host = Site.HOST4 if version == 4 else Site.HOST6
        own = [(None, new_flow("tcp", source, host, 22, next(_ports))), (None, ping(source, host))]
        assert heard(site, site.listener, own, ping(site.wan.V6, Site.HOST6)) == [passes] * 2


@pytest.mark.parametrize("version", [4, 6])
def test_a_ban_holds_while_the_table_is_loaded(site: Site, boxes: Boxes, version: int) -> None:
    """New flows are dropped meanwhile, and established ones continue, but not those of a banned peer."""
    load(site, boxes, {})
    site.forget_flows()
    to, ear = boxes.web.address(version), site.sniffer(boxes.web)
    banned, other = BANNED[version], NEXT[version]
    for source in (banned, other):
        assert heard(site, ear, [(None, udp(source, to, 53, 9001))], ping(site.wan.V6, boxes.web.v6)) == [True]
        site.send([udp(to, source, 9001, 53)], boxes.web)
    load(site, boxes, bans(str(banned)))
    site.nft.change(Change(), dict.fromkeys(LOADING, 60))
    shots: list[tuple[NamedNetns | None, Packet]] = [
        (None, udp(banned, to, 53, 9001, b"more")),
        (None, udp(other, to, 53, 9001, b"more")),
        (None, udp(other, to, 53, 9002)),
    ]
    assert heard(site, ear, shots, udp(other, to, 53, 9001, b"last")) == [False, True, False]


@pytest.mark.parametrize("version", [4, 6])
def test_established_flows_of_a_banned_peer_end(site: Site, boxes: Boxes, box: Box, version: int) -> None:
    """A flow that was open when its peer was banned passes no packet, in either direction, whichever side opened it.

    The same flow with the adjacent address continues.
    """
    load(site, boxes, {})
    site.forget_flows()
    mine, last_in, last_out = box.address(version), ping(site.wan.V6, box.v6), ping(Site.HOST6, Site.OUT6)

    def both_ways(peer: Address) -> list[bool]:
        """Return inbound and outbound packets of a flow that the peer opened and of one that the container opened."""
        inbound = [udp(peer, mine, 53, 7777, b"asks"), udp(peer, mine, 8888, 9999, b"answers")]
        outbound = [udp(mine, peer, 7777, 53, b"answers"), udp(mine, peer, 9999, 8888, b"asks")]
        found = heard(site, site.sniffer(box), [(None, packet) for packet in inbound], last_in)
        list(site.sniffer(site.wan).read())
        site.send(outbound, box)
        site.send([last_out], site.host)
        seen = arrived([site.sniffer(site.wan)], last_out)[0]
        return [*found, *(packet in seen for packet in outbound)]

    for peer in (BANNED[version], NEXT[version]):
        site.send([udp(mine, peer, 9999, 8888)], box)  # the container initiates
        assert both_ways(peer) == [True] * 4
    lasting, timed = ban_elements(bans(str(BANNED[version])), time.time())
    site.nft.change(Change(add=tuple(lasting)), timed)
    assert both_ways(BANNED[version]) == [False] * 4
    assert both_ways(NEXT[version]) == [True] * 4


def test_no_container_initiates_to_a_banned_address(site: Site, boxes: Boxes) -> None:
    """A container cannot initiate to a banned address, and neither can a container of another network."""
    load(site, boxes, bans(str(BANNED[4]), str(BANNED[6]), str(boxes.other.v4)))
    last = ping(Site.HOST6, Site.OUT6)
    for box in (boxes.web, boxes.guest):
        sent = [new_flow("tcp", box.address(v), BANNED[v], 443, next(_ports)) for v in (4, 6)]
        free = [new_flow("tcp", box.address(v), NEXT[v], 443, next(_ports)) for v in (4, 6)]
        list(site.sniffer(site.wan).read())
        site.send([*sent, *free], box)
        site.send([last], site.host)
        seen = arrived([site.sniffer(site.wan)], last)[0]
        assert seen & {*sent, *free} == set(free)
    between = [
        (boxes.web, new_flow("tcp", boxes.web.v4, boxes.other.v4, 80, next(_ports))),
        (boxes.web, new_flow("tcp", boxes.web.v6, boxes.other.v6, 80, next(_ports))),
    ]
    assert heard(site, site.sniffer(boxes.other), between, ping(site.wan.V6, boxes.other.v6)) == [False, True]


def test_an_open_connection_to_the_host_ends_too(site: Site, boxes: Boxes) -> None:
    """A banned peer's connection to the host, such as SSH, is silent from then on: bans come first in `input`, too."""
    load(site, boxes, {})
    with inside(site.host.path):
        server = socket.create_server(("::", 2222), family=socket.AF_INET6)
    with inside(site.wan.path):
        client = socket.create_connection((str(Site.HOST6), 2222), timeout=30, source_address=(str(Site.OUT6), 0))
    peer, _ = server.accept()
    with server, client, peer:
        client.send(b"before")
        peer.settimeout(2)
        assert peer.recv(99) == b"before"
        site.nft.change(Change(add=tuple(ban_elements(bans(str(Site.OUT6)), time.time())[0])))
        client.send(b"after")
        site.wan.probe.ping(str(Site.HOST6))  # from another of the outsider's addresses: earlier packets have arrived
        peer.setblocking(False)
        with pytest.raises(BlockingIOError):
            peer.recv(99)


@pytest.mark.parametrize(
    ("prefix", "inside_", "outside_"),
    [
        ("192.0.2.0/24", "192.0.2.255", "192.0.3.0"),
        ("192.0.2.64/26", "192.0.2.127", "192.0.2.128"),
        ("198.18.0.0/15", "198.19.255.255", "198.20.0.0"),
        ("198.18.0.0/20", "198.18.15.255", "198.18.16.0"),
        ("2001:db8:66::/64", "2001:db8:66:0:ffff:ffff:ffff:ffff", "2001:db8:66:1::"),
        ("2001:db8:66::/56", "2001:db8:66:ff:ffff::", "2001:db8:66:100::"),
        ("2001:db8:6600::/44", "2001:db8:660f:ffff::1", "2001:db8:6610::"),
    ],
)
def test_a_prefix_is_banned_to_its_edge(site: Site, boxes: Boxes, prefix: str, inside_: str, outside_: str) -> None:
    """For any length of prefix, its first and last address are banned, and the adjacent ones are not.

    Nothing reaches a container from a banned address, and no container sends a packet to one.
    """
    load(site, boxes, bans(prefix))
    network = ip_network(prefix)
    addresses = (network[0], inside_, outside_, network[0] - 1)
    shots = [(None, new_flow("tcp", str(a), boxes.web.address(network.version), 80, next(_ports))) for a in addresses]
    last = ping(site.wan.V6, boxes.web.v6)
    assert heard(site, site.sniffer(boxes.web), shots, last) == [False, False, True, True]
    shots = [
        (boxes.web, new_flow("udp", boxes.web.address(network.version), str(a), 80, next(_ports))) for a in addresses
    ]
    sent = [packet for _, packet in shots]
    last = ping(boxes.web.v6, Site.OUT6)
    assert site.deliver(sent, site.wan, boxes.web, last) == set(sent[2:])


def test_a_ban_ends_by_itself(site: Site, boxes: Boxes) -> None:
    """A timed ban ends in the kernel, whether docker-fw runs or not; a permanent one remains."""

    def passing() -> list[bool]:
        sources = (BANNED[4], BANNED[6], IPv6Address("2001:db8:77::9"))
        shots = [(None, new_flow("tcp", a, boxes.web.address(a.version), 80, next(_ports))) for a in sources]
        return heard(site, site.sniffer(boxes.web), shots, ping(site.wan.V6, boxes.web.v6))

    for seconds in LONG_ENOUGH:
        end = time.time() + seconds
        load(site, boxes, {**bans(str(BANNED[4])), **bans(str(BANNED[6]), "2001:db8:77::/64", until=end)})
        found = passing()
        if time.time() < end:
            assert found == [False] * 3
            break
    else:
        pytest.fail("this machine needs more than a minute for three packets")
    until(lambda: passing() == [False, True, True], "the bans for a time have ended", seconds + 4)
    assert time.time() >= end


def test_active_bans_can_be_changed(site: Site, boxes: Boxes) -> None:
    """Longer, shorter, permanent, removed, wider and narrower: each change bans exactly the intended addresses."""
    load(site, boxes, {})
    far = time.time() + 300
    steps: list[dict[Prefix, float]] = [
        bans("192.0.2.66"),
        bans("192.0.2.66", until=far),
        bans("192.0.2.66", until=far + 60),
        {**bans("192.0.2.0/24", until=far), **bans("192.0.2.66")},
        bans("192.0.2.66", "2001:db8:66::/64"),
        bans("192.0.2.64/26", "2001:db8:66::/56", "2001:db8:66::66"),
        bans("2001:db8:66::66"),
        {},
    ]
    known: dict[Prefix, float] = {}
    for step in steps:
        site.nft.change(*ban_change(known, step, time.time()))
        known = step
        addresses = [ip for text in ("192.0.2.66", "192.0.2.67", "192.0.3.1") for ip in [IPv4Address(text)]]
        sixes = [IPv6Address(text) for text in ("2001:db8:66::66", "2001:db8:66:9::1", "2001:db8:67::1")]
        shots = [
            (None, new_flow("udp", a, boxes.web.address(a.version), 53, next(_ports))) for a in (*addresses, *sixes)
        ]
        wanted = [not any(a.version == p.version and a in p for p in step) for a in (*addresses, *sixes)]
        assert heard(site, site.sniffer(boxes.web), shots, ping(site.wan.V6, boxes.web.v6)) == wanted
    listing = site.run("nft", "list", "table", "inet", "docker-fw").stdout
    assert "192.0.2" not in listing
    assert "2001:db8:66" not in listing


@pytest.fixture
def reconciler(site: Site, boxes: Boxes, tmp_path: Path) -> Reconciler:
    """Return the reconciler, which knows the web container."""
    with site.inside():
        made = Reconciler(site.nft, Store(str(tmp_path / "state.json")), Defaults())
        endpoint = Site.known(boxes.web, spec=OPEN)
        made.start(Facts(SavedState(dict(site.networks), {endpoint.id: endpoint})))
    return made


def test_bans_survive_a_flush_a_repair_and_a_restart(
    site: Site, boxes: Boxes, reconciler: Reconciler, tmp_path: Path
) -> None:
    """After a flush, a repair, and a restart of docker-fw the same addresses are banned, timed ones until their end."""

    def passing() -> list[bool]:
        shots = [(None, new_flow("tcp", BANNED[v], boxes.web.address(v), 8080, next(_ports))) for v in (4, 6)]
        return heard(site, site.sniffer(boxes.web), shots, ping(site.wan.V6, boxes.web.v6))

    with site.inside():
        for seconds in LONG_ENOUGH:
            end = time.time() + seconds
            both = {**bans(str(BANNED[4])), **bans(str(BANNED[6]), until=end)}
            reconciler.edit_state(lambda state, both=both: dataclasses.replace(state, bans=both))
            found = [passing()]
            site.run("nft", "flush", "ruleset")
            assert passing() == [True, True], "the table is flushed"
            assert reconciler.repair()
            found.append(passing())
            again = Reconciler(site.nft, Store(str(tmp_path / "state.json")), Defaults())
            again.start(Facts(Store(str(tmp_path / "state.json")).load()))
            found.append(passing())
            if time.time() < end:
                assert found == [[False, False]] * 3
                break
            reconciler = again
        else:
            pytest.fail("this machine needs more than a minute for a restart")
        until(lambda: passing() == [False, True], "the ban ends at its time", seconds + 5)
        assert time.time() >= end - 0.1
        again.edit_state(lambda state: dataclasses.replace(state, bans={}))
        assert passing() == [True, True]


def test_a_ban_cuts_established_flows(site: Site, boxes: Boxes, reconciler: Reconciler) -> None:
    """A ban leaves no flow from or to the banned address in connection tracking, whichever side opened it.

    So no flow continues in a flow table of the host. Flows of adjacent addresses remain.
    """

    def talking() -> set[str]:
        listing = "".join(site.run("conntrack", "-L", "-f", f, check=False).stdout for f in ("ipv4", "ipv6"))
        addresses = {*BANNED.values(), *NEXT.values(), IPv6Address("2001:db8:66::1:1")}
        return {str(address) for address in addresses if f"={address} " in listing}

    orders = AdminCommands(reconciler)
    with site.inside():
        site.forget_flows()
        for v in (4, 6):
            site.deliver([udp(peer[v], boxes.web.address(v), 53, next(_ports)) for peer in (BANNED, NEXT)], boxes.web)
        for target in (BANNED[4], IPv6Address("2001:db8:66::1:1")):
            mine = boxes.web.address(target.version)
            site.send([udp(mine, target, 53, next(_ports))], boxes.web)
        assert len(talking()) == 5
        answer = orders.ban([(str(BANNED[4]), None), (str(BANNED[6]), 60)])
        assert (answer["cut"], answer["notes"]) == (3, [])
        assert talking() == {str(NEXT[4]), str(NEXT[6]), "2001:db8:66::1:1"}
        assert orders.ban([("2001:db8:66::/64", None)])["cut"] == 3, "and a ping"
        assert talking() == {str(NEXT[4])}
        orders.unban(None)


def test_thousands_of_bans_are_one_change(site: Site, boxes: Boxes, reconciler: Reconciler) -> None:
    """A blocklist of thousands is added and removed in one transaction each. (The first ban adds rules, too.)"""
    one: dict[Prefix, float] = {ip_network("203.0.113.99"): 0.0}
    many = one | {ip_network((IPv4Address((11 << 24) + 7 * n), 32)): 0.0 for n in range(5000)}
    with site.inside():
        reconciler.edit_state(lambda state: dataclasses.replace(state, bans=one))
        generation = site.nft.generation()
        reconciler.edit_state(lambda state: dataclasses.replace(state, bans=many))
        assert site.nft.generation() == generation + 1
        addresses = [IPv4Address((11 << 24) + n) for n in (0, 1, 7 * 4999, 7 * 5000)]
        shots = [(None, new_flow("tcp", a, boxes.web.v4, 80, next(_ports))) for a in addresses]
        found = heard(site, site.sniffer(boxes.web), shots, ping(site.wan.V6, boxes.web.v6))
        assert found == [False, True, False, True]
        reconciler.edit_state(lambda state: dataclasses.replace(state, bans=one))
        assert site.nft.generation() == generation + 2
        assert all(heard(site, site.sniffer(boxes.web), shots, ping(site.wan.V6, boxes.web.v6)))
