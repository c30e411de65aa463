"""Test that flows that are no longer permitted are cut at once, over TCP and UDP, and that all others continue."""

from __future__ import annotations

import dataclasses
import itertools
import json
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from plugin.docker.tracker import EndpointTracker
from plugin.model import Defaults, Endpoint, Overriding, PolicySpec, Published, Rule
from plugin.policy.facts import Facts
from plugin.policy.saved import SavedState
from plugin.state.reconciler import Reconciler
from plugin.state.store import Store
from tests.kernel import compose_project
from tests.kernel.compose_project import DOCKER_NETWORKS, Boxes, guest, known
from tests.kernel.site import BRIDGED_FRAMES_UNTRACKED, Site, site_of_module
from tests.kernel.talks import Proto, Talks
from tests.lab.netns import FORWARDING
from tests.specs import spec_of
from tests.waiting import until

site = site_of_module(FORWARDING | BRIDGED_FRAMES_UNTRACKED)
boxes, reconciler, tracker = compose_project.boxes, compose_project.reconciler, compose_project.tracker


BOTH: tuple[Proto, ...] = ("tcp", "udp")


def test_when_a_peer_leaves_just_its_flows_are_cut(site: Site, boxes: Boxes, reconciler: Reconciler) -> None:
    """Of all flows to a container those of a former peer are cut, if no other rule accepts them.

    Flows through ports open to all, of the other peers, outsiders, its neighbours, the host and the container itself
    continue. When the container is removed, all of its flows end.
    """
    api, api2 = known(boxes.api, "api-1", service="api"), known(boxes.api2, "api-2", service="api")
    web = known(boxes.web, "web", spec_of(allow="5432 from service:api, 53/udp from service:api 203.0.113.0/24"))
    for endpoint in (web, api, api2, known(boxes.db, "db")):
        reconciler.put_endpoint(endpoint)
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
        reconciler.put_endpoint(known(boxes.api, "api-1", service="other"))
        assert talks.going("outside") == {name for name in everything if not name.startswith("leaves")}
        reconciler.drop_endpoint(api.id)
        reconciler.drop_endpoint(api2.id)
        left = {name for name in everything if not name.startswith(("leaves", "stays", "it is none"))}
        assert talks.going("outside") == left
        assert talks.going("outside") == left, "and none continues"


def test_a_flow_that_is_cut_again_is_quarantined_as_long_again(
    site: Site, boxes: Boxes, reconciler: Reconciler
) -> None:
    """A UDP flow is cut, permitted for a while and cut again: its quarantine starts anew.

    The container cannot reopen it meanwhile, not when the time of the first cut is over.
    """
    address, port = boxes.web.v6, 5353

    def says(**words: str) -> None:
        now = known(boxes.web, "web", spec_of(**words))
        reconciler.edit_endpoint(now.id, lambda _: now)

    reconciler.put_endpoint(known(boxes.web, "web", spec_of(allow=f"{port}/udp")))
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


def test_an_added_peer_cuts_no_flow(site: Site, boxes: Boxes, reconciler: Reconciler) -> None:
    """A container that joins a service is accepted from then on, and all established flows continue."""
    web = known(boxes.web, "web", spec_of(allow="5432 from service:api"))
    reconciler.put_endpoint(web)
    reconciler.put_endpoint(known(boxes.api2, "api-2", service="api"))
    with Talks() as talks, boxes.web.probe.serve(tcp=[5433]):
        talks.open("peer", "tcp", boxes.api2, boxes.web, boxes.web.v6, 5432)
        talks.open("outside", "tcp", site.wan, boxes.web, boxes.web.v6, 443)
        reconciler.put_endpoint(known(boxes.api, "api-1", service="api"))
        talks.open("new", "tcp", boxes.api, boxes.web, boxes.web.v6, 5432)
        assert talks.going("outside") == {"peer", "outside", "new"}


