"""docker-fw on virtual machines, installed as its users install it."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from plugin.model import FwError
from tests.lab import ENGINES, Engine, busybox, engine_root
from tests.lab.builder import image_path
from tests.lab.daemon import DockerError
from tests.lab.store import LabError, cache, digest
from tests.product import IMAGE, PLUGIN, ROOT, Fw, image_tar, plugin_rootfs
from tests.vm.disk import disk, recipe
from tests.vm.machine import Machine
from tests.vm.states import State, cached_state, prepared, ready
from tests.vm.systems import DEFAULT
from tests.waiting import until

SIDECAR = ROOT / "compose-examples/sidecar.yml"
COMPOSE = "usr/libexec/docker/cli-plugins/docker-compose"
#: Modules that docker-fw's tables and Docker need. A real machine loads each in milliseconds when it is first needed;
#: here each takes a quarter of a second, and dockerd waits only some seconds for a plugin's socket.
MODULES = (
    *("nf_tables", "nft_ct", "nft_fib_inet", "nft_socket", "nft_nat", "nft_masq", "nft_limit", "nft_log"),
    *("nft_reject_inet", "nft_objref", "nft_compat", "nft_chain_nat", "nft_meta_bridge", "nfnetlink_log"),
    *("nf_conntrack_netlink", "nf_conntrack_bridge", "xt_conntrack", "xt_addrtype", "xt_MASQUERADE", "xt_mark"),
    *("xt_comment", "xt_nat", "bridge", "veth", "overlay"),
)
#: All that an installation depends on but the package itself.
_DEPENDENCIES = ("config.json", "Makefile", "Dockerfile", "requirements.lock")


def installed(system: str = DEFAULT, extra: tuple[str, ...] = ()) -> State:
    """Return the state of a system with docker-fw as its managed plugin, and its image; made at first use.

    It is installed as the README says, by the Makefile's `install-built`: `docker plugin create` of build/plugin, and
    `docker plugin enable`. That takes minutes, so one installation serves until its dependencies change: the package
    in it is replaced by that of the present image.
    """
    return prepared(_installation(system, extra), "plugin", (image_tar().name, MODULES), replace_package)


def running(system: str = DEFAULT) -> State:
    """Return the state `installed` with a network and a container on it, for a test that has no time to start one.

    The container listens on 8080, which its label opens, and on 9090. /root/addresses has its addresses.
    """
    return prepared(installed(system), "running", (), _run_one)


def _run_one(vm: Machine) -> None:
    vm.docker("network", "create", "-d", PLUGIN, "--ipv6", "--subnet", "2001:db8:77::/64", "one")
    servers = ("busybox", "sh", "-c", "httpd -p 9090; exec httpd -f -p 8080")
    vm.docker("run", "-d", "--name", "app", "--network", "one", "--label", "fw.allow=8080", *servers)
    addresses = vm.address("app", "one")
    vm.write("/root/addresses", " ".join(addresses))
    opened = [("tcp", address, 8080) for address in addresses]
    until(lambda: {*vm.wan.probe([*opened], timeout=2).values()} == {"open"}, "the container answers", 60)


def cached_running(system: str = DEFAULT) -> State | None:
    """Return what `running` returns if all that it needs is in the cache, else None; makes nothing."""
    tar = image_path(ROOT, IMAGE)
    if not tar.exists() or not recipe(system)[2].exists():
        return None
    state: State | None = State(disk(system))
    for name, parts in (
        ("ready", (busybox().tar.name,)),
        ("installation", (_dependencies(),)),
        ("plugin", (tar.name, MODULES)),
        ("running", ()),
    ):
        state = cached_state(state, name, parts) if state else None
    return state


def _dependencies() -> str:
    return digest(*((ROOT / name).read_text() for name in _DEPENDENCIES))


def _installation(system: str, extra: tuple[str, ...]) -> State:
    return prepared(ready(system, extra), "installation", (_dependencies(),), install)


def replace_package(vm: Machine) -> None:
    """Replace docker-fw's package in the plugin and in its image by that of the present image; restart the plugin."""
    load_modules(vm)
    (package,) = rootfs().glob("opt/docker-fw/lib/python3*/site-packages/plugin")
    there = vm.put(package)
    script = """
        docker plugin disable -f fw:latest
        for old in /var/lib/docker/overlay2/*/diff/$1 /var/lib/docker/plugins/*/rootfs/$1; do
            if [ -d "$old" ]; then rm -r "$old"; cp -a "$2" "$old"; fi
        done
        # Until Docker has noted that the old process ended: "id already in use". Docker 20.10.5 then enables it itself.
        for attempt in 1 2 3 4 5 6; do
            docker plugin enable fw:latest || sleep 5
            if [ "$(docker plugin inspect -f '{{.Enabled}}' fw:latest)" = true ]; then exit 0; fi
        done
        exit 1
    """
    vm.run(["sh", "-ec", script, "replace", str(package.relative_to(rootfs())), there], timeout=600)
    until(MachineFw(vm).answers, "docker-fw answers", 120)


