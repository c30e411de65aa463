"""Who has an address, for a stream of packets: by a list, made anew when somebody is not in it. Not thread-safe."""

from __future__ import annotations

import time
from collections.abc import Callable

from plugin.model import Address, Published
from plugin.policy.facts import ElementOwner
from plugin.policy.verdict import Found
from plugin.policy.view import Inventory
from plugin.text import readable

#: Seconds after which the list is made anew for an address that is not in it.
_OLD = 1.0
#: And sooner where neither end of a packet is, but in this part of the time at most.
_PART = 0.05


class Names:
    """The inventory's endpoints by address. The inventory is to be handed over under its lock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._owners: dict[Address, ElementOwner] = {}
        #: By protocol and port of the host, who has published it.
        self._published: dict[tuple[str, int], ElementOwner] = {}
        self._made = self._took = float("-inf")

    def find(self, inventory: Inventory, address: Address) -> Found | None:
        owner = self._owners.get(address)
        found = inventory.endpoint(owner) if owner else None
        if owner is None or found is None or address not in (found[1].addr4, found[1].addr6):
            return None
        return Found(*found, owner)

    def either(self, inventory: Inventory, first: Address, second: Address) -> tuple[Found | None, Found | None]:
        """The same for both ends of a packet, one of which is a container: if none is known, somebody has come."""
        since = self._clock() - self._made
        ends = self.find(inventory, first), self.find(inventory, second)
        if all(ends) or (since < _OLD and (any(ends) or since < self._took / _PART)):
            return ends
        self._learn(inventory)
        return self.find(inventory, first), self.find(inventory, second)

    def behind(self, inventory: Inventory, proto: str, port: int) -> tuple[Found, Published] | None:
        """Who has published this port of the host, and as what."""
        owner = self._published.get((proto, port))
        found = inventory.endpoint(owner) if owner else None
        if owner is None or found is None:
            return None
        ports = (each for each in found[1].published if (each.proto, each.host_port) == (proto, port))
        return next(((Found(*found, owner), each) for each in ports), None)

    def _learn(self, inventory: Inventory) -> None:
        began = self._clock()
        self._owners, self._published = {}, {}
        for owner in inventory.owners():
            if found := inventory.endpoint(owner):
                for address in (found[1].addr4, found[1].addr6):
                    # Who has joined has the address; who has not may have left it to somebody else.
                    if address and (found[1].joined or address not in self._owners):
                        self._owners[address] = owner
                for port in found[1].published:
                    self._published[port.proto, port.host_port] = owner
        self._made = self._clock()
        self._took = self._made - began


def name(inventory: Inventory, found: Found | None) -> str | None:
    """Nobody's, while it is in doubt who has the address."""
    container = found.endpoint.container if found and found.endpoint else None
    return readable(container.name) if found and container and not inventory.doubted(found.owner) else None
