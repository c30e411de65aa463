"""Test the label language on real engines: driver and Docker networks, from outside, between networks, outbound."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.engine.outside import labels, seen, tcp
from tests.lab import DockerError, Wan
from tests.product import Fw, Net
from tests.waiting import until

#: The outsider's address, and another one's.
MINE, OTHERS = "198.51.100.0/24 2001:db8:ffff::/48", "203.0.113.0/24 2001:db8:5::/48"
_host_ports = itertools.count(23000)


def becomes(fw: Fw, right: set[tuple[str, str, int]], *tried: tuple[str, str, int]) -> None:
    """Wait until exactly these of the tried ports answer; a container's ports open some milliseconds late."""
    until(lambda: seen(fw, *tried) == right, f"just {right} of {tried} answer", 6)


@contextmanager
def networks(fw: Fw, driver: str | None) -> Iterator[Net]:
    with fw.network(driver=driver) as net:
        yield net


def compose(project: str, service: str) -> list[str]:
    """Return the labels that compose gives a container of a service."""
    return [
        word
        for key, value in (("project", project), ("service", service), ("container-number", "1"))
        for word in ("--label", f"com.docker.compose.{key}={value}")
    ]


# --- inbound ------------------------------------------------------------------------------------------------------


def test_sources_and_ports_that_labels_open_and_close(deep: Fw) -> None:
    """On a docker-fw network, `from` opens a port to some sources, and takes a port of the base from all others.

    `fw.deny` and `fw.policy` change the base; a port that is open to others is closed to this source. IPv4 and IPv6,
    TCP and UDP.
    """
    with deep.network() as net:
        mine = deep.run(net, *labels(allow=f"5432 from {MINE}, 53/udp from {MINE}, 22 from {OTHERS}"))
        theirs = deep.run(net, *labels(allow=f"5432 from {OTHERS}", deny="80"))
        closed = deep.run(net, *labels(policy="closed", allow="8080"))
        opened = deep.run(net, *labels(policy="open", deny="5432"))
        right: set[tuple[str, str, int]] = set()
        tried: list[tuple[str, str, int]] = []
        for app, ports in (
            (mine, (80, 443, 5432)),
            (theirs, (22, 443)),
            (closed, (8080,)),
            (opened, (22, 80, 443, 8080)),
        ):
            addresses = deep.addresses(app, net)
            tried += tcp(addresses, 22, 80, 443, 5432, 8080)
            right |= set(tcp(addresses, *ports))
        udp = [("udp", a, 53) for a in deep.addresses(mine, net)]
        never = [("udp", a, 53) for a in deep.addresses(theirs, net)]
        servers = [
            deep.engine.serve(app, tcp=[22, 80, 443, 5432, 8080], udp=[53]) for app in (mine, theirs, closed, opened)
        ]
        try:
            assert seen(deep, *tried, *udp, *never) == {*right, *udp}
            assert deep.wan.probe.ping(deep.addresses(closed, net)[1]) == "open"
        finally:
            for server in servers:
                server.close()


def test_on_dockers_own_networks_a_published_port_is_open_to_some(deep: Fw) -> None:
    """On Docker networks, a port that a label opens `from` some sources answers these alone.

    It answers them through the host's IPv4 and IPv6, by DNAT and by docker-proxy, which hides the client from the
    container.
    """
    mine, theirs = next(_host_ports), next(_host_ports)
    with networks(deep, "bridge") as net:
        one = deep.run(net, "-p", f"{mine}:5432", *labels(allow=f"5432 from {MINE}"))
        two = deep.run(net, "-p", f"{theirs}:5432", *labels(allow=f"5432 from {OTHERS}"))
        with deep.engine.serve(one, tcp=[5432]), deep.engine.serve(two, tcp=[5432]):
            hosts = (deep.host.v4, deep.host.v6)
            becomes(deep, set(tcp(hosts, mine)), *tcp(hosts, mine, theirs))
            assert not seen(deep, *tcp(hosts, theirs))
            assert set(deep.host.probe(tcp(hosts, mine, theirs)).values()) == {"open"}
            assert "closed to others" in deep.fwctl("ports")


