"""Which published ports are closed, container by container, over stops, restarts and boots.

docker-proxy listens on them before anybody tells of the container: at a boot Docker starts its containers before its
API answers. So a container that stops keeps its ports in mind until it is removed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial

from plugin.kernel import conntrack
from plugin.model import BridgeNetwork, Override, Published, TrackedEndpoint
from plugin.policy.decide import closed_ports, closed_together
from plugin.state.reconciler import Reconciler


class ClosedPorts:
    """Not thread-safe. `known` is what was closed when docker-fw last ran; `later` takes work that may last."""

    def __init__(
        self,
        reconciler: Reconciler,
        known: Mapping[str, tuple[Published, ...]],
        later: Callable[[Callable[[], None]], None],
    ) -> None:
        self._state = reconciler
        self._later = later
        self._closed = dict(known)

    def note(self, now: Mapping[str, Collection[Published]]) -> None:
        """These containers' closed ports are these now; flows that came in by them before are cut."""
        closed = dict(self._closed)
        for container, ports in now.items():
            before = set(closed.pop(container, ()))
            self.cut([port for port in ports if port not in before])
            if ports:
                closed[container] = tuple(sorted(ports, key=str))
        self._keep(closed)

    def forget(self, container: str) -> None:
        """The container does not exist any more."""
        self._keep({k: ports for k, ports in self._closed.items() if k != container})

    def retain(self, existing: Collection[str]) -> None:
        """Only these containers exist."""
        self._keep({k: ports for k, ports in self._closed.items() if k in existing})

    def cut(self, ports: Collection[Published]) -> None:
        """Cuts the flows to these ports of the host."""
        if ports:
            self._later(partial(conntrack.cut_published, ports))

    def _keep(self, closed: dict[str, tuple[Published, ...]]) -> None:
        if closed != self._closed:
            self._closed = closed
            self._state.remember(lambda state: replace(state, proxied=closed))


class Judged:
    """By endpoint, which of its published ports are closed, and what that was found from. Not thread-safe."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._state = reconciler
        self._judged: dict[str, tuple[BridgeNetwork, TrackedEndpoint, Override, frozenset[Published]]] = {}

    def closed(
        self, guests: Iterable[TrackedEndpoint], networks: Mapping[str, BridgeNetwork], *, whole: bool
    ) -> dict[str, frozenset[Published]]:
        """By container, its published ports that are not open to everybody. Each container with all of its places.

        `whole`: these are all; what is known of others is forgotten.
        """
        judged: dict[str, tuple[BridgeNetwork, TrackedEndpoint, Override, frozenset[Published]]] = {}
        places: dict[str, list[frozenset[Published]]] = {}
        doubted = set()
        for guest in guests:
            if not guest.sure:
                doubted.add(guest.container_id)
            if guest.endpoint.published:
                network, known = networks[guest.endpoint.network_id], self._judged.get(guest.endpoint.id)
                override = self._state.override(guest.container_id)
                if known is None or known[:3] != (network, guest, override):
                    ports = closed_ports(self._state.decide(network, guest.as_known), guest.endpoint)
                    known = (network, guest, override, frozenset(ports))
                judged[guest.endpoint.id] = known
                places.setdefault(guest.container_id, []).append(known[3])
        if whole:
            self._judged = judged
        else:
            self._judged.update(judged)
        return closed_together(places, doubted)
