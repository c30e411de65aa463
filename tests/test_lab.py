"""Test the lab's own promises: its objects work, and nothing of it stays or leaks."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import ENGINES, Engine, Host, LabError, Registry, Wan, build_image, sweep
from tests.lab.claims import start_time
from tests.lab.data import fill, keep

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Yield one running engine of each version, with a container ``web`` that publishes 8080 → 80."""
    with Engine(request.param) as it:
        it.docker("network", "create", "--ipv6", "--subnet=10.9.0.0/24", "--subnet=2001:db8:9::/64", "six")
        it.docker("run", "-d", "--name", "web", "--network", "six", "-p", "8080:80", "busybox", "sleep", "inf")
        yield it


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """Yield a host without an engine."""
    with Host() as it:
        it.boot()
        yield it


def root_network() -> str:
    """Return all that Docker might change in this machine's own network namespace, as text."""
    commands = (
        "ip link",
        "ip address",
        "ip route show table all",
        "ip -6 route show table all",
        "nft list ruleset",
        "sysctl -a --pattern '^net\\.(ipv4|ipv6)\\.(ip_forward|conf)'",
    )
    done = subprocess.run(["sh", "-c", "; ".join(commands)], capture_output=True, text=True, check=False, timeout=60)
    return "\n".join(line for line in done.stdout.splitlines() if "expires" not in line)


def processes_in(namespaces: set[int]) -> set[tuple[int, int | None]]:
    """Return the processes (pid, start time) in one of the namespaces, given by their inodes."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if namespaces & {os.stat(entry / "ns" / kind).st_ino for kind in ("net", "pid", "mnt")}:
                    found.add((int(entry.name), start_time(int(entry.name))))
    return found


def test_published_port_is_open_and_others_are_not(engine: Engine) -> None:
    """An outsider reaches the published port and sees who answers; the host reaches all ports of the container."""
    wan, host = engine.wan, engine.host
    v4, v6 = engine.address("web", "six")
    with engine.serve("web", tcp=[80, 81], udp=[80]):
        # The userland proxy, which listens on the host, hides the client on IPv6 in old engines.
        answer = wan.probe.one(("tcp", host.v4, 8080))
        assert (answer.verdict, answer.detail, answer.peer) == ("open", "web", Wan.V4)
        found = wan.probe([("tcp", host.v6, 8080), ("tcp", host.v4, 8081), ("tcp", v4, 81), ("ping", host.v6)])
        assert list(found.values()) == ["open", "refused", "silent", "open"]
        assert set(host.probe([("tcp", v4, 81), ("tcp", v6, 81), ("udp", v6, 80), ("ping", v6)]).values()) == {"open"}


def test_a_container_reaches_the_internet(engine: Engine) -> None:
    """A container reaches far addresses: over IPv4 with its host's address, over IPv6 with its own."""
    inside = engine.netns("web").probe
    with engine.wan.probe.serve(tcp=[7], udp=[7], name="far") as far:
        answer = inside.one(("tcp", Wan.FAR_V4, 7))
        assert (answer.verdict, answer.detail, answer.peer) == ("open", "far", engine.host.v4)  # masqueraded
        assert set(inside([("udp", Wan.FAR_V4, 7), ("tcp", Wan.FAR_V6, 7), ("ping", Wan.FAR_V6)]).values()) == {"open"}
        assert {(one["proto"], one["port"]) for one in far.seen()} == {("tcp", 7), ("udp", 7)}


def test_servers_end_with_their_container(engine: Engine) -> None:
    """Servers in a container end with it, and none can be started in one that does not exist."""
    engine.docker("run", "-d", "--name", "brief", "busybox", "sleep", "inf")
    v4, _ = engine.address("brief")
    engine.serve("brief", tcp=[80])
    assert engine.host.probe.tcp(v4, 80) == "open"
    engine.docker("rm", "-f", "brief")
    assert engine.host.probe.tcp(v4, 80) != "open"
    with pytest.raises(LabError, match="No such container"):
        engine.serve("brief", tcp=[80])


