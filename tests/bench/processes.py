"""Measure the docker-fw processes beside a simulated Docker API (`crowd`): Join, events, memory, CPU, starts.

A process that several groups need is started once. Crowds that are compared run at the same time, and are measured in
turn.
"""

from __future__ import annotations

import http.client
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from contextlib import ExitStack
from ipaddress import IPv6Address
from statistics import fmean
from typing import Any

from plugin.nftables import identity
from plugin.paths import BOOT_FILE
from tests.bench.crowd import LABEL, Daemon, Simulated, exceptions
from tests.bench.listener import ADDED, REMOVED, Kernel, key
from tests.bench.rows import (
    EVENT_CROWDS,
    JOIN_CROWDS,
    MEMORY_BOUNDS,
    ON_ONE_NETWORK,
    REAL,
    START_CROWD,
    STARTS,
)
from tests.bench.scale import Scale
from tests.bench.table import Table, median, percentile, say
from tests.bench.wire import Client
from tests.kernel.site import Site
from tests.recorded import GENERIC
from tests.waiting import until

_HOOKS = ("CreateEndpoint", "Join", "Leave", "DeleteEndpoint")
#: Seconds of starts, at `STARTS` a second, and by how many starts `create` precedes `network connect`.
_SECONDS, _AHEAD = 5, 5
#: Seconds that Docker needs between `create` and `network connect`, at least, and from there to `start`, at most.
_CREATING, _STARTING = 0.01, 0.05
#: Numbers of containers that are not in the crowd start here.
_OTHERS = 90_000


class Daemons:
    """The processes by their crowd, each on a host of its own."""

    def __init__(self, stack: ExitStack, scale: Scale) -> None:
        self._stack = stack
        self.scale = scale
        self._daemons: dict[object, Daemon] = {}

    def get(self, count: int, what: str = "") -> Daemon:
        """Return the process beside so many containers. `what`: "peers", whose rules name peers; or another name."""
        if (count, what) not in self._daemons:
            size = self.scale.crowd(count) if count else 0
            say(f"docker-fw beside {size:,} containers{f' ({what})' if what else ''}…")
            daemon = self.fresh()
            daemon.start()
            if size:
                daemon.grow(size, peers=what == "peers")
                daemon.until_known()
            self._daemons[count, what] = daemon
        return self._daemons[count, what]

    def end(self, count: int, what: str = "") -> None:
        """Stop one that no later group needs: with a large crowd, its lists would disturb them."""
        self._daemons.pop((count, what)).stop()

    def fresh(self) -> Daemon:
        """Return one that is not started yet."""
        daemon = Daemon(self._stack.enter_context(Site()))
        self._stack.callback(daemon.close)
        return daemon


def measure(table: Table, scale: Scale, groups: Collection[str]) -> None:
    works: dict[str, Callable[[Daemons, Table], None]] = {
        "load": _load,
        "events": _events,
        "memory": _memory,
        "cpu": _cpu,
        "join": _join,
        "start": _start,
    }
    with ExitStack() as stack:
        daemons = Daemons(stack, scale)
        for group, work in works.items():
            if group in groups:
                work(daemons, table)


# --- memory and CPU -----------------------------------------------------------------------------------------------


def _memory(daemons: Daemons, table: Table) -> None:
    for count in MEMORY_BOUNDS:
        daemon = daemons.get(count)
        say(f"memory: {count:,} endpoints…")
        samples = []
        for _ in range(5):
            time.sleep(1)
            samples.append(daemon.memory() / 1e6)
        table.put(f"memory@{count}", median(samples))


def _cpu(daemons: Daemons, table: Table) -> None:
    crowds = {count: daemons.get(count) for count in (JOIN_CROWDS[0], START_CROWD)}
    for daemon in crowds.values():
        _settled(daemon)
    say(f"cpu: nothing happens for {daemons.scale.idle:g} s…")
    used = {count: daemon.cpu() for count, daemon in crowds.items()}
    since = time.monotonic()
    time.sleep(daemons.scale.idle)
    for count, daemon in crowds.items():
        table.put(f"idle@{count}", 100 * (daemon.cpu() - used[count]) / (time.monotonic() - since))
    _starts(crowds[JOIN_CROWDS[0]], daemons.scale, table)


