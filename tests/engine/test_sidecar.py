"""Test docker-fw as a sidecar: the policy comes from a container, and every bridge is closed before Docker starts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from plugin.fwctl.host import boot_unit
from tests.documents import commands
from tests.engine.leftovers import left, state_of
from tests.engine.outside import (
    Targets,
    dockers,
    labelled,
    opens_just_the_label,
    published_ports_obey,
    seen,
    served,
    survives,
)
from tests.engine.sidecar import BOOT_INSTALL, Sidecar
from tests.lab import Engine, Host, Wan
from tests.lab.netns import FORWARDING, Netns
from tests.product import DEEP, IMAGE, Fw, Net, with_image
from tests.waiting import until

#: Bridges of the host's own: its uplink, and one with a machine behind it.
UNMANAGED = ["br-lan", "br0"]
MACHINE = ("tcp", "10.60.0.2", 9999)


@pytest.fixture(scope="module", params=DEEP)
def each(request: pytest.FixtureRequest) -> Iterator[Sidecar]:
    """Yield the sidecar."""
    with Engine(request.param, data=with_image(request.param)) as engine:
        yield Sidecar.up(engine)


@pytest.fixture(params=DEEP)
def alone(request: pytest.FixtureRequest) -> Iterator[Sidecar]:
    """Yield a sidecar for a test that removes it."""
    with Engine(request.param, data=with_image(request.param)) as engine:
        yield Sidecar.up(engine)


# --- started with one command -------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["bridge", "v4", "dual"])
def test_dockers_own_networks_obey(each: Sidecar, where: str) -> None:
    """With no more than CAP_NET_ADMIN it protects Docker networks as the managed plugin does."""
    published_ports_obey(each, where)


def test_it_serves_the_driver_fw_and_is_the_only_one(each: Sidecar) -> None:
    """`docker network create -d fw` works; a second docker-fw would undo its table: it does not start, and says why."""
    opens_just_the_label(each)
    second = each.engine.try_docker(
        "run",
        "--rm",
        "--network",
        "host",
        "--cap-add",
        "NET_ADMIN",
        "-v",
        "/run:/host/run:ro",
        "-v",
        "/proc/sys/net:/host/proc/sys/net",
        "-e",
        "FW_SOCKET=/tmp/fw.sock",
        IMAGE,
        timeout=30,
    )
    assert second.returncode != 0
    assert "another docker-fw runs on this host" in second.stdout + second.stderr
    opens_just_the_label(each)


def test_never_while_it_or_dockerd_restarts(each: Sidecar) -> None:
    """Closed ports never answer while it is killed or restarted, nor over a restart of dockerd with all containers."""

    def disturb(_: str) -> None:
        each.host.run(["pkill", "-9", "-f", "python:plugin.gunicorn_conf"])
        until(each.answers, "the sidecar answers again")
        each.engine.docker("restart", each.container)
        until(each.answers, "the sidecar answers again")
        each.engine.restart()

    survives(each, disturb)


# --- before Docker ------------------------------------------------------------------------------------------------


def wire(host: Host) -> None:
    """Configure the host as at its boot: forwarding, its uplink on a bridge, a machine on another."""
    host.netns.sysctl(FORWARDING)
    host.netns.ip(
        "link add br0 type bridge",
        "link set br0 up",
        "addr flush dev eth0",
        "link set eth0 master br0",
        f"addr add {host.v4}/24 dev br0",
        f"addr add {host.v6}/64 dev br0 nodad",
        f"route replace default via {Wan.V4}",
        f"route replace ::/0 via {Wan.V6}",
        "link add br-lan type bridge",
        "addr add 10.60.0.1/24 dev br-lan",
        "link set br-lan up",
    )
    host.run(
        [
            "sh",
            "-ec",
            """
        ip netns add machine
        ip link add vm0 type veth peer name eth0 netns machine
        ip link set vm0 master br-lan up
        in="ip -n machine"
        $in addr add 10.60.0.2/24 dev eth0; $in link set eth0 up; $in route add default via 10.60.0.1
        for way in -s -d; do iptables -I FORWARD $way 10.60.0.0/16 -j ACCEPT; done
    """,
        ]
    )
    Netns(f"{host.inside}/run/netns/machine").probe.serve(tcp=[9999], name="machine")


def untimed(table: str) -> str:
    """Return a listed table without the time that is left of the lease."""
    return re.sub(r" expires \w+", "", table)


def start_line(host: Host) -> list[str]:
    """Return what systemd runs before docker.service: the unit by the link in docker.service.wants."""
    unit = host.run(["cat", f"/{boot_unit.WANTS}"]).stdout
    (line,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    return shlex.split(line)


@contextmanager
def boots(fw: Sidecar) -> Iterator[None]:
    """Yield a host with bridges of its own and the unit installed; restore it afterwards."""
    wire(fw.host)
    until(lambda: fw.status()["foreign"] == UNMANAGED, "the host's own bridges are known")
    fw.host.run(["mkdir", "-p", "/run/systemd/system"])  # identifies a host run by systemd
    assert f"Exempt, because they are not Docker's: {', '.join(UNMANAGED)}." in fw.user(BOOT_INSTALL)
    try:
        yield
    finally:
        fw.user(BOOT_INSTALL.replace("install", "remove"))
        fw.engine.reboot()
        until(fw.answers, "the sidecar answers")


def reboot(fw: Sidecar) -> None:
    """Reboot up to where docker.service starts: as systemd does it, after the host's network and before Docker."""
    fw.engine.reboot(start=False)
    wire(fw.host)
    fw.host.run(start_line(fw.host))


