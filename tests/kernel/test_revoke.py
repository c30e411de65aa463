"""Test that flows that are no longer permitted are cut at once, over TCP and UDP, and that all others continue."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from plugin.docker.tracker import EndpointTracker
from plugin.model import Container, Defaults, Endpoint, Overriding, PolicySpec, Published, Rule
from plugin.policy.facts import Facts
from plugin.policy.saved import SavedState
from plugin.state.reconciler import Reconciler
from plugin.state.store import Store
from tests.kernel.site import BRIDGED_FRAMES_UNTRACKED, Box, Site, docker_network, seen, site_of_module
from tests.kernel.talks import Proto, Talks
from tests.lab.netns import FORWARDING
from tests.specs import spec_of
from tests.waiting import until

ONE, TWO = "br-000000000001", "br-000000000002"


site = site_of_module(FORWARDING | BRIDGED_FRAMES_UNTRACKED)


@dataclass(frozen=True)
class Boxes:
    """On docker-fw networks: web and db; api and api2 on another. On Docker networks: shop and near; job on another."""

    web: Box
    db: Box
    api: Box
    api2: Box
    shop: Box
    near: Box
    job: Box


@pytest.fixture(scope="module")
def boxes(site: Site) -> Boxes:
    one, two = site.network(1), site.network(2)
    return Boxes(
        site.box(one, 2),
        site.box(one, 3),
        site.box(two, 2),
        site.box(two, 3),
        site.docker_box(ONE, 101),
        site.docker_box(ONE, 101, 3),
        site.docker_box(TWO, 102),
    )


DOCKER_NETWORKS = docker_network("dock1", ONE, 101), docker_network("dock2", TWO, 102)


def known(box: Box, name: str, spec: PolicySpec | None = None, service: str = "") -> Endpoint:
    """Return the box as a container of compose's project shop."""
    container = Container(f"{name}-id", name, spec or PolicySpec(), project="shop", service=service or name)
    return dataclasses.replace(box.endpoint, container=container)


class TableApplier(Reconciler):
    """The one writer, in the site's host; delayed work runs at once."""

    def __init__(self, site: Site, path: Path) -> None:
        super().__init__(site.nft, Store(str(path / "state.json")), Defaults())


@pytest.fixture
def writer(site: Site, boxes: Boxes, tmp_path: Path) -> Iterator[TableApplier]:
    """Yield a writer with docker-fw networks and no container on them. The test runs inside the host."""
    with site.inside():
        site.load()  # the quarantine of another test's docker-fw does not apply here
        made = TableApplier(site, tmp_path)
        made.start(Facts(SavedState(dict(site.networks)), bridges=seen(ONE, TWO)))
        yield made


BOTH: tuple[Proto, ...] = ("tcp", "udp")


def test_when_a_peer_leaves_just_its_flows_are_cut(site: Site, boxes: Boxes, writer: TableApplier) -> None:
    """Of all flows to a container those of a former peer are cut, if no other rule accepts them.

    Flows through ports open to all, of the other peers, outsiders, its neighbours, the host and the container itself
    continue. When the container is removed, all of its flows end.
    """
    api, api2 = known(boxes.api, "api-1", service="api"), known(boxes.api2, "api-2", service="api")
    web = known(boxes.web, "web", spec_of(allow="5432 from service:api, 53/udp from service:api 203.0.113.0/24"))
    for endpoint in (web, api, api2, known(boxes.db, "db")):
        writer.put_endpoint(endpoint)
    with Talks() as talks:
        for name, client in (("leaves", boxes.api), ("stays", boxes.api2)):
            for address in (boxes.web.v4, boxes.web.v6):
                talks.open(f"{name}, {address} tcp", "tcp", client, boxes.web, address, 5432)
                talks.open(f"{name}, {address} udp", "udp", client, boxes.web, address, 53)
        talks.open("it is none, and 80 is open to all", "tcp", boxes.api, boxes.web, boxes.web.v6, 80)
        talks.open("outside", "tcp", site.wan, boxes.web, boxes.web.v6, 443)
        talks.open("outside, by a prefix", "udp", site.wan, boxes.web, boxes.web.v4, 53, source=Site.OUT4)
        talks.open("neighbour", "tcp", boxes.db, boxes.web, boxes.web.v4, 5432)
        talks.open("host", "tcp", site.host, boxes.web, boxes.web.v6, 5432)
        talks.open("its own", "udp", boxes.web, site.wan, Site.OUT6, 5432)
        everything = set(talks.all)
        assert talks.going("outside") == everything
        writer.put_endpoint(known(boxes.api, "api-1", service="other"))
        assert talks.going("outside") == {name for name in everything if not name.startswith("leaves")}
        writer.drop_endpoint(api.id)
        writer.drop_endpoint(api2.id)
        left = {name for name in everything if not name.startswith(("leaves", "stays", "it is none"))}
        assert talks.going("outside") == left
        assert talks.going("outside") == left, "and none continues"


