"""Who is at the ends of a flow that a user asks about: a container, an address, the host, the Internet. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from plugin.fwctl.api.find_container import containers, whom
from plugin.model import Address, FwError, Prefix
from plugin.policy.bans import holding
from plugin.policy.decide import prefix_of
from plugin.policy.verdict import find, policy_of
from plugin.policy.view import Inventory, subnets

#: Addresses for documentation (RFC 5737, RFC 3849, RFC 9637), which nobody on the Internet has.
_NOBODY: dict[int, list[Address]] = {
    4: [IPv4Address(f"{net}.{last}") for net in ("203.0.113", "198.51.100", "192.0.2") for last in range(1, 255)],
    6: [IPv6Address(f"{net}::{last:x}") for net in ("3fff:fff", "2001:db8:ffff:ffff") for last in range(1, 255)],
}


@dataclass(frozen=True, slots=True)
class End:
    """One address of somebody's. `network`: the ID of the network that it is in. `host`: it is the host's own.

    `any`: whichever of the host's addresses fits.
    """

    name: str
    address: Address
    network: str = ""
    internal: bool = False
    container: str = ""
    host: bool = False
    any: bool = False


def ends(inventory: Inventory, text: str, own: Collection[Address], not_guarded: Mapping[str, str]) -> list[End]:
    """Every address that `text` may mean; none for "internet", see `nobody`. Raises FwError.

    `own`: the host's addresses. `apart`: containers without a network of their own, with the reason.
    """
    if text.lower() == "internet":
        return []
    if text.lower() == "host":
        return [End("the host", address, host=True, any=True) for address in _hosts(inventory, own)]
    try:
        address = ip_address(text)
    except ValueError:
        return _of_container(inventory, whom(containers(inventory), text, not_guarded))
    if address in own or address.is_loopback:
        return [End("the host", address, host=True)]
    found = find(inventory, address)
    if found is None:
        return [End(str(address), address)]
    identity = found.endpoint.container.id if found.endpoint and found.endpoint.container else ""
    name = found.name if identity else str(address)
    return [End(name, address, found.network.id, found.network.internal, identity)]


def _hosts(inventory: Inventory, own: Collection[Address]) -> Iterator[Address]:
    """One address of each family, rather one that others can reach."""
    gateways = [subnet for network in inventory.networks() for subnet in subnets(network)]
    for version in (4, 6):
        there = [address for address in own if address.version == version]
        if there:
            inside = {address for address in there if any(address in subnet for subnet in gateways)}
            yield min(there, key=lambda a: (a.is_loopback, a.is_link_local, a in inside, int(a)))


def _of_container(inventory: Inventory, identity: str) -> list[End]:
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


def nobody(inventory: Inventory, others: Collection[End], now: float) -> list[End]:
    """An address of each family that stands for everybody on the Internet: no rule about `others` names it."""
    avoid: set[Prefix] = {subnet for network in inventory.networks() for subnet in subnets(network)}
    for end in others:
        found = find(inventory, end.address)
        policy = policy_of(inventory, found) if found else None
        for rule in (*policy.accepts, *(policy.egress or ())) if policy else ():
            avoid |= {prefix_of(peer) for peer in rule.peers if peer.kind == "prefix"}

    def free(address: Address) -> bool:
        # Whoever names everybody names nobody.
        named = any(prefix.prefixlen and address in prefix for prefix in avoid)
        return not named and holding(ip_network(address), inventory.state.bans, now) is None

    return [End("the Internet", next(filter(free, there), there[0])) for there in _NOBODY.values()]


def pairs(sources: Collection[End], targets: Collection[End]) -> list[tuple[End, End]]:
    """Which addresses talk to which: of one family, on a network that both are on if there is one."""
    found = []
    for version in (4, 6):
        there = [(s, t) for s in sources for t in targets if s.address.version == t.address.version == version]
        shared = [(s, t) for s, t in there if s.network and s.network == t.network]
        # Nobody leaves an internal network, so who is on another one too goes by that.
        outward = [(s, t) for s, t in there if not s.internal]
        found += shared or outward or there
    return found