@contextmanager
def away(fw: Sidecar) -> Iterator[None]:
    """Stop the sidecar, also over a boot; start it afterwards."""
    fw.engine.docker("update", "--restart", "no", fw.container)
    fw.engine.docker("stop", fw.container)
    try:
        yield
    finally:
        fw.engine.docker("update", "--restart", "always", fw.container)
        fw.engine.docker("start", fw.container)


@contextmanager
def app_on(fw: Fw, net: Net) -> Iterator[tuple[str, str, str]]:
    """Run a container that restarts by itself with the same addresses: 8080 opened, 9090 not, both published."""
    v4, v6 = net.v4.replace(".0/24", ".80"), net.v6.replace("::/64", "::80")
    with labelled(fw, net, "--ip", v4, "--ip6", v6) as app:
        yield app, v4, v6


def leaves_v6_alone(fw: Fw) -> bool:
    """Return True if Docker leaves the host's IPv6 alone.

    Before 27 it neither forwards the host's IPv6 to containers nor drops direct traffic to them.
    """
    return int(fw.engine.version.split(".")[0]) < 27


def closed(fw: Fw, v4: str, v6: str) -> Targets:
    """Return what never answers at boot.

    Where the host's IPv6 is left to docker-proxy there is no bridge to close.
    """
    hosts = [fw.host.v4] if leaves_v6_alone(fw) else [fw.host.v4, fw.host.v6]
    return [*(("tcp", host, 19090) for host in hosts), ("tcp", v4, 9090), ("tcp", v6, 9090)]


def test_boot_install_and_remove(each: Sidecar) -> None:
    """One command writes and enables the unit, a second run changes nothing, and one command removes all of it.

    Run in a way that is not documented it reports what is missing and leaves nothing half-done. While docker-fw runs,
    starting the unit changes nothing, and loading its file is refused.
    """
    paths = [f"/{path}" for path in (boot_unit.FILE, boot_unit.SCRIPT, boot_unit.UNIT, boot_unit.WANTS)]
    there = ["sh", "-c", f"ls -d {' '.join(paths)} 2>/dev/null"]

    def refused(left_out: str) -> str:
        done = each.host.run(["sh", "-ec", BOOT_INSTALL.replace(left_out, "")], check=False)
        assert (done.returncode, done.stdout) == (1, "")
        return done.stderr

    assert "does not run systemd; install the managed plugin" in refused("nothing")
    each.host.run(["mkdir", "-p", "/run/systemd/system"])
    assert "docker0 is not visible from here; run this in the host's network" in refused(" --network host")
    assert "Operation not permitted); run this with --cap-add NET_ADMIN" in refused(" --cap-add NET_ADMIN")
    assert "/host is not the host's file system" in refused(" -v /:/host")
    assert each.host.run(there, check=False).stdout == ""
    for word in ("wrote", "unchanged"):
        spec = each.user(BOOT_INSTALL)
        assert [f"{word}: {path}\n" in spec for path in paths[1:]] == [True] * 3
        assert "docker-fw keeps the file current." in spec
    if each.host.run(["sh", "-c", "command -v systemd-analyze"], check=False).returncode == 0:
        verified = each.host.run(["systemd-analyze", "verify", boot_unit.NAME])
        assert verified.stdout + verified.stderr == ""
    table = ["nft", "list", "table", "inet", "docker-fw"]
    before = untimed(each.host.run(table).stdout)
    each.host.run(start_line(each.host))
    assert each.host.run(["nft", "-f", f"/{boot_unit.FILE}"], check=False).returncode != 0
    assert untimed(each.host.run(table).stdout) == before
    spec = each.user(BOOT_INSTALL.replace("install", "remove"))
    assert [f"removed: {path}\n" in spec for path in paths] == [True] * 4
    assert each.host.run(there, check=False).stdout == ""


