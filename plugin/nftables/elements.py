"""Translate policies into elements of the table's sets. Pure.

`sets` names the sets, `document` has the rules as text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from plugin.kernel.names import AF, host_side
from plugin.labels.ranges import block_key, blocks, pieces
from plugin.model import (
    Address,
    BridgeNetwork,
    Endpoint,
    Network,
    Peer,
    Policy,
    Published,
    Rate,
    Rule,
)
from plugin.nftables import fields
from plugin.nftables.fields import Value
from plugin.nftables.rate_chains import remembers
from plugin.nftables.sets import Element, limit_chain, packed
from plugin.policy.decide import closed_ports, covers, prefix_of
from plugin.policy.facts import BridgeFacts, ProxyFacts
from plugin.protocols import NUMBER, OTHER, WITH_PORTS

#: The fields of a protocol and its port in a key.
_PORT = ("meta l4proto", "th dport")


def _ports(rule: Rule | Rate) -> Iterator[tuple[str, int, int]]:
    """Yield (suffix of the set, protocol, key of the port) for the ports of a rule."""
    first, last = (rule.first, rule.last) if rule.proto in WITH_PORTS else (0, 65535)
    for size, port in blocks(first, last):
        yield ("", NUMBER[rule.proto], port) if size == 1 else ("_blocks", NUMBER[rule.proto], block_key(size, port))


@lru_cache(maxsize=1024)
def _port_keys(proto: str, first: int, last: int) -> tuple[tuple[str, bytes], ...]:
    """Return (suffix of the set, protocol and port as they are in a key) for the ports of a rule."""
    return tuple((at, fields.packed(_PORT, (number, key))) for at, number, key in _ports(Rule(proto, first, last)))


@lru_cache(maxsize=4096)
def _peer_keys(peer: Peer) -> tuple[int, tuple[bytes, ...]]:
    """Return the family of a peer that is a prefix, and the prefix's pieces as they are at the end of a key."""
    prefix = prefix_of(peer)
    names = ("th sport", "ip saddr" if prefix.version == 4 else "ip6 saddr")
    return prefix.version, tuple(fields.packed(names, piece) for piece in pieces(prefix))


def _prefixes(rule: Rule, version: int) -> list[bytes]:
    """Return the prefixes of this family among a rule's peers, in pieces, as they are at the end of a key."""
    found = (_peer_keys(peer) for peer in rule.peers if peer.kind == "prefix")
    return [piece for family, those in found if family == version for piece in those]


def _flows(address: Address, rules: Iterable[Rule], free: str, gate: str, whom: str) -> Iterator[Element]:
    """Yield elements that let flows pass between `address` and all peers (`free`), or some (`gate` and `whom`)."""
    v, own = address.version, address.packed
    for rule in rules:
        if rule.proto == OTHER:
            # Other protocols are accepted from all sources or from none, and no egress list contains them.
            if free == "allow" and not rule.peers:
                yield packed(f"allow_other{v}", own)
            continue
        prefixes = _prefixes(rule, v) if rule.peers else []
        for suffix, port in _port_keys(rule.proto, rule.first, rule.last):
            key = own + port
            if not rule.peers:
                yield packed(f"{free}{v}{suffix}", key)
            if prefixes:
                yield packed(f"{gate}{v}{suffix}", key)
                name = f"{whom}{v}{suffix}"
                yield from (packed(name, key + prefix) for prefix in prefixes)


def rule_elements(address: Address, rules: Iterable[Rule]) -> Iterator[Element]:
    """Yield the elements that make `address` accept `rules`; their peers are addresses."""
    yield from _flows(address, rules, "allow", "peer_ports", "from")


def _egress(bridge: str, address: Address, rules: tuple[Rule, ...] | None, *, known: bool) -> Iterator[Element]:
    if rules is None:
        if known:
            yield Element(f"egress_all{address.version}", (bridge, address))
        return
    # The bridge has this element already. A container's own one tells that what it opened before must be cut: while
    # its labels were unknown, it had no element that opens, and opened flows all the same.
    yield Element("egress_restricted", (bridge,))
    yield from _flows(address, rules, "egress_allow", "egress_peer_ports", "egress_to")
    for rule in rules:
        if any(peer.kind == "host" for peer in rule.peers):
            for suffix, port in _port_keys(rule.proto, rule.first, rule.last):
                yield packed(f"egress_host{address.version}{suffix}", address.packed + port)


