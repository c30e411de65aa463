"""Test the start on a slow machine: dockerd waits ten seconds for the plugin's socket, and disables the plugin then."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
import time
from pathlib import Path

import pytest

from plugin.nftables.sets import TABLE
from plugin.paths import BOOT_FILE
from tests.kernel.host_table import THEIRS, listed
from tests.kernel.running import Running
from tests.kernel.site import BR_DOCKER, Site, arriving
from tests.lab import Wan
from tests.waiting import until

#: dockerd's last attempt, in seconds from the start of the plugin.
LAST_ATTEMPT = 9.5
#: A service of the host's own.
SERVICE = 2222


def accepts(fw: Running) -> bool:
    """Return True if the socket accepts a connection, as dockerd finds out whether the plugin is there."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(fw.socket)) == 0


def environment(directory: Path, gunicorn: str) -> str:
    """Make a virtual environment like the tests' own, but with another program `gunicorn`; return its Python."""
    own = Path(sys.executable).parent
    (directory / "bin").mkdir(parents=True)
    shutil.copy(own.parent / "pyvenv.cfg", directory)
    os.symlink(own.parent / "lib", directory / "lib")
    os.symlink(os.path.realpath(sys.executable), directory / "bin/python")
    program = directory / "bin/gunicorn"
    program.write_text(f'#!/bin/sh\n{gunicorn}\nexec {own}/gunicorn "$@"\n')
    program.chmod(0o755)
    return str(directory / "bin/python")


@pytest.fixture
def fw(own: Running, tmp_path: Path) -> Running:
    """Return a docker-fw whose gunicorn needs a second more than dockerd waits; the first start is a normal one."""
    own.command = (sys.executable, "-m", "plugin.daemon.start")
    own.start()
    file = own.state.parent / BOOT_FILE
    bans = {"bans": [{"address": Wan.V4}, {"address": Wan.V6, "seconds": 3600}]}
    assert own.raw("POST", "/ban", json.dumps(bans).encode(), headers={"Content-Type": "application/json"})[0] == 200
    until(lambda: file.is_file() and Wan.V4 in file.read_text(), "the boot table is written, with the bans")
    own.stop()
    own.command = (environment(tmp_path / "venv", f"sleep {LAST_ATTEMPT + 1}"), "-m", "plugin.daemon.start")
    return own


def boot(fw: Running) -> None:
    """Take the host to where Docker starts the plugin."""
    fw.site.run("nft", "flush", "ruleset")
    fw.site.forget_flows()


def test_at_a_slow_boot_all_is_closed_and_dockerd_does_not_give_up(fw: Running) -> None:
    """However long gunicorn takes, the socket accepts connections in time, and nothing passes to a container then.

    Bans apply too, those that expire for the rest of their time. Later docker-fw answers the requests that dockerd has
    sent meanwhile.
    """
    box = fw.site.docker_box(BR_DOCKER, 100)
    boot(fw)
    assert arriving(fw.site, box)
    start = time.monotonic()
    fw.spawn()
    until(lambda: accepts(fw), "the socket accepts a connection", LAST_ATTEMPT)
    assert time.monotonic() - start > 4, "dockerd should wait for the early table as long as it can"
    assert arriving(fw.site, box) == set()
    with fw.site.host.probe.serve(tcp=[SERVICE]):
        for host, good, banned in ((Site.HOST4, Wan.FAR_V4, Wan.V4), (Site.HOST6, Wan.FAR_V6, Wan.V6)):
            assert fw.site.wan.probe.tcp(str(host), SERVICE, source=good) == "open"
            assert fw.site.wan.probe.tcp(str(host), SERVICE, source=banned) == "silent"
    assert fw.call("Plugin.Activate", timeout=60) == {"Implements": ["NetworkDriver"]}
    until(fw.answers, "the plugin answers", 30)
    assert arriving(fw.site, box) == set()
    assert "this machine is slow" in fw.log.read_text()
    assert fw.worker(), "no other process is left"


def test_without_a_boot_table_the_socket_accepts_nothing_before_the_early_table(fw: Running) -> None:
    """If nothing closes yet, dockerd must not start the containers: it may rather disable the plugin, and say so."""
    (fw.state.parent / BOOT_FILE).unlink()
    box = fw.site.docker_box(BR_DOCKER, 100)
    boot(fw)
    fw.spawn()
    until(lambda: accepts(fw), "the socket accepts a connection", 40)
    assert arriving(fw.site, box) == set()
    until(fw.answers, "the plugin answers", 30)
    assert fw.worker(), "no other process is left"


