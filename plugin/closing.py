"""Before anybody can reach our socket: where nothing of ours stands in the kernel, every bridge is closed.

dockerd dials a plugin's socket half a second after it has started it, tries again every three seconds, and goes on as
soon as somebody listens (moby plugin/manager_linux.go, pluginPostStart): at a boot with containers, and some engines at
once with the docker-proxies of before. The plugin itself takes as long to be loaded as all of that.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import time
from collections.abc import Callable

from plugin import hostlinks
from plugin.bans import ban_elements
from plugin.bridges import Bridges
from plugin.cgroup import proxies
from plugin.guard import KEPT
from plugin.inventory import CONFINED, Inventory, Noted, Owner, confined
from plugin.model import FwError
from plugin.nft import Nft
from plugin.ruleset import dockerd_elements, proxied_element
from plugin.settings import Settings
from plugin.state import State
from plugin.store import Store

log = logging.getLogger(__name__)
#: Seconds that the start waits for it: dockerd gives up a plugin whose socket is not there after nine, and disables it,
#: so that the boot after that would find everything open.
LONGEST = 6.0


def close_first(settings: Settings) -> None:
    """Returns when a table of ours stands: one that did, or one that opens nothing. Errors are logged alone; so is
    that it takes too long.

    In a process of its own: a table that is owned obeys just the socket that made it, and the plugin has another.
    """
    child = os.fork()
    if child:
        end = time.monotonic() + LONGEST
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() > end:
                log.error("the bridges are not closed after %d s; the start goes on", LONGEST)
                os.kill(child, signal.SIGKILL)  # it must not put its table in the plugin's place; gunicorn reaps it
                break
            time.sleep(0.005)
        return
    try:
        nft = Nft(settings.mark)
        if not nft.stands():
            close(nft, settings)
    except Exception:  # whatever it is: the plugin itself must start, and closes too
        log.exception("could not close the bridges before anybody is served")
    finally:
        os._exit(0)


def close(nft: Nft, settings: Settings) -> None:
    """Puts a table there that opens nothing, whatever stood before. Raises NftError, OSError."""
    # By which bridges default routes leave is asked just where this is to last: it takes as long as all the rest.
    uplinks: Callable[[], set[str]] = set
    try:
        # Whoever is in it may be gone, and gave its address to another.
        state = dataclasses.replace(Store(settings.state).load(), endpoints={})
    except FwError:  # a newer version's: the plugin says so when it is loaded
        state = State()
        uplinks = _uplinks(settings)
    bridges = Bridges(uplinks, state.foreign)
    bridges.see(hostlinks.links().values())
    noted = {"links": bridges.noted(), CONFINED: confined(state.confined), **closing(state, settings)}
    inventory = Inventory(settings.defaults, state, noted)
    elements = {element for owner in inventory.owners() for element in inventory.elements(owner)}
    lasting, timed = ban_elements(state.bans, time.time())
    nft.replace(elements | lasting, timed)


def _uplinks(settings: Settings) -> Callable[[], set[str]]:
    from plugin.links import Links  # noqa: PLC0415
    from plugin.sysctl import Sysctl  # noqa: PLC0415

    return Links(Sysctl(settings.sysctl)).default_route_links


def closing(state: State, settings: Settings) -> dict[Owner, Noted]:
    """What closes the host's own ports: Docker's, and those on which docker-proxy listened when we last ran."""
    kept = (proxied_element(port) for ports in state.proxied.values() for port in ports)
    daemon = dockerd_elements(settings.dockerd_ports)
    return {KEPT: Noted(frozenset(kept)), "dockerd": Noted(frozenset(daemon)), **proxies(settings.cgroup)}
