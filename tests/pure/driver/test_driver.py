"""Calls of libnetwork that arrive at the same moment do not undo each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from plugin.driver import driver
from plugin.driver.driver import Driver
from plugin.kernel.names import host_side
from plugin.model import Container, Defaults, Endpoint, FwError, Network
from plugin.policy.facts import Facts
from plugin.policy.saved import SavedState
from plugin.state.reconciler import Reconciler
from tests.pure.fakes import Disk, Kernel, NoLinks, cut_no_flows

BODY = {"NetworkID": "1" * 64, "Options": {}, "IPv4Data": [{"Gateway": "10.1.0.1/24"}], "IPv6Data": []}


class Bridges(NoLinks):
    """Bridges by name. `meanwhile`: what happens while a bridge is made, for one call after the other."""

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.meanwhile: list[Callable[[], object]] = []

    def overlap(self, _: Network) -> None:
        return None

    def make_bridge(self, network: Network) -> bool:
        made = network.bridge not in self.there
        self.there.add(network.bridge)
        if self.meanwhile:
            self.meanwhile.pop(0)()
        return made

    def delete_bridge(self, network: Network) -> None:
        self.there.discard(network.bridge)


class Host:
    def __init__(self) -> None:
        self.kernel, self.disk, self.bridges = Kernel(), Disk(), Bridges()
        self.state = Reconciler(self.kernel, self.disk, Defaults())  # type: ignore[arg-type]
        self.state.start(Facts(SavedState()))
        none: Any = NoLinks()
        self.driver = Driver(self.state, self.bridges, none, none, none)  # type: ignore[arg-type]

    @property
    def there(self) -> bool:
        """Whether the network is known, saved, and has its bridge: all of it, or none."""
        found = {len(self.state.networks), len(self.disk.kept.networks), len(self.bridges.there)}
        (number,) = found
        return bool(number)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    cut_no_flows(monkeypatch)
    return Host()


def fails() -> None:
    raise FwError("could not set up the bridge")


def test_a_refused_call_leaves_the_network_that_its_repetition_made(host: Host) -> None:
    """dockerd repeats a CreateNetwork whose answer does not come: the second one is done before the first one fails."""

    def repeated() -> None:
        assert host.driver.create_network(BODY) == {}
        fails()

    host.bridges.meanwhile = [repeated]
    with pytest.raises(FwError):
        host.driver.create_network(BODY)
    assert host.there


def test_a_refused_repetition_leaves_the_network_to_the_first_call(host: Host) -> None:
    """The second call fails while the first is in progress."""

    def repeated() -> None:
        with pytest.raises(FwError):
            host.driver.create_network(BODY)

    host.bridges.meanwhile = [repeated, fails]
    assert host.driver.create_network(BODY) == {}
    assert host.there
    host.bridges.meanwhile = [fails]
    with pytest.raises(FwError):
        host.driver.create_network(BODY)
    assert host.there


def test_if_all_calls_are_refused_nothing_is_left(host: Host) -> None:
    """The last refused call removes everything, and the next call starts anew."""

    def repeated() -> None:
        with pytest.raises(FwError):
            host.driver.create_network(BODY)
        fails()

    host.bridges.meanwhile = [repeated, fails]
    with pytest.raises(FwError):
        host.driver.create_network(BODY)
    assert not host.there
    host.disk.full = True
    with pytest.raises(FwError):
        host.driver.create_network(BODY)
    assert not host.there
    host.disk.full = False
    host.driver.create_network(BODY)
    assert host.there


# --- an endpoint that is forgotten while a call about it is in progress -------------------------------------------


CONTAINER = {"NetworkID": "1" * 64, "EndpointID": "e" * 64, "SandboxKey": "/var/run/docker/netns/x", "Options": {}}


class Links(Bridges):
    """Links by name, in addition to bridges. `found`: what happens while Docker is asked for a container's labels."""

    def __init__(self) -> None:
        super().__init__()
        self.links: set[str] = set()

    def attach(self, _: Network, endpoint: Endpoint) -> None:
        self.links.add(host_side(endpoint.id))

    def detach(self, _: Network | None, endpoint: Endpoint) -> None:
        self.links.discard(host_side(endpoint.id))


class Api(NoLinks):
    def __init__(self) -> None:
        self.meanwhile: Callable[[], object] = lambda: None

    def find(self, *_: object) -> Container:
        self.meanwhile()
        return Container("c" * 64, "web")


@pytest.fixture
def joining(host: Host, monkeypatch: pytest.MonkeyPatch) -> tuple[Host, Links, Api]:
    monkeypatch.setattr(driver, "exists", lambda _: True)
    host.bridges, api, none = Links(), Api(), NoLinks()
    host.driver = Driver(host.state, host.bridges, none, none, api)  # type: ignore[arg-type]
    host.driver.create_network(BODY)
    host.driver.create_endpoint({**CONTAINER, "Interface": {"Address": "10.1.0.2/24"}})
    return host, host.bridges, api


def test_a_container_does_not_start_on_an_endpoint_that_was_removed_meanwhile(
    joining: tuple[Host, Links, Api],
) -> None:
    """Its labels would apply to no address: what fw.egress forbids would be open. So Join fails, and leaves no link."""
    host, links, api = joining
    api.meanwhile = lambda: host.driver.delete_endpoint(CONTAINER)
    with pytest.raises(FwError, match="restart the container"):
        host.driver.join(CONTAINER)
    assert not links.links


def test_an_endpoint_that_joined_meanwhile_is_not_forgotten(joining: tuple[Host, Links, Api]) -> None:
    """Docker did not list it for long, and then it joins: it keeps its policy and its link."""
    host, links, _ = joining
    (missing,) = host.state.endpoints.values()
    host.driver.join(CONTAINER)
    host.driver.forget(missing)
    (endpoint,) = host.state.endpoints.values()
    assert endpoint.joined
    assert links.links
    host.driver.forget(endpoint)
    assert not host.state.endpoints
    assert not links.links