def _settled(daemon: Daemon) -> None:
    """Wait until the work of its start is over: a second in which it does next to nothing."""

    def quiet() -> bool:
        used = daemon.cpu()
        time.sleep(1)
        return daemon.cpu() - used < 0.01

    until(quiet, "docker-fw has nothing to do", timeout=120)


def _starts(daemon: Daemon, scale: Scale, table: Table) -> None:
    count = scale.crowd(_SECONDS * STARTS)
    say(f"cpu: {STARTS} starts a second, {count} in all…")
    new = [daemon.container(_OTHERS + n, {"fw.allow": LABEL}) for n in range(count)]
    connected: dict[str, int] = {}
    with Kernel(daemon.site.host.path) as kernel:
        before, cpu, began = daemon.generation(), daemon.cpu(), time.monotonic()
        for n in range(count + _AHEAD):
            while (ahead := began + n / STARTS - time.monotonic()) > 0:
                time.sleep(ahead)
            if n < count:
                _create(daemon, new[n])
            if n >= _AHEAD:
                connected[new[n - _AHEAD].id] = _connect(daemon, new[n - _AHEAD])
                _run(daemon, new[n - _AHEAD])
        took = time.monotonic() - began
        delays = [(kernel.when(ADDED, _key(each), 0) - connected[each.id]) / 1e6 for each in new]
    until(lambda: daemon.is_open(new[-1]), "the last one is open")
    table.put("starts behind", max(delays[-10:]))
    table.put("starts transactions", (daemon.generation() - before) / count)
    table.detail("cpu", f"{STARTS} starts a second: event → exception, median", median(delays), "ms")
    table.detail("cpu", f"{STARTS} starts a second: event → exception, p99", percentile(delays, 99), "ms")
    table.detail("cpu", f"{STARTS} starts a second: CPU", 100 * (daemon.cpu() - cpu) / took, "%")


# --- events -------------------------------------------------------------------------------------------------------


def _events(daemons: Daemons, table: Table) -> None:
    (count,) = (each for each in EVENT_CROWDS if each != REAL)
    times: dict[str, list[float]] = defaultdict(list)
    turns = daemons.scale.events + 1  # the first warms up, and does not count
    # One after the other: each docker-fw goes on for a while after what is measured.
    plain = daemons.get(count)
    _settled(plain)
    say(f"events: {turns - 1} containers, beside {len(plain.crowd):,}…")
    with Kernel(plain.site.host.path) as kernel:
        for _ in range(turns):
            opened, closed = _start_and_stop(plain, kernel, plain.container(_OTHERS + 1000, {"fw.allow": LABEL}))
            times["open"].append(opened)
            times["close"].append(closed)
    daemons.end(count)
    peers = daemons.get(count, "peers")
    _settled(peers)
    say(f"events: {turns - 1} containers, beside {len(peers.crowd):,} with peers by name…")
    with Kernel(peers.site.host.path) as kernel:
        for turn in range(turns):
            times["peers"].append(_leave(peers, kernel, peers.crowd[turn]))  # each of another project
    daemons.end(count, "peers")
    for those in times.values():
        del those[0]
    table.put(f"open@{count} p50", median(times["open"]))
    table.put(f"open@{count} p99", percentile(times["open"], 99))
    table.put(f"close@{count} p99", percentile(times["close"], 99))
    table.put("close@peers p99", percentile(times["peers"], 99))
    for what, name in (("close", ""), ("peers", " with peers by name")):
        where = f"beside {count:,} containers{name}"
        table.detail("events", f"a container leaves → closed, median, {where}", median(times[what]), "ms")


def _start_and_stop(daemon: Daemon, kernel: Kernel, container: Simulated) -> tuple[float, float]:
    """Return the milliseconds from `network connect` to its exception, and from `die` to its end."""
    kernel.forget()
    _create(daemon, container)
    until(lambda: container.id in daemon.docker.inspected, "docker-fw has inspected it")
    time.sleep(_CREATING)
    connected = _connect(daemon, container)
    # Docker starts it in any case: docker-fw may not use an answer that a list has overtaken, and asks again then.
    kernel.heard(ADDED, _key(container), connected, _STARTING)
    _run(daemon, container)
    opened = (kernel.when(ADDED, _key(container), connected) - connected) / 1e6
    until(lambda: daemon.is_open(container), "it is open")
    closed = _stop(daemon, kernel, container)
    daemon.docker.drop(container)
    daemon.docker.report("container", "destroy", container.id, name=container.name)
    return opened, closed


