"""Synchronise the driver's state with Docker's list: labels that become known late, renames, objects that are gone."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Collection, Mapping

from plugin.kernel.links import lives
from plugin.model import Container, Endpoint, FwError, Network
from plugin.state.reconciler import Reconciler

log = logging.getLogger(__name__)
#: Seconds after which an object that Docker does not list is forgotten.
GONE = 60.0


class DriverSync:
    """Not thread-safe. `forget` undoes an endpoint, or a network."""

    def __init__(self, reconciler: Reconciler, forget: Callable[[Endpoint | Network], None]) -> None:
        self._state = reconciler
        self._forget = forget
        self._missing: dict[str, float] = {}
        self._refused: set[str] = set()

    def update_labels(self, containers: Mapping[str, Container]) -> None:
        """Update the endpoints whose labels were unknown at Join with Docker's answer, and follow renames."""
        for endpoint in list(self._state.endpoints.values()):
            container = containers.get(endpoint.id)
            if container is None or not endpoint.joined or endpoint.container == container:
                continue
            try:
                self._state.edit_endpoint(endpoint.id, _knows(container))
            except FwError as error:  # a refused update delays no other; it is retried with each full listing
                if endpoint.id not in self._refused:
                    log.error("%s (endpoint %s) keeps its old labels: %s", container.name, endpoint.id[:12], error)
                self._refused.add(endpoint.id)
                continue
            self._refused.discard(endpoint.id)
            if endpoint.container is None:
                for problem in container.problems:
                    log.error("%s answers on ICMP only: %s", container.name, problem)
                log.info("%s (endpoint %s) has its labels now", container.name, endpoint.id[:12])

    def prune(self, containers: Mapping[str, Container], networks: Collection[str] | None) -> None:
        """Forget endpoints and networks that Docker has not listed for GONE seconds.

        An endpoint's Leave, or its Join, never arrived. A network without endpoints is forgotten if all Docker
        networks are known: Docker ended before it saved the network, or docker-fw before it saved the removal.

        Not at once, and not while a container has its link: a container that is just starting is not listed yet.
        """
        now, there = time.monotonic(), list(self._state.endpoints.values())
        missing: dict[str, Endpoint | Network] = {e.id: e for e in there if e.id not in containers}
        self._refused &= {endpoint.id for endpoint in there}
        if networks is not None:
            empty = self._state.networks.keys() - {endpoint.network_id for endpoint in there}
            missing |= {n.id: n for n in list(self._state.networks.values()) if n.id in empty and n.id not in networks}
        self._missing = {each: self._missing.get(each, now) for each in missing}
        for each, since in self._missing.items():
            if now - since >= GONE:
                try:
                    if not (isinstance(missing[each], Endpoint) and lives(each)):
                        self._forget(missing[each])
                except (FwError, OSError) as error:  # it delays no other; it is retried with each full listing
                    log.error("could not remove %s, which Docker does not list any more: %s", each[:12], error)


def _knows(container: Container) -> Callable[[Endpoint], Endpoint]:
    return lambda endpoint: dataclasses.replace(endpoint, container=container) if endpoint.joined else endpoint
