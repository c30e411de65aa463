"""A flow as conntrack tells of it: who began it and who answers, and whether it would be let through now.

It stays the attributes of ctnetlink's message: of hundreds of thousands few are looked at closely.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NamedTuple

from plugin.kernel import netlink as nl
from plugin.model import (
    Address,
    AddressPolicy,
    Policy,
    Prefix,
    Published,
    Rule,
)
from plugin.policy.decide import passes
from plugin.protocols import NUMBER, TRACKED_BY_PORT, WITH_PORTS, Proto, name_of

TUPLE_ORIG, TUPLE_REPLY = 1, 2
_TUPLE_IP, _TUPLE_PROTO, _PROTO_NUM, _PROTO_SRC_PORT, PROTO_DST_PORT = 1, 2, 1, 2, 3
_ICMP_TYPE = {4: 5, 6: 8}  # CTA_PROTO_ICMP_TYPE, CTA_PROTO_ICMPV6_TYPE
IP = {4: (1, 2), 6: (3, 4)}  # CTA_IP_V4_SRC, _DST; CTA_IP_V6_SRC, _DST
_PORT_NUMBERS = frozenset(WITH_PORTS.values())
_ICMP = (1, 58)  # IPv4's and IPv6's protocol numbers
_ECHO = (8, 128)
#: What the next packet of who answered does not bring back: TCP begins with a SYN, ICMP with a request.
_BEGIN = (NUMBER["tcp"], *_ICMP)
Flow = dict[int, bytes]


class Way(NamedTuple):
    """How a flow was answered: from its target to who began it, both as they really are, behind any NAT. Ports are 0
    where the protocol has none. `whose`: the container's end."""

    source: Address
    proto: int
    source_port: int
    peer: Address
    peer_port: int
    whose: Address


class _Ends(NamedTuple):
    """Who began a flow and who answers, the container also where a published port led there; what it is about."""

    by: bytes
    to: bytes
    number: int
    port: int
    icmp_type: int = _ECHO[0]


def _ends(flow: Flow, version: int) -> _Ends:
    by, to = (
        nl.attributes(nl.attributes(flow[way]).get(_TUPLE_IP, b"")).get(IP[version][0], b"")
        for way in (TUPLE_ORIG, TUPLE_REPLY)
    )
    asked, told = _protos(flow)
    number = int.from_bytes(told.get(_PROTO_NUM, b""), "big")
    port = int.from_bytes(told.get(_PROTO_SRC_PORT, b""), "big") if number in _PORT_NUMBERS else 0
    return _Ends(by, to, number, port, int.from_bytes(asked.get(_ICMP_TYPE[version], b""), "big"))


def _protos(flow: Flow) -> tuple[Flow, Flow]:
    asked, told = (nl.attributes(flow[way]).get(_TUPLE_PROTO, b"") for way in (TUPLE_ORIG, TUPLE_REPLY))
    return nl.attributes(asked), nl.attributes(told)


def ways(flow: Flow, version: int, guarded: Mapping[bytes, AddressPolicy]) -> Iterator[Way]:
    """How the flow was answered, as a packet of it would begin one; nothing where it would not."""
    asked, told = _protos(flow)
    by, to, number, *_ = ends = _ends(flow, version)
    source, peer = ip_address(to), ip_address(by)
    whose = source if to in guarded else peer
    if number not in _BEGIN:
        ports = [int.from_bytes(each.get(_PROTO_SRC_PORT, b""), "big") for each in (told, asked)]
        source_port, peer_port = ports if number in TRACKED_BY_PORT else (0, 0)
        yield Way(source, number, source_port, peer, peer_port, whose)
    # Over IPv6 conntrack looks behind an authentication header and says nothing of it; rules see just that.
    if version == 6 and (not guarded or _judged_closed(ends._replace(number=NUMBER["ah"], port=0), guarded, set())):
        yield Way(source, NUMBER["ah"], 0, peer, 0, whose)


@dataclass(frozen=True, slots=True)
class ClosedFlow:
    """A flow that `conntrack.cut_closed` would cut: who began it, and to which address and port."""

    source: Address
    address: Address
    proto: Proto | None
    port: int


def closed_flow(flow: Flow, version: int) -> ClosedFlow:
    source, _ = IP[version]
    asked = nl.attributes(nl.attributes(flow[TUPLE_ORIG])[_TUPLE_IP])
    answer = nl.attributes(flow[TUPLE_REPLY])
    told = nl.attributes(answer.get(_TUPLE_PROTO, b""))
    number = int.from_bytes(told.get(_PROTO_NUM, b""), "big")
    return ClosedFlow(
        ip_address(asked[source]),
        ip_address(nl.attributes(answer[_TUPLE_IP])[source]),
        name_of(number) if number in _PORT_NUMBERS else None,
        int.from_bytes(told.get(_PROTO_SRC_PORT, b""), "big"),
    )