def test_options_of_networks_and_attachments_and_labels_for_one_network(each: Fw) -> None:
    """Options of networks and attachments have the same keys as labels, on both kinds of networks.

    They are network options, `fw.network.NAME.…` and `driver_opts` of one attachment: lists add up, of others the
    closest wins.
    """
    for driver in (None, "bridge"):
        options = ("-o", "fw.allow=7001", "-o", "fw.deny=22", "-o", "fw.policy=open")
        with each.network(*options, driver=driver) as net, each.network(driver=driver) as plain:
            app = each.run(net, *labels(policy="default", **{f"network__{net.name}__allow": "7002", "allow": "7003"}))
            each.engine.docker("network", "connect", "--driver-opt", "fw.allow=7004", plain.name, app)
            ports = (22, 80, 7001, 7002, 7003, 7004, 7005)
            reach = _accepted_by_network(each, app)
            until(lambda r=reach: len(r()) == 2, "both attachments are known")
            assert reach()[net.name] >= {"80/tcp", "7001/tcp", "7002/tcp", "7003/tcp"}
            assert not reach()[net.name] & {"22/tcp", "7004/tcp", "7005/tcp"}
            if each.engine.version != "20.10.24" or driver is None:  # whose list has no driver_opts
                assert "7004/tcp" in reach()[plain.name]
            assert not reach()[plain.name] & {"7001/tcp", "7002/tcp"}
            if driver is None:
                with each.engine.serve(app, tcp=ports):
                    first, second = each.addresses(app, net), each.addresses(app, plain)
                    # A new interface's IPv6 answers once its link-local address is no longer tentative (DAD, a second).
                    becomes(each, set(tcp(first, 80, 7001, 7002, 7003)), *tcp(first, *ports))
                    becomes(each, set(tcp(second, 22, 80, 7003, 7004)), *tcp(second, *ports))


def _accepted_by_network(fw: Fw, container: str):  # type: ignore[no-untyped-def]
    """Return what the container accepts by network, as fwctl reports it."""

    def ask() -> dict[str, set[str]]:
        status = fw.status()
        return {
            network["name"]: set(endpoint["accepts"])
            for network in (*status["networks"], *status["guarded"])
            for endpoint in network["endpoints"]
            if endpoint["container"] == container
        }

    return ask


def test_peers_follow_their_containers(deep: Fw) -> None:
    """`service:`, `container:` and `network:` mean the current owner of the name.

    A new owner is let in. A former one is not, nor the next owner of its address, and its established flows are cut.
    """
    with deep.network() as inner, deep.network() as outer:
        db = deep.run(
            inner, *compose("shop", "db"), *labels(allow=f"6379 from service:api, 5432 from network:{outer.name}")
        )
        with deep.engine.serve(db, tcp=[6379, 5432]):
            v4, v6 = deep.addresses(db, inner)
            stranger = deep.run(outer, *compose("other", "api"))
            assert set(deep.engine.netns(stranger).probe(tcp((v4, v6), 6379)).values()) == {"silent"}
            assert set(deep.engine.netns(stranger).probe(tcp((v4, v6), 5432)).values()) == {"open"}
            api = deep.run(outer, *compose("shop", "api"))
            assert set(deep.engine.netns(api).probe(tcp((v4, v6), 6379)).values()) == {"open"}
            had4, had6 = deep.addresses(api, outer)
            deep.remove(api)
            heir = deep.run(outer, "--ip", had4, "--ip6", had6)
            assert set(deep.engine.netns(heir).probe(tcp((v4, v6), 6379)).values()) == {"silent"}


def test_an_image_makes_no_container_a_service(fw: Fw) -> None:
    """Compose labels from an image make no container a peer: an image must not open others' ports to itself."""
    built = (
        "FROM busybox\nLABEL com.docker.compose.project=shop com.docker.compose.service=api "
        "com.docker.compose.container-number=1 com.docker.compose.config-hash=0\n"
    )
    fw.engine.host.run(["docker", "build", "-t", "pretender", "-"], input=built, timeout=120)
    with fw.network() as inner, fw.network() as outer:
        db = fw.run(inner, *compose("shop", "db"), *labels(allow="6379 from service:api project:shop"))
        with fw.engine.serve(db, tcp=[6379]):
            pretender = fw.run(outer, image="pretender")
            api = fw.run(outer, *compose("shop", "api"))
            targets = tcp(fw.addresses(db, inner), 6379)
            assert set(fw.engine.netns(api).probe(targets).values()) == {"open"}
            assert set(fw.engine.netns(pretender).probe(targets).values()) == {"silent"}


