"""Before anybody can reach our socket: where nothing of ours stands in the kernel, every bridge is closed.

dockerd dials a plugin's socket half a second after it has started it, tries again every three seconds, and goes on as
soon as somebody listens (moby plugin/manager_linux.go, pluginPostStart): at a boot with containers, and some engines at
once with the docker-proxies of before. The plugin itself takes as long to be loaded as all of that.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable

from plugin.docker.bridges import Bridges
from plugin.docker.proxy_ports import before
from plugin.fwctl.host.closed_elements import closed_elements
from plugin.kernel import link_monitor
from plugin.model import FwError
from plugin.nftables import identity
from plugin.nftables.ban_elements import ban_elements
from plugin.nftables.elements import bridge_elements
from plugin.nftables.sets import TABLE
from plugin.nftables.table import Nft
from plugin.policy.saved import SavedState
from plugin.settings import Settings
from plugin.state.store import Store

log = logging.getLogger(__name__)
#: Seconds that the start waits for it: dockerd gives up a plugin whose socket is not there after nine, and disables it,
#: so that the boot after that would find everything open.
LONGEST = 6.0


def close_first(settings: Settings) -> None:
    """Returns when a table of ours stands: one that did, or one that opens nothing. Errors are logged alone; so is
    that it takes too long. Where another program's table has our name, ours gets another one.

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
        name = identity.free_name()
        nft = Nft(settings.mark, name)
        if not nft.stands():
            close(nft, settings, lasts=name != TABLE)
    except Exception:  # whatever it is: the plugin itself must start, and closes too
        log.exception("could not close the bridges before anybody is served")
    finally:
        os._exit(0)


def close(nft: Nft, settings: Settings, *, lasts: bool = False) -> None:
    """Puts a table there that opens nothing, whatever stood before. Raises NftError, OSError.

    `lasts`: no docker-fw replaces it in a moment. By which bridges default routes leave is asked just then: it takes as
    long as all the rest.
    """
    try:
        state = Store(settings.state).load()
    except FwError:  # a newer version's: the plugin says so when it is loaded
        state, lasts = SavedState(), True
    bridges = Bridges(_uplinks(settings) if lasts else set, state.unmanaged)
    bridges.see(link_monitor.links().values())
    listeners = before(state, settings.sysctl, None)
    lasting, timed = ban_elements(state.bans, time.time())
    bridge = bridge_elements(bridges.facts())
    nft.replace(bridge | closed_elements(state, settings, listeners) | lasting, timed)


def _uplinks(settings: Settings) -> Callable[[], set[str]]:
    from plugin.kernel.links import Links  # noqa: PLC0415
    from plugin.kernel.sysctl import Sysctl  # noqa: PLC0415

    return Links(Sysctl(settings.sysctl)).default_route_links
