"""A host port counts as docker-proxy's until it is known to belong to a program of the host."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.docker.client import DockerApi
from plugin.docker.proxy_ports import ProxyPorts, before, own_ports, passing
from plugin.docker.requested_ports import MOST, requested
from plugin.docker.snapshot import DockerSnapshot
from plugin.kernel.sock_diag import PATIENCE, Listener, Listeners
from plugin.model import Address, Defaults, Published, RequestedPorts, Rule
from plugin.policy.facts import Facts, ProxyFacts
from plugin.policy.saved import SavedState
from plugin.state import codec
from plugin.state.reconciler import Reconciler
from plugin.state.store import _plain
from tests.kernel.fakedocker import FakeDocker
from tests.pure.fakes import Disk, Kernel

ANY4, ANY6, ONE = IPv4Address(0), IPv6Address(0), IPv4Address("192.0.2.1")
UNIDENTIFIED, KNOWN = ProxyFacts(holding=True), ProxyFacts(frozenset({7}))


def tcp(port: int, host: Address = ANY4) -> Published:
    return Published("tcp", host, port, port)


def inspected(bindings: Any = None, **config: Any) -> dict[str, Any]:
    return {"HostConfig": {"PortBindings": bindings, **config}}


# --- the ports that a container requests ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "right"),
    [
        (inspected(), []),
        (
            inspected({"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}),
            [RequestedPorts("tcp", ANY4, 8080, 8080), RequestedPorts("tcp", ANY6, 8080, 8080)],
        ),
        (
            inspected({"80/udp": [{"HostIp": "192.0.2.1", "HostPort": "53"}, {"HostIp": "", "HostPort": ""}]}),
            [RequestedPorts("udp", ANY4, 0, 0), RequestedPorts("udp", ONE, 53, 53)],
        ),
        (
            inspected({"80/tcp": [{"HostIp": "192.0.2.1", "HostPort": "8000-8009"}]}),
            [RequestedPorts("tcp", ONE, 8000, 8009)],
        ),
        (inspected({"80/tcp": None}), [RequestedPorts("tcp", ANY4, 0, 0)]),
        (
            inspected({f"{n}/tcp": [{"HostIp": "192.0.2.1", "HostPort": str(n)}] for n in range(1000, 3000)}),
            [RequestedPorts("tcp", ONE, 1000, 2999)],
        ),
        (inspected({}, PublishAllPorts=True), [RequestedPorts(proto, ANY4, 0, 0) for proto in ("sctp", "tcp", "udp")]),
        (inspected({"80/tcp": [{"HostPort": "80"}]}, NetworkMode="host"), []),
    ],
)
def test_the_ports_that_a_container_requests(raw: Any, right: list[RequestedPorts]) -> None:
    """Fixed ports, on all addresses or one; ranges, and many consecutive ports as one; 0 where Docker chooses."""
    assert sorted(requested(raw), key=str) == sorted(right, key=str)
    assert tuple(codec.requested_ports(_plain(each)) for each in requested(raw)) == requested(raw)


def test_a_port_of_a_mapped_address_is_one_of_the_ipv4_address() -> None:
    """`-p [::ffff:192.0.2.1]:443:80` makes docker-proxy listen on 192.0.2.1, which is not a program of the host's."""
    for written, listens in (("::ffff:192.0.2.1", "192.0.2.1"), ("::ffff:0.0.0.0", "0.0.0.0")):
        wanted = requested(inspected({"80/tcp": [{"HostIp": written, "HostPort": "443"}]}))
        port = Published("tcp", IPv4Address(listens), 443, 443)
        assert any(each.may_be(port) for each in wanted)


def test_many_requested_ports_count_as_all() -> None:
    """The amount that is stored for one container is bounded."""
    wanted = requested(
        inspected({f"{n}/tcp": [{"HostIp": "192.0.2.1", "HostPort": str(n)}] for n in range(1, 3000, 2)})
    )
    assert len(wanted) <= MOST
    assert all(any(each.may_be(tcp(n, host)) for each in wanted) for n in (2, 65535) for host in (ANY4, ANY6, ONE))