def test_at_boot_before_the_sidecar_everything_is_closed_and_the_rest_works(each: Sidecar) -> None:
    """While Docker runs without docker-fw, nothing answers but ICMP, with labels or without.

    The host's own bridges, outbound traffic of containers through one of them, and traffic between containers work as
    before. Then the sidecar opens what labels open.
    """
    with boots(each), dockers(each) as net, app_on(each, net) as (app, v4, v6):
        served(each)
        mate = each.run(net, "--restart", "always", "--stop-timeout", "0")
        never: Targets = closed(each, v4, v6)
        with each.wan.probe.hammer(*never, every=0.004) as hammer:
            with away(each):
                reboot(each)
                each.engine.start()
                for container in (app, mate):
                    until(lambda c=container: each.engine.inspect(c)["State"]["Running"], "the containers run")
                inside = [(address, port) for address in (v4, v6) for port in (8080, 9090)]
                for address, port in inside:
                    until(partial(opens, each.host, address, port), f"{address} {port} answers its host")
                tried: Targets = [("tcp", *where) for where in inside]
                assert set(each.engine.netns(mate).probe(tried).values()) == {"open"}
                assert not seen(each, *never, ("tcp", each.host.v4, 18080), ("tcp", v6, 8080))
                assert each.wan.probe.ping(v6) == ("open" if leaves_v6_alone(each) else "silent")  # Docker's own drop
                assert each.wan.probe.one(MACHINE).verdict == "open"
                for far in (Wan.FAR_V4, Wan.FAR_V6):
                    assert each.engine.netns(mate).probe.ping(far) == "open"
            served(each)
        assert len([shot for shot in hammer.result.shots if shot.verdict == "silent"]) > 50
        assert not hammer.result.opened
        assert each.wan.probe.tcp(each.host.v6, 19090) == "silent"


def opens(host: Host, address: str, port: int) -> bool:
    return host.probe.tcp(address, port) == "open"


def test_never_over_a_boot(each: Sidecar) -> None:
    """The host boots, with the sidecar among the other containers: closed ports never answer, from before Docker
    starts.

    The labelled port does once the sidecar is up; a bridge that was unmanaged at install time is reached throughout.
    Closed ports include docker-proxy's port of a container created after the unit was installed.
    """
    with dockers(each) as net, boots(each), app_on(each, net) as (_, v4, v6):
        served(each)
        written = ["cat", f"/{boot_unit.FILE}"]
        until(lambda: " . tcp . 19090" in each.host.run(written).stdout, "the file is written")
        proxied: Targets = [("tcp", host, 19090) for host in (each.host.v4, each.host.v6)]
        with each.wan.probe.hammer(*proxied, *closed(each, v4, v6), every=0.004) as hammer:
            reboot(each)
            with each.wan.probe.hammer(MACHINE, every=0.02, timeout=0.9) as machine:
                each.engine.start()
                until(each.answers, "the sidecar answers")
                served(each)
                until(lambda: each.status()["foreign"] == UNMANAGED, "Docker has been asked")
        assert len([shot for shot in hammer.result.shots if shot.verdict == "silent"]) > 50
        assert not hammer.result.opened
        assert len(machine.result.shots) > 50
        assert not machine.result.failed
        assert each.wan.probe.tcp(each.host.v6, 19090) == "silent"


# --- upgraded, and away again -------------------------------------------------------------------------------------


def test_an_upgrade_opens_nothing_and_the_end_leaves_nothing(alone: Sidecar) -> None:
    """With the README's commands: over an upgrade closed ports never answer, and open ones still do.

    When the sidecar is removed, nothing is left on the host but forwarding.
    """
    (_, *upgrade), *_ = commands("Upgrading")[1:]
    *_, away = commands("As a sidecar")
    alone.host.run(["mkdir", "-p", "/run/systemd/system"])
    with alone.network() as net:
        app = alone.run(net, "--label", "fw.allow=8080", command=("sh", "-c", "httpd -p 9090; exec httpd -f -p 8080"))
        opened: Targets = [("tcp", a, 8080) for a in alone.addresses(app, net)]
        until(lambda: set(alone.wan.probe(opened).values()) == {"open"}, "its label opens it")
        with (
            alone.wan.probe.hammer(*(("tcp", a, 9090) for _, a, _ in opened), every=0.004) as hammer,
            alone.wan.probe.hammer(*opened, every=0.02, timeout=2) as steady,
        ):
            before = alone.container
            alone.engine.docker("commit", "--change", "LABEL newer=1", before, IMAGE)
            for command in upgrade:
                alone.user(command.replace("compose-examples/", ""))
            assert alone.container != before
            until(alone.answers, "the new version answers")
        assert not hammer.result.opened
        assert not steady.result.failed
    for command in away:
        alone.user(command.replace("compose-examples/", "").replace(" && systemctl daemon-reload", ""))
    alone.host.run(["rm", "-r", "/run/systemd"])
    remains = left(alone.before, state_of(alone.engine))
    rules = {line for what in ("nftables", "iptables") for line in remains.pop(what, ())}
    assert not [line for line in rules if "fw" in line or "8000000" in line]  # Docker's own are others after a boot
    assert remains.keys() <= {"sysctls", "routes"}, remains
