"""Calls of libnetwork that arrive at the same moment do not undo each other."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address
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


def test_a_network_is_reported_when_the_disk_has_it(host: Host) -> None:
    """dockerd repeats a CreateNetwork while the first one waits for a slow disk: the second one waits as well.

    If the disk fails, the network is refused, and nothing of it is left.
    """
    began, proceed, waiting = threading.Event(), threading.Event(), threading.Semaphore(0)

    def slow() -> None:
        waiting.release()
        began.set()
        assert proceed.wait(20)

    host.disk.flushing = slow
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(host.driver.create_network, BODY)
        assert began.wait(20)
        second = pool.submit(host.driver.create_network, BODY)
        assert all(waiting.acquire(timeout=20) for _ in range(2))
        assert not first.done()
        assert not second.done()
        proceed.set()
        assert first.result(20) == second.result(20) == {}
    assert host.there
    host.driver.delete_network({"NetworkID": BODY["NetworkID"]})
    host.disk.flushing = fails
    with pytest.raises(FwError):
        host.driver.create_network(BODY)
    assert not host.there


class Ports(NoLinks):
    """Host ports: by endpoint, where the loopback relay leads. Others of its calls do nothing."""

    def __init__(self) -> None:
        self.lead: dict[str, set[object]] = {}

    def release(self, endpoint_id: str) -> None:
        self.lead.pop(endpoint_id, None)

    def drop_addr6(self, endpoint_id: str) -> None:
        if endpoint_id in self.lead:
            self.lead[endpoint_id] = {each for each in self.lead[endpoint_id] if isinstance(each, IPv4Address)}


@pytest.mark.parametrize("meanwhile", ["nothing", "it leaves", "no descriptor is left"])
def test_the_relay_does_not_lead_to_the_heir_of_an_ipv6_address(
    host: Host, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """Docker gives a running container's IPv6 address to another: connections to its ports stay with the container.

    If it leaves at this moment, nothing of it remains.
    """
    monkeypatch.setattr(driver, "exists", lambda _: True)
    ports: Any = Ports()
    host.driver._ports = ports
    body = {**BODY, "IPv6Data": [{"Gateway": "2001:db8:1::1/64"}]}
    first, heir = (
        {
            "NetworkID": BODY["NetworkID"],
            "EndpointID": name * 64,
            "Interface": {"Address": f"10.1.0.{number}/24", "AddressIPv6": "2001:db8:1::2/64"},
        }
        for name, number in (("e", 2), ("f", 3))
    )
    host.driver.create_network(body)
    host.driver.create_endpoint(first)
    host.driver.join(first)
    v4 = IPv4Address("10.1.0.2")
    ports.lead["e" * 64] = {v4, IPv6Address("2001:db8:1::2")}

    def lives(_: str) -> bool:
        if meanwhile == "it leaves":
            host.driver.leave(first)
            host.driver.delete_endpoint(first)
        return True

    def no_descriptor(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(driver, "lives", lives)
    if meanwhile == "no descriptor is left":
        host.bridges.forget_addresses = no_descriptor
        with pytest.raises(OSError, match="Too many"):
            host.driver.create_endpoint(heir)
        del host.bridges.forget_addresses
    host.driver.create_endpoint(heir)
    assert ports.lead == ({} if meanwhile == "it leaves" else {"e" * 64: {v4}})
    assert ("e" * 64 in host.state.endpoints) == (meanwhile != "it leaves")


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
