"""Test reports of drops: real packets, the real table and nfnetlink_log, and the whole plugin with `fwctl log`."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from plugin.fwctl.api import droplog
from plugin.fwctl.api.droplog import MAX_DROPS, TAKEN, DropLog
from plugin.fwctl.api.droplog_http import FOLLOWERS
from plugin.fwctl.drop_record import Drop
from plugin.kernel.names import bridge_name
from plugin.kernel.nflog import NfLog, TakenError
from plugin.model import Endpoint, PolicySpec
from plugin.nftables.document import LOG_GROUP
from plugin.policy.view import PolicyView
from tests.kernel.packets import Packet, icmp, tcp, udp
from tests.kernel.running import ROOT, Running, UnixConnection, took
from tests.kernel.site import Box, Site, site_of_module
from tests.lab import NamedNetns
from tests.waiting import until

#: A group of the tests' own, reported without any limit.
GROUP = 77
NO_EGRESS = PolicySpec(egress=())


class Known:
    """The reconciler, with the methods that the drop log uses."""

    def __init__(self, inventory: PolicyView) -> None:
        self._inventory, self._lock = inventory, threading.RLock()

    def read(self, question: Callable[[PolicyView], Any]) -> Any:
        with self._lock:
            return question(self._inventory)


class SiteDropLog:
    """A drop log that runs on the site's host."""

    def __init__(self, site: Site, *endpoints: Endpoint) -> None:
        site.load(*endpoints)
        self.log = DropLog(Known(site.inventory(*endpoints).view), lambda: True)
        self.seen = 0
        with site.inside():
            self._thread = threading.Thread(target=self.log.drop_loop, daemon=True)
            self._thread.start()
        until(lambda: self.log._source is not None, "docker-fw has its group")

    def next(self) -> list[Drop]:
        """Return the packets reported within a second; the test promises at least one."""
        found = self.log.ring.after(self.seen, 1.0)
        self.seen = self.log.ring.newest
        return found

    def one(self) -> Drop:
        (drop,) = self.next()
        return drop

    def end(self) -> None:
        self.log.stop()
        self._thread.join(5)
        assert not self._thread.is_alive()


site = site_of_module()


@pytest.fixture(scope="module")
def boxes(site: Site) -> tuple[Box, Box]:
    """Return containers on two networks, both named "web"."""
    return site.box(site.network(1), 2), site.box(site.network(2), 2)


@contextmanager
def listening(site: Site, *endpoints: Endpoint) -> Iterator[SiteDropLog]:
    drops = SiteDropLog(site, *endpoints)
    try:
        yield drops
    finally:
        drops.end()


# --- one drop -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_a_drop_shows_with_its_containers_name_within_a_second(
    site: Site, boxes: tuple[Box, Box], version: int
) -> None:
    """A packet to a closed port is reported within a second: container, port, source, links and reason."""
    web, _ = boxes
    source, target = (Site.OUT4, web.v4) if version == 4 else (Site.OUT6, web.v6)
    assert web.network
    with listening(site, site.known(web)) as drops:
        site.send([tcp(source, target, 5432, 40000)])
        drop = drops.one()
    of = drop.header
    assert (of.source, of.target, of.proto, of.port, of.from_port) == (source, target, "tcp", 5432, 40000)
    assert (drop.direction, drop.container, drop.source) == ("to", "web", None)
    assert (drop.came_by, drop.went_by) == ("eth0", web.network.bridge)
    assert drop.reason == "web does not accept 5432/tcp"
    assert abs(drop.time - time.time()) < 60


@pytest.mark.parametrize("version", [4, 6])
def test_drops_of_an_egress_restricted_container_are_reported(site: Site, boxes: tuple[Box, Box], version: int) -> None:
    """With `fw.egress: none` an outbound packet, and one to the host, are outbound drops of the container."""
    web, _ = boxes
    assert web.network
    source, outside = (web.v4, Site.OUT4) if version == 4 else (web.v6, Site.OUT6)
    with listening(site, site.known(web, spec=NO_EGRESS)) as drops:
        site.send([udp(source, outside, 53, 40000)], web)
        away = drops.one()
        site.send([tcp(source, Site.HOST4 if version == 4 else Site.HOST6, 2375, 40000)], web)
        home = drops.one()
    assert (away.direction, away.container, away.header.port) == ("by", "web", 53)
    assert (away.came_by, away.went_by) == (web.network.bridge, "eth0")
    assert (home.direction, home.container, home.header.port) == ("by", "web", 2375)
    assert (home.came_by, home.went_by) == (web.network.bridge, "")
    assert "may open no connections" in away.reason
    assert "may open no connections" in home.reason


