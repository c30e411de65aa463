"""Test `fwctl` with a running plugin and real packets: its answers are true, and its changes take effect."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from plugin.fwctl.socket_client import ask
from tests.kernel.netns import inside, nowhere
from tests.kernel.running import Body, Running
from tests.kernel.site import Site
from tests.lab import NamedNetns, Wan
from tests.waiting import crowded, until

ROOT = Path(__file__).parents[2]
#: The outsider's addresses on the host's network, and one elsewhere.
OUT4, OUT6, FAR4 = Wan.V4, Wan.V6, Wan.FAR_V4


class Fw(Running):
    """The plugin, and `fwctl` as a process beside it."""

    def fwctl(self, *arguments: str, status: int = 0) -> str:
        """Return its output; it must end with this status."""
        command = [sys.executable, "-m", "plugin.fwctl.cli", *arguments, "--socket", str(self.socket)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == status, (arguments, done.returncode, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def web(self, net: Body, number: int = 2, labels: dict[str, str] | None = None) -> tuple[Body, NamedNetns]:
        """Start a container, c2 for number 2; return it and its network namespace."""
        endpoint = self.start_container(net, number, labels)
        return endpoint, self.move(endpoint)

    def seen(self, *ports: int, address: str = "10.1.0.2", source: str | None = None) -> set[int]:
        """Return the ports that an outsider's packets reach: no process listens there, so the container refuses."""
        found = self.site.wan.probe([("tcp", address, port) for port in ports], timeout=0.4, source=source)
        return {int(target[2]) for target, verdict in found.items() if verdict != "silent"}

    def drops_in(self, address: str = "10.1.0.2") -> bool:
        return not self.seen(9000, address=address)


@pytest.fixture
def fw(site: Site) -> Iterator[Fw]:
    with closing(Fw(site)) as made:
        yield made.start()  # type: ignore[misc]


class Talk:
    """An outsider's connection with a container; the server there echoes what it receives."""

    def __init__(self, fw: Fw, port: int = 9000) -> None:
        with inside(fw.site.wan.path):
            self._sock = socket.create_connection(("10.1.0.2", port), 2)
        self._sock.settimeout(1)
        assert self._sock.recv(1000)
        assert self.continues()

    def continues(self) -> bool:
        self._sock.sendall(b"still there?")
        try:
            return b"?" in self._sock.recv(1000)
        except TimeoutError:
            return False


@contextmanager
def talking(fw: Fw, box: NamedNetns) -> Iterator[Talk]:
    with box.probe.serve(tcp=[9000]):
        talk = Talk(fw)
        yield talk
        talk._sock.close()


def network(fw: Fw, number: int = 1, **options: str) -> Body:
    net = fw.network(number, {f"fw.{key}": value for key, value in options.items()})
    fw.well("CreateNetwork", net)
    return net


# --- overrides --------------------------------------------------------------------------------------------------------


def test_packets_pass_by_allow_and_not_by_deny(fw: Fw) -> None:
    """An override applies from the moment that `fwctl` returns, in both families, and is undone with revert."""
    fw.web(network(fw), labels={"fw.allow": "8080"})
    ports = (22, 80, 8080, 9000)
    assert fw.seen(*ports) == {22, 80, 8080}
    fw.fwctl("allow", "c2", "9000")
    fw.fwctl("deny", "c2", "22", "8080")
    for address in ("10.1.0.2", "2001:db8:1::2"):
        assert fw.seen(*ports, address=address) == {80, 9000}
    fw.fwctl("allow", "c2", "80", "from", "192.0.2.1")
    assert fw.seen(*ports) == {9000}
    fw.fwctl("allow", "c2", f"80 from {OUT4}")
    assert fw.seen(*ports) == {80, 9000}
    fw.fwctl("revert", "c2")
    assert fw.seen(*ports) == {22, 80, 8080}


def test_an_override_ends_by_itself_with_its_flows(fw: Fw) -> None:
    """Within a second of an override's end no new connection is accepted, and established ones end."""
    _, box = fw.web(network(fw))
    fw.fwctl("allow", "c2", "9000", "--for", "2s")
    began = time.monotonic()
    with talking(fw, box) as talk:
        until(fw.drops_in, "the override has ended", 5)
        assert 1 < time.monotonic() - began < 4 * crowded()
        until(lambda: not talk.continues(), "the connection is cut")
    assert fw.kept()["overrides"] == []
    assert "has expired" in fw.log.read_text()


