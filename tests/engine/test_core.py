"""Test the core promises, on every engine: which ports answer, which do not, from the first packet."""

from __future__ import annotations

import os
import socket
import struct

import pytest

from tests.kernel.netns import inside
from tests.kernel.packets import icmp, packed, udp
from tests.product import BASE, Fw, Net
from tests.waiting import until

CLOSED = (21, 25, 3306, 5432, 6379, 8080, 9090)


def test_a_container_answers_on_the_base_and_ping_and_nothing_else(each: Fw) -> None:
    """Without configuration an outsider reaches TCP 22, 80, 443 and ping on both addresses; the rest is silence."""
    with each.network() as net:
        web = each.run(net)
        with each.engine.serve(web, tcp=[*BASE, *CLOSED], udp=[53, 80, 443]):
            addresses = each.addresses(web, net)
            assert len(addresses) == 2
            seen = each.wan.probe(
                [("tcp", a, p) for a in addresses for p in (*BASE, *CLOSED)]
                + [("udp", a, p) for a in addresses for p in (53, 80, 443)]
                + [("ping", a) for a in addresses]
            )
    wrong = {
        target: verdict
        for target, verdict in seen.items()
        if verdict != ("open" if target[0] == "ping" or (target[0] == "tcp" and target[2] in BASE) else "silent")
    }
    assert not wrong


def test_a_label_opens_just_what_it_says_on_just_that_container(each: Fw) -> None:
    """`fw.allow` opens its ports, ranges and protocols on its own container's addresses, and no neighbour's."""
    with each.network() as net:
        app = each.run(net, "--label", "fw.allow=8080, 53/udp, 9000-9100, 7/sctp")
        plain = each.run(net)
        servers = {"tcp": [8079, 8080, 8081, 8999, 9000, 9050, 9100, 9101, *BASE], "udp": [53, 54, 8080]}
        with each.engine.serve(app, sctp=[7, 8], **servers), each.engine.serve(plain, sctp=[7], **servers):
            for address in each.addresses(app, net):
                seen = each.wan.probe(
                    [(proto, address, port) for proto, ports in servers.items() for port in ports]
                    + [("sctp", address, 7), ("sctp", address, 8)]
                )
                opened = {(target[0], target[2]) for target, verdict in seen.items() if verdict == "open"}
                silent = {(target[0], target[2]) for target, verdict in seen.items() if verdict == "silent"}
                assert opened == {
                    *(("tcp", p) for p in (*BASE, 8080, 9000, 9050, 9100)),
                    ("udp", 53),
                    ("sctp", 7),
                }
                assert silent == {
                    ("tcp", 8079),
                    ("tcp", 8081),
                    ("tcp", 8999),
                    ("tcp", 9101),
                    ("udp", 54),
                    ("udp", 8080),
                    ("sctp", 8),
                }
            for address in each.addresses(plain, net):
                others = [("tcp", 8080), ("tcp", 9050), ("udp", 53), ("sctp", 7)]
                seen = each.wan.probe([(proto, address, port) for proto, port in others])
                assert set(seen.values()) == {"silent"}


def test_a_label_opens_before_the_containers_first_instruction(each: Fw) -> None:
    """A labelled port is open when `docker run` returns, and a closed port never answers before, not once."""
    with each.network() as net:
        # A first container shows the address that the next one gets.
        first = each.run(net)
        v4, v6 = each.addresses(first, net)
        each.remove(first)
        targets = [("tcp", v4, 5432), ("tcp", v6, 5432)]
        with each.wan.probe.hammer(*targets, every=0.005) as hammer:
            for _ in range(3):
                app = each.run(
                    net,
                    "--ip",
                    v4,
                    "--ip6",
                    v6,
                    "--label",
                    "fw.allow=8080",
                    command=("sh", "-c", "httpd -p 5432 & exec httpd -f -p 8080"),
                )
                until(lambda: each.host.probe.tcp(v6, 5432) == "open", "the server of the container")
                seen = each.wan.probe([("tcp", v4, 8080), ("tcp", v6, 8080)])
                assert set(seen.values()) == {"open"}
                each.remove(app)
        assert len(hammer.result.shots) > 50
        assert not hammer.result.opened


