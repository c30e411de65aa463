"""Test that a start and a stop cost no more work than today: transactions, netlink messages, requests, flushes.

Work is counted, never timed. A number that falls is entered here, so that it does not rise again.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple

import pytest

from tests.bench.crowd import CrowdDocker, Simulated
from tests.kernel.running import Body, Running
from tests.kernel.site import Site
from tests.lab.netns import FORWARDING
from tests.recorded import PORTMAP
from tests.waiting import until

#: Threads in which libnetwork's calls are answered, and those that ask Docker for them.
_HOOKS = ("ThreadPoolExecutor", "look-up")
_NETWORK, _ENDPOINT = f"{5:012x}".ljust(64, "0"), 77
#: Identical starts and stops that are counted together.
_TIMES = 4


class Work(NamedTuple):
    """How much was done."""

    transactions: int = 0
    messages: int = 0
    requests: int = 0
    flushes: int = 0

    def exceeds(self, bound: Work) -> bool:
        return any(mine > most for mine, most in zip(self, bound, strict=True))


class Counting(Running):
    """docker-fw that counts, beside a simulated Docker."""

    command = (sys.executable, "-m", "gunicorn", "-c", "python:tests.kernel.counting")
    fake = CrowdDocker
    docker: CrowdDocker

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.counts = self.directory / "counts"
        self.environ["COUNTS"] = str(self.counts)
        self._read = 0

    def acts(self) -> Counter[tuple[str, str]]:
        """Return by thread and act how often each was done since the last call."""
        with self.counts.open() as lines:
            lines.seek(self._read)
            text = lines.read()
        self._read += len(text.encode())
        pairs = (line.split("\t") for line in text.splitlines())
        return Counter((thread, what) for thread, what in pairs)

    def work(self, *threads: str) -> Work:
        """Return the work of the threads whose names start so, since the last call."""
        return self.done(self.acts(), *threads)

    @staticmethod
    def done(acts: Counter[tuple[str, str]], *threads: str) -> Work:
        """Return the work of the threads whose names start so."""
        found: Counter[str] = Counter()
        for (thread, what), count in acts.items():
            found[what] += count if thread.startswith(threads) else 0
        return Work(*(found[what] for what in ("transaction", "netlink message", "request", "fsync")))


@pytest.fixture
def fw(site: Site) -> Iterator[Counting]:
    site.host.sysctl(FORWARDING)
    with closing(Counting(site)) as made:
        yield made.start()


def test_a_start_and_a_stop_on_a_docker_fw_network_do_no_more_work(fw: Counting) -> None:
    """Each of libnetwork's calls costs at most this much, with a port that a label opens and a published one.

    None of them waits for a flush to the disk.
    """
    network = fw.network(5)
    fw.docker.network(network["NetworkID"], "net", "fw:latest", "10.5.0.0/24", "2001:db8:5::/64")
    fw.well("CreateNetwork", network)
    container, calls = _container(fw, network)
    most = {
        "CreateEndpoint": Work(transactions=1, messages=4),
        "Join": Work(transactions=1, messages=11, requests=2),
        "ProgramExternalConnectivity": Work(transactions=1, messages=5),
        "RevokeExternalConnectivity": Work(transactions=1, messages=5),
        "Leave": Work(transactions=2, messages=11),
        "DeleteEndpoint": Work(transactions=1, messages=6),
    }
    found = {}
    for _ in range(2):  # the first loads modules, and asks about the image
        fw.docker.put(container)
        for name, body in calls.items():
            fw.acts()
            fw.well(name, body)
            found[name] = fw.work(*_HOOKS)
        fw.docker.drop(container)
    assert not {name: work for name, work in found.items() if work.exceeds(most[name])}


def _container(fw: Counting, network: Body) -> tuple[Simulated, dict[str, Any]]:
    container = Simulated(
        _ENDPOINT, {"fw.allow": "8080"}, network["NetworkID"], "net", "10.5.0.7", "2001:db8:5::7", sandbox=False
    )
    body = {**fw.endpoint(network, 7), "EndpointID": container.endpoint}
    published = {**body, "Options": {PORTMAP: [{"Proto": 6, "Port": 8080, "HostPort": 18080}]}}
    calls = dict.fromkeys(("CreateEndpoint", "Join"), body) | {"ProgramExternalConnectivity": published}
    return container, calls | dict.fromkeys(("RevokeExternalConnectivity", "Leave", "DeleteEndpoint"), body)


def test_a_start_and_a_stop_on_a_docker_network_do_no_more_work(fw: Counting) -> None:
    """Docker's events cost at most this much: those of one start and one stop, in the threads that handle events.

    None of these waits for a flush to the disk.
    """
    fw.docker.network("d" * 64, "net", "bridge", "10.6.0.0/24", "2001:db8:6::/64")
    fw.docker.report("network", "create", "d" * 64, name="net", type="bridge")
    container = Simulated(_ENDPOINT, {"fw.allow": "8080"}, "d" * 64, "net", "10.6.0.7", "2001:db8:6::7")
    most = {
        ("listen",): Work(transactions=2, messages=8),
        ("host_loop",): Work(transactions=1, messages=14),
        # The answer that is the later one ends what was closed until both are there.
        ("place_loop", "inspection"): Work(transactions=2, messages=10, requests=7),
    }
    _start_and_stop(fw, container)
    acts = fw.acts()
    for _ in range(_TIMES):  # the late work of one is counted with the next
        _start_and_stop(fw, container)
    acts = fw.acts()
    assert not [thread for thread, what in acts if what == "netfilter socket"], (
        "to close one delays the closing of containers"
    )
    for threads, work in most.items():
        found = Counting.done(acts, *threads)
        bound = Work(*(_TIMES * each for each in work))
        assert not found.exceeds(bound), f"{threads}, {_TIMES} times: {found}, at most {bound}"


def _start_and_stop(fw: Counting, container: Simulated) -> None:
    docker = fw.docker
    container.state, container.sandbox = "created", False
    docker.inspected.clear()
    docker.put(container, attached=False)
    docker.report("container", "create", container.id, name=container.name)
    until(lambda: container.id in docker.inspected, "docker-fw has inspected it")
    docker.put(container)
    place = {"container": container.id, "name": "net", "type": "bridge"}
    docker.report("network", "connect", container.network, **place)
    until(lambda: "8080/6" in fw.opens(container.addr4), "it is open")
    container.state, container.sandbox = "running", True
    asked = len(docker.asked)
    docker.put(container)
    docker.report("container", "start", container.id, name=container.name)
    until(lambda: len(docker.asked) > asked, "docker-fw asks for it")
    container.state = "exited"
    docker.put(container, attached=False)
    docker.members[container.network].clear()
    docker.report("container", "die", container.id, name=container.name)
    until(lambda: not fw.opens(container.addr4), "it is closed")
    docker.report("network", "disconnect", container.network, **place)
    docker.drop(container)
    docker.report("container", "destroy", container.id, name=container.name)