def test_accepted_packets_are_not_reported(site: Site, boxes: tuple[Box, Box]) -> None:
    """Only drops are reported: neither packets that the policy accepts, nor ICMP that is always accepted."""
    web, _ = boxes
    with listening(site, site.known(web)) as drops:
        site.send([tcp(Site.OUT6, web.v6, 80, 40001), icmp(Site.OUT6, web.v6, 128), tcp(Site.OUT6, web.v6, 81, 40001)])
        assert drops.one().header.port == 81


def test_any_protocol_shows(site: Site, boxes: tuple[Box, Box]) -> None:
    """A drop of a protocol without ports, or of a bare header, is reported as what it is."""
    web, _ = boxes
    packets = [
        Packet(Site.OUT6.packed, web.v6.packed, proto, data)
        for proto, data in ((47, bytes(4)), (89, b"x"), (59, b""), (17, bytes(8)), (132, bytes(1200)))
    ]
    with listening(site, site.known(web)) as drops:
        site.send(packets)
        found: list[Drop] = []
        until(lambda: found.extend(drops.next()) or len(found) >= len(packets), "each is reported")  # type: ignore[func-returns-value]
    assert {drop.header.proto for drop in found} == {"gre", "89", "59", "udp", "sctp"}
    assert {drop.container for drop in found} == {"web"}


# --- many ---------------------------------------------------------------------------------------------------------


