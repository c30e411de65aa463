"""Containers of the compose project `shop` on docker-fw and Docker networks, with the reconciler that knows them.

A test module takes the fixtures that it needs, and has a `site` of its own:

    site = site_of_module(FORWARDING)
    boxes, reconciler, tracker = compose_project.boxes, compose_project.reconciler, compose_project.tracker
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from plugin.docker.tracker import EndpointTracker
from plugin.model import Container, Defaults, Endpoint, PolicySpec, Published
from plugin.policy.facts import Facts
from plugin.policy.saved import SavedState
from plugin.state.reconciler import Reconciler
from plugin.state.store import Store
from tests.kernel.site import Box, Site, docker_network, seen

ONE, TWO = "br-000000000001", "br-000000000002"
DOCKER_NETWORKS = docker_network("dock1", ONE, 101), docker_network("dock2", TWO, 102)


@dataclass(frozen=True)
class Boxes:
    """On a docker-fw network: web and db; on a second one: api, api2 and stray.

    On a Docker network: shop and near; on a second one: job.
    """

    web: Box
    db: Box
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
        site.box(one, 3),
        site.box(two, 2),
        site.box(two, 3),
        site.box(two, 4),
        site.docker_box(ONE, 101),
        site.docker_box(ONE, 101, 3),
        site.docker_box(TWO, 102),
    )


@pytest.fixture
def reconciler(site: Site, boxes: Boxes, tmp_path: Path) -> Iterator[Reconciler]:
    """Yield a reconciler that knows the networks and no container. The test runs inside the host."""
    with site.inside():
        site.load()  # the quarantine of another test's docker-fw does not apply here
        made = Reconciler(site.nft, Store(str(tmp_path / "state.json")), Defaults())
        made.start(Facts(SavedState(dict(site.networks)), bridges=seen(ONE, TWO)))
        site.forget_flows()
        yield made


@pytest.fixture
def tracker(reconciler: Reconciler) -> EndpointTracker:
    return EndpointTracker(reconciler)


def known(
    box: Box, name: str, spec: PolicySpec | None = None, *, project: str = "shop", service: str = "", network: str = ""
) -> Endpoint:
    """Return the box's endpoint as a container's, which is a service of its own name by default."""
    container = Container(
        f"{name}-id", name, spec or PolicySpec(), project=project, service=service or name, network=network
    )
    return dataclasses.replace(box.endpoint, container=container)


def guest(number: int, endpoint: Endpoint, *published: Published) -> Endpoint:
    """Return the endpoint on the first (0) or second Docker network, with these published ports."""
    return dataclasses.replace(endpoint, network_id=DOCKER_NETWORKS[number].id, published=published)
