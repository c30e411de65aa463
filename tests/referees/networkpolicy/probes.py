"""The connections that are compared after each step: every source, destination, protocol, port and address family."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.referees.networkpolicy.evaluator import isolating
from tests.referees.networkpolicy.placing import NODE, OUTSIDERS, Layout
from tests.referees.networkpolicy.spec import DIRECTIONS, PROTOCOLS, Address, Cluster, Pod

#: Protocols that NetworkPolicy does not specify: docker-fw's own promises apply.
BEYOND = ("icmp", "gre", "other")


@dataclass(frozen=True)
class End:
    """One end of a connection: an address, and the pod that has it; `node`: the host."""

    address: Address
    pod: Pod | None = None
    node: bool = False

    def __str__(self) -> str:
        return f"{self.pod.id if self.pod else 'the host' if self.node else 'outside'} ({self.address})"


@dataclass(frozen=True)
class Probe:
    """One connection. `port` is 0 for a protocol without ports."""

    source: End
    destination: End
    protocol: str
    port: int

    def __str__(self) -> str:
        return f"{self.source} → {self.destination} {self.protocol} {self.port or ''}".rstrip()


@dataclass(frozen=True)
class Grid:
    """Which ports, and how many machines outside, are probed. `gateways`: the host's addresses on the networks too."""

    name: str
    ports: tuple[int, ...]
    outsiders: tuple[Address, ...]
    gateways: bool


#: Ports around those of the cases, a base port of docker-fw (443), and one that no case names.
FULL = Grid("full", (52, 53, 80, 81, 84, 85, 443, 7981), OUTSIDERS, gateways=True)
#: One port of each kind.
SAMPLE = Grid("sample", (53, 80, 85), (OUTSIDERS[0], OUTSIDERS[2]), gateways=False)
#: Between ends that no policy selects, all ports are alike: one is probed.
UNSELECTED = (80,)


def probes(layout: Layout, cluster: Cluster, grid: Grid) -> Iterator[Probe]:
    """Yield all connections of a cluster. The two ends of each have the same address family."""
    selected = {
        pod.id for pod in cluster.pods.values() for direction in DIRECTIONS if isolating(cluster, pod, direction)
    }
    for source, destination in pairs(layout, cluster, grid):
        relevant = any(end.pod and end.pod.id in selected for end in (source, destination))
        ports = grid.ports if relevant else UNSELECTED
        yield from (Probe(source, destination, protocol, port) for protocol in PROTOCOLS for port in ports)
        yield from (Probe(source, destination, protocol, 0) for protocol in BEYOND)


def pairs(layout: Layout, cluster: Cluster, grid: Grid) -> Iterator[tuple[End, End]]:
    """Yield all pairs of ends, of which at least one is a pod. A pod with itself is a pair too."""
    for version in (4, 6):
        pods = [End(a, pod) for pod in cluster.pods.values() for a in pod.addresses if a.version == version]
        outside = [End(address) for address in grid.outsiders if address.version == version]
        for pod in pods:
            yield from ((pod, other) for other in (*pods, *outside))
            yield from ((other, pod) for other in outside)
            assert pod.pod
            gateways = layout.seats[pod.pod.id].gateways
            node = [End(a, node=True) for a in (*NODE, *gateways) if a.version == version]
            yield from ((pod, each) for each in (node if grid.gateways else node[:1]))
            yield node[-1], pod
