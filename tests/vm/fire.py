"""Boots and other great changes under fire: an outsider tries open and closed ports of a machine all the while.

The figures are printed. Programs run about ten times slower here than on a machine of metal.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from tests.engine.outside import SERVERS
from tests.lab.probe import Shot, Target
from tests.lab.store import say
from tests.product import Net
from tests.vm.machine import Machine
from tests.vm.product import MachineFw
from tests.waiting import until

#: Seconds from the answer of Docker's API until a port answers: one on a real machine, ten times as long here.
BACK = 10.0
#: A sidecar starts among the containers; README says how long that was seen to take, and this is ten times as long.
BACK_SIDECAR = 70.0
#: Shows why ports may not answer.
_SITUATION = "docker plugin ls; docker ps -a; nft list tables; journalctl --no-pager -b -u docker -n 60"


def start(fw: MachineFw, net: Net | str, number: int = 1) -> str:
    """Start a container that starts at each boot: 8080 is opened, 9090 is not.

    Both are published, as 18080 and 19090, or with another number as 28080 and 29090.
    """
    published = ("-p", f"{number}8080:8080", "-p", f"{number}9090:9090")
    options = ("--restart", "always", "--stop-timeout", "0", "--label", "fw.allow=8080", *published)
    return fw.run(net, *options, command=SERVERS)


def hosts(fw: MachineFw) -> tuple[str, str]:
    """Return the machine's addresses of both families."""
    return fw.vm.v4, fw.vm.v6


def tcp(addresses: tuple[str, ...] | list[str], *ports: int) -> list[Target]:
    """Return these TCP ports at these addresses."""
    return [("tcp", address, port) for address in addresses for port in ports]


def open_at(fw: MachineFw, targets: list[Target], timeout: float = 120) -> None:
    """Wait until an outsider reaches all of these; if that takes too long, the error shows what the machine does."""
    try:
        until(lambda: {*fw.wan.probe(targets, timeout=2).values()} == {"open"}, f"{targets} answer", timeout)
    except AssertionError as error:
        error.add_note(f"{fw.wan.probe(targets, timeout=2)}\n{fw.vm.run(['sh', '-c', _SITUATION], check=False).stdout}")
        raise


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
    """Cut its power, and switch it on again."""
    vm.run(["sync"])  # Docker does not flush that a container runs: without this it would not start it again
    vm.power_cut()
    vm.boot()
