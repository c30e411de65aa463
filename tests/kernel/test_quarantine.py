"""Test that a flow that was cut is not opened again, in any protocol, as long as a side tries.

Permitted flows pass at once. A flow that was cut leaves no state behind: the next packet of its responder would open a
flow of its own, in which the other side's packets are replies.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from plugin.docker.tracker import EndpointTracker
from plugin.model import Address, Container, Defaults, Endpoint, PolicySpec
from plugin.nftables import sets
from plugin.policy.facts import Facts
from plugin.policy.saved import SavedState
from plugin.state import flow_cutter
from plugin.state.reconciler import Reconciler
from plugin.state.store import Store
from tests.kernel.packets import Packet, authenticated, ping, portless, sctp_chunk, tcp, udp, udplite
from tests.kernel.site import Box, Site, docker_network, seen, site_of_module
from tests.lab import NamedNetns
from tests.lab.netns import FORWARDING
from tests.specs import spec_of
from tests.waiting import until

BRIDGE = "br-000000000001"
DOCKER_NETWORK = docker_network("dock", BRIDGE, 101)
PORTS = itertools.count(10000)


site = site_of_module(FORWARDING)


@dataclass(frozen=True)
class Boxes:
    """On docker-fw networks: web, and peer on another one. On a Docker network: shop."""

    web: Box
    peer: Box
    shop: Box


@pytest.fixture(scope="module")
def boxes(site: Site) -> Boxes:
    return Boxes(site.box(site.network(1), 2), site.box(site.network(2), 2), site.docker_box(BRIDGE, 101))


class Firewall:
    """The reconciler on the site's host, and the containers' labels."""

    def __init__(self, site: Site, path: Path) -> None:
        self.site = site
        self._path = path
        self.restart()

    def restart(self) -> None:
        """Restart docker-fw: everything but the kernel's state and the disk is lost."""
        store = Store(str(self._path / "state.json"))
        self.state = Reconciler(self.site.nft, store, Defaults())
        networks = {network.id: network for network in self.site.networks.values()}
        state = store.load() if (self._path / "state.json").exists() else SavedState(networks)
        self.state.start(Facts(state, bridges=seen(BRIDGE)))
        self.guard = EndpointTracker(self.state)

    def set_labels(self, box: Box, **words: str) -> None:
        """Give the box's container these labels from now on."""
        endpoint = known(box, spec_of(**words))
        if box.network is None:
            guest = dataclasses.replace(endpoint, network_id=DOCKER_NETWORK.id)
            self.guard.replace([DOCKER_NETWORK], [guest], asked=self.guard.now())
        else:
            self.state.put_endpoint(endpoint)


def known(box: Box, spec: PolicySpec) -> Endpoint:
    return dataclasses.replace(box.endpoint, container=Container(box.name, box.name, spec))


@pytest.fixture
def fw(site: Site, boxes: Boxes, tmp_path: Path) -> Iterator[Firewall]:
    """Yield the firewall with no known container. The test runs inside the host."""
    with site.inside():
        site.load()
        site.forget_flows()
        yield Firewall(site, tmp_path)


@dataclass(frozen=True)
class Kind:
    """The packets of both sides of a flow: the first one, which opens it, and possible later ones."""

    first: Callable[[Address, Address, int, int], Packet]
    later: Callable[[Address, Address, int, int], Packet]


def _portless(proto: str) -> Kind:
    def made(source: Address, target: Address, port: int, sport: int) -> Packet:
        return portless(proto, source, target)

    return Kind(made, made)


def _init(source: Address, target: Address, port: int, sport: int) -> Packet:
    return sctp_chunk(source, target, port, sport, 1, tag=0)


def _heartbeat(source: Address, target: Address, port: int, sport: int) -> Packet:
    """Every association sends one every 30 s by itself."""
    return sctp_chunk(source, target, port, sport, 4, tag=1)


KINDS = {
    "udp": Kind(udp, udp),
    "udplite": Kind(udplite, udplite),
    "sctp": Kind(_init, _heartbeat),
    **{name: _portless(name) for name in ("gre", "esp", "ah", "other")},
}
#: A label can name ports of these; all other protocols are opened by `fw.policy: open` alone.
NAMED = {"udp": "5353/udp", "sctp": "5353/sctp", "gre": "gre", "esp": "esp", "ah": "ah"}
every_kind = pytest.mark.parametrize("kind", KINDS)
both = pytest.mark.parametrize("version", [4, 6])


