"""No call of libnetwork and no event of Docker does more work beside a thousand endpoints than beside ten.

The work is the number of bytecodes that Python executes: it is the same in each run, and time is not. It is counted on
the network where all endpoints are. Copies of dicts by the interpreter do not count: 10,000 entries take 0.02 ms.
"""

from __future__ import annotations

import gc
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from plugin.docker.bridges import Bridges
from plugin.docker.follower import DockerFollower
from plugin.docker.parse import Event
from plugin.docker.proxy_ports import ProxyPorts
from plugin.docker.tracker import EndpointTracker
from plugin.driver import driver
from plugin.driver.driver import Driver
from plugin.driver.host_ports import HostPorts
from plugin.kernel.link_monitor import Link
from plugin.kernel.sock_diag import Listeners
from plugin.labels.parser import parse
from plugin.model import BridgeNetwork, Container, Defaults, Endpoint, Network, Published, RequestedPorts, Rule
from plugin.policy import frozen
from plugin.policy.facts import Facts
from plugin.policy.saved import SavedState
from plugin.state.reconciler import Reconciler
from plugin.state.store import Store
from tests.pure.fakes import Kernel, NoLinks, cut_no_flows

OURS = Network("f" * 64, "fw-ffffffffffff", IPv4Interface("10.1.0.1/16"), IPv6Interface("2001:db8:1::1/64"))
THEIRS = BridgeNetwork("a" * 64, "app", "br-app", (IPv4Network("172.18.0.0/16"), IPv6Network("2001:db8:a::/64")))
LATER = BridgeNetwork("b" * 64, "later", "br-later", (IPv4Network("172.19.0.0/16"),))
ANY = IPv4Address(0)
Step = tuple[str, Callable[[], object]]


def container(name: str) -> Container:
    labels = parse({"fw.allow": "8080, 5432 from service:api"})
    return Container(name.rjust(64, "c"), name, labels.spec, project=f"of-{name}", service=f"of-{name}")


def ours(number: int) -> Endpoint:
    where = replace(place(number, OURS.id, *OURS.subnets), mac=f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}")
    return replace(where, id=f"{number:064x}", container=container(f"ours{number}"))


def theirs(number: int, network: BridgeNetwork = THEIRS) -> Endpoint:
    port = Published("tcp", ANY, 1024 + number, 80)
    where = replace(place(number, network.id, *network.subnets), published=(port,))
    return replace(where, id=f"{network.id[0]}{number:063x}", container=container(f"theirs{number}"))


def place(number: int, network: str, four: Any, six: Any = None) -> Endpoint:
    return Endpoint("", network, four[number], six[number] if six else None, joined=True)


def requests(number: int) -> tuple[RequestedPorts, ...]:
    return (RequestedPorts("tcp", ANY, 1024 + number, 1024 + number),)


