"""Test bridges, veth pairs and forwarding on a host: created once, found again, never taken from others."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import socket
import struct
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Any

import pytest

from plugin.kernel import link_monitor, netlink
from plugin.kernel.links import Links, mac_of
from plugin.kernel.names import GROUP, bridge_name, container_side, host_side
from plugin.kernel.neighbours import PROTOCOL
from plugin.kernel.sysctl import Sysctl
from plugin.model import Endpoint, FwError, Network
from plugin.nftables.sets import Element
from tests.kernel.netns import inside
from tests.kernel.packets import icmp, new_flow
from tests.kernel.site import Site
from tests.waiting import until

ID = "0123456789ab".ljust(64, "0")
NETWORK = Network(ID, bridge_name(ID), IPv4Interface("10.1.0.1/24"), IPv6Interface("2001:db8:1::1/64"), mtu=1400)
ENDPOINT = Endpoint(
    "abcdef012345".ljust(64, "0"), ID, IPv4Address("10.1.0.2"), IPv6Address("2001:db8:1::2"), "02:42:0a:01:00:02"
)


@pytest.fixture(scope="module")
def shared() -> Iterator[Site]:
    with Site() as made:
        yield made


@pytest.fixture
def site(shared: Site) -> Iterator[Site]:
    """Yield one host for many tests; each leaves it without links.

    Tests that switch forwarding have a host of their own.
    """
    yield shared
    for name in names(shared):
        shared.run("ip", "link", "del", "dev", name, check=False)


@pytest.fixture
def fresh() -> Iterator[Site]:
    """Yield a host as after its boot."""
    with Site() as made:
        yield made


@pytest.fixture
def links(site: Site) -> Iterator[Links]:
    """Yield the host's links; the test runs inside the host."""
    with site.inside():
        yield site.links


def shown(site: Site, *argv: str) -> str:
    return site.run("ip", *argv, check=False).stdout


def sysctl(site: Site, name: str) -> str:
    return site.run("cat", f"/proc/sys/net/{name}").stdout.strip()


def names(site: Site) -> set[str]:
    """Return the host's links, except its own."""
    return set(re.findall(r"^\d+: ([^:@]+)", shown(site, "-o", "link"), re.MULTILINE)) - {"lo", "eth0"}


# --- bridges ------------------------------------------------------------------------------------------------------


def test_a_bridge_as_the_network_says(site: Site, links: Links) -> None:
    """Name, MTU, both gateways, up; in docker-fw's device group, which the policy matches; no listener to routers."""
    assert links.make_bridge(NETWORK) is True
    text = shown(site, "-d", "link", "show", NETWORK.bridge)
    assert "mtu 1400" in text
    assert f"group {GROUP}" in text or f"group {GROUP:#x}" in text
    assert f"alias docker-fw {ID}" in text
    assert ",UP" in text
    addresses = shown(site, "-o", "addr", "show", NETWORK.bridge)
    assert "inet 10.1.0.1/24" in addresses
    assert re.search(r"inet6 2001:db8:1::1/64 scope global nodad", addresses)
    assert "tentative" not in addresses
    assert sysctl(site, f"ipv6/conf/{NETWORK.bridge}/accept_ra") == "0"


def test_made_again_it_is_the_same(site: Site, links: Links) -> None:
    """A repeated call finds its own bridge, and changes neither its index nor its MAC nor its addresses."""
    links.make_bridge(NETWORK)
    before = shown(site, "-d", "addr", "show", NETWORK.bridge)
    assert links.make_bridge(NETWORK) is False
    assert strip(shown(site, "-d", "addr", "show", NETWORK.bridge)) == strip(before)


def strip(text: str) -> str:
    """Remove values that change by themselves: timers, lifetimes, the carrier."""
    return re.sub(r"valid_lft.*|(qlen|\w+_timer) +[\d.]+|state \w+", "", text)


def test_half_made_it_is_completed(site: Site, links: Links) -> None:
    """A crash between two steps of the creation leaves a bridge that the next call completes."""
    site.host.ip(f"link add {NETWORK.bridge} group {GROUP} type bridge")
    assert links.make_bridge(NETWORK) is False
    assert "10.1.0.1/24" in shown(site, "addr", "show", NETWORK.bridge)
    assert f"docker-fw {ID}" in shown(site, "link", "show", NETWORK.bridge)


