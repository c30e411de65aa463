"""Test published ports as users of `docker run -p` rely on them, with real sockets in separate network namespaces."""

from __future__ import annotations

import hashlib
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from plugin.driver.host_ports import HostPorts, LoopbackRelay
from plugin.driver.host_socket import raise_fd_limit
from plugin.driver.relay_loop import Relay
from plugin.model import FwError, PortBinding, Published
from plugin.protocols import Proto
from tests.inputs import inputs
from tests.kernel.netns import inside as enter
from tests.waiting import until

HOST4, HOST6 = "198.51.100.1", "2001:db8:ffff::1"
BOX4, BOX6 = IPv4Address("10.88.0.2"), IPv6Address("fd88::2")
SILENT = IPv4Address("10.88.0.99")  # accepts all packets and never reports an error
LOOPBACKS = ("127.0.0.1", "::1")
WAIT = 5.0  # s: how long a condition may take before a test fails


# --- a host, an outsider and a container, each a network namespace ----------------------------------------------


def inside(name: str) -> AbstractContextManager[None]:
    """Run this thread in a network namespace; sockets and threads made meanwhile stay there."""
    return enter(f"/run/netns/{name}")


@dataclass(frozen=True)
class Lab:
    host: str
    outsider: str
    box: str

    def sysctl(self, netns: str, name: str, value: str) -> None:
        with inside(netns), open(f"/proc/sys/net/{name}", "w") as file:
            file.write(value)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    tag = uuid.uuid4().hex[:6]
    lab = Lab(*(f"fwports-{tag}-{name}" for name in ("host", "out", "box")))
    with ExitStack() as stack:
        for netns in (lab.host, lab.outsider, lab.box):
            ip("netns", "add", netns)
            stack.callback(ip, "netns", "del", netns)
        wire(lab.host, "wan", (f"{HOST4}/24", f"{HOST6}/64"), lab.outsider, ("198.51.100.2/24", "2001:db8:ffff::2/64"))
        wire(lab.host, "lan", ("10.88.0.1/24", "fd88::1/64"), lab.box, (f"{BOX4}/24", f"{BOX6}/64"))
        ip("-n", lab.host, "link", "set", "lo", "up")
        ip("-n", lab.host, "neigh", "add", str(SILENT), "lladdr", "02:00:00:00:00:99", "dev", "lan", "nud", "permanent")
        # lo stays down at the outsider, so that 127.0.0.1 can be a distant address
        ip("-n", lab.outsider, "route", "add", "127.0.0.1/32", "via", HOST4)
        yield lab


def ip(*args: str) -> None:
    subprocess.run(("ip", *args), check=True, capture_output=True, text=True, timeout=60)


def wire(one: str, name: str, addresses: tuple[str, str], other: str, peers: tuple[str, str]) -> None:
    ip("-n", one, "link", "add", "name", name, "type", "veth", "peer", "name", "eth0", "netns", other)
    for netns, dev, (addr4, addr6) in ((one, name, addresses), (other, "eth0", peers)):
        ip("-n", netns, "addr", "add", addr4, "dev", dev)
        ip("-n", netns, "addr", "add", addr6, "dev", dev, "nodad")
        ip("-n", netns, "link", "set", dev, "up")


@pytest.fixture
def relay(lab: Lab) -> Iterator[Relay]:
    with inside(lab.host):
        relay = Relay(connect_timeout=1)
        relay.start()
    yield relay
    relay.stop()


def connections(relay: Relay) -> int:
    """Return the number of TCP connections that the relay has open."""
    assert relay._running
    return relay._running.connections.count


def clients(relay: Relay) -> int:
    """Return the number of UDP clients that the relay remembers."""
    assert relay._running
    return len(relay._running.clients)


class Host:
    """HostPorts on the lab's host, by default for a container that has both of the lab's addresses."""

    def __init__(self, lab: Lab, relay: LoopbackRelay | None) -> None:
        self.lab, self.ports = lab, HostPorts(relay)

    def publish(
        self,
        endpoint: str,
        *bindings: PortBinding,
        default: str | None = None,
        addr4: IPv4Address | None = BOX4,
        addr6: IPv6Address | None = BOX6,
    ) -> tuple[Published, ...]:
        host_ip = ip_address(default) if default else None
        with inside(self.lab.host):
            return self.ports.publish(endpoint, bindings, default_host_ip=host_ip, addr4=addr4, addr6=addr6)

    def restore(self, endpoint: str, published: tuple[Published, ...]) -> tuple[Published, ...]:
        with inside(self.lab.host):
            return self.ports.restore(endpoint, published, BOX4, BOX6)

    def reserved(self) -> dict[str, tuple[Published, ...]]:
        """Return the reserved host ports by endpoint: a copy."""
        return {endpoint: tuple(found.socks) for endpoint, found in self.ports._reserved.items()}

    def rows(self) -> dict[str, set[str]]:
        """Return the reserved host ports by endpoint, as `shown`."""
        return {endpoint: set(shown(found)) for endpoint, found in self.reserved().items()}

    def release(self, endpoint: str) -> None:
        with inside(self.lab.host):
            self.ports.release(endpoint)

    def release_all(self) -> None:
        for endpoint in self.reserved():
            self.release(endpoint)


