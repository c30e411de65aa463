"""Which container has an address, for a stream of packets: a list that is rebuilt when needed. Not thread-safe."""

from __future__ import annotations

import time
from collections.abc import Callable

from plugin.model import Address, Published
from plugin.policy.facts import ElementOwner
from plugin.policy.verdict import Found
from plugin.policy.view import PolicyView
from plugin.text import readable

#: Seconds after which the list is rebuilt for an address that is not in it.
_MAX_AGE = 1.0
#: Sooner if neither end of a packet is in it, but for this share of the time at most.
_SHARE = 0.05


class Names:
    """The inventory's endpoints by address. Callers hold the inventory's lock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._owners: dict[Address, ElementOwner] = {}
        #: The container that has published a port of the host, by protocol and port.
        self._published: dict[tuple[str, int], ElementOwner] = {}
        self._built = self._took = float("-inf")

    def find(self, inventory: PolicyView, address: Address) -> Found | None:
        """The network and endpoint that have this address, or None."""
        owner = self._owners.get(address)
        found = inventory.endpoint(owner) if owner else None
        if owner is None or found is None or address not in (found[1].addr4, found[1].addr6):
            return None
        return Found(*found, owner)

    def either(self, inventory: PolicyView, first: Address, second: Address) -> tuple[Found | None, Found | None]:
        """Find both ends of a packet, one of which is a container: if none is known, a container is new."""
        since = self._clock() - self._built
        ends = self.find(inventory, first), self.find(inventory, second)
        if all(ends) or (since < _MAX_AGE and (any(ends) or since < self._took / _SHARE)):
            return ends
        self._rebuild(inventory)
        return self.find(inventory, first), self.find(inventory, second)

    def behind(self, inventory: PolicyView, proto: str, port: int) -> tuple[Found, Published] | None:
        """Return the container that has published this port of the host, and as which of its ports."""
        owner = self._published.get((proto, port))
        found = inventory.endpoint(owner) if owner else None
        if owner is None or found is None:
            return None
        ports = (each for each in found[1].published if (each.proto, each.host_port) == (proto, port))
        return next(((Found(*found, owner), each) for each in ports), None)

    def _rebuild(self, inventory: PolicyView) -> None:
        began = self._clock()
        self._owners, self._published = {}, {}
        for owner in inventory.owners():
            if found := inventory.endpoint(owner):
                for address in (found[1].addr4, found[1].addr6):
                    # An endpoint that has joined has the address; another one may have passed it on.
                    if address and (found[1].joined or address not in self._owners):
                        self._owners[address] = owner
                for port in found[1].published:
                    self._published[port.proto, port.host_port] = owner
        self._built = self._clock()
        self._took = self._built - began


def name(inventory: PolicyView, found: Found | None) -> str | None:
    """Return the container's name; None while it is uncertain who has the address."""
    container = found.endpoint.container if found and found.endpoint else None
    return readable(container.name) if found and container and not inventory.doubted(found.owner) else None
