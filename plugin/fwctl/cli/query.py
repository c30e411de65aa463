"""`fwctl status`, `ports`, `explain`, `plan`, `export`, `bans`: what changes nothing."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

from plugin.fwctl.cli import render, render_answers
from plugin.fwctl.cli.command import NO, OK, USAGE, Failures, asking, failed, parser, pretty, tell
from plugin.protocols import PORTLESS

#: Seconds between two looks of `--watch`.
_WATCH = 2.0
_PLACES = "an address, a container's name or the beginning of its ID, internet (anybody else), or host"


def add(commands: Any) -> None:
    status = parser(
        commands,
        "status",
        _status,
        "networks, containers, addresses, what each accepts and from whom, and why",
        "status",
        "status --watch",
        "status --json | jq '.guarded[].endpoints[] | select(.problems != [])'",
    )
    status.add_argument(
        "--watch",
        nargs="?",
        type=_every,
        const=_WATCH,
        metavar="SECONDS",
        help="look again and again (every 2 seconds, or as many as you say), until interrupted",
    )
    parser(
        commands,
        "ports",
        _ports,
        "published ports (`docker ps` cannot show a network driver's), and which of them are closed",
        "ports",
        "ports --json",
    )
    explain = parser(
        commands,
        "explain",
        _explain,
        "why a packet passes or is dropped, step by step",
        "explain internet web 8080",
        "explain api db 5432",
        "explain 203.0.113.7 host 18080/tcp",
        "explain web internet 53/udp",
        more="Exit status 0: it is accepted, by every address that both have; 1: it is not. Of the firewalls of this "
        "host docker-fw's own is asked, and Docker's as far as it is known; ufw and firewalld are not.",
    )
    explain.add_argument("source", metavar="FROM", help=_PLACES)
    explain.add_argument("target", metavar="TO", help="the same; host leads on where the port is published")
    explain.add_argument(
        "what", metavar="PORT[/PROTO]", help=f"like 8080, 53/udp, 7/sctp; or {', '.join(PORTLESS)}, icmp"
    )
    family = explain.add_mutually_exclusive_group()
    for number in (4, 6):
        family.add_argument(f"-{number}", action="store_const", const=number, dest="family", help=f"IPv{number} alone")
    plan = parser(
        commands,
        "plan",
        _plan,
        "what would change: in the kernel's table, and by other settings",
        "plan",
        "plan FW_ALLOW=8080",
        "plan FW_POLICY=closed FW_EGRESS='443, 53/udp'",
        more="Changes nothing. - is what would go, + what would come. Exit status, as diff has it: 0 nothing would "
        "change, 1 something would, 2 it could not be found out.",
    )
    plan.add_argument("settings", nargs="*", metavar="FW_NAME=VALUE", help="a setting as it might be")
    parser(
        commands,
        "export",
        _export,
        "the table with all its elements, as a file for `nft -f`",
        "export > docker-fw.nft",
        "export | nft --check -f -",
    )
    parser(commands, "bans", _bans, "who is banned, and for how long", "bans", "bans --json")


def _every(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0.1 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, from 0.1 on")
    return value


def _status(options: argparse.Namespace) -> int:
    if options.watch is not None:
        return _watch(options)
    try:
        told = asking(options, "/status")
    except Failures as error:
        failed(error)
        return NO
    if options.json:
        print(json.dumps(told, indent=1))
    elif pretty(options):
        from plugin.fwctl.cli import terminal  # noqa: PLC0415

        on = terminal.console(color=options.color)
        on.print(terminal.status(told, on.width))
    else:
        print(render.status(told))
    return OK


def _watch(options: argparse.Namespace) -> int:
    try:
        if options.json or not pretty(options):
            while True:
                try:
                    told = asking(options, "/status")
                    text = json.dumps(told) if options.json else f"{time.strftime('%H:%M:%S')}\n{render.status(told)}\n"
                    print(text, flush=True)
                except Failures as error:
                    failed(error)
                time.sleep(options.watch)
        from plugin.fwctl.cli import terminal  # noqa: PLC0415

        on = terminal.console(color=options.color)

        def frames() -> Iterator[Any]:
            while True:
                try:
                    yield terminal.status(asking(options, "/status"), on.width)
                except Failures as error:
                    yield terminal.problem(f"{time.strftime('%H:%M:%S')} {error}")

        terminal.watch(on, frames(), lambda: time.sleep(options.watch))
    except KeyboardInterrupt:
        pass
    return OK


def _ports(options: argparse.Namespace) -> int:
    try:
        told = asking(options, "/status")
    except Failures as error:
        failed(error)
        return NO
    if options.json:
        print(json.dumps(render.published(told), indent=1))
    elif pretty(options):
        from plugin.fwctl.cli import terminal  # noqa: PLC0415

        terminal.console(color=options.color).print(terminal.ports(told))
    else:
        print(render.ports(told))
    return OK


def _explain(options: argparse.Namespace) -> int:
    try:
        question = {"from": options.source, "to": options.target, "what": options.what, "family": options.family}
        told = asking(options, "/explain", question)
    except Failures as error:
        failed(error)
        return NO
    tell(options, told, lambda: render_answers.explain(told))
    return OK if told["accepted"] else NO


def _plan(options: argparse.Namespace) -> int:
    settings = {}
    for text in options.settings:
        name, equals, value = text.partition("=")
        if not equals or not name:
            failed(ValueError(f"{text!r} is not FW_NAME=VALUE, like FW_ALLOW=8080"))
            return USAGE
        settings[name] = value
    try:
        told = asking(options, "/plan", {"settings": settings})
    except Failures as error:
        failed(error)
        return USAGE  # as diff: trouble is neither a yes nor a no
    tell(options, told, lambda: render_answers.plan(told))
    return NO if told["changes"] else OK


def _export(options: argparse.Namespace) -> int:
    try:
        told = asking(options, "/export")
    except Failures as error:
        failed(error)
        return NO
    print(json.dumps(told) if options.json else told["text"], end="\n" if options.json else "")
    return OK


def _bans(options: argparse.Namespace) -> int:
    try:
        told = asking(options, "/bans")
    except Failures as error:
        failed(error)
        return NO
    tell(options, told, lambda: render_answers.bans(told))
    return OK
