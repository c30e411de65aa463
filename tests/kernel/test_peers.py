"""Test `from` and `to` with names: the peers follow the containers, on any network."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from plugin.docker.tracker import EndpointTracker
from plugin.model import Published
from plugin.nftables.compile import ElementCompiler
from plugin.nftables.sets import Element
from plugin.policy import peers
from plugin.policy.facts import ElementOwner, Kind
from plugin.protocols import Proto
from plugin.state.reconciler import Reconciler
from tests.kernel import compose_project
from tests.kernel.compose_project import DOCKER_NETWORKS, TWO, Boxes, guest, known
from tests.kernel.packets import arrived, new_flow, ping
from tests.kernel.site import Box, Site, site_of_module
from tests.lab.netns import FORWARDING
from tests.specs import spec_of

_ports = itertools.cycle(range(20000, 60000))


site = site_of_module(FORWARDING)
boxes, reconciler, tracker = compose_project.boxes, compose_project.reconciler, compose_project.tracker


def reach(site: Site, target: Box, *sources: Box | None, port: int = 5432, proto: Proto = "tcp") -> list[bool]:
    """Return which of them (None: the outsider) reach the port, in both families alike."""
    found = []
    for source in sources:
        four, six = (source.v4, source.v6) if source else (Site.OUT4, Site.OUT6)
        sent = [new_flow(proto, a, b, port, next(_ports)) for a, b in ((four, target.v4), (six, target.v6))]
        sniffer, last = site.sniffer(target), ping(site.wan.V6, target.v6)
        list(sniffer.read())
        site.send(sent, source)
        site.send([last])
        (seen,) = arrived([sniffer], last)
        both = [packet in seen for packet in sent]
        assert len(set(both)) == 1, "both families are alike"
        found.append(both[0])
    return found


@pytest.mark.parametrize(
    ("peer", "name", "project", "service", "network"),
    [
        ("service:api", "api-1", "shop", "api", "x"),
        ("project:other", "api-1", "other", "api", "x"),
        ("container:api-1", "api-1", "", "", "x"),
        ("network:back", "api-1", "", "", "back"),
        ("network:back", "api-1", "shop", "api", "shop_back"),
    ],
)
def test_a_peer_follows_its_containers(
    site: Site, boxes: Boxes, reconciler: Reconciler, peer: str, name: str, project: str, service: str, network: str
) -> None:
    """No peer matches until the first container is added.

    Each added container is accepted; others and removed ones are not.
    """
    names = frozenset({"shop_back" if network == "shop_back" else "back", "front"})
    reconciler.observe(lambda facts: dataclasses.replace(facts, names=names))
    reconciler.put_endpoint(known(boxes.web, "web", spec_of(allow=f"5432 from {peer}")))
    stray = known(boxes.stray, "stray", project="third", service="stray", network="elsewhere")
    reconciler.put_endpoint(stray)
    assert reach(site, boxes.web, boxes.api, boxes.api2, boxes.stray, None) == [False] * 4
    first = known(boxes.api, name, project=project, service=service, network=network)
    reconciler.put_endpoint(first)
    assert reach(site, boxes.web, boxes.api, boxes.api2, boxes.stray, None) == [True, False, False, False]
    if not peer.startswith("container:"):
        second = known(boxes.api2, "api-2", project=project, service=service, network=network)
        reconciler.put_endpoint(second)
        assert reach(site, boxes.web, boxes.api, boxes.api2, boxes.stray, None) == [True, True, False, False]
        reconciler.drop_endpoint(second.id)
    assert reach(site, boxes.web, boxes.api, boxes.api2) == [True, False]
    reconciler.edit_endpoint(first.id, lambda e: dataclasses.replace(e, joined=False))
    assert reach(site, boxes.web, boxes.api, boxes.api2, boxes.stray, None) == [False] * 4


@pytest.mark.parametrize("where", ["ours", "docker's", "docker's, in doubt"])
def test_a_removed_container_is_closed_before_anything_is_computed(
    site: Site,
    boxes: Boxes,
    reconciler: Reconciler,
    tracker: EndpointTracker,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """When the first policy is computed after a container was removed, its address is closed already.

    No packet passes from it or to its ports: the address's next owner finds nothing open while the others' rules are
    computed.
    """
    labels = spec_of(allow="5432 from project:shop, 8080")
    reconciler.put_endpoint(known(boxes.web, "web", labels))
    box, identity = (boxes.api, "api-id") if where == "ours" else (boxes.job, "job-id")
    if where == "ours":
        reconciler.put_endpoint(known(boxes.api, "api", labels))
    else:
        network = dataclasses.replace(DOCKER_NETWORKS[1], mode4="routed", mode6="routed")
        tracker.put(network, [guest(1, known(boxes.job, "job", labels))], listed=True, asked=tracker.now())
    assert reach(site, boxes.web, box) == reach(site, box, None, port=8080) == [True]
    seen: list[bool] = []
    elements = ElementCompiler.elements

    def computes(self: ElementCompiler, *args: Any) -> frozenset[Element]:
        if not seen:
            seen.extend((*reach(site, boxes.web, box), *reach(site, box, None, port=8080)))
        return elements(self, *args)

    monkeypatch.setattr(ElementCompiler, "elements", computes)
    if where == "ours":
        reconciler.edit_endpoint(box.endpoint.id, lambda e: dataclasses.replace(e, joined=False, container=None))
    elif where == "docker's":
        tracker.leaves("", identity)
    else:
        tracker.mark_unknown(TWO)
    assert seen == [False, False]
    assert reach(site, boxes.web, box, None) == [False, False]
    assert reach(site, boxes.web, None, port=8080) == [True]


def test_names_of_too_many_open_nothing(
    site: Site, boxes: Boxes, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule whose names exceed the bound on entries accepts no peer by name, but those by address.

    When there are fewer again, it accepts the named ones.
    """
    monkeypatch.setattr(peers, "MAX_NAMED", 2 * 20 + 2)
    labels = spec_of(allow=f"7001-7020 from project:shop {boxes.stray.v4} {boxes.stray.v6}, 8080 from service:api")
    reconciler.put_endpoint(known(boxes.web, "web", labels, project="other"))
    reconciler.put_endpoint(known(boxes.api, "api"))
    assert reach(site, boxes.web, boxes.api, port=7001) == [True]
    reconciler.put_endpoint(known(boxes.api2, "api2"))
    assert reach(site, boxes.web, boxes.api, boxes.api2, boxes.stray, port=7001) == [False, False, True]
    web = ElementOwner(Kind.ENDPOINT, boxes.web.endpoint.id)
    assert "allows nothing for project:shop" in reconciler.snapshot().too_many(web)[0]
    reconciler.drop_endpoint(boxes.api2.endpoint.id)
    assert reach(site, boxes.web, boxes.api, port=7001) == [True]


