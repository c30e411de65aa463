"""Test `from` and `to` with names: the peers follow the containers, on any network."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from plugin.docker.tracker import EndpointTracker
from plugin.model import Container, Defaults, Endpoint, PolicySpec, Published
from plugin.nftables.compile import ElementCompiler
from plugin.nftables.sets import Element
from plugin.policy import peers
from plugin.policy.facts import ElementOwner, Facts, Kind
from plugin.policy.saved import SavedState
from plugin.protocols import Proto
from plugin.state.reconciler import Reconciler
from plugin.state.store import Store
from tests.kernel.packets import arrived, new_flow, ping
from tests.kernel.site import Box, Site, docker_network, seen, site_of_module
from tests.lab.netns import FORWARDING
from tests.specs import spec_of

_ports = itertools.cycle(range(20000, 60000))
ONE, TWO = "br-000000000001", "br-000000000002"


site = site_of_module(FORWARDING)


@dataclass(frozen=True)
class Boxes:
    """On docker-fw networks: web; api, api2 and stray on another. On Docker networks: shop and near; job on another."""

    web: Box
    api: Box
    api2: Box
    stray: Box
    shop: Box
    near: Box
    job: Box


@pytest.fixture(scope="module")
def boxes(site: Site) -> Boxes:
    one, two = site.network(1), site.network(2)
    return Boxes(
        site.box(one, 2),
        site.box(two, 2),
        site.box(two, 3),
        site.box(two, 4),
        site.docker_box(ONE, 101),
        site.docker_box(ONE, 101, 3),
        site.docker_box(TWO, 102),
    )


GUARDED = docker_network("dock1", ONE, 101), docker_network("dock2", TWO, 102)


def known(
    box: Box, name: str, spec: PolicySpec | None = None, *, project: str = "shop", service: str = "", network: str = ""
) -> Endpoint:
    container = Container(
        f"{name}-id", name, spec or PolicySpec(), project=project, service=service or name, network=network
    )
    return dataclasses.replace(box.endpoint, container=container)


def guest(number: int, endpoint: Endpoint, *published: Published) -> Endpoint:
    return dataclasses.replace(endpoint, network_id=GUARDED[number].id, published=published)


@pytest.fixture
def writer(site: Site, boxes: Boxes, tmp_path: Path) -> Iterator[Reconciler]:
    """The one writer, with docker-fw networks and no container on them. The test runs inside the host."""
    with site.inside():
        made = Reconciler(site.nft, Store(str(tmp_path / "state.json")), Defaults())
        made.start(Facts(SavedState(dict(site.networks)), bridges=seen(ONE, TWO)))
        site.forget_flows()
        yield made


@pytest.fixture
def guard(writer: Reconciler) -> EndpointTracker:
    return EndpointTracker(writer)


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
    site: Site, boxes: Boxes, writer: Reconciler, peer: str, name: str, project: str, service: str, network: str
) -> None:
    """No peer matches until the first container is added.

    Each added container is accepted; others and removed ones are not.
    """
    names = frozenset({"shop_back" if network == "shop_back" else "back", "front"})
    writer.observe(lambda facts: dataclasses.replace(facts, names=names))
    writer.put_endpoint(known(boxes.web, "web", spec_of(allow=f"5432 from {peer}")))
    stray = known(boxes.stray, "stray", project="third", service="stray", network="elsewhere")
    writer.put_endpoint(stray)
    assert reach(site, boxes.web, boxes.api, boxes.api2, boxes.stray, None) == [False] * 4
    first = known(boxes.api, name, project=project, service=service, network=network)
    writer.put_endpoint(first)
    assert reach(site, boxes.web, boxes.api, boxes.api2, boxes.stray, None) == [True, False, False, False]
    if not peer.startswith("container:"):
        second = known(boxes.api2, "api-2", project=project, service=service, network=network)
        writer.put_endpoint(second)
        assert reach(site, boxes.web, boxes.api, boxes.api2, boxes.stray, None) == [True, True, False, False]
        writer.drop_endpoint(second.id)
    assert reach(site, boxes.web, boxes.api, boxes.api2) == [True, False]
    writer.edit_endpoint(first.id, lambda e: dataclasses.replace(e, joined=False))
    assert reach(site, boxes.web, boxes.api, boxes.api2, boxes.stray, None) == [False] * 4


@pytest.mark.parametrize("where", ["ours", "docker's", "docker's, in doubt"])
def test_who_goes_is_closed_before_anything_is_computed(
    site: Site, boxes: Boxes, writer: Reconciler, guard: EndpointTracker, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """When the first policy is computed after a container was removed, its address is closed already.

    No packet passes from it or to its ports: the address's next owner finds nothing open while the others' rules are
    computed.
    """
    labels = spec_of(allow="5432 from project:shop, 8080")
    writer.put_endpoint(known(boxes.web, "web", labels))
    box, identity = (boxes.api, "api-id") if where == "ours" else (boxes.job, "job-id")
    if where == "ours":
        writer.put_endpoint(known(boxes.api, "api", labels))
    else:
        network = dataclasses.replace(GUARDED[1], mode4="routed", mode6="routed")
        guard.put(network, [guest(1, known(boxes.job, "job", labels))], listed=True, asked=guard.now())
    assert reach(site, boxes.web, box) == reach(site, box, None, port=8080) == [True]
    seen: list[bool] = []
    elements = ElementCompiler.elements

    def computes(self: ElementCompiler, *args: Any) -> frozenset[Element]:
        if not seen:
            seen.extend((*reach(site, boxes.web, box), *reach(site, box, None, port=8080)))
        return elements(self, *args)

    monkeypatch.setattr(ElementCompiler, "elements", computes)
    if where == "ours":
        writer.edit_endpoint(box.endpoint.id, lambda e: dataclasses.replace(e, joined=False, container=None))
    elif where == "docker's":
        guard.leaves("", identity)
    else:
        guard.doubt(TWO)
    assert seen == [False, False]
    assert reach(site, boxes.web, box, None) == [False, False]
    assert reach(site, boxes.web, None, port=8080) == [True]


def test_names_of_too_many_open_nothing(
    site: Site, boxes: Boxes, writer: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule whose names exceed the bound on entries accepts no peer by name, but those by address.

    When there are fewer again, it accepts the named ones.
    """
    monkeypatch.setattr(peers, "MAX_NAMED", 2 * 20 + 2)
    labels = spec_of(allow=f"7001-7020 from project:shop {boxes.stray.v4} {boxes.stray.v6}, 8080 from service:api")
    writer.put_endpoint(known(boxes.web, "web", labels, project="other"))
    writer.put_endpoint(known(boxes.api, "api"))
    assert reach(site, boxes.web, boxes.api, port=7001) == [True]
    writer.put_endpoint(known(boxes.api2, "api2"))
    assert reach(site, boxes.web, boxes.api, boxes.api2, boxes.stray, port=7001) == [False, False, True]
    web = ElementOwner(Kind.ENDPOINT, boxes.web.endpoint.id)
    assert "allows nothing for project:shop" in writer.snapshot().too_many(web)[0]
    writer.drop_endpoint(boxes.api2.endpoint.id)
    assert reach(site, boxes.web, boxes.api, port=7001) == [True]


