"""Cuts the flows of addresses and published ports: conntrack entries outlive the rule that let them in.

A closed port must be closed for those, too, who talked to the address's last owner: `established` comes before every
rule. So the flows are found in a dump and deleted one by one, which every kernel does. A filter in the kernel would
be quicker, and is not there before 6.12 for deleting, and the wrong way round for IPv6 addresses until at least 6.18
(ctnetlink_filter_match_tuple).
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import NamedTuple

from plugin import hostlinks
from plugin import netlink as nl
from plugin.model import (
    OTHER,
    PORTLESS,
    PROTO_NAME,
    PROTO_NUMBER,
    Address,
    Answers,
    Policy,
    Prefix,
    Proto,
    Published,
    Rule,
)
from plugin.policy import passes

_GET, _DELETE = (1 << 8) | 1, (1 << 8) | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET and _DELETE
_TUPLE_ORIG, _TUPLE_REPLY, _ID, _ZONE = 1, 2, 12, 18
_TUPLE_IP, _TUPLE_PROTO, _PROTO_NUM, _PROTO_SRC_PORT, _PROTO_DST_PORT = 1, 2, 1, 2, 3
_IP = {4: (1, 2), 6: (3, 4)}  # CTA_IP_V4_SRC, _DST; CTA_IP_V6_SRC, _DST
_AF = {4: socket.AF_INET, 6: socket.AF_INET6}
_PORTLESS = {number: name for name, number in PORTLESS.items()}
_ICMP = (1, 58)  # IPv4's and IPv6's protocol numbers
_FEW = 8  # marks: looking for each costs 0.15 µs a flow, taking a flow apart some µs
log = logging.getLogger(__name__)
_Flow = dict[int, bytes]


def cut_addresses(addresses: Collection[Address]) -> None:
    """Forgets every flow from or to the addresses, so that their next owners inherit none. Never raises."""
    for version in (4, 6):
        packed = {address.packed for address in addresses if address.version == version}
        if packed:
            _cut(version, packed, partial(_touches, version=version, packed=packed))


def cut_published(ports: Collection[Published], stays: Callable[[Published, Address], bool] | None = None) -> None:
    """Forgets flows to the host's published ports, begun before the DNAT stood, or while the port was not closed.

    `stays`: who may go on using a port, besides the host itself. Never raises.
    """
    try:
        local = hostlinks.addresses()
    except OSError as error:
        log.error("could not cut flows to published ports: %s", error)
        return
    for version in (4, 6):
        wanted: dict[tuple[int, bytes], dict[bytes, Published]] = {}
        for port in ports:
            if port.host_ip.version == version:
                key = PROTO_NUMBER[port.proto], port.host_port.to_bytes(2, "big")
                wanted.setdefault(key, {})[port.host_ip.packed] = port
        if wanted:
            marks = {nl.attr(_PROTO_DST_PORT, number)[:6] for _, number in wanted}
            _cut(version, marks, partial(_aims_at, version=version, wanted=wanted, local=local, stays=stays))


def cut_strangers(prefixes: Collection[Prefix], known: Collection[Address]) -> None:
    """Forgets flows that addresses which are not known began from within the prefixes to elsewhere. Never raises."""
    for version in (4, 6):
        wanted = [prefix for prefix in prefixes if prefix.version == version]
        packed = {address.packed for address in known if address.version == version}
        if wanted:
            _cut(version, set(), partial(_is_strange, version=version, prefixes=wanted, known=packed))


class Way(NamedTuple):
    """How a container's datagrams of a flow go: from its address and port to the peer's."""

    source: Address
    source_port: int
    peer: Address
    peer_port: int


def cut_closed(guarded: Mapping[Address, Answers], hold: Callable[[list[Way]], None] = lambda _: None) -> None:
    """Forgets flows that outsiders began to these addresses and that are not accepted there. Never raises.

    For when the rules were gone for a while, or accept less than before. ICMP that comes is left alone. `hold` is told
    of UDP flows before they are cut: the container's next datagram would bring them back as its own.
    """
    for version in (4, 6):
        packed = {address.packed: what for address, what in guarded.items() if address.version == version}
        if packed:
            _cut(version, set(packed), partial(_is_closed, version=version, guarded=packed, local=_local()), hold)


@dataclass(frozen=True, slots=True)
class ClosedFlow:
    """A flow that `cut_closed` would cut: who began it, and to which address and port."""

    source: Address
    address: Address
    proto: Proto | None
    port: int


def closed_flows(guarded: Mapping[Address, Answers]) -> list[ClosedFlow]:
    """What `cut_closed` would cut. Raises OSError."""
    found = []
    for version in (4, 6):
        packed = {address.packed: what for address, what in guarded.items() if address.version == version}
        with nl.open_socket() as sock:
            flows = _flows(sock, _AF[version], set(packed)) if packed else iter(())
            found += [_closed_flow(flow, version) for flow in flows if _is_closed(flow, version, packed, _local())]
    return found


def _local() -> set[bytes]:
    try:
        return hostlinks.addresses()
    except OSError:
        return set()


def _closed_flow(flow: _Flow, version: int) -> ClosedFlow:
    source, _ = _IP[version]
    asked = nl.attributes(nl.attributes(flow[_TUPLE_ORIG])[_TUPLE_IP])
    answer = nl.attributes(flow[_TUPLE_REPLY])
    told = nl.attributes(answer.get(_TUPLE_PROTO, b""))
    return ClosedFlow(
        ip_address(asked[source]), ip_address(nl.attributes(answer[_TUPLE_IP])[source]),
        PROTO_NAME.get(int.from_bytes(told.get(_PROTO_NUM, b""), "big")),
        int.from_bytes(told.get(_PROTO_SRC_PORT, b""), "big"),
    )  # fmt: skip


def _way(flow: _Flow, version: int) -> Way | None:
    """The answers' way, if it is UDP's."""
    answer = nl.attributes(flow[_TUPLE_REPLY])
    told = nl.attributes(answer.get(_TUPLE_PROTO, b""))
    if int.from_bytes(told.get(_PROTO_NUM, b""), "big") != PROTO_NUMBER["udp"]:
        return None
    ends = nl.attributes(answer[_TUPLE_IP])
    source, peer = (ip_address(ends[part]) for part in _IP[version])
    ports = (int.from_bytes(told[part], "big") for part in (_PROTO_SRC_PORT, _PROTO_DST_PORT))
    return Way(source, next(ports), peer, next(ports))


def _cut(
    version: int, marks: set[bytes], chosen: Callable[[_Flow], bool],
    hold: Callable[[list[Way]], None] = lambda _: None,
) -> None:  # fmt: skip
    """`marks`: bytes of which each flow that may be chosen holds one; a few are sooner looked for than a flow read."""
    try:
        with nl.open_socket() as sock:
            flows = [flow for flow in _flows(sock, _AF[version], marks) if chosen(flow)]
            if ways := [way for flow in flows if (way := _way(flow, version))]:
                hold(ways)
            for flow in flows:
                wanted = nl.nested(_TUPLE_ORIG, flow[_TUPLE_ORIG])
                wanted += b"".join(nl.attr(kind, flow[kind]) for kind in (_ID, _ZONE) if kind in flow)
                try:
                    nl.request(sock, _DELETE, nl.NLM_F_ACK, nl.nfgen(_AF[version]) + wanted)
                except FileNotFoundError:
                    continue  # it has ended meanwhile
                except OSError as error:  # the others are cut all the same
                    log.error("could not cut a flow: %s", error)
    except OSError as error:
        log.error("could not cut flows of an address that changes hands: %s", error)


def _flows(sock: socket.socket, family: int, marks: set[bytes]) -> Iterator[_Flow]:
    """The kernel's flows of one family, out of a dump that is not kept."""
    asked = int.from_bytes(os.urandom(3), "little") + 1
    sock.send(nl.message(_GET, nl.NLM_F_DUMP, asked, nl.nfgen(family)))
    for kind, number, body in nl.replies(sock):
        if number != asked:
            continue
        if kind == nl.NLMSG_ERROR and (code := nl.error_of(body)):
            raise OSError(code, os.strerror(code))
        if kind in (nl.NLMSG_DONE, nl.NLMSG_ERROR):
            return
        likely = not marks or len(marks) > _FEW or any(mark in body for mark in marks)
        flow = nl.attributes(body[4:]) if likely else {}
        if _TUPLE_ORIG in flow and _TUPLE_REPLY in flow:
            yield flow


