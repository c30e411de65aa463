"""Where pods are: which container is on which network, with which addresses.

Two layouts have the same pods. In `separate` each container has a network of its own, in `shared` the containers of a
namespace share one. In both, some networks are docker-fw's and some are Docker's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_network

from plugin.docker import container_labels
from plugin.kernel.names import bridge_name
from plugin.model import BridgeNetwork, Container, Defaults, Endpoint, Network, TrackedEndpoint
from plugin.nftables.compile import ElementCompiler, compiled
from plugin.policy.facts import Facts
from plugin.policy.saved import SavedState
from tests.referees.networkpolicy.spec import Address, Cluster, Pod

#: The host, and machines outside.
NODE: tuple[Address, ...] = (IPv4Address("198.51.100.1"), IPv6Address("2001:db8:ffff::1"))
OUTSIDERS: tuple[Address, ...] = tuple(
    (IPv4Address if "." in each else IPv6Address)(each)
    for each in ("203.0.113.7", "192.0.2.77", "2001:db8:5::7", "2600::1")
)
#: Every pod has ports of these names.
NAMED = tuple((f"{protocol}-{port}", protocol, port) for protocol in ("tcp", "udp", "sctp") for port in (80, 81))
#: The namespaces and pods that every case starts with.
NAMESPACES, PODS = ("x", "y", "z"), ("a", "b", "c")
Named = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Seat:
    """A pod's place: its network's name and number, its number there, and whether the network is a Docker network."""

    network: str
    number: int
    host: int
    docker: bool

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The container's addresses."""
        return IPv4Address(f"10.{self.number}.0.{self.host}"), IPv6Address(f"2001:db8:{self.number}::{self.host}")

    @property
    def gateways(self) -> tuple[Address, ...]:
        """The host's addresses on the network."""
        return IPv4Address(f"10.{self.number}.0.1"), IPv6Address(f"2001:db8:{self.number}::1")

    @property
    def bridge(self) -> str:
        """The bridge, for a Docker network."""
        return f"br-{self.number:012x}"


@dataclass(frozen=True)
class Layout:
    """`seats`: the place of every pod that a case may have, by NAMESPACE/NAME.

    `namespaces`, `pods`: those that every case starts with, and their labels. `ports`: the named ports of every pod.
    """

    name: str
    meaning: str
    seats: Mapping[str, Seat]
    namespaces: Named
    pods: Named
    ports: tuple[tuple[str, str, int], ...] = NAMED

    def pod(self, pod: str, /, **labels: str) -> Pod:
        """Return a pod in its place; without labels, the label `pod` is its name."""
        namespace, _, name = pod.partition("/")
        own = tuple(sorted((labels or {"pod": name}).items()))
        return Pod(namespace, name, own, self.seats[pod].addresses, self.ports)

    def cluster(self) -> Cluster:
        """Return the cluster that every case starts with, without policies."""
        gateways = {address for seat in self.seats.values() for address in seat.gateways}
        cluster = Cluster(node=(*NODE, *sorted(gateways, key=str)))
        for name, labels in self.namespaces.items():
            cluster = cluster.with_namespace(name, **labels)
        for pod, labels in self.pods.items():
            cluster = cluster.with_pod(self.pod(pod, **labels))
        return cluster

    def neighbours(self, one: str, other: str) -> bool:
        """True if two pods are on the same network."""
        return self.seats[one].network == self.seats[other].network


#: The second number of IPv4 addresses: 10.32.0.0/11 has y and z, 10.16.0.0/12 has x.
_FIRST = {"x": 16, "y": 33, "z": 49, "y-2": 40, "w": 65}
_ALL = [*(f"{namespace}/{name}" for namespace in NAMESPACES for name in PODS), "x/d", "y-2/a", "y-2/b", "w/a"]


def _number(name: str) -> int:
    return "abcd".index(name)


def _separate(pod: str) -> Seat:
    namespace, _, name = pod.partition("/")
    number = _FIRST[namespace] + _number(name)
    return Seat(f"{namespace}_{name}", number, 2, number % 2 == 0)


def _shared(pod: str) -> Seat:
    namespace, _, name = pod.partition("/")
    return Seat(f"{namespace}_default", _FIRST[namespace], 2 + _number(name), namespace in ("y", "y-2"))


