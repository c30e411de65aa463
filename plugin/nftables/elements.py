"""Policies → elements of the table's sets. Pure. `sets` names the sets, `document` the rules, as text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address

from plugin.kernel.names import AF, host_side
from plugin.labels.ranges import block_key, blocks, pieces
from plugin.model import (
    Address,
    BridgeNetwork,
    Endpoint,
    Network,
    Policy,
    Prefix,
    Published,
    Rate,
    Rule,
)
from plugin.nftables.fields import Value
from plugin.nftables.rate_chains import remembers
from plugin.nftables.sets import Element, limit_chain
from plugin.policy.decide import closed_ports, covers, prefix_of
from plugin.policy.facts import BridgeFacts, ProxyFacts
from plugin.protocols import NUMBER, OTHER, WITH_PORTS


def _ports(rule: Rule | Rate) -> Iterator[tuple[str, int, int]]:
    """(suffix of the set, protocol, key of the port) of what a rule is about."""
    first, last = (rule.first, rule.last) if rule.proto in WITH_PORTS else (0, 65535)
    for size, port in blocks(first, last):
        yield ("", NUMBER[rule.proto], port) if size == 1 else ("_blocks", NUMBER[rule.proto], block_key(size, port))


def _prefixes(rule: Rule, version: int) -> list[Prefix]:
    found = (prefix_of(peer) for peer in rule.peers if peer.kind == "prefix")
    return [prefix for prefix in found if prefix.version == version]


def _flows(address: Address, rules: Iterable[Rule], free: str, gate: str, whom: str) -> Iterator[Element]:
    """What lets flows pass between `address` and everybody (`free`), or some (`gate` and `whom`)."""
    v = address.version
    for rule in rules:
        if rule.proto == OTHER:
            # It is accepted from everybody or from nobody, and no list of what may be begun has it.
            if free == "allow" and not rule.peers:
                yield Element(f"other{v}", (address,))
            continue
        prefixes = _prefixes(rule, v) if rule.peers else []
        for suffix, proto, port in _ports(rule):
            if not rule.peers:
                yield Element(f"{free}{v}{suffix}", (address, proto, port))
            if prefixes:
                yield Element(f"{gate}{v}{suffix}", (address, proto, port))
            for prefix in prefixes:
                for length, peer in pieces(prefix):
                    yield Element(f"{whom}{v}{suffix}", (address, proto, port, length, peer))


def rule_elements(address: Address, rules: Iterable[Rule]) -> Iterator[Element]:
    """What makes `address` accept `rules`; their peers are addresses."""
    yield from _flows(address, rules, "allow", "gate", "from")


def _egress(bridge: str, address: Address, rules: tuple[Rule, ...] | None, *, known: bool) -> Iterator[Element]:
    if rules is None:
        if known:
            yield Element(f"free{address.version}", (bridge, address))
        return
    yield from _flows(address, rules, "out", "outgate", "to")
    for rule in rules:
        if any(peer.kind == "host" for peer in rule.peers):
            for suffix, proto, port in _ports(rule):
                yield Element(f"tohost{address.version}{suffix}", (address, proto, port))


def address_elements(bridge: str, address: Address, policy: Policy) -> Iterator[Element]:
    """All that holds for one address of a container."""
    v = address.version
    yield from rule_elements(address, policy.accepts)
    if any(_prefixes(rule, v) for rule in policy.accepts):
        yield Element("gating", (AF[v],))
    yield from _egress(bridge, address, policy.egress, known=policy.known)
    yield Element(f"dropped{v}", (address,))
    yield Element(f"refused{v}", (address,))
    yield from _rated(address, policy.rates)
    for rule in policy.published:
        yield Element(f"dnat{v}", (address, NUMBER[rule.proto], rule.first))


def _rated(address: Address, rates: Iterable[Rate]) -> Iterator[Element]:
    """Which chain limits new flows to a port: that of all the rates that speak of it."""
    v = address.version
    by_port: dict[tuple[str, int, int], list[Rate]] = {}
    for rate in rates:
        for port in _ports(rate):
            by_port.setdefault(port, []).append(rate)
        if remembers(rate.count, rate.unit, rate.burst):
            yield Element(f"remembering{v}", (address,))
    for (suffix, proto, number), those in by_port.items():
        yield Element(f"rated{v}{suffix}", (address, proto, number), (limit_chain(address, v, those),))


def network_elements(network: Network) -> frozenset[Element]:
    """What a network needs besides its endpoints."""
    elements = {Element("same_bridge", (network.bridge, network.bridge)), Element("bridges", (network.bridge,))}
    if network.internal:
        elements.add(Element("internal", (network.bridge,)))
    elif network.masquerade and network.gateway4 is not None:
        elements.add(Element("masqueraded", (network.bridge,)))
    return frozenset(elements)


def guarded_elements(network: BridgeNetwork) -> frozenset[Element]:
    """What a network of Docker's needs besides its endpoints: the mark overrules Docker's drop where it is routed."""
    if network.internal:
        return frozenset({Element("internal", (network.bridge,))})
    modes = ((2, network.mode4), (10, network.mode6))
    return frozenset(
        Element("routed", (family, network.bridge)) for family, mode in modes if mode in ("routed", "nat-unprotected")
    )


def bridge_elements(bridges: BridgeFacts) -> frozenset[Element]:
    """What the table needs to know of bridges that are not the driver's."""
    return frozenset(
        {Element("foreign", (index,)) for index in bridges.unmanaged}
        | {Element("dockers", (name,)) for name in bridges.dockers}
        | {Element("bridges", (name,)) for name in bridges.guarded}
        # Within one bridge nobody comes from elsewhere, whosever it is.
        | {Element("same_bridge", (name, name)) for name in bridges.there}
    )