def test_deny_cuts_established_connections(fw: Fw) -> None:
    """An established connection is cut, not only the next one refused."""
    _, box = fw.web(network(fw), labels={"fw.allow": "9000"})
    with talking(fw, box) as talk:
        fw.fwctl("deny", "c2", "9000", "--for", "1h")
        until(lambda: not talk.continues(), "the connection is cut")


def test_overrides_survive_restarts(fw: Fw) -> None:
    """Overrides survive a kill of the worker and a restart of docker-fw; an expired one does not return."""
    fw.web(network(fw))
    fw.fwctl("allow", "c2", "9000", "9001")
    fw.fwctl("allow", "c2", "9002", "--for", "6s")
    end = time.time() + 6
    fw.fwctl("deny", "c2", "22")
    fw.kill_worker()
    assert fw.seen(22, 80, 9000, 9001, 9002) == {80, 9000, 9001, 9002}
    fw.stop()
    until(lambda: time.time() > end, "its time is over")
    fw.start()
    assert fw.seen(22, 80, 9000, 9001, 9002) == {80, 9000, 9001}
    assert "9002" not in fw.fwctl("status")


def test_while_docker_fw_is_stopped_nothing_is_open_for_a_time(fw: Fw) -> None:
    """At a clean stop a timed opening closes; it is restored with docker-fw, until its end."""
    _, box = fw.web(network(fw))
    fw.fwctl("allow", "c2", "9000", "--for", "1h")
    fw.fwctl("allow", "c2", "9001")
    fw.fwctl("allow", "c2", f"22 from {OUT4}", "--for", "1h")
    with talking(fw, box) as talk:
        assert fw.seen(22, 80, 9001) == {22, 80, 9001}
        fw.stop()
        assert fw.seen(22, 80, 9000, 9001) == {80, 9001}
        until(lambda: not talk.continues(), "the connection is cut")
    fw.start()
    assert fw.seen(22, 80, 9000, 9001) == {22, 80, 9000, 9001}


def test_overrides_end_with_the_container(fw: Fw) -> None:
    """Overrides end when Docker no longer lists the container; one of the same name has its own labels only."""
    net = network(fw)
    endpoint, _ = fw.web(net)
    fw.fwctl("allow", "c2", "9000")
    fw.stop_container(endpoint)
    del fw.docker.containers[endpoint["EndpointID"]]
    fw.docker.event("network", "create")  # list everything
    until(lambda: fw.kept()["overrides"] == [], "the override is removed", 10)
    fw.web(net, 3)  # which gets the ID that the other one had, as the fake Docker numbers them
    assert fw.seen(80, 9000, address="10.1.0.3") == {80}


# --- bans -------------------------------------------------------------------------------------------------------------


def test_a_banned_address_reaches_nothing(fw: Fw) -> None:
    """A banned address reaches neither a container, nor a published port, nor the host, in both families.

    Established connections end, too.
    """
    endpoint, box = fw.web(network(fw), labels={"fw.allow": "9000"})
    fw.publish(endpoint, 18080, 80)
    host4, host6 = str(fw.site.HOST4), str(fw.site.HOST6)
    ways = (("10.1.0.2", 80), ("2001:db8:1::2", 80), (host4, 18080), (host6, 18080), (host4, 2222), (host6, 2222))

    def reached() -> list[bool]:
        return [bool(fw.seen(port, address=address)) for address, port in ways]

    assert reached() == [True] * 6
    with talking(fw, box) as talk:
        fw.fwctl("ban", OUT4)
        assert reached() == [False, True] * 3
        until(lambda: not talk.continues(), "the connection is cut")
    fw.fwctl("ban", OUT6, "--for", "1h")
    assert reached() == [False] * 6
    assert box.probe.tcp(OUT4, 80, timeout=0.4) == "silent"  # nor can any container reach it
    assert "permanent" in fw.fwctl("bans")
    fw.kill_worker()
    assert reached() == [False] * 6
    fw.fwctl("unban", "--all")
    assert reached() == [True] * 6
    assert not any(name in fw.table().partition("set banning ")[2].partition("}")[0] for name in ("ipv4", "elements"))


def test_a_prefix_is_banned_and_ends_by_itself(fw: Fw) -> None:
    """The kernel counts its time, also while docker-fw is stopped."""
    fw.web(network(fw))
    assert fw.seen(80, source=FAR4)
    seconds = round(5 * crowded())  # what follows needs up to three on a busy machine
    end = time.monotonic() + seconds

    def banned() -> bool:
        """Return True if the packet is dropped, or perhaps was sent after the end: this machine is slow."""
        return not fw.seen(80, source=FAR4) or time.monotonic() > end

    fw.fwctl("ban", f"{FAR4.rsplit('.', 1)[0]}.0/24", "--for", f"{seconds}s")
    assert banned()
    assert fw.seen(80)
    fw.stop()
    assert banned()
    until(lambda: bool(fw.seen(80, source=FAR4)), "the ban has ended", seconds + 5)
    fw.start()
    assert fw.seen(80, source=FAR4)
    assert "no address is banned" in fw.fwctl("bans")


