"""docker-fw on an engine of the lab: installed as its users install it, with networks and containers for tests."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugin.fwctl.socket_client import ask
from plugin.model import FwError
from tests.lab import ENGINES, Engine
from tests.lab.builder import build_image
from tests.lab.data import keep
from tests.lab.store import cached, digest, keep_newest

ROOT = Path(__file__).resolve().parent.parent
IMAGE = "docker-fw:latest"
PLUGIN = "fw:latest"
#: `FW_ENGINES="26.1.5 28.5.2"` selects; without it the core promises are tested on all.
VERSIONS = os.environ.get("FW_ENGINES", " ".join(ENGINES)).split()
#: Tests that do not depend on Docker's version run on this one.
NEWEST = VERSIONS[-1]
#: Tests with equal results on the other versions run on those only on request.
DEEP = VERSIONS if "FW_ENGINES" in os.environ else [NEWEST]
#: Debian packages of the firewalls that docker-fw is tested with, in a root of their own.
FIREWALLS = ("ufw", "firewalld", "dbus")
#: The plugin's log then has each of Docker's events: `tests/engine/conftest.py` shows its end when a test fails.
LOG = "FW_LOG_LEVEL=debug"
#: Data of engines of one version with docker-fw that stay in the lab's cache.
KEPT = 3
#: The plugin's log has one of these if the kernel refused a change. docker-fw then writes more than the change, and
#: other changes wait for that, a closing too.
REFUSED = ("the kernel refused", "could not close addresses before", "closing part of a change alone", "bans alone")
#: Ports that every container answers on without any configuration.
BASE = (22, 80, 443)
_numbers, _subnets = itertools.count(1), itertools.count(1)


def image_tar() -> Path:
    """Return the image, built from the Dockerfile (from the cache if unchanged), as `docker save` writes it."""
    return build_image(ROOT, IMAGE)


def plugin_rootfs(engine: Engine) -> Path:
    """Return the plugin's root file system, in the cache; the engine makes it of the image if it is not there."""
    tar = image_tar()

    def unpack(target: Path) -> None:
        if engine.try_docker("image", "inspect", IMAGE).returncode:
            engine.load(tar)
        script = (
            f"mkdir -p /lab/unpacked; id=$(docker create {IMAGE}); "
            "docker export $id | tar -x -C /lab/unpacked; docker rm $id"
        )
        engine.host.run(["sh", "-ec", script], timeout=300)
        shutil.move(engine.host.share / "unpacked", target)

    return cached("plugins", tar.stem, "the plugin's root file system", unpack)


def plugin_dir(engine: Engine) -> str:
    """Return build/plugin inside the engine's host: config.json and rootfs, made as the Makefile makes them."""
    rootfs = plugin_rootfs(engine)
    target = engine.host.share / "plugin"
    if not target.exists():
        target.mkdir()
        subprocess.run(["cp", "-al", str(rootfs), str(target / "rootfs")], check=True, timeout=300)
        shutil.copy(ROOT / "config.json", target)
    return "/lab/plugin"


def with_plugin(version: str) -> list[Path]:
    """Return data for an `Engine`: it has docker-fw's plugin, disabled, before dockerd starts."""
    made = _installed(version)
    return [made / "image", made / "overlay2", made / "plugins"]


def with_image(version: str) -> list[Path]:
    """Return data for an `Engine` of one of `DEEP`: it has docker-fw's image before dockerd starts, and no plugin."""
    return with_plugin(version)[:2]


def _installed(version: str) -> Path:
    """Return the data of an engine on which docker-fw was installed, in the cache. Those of `DEEP` keep the image."""
    tar, config = image_tar(), (ROOT / "config.json").read_text()
    stem = f"created-{version}"

    def install(target: Path) -> None:
        with Engine(version) as engine:
            if version in DEEP:
                engine.load(tar)
            engine.docker("plugin", "create", PLUGIN, plugin_dir(engine), timeout=300)
            # `create` keeps the name in memory only (moby plugin/manager_linux.go); `set` writes it to the disk.
            engine.docker("plugin", "set", PLUGIN, LOG)
            engine.stop()
            theirs = engine.host.plain("/var/lib/docker")
            keep([theirs / "image", theirs / "overlay2", theirs / "plugins"], target)

    made = cached(
        "plugins", f"{stem}-{digest(tar.name, config, version in DEEP, LOG)}", f"the plugin in {version}", install
    )
    keep_newest(made, f"{stem}-*", KEPT)
    return made


