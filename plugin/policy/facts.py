"""All facts at one moment, as one frozen value, and the owners whose elements differ between two of them. Pure.

Facts contain no nft element: policies follow from them (`plugin.policy.view`), and elements from policies.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple

from plugin.model import BridgeNetwork, Endpoint, Network, Overriding, Published, TrackedEndpoint
from plugin.policy.frozen import FrozenDict, frozen
from plugin.policy.saved import SavedState


class Kind(StrEnum):
    """The kinds of element owners."""

    FORWARDING = "forwarding"
    BRIDGES = "bridges"
    PROXIES = "docker-proxy"
    DOCKERD = "dockerd's ports"
    SERVED = "docker-proxy's former ports"
    UNFOUND = "protocols without a socket"
    LISTENING = "listening"
    SUSPECTS = "suspected ports"
    EGRESS = "restricted egress"
    INTERNAL = "internal Docker networks"
    LAST_RUN = "closed ports of the last run"
    NETWORK = "network"
    DOCKER_NETWORK = "Docker network"
    ENDPOINT = "endpoint"
    TRACKED = "tracked endpoint"


class ElementOwner(NamedTuple):
    """One thing that elements stand for; `id` distinguishes several of a kind."""

    kind: Kind
    id: str = ""

    def __str__(self) -> str:
        return self.id or str(self.kind)


EGRESS, LAST_RUN, SUSPECTS = (ElementOwner(kind) for kind in (Kind.EGRESS, Kind.LAST_RUN, Kind.SUSPECTS))


@dataclass(frozen=True, slots=True)
class BridgeFacts:
    """The host's bridges that are not the driver's.

    `unmanaged` (by index): bridges that docker-fw does not filter. `dockers`: Docker's bridges. `guarded`: all bridges
    that docker-fw protects, which are all but the unmanaged ones. `there`: all of them, by name.
    """

    unmanaged: frozenset[int] = frozenset()
    dockers: frozenset[str] = frozenset()
    guarded: frozenset[str] = frozenset()
    there: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ProxyFacts:
    """Docker-proxy's control groups.

    `holding`: they do not identify docker-proxy, so every new listening port is blocked until its owner is known.
    """

    cgroups: frozenset[int] = frozenset()
    holding: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """`saved`: the part on the disk. The rest is read again from Docker and the kernel at each start.

    `dockerd`: dockerd's own ports, by protocol number. `served_ports`: TCP ports that docker-proxy served for
    containers that left, with the time when each left; their `container_port` means nothing. `unfound`: those of
    `plugin.protocols.UNFOUND`, by number, that containers publish, or may publish. `listening`: ports of the host's own
    programs. `suspects`: ports on which a docker-proxy may listen. `names`: the names of all Docker networks; None
    until they are listed. `networks`, `guests`: Docker's bridge networks and the endpoints on them, by ID. `listed`:
    Docker has listed all since the start. `suspended`: ports opened for a limited time are closed, because docker-fw
    stops.
    """

    saved: SavedState = field(default_factory=SavedState)
    bridges: BridgeFacts = BridgeFacts()
    proxies: ProxyFacts = ProxyFacts()
    dockerd: frozenset[tuple[int, int]] = frozenset()
    served_ports: Mapping[Published, float] = field(default_factory=FrozenDict)
    unfound: frozenset[int] = frozenset()
    listening: frozenset[Published] = frozenset()
    suspects: frozenset[Published] = frozenset()
    names: frozenset[str] | None = None
    networks: Mapping[str, BridgeNetwork] = field(default_factory=FrozenDict)
    guests: Mapping[str, TrackedEndpoint] = field(default_factory=FrozenDict)
    listed: bool = False
    suspended: bool = False

    def __post_init__(self) -> None:
        for name in ("served_ports", "networks", "guests"):
            object.__setattr__(self, name, frozen(getattr(self, name)))

    def keeping(self, edit: Callable[[SavedState], SavedState]) -> Facts:
        """Return the facts with an edited saved state; themselves if the edit changes nothing."""
        saved = edit(self.saved)
        return self if saved is self.saved else replace(self, saved=saved)

    def with_guests(self, more: Mapping[str, TrackedEndpoint], less: Collection[str] = ()) -> Facts:
        """Return the facts with endpoints on Docker networks added or replaced, and others removed."""
        guests = frozen(self.guests).replace(more, less)
        return self if guests is self.guests else replace(self, guests=guests)

    def with_served_ports(self, more: Mapping[Published, float], less: Collection[Published] = ()) -> Facts:
        """Return the facts with ports of docker-proxies that have ended added, and others removed."""
        former = frozen(self.served_ports).replace(more, less)
        return self if former is self.served_ports else replace(self, served_ports=former)

    def with_networks(self, more: Mapping[str, BridgeNetwork], less: Collection[str] = ()) -> Facts:
        """Return the facts with Docker networks added or replaced, and others removed.

        A network that equals the former one stays the same object.
        """
        changed = {key: network for key, network in more.items() if self.networks.get(key) != network}
        networks = frozen(self.networks).replace(changed, [key for key in less if key not in more])
        return self if networks is self.networks else replace(self, networks=networks)

    def owners(self) -> Iterator[ElementOwner]:
        """Yield every owner that may have elements."""
        yield from map(ElementOwner, _ALONE)
        for kind, known in self._by_kind().items():
            yield from (ElementOwner(kind, key) for key in known)

    def endpoint(self, owner: ElementOwner) -> tuple[Network | BridgeNetwork, Endpoint] | None:
        """Return the owner's network and endpoint; None for other owners."""
        network: Network | BridgeNetwork | None = None
        endpoint: Endpoint | None = None
        if owner.kind is Kind.ENDPOINT:
            if endpoint := self.saved.endpoints.get(owner.id):
                network = self.saved.networks.get(endpoint.network_id)
        elif owner.kind is Kind.TRACKED and (guest := self.guests.get(owner.id)):
            endpoint = guest.endpoint
            network = self.networks.get(endpoint.network_id)
        return (network, endpoint) if network and endpoint else None

    def container_of(self, owner: ElementOwner) -> str:
        """Return the ID of the owner's container; "" if none is known."""
        found = self.endpoint(owner)
        return found[1].container.id if found and found[1].container else ""

    def _by_kind(self) -> dict[Kind, Mapping[str, Any]]:
        return {
            Kind.NETWORK: self.saved.networks,
            Kind.DOCKER_NETWORK: self.networks,
            Kind.ENDPOINT: self.saved.endpoints,
            Kind.TRACKED: self.guests,
        }


