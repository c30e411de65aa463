"""`fwctl`'s routes: JSON in, JSON out, on the plugin's unix socket only, which is root's alone.

A body that is not as it should be is a 400 with {"Err": text} that names the field; so is what cannot be done. What
comes in is text, numbers and lists of them: it becomes addresses, rules and names of what is known, or an error, and
never a part of a command.
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
from plugin.labels.duration import LONGEST
from plugin.model import FwError
from plugin.protocols import PORTLESS
from plugin.text import readable

#: Rules of one `fwctl allow`; addresses of one `fwctl ban`.
MAX_RULES, MAX_BANS = 256, 100_000
#: Characters of a text; nothing that is meant is longer.
MAX_TEXT = 4096
log = logging.getLogger(__name__)


class Body:
    """A request's object, read strictly: what is missing, of another type or unknown is an error that names it."""

    def __init__(self, raw: Any, *fields: str, where: str = "the request") -> None:
        if not isinstance(raw, dict):
            raise FwError(f"{where} must be a JSON object with {' and '.join(fields)}")
        if unknown := [key for key in raw if key not in fields]:
            raise FwError(f"{where} has a field {unknown[0][:40]!r}, which is none of {', '.join(fields)}")
        self._raw: Mapping[str, Any] = raw
        self._where = where

    def text(self, name: str, right: str) -> str:
        """The value as text that is not blank. Raises FwError that says what is `right`."""
        value = self._raw.get(name)
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(name, right, value)
        if len(value) > MAX_TEXT:
            raise FwError(f"{self._where}: {name} is {len(value)} characters long; at most {MAX_TEXT} are read")
        return value.strip()

    def texts(self, name: str, right: str, most: int) -> list[str]:
        """The value as 1 to `most` texts. Raises FwError."""
        values = self._raw.get(name)
        if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
            raise self._wrong(name, right, values)
        if len(values) > most:
            raise FwError(f"{self._where}: {name} has {len(values)} entries; at most {most} are read")
        return [value[: MAX_TEXT + 1] for value in values]

    def items(self, name: str, right: str, most: int) -> list[Any]:
        """The value as a list of 1 to `most` items. Raises FwError."""
        values = self._raw.get(name)
        if not isinstance(values, list) or not values:
            raise self._wrong(name, right, values)
        if len(values) > most:
            raise FwError(f"{self._where}: {name} has {len(values)} entries; at most {most} are read")
        return values

    def seconds(self) -> float | None:
        """None or nothing: for ever."""
        value = self._raw.get("seconds")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LONGEST:
            raise self._wrong("seconds", f"a number of seconds, from 1 to {LONGEST}, or null for ever", value)
        return value

    def family(self) -> int | None:
        """4 or 6; None or nothing: both."""
        value = self._raw.get("family")
        if value is not None and (isinstance(value, bool) or value not in (4, 6)):
            raise self._wrong("family", "4, 6, or null for both", value)
        return None if value is None else int(value)

    def everything(self) -> bool:
        """True for {"all": true}."""
        if "all" in self._raw and self._raw["all"] is not True:
            raise self._wrong("all", "true, or left out", self._raw["all"])
        if "all" in self._raw and len(self._raw) > 1:
            raise FwError(f"{self._where}: all goes alone")
        return "all" in self._raw

    def pairs(self, name: str, right: str) -> dict[str, str]:
        """The value as a map of text to text; empty if it is missing. Raises FwError."""
        values = self._raw.get(name, {})
        if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
            raise self._wrong(name, right, values)
        return {key: value[: MAX_TEXT + 1] for key, value in values.items()}

    def _wrong(self, name: str, right: str, value: Any) -> FwError:
        shown = "missing" if name not in self._raw else json.dumps(value)[:60]
        return FwError(f"{self._where}: {name} must be {right}; it is {shown}")


