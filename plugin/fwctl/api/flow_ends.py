"""The two ends of a connection as a user writes them: a container, an address, the host, the Internet. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from plugin.model import Address, FwError, Prefix
from plugin.policy.bans import holding
from plugin.policy.decide import prefix_of
from plugin.policy.verdict import find, policy_of
from plugin.policy.view import PolicyView

#: Addresses for documentation (RFC 5737, RFC 3849, RFC 9637), which no host on the Internet has.
_DOCUMENTATION: dict[int, list[Address]] = {
    4: [IPv4Address(f"{net}.{last}") for net in ("203.0.113", "198.51.100", "192.0.2") for last in range(1, 255)],
    6: [IPv6Address(f"{net}::{last:x}") for net in ("3fff:fff", "2001:db8:ffff:ffff") for last in range(1, 255)],
}
#: The fewest characters of a container's ID that are taken for one.
_SHORTEST_ID = 4


@dataclass(frozen=True, slots=True)
class End:
    """One address of an end. `network`: the ID of the network that contains it. `host`: it is the host's own.

    `any`: the user wrote `host`, so each of the host's addresses will do.
    """

    name: str
    address: Address
    network: str = ""
    internal: bool = False
    container: str = ""
    host: bool = False
    any: bool = False


def ends(inventory: PolicyView, text: str, own: Collection[Address], not_guarded: Mapping[str, str]) -> list[End]:
    """Return every address that `text` may mean; none for "internet", see `internet`. Raises FwError.

    `own`: the host's addresses. `not_guarded`: containers that docker-fw does not filter, with the reason.
    """
    if text.lower() == "internet":
        return []
    if text.lower() == "host":
        return [End("the host", address, host=True, any=True) for address in _hosts(inventory, own)]
    try:
        address = ip_address(text)
    except ValueError:
        return _of_container(inventory, find_container(containers(inventory), text, not_guarded))
    if address in own or address.is_loopback:
        return [End("the host", address, host=True)]
    found = find(inventory, address)
    if found is None:
        return [End(str(address), address)]
    identity = found.endpoint.container.id if found.endpoint and found.endpoint.container else ""
    name = found.name if identity else str(address)
    return [End(name, address, found.network.id, found.network.internal, identity)]


def _hosts(inventory: PolicyView, own: Collection[Address]) -> Iterator[Address]:
    """Yield one address of each family, preferably one that other hosts can reach."""
    gateways = [subnet for network in inventory.networks() for subnet in network.subnets]
    for version in (4, 6):
        there = [address for address in own if address.version == version]
        if there:
            inside = {address for address in there if any(address in subnet for subnet in gateways)}
            yield min(there, key=lambda a: (a.is_loopback, a.is_link_local, a in inside, int(a)))


def _of_container(inventory: PolicyView, identity: str) -> list[End]:
    places = (place for owner in inventory.of_container(identity) if (place := inventory.endpoint(owner)))
    found = [
        End(endpoint.container.name, address, network.id, network.internal, identity)
        for network, endpoint in places
        for address in (endpoint.addr4, endpoint.addr6)
        if address and endpoint.container
    ]
    if not found:
        raise FwError(f"container {identity[:12]} has no address yet")
    return found


def internet(inventory: PolicyView, others: Collection[End], now: float) -> list[End]:
    """Return an address of each family that represents the Internet: no rule of `others` names it."""
    avoid: set[Prefix] = {subnet for network in inventory.networks() for subnet in network.subnets}
    for end in others:
        found = find(inventory, end.address)
        policy = policy_of(inventory, found) if found else None
        for rule in (*policy.accepts, *(policy.egress or ())) if policy else ():
            avoid |= {prefix_of(peer) for peer in rule.peers if peer.kind == "prefix"}

    def free(address: Address) -> bool:
        # A rule for every address (prefix length 0) names none in particular.
        named = any(prefix.prefixlen and address in prefix for prefix in avoid)
        return not named and holding(ip_network(address), inventory.state.bans, now) is None

    return [End("the Internet", next(filter(free, there), there[0])) for there in _DOCUMENTATION.values()]


def pairs(sources: Collection[End], targets: Collection[End]) -> list[tuple[End, End]]:
    """Return the pairs of addresses that are used: of one family, and on a common network if there is one."""
    found = []
    for version in (4, 6):
        there = [(s, t) for s in sources for t in targets if s.address.version == t.address.version == version]
        shared = [(s, t) for s, t in there if s.network and s.network == t.network]
        # No packet leaves an internal network; a container that is on another one too sends by that.
        outward = [(s, t) for s, t in there if not s.internal]
        found += shared or outward or there
    return found


def containers(inventory: PolicyView) -> dict[str, str]:
    """Return the name of every container that is on a network, by its ID."""
    places = (found for owner in inventory.owners() if (found := inventory.endpoint(owner)))
    return {endpoint.container.id: endpoint.container.name for _, endpoint in places if endpoint.container}


def find_container(there: Mapping[str, str], text: str, not_guarded: Mapping[str, str]) -> str:
    """Return the ID of the container with this name or ID. Raises FwError that lists similar names.

    `there`: names by ID. `not_guarded`: containers that docker-fw does not filter, by name, with the reason.
    """
    named = [identity for identity, name in there.items() if name == text]
    found = named or [identity for identity in there if len(text) >= _SHORTEST_ID and identity.startswith(text.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(sorted(f"{there[identity]} ({identity[:12]})" for identity in found)[:8])
        raise FwError(f"{text[:80]!r} is ambiguous: {several}; give more of the ID")
    if text in not_guarded:
        raise FwError(f"{text} {not_guarded[text]}")
    near = difflib.get_close_matches(text[:128], sorted({*there.values(), *not_guarded}), n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; `fwctl status` lists the containers"
    raise FwError(f"no container {text[:80]!r} is on a network that docker-fw knows{hint}")
