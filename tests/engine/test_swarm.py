"""Test swarm nodes: containers on overlays reach the outside through docker_gwbridge.

Their published ports are filtered. The kernel under test has no IPVS, so services are `dnsrr` and publish in host mode;
see `test_the_ingress_mesh_is_closed` for the rest.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.lab import Engine, Wan
from tests.lab.netns import Netns
from tests.product import DEEP, NEWEST, PLUGIN, Fw, with_plugin
from tests.waiting import until

Target = tuple[str, str, int]
#: The ports that containers serve: one of the base, one that a label opens or not, one that nothing opens.
PORTS = (80, 5432, 9999)
#: A container's own servers, for those that must be active as early as possible.
SERVERS = ("sh", "-c", "httpd -p 5432; exec httpd -f -p 80")
_numbers = itertools.count(1)
_host_ports = itertools.count(31000)


class Node(Fw):
    """A swarm node with docker-fw. Containers are identified by their full IDs here."""

    @classmethod
    def manage(cls, engine: Engine) -> Node:
        """Start the first node of a swarm, with an attachable overlay `over`."""
        node = cls(Fw.install(engine).engine)
        engine.docker("swarm", "init", "--advertise-addr", engine.host.v4)
        engine.docker("network", "create", "-d", "overlay", "--attachable", "over")
        return node

    @contextmanager
    def service(self, *options: str, command: Sequence[str] = ("sleep", "inf")) -> Iterator[str]:
        """Create a service of one task and yield its name.

        The service and its container are removed afterwards.
        """
        name = f"s{next(_numbers)}"
        self.engine.docker(
            "service",
            "create",
            "--detach",
            "--no-resolve-image",
            "--name",
            name,
            "--network",
            "over",
            "--endpoint-mode",
            "dnsrr",
            "--stop-grace-period",
            "0s",
            *options,
            "busybox",
            *command,
        )
        try:
            yield name
        finally:
            self.engine.docker("service", "rm", name)
            self.gone(name)

    def tasks(self, service: str, *options: str) -> list[str]:
        listed = self.engine.docker(
            "ps", "-q", "--no-trunc", *options, "--filter", f"label=com.docker.swarm.service.name={service}"
        )
        return listed.split()

    def task(self, service: str) -> str:
        """Return the container of a service's task."""
        until(lambda: self.tasks(service), f"{service} runs", 60)
        return self.tasks(service)[0]

    def gone(self, *services: str) -> None:
        """Wait until the tasks of these services are removed; swarm takes its time."""
        self.remove(*(task for service in services for task in self.tasks(service, "-a")))
        until(lambda: not any(self.tasks(service, "-a") for service in services), f"{services} are gone", 60)

    def start(self, *options: str) -> str:
        """Call `docker run` on the overlay."""
        return self.engine.inspect(self.run("over", *options))["Id"]  # type: ignore[no-any-return]

    def gateway(self, container: str) -> list[str]:
        """Return the container's addresses on docker_gwbridge."""
        listed = self.engine.api("GET", "/networks/docker_gwbridge")["Containers"][container]
        return [listed[key].partition("/")[0] for key in ("IPv4Address", "IPv6Address") if listed[key]]

    def ways(self, container: str, published: dict[int, int]) -> dict[int, list[Target]]:
        """Return every path from outside by container port: the host's addresses, and the container's own."""
        return {
            port: [("tcp", self.host.v4, on), ("tcp", self.host.v6, on)]
            + [("tcp", address, port) for address in self.gateway(container)]
            for port, on in published.items()
        }

    def obeys(self, container: str, published: dict[int, int], right: set[int]) -> None:
        """From outside the published ports of these container ports answer, and no others; for the host all do."""
        ways = self.ways(container, published)
        # Docker itself accepts no outsider at the container's own address, up to 27 only on unpublished ports.
        direct = None if int(self.engine.version.partition(".")[0]) < 28 else 2
        opened = {way for port in right for way in ways[port][:direct]}
        with self.engine.serve(container, tcp=PORTS):
            until(lambda: all(self.wan.probe.one(way).verdict == "open" for way in opened), f"{opened} answer")
            seen = self.wan.probe([way for each in ways.values() for way in each])
            assert {way for way, verdict in seen.items() if verdict == "open"} == opened
            assert {verdict for way, verdict in seen.items() if way not in opened} == {"silent"}
            inside = [("tcp", "127.0.0.1", on) for on in published.values()]
            assert set(self.host.probe([*seen, *inside]).values()) == {"open"}


def host_mode(*ports: int) -> tuple[list[str], dict[int, int]]:
    """Return options of a service that publish container ports in host mode, and the host's ports."""
    chosen = {port: next(_host_ports) for port in ports}
    return [f"--publish=mode=host,target={port},published={on}" for port, on in chosen.items()], chosen


