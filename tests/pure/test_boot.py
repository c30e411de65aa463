"""What `fwctl boot` writes: a table that only closes, a unit that comes before Docker, nothing that stays behind."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
from collections.abc import Iterable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from plugin import boot
from plugin.cli import main
from plugin.dockerapi import ApiSilent
from plugin.hostlinks import Link
from plugin.look import Look
from plugin.model import FwError, Guarded
from plugin.table import document

MARK = 0x08000000
NFT = "/usr/sbin/nft"
OURS = "br-0123456789ab"
PATHS = [boot.FILE, boot.UNIT, boot.WANTS]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host as it matters here: systemd runs, Docker's unit and nft are there, and somebody else's things."""
    for path in ("usr/lib/systemd/system/docker.service", "usr/sbin/nft", "etc/systemd/system/other.service"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("")
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    return tmp_path


def everything(root: Path) -> dict[str, str]:
    """All that is below a directory: files with their text, links with where they lead."""
    return {
        str(path.relative_to(root)): f"-> {os.readlink(path)}" if path.is_symlink() else
        "directory" if path.is_dir() else path.read_text()
        for path in sorted(root.rglob("*"))
    }  # fmt: skip


# --- the table ----------------------------------------------------------------------------------------------------


def test_it_is_docker_fws_own_table_without_an_exception() -> None:
    """Nothing opens a port: the only elements are names of Docker's bridges and of pairs within one bridge."""
    text = boot.nft_text(MARK, {OURS}, {"br-lan"})
    added = dict(re.findall(r"^add element inet fw (\w+) \{ (.*) \}$", text, re.MULTILINE))
    assert added == {
        "bridges": f'"{OURS}", "docker0", "docker_gwbridge"',
        "dockers": f'"{OURS}", "docker0", "docker_gwbridge"',
        "same_bridge": ", ".join(f'"{n}" . "{n}"' for n in (OURS, "br-lan", "docker0", "docker_gwbridge")),
    }
    without = re.sub(r'( fib saddr)? [io]ifname != \{ "br-lan" \}', "", text)
    head, _, rest = without.partition("table inet fw {")
    assert f"table inet fw {{{rest}".split("add element")[0] == document(MARK, (), cgroups=False, binds=False)
    assert "create table inet fw\n" in head
    assert [line for line in without.splitlines() if line.startswith("insert")] == [
        "insert rule inet fw inbound fib daddr . iif oif exists accept",
        'insert rule inet fw forward ct state new fib saddr oifname "br-*" fib saddr . iif oif missing goto deny',
    ]


def test_a_foreign_bridge_is_left_alone_wherever_the_table_asks_by_index() -> None:
    """Each rule about `@foreign` knows the names too, for both directions, and the one about all of `br-*`."""
    lines = boot.nft_text(MARK, (), {"virbr0", "br-lan"}).splitlines()
    asks = [line for line in lines if "@foreign" in line]
    assert len(asks) == 8
    for line in asks:
        way = "o" if "oif != @foreign" in line else "i"
        assert f'{way}if != @foreign {way}ifname != {{ "br-lan", "virbr0" }} ' in line
    (other,) = (line for line in lines if '"virbr0"' in line and line not in asks and "same_bridge" not in line)
    assert 'fib saddr oifname "br-*" fib saddr oifname != { "br-lan", "virbr0" } fib saddr . iif' in other


def test_a_host_without_other_bridges_gets_no_name() -> None:
    """Where nothing is foreign nothing is exempt."""
    assert "ifname != {" not in boot.nft_text(MARK, (), ())


# --- which bridges ------------------------------------------------------------------------------------------------


class Api:
    """Docker, with networks on these bridges."""

    def __init__(self, *bridges: str) -> None:
        self._networks = [Guarded("a" * 64, "n", b, (IPv4Network("10.0.0.0/24"),)) for b in bridges]

    def bridges(self) -> tuple[frozenset[str], bool]:
        return frozenset(network.bridge for network in self._networks), True


class Silent:
    def bridges(self) -> Any:
        raise ApiSilent("Docker's API did not answer: nobody there")


def links(monkeypatch: pytest.MonkeyPatch, names: Iterable[str]) -> None:
    there = {n: Link(n, name, bridge=True, ours=name.startswith("fw-")) for n, name in enumerate(names, 3)}
    monkeypatch.setattr(boot.hostlinks, "links", lambda: there | {1: Link(1, "lo"), 2: Link(2, "eth0")})


def test_bridges_are_told_apart_by_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Docker lists is Docker's, whatever its name; docker-fw's own and odd names are in neither list."""
    links(monkeypatch, ["docker0", OURS, "br-ffffffffffff", "front1", "virbr0", "br-lan", "fw-0123456789ab", 'a"b'])
    monkeypatch.setattr("plugin.bridges.SETTLE", 0.0)  # no time passes here
    waits: list[float] = []
    dockers, foreign = boot.bridges(Api("docker0", OURS, "front1"), set, waits.append)  # type: ignore[arg-type]
    assert dockers == {"docker0", OURS, "br-ffffffffffff", "front1"}
    assert foreign == {"virbr0", "br-lan"}
    assert waits == [boot.SETTLE]


def test_without_dockers_word_nothing_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent API, or a network namespace where the host's bridges are not to be seen, is an error with advice."""
    links(monkeypatch, ["virbr0"])
    with pytest.raises(FwError, match=r"nobody there.*FW_DOCKER_SOCKET"):
        boot.bridges(Silent(), set, lambda _: None)  # type: ignore[arg-type]
    with pytest.raises(FwError, match=r"docker0 is not to be seen.*--network host"):
        boot.bridges(Api("docker0"), set, lambda _: None)  # type: ignore[arg-type]


# --- the unit -----------------------------------------------------------------------------------------------------


def test_the_unit_comes_before_docker_and_undoes_nothing() -> None:
    """It is ordered before docker.service and after what flushes, Docker's start pulls it in, stopping opens nothing,
    and a table that stands is left alone."""
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(boot.unit_text(NFT))
    assert unit["Unit"]["Before"] == "docker.service"
    assert unit["Unit"]["After"] == "nftables.service"
    assert unit["Unit"]["PartOf"] == "docker.service nftables.service"
    assert set(unit["Service"]) == {"Type", "RemainAfterExit", "ExecStart"}
    assert unit["Service"]["Type"] == "oneshot"
    assert unit["Service"]["ExecStart"] == (
        f"/bin/sh -c '{NFT} -t list table inet fw >/dev/null 2>&1 || exec {NFT} -f /etc/docker-fw/boot.nft'"
    )
    wanted = unit["Install"]["WantedBy"]
    assert os.path.split(boot.WANTS) == (f"etc/systemd/system/{wanted}.wants", os.path.basename(boot.UNIT))


# --- files --------------------------------------------------------------------------------------------------------


def test_install_writes_three_things_and_says_so_once(root: Path) -> None:
    """The file, the unit and the link that systemctl enable would make, and nothing half-made beside them."""
    before = everything(root)
    assert boot.install(root, NFT, "text\n") == PATHS
    assert boot.install(root, NFT, "text\n") == []
    assert boot.install(root, NFT, "other\n") == [boot.FILE]
    after = everything(root)
    assert {k: after[k] for k in PATHS} == {
        boot.FILE: "other\n", boot.UNIT: boot.unit_text(NFT), boot.WANTS: f"-> /{boot.UNIT}",
    }  # fmt: skip
    assert after.keys() - before.keys() == {*PATHS, "etc/docker-fw", os.path.dirname(boot.WANTS)}
    for path in (boot.FILE, boot.UNIT):
        assert (root / path).stat().st_mode & 0o133 == 0


def test_install_mends_what_stands_in_its_way(root: Path) -> None:
    """A link to elsewhere, a changed file, what a crash left: afterwards everything is as it should be."""
    boot.install(root, NFT, "text\n")
    right = everything(root)
    (root / boot.WANTS).unlink()
    (root / boot.WANTS).symlink_to("/dev/null")
    (root / boot.UNIT).unlink()
    (root / boot.UNIT).symlink_to("/dev/null")
    (root / f"{boot.FILE}.new").write_text("half")
    (root / boot.FILE).write_text("old")
    assert boot.install(root, NFT, "text\n") == PATHS
    assert everything(root) == right


def test_remove_takes_exactly_those_away(root: Path) -> None:
    """Afterwards the host is as before, other units and Docker's other wants included; again, it says nothing was."""
    before = everything(root)
    boot.install(root, NFT, "text\n")
    assert boot.remove(root) == [boot.WANTS, boot.UNIT, boot.FILE]
    assert everything(root) == before
    assert boot.remove(root) == []
    other = root / os.path.dirname(boot.WANTS) / "other.service"
    other.parent.mkdir()
    other.symlink_to("/etc/systemd/system/other.service")
    before = everything(root)
    boot.install(root, NFT, "text\n")
    boot.remove(root)
    assert everything(root) == before


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "advice"),
    [
        ("etc", "no host's file system at .* --root"),
        ("run", "not started by systemd; install the managed plugin"),
        ("usr/lib", "no docker.service .* install the managed plugin"),
        ("usr/sbin", "has no nft, .*: apt-get install nftables"),
    ],
)
def test_what_is_missing_on_the_host_is_named(root: Path, missing: str, advice: str) -> None:
    """Each error says what to do, and nothing is written."""
    assert boot.find_nft(root) == NFT
    (root / missing).rename(root / "gone")
    with pytest.raises(FwError, match=advice):
        boot.find_nft(root)