@pytest.mark.parametrize("service", ["db2", "job"], ids=["of ours", "of Docker's"])
def test_when_egress_becomes_narrower_outbound_flows_are_cut(
    site: Site, boxes: Boxes, reconciler: Reconciler, service: str
) -> None:
    """Flows that a container opened and may no longer open are cut, to outsiders, to the host and to former peers.

    Permitted ones, and all flows that other sides opened, continue.
    """
    tracker = EndpointTracker(reconciler)
    peers = {"db2": boxes.api2, "job": boxes.job}
    wide = spec_of(egress=f"443, 53/udp, 5432 to service:{service}, 2222 to host", allow="8080")
    web, peer = known(boxes.web, "web", wide), peers[service]
    reconciler.put_endpoint(web)
    there = known(peer, "peer", spec_of(policy="open"), service=service)
    if service == "job":
        there = dataclasses.replace(there, network_id=DOCKER_NETWORKS[1].id)
        tracker.replace(DOCKER_NETWORKS, [there], asked=tracker.now())
    else:
        reconciler.put_endpoint(there)
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
            tracker.leaves("", "peer-id")  # which also cuts all of the peer's
        else:
            reconciler.drop_endpoint(there.id)
        left = everything - {"to peer 4", "to peer 6"}
        assert talks.going("inbound") == left

        def says(egress: str) -> None:
            now = known(boxes.web, "web", spec_of(egress=egress, allow="8080"))
            reconciler.edit_endpoint(web.id, lambda _: now)

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


@pytest.mark.parametrize("on", ["docker-fw's network", "Docker's network"])
def test_when_labels_become_known_late_flows_opened_before_are_cut(
    site: Site, boxes: Boxes, reconciler: Reconciler, tracker: EndpointTracker, on: str
) -> None:
    """Flows that a container opened while its labels were unknown are cut if these turn out to restrict its egress."""
    box = boxes.web if on == "docker-fw's network" else boxes.shop

    def says(egress: str, *, sure: bool) -> None:
        if box is boxes.web:
            now = known(box, "late", spec_of(egress=egress))
            reconciler.put_endpoint(now if sure else dataclasses.replace(now, container=None))
        else:
            now = guest(0, known(box, "late", spec_of(egress=egress)))
            if not sure:
                now = dataclasses.replace(now, container=None)
            tracker.replace(DOCKER_NETWORKS, [now], asked=tracker.now())

    says("443", sure=False)
    with Talks() as talks:
        for v, out in ((4, Site.OUT4), (6, Site.OUT6)):
            talks.open(f"permitted {v}", "tcp", box, site.wan, out, 443)
            talks.open(f"out {v}", "tcp", box, site.wan, out, 25)
            talks.open(f"out udp {v}", "udp", box, site.wan, out, 53)
        says("443", sure=True)
        assert talks.going("permitted 4") == {"permitted 4", "permitted 6"}


@pytest.mark.parametrize("on", ["docker-fw's network", "Docker's network"])
def test_when_another_container_restricts_egress_flows_of_unknown_ones_are_cut(
    site: Site, boxes: Boxes, reconciler: Reconciler, tracker: EndpointTracker, on: str
) -> None:
    """On a network with restricted egress an unknown address opens nothing, nor does a container whose labels are
    unknown: neither anew nor in a flow that it opened before. A known container that may open everything keeps its
    flows, until it is unknown who has its address.
    """
    ours = on == "docker-fw's network"
    free, late = (boxes.api, boxes.api2) if ours else (boxes.shop, boxes.near)
    if ours:
        reconciler.put_endpoint(known(free, "free"))
        reconciler.put_endpoint(dataclasses.replace(known(late, "late"), container=None))
    else:
        tracker.replace(DOCKER_NETWORKS, [guest(0, known(free, "free"))], asked=tracker.now())
    with Talks() as talks:
        clients = {"free": free, "late": late, **({"strange": boxes.stray} if ours else {})}
        for number, (name, client) in enumerate(clients.items()):
            for v, out in ((4, Site.OUT4), (6, Site.OUT6)):
                talks.open(f"{name} {v}", "tcp", client, site.wan, out, 1000 + number)
                talks.open(f"{name} udp {v}", "udp", client, site.wan, out, 1000 + number)
        if ours:
            at = boxes.stray.endpoint
            assert at.addr4
            assert at.addr6
            strict = known(boxes.stray, "strict", spec_of(egress="443"))
            elsewhere = {"id": "f" * 64, "addr4": at.addr4 + 50, "addr6": at.addr6 + 50, "mac": ""}
            reconciler.put_endpoint(dataclasses.replace(strict, **elsewhere))
        else:
            network = dataclasses.replace(DOCKER_NETWORKS[0], spec=spec_of(egress="443"))
            unknown = dataclasses.replace(guest(0, known(late, "late")), container=None)
            there = [guest(0, known(free, "free", spec_of(egress="all"))), unknown]
            tracker.replace([network, DOCKER_NETWORKS[1]], there, asked=tracker.now())
        stays = {name for name in talks.all if name.startswith("free")}
        assert talks.going("free 4") == stays
        assert talks.going("free 4") == stays, "and none continues"
        talks.open("witness", "tcp", site.host, free, free.v4, 9)
        if ours:
            reconciler.edit_endpoint(free.endpoint.id, lambda e: dataclasses.replace(e, container=None))
        else:
            tracker.mark_unknown()
        assert talks.going("witness") == {"witness"}