def run_mode(*ports: int) -> tuple[list[str], dict[int, int]]:
    """Return the same for `docker run`."""
    chosen = {port: next(_host_ports) for port in ports}
    return [f"--publish={on}:{port}" for port, on in chosen.items()], chosen


@pytest.fixture(scope="module", params=DEEP)
def each(request: pytest.FixtureRequest) -> Iterator[Node]:
    """Yield a node of every engine, separate from the other tests' engine, because a swarm changes it."""
    with Engine(request.param, data=with_plugin(request.param)) as engine:
        yield Node.manage(engine)


def test_a_tasks_published_ports_obey(each: Node) -> None:
    """A service's host-mode port answers outside if the container's port is 80 or in the container's label.

    It answers on the host's IPv4 and IPv6. A service's label opens nothing. The host reaches all.
    """
    options, ports = host_mode(*PORTS)
    with each.service(*options, "--label", "fw.allow=5432") as plain:
        each.obeys(each.task(plain), ports, {80})
        options, more = host_mode(*PORTS)
        with each.service(*options, "--container-label", "fw.allow=5432") as label:
            each.obeys(each.task(label), more, {80, 5432})
            each.obeys(each.task(plain), ports, {80})


def test_a_container_on_an_attachable_overlay_obeys(each: Node) -> None:
    """`docker run --network overlay -p …` behaves like a task, from its start and again after a restart."""
    options, ports = run_mode(*PORTS)
    labels, more = run_mode(*PORTS)
    plain, label = each.start(*options), each.start(*labels, "--label", "fw.allow=5432")
    try:
        each.obeys(plain, ports, {80})
        each.obeys(label, more, {80, 5432})
        each.engine.docker("restart", "-t", "0", label, plain)
        each.obeys(plain, ports, {80})
        each.obeys(label, more, {80, 5432})
    finally:
        each.remove(plain, label)


def test_labels_of_a_stack(each: Node) -> None:
    """In a stack's file, `labels` of a service belong to the containers and count; `deploy.labels` do not."""
    chosen = {name: dict(zip(PORTS, _host_ports, strict=False)) for name in ("plain", "label")}
    services = {
        name: {
            "image": "busybox",
            "command": "sleep inf",
            "networks": ["over"],
            "stop_grace_period": "0s",
            "labels": {"fw.allow": "5432"} if name == "label" else {},
            "deploy": {"endpoint_mode": "dnsrr", "labels": {"fw.allow": "5432, 9999"}},
            "ports": [{"target": port, "published": on, "mode": "host"} for port, on in ports.items()],
        }
        for name, ports in chosen.items()
    }
    stack = {"version": "3.7", "services": services, "networks": {"over": {"external": True}}}
    each.host.write("/root/stack.json", json.dumps(stack))
    each.engine.docker("stack", "deploy", "--resolve-image", "never", "-c", "/root/stack.json", "shop")
    try:
        each.obeys(each.task("shop_plain"), chosen["plain"], {80})
        each.obeys(each.task("shop_label"), chosen["label"], {80, 5432})
    finally:
        each.engine.docker("stack", "rm", "shop")
        each.gone(*(f"shop_{name}" for name in chosen))


def test_a_closed_port_never_answers_while_tasks_come_and_go(each: Node) -> None:
    """No closed port answers by DNAT or docker-proxy, also on an address whose last owner had it open."""
    options, ports = host_mode(5432)
    targets = [("tcp", host, ports[5432]) for host in (each.host.v4, each.host.v6)]
    labels, opened = host_mode(5432)
    with each.wan.probe.hammer(*targets, every=0.004) as hammer:
        owners: set[str] = set()
        for _ in range(2):
            with each.service(*labels, "--container-label", "fw.allow=5432", command=SERVERS) as label:
                until(lambda: each.wan.probe.tcp(each.host.v6, opened[5432]) == "open", "the label opens")
                owners.add(*each.gateway(each.task(label)))
            with each.service(*options, command=SERVERS) as plain:
                until(lambda: each.host.probe.tcp(each.host.v6, ports[5432]) == "open", "the container's server")
                owners.add(*each.gateway(each.task(plain)))
    assert len(owners) == 1
    assert len(hammer.result.shots) > 100
    assert not hammer.result.opened


def test_a_closed_port_never_answers_while_dockerd_restarts(each: Node) -> None:
    """The old task's port does not answer, nor the new one's, which starts when the swarm is active again."""
    options, ports = host_mode(80, 5432)
    targets = [("tcp", host, ports[5432]) for host in (each.host.v4, each.host.v6)]
    with each.service(*options, command=SERVERS) as service:
        until(lambda: each.wan.probe.tcp(each.host.v6, ports[80]) == "open", "the task answers")
        task = each.task(service)
        with each.wan.probe.hammer(*targets, every=0.004) as hammer:
            each.engine.restart()
            until(lambda: each.tasks(service) not in ([], [task]), "a new task", 60)
            until(lambda: each.wan.probe.tcp(each.host.v6, ports[80]) == "open", "the new task answers", 60)
        assert len(hammer.result.shots) > 100
        assert not hammer.result.opened


