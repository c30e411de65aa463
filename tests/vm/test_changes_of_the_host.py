"""Test docker-fw on a host that changes under it: kernel modules, links that bypass it, clock, pause, full disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.daemon import DockerError
from tests.lab.store import say
from tests.vm import Machine
from tests.vm.fire import open_at
from tests.vm.product import MachineFw, installed
from tests.waiting import until

#: Seconds in which a probe of an emulated machine is answered, if it is.
PATIENCE = 3
DAY = 86400


@pytest.fixture(scope="module")
def fw() -> Iterator[MachineFw]:
    """Yield a machine with docker-fw as its managed plugin."""
    with Machine(state=installed()) as vm:
        yield MachineFw(vm)


def verdicts(fw: MachineFw, targets: list[tuple[str, str, int]]) -> list[str]:
    """Return the outsider's verdict for each target."""
    return list(fw.wan.probe(targets, timeout=PATIENCE).values())


def test_br_netfilter_changes_nothing(fw: MachineFw) -> None:
    """Loaded and removed while containers run, the module neither opens nor closes a port.

    With it, the host's rules see packets between neighbours of one bridge, which would be new to them. Neighbours
    talk freely, as before. Docker loads the module itself for some networks.
    """
    with fw.network() as net:
        app, other = fw.run(net, "--label", "fw.allow=8080"), fw.run(net)
        with fw.vm.serve(app, tcp=[80, 8080, 9090]):
            addresses = fw.addresses(app, net)
            outside = [("tcp", a, p) for a in addresses for p in (80, 8080, 9090)]
            closed = [target for target in outside if target[2] == 9090]
            with fw.wan.probe.hammer(*closed, every=0.01) as hammer:
                for command in (["modprobe", "br_netfilter"], ["modprobe", "-r", "br_netfilter"]):
                    fw.vm.run(command)
                    loaded = "br_netfilter" in fw.vm.read("/proc/modules")
                    assert loaded == ("-r" not in command)
                    assert verdicts(fw, outside) == ["open", "open", "silent"] * 2, command
                    for address in addresses:
                        inside = fw.vm.try_docker("exec", other, "nc", "-w", "5", address, "9090", input="hello\n")
                        assert "hello" in inside.stdout or inside.returncode == 0, (command, address, inside.stderr)
            assert not hammer.result.opened
            assert hammer.result.shots


@pytest.mark.parametrize("driver", ["macvlan", "ipvlan"])
def test_status_names_a_container_that_bypasses_the_host(fw: MachineFw, driver: str) -> None:
    """Packets of macvlan and ipvlan never pass the host's rules: `fwctl status` says that they are not filtered."""
    fw.vm.docker("network", "create", "-d", driver, "-o", "parent=eth0", "--subnet", "198.51.100.192/27", "lan")
    try:
        name = fw.run("lan")
        until(lambda: name in fw.status()["apart"], "status names the container", 30)
        assert fw.status()["apart"][name].startswith(f"is on the {driver} network lan, which docker-fw does not filter")
        assert f"{name}: is on the {driver} network lan" in fw.fwctl("status")
        fw.remove(name)
        until(lambda: name not in fw.status()["apart"], "status no longer names it", 30)
    finally:
        fw.vm.try_docker("network", "rm", "lan")


def test_an_ipvlan_of_mode_l3s_is_reached_as_before(fw: MachineFw) -> None:
    """Its packets pass the host's rules for input, though they are not for the host: no rule refuses them.

    The host needs no route to its addresses. It is made by hand: Docker 20.10 creates none.
    """
    script = """
        ip netns add lan
        ip link add link eth0 name lan0 type ipvlan mode l3s
        ip link set lan0 netns lan
        ip -n lan addr add 10.88.0.2/24 dev lan0
        ip -n lan addr add fd88::2/64 dev lan0 nodad
        ip -n lan link set lan0 up
        ip -n lan route add default dev lan0
        ip -n lan -6 route add default dev lan0
        ip -6 route add unreachable fd88::/64
    """
    fw.vm.run(["sh", "-ec", script])
    serve = ["python3", "-IS", "/usr/local/lib/lab/serve.py", "lan", "tcp:8088", "udp:8088"]
    server = fw.vm.popen(["ip", "netns", "exec", "lan", *serve])
    fw.wan.ip(f"route add 10.88.0.0/24 via {fw.vm.v4}", f"route add fd88::/64 via {fw.vm.v6}")
    try:
        open_at(fw, [(proto, address, 8088) for proto in ("tcp", "udp") for address in ("10.88.0.2", "fd88::2")])
    finally:
        fw.wan.ip("route del 10.88.0.0/24", "route del fd88::/64")
        server.end()
        fw.vm.run(["sh", "-c", "ip netns del lan; ip -6 route del unreachable fd88::/64"])