def test_a_peer_of_dockers_follows_too(site: Site, boxes: Boxes, writer: Reconciler, guard: EndpointTracker) -> None:
    """Between a docker-fw network and a Docker network, both ways: `from` follows the containers that Docker lists."""
    writer.put_endpoint(known(boxes.web, "web", spec_of(allow="5432 from service:job")))
    writer.put_endpoint(known(boxes.api, "api"))
    shop = guest(0, known(boxes.shop, "shop", spec_of(allow="5432 from service:api service:job")))
    job = guest(1, known(boxes.job, "job"))
    guard.replace(GUARDED, [shop], asked=guard.now())
    assert reach(site, boxes.web, boxes.job, boxes.api) == [False, False]
    assert reach(site, boxes.shop, boxes.job, boxes.api) == [False, True]
    guard.put(GUARDED[1], [job], listed=True, asked=guard.now())
    assert reach(site, boxes.web, boxes.job, boxes.api) == [True, False]
    assert reach(site, boxes.shop, boxes.job, boxes.api) == [True, True]
    guard.leaves("", "job-id")
    assert reach(site, boxes.web, boxes.job) == reach(site, boxes.shop, boxes.job) == [False]
    guard.returns("", "job-id")
    guard.put(GUARDED[1], [job], listed=True, asked=guard.now())
    assert reach(site, boxes.web, boxes.job) == [True]
    guard.doubt(TWO)
    assert reach(site, boxes.web, boxes.job) == [False], "nobody knows who has the address now"


def test_a_name_that_matches_nobody_matches_nothing(site: Site, boxes: Boxes, writer: Reconciler) -> None:
    """A name without a container never matches all sources.

    A port of the base that a rule with `from` names is no longer in the base.
    """
    for peer in ("service:nobody", "container:nobody", "project:nobody", "network:nobody", "host"):
        writer.put_endpoint(known(boxes.web, "web", spec_of(allow=f"22 from {peer}, 8080 from {peer}")))
        for port in (22, 8080):
            assert reach(site, boxes.web, boxes.api, None, port=port) == [False, False]
        assert reach(site, boxes.web, boxes.api, None, port=443) == [True, True]
        assert site.host.probe.tcp(str(boxes.web.v6), 22) == "refused", "the host reaches every port"