def test_the_ingress_mesh_is_closed(each: Node) -> None:
    """A port that the mesh publishes leads to the ingress sandbox's address on docker_gwbridge.

    It is no container's address: the host reaches it, no outsider does, in the base or not. (An `nft` command that
    would open it serves as a proof.)
    """

    def inspected() -> str:
        return each.engine.try_docker("network", "inspect", "docker_gwbridge").stdout

    until(lambda: '"ingress-sbox":' in inspected(), "the sandbox is there")
    (address,) = each.gateway("ingress-sbox")
    # As moby's programIngressPortsRules; the traffic behind it needs IPVS.
    match = "-t nat PREROUTING -p tcp -m addrtype --dst-type LOCAL"
    rules = [f"{match} --dport {port} -j DNAT --to-destination {address}:{port}".split() for port in (80, 30000)]
    rules.append(["-t", "filter", "FORWARD", "-d", address, "-p", "tcp", "-j", "ACCEPT"])
    for table in rules:
        each.host.run(["iptables", *table[:2], "-I", *table[2:]])
    sandbox = Netns(f"{each.host.inside}/run/docker/netns/ingress_sbox")
    element = f"{{ {address} . tcp . 30000 }}"
    tried: list[Target] = [("tcp", each.host.v4, 80), ("tcp", each.host.v4, 30000)]
    try:
        with sandbox.probe.serve(tcp=[80, 30000]):
            assert list(each.wan.probe(tried).values()) == ["silent", "silent"]
            assert each.host.probe.tcp(address, 30000) == "open"
            each.engine.docker("plugin", "disable", "-f", PLUGIN)  # then the table has no owner
            each.host.run_outside(["nft", "add", "element", "inet", "docker-fw", "allow4", element])
            assert list(each.wan.probe(tried).values()) == ["silent", "open"]
            each.engine.docker("plugin", "enable", PLUGIN)
            until(lambda: list(each.wan.probe(tried).values()) == ["silent", "silent"], "closed again")
    finally:
        for table in rules:
            each.host.run(["iptables", *table[:2], "-D", *table[2:]])


def test_a_gwbridge_with_ipv6(engines: object) -> None:
    """If docker_gwbridge was created with IPv6, published ports use DNAT to IPv6 addresses: the same policy."""
    with Engine(NEWEST, data=with_plugin(NEWEST)) as engine:
        engine.docker(
            "network",
            "create",
            "--ipv6",
            "--subnet",
            "172.30.0.0/16",
            "--subnet",
            "2001:db8:30::/64",
            "-o",
            "com.docker.network.bridge.name=docker_gwbridge",
            "-o",
            "com.docker.network.bridge.enable_icc=false",
            "docker_gwbridge",
        )
        node = Node.manage(engine)
        options, ports = run_mode(*PORTS)
        labels, more = run_mode(*PORTS)
        plain, label = node.start(*options), node.start(*labels, "--label", "fw.allow=5432")
        assert len(node.gateway(label)) == 2
        node.obeys(plain, ports, {80})
        node.obeys(label, more, {80, 5432})


def test_two_nodes(engines: object) -> None:
    """Swarm's own ports are the host's and not affected: a node joins, and an overlay spans both and is flat.

    Each node's host-mode ports are filtered, from the other node and its containers too.
    """
    data = with_plugin(NEWEST)
    with Wan() as wan, Engine(NEWEST, wan=wan, data=data) as one, Engine(NEWEST, wan=wan, data=data) as two:
        first = Node.manage(one)
        second = Node(Fw.install(two).engine)
        assert wan.probe.tcp(one.host.v4, 2377) == wan.probe.tcp(one.host.v4, 7946) == "open"
        token = one.docker("swarm", "join-token", "-q", "worker").strip()
        two.docker("swarm", "join", "--token", token, f"{one.host.v4}:2377", timeout=60)
        until(lambda: one.docker("node", "ls").count("Ready") == 2, "two nodes", 60)
        options, ports = host_mode(*PORTS)
        with first.service("--mode", "global", *options, "--container-label", "fw.allow=5432") as service:
            here, there = first.task(service), second.task(service)
            first.obeys(here, ports, {80, 5432})
            second.obeys(there, ports, {80, 5432})
            with two.serve(there, tcp=PORTS):
                mate, theirs = one.netns(here).probe, two.address(there, "over")[0]
                until(lambda: mate.tcp(theirs, 9999) == "open", "the overlay spans both")
                by_host: list[Target] = [("tcp", two.host.v4, ports[p]) for p in (5432, 9999)]
                for probe in (mate, one.host.probe):
                    assert list(probe(by_host).values()) == ["open", "silent"]
