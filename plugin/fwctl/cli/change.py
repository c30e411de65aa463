"""`fwctl allow`, `deny`, `revert`, `ban`, `unban`: what changes the policy without changing a container."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

from plugin.fwctl.cli import render_answers
from plugin.fwctl.cli.command import NO, OK, USAGE, Failures, Told, asking, failed, parser, seconds, tell
from plugin.fwctl.cli.render import Line

_FOR = "end by itself after so long: 30s, 10m, 1h, 2d (default: for ever)"
_WHO = "its name, or the beginning of its ID"
_KEPT = (
    "It is above the container's labels, stands over restarts of the container and of docker-fw, and ends with the "
    "container, with fwctl revert, or after the time that you say."
)


def add(commands: Any) -> None:
    for name, run, text, examples in (
        (
            "allow",
            _allow,
            "open ports of a running container, without a label",
            ("allow web 8080", "allow db 5432 from 203.0.113.7 --for 1h", "allow dns 53 53/udp"),
        ),
        (
            "deny",
            _deny,
            "close ports of a running container, whoever may use them by its labels",
            ("deny web 22", "deny web 8000-8099 --for 10m", "deny web '*'"),
        ),
    ):
        command = parser(commands, name, run, text, *examples, more=_KEPT)
        command.add_argument("container", metavar="CONTAINER", help=_WHO)
        command.add_argument("rules", nargs="+", metavar="RULE", help="as in labels: 8080, 53/udp, 9000-9100")
        command.add_argument("--for", type=seconds, dest="seconds", metavar="TIME", help=_FOR)
    revert = parser(
        commands, "revert", _revert, "take back what fwctl allow and fwctl deny said", "revert web", "revert --all"
    )
    revert.add_argument("container", nargs="?", metavar="CONTAINER", help=_WHO)
    revert.add_argument("--all", action="store_true", help="of every container")
    ban = parser(
        commands,
        "ban",
        _ban,
        "drop everything from and to addresses, before every other rule",
        "ban 203.0.113.7 --for 1h",
        "ban 2001:db8:5::/48 198.51.100.0/24",
        more="For containers, published ports and the host itself, connections that stand included. IPv6 prefixes "
        "longer than /64 are banned with their whole /64.",
    )
    ban.add_argument("addresses", nargs="+", metavar="ADDRESS", help="an address or a prefix")
    ban.add_argument("--for", type=seconds, dest="seconds", metavar="TIME", help=_FOR)
    unban = parser(commands, "unban", _unban, "take bans back", "unban 203.0.113.7", "unban --all")
    unban.add_argument("addresses", nargs="*", metavar="ADDRESS", help="as it was banned")
    unban.add_argument("--all", action="store_true", help="every ban")


def _allow(options: argparse.Namespace) -> int:
    return _override(options, "/allow")


def _deny(options: argparse.Namespace) -> int:
    return _override(options, "/deny")


def _override(options: argparse.Namespace, url: str) -> int:
    rules = options.rules
    if any(word.lower() == "from" for word in rules):  # without quotes the shell makes several words of one rule
        rules = [" ".join(rules)]
    body = {"container": options.container, "rules": rules, "seconds": options.seconds}
    return _done(options, url, body, lambda told: render_answers.overridden(told, time.time()))


def _revert(options: argparse.Namespace) -> int:
    if options.all == bool(options.container):
        return _usage("say which container, or --all")
    body: Told = {"all": True} if options.all else {"container": options.container}
    return _done(options, "/revert", body, render_answers.reverted)


def _ban(options: argparse.Namespace) -> int:
    body = {"bans": [{"address": address, "seconds": options.seconds} for address in options.addresses]}
    return _done(options, "/ban", body, lambda told: render_answers.banned(told, time.time()))


def _unban(options: argparse.Namespace) -> int:
    if options.all == bool(options.addresses):
        return _usage("say which addresses, or --all")
    body: Told = {"all": True} if options.all else {"addresses": options.addresses}
    return _done(options, "/unban", body, render_answers.unbanned)


def _done(options: argparse.Namespace, url: str, body: Told, lines: Callable[[Told], Iterator[Line]]) -> int:
    try:
        told = asking(options, url, body)
    except Failures as error:
        failed(error)
        return NO
    tell(options, told, lambda: lines(told))
    return OK


def _usage(text: str) -> int:
    failed(ValueError(text))
    return USAGE
