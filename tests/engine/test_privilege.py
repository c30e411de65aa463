"""Test that docker-fw has only the rights on the host that SECURITY.md lists, and that they suffice for its work."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents import rows
from tests.engine.sidecar import UP
from tests.engine.sidecar import Sidecar as Started
from tests.lab import Engine
from tests.product import NEWEST, ROOT, with_image
from tests.readonly import ReadOnly
from tests.waiting import until

ROUTED = "com.docker.network.bridge.gateway_mode_ipv6=routed"
CALLS = [cells[1].strip("`") for cells in rows("SECURITY.md", "method")]
BEHIND = "FW_DOCKER_SOCKET: /host/run/read-only.sock\n"
#: Linux's numbers of the capabilities that these tests name (linux/capability.h).
NUMBERS = {"NET_BIND_SERVICE": 10, "NET_ADMIN": 12, "NET_RAW": 13}


class Sidecar(Started):
    proxy: ReadOnly


@pytest.fixture(scope="module", params=[NEWEST])
def sidecar(request: pytest.FixtureRequest) -> Iterator[Sidecar]:
    """Yield a sidecar behind a proxy of Docker's socket, which passes only the calls that SECURITY.md lists."""
    with Engine(request.param, data=with_image(request.param)) as engine:
        made = Sidecar.up(engine)
        with ReadOnly(engine.host.inside / "run/read-only.sock", Path(engine.socket), CALLS) as proxy:
            file = engine.host.share / "sidecar.yml"
            file.write_text(file.read_text().replace("    environment:\n", "    environment:\n      " + BEHIND, 1))
            made.user(UP)
            until(made.answers, "the sidecar answers")
            made.proxy = proxy
            yield made


def test_the_sidecar_has_three_capabilities_and_does_its_work(sidecar: Sidecar) -> None:
    """Every process of the sidecar has the capabilities that SECURITY.md names, and no program it starts gains more.

    It cannot write to its own image. A container on network `fw` is opened by its label and by `fwctl allow`, and its
    host port below 1024 answers.
    """
    named = re.findall(r"^\| `CAP_(\w+)` \|", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    mask = sum(1 << NUMBERS[name] for name in named)
    pids = sidecar.engine.docker("top", sidecar.container, "-eo", "pid").split()[1:]
    assert len(pids) >= 2
    for pid in pids:
        rights = dict(
            re.findall(r"^(\w+):\s+(\S+)", sidecar.host.run(["cat", f"/proc/{pid}/status"]).stdout, re.MULTILINE)
        )
        assert {rights[kind] for kind in ("CapPrm", "CapEff", "CapBnd")} == {f"{mask:016x}"}
        assert rights["NoNewPrivs"] == "1"
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


def test_with_a_read_only_proxy_before_docker_every_promise_is_kept(sidecar: Sidecar) -> None:
    """With only the calls of SECURITY.md's table, labels open on Docker networks and on the driver's.

    Removed containers are closed. Each call of the table was made, except the one for Docker 29 only, and no others.
    """
    engine, probe = sidecar.engine, sidecar.wan.probe.tcp
    server = ("sh", "-c", "httpd -p 9090; exec httpd -f -p 8080")
    with sidecar.network() as own, sidecar.network("-o", ROUTED, driver="bridge") as net:
        app = sidecar.run(net, "--label", "fw.allow=8080", command=server)
        mine = sidecar.run(own, "--label", "fw.allow=8080", command=server)
        at = sidecar.addresses(app, net)[1], sidecar.addresses(mine, own)[1]
        for address in at:
            until(lambda a=address: probe(a, 8080) == "open", "the labelled port answers")
            assert probe(address, 9090) == "silent"
        sidecar.remove(app, mine)
        assert [probe(address, 8080) for address in at] == ["silent", "silent"]
    assert sidecar.proxy.refused == []
    assert sidecar.proxy.passed == set(CALLS) - {"/info"}
    # The proxy restricts: a client of its socket can change nothing.
    assert engine.try_docker("-H", "unix:///run/read-only.sock", "network", "create", "other").returncode != 0
    assert sidecar.proxy.refused