def address_elements(bridge: str, address: Address, policy: Policy) -> Iterator[Element]:
    """Yield all elements for one address of a container."""
    v = address.version
    yield from rule_elements(address, policy.accepts)
    if any(_prefixes(rule, v) for rule in policy.accepts):
        yield Element("peer_families", (AF[v],))
    yield from _egress(bridge, address, policy.egress, known=policy.known)
    yield packed(f"ingress_drops{v}", address.packed)
    yield packed(f"egress_drops{v}", address.packed)
    yield from _rated(address, policy.rates)
    for rule in policy.published:
        yield Element(f"allow_published{v}", (address, NUMBER[rule.proto], rule.first))


def _rated(address: Address, rates: Iterable[Rate]) -> Iterator[Element]:
    """Yield the elements that lead a port to the chain of all the rates that apply to it."""
    v = address.version
    by_port: dict[tuple[str, int, int], list[Rate]] = {}
    for rate in rates:
        for port in _ports(rate):
            by_port.setdefault(port, []).append(rate)
        if remembers(rate.count, rate.unit, rate.burst):
            yield Element(f"rate_proven{v}", (address,))
    for (suffix, proto, number), those in by_port.items():
        yield Element(f"rate_limit{v}{suffix}", (address, proto, number), (limit_chain(address, v, those),))


def network_elements(network: Network) -> frozenset[Element]:
    """Return the elements that a network needs in addition to those of its endpoints."""
    elements = {
        Element("same_bridge", (network.bridge, network.bridge)),
        Element("protected_bridges", (network.bridge,)),
    }
    if network.internal:
        elements.add(Element("internal", (network.bridge,)))
    elif network.masquerade and network.gateway4 is not None:
        elements.add(Element("masqueraded", (network.bridge,)))
    return frozenset(elements)


def guarded_elements(network: BridgeNetwork) -> frozenset[Element]:
    """Return the elements that a Docker network needs in addition to those of its endpoints.

    If the network is routed, the mark overrules Docker's drop.
    """
    if network.internal:
        return frozenset({Element("internal", (network.bridge,))})
    modes = ((2, network.mode4), (10, network.mode6))
    return frozenset(
        Element("routed", (family, network.bridge)) for family, mode in modes if mode in ("routed", "nat-unprotected")
    )


def bridge_elements(bridges: BridgeFacts) -> frozenset[Element]:
    """Return the elements for bridges that do not belong to the driver."""
    return frozenset(
        {Element("unmanaged", (index,)) for index in bridges.unmanaged}
        | {Element("dockers", (name,)) for name in bridges.dockers}
        | {Element("protected_bridges", (name,)) for name in bridges.guarded}
        # Traffic within one bridge has no source outside it, whichever program owns the bridge.
        | {Element("same_bridge", (name, name)) for name in bridges.there}
    )


def proxy_elements(proxies: ProxyFacts) -> frozenset[Element]:
    """Return the elements for docker-proxy. If its control group is not known, any new listener is blocked at first."""
    waiting = (Element("proxy_unidentified", (family,)) for family in AF.values()) if proxies.holding else ()
    return frozenset((*(Element("docker_proxy", (number,)) for number in proxies.cgroups), *waiting))


def guest_elements(
    network: BridgeNetwork, endpoint: Endpoint, policy: Policy, closed: Collection[Published] | None = None
) -> frozenset[Element]:
    """Return the elements for an endpoint on a Docker network, and for ports docker-proxy may not serve to all.

    `closed`: the container's published ports that not all sources may reach, if the container is on other networks
    too.
    """
    addresses = (endpoint.addr4, endpoint.addr6)
    elements = {e for a in addresses if a for e in address_elements(network.bridge, a, policy)}
    closed_here = frozenset(closed_ports(policy, endpoint) if closed is None else closed)
    for port in endpoint.published:
        if port.host_ip.is_loopback:
            continue
        elements.add(proxied_element(port, "host_closed" if port in closed_here else "host_open"))
        if port.proto == "tcp":
            elements.add(proxied_element(port, "served_ports"))
        if port in closed_here:
            elements.update(_via(port, policy.accepts))
        elements.update(_rated_host(endpoint, port, policy.rates))
        if network.flat:
            elements.add(neighbour_element(network.bridge, port))
    return frozenset(elements)