@pytest.mark.parametrize("value", ["808O", "0", "1-70000", "443/tcpp", ""])
def test_a_wrong_label_refuses_the_start_with_a_message(each: Fw, value: str) -> None:
    """A container with a wrong label does not start, and Docker prints the label, its value and the correct form."""
    with each.network() as net:
        spec = each.refuse(net, "--label", f"fw.allow={value}")
        assert f'label fw.allow="{value}"' in spec
        assert any(word in spec for word in ("is not a port", "is not a protocol", "is empty"))


def test_containers_of_one_network_talk_freely(deep: Fw) -> None:
    """Whatever the policy, containers of one network reach each other on every port, with br_netfilter on and off."""
    keys = ("net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables")
    with deep.network() as net:
        one, two = deep.run(net), deep.run(net)
        with deep.engine.serve(two, tcp=[5432], udp=[5353]):
            for value in (1, 0):
                deep.host.netns.sysctl(dict.fromkeys(keys, value))
                seen = deep.engine.netns(one).probe(
                    [(proto, a, p) for a in deep.addresses(two, net) for proto, p in (("tcp", 5432), ("udp", 5353))]
                )
                assert set(seen.values()) == {"open"}, value


def test_names_of_services_resolve(deep: Fw) -> None:
    """Docker's DNS resolves a container's name and alias on a docker-fw network."""
    with deep.network() as net:
        db = deep.run(net, "--network-alias", "database")
        app = deep.run(net)
        for name in (db, "database"):
            spec = deep.engine.docker("exec", app, "nslookup", name)
            for address in deep.addresses(db, net):
                assert address in spec


def test_containers_reach_the_internet_ipv6_as_they_are_and_ipv4_masqueraded(each: Fw) -> None:
    """IPv6 leaves with the container's own address, IPv4 with the host's."""
    with each.network() as net:
        app = each.run(net)
        with each.wan.probe.serve(tcp=[8000]):
            inside = each.engine.netns(app).probe
            v4, v6 = each.addresses(app, net)
            assert inside.one(("tcp", each.wan.FAR_V6, 8000)).peer == v6
            assert inside.one(("tcp", each.wan.FAR_V4, 8000)).peer == each.host.v4
            assert v4 != each.host.v4


def test_published_ports_obey_the_policy(each: Fw) -> None:
    """`-p` is reachable from outside only where the container's port is open, on IPv4 and IPv6, and ends with it."""
    with each.network() as net:
        app = each.run(net, "-p", "18080:80", "-p", "15432:5432", "-p", "15353:53/udp", "--label", "fw.allow=53/udp")
        host4, host6 = each.host.v4, each.host.v6
        with each.engine.serve(app, tcp=[80, 5432], udp=[53]):
            for host in (host4, host6):
                assert each.wan.probe.one(("tcp", host, 18080)).verdict == "open"
                assert each.wan.probe.one(("udp", host, 15353)).verdict == "open"
                assert each.wan.probe.one(("tcp", host, 15432)).verdict == "silent"
            # The host's own paths: its addresses, and loopback, in both families.
            own = each.host.probe([("tcp", a, 18080) for a in (host4, host6, "127.0.0.1", "::1")])
            assert set(own.values()) == {"open"}
            # Hairpin: a neighbour, and the container itself, through the host's address.
            neighbour = each.run(net)
            for container in (neighbour, app):
                seen = each.engine.netns(container).probe([("tcp", host4, 18080), ("tcp", host6, 18080)])
                assert set(seen.values()) == {"open"}, container
        each.remove(app)
        assert each.host.probe.tcp("127.0.0.1", 18080) == "refused"
        again = each.run(net, "-p", "18080:80")
        assert again


