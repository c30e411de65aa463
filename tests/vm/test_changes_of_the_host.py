"""Test docker-fw on a host that changes under it: kernel modules, and links that bypass it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vm import Machine
from tests.vm.product import MachineFw, installed
from tests.waiting import until

#: Seconds in which a probe of an emulated machine is answered, if it is.
PATIENCE = 3


@pytest.fixture(scope="module")
def fw() -> Iterator[MachineFw]:
    """Yield a machine with docker-fw as its managed plugin."""
    with Machine(state=installed()) as vm:
        yield MachineFw(vm)


def verdicts(fw: MachineFw, targets: list[tuple[str, str, int]]) -> list[str]:
    """Return the outsider's verdict for each target."""
    return list(fw.wan.probe(targets, timeout=PATIENCE).values())


def test_br_netfilter_changes_nothing(fw: MachineFw) -> None:
    """Loaded and removed while containers run, the module neither opens nor closes a port.

    With it, the host's rules see packets between neighbours of one bridge, which would be new to them. Neighbours
    talk freely, as before. Docker loads the module itself for some networks.
    """
    with fw.network() as net:
        app, other = fw.run(net, "--label", "fw.allow=8080"), fw.run(net)
        with fw.vm.serve(app, tcp=[80, 8080, 9090]):
            addresses = fw.addresses(app, net)
            outside = [("tcp", a, p) for a in addresses for p in (80, 8080, 9090)]
            closed = [target for target in outside if target[2] == 9090]
            with fw.wan.probe.hammer(*closed, every=0.01) as hammer:
                for command in (["modprobe", "br_netfilter"], ["modprobe", "-r", "br_netfilter"]):
                    fw.vm.run(command)
                    loaded = "br_netfilter" in fw.vm.read("/proc/modules")
                    assert loaded == ("-r" not in command)
                    assert verdicts(fw, outside) == ["open", "open", "silent"] * 2, command
                    for address in addresses:
                        inside = fw.vm.try_docker("exec", other, "nc", "-w", "5", address, "9090", input="hello\n")
                        assert "hello" in inside.stdout or inside.returncode == 0, (command, address, inside.stderr)
            assert not hammer.result.opened
            assert hammer.result.shots


@pytest.mark.parametrize("driver", ["macvlan", "ipvlan"])
def test_status_names_a_container_that_bypasses_the_host(fw: MachineFw, driver: str) -> None:
    """Packets of macvlan and ipvlan never pass the host's rules: `fwctl status` says that they are not filtered."""
    fw.vm.docker("network", "create", "-d", driver, "-o", "parent=eth0", "--subnet", "198.51.100.192/27", "lan")
    try:
        name = fw.run("lan")
        until(lambda: name in fw.status()["apart"], "status names the container", 30)
        assert fw.status()["apart"][name].startswith(f"is on the {driver} network lan, which docker-fw does not filter")
        assert f"{name}: is on the {driver} network lan" in fw.fwctl("status")
        fw.remove(name)
        until(lambda: name not in fw.status()["apart"], "status no longer names it", 30)
    finally:
        fw.vm.try_docker("network", "rm", "lan")
