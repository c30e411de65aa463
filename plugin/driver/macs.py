"""An endpoint's MAC: the user's, if it is free on the network, or one derived from its addresses.

If two ports of a bridge had the same MAC, frames for one container would reach the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from plugin.kernel.links import bridge_mac, mac_of
from plugin.model import Endpoint, FwError


def settled(endpoint: Endpoint, having: Callable[[str], Iterable[Endpoint]]) -> str:
    """Return the endpoint's MAC. Raises FwError if the user's is not allowed.

    `having`: the endpoints on its network that have a MAC.
    """

    def owner(mac: str) -> str:
        """Return the other link that has the MAC; "" if it is free."""
        if mac == bridge_mac(endpoint.network_id):
            return "the network's bridge"
        return next((_called(other) for other in having(mac) if other.id != endpoint.id), "")

    if not endpoint.mac:
        return _made(endpoint, owner)
    if why := _wrong(endpoint.mac) or ((other := owner(endpoint.mac)) and f"belongs to {other}"):
        raise FwError(
            f"MAC address {endpoint.mac} {why}, and frames for one container would reach another; choose another "
            "--mac-address (mac_address in a compose file), or leave it out"
        )
    return endpoint.mac


def _made(endpoint: Endpoint, owner: Callable[[str], str]) -> str:
    """Return a MAC derived from the addresses; if another endpoint has that one, from the endpoint's ID."""
    mac, number = mac_of(endpoint.addr4, endpoint.addr6), 0
    while owner(mac):
        digest = hashlib.sha256(f"{endpoint.id} {number}".encode()).digest()
        mac, number = ":".join(f"{byte:02x}" for byte in b"\x02\x42" + digest[:4]), number + 1
    return mac


def _wrong(mac: str) -> str:
    """Return why no endpoint may have the MAC, or "".

    IEEE 802 section 8.2: the lowest bit of the first octet marks a group.
    """
    if not int(mac.replace(":", ""), 16):
        return "is all zeros"
    return "is a multicast address" if int(mac[:2], 16) & 1 else ""


def _called(endpoint: Endpoint) -> str:
    return f"container {endpoint.container.name}" if endpoint.container else f"endpoint {endpoint.id[:12]}"
