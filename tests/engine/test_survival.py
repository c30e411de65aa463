"""Test that a restart, a crash or a boot restores the same state, and that it is closed meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.engine.outside import back, labelled
from tests.product import Fw, Net
from tests.waiting import until


@pytest.fixture
def live(fw: Fw) -> Iterator[Fw]:
    """Yield the engine with live-restore: its containers outlive dockerd."""
    fw.engine.stop()
    fw.engine.live_restore = True
    fw.engine.start()
    yield fw
    fw.engine.stop()
    fw.engine.live_restore = False
    fw.engine.start()


def served(fw: Fw, app: str, net: Net) -> None:
    """Wait until the container answers as its label says, directly and through its published port."""
    until(lambda: fw.engine.inspect(app)["State"]["Running"], f"{app} runs")
    until(lambda: fw.known(app), f"{app}'s labels are known")
    for address in (*fw.addresses(app, net), fw.host.v4, fw.host.v6):
        port = 18080 if address in (fw.host.v4, fw.host.v6) else 8080
        until(partial(answers_at, fw, address, port), f"{address} {port} is open")


def answers_at(fw: Fw, address: str, port: int) -> bool:
    return fw.wan.probe.tcp(address, port) == "open"


def targets(fw: Fw, app: str, net: Net) -> list[tuple[str, str, int]]:
    """Return what must never answer."""
    return [("tcp", a, 9090) for a in fw.addresses(app, net)] + [("tcp", h, 19090) for h in (fw.host.v4, fw.host.v6)]


def survives(fw: Fw, restart: Callable[[], None]) -> None:
    """End in the initial state, within a second of Docker's API answering; closed ports never answered meanwhile."""
    with fw.network() as net, labelled(fw, net) as app:
        served(fw, app, net)
        with fw.wan.probe.hammer(*targets(fw, app, net), every=0.005) as hammer:
            restart()
            hosts = (fw.host.v4, fw.host.v6)
            back(fw, [("tcp", a, 8080) for a in fw.addresses(app, net)] + [("tcp", h, 18080) for h in hosts])
            served(fw, app, net)
        assert len([shot for shot in hammer.result.shots if shot.verdict == "silent"]) > 50
        assert not hammer.result.opened


def killed(fw: Fw) -> None:
    fw.engine.kill()
    fw.engine.start()


def test_a_restart_of_dockerd_ends_as_it_began_and_closed_meanwhile(each: Fw) -> None:
    """After `systemctl restart docker` labelled ports answer again, within a second of Docker's API.

    A closed port never did.
    """
    survives(each, each.engine.restart)


def test_a_killed_dockerd_ends_as_it_began_and_closed_meanwhile(each: Fw) -> None:
    """After a crash of dockerd labelled ports answer again; a closed port never did."""
    survives(each, lambda: killed(each))


def test_live_restore_keeps_everything_over_a_restart_and_a_crash_of_dockerd(live: Fw) -> None:
    """With live-restore containers still run and answer; a closed port never does."""
    survives(live, live.engine.restart)
    survives(live, lambda: killed(live))


def test_a_reboot_ends_as_it_began_and_closed_meanwhile(each: Fw) -> None:
    """After a boot, with every link and rule lost, labelled ports answer again, within a second of Docker's API.

    A closed port never did.
    """
    survives(each, each.engine.reboot)


def test_a_killed_plugin_changes_nothing(deep: Fw) -> None:
    """The plugin's processes are killed: open stays open, closed stays closed, and new containers start at once."""
    with deep.network() as net, labelled(deep, net) as app:
        served(deep, app, net)
        opened = [("tcp", a, 8080) for a in deep.addresses(app, net)]
        with (
            deep.wan.probe.hammer(*targets(deep, app, net), every=0.005) as closed,
            deep.wan.probe.hammer(*opened, every=0.02, timeout=2) as hammer,
        ):
            for pattern in ("worker", "master"):
                before = deep.pids()
                victim = before[-1] if pattern == "worker" else before[0]
                deep.host.run(["kill", "-9", victim])
                until(lambda victim=victim: victim not in deep.pids(), f"the {pattern} is gone")
                until(deep.answers, "the plugin answers again")
            served(deep, app, net)
        assert not closed.result.opened
        assert not hammer.result.failed
        other = deep.run(net, "--label", "fw.allow=8081")
        with deep.engine.serve(other, tcp=[8081]):
            assert deep.wan.probe.tcp(deep.addresses(other, net)[1], 8081) == "open"
        assert deep.host.probe.tcp("127.0.0.1", 18080) == "open"


def test_disabling_and_enabling_the_plugin_keeps_what_is_closed_closed(fw: Fw) -> None:
    """While the plugin is disabled its rules are active; enabled again it knows its networks and containers."""
    with fw.network() as net, labelled(fw, net) as app:
        served(fw, app, net)
        with fw.wan.probe.hammer(*targets(fw, app, net), every=0.005) as hammer:
            fw.engine.docker("plugin", "disable", "-f", fw.driver)
            assert fw.wan.probe.tcp(fw.addresses(app, net)[1], 8080) == "open"
            fw.engine.docker("plugin", "enable", fw.driver)
            served(fw, app, net)
        assert not hammer.result.opened


