"""Elements that close by the saved state alone, while neither Docker nor the plugin can be asked.

The plugin's early table and the sidecar's boot table both consist of these elements.
"""

from __future__ import annotations

import dataclasses
import logging

from plugin.docker.proxy_ports import own_ports, published_unfound
from plugin.kernel.cgroup import proxies
from plugin.kernel.sock_diag import Listeners
from plugin.nftables.compile import compiled
from plugin.nftables.sets import Element
from plugin.policy.facts import Facts, ProxyFacts
from plugin.policy.frozen import FrozenDict
from plugin.policy.saved import SavedState
from plugin.settings import Settings

log = logging.getLogger(__name__)


def closed_elements(state: SavedState, settings: Settings, listeners: Listeners | None = None) -> set[Element]:
    """Return the elements that close egress-restricted networks and ports of the host; bridges and bans are separate.

    `listeners`: the sockets that listen on the host now; None if the table is loaded at a later boot.
    """
    # The containers of the saved state may be gone, and their addresses given to others.
    facts = saved_facts(dataclasses.replace(state, endpoints=FrozenDict()), settings, listeners)
    return compiled(settings.defaults, facts).all_elements()


def saved_facts(state: SavedState, settings: Settings, listeners: Listeners | None) -> Facts:
    """Return the facts at a start: the saved state, and the ports of the host that it closes.

    These are dockerd's own, and those that docker-proxy served when docker-fw last ran, or may serve now.
    """
    asked = [each for ports in state.asked.values() for each in ports]
    facts = Facts(
        saved=state,
        dockerd=own_ports(settings.dockerd_ports, asked),
        unfound=published_unfound(state.asked.values()),
        proxies=ProxyFacts(*proxies(settings.cgroup, settings.dockerd_cgroup)),
    )
    try:
        return dataclasses.replace(facts, listening=listeners.poll()) if listeners else facts
    except OSError as error:
        log.error("could not list the sockets that listen on the host: %s", error)
        return facts