#: The facts from which the elements of each single owner (one per kind) follow.
_ALONE: dict[Kind, Callable[[Facts], Any]] = {
    Kind.FORWARDING: lambda facts: facts.saved.switched,
    Kind.BRIDGES: lambda facts: facts.bridges,
    Kind.PROXIES: lambda facts: facts.proxies,
    Kind.DOCKERD: lambda facts: facts.dockerd,
    Kind.SERVED: lambda facts: facts.served_ports,
    Kind.UNFOUND: lambda facts: facts.unfound,
    Kind.LISTENING: lambda facts: facts.listening,
    Kind.SUSPECTS: lambda facts: facts.suspects,
    Kind.EGRESS: lambda facts: facts.saved.egress_restricted,
    Kind.INTERNAL: lambda facts: facts.saved.internal,
    Kind.LAST_RUN: lambda facts: None if facts.listed else facts.saved.proxied,
}
#: The networks that the endpoints of a kind are on.
_ON = {Kind.ENDPOINT: Kind.NETWORK, Kind.TRACKED: Kind.DOCKER_NETWORK}


def changed(
    before: Facts,
    after: Facts,
    places: Callable[[str], Iterable[ElementOwner]],
    on: Callable[[str], Iterable[ElementOwner]],
) -> dict[ElementOwner, None]:
    """Return the owners whose elements may change.

    `places`: a container's endpoints before the change. `on`: those on a network before the change.

    A network includes all endpoints on it. An endpoint on a Docker network includes the other endpoints of its
    container, because the container's published ports are closed or open together.
    """
    owners = dict.fromkeys(ElementOwner(kind) for kind, of in _ALONE.items() if _differ(of(before), of(after)))
    one, other = before._by_kind(), after._by_kind()
    keys = {kind: frozen(known).differing(one[kind]) for kind, known in other.items()}
    for kind, networks in _ON.items():
        # An endpoint that was not on the network before the change is new itself, or has changed.
        keys[kind] |= {owner.id for network in keys[networks] for owner in on(network) if owner.kind is kind}
    owners |= {ElementOwner(kind, key): None for kind in keys for key in sorted(keys[kind])}
    containers = {
        known[key].container_id for known in (before.guests, after.guests) for key in keys[Kind.TRACKED] if key in known
    }
    containers |= _overridden(before, after)
    for container in sorted(filter(None, containers)):
        owners |= dict.fromkeys(places(container))
    return owners


def _differ(one: Any, other: Any) -> bool:
    return one is not other and one != other


def _overridden(before: Facts, after: Facts) -> set[str]:
    """Return the containers whose overrides changed."""
    one, other = before.saved.overrides, after.saved.overrides
    found: set[str] = set()
    if one is not other:
        was, now = _by_container(one), _by_container(other)
        found = {container for container in {*was, *now} if was.get(container) != now.get(container)}
    if before.suspended is not after.suspended:
        found |= {each.container for each in other if each.until}
    return found


def _by_container(overrides: Iterable[Overriding]) -> dict[str, list[Overriding]]:
    found: dict[str, list[Overriding]] = {}
    for each in overrides:
        found.setdefault(each.container, []).append(each)
    return found