PORTS = tuple(Published(p, a, 15432, 5432) for p in BOTH for a in (IPv4Address("0.0.0.0"), IPv6Address("::")))


def shop_endpoint(boxes: Boxes, spec: PolicySpec) -> Endpoint:
    """Return the shop's container with its port published, as docker-proxy would serve it."""
    return guest(0, known(boxes.shop, "shop", spec), *PORTS)


def test_docker_proxys_flows_of_a_peer_that_left_are_cut(
    site: Site, boxes: Boxes, reconciler: Reconciler, tracker: EndpointTracker
) -> None:
    """Through docker-proxy a flow is between its client and the host.

    The flows of clients that are still permitted continue, and so do the host's own and those of the container's
    network.
    """
    spec = spec_of(allow="5432 from service:api 203.0.113.7 2001:db8:5::/48, 5432/udp from service:api 203.0.113.7")
    api, job = known(boxes.api, "api", service="api"), guest(1, known(boxes.job, "job", service="api"))
    reconciler.put_endpoint(api)
    tracker.replace(
        DOCKER_NETWORKS, [shop_endpoint(boxes, spec), job, guest(0, known(boxes.near, "near"))], asked=tracker.now()
    )
    with Talks() as talks:
        for v, host in ((4, Site.HOST4), (6, Site.HOST6)):
            clients = (("leaves", boxes.api), ("stays", boxes.job), ("near", boxes.near), ("host", site.host))
            for (name, client), proto in itertools.product(clients, BOTH):
                talks.open(f"{name} {proto}{v}", proto, client, site.host, host, 15432)
        talks.open("prefix", "tcp", site.wan, site.host, Site.HOST6, 15432, source=Site.OUT6)
        talks.open("address", "udp", site.wan, site.host, Site.HOST4, 15432, source=Site.OUT4)
        talks.open("another port", "tcp", boxes.api, site.host, Site.HOST4, 15433)
        everything = set(talks.all)
        assert talks.going("prefix") == everything
        reconciler.drop_endpoint(api.id)
        assert talks.going("prefix") == {name for name in everything if not name.startswith("leaves")}


@pytest.mark.parametrize("by", ["a label", "FW_PUBLISHED=allow"])
def test_a_connection_through_a_published_port_that_is_revoked(
    site: Site, boxes: Boxes, tmp_path: Path, by: str
) -> None:
    """When Docker revokes a published port, its connections end if only the publication opened the container's port.

    If a label opens it, the client could connect to the container's own address, and its connection continues.
    """
    published = (Published("tcp", Site.HOST4, 15432, 5432),)
    web = known(boxes.web, "web", spec_of(allow="5432") if by == "a label" else None)
    with site.inside():
        site.load()
        made = Reconciler(site.nft, Store(str(tmp_path / "state.json")), Defaults(published=by != "a label"))
        made.start(Facts(SavedState(dict(site.networks)), bridges=compose_project.seen()))
        site.forget_flows()
        made.put_endpoint(dataclasses.replace(web, published=published))
        with Talks() as talks:
            talks.open("witness", "tcp", site.wan, boxes.web, boxes.web.v6, 80)
            talks.through("published", site.wan, boxes.web, (Site.HOST4, 15432), (boxes.web.v4, 5432))
            assert talks.going("witness") == {"witness", "published"}
            made.edit_endpoint(web.id, lambda endpoint: dataclasses.replace(endpoint, published=()))
            assert talks.going("witness") == {"witness"} | ({"published"} if by == "a label" else set())