@pytest.mark.parametrize("text", ["x", "70000", "9-1", "-1", "1-2-3", "８０"])
def test_a_value_that_is_no_port_is_refused(text: str) -> None:
    """The container's ports are unknown then, and no port is taken for the host's own."""
    with pytest.raises(ValueError, match="HostPort"):
        requested(inspected({"80/tcp": [{"HostIp": "", "HostPort": text}]}))


hosts = st.sampled_from([ANY4, ANY6, ONE, IPv4Address("192.0.2.2"), IPv6Address("2001:db8::1")])


@given(hosts, hosts, st.integers(1, 5), st.integers(1, 5))
def test_a_listener_that_may_be_a_containers_proxy(asks: Address, listens: Address, wanted: int, port: int) -> None:
    """A listener may be the proxy of the same port on the same address, or if one of the two is on all addresses of the
    family."""
    right = (
        wanted == port
        and asks.version == listens.version
        and (asks == listens or asks.is_unspecified or listens.is_unspecified)
    )
    assert RequestedPorts("tcp", asks, wanted, wanted).may_be(tcp(port, listens)) is right
    assert not RequestedPorts("udp", asks, wanted, wanted).may_be(tcp(port, listens))


# --- the owner of a listener ------------------------------------------------------------------------------------------


class Host:
    """The host's sockets, and a clock."""

    def __init__(self) -> None:
        self.sockets: set[Listener] = set()
        self.time = 10.0
        self.number = 0

    def listens(self, port: Published, *, root: bool = True) -> Listener:
        self.number += 1
        found = Listener(self.number, port, root)
        self.sockets.add(found)
        return found

    def listeners(self, **more: Any) -> Listeners:
        return Listeners(lambda: set(self.sockets), clock=lambda: self.time, **more)


@pytest.fixture
def host() -> Host:
    return Host()


def ports(found: Iterable[Published]) -> set[int]:
    return {port.host_port for port in found}


def test_a_listener_from_before_is_the_hosts(host: Host) -> None:
    """A listener that existed before belongs to the host, except on ports that a container is known to request, and on
    those from which Docker chooses, if root has them."""
    for port in (22, 8080, 40000):
        host.listens(tcp(port))
    host.listens(tcp(40001), root=False)
    assert ports(host.listeners(asked=[RequestedPorts("tcp", ANY4, 8080, 8080)]).poll()) == {22, 40001}
    assert ports(host.listeners(known=[tcp(8080)]).poll()) == {8080, 40001}


def test_a_new_listener_is_quarantined_until_docker_answers(host: Host) -> None:
    """An answer that was requested earlier, or that lacks some container, does not decide about a listener."""
    listeners = host.listeners()
    assert listeners.poll() == frozenset()
    host.listens(tcp(8080))
    assert not listeners.poll()
    assert listeners.waiting()
    listeners.judge(host.time, (), (), known=True)
    assert not listeners.poll(), "asked at the same moment"
    host.time += 1
    listeners.judge(host.time, (), (), known=False)
    assert not listeners.poll()
    assert listeners.held() == [tcp(8080)]
    assert not listeners.waiting()
    listeners.judge(host.time, (), (), known=True)
    assert ports(listeners.poll()) == {8080}
    assert listeners.held() == []


def test_a_program_of_another_user_is_no_docker_proxy(host: Host) -> None:
    """A program of another user counts as the host's as soon as it is seen."""
    listeners = host.listeners()
    listeners.poll()
    host.listens(tcp(5432), root=False)
    assert ports(listeners.poll()) == {5432}


