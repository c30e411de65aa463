"""What `fwctl`'s commands have in common: their options, how they ask and how they tell."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

from plugin.fwctl.cli import render
from plugin.fwctl.cli.client import SOCKETS, ask, find_socket
from plugin.fwctl.cli.render import Line
from plugin.labels.duration import parse
from plugin.model import FwError
from plugin.text import printable

Told = dict[str, Any]
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
) -> argparse.ArgumentParser:
    """A command's parser. `asks`: it speaks with the plugin, and tells people or programs."""
    made: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.{' ' + more if more else ''}",
        epilog="examples:\n" + "\n".join(f"  fwctl {example}" for example in examples),
        formatter_class=_Help,
    )
    made.set_defaults(run=run)
    if asks:
        made.add_argument("--socket", metavar="PATH", help=f"the plugin's (default: the first of {', '.join(SOCKETS)})")
        made.add_argument("--json", action="store_true", help="as JSON, for programs")
        made.add_argument(
            "--color",
            choices=("auto", "always", "never"),
            default="auto",
            help="colours and tables (default: auto, on a terminal)",
        )
    return made


class _Help(argparse.RawDescriptionHelpFormatter):
    """Wraps what is said, and leaves the examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


def seconds(text: str) -> int:
    """An option's time."""
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def asking(options: argparse.Namespace, url: str, body: Told | None = None) -> Told:
    """Raises OSError, ValueError and FwError, with a text for people."""
    return ask(options.socket or find_socket(), url, body)


def pretty(options: argparse.Namespace) -> bool:
    """True where colours and tables are wanted."""
    return bool(options.color == "always" or (options.color == "auto" and sys.stdout.isatty()))


def tell(options: argparse.Namespace, told: Any, lines: Callable[[], Iterable[Line]]) -> None:
    """As JSON, as lines with colours, or as plain lines."""
    if options.json:
        print(json.dumps(told, indent=1))
    elif pretty(options):
        from plugin.fwctl.cli import terminal  # noqa: PLC0415 (a library that is for terminals alone)

        on = terminal.console(color=options.color)
        for line in terminal.lines(lines()):
            on.print(line)
    else:
        print(render.plain(lines()))


def failed(error: Exception) -> None:
    """One line on stderr."""
    print(f"fwctl: {printable(str(error))}", file=sys.stderr)


#: What a command may fail with, and `failed` tells.
Failures = (OSError, ValueError, FwError)