@pytest.mark.parametrize("kind", ["bridge", "veth"])
def test_a_taken_name_is_refused_and_left_alone(site: Site, links: Links, kind: str) -> None:
    """Another program's link of that name stays exactly as it is, and the error says what to choose."""
    site.host.ip(f"link add front0 type {kind}", "addr add 10.77.0.1/24 dev front0", "link set front0 mtu 1300")
    before = shown(site, "-d", "addr", "show", "front0")
    taken = dataclasses.replace(NETWORK, bridge="front0")
    with pytest.raises(FwError, match=r"bridge name front0 is taken .* choose another with -o com\.docker"):
        links.make_bridge(taken)
    links.delete_bridge(taken)
    assert shown(site, "-d", "addr", "show", "front0") == before


def test_another_networks_bridge_is_taken_too(site: Site, links: Links) -> None:
    """Two docker-fw networks cannot share a bridge's name."""
    links.make_bridge(dataclasses.replace(NETWORK, bridge="front0"))
    other = dataclasses.replace(NETWORK, id="f" * 64, bridge="front0", gateway4=IPv4Interface("10.2.0.1/24"))
    with pytest.raises(FwError, match="front0 is taken"):
        links.make_bridge(other)
    links.delete_bridge(other)
    assert "10.1.0.1/24" in shown(site, "addr", "show", "front0")
    assert "10.2.0.1/24" not in shown(site, "addr", "show", "front0")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"bridge": "all"}, "could not make bridge all"),
        ({"bridge": "default"}, "could not make bridge default"),
        ({"mtu": 65536}, "could not set up bridge"),
        ({"mtu": 60}, "could not set up bridge"),
    ],
    ids=str,
)
def test_a_bridge_that_the_kernel_refuses_leaves_nothing(
    site: Site, links: Links, fields: dict[str, Any], words: str
) -> None:
    """A name or an MTU that the kernel refuses is an error that names it, and no half-made bridge remains."""
    with pytest.raises(FwError, match=words):
        links.make_bridge(dataclasses.replace(NETWORK, **fields))
    assert names(site) == set()
    assert sysctl(site, "ipv6/conf/all/disable_ipv6") == "0"
    assert sysctl(site, "ipv6/conf/default/disable_ipv6") == "0"


def test_families_are_on_or_off(site: Site, links: Links) -> None:
    """On an IPv4-only network the bridge has no IPv6 at all, not even a link-local address, and the other way round."""
    links.make_bridge(dataclasses.replace(NETWORK, gateway6=None))
    assert "inet6" not in shown(site, "addr", "show", NETWORK.bridge)
    links.delete_bridge(NETWORK)
    links.make_bridge(dataclasses.replace(NETWORK, gateway4=None))
    assert "inet " not in shown(site, "addr", "show", NETWORK.bridge)
    assert "2001:db8:1::1/64" in shown(site, "addr", "show", NETWORK.bridge)


def test_the_bridges_mac_stays(site: Site, links: Links) -> None:
    """Containers are added and removed; the gateway's MAC, which neighbours remember, does not change."""
    links.make_bridge(NETWORK)
    before = re.findall(r"link/ether (\S+)", shown(site, "link", "show", NETWORK.bridge))
    links.attach(NETWORK, ENDPOINT)
    assert re.findall(r"link/ether (\S+)", shown(site, "link", "show", NETWORK.bridge)) == before
    links.delete_bridge(NETWORK)
    links.make_bridge(NETWORK)
    assert re.findall(r"link/ether (\S+)", shown(site, "link", "show", NETWORK.bridge)) == before


def test_deleting_twice_is_no_error(site: Site, links: Links) -> None:
    """A repeated call for a deleted link raises no error."""
    links.make_bridge(NETWORK)
    links.delete_bridge(NETWORK)
    links.delete_bridge(NETWORK)
    assert names(site) == set()


def test_docker_fw_bridges_are_recognised(site: Site, links: Links) -> None:
    """docker-fw bridges are known by their device group, whatever their names; others' bridges are not."""
    links.make_bridge(dataclasses.replace(NETWORK, bridge="front0"))
    site.host.ip("link add br0 type bridge", "link add fw-false type bridge", "link add v0 type veth peer name v1")
    assert links.bridges() == {"front0": True, "br0": False, "fw-false": False}