def _touches(flow: _Flow, version: int, packed: set[bytes]) -> bool:
    for where in (_TUPLE_ORIG, _TUPLE_REPLY):
        ends = nl.attributes(nl.attributes(flow[where]).get(_TUPLE_IP, b""))
        if any(ends.get(part) in packed for part in _IP[version]):
            return True
    return False


def _aims_at(
    flow: _Flow, version: int, wanted: Mapping[tuple[int, bytes], Mapping[bytes, Published]], local: set[bytes],
    stays: Callable[[Published, Address], bool] | None,
) -> bool:  # fmt: skip
    """`wanted`: by protocol and port, and by address: on each of the host's one number may be another container's."""
    asked = nl.attributes(flow[_TUPLE_ORIG])
    ends = nl.attributes(asked.get(_TUPLE_IP, b""))
    target = ends.get(_IP[version][1], b"")
    if target not in local:
        return False
    proto = nl.attributes(asked.get(_TUPLE_PROTO, b""))
    found = wanted.get((int.from_bytes(proto.get(_PROTO_NUM, b""), "big"), proto.get(_PROTO_DST_PORT, b"")), {})
    port = found.get(target) or found.get(bytes(len(target)))
    if port is None or stays is None:
        return port is not None
    source = ends[_IP[version][0]]
    return source not in local and not stays(port, ip_address(source))


