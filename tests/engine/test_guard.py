"""Test existing networks: Docker bridges behind the same policy, on every engine, at every moment."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.engine.outside import dockers, host_ports, hosts, publish, published_ports_obey, seen
from tests.lab import Engine
from tests.lab.netns import FORWARDING
from tests.product import IMAGE, NEWEST, Fw, with_image, with_plugin
from tests.waiting import until

CLOSED = (5432, 8081)
# --- the matrix ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["bridge", "v4", "dual", "named"])
def test_published_ports_obey_on_dockers_own_networks(each: Fw, where: str) -> None:
    """Without configuration, a published port answers if the container's is 22, 80, 443 or opened by its label.

    This holds on docker0, `br-…` and bridges of any name, over the host's IPv4 and IPv6, by docker-proxy no more than
    by DNAT. No other port answers. The host itself reaches all of them, and directly all ports.
    """
    published_ports_obey(each, where)


def test_addresses_of_their_own_are_closed_but_for_the_policy(each: Fw) -> None:
    """Closed ports of a container's address never answer on a host that routes to it, Docker's drop or not.

    Where Docker does not drop by itself (IPv6 before 27), the base and labels are open.
    """
    each.host.netns.sysctl(FORWARDING)
    with dockers(each) as net:
        app = each.run(net, "--label", "fw.allow=8080")
        with each.engine.serve(app, tcp=[22, 80, 443, 8080, *CLOSED], udp=[53]):
            v4, v6 = each.addresses(app, net)
            tried = [("tcp", a, p) for a in (v4, v6) for p in (22, 80, 443, 8080, *CLOSED)]
            tried += [("udp", a, 53) for a in (v4, v6)]
            right = set() if each.engine.version == "28.5.2" else {("tcp", v6, p) for p in (22, 80, 443, 8080)}
            until(
                lambda: {t for t in seen(each, *tried) if t[1] == v6} == right, "exactly the permitted ports answer", 5
            )
            assert not {t for t in seen(each, *tried) if t[2] in CLOSED or t[0] == "udp"}


@pytest.mark.parametrize("mode", ["routed", "nat-unprotected"])
def test_a_routed_networks_own_addresses_answer_on_the_policy(fw: Fw, mode: str) -> None:
    """Gateway modes that reach the container itself (Docker ≥ 27): base and labels are open, despite Docker's drop.

    Nothing else is, published or not, whatever Docker would accept.
    """
    options = [f"com.docker.network.bridge.gateway_mode_ipv{n}={mode}" for n in (4, 6)]
    with dockers(fw, *(word for option in options for word in ("-o", option))) as net:
        app = fw.run(net, "--label", "fw.allow=8080", "-p", "5432")
        with fw.engine.serve(app, tcp=[22, 80, 443, 8080, *CLOSED], udp=[53]):
            addresses = fw.addresses(app, net)
            right = {("tcp", a, p) for a in addresses for p in (22, 80, 443, 8080)}
            tried = [*right, *(("tcp", a, p) for a in addresses for p in CLOSED), *(("udp", a, 53) for a in addresses)]
            until(lambda: seen(fw, *tried) == right, "exactly the permitted ports answer", 5)
            assert {v for t, v in fw.wan.probe(tried).items() if t not in right} == {"silent"}


def test_what_is_published_for_the_host_alone_is_not_reached_by_a_route(each: Fw) -> None:
    """`-p 127.0.0.1:8080:80` on a Docker network opens port 80 to the host alone.

    A LAN machine with a route to the container does not reach its port 80, though Docker's own rules accept it (before
    Docker 28); the host reaches both ports. A label opens the port, and so does a second publication. On a docker-fw
    network the base is open as usual.
    """
    each.host.netns.sysctl(FORWARDING)
    with dockers(each) as net, each.network() as own:
        alone, more = (f"127.0.0.1:{next(host_ports)}:80" for _ in range(2))
        app = each.run(net, "-p", alone)
        label = each.run(net, "-p", more, "--label", "fw.allow=80")
        both = each.run(net, "-p", f"127.0.0.1:{next(host_ports)}:80", "-p", f"{next(host_ports)}:80")
        ours = each.run(own, "-p", f"127.0.0.1:{next(host_ports)}:80")
        with (
            each.engine.serve(app, tcp=[80, 443]),
            each.engine.serve(label, tcp=[80]),
            each.engine.serve(both, tcp=[80]),
            each.engine.serve(ours, tcp=[80]),
        ):
            closed = [("tcp", address, 80) for address in each.addresses(app, net)]
            witness = [("tcp", address, 443) for address in each.addresses(app, net)]
            opened = [("tcp", a, 80) for c in (label, both) for a in each.addresses(c, net)]
            opened += [("tcp", address, 80) for address in each.addresses(ours, own)]
            # Docker's own rules drop some of these, by version and family; docker-fw does not change that.
            until(lambda: seen(each, *opened) >= {t for t in opened if t[1] in each.addresses(ours, own)}, "open", 5)
            assert not seen(each, *closed)
            by_host = [*closed, *witness, ("tcp", "127.0.0.1", int(alone.split(":")[1]))]
            assert set(each.host.probe(by_host).values()) == {"open"}
            if each.engine.version == "26.1.5":  # Docker itself accepts routed clients
                assert seen(each, *opened) == set(opened)


def test_nor_while_its_container_starts(each: Fw) -> None:
    """Closed ports are closed from the first packet on, without waiting for Docker to list published ports."""
    each.host.netns.sysctl(FORWARDING)
    with dockers(each) as net:
        first = each.run(net)
        v4, v6 = each.addresses(first, net)
        each.remove(first)
        with each.wan.probe.hammer(("tcp", v4, 80), ("tcp", v6, 80), every=0.004) as hammer:
            for _ in range(4):
                port, servers = f"127.0.0.1:{next(host_ports)}:80", "httpd -p 443; exec httpd -f -p 80"
                app = each.run(net, "--ip", v4, "--ip6", v6, "-p", port, command=("sh", "-c", servers))
                until(lambda: each.host.probe.tcp(v6, 80) == "open", "the container's server")
                if int(each.engine.version.split(".")[0]) < 27:  # there Docker itself drops unpublished ports
                    until(lambda: each.wan.probe.tcp(v6, 443) == "open", "the rest of the base", 10)
                each.remove(app)
        assert len(hammer.result.shots) > 100
        assert not hammer.result.opened


def test_one_network_of_dockers_from_another(each: Fw) -> None:
    """Containers of one network talk freely; from another one no closed port is reached, nor through the host."""
    options, ports = publish(5432)
    with dockers(each) as net, dockers(each) as other:
        app, mate, stranger = each.run(net, *options), each.run(net), each.run(other)
        with each.engine.serve(app, tcp=[80, 5432]):
            direct = [("tcp", address, 5432) for address in each.addresses(app, net)]
            by_host = [("tcp", host, ports["5432"]) for host in hosts(each)]
            until(
                lambda: set(each.engine.netns(mate).probe([*direct, *by_host[:1]]).values()) == {"open"},
                "neighbours reach every port",
                5,
            )
            assert "open" not in each.engine.netns(stranger).probe([*direct, *by_host]).values()


def test_the_setting_honours_published_ports(fw: Fw) -> None:
    """FW_PUBLISHED=allow: `-p` alone opens, by DNAT and by docker-proxy; unpublished ports stay closed."""
    with Engine(NEWEST, data=with_plugin(NEWEST)) as engine:
        theirs = Fw.install(engine, "FW_PUBLISHED=allow")
        options, ports = publish(5432)
        app = theirs.run("bridge", *options)
        with engine.serve(app, tcp=[5432, 80, 8081]):
            targets = [("tcp", host, ports["5432"]) for host in hosts(theirs)]
            until(lambda: seen(theirs, *targets) == set(targets), "-p opens", 5)
            v4, _ = engine.address(app)
            assert not seen(theirs, ("tcp", v4, 8081), ("tcp", v4, 5432))


def test_a_bridge_of_any_name_is_protected(fw: Fw) -> None:
    """A network whose bridge has a name that the table cannot store is closed permanently; the log reports it."""
    with dockers(fw, "-o", "com.docker.network.bridge.name=_front") as net:
        app = fw.run(net, "-p", "19999:9999", "--label", "fw.allow=9999")
        with fw.engine.serve(app, tcp=[9999]), fw.wan.probe.hammer(("tcp", fw.host.v4, 19999), every=0.02) as hammer:
            # Once a later bridge of another owner is left alone, this one's waiting time has passed too.
            fw.host.netns.ip("link add virbr8 type bridge")
            until(lambda: "virbr8" in fw.status()["foreign"], "another bridge is left alone", 10)
            fw.host.netns.ip("link del virbr8")
        assert len(hammer.result.shots) > 20
        assert not hammer.result.opened
        assert "_front" not in fw.status()["foreign"]
        assert 'bridge name must be an interface\'s name, not \\"_front\\"' in fw.engine.log.read_text()


def test_a_container_on_an_internal_network_too_is_published(fw: Fw) -> None:
    """A front and an `--internal` back network: the published port is open over IPv4 and docker-proxy's IPv6."""
    with dockers(fw, v6=False) as front, dockers(fw, "--internal", v6=False) as back:
        options, ports = publish(80, 5432)
        app = fw.run(front, *options)
        fw.engine.docker("network", "connect", back.name, app)
        with fw.engine.serve(app, tcp=[80, 5432]):
            right = {("tcp", host, ports["80"]) for host in hosts(fw)}
            tried = {("tcp", host, port) for host in hosts(fw) for port in ports.values()}
            until(lambda: seen(fw, *tried) == right, "exactly the permitted ports answer", 5)


