"""Test upgrades, downgrades and removal: another version's remains are adopted, refused or removed, and never open."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from plugin.daemon.early_table import close
from plugin.fwctl.host import boot_table
from plugin.model import Published
from plugin.nftables import dump
from plugin.nftables.codec import NFPROTO_INET
from plugin.nftables.document import skeleton
from plugin.nftables.hooks import HOOKS
from plugin.nftables.identity import SETS_OF_OURS, Found, find
from plugin.nftables.ruleset import Table
from plugin.nftables.sets import FORMER, TABLE
from plugin.paths import BOOT_FILE
from plugin.settings import read
from plugin.state.store import VERSION
from tests.kernel import older
from tests.kernel.packets import arrived, frame, new_flow, ping
from tests.kernel.running import ROOT, Running, cleanup
from tests.kernel.site import BR_DOCKER, MARK, Box, Site, arriving
from tests.lab.netns import FORWARDING
from tests.waiting import until

WEB, SHUT = ("10.1.0.2", "2001:db8:1::2"), ("10.1.0.3", "2001:db8:1::3")
_ports = itertools.count(20000)
RULE = "-m mark --mark {0}/{0} -m comment --comment docker-fw -j ACCEPT"


def lasting(fw: Running) -> str:
    """Return the table, without the seconds that are left of timed elements."""
    return re.sub(r" expires \w+", "", fw.table())


def macs(fw: Running) -> dict[str, str]:
    """Return the host's links with their MACs, but not their states, because a bridge without ports changes its own."""
    return {link["ifname"]: link["address"] for link in json.loads(fw.site.run("ip", "-j", "link").stdout)}


@pytest.mark.parametrize("name", older.NAMES)
def test_an_older_version_is_taken_over(own: Running, name: str) -> None:
    """Started where an older version was killed, docker-fw knows its networks and containers.

    Ports that labels open answer throughout, closed ports never do, and nothing of the older tables remains, which have
    another name.
    """
    spoken = name in ("labels", "bound")  # by fwctl
    web, shut, guest = older.stand(own, name)
    own.command = (sys.executable, "-m", "plugin.daemon.start")  # with a boot table, as after a way back
    own.state.with_name(BOOT_FILE).write_text(boot_table.nft_text(MARK, (), ()))
    hosts, guests = (str(Site.HOST4), str(Site.HOST6)), (str(guest.v4), str(guest.v6))
    never = [("tcp", a, 9090) for a in WEB] + [("tcp", a, 8080) for a in SHUT] + [("tcp", a, 19090) for a in hosts]
    always = [("tcp", a, 8080) for a in WEB] + [("tcp", a, 18080) for a in hosts]
    if name != "driver":
        never += [("tcp", a, 9090) for a in guests]
    probe = own.site.wan.probe
    with (
        web.probe.serve(tcp=[8080, 9090]),
        shut.probe.serve(tcp=[443, 7000, 8080]),
        guest.probe.serve(tcp=[8080, 9090]),
        probe.hammer(*never) as closed,
        probe.hammer(*always, every=0.02, timeout=2) as opened,
    ):
        own.start()
        until(lambda: set(probe([("tcp", a, 8080) for a in guests]).values()) == {"open"}, "the guest answers")
        assert set(probe([("tcp", a, 9090) for a in guests]).values()) == {"silent"}
        spec = probe([("tcp", a, port) for a in SHUT for port in (443, 7000)])
        assert list(spec.values()) == (["silent", "open"] if spoken else ["open", "silent"]) * 2
    assert not closed.result.opened
    assert len(closed.result.shots) > 50
    assert not opened.result.failed
    assert len(opened.result.opened) > 20
    (network,) = own.status()["networks"]
    assert [endpoint["container"] for endpoint in network["endpoints"]] == ["c3", "c2"]
    assert own.status()["banned"] == spoken
    assert {line.split()[2] for line in own.site.run("nft", "list", "tables").stdout.splitlines()} == {TABLE}
    assert json.loads(own.raw("POST", "/plan", b"{}")[1])["drift"] == []
    ours = skeleton(MARK, chains=HOOKS)
    assert set(re.findall(r"chain (\w+) {", own.table())) <= set(re.findall(r"chain (\w+) {", ours))
    sniffer = own.site.sniffer(web)
    forged, true = (new_flow("udp", SHUT[0], WEB[0], 9, sport) for sport in (4001, 4002))
    for mac, packet in (("02:42:0a:01:00:09", forged), ("02:42:0a:01:00:03", true)):
        frame(shut.path, mac, "02:42:0a:01:00:02", packet)
    assert forged not in arrived([sniffer], true)[0]
    for number in (2, 3):
        own.stop_container(own.endpoint(own.network(1), number))
    own.clean()
    assert own.links() == {older.BRIDGE, "d100"}
    assert not any(own.opens(address) for address in (*WEB, *SHUT))