@dataclass(frozen=True)
class Flow:
    """A flow that `client` opens to `server`'s port."""

    site: Site
    kind: Kind
    client: NamedNetns
    server: NamedNetns
    source: Address
    target: Address
    sport: int
    port: int = 5353

    def opens(self) -> bool:
        """Return True if the client's first packet arrives, and the reply."""
        return self._passes(self.kind.first, True) and self.server_says()

    def client_says(self) -> bool:
        """Return True if a packet of the client arrives."""
        return self._passes(self.kind.later, True)

    def server_says(self) -> bool:
        return self._passes(self.kind.later, False)

    def _passes(self, made: Callable[[Address, Address, int, int], Packet], by_client: bool) -> bool:
        if by_client:
            packet, ways = made(self.source, self.target, self.port, self.sport), (self.client, self.server)
        else:
            packet, ways = made(self.target, self.source, self.sport, self.port), (self.server, self.client)
        address = self.target if by_client else self.source
        # A ping of the host follows, which may reach every container.
        last = ping(self._host(address), address)
        return packet in self.site.deliver([packet], ways[1], ways[0], last=last, witness=self.site.host)

    def _host(self, address: Address) -> Address:
        return Site.HOST4 if address.version == 4 else Site.HOST6


def make_flow(site: Site, name: str, client: Box | None, server: Box | None, version: int) -> Flow:
    """Return a flow; None is the outsider."""
    out = Site.OUT4 if version == 4 else Site.OUT6
    source, target = (box.address(version) if box else out for box in (client, server))
    ends = (client or site.wan, server or site.wan)
    return Flow(site, KINDS[name], *ends, source, target, next(PORTS))


@every_kind
@both
@pytest.mark.parametrize("place", ["web", "shop"])
def test_a_flow_that_came_in(site: Site, boxes: Boxes, fw: Firewall, kind: str, version: int, place: str) -> None:
    """A container that continues to send after a port was closed does not reopen it to its peer.

    It may open flows to others freely. When the port is opened again, both sides pass at once.
    """
    box: Box = getattr(boxes, place)
    wide = {"allow": NAMED[kind]} if kind in NAMED else {"policy": "open"}
    fw.set_labels(box, **wide)
    flow = make_flow(site, kind, None, box, version)
    assert flow.opens()
    fw.set_labels(box, policy="closed")
    for _ in range(2):
        assert not flow.server_says()
        assert not flow.client_says()
    if kind in ("udp", "udplite", "sctp"):
        other = dataclasses.replace(flow, sport=next(PORTS))
        assert dataclasses.replace(other, client=box, server=site.wan, source=flow.target, target=flow.source)._passes(
            KINDS[kind].first, True
        ), "its own"
    fw.set_labels(box, **wide)
    assert flow.server_says()
    assert flow.client_says()


@every_kind
@both
def test_a_flow_that_went_out(site: Site, boxes: Boxes, fw: Firewall, kind: str, version: int) -> None:
    """A peer cannot continue the flow of a container that may no longer initiate but accepts everything."""
    fw.set_labels(boxes.web, policy="open")
    flow = make_flow(site, kind, boxes.web, None, version)
    assert flow.opens()
    fw.set_labels(boxes.web, policy="open", egress="none")
    for _ in range(2):
        assert not flow.server_says()
        assert not flow.client_says()
    fw.set_labels(boxes.web, policy="open")
    assert flow.server_says()
    assert flow.client_says()


@every_kind
@both
def test_a_flow_between_containers(site: Site, boxes: Boxes, fw: Firewall, kind: str, version: int) -> None:
    """A peer on another network that accepts everything is no bypass: a flow between the two that was cut stays cut."""
    wide = {"allow": NAMED[kind]} if kind in NAMED else {"policy": "open"}
    fw.set_labels(boxes.web, **wide)
    fw.set_labels(boxes.peer, policy="open")
    flow = make_flow(site, kind, boxes.peer, boxes.web, version)
    assert flow.opens()
    fw.set_labels(boxes.web, policy="closed")
    assert not flow.server_says()
    assert not flow.client_says()


@pytest.mark.parametrize("inner", ["tcp", "udp"])
def test_behind_an_authentication_header(site: Site, boxes: Boxes, fw: Firewall, inner: str) -> None:
    """Over IPv6 conntrack looks behind an authentication header, and rules match only the header."""
    fw.set_labels(boxes.web, policy="open")
    ports, out, mine = (5353, next(PORTS)), Site.OUT6, boxes.web.v6
    if inner == "tcp":
        asks, answer = tcp(out, mine, *ports), tcp(mine, out, *reversed(ports), 0x12, 1001)
        later = tcp(mine, out, *reversed(ports), 0x18, 1001)
    else:
        asks, answer, later = udp(out, mine, *ports), *[udp(mine, out, *reversed(ports), w) for w in (b"a", b"b")]
    asks, answer, later = map(authenticated, (asks, answer, later))
    assert site.deliver([asks], boxes.web) == {asks}
    assert site.deliver([answer], site.wan, boxes.web) == {answer}
    fw.set_labels(boxes.web, policy="closed")
    assert site.deliver([later], site.wan, boxes.web) == set()
    fw.set_labels(boxes.web, policy="open")
    assert site.deliver([later], site.wan, boxes.web) == {later}


