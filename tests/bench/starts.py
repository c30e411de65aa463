"""Measure a whole `docker run`, `rm -f` and `docker compose up`, and the time until an outsider has an answer.

On a docker-fw network, on Docker's bridge protected by docker-fw, and on Docker's bridge on an engine without
docker-fw.
"""

from __future__ import annotations

import itertools
import json
import os
import selectors
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from tests.bench.bed import LABEL, Bed
from tests.bench.rows import COMMANDS
from tests.bench.table import Table, median, say
from tests.bench.traffic import within
from tests.lab import Engine

#: By the end of the rows' keys: options of `docker run`.
_VARIANTS: Mapping[str, tuple[str, ...]] = {"": (), " -p": ("-p", "80", "--label", f"fw.allow={LABEL}")}
_NETWORKS = {"fw": "run-fw", "bridge": "run-bridge", "protected": "run-bridge"}
#: Services of a composition, and how many rounds have one first answer.
_SERVICES, _SELDOM = 20, 4
#: Seconds after which the background work of the last command is done.
_SETTLE = 0.4
_PATIENCE = 15.0
_numbers = itertools.count(1)
#: By command and kind of network, in milliseconds.
Times = dict[tuple[str, str], list[float]]


def measure(bed: Bed, table: Table) -> None:
    bed.network(bed.fw.driver, _NETWORKS["fw"])
    for engine in (bed.bare, bed.engine):
        bed.network("bridge", _NETWORKS["bridge"], engine=engine)
    times: Times = defaultdict(list)
    cpu: dict[str, list[float]] = defaultdict(list)
    for turn in range(bed.scale.runs + 1):
        if turn % 5 == 0:
            say(f"run: round {turn} of {bed.scale.runs}…")
        if turn == 1:  # the first warmed up
            times.clear()
            cpu.clear()
        for kind in _turn(turn):
            before = _cpu(bed)
            for variant, options in _VARIANTS.items():
                _run(bed, times, kind, variant, options)
            cpu[kind].append((_cpu(bed) - before) / len(_VARIANTS))
            if turn % _SELDOM == 0:
                times["first answer on a published port", kind].append(_first_answer(bed, kind))
    _compositions(bed, times)
    _put(table, times)
    for kind in ("fw", "protected"):
        table.detail("run", f"the plugin's CPU time for one run and rm, {kind}", 1e3 * median(cpu[kind]), "ms")
    bed.engine.docker("network", "rm", _NETWORKS["fw"], _NETWORKS["bridge"])
    bed.bare.docker("network", "rm", _NETWORKS["bridge"])


def _turn(number: int) -> list[str]:
    """Return the kinds of networks, in alternating order."""
    return list(_NETWORKS) if number % 2 else list(_NETWORKS)[::-1]


def _put(table: Table, times: Times) -> None:
    """Store the medians; a ratio is the median of the pairs of each turn."""
    for (what, kind), values in times.items():
        bridge = times[what, "bridge"]
        ratio = median([ours / theirs for ours, theirs in zip(values, bridge, strict=True)])
        if kind != "bridge" and what in COMMANDS:
            table.put(f"{kind} {what}", median(values), median(bridge), ratio)
        elif kind != "bridge":
            table.detail("run", f"{what}, {kind}", median(values), "ms", median(bridge), ratio)


def _engine(bed: Bed, kind: str) -> Engine:
    return bed.bare if kind == "bridge" else bed.engine


def _run(bed: Bed, times: Times, kind: str, variant: str, options: tuple[str, ...]) -> None:
    name, engine = f"run{next(_numbers)}", _engine(bed, kind)
    command = ("run", "-d", "--name", name, "--network", _NETWORKS[kind], *options, "busybox", "sleep", "inf")
    times[f"run{variant}", kind].append(_timed(engine, *command))
    times[f"rm{variant}", kind].append(_timed(engine, "rm", "-f", name))
    time.sleep(_SETTLE)


def _timed(engine: Engine, *command: str) -> float:
    began = time.perf_counter()
    engine.docker(*command, timeout=300)
    return 1e3 * (time.perf_counter() - began)


def _compositions(bed: Bed, times: Times) -> None:
    """Start and remove a composition on a network of its own, of each kind."""
    say("run: compositions…")
    for turn in range(bed.scale.compositions + 1):
        for kind in _turn(turn):
            engine = _engine(bed, kind)
            where = _composition(bed, engine, kind)
            took = _timed(engine, "compose", "-f", where, "up", "-d")
            engine.docker("compose", "-f", where, "down", "-t", "0", timeout=300)
            if turn:
                times["up", kind].append(took)
            time.sleep(_SETTLE)


def _composition(bed: Bed, engine: Engine, kind: str) -> str:
    """Write a compose file to the engine's host; return its path there."""
    number = next(_numbers)
    service = {"image": "busybox", "command": "sleep inf", "labels": {"fw.allow": LABEL}, "stop_grace_period": "0s"}
    subnets = [{"subnet": f"10.76.{number % 256}.0/24"}, {"subnet": f"2001:db8:a:{number:x}::/64"}]
    driver = bed.fw.driver if kind == "fw" else "bridge"
    network = {"driver": driver, "enable_ipv6": True, "ipam": {"config": subnets}}
    composition = {
        "name": f"bench{number}",
        "services": {f"s{n}": service for n in range(_SERVICES)},
        "networks": {"default": network},
    }
    (engine.host.share / "bench.json").write_text(json.dumps(composition))
    return "/lab/bench.json"


def _first_answer(bed: Bed, kind: str) -> float:
    """Return the milliseconds from `docker run` to an outsider's first answer, through a published port."""
    engine, network = _engine(bed, kind), _NETWORKS[kind]
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
                    return 1e3 * took
        raise RuntimeError(f"{name} has not answered on {address} port {port} within {_PATIENCE:g} s")

    try:
        return within(engine.wan.path, outsider)
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