def test_a_flow_that_is_cut_again_is_quarantined_as_long_again(site: Site, boxes: Boxes, writer: TableApplier) -> None:
    """A UDP flow is cut, permitted for a while and cut again: its quarantine starts anew.

    The container cannot reopen it meanwhile, not when the time of the first cut is over.
    """
    address, port = boxes.web.v6, 5353

    def says(**words: str) -> None:
        now = known(boxes.web, "web", spec_of(**words))
        writer.edit_endpoint(now.id, lambda _: now)

    writer.put_endpoint(known(boxes.web, "web", spec_of(allow=f"{port}/udp")))
    with Talks() as talks:
        talks.open("flow", "udp", site.wan, boxes.web, address, port)
        talks.open("witness", "tcp", site.wan, boxes.web, address, 80)
        says()
        first = left(site)
        until(lambda: left(site) < first - 1, "seconds pass")
        says(allow=f"{port}/udp")
        talks.all["flow"].says(True, b"again")
        assert talks.all["flow"].hears(False, b"again", wait=True)
        says()
        assert left(site) >= first - 1
        assert talks.going("witness") == {"witness"}


def left(site: Site) -> int:
    """Return the whole seconds for which the one flow is still quarantined."""
    listing = json.loads(site.host.run(["nft", "-j", "list", "set", "inet", "docker-fw", "quarantine6"]).stdout)
    ((element,),) = [each["set"]["elem"] for each in listing["nftables"] if "set" in each]
    return int(element["elem"]["expires"])


def test_an_added_peer_cuts_no_flow(site: Site, boxes: Boxes, writer: TableApplier) -> None:
    """A container that joins a service is accepted from then on, and all established flows continue."""
    web = known(boxes.web, "web", spec_of(allow="5432 from service:api"))
    writer.put_endpoint(web)
    writer.put_endpoint(known(boxes.api2, "api-2", service="api"))
    with Talks() as talks, boxes.web.probe.serve(tcp=[5433]):
        talks.open("peer", "tcp", boxes.api2, boxes.web, boxes.web.v6, 5432)
        talks.open("outside", "tcp", site.wan, boxes.web, boxes.web.v6, 443)
        writer.put_endpoint(known(boxes.api, "api-1", service="api"))
        talks.open("new", "tcp", boxes.api, boxes.web, boxes.web.v6, 5432)
        assert talks.going("outside") == {"peer", "outside", "new"}


