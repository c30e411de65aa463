"""Test real boots: systemd starts Docker, Docker starts containers, and an outsider tries their ports all the while."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.vm import Machine
from tests.vm.fire import BACK, BACK_SIDECAR, boots, hosts, open_at, power_cut_and_boot, start, tcp
from tests.vm.product import MachineFw
from tests.waiting import until


@pytest.mark.parametrize("how", [Machine.reboot, power_cut_and_boot], ids=["reboot", "power cut"])
def test_a_boot_with_the_managed_plugin_opens_nothing_and_ends_as_it_began(
    fw: MachineFw, how: Callable[[Machine], None]
) -> None:
    """Over a real boot no closed port answers once, on networks of both kinds; open ones answer soon after the API.

    The container's own addresses on a docker-fw network, and published ports of both families.
    """
    with fw.network() as net:
        app = start(fw, net)
        addresses = fw.addresses(app, net)
        closed = [*tcp(addresses, 9090), *tcp(hosts(fw), 19090)]
        opened = [*tcp(addresses, 8080), *tcp(hosts(fw), 18080)]
        boots(fw, opened, closed, lambda: how(fw.vm), BACK)
        assert fw.known(app)
        fw.remove(app)


@pytest.mark.parametrize("how", [Machine.reboot, power_cut_and_boot], ids=["reboot", "power cut"])
def test_a_boot_with_the_sidecar_and_its_boot_unit_opens_nothing(
    sidecar: MachineFw, how: Callable[[Machine], None]
) -> None:
    """With `boot install` a sidecar is as closed over a real boot: systemd loads its table before Docker starts."""
    fw = sidecar
    app = start(fw, "bridge")
    v4, _ = fw.vm.address(app)
    opened, closed = tcp(hosts(fw), 18080), [*tcp(hosts(fw), 19090), ("tcp", v4, 9090)]
    open_at(fw, opened)
    until(lambda: "19090" in fw.vm.read("/etc/docker-fw/boot.nft"), "the boot table knows the port", 60)
    boots(fw, opened, closed, lambda: how(fw.vm), BACK_SIDECAR)
    assert fw.vm.run(["systemctl", "is-active", "docker-fw-boot"]).stdout.strip() == "active"
    fw.remove(app)