def _is_closed(flow: _Flow, version: int, guarded: Mapping[bytes, Answers], local: set[bytes]) -> bool:
    """True if the flow came to one of these addresses, or was begun by one, and would not be let through now."""
    # Who answers is the container also where a published port led there.
    answer = nl.attributes(flow[_TUPLE_REPLY])
    told = nl.attributes(answer.get(_TUPLE_PROTO, b""))
    number = int.from_bytes(told.get(_PROTO_NUM, b""), "big")
    by, to = (nl.attributes(nl.attributes(flow[way]).get(_TUPLE_IP, b"")).get(_IP[version][0], b"")
              for way in (_TUPLE_ORIG, _TUPLE_REPLY))  # fmt: skip
    proto: str = PROTO_NAME.get(number) or _PORTLESS.get(number, OTHER)
    port = int.from_bytes(told.get(_PROTO_SRC_PORT, b""), "big") if number in PROTO_NAME else 0
    source, target = ip_address(by), ip_address(to)
    comes = guarded.get(to)
    outsider = comes and number not in _ICMP and source not in comes.subnet and by not in local
    if comes and outsider and not passes(_open(comes.policy), proto, port, source):
        return True
    goes = guarded.get(by)
    if goes is None or goes.policy.egress is None or (target in goes.subnet and to not in local):
        return False
    if number in _ICMP:  # no rule speaks of it, so who is confined begins none
        return True
    if passes(goes.policy.egress, proto, port, target):
        return False
    hosts = (rule for rule in goes.policy.egress if any(peer.kind == "host" for peer in rule.peers))
    return not (to in local and any(rule.proto == proto and rule.first <= port <= rule.last for rule in hosts))


def _is_strange(flow: _Flow, version: int, prefixes: Collection[Prefix], known: set[bytes]) -> bool:
    by, to = (nl.attributes(nl.attributes(flow[way]).get(_TUPLE_IP, b"")).get(_IP[version][0], b"")
              for way in (_TUPLE_ORIG, _TUPLE_REPLY))  # fmt: skip
    if by in known:
        return False
    source, target = ip_address(by), ip_address(to)
    return any(source in prefix and target not in prefix for prefix in prefixes)


def _open(policy: Policy) -> Iterator[Rule]:
    yield from policy.accepts
    yield from policy.published
