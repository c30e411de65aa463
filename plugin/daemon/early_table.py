"""Closes every bridge before docker-fw's socket exists, unless the kernel already has a docker-fw table.

dockerd connects to a plugin's socket half a second after it has started the plugin, retries every three seconds, and
continues as soon as the socket accepts (moby plugin/manager_linux.go, pluginPostStart). At a boot it then starts
containers, and some engines start their docker-proxies at the same time. Loading the plugin itself takes as long as all
of that.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import replace

from plugin.docker.bridges import Bridges
from plugin.docker.proxy_ports import before
from plugin.fwctl.host.closed_elements import closed_elements
from plugin.kernel import link_monitor
from plugin.model import FwError, NewerStateError
from plugin.nftables import identity
from plugin.nftables.ban_elements import ban_elements
from plugin.nftables.client import NftError
from plugin.nftables.elements import bridge_elements
from plugin.nftables.sets import CLOSED, TABLE
from plugin.nftables.table import KernelTable
from plugin.settings import Settings
from plugin.state.store import Store

log = logging.getLogger(__name__)
#: Seconds that the start waits for the early table: after nine seconds without a socket dockerd gives up and disables
#: the plugin, and the next boot would leave everything open.
LONGEST = 6.0
#: Seconds that docker-fw's end waits for it. Docker kills a plugin ten seconds after it has asked it to end.
LAST = 8.0
#: Seconds for which the child tries again if the kernel refuses each table, and its exit status after that.
_RETRY, _REFUSED = 3.0, 2
#: The child that was still at work after `LONGEST`, as a pidfd.
_late: list[int] = []


def close_first(settings: Settings, *, replace: bool = False) -> None:
    """Return when the kernel has a docker-fw table: an earlier one, or a new one that opens nothing.

    `replace`: the table that is there is the boot table of this start (`daemon.start`), which closes less.

    Raises FwError if the kernel refuses every table: `docker plugin enable` must fail then, as nothing is filtered.
    Other errors and a timeout are only logged. If another program's table has docker-fw's name, the new one gets
    another.

    This runs in a child process: an owned table can be changed only by the socket that made it, and the plugin has
    another socket. After a timeout the child continues until `give_way`: on a slow machine its table is active long
    before the plugin's.
    """
    child = os.fork()
    if child:
        if _wait(child) == _REFUSED:
            raise FwError(
                "the kernel refuses docker-fw's table, so nothing would be filtered, and docker-fw does not start; it "
                "needs Linux 5.10 or newer with nf_tables (the lines above have the kernel's reason)"
            )
        return
    status = 0
    try:
        name = identity.free_name()
        if not _closed(KernelTable(settings.mark, name), settings, lasts=name != TABLE, replace=replace):
            status = _REFUSED
    except Exception:  # the plugin must start even after an error here, and closes the bridges too
        log.exception("could not load the early table")
    finally:
        os._exit(status)


def _closed(nft: KernelTable, settings: Settings, *, lasts: bool, replace: bool) -> bool:
    """Return True when a table closes, False if the kernel has refused each for `_RETRY` seconds.

    If it refuses one of the elements, a table without elements is loaded: it closes too.
    """
    end = time.monotonic() + _RETRY
    if nft.closes() and not replace:
        return True
    while True:
        try:
            close(nft, settings, lasts=lasts)
        except NftError as error:
            log.error("the kernel refuses the early table: %s", error)
        else:
            return True
        if not nft.closes():
            with contextlib.suppress(NftError):
                nft.replace(())
        taken = {table.name for table in identity.find().unmanaged}
        # Where other programs use both names, docker-fw starts, refuses all requests, and says why.
        if nft.closes() or {TABLE, CLOSED} <= taken:
            return True
        if time.monotonic() > end:
            return False
        time.sleep(_RETRY / 10)


def _wait(child: int) -> int:
    """Wait for the child for `LONGEST`; after that it continues, and gunicorn reaps it. Return its exit status."""
    try:
        process = os.pidfd_open(child)
    except OSError:  # Docker's list of system calls for a container is older than this one (5.3)
        return _wait_or_kill(child)
    if _ended(process, LONGEST):
        os.close(process)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    log.error("the early table is not active after %d s; docker-fw starts before it is", LONGEST)
    _late.append(process)
    return 0


def _wait_or_kill(child: int) -> int:
    """Wait for the child for `LONGEST`, and end it then: without a pidfd `give_way` could kill another process."""
    end = time.monotonic() + LONGEST
    while True:
        process, status = os.waitpid(child, os.WNOHANG)
        if process:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            log.error("the early table is not active after %d s; docker-fw starts without it", LONGEST)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return 0
        time.sleep(0.01)


def give_way() -> None:
    """End the child if it is still at work: it must not replace the plugin's table, which is written next."""
    for process in _late:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)
        _ended(process, LAST)


def finish() -> None:
    """Wait for the child if it is still at work, but not for long: docker-fw ends, and its end must not leave all open.

    dockerd disables a plugin whose socket is late, and starts the containers without it.
    """
    for process in _late:
        _ended(process, LAST)


def _ended(process: int, timeout: float) -> bool:
    """Return True as soon as the process has ended, False after `timeout` seconds."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def close(nft: KernelTable, settings: Settings, *, lasts: bool = False) -> None:
    """Replace the table, if there is one, by a table that opens nothing. Raises NftError, OSError.

    `lasts`: the plugin does not replace it soon. Only then are the bridges of default routes looked up, which takes as
    long as all the rest.
    """
    store, certain = Store(settings.state), True
    try:
        state = store.load()
    except NewerStateError:  # the plugin reports it when it is loaded
        lasts = True
        state, certain = store.closing_part()
    bridges = Bridges(_uplinks(settings) if lasts else set, state.unmanaged)
    bridges.see(link_monitor.links().values())
    facts = bridges.facts()
    if not certain:  # containers on any of them may have restricted egress
        state = replace(state, egress_restricted=state.egress_restricted | facts.guarded)
    listeners = before(state, settings.sysctl, None)
    lasting, timed = ban_elements(state.bans, time.time())
    nft.replace(bridge_elements(facts) | closed_elements(state, settings, listeners) | lasting, timed)


def _uplinks(settings: Settings) -> Callable[[], set[str]]:
    from plugin.kernel.links import Links  # noqa: PLC0415
    from plugin.kernel.sysctl import Sysctl  # noqa: PLC0415

    return Links(Sysctl(settings.sysctl)).default_route_links
