"""Measure a whole `docker run` and `rm -f`, and the time until an outsider has an answer.

On a docker-fw network, on Docker's bridge protected by docker-fw, and on Docker's bridge on an engine without
docker-fw.
"""

from __future__ import annotations

import itertools
import os
import selectors
import socket
import subprocess
import time
from collections import defaultdict
from ipaddress import ip_network
from pathlib import Path

from tests.bench.bed import LABEL, Bed
from tests.bench.table import Table, median, say
from tests.bench.traffic import within
from tests.lab import Engine
from tests.waiting import until

_VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "-p 80 and a label": ("-p", "80", "--label", f"fw.allow={LABEL}"),
}
_FW, _BRIDGE = "run-fw", "run-bridge"
#: The docker-fw network; Docker's bridge without docker-fw; Docker's bridge, protected.
_KINDS = ("fw", "bridge", "protected")
#: A difference due to noise alone is no miss.
_AIM = "ratio < 1.05"
#: Seconds after which the background work of the last command is done.
_SETTLE = 0.4
_PATIENCE = 15.0
_numbers = itertools.count(1)
Times = dict[tuple[str, str, str], list[float]]


def measure(bed: Bed, table: Table) -> None:
    bed.network(bed.fw.driver, _FW)
    for engine in (bed.bare, bed.engine):
        bed.network("bridge", _BRIDGE, engine=engine)
    times: Times = defaultdict(list)
    cpu: dict[str, list[float]] = defaultdict(list)
    direct: list[float] = []
    for turn in range(bed.scale.runs + 1):
        if turn % 5 == 0:
            say(f"run: round {turn} of {bed.scale.runs}…")
        if turn == 1:  # the first warmed up
            times.clear()
            cpu.clear()
            direct.clear()
        for kind in _KINDS if turn % 2 else reversed(_KINDS):
            before = _cpu(bed)
            for variant, options in _VARIANTS.items():
                _run(bed, times, kind, variant, options)
            cpu[kind].append((_cpu(bed) - before) / len(_VARIANTS))
            times["first answer", "on a published port", kind].append(_first_answer(bed, kind))
            if kind == "fw":
                direct.append(_first_direct(bed))
    for (what, variant, kind), values in times.items():
        base = 1e3 * median(times[what, variant, "bridge"])
        if kind == "fw":
            table.add(f"run: {what}, {variant} vs Docker's bridge", 1e3 * median(values), "ms", base, _AIM)
        if kind == "protected":
            name = f"run: {what}, {variant}, on Docker's bridge beside docker-fw vs without"
            table.add(name, 1e3 * median(values), "ms", base, _AIM)
    base = 1e3 * median(times["run -d", "plain", "fw"])
    name = "run: first answer at an IPv6 address that was tried before, on our network vs docker run"
    table.add(name, 1e3 * median(direct), "ms", base, "ratio < 1.2")
    table.add("run: the plugin's CPU time for one run and rm", 1e3 * median(cpu["fw"]), "ms")
    table.add("run: the plugin's CPU time for one run and rm, on Docker's bridge", 1e3 * median(cpu["protected"]), "ms")
    table.note("run, packets: Docker's bridge without docker-fw is on a second engine of the same version")
    bed.engine.docker("network", "rm", _FW, _BRIDGE)
    bed.bare.docker("network", "rm", _BRIDGE)


def _place(bed: Bed, kind: str) -> tuple[Engine, str]:
    """Return the engine and the network on it."""
    return bed.bare if kind == "bridge" else bed.engine, _FW if kind == "fw" else _BRIDGE


def _run(bed: Bed, times: Times, kind: str, variant: str, options: tuple[str, ...]) -> None:
    name = f"run{next(_numbers)}"
    engine, network = _place(bed, kind)
    command = ("run", "-d", "--name", name, "--network", network, *options, "busybox", "sleep", "inf")
    times["run -d", variant, kind].append(_timed(engine, *command))
    times["rm -f", variant, kind].append(_timed(engine, "rm", "-f", name))
    time.sleep(_SETTLE)


def _timed(engine: Engine, *command: str) -> float:
    began = time.perf_counter()
    engine.docker(*command)
    return time.perf_counter() - began


def _first_answer(bed: Bed, kind: str) -> float:
    """Return the seconds from `docker run` to an outsider's first answer from its server, through a published port."""
    engine, network = _place(bed, kind)
    name, port = f"run{next(_numbers)}", 20000 + next(_numbers)
    server = ("busybox", "nc", "-ll", "-p", "80", "-e", "echo", "hello")
    command = engine.host.command(
        ["docker", "run", "-d", "--name", name, "--network", network, "-p", f"{port}:80", *server]
    )
    address = engine.host.v4

    def outsider() -> float:
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            end = began + _PATIENCE
            while time.perf_counter() < end:
                if _answers(address, port):
                    took = time.perf_counter() - began
                    process.wait(30)
                    return took
        raise RuntimeError(f"{name} has not answered on {address} port {port} within {_PATIENCE:g} s")

    try:
        return within(engine.wan.path, outsider)
    finally:
        engine.try_docker("rm", "-f", name)
        time.sleep(_SETTLE)


def _first_direct(bed: Bed) -> float:
    """Return the seconds from `docker run` to the first answer at the container's own address.

    An outsider tries the address all the while, also before, so the host has looked for it in vain.
    """
    engine = bed.engine
    subnets = [ip_network(each["Subnet"]) for each in engine.api("GET", f"/networks/{_FW}")["IPAM"]["Config"]]
    address = next(str(subnet[0x50]) for subnet in subnets if subnet.version == 6)
    name = f"run{next(_numbers)}"
    options = ("--network", _FW, "--ip6", address, "busybox", "httpd", "-f", "-p", "80")
    try:
        with engine.wan.probe.hammer(("tcp", address, 80), every=0.004) as hammer:
            time.sleep(_SETTLE)
            began = time.monotonic()
            engine.docker("run", "-d", "--name", name, *options)
            until(lambda: engine.wan.probe.tcp(address, 80) == "open", f"{name} answers at {address}", _PATIENCE)
        return min(shot.at for shot in hammer.result.opened) - began
    finally:
        engine.try_docker("rm", "-f", name)
        time.sleep(_SETTLE)


def _answers(address: str, port: int, patience: float = 0.01) -> bool:
    """Return True if one try succeeds. A dropped SYN is not repeated for a second, so silence ends the try."""
    with socket.socket() as sock, selectors.DefaultSelector() as selector:
        sock.setblocking(False)
        sock.connect_ex((address, port))
        selector.register(sock, selectors.EVENT_READ)
        if not selector.select(patience):
            return False
        try:
            answered = bool(sock.recv(1))
        except OSError:
            answered = False
    if not answered:
        time.sleep(0.002)  # refused: leave the CPU to Docker
    return answered


def _cpu(bed: Bed) -> float:
    """Return the seconds of CPU time of the plugin's processes, and of the children that they waited for."""
    ticks = 0
    for pid in bed.plugin_pids():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")
