"""The HTTP application: the driver protocol's routes and one error boundary. Served on the plugin's socket only.

Replies are 200 and a JSON object. An error is {"Err": text}; Docker shows the text to the user.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any, Protocol

from flask import Flask, Response, request

from plugin import jsonio
from plugin.driver.driver import Driver
from plugin.model import FwError
from plugin.text import readable

CONTENT_TYPE = "application/vnd.docker.plugins.v1.2+json"
log = logging.getLogger(__name__)


class Status(Protocol):
    """Answers `GET /status`."""

    def status(self) -> dict[str, Any]:
        """Return the answer to GET /status."""


def create_app(driver: Driver, queries: Status) -> Flask:
    """Return the application that serves the driver protocol and `GET /status`."""
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = jsonio.MAX_BYTES
    calls = _calls(driver)

    @app.post("/Plugin.Activate")
    def activate() -> Response:
        return _reply({"Implements": ["NetworkDriver"]})

    @app.post("/NetworkDriver.GetCapabilities")
    def capabilities() -> Response:
        return _reply({"Scope": "local", "ConnectivityScope": "local"})

    @app.post("/<call>")
    def hook(call: str) -> Response | tuple[Response, int]:
        if call not in calls:
            return _reply({"Err": readable(f"docker-fw does not know the call {call[:80]}")}), 404
        log.debug("%s %s", call, request.get_data()[:2000])
        return _reply(calls[call](_body()))

    @app.get("/status")
    def status() -> Response:
        return Response(json.dumps(queries.status(), indent=1), content_type="application/json")

    _add_error_boundary(app)
    return app


def _calls(driver: Driver) -> dict[str, Callable[[Any], dict[str, Any]]]:
    return {
        "NetworkDriver.CreateNetwork": driver.create_network,
        "NetworkDriver.DeleteNetwork": driver.delete_network,
        "NetworkDriver.CreateEndpoint": driver.create_endpoint,
        "NetworkDriver.DeleteEndpoint": driver.delete_endpoint,
        "NetworkDriver.EndpointOperInfo": driver.endpoint_info,
        "NetworkDriver.Join": driver.join,
        "NetworkDriver.Leave": driver.leave,
        "NetworkDriver.ProgramExternalConnectivity": driver.program_external_connectivity,
        "NetworkDriver.RevokeExternalConnectivity": driver.revoke_external_connectivity,
        # Calls for swarm: a driver of local scope receives them and has nothing to do.
        "NetworkDriver.DiscoverNew": _nothing,
        "NetworkDriver.DiscoverDelete": _nothing,
        "NetworkDriver.AllocateNetwork": lambda _: {"Options": {}},
        "NetworkDriver.FreeNetwork": _nothing,
    }


def _add_error_boundary(app: Flask) -> None:
    """Add the handlers that turn errors into replies.

    Docker shows {"Err": text} of a reply with status 200 to the user.
    """

    @app.errorhandler(FwError)
    def refused(error: FwError) -> tuple[Response, int]:
        text = readable(str(error))
        log.error("%s: %s", request.path, text)
        return _reply({"Err": text}), 200

    @app.errorhandler(404)
    @app.errorhandler(405)
    @app.errorhandler(413)
    def unknown(error: Any) -> tuple[Response, int]:
        return _reply({"Err": readable(f"{request.method} {request.path[:80]}: {error.name}")}), int(error.code)

    @app.errorhandler(Exception)
    def failed(error: Exception) -> tuple[Response, int]:
        log.exception("%s failed", request.path)
        text = readable(f"docker-fw failed on {request.path[:80]}: {type(error).__name__}: {error}")
        return _reply({"Err": text}), 200


def _body() -> dict[str, Any]:
    """Return the request's object. An empty body is a retry that lost its body: an error, never a default."""
    data = request.get_data()
    if not data:
        raise FwError("the request came without a body; try again")
    body = jsonio.document(data)
    if not isinstance(body, dict):
        raise FwError("the request must be a JSON object")
    return body


def _nothing(_: Any) -> dict[str, Any]:
    return {}


def _reply(body: dict[str, Any]) -> Response:
    return Response(json.dumps(body), content_type=CONTENT_TYPE)