def test_a_peer_of_dockers_follows_too(
    site: Site, boxes: Boxes, reconciler: Reconciler, tracker: EndpointTracker
) -> None:
    """Between a docker-fw network and a Docker network, both ways: `from` follows the containers that Docker lists."""
    reconciler.put_endpoint(known(boxes.web, "web", spec_of(allow="5432 from service:job")))
    reconciler.put_endpoint(known(boxes.api, "api"))
    shop = guest(0, known(boxes.shop, "shop", spec_of(allow="5432 from service:api service:job")))
    job = guest(1, known(boxes.job, "job"))
    tracker.replace(DOCKER_NETWORKS, [shop], asked=tracker.now())
    assert reach(site, boxes.web, boxes.job, boxes.api) == [False, False]
    assert reach(site, boxes.shop, boxes.job, boxes.api) == [False, True]
    tracker.put(DOCKER_NETWORKS[1], [job], listed=True, asked=tracker.now())
    assert reach(site, boxes.web, boxes.job, boxes.api) == [True, False]
    assert reach(site, boxes.shop, boxes.job, boxes.api) == [True, True]
    tracker.leaves("", "job-id")
    assert reach(site, boxes.web, boxes.job) == reach(site, boxes.shop, boxes.job) == [False]
    tracker.returns("", "job-id")
    tracker.put(DOCKER_NETWORKS[1], [job], listed=True, asked=tracker.now())
    assert reach(site, boxes.web, boxes.job) == [True]
    tracker.mark_unknown(TWO)
    assert reach(site, boxes.web, boxes.job) == [False], "the owner of the address is unknown"