def test_a_flood_is_bounded_and_hides_no_other_drop(site: Site, boxes: tuple[Box, Box]) -> None:
    """Of 20,000 packets to one container a few a second are reported, and no more are stored than the limit.

    A drop of another container is still reported within a second.
    """
    web, other = boxes
    with listening(site, site.known(web), site.known(other)) as drops:
        began = time.monotonic()
        site.send(tcp(Site.OUT4, web.v4, 1000 + n % 60000, 1 + n // 60000) for n in range(20_000))
        site.send([tcp(Site.OUT4, other.v4, 5432, 40000)])
        found: list[Drop] = []
        until(
            lambda: found.extend(drops.next()) or any(d.header.target == other.v4 for d in found),  # type: ignore[func-returns-value]
            "the other's drop is reported",
            1,
        )
        seconds = time.monotonic() - began
    assert sum(drop.header.target == web.v4 for drop in found) <= 20 + 5 * (seconds + 1)
    assert len(found) <= MAX_DROPS


def report_all_to(site: Site, group: int) -> None:
    """Add a test table that reports every packet from outside."""
    site.run(
        "nft",
        "-f",
        "-",
        input=f"""
        table inet report_all {{}}
        delete table inet report_all
        table inet report_all {{
            chain forward {{ type filter hook forward priority -10; log group {group} snaplen 128; }}
        }}
    """,
    )


@pytest.fixture
def report_all(site: Site) -> Iterator[Callable[[int], None]]:
    yield lambda group: report_all_to(site, group)
    site.run("nft", "delete", "table", "inet", "report_all", check=False)


def test_a_reader_that_stops_delays_no_packet(
    site: Site, boxes: tuple[Box, Box], report_all: Callable[[int], None]
) -> None:
    """Packets that are reported faster than they are read pass as usual; some reports are lost, which is counted.

    Later packets are reported again.
    """
    web, _ = boxes
    site.load(site.known(web))
    report_all(GROUP)
    with site.inside():
        log = NfLog(GROUP)
    with closing(log):
        flood = [udp(Site.OUT4, web.v4, 9, 1 + n % 60000, bytes(200)) for n in range(30_000)]
        assert site.deliver([*flood, tcp(Site.OUT4, web.v4, 80, 40002)], web)
        while log.read() or not log.lost:
            pass  # the socket's content, and the error that some reports did not fit
        while log.read():
            pass
        site.send([tcp(Site.OUT4, web.v4, 80, 40003)])
        ports: list[bytes] = []
        until(
            lambda: ports.extend(each.payload[20:22] for each in log.read()) or (40003).to_bytes(2, "big") in ports,  # type: ignore[func-returns-value]
            "later packets are reported",
        )


def test_a_flood_by_another_programs_rules_is_only_sampled(
    site: Site, boxes: tuple[Box, Box], report_all: Callable[[int], None]
) -> None:
    """Another program's rules that send every packet to docker-fw's group cost bounded time and memory."""
    web, _ = boxes
    with listening(site, site.known(web)) as drops:
        report_all(LOG_GROUP)
        began = time.monotonic()
        site.send(udp(Site.OUT4, web.v4, 9, 1 + n % 60000) for n in range(30_000))
        until(lambda: drops.log.ring.newest > 0, "some drops are reported")
        seconds = time.monotonic() - began
        assert drops.log.ring.newest <= droplog._RATE * (seconds + 1)
        assert len(drops.log.ring.after(0)) <= MAX_DROPS


# --- the group ------------------------------------------------------------------------------------------------------


def test_one_listener_has_a_group(site: Site) -> None:
    """A second listener is refused with its own error type; when the first closes, the group is free at once."""
    with site.inside():
        first = NfLog(GROUP)
        with pytest.raises(TakenError):
            NfLog(GROUP)
        NfLog(GROUP + 1).close()
        first.close()
        NfLog(GROUP).close()


def test_another_program_in_our_group_is_reported_and_outlived(
    site: Site, boxes: tuple[Box, Box], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While another program uses docker-fw's group a warning says so; when it ends, drops are reported again."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(droplog, "RETRY", 0.02)
    web, _ = boxes
    endpoint = site.known(web)
    site.load(endpoint)
    log = DropLog(Known(site.inventory(endpoint).view), lambda: True)
    with site.inside():
        other = NfLog(LOG_GROUP)
        thread = threading.Thread(target=log.drop_loop, daemon=True)
        thread.start()
    try:
        until(lambda: log.trouble == TAKEN, "docker-fw knows that the group is another's")
        other.close()
        until(lambda: not log.trouble, "docker-fw has the group")
        site.send([tcp(Site.OUT4, web.v4, 5432, 40000)])
        assert [drop.container for drop in log.ring.after(0, 1)] == ["web"]
    finally:
        log.stop()
        thread.join(5)
    messages = [r.getMessage() for r in caplog.records if r.name == "plugin.fwctl.api.droplog"]
    assert messages == [TAKEN, "drops are reported again"]


# --- the whole plugin -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with Site() as site, closing(Running(site)) as made:
        yield made.start()


def start_two(running: Running) -> NamedNetns:
    """Start a container c2 that logs, 10.1.0.2, and c3 that does not, 10.1.0.3."""
    net = running.network(1)
    running.well("CreateNetwork", net)
    second = running.start_container(net, 3)
    running.move(second)
    return running.move(running.start_container(net, 2, {"fw.log": "drop"}), bridge_name(net["NetworkID"]))


@pytest.fixture(scope="module")
def web(running: Running) -> NamedNetns:
    """Start these two containers."""
    return start_two(running)


class DockerFollower:
    """A client of `GET /drops`."""

    def __init__(self, running: Running, query: str = "?follow=1") -> None:
        self.connection = UnixConnection(running.socket, 10)
        self.connection.request("GET", f"/drops{query}", headers={"Connection": "close"})
        self.reply = self.connection.getresponse()

    def next(self) -> Any:
        return json.loads(self.reply.readline())

    def drop(self) -> Any:
        while "newest" in (line := self.next()):
            pass
        return line

    def await_drop(self, container: str, port: int) -> None:
        """Read up to a drop of the container at this port: those of earlier tests may still arrive."""
        while (found := self.drop())["container"] != container or found["port"] != port:
            pass

    def close(self) -> None:
        self.reply.close()
        self.connection.close()


def test_the_plugin_reports_drops_and_logs_those_with_the_label(running: Running, web: NamedNetns) -> None:
    """A follower gets a drop within a second with the container's name.

    The log has it too where fw.log is drop, but not for the neighbour without that label.
    """
    with closing(DockerFollower(running)) as follower:
        began = time.monotonic()
        running.site.send([tcp(Site.OUT4, "10.1.0.3", 5432, 40000)])
        follower.await_drop("c3", 5432)
        running.site.send([tcp(Site.OUT6, "2001:db8:1::2", 5432, 40000)])
        follower.await_drop("c2", 5432)
        assert took(began) < 2
    text = f"dropped: c2 2001:db8:1::2 5432/tcp from {Site.OUT6} (inbound; as of now: c2 does not accept 5432/tcp)"
    until(lambda: text in running.log.read_text(), "the drop is in the log")
    assert "c3" not in running.log.read_text()


def kept_ports(running: Running) -> list[int | None]:
    status, reply = running.raw("GET", "/drops")
    assert status == 200
    return [json.loads(text).get("port") for text in reply.splitlines()]


@contextmanager
def fwctl(running: Running, *argv: str) -> Iterator[subprocess.Popen[str]]:
    """Run `fwctl log`, killed at the end."""
    shown = subprocess.Popen(
        [sys.executable, "-m", "plugin.fwctl.cli", "log", "--socket", str(running.socket), *argv],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    with shown:
        try:
            yield shown
        finally:
            shown.kill()


def place(running: Running) -> DockerFollower:
    """Open a follower that has its place; those of earlier tests are released within a second."""
    found: list[DockerFollower] = []

    def there() -> bool:
        found.append(DockerFollower(running))
        if found[-1].reply.status != 200:
            found.pop().close()
        return bool(found)

    until(there, "there is a place")
    return found[0]


def test_the_command_shows_drops_as_they_happen(running: Running, web: NamedNetns) -> None:
    """`fwctl log` prints the last drops and then each new one; --no-follow exits; --json is machine-readable."""
    running.site.send([tcp(Site.OUT4, "10.1.0.2", 7001, 40001)])
    until(lambda: 7001 in kept_ports(running), "the drop is reported")
    with fwctl(running, "c2", "-n", "1") as shown:
        assert shown.stdout
        assert " c2 10.1.0.2 7001/tcp from " in shown.stdout.readline()
        running.site.send([tcp(Site.OUT4, "10.1.0.3", 7002, 40001), tcp(Site.OUT4, "10.1.0.2", 7003, 40001)])
        assert " c2 10.1.0.2 7003/tcp from " in shown.stdout.readline()
    with fwctl(running, "--no-follow", "--json", "-n", "2") as shown:
        out, _ = shown.communicate(timeout=10)
    assert shown.returncode == 0
    assert {json.loads(line)["port"] for line in out.splitlines()} == {7002, 7003}


def test_followers_do_not_starve_dockers_hooks(running: Running, web: NamedNetns) -> None:
    """Four clients follow at once; a fifth gets the reason; hooks are answered; an ended one frees its place."""
    with ExitStack() as stack:
        there = [stack.enter_context(closing(place(running))) for _ in range(FOLLOWERS)]
        fifth = stack.enter_context(closing(DockerFollower(running)))
        assert fifth.reply.status == 503
        assert "clients follow the drops" in json.loads(fifth.reply.read())["Err"]
        with fwctl(running) as shown:
            _, spec = shown.communicate(timeout=10)
        assert (shown.returncode, "clients follow the drops" in spec) == (1, True)
        for _ in range(20):
            began = time.monotonic()
            assert "Err" not in running.driver("GetCapabilities")
            assert took(began) < 1
        there[0].close()
        place(running).close()


def test_followers_do_not_keep_the_plugin_from_stopping(running: Running) -> None:
    """With four followers that do not read, docker-fw stops as fast as without; one that reads sees the end."""
    with Site() as site:
        own = Running(site)
        try:
            own.start()
            followers = [DockerFollower(own) for _ in range(FOLLOWERS)]
            assert [follower.next() for follower in followers] == [{"newest": 0, "lost": 0}] * FOLLOWERS
            with ExitStack() as stack:
                reading = stack.enter_context(closing(followers.pop()))
                for follower in followers:
                    stack.enter_context(closing(follower))
                began = time.monotonic()
                own.stop()
                assert took(began) < 7  # gunicorn gives up after 8, Docker after 10
                while reading.reply.readline():
                    pass
        finally:
            own.close()


def test_fwctl_says_when_docker_fw_ends_or_is_not_there(running: Running) -> None:
    """When docker-fw stops while a client follows, or is not running, one line says so and the exit status is 1."""
    with Site() as site:
        own = Running(site)
        try:
            own.start()
            with fwctl(own) as shown:
                assert shown.stderr
                assert shown.stderr.readline() == "fwctl: no packet was dropped yet; waiting\n"
                own.stop()
                assert shown.wait(10) == 1
                assert shown.stderr.read() == "fwctl: docker-fw has stopped\n"
            with fwctl(own) as shown:
                _, spec = shown.communicate(timeout=10)
            assert shown.returncode == 1
            assert spec.startswith(f"fwctl: {own.socket} does not answer: ")
            assert len(spec.splitlines()) == 1
        finally:
            own.close()


def memory(pid: int) -> int:
    """Return a process's resident memory in KiB."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0])


def test_a_flood_does_not_grow_the_plugin() -> None:
    """A hundred thousand dropped packets leave the plugin's memory as it is, within 8 MiB, and hooks are answered."""
    with Site() as site, closing(Running(site)) as running:  # a limit on lines of the log lasts longer than a flood
        start_two(running.start())
        flood(running)


def flood(running: Running) -> None:
    """Send the packets, and compare the memory before and after."""
    site = running.site
    site.send(tcp(Site.OUT4, "10.1.0.2", 1000 + n, 1) for n in range(2_000))
    before = memory(running.worker())
    for round_ in range(10):
        site.send(tcp(Site.OUT4, "10.1.0.2", 1000 + n, 2 + round_) for n in range(10_000))
        began = time.monotonic()
        assert "Err" not in running.driver("GetCapabilities")
        assert took(began) < 2
    assert memory(running.worker()) - before < 8 << 10