def _leave(daemon: Daemon, kernel: Kernel, container: Simulated) -> float:
    """Return the milliseconds until neither its ports are open nor those of its peers are to its address.

    It is started again.
    """
    kernel.forget()
    closed = _stop(daemon, kernel, container)
    _connect(daemon, container)
    _run(daemon, container)
    until(lambda: daemon.is_open(container), "it is open again")
    return closed


def _stop(daemon: Daemon, kernel: Kernel, container: Simulated) -> float:
    """End a container as Docker does; return the milliseconds until no element opens anything for its address."""
    container.state = "exited"
    daemon.docker.put(container, attached=False)
    daemon.docker.members[container.network].pop(container.id, None)
    left = daemon.docker.report(
        "network", "disconnect", container.network, container=container.id, name=container.network_name, type="bridge"
    )
    kernel.when(REMOVED, _key(container), left)
    daemon.docker.report("container", "die", container.id, name=container.name)
    until(lambda: not daemon.is_open(container), "it is closed")
    address = IPv6Address(container.addr6).packed
    return (max(kernel.times(REMOVED, address, left)) - left) / 1e6


def _create(daemon: Daemon, container: Simulated) -> None:
    container.state, container.sandbox = "created", False
    daemon.docker.inspected.discard(container.id)
    daemon.docker.put(container, attached=False)
    daemon.docker.report("container", "create", container.id, name=container.name, image="busybox")


def _connect(daemon: Daemon, container: Simulated) -> int:
    """Connect it to its network; return the time of the event."""
    docker = daemon.docker
    docker.put(container)
    return docker.report(
        "network", "connect", container.network, container=container.id, name=container.network_name, type="bridge"
    )


def _run(daemon: Daemon, container: Simulated) -> None:
    container.state, container.sandbox = "running", True
    daemon.docker.put(container)
    daemon.docker.report("container", "start", container.id, name=container.name)


def _key(container: Simulated) -> bytes:
    return key(exceptions(container)[1])


# --- Join ---------------------------------------------------------------------------------------------------------


class Joiner:
    """A container that joins a docker-fw network and leaves it, again and again, as dockerd does it."""

    def __init__(self, daemon: Daemon, number: int) -> None:
        self._daemon = daemon
        self._client = Client(daemon.socket)
        self.network = f"f{number:063x}"
        self._subnets = f"10.{192 + number}.0.0/16", f"2001:db8:f{number:03x}::/64"
        self._count = 0
        daemon.docker.network(self.network, f"fw{number}", "fw:latest", *self._subnets)
        data = [{"Pool": each, "Gateway": f"{_nth(each, 1)}/{each[-2:]}"} for each in self._subnets]
        body = {"NetworkID": self.network, "Options": {GENERIC: {}}, "IPv4Data": data[:1], "IPv6Data": data[1:]}
        self._call("CreateNetwork", body)

    def arrive(self) -> tuple[dict[str, Any], Simulated, dict[str, float]]:
        """Start a container; return the body of its calls, itself, and the seconds of each call."""
        self._count += 1
        four, six = (_nth(each, self._count + 1) for each in self._subnets)
        number = _OTHERS + 2000 + self._count
        container = Simulated(number, {"fw.allow": LABEL}, self.network, self.network[:4], four, six, sandbox=False)
        self._daemon.docker.put(container)
        body = {
            "NetworkID": self.network,
            "EndpointID": container.endpoint,
            "Interface": {"Address": f"{four}/16", "AddressIPv6": f"{six}/64"},
            "Options": {},
            "SandboxKey": "",
        }
        return body, container, {name: self._call(name, body) for name in _HOOKS[:2]}

    def cycle(self) -> dict[str, float]:
        """Return the seconds of each call, without those in which Docker answered."""
        body, container, times = self.arrive()
        times |= {name: self._call(name, body) for name in _HOOKS[2:]}
        self._daemon.docker.drop(container)
        self._count -= 1
        return times

    def _call(self, name: str, body: object) -> float:
        answered = self._daemon.docker.seconds
        took = self._client.must("POST", f"/NetworkDriver.{name}", body).seconds
        return took - (self._daemon.docker.seconds - answered)


