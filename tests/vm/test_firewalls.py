"""Test boots with ufw enabled: systemd starts it before Docker, and neither opens what the other closes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.firewall_commands import UFW_ROUTES
from tests.lab.probe import Target
from tests.vm import Machine, State, prepared
from tests.vm.fire import BACK, boots, hosts, open_at, start, tcp
from tests.vm.packages import install
from tests.vm.product import MachineFw, installed

#: Minutes of emulated work: more than other tests have.
pytestmark = pytest.mark.timeout(1200)
#: firewalld is only installed: Docker sends each of its rules through firewalld, so that Docker needs more than five
#: minutes to start on these machines. tests/engine/test_firewalls.py has it.
PACKAGES = ("ufw", "firewalld")
#: The README's commands. With this Docker, docker-proxy serves IPv6: there a port is the host's.
COMMANDS = ("ufw allow 18080/tcp", *UFW_ROUTES, "ufw --force enable", "systemctl enable ufw")


def with_firewalls() -> State:
    """Return the state of a machine with docker-fw that has both firewalls, neither of them enabled."""
    return prepared(installed(), "firewalls", PACKAGES, _add)


def _add(vm: Machine) -> None:
    # Debian's way to install a service without starting it.
    vm.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n")
    vm.run(["chmod", "+x", "/usr/sbin/policy-rc.d"])
    install(vm, vm.state.disk.name.partition("-")[0], PACKAGES)
    vm.run(["sh", "-ec", "rm /usr/sbin/policy-rc.d; systemctl disable firewalld ufw; systemctl daemon-reload"])


@pytest.fixture
def fw() -> Iterator[MachineFw]:
    """Yield a machine with docker-fw and ufw."""
    with Machine(state=with_firewalls()) as vm:
        yield MachineFw(vm)


def test_a_boot_with_ufw_opens_nothing_and_ends_as_it_began(fw: MachineFw) -> None:
    """With the README's commands open ports are back after a real boot, and closed ones never answer.

    That is so on a docker-fw network, and for published ports of a Docker network. ufw is active afterwards.
    """
    theirs = start(fw, "bridge")
    with fw.network() as net:
        ours = start(fw, net, 2)
        addresses = fw.addresses(ours, net)
        opened: list[Target] = [*tcp(addresses, 8080), *tcp(hosts(fw), 18080, 28080)]
        closed: list[Target] = [*tcp(addresses, 9090), *tcp(hosts(fw), 19090, 29090)]
        open_at(fw, opened)
        with fw.wan.probe.hammer(*closed, every=0.01) as never:
            for command in COMMANDS:
                fw.vm.run(command.split(), timeout=300)
            open_at(fw, opened)
        assert not never.result.opened
        boots(fw, opened, closed, fw.vm.reboot, BACK)
        assert "Status: active" in fw.vm.run(["ufw", "status"], timeout=300).stdout
        fw.remove(ours, theirs)