def test_a_new_flow_too_many_is_dropped(fw: Fw) -> None:
    """`fw.rate` limits a source's new connections to a port; other ports are not counted."""
    with fw.network() as net:
        app = fw.run(net, *labels(rate="22 3/day burst 3", allow="8080"))
        with fw.engine.serve(app, tcp=[22, 80, 8080]):
            for address in fw.addresses(app, net):
                assert [fw.wan.probe.tcp(address, 22) for _ in range(5)] == ["open"] * 3 + ["silent"] * 2
                assert [fw.wan.probe.tcp(address, 8080) for _ in range(5)] == ["open"] * 5


# --- outbound -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", [None, "bridge"])
def test_flows_that_a_container_may_initiate(deep: Fw, driver: str | None) -> None:
    """`fw.egress` on both kinds of networks: `none` allows nothing to the outside and to the host, a list its entries.

    Both still answer permitted inbound traffic, reach their neighbours, and resolve their names. Containers without the
    label reach everything, on the same network and elsewhere.
    """
    with networks(deep, driver) as net:
        none = deep.run(net, *labels(egress="none"))
        some = deep.run(net, *labels(egress=f"8000, 53/udp to {Wan.FAR_V4} {Wan.FAR_V6}, 9000 to host"))
        free = deep.run(net)
        with (
            deep.wan.probe.serve(tcp=[8000, 8001], udp=[53]),
            deep.host.probe.serve(tcp=[9000, 9001]),
            deep.engine.serve(free, tcp=[5432]),
            deep.engine.serve(none, tcp=[80]),
        ):
            far = [*tcp((Wan.FAR_V4, Wan.FAR_V6), 8000, 8001), *(("udp", a, 53) for a in (Wan.FAR_V4, Wan.FAR_V6))]
            host = tcp((deep.host.v4, deep.host.v6), 9000, 9001)
            right = {*tcp((Wan.FAR_V4, Wan.FAR_V6), 8000), *far[-2:], *tcp((deep.host.v4, deep.host.v6), 8000, 9000)}
            tried = [*far, *host]

            def reaches(container: str) -> set[tuple[str, str, int]]:
                found = deep.engine.netns(container).probe(tried)
                return {target for target, verdict in found.items() if verdict == "open"}  # type: ignore[misc]

            until(lambda: reaches(free) == set(tried), "a container without the label reaches everything", 6)
            assert reaches(none) == set()
            assert reaches(some) == right & set(tried)
            for container in (none, some):
                neighbours = tcp(deep.addresses(free, net), 5432)
                assert set(deep.engine.netns(container).probe(neighbours).values()) == {"open"}
                assert deep.addresses(free, net)[0] in deep.engine.docker("exec", container, "nslookup", free)
            if driver is None:
                for address in deep.addresses(none, net):
                    assert deep.wan.probe.tcp(address, 80) == "open"


def test_a_restricted_network_is_so_from_the_first_packet(deep: Fw) -> None:
    """With `fw.egress=none` as the network's option not even a container's first instruction initiates anything."""
    for driver in (None, "bridge"):
        with deep.network("-o", "fw.egress=none", driver=driver) as net, deep.wan.probe.serve(tcp=[8000]) as server:
            for _ in range(3):
                deep.run(net, command=("sh", "-c", f"nc -w 1 {Wan.FAR_V4} 8000 </dev/null; exec sleep inf"))
            app = deep.run(net)
            assert deep.engine.netns(app).probe.tcp(Wan.FAR_V4, 8000) == "silent"
            assert not server.seen()


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_a_restricted_container_stays_so_while_docker_starts_it(deep: Fw, how: str) -> None:
    """A container that dockerd restarts before its API answers initiates nothing that its labels forbid.

    This holds from its first instruction, on both kinds of networks.
    """
    loop = f"while :; do echo x | nc -u -w 1 {Wan.FAR_V4} 8000 & sleep 0.05; done"
    with deep.network() as net, deep.network(driver="bridge") as plain, deep.wan.probe.serve(udp=[8000]) as server:
        options = ("--restart", "always", "--stop-timeout", "0", *labels(egress="none"))
        apps = [deep.run(where, *options, command=("sh", "-c", loop)) for where in (net, plain)]
        until(
            lambda: all(deep.known(app) or _accepted_by_network(deep, app)() for app in apps),
            "both containers are known",
        )
        before = len(server.seen())
        if how == "restart":
            deep.engine.restart()
        else:
            deep.engine.kill()
            deep.engine.start()
        until(lambda: all(_accepted_by_network(deep, app)() for app in apps), "both containers are known again")
        until(lambda: all(deep.engine.inspect(app)["State"]["Running"] for app in apps), "both containers run")
        assert len(server.seen()) == before