# --- mistakes -----------------------------------------------------------------------------------------------------


def test_containers_with_wrong_labels_start_and_are_reported(deep: Fw) -> None:
    """Docker's own driver starts a container whatever its labels: a wrong fw.allow leaves the base.

    Another mistake leaves ICMP only; `fwctl status` quotes it.
    """
    options, ports = publish(80, 8080)
    more, theirs = publish(80)
    app = deep.run("bridge", *options, "--label", "fw.allow=8080, 808O")
    typo = deep.run("bridge", *more, "--label", "fw.dney=80")
    try:
        with deep.engine.serve(app, tcp=[80, 8080]), deep.engine.serve(typo, tcp=[80]):
            base = {("tcp", host, ports["80"]) for host in hosts(deep)}
            others = [("tcp", h, p) for h in hosts(deep) for p in (ports["8080"], theirs["80"])]
            until(lambda: seen(deep, *base, *others) == base, "the base, and nothing else", 5)
        spec = deep.fwctl("status")
        assert 'label fw.allow="8080, 808O": "808O" is not a port' in spec
        assert 'label fw.dney="80": is not a key of docker-fw' in spec
    finally:
        deep.remove(app, typo)


def test_labels_without_effect_are_reported(deep: Fw) -> None:
    """Where a label opens what no client can reach, `fwctl status` says why, and what to do."""
    with dockers(deep, v6=False) as net, dockers(deep, "--internal", v6=False) as inner:
        app = deep.run(net, "--label", "fw.allow=8080, 9000", "-p", "9000")
        hidden = deep.run(inner, "--label", "fw.allow=8080")
        until(lambda: hidden in deep.fwctl("status"), "both containers are known", 5)
        spec = deep.fwctl("status")
        assert f"fw.allow=8080 has no effect on {net.name} because it is a nat network" in spec
        assert "publish it (-p 8080:8080)" in spec
        assert f"fw.allow=9000 has no effect on {net.name}" not in spec
        assert f"fw.allow=8080 has no effect on {inner.name} because the network is internal" in spec
        assert app in deep.fwctl("ports")