def test_a_file_system_that_does_not_take_it(root: Path) -> None:
    """Which path could not be written, or removed, and why."""
    (root / "etc/docker-fw").write_text("")
    with pytest.raises(FwError, match=r"could not write .*etc/docker-fw.*: File exists"):
        boot.install(root, NFT, "text\n")
    (root / boot.UNIT).mkdir()
    with pytest.raises(FwError, match=r"could not remove .*docker-fw-boot.service: Is a directory"):
        boot.remove(root)


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("netlink: Error: cache initialization failed: Operation not permitted", "--cap-add NET_ADMIN"),
        ("-:7:3-8: Error: syntax error, unexpected typeof", "needs nftables 1.0.6 or newer"),
    ],
)
def test_a_table_that_the_hosts_nft_does_not_take_is_not_installed(
    root: Path, monkeypatch: pytest.MonkeyPatch, said: str, advice: str
) -> None:
    """The host's own nft judges before anything is written, for at boot nobody would see its error."""
    asked: list[Any] = []

    def run(command: list[str], **options: Any) -> Any:
        asked.append((command, options["input"]))
        return subprocess.CompletedProcess(command, int(bool(said)), "", f"{said}\nmore\n")

    monkeypatch.setattr(boot.subprocess, "run", run)
    with pytest.raises(FwError, match=f"{re.escape(said)}.*{advice}"):
        boot.check(root, NFT, "create table inet fw\n")
    said = ""
    boot.check(root, NFT, "create table inet fw\n")
    text = "create table inet fw_check\n"  # the one that stands may be a running docker-fw's own
    assert asked == [(["chroot", str(root), NFT, "--check", "-f", "-"], text)] * 2


