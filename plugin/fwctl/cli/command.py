"""Common parts of fwctl's commands: options, requests, output and exit statuses."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

from plugin.fwctl.cli import render
from plugin.fwctl.cli.render import Line
from plugin.fwctl.socket_client import SOCKETS, ask, find_socket
from plugin.labels.duration import parse
from plugin.text import printable

#: An answer of docker-fw: a JSON object.
Answer = dict[str, Any]
#: Exit statuses.
OK, NO, USAGE = 0, 1, 2


def parser(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    *examples: str,
    more: str = "",
    asks: bool = True,
    error_status: int = NO,
) -> argparse.ArgumentParser:
    """Add a command and return its parser.

    `asks`: it sends requests to docker-fw and has options for that. `error_status`: the exit status if it fails.
    """
    made: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.{' ' + more if more else ''}",
        epilog="examples:\n" + "\n".join(f"  fwctl {example}" for example in examples),
        formatter_class=_Help,
    )
    made.set_defaults(run=run, error_status=error_status)
    if asks:
        add_socket(made)
        made.add_argument("--json", action="store_true", help="print JSON, for programs")
        made.add_argument(
            "--color",
            choices=("auto", "always", "never"),
            default="auto",
            help="print colours and tables (default: auto, on a terminal)",
        )
    return made


def add_socket(made: argparse.ArgumentParser) -> None:
    """Add the option that names docker-fw's socket."""
    made.add_argument(
        "--socket", metavar="PATH", help=f"docker-fw's socket (default: the first of {', '.join(SOCKETS)})"
    )


class _Help(argparse.RawDescriptionHelpFormatter):
    """Wraps the description and prints the examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


def seconds(text: str) -> int:
    """Read an option's duration."""
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def request(options: argparse.Namespace, url: str, body: Answer | None = None) -> Answer:
    """Ask the docker-fw that the options name. Raises FwError."""
    return ask(options.socket or find_socket(), url, body)


def pretty(options: argparse.Namespace) -> bool:
    """True if colours and tables are wanted."""
    return bool(options.color == "always" or (options.color == "auto" and sys.stdout.isatty()))


def show(options: argparse.Namespace, answer: Any, lines: Callable[[], Iterable[Line]]) -> None:
    """Print an answer as JSON, as coloured lines or as plain lines."""
    if options.json:
        print(json.dumps(answer, indent=1))
    elif pretty(options):
        from plugin.fwctl.cli import terminal  # noqa: PLC0415 (rich is for terminals alone)

        console = terminal.console(color=options.color)
        for line in terminal.lines(lines()):
            console.print(line)
    else:
        print(render.plain(lines()))


def print_error(error: object) -> None:
    """Print one line on stderr."""
    print(f"fwctl: {printable(str(error))}", file=sys.stderr)


def usage_error(text: str) -> int:
    """Print what is wrong with the command line; return the exit status."""
    print_error(text)
    return USAGE