def test_a_dry_run_says_what_installing_would_close(engines: object) -> None:
    """Before installation it lists which published ports close, which label keeps them open, and unaffected containers.

    It also lists the connections that would be cut, and changes nothing.
    """
    with Engine(NEWEST, data=with_image(NEWEST)) as engine:
        published = "-p 15432:5432 -p 18080:80 -p 127.0.0.1:16379:6379"
        engine.docker(*f"run -d --name db {published} --label fw.allow=9000 busybox sleep inf".split())
        engine.docker("run", "-d", "--name", "tool", "--network", "host", "busybox", "sleep", "inf")
        client = f"import socket, time; s = socket.create_connection(({engine.host.v4!r}, 15432)); print(s.recv(9)); "
        with engine.serve("db", tcp=[5432]):
            talking = engine.wan.popen(
                [sys.executable, "-uc", client + "time.sleep(60)"], stdout=subprocess.PIPE, text=True
            )
            try:
                assert talking.stdout
                assert talking.stdout.readline()
                tables = engine.host.run(["nft", "list", "tables"]).stdout
                asked = ("run", "--rm", "--network", "host", "--cap-add", "NET_ADMIN", "-v", "/run:/host/run:ro")
                spec = engine.docker(*asked, IMAGE, "dry-run")
                bare = [word for word in asked if word not in ("--cap-add", "NET_ADMIN")]
                refused = engine.try_docker(*bare, IMAGE, "dry-run")
            finally:
                talking.kill()
                talking.wait(30)
        assert refused.returncode == 1
        assert refused.stderr.startswith("fwctl: could not list the established connections")
        assert "--cap-add NET_ADMIN" in refused.stderr
        assert 'published 0.0.0.0:15432->5432/tcp: CLOSES (to keep it open: label fw.allow: "5432")' in spec
        assert 'published [::]:15432->5432/tcp: CLOSES (to keep it open: label fw.allow: "5432")' in spec
        assert "published 0.0.0.0:18080->80/tcp: stays open" in spec
        assert "6379" not in spec
        assert "fw.allow=9000 has no effect on bridge" in spec
        assert "tool: has the host's network" in spec
        assert "198.51.100.2 → db 5432/tcp" in spec
        assert engine.host.run(["nft", "list", "tables"]).stdout == tables


