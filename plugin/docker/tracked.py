"""Index of the endpoints on Docker networks: by ID, by container, by network, by address. Pure.

Thousands of endpoints stay unchanged when one is added or removed, so a look-up must not search them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from plugin.model import Address, Endpoint, TrackedEndpoint


class Guests:
    """The indexed endpoints. Not thread-safe."""

    def __init__(self, guests: Iterable[TrackedEndpoint] = ()) -> None:
        self._guests: dict[str, TrackedEndpoint] = {}
        self._of: dict[str, dict[str, None]] = {}
        self._on: dict[str, dict[str, None]] = {}
        self._at: dict[tuple[str, Address], str] = {}
        for guest in guests:
            self.put(guest)

    def __iter__(self) -> Iterator[TrackedEndpoint]:
        return iter(self._guests.values())

    def get(self, endpoint_id: str) -> TrackedEndpoint | None:
        """The endpoint with this ID, or None."""
        return self._guests.get(endpoint_id)

    def of(self, container_id: str) -> list[TrackedEndpoint]:
        """Return the container's endpoints."""
        return [self._guests[each] for each in self._of.get(container_id, ())]

    def on(self, network_id: str) -> list[TrackedEndpoint]:
        """Return the endpoints on the network."""
        return [self._guests[each] for each in self._on.get(network_id, ())]

    def at(self, endpoint: Endpoint) -> list[TrackedEndpoint]:
        """Return other endpoints that have one of the endpoint's addresses on its network."""
        found = dict.fromkeys(self._at.get((endpoint.network_id, each), "") for each in endpoint.addresses)
        return [self._guests[each] for each in found if each and each != endpoint.id]

    def put(self, guest: TrackedEndpoint) -> None:
        """Add the endpoint, or replace the one with its ID. Others with the same addresses keep all but these."""
        endpoint = guest.endpoint
        self.remove(endpoint.id)
        self._guests[endpoint.id] = guest
        self._of.setdefault(guest.container_id, {})[endpoint.id] = None
        self._on.setdefault(endpoint.network_id, {})[endpoint.id] = None
        self._at.update({(endpoint.network_id, each): endpoint.id for each in endpoint.addresses})

    def remove(self, endpoint_id: str) -> None:
        """Forget the endpoint; unknown ones are ignored."""
        guest = self._guests.pop(endpoint_id, None)
        if guest is None:
            return
        for index, key in ((self._of, guest.container_id), (self._on, guest.endpoint.network_id)):
            del index[key][endpoint_id]
            if not index[key]:
                del index[key]
        for each in guest.endpoint.addresses:
            if self._at.get((guest.endpoint.network_id, each)) == endpoint_id:
                del self._at[guest.endpoint.network_id, each]
