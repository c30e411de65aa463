"""Test docker-fw on real kernels: installed as the README says, it closes what it promises to close."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.product import BASE
from tests.vm import SYSTEMS, Machine
from tests.vm.product import MachineFw, installed

CLOSED = (21, 25, 3306, 5432, 8080, 9090)


@pytest.fixture(scope="module", params=SYSTEMS)
def fw(request: pytest.FixtureRequest) -> Iterator[MachineFw]:
    """Yield each system with docker-fw installed."""
    with Machine(state=installed(request.param)) as vm:
        yield MachineFw(vm)


def test_a_container_answers_on_the_base_and_ping_and_nothing_else(fw: MachineFw) -> None:
    """Without configuration an outsider reaches TCP 22, 80, 443 and ping on both addresses; the rest is silence."""
    with fw.network() as net:
        web = fw.run(net)
        with fw.vm.serve(web, tcp=[*BASE, *CLOSED], udp=[53, 443]):
            addresses = fw.addresses(web, net)
            assert len(addresses) == 2
            seen = fw.wan.probe(
                [("tcp", a, p) for a in addresses for p in (*BASE, *CLOSED)]
                + [("udp", a, p) for a in addresses for p in (53, 443)]
                + [("ping", a) for a in addresses],
                timeout=3,
            )
    wrong = {
        target: verdict
        for target, verdict in seen.items()
        if verdict != ("open" if target[0] == "ping" or (target[0] == "tcp" and target[2] in BASE) else "silent")
    }
    assert not wrong


def test_a_label_opens_its_port_on_its_container_only(fw: MachineFw) -> None:
    """`fw.allow=8080` opens 8080 there, on both addresses; a neighbour and the next port stay closed."""
    with fw.network() as net:
        app, plain = fw.run(net, "--label", "fw.allow=8080"), fw.run(net)
        with fw.vm.serve(app, tcp=[80, 8080, 9090]), fw.vm.serve(plain, tcp=[80, 8080, 9090]):
            for container, verdicts in ((app, ["open", "open", "silent"]), (plain, ["open", "silent", "silent"])):
                for address in fw.addresses(container, net):
                    seen = fw.wan.probe([("tcp", address, port) for port in (80, 8080, 9090)], timeout=3)
                    assert list(seen.values()) == verdicts, (container, address)


def test_published_ports_of_a_docker_network_obey(fw: MachineFw) -> None:
    """On Docker's own bridge `-p` opens the base ports and those of labels; others are closed, on IPv4 and IPv6.

    Docker 20.10.5 publishes on IPv4 only, and nothing listens on IPv6.
    """
    ports = ("-p", "18080:80", "-p", "18081:8080", "-p", "19090:9090")
    app = fw.run("bridge", *ports, "--label", "fw.allow=8080")
    try:
        with fw.vm.serve(app, tcp=[80, 8080, 9090]):
            for host in (fw.vm.v4, fw.vm.v6):
                seen = fw.wan.probe([("tcp", host, port) for port in (18080, 18081, 19090)], timeout=3)
                absent = ":" in host and fw.vm.state.disk.versions()["docker"].startswith("20.10.5")
                assert list(seen.values())[:2] == ["refused" if absent else "open"] * 2, host
                assert list(seen.values())[2] != "open", host
    finally:
        fw.remove(app)