def load_modules(vm: Machine) -> None:
    """Load `MODULES`, now and at each boot; what a kernel does not have is left out."""
    vm.write("/etc/modules-load.d/lab.conf", "\n".join(MODULES) + "\n")
    vm.run(["systemctl", "restart", "systemd-modules-load"], check=False)


def with_sidecar(system: str = DEFAULT) -> State:
    """Return the state of a system with docker-fw as its sidecar and its boot unit, by the file's own commands."""
    parts = (image_tar().name, SIDECAR.read_text(), MODULES)
    return prepared(ready(system), "sidecar", (digest(*parts),), install_sidecar)


def install_sidecar(vm: Machine) -> None:
    """Start the sidecar by the commands that compose-examples/sidecar.yml lists, and install its boot unit."""
    load_modules(vm)
    vm.load(image_tar())
    if vm.try_docker("compose", "version").returncode:
        # Debian has no compose for this engine: the newest engine's speaks its API too.
        vm.put(engine_root([*ENGINES][-1]) / COMPOSE, "/usr/local/lib/docker/cli-plugins")
    vm.put(SIDECAR)
    up, boot, _ = re.findall(r"^#   (docker .*)$", SIDECAR.read_text(), re.MULTILINE)
    vm.run(["sh", "-ec", f"cd /lab; {up}"], timeout=600)
    until(MachineFw(vm, driver="fw").answers, "the sidecar answers", 120)
    vm.run(["sh", "-ec", f"cd /lab; {boot}"], timeout=600)
    vm.run(["sh", "-ec", "systemctl daemon-reload && systemctl start docker-fw-boot"])


def install(vm: Machine) -> None:
    """Install docker-fw as the managed plugin, from build/plugin, by `make install-built`."""
    load_modules(vm)
    vm.load(image_tar())
    with tempfile.TemporaryDirectory(dir=cache()) as scratch:
        top = Path(scratch) / "docker-fw"
        (top / "build/plugin").mkdir(parents=True)
        for name in ("Makefile", "pyproject.toml"):
            shutil.copy(ROOT / name, top)
        shutil.copy(ROOT / "config.json", top / "build/plugin")
        subprocess.run(["cp", "-al", str(rootfs()), str(top / "build/plugin/rootfs")], check=True, timeout=300)
        there = vm.put(top)
    vm.run(["make", "-C", there, "install-built"], timeout=900)
    vm.run(["rm", "-r", there])


@functools.cache
def rootfs() -> Path:
    """Return the plugin's root file system in the cache."""
    there = cache() / "plugins" / image_tar().stem
    if there.exists():
        return there
    with Engine() as engine:
        return plugin_rootfs(engine)


class MachineFw(Fw):
    """docker-fw on a machine: `tests.product.Fw` with a `Machine` as its engine.

    `network`, `run`, `remove`, `refuse`, `addresses`, `status`, `answers`, `known` are as there.
    """

    def __init__(self, vm: Machine, driver: str = PLUGIN) -> None:
        super().__init__(vm, driver)  # type: ignore[arg-type]
        self.vm = vm

    def socket_inside(self) -> str:
        """Return the plugin's own socket, in the machine. FwError if there is none."""
        script = "ls /run/docker/plugins/*/fw.sock /run/docker/plugins/fw.sock 2>/dev/null; true"
        found = self.vm.run(["sh", "-c", script]).stdout.split()
        if not found:
            raise FwError("docker-fw has no socket in the machine")
        return found[0]

    def status(self) -> dict[str, Any]:
        """Return docker-fw's status. FwError if it does not answer."""
        try:
            return dict(self.vm.http(self.socket_inside(), "GET", "/status"))
        except (OSError, DockerError, LabError) as error:
            raise FwError(str(error)) from error

    def fwctl(self, *arguments: str) -> str:
        """Return the output of fwctl, run as the README's alias runs it. LabError with its output if it fails."""
        run = ("run", "--rm", "-v", "/run/docker/plugins:/run/docker/plugins", IMAGE)
        return self.vm.docker(*run, *arguments)
