"""`fwctl log`: dropped packets as they happen, as lines for people or as JSON lines for programs."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from plugin.fwctl.cli.command import NO, OK, add_socket, parser, print_error
from plugin.fwctl.drop_record import line
from plugin.fwctl.socket_client import find_socket, stream


def add(commands: Any) -> None:
    """Add the command to fwctl's."""
    log = parser(
        commands,
        "log",
        run,
        "show dropped packets as they happen, with the names of containers",
        "log",
        "log web",
        "log -n 100 --no-follow",
        "log --json | jq 'select(.direction == \"by\")'",
        more="First the last drops that docker-fw has kept, then each new one. At most a few for each container in a "
        "second are shown; `fwctl status` has the counts. The reason is what the policy says about such a packet now.",
        asks=False,
    )
    log.add_argument("container", nargs="?", metavar="CONTAINER", help="only drops from or to it, or to an address")
    log.add_argument(
        "-n", type=_count, default=10, metavar="N", dest="lines", help="show the last N first (default: 10)"
    )
    log.add_argument("--no-follow", action="store_false", dest="follow", help="exit after the last ones")
    log.add_argument("--json", action="store_true", help="print JSON lines, for programs")
    add_socket(log)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of lines")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Print drops until docker-fw or the user ends it. Raises FwError, BrokenPipeError."""
    url = f"/drops?follow={int(options.follow)}"
    with contextlib.closing(stream(options.socket or find_socket(), url)) as records:
        for text in texts(records, options):
            print(text, flush=True)
    if options.follow:
        print_error("docker-fw has stopped")
        return NO
    return OK


def texts(records: Iterable[Mapping[str, Any]], options: argparse.Namespace) -> Iterator[str]:
    """Yield the lines to print: of the drops that docker-fw has kept the last ones, then each new one.

    A record is a drop, or {"newest": …, "lost": …}, which docker-fw sends after the kept ones and then each second.
    """
    recent: deque[Mapping[str, Any]] = deque(maxlen=options.lines)
    following, number, lost = False, 0, 0
    for record in records:
        if "newest" in record:
            if not following:
                yield from (_text(drop, options) for drop in recent)
                if not recent and options.lines:
                    _nothing(options)
            elif record["lost"] > lost:
                yield from _gap("some drops were lost: there were too many", options)
            following, lost = True, record["lost"]
            continue
        if following and record["number"] > number + 1:
            yield from _gap(f"{record['number'] - number - 1} drops are not shown: there were too many", options)
        number = record["number"]
        if _concerns(record, options.container):
            if following:
                yield _text(record, options)
            else:
                recent.append(record)


def _concerns(drop: Mapping[str, Any], container: str | None) -> bool:
    return container in (None, drop["from_container"], drop["to_container"], drop["from"], drop["to"])


def _nothing(options: argparse.Namespace) -> None:
    whose = f" of {options.container}" if options.container else ""
    print_error(f"no packet{whose} was dropped yet{'; waiting' if options.follow else ''}")


def _gap(text: str, options: argparse.Namespace) -> Iterator[str]:
    if options.json:
        print_error(text)
    else:
        yield f"… {text}"


def _text(drop: Mapping[str, Any], options: argparse.Namespace) -> str:
    if options.json:
        return json.dumps(drop)
    return f"{time.strftime('%H:%M:%S', time.localtime(drop['time']))} {line(drop)}"