def test_a_name_without_a_container_matches_nothing(site: Site, boxes: Boxes, reconciler: Reconciler) -> None:
    """A name without a container never matches all sources.

    A port of the base that a rule with `from` names is no longer in the base.
    """
    for peer in ("service:missing", "container:missing", "project:missing", "network:missing", "host"):
        reconciler.put_endpoint(known(boxes.web, "web", spec_of(allow=f"22 from {peer}, 8080 from {peer}")))
        for port in (22, 8080):
            assert reach(site, boxes.web, boxes.api, None, port=port) == [False, False]
        assert reach(site, boxes.web, boxes.api, None, port=443) == [True, True]
        assert site.host.probe.tcp(str(boxes.web.v6), 22) == "refused", "the host reaches every port"


def test_a_service_is_of_its_own_project(site: Site, boxes: Boxes, reconciler: Reconciler) -> None:
    """Another project's service of the same name is no match; neither is one outside of any project."""
    reconciler.put_endpoint(known(boxes.web, "web", spec_of(allow="5432 from service:api")))
    reconciler.put_endpoint(known(boxes.api, "other-api-1", project="other", service="api"))
    reconciler.put_endpoint(known(boxes.api2, "api", project="", service="api"))
    assert reach(site, boxes.web, boxes.api, boxes.api2) == [False, False]


def test_open_but_for_what_is_denied(
    site: Site, boxes: Boxes, reconciler: Reconciler, tracker: EndpointTracker
) -> None:
    """`policy: open` accepts every port, protocol and source, except for `deny` and ports with `from`."""
    spec = spec_of(policy="open", deny="25, 6000-6063, 53/udp", allow="22 from service:api")
    reconciler.put_endpoint(known(boxes.web, "web", spec))
    reconciler.put_endpoint(known(boxes.api, "api"))
    tracker.replace(DOCKER_NETWORKS, [guest(0, known(boxes.shop, "shop", spec))], asked=tracker.now())
    for box in (boxes.web, boxes.shop):
        for port, expected in (
            (24, True),
            (25, False),
            (26, True),
            (5999, True),
            (6000, False),
            (6063, False),
            (6064, True),
            (65535, True),
        ):
            assert reach(site, box, None, port=port) == [expected]
        assert reach(site, box, None, port=53, proto="udp") == [False]
        assert reach(site, box, None, port=53, proto="sctp") == reach(site, box, None, port=54, proto="udp") == [True]
        assert reach(site, box, boxes.api, boxes.stray, None, port=22) == [True, False, False]


def test_egress_to_a_named_peer_follows_its_address(site: Site, boxes: Boxes, reconciler: Reconciler) -> None:
    """`to service:db` in fw.egress follows that service's current address."""
    reconciler.put_endpoint(known(boxes.web, "web", spec_of(egress="5432 to service:db")))
    first, second = (
        known(b, n, spec_of(policy="open"), service="db") for b, n in ((boxes.api, "a"), (boxes.api2, "b"))
    )
    other = known(boxes.stray, "stray", spec_of(policy="open"))
    reconciler.put_endpoint(other)

    def reached() -> list[bool]:
        return [reach(site, box, boxes.web)[0] for box in (boxes.api, boxes.api2, boxes.stray)]

    assert reached() == [False] * 3
    reconciler.put_endpoint(first)
    assert reached() == [True, False, False]
    reconciler.put_endpoint(second)
    reconciler.drop_endpoint(first.id)
    assert reached() == [False, True, False]


