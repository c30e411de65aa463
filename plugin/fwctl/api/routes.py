"""`fwctl`'s routes: JSON requests and answers, on the plugin's unix socket only, which only root may open.

A wrong body is answered with 400 and {"Err": text}, which names the field; so is a request that cannot be carried out.
Text and numbers of a request become addresses, rules and known names, or an error; never a part of a command.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any

from flask import Blueprint, Flask, Response, request

from plugin.fwctl.api.commands import AdminCommands
from plugin.fwctl.api.queries import AdminQueries
from plugin.jsonio import document, items, mapping, record, text, wrong
from plugin.labels.duration import LONGEST
from plugin.model import FwError
from plugin.protocols import PORTLESS
from plugin.text import readable

#: Rules of one `fwctl allow`; addresses of one `fwctl ban`.
MAX_RULES, MAX_BANS = 256, 100_000
#: The longest text that is read.
MAX_TEXT = 4096
log = logging.getLogger(__name__)


def add_routes(app: Flask, commands: AdminCommands, queries: AdminQueries) -> None:
    """Add `fwctl`'s routes to the application, in addition to `GET /status`."""
    routes = Blueprint("admin", __name__)
    posts: dict[str, Callable[[Any], dict[str, Any]]] = {
        "allow": lambda raw: _override(commands, queries, raw, deny=False),
        "deny": lambda raw: _override(commands, queries, raw, deny=True),
        "revert": lambda raw: _revert(commands, raw),
        "ban": lambda raw: _ban(commands, raw),
        "unban": lambda raw: _unban(commands, raw),
        "explain": lambda raw: _explain(queries, raw),
        "plan": lambda raw: _plan(queries, raw),
    }

    def post(name: str) -> Callable[[], Response]:
        return lambda: _reply(posts[name](document(request.get_data())))

    for name in posts:
        routes.add_url_rule(f"/{name}", name, post(name), methods=["POST"])
    routes.add_url_rule("/bans", "bans", lambda: _reply(commands.bans()), methods=["GET"])
    routes.add_url_rule("/export", "export", lambda: _reply(queries.export()), methods=["GET"])
    routes.before_request(_refuse_other_sockets)
    routes.register_error_handler(FwError, _refused)
    routes.register_error_handler(Exception, _failed)
    app.register_blueprint(routes)


def _refuse_other_sockets() -> Response | None:
    """Refuse requests that did not come by the plugin's unix socket, whatever else the application listens on."""
    sock: socket.socket | None = request.environ.get("gunicorn.socket")
    if sock is None or sock.family != socket.AF_UNIX:
        return _reply({"Err": "this is answered on the plugin's socket only"}, 403)
    return None


def _refused(error: FwError) -> Response:
    text = readable(str(error))
    log.info("%s: %s", request.path, text)
    return _reply({"Err": text}, 400)


def _failed(error: Exception) -> Response:
    log.exception("%s failed", request.path)
    return _reply({"Err": readable(f"docker-fw failed on {request.path}: {type(error).__name__}: {error}")}, 500)


_CONTAINER = "the name of a container, or the beginning of its ID"
_ADDRESS = "an address or a prefix, like 203.0.113.7"
_ADDRESSES = 'a list of addresses or prefixes, like ["203.0.113.7", "2001:db8:5::/48"]'


def _override(commands: AdminCommands, queries: AdminQueries, raw: Any, *, deny: bool) -> dict[str, Any]:
    body = record(raw, "container", "rules", "seconds")
    rules = _texts(body, "rules", 'a list of rules, like ["8080", "53/udp"]', MAX_RULES)
    changed = commands.override(_text(body, "container", _CONTAINER), rules, _seconds(body), deny=deny)
    return {**changed, "places": queries.places(changed["id"])}


def _revert(commands: AdminCommands, raw: Any) -> dict[str, Any]:
    body = record(raw, "container", "all")
    return commands.revert(None if _all(body) else _text(body, "container", _CONTAINER))


def _ban(commands: AdminCommands, raw: Any) -> dict[str, Any]:
    right = 'a list like [{"address": "203.0.113.7", "seconds": 600}]'
    wanted = []
    for number, each in enumerate(_items(record(raw, "bans"), "bans", right, MAX_BANS)):
        where = f"bans[{number}]"
        ban = record(each, "address", "seconds", where=where)
        wanted.append((_text(ban, "address", _ADDRESS, where), _seconds(ban, where)))
    return commands.ban(wanted)


def _unban(commands: AdminCommands, raw: Any) -> dict[str, Any]:
    body = record(raw, "addresses", "all")
    return commands.unban(None if _all(body) else _texts(body, "addresses", _ADDRESSES, MAX_BANS))


def _explain(queries: AdminQueries, raw: Any) -> dict[str, Any]:
    body = record(raw, "from", "to", "what", "family")
    end = "an address, a container's name, internet or host"
    source, target = _text(body, "from", end), _text(body, "to", end)
    what = _text(body, "what", f"a port like 8080 or 53/udp, or {', '.join(PORTLESS)}, icmp")
    return queries.explain(source, target, what, _family(body))


def _plan(queries: AdminQueries, raw: Any) -> dict[str, Any]:
    right = 'an object of settings, like {"FW_ALLOW": "8080"}'
    body = record(raw, "settings")
    settings = mapping(body, "settings", right, default={})
    if not all(isinstance(value, str) for value in settings.values()):
        raise wrong(body, "settings", right)
    return queries.plan({key: value[: MAX_TEXT + 1] for key, value in settings.items()})


# --- fields that several requests have --------------------------------------------------------------------------------


def _text(body: Mapping[str, Any], key: str, right: str, where: str = "") -> str:
    """A text that is not blank."""
    value = text(body, key, right, most=MAX_TEXT, where=where).strip()
    if not value:
        raise wrong(body, key, right, where=where)
    return value


def _items(body: Mapping[str, Any], key: str, right: str, most: int) -> list[Any]:
    """A list that is not empty."""
    values = items(body, key, right, most=most)
    if not values:
        raise wrong(body, key, right)
    return values


def _texts(body: Mapping[str, Any], key: str, right: str, most: int) -> list[str]:
    values = _items(body, key, right, most)
    if not all(isinstance(value, str) for value in values):
        raise wrong(body, key, right)
    return [value[: MAX_TEXT + 1] for value in values]


def _seconds(body: Mapping[str, Any], where: str = "") -> float | None:
    """None: permanently, which is also what a missing field means."""
    value: Any = body.get("seconds")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LONGEST:
        right = f"a number of seconds, from 1 to {LONGEST}, or null for permanently"
        raise wrong(body, "seconds", right, where=where)
    return value


def _family(body: Mapping[str, Any]) -> int | None:
    """4 or 6; None: both, which is also what a missing field means."""
    value = body.get("family")
    if value is not None and (isinstance(value, bool) or value not in (4, 6)):
        raise wrong(body, "family", "4, 6, or null for both")
    return None if value is None else int(value)


def _all(body: Mapping[str, Any]) -> bool:
    """True for {"all": true}, False where the field is missing."""
    if "all" not in body:
        return False
    if body["all"] is not True:
        raise wrong(body, "all", "true, or left out")
    if len(body) > 1:
        raise FwError("all must be the only field; leave the other fields out")
    return True


def _reply(answer: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(answer), status=status, content_type="application/json")