@pytest.mark.parametrize("who", ["runs", "asks", "chooses"])
def test_a_containers_port_is_never_the_hosts(host: Host, who: str) -> None:
    """A port that a running container has, or that some container requests; and while Docker chooses one for some
    container, every port of the range from which it chooses."""
    listeners = host.listeners()
    listeners.poll()
    host.listens(tcp(40000))
    listeners.poll()
    host.time += 1
    running = [tcp(40000)] if who == "runs" else []
    wanted = [RequestedPorts("tcp", ANY4, *{"asks": (40000, 40000), "chooses": (0, 0), "runs": (1, 1)}[who])]
    listeners.judge(host.time, running, wanted, known=True)
    assert not listeners.poll()
    assert listeners.held() == ([tcp(40000)] if who == "chooses" else [])


def test_a_listener_on_a_running_containers_port_is_docker_proxys(host: Host) -> None:
    """A listener from before docker-fw's start on a port of a running container is docker-proxy's; Docker is not asked
    again for it."""
    host.listens(tcp(8080))
    host.listens(tcp(22))
    listeners = host.listeners()
    assert ports(listeners.poll()) == {22, 8080}
    listeners.judge(host.time, [tcp(8080)], (), known=True)
    assert ports(listeners.poll()) == {22}
    assert not listeners.waiting()


def test_a_program_that_shares_a_port_of_the_host_is_the_hosts(host: Host) -> None:
    """A server that starts more workers (SO_REUSEPORT) and ends the first: programs share a port only by agreement."""
    first = host.listens(tcp(80))
    listeners = host.listeners()
    listeners.poll()
    host.listens(tcp(80))
    listeners.poll()
    host.sockets.discard(first)
    assert ports(listeners.poll()) == {80}
    host.sockets.clear()
    host.listens(tcp(80))
    assert not listeners.poll(), "another program's, after all"


def test_a_restarted_program_keeps_its_port(host: Host) -> None:
    """A program of the host that is restarted is reachable again after a moment, on a port that Docker's last list left
    to the host; not while the ports of a new container are unknown, nor if a container requests the port."""
    for port in (22, 80):
        host.listens(tcp(port))
    listeners = host.listeners()
    listeners.poll()

    def again(*wanted: RequestedPorts, missed_events: bool = False) -> set[Any]:
        host.time += 1
        listeners.judge(host.time, (), wanted, known=True)
        listeners.poll()
        if missed_events:
            listeners.doubt()
        host.sockets = set()
        for port in (22, 80, 443):
            host.listens(tcp(port))
        host.time += 1
        assert not listeners.poll()
        host.time += PATIENCE + 1
        return ports(listeners.poll())

    assert again() == {22, 80}
    assert again(RequestedPorts("tcp", ANY4, 80, 80)) == {22, 443}
    assert again(missed_events=True) == set()