def test_the_host_does_not_ban_itself(fw: Fw) -> None:
    """The host's own addresses, and gateways, cannot be banned."""
    network(fw)
    own = (str(fw.site.HOST4), str(fw.site.HOST6), "10.1.0.1")
    for address in (*own, "2001:db8:1::/64", "127.0.0.1", "198.51.100.0/24"):
        assert "cannot ban" in fw.fwctl("ban", address, status=1)
    assert fw.kept()["bans"] == {}


def test_a_blocklist_delays_no_container(fw: Fw) -> None:
    """The CrowdSec bouncer adds 20,000 addresses at once; meanwhile and later containers start as fast as before."""
    net = network(fw)
    lines = "".join(
        json.dumps(
            {
                "action": "add",
                "value": f"100.{64 + n // 65536}.{n // 256 % 256}.{n % 256}",
                "duration": "4h",
                "scope": "Ip",
                "type": "ban",
            }
        )
        + "\n"
        for n in range(20_000)
    )
    bouncer = subprocess.Popen(
        [sys.executable, str(ROOT / "examples/crowdsec/docker-fw-bouncer")],
        stdin=subprocess.PIPE,
        text=True,
        env={**os.environ, "DOCKER_FW_SOCKET": str(fw.socket)},
    )
    assert bouncer.stdin
    bouncer.stdin.write(lines)
    bouncer.stdin.close()
    slowest = 0.0
    for number in range(2, 200):
        began = time.monotonic()
        fw.stop_container(fw.start_container(net, number))
        slowest = max(slowest, time.monotonic() - began)
        if bouncer.poll() is not None:
            break
    assert bouncer.wait(60) == 0
    assert slowest < 10  # on a busy machine, too
    assert len(ask(str(fw.socket), "/bans")["bans"]) == 20_000
    began = time.monotonic()
    fw.stop_container(fw.start_container(net, 250))
    fw.fwctl("ban", OUT4)
    assert time.monotonic() - began < 5 * crowded()
    assert fw.table().count("100.64.1.1 timeout") == 1


# --- explain ----------------------------------------------------------------------------------------------------------


def test_explain_says_what_packets_do(fw: Fw) -> None:
    """Containers with labels of all kinds are queried from outside, from each other and through published ports.

    Packets that `explain` accepts arrive, and those that it drops do not.
    """
    one, two = network(fw, 1), network(fw, 2, deny="443")
    boxes = {
        "c2": fw.web(one, 2, {"fw.allow": f"9000, 9001 from {OUT4}, 9002 from container:c4, 9003 from 192.0.2.0/24"}),
        "c3": fw.web(one, 3, {"fw.policy": "closed", "fw.allow": "9000"}),
        "c4": fw.web(two, 4, {"fw.egress": "9000, 80 to 10.1.0.2", "fw.allow": f"22 from {OUT6}"}),
        "c5": fw.web(two, 5, {"fw.policy": "open", "fw.deny": "9001"}),
    }
    fw.publish(boxes["c2"][0], 19000, 9000)
    fw.publish(boxes["c3"][0], 19001, 9001)
    fw.fwctl("allow", "c3", "9004")
    fw.fwctl("deny", "c5", "9000")
    given = {name: endpoint["Interface"] for name, (endpoint, _) in boxes.items()}
    addresses = {name: (each["Address"][:-3], each["AddressIPv6"][:-3]) for name, each in given.items()}
    ports = (22, 80, 443, 9000, 9001, 9002, 9003, 9004)
    wrong: list[Any] = []
    tried = 0

    def agrees(source: str, probe: Any, target: str, address: str, port: int) -> None:
        nonlocal tried
        family = 6 if ":" in address else 4
        asked = ask(str(fw.socket), "/explain", {"from": source, "to": target, "what": str(port), "family": family})
        arrives = probe.tcp(address, port, timeout=0.3) != "silent"
        tried += 1
        if asked["accepted"] != arrives:
            steps = [step["text"] for step in asked["flows"][0]["steps"]]
            wrong.append((source, target, address, port, arrives, steps))

    for name, places in addresses.items():
        for address in places:
            for port in ports:
                agrees(OUT6 if ":" in address else OUT4, fw.site.wan.probe, name, address, port)
            for source in ("c4", "c2"):
                if source != name:
                    for port in (80, 9000, 9002):
                        agrees(source, boxes[source][1].probe, name, address, port)
    for host in (str(fw.site.HOST4), str(fw.site.HOST6)):
        for port in (19000, 19001, 2222):
            agrees(OUT6 if ":" in host else OUT4, fw.site.wan.probe, host, host, port)
            for source in ("c2", "c4"):
                agrees(source, boxes[source][1].probe, host, host, port)
    for source in ("c4", "c5"):
        for address in (OUT4, OUT6):
            for port in (80, 9000):
                agrees(source, boxes[source][1].probe, address, address, port)
    assert wrong == []
    assert tried > 80


