"""The files that `fwctl boot` writes: a table that only closes, a unit that runs before Docker, and no others."""

from __future__ import annotations

import configparser
import errno
import os
import re
import subprocess
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, ip_network
from pathlib import Path
from typing import Any

import pytest

from plugin.daemon import early_table
from plugin.docker.snapshot import DockerSnapshot
from plugin.fwctl.cli.main import main
from plugin.fwctl.host import boot_keeper, boot_table, boot_unit
from plugin.kernel.link_monitor import Link
from plugin.model import BridgeNetwork, DockerUnavailable, FwError, Published
from plugin.nftables.document import document, element_text
from plugin.nftables.elements import proxied_element
from plugin.nftables.features import Features
from plugin.nftables.sets import TABLE, Element, spec_of
from plugin.policy.saved import SavedState
from plugin.settings import read

MARK = 0x08000000
NFT = "/usr/sbin/nft"
OURS = "br-0123456789ab"
PATHS = [boot_unit.FILE, boot_unit.SCRIPT, boot_unit.UNIT, boot_unit.WANTS]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host with systemd, Docker's unit, nft and a unit of another program."""
    for path in ("usr/lib/systemd/system/docker.service", "usr/sbin/nft", "etc/systemd/system/other.service"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("")
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    return tmp_path


def everything(root: Path) -> dict[str, str]:
    """Return all entries below a directory: files with their text, links with their targets."""
    return {
        str(path.relative_to(root)): f"-> {os.readlink(path)}"
        if path.is_symlink()
        else "directory"
        if path.is_dir()
        else path.read_text()
        for path in sorted(root.rglob("*"))
    }


# --- the table ----------------------------------------------------------------------------------------------------


def test_the_table_is_docker_fws_without_exceptions() -> None:
    """No element opens a port: the only elements are names of Docker's bridges and of pairs within one bridge."""
    text = boot_table.nft_text(MARK, {OURS}, {"br-lan"})
    added = dict(re.findall(r"^add element inet docker-fw (\w+) \{ (.*) \}$", text, re.MULTILINE))
    assert added == {
        "protected_bridges": f'"{OURS}", "docker0", "docker_gwbridge"',
        "dockers": f'"{OURS}", "docker0", "docker_gwbridge"',
        "same_bridge": ", ".join(f'"{n}" . "{n}"' for n in (OURS, "br-lan", "docker0", "docker_gwbridge")),
    }
    without = re.sub(r'( fib saddr)? [io]ifname != \{ "br-lan" \}', "", text)
    head, _, rest = without.partition("table inet docker-fw {")
    right = document(MARK, (), Features(bridge=False, listeners=False, cgroups=False))
    assert f"table inet docker-fw {{{rest}".split("add element")[0] == right
    assert "create table inet docker-fw\n" in head
    assert [line for line in without.splitlines() if line.startswith("insert")] == [
        "insert rule inet docker-fw inbound fib daddr . iif oif exists accept",
        'insert rule inet docker-fw reverse_path_elsewhere fib saddr oifname "br-*" goto deny',
    ]


def test_an_exempt_bridge_is_named_in_each_rule_by_index() -> None:
    """Each rule with `@unmanaged` also contains the names, for both directions, and so does the one for all of
    `br-*`."""
    lines = boot_table.nft_text(MARK, (), {"virbr0", "br-lan"}).splitlines()
    asks = [line for line in lines if "@unmanaged" in line]
    assert len(asks) == 14
    for line in asks:
        way = "o" if "oif != @unmanaged" in line else "i"
        assert f'{way}if != @unmanaged {way}ifname != {{ "br-lan", "virbr0" }} ' in line
    (other,) = (line for line in lines if '"virbr0"' in line and line not in asks and "same_bridge" not in line)
    assert 'fib saddr oifname "br-*" fib saddr oifname != { "br-lan", "virbr0" } goto deny' in other


def test_a_host_without_other_bridges_gets_no_name() -> None:
    """No bridge is exempt if the host has only Docker's."""
    assert "ifname != {" not in boot_table.nft_text(MARK, (), ())


def test_the_table_has_all_elements_that_close() -> None:
    """Egress-restricted networks, closed ports of the host and bans: all closing elements of the running table are in
    the file. A temporary ban is written with its end, not with the remaining time, which would start again at each
    boot."""
    port = Published("tcp", IPv4Address("0.0.0.0"), 5432, 5432)
    state = SavedState(
        egress_restricted=frozenset({OURS}),
        proxied={"c" * 64: (port,)},
        bans={
            ip_network("203.0.113.9"): 0,
            ip_network("203.0.113.0/24"): 1700000000.5,
            ip_network("2001:db8::1"): 17e8,
        },
        internal=frozenset({"br-internal"}),
    )
    text = boot_table.closing_text(state, {OURS}, (), read({}))
    for element in (
        Element("egress_restricted", (OURS,)),
        proxied_element(port),
        Element("internal", ("br-internal",)),
    ):
        assert document(MARK, [element], Features(bridge=False, cgroups=False)).splitlines()[-1] in text
    assert f"add element inet {TABLE} banned4 {{ 203.0.113.9 }}\n" in text
    assert f"add element inet {TABLE} ban_prefix_families {{ ipv4 }}\n" in text
    assert text.endswith("#until 1700000001 banned4_24 203.0.113.0\n#until 1700000001 banned6 2001:db8::1\n")
    assert "203.0.113.0 timeout" not in text


def test_a_new_version_writes_what_the_kernel_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has all elements of the plugin's first table, except volatile ones: listening programs, numbers of links
    and control groups."""
    state = SavedState(
        egress_restricted=frozenset({OURS}), proxied={"c": (Published("udp", IPv4Address("0.0.0.0"), 53, 53),)}
    )
    put: list[Element] = []

    class Kernel:
        def replace(self, elements: Iterable[Element], *_: object, **__: object) -> None:
            put.extend(elements)

    links(monkeypatch, ["docker0", OURS])
    monkeypatch.setattr(early_table.Store, "load", lambda _: state)
    early_table.close(Kernel(), read({}))  # type: ignore[arg-type]
    text = boot_table.closing_text(state, {OURS, "docker0"}, (), read({}))
    of_now = ("unmanaged", "host_own")
    missing = [
        e for e in put if not spec_of(e.set).raw and not e.set.startswith(of_now) and element_text(e) not in text
    ]
    assert missing == []
    assert len(put) > 10


# --- which bridges ------------------------------------------------------------------------------------------------


class Api:
    """Docker, with networks on these bridges."""

    def __init__(self, *bridges: str) -> None:
        self._networks = [BridgeNetwork("a" * 64, "n", b, (IPv4Network("10.0.0.0/24"),)) for b in bridges]

    def bridges(self) -> tuple[frozenset[str], bool]:
        return frozenset(network.bridge for network in self._networks), True


class Silent:
    def bridges(self) -> Any:
        raise DockerUnavailable("Docker's API did not answer: connection refused")


def links(monkeypatch: pytest.MonkeyPatch, names: Iterable[str]) -> None:
    there = {n: Link(n, name, bridge=True, ours=name.startswith("fw-")) for n, name in enumerate(names, 3)}
    monkeypatch.setattr(boot_table.link_monitor, "links", lambda: there | {1: Link(1, "lo"), 2: Link(2, "eth0")})


def test_dockers_list_identifies_its_bridges(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bridge that Docker lists is Docker's, whatever its name; docker-fw's own and odd names are in neither list."""
    links(monkeypatch, ["docker0", OURS, "br-ffffffffffff", "front1", "virbr0", "br-lan", "fw-0123456789ab", 'a"b'])
    monkeypatch.setattr("plugin.docker.bridges.SETTLE", 0.0)  # no time passes here
    waits: list[float] = []
    dockers, unmanaged = boot_table.bridges(Api("docker0", OURS, "front1"), set, waits.append)  # type: ignore[arg-type]
    assert dockers == {"docker0", OURS, "br-ffffffffffff", "front1"}
    assert unmanaged == {"virbr0", "br-lan"}
    assert waits == [boot_table.SETTLE]


def test_without_dockers_list_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent API, or a network namespace where the host's bridges are not visible, is an error with advice."""
    links(monkeypatch, ["virbr0"])
    with pytest.raises(FwError, match=r"connection refused.*FW_DOCKER_SOCKET"):
        boot_table.bridges(Silent(), set, lambda _: None)  # type: ignore[arg-type]
    with pytest.raises(FwError, match=r"docker0 is not visible.*--network host"):
        boot_table.bridges(Api("docker0"), set, lambda _: None)  # type: ignore[arg-type]


# --- the unit -----------------------------------------------------------------------------------------------------


def test_the_unit_starts_before_docker_and_opens_nothing() -> None:
    """The unit is ordered before docker.service and after services that flush, Docker's start pulls it in, stopping it
    opens nothing, and an existing table is left unchanged."""
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(boot_unit.unit_text())
    assert unit["Unit"]["Before"] == "docker.service"
    assert unit["Unit"]["After"] == "nftables.service"
    assert unit["Unit"]["PartOf"] == "docker.service nftables.service"
    assert set(unit["Service"]) == {"Type", "RemainAfterExit", "ExecStart"}
    assert unit["Service"]["Type"] == "oneshot"
    assert unit["Service"]["ExecStart"] == f"/bin/sh /{boot_unit.SCRIPT}"
    assert f"nft={NFT} file=/{boot_unit.FILE} table={TABLE}\n" in boot_unit.script_text(NFT)
    assert 'ours() { $nft -t list chain inet "$1" deny >/dev/null 2>&1; }\n' in boot_unit.script_text(NFT)
    wanted = unit["Install"]["WantedBy"]
    assert os.path.split(boot_unit.WANTS) == (f"etc/systemd/system/{wanted}.wants", os.path.basename(boot_unit.UNIT))


# --- files --------------------------------------------------------------------------------------------------------


def test_install_writes_three_files_and_reports_them_once(root: Path) -> None:
    """The file, the unit and the link that systemctl enable would create, and no incomplete file next to them."""
    before = everything(root)
    assert boot_unit.install(root, NFT, "text\n") == PATHS
    assert boot_unit.install(root, NFT, "text\n") == []
    assert boot_unit.install(root, NFT, "other\n") == [boot_unit.FILE]
    after = everything(root)
    assert {k: after[k] for k in PATHS} == {
        boot_unit.FILE: "other\n",
        boot_unit.SCRIPT: boot_unit.script_text(NFT),
        boot_unit.UNIT: boot_unit.unit_text(),
        boot_unit.WANTS: f"-> /{boot_unit.UNIT}",
    }
    assert after.keys() - before.keys() == {*PATHS, "etc/docker-fw", os.path.dirname(boot_unit.WANTS)}
    for path in (boot_unit.FILE, boot_unit.SCRIPT, boot_unit.UNIT):
        assert (root / path).stat().st_mode & 0o133 == 0


def test_install_repairs_existing_files(root: Path) -> None:
    """A link to another place, a changed file, leftovers of a crash: afterwards everything is correct."""
    boot_unit.install(root, NFT, "text\n")
    right = everything(root)
    (root / boot_unit.WANTS).unlink()
    (root / boot_unit.WANTS).symlink_to("/dev/null")
    (root / boot_unit.UNIT).unlink()
    (root / boot_unit.UNIT).symlink_to("/dev/null")
    (root / f"{boot_unit.FILE}.new").write_text("half")
    (root / boot_unit.SCRIPT).write_text("exit\n")
    (root / boot_unit.FILE).write_text("old")
    assert boot_unit.install(root, NFT, "text\n") == PATHS
    assert everything(root) == right


def test_remove_deletes_exactly_those_files(root: Path) -> None:
    """Afterwards the host is as before, including other units and Docker's other wants, except for the directory, which
    a sidecar may have mounted; a second removal reports that nothing was there."""
    (root / boot_unit.DIRECTORY).mkdir()
    before = everything(root)
    boot_unit.install(root, NFT, "text\n")
    assert boot_unit.remove(root) == [boot_unit.WANTS, boot_unit.UNIT, boot_unit.SCRIPT, boot_unit.FILE]
    assert everything(root) == before
    assert boot_unit.remove(root) == []
    other = root / os.path.dirname(boot_unit.WANTS) / "other.service"
    other.parent.mkdir()
    other.symlink_to("/etc/systemd/system/other.service")
    before = everything(root)
    boot_unit.install(root, NFT, "text\n")
    boot_unit.remove(root)
    assert everything(root) == before


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "advice"),
    [
        ("etc", "not the host's file system.* --root"),
        ("run", "does not run systemd; install the managed plugin"),
        ("usr/lib", "no docker.service .* install the managed plugin"),
        ("usr/sbin", "has no nft, .*: apt-get install nftables"),
    ],
)
def test_a_missing_part_of_the_host_is_named(root: Path, missing: str, advice: str) -> None:
    """Each error says which part is missing, and what to do."""
    assert boot_unit.find_nft(root) == NFT
    (root / missing).rename(root / "gone")
    with pytest.raises(FwError, match=advice):
        boot_unit.find_nft(root)