# --- published ports that docker-proxy serves ---------------------------------------------------------------------


def heard(site: Site, host: Any, *sources: Any) -> list[bool]:
    """Return which of these (boxes, or addresses of the outsider) the host receives on its port 15432."""
    found = []
    for source in sources:
        src = (source.v4 if host.version == 4 else source.v6) if isinstance(source, Box) else source
        packet, last = new_flow("tcp", src, host, 15432, next(_ports)), ping(site.wan.V6, Site.HOST6)
        list(site.listener.read())
        site.send([packet], source if isinstance(source, Box) else None)
        site.send([last])
        found.append(packet in arrived([site.listener], last)[0])
    return found


IN4, NEXT4, OUT4 = (IPv4Address(a) for a in ("203.0.113.7", "203.0.113.8", "203.0.112.255"))
IN6, NEXT6, OUT6 = (IPv6Address(a) for a in ("2001:db8:5::7", "2001:db8:5:ff::1", "2001:db8:6::1"))
HOSTS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "every address": lambda: (IPv4Address("0.0.0.0"), IPv6Address("::")),
    "one address": lambda: (Site.HOST4, Site.HOST6),
}


@pytest.mark.parametrize("hosts", HOSTS.values(), ids=HOSTS)
def test_from_applies_where_docker_proxy_listens(
    site: Site, boxes: Boxes, reconciler: Reconciler, tracker: EndpointTracker, hosts: Callable[[], tuple[Any, Any]]
) -> None:
    """docker-proxy hides its client from the container, so `from` applies at the host's own port.

    It covers addresses, prefixes to their edge, and named peers; the host and the container's network as usual; each
    family by itself.
    """
    allow = f"5432 from {IN4} 2001:db8:5::/56 service:api"
    ports = [Published("tcp", address, 15432, 5432) for address in hosts()]
    shop = guest(0, known(boxes.shop, "shop", spec_of(allow=allow)), *ports)
    near, job = guest(0, known(boxes.near, "near")), guest(1, known(boxes.job, "job"))
    reconciler.put_endpoint(known(boxes.api, "api"))
    tracker.replace(DOCKER_NETWORKS, [shop, near, job], asked=tracker.now())
    assert heard(site, Site.HOST4, IN4, NEXT4, OUT4) == [True, False, False]
    assert heard(site, Site.HOST6, IN6, NEXT6, OUT6) == [True, True, False]
    for host in (Site.HOST4, Site.HOST6):
        assert heard(site, host, boxes.api, boxes.api2, boxes.near, boxes.job) == [True, False, True, False]
        with site.host.probe.serve(tcp=[15432]):
            assert site.host.probe.tcp(str(host), 15432) == "open"
    # The peers follow, by any kind of listing.
    tracker.put(None, [guest(1, known(boxes.job, "job", service="api"))], listed=True, asked=tracker.now())
    reconciler.drop_endpoint(boxes.api.endpoint.id)
    for host in (Site.HOST4, Site.HOST6):
        assert heard(site, host, boxes.api, boxes.job) == [False, True]


def test_two_containers_ports_are_not_mixed_up(
    site: Site, boxes: Boxes, reconciler: Reconciler, tracker: EndpointTracker
) -> None:
    """Two containers publish the same port, on one host address each.

    A client that may reach one does not reach the other through it.
    """
    four, six = Published("tcp", Site.HOST4, 15432, 5432), Published("tcp", Site.HOST6, 15432, 5432)
    shop = guest(0, known(boxes.shop, "shop", spec_of(allow=f"5432 from {IN4} {IN6}")), four)
    job = guest(1, known(boxes.job, "job", spec_of(allow="5432 from 192.0.2.0/24")), six)
    tracker.replace(DOCKER_NETWORKS, [shop, job], asked=tracker.now())
    assert heard(site, Site.HOST4, IN4, IPv4Address("192.0.2.1")) == [True, False]
    assert heard(site, Site.HOST6, IN6) == [False]
