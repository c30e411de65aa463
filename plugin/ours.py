"""The driver's endpoints, by Docker's list: whose labels become known late, who has a new name, who is not there."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping

from plugin.links import lives
from plugin.model import Container, Endpoint, FwError
from plugin.reconcile import Reconciler

log = logging.getLogger(__name__)
#: Seconds after which an endpoint that Docker does not list is forgotten.
GONE = 60.0


class Ours:
    """Not thread-safe. `forget` undoes an endpoint."""

    def __init__(self, reconciler: Reconciler, forget: Callable[[Endpoint], None]) -> None:
        self._state = reconciler
        self._forget = forget
        self._missing: dict[str, float] = {}
        self._refused: set[str] = set()

    def learn(self, containers: Mapping[str, Container]) -> None:
        """Gives the endpoints whose labels were unknown at Join what Docker tells now, and follows renames."""
        for endpoint in list(self._state.endpoints.values()):
            container = containers.get(endpoint.id)
            if container is None or not endpoint.joined or endpoint.container == container:
                continue
            try:
                self._state.edit_endpoint(endpoint.id, _knows(container))
            except FwError as error:  # one that is refused holds up no other; it is tried with each look
                if endpoint.id not in self._refused:
                    log.error("%s (endpoint %s) stays as it was: %s", container.name, endpoint.id[:12], error)
                self._refused.add(endpoint.id)
                continue
            self._refused.discard(endpoint.id)
            if endpoint.container is None:
                for problem in container.problems:
                    log.error("%s stays closed but for ICMP: %s", container.name, problem)
                log.info("%s (endpoint %s) is known now", container.name, endpoint.id[:12])

    def bury(self, containers: Mapping[str, Container]) -> None:
        """Forgets endpoints that Docker has not had for GONE seconds: their Leave, or Join, never came.

        Not at once, and not while a container has its link: one that is just starting is not listed yet.
        """
        now = time.monotonic()
        missing = {e.id: e for e in list(self._state.endpoints.values()) if e.id not in containers}
        self._missing = {endpoint_id: self._missing.get(endpoint_id, now) for endpoint_id in missing}
        self._refused &= self._state.endpoints.keys()
        for endpoint_id, since in self._missing.items():
            if now - since >= GONE and not lives(endpoint_id):
                self._forget(missing[endpoint_id])


def _knows(container: Container) -> Callable[[Endpoint], Endpoint]:
    return lambda endpoint: dataclasses.replace(endpoint, container=container) if endpoint.joined else endpoint
