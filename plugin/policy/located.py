"""Index of the driver's endpoints and of those on Docker networks: by network, address, MAC. Pure.

One endpoint of fifty thousand changes at a time, and the change must not search the others. After an unexpected error
amid a change the index may lack an endpoint; no later change fails for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from plugin.model import Address, Endpoint
from plugin.policy.facts import ElementOwner, Facts, Kind

#: A network's ID, and an address or a MAC on it.
Place = tuple[str, Address | str]


class Located:
    """The indexed endpoints. Not thread-safe."""

    def __init__(self, facts: Facts | None = None) -> None:
        self._on: dict[str, dict[ElementOwner, None]] = {}
        #: Only the driver's. Nearly each place has one endpoint, so these are tuples.
        self._at: dict[Place, tuple[str, ...]] = {}
        self._unlabelled: set[str] = set()
        if facts:
            for owner in facts.owners():
                self._put(owner, _endpoint(facts, owner))

    @property
    def unlabelled(self) -> bool:
        """True if an endpoint of the driver is joined and its container is unknown."""
        return bool(self._unlabelled)

    def on(self, network_id: str) -> Iterable[ElementOwner]:
        """Return the owners that are endpoints on the network."""
        return self._on.get(network_id, {})

    def at(self, network_id: str, where: Address | str) -> tuple[str, ...]:
        """Return the IDs of the driver's endpoints on the network that have this address or MAC."""
        return self._at.get((network_id, where), ())

    def take(self, before: Facts, after: Facts, owners: Iterable[ElementOwner]) -> None:
        """Follow a change of the facts; `owners`: those that it changes."""
        for owner in owners:
            was, now = _endpoint(before, owner), _endpoint(after, owner)
            if was is not now:
                self._remove(owner, was)
                self._put(owner, now)

    def _put(self, owner: ElementOwner, endpoint: Endpoint | None) -> None:
        if endpoint is None:
            return
        self._on.setdefault(endpoint.network_id, {})[owner] = None
        if owner.kind is Kind.ENDPOINT:
            for place in _places(endpoint):
                self._at[place] = (*self._at.get(place, ()), endpoint.id)
            if endpoint.joined and endpoint.container is None:
                self._unlabelled.add(endpoint.id)

    def _remove(self, owner: ElementOwner, endpoint: Endpoint | None) -> None:
        if endpoint is None:
            return
        there = self._on.get(endpoint.network_id, {})
        there.pop(owner, None)
        if not there:
            self._on.pop(endpoint.network_id, None)
        if owner.kind is Kind.ENDPOINT:
            self._unlabelled.discard(endpoint.id)
            for place in _places(endpoint):
                left = tuple(each for each in self._at.pop(place, ()) if each != endpoint.id)
                if left:
                    self._at[place] = left


def _endpoint(facts: Facts, owner: ElementOwner) -> Endpoint | None:
    """Return the endpoint that the owner is, also if its network is unknown."""
    if owner.kind is Kind.ENDPOINT:
        return facts.saved.endpoints.get(owner.id)
    guest = facts.guests.get(owner.id) if owner.kind is Kind.TRACKED else None
    return guest.endpoint if guest else None


def _places(endpoint: Endpoint) -> Iterator[Place]:
    for where in (*endpoint.addresses, endpoint.mac):
        if where:
            yield endpoint.network_id, where
