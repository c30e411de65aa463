"""Connections that are not accepted any more: found, reported to `Quarantine`, then cut."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial

from plugin.kernel import conntrack
from plugin.model import Address, AddressPolicy, Flow, Prefix
from plugin.policy import flows
from plugin.policy.flows import ClosedFlow, Way

#: Called with the ways in which connections were answered, before they are cut: otherwise the responder's next packet
#: would open each of them again.
Quarantine = Callable[[Collection[Way]], None]


def cut_closed(protected: Mapping[Address, AddressPolicy], quarantine: Quarantine | None = None) -> None:
    """Delete flows to these addresses that they do not accept, and flows from them that they may not open.

    For use after the rules were missing for a while, or were narrowed. Never raises.
    """
    for version, packed in _by_version(protected):
        chosen = partial(flows.is_closed, protected=packed, local=conntrack.local_addresses())
        conntrack.cut(version, chosen, packed, _reporting(quarantine, packed))


def cut_unknown(prefixes: Collection[Prefix], known: Collection[Address], quarantine: Quarantine | None = None) -> None:
    """Delete flows that unknown addresses within the prefixes opened to the host or to other networks. Never raises."""
    for version in (4, 6):
        wanted = [prefix for prefix in prefixes if prefix.version == version]
        packed = {address.packed for address in known if address.version == version}
        if wanted:
            local = conntrack.local_addresses()
            chosen = partial(flows.is_from_unknown, prefixes=wanted, known=packed, local=local)
            conntrack.cut(version, chosen, before=_reporting(quarantine, {}))


def cut_internal(prefixes: Collection[Prefix]) -> None:
    """Delete flows that enter or leave internal networks, which have these subnets. Never raises.

    No quarantine is needed: no packet of such a flow passes the rules again, in either direction.
    """
    for version in (4, 6):
        if wanted := [prefix for prefix in prefixes if prefix.version == version]:
            local = conntrack.local_addresses()
            conntrack.cut(version, partial(flows.leaves_internal, prefixes=wanted, local=local))


def closed_flows(protected: Mapping[Address, AddressPolicy]) -> list[ClosedFlow]:
    """Return the flows that `cut_closed` would cut. Raises OSError."""
    return [
        flows.closed_flow(flow)
        for version, packed in _by_version(protected)
        for local in (conntrack.local_addresses(),)
        for flow in conntrack.tracked(version, packed)
        if flows.is_closed(flow, packed, local)
    ]


def _by_version(protected: Mapping[Address, AddressPolicy]) -> Iterator[tuple[int, dict[bytes, AddressPolicy]]]:
    for version in (4, 6):
        packed = {address.packed: policy for address, policy in protected.items() if address.version == version}
        if packed:
            yield version, packed


def _reporting(
    quarantine: Quarantine | None, protected: Mapping[bytes, AddressPolicy]
) -> Callable[[Collection[Flow]], None] | None:
    """Return a function that calls `quarantine` with the ways of flows."""
    if quarantine is None:
        return None
    return lambda found: quarantine({way for flow in found for way in flows.ways(flow, protected)})
