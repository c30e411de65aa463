"""Test installation and removal: the Makefile, a registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from plugin.nftables.sets import TABLE
from tests.documents import commands
from tests.engine.leftovers import left, state_of
from tests.engine.outside import opens_just_the_label
from tests.engine.pushed import at, push
from tests.lab import Engine, Registry, Wan
from tests.product import IMAGE, NEWEST, PLUGIN, ROOT, Fw, Net, with_image
from tests.waiting import until


def test_from_make_install_by_an_upgrade_to_make_uninstall() -> None:
    """`make install` gives a working plugin, the README's commands upgrade it, and `make uninstall` leaves nothing.

    Another version is pushed on one machine, and this one is upgraded to it. `make uninstall` refuses while docker-fw
    is used. It leaves no rule, link, address, file, volume or image; only forwarding, as the README says. `docker
    plugin install` of the pushed version works too.
    """
    with Wan() as wan, Registry(wan) as registry:
        with Engine("26.1.5", wan=wan, args=[registry.insecure]) as maker:
            push(maker, registry)
        with Engine(NEWEST, wan=wan, args=[registry.insecure], data=with_image(NEWEST)) as engine:
            wan.route(engine.host.number, "10.88.0.0/16")
            wan.route(engine.host.number, "2001:db8:88::/48")
            before = state_of(engine)
            before["images"].discard(IMAGE)
            source = engine.host.share / "source"
            source.mkdir()
            for name in ("Makefile", "config.json", "pyproject.toml"):
                shutil.copy(ROOT / name, source)
            make = ["make", "-C", "/lab/source", f"IMAGE={IMAGE}"]
            engine.host.run([*make, "build/plugin"], timeout=120)
            assert "ready: docker network create" in engine.host.run([*make, "install-built"], timeout=120).stdout
            again = engine.host.run([*make, "install-built"], check=False, timeout=120)
            assert again.returncode != 0
            assert "is installed already" in again.stderr
            fw = Fw(engine)
            with fw.network("-o", "com.docker.network.bridge.name=mine0") as net:
                used = engine.host.run([*make, "uninstall"], check=False, timeout=60)
                assert used.returncode != 0
                assert net.name in used.stderr
                alone = ("run", "--rm", "--network", "host", "--cap-add", "NET_ADMIN", IMAGE, "cleanup")
                early = engine.try_docker(*alone)
                assert early.returncode != 0
                assert "docker-fw runs on this host" in early.stderr
                upgraded_and_taken_back(fw, net, registry)
            assert (
                "IPv6 forwarding, which docker-fw had enabled, remains enabled"
                in engine.host.run([*make, "uninstall"], timeout=120).stdout
            )
            remains = left(before, state_of(engine))
            sysctls = {line.lstrip("-").split()[0] for line in remains.pop("sysctls")}
            assert {name.rpartition("/")[2] for name in sysctls} == {"accept_ra", "forwarding"}
            assert all("anycast" in line for line in remains.pop("routes"))  # the kernel's, on a host that forwards
            assert remains == {}
            name = f"{registry.address}/docker-fw:new"
            engine.docker("plugin", "install", "--grant-all-permissions", name, timeout=120)
            opens_just_the_label(Fw(engine, driver=name))


def upgraded_and_taken_back(fw: Fw, net: Net, registry: Registry) -> None:
    """With the README's commands: nothing closed ever answers, open ports still answer, settings stay."""
    (_, _, _, _, *upgrade), _, (way_back,) = commands("Upgrading")
    served = ("sh", "-c", "httpd -p 7777; httpd -p 9090; exec httpd -f -p 8080")
    app = fw.run(net, "--label", "fw.allow=8080", "-p", "19090:9090", command=served)
    addresses, probe = fw.addresses(app, net), fw.wan.probe
    until(lambda: set(probe([("tcp", a, 8080) for a in addresses]).values()) == {"open"}, "its label opens it")
    never: list[tuple[str, str, int]] = [("tcp", a, 9090) for a in addresses]
    never += [("tcp", host, 19090) for host in (fw.host.v4, fw.host.v6)]
    with (
        probe.hammer(*never, every=0.004) as closed,
        probe.hammer(*(("tcp", a, 8080) for a in addresses), every=0.02, timeout=2) as opened,
    ):
        for command in upgrade:
            fw.host.run(["sh", "-ec", at(registry, command)], timeout=120)
            if " disable " in command:
                fw.engine.docker("plugin", "set", PLUGIN, "FW_ALLOW=7777")
        until(fw.answers, "the new version answers")
        assert "newer" in fw.engine.docker("plugin", "ls")
        assert set(probe([("tcp", a, 7777) for a in addresses]).values()) == {"open"}
        fw.engine.docker("plugin", "disable", "-f", PLUGIN)
        fw.engine.docker("plugin", "enable", PLUGIN)
        until(fw.answers, "the former version answers")
        fw.host.run(["sh", "-ec", way_back])  # for versions whose table has the former name: does nothing here
        assert f"table inet {TABLE} {{" in fw.host.run(["nft", "list", "ruleset"]).stdout
    assert len([shot for shot in closed.result.shots if shot.verdict == "silent"]) > 200
    assert not closed.result.opened
    assert not opened.result.failed


@pytest.mark.parametrize("setting", ["FW_MARK=3", "FW_ALLOW=http", "FW_ALOW=80", "FW_LOG_LEVEL=loud"])
def test_a_wrong_setting_ends_the_start_with_a_message(engines: object, setting: str) -> None:
    """A wrong setting is named with its value; the plugin does not run on half of its settings."""
    name, _, value = setting.partition("=")
    done = subprocess.run(
        [sys.executable, "-c", "import plugin.gunicorn_conf"],
        cwd=ROOT,
        env={**os.environ, name: value},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    assert name in done.stderr
    assert "wrong settings" in done.stderr