@pytest.fixture
def host(lab: Lab, relay: Relay) -> Iterator[Host]:
    host = Host(lab, relay)
    yield host
    host.release_all()


@pytest.fixture
def plain(lab: Lab) -> Iterator[Host]:
    """The same without a relay: only which process has which port."""
    host = Host(lab, None)
    yield host
    host.release_all()


def want(
    host_port: int = 0, container_port: int = 80, proto: Proto = "tcp", host_ip: str | None = None, end: int = 0
) -> PortBinding:
    return PortBinding(proto, container_port, ip_address(host_ip) if host_ip else None, host_port, end)


def open_files() -> set[str]:
    """Return the open files of this process, each socket with its own number.

    Not their number: a file of an earlier test may be closed at any moment, when its garbage is collected.
    """
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the directory's own
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
    return found


def shown(published: tuple[Published, ...]) -> list[str]:
    return [f"{one.host_ip}|{one.host_port}|{one.container_port}/{one.proto}" for one in published]


def bound(netns: str, address: str, port: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """Bind a socket of another process, as far as HostPorts can see."""
    with inside(netns):
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(kind == socket.SOCK_STREAM))
        sock.bind((address, port))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        return sock


def connect(netns: str, address: str, port: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
    with inside(netns):
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    sock.settimeout(WAIT)
    sock.connect((address, port))
    return sock


def receive_all(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(1 << 18):
        parts.append(part)
    return b"".join(parts)


@contextmanager
def container(lab: Lab, port: int, handle: Callable[[socket.socket], None]) -> Iterator[None]:
    """Run a TCP server in the container, on all its addresses; each connection has a thread that runs `handle`."""
    with inside(lab.box):
        server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=100)

    def one(sock: socket.socket) -> None:
        sock.settimeout(WAIT)
        with sock, suppress(OSError):
            handle(sock)

    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            with suppress(OSError):
                threading.Thread(target=one, args=(server.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        server.shutdown(socket.SHUT_RDWR)
        thread.join(WAIT)
        server.close()


def hash_and_return(sock: socket.socket) -> None:
    """Read from the client up to its end of data, then answer: this works with half-close only."""
    data = receive_all(sock)
    sock.sendall(hashlib.sha256(data).digest() + data)


def echo(sock: socket.socket) -> None:
    while data := sock.recv(1 << 16):
        sock.sendall(data)


@contextmanager
def udp_container(lab: Lab, port: int) -> Iterator[None]:
    """Run a UDP server in the container, on all its addresses, that answers "echo " and the datagram."""
    with inside(lab.box):
        server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    server.bind(("::", port))
    server.settimeout(0.02)
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            with suppress(TimeoutError):
                data, client = server.recvfrom(65535)
                server.sendto(b"echo " + data, client)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(WAIT)
        server.close()


def try_port(netns: str, address: str, port: int, kind: int = socket.SOCK_STREAM) -> bytes:
    """Return what a client gets that connects and sends data; a refusal is an OSError."""
    with connect(netns, address, port, kind) as sock:
        sock.sendall(b"?")
        return receive_all(sock) if kind == socket.SOCK_STREAM else sock.recv(65535)


def ask(sock: socket.socket, text: bytes) -> bytes:
    """Send one UDP datagram and return the reply."""
    sock.send(text)
    return sock.recv(65535)


# --- from outside ------------------------------------------------------------------------------------------------


def silent(lab: Lab, address: str, port: int, kind: int, closed: str) -> bool:
    """Return True if the outsider's packet got no reply at all.

    This needs no guess at a time-out: packets sent later, to a port of the host that is closed, were refused.
    """
    with inside(lab.outsider):
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    with sock:
        sock.setblocking(False)
        with suppress(BlockingIOError):
            sock.connect((address, port))
        if kind == socket.SOCK_DGRAM:
            sock.send(b"?")
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                try_port(lab.outsider, closed, 9, kind)
        poll = select.poll()
        poll.register(sock, select.POLLIN | select.POLLOUT if kind == socket.SOCK_STREAM else select.POLLIN)
        return not poll.poll(0)  # neither connected, nor refused (RST, ICMP unreachable), nor answered


@pytest.mark.parametrize("host_ip", [None, "specific"])
@pytest.mark.parametrize("address", [HOST4, HOST6])
def test_outsider_sees_silence(lab: Lab, host: Host, address: str, host_ip: str | None) -> None:
    """Without DNAT rules a published port sends nothing to the outside: no SYN-ACK, RST, reply or ICMP error."""
    on = address if host_ip else None
    with container(lab, 80, echo), udp_container(lab, 53):
        host.publish("e", want(8080, host_ip=on), want(5353, 53, "udp", host_ip=on))
        assert silent(lab, address, 8080, socket.SOCK_STREAM, closed=address)
        assert silent(lab, address, 5353, socket.SOCK_DGRAM, closed=address)
    host.release("e")
    with bound(lab.host, address, 8080), bound(lab.host, address, 5353, socket.SOCK_DGRAM) as udp:
        assert not silent(lab, address, 8080, socket.SOCK_STREAM, closed=address)
        with connect(lab.outsider, address, 5353, socket.SOCK_DGRAM) as sock:
            sock.send(b"?")
            assert udp.recv(9) == b"?"  # so it was the reservation that was silent, not the way there


def test_neighbour_cannot_use_loopback(lab: Lab, host: Host) -> None:
    """With route_localnet on (kube-proxy, old Docker) a neighbour's packets to 127.0.0.1 get no reply either."""
    for netns in (lab.host, lab.outsider):
        lab.sysctl(netns, "ipv4/conf/all/route_localnet", "1")
    try:
        with container(lab, 80, echo), bound(lab.host, "127.0.0.1", 8081):
            host.publish("e", want(8080), want(8082, host_ip="127.0.0.1"))
            connect(lab.outsider, "127.0.0.1", 8081).close()  # an ordinary server is reached
            assert silent(lab, "127.0.0.1", 8080, socket.SOCK_STREAM, closed=HOST4)
            assert silent(lab, "127.0.0.1", 8082, socket.SOCK_STREAM, closed=HOST4)
            connect(lab.host, "127.0.0.1", 8080).close()
    finally:
        for netns in (lab.host, lab.outsider):
            lab.sysctl(netns, "ipv4/conf/all/route_localnet", "0")


@pytest.mark.parametrize("address", [HOST4, HOST6])
def test_host_to_own_address_is_left_to_dnat(lab: Lab, host: Host, address: str) -> None:
    """The relay serves loopback only: the host's packets to its own other addresses are left to the DNAT rules."""
    host.publish("e", want(8080))
    with inside(lab.host):
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock.settimeout(0.05)
    with sock, pytest.raises(TimeoutError):
        sock.connect((address, 8080))


# --- from the host, through loopback ----------------------------------------------------------------------------------


@pytest.mark.parametrize("address", LOOPBACKS)
def test_tcp_by_loopback(lab: Lab, host: Host, address: str) -> None:
    """10 MB pass through localhost:8080 both ways intact, also after the client's end of data (half-close)."""
    data = os.urandom(10 << 20)
    with container(lab, 80, hash_and_return):
        host.publish("e", want(8080))
        with connect(lab.host, address, 8080) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            answer = receive_all(sock)
    assert answer[:32] == hashlib.sha256(data).digest()
    assert answer[32:] == data


@pytest.mark.parametrize("address", LOOPBACKS)
@pytest.mark.parametrize(("addr4", "addr6"), [(BOX4, None), (None, BOX6)])
def test_either_family_serves_localhost(
    lab: Lab, host: Host, address: str, addr4: IPv4Address | None, addr6: IPv6Address | None
) -> None:
    """localhost answers in both families for a single-stack container, also where only loopback is published."""
    with container(lab, 80, echo):
        host.publish("e", want(8080), want(8081, host_ip=address), addr4=addr4, addr6=addr6)
        for port in (8080, 8081):
            with connect(lab.host, address, port) as sock:
                sock.sendall(b"hello")
                assert sock.recv(5) == b"hello"


@pytest.mark.parametrize("address", [*LOOPBACKS, "127.0.0.2"])
def test_udp_by_loopback(lab: Lab, host: Host, address: str) -> None:
    """Each UDP client at localhost gets its own replies, from the address that it sent to."""
    with udp_container(lab, 53):
        host.publish("e", want(5353, 53, "udp"))
        with (
            connect(lab.host, address, 5353, socket.SOCK_DGRAM) as one,
            connect(lab.host, address, 5353, socket.SOCK_DGRAM) as two,
        ):
            one.send(b"1")
            two.send(b"2")
            assert (one.recv(99), two.recv(99)) == (b"echo 1", b"echo 2")
            assert ask(one, b"x" * 60000) == b"echo " + b"x" * 60000


def test_backpressure(lab: Lab, host: Host) -> None:
    """A client that does not read stops the container's sending, instead of filling the plugin's memory."""
    sent: list[int] = []

    def flood(sock: socket.socket) -> None:
        sock.settimeout(0.3)
        total = 0
        try:
            while total < 256 << 20:
                total += sock.send(bytes(1 << 20))
        except TimeoutError:
            sent.append(total)

    with container(lab, 80, flood):
        host.publish("e", want(8080))
        with connect(lab.host, "127.0.0.1", 8080) as sock:
            until(lambda: sent, "the container stops sending")
            assert sum(len(part) for part in iter(lambda: sock.recv(1 << 20), b"")) == sent[0]


def test_reset_is_not_an_end(lab: Lab, host: Host) -> None:
    """A connection that breaks at the container breaks at the client too: it never looks like a complete answer."""

    def break_off(sock: socket.socket) -> None:
        sock.recv(1)
        sock.sendall(b"half an ans")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with container(lab, 80, break_off):
        host.publish("e", want(8080))
        with pytest.raises(ConnectionResetError):
            try_port(lab.host, "127.0.0.1", 8080)


def test_one_dead_container_harms_no_other(lab: Lab, host: Host, relay: Relay) -> None:
    """Ports of containers that refuse, or do not exist, end in a reset; the others work meanwhile."""
    with container(lab, 80, echo):
        host.publish("good", want(8080))
        host.publish("refuses", want(8081, 81))
        host.publish("absent", want(8082), addr4=SILENT, addr6=None)
        with connect(lab.host, "127.0.0.1", 8082) as waits, connect(lab.host, "127.0.0.1", 8080) as good:
            with pytest.raises(OSError, match=r"reset|Broken pipe"):
                try_port(lab.host, "::1", 8081)
            good.sendall(b"still here")
            assert good.recv(99) == b"still here"
            with pytest.raises(ConnectionResetError):
                waits.recv(1)  # after the relay's connect_timeout
        until(lambda: connections(relay) == 0, "no connection is left")


def test_limits(lab: Lab) -> None:
    """Connections past the limit are reset; the UDP client idle longest gives way; idle ones are forgotten."""
    with inside(lab.host):
        relay = Relay(max_connections=2, max_associations=2, udp_idle=0.2)
        relay.start()
    host = Host(lab, relay)
    try:
        with container(lab, 80, echo), udp_container(lab, 53), ExitStack() as stack:
            host.publish("e", want(8080), want(5353, 53, "udp"))
            for _ in range(2):
                sock = stack.enter_context(connect(lab.host, "127.0.0.1", 8080))
                sock.sendall(b"?")
                assert sock.recv(1) == b"?"
            with pytest.raises(OSError, match=r"reset|Broken pipe"):
                try_port(lab.host, "127.0.0.1", 8080)
            for _ in range(5):
                sock = stack.enter_context(connect(lab.host, "127.0.0.1", 5353, socket.SOCK_DGRAM))
                assert ask(sock, b"?") == b"echo ?"
                assert clients(relay) <= 2
            until(lambda: clients(relay) == 0, "idle UDP clients are forgotten")
            assert ask(sock, b"again") == b"echo again"
    finally:
        relay.stop()


def test_relay_survives_out_of_files(lab: Lab, host: Host, caplog: pytest.LogCaptureFixture) -> None:
    """With no file descriptor left a connection waits, and is served when there are some again."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with container(lab, 80, echo):
        host.publish("e", want(8080))
        with inside(lab.host):
            sock = socket.socket()
        sock.settimeout(WAIT)
        with sock:
            os.close(lowest := os.dup(0))
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
            try:
                sock.connect(("127.0.0.1", 8080))
                sock.sendall(b"?")
                until(lambda: "accepts no connections" in caplog.text, "the relay is out of files")
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert sock.recv(1) == b"?"


# --- which process has which port -------------------------------------------------------------------------------------


def test_both_families_get_the_same_port(lab: Lab, plain: Host) -> None:
    """`-p 80` gives one port that is free in IPv4 and IPv6, though other processes use it in one of them."""
    # Below the range that the kernel otherwise draws from: an earlier test's connection may still use one of those.
    lab.sysctl(lab.host, "ipv4/ip_local_port_range", "31990 31993")
    lab.sysctl(lab.host, "ipv4/ip_local_reserved_ports", "31991")
    try:
        with bound(lab.host, "0.0.0.0", 31990), bound(lab.host, "::", 31992):
            assert shown(plain.publish("e", want())) == ["0.0.0.0|31993|80/tcp", "::|31993|80/tcp"]
            with pytest.raises(FwError, match=r"^failed to bind host port 0\.0\.0\.0:0 .*: all ports are allocated$"):
                plain.publish("f", want())
    finally:
        lab.sysctl(lab.host, "ipv4/ip_local_port_range", "32768 60999")
        lab.sysctl(lab.host, "ipv4/ip_local_reserved_ports", "\n")


@pytest.mark.parametrize(
    ("addresses", "host_ip", "default", "expected"),
    [
        ((BOX4, BOX6), None, None, ["0.0.0.0", "::"]),
        ((BOX4, BOX6), None, "0.0.0.0", ["0.0.0.0", "::"]),
        ((BOX4, None), None, None, ["0.0.0.0"]),
        ((None, BOX6), None, None, ["::"]),
        ((BOX4, BOX6), None, HOST4, [HOST4]),
        ((BOX4, BOX6), None, "::", ["::"]),
        ((BOX4, BOX6), "0.0.0.0", HOST6, ["0.0.0.0"]),
        ((BOX4, BOX6), HOST6, None, [HOST6]),
        ((BOX4, None), f"::ffff:{HOST4}", None, [HOST4]),
    ],
)
def test_host_addresses(
    plain: Host,
    addresses: tuple[IPv4Address | None, IPv6Address | None],
    host_ip: str | None,
    default: str | None,
    expected: list[str],
) -> None:
    """A port is published on the requested host address, else on the network's default, else on every address."""
    got = plain.publish("e", want(8080, host_ip=host_ip), default=default, addr4=addresses[0], addr6=addresses[1])
    assert [str(one.host_ip) for one in got] == expected
    assert {one.host_port for one in got} == {8080}


@pytest.mark.parametrize("proto", ["tcp", "udp", "sctp"])
def test_conflict_between_containers(plain: Host, proto: Proto) -> None:
    """A host port belongs to one container; another's start fails with Docker's message and takes nothing."""
    plain.publish("e", want(8080, proto=proto))
    for host_ip in (None, "0.0.0.0", HOST4, "127.0.0.1"):
        where = host_ip or "0.0.0.0"
        with pytest.raises(FwError, match=f"^Bind for {where}:8080 failed: port is already allocated$"):
            plain.publish("f", want(8079, proto=proto), want(8080, proto=proto, host_ip=host_ip))
    assert list(plain.reserved()) == ["e"]
    plain.publish("f", want(8079, proto=proto), want(8080, proto="udp" if proto == "tcp" else "tcp"))


def test_specific_addresses_do_not_conflict(plain: Host) -> None:
    """Two containers may have one port on two addresses of the host; a third cannot have it on every address."""
    plain.publish("e", want(80, host_ip=HOST4))
    plain.publish("f", want(80, host_ip="127.0.0.1"), want(80, host_ip=HOST6))
    with pytest.raises(FwError, match=r"^Bind for 0\.0\.0\.0:80 failed"):
        plain.publish("g", want(80))
    with pytest.raises(FwError, match=r"^Bind for \[::\]:80 failed"):
        plain.publish("g", want(80, host_ip="::"))


@pytest.mark.parametrize(("proto", "kind"), [("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)])
def test_conflict_with_the_host(lab: Lab, plain: Host, proto: Proto, kind: int) -> None:
    """A port that a process of the host listens on is refused with Docker's message, and free when it has ended."""
    with bound(lab.host, "127.0.0.1", 8080, kind):
        message = rf"^failed to bind host port 0\.0\.0\.0:8080/{proto}: address already in use$"
        with pytest.raises(FwError, match=message):
            plain.publish("e", want(8079, proto=proto), want(8080, proto=proto))
        assert plain.reserved() == {}
    assert len(plain.publish("e", want(8079, proto=proto), want(8080, proto=proto))) == 4


def test_the_host_cannot_take_a_published_port(lab: Lab, plain: Host) -> None:
    """A published port is reserved: another process of the host gets "address already in use"."""
    plain.publish("e", want(8080), want(5353, 53, "udp"))
    for port, kind in ((8080, socket.SOCK_STREAM), (5353, socket.SOCK_DGRAM)):
        with pytest.raises(OSError, match="already in use"):
            bound(lab.host, HOST4, port, kind)


def test_range(lab: Lab, plain: Host) -> None:
    """`-p 8000-8002:80` takes the first free port of the range; a request for an exact port takes precedence."""
    with bound(lab.host, "::", 8001):
        got = plain.publish("e", want(8000, end=8002), want(8000, 81))
        assert {(one.host_port, one.container_port) for one in got} == {(8002, 80), (8000, 81)}
        with pytest.raises(FwError, match=r"^failed to bind host ports 0\.0\.0\.0:8000-8002/tcp: all ports"):
            plain.publish("f", want(8000, end=8002))


def test_ephemeral_ports_of_one_service_agree(plain: Host) -> None:
    """`-p 127.0.0.1::80 -p [::1]::80` is one port, as with Docker; `-p 80 -p 80` are two."""
    got = plain.publish("e", want(host_ip="127.0.0.1"), want(host_ip="::1"))
    assert len({one.host_port for one in got}) == 1
    got = plain.publish("f", want(), want())
    assert len({one.host_port for one in got}) == 2


def test_ephemeral_port_is_not_given_again_at_once(plain: Host) -> None:
    """A client of a removed container does not meet the next one on the same port."""
    first = plain.publish("e", want())
    plain.release("e")
    assert plain.publish("f", want())[0].host_port != first[0].host_port


def test_repeated_and_changed(plain: Host) -> None:
    """Publishing again returns the current ports; other ports replace them.

    After a failed replacement the old ones remain.
    """
    first = plain.publish("e", want(8080), want(9000, end=9010), want())
    assert plain.publish("e", want(8080), want(9000, end=9010), want()) == first
    second = plain.publish("e", want(8081), want(8080, host_ip="127.0.0.1"))
    assert {one.host_port for one in second} == {8080, 8081}
    plain.publish("f", want(8082))
    with pytest.raises(FwError):
        plain.publish("e", want(8083), want(8082))
    assert plain.reserved()["e"] == second
    assert plain.publish("e") == ()
    assert list(plain.reserved()) == ["f"]


def test_repeated_over_the_end_of_the_range(lab: Lab, plain: Host) -> None:
    """Publishing again returns the current ports too if a later one of them is the lowest that Docker could choose."""
    lab.sysctl(lab.host, "ipv4/ip_local_port_range", "31990 31993")
    try:
        plain.publish("e", want(), want(), want())
        bindings = want(host_ip="0.0.0.0"), want()
        first = plain.publish("e", *bindings)
        assert shown(first) == ["0.0.0.0|31993|80/tcp", "0.0.0.0|31990|80/tcp", "::|31990|80/tcp"]
        assert plain.publish("e", *bindings) == first
    finally:
        lab.sysctl(lab.host, "ipv4/ip_local_port_range", "32768 60999")


def test_restore(lab: Lab, plain: Host) -> None:
    """After a restart a container has the same host ports again; a lost one is reported, and taken when it is free."""
    published = plain.publish("e", want(8080), want(), want(9999, 99, "sctp"))
    plain.release_all()
    again = Host(lab, None)
    with bound(lab.host, "::", 8080):
        lost = again.restore("e", published)
        assert shown(lost) == ["::|8080|80/tcp"]
        assert set(again.reserved()["e"]) == set(published) - set(lost)
    assert again.restore("e", published) == ()
    assert set(again.publish("e", want(8080), want(), want(9999, 99, "sctp"))) == set(published)
    again.release_all()


def test_release(lab: Lab, host: Host, relay: Relay) -> None:
    """When a container is removed its connections end, its ports are free at once, and nothing of it is left."""
    files = open_files()
    with container(lab, 80, echo), udp_container(lab, 53):
        host.publish("other", want(8090))
        for _ in range(2):  # the second time over the remains of the first
            host.publish("e", want(8080), want(5353, 53, "udp"))
            with ExitStack() as stack:
                socks = [stack.enter_context(connect(lab.host, address, 8080)) for address in LOOPBACKS]
                other = stack.enter_context(connect(lab.host, "::1", 8090))
                for sock in (*socks, other):
                    sock.sendall(b"?")
                    assert sock.recv(1) == b"?"
                with connect(lab.host, "::1", 5353, socket.SOCK_DGRAM) as udp:
                    assert ask(udp, b"?") == b"echo ?"
                host.release("e")
                host.release("e")
                assert (connections(relay), clients(relay)) == (1, 0)
                for sock in socks:
                    with pytest.raises(ConnectionResetError):
                        sock.recv(1)
                with pytest.raises(ConnectionRefusedError):
                    connect(lab.host, "127.0.0.1", 8080)
                other.sendall(b"!")
                assert other.recv(1) == b"!"
                bound(lab.host, "0.0.0.0", 5353, socket.SOCK_DGRAM).close()
        host.release("other")
        until(lambda: connections(relay) == 0, "no connection is left")
    until(lambda: open_files() <= files, "every file is closed")


def test_restart_over_time_wait(lab: Lab, host: Host) -> None:
    """Old connections in TIME_WAIT do not prevent a container from starting again on its port."""
    with container(lab, 80, lambda sock: None):  # closes first, so that the relay's side waits
        for _ in range(3):
            host.publish("e", want(8080))
            with connect(lab.host, "127.0.0.1", 8080) as sock:
                assert sock.recv(1) == b""
            host.release("e")


def test_relay_stops_and_starts(lab: Lab, host: Host, relay: Relay) -> None:
    """A stopped relay has closed everything, and can be started again."""
    host.publish("e", want(8080))
    relay.stop()
    relay.stop()
    with pytest.raises(ConnectionRefusedError):
        connect(lab.host, "127.0.0.1", 8080)
    host.release("e")
    with inside(lab.host):
        relay.start()
        relay.start()
    with container(lab, 80, echo):
        host.publish("e", want(8080))
        with connect(lab.host, "127.0.0.1", 8080) as sock:
            sock.sendall(b"?")
            assert sock.recv(1) == b"?"


def test_threads(plain: Host) -> None:
    """Containers that start at the same time get different ports."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            got = list(pool.map(lambda i: plain.publish(f"e{i}", want(), want(proto="sctp")), range(64)))
    finally:
        sys.setswitchinterval(interval)
    assert len({(one.proto, one.host_port) for published in got for one in published}) == 128
    assert plain.reserved() == {f"e{i}": published for i, published in enumerate(got)}


# --- mistakes of users ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        (want(8080, host_ip="192.0.2.9"), r"192\.0\.2\.9:8080/tcp: this host has no address 192\.0\.2\.9"),
        (want(8080, host_ip="2001:db8::9"), r"\[2001:db8::9\]:8080/tcp: this host has no address 2001:db8::9"),
    ],
)
def test_an_address_that_the_host_does_not_have(plain: Host, binding: PortBinding, message: str) -> None:
    """A host address that this host does not have is named."""
    with pytest.raises(FwError, match=message):
        plain.publish("e", binding)


@pytest.mark.parametrize(
    ("binding", "addr4", "addr6", "message"),
    [
        (want(70000), BOX4, None, "host ports 70000-70000 .* a port is 1-65535"),
        (want(90, end=80), BOX4, None, "host ports 90-80 .* the first port of a range is the lower one"),
        (want(0, end=80), BOX4, None, "host ports 0-80 "),
        (want(80, 0), BOX4, None, "container port 0/tcp: a port is 1-65535"),
        (want(80), None, None, "cannot publish 80/tcp: the container has no address"),
        (want(80, host_ip=HOST6), BOX4, None, "has no IPv6 address; give an IPv4 host address, or .* an IPv6 subnet"),
        (want(80, host_ip=HOST4), None, BOX6, "has no IPv4 address; give an IPv6 host address, or .* an IPv4 subnet"),
    ],
)
def test_impossible_bindings(
    binding: PortBinding, addr4: IPv4Address | None, addr6: IPv6Address | None, message: str
) -> None:
    """A binding that cannot be published is refused; the error quotes the value and says what is valid."""
    with pytest.raises(FwError, match=message):
        HostPorts().publish("e", [binding], default_host_ip=None, addr4=addr4, addr6=addr6)


def test_out_of_files(plain: Host) -> None:
    """A range too wide for the limit of open files fails with that limit and the remedy, and takes nothing."""
    opened = open_files()
    files = len(os.listdir("/proc/self/fd"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files + 20, limits[1]))
    try:
        with pytest.raises(FwError, match=f"its limit is {files + 20}.*LimitNOFILE"):
            plain.publish("e", *(want(port, port) for port in range(8000, 8100)))
        assert open_files() <= opened
        assert raise_fd_limit() == limits[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (limits[1], limits[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# --- addresses that a request implies, and that it asks for -----------------------------------------------------------


def test_a_refused_call_takes_no_implied_address_of_another_container(lab: Lab, host: Host) -> None:
    """A container whose ports cannot all be had leaves every reservation of others, implied loopback addresses too."""
    host.publish("first", want(7001), addr4=None)
    with bound(lab.host, HOST4, 7002):
        before = host.rows()
        assert before == {"first": {"::|7001|80/tcp", "127.0.0.1|7001|80/tcp"}}
        with pytest.raises(FwError):
            host.publish("second", want(7001, host_ip="127.0.0.1"), want(7002))
        assert host.rows() == before


def test_an_address_that_was_asked_for_is_not_taken(lab: Lab, host: Host) -> None:
    """`-p 127.0.0.1:8080:80 -p [::]:8080:80` keeps both addresses, though `-p 8080:80` may imply the first."""
    for addr4 in (BOX4, None):
        host.publish("first", want(8080, host_ip="127.0.0.1"), want(8080, host_ip="::"), addr4=addr4)
        before = host.rows()
        for host_ip in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(FwError, match=rf"^Bind for {host_ip}:8080 failed: port is already allocated$"):
                host.publish("second", want(8080, host_ip=host_ip))
            assert host.rows() == before
        host.release("first")


def test_an_address_that_was_asked_for_is_not_left_out(lab: Lab, host: Host) -> None:
    """An address that a binding names is reserved, or the call is refused; also one that another binding implies."""
    with (
        bound(lab.host, "127.0.0.1", 8080),
        pytest.raises(FwError, match=r"127\.0\.0\.1:8080/tcp: .* in use"),
    ):
        host.publish("e", want(8080, host_ip="127.0.0.1"), want(8080, host_ip="::"), addr4=None)
    for bindings in ((want(8080), want(8080, host_ip="127.0.0.1")), (want(8080, host_ip="127.0.0.1"), want(8080))):
        got = host.publish("e", *bindings, addr4=None)
        assert {str(one.host_ip) for one in got} == {"::", "127.0.0.1"}
        with pytest.raises(FwError, match="port is already allocated"):
            host.publish("f", want(8080, host_ip="127.0.0.1"))
        host.release("e")


def test_what_a_repeated_call_asks_for_counts(host: Host) -> None:
    """A call that asks for an address which the former one implied makes it the container's; and the reverse."""
    implied, asked = [want(8080)], [want(8080), want(8080, host_ip="127.0.0.1")]
    host.publish("e", *implied, addr4=None)
    host.publish("e", *asked, addr4=None)
    with pytest.raises(FwError, match="port is already allocated"):
        host.publish("f", want(8080, host_ip="127.0.0.1"))
    host.publish("e", *implied, addr4=None)
    host.publish("f", want(8080, host_ip="127.0.0.1"))
    assert host.rows() == {"e": {"::|8080|80/tcp"}, "f": {"127.0.0.1|8080|80/tcp"}}


def test_an_implied_address_comes_back(lab: Lab, host: Host) -> None:
    """`localhost` reaches a container again when the one that asked for the same loopback address has ended."""
    with container(lab, 80, echo):
        host.publish("first", want(8080), addr4=None)
        host.publish("second", want(8080, 81, host_ip="0.0.0.0"))
        assert host.rows()["first"] == {"::|8080|80/tcp"}
        host.release("second")
        assert host.rows()["first"] == {"::|8080|80/tcp", "127.0.0.1|8080|80/tcp"}
        with connect(lab.host, "127.0.0.1", 8080) as sock:
            sock.sendall(b"hello")
            assert sock.recv(5) == b"hello"


def test_implied_after_a_restart(lab: Lab, host: Host, relay: Relay) -> None:
    """After a restart too, an implied address is in no container's way, whichever of the two is restored first."""
    first = host.publish("first", want(8080), addr4=None)
    second = host.publish("second", want(8080), addr6=None)
    host.release_all()
    calls = [("first", first, None, BOX6), ("second", second, BOX4, None)]
    for order in (calls, calls[::-1]):
        again = Host(lab, relay)
        with inside(lab.host):
            for endpoint, published, addr4, addr6 in order:
                again.ports.restore(endpoint, published, addr4, addr6)
        assert again.rows() == {"first": {"::|8080|80/tcp"}, "second": {"0.0.0.0|8080|80/tcp"}}
        again.release_all()


# --- any order of calls ------------------------------------------------------------------------------------------

ENDPOINTS = st.sampled_from("abc")
HOST_IPS = st.sampled_from([None, "0.0.0.0", "::", HOST4, HOST6, "127.0.0.1", "::1"])
PROTOS: st.SearchStrategy[Proto] = st.sampled_from(["tcp", "udp", "sctp"])
RANGES = st.sampled_from([(0, 0), (7000, 0), (7001, 0), (7000, 7002)])
BINDINGS = st.builds(lambda ip, proto, ports: want(ports[0], 80, proto, ip, ports[1]), HOST_IPS, PROTOS, RANGES)
STEPS = st.lists(st.tuples(ENDPOINTS, st.lists(BINDINGS, max_size=3), st.booleans()), max_size=8)


def overlap(one: Published, other: Published) -> bool:
    a, b = one.host_ip, other.host_ip
    same_port = (one.proto, one.host_port, a.version) == (other.proto, other.host_port, b.version)
    return same_port and (a == b or a.is_unspecified or b.is_unspecified)


@inputs(150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_any_order(plain: Host, steps: list[tuple[str, list[PortBinding], bool]]) -> None:
    """After any calls: no two containers have one port, a failure changes nothing, a release frees all."""
    plain.release_all()  # of an example that failed
    files = open_files()
    for endpoint, bindings, release in steps:
        before = plain.reserved()
        if release:
            plain.release(endpoint)
            before.pop(endpoint, None)
            assert plain.reserved() == before
            continue
        try:
            got = plain.publish(endpoint, *bindings)
        except FwError:
            assert {key: set(value) for key, value in plain.reserved().items()} == {
                key: set(value) for key, value in before.items()
            }
        else:
            assert plain.reserved() == {key: value for key, value in before.items() if key != endpoint} | (
                {endpoint: got} if got else {}
            )
            assert plain.publish(endpoint, *bindings) == got
        every = [one for published in plain.reserved().values() for one in published]
        assert not any(overlap(one, other) for i, one in enumerate(every) for other in every[:i])
    plain.release_all()
    assert plain.reserved() == {}
    assert open_files() <= files


class NoRelay:
    """A relay that carries nothing: which loopback addresses a container has does not depend on it."""

    def serve(self, sock: socket.socket, host: IPv4Address | IPv6Address, port: int) -> None: ...

    def drop(self, socks: Iterable[socket.socket]) -> None: ...


def named(one: Published, bindings: list[PortBinding]) -> bool:
    """Return whether a binding names exactly this address and port."""
    return any((binding.host_ip, binding.host_port) == (one.host_ip, one.host_port) for binding in bindings)


NARROW = st.builds(
    lambda ip, ports: want(ports[0], 80, "tcp", ip, ports[1]),
    st.sampled_from([None, "0.0.0.0", "::", "127.0.0.1", "::1"]),
    st.sampled_from([(0, 0), (7000, 0), (7001, 0), (7000, 7002)]),
)
Step = tuple[str, tuple[IPv4Address | None, IPv6Address | None], list[PortBinding], bool]
FAMILIES = st.sampled_from([(BOX4, BOX6), (BOX4, None), (None, BOX6)])
MIXED = st.lists(st.tuples(ENDPOINTS, FAMILIES, st.lists(NARROW, max_size=3), st.booleans()), max_size=8)


@inputs(150)
@given(steps=MIXED)
def test_any_order_with_implied_addresses(lab: Lab, steps: list[Step]) -> None:
    """No call takes what another container asked for, a failed one changes nothing, and no two share a port."""
    files = open_files()
    host = Host(lab, NoRelay())
    try:
        _any_order(host, steps)
    finally:
        host.release_all()
    assert open_files() <= files


def _any_order(host: Host, steps: list[Step]) -> None:
    got: dict[str, set[Published]] = {}  # what each call returned: all that a container ever has
    asked: dict[str, set[Published]] = {}
    for endpoint, (addr4, addr6), bindings, release in steps:
        before = {key: set(value) for key, value in host.reserved().items()}
        if release:
            host.release(endpoint)
            got.pop(endpoint, None)
            asked.pop(endpoint, None)
        else:
            try:
                found = set(host.publish(endpoint, *bindings, addr4=addr4, addr6=addr6))
            except FwError:
                assert {key: set(value) for key, value in host.reserved().items()} == before
            else:
                got[endpoint] = found
                implied = host.ports._reserved[endpoint].implied if found else set()
                assert all(one.host_ip.is_loopback and not named(one, bindings) for one in implied)
                asked[endpoint] = found - implied
                assert set(host.publish(endpoint, *bindings, addr4=addr4, addr6=addr6)) == found
        now = {key: set(value) for key, value in host.reserved().items()}
        assert all(asked[key] <= now.get(key, set()) <= got[key] for key in got)
        assert now.keys() <= got.keys()
        every = [one for published in now.values() for one in published]
        assert not any(overlap(one, other) for i, one in enumerate(every) for other in every[:i])
