"""Cut the flows of addresses and published ports: conntrack entries outlive the rule that allowed them.

A closed port must also be closed to clients that talked to the address's previous owner: `established` precedes every
rule. So the flows are found in a dump and deleted one by one, which every kernel supports. A filter in the kernel
would be faster, but it does not exist before 6.12 for deleting, and is inverted for IPv6 addresses until at least 6.18
(ctnetlink_filter_match_tuple).
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path

from plugin.kernel import link_monitor
from plugin.kernel import netlink as nl
from plugin.model import Address, Flow, Prefix, Published
from plugin.protocols import NUMBER

_GET, _DELETE = (1 << 8) | 1, (1 << 8) | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET and _DELETE
#: linux/netfilter/nfnetlink_conntrack.h: CTA_TUPLE_ORIG, _REPLY, CTA_ID, CTA_ZONE; CTA_TUPLE_IP, _PROTO
_ORIGINAL, _REPLY, _ID, _ZONE, _TUPLE_IP, _TUPLE_PROTO = 1, 2, 12, 18, 1, 2
_NUMBER, _SOURCE_PORT, _TARGET_PORT = 1, 2, 3  # CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT
_ICMP_TYPE = {4: 5, 6: 8}  # CTA_PROTO_ICMP_TYPE, CTA_PROTO_ICMPV6_TYPE
_IP = {4: (1, 2), 6: (3, 4)}  # CTA_IP_V4_SRC, _DST; CTA_IP_V6_SRC, _DST
#: Instead of an IP version: connections of both, in one dump. The kernel walks its whole table for each dump.
BOTH = 0
_AF = {4: socket.AF_INET, 6: socket.AF_INET6, BOTH: socket.AF_UNSPEC}
_VERSION: dict[int, int] = {socket.AF_INET: 4, socket.AF_INET6: 6}
_FEW = 8  # marks: searching for each costs 0.15 µs a flow, parsing a flow some µs
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Cut:
    """The number of flows that were deleted, and of those that the kernel kept because a flow table has them."""

    deleted: int = 0
    offloaded: int = 0

    @property
    def notes(self) -> list[str]:
        """Notes for the user."""
        return [f"{self.offloaded} flows could not be cut: {_OFFLOADED}"] if self.offloaded else []

    def __add__(self, other: Cut) -> Cut:
        return Cut(self.deleted + other.deleted, self.offloaded + other.offloaded)


#: Linux before 6.4 (and 6.1.32, 5.15.115) answers EBUSY. Newer kernels delete such an entry, and its packets pass the
#: rules again from then on (flow_offload_lookup).
_OFFLOADED = (
    "they are in a flow table of this host (flow offload), and this kernel cannot remove them from it: their packets "
    "bypass every rule until they end or the flow table is deleted"
)


def distinguishes_sctp() -> bool:
    """Return whether connection tracking knows SCTP's ports; False if that is unknown.

    The kernel has time-outs for each protocol whose flows it tracks by port, as soon as connection tracking is loaded
    (nf_conntrack_standalone.c). A process sees those of its own network namespace.
    """
    return Path("/proc/sys/net/netfilter/nf_conntrack_sctp_timeout_established").exists()


def cut_addresses(addresses: Collection[Address]) -> None:
    """Delete every flow from or to the addresses, so that their next owners inherit none. Never raises."""
    packed, versions = {address.packed for address in addresses}, {address.version for address in addresses}
    if packed:
        cut(versions.pop() if len(versions) == 1 else BOTH, partial(_touches, packed=packed), packed)


def cut_published(ports: Collection[Published], stays: Callable[[Published, Address], bool] | None = None) -> None:
    """Delete flows to published host ports that started before the DNAT rule, or while the port was not closed.

    `stays`: True for clients that may continue to use a port, in addition to the host itself. Never raises.
    """
    try:
        local = link_monitor.addresses()
    except OSError as error:
        log.error("could not cut flows to published ports: %s", error)
        return
    for version in (4, 6):
        wanted: dict[tuple[int, int], list[Published]] = {}
        for port in ports:
            if port.host_ip.version == version:
                wanted.setdefault((NUMBER[port.proto], port.host_port), []).append(port)
        if wanted:
            marks = {nl.attr(_TARGET_PORT, port.to_bytes(2, "big"))[:6] for _, port in wanted}
            cut(version, partial(_aims_at, wanted=wanted, local=local, stays=stays), marks)


def cut_prefixes(prefixes: Collection[Prefix]) -> Cut:
    """Delete every flow from and to these addresses and prefixes, in both directions. Never raises.

    One dump, whatever the number of prefixes.
    """
    return _cut_within(prefixes, frozenset())


def cut_forwarded(prefixes: Collection[Prefix]) -> Cut:
    """Delete the flows from and to these prefixes that the host only forwards. Never raises.

    For prefixes to which the host has a route from now on. An outsider may have opened such a flow before, with an
    address as source that a container gets later: it would count as opened by that container.
    """
    return _cut_within(prefixes, local_addresses())


def _cut_within(prefixes: Collection[Prefix], spared: Collection[bytes]) -> Cut:
    """Delete the flows from and to the prefixes, but not those from or to the addresses of `spared`."""
    if not prefixes:
        return Cut()
    wanted: dict[tuple[int, int], set[int]] = {}
    for prefix in prefixes:
        shift = prefix.max_prefixlen - prefix.prefixlen
        wanted.setdefault((prefix.max_prefixlen // 8, shift), set()).add(int(prefix.network_address) >> shift)
    versions = {prefix.version for prefix in prefixes}
    marks = {prefix.network_address.packed[: prefix.prefixlen // 8] for prefix in prefixes}
    chosen = partial(_is_within, wanted=wanted, spared=spared)
    return cut(versions.pop() if len(versions) == 1 else BOTH, chosen, marks)


def _touches(flow: Flow, packed: set[bytes]) -> bool:
    return not packed.isdisjoint((flow.source, flow.addressed, flow.responder, flow.answered))


def _is_within(flow: Flow, wanted: Mapping[tuple[int, int], Collection[int]], spared: Collection[bytes]) -> bool:
    """True if one end is in one of the prefixes.

    `wanted`: by the bytes of an address and the number of host bits of a prefix, the values of its network bits.
    `spared`: addresses; a flow from or to one of them does not count.
    """
    if flow.source in spared or flow.addressed in spared:
        return False
    for packed in {flow.source, flow.addressed, flow.responder, flow.answered} - {b""}:
        address = int.from_bytes(packed, "big")
        for (length, shift), prefixes in wanted.items():
            if len(packed) == length and address >> shift in prefixes:
                return True
    return False


def _aims_at(
    flow: Flow,
    wanted: Mapping[tuple[int, int], Collection[Published]],
    local: set[bytes],
    stays: Callable[[Published, Address], bool] | None,
) -> bool:
    """True if the flow leads to one of these host ports, from a client that may not continue to use it.

    Nothing opens a flow from such a port. If one was opened there all the same, it was the answer to a flow that the
    kernel had forgotten, at a moment without rules; the client's packets are established in it.
    """
    ways = (
        (flow.addressed, flow.addressed_port, flow.source),
        (flow.source, flow.source_port, flow.addressed),
    )
    for host, number, client in ways:
        there = wanted.get((flow.proto, number), ()) if host in local else ()
        ports = [port for port in there if port.host_ip.is_unspecified or port.host_ip.packed == host]
        if not ports:
            continue
        if stays is None or (client not in local and not any(stays(port, ip_address(client)) for port in ports)):
            return True
    return False


def local_addresses() -> set[bytes]:
    """Return the host's own addresses; if the kernel does not answer, none: then no address counts as the host's."""
    try:
        return link_monitor.addresses()
    except OSError:
        return set()


def cut(
    version: int,
    chosen: Callable[[Flow], bool],
    marks: Collection[bytes] = (),
    before: Callable[[Collection[Flow]], None] | None = None,
) -> Cut:
    """Delete the connections of one IP version, or of `BOTH`, that are chosen. Never raises.

    `marks`: bytes of which each connection that may be chosen contains one; a few are found faster than a connection
    is parsed. `before` gets the chosen ones before they are deleted.
    """
    done = Cut()
    try:
        with nl.kept_socket() as sock:
            found = [each for each in _flows(sock, version, marks) if chosen(each[2])]
            if before and found:
                before([flow for _, _, flow in found])
            for its_version, raw, _ in found:
                done += _delete(sock, its_version, raw)
    except OSError as error:
        log.error("could not cut flows: %s", error)
    for note in done.notes:
        log.error("%s", note)
    return done


def tracked(version: int, marks: Collection[bytes] = ()) -> list[Flow]:
    """Return the connections of one IP version. Raises OSError.

    `marks` as in `cut`; the answer may contain other connections.
    """
    with nl.kept_socket() as sock:
        return [flow for _, _, flow in _flows(sock, version, marks)]


def _delete(sock: socket.socket, version: int, raw: dict[int, bytes]) -> Cut:
    wanted = nl.nested(_ORIGINAL, raw[_ORIGINAL])
    wanted += b"".join(nl.attr(kind, raw[kind]) for kind in (_ID, _ZONE) if kind in raw)
    try:
        nl.request(sock, _DELETE, nl.NLM_F_ACK, nl.nfgen(_AF[version]) + wanted)
    except FileNotFoundError:
        return Cut()  # the flow has ended meanwhile
    except OSError as error:  # the other flows are cut all the same
        if error.errno == errno.EBUSY:
            return Cut(offloaded=1)
        log.error("could not cut a flow: %s", error)
        return Cut()
    return Cut(1)


def _flows(sock: socket.socket, version: int, marks: Collection[bytes]) -> Iterator[tuple[int, dict[int, bytes], Flow]]:
    """Yield the kernel's connections from a dump that is not stored: IP version, attributes, and parsed."""
    asked = int.from_bytes(os.urandom(3), "little") + 1
    sock.send(nl.message(_GET, nl.NLM_F_DUMP, asked, nl.nfgen(_AF[version])))
    for kind, number, body in nl.replies(sock):
        if number != asked:
            continue
        if kind == nl.NLMSG_ERROR and (code := nl.error_of(body)):
            raise OSError(code, os.strerror(code))
        if kind in (nl.NLMSG_DONE, nl.NLMSG_ERROR):
            return
        likely = not marks or len(marks) > _FEW or any(mark in body for mark in marks)
        raw = nl.attributes(body[4:]) if likely else {}
        its_version = _VERSION.get(body[0], 0)  # the first byte of the header is the family
        if its_version and _ORIGINAL in raw and _REPLY in raw:
            yield its_version, raw, _parsed(raw, its_version)


def _parsed(raw: dict[int, bytes], version: int) -> Flow:
    source, target = _IP[version]
    (way, asked), (back, reply) = (_tuple(raw[kind]) for kind in (_ORIGINAL, _REPLY))
    return Flow(
        source=way.get(source, b""),
        source_port=_number(asked.get(_SOURCE_PORT)),
        addressed=way.get(target, b""),
        addressed_port=_number(asked.get(_TARGET_PORT)),
        responder=back.get(source, b""),
        responder_port=_number(reply.get(_SOURCE_PORT)),
        answered=back.get(target, b""),
        proto=_number(reply.get(_NUMBER)),
        icmp_type=_number(asked.get(_ICMP_TYPE[version])),
    )


def _tuple(packed: bytes) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """Return one direction's addresses, and its protocol and ports."""
    parts = nl.attributes(packed)
    return nl.attributes(parts.get(_TUPLE_IP, b"")), nl.attributes(parts.get(_TUPLE_PROTO, b""))


def _number(packed: bytes | None) -> int:
    return int.from_bytes(packed or b"", "big")