def let_through(ways: Collection[Way], guarded: Mapping[Address, AddressPolicy], local: set[bytes]) -> list[Way]:
    """Those of the ways in which flows were answered that would be let through now."""
    packed = {address.packed: what for address, what in guarded.items()}

    def ends(way: Way) -> _Ends:
        return _Ends(
            way.peer.packed, way.source.packed, way.proto, way.source_port if way.proto in _PORT_NUMBERS else 0
        )

    return [way for way in ways if not _judged_closed(ends(way), packed, local)]


def touches(flow: Flow, version: int, packed: set[bytes]) -> bool:
    for where in (TUPLE_ORIG, TUPLE_REPLY):
        ends = nl.attributes(nl.attributes(flow[where]).get(_TUPLE_IP, b""))
        if any(ends.get(part) in packed for part in IP[version]):
            return True
    return False


def is_within(flow: Flow, wanted: Mapping[int, Collection[int]]) -> bool:
    """True if one end is in one of the prefixes. `wanted`: by the number of bits behind a prefix, those in front."""
    for where in (TUPLE_ORIG, TUPLE_REPLY):
        for packed in nl.attributes(nl.attributes(flow[where]).get(_TUPLE_IP, b"")).values():
            address = int.from_bytes(packed, "big")
            if any(address >> shift in prefixes for shift, prefixes in wanted.items()):
                return True
    return False


def aims_at(
    flow: Flow,
    version: int,
    wanted: Mapping[tuple[int, bytes], Collection[Published]],
    local: set[bytes],
    stays: Callable[[Published, Address], bool] | None,
) -> bool:
    asked = nl.attributes(flow[TUPLE_ORIG])
    ends = nl.attributes(asked.get(_TUPLE_IP, b""))
    target = ends.get(IP[version][1], b"")
    if target not in local:
        return False
    proto = nl.attributes(asked.get(_TUPLE_PROTO, b""))
    key = (int.from_bytes(proto.get(_PROTO_NUM, b""), "big"), proto.get(PROTO_DST_PORT, b""))
    ports = [p for p in wanted.get(key, ()) if p.host_ip.is_unspecified or p.host_ip.packed == target]
    if not ports or stays is None:
        return bool(ports)
    source = ends[IP[version][0]]
    return source not in local and not any(stays(port, ip_address(source)) for port in ports)


def is_closed(flow: Flow, version: int, guarded: Mapping[bytes, AddressPolicy], local: set[bytes]) -> bool:
    return _judged_closed(_ends(flow, version), guarded, local)


def _judged_closed(ends: _Ends, guarded: Mapping[bytes, AddressPolicy], local: set[bytes]) -> bool:
    """True if the flow came to one of these addresses, or was begun by one, and would not be let through now."""
    comes, goes = guarded.get(ends.to), guarded.get(ends.by)
    if comes is None and goes is None:
        return False
    by, to, number, port, icmp_type = ends
    proto = name_of(number)
    source, target = ip_address(by), ip_address(to)
    if comes and source not in comes.subnet and by not in local:
        if number in _ICMP:
            if comes.internal or icmp_type not in _ECHO:
                return True
        elif not passes(_open(comes.policy), proto, port, source):
            return True
    if goes is None or (target in goes.subnet and to not in local):
        return False
    if goes.internal and to not in local:
        return True
    if goes.policy.egress is None:
        return False
    if number in _ICMP:  # no rule speaks of it, so who is confined begins none
        return True
    if passes(goes.policy.egress, proto, port, target):
        return False
    hosts = (rule for rule in goes.policy.egress if any(peer.kind == "host" for peer in rule.peers))
    return not (to in local and any(rule.proto == proto and rule.first <= port <= rule.last for rule in hosts))


def is_strange(flow: Flow, version: int, prefixes: Collection[Prefix], known: set[bytes]) -> bool:
    by, to = (
        nl.attributes(nl.attributes(flow[way]).get(_TUPLE_IP, b"")).get(IP[version][0], b"")
        for way in (TUPLE_ORIG, TUPLE_REPLY)
    )
    if by in known:
        return False
    source, target = ip_address(by), ip_address(to)
    return any(source in prefix and target not in prefix for prefix in prefixes)


def _open(policy: Policy) -> Iterator[Rule]:
    yield from policy.accepts
    yield from policy.published
