"""The kernel level: the table in a network namespace, and one packet for each connection of a case.

A packet that has not arrived before the last one, which always passes, never will: nothing waits for silence.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from plugin.model import Network
from plugin.nftables.compile import ElementCompiler
from plugin.nftables.sets import Change, Element
from tests.kernel import packets as pk
from tests.kernel.packets import Listener, Packet, Sniffer, arrived, new_flow, ping
from tests.kernel.site import Box, Site, claimed
from tests.lab import NamedNetns
from tests.lab.netns import FORWARDING
from tests.referees.networkpolicy.cases import Case
from tests.referees.networkpolicy.placing import Layout, Place, Seat, docker_network
from tests.referees.networkpolicy.probes import End, Grid, Probe, probes
from tests.referees.networkpolicy.pure import Result, State, ready
from tests.referees.networkpolicy.spec import PROTOCOLS

_source_ports = itertools.cycle(range(20000, 60000))
#: Packets that are sent before the arrivals are read. Neither a socket's buffer overflows, nor a processor's queue
#: (net.core.netdev_max_backlog, 1000), which other tests use at the same time.
BATCH = 200


@dataclass(frozen=True)
class Shot:
    """A probe as a packet, and whether it must arrive."""

    probe: Probe
    packet: Packet
    passes: bool
    difference: str


class Bed:
    """A host with all containers of a layout. `last`: the one that receives the last packet; ping always passes."""

    def __init__(self, site: Site, layout: Layout) -> None:
        self.site, self.layout = site, layout
        site.host.sysctl(FORWARDING)
        self.networks: dict[str, Network] = {}
        self.boxes = {pod: self._box(seat) for pod, seat in layout.seats.items()}
        for network in {seat.network for seat in layout.seats.values()}:
            site.acquaint(*(self.boxes[pod] for pod, seat in layout.seats.items() if seat.network == network))
        self.last = next(iter(self.boxes.values()))
        self.places = {pod: self._place(pod, seat) for pod, seat in layout.seats.items()}
        self.bridges = sorted({seat.bridge for seat in layout.seats.values() if seat.docker})
        self.loaded: set[Element] | None = None

    def _box(self, seat: Seat) -> Box:
        if seat.docker:
            return self.site.docker_box(seat.bridge, seat.number, seat.host)
        if seat.network not in self.networks:
            self.networks[seat.network] = self.site.network(seat.number)
        return self.site.box(self.networks[seat.network], seat.host)

    def _place(self, pod: str, seat: Seat) -> Place:
        box = self.boxes[pod]
        assert box.endpoint.addresses == seat.addresses
        network = docker_network(seat) if seat.docker else self.networks[seat.network]
        return Place(network, replace(box.endpoint, network_id=network.id))

    def load(self, compiler: ElementCompiler) -> None:
        """Load the policies into the kernel, after the first time as a difference from the active ones."""
        elements = compiler.all_elements() | claimed(*self.bridges)
        if self.loaded is None:
            self.site.nft.replace(elements, {})
        else:
            self.site.nft.change(Change(tuple(self.loaded - elements), tuple(elements - self.loaded)), {})
        self.loaded = elements

    def shots(self, state: State, grid: Grid) -> Iterator[Shot]:
        """Yield the packets of a state. A packet of a protocol without ports is sent in one direction alone.

        The one in the other direction would belong to the same flow. Nothing is sent from a pod to itself.
        """
        for probe in probes(self.layout, state.cluster, grid):
            source, destination = probe.source.address, probe.destination.address
            if source == destination:
                continue
            if probe.protocol in PROTOCOLS:
                packet = new_flow(probe.protocol, source, destination, probe.port, next(_source_ports))
            elif probe.protocol == "icmp":
                packet = ping(source, destination)
            elif (int(source) ^ int(destination)) % 2 == (source < destination):  # type: ignore[operator]
                packet = pk.portless(probe.protocol, source, destination)
            else:
                continue
            yield Shot(probe, packet, *state.promises.of(probe))

    def _netns(self, end: End) -> NamedNetns:
        if end.node:
            return self.site.host
        return self.boxes[end.pod.id] if end.pod else self.site.wan

    def arrivals(self, shots: list[Shot]) -> set[Packet]:
        """Send packets, and return those that arrived, in batches."""
        # The first that is read sees the last packet: then all that arrived before it is read.
        places = dict.fromkeys((self.last, self.site.wan, *self.boxes.values()))
        sniffers = [self.site.sniffer(each) for each in places]
        watching: list[Sniffer | Listener] = [*sniffers, self.site.listener]
        seen: set[Packet] = set()
        for batch in _batched(shots):
            by_source: dict[str, tuple[NamedNetns, list[Packet]]] = {}
            for shot in batch:
                netns = self._netns(shot.probe.source)
                by_source.setdefault(netns.path, (netns, []))[1].append(shot.packet)
            for netns, sent in by_source.values():
                self.site.send(sent, netns)
            last = ping(self.site.wan.V6, self.last.v6)
            self.site.send([last])
            seen.update(*arrived(watching, last, 30))
        return seen

    def compare(self, case: Case, grid: Grid) -> Result:
        """Send every connection's packet after each step of a case, and compare which arrive."""
        result = Result(cases=1)
        for state, compiler in ready(self.layout, self.places, case, result):
            self.load(compiler)
            self.site.forget_flows()
            shots = list(self.shots(state, grid))
            seen = self.arrivals(shots)
            for shot in shots:
                result.count(state, shot.probe, shot.passes, shot.difference, shot.packet in seen, "a real packet")
        return result


def _batched(shots: list[Shot]) -> Iterator[list[Shot]]:
    yield from (shots[start : start + BATCH] for start in range(0, len(shots), BATCH))


@contextmanager
def bed(layout: Layout) -> Iterator[Bed]:
    """Make a host with the containers of a layout; nothing is left of it afterwards."""
    with Site() as site:
        yield Bed(site, layout)
