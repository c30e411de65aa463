"""Connections that are not accepted any more: found, reported to `Hold`, then cut."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial

from plugin.kernel import conntrack
from plugin.model import Address, AddressPolicy, Flow, Prefix
from plugin.policy import flows
from plugin.policy.flows import ClosedFlow, Way

#: Called with the ways in which connections were answered, before they are cut: otherwise the responder's next packet
#: would open each of them again.
Hold = Callable[[Collection[Way]], None]


def cut_closed(guarded: Mapping[Address, AddressPolicy], hold: Hold | None = None) -> None:
    """Delete flows to these addresses that they do not accept, and flows from them that they may not open.

    For use after the rules were missing for a while, or were narrowed. Never raises.
    """
    for version, packed in _by_version(guarded):
        chosen = partial(flows.is_closed, guarded=packed, local=conntrack.local_addresses())
        conntrack.cut(version, chosen, packed, _telling(hold, packed))


def cut_strangers(prefixes: Collection[Prefix], known: Collection[Address], hold: Hold | None = None) -> None:
    """Delete flows that unknown addresses within the prefixes opened to other networks. Never raises."""
    for version in (4, 6):
        wanted = [prefix for prefix in prefixes if prefix.version == version]
        packed = {address.packed for address in known if address.version == version}
        if wanted:
            chosen = partial(flows.is_strange, prefixes=wanted, known=packed)
            conntrack.cut(version, chosen, before=_telling(hold, {}))


def closed_flows(guarded: Mapping[Address, AddressPolicy]) -> list[ClosedFlow]:
    """Return the flows that `cut_closed` would cut. Raises OSError."""
    return [
        flows.closed_flow(flow)
        for version, packed in _by_version(guarded)
        for local in (conntrack.local_addresses(),)
        for flow in conntrack.tracked(version, packed)
        if flows.is_closed(flow, packed, local)
    ]


def _by_version(guarded: Mapping[Address, AddressPolicy]) -> Iterator[tuple[int, dict[bytes, AddressPolicy]]]:
    for version in (4, 6):
        packed = {address.packed: policy for address, policy in guarded.items() if address.version == version}
        if packed:
            yield version, packed


def _telling(hold: Hold | None, guarded: Mapping[bytes, AddressPolicy]) -> Callable[[Collection[Flow]], None] | None:
    """Return a function that calls `hold` with the ways of flows."""
    if hold is None:
        return None
    return lambda found: hold({way for flow in found for way in flows.ways(flow, guarded)})
