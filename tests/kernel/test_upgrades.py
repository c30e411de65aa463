"""Upgrades, downgrades and the end: what another version left is taken over, refused or taken away, and never open."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from plugin import netlink as nl
from plugin.store import VERSION
from tests.kernel.netns import inside
from tests.kernel.packets import until
from tests.kernel.running import ROOT, Running
from tests.kernel.site import Site
from tests.kernel.test_guard import NAMED, arriving

RULE = "-m mark --mark {0}/{0} -m comment --comment docker-fw -j ACCEPT"


@pytest.fixture
def own() -> Iterator[Running]:
    """A plugin of one test's own, not started."""
    with Site() as site:
        site.host.sysctl({"net/ipv4/ip_forward": 1, "net/ipv6/conf/all/forwarding": 1})
        made = Running(site)
        yield made
        made.close()


def cleanup(fw: Running) -> subprocess.CompletedProcess[str]:
    """`fwctl cleanup` on the site's host."""
    with fw.site.host.popen(
        [sys.executable, "-m", "plugin.cli", "cleanup"],
        cwd=ROOT, env=fw.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        out, err = process.communicate(timeout=30)
    return subprocess.CompletedProcess("cleanup", process.returncode, out, err)


def test_a_newer_state_file_leaves_no_bridge_open_after_a_boot(own: Running) -> None:
    """After a downgrade and a boot the plugin does not start, but every bridge is closed; the file stays as it is."""
    box = own.site.docker_box(NAMED, 100)
    newer = f'{{"version": {VERSION + 1}}}'
    own.state.parent.mkdir()
    own.state.write_text(newer)
    assert arriving(own.site, box)
    own.spawn()
    assert own.process
    assert own.process.wait(20) != 0
    own.process = None
    assert own.state.read_text() == newer
    assert arriving(own.site, box) == set()


def test_cleanup_beside_a_plugin_that_runs_touches_nothing(own: Running) -> None:
    """Typed too early, `cleanup` says what to stop first, and no network is cut, no port opened."""
    own.start()
    network = own.network(1)
    own.well("CreateNetwork", network)
    links, table = own.site.run("ip", "-br", "link").stdout, own.table()
    done = cleanup(own)
    assert done.returncode != 0
    assert "docker-fw runs on this host" in done.stderr
    assert "docker plugin disable -f fw:latest" in done.stderr
    assert (own.site.run("ip", "-br", "link").stdout, own.table()) == (links, table)
    own.stop()
    assert cleanup(own).returncode == 0
    assert own.table() == ""
    assert own.site.run("ip", "-br", "link").stdout != links


def test_another_mark_leaves_no_rule_of_the_former_one(own: Running) -> None:
    """With another FW_MARK the former rule goes from DOCKER-USER, where it would let through what others mark;
    `cleanup` takes ours away whatever the mark was, and nobody else's."""
    theirs = "-m mark --mark 0x2 -m comment --comment mine -j ACCEPT"
    former, now = RULE.format("0x10000000"), RULE.format(own.environ["FW_MARK"])

    def rules() -> list[str]:
        listed = own.site.run("iptables-nft", "-S", "DOCKER-USER").stdout.replace('"', "").splitlines()
        return [line.removeprefix("-A DOCKER-USER ") for line in listed if line.startswith("-A")]

    own.site.run("iptables-nft", "-N", "DOCKER-USER")
    for rule in (theirs, former):
        own.site.run("iptables-nft", "-A", "DOCKER-USER", *rule.split())
    own.start()
    until(lambda: now in rules() and former not in rules(), "the rule has the new mark alone")
    own.stop()
    own.site.run("iptables-nft", "-A", "DOCKER-USER", *former.split())
    assert cleanup(own).returncode == 0
    assert rules() == ["-m mark --mark 0x2 -m comment --comment mine -j ACCEPT"]


def test_cleanup_takes_away_a_table_whose_owner_died_and_not_one_whose_owner_lives(own: Running) -> None:
    """A table that outlived its owner is nobody's and goes; while the owner lives the error says what to stop."""
    with own.site.host.popen(["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as owner:
        assert owner.stdin
        owner.stdin.write("add table inet fw { flags owner; }\n")
        owner.stdin.flush()
        until(own.table, "the owner has its table")
        done = cleanup(own)
        assert done.returncode == 1
        assert "the table inet fw stays (Operation not permitted): stop the program that owns it first" in done.stderr
        assert own.table()
        owner.stdin.close()
    until(lambda: not own.table(), "the table went with its owner")
    orphan(own)
    assert own.table()
    assert cleanup(own).returncode == 0
    assert own.table() == ""


def orphan(fw: Running) -> None:
    """A table with `flags owner, persist` whose owner is gone (nft 1.0 has no word for it)."""
    body = nl.nfgen(1) + nl.attr(1, b"fw\0") + nl.attr(2, (2 | 4).to_bytes(4, "big"))
    with inside(fw.site.host.path), nl.open_socket() as sock:
        sock.send(nl.message(16, 0, 1, nl.nfgen(0, 10)) + nl.message(2560, 0x405, 2, body)
                  + nl.message(17, 0, 3, nl.nfgen(0, 10)))  # fmt: skip
        assert next(nl.error_of(answer) for kind, _, answer in nl.replies(sock) if kind == nl.NLMSG_ERROR) == 0