@both
def test_a_connection_between_containers(site: Site, boxes: Boxes, fw: Firewall, version: int) -> None:
    """The same for TCP: the next segment of a cut connection opens none, from either side, however open both are."""
    fw.set_labels(boxes.web, policy="open")
    fw.set_labels(boxes.peer, policy="open")
    for source, target in ((boxes.web, boxes.peer), (boxes.peer, boxes.web)):
        segment = tcp(source.address(version), target.address(version), next(PORTS), 5432, 0x18, 1)
        last = ping(source.address(version), target.address(version))
        assert site.deliver([segment], target, source, last=last) == set()
        opens, last = tcp(segment.src, segment.dst, next(PORTS), 5432), ping(segment.src, segment.dst)
        assert site.deliver([opens], target, source, last=last) == {opens}


@both
def test_a_connection_that_went_out(site: Site, boxes: Boxes, fw: Firewall, version: int) -> None:
    """The peer's next segment opens none, where the container accepts everything and may initiate nothing."""
    fw.set_labels(boxes.web, policy="open", egress="none")
    out = Site.OUT4 if version == 4 else Site.OUT6
    segment = tcp(out, boxes.web.address(version), next(PORTS), 443, 0x18, 1)
    assert site.deliver([segment], boxes.web) == set()
    opens = tcp(out, boxes.web.address(version), next(PORTS), 443)
    assert site.deliver([opens], boxes.web) == {opens}


@both
def test_the_host_reopens_no_cut_flow(site: Site, boxes: Boxes, fw: Firewall, version: int) -> None:
    """A host program that continues to reply does not reopen a flow to a container that may no longer reach it."""
    fw.set_labels(boxes.web, egress="all")
    host = Site.HOST4 if version == 4 else Site.HOST6
    mine, port = boxes.web.address(version), next(PORTS)
    with site.host.probe.serve(udp=[5353]):
        site.send([udp(mine, host, 5353, port)], boxes.web)
        boxes.web.probe.ping(str(host))

    def says(packet: Packet) -> bool:
        try:
            return packet in site.deliver([packet], boxes.web, site.host, last=ping(host, mine))
        except PermissionError:  # the program sees this error
            return False

    assert says(udp(host, mine, port, 5353))
    fw.set_labels(boxes.web, egress="none")
    assert not says(udp(host, mine, port, 5353))
    assert says(udp(host, mine, next(PORTS), 5353)), "the host may initiate any flow"