def test_a_service_is_of_its_own_project(site: Site, boxes: Boxes, writer: Reconciler) -> None:
    """Another project's service of the same name is no match; neither is one outside of any project."""
    writer.put_endpoint(known(boxes.web, "web", spec_of(allow="5432 from service:api")))
    writer.put_endpoint(known(boxes.api, "other-api-1", project="other", service="api"))
    writer.put_endpoint(known(boxes.api2, "api", project="", service="api"))
    assert reach(site, boxes.web, boxes.api, boxes.api2) == [False, False]


def test_open_but_for_what_is_denied(site: Site, boxes: Boxes, writer: Reconciler, guard: EndpointTracker) -> None:
    """`policy: open` accepts every port, protocol and source, except for `deny` and ports with `from`."""
    spec = spec_of(policy="open", deny="25, 6000-6063, 53/udp", allow="22 from service:api")
    writer.put_endpoint(known(boxes.web, "web", spec))
    writer.put_endpoint(known(boxes.api, "api"))
    guard.replace(GUARDED, [guest(0, known(boxes.shop, "shop", spec))], asked=guard.now())
    for box in (boxes.web, boxes.shop):
        for port, expected in ((24, True), (25, False), (26, True), (5999, True), (6000, False), (6063, False),
                               (6064, True), (65535, True)):  # fmt: skip
            assert reach(site, box, None, port=port) == [expected]
        assert reach(site, box, None, port=53, proto="udp") == [False]
        assert reach(site, box, None, port=53, proto="sctp") == reach(site, box, None, port=54, proto="udp") == [True]
        assert reach(site, box, boxes.api, boxes.stray, None, port=22) == [True, False, False]


def test_who_may_begin_to_a_peer_follows(site: Site, boxes: Boxes, writer: Reconciler) -> None:
    """`to service:db` in fw.egress follows that service's current address."""
    writer.put_endpoint(known(boxes.web, "web", spec_of(egress="5432 to service:db")))
    first, second = (
        known(b, n, spec_of(policy="open"), service="db") for b, n in ((boxes.api, "a"), (boxes.api2, "b"))
    )
    other = known(boxes.stray, "stray", spec_of(policy="open"))
    writer.put_endpoint(other)

    def reached() -> list[bool]:
        return [reach(site, box, boxes.web)[0] for box in (boxes.api, boxes.api2, boxes.stray)]

    assert reached() == [False] * 3
    writer.put_endpoint(first)
    assert reached() == [True, False, False]
    writer.put_endpoint(second)
    writer.drop_endpoint(first.id)
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
def test_from_is_judged_where_docker_proxy_listens(
    site: Site, boxes: Boxes, writer: Reconciler, guard: EndpointTracker, hosts: Callable[[], tuple[Any, Any]]
) -> None:
    """docker-proxy hides its client from the container, so `from` applies at the host's own port.

    It covers addresses, prefixes to their edge, and named peers; the host and the container's network as usual; each
    family by itself.
    """
    allow = f"5432 from {IN4} 2001:db8:5::/56 service:api"
    ports = [Published("tcp", address, 15432, 5432) for address in hosts()]
    shop = guest(0, known(boxes.shop, "shop", spec_of(allow=allow)), *ports)
    near, job = guest(0, known(boxes.near, "near")), guest(1, known(boxes.job, "job"))
    writer.put_endpoint(known(boxes.api, "api"))
    guard.replace(GUARDED, [shop, near, job], asked=guard.now())
    assert heard(site, Site.HOST4, IN4, NEXT4, OUT4) == [True, False, False]
    assert heard(site, Site.HOST6, IN6, NEXT6, OUT6) == [True, True, False]
    for host in (Site.HOST4, Site.HOST6):
        assert heard(site, host, boxes.api, boxes.api2, boxes.near, boxes.job) == [True, False, True, False]
        with site.host.probe.serve(tcp=[15432]):
            assert site.host.probe.tcp(str(host), 15432) == "open"
    # The peers follow, by any kind of listing.
    guard.put(None, [guest(1, known(boxes.job, "job", service="api"))], listed=True, asked=guard.now())
    writer.drop_endpoint(boxes.api.endpoint.id)
    for host in (Site.HOST4, Site.HOST6):
        assert heard(site, host, boxes.api, boxes.job) == [False, True]


def test_two_containers_ports_are_not_mixed_up(
    site: Site, boxes: Boxes, writer: Reconciler, guard: EndpointTracker
) -> None:
    """Two containers publish the same port, on one host address each.

    A client that may reach one does not reach the other through it.
    """
    four, six = Published("tcp", Site.HOST4, 15432, 5432), Published("tcp", Site.HOST6, 15432, 5432)
    shop = guest(0, known(boxes.shop, "shop", spec_of(allow=f"5432 from {IN4} {IN6}")), four)
    job = guest(1, known(boxes.job, "job", spec_of(allow="5432 from 192.0.2.0/24")), six)
    guard.replace(GUARDED, [shop, job], asked=guard.now())
    assert heard(site, Site.HOST4, IN4, IPv4Address("192.0.2.1")) == [True, False]
    assert heard(site, Site.HOST6, IN6) == [False]
