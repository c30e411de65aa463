"""`fwctl log`: drops as they happen, as lines for people or JSON lines for programs."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any

from plugin.fwctl.cli.command import NO, OK, Failures, failed, parser
from plugin.fwctl.drop_record import line
from plugin.fwctl.socket_client import SOCKETS, connect, find_socket
from plugin.model import FwError

#: Seconds without a sign of life after which docker-fw is gone; it gives one each second.
_SILENCE = 10


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Adds the command to fwctl's; returns its parser."""
    made = parser(
        commands,
        "log",
        run,
        "what is dropped, as it happens, with the names of containers",
        "log",
        "log web",
        "log -n 100 --no-follow",
        "log --json | jq 'select(.direction == \"by\")'",
        more="First the last ones that are kept, then each as it is dropped. A few for each container in a second are "
        "told; `fwctl status` has the counts. The reason is what the policy says of such a packet now.",
        asks=False,
    )
    made.add_argument("container", nargs="?", metavar="CONTAINER", help="only drops from or to it, or this address")
    made.add_argument("-n", type=_count, default=10, metavar="N", dest="lines", help="the last N first (default: 10)")
    made.add_argument("--no-follow", action="store_false", dest="follow", help="show the last ones and end")
    made.add_argument("--json", action="store_true", help="as JSON lines, for programs")
    made.add_argument("--socket", metavar="PATH", help=f"the plugin's (default: the first of {', '.join(SOCKETS)})")
    return made


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of lines")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Prints until docker-fw or the user ends it. Returns the exit status; raises BrokenPipeError."""
    try:
        with contextlib.closing(_told(options.socket or find_socket(), follow=options.follow)) as told:
            for text in _texts(told, options):
                print(text, flush=True)
    except BrokenPipeError:
        raise  # whoever read this has enough
    except Failures as error:
        failed(error)
        return NO
    if options.follow:
        failed(OSError("docker-fw has ended"))
        return NO
    return OK


def _texts(told: Iterable[Mapping[str, Any]], options: argparse.Namespace) -> Iterator[str]:
    """What to print: of the drops that were kept the last ones, then each that comes."""
    kept: deque[Mapping[str, Any]] = deque(maxlen=options.lines)
    begun, number, lost = False, 0, 0
    for each in told:
        if "newest" in each:
            if not begun:
                yield from (_text(drop, options) for drop in kept)
                if not kept and options.lines:
                    _nothing(options)
            elif each["lost"] > lost:
                yield from _missed("some drops were not told: there were too many", options)
            begun, lost = True, each["lost"]
            continue
        if begun and each["number"] > number + 1:
            yield from _missed(f"{each['number'] - number - 1} drops were not shown: there were too many", options)
        number = each["number"]
        if options.container in (None, each["from_container"], each["to_container"], each["from"], each["to"]):
            if begun:
                yield _text(each, options)
            else:
                kept.append(each)


def _nothing(options: argparse.Namespace) -> None:
    whose = f" of {options.container}" if options.container else ""
    failed(OSError(f"nothing{whose} was dropped yet{'; waiting' if options.follow else ''}"))


def _missed(text: str, options: argparse.Namespace) -> Iterator[str]:
    if options.json:
        failed(OSError(text))
    else:
        yield f"… {text}"


def _text(drop: Mapping[str, Any], options: argparse.Namespace) -> str:
    if options.json:
        return json.dumps(drop)
    return f"{time.strftime('%H:%M:%S', time.localtime(drop['time']))} {line(drop)}"


def _told(path: str, *, follow: bool) -> Generator[dict[str, Any], None, None]:
    """The lines of `GET /drops`. Raises OSError, ValueError and FwError with a text for people."""
    connection = http.client.HTTPConnection("fw")
    try:
        try:
            connection.sock = connect(path, _SILENCE)
            connection.request("GET", f"/drops?follow={int(follow)}", headers={"Connection": "close"})
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise OSError(f"{path} does not answer: {error}; does docker-fw run? (docker plugin ls)") from error
        while text := _line(response):
            told = json.loads(text)
            if "Err" in told:
                raise FwError(str(told["Err"]))
            if response.status != 200:
                raise ValueError(f"{path} answered {response.status} to /drops")
            yield told
    finally:
        connection.close()


def _line(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.readline()
    except TimeoutError as error:
        raise OSError("docker-fw is silent; does it still run? (docker plugin ls)") from error
    except (http.client.HTTPException, ConnectionError):
        return b""  # killed in the middle of a line
