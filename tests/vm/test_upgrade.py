"""Test upgrades on a real machine: of docker-fw with a reboot after it, and of Docker by Debian's packages."""

from __future__ import annotations

import json

import pytest

from tests.documents import commands
from tests.engine.pushed import at, push
from tests.lab import Engine, Registry
from tests.lab.probe import Target
from tests.lab.store import say
from tests.product import IMAGE
from tests.vm.fire import BACK, BACK_SIDECAR, boots, hosts, open_at, start, tcp
from tests.vm.packages import install
from tests.vm.product import MachineFw
from tests.waiting import until

#: Minutes of emulated work: more than other tests have.
pytestmark = pytest.mark.timeout(1200)


def test_an_upgrade_of_the_plugin_and_a_reboot_open_nothing(fw: MachineFw) -> None:
    """By the README's commands, `docker plugin upgrade` from a registry, then a real boot with the new version."""
    (_, _, _, _, *upgrade), *_ = commands("Upgrading")
    with Registry(fw.wan) as registry:
        with Engine("26.1.5", wan=fw.wan, args=[registry.insecure]) as maker:
            push(maker, registry)
        fw.vm.write("/etc/docker/daemon.json", json.dumps({"insecure-registries": [registry.address]}))
        fw.vm.run(["systemctl", "reload", "docker"])
        with fw.network() as net:
            app = start(fw, net)
            addresses = fw.addresses(app, net)
            opened: list[Target] = [*tcp(addresses, 8080), *tcp(hosts(fw), 18080)]
            closed: list[Target] = [*tcp(addresses, 9090), *tcp(hosts(fw), 19090)]

            def upgrade_and_reboot() -> None:
                for command in upgrade:
                    fw.vm.run(["sh", "-ec", at(registry, command)], timeout=900)
                assert "newer" in fw.vm.docker("plugin", "ls")
                fw.vm.reboot()

            boots(fw, opened, closed, upgrade_and_reboot, BACK)
            assert "newer" in fw.vm.docker("plugin", "ls")
            assert fw.known(app)
            fw.remove(app)


def test_an_upgrade_of_the_sidecar_and_a_reboot_open_nothing(sidecar: MachineFw) -> None:
    """By the README's commands: another image, `docker compose up -d`, `boot install`, then a real boot with both."""
    fw = sidecar
    (_, *upgrade) = commands("Upgrading")[1]
    app = start(fw, "bridge")
    v4, _ = fw.vm.address(app)
    opened, closed = tcp(hosts(fw), 18080), [*tcp(hosts(fw), 19090), ("tcp", v4, 9090)]
    open_at(fw, opened)

    def upgrade_and_reboot() -> None:
        before = running_sidecar(fw)
        fw.vm.docker("commit", "--change", "LABEL newer=1", before, IMAGE)
        for command in upgrade:
            fw.vm.run(["sh", "-ec", "cd /lab; " + command.replace("compose-examples/", "")], timeout=600)
        assert running_sidecar(fw) != before
        until(lambda: "19090" in fw.vm.read("/etc/docker-fw/boot.nft"), "the boot table knows the port", 120)
        fw.vm.reboot()

    boots(fw, opened, closed, upgrade_and_reboot, BACK_SIDECAR)
    assert fw.vm.inspect(running_sidecar(fw))["Config"]["Labels"]["newer"] == "1"
    fw.remove(app)


def running_sidecar(fw: MachineFw) -> str:
    """Return the sidecar's container."""
    return fw.vm.docker("ps", "-q", "--filter", f"ancestor={IMAGE}").split()[0]


def test_an_upgrade_of_docker_opens_nothing(fw: MachineFw) -> None:
    """`apt install` of the next Debian release's Docker restarts it from 20.10 to 26.1: docker-fw works on there.

    Networks, containers and labels are those of before, and a container that the new Docker starts obeys too.
    """
    with fw.network() as net:
        ours, theirs = start(fw, net), start(fw, "bridge", 2)
        addresses = fw.addresses(ours, net)
        opened: list[Target] = [*tcp(addresses, 8080), *tcp(hosts(fw), 18080, 28080)]
        closed: list[Target] = [*tcp(addresses, 9090), *tcp(hosts(fw), 19090, 29090)]
        before = fw.vm.api("GET", "/version")["Version"]

        def upgrade() -> None:
            install(fw.vm, "trixie", ("docker.io", "docker-cli"))
            fw.vm.run(["systemctl", "restart", "docker"], timeout=600)  # the package does not do that
            fw.vm.ready()

        boots(fw, opened, closed, upgrade, BACK)
        after = fw.vm.api("GET", "/version")["Version"]
        say(f"Docker {before} is Docker {after} now")
        assert before.startswith("20.10.")
        assert int(after.partition(".")[0]) >= 26
        assert fw.known(ours)
        assert fw.addresses(ours, net) == addresses
        later = start(fw, net, 3)
        more = fw.addresses(later, net)
        open_at(fw, [*tcp(more, 8080), *tcp(hosts(fw), 38080)])
        assert "open" not in {*fw.wan.probe([*tcp(more, 9090), *tcp(hosts(fw), 39090)], timeout=3).values()}
        fw.remove(ours, theirs, later)