@pytest.mark.parametrize("jump", [2 * DAY, -2 * DAY], ids=["forward", "back"])
def test_a_clock_that_jumps_changes_no_port(fw: MachineFw, jump: int) -> None:
    """No port opens or closes, and events of Docker are still followed: a new container has its own ports."""
    with fw.network() as net:
        app = fw.run(net, "--label", "fw.allow=8080")
        targets = [("tcp", a, p) for a in fw.addresses(app, net) for p in (8080, 9090)]
        with fw.vm.serve(app, tcp=[8080, 9090]), fw.wan.probe.hammer(*targets[1::2], every=0.01) as hammer:
            try:
                fw.vm.set_clock(time.time() + jump)
                assert verdicts(fw, targets) == ["open", "silent"] * 2
                later = fw.run("bridge", "--label", "fw.allow=9090", "-p", "19090:9090", "-p", "18080:8080")
                with fw.vm.serve(later, tcp=[8080, 9090]):
                    until(lambda: verdicts(fw, [("tcp", fw.vm.v4, 19090)]) == ["open"], "the label's port is open", 30)
                    assert verdicts(fw, [("tcp", fw.vm.v4, 18080)]) != ["open"]
                fw.remove(later)
            finally:
                fw.vm.set_clock()
            assert verdicts(fw, targets) == ["open", "silent"] * 2
        assert not hammer.result.opened
        say(f"clock {jump:+d} s: {len(hammer.result.shots)} probes of closed ports, none answered")


def test_a_paused_machine_goes_on_closed(fw: MachineFw) -> None:
    """After 20 s without its processors, longer than the lease of Docker's networks, nothing closed is open."""
    app = fw.run("bridge", "--label", "fw.allow=8080", "-p", "18080:8080", "-p", "19090:9090")
    try:
        with fw.vm.serve(app, tcp=[8080, 9090]):
            until(lambda: verdicts(fw, [("tcp", fw.vm.v4, 18080)]) == ["open"], "the label's port is open", 30)
            with fw.wan.probe.hammer(("tcp", fw.vm.v4, 19090), ("tcp", fw.vm.v6, 19090), every=0.01) as hammer:
                fw.vm.pause()
                resumed = time.monotonic() + 20
                until(lambda: time.monotonic() > resumed, "the machine was paused for 20 s", 30)
                fw.vm.resume()
                until(lambda: verdicts(fw, [("tcp", fw.vm.v4, 18080)]) == ["open"], "the port is open again", 30)
                fw.vm.set_clock()
                until(lambda: verdicts(fw, [("tcp", fw.vm.v6, 18080)]) == ["open"], "the port is open again", 30)
            assert not hammer.result.opened
            say(f"paused for 20 s: {len(hammer.result.shots)} probes of closed ports, none answered")
    finally:
        fw.remove(app)


#: Fills the root file system to the last block, the part kept for root too; what cannot be allocated is written.
_FILL = "fallocate -l $(df --output=avail -B1 / | tail -1) /fill; cat /dev/zero >>/fill; true"


@contextmanager
def full_disk(fw: MachineFw) -> Iterator[None]:
    """Leave no space on the machine's root file system, for a while."""
    fw.vm.run(["sh", "-c", _FILL], timeout=600)
    try:
        assert fw.vm.run(["sh", "-c", "head -c 65536 /dev/zero >/not"], check=False).returncode != 0
        yield
    finally:
        fw.vm.run(["rm", "-f", "/fill", "/not"])


def test_a_full_disk_opens_nothing_and_is_reported(fw: MachineFw) -> None:
    """While the root file system is full, what would open is refused with the reason, and what closes is closed.

    Open ports remain. With space again all is as it should be, without a restart.
    """
    with fw.network() as net:
        app, leaving = fw.run(net, "--label", "fw.allow=8080"), fw.run(net, "--label", "fw.allow=8080")
        outside = [("tcp", a, p) for a in fw.addresses(app, net) for p in (8080, 9090)]
        left = [("tcp", a, 8080) for a in fw.addresses(leaving, net)]
        allow = ("POST", "/allow", {"container": app, "rules": ["9090"]})
        with fw.vm.serve(app, tcp=[8080, 9090]), fw.vm.serve(leaving, tcp=[8080]):
            until(lambda: verdicts(fw, [*outside, *left]) == [*["open", "silent"] * 2, "open", "open"], "all is right")
            with full_disk(fw):
                with pytest.raises(DockerError, match="No space left on device") as refused:
                    fw.vm.http(fw.socket_inside(), *allow)
                say(str(refused.value))
                with pytest.raises(DockerError, match="No space left on device; the change is in effect"):
                    fw.vm.http(fw.socket_inside(), "POST", "/deny", {"container": leaving, "rules": ["8080"]})
                assert verdicts(fw, [*outside, *left]) == [*["open", "silent"] * 2, "silent", "silent"]
                assert "No space left on device" in str(fw.status())
                assert fw.vm.try_docker("run", "-d", "--network", net.name, "busybox", "true").returncode != 0
            fw.vm.http(fw.socket_inside(), *allow)
            assert verdicts(fw, [*outside, *left]) == [*["open"] * 4, "silent", "silent"]
            fw.vm.http(fw.socket_inside(), "POST", "/revert", {"container": leaving})
            fw.vm.http(fw.socket_inside(), "POST", "/revert", {"container": app})
            assert verdicts(fw, [*outside, *left]) == [*["open", "silent"] * 2, "open", "open"]
            assert "No space left on device" not in str(fw.status())