def proxied_element(port: Published, name: str = "host_closed") -> Element:
    """Return the element of a host port in this set, or in the set for single addresses if the port has one."""
    at, key = _host_port(port)
    return Element(f"{name}{at}", key)


def neighbour_element(bridge: str, port: Published) -> Element:
    """Return the element that lets all containers of a network reach a port that one of them publishes, open or not."""
    at, key = _host_port(port)
    return Element(f"host_neighbours{at}", (bridge, *key))


def _host_port(port: Published) -> tuple[str, tuple[Value, ...]]:
    """Return a published port as a key, and the suffix of its set: for one family, or for one host address.

    Two containers may publish the same number on different addresses, or in different families.
    """
    version, number = port.host_ip.version, (NUMBER[port.proto], port.host_port)
    return ("", (AF[version], *number)) if port.host_ip.is_unspecified else (str(version), (port.host_ip, *number))


def _via(port: Published, rules: Iterable[Rule]) -> Iterator[Element]:
    """Yield the sources that may reach a docker-proxy port that is not open to all.

    The container never sees the client's address.
    """
    version, key = port.host_ip.version, fields.packed(_PORT, (NUMBER[port.proto], port.host_port))
    name = f"host_from{version}"
    if not port.host_ip.is_unspecified:
        name, key = f"from{version}", port.host_ip.packed + key
    for rule in rules:
        if covers(rule, port.proto, port.container_port):
            yield from (packed(name, key + prefix) for prefix in _prefixes(rule, version))


def _rated_host(endpoint: Endpoint, port: Published, rates: Iterable[Rate]) -> Iterator[Element]:
    those = [r for r in rates if r.proto == port.proto and r.first <= port.container_port <= r.last]
    address = endpoint.addr4 or endpoint.addr6
    if those and address:
        chain = limit_chain(address, port.host_ip.version, those, host=True)
        at, key = _host_port(port)
        yield Element(f"rate_limit_host{at}", key, (chain,))


def port_elements(endpoint: Endpoint, more: Collection[Address] = ()) -> Iterator[Element]:
    """Yield the elements that bind an endpoint's bridge port to its MAC and addresses.

    `more`: all addresses of its container, which answers from each of them through the one link of its default route.
    """
    if not endpoint.mac:
        return
    port = host_side(endpoint.id)
    yield Element("ports", (port,))
    own = [address for address in (endpoint.addr4, endpoint.addr6) if address]
    for address in {*own, *more, link_local(endpoint.mac)}:
        yield Element(f"bound{address.version}", (port, endpoint.mac, address))
    for address in filter(None, (endpoint.addr6, link_local(endpoint.mac))):
        yield Element("bound_targets", (port, endpoint.mac, address))


def link_local(mac: str) -> IPv6Address:
    """Return the link-local address that the kernel derives from a MAC (RFC 4291 appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    return IPv6Address(b"\xfe\x80" + bytes(6) + bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:])


def endpoint_elements(
    network: Network, endpoint: Endpoint, policy: Policy, more: Collection[Address] = ()
) -> frozenset[Element]:
    """Return the elements for what an endpoint accepts, where its published ports lead, and what its port is bound to.

    `more`: all addresses of its container.
    """
    addresses = (endpoint.addr4, endpoint.addr6) if endpoint.joined else ()
    elements = {e for a in addresses if a for e in address_elements(network.bridge, a, policy)}
    # Also before it joins and after it leaves: it has its link for a moment then.
    elements.update(port_elements(endpoint, more))
    for port in endpoint.published if endpoint.joined else ():
        # The relay serves loopback: a packet to 127.0.0.1 or ::1 cannot be forwarded to a container.
        v4 = isinstance(port.host_ip, IPv4Address)
        target = endpoint.addr4 if v4 else endpoint.addr6
        if target is None or port.host_ip.is_loopback:
            continue
        key: tuple[Value, ...] = (NUMBER[port.proto], port.host_port)
        name = "publish4" if v4 else "publish6"
        if port.host_ip.is_unspecified:
            name += "_any"
        else:
            key = (port.host_ip, *key)
        elements.add(Element(name, key, (target, port.container_port)))
        elements.add(Element("published", (NUMBER[port.proto], port.host_port)))
        elements.add(Element("hairpin4" if v4 else "hairpin6", (target, target)))
    return frozenset(elements)
