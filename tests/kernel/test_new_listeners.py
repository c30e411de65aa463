"""Test listeners on the host where docker-proxy is not identified by its control group, and groups of any level."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from plugin.kernel.names import AF
from plugin.kernel.sock_diag import Listeners, listening
from plugin.labels.parser import parse
from plugin.model import Address, Published
from plugin.nftables.elements import proxied_element
from plugin.nftables.sets import LOADING, WATCHED, Change, Element
from tests.kernel.netns import inside
from tests.kernel.resets import resetting, served, was_reset
from tests.kernel.running import Running
from tests.kernel.site import Site
from tests.kernel.watched import watched
from tests.lab.netns import FORWARDING
from tests.waiting import until

ANY4, ANY6 = IPv4Address("0.0.0.0"), IPv6Address("::")
PROXY_UNIDENTIFIED = {Element("proxy_unidentified", (family,)) for family in AF.values()}
HOSTS = (str(Site.HOST4), str(Site.HOST6))


def on_all_addresses(*ports: int, protos: tuple[str, ...] = ("tcp", "udp")) -> list[tuple[str, str, int]]:
    return [(proto, host, port) for proto in protos for host in HOSTS for port in ports]


def seen(site: Site, *ports: int) -> set[tuple[str, str, int]]:
    """Return what an outsider reaches."""
    return {
        target for target, verdict in site.wan.probe(on_all_addresses(*ports), timeout=0.3).items() if verdict == "open"
    }


def test_new_listeners_are_dropped_until_known(site: Site) -> None:
    """No handshake completes on a port that is not known to be the host's own, of TCP and UDP, IPv4 and IPv6.

    The host itself and its loopback reach it. Where no process listens the refusal is the host's, as usual.
    """
    site.load(more=PROXY_UNIDENTIFIED)
    assert set(site.wan.probe(on_all_addresses(7001), timeout=0.3).values()) == {"refused"}
    with site.host.probe.serve(tcp=[7001], udp=[7001]):
        assert set(site.wan.probe(on_all_addresses(7001), timeout=0.3).values()) == {"silent"}
        assert set(site.host.probe([*on_all_addresses(7001), ("tcp", "127.0.0.1", 7001)]).values()) == {"open"}
        site.load()
        assert seen(site, 7001) == set(on_all_addresses(7001))


def test_what_a_killed_start_left_hides_no_feature(site: Site) -> None:
    """A start that is killed while it tries what the kernel supports does not make the next one's table weaker."""
    site.run("nft", "add table inet docker-fw_try { chain try { type filter hook forward priority filter; }; }")
    site.load(more=PROXY_UNIDENTIFIED)
    with site.host.probe.serve(tcp=[7001], udp=[7001]):
        assert set(site.wan.probe(on_all_addresses(7001), timeout=0.3).values()) == {"silent"}
    assert "docker-fw_try" not in site.run("nft", "list", "tables").stdout


def test_untracked_packets_to_new_listeners_are_dropped(site: Site) -> None:
    """On a host that does not track connections (notrack, for speed) closed ports are as closed.

    New listeners of docker-proxy are dropped in the same way; also while docker-fw does not follow Docker.
    """
    rules = "chain c { type filter hook prerouting priority raw\n tcp dport 7001 notrack\n }"
    site.run("nft", "-f", "-", input=f"table inet untracked {{\n{rules}\n}}\n")
    served = {proxied_element(Published("tcp", every, 7001, 80), "host_open") for every in (ANY4, ANY6)}
    with site.host.probe.serve(tcp=[7001]):
        site.load()
        assert seen(site, 7001) == set(on_all_addresses(7001, protos=("tcp",)))
        for more in ({*PROXY_UNIDENTIFIED, *WATCHED}, served):
            site.load(more=more)
            with watched(site, "tcp dport 7001") as count:
                assert seen(site, 7001) == set()
                assert count() == 0, "another program's chain could accept it: a SYNPROXY, for example"