def test_an_internal_network_that_becomes_known_late_loses_its_flows(
    site: Site, boxes: Boxes, reconciler: Reconciler, tracker: EndpointTracker
) -> None:
    """Flows that a container opened to outside before docker-fw knew that its network is internal end.

    Flows within the network, with the host, and of other networks continue.
    """
    internal = dataclasses.replace(DOCKER_NETWORKS[0], internal=True)
    with Talks() as talks:
        for proto, out in itertools.product(BOTH, (Site.OUT4, Site.OUT6)):
            talks.open(f"leaves {proto} {out}", proto, boxes.shop, site.wan, out, 5432)
        for proto in BOTH:
            talks.open(f"host {proto}", proto, boxes.shop, site.host, IPv4Address("10.101.0.1"), 5433)
            talks.open(f"from host {proto}", proto, site.host, boxes.shop, boxes.shop.v6, 5434)
            talks.open(f"near {proto}", proto, boxes.shop, boxes.near, boxes.near.v6, 5435)
        talks.open("job", "tcp", boxes.job, site.wan, Site.OUT6, 5436)
        everything = set(talks.all)
        assert talks.going("job") == everything
        tracker.replace([internal, DOCKER_NETWORKS[1]], [], asked=tracker.now())
        assert talks.going("job") == {name for name in everything if not name.startswith("leaves")}


def test_a_removed_service_loses_only_its_own_flows(
    site: Site, boxes: Boxes, reconciler: Reconciler, tracker: EndpointTracker
) -> None:
    """Removing a service cuts only its flows to a container on a Docker network that accepts the service.

    The service is on another network.
    """
    spec = spec_of(allow="5432 from service:api")
    job, api = guest(1, known(boxes.job, "job", service="api")), known(boxes.api, "api", service="api")
    reconciler.put_endpoint(api)
    tracker.replace(
        DOCKER_NETWORKS, [shop_endpoint(boxes, spec), job, guest(0, known(boxes.near, "near"))], asked=tracker.now()
    )
    with Talks() as talks:
        for name, client in (("leaves", boxes.job), ("stays", boxes.api), ("near", boxes.near), ("host", site.host)):
            talks.open(f"{name} tcp", "tcp", client, boxes.shop, boxes.shop.v6, 5432)
            talks.open(f"{name} tcp4", "tcp", client, boxes.shop, boxes.shop.v4, 5432)
        talks.open("outside", "tcp", site.wan, boxes.shop, boxes.shop.v6, 80)
        everything = set(talks.all)
        assert talks.going("outside") == everything
        tracker.leaves(DOCKER_NETWORKS[1].id, "job-id")
        assert talks.going("outside") == {name for name in everything if not name.startswith("leaves")}


def test_when_a_published_port_closes_permitted_flows_continue(
    site: Site, boxes: Boxes, reconciler: Reconciler, tracker: EndpointTracker
) -> None:
    """`fwctl deny` of a port that was open to all cuts docker-proxy's flows from outside.

    Flows of the host itself and of the container's network continue, because the port is not closed for them.
    """
    there = [
        shop_endpoint(boxes, spec_of(allow="5432, 5432/udp")),
        guest(0, known(boxes.near, "near")),
        guest(1, known(boxes.job, "job")),
    ]
    tracker.replace(DOCKER_NETWORKS, there, asked=tracker.now())
    with Talks() as talks:
        for proto, host in itertools.product(BOTH, (Site.HOST4, Site.HOST6)):
            for name, client in (("near", boxes.near), ("host", site.host), ("outside", site.wan), ("job", boxes.job)):
                talks.open(f"{name} {proto} {host}", proto, client, site.host, host, 15432)
        talks.open("witness", "tcp", site.wan, boxes.shop, boxes.shop.v6, 80)
        everything = set(talks.all)
        assert talks.going("witness") == everything
        words = [Overriding("shop-id", Rule(proto, 5432, 5432), deny=True) for proto in BOTH]
        reconciler.edit_state(lambda state: dataclasses.replace(state, overrides=tuple(words)))
        assert talks.going("witness") == {n for n in everything if n.startswith(("near", "host", "witness"))}
