"""gunicorn's configuration for a plugin that dies at a chosen step. `gunicorn -c python:tests.kernel.crashing`.

A step is any change outside of the process: to the disk, the table, a link, a sysctl, a flow. While the file `$CRASH`
contains `NUMBER before 1` (or `after`), each step decrements the number, and at zero the worker dies by SIGKILL, before
or after that step. The step's name is then the last line of `$CRASH.died`. With a 0 at the end, steps before which
nothing has happened, or that only configure a link, are not counted.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pyroute2 import IPRoute

import plugin.daemon.plugin  # here, and so not in each new worker  # noqa: F401
from plugin.gunicorn_conf import *  # noqa: F403
from plugin.kernel import conntrack, links, neighbours
from plugin.kernel.sysctl import Sysctl
from plugin.nftables.client import NftClient
from plugin.state import closed_flows, journal, store

ORDER = Path(os.environ["CRASH"])
DIED = Path(f"{ORDER}.died")
_lock = threading.Lock()
PLAIN = ("_write ", "addr ", "link set", "neighbour ", "fdb ", "brport ", "mkdir ", "unlink ", "open ", "write a line")
Call = Callable[..., Any]


def _maybe(when: str, name: str) -> None:
    with _lock:
        try:
            number, ordered, every = ORDER.read_text().split()
        except FileNotFoundError:
            return
        if ordered != when or (every == "0" and name.startswith(PLAIN)):
            return
        if int(number) > 1:
            ORDER.write_text(f"{int(number) - 1} {when} {every}")
            return
        with DIED.open("a") as died:
            died.write(f"{name}\n")
        ORDER.unlink(missing_ok=True)
        os.kill(os.getpid(), signal.SIGKILL)


def _step(call: Call, name: str = "") -> Call:
    def stepping(*args: Any, **kwargs: Any) -> Any:
        step = name or " ".join((call.__name__, *map(str, args[1:])))
        _maybe("before", step)
        result = call(*args, **kwargs)
        _maybe("after", step)
        return result

    return stepping


class _File:
    """The new state file, while it is written."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.write, self.flush = _step(file.write, "write the state"), file.flush

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        _maybe("before", "close the state")
        self._file.close()


class _StatePath(type(Path())):  # type: ignore[misc]
    replace, unlink, mkdir = (
        _step(getattr(Path, name), f"{name} the state") for name in ("replace", "unlink", "mkdir")
    )


def _torn(fd: int, line: bytes) -> int:
    """Write a line of the log; it may break off in the middle."""
    written = os.write(fd, line[: len(line) // 2])
    _maybe("before", "write the rest of a line")
    return written + os.write(fd, line[written:])


def _own(module: Any, **steps: Call) -> None:
    """Give a module an `os` of its own."""
    module.os = SimpleNamespace(**{**vars(os), **steps})


class _IPRoute:
    """Count changing calls as steps, but not queries."""

    def __init__(self) -> None:
        self._ipr = IPRoute()

    def __getattr__(self, name: str) -> Call:
        call = getattr(self._ipr, name)

        def calling(verb: str, **kwargs: Any) -> Any:
            return (call if verb in ("get", "dump") else _step(call, f"{name} {verb}"))(verb, **kwargs)

        return calling


_own(store, open=_step(os.open, "open the state"), fsync=_step(os.fsync), link=_step(os.link, "keep the state"))
_own(journal, open=_step(os.open, "open the log"), write=_step(_torn, "write a line"))
store.Path = _StatePath  # type: ignore[attr-defined]
store.open = lambda *args, **kwargs: _File(open(*args, **kwargs))  # type: ignore[attr-defined]  # noqa: SIM115
for name in ("_put", "_remove"):
    setattr(neighbours, name, _step(getattr(neighbours, name), f"neighbour entry{name}"))
links.IPRoute = _IPRoute  # type: ignore[attr-defined]
for _name in ("run", "send"):
    setattr(NftClient, _name, _step(getattr(NftClient, _name), f"nft {_name}"))
Sysctl._write = _step(Sysctl._write)  # type: ignore[method-assign]
for _module, _name in (
    (conntrack, "cut_addresses"),
    (closed_flows, "cut_closed"),
    (conntrack, "cut_published"),
    (closed_flows, "cut_unknown"),
    (conntrack, "cut_prefixes"),
):
    setattr(_module, _name, _step(getattr(_module, _name), _name))
