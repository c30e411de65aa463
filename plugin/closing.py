"""Before anybody can reach our socket: where nothing of ours stands in the kernel, every bridge is closed.

dockerd dials a plugin's socket half a second after it has started it, tries again every three seconds, and goes on as
soon as somebody listens (moby plugin/manager_linux.go, pluginPostStart): at a boot with containers, and some engines at
once with the docker-proxies of before. The plugin itself takes as long to be loaded as all of that.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time

from plugin import hostlinks
from plugin.bans import ban_elements
from plugin.bridges import Bridges
from plugin.cgroup import proxies
from plugin.guard import KEPT
from plugin.inventory import CONFINED, Inventory, Noted, Owner, confined
from plugin.model import FwError
from plugin.nft import Nft, NftError
from plugin.ruleset import dockerd_elements, proxied_element
from plugin.settings import Settings
from plugin.state import State
from plugin.store import Store

log = logging.getLogger(__name__)


def close_first(settings: Settings) -> None:
    """Returns when a table of ours stands: one that did, or one that opens nothing. Errors are logged alone.

    In a process of its own: a table that is owned obeys just the socket that made it, and the plugin has another.
    """
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        _close(settings)
    except (NftError, OSError) as error:
        log.error("could not close the bridges before anybody is served: %s", error)
    finally:
        os._exit(0)


def _close(settings: Settings) -> None:
    nft = Nft(settings.mark)
    if nft.stands():
        return
    try:
        # Whoever is in it may be gone, and gave its address to another.
        state = dataclasses.replace(Store(settings.state).load(), endpoints={})
    except FwError:  # a newer version's: the plugin says so when it is loaded
        state = State()
    bridges = Bridges(set, state.foreign)
    bridges.see(hostlinks.links().values())
    noted = {"links": bridges.noted(), CONFINED: confined(state.confined), **closing(state, settings)}
    inventory = Inventory(settings.defaults, state, noted)
    elements = {element for owner in inventory.owners() for element in inventory.elements(owner)}
    lasting, timed = ban_elements(state.bans, time.time())
    nft.replace(elements | lasting, timed)


def closing(state: State, settings: Settings) -> dict[Owner, Noted]:
    """What closes the host's own ports: Docker's, and those on which docker-proxy listened when we last ran."""
    kept = (proxied_element(port) for ports in state.proxied.values() for port in ports)
    daemon = dockerd_elements(settings.dockerd_ports)
    return {KEPT: Noted(frozenset(kept)), "dockerd": Noted(frozenset(daemon)), **proxies(settings.cgroup)}
