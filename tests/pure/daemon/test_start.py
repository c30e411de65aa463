"""The first program of a start: what it does with a boot table that is wrong, and with a socket that is in its way."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from plugin.daemon import start
from plugin.fwctl.host import boot_unit
from plugin.nftables import identity

EXISTS = "Error: Could not process rule: File exists"
TABLE = "create table inet docker-fw\n#until 1000 banned4 192.0.2.1\n#until 2000 banned6_64 2001:db8::/64\n"
#: The same with the bans that are not over at 1500.
WHOLE = f"{TABLE}add element inet docker-fw banned6_64 {{ 2001:db8::/64 timeout 500s }}\n"


def test_a_ban_lasts_for_the_rest_of_its_time() -> None:
    """A ban that is over is not loaded; another gets the seconds that remain."""
    assert start.bans(TABLE, 1000.7) == "add element inet docker-fw banned6_64 { 2001:db8::/64 timeout 1000s }\n"


class FakeNft:
    """libnftables with given answers; keeps what it was asked."""

    asked: list[str]
    answers: list[tuple[int, str, str]]

    def cmd(self, text: str) -> tuple[int, str, str]:
        self.asked.append(text)
        return self.answers.pop(0)


@pytest.fixture
def nft(monkeypatch: pytest.MonkeyPatch) -> type[FakeNft]:
    FakeNft.asked, FakeNft.answers = [], []
    module = types.ModuleType("nftables")
    module.Nftables = FakeNft  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nftables", module)
    monkeypatch.setattr(start.time, "time", lambda: 1500.0)
    monkeypatch.setattr(identity, "any_closes", lambda: False)
    monkeypatch.setattr(identity, "free_name", lambda: "docker-fw")
    return FakeNft


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "boot.nft"
    path.write_text(TABLE)
    return str(path)


def test_the_table_is_loaded_with_its_bans(nft: type[FakeNft], file: str) -> None:
    """One transaction has the table and the bans that are not over."""
    nft.answers = [(0, "", "")]
    assert start.load(file) == start._CREATED
    assert nft.asked == [f"{start._NO_FORMER}{WHOLE}"]


def test_an_existing_table_stays_as_it_is(nft: type[FakeNft], file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that is there may be the one of a docker-fw that has just ended, with all that it opened."""
    monkeypatch.setattr(identity, "any_closes", lambda: True)
    nft.answers = [(1, "", EXISTS)]
    assert start.load(file) == start._EXISTED
    assert len(nft.asked) == 1


