"""Test a host's own tables with the names that docker-fw uses.

They stay unchanged, and what they close stays closed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from plugin.nftables.sets import CLOSED, FORMER, TABLE, TRIED
from tests.kernel import older
from tests.kernel.host_table import THEIRS, listed
from tests.kernel.running import ROOT, Running, cleanup
from tests.kernel.site import BR_DOCKER, Site, arriving
from tests.waiting import until

DATABASE = [("tcp", str(Site.HOST4), 5432), ("tcp", str(Site.HOST6), 5432)]


def load(fw: Running, name: str) -> str:
    """Load the host's own rules in a table of this name; return nft's listing of them."""
    fw.site.run("nft", "-f", "-", input=THEIRS.format(name))
    return listed(fw, name)


def complete(fw: Running, name: str) -> bool:
    """Return True if the table has its elements: until then it accepts no new flow and no ping."""
    shown = fw.site.run("nft", "list", "set", "inet", name, "loading", check=False).stdout
    return bool(shown) and "elements" not in shown


@contextmanager
def database(fw: Running) -> Iterator[None]:
    """Run PostgreSQL on the host: the outsider reaches it at no moment."""
    with fw.site.host.probe.serve(tcp=[5432]), fw.site.wan.probe.hammer(*DATABASE, every=0.004) as hammer:
        yield
    assert len(hammer.result.shots) > 50
    assert not hammer.result.opened


def test_a_hosts_own_table_under_our_former_name_is_never_touched(own: Running) -> None:
    """The host's `table inet fw` stays as it is, byte by byte, and what it closes never answers.

    This holds over start, a repair after a flush, crash, stop and `fwctl cleanup`; docker-fw works beside it.
    """
    box = own.site.docker_box(BR_DOCKER, 100)
    theirs = load(own, FORMER)
    with database(own):
        own.start()
        assert arriving(own.site, box) == set()
        own.site.run("nft", "delete", "table", "inet", TABLE)
        until(lambda: listed(own, TABLE), "docker-fw's own table is loaded again")
        own.kill_worker()
        own.stop()
        assert listed(own, FORMER) == theirs
        done = cleanup(own)
        assert done.returncode == 0
        assert f"table inet {FORMER} remains: docker-fw did not make it" in done.stdout
    assert listed(own, FORMER) == theirs
    assert listed(own, TABLE) == ""


def test_a_hosts_own_table_that_is_loaded_later_is_never_touched(own: Running) -> None:
    """If nftables.service starts after docker-fw, the host's `table inet fw` is added, and stays over a restart."""
    own.start()
    theirs = load(own, FORMER)
    with database(own):
        own.site.run("nft", "delete", "table", "inet", TABLE)
        until(lambda: listed(own, TABLE), "docker-fw's own table is loaded again")
        own.stop()
        own.start()
    assert listed(own, FORMER) == theirs


@pytest.mark.parametrize("family", ["inet", "bridge"])
def test_another_programs_table_under_our_name_refuses_the_start(own: Running, family: str) -> None:
    """docker-fw opens nothing beside it and touches nothing of it: every request and the log say what to do.

    Bridges are closed by a table of another name, again after a flush, and `cleanup` removes only that one. When the
    other program's table is removed, docker-fw starts, and nothing of the closing table remains.
    """
    box = own.site.docker_box(BR_DOCKER, 100)
    hook = {"inet": "input", "bridge": "prerouting"}[family]
    its = f"table {family} {TABLE} {{ chain c {{ type filter hook {hook} priority 0; tcp dport 5432 drop; }}; }}"
    own.site.run("nft", its)

    def theirs() -> str:
        return own.site.run("nft", "list", "table", family, TABLE).stdout

    before = theirs()
    assert arriving(own.site, box)
    own.start()
    assert arriving(own.site, box) == set()
    todo = f"table {family} {TABLE} on this host was not made by docker-fw"
    assert todo in own.driver("CreateNetwork", own.network(1))["Err"]
    for method, path in (("GET", "/status"), ("POST", "/plan"), ("GET", "/export")):
        error = json.loads(own.raw(method, path, b"{}")[1])["Err"]
        assert todo in error
        assert f"nft delete table {family} {TABLE}" in error
        assert f"table inet {CLOSED} blocks new connections" in error
    assert todo in own.log.read_text()
    own.site.run("nft", "delete", "table", "inet", CLOSED)
    until(lambda: complete(own, CLOSED), "the closing table is loaded again")
    assert arriving(own.site, box) == set()
    assert theirs() == before
    own.stop()
    assert arriving(own.site, box) == set()
    done = cleanup(own)
    assert (done.returncode, listed(own, CLOSED), theirs()) == (0, "", before)
    own.start()
    own.stop()
    own.site.run("nft", "delete", "table", family, TABLE)
    own.start()
    assert own.status()["networks"] == []
    assert arriving(own.site, box) == set()
    assert listed(own, CLOSED) == ""
    assert listed(own, TABLE)


