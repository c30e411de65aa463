"""Test Docker networks at every moment: an outsider that probes without pause finds no closed port open, not once.

A completed handshake is open, whatever follows it. FW_TEST_STARTS: the number of container starts to try.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.engine.outside import (
    SERVERS,
    Targets,
    back,
    closed,
    dockers,
    hosts,
    labelled,
    opened,
    served,
    setting,
    survives,
)
from tests.inputs import TIMES
from tests.lab import Engine
from tests.lab.netns import FORWARDING
from tests.product import NEWEST, Fw, Net, with_plugin
from tests.waiting import until


def test_never_while_networks_and_containers_are_added(each: Fw) -> None:
    """Closed ports stay closed from a network's first moment and a container's first packet on.

    This holds for DNAT, docker-proxy, and the container's address.
    """
    each.host.netns.sysctl(FORWARDING)
    with each.network(driver="bridge") as net:
        first = each.run(net)
        v4, v6 = each.addresses(first, net)
        each.remove(first)
        subnets = [word for s in (net.v4, net.v6) for word in ("--subnet", s)]
    targets: Targets = [("tcp", h, 19090) for h in hosts(each)] + [("tcp", v4, 9090), ("tcp", v6, 9090)]
    with each.wan.probe.hammer(*targets, every=0.004) as hammer:
        for naming in ((), ("-o", "com.docker.network.bridge.name=front2")):
            each.engine.docker("network", "create", "--ipv6", *subnets, *naming, "windows")
            for number in range(2):
                label = ("--label", "fw.allow=8080") if number else ()
                app = each.run(
                    "windows", "--ip", v4, "--ip6", v6, "-p", "18080:8080", "-p", "19090:9090", *label, command=SERVERS
                )
                until(lambda: each.host.probe.tcp(v6, 9090) == "open", "the container's server")
                each.remove(app)
            each.engine.docker("network", "rm", "windows")
        for _ in range(2):  # docker0 has IPv4 alone: the host's IPv6 leads to docker-proxy
            app = each.run("bridge", "-p", "19090:9090", command=SERVERS)
            until(lambda: each.host.probe.tcp(each.host.v6, 19090) == "open", "the container's server")
            each.remove(app)
    assert len(hammer.result.shots) > 300
    assert not hammer.result.opened


@contextmanager
def busy() -> Iterator[None]:
    """Keep the machine busy, so that every process waits for a processor. In `make test` other tests do."""
    processors = os.cpu_count() or 1
    others = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 2 * processors
    processes = processors * (2 if TIMES else not others)
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait(30)


def test_no_start_of_a_container_opens_a_closed_port(each: Fw) -> None:
    """Containers start repeatedly on a busy machine, with all paths to docker-proxy.

    A port that the user chose, on all addresses of the host and on one; one that Docker chooses; for a new container,
    and for one that was stopped.
    """
    never_at_a_start(each)


def test_nor_where_docker_proxy_is_not_known_by_its_control_group(each: Fw) -> None:
    """The same where docker-proxy is not identified: control groups of version 1, or a dockerd started by hand."""
    with setting(each, "FW_DOCKERD_CGROUP=no.such"):
        assert not each.status()["proxy_known"]
        never_at_a_start(each)


def never_at_a_start(fw: Fw) -> None:
    starts = int(os.environ.get("FW_TEST_STARTS", "4"))
    fw.host.netns.sysctl(FORWARDING)
    ports = ("-p", "19090:9090", "-p", f"{fw.host.v4}:19091:9090", "-p", "19100-19101:9090", "-p", "19092:9090/udp")
    targets: Targets = [("tcp", host, 19090) for host in hosts(fw)] + [("tcp", fw.host.v4, 19091)]
    targets += [("tcp", fw.host.v6, port) for port in (19100, 19101)] + [("udp", fw.host.v6, 19092)]
    with fw.wan.probe.hammer(*targets, every=0.002) as hammer, busy():
        for _ in range((starts + 1) // 2):
            app = fw.run("bridge", *ports, command=("sh", "-c", "nc -ulp 9090 -e cat & exec httpd -f -p 9090"))
            until(lambda: fw.host.probe.tcp(fw.host.v6, 19090) == "open", "docker-proxy and the server", 60)
            fw.engine.docker("restart", "-t", "0", app)
            until(lambda: fw.host.probe.tcp(fw.host.v6, 19090) == "open", "docker-proxy and the server are back", 60)
            fw.remove(app)
    assert len(hammer.result.shots) > 50 * starts
    assert not hammer.result.opened


@pytest.mark.parametrize("v6", [True, False], ids=["dual", "v4"])
def test_never_while_dockerd_restarts(each: Fw, v6: bool) -> None:
    """`systemctl restart docker`: containers start before Docker's API answers.

    On IPv4-only networks docker-proxy listens on the host's IPv6 before they start.
    """
    survives(each, lambda _: each.engine.restart(), v6=v6)


def test_never_while_dockerd_is_killed(fw: Fw) -> None:
    """dockerd dies and is started again."""

    def killed(_: str) -> None:
        fw.engine.kill()
        fw.engine.start()

    survives(fw, killed, v6=False)


@pytest.mark.parametrize("v6", [True, False], ids=["dual", "v4"])
def test_never_over_a_boot(each: Fw, v6: bool) -> None:
    """The host boots: the managed plugin closes everything before Docker starts the first container.

    Labelled ports answer within a second of Docker's API.
    """

    def boot(_: str) -> None:
        each.engine.reboot()
        back(each, opened(each))

    survives(each, boot, v6=v6)


@contextmanager
def slow(fw: Fw, seconds: float) -> Iterator[None]:
    """Let gunicorn start that much later, as on a slow machine."""

    def directory() -> Path:  # after a boot the host's processes have other numbers
        (found,) = (fw.host.inside / "var/lib/docker/plugins").glob("*/rootfs/opt/docker-fw/bin")
        return found

    program, kept = directory() / "gunicorn", directory() / "gunicorn-kept"
    program.rename(kept)
    try:
        program.write_text(f'#!/bin/sh\nsleep {seconds}\nexec /opt/docker-fw/bin/{kept.name} "$@"\n')
        program.chmod(0o755)
        yield
    finally:
        (directory() / kept.name).replace(directory() / program.name)


def test_never_over_a_boot_at_which_the_plugin_is_slow(deep: Fw) -> None:
    """If the plugin takes longer than the ten seconds that dockerd waits, dockerd does not disable it.

    dockerd starts the containers of Docker networks meanwhile.
    """

    def boot(_: str) -> None:
        with slow(deep, 11):
            deep.engine.reboot()
            assert deep.engine.docker("plugin", "ls", "--format", "{{.Enabled}}").strip() == "true"
            until(deep.answers, "the plugin answers", 40)

    survives(deep, boot, v6=False)


def test_never_while_docker_fw_is_killed_and_restarted(deep: Fw) -> None:
    """kill -9 of either process, `docker plugin disable` and `enable`; an open port is open again within a second."""

    def disturb(_: str) -> None:
        for which in (-1, 0):
            victim = deep.pids()[which]
            deep.host.run(["kill", "-9", victim])
            until(lambda victim=victim: victim not in deep.pids(), "the process has ended")
            until(deep.answers, "the plugin answers again")
            for target in opened(deep):
                until(partial(lambda t: deep.wan.probe.one(t).verdict == "open", target), f"{target} answers", 2)
        deep.engine.docker("plugin", "disable", "-f", deep.driver)
        deep.engine.docker("plugin", "enable", deep.driver)

    survives(deep, disturb, v6=False)


def test_an_address_that_changes_hands_takes_no_exception_along(deep: Fw) -> None:
    """A labelled container is removed and another one gets its address in the same second: its ports stay closed.

    No client reaches them.
    """
    deep.host.netns.sysctl(FORWARDING)
    with dockers(deep) as net:
        for _ in range(4):
            first = deep.run(net, "--label", "fw.allow=8080")
            v4, v6 = deep.addresses(first, net)
            targets: Targets = [("tcp", v4, 8080), ("tcp", v6, 8080)]
            with deep.wan.probe.hammer(*targets, every=0.003) as hammer:
                deep.engine.docker("rm", "-f", first)
                heir = deep.run(net, "--ip", v4, "--ip6", v6, command=("httpd", "-f", "-p", "8080"))
                until(lambda v6=v6: deep.host.probe.tcp(v6, 8080) == "open", "the heir's server")
            assert not hammer.result.opened
            deep.remove(heir)


def test_network_connect_and_disconnect_are_followed(each: Fw) -> None:
    """`network connect` of a running container opens its ports on that address, `disconnect` closes them.

    A restart and a rename change nothing. For a moment Docker lists a renamed container by both names.
    """
    each.host.netns.sysctl(FORWARDING)
    with dockers(each) as net, dockers(each) as other:
        app = each.run(net, "--label", "fw.allow=8080")
        each.engine.docker("network", "connect", other.name, app)

        def places(network: Net) -> list[dict[str, Any]]:
            networks = {n["name"]: n for n in each.status()["guarded"]}
            found: list[dict[str, Any]] = networks.get(network.name, {"endpoints": []})["endpoints"]
            return found

        def accepts(network: Net) -> list[str]:
            return [rule for place in places(network) for rule in place["accepts"]]

        right = ["22/tcp", "80/tcp", "443/tcp", "8080/tcp"]
        until(lambda: accepts(net) == accepts(other) == right, "both attachments are known", 5)
        each.engine.docker("network", "disconnect", net.name, app)
        until(lambda: (accepts(net), accepts(other)) == ([], right), "the attachment is removed", 5)
        each.engine.docker("restart", "-t", "0", app)
        names = (app, f"{app}x")
        for old, new in (names, *(names[::-1], names) * 8):
            each.engine.docker("rename", old, new)
            known = partial(lambda new: [place["container"] for place in places(other)] == [new], new)
            until(known, lambda new=new: f"{new} is known: {places(other)}", 5)
        until(lambda: (accepts(net), accepts(other)) == ([], right), "the container accepts the same as before", 5)
        each.remove(f"{app}x")
        until(lambda: accepts(other) == [], "no attachment is left", 5)


def test_an_exception_ends_with_its_container_though_docker_reports_nothing(engines: object) -> None:
    """With live-restore, while dockerd is down, containers keep what they accept.

    When a container's link is removed, which dockerd does before it gives the address to another, its network is
    closed, long before Docker's API answers.
    """
    with Engine(NEWEST, live_restore=True, data=with_plugin(NEWEST)) as engine:
        fw = Fw.install(engine)
        with dockers(fw, v6=False) as net, labelled(fw, net) as app:
            served(fw)
            (v4,) = fw.addresses(app, net)
            bridge = "br-" + engine.docker("network", "inspect", "-f", "{{.Id}}", net.name)[:12]
            link = fw.host.run(["ip", "-o", "link", "show", "master", bridge]).stdout.split()[1].partition("@")[0]
            engine.stop()
            # docker-proxy ended with dockerd, so the host's IPv6 does not lead there now.
            assert fw.wan.probe.tcp(fw.host.v4, 18080) == "open"
            assert v4 in table(fw)
            fw.host.run(["ip", "link", "del", link])
            until(lambda: v4 not in table(fw), "its exception is gone", 2)
            engine.start()
            engine.docker("restart", "-t", "0", app)
            served(fw)


def test_stopped_docker_fw_keeps_everything_closed(fw: Fw) -> None:
    """After `docker plugin disable`, addresses accept no new connections until the plugin is enabled again.

    No process watches the owners of addresses meanwhile. Closed ports stay closed.
    """
    with dockers(fw, v6=False) as net, labelled(fw, net) as app:
        served(fw)
        with fw.wan.probe.hammer(*closed(fw, app, net), every=0.004) as hammer:
            fw.engine.docker("plugin", "disable", "-f", fw.driver)
            assert [fw.wan.probe.one(target).verdict for target in opened(fw)] == ["silent", "silent"]
            assert fw.host.probe.tcp("127.0.0.1", 19090) == "open"
            fw.engine.docker("plugin", "enable", fw.driver)
            served(fw)
        assert not hammer.result.opened


def table(fw: Fw) -> str:
    """Return the exceptions of IPv4 addresses, as nft lists them."""
    return fw.host.run(["nft", "list", "set", "inet", "docker-fw", "allow4"]).stdout
