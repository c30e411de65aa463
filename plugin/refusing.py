"""What serves in the plugin's place where the state is a newer version's: every request is answered with why.

A plugin that ends is started again once or twice; when dockerd itself starts it waits 15 s for such a plugin and then
disables it (seen on 28.5), so that the boot after that would find no docker-fw, and everything open. This one stays
enabled: at every boot what is closed is closed (`plugin.closing`).
"""

from __future__ import annotations

from typing import Any

from flask import Flask

from plugin.admin import add_routes
from plugin.app import create_app
from plugin.model import FwError


class _Refuses:
    """Whatever is called, `why` is raised."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __getattr__(self, _: str) -> Any:
        return self._refuse

    def _refuse(self, *_: Any, **__: Any) -> None:
        raise FwError(self._why)


def refusing_app(why: str) -> Flask:
    refuses: Any = _Refuses(why)
    app = create_app(refuses, refuses)
    add_routes(app, refuses, refuses)
    return app