@pytest.mark.parametrize("kind", ["udp", "gre"])
def test_quarantine_lasts_while_a_side_tries(
    site: Site, boxes: Boxes, fw: Firewall, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Quarantine lasts longer while a side still tries, and ends by itself when both are silent."""
    monkeypatch.setattr(sets, "QUARANTINE_SECONDS", 2)
    fw.restart()  # with rules of that time
    fw.set_labels(boxes.web, allow=NAMED[kind])
    flow = make_flow(site, kind, None, boxes.web, 6)
    assert flow.opens()
    fw.set_labels(boxes.web, policy="closed")
    began = time.monotonic()
    while time.monotonic() < began + 5:
        assert not flow.server_says()
    until(lambda: not quarantined(site), "quarantine ends when no side tries")
    assert flow.server_says(), "a flow of the container's own"


def quarantined(site: Site) -> str:
    """Return the quarantined flows, as nft lists them."""
    names = [name for v in (4, 6) for name in sets.QUARANTINE_SETS[v]]
    lists = [site.run("nft", "list", "set", "inet", "docker-fw", name).stdout for name in names]
    return "".join(each.partition("elements = ")[2] for each in lists)


def test_the_next_owner_of_an_address_has_flows_of_its_own(
    site: Site, boxes: Boxes, fw: Firewall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quarantine of an address's last owner does not affect the next, whose cut flows are quarantined."""
    monkeypatch.setattr(sets, "QUARANTINE_SECONDS", 2)
    fw.restart()
    fw.set_labels(boxes.web, allow="5353/udp")
    old = make_flow(site, "udp", None, boxes.web, 6)
    assert old.opens()
    fw.set_labels(boxes.web, policy="closed")
    assert not old.server_says()
    fw.state.drop_endpoint(boxes.web.endpoint.id)
    until(lambda: not quarantined(site), "no flow is quarantined any more")
    fw.set_labels(boxes.web, allow="5353/udp")
    flow = make_flow(site, "udp", None, boxes.web, 6)
    assert flow.opens()
    fw.set_labels(boxes.web, policy="closed", egress="all")
    assert not flow.server_says()
    fw.set_labels(boxes.web, policy="closed", allow="8080")
    assert not flow.server_says(), "another port opens"


@every_kind
def test_quarantine_survives_restarts_and_repairs(site: Site, boxes: Boxes, fw: Firewall, kind: str) -> None:
    """A new docker-fw keeps the quarantine of the last one, and so does a table that is restored after a flush."""
    wide = {"allow": NAMED[kind]} if kind in NAMED else {"policy": "open"}
    fw.set_labels(boxes.web, **wide)
    flow = make_flow(site, kind, None, boxes.web, 4)
    assert flow.opens()
    fw.set_labels(boxes.web, policy="closed")
    fw.restart()
    assert not flow.server_says()
    site.run("nft", "flush", "ruleset")
    assert fw.state.repair()
    assert not flow.server_says()
    assert not flow.client_says()
    fw.set_labels(boxes.web, **wide)
    assert flow.server_says()


@both
def test_too_many_flows_to_quarantine_one_by_one(
    site: Site,
    boxes: Boxes,
    fw: Firewall,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    version: int,
) -> None:
    """With too many flows to list one by one, all flows from that port of the container are quarantined, and no others.

    With too many ports, all flows of that protocol are. The log reports it. When the port is opened again all may pass;
    the address's next owner may at once.
    """
    mine, out = boxes.web.address(version), Site.OUT4 if version == 4 else Site.OUT6
    monkeypatch.setattr(flow_cutter, "_MOST", 20)
    fw.set_labels(boxes.web, allow="5353/udp")
    flows = [make_flow(site, "udp", None, boxes.web, version) for _ in range(25)]
    assert all(flow.opens() for flow in flows)
    fw.set_labels(boxes.web, policy="closed")
    assert not any(flow.server_says() for flow in flows)
    assert not any(flow.client_says() for flow in flows)
    assert f"new flows are dropped from {mine} port 5353 over IP protocol 17" in caplog.text

    def opens_its_own() -> bool:
        own = udp(mine, out, 53, next(PORTS))
        return own in site.deliver([own], site.wan, boxes.web, last=ping(mine, out))

    assert opens_its_own()
    fw.set_labels(boxes.web, allow="5353/udp")
    assert all(flow.server_says() for flow in flows)

    monkeypatch.setattr(flow_cutter, "_MOST", 2)
    fw.set_labels(boxes.web, allow="5353-5355/udp")
    some = make_flow(site, "udp", None, boxes.web, version)
    flows = [dataclasses.replace(some, sport=next(PORTS), port=port) for port in (5353, 5354, 5355)]
    assert all(flow.opens() for flow in flows)
    fw.set_labels(boxes.web, policy="closed")
    assert not any(flow.server_says() for flow in flows)
    assert f"new flows are dropped from {mine} over IP protocol 17" in caplog.text
    assert not opens_its_own()
    fw.state.drop_endpoint(boxes.web.endpoint.id)
    assert not any(flow.server_says() for flow in flows[:2]), "before the address has another owner"
    fw.set_labels(boxes.web)
    assert opens_its_own()


@both
def test_too_many_flows_that_went_out(
    site: Site, boxes: Boxes, fw: Firewall, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """The same for flows that the container opened: their responders reach its port no more, then none of its ports."""
    mine, out = boxes.web.address(version), Site.OUT4 if version == 4 else Site.OUT6
    for most, same in ((20, True), (2, False)):
        monkeypatch.setattr(flow_cutter, "_MOST", most)
        fw.set_labels(boxes.web, policy="open")
        flows = [make_flow(site, "udp", boxes.web, None, version) for _ in range(most + 5)]
        flows = [
            dataclasses.replace(flow, port=port, sport=flows[0].sport if same else flow.sport)
            for port, flow in enumerate(flows, 6000)
        ]
        assert all(flow.opens() for flow in flows)
        fw.set_labels(boxes.web, policy="open", egress="none")
        assert not any(flow.server_says() for flow in flows)
        other = udp(out, mine, 53, next(PORTS))
        passes = site.deliver([other], boxes.web, last=ping(out, mine))
        assert passes == ({other} if same else set()), "the other ports are open"