def test_a_reboot_keeps_the_disk_and_nothing_else(engine: Engine) -> None:
    """After `reboot` the files and the containers are there; links, rules, sysctls and processes are not."""

    def links() -> set[str]:
        return {path.name for path in (engine.host.inside / "sys/class/net").iterdir()}

    assert any(name.startswith("br-") for name in links())
    engine.host.run(["nft", "add", "table", "inet", "mine"])
    engine.host.write("/etc/kept", "yes")
    engine.reboot(start=False)
    assert links() == {"lo", "eth0"}
    assert engine.host.run(["nft", "list", "tables"]).stdout == ""
    assert engine.host.run(["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout == "0\n"
    assert engine.host.run(["cat", "/etc/kept"]).stdout == "yes"
    engine.start()
    assert engine.docker("ps", "-a", "--format", "{{.Names}}") == "web"
    assert engine.wan.probe.ping(engine.host.v6) == "open"
    engine.docker("start", "web")
    with engine.serve("web", tcp=[80]):
        assert engine.wan.probe.tcp(engine.host.v4, 8080) == "open"


def test_exec_lands_in_the_container(engine: Engine) -> None:
    """`docker exec` works: a program runs in the container's own file system."""
    assert engine.docker("exec", "web", "cat", "/etc/passwd") == "root:x:0:0:root:/root:/bin/sh"


def test_kill_spares_the_containers() -> None:
    """With live-restore containers outlive a kill of dockerd, and answer meanwhile."""
    with Engine(live_restore=True) as engine:
        engine.docker("run", "-d", "--name", "web", "-p", "8080:80", "busybox", "sleep", "inf")
        with engine.serve("web", tcp=[80]), engine.wan.probe.hammer(("tcp", engine.host.v4, 8080)) as hammer:
            engine.kill()
            assert engine.pid == 0
            engine.start()
        assert engine.docker("ps", "--format", "{{.Names}}") == "web"
        assert engine.pid
        assert len(hammer.result.opened) > 50


def test_a_daemon_that_cannot_start_says_why() -> None:
    """The error of a dockerd that exits has its own message; the caller's host stays usable."""
    with Host() as host:
        host.boot()
        engine = Engine(host=host, args=["--no-such-flag"])
        with pytest.raises(LabError, match="unknown flag: --no-such-flag"):
            engine.start()
        engine.start([])
        engine.close()
        assert host.running


def test_verdicts(host: Host) -> None:
    """Probes of each protocol and family distinguish open, refused, silent and unsent."""
    wan = host.wan
    rules = """table inet t { chain c { type filter hook input priority 0;
        th dport 1 drop; th dport 2 reject
        th dport 3 reject with icmpx admin-prohibited
        }
        }"""
    host.run(["nft", "-f", "-"], input=rules)
    with host.probe.serve(tcp=[1, 2, 3, 4], udp=[1, 2, 3, 4], sctp=[1, 2, 3, 4], name="there"):
        for address in (host.v4, host.v6):
            for proto in ("tcp", "udp", "sctp"):
                found = wan.probe((proto, address, port) for port in range(1, 6))
                assert list(found.values()) == ["silent", "refused", "refused", "open", "refused"], (proto, address)
        far = wan.probe.one(("udp", host.v6, 4), source=Wan.FAR_V6, source_port=4444)
        assert (far.verdict, far.peer, far.peer_port) == ("open", Wan.FAR_V6, 4444)
    host.run(["nft", "delete", "table", "inet", "t"])
    assert wan.probe.one(("tcp", "192.0.2.1", 80)).detail == "ENETUNREACH"
    assert wan.probe.tcp("192.0.2.1", 80) == "unsent"
    with pytest.raises(LabError, match="no network namespace"):
        type(wan.probe)("/run/netns/nowhere").tcp(host.v4, 80)


def test_a_hammer_sees_a_short_gap(host: Host) -> None:
    """A hammer sees when a port was closed for a fifth of a second, and for how long."""
    with host.probe.serve(tcp=[80]), host.wan.probe.hammer(("tcp", host.v4, 80), every=0.002) as hammer:
        time.sleep(0.2)
        closed = time.monotonic()
        host.run(["nft", "add table inet t; add chain inet t c { type filter hook input priority 0; policy drop; }"])
        time.sleep(0.2)
        host.run(["nft", "delete", "table", "inet", "t"])
        opened = time.monotonic()
        time.sleep(0.2)
    shots = hammer.result
    assert 0.15 < shots.longest_gap < opened - closed + 0.05
    assert all(closed < shot.at < opened for shot in shots.failed)
    assert len(shots.opened) > 100


def test_a_router_can_advertise_itself() -> None:
    """A host has its default route by router advertisement, and loses it when that is withdrawn."""
    with Host(advertised=True) as host:
        host.boot()
        assert "proto ra" in host.run(["ip", "-6", "route", "show", "default"]).stdout
        assert host.probe.ping(Wan.FAR_V6) == "open"
        host.wan.advertise(lifetime=0)
        end = time.monotonic() + 5
        while host.probe.ping(Wan.FAR_V6) == "open" and time.monotonic() < end:
            pass
        assert host.probe.ping(Wan.FAR_V6) == "unsent"


def test_engines_share_a_registry() -> None:
    """An image that one engine pushes runs on another one."""
    with Wan() as wan, Registry(wan) as registry:
        name = f"{registry.address}/box:1"
        with Engine(wan=wan, args=[registry.insecure]) as one:
            one.docker("tag", "busybox", name)
            one.docker("push", name)
            with Engine("28.5.2", wan=wan, args=[registry.insecure], with_busybox=False) as other:
                assert other.docker("run", "--rm", name, "echo", "carried").endswith("carried")
                assert (one.host.v4, other.host.v4) == ("198.51.100.1", "198.51.100.3")
                assert one.host.probe.ping(other.host.v6) == "open"


def test_a_build_needs_no_registry_and_touches_nothing(tmp_path: Path) -> None:
    """An image is built without a change to this machine's network, and again only after a change to its files."""
    (tmp_path / "Dockerfile").write_text("FROM debian:trixie-slim\nCOPY text /\nRUN true \\\n && cp /text /copied\n")
    (tmp_path / "text").write_text(f"{time.time()}")
    (tmp_path / "unused").write_text("")
    before = root_network()
    tar = build_image(tmp_path, "lab-test:latest")
    assert root_network() == before
    (tmp_path / "unused").write_text("changed")
    assert build_image(tmp_path, "lab-test:latest") == tar
    with Engine(with_busybox=False) as engine:
        engine.load(tar)
        assert engine.docker("run", "--rm", "lab-test", "cat", "/copied") == (tmp_path / "text").read_text()
    tar.unlink()


def test_engines_share_the_files_of_copied_data_and_nothing_else(tmp_path: Path) -> None:
    """A copy of dockerd's data has the same layers, and lists and links of its own. No copy is made of layers that were
    written to, nor of what an overlay left where it works: there may be devices.
    """
    theirs, kept, first, second = (tmp_path / name for name in ("theirs", "kept", "first", "second"))
    for path in ("image/overlay2/repositories.json", "overlay2/1/diff/bin/sh", "overlay2/1/link"):
        (theirs / path).parent.mkdir(parents=True, exist_ok=True)
        (theirs / path).write_text(path)
    left = theirs / "overlay2" / "1-init" / "work" / "work"
    left.mkdir(parents=True)
    os.mknod(left / "#5", stat.S_IFCHR | 0o600)
    (theirs / "overlay2/1").chmod(0o710)
    (theirs / "overlay2/l").symlink_to("1/diff")
    keep([theirs / "image", theirs / "overlay2"], kept)
    assert list((kept / "overlay2/1-init/work").iterdir()) == []
    first.mkdir()
    fill(first, [kept / "image", kept / "overlay2"])
    (first / "image/overlay2/repositories.json").write_text("changed")
    (first / "overlay2/1/diff/bin/sh").unlink()
    second.mkdir()
    fill(second, [kept / "image", kept / "overlay2"])
    assert (second / "image/overlay2/repositories.json").read_text() == "image/overlay2/repositories.json"
    assert (second / "overlay2/1/diff/bin/sh").samefile(kept / "overlay2/1/diff/bin/sh")
    assert (second / "overlay2/1").stat().st_mode & 0o777 == 0o710
    assert (second / "overlay2/l").readlink() == Path("1/diff")
    (second / "overlay2/1/diff/bin/sh").write_text("changed")
    later = (kept / "complete").stat().st_mtime + 1
    os.utime(second / "overlay2/1/diff/bin/sh", (later, later))
    with pytest.raises(LabError, match="diff/bin/sh"):
        fill(first, [kept / "overlay2"])


LAB_THAT_IS_KILLED = """
import os, signal, subprocess, sys
from tests.lab import Engine
from tests.test_lab import processes_in
engine = Engine("26.1.5")
engine.__enter__()
engine.docker("run", "-d", "--name", "web", "-p", "8080:80", "busybox", "sleep", "inf")
engine.serve("web", tcp=[80])
engine.host.popen_outside(["sleep", "1000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
spaces = [f"/proc/{engine.host.init_pid}/ns/{kind}" for kind in ("net", "pid", "mnt")]
spaces += [engine.netns("web").path, engine.wan.path]
alive = processes_in({os.stat(path).st_ino for path in spaces})
print(engine.host.name, *(f"{pid}:{started}" for pid, started in alive), flush=True)
if sys.argv[1] == "close":
    engine.close()
else:
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["close", "kill"])
def test_nothing_is_left(how: str) -> None:
    """Whether a lab is closed or killed, no process, namespace, mount, cgroup or link of it remains."""
    before = root_network()
    done = subprocess.run(
        [sys.executable, "-c", LAB_THAT_IS_KILLED, how], capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == (0 if how == "close" else -signal.SIGKILL), done.stderr
    name, *processes = done.stdout.split()
    assert len(processes) >= 5  # init, dockerd, containerd, a shim, the container's
    swept = sweep()  # or another lab's, if one started just now
    assert how == "kill" or name not in swept
    for process in processes:
        pid, _, started = process.partition(":")
        assert start_time(int(pid)) != int(started)
    prefix = name.rpartition("h")[0]
    assert prefix.startswith("fwlab")
    assert (
        prefix
        not in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True, timeout=60).stdout
    )
    assert prefix not in Path("/proc/self/mountinfo").read_text()
    leftovers = [path for path in Path("/sys/fs/cgroup").rglob(f"{prefix}*") if path.is_dir()]
    assert not leftovers
    assert root_network() == before