def test_sets_with_former_names_are_taken_over(own: Running) -> None:
    """A responder that the former version kept from reopening its cut flow is kept from it after the upgrade, too.

    The ports of the host's own programs stay known.
    """
    text = skeleton(MARK)
    for now, former in (("quarantine", "held"), ("host_own", "listening"), ("proxy_unidentified", "holding")):
        text = text.replace(now, former)
    cut = {"4": "10.1.0.2 . udp . 53 . 203.0.113.7 . 4000", "6_pairs": "2001:db8:1::2 . gre . 2001:db8:ffff::7"}
    text += "".join(f"add element inet {TABLE} held{kind} {{ {key} }}\n" for kind, key in cut.items())
    text += f"add element inet {TABLE} holding {{ ipv4 }}\nadd element inet {TABLE} listening {{ ipv4 . tcp . 22 }}\n"
    own.site.run("nft", "-f", "-", input=text)
    with own.site.inside():
        assert dump.listening() == {Published("tcp", IPv4Address(0), 22, 22)}
    own.start()
    for kind, key in cut.items():
        assert key in own.site.run("nft", "list", "set", "inet", TABLE, f"quarantine{kind}").stdout


def test_ports_that_docker_proxy_served_are_remembered_across_a_restart(own: Running) -> None:
    """A client's ended connection with the former docker-proxy does not hide the next one from the rules."""
    own.start()
    own.stop()
    own.site.run("nft", "add", "element", "inet", TABLE, "served_ports", "{ ipv4 . tcp . 8080 }")
    with own.site.inside():
        assert dump.served() == {Published("tcp", IPv4Address(0), 8080, 8080)}
    own.start()
    assert "ipv4 . tcp . 8080" in own.site.run("nft", "list", "set", "inet", TABLE, "served_ports").stdout


def test_an_owned_table_of_a_former_version_is_taken_over(own: Running) -> None:
    """An older docker-fw that was killed owned the table: it is removed when the new table is added.

    `cleanup` removes it too.
    """
    sets = [f"add set inet {FORMER} {name} {{ type ipv4_addr; }}" for name in SETS_OF_OURS[NFPROTO_INET]]
    for take in (own.start, lambda: cleanup(own)):
        orphan(own, FORMER, *sets)
        assert identity_of(own).ours == (Table(NFPROTO_INET, FORMER),)
        take()
        assert FORMER not in {table.name for table in identity_of(own).ours}
        own.stop()
        cleanup(own)


def identity_of(fw: Running) -> Found:
    with fw.site.inside():
        return find()


def test_a_newer_state_file_leaves_no_bridge_open_after_a_boot(own: Running) -> None:
    """After a downgrade and a boot every bridge is closed, and again after a flush.

    Every request says what to do, and the file stays as it is. The plugin keeps running, because dockerd disables one
    that exits, and the next boot would find none.
    """
    box = own.site.docker_box(BR_DOCKER, 100)
    newer = f'{{"version": {VERSION + 1}}}'
    own.state.parent.mkdir()
    own.state.write_text(newer)
    assert arriving(own.site, box)
    own.start()
    assert arriving(own.site, box) == set()
    todo = f"newer than this docker-fw (version {VERSION}); install the newer docker-fw again"
    assert todo in own.driver("CreateNetwork", own.network(1))["Err"]
    for method, path in (("GET", "/status"), ("POST", "/plan"), ("GET", "/export"), ("GET", "/drops?follow=1")):
        assert todo in json.loads(own.raw(method, path, b"{}")[1])["Err"]
    assert todo in own.log.read_text()
    own.site.run("nft", "flush", "ruleset")
    until(own.table, "the table is loaded again")
    own.stop()
    assert own.state.read_text() == newer
    assert arriving(own.site, box) == set()