# --- mistakes, images, overrides ----------------------------------------------------------------------------------


def test_every_mistake_at_once(deep: Fw) -> None:
    """A container with several wrong labels does not start, and Docker prints all of them, with the correct forms."""
    with deep.network() as net:
        spec = deep.refuse(
            net, *labels(allow="808O, 22 from 10.0.0.0/33", polcy="closed", egress="443 form host", rate="22 often")
        )
        for part in (
            '"808O" is not a port',
            '"10.0.0.0/33" is not an address',
            "did you mean fw.policy?",
            '"443 form host" is not',
            '"22 often" is not a rate',
        ):
            assert part in spec, spec


def test_a_mistake_on_dockers_own_network_closes(deep: Fw) -> None:
    """A Docker network cannot refuse a container, so a mistake closes it.

    A wrong `fw.allow` leaves the base without denies, a wrong `fw.deny` leaves ICMP only, and with a wrong `fw.egress`
    the container may initiate nothing. fwctl reports which.
    """
    with networks(deep, "bridge") as net, deep.wan.probe.serve(tcp=[8000]):
        ports = {name: next(_host_ports) for name in ("allow", "deny", "egress")}
        apps = {
            "allow": deep.run(net, "-p", f"{ports['allow']}:80", *labels(allow="808O", deny="22")),
            "deny": deep.run(net, "-p", f"{ports['deny']}:80", *labels(deny="8O", allow="8080")),
            "egress": deep.run(net, "-p", f"{ports['egress']}:80", *labels(egress="443, 80x")),
        }
        servers = [deep.engine.serve(app, tcp=[80]) for app in apps.values()]
        try:
            hosts = (deep.host.v4, deep.host.v6)
            right = {*tcp(hosts, ports["allow"]), *tcp(hosts, ports["egress"])}
            becomes(deep, right, *tcp(hosts, *ports.values()))
            assert deep.engine.netns(apps["egress"]).probe.tcp(Wan.FAR_V4, 8000) == "silent"
            assert deep.engine.netns(apps["deny"]).probe.tcp(Wan.FAR_V4, 8000) == "open"
            status = deep.fwctl("status")
            for part in ('"808O" is not a port', '"8O" is not a port', '"80x" is not a port'):
                assert part in status
        finally:
            for server in servers:
                server.close()


def test_an_image_opens_nothing(fw: Fw) -> None:
    """Labels from an image open nothing, those that close count, and the status reports the ignored ones."""
    built = "FROM busybox\nLABEL fw.allow=8080 fw.deny=22 fw.policy=open\n"
    fw.engine.host.run(["docker", "build", "-t", "pushy", "-"], input=built, timeout=120)
    with fw.network() as net:
        app = fw.run(net, image="pushy")
        own = fw.run(net, *labels(allow="9090"), image="pushy")
        ports = (22, 80, 443, 8080, 9090)
        with fw.engine.serve(app, tcp=ports), fw.engine.serve(own, tcp=ports):
            first, second = fw.addresses(app, net), fw.addresses(own, net)
            assert seen(fw, *tcp(first, *ports)) == set(tcp(first, 80, 443))
            assert seen(fw, *tcp(second, *ports)) == set(tcp(second, 80, 443, 9090))
        assert 'label fw.allow="8080" comes from the image and opens nothing' in fw.fwctl("status")