@pytest.mark.parametrize("name", ['a"b', "br*", "-x", "a;b", "$x", "a\\b"])
def test_a_bridge_of_an_odd_name_is_not_ours(site: Site, links: Links, name: str) -> None:
    """Every bridge of the host is listed, whatever its name, with a flag if docker-fw created it."""
    links.make_bridge(dataclasses.replace(NETWORK, bridge="front0"))
    site.run("ip", "link", "add", "name", name, "type", "bridge")
    with site.inside():
        there = {link.name: link.ours for link in link_monitor.links().values() if link.bridge}
    assert there == {"front0": True, name: False}


def test_the_links_of_the_default_route(site: Site, links: Links) -> None:
    """The host's uplink is known, in either family."""
    assert links.default_route_links() == {"eth0"}
    site.host.ip(
        "link add br0 type bridge",
        "link set br0 up",
        "addr add 10.50.0.2/24 dev br0",
        "route add default via 10.50.0.1 metric 9",
    )
    assert links.default_route_links() == {"eth0", "br0"}


# --- subnets that clash -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gateway4", "gateway6", "clash"),
    [
        ("198.51.100.129/25", None, "198.51.100.128/25 overlaps 198.51.100.1/24 on eth0"),
        ("198.51.0.1/16", None, "198.51.0.0/16 overlaps 198.51.100.1/24 on eth0"),
        ("127.9.0.1/16", None, "127.9.0.0/16 overlaps 127.0.0.1/8 on lo"),
        (None, "2001:db8:ffff::9/64", "2001:db8:ffff::/64 overlaps 2001:db8:ffff::1/64 on eth0"),
        (None, "2001:db8::9/32", "overlaps 2001:db8:ffff::1/64 on eth0"),
        (None, "::1/127", "overlaps ::1/128 on lo"),
        ("10.9.0.1/24", "2001:db8:9::1/64", None),
        # A part of the host's own on-link prefix in which the host has no address: an IPv6 network may use it.
        (None, "2001:db8:ffff:0:8000::1/66", None),
    ],
)
def test_a_clashing_subnet_is_named(
    links: Links, gateway4: str | None, gateway6: str | None, clash: str | None
) -> None:
    """A subnet that the host already has elsewhere is reported with the address and the link."""
    wanted = dataclasses.replace(
        NETWORK,
        gateway4=IPv4Interface(gateway4) if gateway4 else None,
        gateway6=IPv6Interface(gateway6) if gateway6 else None,
    )
    found = links.overlap(wanted)
    assert (clash in str(found)) if clash else (found is None)


def test_its_own_bridge_is_no_clash(links: Links) -> None:
    """A network that is created again does not clash with itself."""
    links.make_bridge(NETWORK)
    assert links.overlap(NETWORK) is None
    assert links.overlap(dataclasses.replace(NETWORK, bridge="other")) is not None


# --- veth pairs ---------------------------------------------------------------------------------------------------


def test_a_pair_as_the_endpoint_says(site: Site, links: Links) -> None:
    """The host's side is a port of the bridge, without an address; the container's has the MAC and the MTU."""
    links.make_bridge(NETWORK)
    links.attach(NETWORK, ENDPOINT)
    outer, inner = host_side(ENDPOINT.id), container_side(ENDPOINT.id)
    text = shown(site, "link", "show", outer)
    assert f"master {NETWORK.bridge}" in text
    assert "mtu 1400" in text
    assert "inet6" not in shown(site, "addr", "show", outer)
    text = shown(site, "link", "show", inner)
    assert f"link/ether {ENDPOINT.mac}" in text
    assert "mtu 1400" in text
    assert "state DOWN" in text


def test_a_retry_makes_the_pair_anew(site: Site, links: Links) -> None:
    """A Join that Docker repeats ends with one pair, ready to be moved."""
    links.make_bridge(NETWORK)
    for _ in range(3):
        links.attach(NETWORK, ENDPOINT)
    assert names(site) == {NETWORK.bridge, host_side(ENDPOINT.id), container_side(ENDPOINT.id)}
    links.delete(host_side(ENDPOINT.id))
    links.delete(host_side(ENDPOINT.id))
    assert names(site) == {NETWORK.bridge}


def test_without_its_bridge_an_endpoint_is_refused(site: Site, links: Links) -> None:
    """If the bridge was removed, the start fails with what to do, and no pair remains."""
    with pytest.raises(FwError, match=f"the bridge {NETWORK.bridge} of network 0123456789ab is missing"):
        links.attach(NETWORK, ENDPOINT)
    assert names(site) == set()


