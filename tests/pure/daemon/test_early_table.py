"""The process that closes the bridges before the socket exists: its errors are logged, and the start continues."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from plugin.daemon import early_table
from plugin.model import FwError
from plugin.nftables.client import NftError
from plugin.settings import read


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(early_table.link_monitor, "links", dict)
    return read({"FW_STATE": str(tmp_path / "state.json")})


def test_any_error_is_logged_and_the_start_continues(
    settings: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An unexpected error is in the log with its traceback."""

    def fails(*_: object) -> object:
        raise RuntimeError("an unexpected error")

    monkeypatch.setattr(early_table, "KernelTable", fails)
    handler = logging.StreamHandler(sys.stderr)
    early_table.log.addHandler(handler)
    try:
        early_table.close_first(settings)
    finally:
        early_table.log.removeHandler(handler)
    output = capfd.readouterr().err
    assert "could not load the early table" in output
    assert "RuntimeError: an unexpected error" in output


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Yield the children that are late, as pidfds, and end them."""
    found: list[int] = []
    monkeypatch.setattr(early_table, "_late", found)
    yield found
    early_table.give_way()
    for process in found:
        os.close(process)
        os.waitpid(-1, 0)


def test_on_a_slow_machine_the_table_becomes_active_late_and_not_never(
    settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, late: list[int]
) -> None:
    """The start does not wait longer for a slow table, but that table still closes.

    If docker-fw must end before that, because Docker no longer waits for it, its end waits for the table.
    """
    monkeypatch.setattr(early_table, "KernelTable", lambda *_: (time.sleep(0.5), (tmp_path / "closed").touch()))
    monkeypatch.setattr(early_table, "LONGEST", 0.1)
    early_table.close_first(settings)
    assert late
    assert not (tmp_path / "closed").exists()
    early_table.finish()
    assert (tmp_path / "closed").exists()


def test_a_late_early_table_never_replaces_the_plugins(
    settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, late: list[int]
) -> None:
    """Before the plugin writes its table, a child that is still at work is ended."""
    monkeypatch.setattr(early_table, "KernelTable", lambda *_: (time.sleep(1), (tmp_path / "closed").touch()))
    monkeypatch.setattr(early_table, "LONGEST", 0.1)
    early_table.close_first(settings)
    start = time.monotonic()
    early_table.give_way()
    assert time.monotonic() - start < 0.8
    (process,) = late
    assert select.select([process], [], [], 2)[0]
    assert not (tmp_path / "closed").exists()


def test_a_kernel_that_does_not_answer_does_not_delay_the_start(
    settings: Any, monkeypatch: pytest.MonkeyPatch, late: list[int]
) -> None:
    """The start waits for the kernel for a bounded time; otherwise Docker would disable the plugin, and all ports would
    be open at the next boot."""

    def hangs(*_: object) -> object:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # this is a child, and the handler belongs to the test's time-out
        signal.alarm(60)
        signal.pause()
        raise AssertionError

    monkeypatch.setattr(early_table, "KernelTable", hangs)
    monkeypatch.setattr(early_table, "LONGEST", 0.1)
    start = time.monotonic()
    early_table.close_first(settings)
    assert time.monotonic() - start < 30


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let Docker's list of system calls refuse pidfd_open; return the children whose pidfd was wanted."""
    found: list[int] = []

    def refuse(process: int) -> int:
        found.append(process)
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(early_table.os, "pidfd_open", refuse)
    return found


def test_a_filter_of_system_calls_without_pidfds_does_not_end_the_start(
    settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, children: list[int]
) -> None:
    """Docker's older lists of system calls refuse pidfd_open: the start waits for the table all the same."""
    monkeypatch.setattr(early_table, "KernelTable", lambda *_: (tmp_path / "closed").touch())
    early_table.close_first(settings)
    assert children
    assert (tmp_path / "closed").exists()


def test_without_pidfds_a_late_early_table_is_given_up(
    settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, late: list[int], children: list[int]
) -> None:
    """Without a pidfd it could not be ended later, and must not replace the plugin's table."""
    monkeypatch.setattr(early_table, "KernelTable", lambda *_: (time.sleep(2), (tmp_path / "closed").touch()))
    monkeypatch.setattr(early_table, "LONGEST", 0.1)
    start = time.monotonic()
    early_table.close_first(settings)
    assert time.monotonic() - start < 1.5
    assert late == []
    with pytest.raises(ChildProcessError):  # it has ended and was reaped
        os.waitpid(children[0], os.WNOHANG)
    assert not (tmp_path / "closed").exists()


def test_the_boot_table_of_this_start_is_replaced(
    settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It closes less than the early table; the table of a docker-fw that has just ended stays."""

    class Closing:
        def __init__(self, *_: object) -> None:
            pass

        def closes(self) -> bool:
            return True

    monkeypatch.setattr(early_table, "KernelTable", Closing)
    monkeypatch.setattr(early_table, "close", lambda *_, **__: (tmp_path / "replaced").touch())
    early_table.close_first(settings)
    assert not (tmp_path / "replaced").exists()
    early_table.close_first(settings, replace=True)
    assert (tmp_path / "replaced").exists()


class Table:
    """A kernel that refuses what it is given, `refusals` times."""

    def __init__(self, path: Path, refusals: int) -> None:
        self._path = path
        self._left = refusals

    def closes(self) -> bool:
        return self._path.exists()

    def replace(self, elements: Collection[object], timed: object = None) -> None:
        if self._left:
            self._left -= 1
            raise NftError("Could not process rule: Operation not supported")
        self._path.write_text(f"{len(elements)} elements")


@pytest.mark.parametrize("pidfds", [True, False])
def test_a_kernel_that_refuses_every_table_ends_the_start(
    settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest, pidfds: bool
) -> None:
    """It ends before the socket accepts connections: `docker plugin enable` fails, as nothing would be filtered."""
    if not pidfds:
        request.getfixturevalue("children")
    monkeypatch.setattr(early_table, "_RETRY", 0.05)
    monkeypatch.setattr(early_table, "KernelTable", lambda *_: Table(tmp_path / "table", 1000))
    with pytest.raises(FwError, match="the kernel refuses docker-fw's table"):
        early_table.close_first(settings)


@pytest.mark.parametrize("refusals", [1, 4])
def test_a_kernel_that_refuses_at_first_closes_all_the_same(
    settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refusals: int
) -> None:
    """If elements are refused, a table without elements closes; if each table is, the start tries again for a while."""
    monkeypatch.setattr(early_table, "KernelTable", lambda *_: Table(tmp_path / "table", refusals))
    early_table.close_first(settings)
    assert (tmp_path / "table").exists()


def test_a_refused_early_table_leaves_the_boot_table(
    settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The boot table of this start has bans and restrictions, which a table without elements lacks."""
    (tmp_path / "table").write_text("boot table")
    monkeypatch.setattr(early_table, "KernelTable", lambda *_: Table(tmp_path / "table", 1))
    early_table.close_first(settings, replace=True)
    assert (tmp_path / "table").read_text() == "boot table"
