"""Test the host's entries of containers' addresses: each leads to its container, and none outlives it."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from ipaddress import IPv4Address, IPv6Address

import pytest

from plugin.kernel.links import exists, lives
from plugin.kernel.names import bridge_name, host_side
from plugin.kernel.neighbours import PROTOCOL, connected
from plugin.model import Address, Endpoint
from tests.kernel.packets import Sniffer
from tests.kernel.running import Body, Running
from tests.kernel.site import BR_DOCKER, Site
from tests.waiting import until


@pytest.fixture
def fw(site: Site) -> Iterator[Running]:
    with closing(Running(site)) as made:
        yield made.start()


def entries(fw: Running, state: str = "PERMANENT") -> set[str]:
    """Return the addresses of docker-fw's entries in this state."""
    lines = fw.site.run("ip", "neigh", "show", "proto", str(PROTOCOL)).stdout.splitlines()
    return {line.split()[0] for line in lines if state in line}


def both(endpoint: Body) -> set[str]:
    """Return the endpoint's addresses."""
    return {endpoint["Interface"][name].partition("/")[0] for name in ("Address", "AddressIPv6")}


def started(fw: Running, *numbers: int) -> list[Body]:
    """Start containers on a network."""
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    return [fw.start_container(network, number) for number in numbers]


def test_a_start_removes_the_entries_of_containers_that_are_gone(fw: Running) -> None:
    """Nor does it touch an entry that an administrator made. The entries of running containers are there again.

    Otherwise packets to the address of a container that ended while docker-fw was down would reach another one.
    """
    stays, goes = started(fw, 2, 3)
    box = fw.move(stays)
    bridge = bridge_name(stays["NetworkID"])
    assert entries(fw) == both(stays) | both(goes)
    fw.site.host.ip(f"neigh replace 10.1.0.9 lladdr 02:00:00:00:00:09 dev {bridge} nud permanent")
    assert fw.process
    for process in (fw.process.pid, fw.worker()):
        os.kill(process, signal.SIGKILL)
    fw.process.wait(20)
    fw.site.host.ip(f"link del {host_side(goes['EndpointID'])}", f"neigh del {box.v6} dev {bridge}")
    fw.start()
    until(lambda: entries(fw) == both(stays), lambda: f"the entries are right: {entries(fw)}")
    assert "10.1.0.9" in fw.site.run("ip", "neigh", "show", "nud", "permanent").stdout


def test_nothing_is_permanent_while_no_process_keeps_it(fw: Running) -> None:
    """When docker-fw ends, it removes the entries, because another version may not do it.

    The kernel finds containers by itself then.
    """
    (stays,) = started(fw, 2)
    fw.move(stays)
    fw.stop()
    assert entries(fw, "") == set()
    fw.start()
    until(lambda: entries(fw) == both(stays), "docker-fw keeps them again")


def test_an_end_that_fails_half_way_is_completed(fw: Running) -> None:
    """If Leave has closed a container and could not remove the rest, DeleteEndpoint does."""
    (container,) = started(fw, 2)
    fw.well("Leave", container)
    fw.site.host.ip(
        f"neigh replace 10.1.0.2 lladdr 02:42:0a:01:00:02 dev {bridge_name(container['NetworkID'])} "
        f"nud permanent proto {PROTOCOL}"
    )
    fw.well("DeleteEndpoint", container)
    assert entries(fw) == set()


