"""Storms: everything that is quick happens at once, many times, from several threads, as on a busy host.

Each lane repeats one thing until the storm is over. What fails because of another lane (a container cannot start while
the plugin is dead) is no fault of docker-fw, is not counted, and is tried again.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from plugin.fwctl.socket_client import ask
from plugin.model import FwError
from plugin.nftables.sets import TABLE
from tests.lab import LabError, Wan
from tests.waiting import until

from .bed import LABEL, OTHER_LABEL, Bed, Place
from .image import IMAGE, SERVERS

#: Failures that another lane causes.
BESIDE = (LabError, FwError, OSError, ValueError, AssertionError)
FLUSHES = (
    f"flush chain inet {TABLE} forward",
    f"flush chain inet {TABLE} input",
    f"flush chain inet {TABLE} input_last",
    f"flush chain inet {TABLE} ban_hook_host",
    f"flush chain bridge {TABLE} frames",
    f"flush set inet {TABLE} egress_restricted",
    f"flush table inet {TABLE}",
    f"delete table inet {TABLE}",
    f"delete table bridge {TABLE}",
)


class Storm:
    """One storm on a bed. `over` is true when its time has passed."""

    def __init__(self, bed: Bed, seconds: float) -> None:
        self.bed, self.end = bed, time.monotonic() + seconds
        #: Held by what kills the owner of the table, and by what flushes: without an owner a flush opens.
        self.owner = threading.Lock()

    @property
    def over(self) -> bool:
        return time.monotonic() > self.end

    def run(self, *lanes: Callable[[Storm], None]) -> None:
        """Run the lanes side by side until the end; raise what was not expected in any of them."""
        with ThreadPoolExecutor(len(lanes)) as pool:
            for done in [pool.submit(self._repeat, lane) for lane in lanes]:
                done.result()

    def _repeat(self, lane: Callable[[Storm], None]) -> None:
        while not self.over:
            try:
                lane(self)
            except BESIDE:
                time.sleep(0.05)


# ── containers with labels that change ──


def description(guest: Place, label: str) -> dict[str, Any]:
    """Return the body of Docker's request to create a guest."""
    v4, v6 = guest.addresses()
    key, _, value = label.partition("=")
    ports = {inside: [{"HostPort": str(on)}] for inside, on in guest.mapped().items()}
    return {
        "Image": IMAGE,
        "Cmd": SERVERS,
        "Labels": {key: value},
        "ExposedPorts": {inside: {} for inside in ports},
        "HostConfig": {"NetworkMode": guest.name, "PortBindings": ports},
        "NetworkingConfig": {"EndpointsConfig": {guest.name: {"IPAMConfig": {"IPv4Address": v4, "IPv6Address": v6}}}},
    }


def name(guest: Place) -> str:
    return f"guest-{guest.name}-{guest.last}"


def remove(bed: Bed, guest: Place) -> None:
    """Remove a guest, if it is there; afterwards none of its ports may answer."""
    with suppress(LabError):
        bed.fw.engine.api("DELETE", f"/containers/{name(guest)}?force=1")
    known = {each["Names"][0] for each in bed.fw.engine.api("GET", "/containers/json?all=1")}
    if f"/{name(guest)}" not in known:
        bed.outsider.forbid(bed.of_guest(guest))


def replaced(number: int) -> Callable[[Storm], None]:
    """Return a lane: a guest is created again and again, with the same addresses and labels that change."""
    labels = itertools.cycle((LABEL, OTHER_LABEL))

    def lane(storm: Storm) -> None:
        bed, guest, label = storm.bed, storm.bed.guests[number], next(labels)
        remove(bed, guest)
        if label == LABEL:
            bed.outsider.permit(bed.of_guest(guest))
        api = bed.fw.engine.api
        api("POST", f"/containers/create?name={name(guest)}", description(guest, label))
        api("POST", f"/containers/{name(guest)}/start", timeout=60)
        bed.count("starts")
        bed.count("labels")

    return lane


# ── the rest ──


def networks(storm: Storm) -> None:
    """Create and remove networks, docker-fw's and Docker's in turn."""
    api, bed = storm.bed.fw.engine.api, storm.bed
    for number, driver in enumerate((bed.fw.driver, "bridge")):
        v4, v6 = f"10.89.{100 + number}.0/24", f"2001:db8:89:{100 + number}::/64"
        body = {
            "Name": f"brief{number}",
            "Driver": driver,
            "EnableIPv6": True,
            "IPAM": {"Config": [{"Subnet": v4}, {"Subnet": v6}]},
        }
        with suppress(LabError):
            api("DELETE", f"/networks/brief{number}")
        api("POST", "/networks/create", body)
        api("DELETE", f"/networks/brief{number}")
        bed.count("networks")


def bans(storm: Storm) -> None:
    """Ban the outsider's other address, and permit it again."""
    bed, both = storm.bed, (Wan.FAR_V4, Wan.FAR_V6)
    socket = str(bed.fw.socket())
    ask(socket, "/ban", {"bans": [{"address": address} for address in both]})
    bed.outsider.forbid(bed.from_banned())
    bed.count("bans")
    time.sleep(0.15)  # so that each port gets a shot while the ban holds, and one without it
    bed.outsider.permit(bed.from_banned())
    ask(socket, "/unban", {"addresses": list(both)})
    time.sleep(0.05)


def flushes(storm: Storm) -> None:
    """Flush and delete docker-fw's tables, while they have an owner."""
    for command in FLUSHES:
        with storm.owner:
            storm.bed.fw.host.run_outside(["nft", command], check=False)
        storm.bed.count("flushes")
        if storm.over:
            return
        time.sleep(0.1)


def kills(storm: Storm) -> None:
    """Kill the plugin's worker, and each fifth time the whole plugin; wait until it answers."""
    fw = storm.bed.fw
    with storm.owner:
        pids = fw.pids()
        victims = pids if storm.bed.counts["kills"] % 5 == 4 else pids[-1:]
        if not victims:
            return
        fw.host.run(["kill", "-9", *victims], check=False)
        storm.bed.count("kills")
        until(lambda: not set(victims) & set(fw.pids()), "the plugin's processes have ended")
        until(fw.answers, "the plugin answers again")


def _storm(bed: Bed, seconds: float, lanes: Sequence[Callable[[Storm], None]]) -> None:
    storm = Storm(bed, seconds)
    try:
        storm.run(*lanes)
    finally:
        until(bed.fw.answers, "the plugin answers")
        for guest in bed.guests:
            remove(bed, guest)
        ask(str(bed.fw.socket()), "/unban", {"addresses": [Wan.FAR_V4, Wan.FAR_V6]})
        for number in range(2):
            bed.fw.engine.try_docker("network", "rm", f"brief{number}")


def starts_storm(seconds: float) -> Callable[[Bed], None]:
    """Return a blow: containers come, go and change their labels beside networks, bans and flushes."""

    def storm_of_starts(bed: Bed) -> None:
        _storm(bed, seconds, (replaced(0), replaced(1), replaced(2), networks, bans, flushes))

    return storm_of_starts


def kills_storm(seconds: float) -> Callable[[Bed], None]:
    """Return a blow: the plugin dies again and again amid all of that."""

    def storm_of_kills(bed: Bed) -> None:
        _storm(bed, seconds, (kills, replaced(0), bans, flushes))

    return storm_of_kills