def proxy_elements(proxies: ProxyFacts) -> frozenset[Element]:
    """Where docker-proxy is not known by its control group, whatever begins to listen is held."""
    held = (Element("holding", (family,)) for family in AF.values()) if proxies.holding else ()
    return frozenset((*(Element("proxies", (number,)) for number in proxies.cgroups), *held))


def guest_elements(
    network: BridgeNetwork, endpoint: Endpoint, policy: Policy, closed: Collection[Published] | None = None
) -> frozenset[Element]:
    """What an endpoint on a network of Docker's accepts, and which published ports docker-proxy may not serve to all.

    `closed`: those of the container's published ports that not everybody may reach, where it is on other networks too.
    """
    addresses = (endpoint.addr4, endpoint.addr6)
    elements = {e for a in addresses if a for e in address_elements(network.bridge, a, policy)}
    shut = frozenset(closed_ports(policy, endpoint) if closed is None else closed)
    for port in endpoint.published:
        if port.host_ip.is_loopback:
            continue
        elements.add(proxied_element(port, "proxied" if port in shut else "served"))
        if port in shut:
            elements.update(_via(port, policy.accepts))
        elements.update(_rated_host(endpoint, port, policy.rates))
        if network.flat:
            elements.add(neighbour_element(network.bridge, port))
    return frozenset(elements)


def proxied_element(port: Published, name: str = "proxied") -> Element:
    """What closes (or, as "served", leaves open) a port of the host on which docker-proxy listens."""
    at, key = _host_port(port)
    return Element(f"{name}{at}", key)


def neighbour_element(bridge: str, port: Published) -> Element:
    """What lets all containers of a network reach a port that one of them publishes, whether it is closed or not."""
    at, key = _host_port(port)
    return Element(f"neighbour{at}", (bridge, *key))


def _host_port(port: Published) -> tuple[str, tuple[Value, ...]]:
    """A published port as a key, and the suffix of the sets of such keys: of one family, or of one host address.

    Two containers may publish the same number on different addresses, or in different families.
    """
    version, number = port.host_ip.version, (NUMBER[port.proto], port.host_port)
    return ("", (AF[version], *number)) if port.host_ip.is_unspecified else (str(version), (port.host_ip, *number))


def _via(port: Published, rules: Iterable[Rule]) -> Iterator[Element]:
    """Who may reach a port of docker-proxy's that not everybody may: the container never sees the client's address."""
    version, key = port.host_ip.version, (NUMBER[port.proto], port.host_port)
    for rule in rules:
        if covers(rule, port.proto, port.container_port):
            for prefix in _prefixes(rule, version):
                for piece in pieces(prefix):
                    if port.host_ip.is_unspecified:
                        yield Element(f"via{version}", (*key, *piece))
                    else:
                        yield Element(f"from{version}", (port.host_ip, *key, *piece))


def _rated_host(endpoint: Endpoint, port: Published, rates: Iterable[Rate]) -> Iterator[Element]:
    those = [r for r in rates if r.proto == port.proto and r.first <= port.container_port <= r.last]
    address = endpoint.addr4 or endpoint.addr6
    if those and address:
        chain = limit_chain(address, port.host_ip.version, those, host=True)
        yield proxied_element(port, "rated_host")._replace(data=(chain,))


def port_elements(endpoint: Endpoint, more: Collection[Address] = ()) -> Iterator[Element]:
    """What binds an endpoint's port of the bridge to its MAC and addresses.

    `more`: all those of its container, which answers from each by the one link that its default route leaves by.
    """
    if not endpoint.mac:
        return
    port = host_side(endpoint.id)
    yield Element("ports", (port,))
    own = [address for address in (endpoint.addr4, endpoint.addr6) if address]
    for address in {*own, *more, link_local(endpoint.mac)}:
        yield Element(f"bound{address.version}", (port, endpoint.mac, address))
    for address in filter(None, (endpoint.addr6, link_local(endpoint.mac))):
        yield Element("targets", (port, endpoint.mac, address))


def link_local(mac: str) -> IPv6Address:
    """The link-local address that the kernel makes of a MAC (RFC 4291 appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    return IPv6Address(b"\xfe\x80" + bytes(6) + bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:])


def endpoint_elements(
    network: Network, endpoint: Endpoint, policy: Policy, more: Collection[Address] = ()
) -> frozenset[Element]:
    """What an endpoint's addresses accept, where its published ports lead, and what its port is bound to.

    `more`: all addresses of its container.
    """
    addresses = (endpoint.addr4, endpoint.addr6) if endpoint.joined else ()
    elements = {e for a in addresses if a for e in address_elements(network.bridge, a, policy)}
    # Whether it has joined or not: it has its link for a moment before and after.
    elements.update(port_elements(endpoint, more))
    for port in endpoint.published if endpoint.joined else ():
        # Loopback is served by the relay: a packet to 127.0.0.1 or ::1 cannot be sent on to a container.
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
        elements.add(Element("self4" if v4 else "self6", (target, target)))
    return frozenset(elements)