@pytest.mark.parametrize("service", ["db2", "job"], ids=["of ours", "of Docker's"])
def test_when_egress_becomes_narrower_outbound_flows_are_cut(
    site: Site, boxes: Boxes, writer: TableApplier, service: str
) -> None:
    """Flows that a container opened and may no longer open are cut, to outsiders, to the host and to former peers.

    Permitted ones, and all flows that other sides opened, continue.
    """
    guard = EndpointTracker(writer)
    peers = {"db2": boxes.api2, "job": boxes.job}
    wide = spec_of(egress=f"443, 53/udp, 5432 to service:{service}, 2222 to host", allow="8080")
    web, peer = known(boxes.web, "web", wide), peers[service]
    writer.put_endpoint(web)
    there = known(peer, "peer", spec_of(policy="open"), service=service)
    if service == "job":
        there = dataclasses.replace(there, network_id=DOCKER_NETWORKS[1].id)
        guard.replace(DOCKER_NETWORKS, [there], asked=guard.now())
    else:
        writer.put_endpoint(there)
    with Talks() as talks:
        for v, out, host in ((4, Site.OUT4, Site.HOST4), (6, Site.OUT6, Site.HOST6)):
            talks.open(f"out {v}", "tcp", boxes.web, site.wan, out, 443)
            talks.open(f"out udp {v}", "udp", boxes.web, site.wan, out, 53)
            talks.open(f"to host {v}", "tcp", boxes.web, site.host, host, 2222)
            talks.open(f"to host by all {v}", "udp", boxes.web, site.host, host, 53)
            talks.open(f"to peer {v}", "tcp", boxes.web, peer, peer.v4 if v == 4 else peer.v6, 5432)
        talks.open("to its gateway", "tcp", boxes.web, site.host, IPv4Address("10.1.0.1"), 443)
        talks.open("to host by udp", "udp", boxes.web, site.host, IPv6Address("2001:db8:1::1"), 53)
        talks.open("neighbour", "udp", boxes.web, boxes.db, boxes.db.v6, 9)
        talks.open("inbound", "tcp", site.wan, boxes.web, boxes.web.v6, 8080)
        talks.open("from the host", "udp", site.host, boxes.web, boxes.web.v4, 9)
        talks.open("from the host by another address", "tcp", site.host, boxes.web, boxes.web.v6, 9, source=Site.HOST6)
        everything = set(talks.all)
        assert talks.going("inbound") == everything

        if service == "job":
            guard.leaves("", "peer-id")  # which also cuts all of the peer's
        else:
            writer.drop_endpoint(there.id)
        left = everything - {"to peer 4", "to peer 6"}
        assert talks.going("inbound") == left

        def says(egress: str) -> None:
            now = known(boxes.web, "web", spec_of(egress=egress, allow="8080"))
            writer.edit_endpoint(web.id, lambda _: now)

        says(f"443, 53/udp to {Site.OUT4} {Site.HOST6}, 2222 to host")
        left -= {"out udp 6", "to host by all 4", "to host by udp"}
        assert talks.going("inbound") == left
        says("443")
        left -= {"out udp 4", "to host by all 6", "to host 4", "to host 6"}
        assert talks.going("inbound") == left
        says("none")
        stays = {"neighbour", "inbound", "from the host", "from the host by another address"}
        assert talks.going("inbound") == stays
        assert talks.going("inbound") == stays, "and none continues"


PORTS = tuple(Published(p, a, 15432, 5432) for p in BOTH for a in (IPv4Address("0.0.0.0"), IPv6Address("::")))


@pytest.fixture
def guard(writer: TableApplier) -> EndpointTracker:
    return EndpointTracker(writer)


def shop(boxes: Boxes, spec: PolicySpec) -> Endpoint:
    """Return the shop's container with its port published, as docker-proxy would serve it."""
    return dataclasses.replace(known(boxes.shop, "shop", spec), network_id=DOCKER_NETWORKS[0].id, published=PORTS)


def guest(box: Box, number: int, name: str, spec: PolicySpec | None = None, service: str = "") -> Endpoint:
    return dataclasses.replace(known(box, name, spec, service), network_id=DOCKER_NETWORKS[number].id)