def _join(daemons: Daemons, table: Table) -> None:
    joiners = {str(count): Joiner(daemons.get(count), 1) for count in JOIN_CROWDS}
    crowded = joiners["net"] = Joiner(daemons.get(JOIN_CROWDS[0], "one network"), 1)
    say(f"join: {daemons.scale.crowd(ON_ONE_NETWORK):,} containers join one network…")
    for _ in range(daemons.scale.crowd(ON_ONE_NETWORK)):
        crowded.arrive()
    times: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in joiners}
    for turn in range(daemons.scale.joins + 1):
        if turn % 50 == 0:
            say(f"join: round {turn} of {daemons.scale.joins}…")
        for name, joiner in joiners.items():
            for hook, seconds in joiner.cycle().items():
                if turn:  # the first warmed up
                    times[name][hook].append(1e3 * seconds)
    few = percentile(times[str(JOIN_CROWDS[0])]["Join"], 99)
    for name, found in times.items():
        table.put(f"join@{name} p99", percentile(found["Join"], 99))
        if name != str(JOIN_CROWDS[0]):
            table.put(f"join@{name} ratio", percentile(found["Join"], 99), few)
        where = f"on a network of {ON_ONE_NETWORK:,}" if name == "net" else f"{int(name):,} endpoints"
        for hook in _HOOKS:
            table.detail("join", f"{hook}, median, {where}", median(found[hook]), "ms")


def _nth(subnet: str, number: int) -> str:
    prefix = subnet.partition("/")[0]
    if ":" in prefix:
        return str(IPv6Address(int(IPv6Address(prefix)) + number))
    first, second, *_ = prefix.split(".")
    return f"{first}.{second}.{number >> 8}.{number & 255}"


# --- starts -------------------------------------------------------------------------------------------------------


def _start(daemons: Daemons, table: Table) -> None:
    daemon = daemons.get(START_CROWD)
    daemon.boot()
    say(f"start: beside {len(daemon.crowd):,} containers…")
    began, generation = time.monotonic(), daemon.generation()
    daemon.spawn()
    while daemon.generation() == generation:
        time.sleep(0.0005)
    closed = time.monotonic() - began
    daemon.until_known()
    table.put("start closed", closed)
    table.put("start open", time.monotonic() - began)
    table.put("start cpu", daemon.cpu())


def _load(daemons: Daemons, table: Table) -> None:
    say("load: starts of docker-fw…")
    daemon = daemons.fresh()
    times: dict[str, list[float]] = defaultdict(list)
    for turn in range(2 * daemons.scale.starts):
        first = turn % 2 == 0
        if turn:
            until((daemon.state.parent / BOOT_FILE).exists, "the boot table is written")
            daemon.boot()
        if first:
            (daemon.state.parent / BOOT_FILE).unlink(missing_ok=True)
        closed, answer = _loaded(daemon)
        times["early" if first else "boot"].append(closed)
        times["answer"].append(answer)
    daemon.stop()
    for what, values in times.items():
        table.put(f"load {what}", median(values))
    table.detail("load", "dockerd's first connection → its first answer, longest", max(times["answer"]), "s")
    table.detail("load", "mean of all starts until closed", fmean(times["early"] + times["boot"]), "s")


def _loaded(daemon: Daemon) -> tuple[float, float]:
    """Start docker-fw; return the seconds until a table closes, and from the first connection to the first answer."""
    began = time.monotonic()
    daemon.spawn()
    with daemon.site.inside():
        while not identity.any_closes():
            time.sleep(0.001)
    closed = time.monotonic() - began
    client = Client(daemon.socket)
    while True:
        try:
            client.socket()
            break
        except OSError:
            time.sleep(0.001)
    dialled = time.monotonic()
    client.must("POST", "/Plugin.Activate")
    answer = time.monotonic() - dialled
    client.close()
    until(lambda: _ready(daemon), "docker-fw is ready")
    return closed, answer


def _ready(daemon: Daemon) -> bool:
    try:
        return daemon.answers()
    except http.client.HTTPException:
        return False