def test_where_both_names_are_taken_nothing_is_touched(own: Running) -> None:
    """Other programs have tables with docker-fw's name and the closing table's name.

    The message says that nothing is filtered.
    """
    before = [load(own, name) for name in (TABLE, CLOSED)]
    own.start()
    error = own.driver("CreateNetwork", own.network(1))["Err"]
    assert f"docker-fw filters nothing, because another program uses the name {CLOSED} too" in error
    until(lambda: "could not be restored" in own.log.read_text(), "the log says so")
    own.stop()
    own.site.run("nft", "add table inet docker-fw_try { chain try { type filter hook forward priority filter; }; }")
    assert cleanup(own).returncode == 0
    assert [listed(own, name) for name in (TABLE, CLOSED)] == before
    assert not listed(own, TRIED), "what a killed start left is removed"


def test_dry_run_says_that_it_would_not_start(own: Running) -> None:
    """`fwctl dry-run` names another program's table with docker-fw's name, and what to do.

    A table with the former name is no obstacle.
    """

    def dry_run(*options: str) -> str:
        with own.site.host.popen(
            [sys.executable, "-m", "plugin.fwctl.cli", "dry-run", *options],
            cwd=ROOT,
            env=own.environ,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            out, _ = process.communicate(timeout=30)
        return out

    load(own, FORMER)
    assert "would not start" not in dry_run()
    before = load(own, TABLE)
    assert dry_run().startswith(f"docker-fw would not start: table inet {TABLE} on this host was not made by docker-fw")
    assert "nft delete table" in json.loads(dry_run("--json"))["refuses"]
    assert listed(own, TABLE) == before


def test_a_flushed_table_of_ours_is_not_relied_on_to_close(own: Running) -> None:
    """A table that was flushed while docker-fw was not running closes nothing.

    So bridges are closed before the socket exists, not when the plugin has been loaded.
    """
    box = own.site.docker_box(BR_DOCKER, 100)
    own.start()
    own.stop()
    own.site.run("nft", "flush", "table", "inet", TABLE)
    assert arriving(own.site, box)
    own.spawn()
    until(own.socket.exists, "the socket is there", 15)
    assert arriving(own.site, box) == set()
    until(own.answers, "the plugin answers", 15)


def test_the_way_back_to_a_version_with_the_former_name(own: Running) -> None:
    """Run while the older docker-fw runs, the README's command removes all of the newer one that would close ports.

    What the older one opens stays open, and closed ports never answer. Run without an older docker-fw, the command does
    nothing.
    """
    web, shut, _ = older.stand(own, "labels")  # its table and the newer one's exist side by side
    own.start()
    killed(own)
    command = way_back()
    own.site.run("sh", "-c", command, check=False)
    assert listed(own, TABLE)
    own.site.run("nft", "-f", str(older.HERE / "labels/table.nft"))
    opened, closed = ("tcp", "10.1.0.2", 8080), [("tcp", "10.1.0.3", 8080), ("tcp", "10.1.0.2", 9090)]
    probe = own.site.wan.probe
    with web.probe.serve(tcp=[8080, 9090]), shut.probe.serve(tcp=[8080]):
        with probe.hammer(*closed, every=0.004) as hammer, probe.hammer(opened, every=0.02) as steady:
            own.site.run("sh", "-c", command)
        assert not hammer.result.opened
        assert not steady.result.failed
        assert probe([opened])[opened] == "open"
    assert listed(own, TABLE) == ""
    assert own.site.run("nft", "list", "tables").stdout.split() == ["table", "inet", FORMER]


def killed(fw: Running) -> None:
    """Kill all of it by SIGKILL."""
    assert fw.process
    for pid in (fw.process.pid, fw.worker()):
        os.kill(pid, signal.SIGKILL)
    fw.process.wait(30)
    fw.process = None


def way_back() -> str:
    """Return the command of the README's paragraph."""
    text = (ROOT / "README.md").read_text().partition("**The way back**")[2]
    return text.partition("```sh\n")[2].partition("```")[0]
