"""Test a swarm of two machines, with the kernel's IPVS: the README's section "Swarm", from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.lab import Wan
from tests.lab.probe import Target
from tests.lab.store import say
from tests.vm import Machine
from tests.vm.fire import tcp
from tests.vm.product import MachineFw, installed
from tests.waiting import until

#: Minutes of emulated work: more than other tests have.
pytestmark = pytest.mark.timeout(1200)
#: The service's tasks serve 80, 8080 and 9090; their label opens 8080.
SERVERS = ("busybox", "sh", "-c", "httpd -p 80; httpd -p 9090; exec httpd -f -p 8080")
LABEL = ("--container-label", "fw.allow=8080", "--no-resolve-image", "--detach", "--stop-grace-period", "0s")
#: Published through the mesh: a port of the base, one that the label opens, and one that nothing opens.
MESH = ("80:80", "8080:8080", "9090:9090")
IN_HOST_MODE = {80: 18080, 8080: 18088, 9090: 19090}


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[MachineFw, MachineFw]]:
    """Yield two nodes of a swarm, with docker-fw on each."""
    with Wan() as wan, Machine(wan=wan, state=installed()) as one, Machine(wan=wan, state=installed()) as two:
        one.docker("swarm", "init", "--advertise-addr", one.v4)
        token = one.docker("swarm", "join-token", "-q", "worker")
        two.docker("swarm", "join", "--token", token, "--advertise-addr", two.v4, f"{one.v4}:2377")
        one.docker("network", "create", "-d", "overlay", "over")
        yield MachineFw(one), MachineFw(two)


def run_on_both(node: MachineFw, name: str, *options: str) -> None:
    """Create a service on the first node, and wait until each node runs a task of it."""
    node.vm.docker(
        "service", "create", "--name", name, "--mode", "global", "--network", "over", *LABEL, *options, *SERVERS
    )
    listed = ("service", "ps", name, "--filter", "desired-state=running", "--format", "{{.Node}} {{.CurrentState}}")
    until(lambda: node.vm.docker(*listed).count("Running") == 2, f"{name} runs on both nodes", 180)


def answers(node: MachineFw, address: str, port: int) -> Callable[[], bool]:
    """Return a check: does the machine itself reach this?"""
    connect = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)"
    command = ["python3", "-ISc", connect, address, str(port)]
    return lambda: node.vm.run(command, check=False).returncode == 0


def test_what_the_readme_says_of_a_swarm(nodes: tuple[MachineFw, MachineFw]) -> None:
    """The mesh is closed from outside, also on 80 and with a label, on every node; ports in host mode obey the labels.

    The mesh itself works: each node reaches its own ports, balanced by IPVS over the tasks of both. Containers of one
    overlay reach each other across nodes. Without docker-fw's table on the second node the mesh is open there, and
    leads to the tasks on both: so it is docker-fw that closes it, and on the first node it stays closed.
    """
    one, two = nodes
    run_on_both(one, "mesh", *(word for port in MESH for word in ("--publish", port)))
    published = (f"mode=host,target={port},published={on}" for port, on in IN_HOST_MODE.items())
    run_on_both(one, "proxy", *(word for port in published for word in ("--publish", port)))
    through_mesh: list[Target] = [t for fw in nodes for t in tcp((fw.vm.v4, fw.vm.v6), 80, 8080, 9090)]
    in_host_mode: list[Target] = [t for fw in nodes for t in tcp((fw.vm.v4, fw.vm.v6), *IN_HOST_MODE.values())]
    opened = {target for target in in_host_mode if target[2] != 19090}  # type: ignore[misc]
    with one.wan.probe.hammer(*through_mesh, every=0.01) as never:
        for fw in nodes:
            for port in (80, 8080, 9090):
                until(answers(fw, fw.vm.v4, port), f"the mesh answers {fw.vm.v4} itself on {port}", 120)
        ipvs = "nsenter --net=/run/docker/netns/ingress_sbox cat /proc/net/ip_vs"
        assert one.vm.run(["sh", "-c", ipvs]).stdout.count("Masq") >= 2
        until(lambda: reached(one, in_host_mode) == opened, "ports in host mode answer", 120)
        assert not reached(one, through_mesh)
        proxy = task(two, "proxy")
        for _ in range(4):  # IPVS takes the tasks in turn
            fetch = ("exec", "-i", proxy, "nc", "-w", "20", virtual_address(one, "mesh"), "9090")
            assert "404" in two.vm.try_docker(*fetch, input="GET /nothing HTTP/1.0\r\n\r\n").stdout
        assert not answers(two, one.vm.v4, 8080)()
    assert not never.result.opened
    say(f"{len(never.result.shots)} probes of the mesh on two nodes, none answered")
    two.vm.docker("plugin", "disable", "-f", two.driver)
    two.vm.run(["nft", "delete", "table", "inet", "docker-fw"])
    mine = tcp((two.vm.v4,), 80, 8080, 9090)
    until(lambda: reached(one, mine) == {*mine}, "without docker-fw the mesh is open", 60)
    assert not reached(one, tcp((one.vm.v4, one.vm.v6), 80, 8080, 9090))


def reached(fw: MachineFw, targets: list[Target]) -> set[Target]:
    """Return what of this an outsider reaches."""
    return {target for target, verdict in fw.wan.probe(targets, timeout=3).items() if verdict == "open"}


def task(fw: MachineFw, service: str) -> str:
    """Return the container of a service's task on this node."""
    return fw.vm.docker("ps", "-q", "--filter", f"label=com.docker.swarm.service.name={service}").split()[0]


def virtual_address(manager: MachineFw, service: str) -> str:
    """Return a service's address on the overlay."""
    (over,) = (each["Id"] for each in manager.vm.api("GET", "/networks") if each["Name"] == "over")
    addresses = manager.vm.api("GET", f"/services/{service}")["Endpoint"]["VirtualIPs"]
    (address,) = (each["Addr"].partition("/")[0] for each in addresses if each["NetworkID"] == over)
    return str(address)