@dataclass(frozen=True)
class Net:
    """A docker-fw network that a test created."""

    name: str
    v4: str
    v6: str


class Fw:
    """An engine with docker-fw as its managed plugin."""

    def __init__(self, engine: Engine, driver: str = PLUGIN) -> None:
        self.engine = engine
        self.driver = driver
        self.host = engine.host
        self.wan = engine.host.wan

    @classmethod
    def install(cls, engine: Engine, *settings: str) -> Fw:
        """Enable the plugin, with these settings, on an engine that has it (see `with_plugin`)."""
        if engine.host.run(["test", "-e", "/sys/fs/cgroup/unified"], check=False).returncode == 0:
            # The lab has control groups of both versions; dockerd's is separate there too.
            settings = ("FW_CGROUP=/host/cgroup/unified", *settings)
        if settings:
            engine.docker("plugin", "set", PLUGIN, *settings)
        engine.docker("plugin", "enable", PLUGIN)
        return cls(engine)

    @contextmanager
    def network(self, *options: str, v4: bool = True, v6: bool = True, driver: str | None = None) -> Iterator[Net]:
        """Create a network with subnets of its own; it and the containers on it are removed afterwards.

        Its driver is docker-fw's, or Docker's bridge driver with `driver="bridge"`.
        """
        number = next(_subnets)
        net = Net(f"net{number}", f"10.88.{number}.0/24" if v4 else "", f"2001:db8:88:{number}::/64" if v6 else "")
        arguments = [*(("--subnet", net.v4) if v4 else ()), *(("--ipv6", "--subnet", net.v6) if v6 else ())]
        self.engine.docker("network", "create", "-d", driver or self.driver, *arguments, *options, net.name)
        try:
            yield net
        finally:
            self.remove(*self.engine.docker("ps", "-aq", "--filter", f"network={net.name}").split())
            self.engine.docker("network", "rm", net.name)

    def run(
        self, net: Net | str, *options: str, image: str = "busybox", command: Sequence[str] = ("sleep", "inf")
    ) -> str:
        """Start a container on a network and return its name. Raises DockerError with Docker's output."""
        name = f"c{next(_numbers)}"
        where = net if isinstance(net, str) else net.name
        self.engine.docker("run", "-d", "--name", name, "--network", where, *options, image, *command)
        return name

    def refuse(self, net: Net, *options: str) -> str:
        """Start a container that must not start; return Docker's output. It is removed again."""
        name = f"c{next(_numbers)}"
        where = ("--name", name, "--network", net.name)
        done = self.engine.try_docker("run", "-d", *where, *options, "busybox", "sleep", "inf")
        self.remove(name)
        assert done.returncode != 0, f"{name} started with {options}"
        return done.stderr

    def remove(self, *containers: str) -> None:
        if containers:
            self.engine.try_docker("rm", "-f", *containers)

    def addresses(self, container: str, net: Net) -> list[str]:
        return [address for address in self.engine.address(container, net.name) if address]

    def refused(self, since: int) -> list[str]:
        """Return the lines of the log, from this byte on, that report that the kernel refused a change."""
        with self.engine.log.open("rb") as log:
            log.seek(since)
            lines = log.read().decode(errors="replace").splitlines()
        return [line for line in lines if any(words in line for words in REFUSED)]

    def socket(self) -> Path:
        """Return the plugin's own socket, as seen from this machine."""
        (path,) = (self.host.inside / "run/docker/plugins").glob("*/fw.sock")
        return path

    def status(self) -> dict[str, Any]:
        """Return the plugin's status."""
        return ask(str(self.socket()), "/status")

    def answers(self) -> bool:
        """Return True if the plugin answers."""
        try:
            return bool(self.status())
        except (FwError, ValueError):
            return False

    def pids(self) -> list[str]:
        """Return the plugin's processes, the master first."""
        return self.host.run(["pgrep", "-f", "python:plugin.gunicorn_conf"], check=False).stdout.split()

    def fwctl(self, *arguments: str) -> str:
        """Return the output of fwctl for this plugin. Raises CalledProcessError."""
        command = [sys.executable, "-m", "plugin.fwctl.cli", *arguments, "--socket", str(self.socket())]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20).stdout

    def known(self, container: str) -> bool:
        """Return True once the plugin knows the container's labels."""
        endpoints = [e for network in self.status()["networks"] for e in network["endpoints"]]
        return any(e["container"] == container and e["known"] for e in endpoints)
