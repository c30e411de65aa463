"""What runs in the plugin's place where it must not start: all stays closed, every request is told why.

That is where the state is a newer version's, and where another program's table has the name of ours.

A plugin that ends is started again once or twice; when dockerd itself starts it waits 15 s for such a plugin and then
disables it (seen on 28.5), so that the boot after that would find no docker-fw, and everything open.
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
from plugin.nftables.table import Nft, NftError
from plugin.settings import Settings

log = logging.getLogger(__name__)


class RefusingPlugin:
    """To be used as Plugin is."""

    def __init__(self, settings: Settings, why: str) -> None:
        self._settings = settings
        self._why = why
        self._nft = Nft(settings.mark, identity.free_name())
        self._stop = threading.Event()

    def app(self) -> Flask:
        """Build a Flask application that answers every request with the reason."""
        refuses: Any = _Refuses(self._why)
        app = create_app(refuses, refuses)
        add_routes(app, refuses, refuses)
        app.get("/drops")(refuses.drops)
        return app

    def start(self, _: Callable[[], bool]) -> None:
        """Keep the closing table in place from now on."""
        threading.Thread(target=self._keep, name="keep", daemon=True).start()

    def stop(self) -> None:
        """End that; the table remains."""
        self._stop.set()

    def _keep(self) -> None:
        told = ""
        while not self._stop.wait(TICK):
            try:
                if not self._nft.stands():
                    close(self._nft, self._settings, lasts=True)
                told = ""
            except (NftError, OSError) as error:
                if str(error) != told:  # and not five times a second
                    log.error("docker-fw's rules are gone and could not be put back: %s", error)
                told = str(error)


class _Refuses:
    """Whatever is called, `why` is raised."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __getattr__(self, _: str) -> Any:
        return self._refuse

    def _refuse(self, *_: Any, **__: Any) -> None:
        raise FwError(self._why)