def test_a_taken_port_is_an_error_as_docker_words_it(deep: Fw) -> None:
    """A second container on the same host port does not start, and Docker names the conflict."""
    with deep.network() as net:
        deep.run(net, "-p", "18090:80")
        assert "Bind for 0.0.0.0:18090 failed: port is already allocated" in deep.refuse(net, "-p", "18090:80")


def test_connect_and_disconnect_of_a_running_container(each: Fw) -> None:
    """A running container that is connected later answers there by its labels, until it is disconnected."""
    with each.network() as one, each.network() as two:
        app = each.run(one, "--label", "fw.allow=8080")
        with each.engine.serve(app, tcp=[8080, 9090]):
            each.engine.docker("network", "connect", two.name, app)
            second = each.addresses(app, two)
            for address in (*each.addresses(app, one), *second):
                assert each.wan.probe.tcp(address, 8080) == "open", address
                assert each.wan.probe.tcp(address, 9090) == "silent"
            each.engine.docker("network", "disconnect", two.name, app)
            listed = [e for n in each.status()["networks"] for e in n["endpoints"] if second[0] in e["addresses"]]
            assert not listed
            assert each.wan.probe.tcp(each.addresses(app, one)[1], 8080) == "open"


def test_docker_bridges_open_no_further_than_docker_alone_opens_them(each: Fw) -> None:
    """Docker's default bridge is open to outsiders and to containers on docker-fw networks no more than before."""
    each.engine.docker("run", "-d", "--name", "theirs", "busybox", "sleep", "inf")
    try:
        with each.network() as net:
            ours = each.run(net)
            v4, _ = each.engine.address("theirs")
            with each.engine.serve("theirs", tcp=[80, 5432]):
                assert each.engine.netns(ours).probe.tcp(v4, 5432) == "silent"
                assert each.engine.netns(ours).probe.tcp(v4, 80) == "silent"
    finally:
        each.remove("theirs")


def test_no_packet_leaves_with_a_neighbours_address(deep: Fw) -> None:
    """Root in a container, with every right over its own link, cannot reach a neighbour with another's address.

    Neither a packet nor an ARP reply or neighbour advertisement for that address arrives; with its own address they do.
    """
    with deep.network() as net:
        victim, nextdoor, hostile = deep.run(net), deep.run(net), deep.run(net)
        (own4, own6), (next4, next6) = deep.addresses(hostile, net), deep.addresses(nextdoor, net)
        here, there = (deep.engine.netns(container).path for container in (hostile, victim))
        own, to = (hardware(deep, container, net) for container in (hostile, victim))
        four, six = deep.addresses(victim, net)

        def speaks(kind: bytes, body: bytes) -> bytes:
            with inside(here), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as mouth:
                mouth.bind(("eth0", 0))
                mouth.send(to + own + kind + body)
            return body

        def all_of(mine4: str, mine6: str) -> list[bytes]:
            arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + own + packed(mine4) + to + packed(four) + os.urandom(18)
            option = b"\2\1" + own + b"\xfe\6" + os.urandom(46)
            advert = bytes(icmp(own6, six, 136, body=b"\x20\0\0\0" + packed(mine6) + option))
            return [
                speaks(b"\x08\x06", arp),
                speaks(b"\x86\xdd", advert),
                speaks(b"\x08\x00", bytes(udp(mine4, four, 9, 9, os.urandom(18)))),
                speaks(b"\x86\xdd", bytes(udp(mine6, six, 9, 9, os.urandom(18)))),
            ]

        with inside(there), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as ears:
            ears.bind(("eth0", 3))
            ears.settimeout(5)
            forged, true = all_of(next4, next6), all_of(own4, own6)
            heard: list[bytes] = []
            while not heard or true[-1] not in heard[-1]:
                heard.append(ears.recv(4096))
        assert all(any(body in each for each in heard) for body in true)
        assert not any(body in each for body in forged for each in heard)


def hardware(fw: Fw, container: str, net: Net) -> bytes:
    """Return the container's MAC on a network."""
    attachment = fw.engine.inspect(container)["NetworkSettings"]["Networks"][net.name]
    return bytes.fromhex(attachment["MacAddress"].replace(":", ""))
