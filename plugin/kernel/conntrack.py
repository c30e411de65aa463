"""Cuts the flows of addresses and published ports: conntrack entries outlive the rule that let them in.

A closed port must be closed for those, too, who talked to the address's last owner: `established` comes before every
rule. So the flows are found in a dump and deleted one by one, which every kernel does. A filter in the kernel would
be quicker, and is not there before 6.12 for deleting, and the wrong way round for IPv6 addresses until at least 6.18
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
from types import MappingProxyType

from plugin.kernel import link_monitor
from plugin.kernel import netlink as nl
from plugin.model import Address, AddressPolicy, Prefix, Published
from plugin.policy import flows
from plugin.policy.flows import PROTO_DST_PORT, TUPLE_ORIG, TUPLE_REPLY, ClosedFlow, Flow, Way
from plugin.protocols import NUMBER

_GET, _DELETE = (1 << 8) | 1, (1 << 8) | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET and _DELETE
_ID, _ZONE = 12, 18
_AF = {4: socket.AF_INET, 6: socket.AF_INET6}
_FEW = 8  # marks: looking for each costs 0.15 µs a flow, taking a flow apart some µs
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Cut:
    """How many flows were deleted, and how many the kernel refused to delete because a flow table has them."""

    deleted: int = 0
    offloaded: int = 0

    @property
    def notes(self) -> list[str]:
        """What a user must know of it."""
        return [f"{self.offloaded} flows could not be cut: {_OFFLOADED}"] if self.offloaded else []

    def __add__(self, other: Cut) -> Cut:
        return Cut(self.deleted + other.deleted, self.offloaded + other.offloaded)


#: Linux before 6.4 (and 6.1.32, 5.15.115) answers EBUSY. Newer ones delete such an entry, and its packets meet the
#: rules again from then on (flow_offload_lookup).
_OFFLOADED = (
    "a flow table of this host's (flow offload) has them, and this kernel does not give them back: their packets pass "
    "by every rule until they end or the flow table is deleted"
)
Hold = Callable[[Collection[Way]], None]


def _hold_nothing(_: Collection[Way]) -> None:
    """Where nobody answers any more."""


def cut_addresses(addresses: Collection[Address]) -> None:
    """Forgets every flow from or to the addresses, so that their next owners inherit none. Never raises."""
    for version in (4, 6):
        packed = {address.packed for address in addresses if address.version == version}
        if packed:
            _cut(version, packed, partial(flows.touches, version=version, packed=packed))


def cut_published(ports: Collection[Published], stays: Callable[[Published, Address], bool] | None = None) -> None:
    """Forgets flows to the host's published ports, begun before the DNAT stood, or while the port was not closed.

    `stays`: who may go on using a port, besides the host itself. Never raises.
    """
    try:
        local = link_monitor.addresses()
    except OSError as error:
        log.error("could not cut flows to published ports: %s", error)
        return
    for version in (4, 6):
        wanted: dict[tuple[int, bytes], list[Published]] = {}
        for port in ports:
            if port.host_ip.version == version:
                key = (NUMBER[port.proto], port.host_port.to_bytes(2, "big"))
                wanted.setdefault(key, []).append(port)
        if wanted:
            marks = {nl.attr(PROTO_DST_PORT, port)[:6] for _, port in wanted}
            _cut(version, marks, partial(flows.aims_at, version=version, wanted=wanted, local=local, stays=stays))


def cut_strangers(prefixes: Collection[Prefix], known: Collection[Address], hold: Hold = _hold_nothing) -> None:
    """Forgets flows that addresses which are not known began from within the prefixes to elsewhere. Never raises.

    `hold` is told of them before, as in `cut_closed`.
    """
    for version in (4, 6):
        wanted = [prefix for prefix in prefixes if prefix.version == version]
        packed = {address.packed for address in known if address.version == version}
        if wanted:
            _cut(version, set(), partial(flows.is_strange, version=version, prefixes=wanted, known=packed), hold)


def cut_prefixes(prefixes: Collection[Prefix]) -> Cut:
    """Forgets every flow from and to these addresses and prefixes, whoever began it. Never raises.

    A dump for each family, whatever there is to be cut.
    """
    cut = Cut()
    for version in (4, 6):
        wanted: dict[int, set[int]] = {}
        for prefix in prefixes:
            if prefix.version == version:
                shift = prefix.max_prefixlen - prefix.prefixlen
                wanted.setdefault(shift, set()).add(int(prefix.network_address) >> shift)
        marks = {p.network_address.packed[: p.prefixlen // 8] for p in prefixes if p.version == version}
        if wanted:
            cut += _cut(version, marks, partial(flows.is_within, wanted=wanted))
    return cut


def cut_closed(guarded: Mapping[Address, AddressPolicy], hold: Hold = _hold_nothing) -> None:
    """Forgets flows that outsiders began to these addresses and that are not accepted there, and those that these
    began and may not. Never raises.

    For when the rules were gone for a while, or accept less than before. `hold` is told of the flows before they are
    cut: the next packet of who answered would bring them back as a flow of its own.
    """
    for version in (4, 6):
        packed = {address.packed: what for address, what in guarded.items() if address.version == version}
        if packed:
            chosen = partial(flows.is_closed, version=version, guarded=packed, local=local_addresses())
            _cut(version, set(packed), chosen, hold, packed)


def closed_flows(guarded: Mapping[Address, AddressPolicy]) -> list[ClosedFlow]:
    """What `cut_closed` would cut. Raises OSError."""
    found = []
    for version in (4, 6):
        packed = {address.packed: what for address, what in guarded.items() if address.version == version}
        with nl.open_socket() as sock:
            there = _flows(sock, _AF[version], set(packed)) if packed else iter(())
            local = local_addresses()
            closed = (flow for flow in there if flows.is_closed(flow, version, packed, local))
            found += [flows.closed_flow(flow, version) for flow in closed]
    return found


def local_addresses() -> set[bytes]:
    """The host's own; none where the kernel does not say: then nothing counts as the host's."""
    try:
        return link_monitor.addresses()
    except OSError:
        return set()


def _cut(
    version: int,
    marks: set[bytes],
    chosen: Callable[[Flow], bool],
    hold: Hold = _hold_nothing,
    guarded: Mapping[bytes, AddressPolicy] = MappingProxyType({}),
) -> Cut:
    """`marks`: bytes of which each flow that may be chosen holds one; a few are sooner looked for than a flow read.
    `guarded`: the containers' addresses, whose end of a flow is theirs."""
    cut = Cut()
    try:
        with nl.open_socket() as sock:
            found = [flow for flow in _flows(sock, _AF[version], marks) if chosen(flow)]
            if hold is not _hold_nothing and found:
                hold({way for flow in found for way in flows.ways(flow, version, guarded)})
            for flow in found:
                cut += _delete(sock, version, flow)
    except OSError as error:
        log.error("could not cut flows: %s", error)
    for note in cut.notes:
        log.error("%s", note)
    return cut


def _delete(sock: socket.socket, version: int, flow: Flow) -> Cut:
    wanted = nl.nested(TUPLE_ORIG, flow[TUPLE_ORIG])
    wanted += b"".join(nl.attr(kind, flow[kind]) for kind in (_ID, _ZONE) if kind in flow)
    try:
        nl.request(sock, _DELETE, nl.NLM_F_ACK, nl.nfgen(_AF[version]) + wanted)
    except FileNotFoundError:
        return Cut()  # it has ended meanwhile
    except OSError as error:  # the others are cut all the same
        if error.errno == errno.EBUSY:
            return Cut(offloaded=1)
        log.error("could not cut a flow: %s", error)
        return Cut()
    return Cut(1)


def _flows(sock: socket.socket, family: int, marks: set[bytes]) -> Iterator[Flow]:
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
        if TUPLE_ORIG in flow and TUPLE_REPLY in flow:
            yield flow