def test_the_hosts_own_programs_are_reached(site: Site) -> None:
    """Known programs are reached, on a family's addresses or on one; so are labelled ports and dockerd's own."""
    ports = [Published("tcp", ANY6, 7001, 7001), Published("tcp", Site.HOST4, 7002, 7002)]
    known = {proxied_element(port, "host_own") for port in ports}
    known |= {
        proxied_element(Published("tcp", ANY4, 7003, 80), "host_open"),
        Element("dockerd_ports", (6, 7004)),
        *WATCHED,
    }
    with site.host.probe.serve(tcp=[7001, 7002, 7003, 7004], udp=[7001]):
        site.load(more={*PROXY_UNIDENTIFIED, *known})
        four, six = HOSTS
        assert seen(site, 7001, 7002, 7003, 7004) == {
            ("tcp", six, 7001), ("tcp", four, 7002), ("tcp", four, 7003), ("tcp", four, 7004), ("tcp", six, 7004),
        }  # fmt: skip
        site.load(more={*PROXY_UNIDENTIFIED, *known, proxied_element(ports[0])})
        assert seen(site, 7001) == set(), "a closed port is closed whichever process listens"


def test_established_flows_to_listeners_continue(site: Site) -> None:
    """A connection that was accepted before, and one that the host forgot, continue; so does a reply to a datagram."""
    script = """
import socket, sys
s = socket.create_connection((sys.argv[1], 7001), 3)
for line in sys.stdin:
    s.send(line.encode()); print(s.recv(99).decode().strip() or "end", flush=True)
"""
    echo = """
import socket
s = socket.create_server(("0.0.0.0", 7001)); print("ready", flush=True)
c, _ = s.accept()
while data := c.recv(99):
    c.send(data)
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = site.host.popen([sys.executable, "-c", echo], **pipes)
    client = None
    try:
        assert server.stdout.readline() == "ready\n"
        site.load()
        client = site.wan.popen([sys.executable, "-c", script, HOSTS[0]], **pipes)

        def says(word: str) -> str:
            client.stdin.write(f"{word}\n")
            client.stdin.flush()
            return str(client.stdout.readline().strip())

        assert says("one") == "one"
        site.load(more=PROXY_UNIDENTIFIED)
        assert says("two") == "two"
        # Otherwise the host sends it again, and the connection that it forgot is one that the host opened.
        sent = ["ss", "-Htn", "state", "established", "sport = 7001"]
        until(lambda: site.run(*sent).stdout.split()[1] == "0", "the client has acknowledged it")
        site.run("conntrack", "-F", check=False)
        assert says("three") == "three"
    finally:
        for process in filter(None, (client, server)):
            process.kill()
            process.communicate(timeout=30)
    site.load(more=PROXY_UNIDENTIFIED)
    with site.wan.probe.serve(udp=[7005]):
        assert set(site.host.probe([("udp", str(out), 7005) for out in (Site.OUT4, Site.OUT6)]).values()) == {"open"}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("closes", ["unknown", "host_closed", "host_open", "host_open on one address", "loading"])
def test_a_retry_after_a_reset_is_treated_as_a_new_connection(site: Site, closes: str, host: str) -> None:
    """After a host program reset a connection and docker-proxy got the port, a client's retry is treated as a new one.

    It is dropped on a port not known to be the host's, on a closed port, and on ports that docker-fw no longer follows,
    like every client's.
    """
    site.load(more=WATCHED)
    sport = 21000
    with resetting(site.host, host, 7001):
        assert served(site, host, 7001, 2, sport) == 2
    closes, _, one = closes.partition(" ")
    ports = [Published("tcp", every, 7001, 80) for every in ((Site.HOST4, Site.HOST6) if one else (ANY4, ANY6))]
    more = set(PROXY_UNIDENTIFIED) if closes == "unknown" else set[Element]()
    more |= {proxied_element(port, closes) for port in ports if closes in ("host_closed", "host_open")}
    site.load(more=more if closes == "host_open" else {*more, *WATCHED})
    if closes == "loading":
        site.nft.change(Change(), dict.fromkeys(LOADING, 60))
    with resetting(site.host, host, 7001), watched(site, "tcp dport 7001") as count:
        assert served(site, host, 7001, 1, sport) == 0
        assert count() == 0, "no chain of another program sees it"


# --- which process listens --------------------------------------------------------------------------------------------

SOCKETS = """
import os, socket, sys
def made(family, kind, host, port, v6only=None, user=0):
    os.seteuid(user)
    s = socket.socket(family, kind)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if v6only is not None:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
    s.bind((host, port))
    os.seteuid(0)
    kind == socket.SOCK_STREAM and s.listen()
    return s