def test_a_restart_leaves_the_table_and_what_it_opened(fw: Running) -> None:
    """The boot table is for a boot: over a restart of docker-fw, slow or not, what was open answers without a gap."""
    site = fw.site
    fw.command = (sys.executable, "-m", "plugin.daemon.start")
    fw.start()
    network = fw.network(77)
    fw.well("CreateNetwork", network)
    box = fw.move(fw.start_container(network, 2, {"fw.allow": "8080"}))
    with box.probe.serve(tcp=[8080, 9090]):
        until(lambda: site.wan.probe.tcp(str(box.v4), 8080, source=Wan.FAR_V4) == "open", "the label opens its port")
        with site.wan.probe.hammer(("tcp", str(box.v4), 8080), every=0.02, source=Wan.FAR_V4) as hammer:
            fw.stop()
            fw.start()
            assert site.wan.probe.tcp(str(box.v4), 9090, source=Wan.FAR_V4) == "silent"
        assert not hammer.result.failed


def test_another_programs_table_of_this_name_does_not_count_as_closed(fw: Running) -> None:
    """Where another program's table has docker-fw's name, the start closes with a table of another name."""
    site = fw.site
    box = site.docker_box(BR_DOCKER, 100)
    boot(fw)
    site.run("nft", "-f", "-", input=THEIRS.format(TABLE))
    theirs = listed(fw, TABLE)
    assert arriving(site, box)
    fw.spawn()
    until(lambda: accepts(fw), "the socket accepts a connection", 40)
    assert arriving(site, box) == set()
    assert listed(fw, TABLE) == theirs


@pytest.mark.parametrize(
    "change", ["flush ruleset", "flush table inet docker-fw", "add table inet docker-fw { flags dormant; }"]
)
def test_a_table_that_another_program_disarms_does_not_count_as_closed(fw: Running, change: str) -> None:
    """A table without rules, or one that is dormant, closes nothing: the socket accepts nothing because of it."""
    site = fw.site
    box = site.docker_box(BR_DOCKER, 100)
    boot(fw)
    fw.spawn()
    until(fw.table, "the boot table is there", 5)
    assert arriving(site, box) == set()
    site.run("nft", change)
    assert arriving(site, box)
    until(lambda: accepts(fw), "the socket accepts a connection", 40)
    assert arriving(site, box) == set()


def test_a_start_while_docker_is_silent_forgets_nothing_that_closes(fw: Running) -> None:
    """Internal networks and bridges with a name of the user's stay in the file until Docker's list replaces them.

    At a boot Docker's API answers after docker-fw's start. A power cut before that must not leave a file that
    closes less.
    """
    file = fw.state.parent / BOOT_FILE
    fw.command = (sys.executable, "-m", "plugin.daemon.start")
    fw.docker.bridge_network("a" * 64, "inner", "10.100.0.0/24", bridge="inner0")
    fw.docker.networks["a" * 64]["Internal"] = True
    fw.site.docker_box("inner0", 100)
    fw.start()
    until(lambda: 'internal { "inner0" }' in file.read_text(), "the internal network is written")
    assert re.search(r' dockers \{ [^}]*"inner0"', file.read_text())
    fw.stop()
    fw.site.run("ip", "link", "del", "inner0")
    fw.docker.mode = "hang"
    boot(fw)
    former = file.stat().st_mtime_ns
    fw.start()
    body = json.dumps({"bans": [{"address": "203.0.113.99"}]}).encode()
    assert fw.raw("POST", "/ban", body, headers={"Content-Type": "application/json"})[0] == 200
    until(lambda: file.stat().st_mtime_ns != former and "203.0.113.99" in file.read_text(), "it is written again")
    assert 'internal { "inner0" }' in file.read_text()
    assert re.search(r' dockers \{ [^}]*"inner0"', file.read_text())
    del fw.docker.networks["a" * 64]
    fw.docker.mode = "answer"
    until(lambda: "inner0" not in file.read_text(), "Docker's list replaces what was remembered", 30)
