"""Test a kill at each step of each call: after Docker's repeated call the state is as without the kill.

Each call of a container's life, and the start itself, is cut short by SIGKILL at its first step, at its second, and so
on until it has no further one (`tests.kernel.crashing`). An outsider sends to closed ports all the while.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import threading
from collections.abc import Callable
from http.client import HTTPException
from typing import Any

import pytest

from plugin.model import Address
from tests.kernel.packets import Sniffer, new_flow, written
from tests.kernel.running import BASE, Body, Running
from tests.kernel.site import Box, Site
from tests.recorded import PORTMAP
from tests.waiting import until

OPEN, CLOSED, PUBLISHED = 8080, 9090, 19090
STAYS = {("10.1.0.9", OPEN), ("2001:db8:1::9", OPEN)}
#: A kill at every step, before it and after it, on request; otherwise before the most important ones.
EVERY = bool(os.environ.get("FW_TEST_CRASHES"))
LABELS = {"fw.allow": "8080", **({"fw.egress": "53/udp"} if EVERY else {})}
#: Steps that must have occurred, or the test would prove little.
STEPS = {
    "write the state",
    "fsync",
    "keep the state",
    "replace the state",
    "nft run",
    "nft send",
    "link add",
    "link del",
    "cut_addresses",
    "cut_closed",
}
#: In the middle of a step.
HALVES = {"close the state", "write the rest of a line"}


class Crashing(Running):
    """A plugin that dies at a chosen step."""

    command = (sys.executable, "-m", "gunicorn", "-c", "python:tests.kernel.crashing")

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._order = self.directory / "crash"
        self.environ["CRASH"] = str(self._order)

    def die(self, step: int, when: str, *, every: bool) -> None:
        """Set the step to die at, counted from now: of the disk's and the table's alone, or of every one."""
        new = self._order.with_name("order")
        new.write_text(f"{step} {when} {every:d}")
        new.replace(self._order)

    def lived(self) -> bool:
        """Return True if it never reached that step; the order to die is withdrawn."""
        lived = self._order.exists()
        self._order.unlink(missing_ok=True)
        return lived

    def died(self) -> list[str]:
        """Return the steps at which it has died."""
        died = self._order.with_name("crash.died")
        return died.read_text().splitlines() if died.exists() else []

    def repeated(self, name: str, body: Body) -> Any:
        """Repeat a call whose connection broke, as dockerd does."""
        replies: list[Any] = []

        def answered() -> bool:
            with contextlib.suppress(OSError, HTTPException, AssertionError, json.JSONDecodeError):
                replies.append(self.driver(name, body))
            return bool(replies)

        until(answered, f"{name} is answered", 15)
        assert "Err" not in replies[0], (name, replies)
        return replies[0]


class Fire:
    """An outsider's packets to ports, each from a source port of its own; `arrived` returns the reached ports."""

    def __init__(self, site: Site, *targets: tuple[Address | str, Address | str, int]) -> None:
        self._site, self._targets = site, targets
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._sniffers: list[Sniffer] = []
        self.shots = 0

    def _run(self) -> None:
        for sport in itertools.cycle(range(1024, 65000)):
            self._site.send(new_flow("tcp", source, target, port, sport) for source, target, port in self._targets)
            self.shots += len(self._targets)
            if self._stop.wait(0.004):
                return

    def __enter__(self) -> Fire:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def watch(self, box: Box) -> None:
        self._sniffers.append(self._site.sniffer(box))

    def arrived(self) -> set[tuple[str, int]]:
        """Return where packets have arrived since the last call; none ever does at a closed port."""
        found = {packet for sniffer in self._sniffers for packet in sniffer.read() if packet.proto == 6}
        places = {(written(packet.dst), int.from_bytes(packet.data[2:4], "big")) for packet in found}
        assert {port for _, port in places} <= {OPEN}
        return places

    def reaches(self, places: set[tuple[str, int]]) -> None:
        """Wait until a new packet arrives at all of these."""
        left = set(places)
        self.arrived()

        def reached() -> bool:
            left.difference_update(self.arrived())
            return not left

        until(reached, f"{places} are open", 2)