def test_explain_ends_with_its_status(fw: Fw) -> None:
    """The exit status is 0 or 1, for scripts."""
    fw.web(network(fw), labels={"fw.allow": "8080"})
    assert "label fw.allow" in fw.fwctl("explain", "internet", "c2", "8080")
    assert "does not accept 8081/tcp" in fw.fwctl("explain", "internet", "c2", "8081", status=1)
    assert "did you mean c2" in fw.fwctl("explain", "internet", "c22", "8081", status=1)


# --- plan -------------------------------------------------------------------------------------------------------------


def test_changes_by_other_programs_are_undone(fw: Fw) -> None:
    """An extra or a missing element, in any set, is noticed and corrected, and flows that it let in are cut.

    The rest stays in use. A set that is not docker-fw's is left alone, and `plan` reports it.
    """
    labels = {"fw.allow": "8080, 5432 from 192.0.2.0/24", "fw.rate": "22 5/minute", "fw.egress": "443"}
    fw.web(network(fw), labels=labels)
    fw.fwctl("ban", "203.0.113.7", "--for", "1h")
    fw.fwctl("ban", "2001:db8:77::/48")
    assert fw.fwctl("plan") == "no change\n"
    fw.site.run("nft", "add set inet docker-fw theirs { type ipv4_addr; }")
    for change in (
        "add element inet docker-fw allow4 { 10.1.0.2 . tcp . 9999 }",
        "delete element inet docker-fw allow6 { 2001:db8:1::2 . tcp . 80 }",
        "delete element inet docker-fw banned6_48 { 2001:db8:77:: }",
        "add element inet docker-fw banned4 { 203.0.113.9 timeout 1h }",
        "flush set inet docker-fw egress_restricted",
        "flush set inet docker-fw banned4",
    ):
        fw.site.run("nft", change)
        until(lambda: fw.fwctl("plan", status=1).splitlines()[1:] == ["- set theirs"], f"put right: {change}")


def test_plan_of_settings_lists_what_they_change(fw: Fw) -> None:
    """The elements that a plan would add and remove are those that change when docker-fw starts with the settings."""
    fw.web(network(fw), labels={"fw.allow": "8080"})
    fw.publish(fw.web(network(fw, 2), 3)[0], 19000, 9000)
    settings = {
        "FW_ALLOW": "9100, 9200 from 192.0.2.0/24",
        "FW_DENY": "22",
        "FW_EGRESS": "443",
        "FW_RATE": "80 5/minute",
        "FW_DOCKERD_PORTS": "2375",
        "FW_PUBLISHED": "allow",
    }
    before = elements(fw)
    plan = json.loads(fw.fwctl("plan", "--json", *(f"{name}={value}" for name, value in settings.items()), status=1))
    assert plan["drift"] == []
    planned = {sign: {line["text"] for line in plan["elements"] if line["sign"] == sign} for sign in "+-"}
    assert elements(fw) == before
    fw.stop()
    fw.environ.update(settings)
    fw.start()
    until(lambda: fw.status()["listening"], "Docker has been asked", 10)
    after = elements(fw)
    assert planned["+"] ^ (after - before) == set()
    assert planned["-"] ^ (before - after) == set()
    assert fw.fwctl("plan") == "no change\n"
    assert fw.fwctl("plan", *(f"{name}={value}" for name, value in settings.items())) == "no change\n"


def elements(fw: Fw) -> set[str]:
    """Return every element, as `plan` writes it, without the ports of the host's own programs.

    Polls find those, at different times and whatever the settings are. Ports that docker-fw reserves are among them.
    """
    from plugin.nftables import dump
    from plugin.nftables.document import element_text
    from plugin.nftables.sets import SETS

    with inside(fw.site.host.path):
        there = dump.read().elements
    there = {e for e in there if not e.set.startswith("host_own")}
    return {f"{e.set} {element_text(e)}" for e in there if not SETS[e.set.partition("__")[0]].raw}


