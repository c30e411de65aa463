"""`fwctl allow`, `deny`, `revert`, `ban`, `unban`: change the policy without changing a container."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from plugin.fwctl.cli import render_answers
from plugin.fwctl.cli.command import OK, Answer, parser, request, seconds, show, usage_error
from plugin.fwctl.cli.render import Line

_FOR = "end after this time: 30s, 10m, 1h, 2d (default: never)"
_CONTAINER = "its name, or the beginning of its ID"
_LASTS = (
    "This takes precedence over the container's labels, and survives restarts of the container and of docker-fw. It "
    "ends when the container is removed, with fwctl revert, or after the time given by --for."
)


def add(commands: Any) -> None:
    """Add the commands to fwctl's."""
    _add_overrides(commands)
    _add_bans(commands)


def _add_overrides(commands: Any) -> None:
    for name, text, examples in (
        (
            "allow",
            "open ports of a running container, without a label",
            ("allow web 8080", "allow db 5432 from 203.0.113.7 --for 1h", "allow dns 53 53/udp"),
        ),
        (
            "deny",
            "close ports of a running container, whatever its labels allow",
            ("deny web 22", "deny web 8000-8099 --for 10m", "deny web '*'"),
        ),
    ):
        command = parser(commands, name, partial(_override, url=f"/{name}"), text, *examples, more=_LASTS)
        command.add_argument("container", metavar="CONTAINER", help=_CONTAINER)
        command.add_argument("rules", nargs="+", metavar="RULE", help="as in labels: 8080, 53/udp, 9000-9100")
        command.add_argument("--for", type=seconds, dest="seconds", metavar="TIME", help=_FOR)
    revert = parser(
        commands,
        "revert",
        _revert,
        "undo fwctl allow and fwctl deny: the container's labels apply again",
        "revert web",
        "revert --all",
    )
    revert.add_argument("container", nargs="?", metavar="CONTAINER", help=_CONTAINER)
    revert.add_argument("--all", action="store_true", help="for every container")


def _add_bans(commands: Any) -> None:
    ban = parser(
        commands,
        "ban",
        _ban,
        "drop all traffic from and to addresses, before every other rule",
        "ban 203.0.113.7 --for 1h",
        "ban 2001:db8:5::/48 198.51.100.0/24",
        more="Applies to containers, published ports and the host itself, and ends established connections. An IPv6 "
        "prefix longer than /64 is banned with its whole /64.",
    )
    ban.add_argument("addresses", nargs="+", metavar="ADDRESS", help="an address or a prefix")
    ban.add_argument("--for", type=seconds, dest="seconds", metavar="TIME", help=_FOR)
    unban = parser(commands, "unban", _unban, "remove bans", "unban 203.0.113.7", "unban --all")
    unban.add_argument("addresses", nargs="*", metavar="ADDRESS", help="as it was banned")
    unban.add_argument("--all", action="store_true", help="every ban")


def _override(options: argparse.Namespace, url: str) -> int:
    rules = options.rules
    if any(word.lower() == "from" for word in rules):  # without quotes the shell splits one rule into several words
        rules = [" ".join(rules)]
    body = {"container": options.container, "rules": rules, "seconds": options.seconds}
    return _change(options, url, body, lambda answer: render_answers.overridden(answer, time.time()))


def _revert(options: argparse.Namespace) -> int:
    if options.all == bool(options.container):
        return usage_error("name one container, or use --all")
    body: Answer = {"all": True} if options.all else {"container": options.container}
    return _change(options, "/revert", body, render_answers.reverted)


def _ban(options: argparse.Namespace) -> int:
    body = {"bans": [{"address": address, "seconds": options.seconds} for address in options.addresses]}
    return _change(options, "/ban", body, lambda answer: render_answers.banned(answer, time.time()))


def _unban(options: argparse.Namespace) -> int:
    if options.all == bool(options.addresses):
        return usage_error("name addresses, or use --all")
    body: Answer = {"all": True} if options.all else {"addresses": options.addresses}
    return _change(options, "/unban", body, render_answers.unbanned)


def _change(options: argparse.Namespace, url: str, body: Answer, lines: Callable[[Answer], Iterator[Line]]) -> int:
    answer = request(options, url, body)
    show(options, answer, lambda: lines(answer))
    return OK
