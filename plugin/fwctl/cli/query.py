"""`fwctl status`, `ports`, `explain`, `plan`, `export`, `bans`: change nothing."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

from plugin.fwctl.cli import render, render_answers
from plugin.fwctl.cli.command import NO, OK, USAGE, parser, pretty, print_error, request, show, usage_error
from plugin.model import FwError
from plugin.protocols import PORTLESS

#: Seconds between two updates of `--watch`.
_WATCH = 2.0
_END = "an address, a container's name or the beginning of its ID, internet (any other address), or host"


def add(commands: Any) -> None:
    """Add the commands to fwctl's."""
    _add_status(commands)
    _add_explain(commands)
    _add_plan(commands)
    parser(
        commands,
        "export",
        _export,
        "print the table with all its elements, as a file for `nft -f`",
        "export > docker-fw.nft",
        "export | nft --check -f -",
    )
    parser(commands, "bans", _bans, "list banned addresses, with the time that is left", "bans", "bans --json")


def _add_status(commands: Any) -> None:
    status = parser(
        commands,
        "status",
        _status,
        "show networks and containers: what each accepts, from where, and which label or setting says so",
        "status",
        "status --watch",
        "status --json | jq '.guarded[].endpoints[] | select(.problems != [])'",
    )
    status.add_argument(
        "--watch",
        nargs="?",
        type=_interval,
        const=_WATCH,
        metavar="SECONDS",
        help="update every 2 seconds, or as given, until interrupted",
    )
    parser(
        commands,
        "ports",
        _ports,
        "list published ports (`docker ps` cannot show a network driver's), and which of them are closed",
        "ports",
        "ports --json",
    )


def _add_explain(commands: Any) -> None:
    explain = parser(
        commands,
        "explain",
        _explain,
        "explain step by step why a packet is accepted or dropped",
        "explain internet web 8080",
        "explain api db 5432",
        "explain 203.0.113.7 host 18080/tcp",
        "explain web internet 53/udp",
        more="Exit status 0: accepted, by every address that both have; 1: dropped. docker-fw's rules are checked, and "
        "Docker's as far as they are known. Other firewalls on this host, such as ufw and firewalld, are not checked.",
    )
    explain.add_argument("source", metavar="FROM", help=_END)
    explain.add_argument("target", metavar="TO", help="the same; host follows a published port to its container")
    explain.add_argument(
        "what", metavar="PORT[/PROTO]", help=f"such as 8080, 53/udp, 7/sctp; or {', '.join(PORTLESS)}, icmp"
    )
    family = explain.add_mutually_exclusive_group()
    for number in (4, 6):
        family.add_argument(f"-{number}", action="store_const", const=number, dest="family", help=f"IPv{number} only")


def _add_plan(commands: Any) -> None:
    plan = parser(
        commands,
        "plan",
        _plan,
        "show what would change: in the kernel's table, and with other settings",
        "plan",
        "plan FW_ALLOW=8080",
        "plan FW_POLICY=closed FW_EGRESS='443, 53/udp'",
        more="Changes nothing. - would be removed, + would be added. Exit status, as for diff: 0 no change, 1 changes, "
        "2 an error.",
        error_status=USAGE,
    )
    plan.add_argument("settings", nargs="*", metavar="FW_NAME=VALUE", help="a setting to try")


def _interval(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0.1 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 86400")
    return value


def _status(options: argparse.Namespace) -> int:
    if options.watch is not None:
        return _watch(options)
    status = request(options, "/status")
    if options.json:
        print(json.dumps(status, indent=1))
    elif pretty(options):
        from plugin.fwctl.cli import terminal  # noqa: PLC0415

        console = terminal.console(color=options.color)
        console.print(terminal.status(status, console.width))
    else:
        print(render.status(status))
    return OK


def _watch(options: argparse.Namespace) -> int:
    try:
        if options.json or not pretty(options):
            _watch_lines(options)
        else:
            _watch_terminal(options)
    except KeyboardInterrupt:
        pass
    return OK


def _watch_lines(options: argparse.Namespace) -> None:
    """Print one status after another, for pipes and files."""
    while True:
        try:
            status = request(options, "/status")
            text = json.dumps(status) if options.json else f"{time.strftime('%H:%M:%S')}\n{render.status(status)}\n"
            print(text, flush=True)
        except FwError as error:
            print_error(error)
        time.sleep(options.watch)


def _watch_terminal(options: argparse.Namespace) -> None:
    """Show each status in the place of the one before."""
    from plugin.fwctl.cli import terminal  # noqa: PLC0415

    console = terminal.console(color=options.color)

    def frames() -> Iterator[Any]:
        while True:
            try:
                yield terminal.status(request(options, "/status"), console.width)
            except FwError as error:
                yield terminal.problem(f"{time.strftime('%H:%M:%S')} {error}")

    terminal.watch(console, frames(), lambda: time.sleep(options.watch))


def _ports(options: argparse.Namespace) -> int:
    status = request(options, "/status")
    if options.json:
        print(json.dumps(render.published(status), indent=1))
    elif pretty(options):
        from plugin.fwctl.cli import terminal  # noqa: PLC0415

        terminal.console(color=options.color).print(terminal.ports(status))
    else:
        print(render.ports(status))
    return OK


def _explain(options: argparse.Namespace) -> int:
    question = {"from": options.source, "to": options.target, "what": options.what, "family": options.family}
    answer = request(options, "/explain", question)
    show(options, answer, lambda: render_answers.explain(answer))
    return OK if answer["accepted"] else NO


def _plan(options: argparse.Namespace) -> int:
    settings = {}
    for text in options.settings:
        name, equals, value = text.partition("=")
        if not equals or not name:
            return usage_error(f"{text!r} is not FW_NAME=VALUE, like FW_ALLOW=8080")
        settings[name] = value
    answer = request(options, "/plan", {"settings": settings})
    show(options, answer, lambda: render_answers.plan(answer))
    return NO if answer["changes"] else OK


def _export(options: argparse.Namespace) -> int:
    answer = request(options, "/export")
    print(json.dumps(answer) if options.json else answer["text"], end="\n" if options.json else "")
    return OK


def _bans(options: argparse.Namespace) -> int:
    answer = request(options, "/bans")
    show(options, answer, lambda: render_answers.bans(answer))
    return OK
