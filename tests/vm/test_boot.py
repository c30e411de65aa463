"""Test real boots: systemd starts Docker, Docker starts containers, and an outsider tries their ports all the while.

The figures are printed. Programs run about ten times slower here than on a machine of metal.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from tests.engine.outside import SERVERS
from tests.lab.probe import Shot, Target
from tests.lab.store import say
from tests.product import Net
from tests.vm import Machine
from tests.vm.product import MachineFw, installed, with_sidecar
from tests.waiting import until

#: Seconds from the answer of Docker's API until a port answers: one on a real machine, ten times as long here.
BACK = 10.0
#: A sidecar starts among the containers; README says how long that was seen to take, and this is ten times as long.
BACK_SIDECAR = 70.0


@pytest.fixture
def fw() -> Iterator[MachineFw]:
    """Yield a machine with the managed plugin."""
    with Machine(state=installed()) as vm:
        yield MachineFw(vm)


@pytest.fixture
def sidecar() -> Iterator[MachineFw]:
    """Yield a machine with the sidecar and its boot unit."""
    with Machine(state=with_sidecar()) as vm:
        yield MachineFw(vm, driver="fw")


def start(fw: MachineFw, net: Net | str) -> str:
    """Start a container that starts at each boot: 8080 is opened, 9090 is not, both are published."""
    published = ("-p", "18080:8080", "-p", "19090:9090")
    options = ("--restart", "always", "--stop-timeout", "0", "--label", "fw.allow=8080", *published)
    return fw.run(net, *options, command=SERVERS)


def hosts(fw: MachineFw) -> tuple[str, str]:
    return fw.vm.v4, fw.vm.v6


def open_at(fw: MachineFw, targets: list[Target], timeout: float = 120) -> None:
    until(lambda: {*fw.wan.probe(targets, timeout=2).values()} == {"open"}, f"{targets} answer", timeout)


def boots(fw: MachineFw, opened: list[Target], closed: list[Target], boot: Callable[[], None], within: float) -> None:
    """Boot it under fire: nothing closed ever answers, and what is open answers soon after Docker's API."""
    open_at(fw, opened)
    with (
        fw.wan.probe.hammer(*closed, every=0.005) as never,
        fw.wan.probe.hammer(*opened, every=0.02, timeout=1) as again,
    ):
        boot()
        api = fw.vm.active_since("docker.service")
        open_at(fw, opened)
    assert not never.result.opened
    silent = [shot for shot in never.result.shots if shot.verdict != "unsent"]
    assert len(silent) > 500
    lost, back = gap(again.result.shots, opened)
    say(
        f"{fw.vm.state.name}: {len(silent)} probes of closed ports, none answered; open ports were away for "
        f"{back - lost:.1f} s, and all answered {back - api:+.2f} s after Docker's API"
    )
    assert back - api < within


def gap(shots: list[Shot], targets: list[Target]) -> tuple[float, float]:
    """Return the times of the longest gap between answers: its first moment, and when the last target answered."""
    first, last = [], []
    for target in targets:
        answered = [shot.at for shot in shots if shot.target == target and shot.verdict == "open"]
        pairs = [*itertools.pairwise(answered)]
        before, after = max(pairs, key=lambda pair: pair[1] - pair[0])
        first.append(before)
        last.append(after)
    return min(first), max(last)


def power_cut_and_boot(vm: Machine) -> None:
    vm.power_cut()
    vm.boot()


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
        closed = [("tcp", a, 9090) for a in addresses] + [("tcp", h, 19090) for h in hosts(fw)]
        opened = [("tcp", a, 8080) for a in addresses] + [("tcp", h, 18080) for h in hosts(fw)]
        boots(fw, [*opened], [*closed], lambda: how(fw.vm), BACK)
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
    opened = [("tcp", host, 18080) for host in hosts(fw)]
    closed = [("tcp", host, 19090) for host in hosts(fw)] + [("tcp", v4, 9090)]
    open_at(fw, [*opened])
    until(lambda: "19090" in fw.vm.read("/etc/docker-fw/boot.nft"), "the boot table knows the port", 60)
    boots(fw, [*opened], [*closed], lambda: how(fw.vm), BACK_SIDECAR)
    assert fw.vm.run(["systemctl", "is-active", "docker-fw-boot"]).stdout.strip() == "active"
    fw.remove(app)
