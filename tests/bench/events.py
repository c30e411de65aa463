"""Measure how long after Docker's events an exception on a Docker network is added and removed, on a real engine.

Docker's events are fetched afterwards, with the times that Docker gave them. All times are of one machine's clock.
"""

from __future__ import annotations

import itertools
import json
import os
import time
import urllib.parse
from collections import defaultdict
from ipaddress import IPv6Address

from plugin.nftables.sets import Element
from tests.bench.bed import LABEL, PROTECTED, Bed
from tests.bench.listener import ADDED, REMOVED, Kernel, key
from tests.bench.rows import REAL
from tests.bench.table import Table, median, percentile, say
from tests.waiting import until

#: The shell's first act creates a file, whose time is the kernel's tick before (4 ms at most): early, so never in
# docker-fw's favour.
_COMMAND = ("sh", "-c", ": >/began; exec sleep inf")
_OPEN, _PROCESS = "open after `network connect`", "open after its process started"
#: The first of the two events that report the end of a container, and of its attachment.
_CLOSED = "closed after Docker's first report that it leaves"
_numbers = itertools.count(1)
#: By kind of event: milliseconds from Docker's event until the table had the change.
Times = dict[str, list[float]]


def measure(bed: Bed, table: Table) -> None:
    """Measure on a Docker network with the crowd on it, which Docker must list each time."""
    bed.protected()
    times: Times = defaultdict(list)
    with Kernel(bed.engine.host.netns.path) as kernel:
        for turn in range(bed.scale.events + 1):
            if turn % 20 == 0:
                say(f"events: container {turn} of {bed.scale.events}…")
            if turn == 1:  # the first warmed up
                times.clear()
            _run_and_remove(bed, kernel, times)
    table.put(f"open@{REAL} p50", median(times[_OPEN]))
    table.put(f"open@{REAL} p99", percentile(times[_OPEN], 99))
    table.put(f"close@{REAL} p99", percentile(times[_CLOSED], 99))
    for what, values in times.items():
        for name, value in (("median", median(values)), ("longest", max(values))):
            table.detail("events", f"{what}, {REAL} containers, {name} (negative: before)", value, "ms")


def _run_and_remove(bed: Bed, kernel: Kernel, times: Times) -> None:
    engine, name = bed.engine, f"events{next(_numbers)}"
    kernel.forget()
    before = time.time_ns()
    label = ("--label", f"fw.allow={LABEL}")
    container = engine.docker("run", "-d", "--name", name, "--network", PROTECTED, *label, "busybox", *_COMMAND)
    try:
        # The port that the container's label opens.
        element = key(Element("allow6", (IPv6Address(engine.address(name, PROTECTED)[1]), 6, 8080)))
        opened, first = kernel.when(ADDED, element, before), _first_act(bed, name)
        now = time.time_ns()
    finally:
        engine.try_docker("rm", "-f", name)
    closed = kernel.when(REMOVED, element, now)
    reported = _events(bed, container, before)
    for what, done, event in (
        (_OPEN, opened, reported["network connect"]),
        (_PROCESS, opened, first),
        (_CLOSED, closed, min(reported["container die"], reported["network disconnect"])),
    ):
        times[what].append((done - event) / 1e6)


def _first_act(bed: Bed, container: str) -> int:
    """Return when its shell did its first act. `docker run` sometimes returns before that."""
    root = f"{bed.engine.host.inside}/proc/{bed.engine.pid_of(container)}/root"
    until(lambda: os.path.exists(f"{root}/began"), f"{container} runs")
    return os.stat(f"{root}/began").st_mtime_ns


def _events(bed: Bed, container: str, since: int) -> dict[str, int]:
    """Return the time of the first of each of Docker's events about the container, in nanoseconds.

    Docker keeps its last events for later requests.
    """
    found: dict[str, int] = {}
    since_text, until_text = (f"{at // 10**9}.{at % 10**9:09}" for at in (since, time.time_ns()))
    wanted = urllib.parse.quote(json.dumps({"type": ["container", "network"]}))
    url = f"/events?since={since_text}&until={until_text}&filters={wanted}"
    for line in bed.docker.must("GET", url).body.decode().splitlines():
        event = json.loads(line)
        actor = event["Actor"]
        if container in (actor["ID"], actor["Attributes"].get("container")):
            found.setdefault(f"{event['Type']} {event['Action']}", event["timeNano"])
    return found