def test_a_container_that_went_while_the_plugin_was_away_leaves_nothing_open(fw: Fw) -> None:
    """A container is removed while the plugin is disabled: its address's next owner inherits no ports or flows."""
    with fw.network() as net, labelled(fw, net) as app:
        served(fw, app, net)
        v4, v6 = fw.addresses(app, net)
        fw.engine.docker("plugin", "disable", "-f", fw.driver)
        fw.remove(app)
        fw.engine.docker("plugin", "enable", fw.driver)
        until(fw.answers, "the plugin answers again")
        heir = fw.run(net, "--ip", v4, "--ip6", v6, "-p", "18080:80")
        with fw.engine.serve(heir, tcp=[80, 8080, 9090]):
            seen = fw.wan.probe([("tcp", a, p) for a in (v4, v6) for p in (80, 8080, 9090)])
            assert list(seen.values()) == ["open", "silent", "silent"] * 2
            assert fw.wan.probe.tcp(fw.host.v4, 18080) == "open"
            assert fw.wan.probe.tcp(fw.host.v4, 19090) != "open"


def test_a_lost_state_file_can_be_recovered_from(fw: Fw) -> None:
    """With its state lost the plugin says what to do, and that works: remove the network, create it again."""
    with fw.network() as net:
        fw.engine.docker("plugin", "disable", "-f", fw.driver)
        for path in (fw.host.inside / "var/lib/docker/plugins").glob("*/propagated-mount/state.json*"):
            path.unlink()
        fw.engine.docker("plugin", "enable", fw.driver)
        assert "does not know network" in fw.refuse(net)
        fw.engine.docker("network", "rm", net.name)
        create = ("network", "create", "-d", fw.driver, "--subnet", net.v4, "--ipv6", "--subnet", net.v6, net.name)
        fw.engine.docker(*create)
        app = fw.run(net)
        with fw.engine.serve(app, tcp=[80, 8080]):
            v6 = fw.addresses(app, net)[1]
            assert list(fw.wan.probe([("tcp", v6, 80), ("tcp", v6, 8080)]).values()) == ["open", "silent"]


def test_a_bridge_that_vanished_is_made_again(fw: Fw) -> None:
    """After its bridge was deleted, the next container that starts restores it, for its neighbours too."""
    with fw.network("-o", "com.docker.network.bridge.name=mine1") as net:
        first = fw.run(net)
        fw.host.run(["ip", "link", "del", "mine1"])
        second = fw.run(net)
        for container in (first, second):
            with fw.engine.serve(container, tcp=[80, 8080]):
                v6 = fw.addresses(container, net)[1]
                assert list(fw.wan.probe([("tcp", v6, 80), ("tcp", v6, 8080)]).values()) == ["open", "silent"]


def test_no_other_tool_flushes_the_table(fw: Fw) -> None:
    """`nft flush ruleset` and other programs that change the table: nothing closed answers at any moment."""
    with fw.network() as net, labelled(fw, net) as app:
        served(fw, app, net)
        assert fw.status()["owned"]
        inet = ("inet", "docker-fw")
        with fw.wan.probe.hammer(*targets(fw, app, net), every=0.005) as hammer:
            for command in (
                ("delete", "table", *inet),
                ("flush", "chain", *inet, "forward"),
                ("flush", "set", *inet, "egress_restricted"),
                ("insert", "rule", *inet, "forward", "accept"),
            ):
                refused = fw.host.run(["nft", *command], check=False)
                assert "Operation not permitted" in refused.stderr, command
            fw.host.run(["nft", "flush", "ruleset"])
            v6 = fw.addresses(app, net)[1]
            assert [fw.wan.probe.tcp(v6, port) for port in (8080, 9090)] == ["open", "silent"]
            fw.engine.restart()  # Docker's own rules come back only with it
            served(fw, app, net)
        assert not hammer.result.opened


def test_a_flush_while_docker_fw_is_dead_is_repaired_when_it_is_back(fw: Fw) -> None:
    """The table of a process that has exited has no owner: after a flush the next start restores the policy."""
    with fw.network() as net, labelled(fw, net) as app:
        served(fw, app, net)
        fw.engine.docker("plugin", "disable", "-f", fw.driver)
        fw.host.run(["nft", "flush", "ruleset"])
        fw.engine.docker("plugin", "enable", fw.driver)
        v6 = fw.addresses(app, net)[1]
        until(lambda: fw.wan.probe.tcp(v6, 9090) == "silent", "closed again", timeout=1.5)
        fw.engine.restart()
        served(fw, app, net)
        assert fw.status()["owned"]


def test_the_first_of_its_kind_is_one_small_change(fw: Fw) -> None:
    """The first ban, the first restricted egress and the first internal network write no whole table.

    That takes a while, and the closing of a container that leaves would wait for it.
    """
    assert fw.status()["owned"]
    before = fw.engine.log.stat().st_size
    with fw.network() as net:
        v4, v6 = fw.addresses(fw.run(net, command=("httpd", "-f", "-p", "80")), net)
        until(lambda: fw.wan.probe.tcp(v6, 80) == "open", "the server")
        for _ in range(2):
            fw.fwctl("ban", fw.wan.V6, fw.wan.V4)
            assert fw.wan.probe.tcp(v6, 80) == fw.wan.probe.tcp(v4, 80) == "silent"
            fw.fwctl("unban", fw.wan.V6, fw.wan.V4)
            assert fw.wan.probe.tcp(v6, 80) == fw.wan.probe.tcp(v4, 80) == "open"
    with fw.network(driver="bridge") as net:
        fw.remove(fw.run(net, "--label", "fw.egress=none"))
    with fw.network("--internal", driver="bridge") as net:
        fw.remove(fw.run(net))
    assert fw.refused(before) == []