class Host:
    """A driver and a follower beside so many endpoints on each of two networks. Docker answers at once."""

    def __init__(self, directory: Path, many: int) -> None:
        numbers = range(16, 16 + many)
        guests = {each: theirs(each) for each in numbers}
        asked = {who.id: requests(each) for each in numbers if (who := guests[each].container)}
        state = SavedState({OURS.id: OURS}, {e.id: e for e in map(ours, numbers)}, asked=asked)
        self.state = Reconciler(Kernel(), Store(str(directory / f"state{many}")), Defaults(), later=lambda _: None)  # type: ignore[arg-type]
        self.state.start(Facts(state))
        none: Any = NoLinks()
        self.driver = Driver(self.state, none, none, HostPorts(), self)
        self.tracker = EndpointTracker(self.state)
        self.tracker.replace([THEIRS], guests.values(), asked.keys(), asked=self.tracker.now())
        bridges = Bridges(set)
        bridges.see([Link(7, "br-app", bridge=True)])
        self.proxies = ProxyPorts(self.state, Listeners(set), [Rule("tcp", 2375, 2377)])
        self.follower = DockerFollower(self, self.state, self.tracker, bridges, self.proxies, lambda: None)  # type: ignore[arg-type]
        self.there: list[tuple[BridgeNetwork, Endpoint]] = []
        self.state.put_endpoint(ours(4000))  # the first save writes all

    # Docker's API
    def find(self, _: str, endpoint_id: str) -> Container:
        return container(f"found{endpoint_id[-3:]}")

    def guest(self, network: str, who: str) -> tuple[BridgeNetwork, Endpoint, bool] | None:
        return next(
            ((n, e, True) for n, e in self.there if n.id == network and e.container and e.container.id == who), None
        )

    def running(self, who: str) -> list[Endpoint]:
        return [e for _, e in self.there if e.container and e.container.id == who]

    def created(self, who: str, _: str) -> None:
        self.proxies.asks(who, requests(5000))

    def two_names(self) -> bool:
        return False

    # what is measured
    def calls(self, number: int) -> Iterator[Step]:
        """Yield the calls of a start and a stop; the container published a port."""
        keys, new = {"NetworkID": OURS.id, "EndpointID": f"{number:064x}"}, ours(number)
        interface = {"Address": f"{new.addr4}/16", "AddressIPv6": f"{new.addr6}/64"}
        port = {"Proto": 6, "Port": 80, "HostIP": "127.0.0.1", "HostPort": 0, "HostPortEnd": 0}
        options = {"com.docker.network.portmap": [port]}
        yield "CreateEndpoint", lambda: self.driver.create_endpoint({**keys, "Interface": interface, "Options": {}})
        yield "Join", lambda: self.driver.join({**keys, "SandboxKey": "", "Options": {}})
        yield "EndpointOperInfo", lambda: self.driver.endpoint_info(keys)
        yield "Program", lambda: self.driver.program_external_connectivity({**keys, "Options": options})
        yield "Revoke", lambda: self.driver.revoke_external_connectivity(keys)
        yield "Leave", lambda: self.driver.leave(keys)
        yield "DeleteEndpoint", lambda: self.driver.delete_endpoint(keys)

    def networks(self, number: int) -> Iterator[Step]:
        """Yield the calls that add and remove a network of docker-fw."""
        keys = {"NetworkID": f"{number:064x}"}
        data = {"Options": {}, "IPv4Data": [{"Gateway": "10.2.0.1/24"}], "IPv6Data": []}
        yield "CreateNetwork", lambda: self.driver.create_network({**keys, **data})
        yield "DeleteNetwork", lambda: self.driver.delete_network(keys)

    def events(self, number: int) -> Iterator[Step]:
        """Yield the events of a container on a Docker network, which publishes a port."""
        new = theirs(number)
        who = new.container.id if new.container else ""
        self.there = [(THEIRS, new)]
        yield "create", self.emit("container create", who)
        for end in ("die", "disconnect"):
            yield f"connect ({end})", self.emit("network connect", THEIRS.id, who)
            yield f"start ({end})", self.emit("container start", who)
            yield f"look-up ({end})", self.look_up
            yield (
                end,
                self.emit("container die", who) if end == "die" else self.emit("network disconnect", THEIRS.id, who),
            )
        yield "destroy", self.emit("container destroy", who)

    def docker_networks(self, number: int) -> Iterator[Step]:
        """Yield the events of a new Docker network, with a container, that is removed."""
        new = theirs(number, LATER)
        who = new.container.id if new.container else ""
        self.there = [(LATER, new)]
        yield "network create", self.emit("network create", LATER.id)
        yield "connect (new network)", self.emit("network connect", LATER.id, who)
        yield "look-up (new network)", self.look_up
        yield "network destroy", self.emit("network destroy", LATER.id)

    def emit(self, what: str, subject: str, who: str = "") -> Callable[[], object]:
        def handle() -> None:
            self.follower._on_event(Event(what, subject, who, "bridge"))
            waiting = self.follower._host._waiting
            while waiting:
                waiting.popleft()()

        return handle

    def look_up(self) -> None:
        places, self.follower._places = self.follower._places, {}
        started, self.follower._started = self.follower._started, {}
        assert places or started
        self.follower._look_up(places, started)


def executed(do: Callable[[], object]) -> int:
    """Return how many bytecodes it executes."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    gc.disable()  # a finalizer is no part of it
    sys.settrace(trace)
    try:
        do()
    finally:
        sys.settrace(before)
        gc.enable()
    return count


def work(host: Host, compared: list[object]) -> dict[str, tuple[int, int]]:
    """Return the work of each step, and how many times it compares all endpoints.

    Caches are filled before, by one round of the same steps.
    """
    numbers = itertools.count(3000)
    found: dict[str, tuple[int, int]] = {}
    for steps in (host.calls, host.networks, host.events, host.docker_networks):
        for _ in range(2):
            for name, do in steps(next(numbers)):
                compared.clear()
                found[name] = executed(do), len(compared)
    return found


def test_no_work_grows_with_the_number_of_endpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call and event executes as much beside 1,000 endpoints as beside 10.

    None compares all endpoints, in which no bytecode is executed, but those that write the whole state file.
    """
    cut_no_flows(monkeypatch)
    for each in ("exists", "lives"):
        monkeypatch.setattr(driver, each, lambda _: True)
    compared: list[object] = []

    def comparing(*each: Any) -> Iterator[Any]:
        compared.append(each)
        return compress(*each)

    compress = frozen.compress
    monkeypatch.setattr(frozen, "compress", comparing)
    few, many = (work(Host(tmp_path, many), compared) for many in (10, 1000))
    assert few == many
    assert {step for step, (_, compares) in few.items() if compares} <= {"CreateNetwork", "DeleteNetwork"}