# --- unmanaged bridges and containers ---------------------------------------------------------------------------------


@contextmanager
def machines(fw: Fw, *bridges: str) -> Iterator[list[tuple[str, str, int]]]:
    """Yield machines on bridges that are not Docker's, each with a server; Docker does not drop the path to them."""
    targets, names, net = [], [], fw.host.netns
    accept = [["iptables", "{}", "FORWARD", way, "10.60.0.0/16", "-j", "ACCEPT"] for way in ("-d", "-s")]
    try:
        for number, bridge in enumerate(bridges):
            machine = fw.run("none")  # on no network of Docker's: it has just the link that it is given here
            names.append(machine)
            net.ip(
                f"link add {bridge} type bridge",
                f"addr add 10.60.{number}.1/24 dev {bridge}",
                f"link set {bridge} up",
                f"link add vm{number} type veth peer name in{number}",
                f"link set vm{number} master {bridge} up",
            )
            fw.host.run(["ip", "link", "set", f"in{number}", "netns", str(fw.engine.pid_of(machine))])
            inside = fw.engine.netns(machine)
            for words in (
                f"addr add 10.60.{number}.2/24 dev in{number}",
                f"link set in{number} up",
                f"route add default via 10.60.{number}.1",
            ):
                inside.run(["ip", *words.split()])
            targets.append(("tcp", f"10.60.{number}.2", 9999))
        for rule in accept:
            fw.host.run([word.format("-I") for word in rule])
        with ExitStack() as servers:
            for machine in names:
                servers.enter_context(fw.engine.serve(machine, tcp=[9999]))
            yield targets
    finally:
        fw.remove(*names)
        for bridge in bridges:
            fw.host.run(["ip", "link", "del", bridge], check=False)
        for rule in accept:
            fw.host.run([word.format("-D") for word in rule], check=False)


def test_other_bridges_of_the_host_keep_working(fw: Fw) -> None:
    """A bridge of virtual machines or a LAN that is added while docker-fw runs is left alone within seconds.

    It stays so while docker-fw restarts; also one that `br-*` would match.
    """
    with machines(fw, "virbr7", "br-lan") as targets:
        until(lambda: seen(fw, *targets) == set(targets), "the machines are reached", 10)
        assert "virbr7" in fw.fwctl("status")
        with fw.wan.probe.hammer(*targets, every=0.02, timeout=2) as hammer:
            fw.engine.docker("plugin", "disable", "-f", fw.driver)
            fw.engine.docker("plugin", "enable", fw.driver)
        assert len(hammer.result.shots) > 20
        assert not hammer.result.failed