@pytest.mark.parametrize("driver", [None, "bridge"])
def test_oversized_labels_affect_no_other_container(deep: Fw, driver: str | None) -> None:
    """A container with labels of 12 MiB stays out of a docker-fw network, and accepts ICMP only on a Docker network.

    That is more than docker-fw reads of anything: 1 MiB of an event, 4 of a container, 8 of a request.

    On a docker-fw network it does not start; if Docker's answer takes longer than Join waits, it starts closed. Running
    containers stay open without a gap, new ones are known, and events are still followed.
    """
    port, closed = next(_host_ports), next(_host_ports)
    with networks(deep, driver) as net:
        app = deep.run(net, "-p", f"{port}:8080", *labels(allow="8080"))
        with deep.engine.serve(app, tcp=[8080]):
            target = ("tcp", deep.host.v4, port)
            becomes(deep, {target}, target)
            with deep.wan.probe.hammer(target, every=0.02) as hammer:
                large, oversized = f"large{closed}", {"fw.policy": "open", "x": "y" * (12 << 20)}
                with contextlib.ExitStack() as stack:
                    try:
                        _with_labels(deep, net, closed, oversized)
                    except DockerError as error:
                        if driver or "its entry in Docker's list exceeds 4 MiB" not in str(error):
                            raise
                        runs = False
                    else:
                        runs = True
                        stack.enter_context(deep.engine.serve(large, tcp=[80]))
                    later = next(_host_ports)
                    new = deep.run(net, "-p", f"{later}:8080", *labels(allow="8080"))
                    with deep.engine.serve(new, tcp=[8080]):
                        becomes(deep, {("tcp", deep.host.v4, later)}, ("tcp", deep.host.v4, later))
                    assert not seen(deep, ("tcp", deep.host.v4, closed))
                    if runs:
                        assert not seen(deep, *tcp(deep.addresses(large, net), 80))
                    until(lambda: large in deep.status()["apart"], "status names the container", 40)
                deep.remove(large)
            assert not hammer.result.failed
            assert deep.status()["listening"]


def _with_labels(fw: Fw, net: Net, port: int, labels_: dict[str, str]) -> None:
    """Create a running container with labels too large for a command line; its port 80 is published on `port`."""
    config = {
        "Image": "busybox",
        "Cmd": ["sleep", "inf"],
        "Labels": labels_,
        "ExposedPorts": {"80/tcp": {}},
        "HostConfig": {"NetworkMode": net.name, "PortBindings": {"80/tcp": [{"HostPort": str(port)}]}},
    }
    made = fw.engine.api("POST", f"/containers/create?name=large{port}", config)
    fw.engine.api("POST", f"/containers/{made['Id']}/start")


@pytest.mark.parametrize("driver", [None, "bridge"])
def test_a_running_containers_port_is_opened_and_closed_again(deep: Fw, driver: str | None) -> None:
    """`fwctl allow` opens a port without recreating the container, `revert` closes it; `deny` closes a labelled port.

    Flows through a port that closes are cut, and no others. Bans take precedence over all.
    """
    port, other = next(_host_ports), next(_host_ports)
    with networks(deep, driver) as net:
        app = deep.run(net, "-p", f"{port}:5432", "-p", f"{other}:8080", *labels(allow="8080"))
        with deep.engine.serve(app, tcp=[5432, 8080]):
            hosts = (deep.host.v4, deep.host.v6)
            becomes(deep, set(tcp(hosts, other)), *tcp(hosts, port, other))
            deep.fwctl("allow", app, "5432", "--for", "1h")
            assert seen(deep, *tcp(hosts, port, other)) == set(tcp(hosts, port, other))
            assert "fwctl allow 5432/tcp" in deep.fwctl("status")
            deep.fwctl("revert", app)
            assert seen(deep, *tcp(hosts, port, other)) == set(tcp(hosts, other))
            deep.fwctl("deny", app, "8080")
            assert seen(deep, *tcp(hosts, port, other)) == set()
            deep.fwctl("revert", app)
            assert seen(deep, *tcp(hosts, port, other)) == set(tcp(hosts, other))
            deep.fwctl("ban", Wan.V4)
            try:
                assert seen(deep, *tcp(hosts, other)) == set(tcp(hosts[1:], other))
            finally:
                deep.fwctl("unban", Wan.V4)
            assert seen(deep, *tcp(hosts, port, other)) == set(tcp(hosts, other))
        with pytest.raises(subprocess.CalledProcessError):
            deep.fwctl("allow", "no-such-container", "80")