def _layout(name: str, meaning: str, seat: Callable[[str], Seat]) -> Layout:
    """Return a layout of nine pods in three namespaces, with places for those that cases create."""
    namespaces = {namespace: {"ns": namespace} for namespace in NAMESPACES}
    pods = {f"{namespace}/{pod}": {"pod": pod} for namespace in NAMESPACES for pod in PODS}
    return Layout(name, meaning, {pod: seat(pod) for pod in _ALL}, namespaces, pods)


LAYOUTS = {
    each.name: each
    for each in (
        _layout("separate", "one network for each container", _separate),
        _layout("shared", "one network for each namespace", _shared),
    )
}


@dataclass(frozen=True)
class Place:
    """A pod's network and its endpoint there, without a container."""

    network: Network | BridgeNetwork
    endpoint: Endpoint


def imagined(layout: Layout) -> dict[str, Place]:
    """Return the places of a layout's pods, without a kernel."""
    places = {}
    for pod, seat in layout.seats.items():
        network: Network | BridgeNetwork = docker_network(seat) if seat.docker else own_network(seat)
        four, six = seat.addresses
        assert isinstance(four, IPv4Address)
        assert isinstance(six, IPv6Address)
        places[pod] = Place(network, Endpoint(pod.encode().hex().ljust(64, "e"), network.id, four, six, joined=True))
    return places


def own_network(seat: Seat) -> Network:
    """Return a docker-fw network."""
    network_id = f"{seat.number:012x}".ljust(64, "0")
    four, six = seat.gateways
    gateways = IPv4Interface(f"{four}/24"), IPv6Interface(f"{six}/64")
    return Network(network_id, bridge_name(network_id), *gateways, masquerade=False)


def docker_network(seat: Seat) -> BridgeNetwork:
    """Return a Docker network, as Docker lists it."""
    four, six = seat.gateways
    subnets = ip_network(f"{four}/24", strict=False), ip_network(f"{six}/64", strict=False)
    return BridgeNetwork(f"{seat.number:064x}", seat.network, seat.bridge, subnets)


def container_name(pod: Pod) -> str:
    """Return the name that compose gives to the container of a pod."""
    return f"{pod.namespace}-{pod.name}-1"


def _listed(pod: Pod, network: str, labels: Mapping[str, str]) -> dict[str, object]:
    """Return a container as Docker lists it: a namespace is a compose project, a pod a service."""
    compose = {"project": pod.namespace, "service": pod.name, "container-number": "1"}
    return {
        "Id": pod.id.encode().hex().ljust(64, "c"),
        "Names": ["/" + container_name(pod)],
        "Labels": {**{f"com.docker.compose.{key}": value for key, value in compose.items()}, **labels},
        "NetworkSettings": {"Networks": {network: {}}},
    }


def container(pod: Pod, network: str, labels: Mapping[str, str]) -> Container:
    """Return the container of a pod with these labels, as the plugin reads it."""
    return container_labels.on_network(container_labels.read(_listed(pod, network, labels), {}), network)


def compile_policies(
    layout: Layout, places: Mapping[str, Place], cluster: Cluster, labels: Mapping[str, Mapping[str, str]]
) -> ElementCompiler:
    """Return what the plugin makes of these labels, by pod, if each pod of the cluster runs as a container."""
    endpoints: dict[str, Endpoint] = {}
    guests: dict[str, TrackedEndpoint] = {}
    for pod in cluster.pods.values():
        place = places[pod.id]
        known = container(pod, layout.seats[pod.id].network, labels[pod.id])
        endpoint = replace(place.endpoint, container=known)
        if isinstance(place.network, Network):
            endpoints[endpoint.id] = endpoint
        else:
            guests[endpoint.id] = TrackedEndpoint(endpoint, listed=True)
    networks = {place.network.id: place.network for place in places.values()}
    facts = Facts(
        SavedState({key: each for key, each in networks.items() if isinstance(each, Network)}, endpoints),
        names=frozenset(seat.network for seat in layout.seats.values()),
        guests=guests,
        listed=True,
        networks={key: each for key, each in networks.items() if isinstance(each, BridgeNetwork)},
    )
    return compiled(Defaults(), facts)
