"""Runs instead of the plugin when it must not start: everything stays closed, and every request gets the reason.

It must not start if a newer version wrote the state, or if another program's table has docker-fw's name. To exit
instead would be worse: dockerd restarts a plugin once or twice, waits 15 s for it at its own start, and then disables
it (seen on 28.5). The next boot would then start without docker-fw, with everything open.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from flask import Flask

from plugin.daemon.early_table import close
from plugin.daemon.loops import TICK
from plugin.driver.http import create_app
from plugin.fwctl.api.routes import add_routes
from plugin.model import FwError
from plugin.nftables import identity
from plugin.nftables.client import NftError
from plugin.nftables.table import KernelTable
from plugin.settings import Settings

log = logging.getLogger(__name__)
#: Seconds in which a table is loaded, also on a slow machine; dockerd waits ten for a plugin to end.
_LOADED = 8.0


class RefusingPlugin:
    """Has the interface of `Plugin`."""

    def __init__(self, settings: Settings, why: str) -> None:
        self._settings = settings
        self._why = why
        self._nft = KernelTable(settings.mark, identity.free_name())
        self._stop = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keep", daemon=True)

    def app(self) -> Flask:
        """Build a Flask application that answers every request with the reason."""
        refuses: Any = _Refuses(self._why)
        app = create_app(refuses, refuses)
        add_routes(app, refuses, refuses)
        app.get("/drops")(refuses.drops)
        return app

    def start(self, _: Callable[[], bool]) -> None:
        """Keep the closing table in place from now on."""
        self._keeper.start()

    def stop(self) -> None:
        """Stop keeping the closing table; the table remains.

        A table that is being loaded is completed first: an incomplete one drops pings, too, for a minute
        (`sets.LOADING_SECONDS`).
        """
        self._stop.set()
        if self._keeper.is_alive():
            self._keeper.join(_LOADED)

    def _keep(self) -> None:
        logged = ""
        while not self._stop.wait(TICK):
            try:
                if not self._nft.closes():
                    close(self._nft, self._settings, lasts=True)
                logged = ""
            except (NftError, OSError) as error:
                if str(error) != logged:  # once, not five times a second
                    log.error("docker-fw's table was removed, and could not be restored: %s", error)
                logged = str(error)


class _Refuses:
    """Raises FwError with the reason, whichever method is called."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __getattr__(self, _: str) -> Any:
        return self._refuse

    def _refuse(self, *_: Any, **__: Any) -> None:
        raise FwError(self._why)