def test_an_ipv6_address_that_docker_takes_from_a_running_container_is_closed(fw: Running) -> None:
    """Docker 29 gives it to another container if the first one has disabled IPv6 by a sysctl of its endpoint.

    That one keeps its IPv4 address, with its ports; the address leads to the new container, which has its own ports.
    """
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    first = fw.start_container(network, 2, {"fw.allow": "8080"})
    fw.publish(first, 18080, 8080)
    box = fw.move(first)
    second = fw.endpoint(network, 3)
    second["Interface"]["AddressIPv6"] = first["Interface"]["AddressIPv6"]
    second = fw.join(second, "c3", {"fw.allow": "9090"})
    heir = fw.move(second)
    assert box.v6 == heir.v6
    assert fw.opens("10.1.0.2") >= {"8080/6"}
    assert fw.opens("2001:db8:1::2") >= {"9090/6"}
    assert not fw.opens("2001:db8:1::2") & {"8080/6"}
    with box.probe.serve(tcp=[8080]), heir.probe.serve(tcp=[8080, 9090]):
        assert fw.site.wan.probe.tcp("10.1.0.2", 8080) == "open"
        assert fw.site.wan.probe.tcp("10.1.0.3", 9090) == fw.site.wan.probe.tcp(str(heir.v6), 9090) == "open"
        assert fw.site.wan.probe.tcp(str(heir.v6), 8080) == fw.site.wan.probe.tcp("10.1.0.3", 8080) == "silent"
    fw.kill_worker()
    assert fw.opens("10.1.0.2") >= {"8080/6"}
    assert not fw.opens("2001:db8:1::2") & {"8080/6"}
    for each in (first, second):
        fw.stop_container(each)
    fw.well("DeleteNetwork", network)
    fw.nothing_left()


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let this process open no further file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as last:
        resource.setrlimit(resource.RLIMIT_NOFILE, (last.fileno(), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_link_that_cannot_be_asked_for_is_not_taken_for_missing() -> None:
    """Without a file descriptor docker-fw does not know whether a container lives: it neither forgets nor keeps it."""
    assert exists("lo")
    assert not exists("no-such-link")
    assert not exists("longer-than-a-name-can-be")
    with no_descriptors():
        for ask in (lambda: exists("lo"), lambda: lives("e" * 64)):
            with pytest.raises(OSError, match="Too many open files"):
                ask()


# --- on Docker's bridges --------------------------------------------------------------------------------------------

#: Addresses that a container will get, and has not yet.
LATER = Endpoint("e" * 64, "d" * 64, IPv4Address("10.40.0.9"), IPv6Address("2001:db8:40::9"))


def entry(site: Site, address: Address) -> str:
    """Return the host's entry of an address on Docker's bridge, as ip(8) shows it."""
    return site.run("ip", "neigh", "show", str(address), "dev", BR_DOCKER).stdout.strip()


def connect(site: Site, mac: str, bridge: str = BR_DOCKER) -> None:
    """Have docker-fw see that Docker connects the container, with this MAC."""
    with site.inside():
        connected(bridge, dataclasses.replace(LATER, mac=mac))


@pytest.mark.parametrize("address", LATER.addresses)
def test_a_packet_that_came_before_its_container_waits_no_second(site: Site, address: Address) -> None:
    """An outsider tried the address first, so the host asked for it in vain, and would ask again after a second.

    When Docker connects the container, the packet is delivered to its MAC at once, although nothing has answered.
    """
    box = site.docker_box(BR_DOCKER, 40)
    mac = json.loads(box.run(["ip", "-j", "link", "show", "eth0"]).stdout)[0]["address"]
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with closing(Sniffer(box.path, "eth0")) as sniffer:
        with site.inside(), socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"early", (str(address), 8080))
        until(lambda: "INCOMPLETE" in entry(site, address), "the host looks for it")
        connect(site, mac.upper())
        until(lambda: address.packed in {packet.dst for packet in sniffer.read()}, "it arrives")
    assert f"lladdr {mac}" in entry(site, address)
    assert "PERMANENT" not in entry(site, address), "the kernel verifies it"


def test_an_entry_that_leads_to_a_container_is_not_replaced(site: Site) -> None:
    """Only the kernel and an administrator decide where the host sends, if an entry has a MAC; none is added."""
    site.docker_box(BR_DOCKER, 40)
    connect(site, "02:00:00:00:00:09")
    assert [entry(site, address) for address in LATER.addresses] == ["", ""]
    for state in ("reachable", "stale", "permanent"):
        for address in LATER.addresses:
            site.host.ip(f"neigh replace {address} lladdr 02:00:00:00:00:01 dev {BR_DOCKER} nud {state}")
        connect(site, "02:00:00:00:00:09")
        assert all("lladdr 02:00:00:00:00:01" in entry(site, address) for address in LATER.addresses)
    for address in LATER.addresses:
        site.host.ip(f"neigh replace {address} dev {BR_DOCKER} nud failed")
    connect(site, "")
    connect(site, "02:00:00:00:00:09", "no-such-bridge")
    assert all("FAILED" in entry(site, address) for address in LATER.addresses)
    connect(site, "02:00:00:00:00:09")
    assert all("lladdr 02:00:00:00:00:09 STALE" in entry(site, address) for address in LATER.addresses)
