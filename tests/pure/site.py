"""A reconciler and a tracker over a table and a disk in memory, with containers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from types import MappingProxyType

from plugin.docker.tracker import EndpointTracker
from plugin.labels.parser import parse
from plugin.model import BridgeNetwork, Container, Defaults, Endpoint, Network, Published
from plugin.policy.facts import Facts
from plugin.policy.saved import SavedState
from plugin.state.reconciler import Reconciler
from tests.pure.fakes import Disk, Kernel

ANY4, ANY6 = IPv4Address("0.0.0.0"), IPv6Address("::")
#: A docker-fw network, and two Docker networks.
OURS = Network("f" * 64, "fw-ffffffffffff", IPv4Interface("10.1.0.1/24"), IPv6Interface("2001:db8:1::1/64"))
FRONT = BridgeNetwork("a" * 64, "front", "br-front", (IPv4Network("172.18.0.0/16"), IPv6Network("2001:db8:a::/64")))
BACK = BridgeNetwork("b" * 64, "back", "br-back", (IPv4Network("172.19.0.0/16"),))
PLAIN = Defaults()
#: Addresses of the host itself.
HOST = {IPv4Address("198.51.100.1").packed, IPv6Address("2001:db8:ffff::1").packed, IPv4Address("127.0.0.1").packed}


def container(name: str, labels: Mapping[str, str] = MappingProxyType({}), network: str = "") -> Container:
    parsed = parse(labels)
    return Container(name.ljust(64, "0"), name, parsed.spec, parsed.problems, network=network)


def ours(number: int, who: Container | None, *ports: Published) -> Endpoint:
    """Return an endpoint on the docker-fw network: 10.1.0.NUMBER, 2001:db8:1::NUMBER."""
    addresses = IPv4Address(f"10.1.0.{number}"), IPv6Address(f"2001:db8:1::{number:x}")
    return Endpoint(f"{number:x}".rjust(64, "e"), OURS.id, *addresses, joined=True, container=who, published=ports)


def guest(network: BridgeNetwork, number: int, who: Container | None, *ports: Published) -> Endpoint:
    """Return an endpoint on one of the Docker networks."""
    v4 = IPv4Address(int(network.subnets[0].network_address) + number)
    v6 = IPv6Address(int(network.subnets[1].network_address) + number) if len(network.subnets) > 1 else None
    identity = f"{number:x}".rjust(32, network.id[0])
    return Endpoint(identity, network.id, v4, v6, joined=True, container=who, published=ports)


def published(port: int, host_port: int) -> tuple[Published, Published]:
    """Return the publication of `-p HOST_PORT:PORT`."""
    return Published("tcp", ANY4, host_port, port), Published("tcp", ANY6, host_port, port)


class Site:
    """A reconciler and a tracker over that kernel and disk, with these containers."""

    def __init__(
        self,
        *endpoints: Endpoint,
        defaults: Defaults = PLAIN,
        state: SavedState | None = None,
        existing: tuple[str, ...] = (),
    ) -> None:
        self.kernel, self.disk = Kernel(), Disk()
        self.state = Reconciler(self.kernel, self.disk, defaults)  # type: ignore[arg-type]
        there = {endpoint.id: endpoint for endpoint in endpoints if endpoint.network_id == OURS.id}
        self.state.start(Facts(dataclasses.replace(state or SavedState(), networks={OURS.id: OURS}, endpoints=there)))
        self.tracker = EndpointTracker(self.state)
        self.guests = [endpoint for endpoint in endpoints if endpoint.network_id != OURS.id]
        self.see(*existing)

    def see(self, *existing: str) -> None:
        """Docker lists all its networks, and their endpoints."""
        self.tracker.replace([FRONT, BACK], self.guests, existing, asked=1 << 30)
