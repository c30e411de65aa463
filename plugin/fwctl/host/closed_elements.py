"""What stays closed by the saved state alone, while neither Docker nor the plugin can be asked.

The plugin's early table and the sidecar's boot table both consist of these elements.
"""

from __future__ import annotations

import dataclasses
import logging

from plugin.docker.proxy_ports import own_ports
from plugin.docker.tracker import KEPT
from plugin.kernel.cgroup import proxies
from plugin.kernel.sock_diag import Listeners
from plugin.nftables.elements import proxied_element
from plugin.nftables.sets import Element
from plugin.policy.facts import CONFINED, Inventory, Noted, Owner, egress_restricted
from plugin.policy.saved import State
from plugin.settings import Settings

log = logging.getLogger(__name__)


def closed_elements(state: State, settings: Settings, listeners: Listeners | None = None) -> set[Element]:
    """Return the elements that close egress-restricted networks and ports of the host; bridges and bans are separate.

    `listeners`: the sockets that listen on the host now; None if the table is loaded at a later boot.
    """
    noted = {CONFINED: egress_restricted(state.egress_restricted), **closed_host_ports(state, settings, listeners)}
    # The containers of the saved state may be gone, and their addresses given to others.
    inventory = Inventory(settings.defaults, dataclasses.replace(state, endpoints={}), noted)
    return {element for owner in inventory.owners() for element in inventory.elements(owner)}


def closed_host_ports(state: State, settings: Settings, listeners: Listeners | None) -> dict[Owner, Noted]:
    """Return what closes ports of the host: dockerd's own, and those that docker-proxy serves, or may serve now."""
    kept = (proxied_element(port) for ports in state.proxied.values() for port in ports)
    daemon = own_ports(settings.dockerd_ports, [each for ports in state.asked.values() for each in ports])
    known = {
        KEPT: Noted(frozenset(kept)),
        "dockerd": Noted(daemon),
        **proxies(settings.cgroup, settings.dockerd_cgroup),
    }
    try:
        if listeners:
            known["listening"] = Noted(listeners.poll())
    except OSError as error:
        log.error("could not list the sockets that listen on the host: %s", error)
    return known
