"""How people get it and get rid of it: the Makefile, a registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.lab import Engine, Registry, Wan
from tests.product import IMAGE, NEWEST, ROOT, Fw, image_tar, plugin_dir


def opens_just_the_label(fw: Fw) -> None:
    """The main promise in short, on an engine that was just set up."""
    with fw.network() as net:
        app = fw.run(net, "--label", "fw.allow=8080")
        with fw.engine.serve(app, tcp=[80, 8080, 9090]):
            for address in fw.addresses(app, net):
                seen = fw.wan.probe([("tcp", address, port) for port in (80, 8080, 9090)])
                assert list(seen.values()) == ["open", "open", "silent"]


def test_make_install_and_uninstall() -> None:
    """`make install` gives a working plugin; `make uninstall` refuses while it is used, and then leaves nothing."""
    with Engine(NEWEST) as engine:
        engine.load(image_tar())
        source = engine.host.share / "source"
        source.mkdir()
        for name in ("Makefile", "config.json", "pyproject.toml"):
            shutil.copy(ROOT / name, source)
        make = ["make", "-C", "/lab/source", f"IMAGE={IMAGE}"]
        links = engine.host.run(["ip", "-br", "link"]).stdout.split()
        engine.host.run([*make, "build/plugin"], timeout=120)
        assert "ready: docker network create" in engine.host.run([*make, "install-built"], timeout=120).stdout
        again = engine.host.run([*make, "install-built"], check=False, timeout=120)
        assert again.returncode != 0
        assert "is installed already" in again.stderr
        fw = Fw(engine)
        opens_just_the_label(fw)
        with fw.network("-o", "com.docker.network.bridge.name=mine0") as net:
            used = engine.host.run([*make, "uninstall"], check=False, timeout=60)
            assert used.returncode != 0
            assert net.name in used.stderr
            early = engine.try_docker("run", "--rm", "--network", "host", "--cap-add", "NET_ADMIN", IMAGE, "cleanup")
            assert early.returncode != 0
            assert "docker-fw runs on this host" in early.stderr
            assert "inet fw" in engine.host.run(["nft", "list", "tables"]).stdout
        engine.host.run([*make, "uninstall"], timeout=120)
        assert "inet fw" not in engine.host.run(["nft", "list", "tables"]).stdout
        assert "docker-fw" not in engine.host.run(["iptables-save"]).stdout + engine.host.run(["ip6tables-save"]).stdout
        assert engine.host.run(["ip", "-br", "link"]).stdout.split()[::3] == links[::3]
        assert engine.docker("plugin", "ls", "-q") == ""
        assert IMAGE not in engine.docker("images")


def test_install_from_a_registry_on_a_clean_engine() -> None:
    """`docker plugin push` on one machine, `docker plugin install` on another, and it works there."""
    with Wan() as wan, Registry(wan) as registry:
        name = f"{registry.address}/docker-fw:latest"
        with Engine("26.1.5", wan=wan, args=[registry.insecure]) as maker:
            maker.docker("plugin", "create", name, plugin_dir(maker), timeout=120)
            maker.docker("plugin", "push", name, timeout=120)
        with Engine(NEWEST, wan=wan, args=[registry.insecure]) as engine:
            wan.route(engine.host.number, "10.88.0.0/16")
            wan.route(engine.host.number, "2001:db8:88::/48")
            engine.docker("plugin", "install", "--grant-all-permissions", name, timeout=120)
            opens_just_the_label(Fw(engine, driver=name))


@pytest.mark.parametrize("setting", ["FW_MARK=3", "FW_ALLOW=http", "FW_ALOW=80", "FW_LOG_LEVEL=loud"])
def test_a_wrong_setting_ends_the_start_with_a_message(engines: object, setting: str) -> None:
    """A setting that is wrong is named with its value; the plugin does not run on half of its settings."""
    name, _, value = setting.partition("=")
    done = subprocess.run(
        [sys.executable, "-c", "import plugin.gunicorn_conf"],
        cwd=ROOT, env={**os.environ, name: value}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert name in done.stderr
    assert "wrong settings" in done.stderr