def test_a_container_side_whose_name_is_taken(site: Site, links: Links) -> None:
    """If a link with the container side's name exists, an error is raised, and no pair remains half-made."""
    links.make_bridge(NETWORK)
    site.host.ip(f"link add {container_side(ENDPOINT.id)} type bridge")
    with pytest.raises(FwError, match="could not connect the container"):
        links.attach(NETWORK, ENDPOINT)
    assert names(site) == {NETWORK.bridge, container_side(ENDPOINT.id)}


def test_remains_of_a_crash_are_removed_and_pairs_in_use_are_not(site: Site, links: Links) -> None:
    """At a start, pairs without an endpoint are removed; those of endpoints, of containers and of others remain.

    A pair whose inner side is in a container is in use, even if docker-fw's state was lost: its container keeps its
    network.
    """
    links.make_bridge(NETWORK)
    lost = dataclasses.replace(ENDPOINT, id="1" * 64)
    used = dataclasses.replace(ENDPOINT, id="2" * 64)
    for endpoint in (ENDPOINT, lost, used):
        links.attach(NETWORK, endpoint)
    box = site.wan  # any other namespace
    site.host.ip(f"link set {container_side(used.id)} netns {box.name}", "link add fwvnot type veth peer name fwcnot")
    links.sweep({host_side(ENDPOINT.id)})
    assert names(site) == {
        NETWORK.bridge,
        host_side(ENDPOINT.id),
        container_side(ENDPOINT.id),
        host_side(used.id),
        "fwvnot",
        "fwcnot",
    }


def test_after_a_bridge_was_lost_its_containers_come_back(site: Site, links: Links) -> None:
    """When a bridge had to be created again, the pairs that outlived it become its ports."""
    links.make_bridge(NETWORK)
    links.attach(NETWORK, ENDPOINT)
    site.host.ip(f"link del {NETWORK.bridge}")
    assert "master" not in shown(site, "link", "show", host_side(ENDPOINT.id))
    assert links.make_bridge(NETWORK)
    links.reattach(NETWORK, [ENDPOINT, dataclasses.replace(ENDPOINT, id="9" * 64)])
    assert f"master {NETWORK.bridge}" in shown(site, "link", "show", host_side(ENDPOINT.id))


def test_a_port_may_hairpin(site: Site, links: Links) -> None:
    """A container that publishes ports reaches itself through them: its port returns frames to where they came from."""
    links.make_bridge(NETWORK)
    links.attach(NETWORK, ENDPOINT)
    links.hairpin(ENDPOINT)
    assert "hairpin on" in shown(site, "-d", "link", "show", host_side(ENDPOINT.id))
    links.hairpin(dataclasses.replace(ENDPOINT, id="9" * 64))  # removed meanwhile


def neighbours(site: Site) -> dict[str, str]:
    """Return docker-fw's entries on the bridge: the MAC and the state for each address."""
    listed = shown(site, "neigh", "show", "dev", NETWORK.bridge, "proto", str(PROTOCOL)).splitlines()
    words = [line.split() for line in listed]
    return {each[0]: " ".join(each[each.index("lladdr") + 1 :][:2]) for each in words}


def test_the_host_knows_where_a_container_is(site: Site, links: Links) -> None:
    """Its first packet to a container waits for no answer: both addresses have their MAC, for as long as it is there.

    A former entry of an address does not remain, and no advertisement changes the new one.
    """
    links.make_bridge(NETWORK)
    site.host.ip(f"neigh replace {ENDPOINT.addr4} lladdr 02:00:00:00:00:99 dev {NETWORK.bridge} nud stale")
    links.attach(NETWORK, ENDPOINT)
    known = {str(address): f"{ENDPOINT.mac} PERMANENT" for address in (ENDPOINT.addr4, ENDPOINT.addr6)}
    assert neighbours(site) == known
    other = dataclasses.replace(
        ENDPOINT, id="9" * 64, addr4=IPv4Address("10.1.0.9"), addr6=None, mac="02:42:0a:01:00:09"
    )
    links.attach(NETWORK, other)
    links.detach(NETWORK, ENDPOINT)
    assert neighbours(site) == {"10.1.0.9": "02:42:0a:01:00:09 PERMANENT"}
    links.detach(NETWORK, ENDPOINT)
    links.detach(None, other)
    assert not {host_side(ENDPOINT.id), host_side(other.id)} & names(site)