four, six, tcp, udp = socket.AF_INET, socket.AF_INET6, socket.SOCK_STREAM, socket.SOCK_DGRAM
kept = [made(four, tcp, "0.0.0.0", 7001), made(six, tcp, "::", 7002, 0), made(six, tcp, "::", 7003, 1)]
kept += [made(four, udp, "0.0.0.0", 7004, None, 65534), made(four, tcp, "127.0.0.1", 7005)]
kept += [made(six, udp, "::", 7006, 0)]
idle = socket.socket(four, udp)
idle.connect(("127.0.0.1", 7004))
print("ready", flush=True)
for line in sys.stdin:
    if line == "again\\n":
        kept[0].close()
        kept[0] = made(four, tcp, "0.0.0.0", 7001)
    print("done", flush=True)
"""


@contextmanager
def sockets(site: Site) -> Iterator[subprocess.Popen[str]]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = site.host.popen([sys.executable, "-c", SOCKETS], **pipes)
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


def test_sockets_are_seen_as_they_are(site: Site) -> None:
    """Sockets are listed with protocol, address, port, and whether root opened them.

    A socket for both families counts in both; loopback is left out.
    """
    with sockets(site), site.inside():
        found = {(each.port.proto, each.port.host_ip, each.port.host_port, each.root) for each in listening()}
    assert found == {
        ("tcp", ANY4, 7001, True), ("tcp", ANY6, 7002, True), ("tcp", ANY4, 7002, True), ("tcp", ANY6, 7003, True),
        ("udp", ANY4, 7004, False), ("udp", ANY6, 7006, True), ("udp", ANY4, 7006, True),
    }  # fmt: skip


def test_another_socket_on_the_same_port_is_another(site: Site) -> None:
    """A host program ends and docker-proxy takes its port between two listings: it is not taken for the host's."""
    with site.inside():
        listeners = Listeners()
        with sockets(site) as process:
            at = Published("tcp", ANY4, 7001, 7001)
            assert at in listeners.poll()
            process.stdin.write("again\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n"
            assert at not in listeners.poll()
            assert Published("tcp", ANY4, 7001, 7001) in listeners.held()


# --- the whole plugin -------------------------------------------------------------------------------------------------


def reached(fw: Running, port: int) -> bool:
    return fw.site.wan.probe.tcp(HOSTS[0], port, timeout=0.3) == "open"


@contextmanager
def serving(site: Site, *ports: int) -> Iterator[None]:
    """Run a server of root's on each of these ports of the host."""
    script = """
import socket, sys
kept = [socket.create_server(("", int(port))) for port in sys.argv[1:]]
print("ready", flush=True)
input()
"""
    command = [sys.executable, "-c", script, *map(str, ports)]
    process = site.host.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate(timeout=30)


def test_a_program_of_the_hosts_is_reached_once_docker_has_answered(fw: Running) -> None:
    """A listener from before docker-fw is never closed; a new one is open soon after, if Docker answers.

    A port that a container requests stays closed. A kill of docker-fw does not change this: ports opened meanwhile wait
    for Docker's answer.
    """
    with serving(fw.site, 7001):
        fw.docker.container("web", "e" * 64, "n" * 64)
        (web,) = fw.docker.containers.values()
        web["HostConfig"] = {"PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "7003"}]}}
        fw.start()
        assert reached(fw, 7001)
        until(lambda: any(web["Id"] in path for path in fw.docker.asked), "the container is asked about")
        with serving(fw.site, 7002, 7003):
            until(lambda: reached(fw, 7002), "the host's program is reached")
            assert not reached(fw, 7003)
            assert fw.status()["held"] == []
            fw.docker.mode = "hang"
            fw.docker.end_streams()
            fw.kill_worker()
            assert (reached(fw, 7001), reached(fw, 7002), reached(fw, 7003)) == (True, True, False)
            with serving(fw.site, 7004):
                assert not reached(fw, 7004)
                fw.kill_worker()
                until(lambda: "7004/tcp on 0.0.0.0" in fw.status()["held"], "status lists the port as held")
                assert (reached(fw, 7001), reached(fw, 7002), reached(fw, 7004)) == (True, True, False)
                fw.docker.mode = "answer"
                until(lambda: reached(fw, 7004), "Docker answers, and it is reached", 15)


def test_a_program_that_starts_again_is_reached_though_docker_is_silent(fw: Running) -> None:
    """sshd restarts while Docker does not answer: the administrator who would fix Docker is not locked out.

    A port that was not the host's at Docker's last answer, and one that a container requests, stay dropped.
    """
    with serving(fw.site, 7001):
        fw.start()
        with serving(fw.site, 7002):
            until(lambda: reached(fw, 7002), "Docker answers, and it is reached", 15)
        fw.docker.container("web", "e" * 64, "n" * 64)
        (web,) = fw.docker.containers.values()
        web["HostConfig"] = {"PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "7002"}]}}
        fw.docker.event("container", "create")
        until(lambda: any(web["Id"] in path for path in fw.docker.asked), "the container is asked about")
        fw.docker.mode = "hang"
        fw.docker.end_streams()
    with serving(fw.site, 7001, 7002, 7003):
        until(lambda: reached(fw, 7001), "the program is reached", 15)
        assert not reached(fw, 7002)
        assert not reached(fw, 7003)


# --- control groups ---------------------------------------------------------------------------------------------------


@pytest.fixture
def group() -> Iterator[Path]:
    """Create control groups where possible: in version 2, alone or beside version 1."""
    mounted = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
    tops = [top for top in mounted if (top / "cgroup.controllers").exists()]
    if not tops:
        pytest.skip("no control groups of version 2 here")
    made = [tops[0] / f"docker-fw-test-{os.getpid()}"]
    made += [made[0] / "b", made[0] / "b/c", made[0] / "b/c/d"]
    for each in made:
        each.mkdir()
    try:
        yield made[0]
    finally:
        for each in reversed(made):
            until(lambda each=each: not (each / "cgroup.procs").read_text(), "the group is empty")
            each.rmdir()


@contextmanager
def in_group(site: Site, group: Path, *argv: str) -> Iterator[subprocess.Popen[str]]:
    """Run a Python program on the host in this control group; it prints a line when it is ready."""
    grouped = ["sh", "-ec", 'echo $$ > "$0/cgroup.procs"; exec "$@"', str(group), sys.executable, "-c", *argv]
    process = site.host.popen(grouped, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


#: A server for both families on a port, over TCP.
SERVES = "import socket, sys; s = socket.create_server(('::', int(sys.argv[1])), family=10, dualstack_ipv6=True)"
SERVES += "; print(s, flush=True); input()"


@pytest.mark.parametrize("level", ["", "b", "b/c", "b/c/d"])
def test_docker_proxy_is_known_by_a_group_of_any_level(site: Site, group: Path, level: str) -> None:
    """openrc.docker is at the top, docker.service in a slice; listeners in another group are not matched."""
    place = group / level
    six = HOSTS[1]
    with in_group(site, place, SERVES, "7001"):
        site.load(more=[Element("docker_proxy", (place.stat().st_ino + 1,))])
        assert site.wan.probe.tcp(six, 7001, timeout=0.3) == "open"
        site.load(more=[Element("docker_proxy", (place.stat().st_ino,))])
        with watched(site, "tcp dport 7001") as seen:
            assert site.wan.probe.tcp(six, 7001, timeout=0.3) == "silent"
            assert seen() == 0, "another program's chain could accept it: a SYNPROXY, for example"
        site.load(more=[Element("docker_proxy", (place.stat().st_ino,)), Element("dockerd_ports", (6, 7001))])
        assert site.wan.probe.tcp(six, 7001, timeout=0.3) == "open"


@pytest.mark.parametrize("hosts", [(ANY4, ANY6), (Site.HOST4, Site.HOST6)], ids=["every address", "one address"])
@pytest.mark.parametrize("known", [True, False], ids=["by its group", "not known"])
def test_a_list_of_sources_opens_a_port_of_docker_proxy_for_them(
    site: Site, group: Path, known: bool, hosts: tuple[Address, Address]
) -> None:
    """`from` applies to docker-proxy's socket too, however it is identified: the list's addresses reach it alone."""
    web = site.docker_box("br-000000000001", 101)
    ports = [Published("tcp", address, 7001, 80) for address in hosts]
    proxy = {Element("docker_proxy", (group.stat().st_ino,))} if known else PROXY_UNIDENTIFIED
    try:
        for sources, verdict in ((f"{site.wan.V4} {site.wan.V6}", "open"), ("192.0.2.9 2001:db8:9::9", "silent")):
            spec = parse({"fw.allow": f"80 from {sources}"}).spec
            site.load(more={*proxy, *site.docker_elements(web, "br-000000000001", published=tuple(ports), spec=spec)})
            with in_group(site, group, SERVES, "7001"):
                assert {*site.wan.probe(on_all_addresses(7001, protos=("tcp",)), timeout=0.3).values()} == {verdict}
    finally:
        site.host.ip("link del br-000000000001")


#: A server that has joined two groups. It prints what each datagram contains.
HEARS = """
import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.bind(("::", 7001))
link = socket.if_nametoindex("eth0")
group = socket.inet_pton(socket.AF_INET6, "ff02::4242") + link.to_bytes(4, "little")
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
four = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
four.bind(("", 7002))
four.setsockopt(0, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("224.0.0.42") + socket.inet_aton("198.51.100.1"))
print("ready", flush=True)
for sock, count in ((s, 1), (four, 3)):
    for _ in range(count):
        print(sock.recv(99).decode(), flush=True)
"""
#: A client that sends to groups, and to all.
CALLS = """
import socket
link = socket.if_nametoindex("lan")
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.sendto(b"group, IPv6", ("ff02::4242", 7001, 0, link))
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lan")
for host, word in (("224.0.0.42", b"group, IPv4"), ("198.51.100.255", b"subnet"), ("255.255.255.255", b"all")):
    s.sendto(word, (host, 7002))
"""


def test_datagrams_to_groups_and_to_all_reach_the_hosts_programs(site: Site) -> None:
    """A program of the host that has joined a group receives its datagrams, and those to the whole link."""
    site.load(more=WATCHED)
    server = site.host.popen([sys.executable, "-c", HEARS], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout.readline() == "ready\n"
        site.wan.run([sys.executable, "-c", CALLS])
        assert server.communicate(timeout=10)[0].splitlines() == ["group, IPv6", "group, IPv4", "subnet", "all"]
    finally:
        server.kill()
        server.communicate(timeout=30)


def link_local(site: Site, link: str) -> str:
    """Return the host's link-local address on this link, as soon as it has one."""
    shown: list[str] = []

    def assigned() -> bool:
        shown[:] = site.run("ip", "-6", "-o", "addr", "show", "dev", link, "scope", "link").stdout.split()
        return "inet6" in shown and "tentative" not in shown

    until(assigned, "an address")
    return shown[shown.index("inet6") + 1].partition("/")[0]


def test_a_refusal_leaves_by_the_link_that_the_packet_came_by(site: Site) -> None:
    """A port without a listener is refused at the host's link-local address too, on each of its links."""
    site.load(more=WATCHED)
    beyond = site.lan_box(9)
    try:
        for client, link in ((site.wan, "eth0"), (beyond, "lan9")):
            address = link_local(site, link)
            with inside(client.path), socket.socket(socket.AF_INET6) as sock:
                sock.settimeout(2)
                there = (address, 7001, 0, socket.if_nametoindex("lan" if client is site.wan else "eth0"))
                with pytest.raises(ConnectionRefusedError):
                    sock.connect(there)
    finally:
        site.host.ip("link del lan9")


#: A server that listens for a tenth of a millisecond again and again, over TCP and UDP, until its standard input ends.
#: It prints how many datagrams arrived.
BLINKS = """
import os, select, socket, sys, time
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
family, port = int(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
got = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    stream, datagrams = socket.socket(family, socket.SOCK_STREAM), socket.socket(family, socket.SOCK_DGRAM)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    stream.bind(("", port))
    datagrams.bind(("", port))
    datagrams.setblocking(False)
    stream.listen()
    time.sleep(.0001)
    try:
        while datagrams.recv(9):
            got += 1
    except BlockingIOError:
        pass
    stream.close()
    datagrams.close()
    time.sleep(.0001)
print(got)
"""
#: A client that tries a TCP and a UDP port without pause: from one port of its own, or each time from another one. It
#: prints how many of its connections were open, how many refused, and how many it tried. Datagrams are sent to further
#: addresses too. On one link all happens within the call, on another processor than the server's.
TRIES = """
import errno, os, socket, sys, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
family, host, port, own, seconds = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
datagrams = socket.socket(family, socket.SOCK_DGRAM)
datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lan")
opened = refused = tries = 0
end = time.monotonic() + seconds
while time.monotonic() < end:
    stream = socket.socket(family, socket.SOCK_STREAM)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    stream.bind(("", own))
    stream.setblocking(False)
    stream.connect_ex((host, port))
    tries += 1
    error = stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    refused += error == errno.ECONNREFUSED
    try:
        stream.getpeername()
        opened += 1
    except OSError:
        pass
    stream.close()
    for each in (host, *sys.argv[6:]):
        datagrams.sendto(b"x", (each, port))
print(opened, refused, tries)
"""
#: Addresses at which a socket for all addresses receives datagrams: of the link, of groups, of any of its routers.
OF_ALL = {Site.HOST4: ("198.51.100.255", "224.0.0.1"), Site.HOST6: ("ff02::1", "2001:db8:ffff::")}
#: Rules of another program that take some ten microseconds, between docker-fw's and the kernel's look for a socket.
SLOW = f"""
table inet slow {{
  chain inner {{ {"meta mark 0x1234;" * 30} }}
  chain outer {{ {"jump inner;" * 30} }}
  chain last {{ type filter hook input priority 200; iifname "lo" accept; jump outer; jump outer; }}
}}
"""


@pytest.mark.parametrize(
    ("host", "known", "client"),
    [
        *((host, known, "new") for host in OF_ALL for known in ("by its group", "not known")),
        (Site.HOST4, "by its group", "reset before"),
        (Site.HOST4, "by its group", "server of the host before"),
        (Site.HOST4, "not known", "not tracked"),
    ],
    ids=str,
)
def test_no_packet_outruns_docker_proxy(site: Site, group: Path, host: Address, known: str, client: str) -> None:
    """A packet that is judged just before docker-proxy begins to listen does not reach docker-proxy.

    The rules find no socket then, and microseconds later the kernel would find one.
    """
    site.host.sysctl(FORWARDING)
    port, own = 7001, 0
    site.load()
    if client == "reset before":
        _, own = was_reset(site.wan, site.host, host, port)
    elif client == "server of the host before":
        own = 7
        _, port = was_reset(site.host, site.wan, site.wan.V4, own)
    elif client == "not tracked":
        rules = f"chain c {{ type filter hook prerouting priority raw\n tcp dport {port} notrack\n }}"
        site.run("nft", "-f", "-", input=f"table inet untracked {{\n{rules}\n}}\n")
    site.run("nft", "-f", "-", input=SLOW)
    proxy = {Element("docker_proxy", (group.stat().st_ino,))}
    site.load(more=proxy if known == "by its group" else PROXY_UNIDENTIFIED)
    family = str(int(socket.AF_INET6 if host.version == 6 else socket.AF_INET))
    with in_group(site, group, BLINKS, family, str(port)) as server:
        further = [*OF_ALL[host], link_local(site, "eth0")] if host.version == 6 else OF_ALL[host]
        argv = [family, str(host), str(port), str(own), "0.5", *further]
        out = site.wan.run([sys.executable, "-c", TRIES, *argv]).stdout
        arrived, _ = server.communicate(timeout=30)
    opened, refused, tries = map(int, out.split())
    assert 0 < refused < tries, "it listened part of the time"
    assert (opened, int(arrived)) == (0, 0)
