"""Measure how long after Docker's events an exception on a Docker network is added and removed.

The kernel itself reports changes of the table to listeners, as to `nft monitor`: no process is polled meanwhile.
Docker's events are fetched afterwards, with the times that Docker gave them. All times are of one machine's clock. The
bench may receive the kernel's report late, never early: each result is an upper bound.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time
import urllib.parse
from collections import defaultdict
from collections.abc import Iterator
from ipaddress import ip_address

from plugin.kernel import netlink as nl
from plugin.nftables import fields
from plugin.nftables.client import DELSETELEM, NEWSETELEM
from plugin.nftables.sets import SETS
from tests.bench.bed import LABEL, PROTECTED, Bed, connect, disconnect
from tests.bench.table import Table, median, percentile, say
from tests.bench.traffic import within

_ALONE = "guard-alone"
#: linux/netlink.h and linux/netfilter/nfnetlink.h: SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES
_SOL_NETLINK, _ADD_MEMBERSHIP, _NFTABLES = 270, 1, 7
_SO_RCVBUFFORCE = 33
#: The shell's first act creates a file, whose time is the kernel's tick before (4 ms at most): early, so never in
# docker-fw's favour.
_COMMAND = ("sh", "-c", ": >/began; exec sleep inf")
_PROCESS, _START = "open after its process began", "open after `start`"
#: A container finds its ports open from its first instruction on; no other event has a promised time.
_PROMISED = (_PROCESS, _START)
#: Seconds after which the background work of the last command is done.
_SETTLE = 0.1
_PATIENCE = 15.0
_numbers = itertools.count(1)
#: By kind of event: seconds from Docker's event until the table had the change.
Times = dict[str, list[float]]


def alone(bed: Bed, table: Table) -> None:
    """Measure on a Docker network without other containers."""
    bed.network("bridge", _ALONE)
    _measure(bed, table, _ALONE, "alone")
    bed.engine.docker("network", "rm", _ALONE)


def crowded(bed: Bed, table: Table) -> None:
    """Measure on a Docker network with the crowd on it, which Docker must list each time."""
    bed.protected()
    _measure(bed, table, PROTECTED, f"beside {bed.scale.containers}")


def _measure(bed: Bed, table: Table, network: str, state: str) -> None:
    times: Times = defaultdict(list)
    with Kernel(bed) as kernel:
        for turn in range(bed.scale.guard + 1):
            if turn % 20 == 0:
                say(f"guard, {state}: container {turn} of {bed.scale.guard}…")
            if turn == 1:  # the first warmed up
                times.clear()
            _come_and_go(bed, kernel, network, times)
    for what, values in times.items():
        aim = "value < 0" if what in _PROMISED else ""
        for name, value in (("median", median(values)), ("p99", percentile(values, 99)), ("max", max(values))):
            table.add(f"guard: {what}, {state}, {name}", 1e3 * value, "ms", None, aim)
    table.note(f"guard: {bed.scale.guard} containers; negative is before; at the latest, for the bench may hear late")


def _come_and_go(bed: Bed, kernel: Kernel, network: str, times: Times) -> None:
    """Run a container, disconnect it, connect it again while it runs, and remove it."""
    engine, docker, name = bed.engine, bed.docker, f"guard{next(_numbers)}"
    began = time.time_ns()
    label = ("--label", f"fw.allow={LABEL}")
    container = engine.docker("run", "-d", "--name", name, "--network", network, *label, "busybox", *_COMMAND)
    try:
        opened = kernel.when(NEWSETELEM, _key(bed, name, network), began)
        first = _began(bed, name)
        time.sleep(_SETTLE)

        key, now = _key(bed, name, network), time.time_ns()
        disconnect(docker, network, name)
        closed = kernel.when(DELSETELEM, key, now)
        time.sleep(_SETTLE)

        now = time.time_ns()
        connect(docker, network, name)
        key = _key(bed, name, network)
        reopened = kernel.when(NEWSETELEM, key, now)
        time.sleep(_SETTLE)
        now = time.time_ns()
    finally:
        engine.try_docker("rm", "-f", name)
    gone = kernel.when(DELSETELEM, key, now)
    time.sleep(_SETTLE)

    reported = _events(bed, container, began)
    for what, until, event in (
        ("open after `network connect`, docker run", opened, reported["network connect"][0]),
        (_PROCESS, opened, first),
        (_START, opened, reported["container start"][0]),
        ("open after `network connect`, running container", reopened, reported["network connect"][-1]),
        # Docker before 28 reports this event twice, at the beginning and at the end.
        ("closed after `network disconnect`, running container", closed, reported["network disconnect"][0]),
        ("closed after `network disconnect`, docker rm -f", gone, reported["network disconnect"][-1]),
        ("closed after `die`, docker rm -f", gone, reported["container die"][0]),
    ):
        times[what].append((until - event) / 1e9)


def _began(bed: Bed, container: str) -> int:
    """Return when its shell did its first act. `docker run` sometimes returns before that."""
    root, end = f"{bed.engine.host.inside}/proc/{bed.engine.pid_of(container)}/root", time.monotonic() + _PATIENCE
    while not os.path.exists(f"{root}/began"):
        if time.monotonic() > end:
            raise RuntimeError(f"{container} has not begun to run within {_PATIENCE:g} s")
        time.sleep(0.01)
    return os.stat(f"{root}/began").st_mtime_ns


def _key(bed: Bed, container: str, network: str) -> bytes:
    """Return the key of the element for the port that the container's label opens, as the kernel reports it."""
    address = ip_address(bed.engine.address(container, network)[1])
    return fields.packed(SETS["allow6"].key, (address, 6, 8080))