def test_thousands_of_sockets_do_not_fill_the_kernel(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of listeners in the table is bounded; TCP and low ports have priority."""
    monkeypatch.setattr("plugin.kernel.sock_diag.MOST", 3)
    for port in range(50000, 50010):
        host.listens(Published("udp", ANY4, port, port), root=False)
    for port in (22, 80):
        host.listens(tcp(port))
    assert ports(host.listeners().poll()) == {22, 80, 50000}


# --- the facts for the table ------------------------------------------------------------------------------------------


class Desk:
    def __init__(self, host: Host, state: SavedState | None = None, **more: Any) -> None:
        self.kernel, self.disk, self.host = Kernel(), Disk(), host
        self.reconciler = Reconciler(self.kernel, self.disk, Defaults())  # type: ignore[arg-type]
        self.rules = (Rule("tcp", 2375, 2377), Rule("udp", 4789, 4789))
        state = state or SavedState()
        own = own_ports(self.rules, [each for ports in state.asked.values() for each in ports])
        self.reconciler.start(Facts(state, dockerd=own))
        self.ports = ProxyPorts(self.reconciler, host.listeners(), self.rules, **more)

    def of(self, *names: str) -> set[Any]:
        return {element.key[-1] for element in self.kernel.table or () if element.set.startswith(names)}

    def look(self, proxies: ProxyFacts) -> Seen:
        self.ports.look(proxies)
        facts = self.reconciler.facts
        assert facts.proxies == proxies
        return Seen(ports(facts.listening), ports(facts.suspects))


class Seen(NamedTuple):
    """Ports of the host's own programs, and those on which a docker-proxy may listen."""

    listening: set[int]
    suspects: set[int]


@pytest.fixture
def desk(host: Host) -> Desk:
    return Desk(host)


def test_a_port_of_dockerd_that_a_container_requests_is_closed(desk: Desk) -> None:
    """The port is closed as soon as Docker has created the container, before it can start, until it is removed; also
    after restarts."""
    assert desk.of("dockerd_ports") == {2375, 2376, 2377, 4789}
    desk.host.listens(tcp(2377))
    desk.ports.created("c")
    assert desk.of("dockerd_ports") == {2377}, (
        "its requested ports are unknown: ports that dockerd already serves stay open"
    )
    desk.ports.asks("c", (RequestedPorts("tcp", ANY4, 2376, 2376), RequestedPorts("tcp", ANY4, 80, 80)))
    assert desk.of("dockerd_ports") == {2375, 2377, 4789}
    assert desk.disk.kept.asked.keys() == {"c"}
    assert Desk(Host(), desk.disk.kept).of("dockerd_ports") == {2375, 2377, 4789}
    desk.ports.forget("c")
    assert desk.of("dockerd_ports") == {2375, 2376, 2377, 4789}
    assert desk.disk.kept.asked == {}


@pytest.mark.parametrize("first", ["the event", "the inspection"])
def test_a_new_containers_proxy_is_not_the_hosts_while_docker_hangs(desk: Desk, host: Host, first: str) -> None:
    """A container takes a port that a program of the host had: its docker-proxy does not pass for that program's
    restart, whether the container is inspected before or after its event is handled."""
    program = host.listens(tcp(8080))
    desk.look(UNIDENTIFIED)
    host.time += 1
    desk.ports.judge(DockerSnapshot(container_ids=frozenset(), published=frozenset(), complete=True), host.time)
    host.sockets.remove(program)
    wanted = (RequestedPorts("tcp", ANY4, 8080, 8080),)
    if first == "the event":
        desk.ports.created("new")
        desk.ports.asks("new", wanted)
    else:
        desk.ports.asks("new", wanted)
        desk.ports.created("new")
    host.listens(tcp(8080))
    assert desk.look(UNIDENTIFIED).listening == set()
    host.time += PATIENCE + 1
    assert desk.look(UNIDENTIFIED).listening == set()


def test_a_container_that_docker_does_not_list_is_forgotten(desk: Desk) -> None:
    """A container's ports are removed when Docker no longer lists it, except if it was created after the request to
    Docker, or if the list is incomplete."""
    desk.ports.asks("old", (RequestedPorts("tcp", ANY4, 2375, 2375),))
    desk.host.time += 1
    moment = desk.ports.now()
    desk.ports.created("new")
    desk.ports.asks("new", (RequestedPorts("tcp", ANY4, 2376, 2376),))
    desk.ports.judge(DockerSnapshot(complete=False), moment)
    assert desk.of("dockerd_ports") == {2377, 4789}
    desk.ports.judge(DockerSnapshot(), moment)
    assert desk.of("dockerd_ports") == {2375, 2377, 4789}


def test_a_full_disk_keeps_nothing_open(desk: Desk) -> None:
    """The port that a container requests is closed, whether it can be saved or not."""
    desk.disk.full = True
    desk.ports.asks("c", (RequestedPorts("tcp", ANY4, 2376, 2376),))
    assert desk.of("dockerd_ports") == {2375, 2377, 4789}


def test_listeners_are_reported_where_they_matter(desk: Desk) -> None:
    """If docker-proxy is identified by its control group, the table needs only the listeners of SCTP."""
    desk.host.listens(tcp(22))
    desk.host.listens(Published("sctp", ANY4, 3868, 3868))
    assert desk.look(UNIDENTIFIED).listening == {22, 3868}
    assert desk.look(KNOWN) == ({3868}, set())
    desk.host.listens(tcp(80))
    assert not desk.ports.waiting()
    assert desk.look(UNIDENTIFIED).listening == {22, 3868}
    assert desk.ports.waiting()
    assert desk.ports.held() == [tcp(80)]


def test_sctp_is_closed_as_long_as_a_container_may_publish_it(desk: Desk) -> None:
    """That is so while an unknown container exists, or one that publishes it."""

    def closed() -> bool:
        return desk.of("unfound_protocols") == {132}

    assert not closed()
    desk.ports.created("new")
    assert closed()
    desk.ports.asks("new", (RequestedPorts("tcp", ANY4, 80, 80),))
    assert not closed()
    desk.ports.created("other")
    assert closed()
    desk.ports.asks("other", (RequestedPorts("sctp", ANY4, 3868, 3868),))
    assert closed()
    desk.ports.forget("other")
    assert not closed()


def test_listeners_are_listed_seldom_where_none_is_quarantined(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may publish ten thousand ports: five looks a second at all of them would take a quarter of a core.
    When docker-proxy cannot be identified any more, listeners that appeared since the last look are closed."""
    looks, truth = [], desk.ports._listeners._listed
    monkeypatch.setattr(desk.ports._listeners, "_listed", lambda: looks.append(1) or truth())
    desk.host.listens(tcp(22))
    for _ in range(100):
        desk.look(KNOWN)
        desk.host.time += 0.2
    assert 1 < len(looks) < 10
    desk.host.listens(tcp(80))
    assert desk.look(UNIDENTIFIED).listening == {22}
    assert desk.ports.held() == [tcp(80)]


def test_a_kernel_without_quarantine_closes_new_listeners(host: Host) -> None:
    """A new listener is closed by its port, once it is seen, until its owner is known, if the kernel has no rule for
    new listeners."""
    desk = Desk(host, kinds=lambda: (False, False))
    desk.look(KNOWN)
    host.listens(tcp(8080))
    assert desk.look(KNOWN) == (set(), {8080})
    host.time += 1
    desk.ports.judge(DockerSnapshot(), desk.ports.now())
    assert desk.look(KNOWN).suspects == set()


def test_an_unreadable_container_quarantines_every_listener(desk: Desk) -> None:
    """Docker lists a container that could not be inspected: any port may belong to it."""
    desk.look(UNIDENTIFIED)
    desk.host.listens(tcp(8080))
    desk.look(UNIDENTIFIED)
    desk.host.time += 1
    desk.ports.judge(DockerSnapshot(container_ids=frozenset("c")), desk.ports.now())
    assert desk.look(UNIDENTIFIED).listening == set()
    assert desk.ports.lacks("cd") == ["c", "d"]
    desk.ports.asks("c", ())
    look = DockerSnapshot(container_ids=frozenset("c"))
    desk.ports.judge(dataclasses.replace(look, published=None), desk.ports.now())
    assert desk.look(UNIDENTIFIED).listening == set()
    desk.ports.judge(look, desk.ports.now())
    assert desk.look(UNIDENTIFIED).listening == {8080}


def test_a_container_too_large_to_list_delays_no_program(desk: Desk, tmp_path: Path) -> None:
    """The container's ports are read before its labels: they stay closed, and a restarted program of the host, such as
    sshd, is reachable again."""
    docker = FakeDocker(tmp_path / "docker.sock")
    try:
        api = DockerApi(str(docker.path))
        api.inspections.asks, api.inspections.lacks = desk.ports.asks, desk.ports.lacks
        docker.networks["n" * 64] = {"Id": "n" * 64, "Name": "host", "Driver": "host"}
        docker.containers["e"] = {
            "Id": "c" * 64,
            "Names": ["/large"],
            "State": "running",
            "HostConfig": {"PortBindings": {"80/tcp": [{"HostPort": "8080"}]}},
            "Labels": {"fw.x": "x" * (9 << 20)},
        }
        for port in (22, 8080):
            desk.host.listens(tcp(port))
        desk.ports._listeners._first = False
        desk.look(UNIDENTIFIED)
        desk.host.time += 1
        desk.ports.judge(api.look(), desk.ports.now())
        assert desk.look(UNIDENTIFIED).listening == {22}
        assert desk.ports.held() == []
    finally:
        docker.close()


def test_unlisted_sockets_leave_known_programs_reachable(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's programs stay reachable, and no new one becomes reachable."""
    desk.host.listens(tcp(22))
    desk.look(UNIDENTIFIED)

    def fails() -> set[Listener]:
        raise OSError("no such family")

    monkeypatch.setattr(desk.ports._listeners, "_listed", fails)
    assert desk.look(UNIDENTIFIED).listening == {22}


def test_a_change_in_progress_holds_up_no_question(desk: Desk) -> None:
    """The facts' lock comes first: a thread that has it may ask here, while another waits for it with new ports."""
    waits, answers = threading.Event(), list[Any]()
    observe = desk.reconciler.observe
    desk.reconciler.observe = lambda edit: (waits.set(), observe(edit))  # type: ignore[assignment,func-returns-value]
    finds = threading.Thread(target=lambda: desk.ports.asks("c", (RequestedPorts("tcp", ANY4, 2375, 2375),)))
    asks = threading.Thread(target=lambda: answers.append(desk.ports.held()))

    def edit(facts: Facts) -> Facts:
        finds.start()
        assert waits.wait(5)
        asks.start()
        asks.join(5)
        answers.append("the change ends")
        return facts

    observe(edit)
    finds.join(5)
    assert answers == [[], "the change ends"]
    assert desk.of("dockerd_ports") == {2376, 2377, 4789}


def test_an_answer_that_is_published_late_is_the_newest(desk: Desk) -> None:
    """The facts contain the later of two findings, even if another thread writes the earlier one last."""
    observe, later = desk.reconciler.observe, list[Any]()
    desk.reconciler.observe = later.append  # type: ignore[method-assign]
    desk.host.listens(tcp(22))
    desk.ports.look(KNOWN)
    desk.ports.asks("c", (RequestedPorts("tcp", ANY4, 2375, 2375),))
    desk.ports.forget("c")
    desk.ports.look(UNIDENTIFIED)
    for edit in reversed(later):
        observe(edit)
    assert (desk.reconciler.facts.proxies, ports(desk.reconciler.facts.listening)) == (UNIDENTIFIED, {22})
    assert desk.of("dockerd_ports") == {2375, 2376, 2377, 4789}


def test_the_start_of_the_range_from_which_docker_chooses(tmp_path: Path) -> None:
    """The start of the range is the host's setting, and never higher than the kernel's own default."""
    place = tmp_path / "ipv4"
    place.mkdir()
    for text, right in (("10000\t20000\n", 10000), ("40000 50000\n", 32768), ("x", 32768)):
        (place / "ip_local_port_range").write_text(text)
        assert passing(str(tmp_path)) == right
    assert passing("/nowhere") == 32768


def test_a_port_closed_before_is_not_the_hosts_after_a_restart(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A docker-proxy that runs before docker-fw starts, as with some engines at boot."""
    state = SavedState(proxied={"a": (tcp(8080),)}, asked={"b": (RequestedPorts("tcp", ANY6, 9090, 9090),)})
    for port in (tcp(8080), tcp(9090, ANY6), tcp(22)):
        host.listens(port)
    found = before(state, "/nowhere", None)
    monkeypatch.setattr(found, "_listed", lambda: host.sockets)
    assert ports(found.poll()) == {22}