def life(fw: Crashing, fire: Fire) -> dict[str, Callable[[], Any]]:
    """Return a container's life, call by call."""
    network = fw.network(2)
    endpoint = fw.endpoint(network, 2)
    published = {**endpoint, "Options": {PORTMAP: [{"Proto": 6, "Port": CLOSED, "HostPort": PUBLISHED}]}}

    def join() -> None:
        endpoint["Joined"] = fw.repeated("Join", endpoint)

    def known() -> None:
        fw.docker.container("visitor", endpoint["EndpointID"], network["NetworkID"], LABELS)
        fw.docker.event("network", "create")
        until(lambda: fw.opens("10.2.0.2") == {*BASE, f"{OPEN}/6"}, "the label opens", 15)

    def leave() -> None:
        fw.docker.containers.pop(endpoint["EndpointID"])
        fw.repeated("Leave", endpoint)

    return {
        "create network": lambda: fw.repeated("CreateNetwork", network),
        "create endpoint": lambda: fw.repeated("CreateEndpoint", endpoint),
        "join": join,
        "move": lambda: fire.watch(fw.move(endpoint)),
        "labels known": known,
        "publish": lambda: fw.repeated("ProgramExternalConnectivity", published),
        "restart": fw.kill_worker,
        "revoke": lambda: fw.repeated("RevokeExternalConnectivity", endpoint),
        "leave": leave,
        "delete endpoint": lambda: fw.repeated("DeleteEndpoint", endpoint),
        "delete network": lambda: fw.repeated("DeleteNetwork", network),
    }


def state_of(fw: Crashing) -> dict[str, Any]:
    """Return all that a kill might leave different."""
    links, elements, kept, status = fw.current_state()
    # The boot table is written once a second.
    usual = {"state.json", "state.json~", "state.json.log", "boot.nft", "boot.nft.kept"}
    files = {path.name for path in fw.state.parent.iterdir()} - usual
    return {"links": links, "elements": elements.splitlines(), "kept": kept, "status": status, "files": files}


def become(fw: Crashing, wanted: dict[str, Any], why: str) -> None:
    """Wait until the state is as expected; report the differences."""
    other: dict[str, Any] = {}

    def alike() -> bool:
        now = state_of(fw)
        other.clear()
        other.update({name: (now[name], wanted[name]) for name in now if now[name] != wanted[name]})
        return not other

    try:
        until(alike, "")
    except AssertionError:
        raise AssertionError(f"{why} is not as without a death: {other}") from None


@pytest.mark.parametrize("when", ["before", "after"] if EVERY else ["before"])
def test_killed_at_every_step(site: Site, when: str) -> None:
    """Wherever the plugin is killed in a container's life, or in its own start, no closed port gets a packet.

    Once Docker has repeated its call, links, table, state file and status are as without a kill. Containers that stay
    are open again as soon as the plugin answers, and nothing is left behind.
    """
    wanted = STEPS | HALVES if when == "before" else STEPS
    fw = Crashing(site)
    try:
        fw.start()
        network = fw.network(1)
        fw.well("CreateNetwork", network)
        kept = fw.start_container(network, 9, LABELS)
        four = [(Site.OUT4, f"10.{net}", port) for net in ("1.0.9", "2.0.2") for port in (OPEN, CLOSED)]
        six = [(Site.OUT6, f"2001:db8:{net}", port) for net in ("1::9", "2::2") for port in (OPEN, CLOSED)]
        with Fire(site, *four, *six, (Site.OUT4, Site.HOST4, PUBLISHED)) as fire:
            fire.watch(fw.move(kept))
            before = state_of(fw)
            # A step of another thread may come in between. Then the one that would have had its number is left out.
            for _ in range(3):
                enumerated(fw, fire, when)
                if set(fw.died()) >= wanted:
                    break
            assert set(fw.died()) >= wanted
            assert fire.shots > 1000
        become(fw, before, "after it all")
        fw.stop_container(kept)
        fw.well("DeleteNetwork", network)
        fw.nothing_left()
    finally:
        fw.close()


def enumerated(fw: Crashing, fire: Fire, when: str) -> None:
    """Run one life after another: the first without a kill, then with one at each call's first step, second step, …"""
    without: dict[str, Any] = {}
    left = set(life(fw, fire))
    for step in itertools.count():
        for name, call in life(fw, fire).items():
            if step == 0:
                call()
                until(lambda: fw.status()["listening"], "docker-fw follows Docker")
                without[name] = state_of(fw)
                continue
            if name not in left:
                call()
                continue
            fw.die(step, when, every=EVERY)
            call()
            if fw.lived():
                left.remove(name)
                continue
            until(fw.answers, "docker-fw answers again", 15)
            fire.reaches(STAYS)
            become(fw, without[name], f"killed {when} {fw.died()[-1:]}, {name}")
        if not left:
            return
