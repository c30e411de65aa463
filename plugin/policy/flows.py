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
    Prefix,
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
    """Initiator, responder, protocol and port. Behind a published port the responder is the container.

    `published`: the flow was opened to a published port, so rules that `-p` opens apply to it.
    """

    by: bytes
    to: bytes
    number: int
    port: int
    icmp_type: int = _ECHO[0]
    published: bool = False


def _ends(flow: Flow) -> _Ends:
    port = flow.responder_port if flow.proto in _PORT_NUMBERS else 0
    published = (flow.addressed, flow.addressed_port) != (flow.responder, flow.responder_port)
    return _Ends(flow.source, flow.responder, flow.proto, port, flow.icmp_type, published)


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
    """Return the ways that would be allowed now, of those in which flows were answered.

    It is unknown which flows were opened to a published port, so the others' rules apply.
    """
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
    if inbound is not None and ends.by not in local and not _accepts(inbound, ends):
        return True
    return outbound is not None and not _may_open(outbound, ends, to_host=ends.to in local)


def _accepts(responder: AddressPolicy, ends: _Ends) -> bool:
    """True if the responder, a container, accepts the flow from an initiator that is not the host."""
    source = ip_address(ends.by)
    if source in responder.subnet:
        return True
    if ends.number in _ICMP:
        return not responder.internal and ends.icmp_type in _ECHO
    policy = responder.policy
    rules = (*policy.accepts, *policy.published) if ends.published else policy.accepts
    return passes(rules, name_of(ends.number), ends.port, source)


def _may_open(initiator: AddressPolicy, ends: _Ends, *, to_host: bool) -> bool:
    """True if the initiator, a container, may open the flow."""
    target = ip_address(ends.to)
    if not to_host and target in initiator.subnet:
        return True
    if not to_host and initiator.internal:
        return False
    egress = initiator.policy.egress
    if egress is None:
        return True
    if ends.number in _ICMP:  # no egress rule covers ICMP, so an egress-restricted container may open none
        return False
    proto = name_of(ends.number)
    if passes(egress, proto, ends.port, target):
        return True
    hosts = (rule for rule in egress if any(peer.kind == "host" for peer in rule.peers))
    return to_host and any(rule.proto == proto and rule.first <= ends.port <= rule.last for rule in hosts)


def is_from_unknown(flow: Flow, prefixes: Collection[Prefix], known: set[bytes], local: set[bytes]) -> bool:
    """Return whether an unknown address within the prefixes opened the connection to the host or to another network.

    `local`: the host's addresses: those of its bridges are within the prefixes too.
    """
    if flow.source in known or flow.source in local:
        return False
    source, target = ip_address(flow.source), ip_address(flow.responder)
    return any(source in prefix and (target not in prefix or flow.responder in local) for prefix in prefixes)


def leaves_internal(flow: Flow, prefixes: Collection[Prefix], local: set[bytes]) -> bool:
    """Return whether the connection enters or leaves an internal network, which only the host may do.

    `prefixes`: the subnets of internal networks. `local`: the host's addresses: those of its bridges are within them.
    """
    if flow.source in local or flow.responder in local:
        return False
    source, target = ip_address(flow.source), ip_address(flow.responder)
    return any((source in prefix) != (target in prefix) for prefix in prefixes)
