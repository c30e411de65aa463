"""The words of `plugin.fwctl.cli.render` on a terminal: colours, and tables that fit its width. Only this knows `rich`.

Text is never read as rich's markup: labels and names of containers are others' words.
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

#: Columns of a terminal from which on a table is easier to read than lines.
_ROOM = 110
_STYLES = {"good": "green", "bad": "bold red", "warn": "yellow", "dim": "dim", "name": "bold", "": ""}


def console(*, color: str, file: Any = None) -> Console:
    """`color`: "auto" or "always", which also counts where there is no terminal."""
    force = True if color == "always" else None
    return Console(file=file, force_terminal=force, highlight=False, soft_wrap=False, emoji=False, markup=False)


def lines(words: Iterable[Line]) -> Iterator[Text]:
    for line in words:
        yield Text.assemble(*((printable(text), _STYLES[style]) for text, style in line))


def status(told: dict[str, Any], width: int) -> RenderableType:
    """A table for each network, where there is room for one."""
    if width < _ROOM:
        return Text("\n").join(lines(render.status_lines(told)))
    parts: list[RenderableType] = []
    for network in render.networks(told):
        table = Table(
            title=Text(printable(render.title(network)), "bold"),
            title_justify="left",
            box=box.SIMPLE_HEAD,
            expand=False,
        )
        table.add_column("container", style="bold", overflow="fold")
        table.add_column("addresses", style="cyan", overflow="fold")
        table.add_column("answers on", overflow="fold")
        table.add_column("besides", overflow="fold")
        for endpoint in network["endpoints"]:
            table.add_row(*_row(endpoint, network, told["now"]))
        parts += [table, *lines([("  " + problem, "bad")] for problem in network.get("problems", []))]
    parts += lines(render.around(told))
    return Group(*parts)


def _row(endpoint: dict[str, Any], network: dict[str, Any], now: float) -> tuple[Text, ...]:
    who = endpoint["container"] or f"endpoint {endpoint['id'][:12]}"
    closed = not endpoint["accepts"]
    accepts = Text(printable(render.accepted(endpoint)), "yellow" if closed else "")
    if not endpoint["known"]:
        accepts.append(" (its labels are not known yet)", "yellow")
    details = Text("\n").join(lines([detail] for detail in render.details(endpoint, network, now)))
    return Text(printable(who)), Text("\n".join(endpoint["addresses"])), accepts, details


def ports(told: dict[str, Any]) -> RenderableType:
    rows = render.published(told)
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
    return Text(printable(text), "bold red")


def watch(on: Console, frames: Iterable[RenderableType], wait: Callable[[], None]) -> None:
    """Shows each in the place of the one before, until they end or somebody interrupts."""
    with Live(console=on, screen=on.is_terminal, auto_refresh=False, vertical_overflow="crop") as live:
        for frame in frames:
            live.update(frame, refresh=True)
            wait()