def test_a_container_starts_and_ends_without_the_hosts_entries(
    site: Site, links: Links, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If docker-fw cannot ask the kernel for them, because it has no file descriptor left, no call fails for that."""

    open_socket = netlink.open_socket

    def none_left(protocol: int = netlink.NETLINK_NETFILTER) -> socket.socket:
        if protocol == netlink.NETLINK_ROUTE:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return open_socket(protocol)

    monkeypatch.setattr(netlink, "open_socket", none_left)
    links.make_bridge(NETWORK)
    links.attach(NETWORK, ENDPOINT)
    assert host_side(ENDPOINT.id) in names(site)
    links.detach(NETWORK, ENDPOINT)
    assert host_side(ENDPOINT.id) not in names(site)


@pytest.mark.parametrize(
    ("addr4", "addr6", "mac"),
    [("172.18.0.2", None, "02:42:ac:12:00:02"), ("172.18.0.2", "2001:db8::2", "02:42:ac:12:00:02")],
)
def test_a_mac_follows_the_address(addr4: str, addr6: str | None, mac: str) -> None:
    """As with Docker's bridge driver the same address has the same MAC, so neighbour entries stay valid."""
    assert mac_of(IPv4Address(addr4), IPv6Address(addr6) if addr6 else None) == mac


def test_a_mac_of_an_ipv6_address() -> None:
    """With IPv6 alone the MAC follows the IPv6 address, is locally administered and no group's."""
    macs = {mac_of(None, IPv6Address(f"2001:db8::{n:x}")) for n in range(1, 200)}
    assert len(macs) == 199
    assert all(int(mac[:2], 16) & 3 == 2 for mac in macs)


def test_links_are_used_from_many_threads(site: Site) -> None:
    """Sixteen containers start at once on one network: all are connected."""
    with site.inside():
        site.links.make_bridge(NETWORK)
    failures: list[BaseException] = []

    def attach(number: int) -> None:
        try:
            with inside(site.host.path):
                for part in range(3):
                    endpoint_id = f"{number:06x}{part:06x}".ljust(64, "0")
                    site.links.attach(NETWORK, dataclasses.replace(ENDPOINT, id=endpoint_id))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=attach, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert len([name for name in names(site) if name.startswith("fwv")]) == 48
    assert shown(site, "link", "show", "master", NETWORK.bridge).count("mtu 1400") == 48


def test_a_full_bridge_is_reported(site: Site, links: Links) -> None:
    """The kernel gives a bridge 1,023 ports: the next container is refused with what to do, and no pair remains."""
    links.make_bridge(NETWORK)
    # As a group they are removed at once: one by one the kernel waits for each.
    site.host.ip(*(f"link add full{n} group 77 type veth peer name full{n}x group 77" for n in range(512)))
    ends = [f"full{n}{end}" for n in range(512) for end in ("", "x")][:1023]
    site.host.ip(*(f"link set {end} master {NETWORK.bridge}" for end in ends))
    with pytest.raises(FwError, match="network 0123456789ab is full: a bridge of the kernel holds 1023 ports"):
        links.attach(NETWORK, ENDPOINT)
    assert not {host_side(ENDPOINT.id), container_side(ENDPOINT.id)} & names(site)
    site.host.ip("link del group 77")
    links.attach(NETWORK, ENDPOINT)


# --- forwarding ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "families"),
    [({}, {2, 10}), ({"gateway6": None}, {2}), ({"gateway4": None}, {10}), ({"internal": True}, set())],
    ids=["both", "IPv4", "IPv6", "internal"],
)
def test_forwarding_is_switched_on_where_needed(fresh: Site, fields: dict[str, Any], families: set[int]) -> None:
    """A network enables forwarding for its own families and no other; an internal one for none."""
    network = dataclasses.replace(NETWORK, **fields)
    with fresh.inside():
        assert fresh.sysctl.missing(network) == families
        fresh.sysctl.forward(fresh.sysctl.missing(network))
        assert fresh.sysctl.missing(network) == set()
    assert sysctl(fresh, "ipv4/ip_forward") == str(int(2 in families))
    assert sysctl(fresh, "ipv6/conf/all/forwarding") == str(int(10 in families))


