"""Whether a tracked connection would be accepted now, and how a packet of its responder would open it again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NamedTuple

from plugin.model import (
    Address,
    AddressPolicy,
    Flow,
    Policy,
    Prefix,
    Rule,
)
from plugin.policy.decide import passes
from plugin.protocols import NUMBER, TRACKED_BY_PORT, WITH_PORTS, Proto, name_of

_PORT_NUMBERS = frozenset(WITH_PORTS.values())
_ICMP = (1, 58)  # IPv4's and IPv6's protocol numbers
_ECHO = (8, 128)
#: Protocols in which the responder's next packet opens no connection: TCP opens with a SYN, ICMP with a request.
_BEGIN = (NUMBER["tcp"], *_ICMP)


class Way(NamedTuple):
    """How a connection was answered: from its responder to its initiator, both by their real addresses behind any NAT.

    Ports are 0 if the protocol has none. `whose`: the container's end.
    """

    source: Address
    proto: int
    source_port: int
    peer: Address
    peer_port: int
    whose: Address


class _Ends(NamedTuple):
    """Initiator, responder, protocol and port. Behind a published port the responder is the container."""

    by: bytes
    to: bytes
    number: int
    port: int
    icmp_type: int = _ECHO[0]


def _ends(flow: Flow) -> _Ends:
    port = flow.responder_port if flow.proto in _PORT_NUMBERS else 0
    return _Ends(flow.source, flow.responder, flow.proto, port, flow.icmp_type)


def ways(flow: Flow, protected: Mapping[bytes, AddressPolicy]) -> Iterator[Way]:
    """Yield the ways in which a packet of the responder would open the connection again, if any.

    `protected`: the containers' addresses, packed; they decide which end is the container's.
    """
    ends = _ends(flow)
    source, peer = ip_address(flow.responder), ip_address(flow.source)
    whose = source if flow.responder in protected else peer
    if flow.proto not in _BEGIN:
        ports = (flow.responder_port, flow.source_port) if flow.proto in TRACKED_BY_PORT else (0, 0)
        yield Way(source, flow.proto, ports[0], peer, ports[1], whose)
    # Over IPv6 conntrack looks behind an authentication header and does not report it; rules see only that header.
    if source.version == 6 and (
        not protected or _judged_closed(ends._replace(number=NUMBER["ah"], port=0), protected, set())
    ):
        yield Way(source, NUMBER["ah"], 0, peer, 0, whose)


@dataclass(frozen=True, slots=True)
class ClosedFlow:
    """A connection that is not accepted any more: its source, and the address and port to which it was opened."""

    source: Address
    address: Address
    proto: Proto | None
    port: int


def closed_flow(flow: Flow) -> ClosedFlow:
    """Describe a connection for a report."""
    proto = name_of(flow.proto) if flow.proto in _PORT_NUMBERS else None
    return ClosedFlow(ip_address(flow.source), ip_address(flow.responder), proto, flow.responder_port)


def let_through(ways: Collection[Way], protected: Mapping[Address, AddressPolicy], local: set[bytes]) -> list[Way]:
    """Return the ways that would be allowed now, of those in which flows were answered."""
    packed = {address.packed: what for address, what in protected.items()}

    def ends(way: Way) -> _Ends:
        return _Ends(
            way.peer.packed, way.source.packed, way.proto, way.source_port if way.proto in _PORT_NUMBERS else 0
        )

    return [way for way in ways if not _judged_closed(ends(way), packed, local)]


def is_closed(flow: Flow, protected: Mapping[bytes, AddressPolicy], local: set[bytes]) -> bool:
    """Return whether the connection would not be accepted now. `local`: the host's addresses, packed as all are."""
    return _judged_closed(_ends(flow), protected, local)


def _judged_closed(ends: _Ends, protected: Mapping[bytes, AddressPolicy], local: set[bytes]) -> bool:
    """True if one of these addresses accepted or opened the flow, and it would not be allowed now."""
    inbound, outbound = protected.get(ends.to), protected.get(ends.by)
    if inbound is None and outbound is None:
        return False
    by, to, number, port, icmp_type = ends
    proto = name_of(number)
    source, target = ip_address(by), ip_address(to)
    if inbound and source not in inbound.subnet and by not in local:
        if number in _ICMP:
            if inbound.internal or icmp_type not in _ECHO:
                return True
        elif not passes(_open(inbound.policy), proto, port, source):
            return True
    if outbound is None or (target in outbound.subnet and to not in local):
        return False
    if outbound.internal and to not in local:
        return True
    if outbound.policy.egress is None:
        return False
    if number in _ICMP:  # no egress rule covers ICMP, so an egress-restricted container may open none
        return True
    if passes(outbound.policy.egress, proto, port, target):
        return False
    hosts = (rule for rule in outbound.policy.egress if any(peer.kind == "host" for peer in rule.peers))
    return not (to in local and any(rule.proto == proto and rule.first <= port <= rule.last for rule in hosts))


def is_from_unknown(flow: Flow, prefixes: Collection[Prefix], known: set[bytes]) -> bool:
    """Return whether an unknown address within the prefixes opened the connection to another network."""
    if flow.source in known:
        return False
    source, target = ip_address(flow.source), ip_address(flow.responder)
    return any(source in prefix and target not in prefix for prefix in prefixes)


def _open(policy: Policy) -> Iterator[Rule]:
    yield from policy.accepts
    yield from policy.published
