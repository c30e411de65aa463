"""Test a full or damaged disk: what cannot be saved does not open, closing still works, and nothing is discarded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from plugin.kernel.names import host_side
from tests.kernel.packets import new_flow
from tests.kernel.running import GUNICORN, Running, names_of
from tests.kernel.site import Box, Site
from tests.recorded import PORTMAP
from tests.waiting import until

FULL = "No space left on device"
PORTS = [{"Proto": 6, "Port": 8080, "HostPort": 18080}]


class Small(Running):
    """A plugin with its state on a disk of 128 kB, which no other process sees: it is removed with the process."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._disk = self.state.parent
        self._disk.mkdir()
        mount = f'mount -t tmpfs -o size=128k none {self._disk} && exec "$@"'
        self.command = ("unshare", "--mount", "sh", "-c", mount, "sh", *GUNICORN)

    def start(self) -> Running:
        super().start()
        assert self.process
        self.state = Path(f"/proc/{self.process.pid}/root{self.state}")
        return self

    def fill(self) -> None:
        with (self.state.parent / "filler").open("ab", buffering=0) as file:
            while True:
                try:
                    file.write(b"x" * 512)
                except OSError:
                    return

    def free(self) -> None:
        (self.state.parent / "filler").unlink()


@pytest.fixture
def fw(site: Site) -> Iterator[Small]:
    with closing(Small(site)) as made:
        made.start()
        yield made


def ask(fw: Running, what: str, **body: Any) -> Any:
    """Return the answer to a request of `fwctl`."""
    return json.loads(fw.raw("POST", f"/{what}", json.dumps(body).encode())[1])


def gets(fw: Running, box: Box, port: int) -> bool:
    """Return True if an outsider's SYN reaches the port, in both families."""
    packets = [
        new_flow("tcp", source, target, port, 1024 + int.from_bytes(os.urandom(2), "big") % 60000)
        for source, target in ((Site.OUT4, box.v4), (Site.OUT6, box.v6))
    ]
    found = [packet in fw.site.deliver([packet], box) for packet in packets]
    assert found[0] == found[1]
    return found[0]


def test_a_full_disk(fw: Small) -> None:
    """On a full disk each change that would open something is refused with the reason, and opens nothing.

    That is: networks, containers, labels that become known, published ports, `fwctl allow`. Stops, removals and `fwctl
    deny` are carried out. `fwctl status` says why. A killed plugin starts in the same state. With space again, all
    refused changes follow by themselves, and objects removed while the disk was full do not return at the next start.
    """
    network, removed = fw.network(1), fw.network(2)
    for each in (network, removed):
        fw.well("CreateNetwork", each)
    stays, stops = (fw.start_container(network, number, {"fw.allow": "8080"}) for number in (2, 3))
    late, joins = fw.endpoint(network, 4), fw.endpoint(network, 5)
    for each in (late, joins):
        fw.well("CreateEndpoint", each)
    late["Joined"] = fw.well("Join", late)
    there, later, _ = boxes = [fw.move(each) for each in (stays, late, stops)]
    assert [gets(fw, box, 8080) for box in boxes] == [True, False, True]

    fw.fill()
    assert FULL in fw.driver("CreateNetwork", fw.network(3))["Err"]
    assert FULL in fw.driver("CreateEndpoint", fw.endpoint(network, 6))["Err"]
    assert FULL in fw.driver("Join", joins)["Err"]
    assert FULL in fw.driver("ProgramExternalConnectivity", {**stays, "Options": {PORTMAP: PORTS}})["Err"]
    assert FULL in ask(fw, "allow", container="c2", rules=["9090"])["Err"]
    fw.docker.container("late", late["EndpointID"], network["NetworkID"], {"fw.allow": "8080"})
    fw.docker.event("network", "create")
    until(lambda: "late (endpoint 000100000004) keeps its old labels" in fw.log.read_text(), "the refusal is logged")
    for name in ("Leave", "DeleteEndpoint"):
        fw.well(name, stops)
    fw.kill_worker()
    assert [gets(fw, box, port) for box in (there, later) for port in (8080, 9090)] == [True, False, False, False]
    assert FULL in ask(fw, "deny", container="c2", rules=["8080"])["Err"]  # it is in effect, and may not last
    fw.well("DeleteNetwork", removed)
    assert [gets(fw, box, 8080) for box in (there, later)] == [False, False]
    assert FULL in fw.status()["unsaved"]
    assert fw.links() == names_of(network) | {host_side(each["EndpointID"]) for each in (stays, late)}

    fw.free()
    until(lambda: "8080/6" in fw.opens("2001:db8:1::4"), "the label opens")
    until(lambda: not fw.status()["unsaved"], "everything is on the disk")
    for _ in range(2):
        assert [gets(fw, box, 8080) for box in (there, later)] == [False, True]
        assert [each["id"] for each in fw.status()["networks"]] == [network["NetworkID"]]
        assert set(fw.kept()["endpoints"]) == {each["EndpointID"] for each in (stays, late, joins)}
        fw.kill_worker()
    fw.well("Join", joins)


def test_a_spoilt_log(fw: Small) -> None:
    """When the log of the state file is damaged, containers recorded before the damage stay open.

    Containers recorded after it accept ICMP only, and the log is kept unchanged for inspection.
    """
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    boxes = [fw.move(fw.start_container(network, number, {"fw.allow": "8080"})) for number in (2, 3)]
    log = fw.state.with_name("state.json.log")
    lines = log.read_bytes().split(b"\n")
    lines[3] = lines[3][:40] + b"\0" + lines[3][40:]
    log.write_bytes(b"\n".join(lines))
    fw.docker.mode = "hang"
    fw.kill_worker()
    assert [gets(fw, box, port) for box in boxes for port in (22, 8080)] == [True, True, False, False]
    assert "is damaged after 2 changes" in fw.log.read_text()
    (kept,) = log.parent.glob("state.json.log.corrupt-*")
    assert kept.read_bytes() == b"\n".join(lines)
