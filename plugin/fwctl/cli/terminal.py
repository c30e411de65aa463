"""The output of `plugin.fwctl.cli.render` on a terminal: colours, and tables that fit its width. Only this uses `rich`.

No text is read as rich's markup, because labels and container names are written by others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from plugin.fwctl.cli import render
from plugin.fwctl.cli.render import Line
from plugin.text import printable

#: The width, in columns, from which a table is easier to read than lines.
_TABLE_WIDTH = 110
_STYLES = {"good": "green", "bad": "bold red", "warn": "yellow", "dim": "dim", "name": "bold", "": ""}


def console(*, color: str, file: Any = None) -> Console:
    """Return rich's console. `color`: "auto", or "always" for colours even without a terminal."""
    force = True if color == "always" else None
    return Console(file=file, force_terminal=force, highlight=False, soft_wrap=False, emoji=False, markup=False)


def lines(plain: Iterable[Line]) -> Iterator[Text]:
    """Yield the lines in colours."""
    for line in plain:
        yield Text.assemble(*((printable(text), _STYLES[style]) for text, style in line))


def status(answer: dict[str, Any], width: int) -> RenderableType:
    """Return a table for each network, or lines if the terminal is too narrow."""
    if width < _TABLE_WIDTH:
        return Text("\n").join(lines(render.status_lines(answer)))
    parts: list[RenderableType] = []
    for network in render.networks(answer):
        table = Table(
            title=Text(printable(render.title(network)), "bold"),
            title_justify="left",
            box=box.SIMPLE_HEAD,
            expand=False,
        )
        table.add_column("container", style="bold", overflow="fold")
        table.add_column("addresses", style="cyan", overflow="fold")
        table.add_column("accepts", overflow="fold")
        table.add_column("details", overflow="fold")
        for endpoint in network["endpoints"]:
            table.add_row(*_row(endpoint, network, answer["now"]))
        parts += [table, *lines([("  " + problem, "bad")] for problem in network.get("problems", []))]
    parts += lines(render.host_lines(answer))
    return Group(*parts)


def _row(endpoint: dict[str, Any], network: dict[str, Any], now: float) -> tuple[Text, ...]:
    accepts = Text(printable(render.accepted(endpoint)), "" if endpoint["accepts"] else "yellow")
    accepts.append(render.unknown(endpoint), "yellow")
    details = Text("\n").join(lines([detail] for detail in render.details(endpoint, network, now)))
    return Text(printable(render.container(endpoint))), Text("\n".join(endpoint["addresses"])), accepts, details


def ports(answer: dict[str, Any]) -> RenderableType:
    """Return the published ports of a status as a table."""
    rows = render.published(answer)
    if not rows:
        return Text("no published ports")
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("container", "published", "leads to", ""):
        table.add_column(column, overflow="fold")
    for row in rows:
        host = f"[{row['host_ip']}]" if ":" in row["host_ip"] else row["host_ip"]
        state, style = ("open", "green") if row["open"] else (render.closed(row), "yellow")
        leads = f"{row['container_port']}/{row['proto']}"
        table.add_row(
            Text(printable(row["container"] or "-"), "bold"), f"{host}:{row['host_port']}", leads, Text(state, style)
        )
    return table


def problem(text: str) -> RenderableType:
    """Return an error, to be shown in the place of a status."""
    return Text(printable(text), "bold red")


def watch(console: Console, frames: Iterable[RenderableType], wait: Callable[[], None]) -> None:
    """Show each frame in the place of the one before, until there are no more or the user interrupts."""
    with Live(console=console, screen=console.is_terminal, auto_refresh=False, vertical_overflow="crop") as live:
        for frame in frames:
            live.update(frame, refresh=True)
            wait()