def test_forwarding_that_is_on_is_left_alone(fresh: Site) -> None:
    """Where the host forwards already nothing is changed, and nothing counts as enabled by docker-fw."""
    fresh.host.sysctl({"net/ipv4/ip_forward": 1, "net/ipv6/conf/all/forwarding": 1, "net/ipv6/conf/eth0/accept_ra": 1})
    with fresh.inside():
        assert fresh.sysctl.missing(NETWORK) == set()
        fresh.sysctl.forward(set())
    assert sysctl(fresh, "ipv6/conf/eth0/accept_ra") == "1"


def advertise(site: Site) -> None:
    """Send a router advertisement from the wan, with a lifetime of half an hour (RFC 4861 section 4.2)."""
    mac = re.search(r"link/ether (\S+)", site.wan.run(["ip", "link", "show", "lan"]).stdout)
    assert mac
    source = re.search(r"inet6 (fe80::\S+)/64", site.wan.run(["ip", "addr", "show", "dev", "lan"]).stdout)
    assert source
    with inside(site.wan.path):
        index = socket.if_nametoindex("lan")
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            sock.bind((source[1], 0, 0, index))
            option = struct.pack("!BB6s", 1, 1, bytes.fromhex(mac[1].replace(":", "")))
            body = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + option
            sock.sendto(body, ("ff02::1", 0, 0, index))


def test_a_router_advertised_default_route_survives(fresh: Site) -> None:
    """A host that relies on SLAAC keeps its default route, and still accepts its router, when forwarding is enabled."""
    fresh.host.ip("route del ::/0")
    fresh.host.sysctl({"net/ipv6/conf/eth0/accept_ra": 1, "net/ipv6/conf/eth0/accept_ra_defrtr": 1})
    fresh.host.ip("link add quiet type veth peer name q", "link set quiet up")
    fresh.host.sysctl({"net/ipv6/conf/quiet/accept_ra": 0})

    def learned() -> bool:
        return "proto ra" in shown(fresh, "-6", "route", "show", "default")

    advertise(fresh)
    until(learned, "the host learns its default route")
    with fresh.inside():
        fresh.sysctl.forward({10})
    assert sysctl(fresh, "ipv6/conf/eth0/accept_ra") == "2"
    assert sysctl(fresh, "ipv6/conf/quiet/accept_ra") == "0"
    assert learned()
    fresh.run("ip", "-6", "route", "flush", "proto", "ra")
    assert not learned()
    advertise(fresh)
    until(learned, "the host hears its router while forwarding")


def test_where_sysctls_cannot_be_written_the_error_names_the_mount(fresh: Site) -> None:
    """A read-only /proc/sys (a plugin without its mount) is an error that names the sysctl and the mount."""
    with pytest.raises(FwError, match=r"could not set net\.ipv4\.ip_forward=1: .*writable at /nowhere"):
        Sysctl("/nowhere").forward({2})


def test_not_one_packet_passes_while_forwarding_is_switched_on(fresh: Site) -> None:
    """Between links that the host never forwarded between, enabling forwarding lets no packet through.

    The order is the driver's: what must stay closed is in the table before the sysctl is written.
    """
    lan = fresh.lan_box(9)
    fresh.nft.replace([Element("no_transit", (2,)), Element("no_transit", (10,))])
    stop = threading.Event()
    sent = [new_flow("udp", Site.OUT6, lan.v6, 9, sport) for sport in range(1000, 1020)]
    sent += [new_flow("udp", Site.OUT4, lan.v4, 9, sport) for sport in range(1000, 1020)]

    def fire() -> None:
        while not stop.is_set():
            fresh.send(sent)

    sniffer = fresh.sniffer(lan)
    thread = threading.Thread(target=fire)
    thread.start()
    with fresh.inside():
        fresh.sysctl.forward({2, 10})
    stop.set()
    thread.join(60)
    fresh.send(sent)
    # From the host itself, which is no transit: by then all others have passed, or are dropped.
    last = icmp("2001:db8:9::1", lan.v6, 128)
    fresh.send([last], fresh.host)
    seen = set()

    def came() -> bool:
        seen.update(sniffer.read())
        return last in seen

    until(came, "the host's own packet")
    assert not seen & set(sent)


def test_a_bridge_of_ours_does_not_heed_multicast_queries(site: Site, links: Links) -> None:
    """Each port gets packets to a group, whatever queries a container sends.

    Otherwise a container that queries groups with a response time of hours would block neighbour solicitations from its
    neighbours, and so cut off their IPv6.
    """
    links.make_bridge(NETWORK)
    assert "mcast_snooping 0 " in site.run("ip", "-d", "link", "show", NETWORK.bridge).stdout