def test_the_command(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`fwctl boot install` and `remove` name every path and the next step; an error is one line and status 1."""
    monkeypatch.setattr(boot, "bridges", lambda *_: ({"docker0"}, {"virbr0"}))
    monkeypatch.setattr(boot, "check", lambda *_: None)
    monkeypatch.setattr("plugin.dockerapi.DockerApi.look", lambda _: Look())
    for word in ("wrote", "stood already"):
        assert main(["boot", "install", "--root", str(root)]) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"{word}: /etc/docker-fw/boot.nft\n{word}: /{boot.UNIT}\n{word}: /{boot.WANTS}\n")
        assert "Left alone, for they are not Docker's: virbr0.\n" in said
        assert "systemctl daemon-reload && systemctl start docker-fw-boot" in said
    assert (root / boot.FILE).read_text() == boot.nft_text(MARK, {"docker0"}, {"virbr0"})
    assert main(["boot", "remove", "--root", str(root)]) == 0
    said = capsys.readouterr().out
    assert [f"removed: /{path}" in said for path in PATHS] == [True] * 3
    assert main(["boot", "remove", "--root", str(root)]) == 0
    assert capsys.readouterr().out == "there was nothing to remove\n"
    for what in ("install", "remove"):
        assert main(["boot", what, "--root", str(root / "nowhere")]) == 1
        assert capsys.readouterr().err.startswith("fwctl: there is no host's file system at ")
