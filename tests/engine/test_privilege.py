"""What docker-fw may do on the host is what SECURITY.md says, and with no more than that it does its work."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.engine.test_sidecar import Sidecar
from tests.lab import Engine
from tests.product import NEWEST, ROOT, until

#: Linux's numbers of the capabilities that are spoken of here (linux/capability.h).
NUMBERS = {"NET_BIND_SERVICE": 10, "NET_ADMIN": 12}


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    with Engine(NEWEST) as engine:
        yield Sidecar.up(engine)


def test_the_sidecar_has_two_capabilities_and_does_its_work(sidecar: Sidecar) -> None:
    """Every process of the sidecar has what SECURITY.md names, can gain nothing by a program that it starts, and
    cannot write to its own image; a container on network `fw` is opened by its label and by `fwctl allow`, and its
    host port below 1024 answers."""
    named = re.search(r"^The sidecar has exactly (.*)\.$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    assert named
    mask = sum(1 << NUMBERS[name] for name in re.findall(r"`CAP_(\w+)`", named[1]))
    pids = sidecar.engine.docker("top", sidecar.container, "-eo", "pid").split()[1:]
    assert len(pids) >= 2
    for pid in pids:
        told = dict(
            re.findall(r"^(\w+):\s+(\S+)", sidecar.host.run(["cat", f"/proc/{pid}/status"]).stdout, re.MULTILINE)
        )
        assert {told[kind] for kind in ("CapPrm", "CapEff", "CapBnd")} == {f"{mask:016x}"}
        assert told["NoNewPrivs"] == "1"
    assert sidecar.engine.try_docker("exec", sidecar.container, "touch", "/opt/docker-fw/new").returncode != 0
    server = ("sh", "-c", "httpd -p 9090; httpd -p 9091; exec httpd -f -p 8080")
    with sidecar.network() as net:
        app = sidecar.run(net, "--label", "fw.allow=8080", "-p", "81:8080", command=server)
        v4, v6 = sidecar.addresses(app, net)
        probe = sidecar.wan.probe.tcp
        for address in (v4, v6):
            until(lambda a=address: probe(a, 8080) == "open", "the labelled port answers")
            assert probe(address, 9090) == "silent"
        until(lambda: probe(sidecar.host.v4, 81) == "open", "the published port answers")
        sidecar.fwctl("allow", app, "9090")
        until(lambda: probe(v6, 9090) == "open", "the port that fwctl allows answers")
        assert probe(v6, 9091) == "silent"
        assert app in sidecar.fwctl("status")