def add_routes(app: Flask, orders: AdminCommands, questions: AdminQueries) -> None:
    """Registers `fwctl`'s calls, besides `GET /status`."""
    routes = Blueprint("admin", __name__)
    posts: dict[str, Callable[[Any], dict[str, Any]]] = {
        "allow": lambda raw: _override(orders, questions, raw, deny=False),
        "deny": lambda raw: _override(orders, questions, raw, deny=True),
        "revert": lambda raw: _revert(orders, raw),
        "ban": lambda raw: _ban(orders, raw),
        "unban": lambda raw: _unban(orders, raw),
        "explain": lambda raw: _explain(questions, raw),
        "plan": lambda raw: _plan(questions, raw),
    }

    def post(name: str) -> Callable[[], Response]:
        return lambda: _reply(posts[name](_body()))

    for name in posts:
        routes.add_url_rule(f"/{name}", name, post(name), methods=["POST"])
    routes.add_url_rule("/bans", "bans", lambda: _reply(orders.bans()), methods=["GET"])
    routes.add_url_rule("/export", "export", lambda: _reply(questions.export()), methods=["GET"])

    @routes.before_request
    def _only_here() -> Response | None:
        # Whatever doors the application gets: this is for whoever may open the plugin's own socket.
        sock: socket.socket | None = request.environ.get("gunicorn.socket")
        if sock is None or sock.family != socket.AF_UNIX:
            return _reply({"Err": "this is answered on the plugin's socket only"}, 403)
        return None

    @routes.errorhandler(FwError)
    def _refused(error: FwError) -> Response:
        told = readable(str(error))
        log.info("%s: %s", request.path, told)
        return _reply({"Err": told}, 400)

    @routes.errorhandler(Exception)
    def _failed(error: Exception) -> Response:
        log.exception("%s failed", request.path)
        return _reply({"Err": readable(f"docker-fw failed on {request.path}: {type(error).__name__}: {error}")}, 500)

    app.register_blueprint(routes)


def _override(orders: AdminCommands, questions: AdminQueries, raw: Any, *, deny: bool) -> dict[str, Any]:
    body = Body(raw, "container", "rules", "seconds")
    right = 'a list of rules, like ["8080", "53/udp"]'
    texts = body.texts("rules", right, MAX_RULES)
    told = orders.override(body.text("container", _WHO), texts, body.seconds(), deny=deny)
    return {**told, "places": questions.places(told["id"])}


_WHO = "the name of a container, or the beginning of its ID"
_ADDRESSES = 'a list of addresses or prefixes, like ["203.0.113.7", "2001:db8:5::/48"]'


def _revert(orders: AdminCommands, raw: Any) -> dict[str, Any]:
    body = Body(raw, "container", "all")
    return orders.revert(None if body.everything() else body.text("container", _WHO))


def _ban(orders: AdminCommands, raw: Any) -> dict[str, Any]:
    right = 'a list like [{"address": "203.0.113.7", "seconds": 600}]'
    wanted = []
    for number, each in enumerate(Body(raw, "bans").items("bans", right, MAX_BANS)):
        one = Body(each, "address", "seconds", where=f"bans[{number}]")
        wanted.append((one.text("address", "an address or a prefix, like 203.0.113.7"), one.seconds()))
    return orders.ban(wanted)


def _unban(orders: AdminCommands, raw: Any) -> dict[str, Any]:
    body = Body(raw, "addresses", "all")
    return orders.unban(None if body.everything() else body.texts("addresses", _ADDRESSES, MAX_BANS))


def _explain(questions: AdminQueries, raw: Any) -> dict[str, Any]:
    body = Body(raw, "from", "to", "what", "family")
    end = "an address, a container's name, internet or host"
    source, target = body.text("from", end), body.text("to", end)
    what = body.text("what", f"a port like 8080 or 53/udp, or {', '.join(PORTLESS)}, icmp")
    return questions.explain(source, target, what, body.family())


def _plan(questions: AdminQueries, raw: Any) -> dict[str, Any]:
    return questions.plan(Body(raw, "settings").pairs("settings", 'an object of settings, like {"FW_ALLOW": "8080"}'))


def _body() -> Any:
    try:
        return json.loads(request.get_data())
    except (ValueError, RecursionError) as error:
        raise FwError(f"the request is not JSON: {error}") from error


def _reply(told: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(told), status=status, content_type="application/json")
