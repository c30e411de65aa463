"""Each owner of the facts → its elements, with rates as far as the table has room for them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from plugin.model import Defaults, Network
from plugin.nftables.elements import (
    bridge_elements,
    endpoint_elements,
    guarded_elements,
    guest_elements,
    network_elements,
    proxied_element,
    proxy_elements,
)
from plugin.nftables.rate_quota import Quota, rates
from plugin.nftables.sets import Element
from plugin.policy.facts import ElementOwner, Facts, Kind
from plugin.policy.view import PolicyView

_NONE: frozenset[Element] = frozenset()


class ElementCompiler:
    """Makes elements of what a view decides, and says in the view which owners' rates have no room. Not thread-safe."""

    def __init__(self, view: PolicyView) -> None:
        self.view = view
        self._quota = Quota()

    def start(self, chains: Iterable[str] = ()) -> None:
        """Index all owners anew. `chains`: those of an earlier table, whose rates come first."""
        self._quota = Quota()
        self._quota.keep(chains)
        self.view.without_room = self._quota.refused
        self.reindex(self.view.owners())

    def reindex(self, owners: Iterable[ElementOwner]) -> list[ElementOwner]:
        """Update the index of names and the room for rates with these owners' current policies.

        Return these owners, the owners whose rules name a peer that was added or removed, and the owners whose rate
        limits that moves.
        """
        found = self.view.reindex(owners)
        wanted = dict.fromkeys(found.owners, _NONE) | {owner: rates(self._all(owner)) for owner in found.rated}
        self._quota.change(wanted)
        return list(dict.fromkeys((*found.owners, *found.dependents, *self.moved)))

    @property
    def moved(self) -> list[ElementOwner]:
        """Other owners whose rate limits the last change moved: they must change in the same transaction."""
        return self._quota.moved

    def room_left(self) -> list[ElementOwner]:
        """Return the owners that get rate limits freed when Docker has listed all containers.

        Until then the room of containers from before docker-fw's start is kept for them; some may be gone.
        """
        return self._quota.settle() if self.view.facts.listed and self._quota.keeping else []

    def elements(self, owner: ElementOwner) -> frozenset[Element]:
        """Return an owner's elements; the ports with a rate that has no room are closed."""
        return self._quota.within(owner, self._all(owner))

    def all_elements(self) -> set[Element]:
        """Return the elements of all owners."""
        return {element for owner in self.view.owners() for element in self.elements(owner)}

    def _all(self, owner: ElementOwner) -> frozenset[Element]:
        """Return an owner's elements as if all rates had room."""
        if of_facts := _OF_FACTS.get(owner.kind):
            return frozenset(of_facts(self.view.facts))
        return _OF_OWNER[owner.kind](self.view, owner)


def compiled(defaults: Defaults, facts: Facts) -> ElementCompiler:
    """Return these facts with all that follows from them, ready to give elements."""
    view = PolicyView(defaults)
    made = ElementCompiler(view)
    with view.deciding():
        view.start_settled(facts)
        made.start()
    return made


def _network(view: PolicyView, owner: ElementOwner) -> frozenset[Element]:
    network = view.state.networks.get(owner.id)
    return network_elements(network) if network else _NONE


def _docker_network(view: PolicyView, owner: ElementOwner) -> frozenset[Element]:
    network = view.facts.networks.get(owner.id)
    return guarded_elements(network) if network else _NONE


def _closed_on_host(view: PolicyView, owner: ElementOwner) -> frozenset[Element]:
    return frozenset(map(proxied_element, view.closed_on_host(owner)))


def _endpoint(view: PolicyView, owner: ElementOwner) -> frozenset[Element]:
    found = view.endpoint(owner)
    if found is None:
        return _NONE
    network, endpoint = found
    policy = view.effective(owner, network, endpoint)
    if isinstance(network, Network):
        return endpoint_elements(network, endpoint, policy, view.container_addresses(endpoint))
    return guest_elements(network, endpoint, policy, view.closed_at(endpoint))


#: Owners of which there is one, and which stand for a part of the facts.
_OF_FACTS: Mapping[Kind, Callable[[Facts], Iterable[Element]]] = {
    Kind.FORWARDING: lambda facts: (Element("no_transit", (family,)) for family in facts.saved.switched),
    Kind.BRIDGES: lambda facts: bridge_elements(facts.bridges),
    Kind.PROXIES: lambda facts: proxy_elements(facts.proxies),
    Kind.DOCKERD: lambda facts: (Element("dockerd_ports", port) for port in facts.dockerd),
    Kind.SERVED: lambda facts: (proxied_element(port, "served_ports") for port in facts.served_ports),
    Kind.UNFOUND: lambda facts: (Element("unfound_protocols", (number,)) for number in facts.unfound),
    Kind.LISTENING: lambda facts: (proxied_element(port, "host_own") for port in facts.listening),
    Kind.EGRESS: lambda facts: (Element("egress_restricted", (name,)) for name in facts.saved.egress_restricted),
    Kind.INTERNAL: lambda facts: (Element("internal", (name,)) for name in facts.saved.internal),
}
#: All other owners. A kind that is in neither table fails, and the change with it.
_OF_OWNER: Mapping[Kind, Callable[[PolicyView, ElementOwner], frozenset[Element]]] = {
    Kind.SUSPECTS: _closed_on_host,
    Kind.LAST_RUN: _closed_on_host,
    Kind.NETWORK: _network,
    Kind.DOCKER_NETWORK: _docker_network,
    Kind.ENDPOINT: _endpoint,
    Kind.TRACKED: _endpoint,
}