def test_another_programs_table_is_not_taken_for_one_that_closes(
    nft: type[FakeNft], file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where that table has docker-fw's name, the boot table gets another; the name of former versions is free again."""
    monkeypatch.setattr(identity, "free_name", lambda: "docker-fw-closed")
    nft.answers = [(1, "", EXISTS), (0, "", "")]
    assert start.load(file) == start._CREATED
    assert nft.asked[1] == WHOLE.replace("docker-fw", "docker-fw-closed")


def test_nothing_counts_as_closed_because_nft_says_that_something_exists(nft: type[FakeNft], file: str) -> None:
    """nft says so too if a ban is part of another, and about a table without rules."""
    nft.answers = [(1, "", EXISTS)] * 3
    assert start.load(file) == start._FAILED


def test_a_boot_table_that_is_no_file_does_not_hold_up_the_start(nft: type[FakeNft], tmp_path: Path) -> None:
    """A FIFO without a writer, opened for reading, would block without an end."""
    os.mkfifo(path := tmp_path / "boot.nft")
    with pytest.raises(OSError, match="is not a file"):
        start.load(str(path))
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        start.load(str(path))


def test_a_refused_ban_does_not_keep_the_table_from_closing(nft: type[FakeNft], file: str) -> None:
    """Without the bans the table still closes everything, and docker-fw adds them when it has started."""
    nft.answers = [(1, "", "Error: interval overlaps")] * 2 + [(0, "", "")]
    assert start.load(file) == start._CREATED
    assert nft.asked[1:] == [WHOLE, TABLE]


def test_a_table_that_cannot_be_loaded_is_reported(
    nft: type[FakeNft], file: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The start continues, and the log has nft's words and the file."""
    nft.answers = [(1, "", "Error: syntax error,\n unexpected newline")] * 3
    assert start.load(file) == start._FAILED
    assert f"docker-fw: {file} could not be loaded: Error: syntax error, unexpected newline" in capfd.readouterr().err


def test_a_table_of_any_length_takes_bounded_memory(
    nft: type[FakeNft], file: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A file longer than docker-fw would write is not read to its end, and reported."""
    monkeypatch.setattr(start, "LONGEST_BOOT_FILE", 10)
    assert start.load(file) == start._FAILED
    assert "is longer than 10 bytes" in capfd.readouterr().err
    assert nft.asked == []


def test_without_a_table_nothing_is_loaded_or_reported(
    nft: type[FakeNft], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """At the first start there is no file."""
    assert start.load(str(tmp_path / "boot.nft")) == start._FAILED
    assert (nft.asked, capfd.readouterr().err) == ([], "")


def test_any_error_is_reported_and_the_start_continues(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Any error of the boot table is only printed: gunicorn and the early table follow."""

    def fails(_: str) -> bytes:
        raise ValueError("an unexpected error")

    monkeypatch.setattr(start, "load", fails)
    assert start._close("boot.nft", None) == start._FAILED
    assert "docker-fw: the boot table: an unexpected error" in capfd.readouterr().err


def test_only_root_may_open_the_socket_and_a_dead_ones_socket_is_replaced(tmp_path: Path) -> None:
    """The socket is bound with mode 0600 and refuses connections until a table closes."""
    path = tmp_path / "fw.sock"
    with socket.socket(socket.AF_UNIX) as former:
        former.bind(str(path))
    sock = start._bound(str(path))
    assert sock
    with sock, socket.socket(socket.AF_UNIX) as client:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        with pytest.raises(ConnectionRefusedError):
            client.connect(str(path))


@pytest.mark.parametrize("waiting", [0, 1])
def test_the_socket_of_a_running_docker_fw_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting: int
) -> None:
    """A second docker-fw ends and says why: Docker would not reach the first one any more. So too if that one hangs."""
    path = str(tmp_path / "fw.sock")
    monkeypatch.setenv("FW_SOCKET", path)
    monkeypatch.setattr(start, "_close", lambda *_: pytest.fail("the second one goes on"))
    with contextlib.ExitStack() as stack:
        first, *clients = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2 + waiting))
        first.bind(path)
        first.listen(0)
        for client in clients[:waiting]:  # it fills the queue
            client.connect(path)
        with pytest.raises(SystemExit, match="another docker-fw runs"):
            start.main()
        if not waiting:
            first.accept()
            clients[0].connect(path)


def test_both_readers_of_the_bans_agree(tmp_path: Path) -> None:
    """The boot unit's script adds the same bans to the table as docker-fw's own start, and both skip damaged lines."""
    later = int(time.time()) + 5000
    bans = [f"{later} banned4 192.0.2.1", "1000 banned4 192.0.2.2", f"{later} banned6_64 2001:db8::/64", "x banned4 y"]
    text = "create table inet docker-fw\n" + "".join(f"#until {ban}\n" for ban in [*bans, "", f"{later}", f"{later} z"])
    (tmp_path / "boot.nft").write_text(text)
    got = tmp_path / "got"
    (tmp_path / "nft").write_text(f'#!/bin/sh\ncase "$*" in "-f -") exec cat >{got};; esac\nexit 1\n')
    (tmp_path / "nft").chmod(0o755)
    script = boot_unit.script_text(str(tmp_path / "nft")).replace(f"/{boot_unit.FILE}", str(tmp_path / "boot.nft"))
    subprocess.run(["sh", "-s"], input=script, text=True, check=True, timeout=20, stderr=subprocess.DEVNULL)
    one, other = (re.sub(r"timeout \d+s", "", each) for each in (got.read_text(), text + start.bans(text, time.time())))
    assert one == other


@pytest.mark.parametrize("blocked", ["file", "missing/fw.sock"])
def test_a_path_that_cannot_be_bound_is_left_to_gunicorn(tmp_path: Path, blocked: str) -> None:
    """A file that is no socket is not removed; gunicorn reports it."""
    (tmp_path / "file").write_text("mine")
    assert start._bound(str(tmp_path / blocked)) is None
    assert (tmp_path / "file").read_text() == "mine"