def test_a_file_system_that_refuses_is_an_error(root: Path) -> None:
    """The error says which path could not be written or removed, and why."""
    (root / "etc/docker-fw").write_text("")
    with pytest.raises(FwError, match=r"could not write .*etc/docker-fw.*: File exists"):
        boot_unit.install(root, NFT, "text\n")
    (root / boot_unit.UNIT).mkdir()
    with pytest.raises(FwError, match=r"could not remove .*docker-fw-boot.service: Is a directory"):
        boot_unit.remove(root)


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("netlink: Error: cache initialization failed: Operation not permitted", "--cap-add NET_ADMIN"),
        ("-:7:3-8: Error: syntax error, unexpected typeof", "needs nftables 1.0.6 or newer"),
    ],
)
def test_a_table_that_the_hosts_nft_refuses_is_not_installed(
    root: Path, monkeypatch: pytest.MonkeyPatch, message: str, advice: str
) -> None:
    """The host's own nft checks the file before it is written: an error at boot would stay unseen."""
    asked: list[Any] = []

    def run(command: list[str], **options: Any) -> Any:
        asked.append((command, options["input"]))
        return subprocess.CompletedProcess(command, int(bool(message)), "", f"{message}\nmore\n")

    monkeypatch.setattr(boot_unit.subprocess, "run", run)
    with pytest.raises(FwError, match=f"{re.escape(message)}.*{advice}"):
        boot_unit.check(root, NFT, "create table inet docker-fw\n")
    message = ""
    boot_unit.check(root, NFT, "create table inet docker-fw\n")
    text = "create table inet docker-fw-check\n"  # the existing one may be a running docker-fw's own
    assert asked == [(["chroot", str(root), NFT, "--check", "-f", "-"], text)] * 2