def _events(bed: Bed, container: str, since: int) -> dict[str, list[int]]:
    """Return the times of Docker's events about the container, in nanoseconds.

    Docker keeps its last events for later requests.
    """
    found: dict[str, list[int]] = defaultdict(list)
    for line in _past(bed, since).splitlines():
        event = json.loads(line)
        actor = event["Actor"]
        if container in (actor["ID"], actor["Attributes"].get("container")):
            found[f"{event['Type']} {event['Action']}"].append(event["timeNano"])
    return found


def _past(bed: Bed, since: int) -> str:
    since_text, until_text = (f"{at // 10**9}.{at % 10**9:09}" for at in (since, time.time_ns()))
    wanted = urllib.parse.quote(json.dumps({"type": ["container", "network"]}))
    url = f"/events?since={since_text}&until={until_text}&filters={wanted}"
    return bed.docker.must("GET", url).body.decode()


class Kernel:
    """Receive every change of the host's nftables, with its time."""

    def __init__(self, bed: Bed) -> None:
        self._sock = within(bed.engine.host.netns.path, nl.open_socket)
        self._sock.setsockopt(1, _SO_RCVBUFFORCE, 1 << 22)
        self._sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _NFTABLES)
        self._sock.settimeout(0.5)
        self._heard: list[tuple[int, int, bytes]] = []
        self._news = threading.Condition()
        self._stop = False
        self._thread = threading.Thread(target=self._hear, daemon=True, name="kernel")

    def __enter__(self) -> Kernel:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join(10)
        self._sock.close()

    def when(self, kind: int, key: bytes, since: int) -> int:
        """Return when the first such change of the element was received; it may still be outstanding."""
        with self._news:
            if self._news.wait_for(lambda: any(self._found(kind, key, since)), _PATIENCE):
                return next(self._found(kind, key, since))
        what = "come" if kind == NEWSETELEM else "gone"
        raise RuntimeError(f"the element {key.hex()} of allow6 has not {what} within {_PATIENCE:g} s")

    def _found(self, kind: int, key: bytes, since: int) -> Iterator[int]:
        return (at for at, what, body in self._heard if at >= since and what == kind and key in body)

    def _hear(self) -> None:
        with contextlib.suppress(OSError):  # not allowed everywhere; then a busy machine makes it late
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))  # this thread, not the whole process
        while not self._stop:
            with contextlib.suppress(TimeoutError):
                for kind, _, body in nl.replies(self._sock):
                    at = time.time_ns()
                    if kind in (NEWSETELEM, DELSETELEM) and b"allow6\0" in body:
                        with self._news:
                            self._heard.append((at, kind, body))
                            self._news.notify_all()