@pytest.mark.parametrize("readable", [True, False], ids=["known restrictions", "none that this version reads"])
def test_a_newer_state_file_keeps_what_it_closes(site: Site, tmp_path: Path, readable: bool) -> None:
    """After a downgrade and a boot, bans apply and egress-restricted bridges stay so, as far as the file is understood.

    If its list of bridges is not understood, no container on any bridge may open a connection.
    """
    site.host.sysctl(FORWARDING)
    restricted, free = site.docker_box(BR_DOCKER, 100), site.docker_box("br-ba9876543210", 101)
    known = {"confined": [BR_DOCKER]} if readable else {"confined": {"of a": "later form"}}
    bans = {str(Site.OUT4): 0, "a later form": 0}
    state = tmp_path / "state.json"
    state.write_text(json.dumps({"version": VERSION + 1, **known, "bans": bans}))
    with site.inside():
        close(site.nft, read({"FW_STATE": str(state), "FW_SYSCTL": "/proc/sys/net", "FW_MARK": hex(MARK)}), lasts=True)
    assert opened(site, restricted) == set()
    assert opened(site, free) == ({6} if readable else set())


def opened(site: Site, box: Box) -> set[int]:
    """Return the families over which a flow of the box reaches the outsider."""
    flows = [new_flow("udp", box.v4, Site.OUT4, 9, next(_ports)), new_flow("udp", box.v6, Site.OUT6, 9, next(_ports))]
    got = site.deliver(flows, site.wan, box, last=ping(site.HOST6, Site.OUT6), witness=site.host)
    return {4 if len(packet.dst) == 4 else 6 for packet in got}


def test_cleanup_beside_a_plugin_that_runs_touches_nothing(own: Running) -> None:
    """If `cleanup` runs too early, it says what to stop first; no network is cut, no port opened."""
    own.start()
    network = own.network(1)
    own.well("CreateNetwork", network)
    links, table = macs(own), lasting(own)
    done = cleanup(own)
    assert done.returncode != 0
    assert "docker-fw runs on this host" in done.stderr
    assert "docker plugin disable -f fw:latest" in done.stderr
    assert (macs(own), lasting(own)) == (links, table)
    own.stop()
    done = cleanup(own)
    assert done.returncode == 0
    assert "forwarding" not in done.stdout  # which was on before
    assert own.table() == ""
    assert macs(own) != links


def test_cleanup_names_the_forwarding_that_docker_fw_enabled(fw: Running) -> None:
    """Forwarding stays enabled, because Docker may need it by now; the output reports it, and how to disable it."""
    fw.start()
    fw.well("CreateNetwork", fw.network(1))
    fw.stop()
    out = cleanup(fw).stdout
    assert "sysctl -w net.ipv4.ip_forward=0" in out
    assert "sysctl -w net.ipv6.conf.all.forwarding=0" in out
    assert "forwarding" not in cleanup(fw).stdout


def test_another_mark_leaves_no_rule_of_the_former_one(own: Running) -> None:
    """With another FW_MARK the former rule is removed from DOCKER-USER, where it would accept what others mark.

    `cleanup` removes docker-fw's rule whatever the mark was, and no other.
    """
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
    """A table that outlived its owner is removed; while the owner lives the error says what to stop."""
    with own.site.host.popen(["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as owner:
        assert owner.stdin
        owner.stdin.write("add table inet docker-fw { flags owner; }\n")
        owner.stdin.flush()
        until(own.table, "the owner has its table")
        done = cleanup(own)
        assert done.returncode == 1
        assert "table inet docker-fw could not be removed (Operation not permitted)" in done.stderr
        assert "stop the program that owns it first" in done.stderr
        assert own.table()
        owner.stdin.close()
    until(lambda: not own.table(), "the table went with its owner")
    orphan(own)
    assert own.table()
    assert cleanup(own).returncode == 0
    assert own.table() == ""


def orphan(fw: Running, name: str = TABLE, *commands: str) -> None:
    """Create a table with `flags owner, persist` whose owner has exited (nft 1.0 has no keyword for it)."""
    program = f"""
from plugin.kernel import netlink as nl
from plugin.nftables.client import NftClient
nft = NftClient()
body = nl.nfgen(1) + nl.attr(1, b"{name}\\0") + nl.attr(2, (2 | 4).to_bytes(4, "big"))
nft._writer.send(nl.message(16, 0, 1, nl.nfgen(0, 10)) + nl.message(2560, 0x405, 2, body)
               + nl.message(17, 0, 3, nl.nfgen(0, 10)))
assert next(nl.error_of(answer) for kind, _, answer in nl.replies(nft._writer) if kind == nl.NLMSG_ERROR) == 0
for command in {commands!r}:
    nft.run(command)
"""
    with fw.site.host.popen([sys.executable, "-c", program], cwd=ROOT) as owner:
        assert owner.wait(30) == 0