def test_docker_proxys_flows_of_a_peer_that_left_are_cut(
    site: Site, boxes: Boxes, writer: TableApplier, guard: EndpointTracker
) -> None:
    """Through docker-proxy a flow is between its client and the host.

    The flows of clients that are still permitted continue, and so do the host's own and those of the container's
    network.
    """
    spec = spec_of(allow="5432 from service:api 203.0.113.7 2001:db8:5::/48, 5432/udp from service:api 203.0.113.7")
    api, job = known(boxes.api, "api", service="api"), guest(boxes.job, 1, "job", service="api")
    writer.put_endpoint(api)
    guard.replace(DOCKER_NETWORKS, [shop(boxes, spec), job, guest(boxes.near, 0, "near")], asked=guard.now())
    with Talks() as talks:
        for v, host in ((4, Site.HOST4), (6, Site.HOST6)):
            who = (("leaves", boxes.api), ("stays", boxes.job), ("near", boxes.near), ("host", site.host))
            for (name, client), proto in itertools.product(who, BOTH):
                talks.open(f"{name} {proto}{v}", proto, client, site.host, host, 15432)
        talks.open("prefix", "tcp", site.wan, site.host, Site.HOST6, 15432, source=Site.OUT6)
        talks.open("address", "udp", site.wan, site.host, Site.HOST4, 15432, source=Site.OUT4)
        talks.open("another port", "tcp", boxes.api, site.host, Site.HOST4, 15433)
        everything = set(talks.all)
        assert talks.going("prefix") == everything
        writer.drop_endpoint(api.id)
        assert talks.going("prefix") == {name for name in everything if not name.startswith("leaves")}


def test_a_removed_service_loses_only_its_own_flows(
    site: Site, boxes: Boxes, writer: TableApplier, guard: EndpointTracker
) -> None:
    """Removing a service cuts only its flows to a container on a Docker network that accepts the service.

    The service is on another network.
    """
    spec = spec_of(allow="5432 from service:api")
    job, api = guest(boxes.job, 1, "job", service="api"), known(boxes.api, "api", service="api")
    writer.put_endpoint(api)
    guard.replace(DOCKER_NETWORKS, [shop(boxes, spec), job, guest(boxes.near, 0, "near")], asked=guard.now())
    with Talks() as talks:
        for name, client in (("leaves", boxes.job), ("stays", boxes.api), ("near", boxes.near), ("host", site.host)):
            talks.open(f"{name} tcp", "tcp", client, boxes.shop, boxes.shop.v6, 5432)
            talks.open(f"{name} tcp4", "tcp", client, boxes.shop, boxes.shop.v4, 5432)
        talks.open("outside", "tcp", site.wan, boxes.shop, boxes.shop.v6, 80)
        everything = set(talks.all)
        assert talks.going("outside") == everything
        guard.leaves(DOCKER_NETWORKS[1].id, "job-id")
        assert talks.going("outside") == {name for name in everything if not name.startswith("leaves")}


def test_when_a_published_port_closes_permitted_flows_continue(
    site: Site, boxes: Boxes, writer: TableApplier, guard: EndpointTracker
) -> None:
    """`fwctl deny` of a port that was open to all cuts docker-proxy's flows from outside.

    Flows of the host itself and of the container's network continue, because the port is not closed for them.
    """
    there = [shop(boxes, spec_of(allow="5432, 5432/udp")), guest(boxes.near, 0, "near"), guest(boxes.job, 1, "job")]
    guard.replace(DOCKER_NETWORKS, there, asked=guard.now())
    with Talks() as talks:
        for proto, host in itertools.product(BOTH, (Site.HOST4, Site.HOST6)):
            for name, client in (("near", boxes.near), ("host", site.host), ("outside", site.wan), ("job", boxes.job)):
                talks.open(f"{name} {proto} {host}", proto, client, site.host, host, 15432)
        talks.open("witness", "tcp", site.wan, boxes.shop, boxes.shop.v6, 80)
        everything = set(talks.all)
        assert talks.going("witness") == everything
        words = [Overriding("shop-id", Rule(proto, 5432, 5432), deny=True) for proto in BOTH]
        writer.edit_state(lambda state: dataclasses.replace(state, overrides=tuple(words)))
        assert talks.going("witness") == {n for n in everything if n.startswith(("near", "host", "witness"))}