def test_the_command_names_its_paths(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`fwctl boot install` and `remove` name every path and the next step; an error is one line and status 1."""
    monkeypatch.setattr(boot_table, "bridges", lambda *_: ({"docker0"}, {"virbr0"}))
    monkeypatch.setattr(boot_unit, "check", lambda *_: None)
    monkeypatch.setattr("plugin.docker.client.DockerApi.look", lambda _: DockerSnapshot())
    for word in ("wrote", "unchanged"):
        assert main(["boot", "install", "--root", str(root)]) == 0
        out = capsys.readouterr().out
        assert out.startswith("".join(f"{word}: /{path}\n" for path in PATHS))
        assert "The file is not kept current: no docker-fw is running here." in out
        assert "Exempt, because they are not Docker's: virbr0.\n" in out
        assert "systemctl daemon-reload && systemctl start docker-fw-boot" in out
    nothing: tuple[Any, ...] = ({"docker0"}, {"virbr0"}, read({}))
    assert (root / boot_unit.FILE).read_text() == boot_table.closing_text(SavedState(), *nothing)
    assert main(["boot", "remove", "--root", str(root)]) == 0
    out = capsys.readouterr().out
    assert [f"removed: /{path}" in out for path in PATHS] == [True] * 4
    assert main(["boot", "remove", "--root", str(root)]) == 0
    assert capsys.readouterr().out == "there was nothing to remove\n"
    for what in ("install", "remove"):
        assert main(["boot", what, "--root", str(root / "nowhere")]) == 1
        assert capsys.readouterr().err.endswith("or give its path: --root\n")


def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    """A file that is no text, as a power cut may leave one, is written anew like one with another text."""
    path = tmp_path / "boot.nft"
    path.write_bytes(b"\xff\xfe")
    assert boot_unit.write(path, "table")
    assert path.read_text() == "table"
    assert not boot_unit.write(path, "table")


def test_a_file_longer_than_any_that_docker_fw_writes_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the names that it has nor a comparison with the new text takes memory for it."""
    path = tmp_path / "boot.nft"
    with path.open("w") as file:
        file.truncate(boot_keeper.LONGEST_BOOT_FILE + 1)
    for read_all in ("read_text", "read_bytes"):
        monkeypatch.setattr(Path, read_all, lambda _: pytest.fail("it is read"))
    assert boot_keeper._File(path, 0o600).text() == ""
    assert boot_unit.write(path, "table")


def test_the_table_is_one_that_an_older_kernel_takes() -> None:
    """Before Linux 5.19 sources are looked up in prerouting only: a table for newer kernels would be refused."""
    for late_fib in (True, False):
        text = boot_table.closing_text(SavedState(), {OURS}, (), read({}), late_fib=late_fib)
        assert ("chain reverse_path_early {" in text) is not late_fib
        assert ("jump reverse_path\n" in text) is late_fib
        assert ("inbound fib daddr . iif oif exists accept" in text) is late_fib


def test_install_writes_the_form_that_the_hosts_kernel_accepts(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On Linux before 5.19 the unit gets that kernel's form; where neither is accepted the command says why."""
    checked: list[str] = []

    def check(_: Path, __: str, text: str) -> None:
        checked.append(text)
        if "chain reverse_path_early {" not in text or refused:
            raise FwError("the host's nft rejects the table")

    monkeypatch.setattr(boot_table, "bridges", lambda *_: ({"docker0"}, set()))
    monkeypatch.setattr(boot_unit, "check", check)
    monkeypatch.setattr("plugin.docker.client.DockerApi.look", lambda _: DockerSnapshot())
    refused = False
    assert main(["boot", "install", "--root", str(root)]) == 0
    assert (root / boot_unit.FILE).read_text() == checked[-1]
    refused = True
    assert main(["boot", "install", "--root", str(root)]) == 1
    assert "rejects the table" in capsys.readouterr().err


def test_a_full_disk_keeps_the_old_file_and_no_half_of_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of a failed write would take the last space, which the state file needs."""
    file = tmp_path / "boot.nft"
    assert boot_unit.write(file, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(boot_unit.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        boot_unit.write(file, "new", suffix="kept")
    assert [path.name for path in tmp_path.iterdir()] == ["boot.nft"]
    assert file.read_text() == "old"