def test_a_wrong_setting_is_reported(fw: Fw) -> None:
    """A wrong setting is reported as at a start, with status 2: the answer is unknown."""
    assert "did you mean" not in fw.fwctl("plan", "FW_ALOW=80", status=2)
    assert 'FW_ALLOW="808O": "808O" is not a port' in fw.fwctl("plan", "FW_ALLOW=808O", status=2)


# --- export -----------------------------------------------------------------------------------------------------------


def test_the_exported_file_loads_by_itself_and_filters_the_same(fw: Fw) -> None:
    """The file loads in an empty network namespace with this machine's nft, twice.

    In the place of docker-fw's own table it accepts the same packets.
    """
    _, box = fw.web(
        network(fw),
        labels={
            "fw.allow": f"8080, 9001 from {OUT4}, */sctp, gre",
            "fw.rate": "22 5/minute",
            "fw.egress": "443 to 10.0.0.0/8",
        },
    )
    fw.fwctl("ban", "203.0.113.7", "2001:db8:77::/48", "--for", "1h")
    fw.fwctl("allow", "c2", "9002", "--for", "1h")
    fw.fwctl("allow", "c2", "9003")
    fw.site.run("ip", "link", "add", "virbr7", "type", "bridge")
    until(lambda: "virbr7" in fw.status()["foreign"], "the bridge is left alone", 10)
    text = fw.fwctl("export")
    assert '"virbr7"' in text
    with nowhere():
        for _ in range(2):
            assert _nft("-f", "-", text=text) == ""
        listed = _nft("-nn", "list", "table", "inet", "docker-fw")
    assert "10.1.0.2 . 6 . 8080" in listed
    fw.stop()
    fw.site.run("nft", "-f", "-", input=text)
    assert fw.seen(80, 8080, 9000, 9001, 9002, 9003) == {80, 8080, 9001, 9003}
    assert box.probe.tcp(OUT4, 443, timeout=0.3) == "silent"
    fw.start()
    assert fw.fwctl("plan") == "no change\n"


def _nft(*arguments: str, text: str = "") -> str:
    done = subprocess.run(["nft", *arguments], input=text, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# --- the socket -------------------------------------------------------------------------------------------------------


def test_status_watch_sees_a_change(fw: Fw) -> None:
    """`fwctl status --watch --json` prints the current status each time."""
    fw.web(network(fw))
    watch = ["status", "--watch", "0.1", "--json", "--socket", str(fw.socket)]
    command = [sys.executable, "-m", "plugin.fwctl.cli", *watch]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        fw.fwctl("allow", "c2", "9000", "--for", "1h")
        end = time.monotonic() + 10
        while '"9000/tcp"' not in process.stdout.readline():
            assert time.monotonic() < end
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def test_drops_are_counted_by_container(fw: Fw) -> None:
    """`fwctl status` counts dropped packets to a container, and from it."""
    fw.web(network(fw))
    assert "dropped:" not in fw.fwctl("status")
    fw.seen(9000, 9001)
    assert "    dropped: " in fw.fwctl("status")


def test_many_ask_and_change_at_once(fw: Fw) -> None:
    """Status, plans, bans and overrides while containers start and stop: no request hangs, and the table is right."""
    from concurrent.futures import ThreadPoolExecutor

    net = network(fw)
    fw.web(net)
    path = str(fw.socket)

    def life(number: int) -> None:
        for _ in range(5):
            fw.stop_container(fw.start_container(net, number))

    def asks(_: int) -> None:
        for _ in range(5):
            ask(path, "/status")
            ask(path, "/plan", {"settings": {"FW_ALLOW": "1"}})
            ask(path, "/export")

    def says(number: int) -> None:
        for _ in range(5):
            ask(path, "/allow", {"container": "c2", "rules": [str(10_000 + number)], "seconds": 3600})
            ask(path, "/ban", {"bans": [{"address": f"203.0.113.{number}", "seconds": 60}]})
            ask(path, "/unban", {"addresses": [f"203.0.113.{number}"]})
            ask(path, "/revert", {"container": "c2"})

    with ThreadPoolExecutor(12) as pool:
        works = [pool.submit(work, number) for number in range(10, 14) for work in (life, asks, says)]
        for work in works:
            work.result(60)
    ask(path, "/revert", {"all": True})
    assert fw.fwctl("plan") == "no change\n"
    assert not fw.kept()["overrides"]
    assert not fw.kept()["bans"]
    assert "Traceback" not in fw.log.read_text()
