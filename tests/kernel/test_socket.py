"""Test the plugin's socket as dockerd uses it: the protocol, label look-ups, malformed requests and crashes.

The real gunicorn and worker run on a host of its own; Docker's API is a stand-in that can misbehave.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.kernel.names import bridge_name, container_side, host_side
from plugin.state.store import VERSION
from tests.inputs import inputs
from tests.kernel.fakedocker import Mode
from tests.kernel.netns import inside
from tests.kernel.packets import arrived, new_flow, ping
from tests.kernel.running import BASE, Body, Running, names_of, took
from tests.kernel.site import Site
from tests.pure.strategies import json_values, shapes
from tests.recorded import CREATE_ENDPOINT, CREATE_NETWORK, GENERIC, PORTMAP
from tests.waiting import until

CALLS = [
    f"NetworkDriver.{name}"
    for name in (
        "GetCapabilities",
        "AllocateNetwork",
        "FreeNetwork",
        "CreateNetwork",
        "DeleteNetwork",
        "CreateEndpoint",
        "DeleteEndpoint",
        "EndpointOperInfo",
        "Join",
        "Leave",
        "DiscoverNew",
        "DiscoverDelete",
        "ProgramExternalConnectivity",
        "RevokeExternalConnectivity",
    )
]


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with Site() as site, closing(Running(site)) as made:
        yield made.start()


@pytest.fixture
def fw(running: Running) -> Iterator[Running]:
    """Yield the running plugin, with empty state before and after; a test that leaves something behind fails."""
    running.docker.mode = "answer"
    running.clean()  # created by fuzzing
    running.docker.containers.clear()
    running.docker.networks.clear()
    running.docker.images = {"sha256:plain": {}}
    running.docker.asked.clear()
    # After a test with a silent API: until it has answered once again.
    running.docker.event("network", "create")
    until(lambda: any("/containers/json" in path for path in running.docker.asked), "the plugin heard of Docker")
    yield running
    running.docker.mode = "answer"
    running.clean()
    running.nothing_left()
    assert running.process
    assert running.process.poll() is None


# --- the protocol -------------------------------------------------------------------------------------------------


def test_activation_and_capabilities(fw: Running) -> None:
    """Answer Docker's first request, which has an empty body."""
    assert fw.call("Plugin.Activate") == {"Implements": ["NetworkDriver"]}
    assert fw.driver("GetCapabilities") == {"Scope": "local", "ConnectivityScope": "local"}


def test_the_socket_is_roots_alone(fw: Running) -> None:
    """Only root can open networks through the plugin's socket."""
    mode = fw.socket.stat()
    assert stat.S_ISSOCK(mode.st_mode)
    assert stat.S_IMODE(mode.st_mode) == 0o600
    assert mode.st_uid == 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/NetworkDriver.Nonsense", 404),
        ("POST", "/", 404),
        ("POST", "/a/b/c", 404),
        ("POST", "/IpamDriver.RequestPool", 404),
        ("POST", "/" + "x" * 2000, 404),
        ("GET", "/nowhere", 405),
        ("GET", "/NetworkDriver.Join", 405),
        ("PUT", "/NetworkDriver.Join", 405),
        ("DELETE", "/Plugin.Activate", 405),
    ],
)
def test_unknown_calls_are_refused_in_json(fw: Running, method: str, path: str, status: int) -> None:
    """A call that a newer Docker adds gets the error that Docker tolerates, in the protocol's own form."""
    found, reply = fw.raw(method, path, b"{}")
    assert found == status
    assert isinstance(json.loads(reply)["Err"], str)


def test_calls_that_a_local_driver_has_no_use_for(fw: Running) -> None:
    """Swarm's calls succeed and do nothing."""
    assert fw.driver("DiscoverNew", {"DiscoveryType": 1, "DiscoveryData": {}}) == {}
    assert fw.driver("DiscoverDelete", {"DiscoveryType": 1, "DiscoveryData": {}}) == {}
    assert fw.driver("AllocateNetwork", {"NetworkID": "a", "Options": {}}) == {"Options": {}}
    assert fw.driver("FreeNetwork", {"NetworkID": "a"}) == {}


def test_a_containers_life(fw: Running) -> None:
    """Create, join, publish, leave, delete: each step creates what it should, and at the end nothing is left."""
    network = fw.network(1)
    assert fw.driver("CreateNetwork", network) == {}
    assert fw.links() == {"fw-000000000001"}
    endpoint = fw.endpoint(network, 2)
    fw.docker.container("web", endpoint["EndpointID"], network["NetworkID"])
    assert fw.driver("CreateEndpoint", endpoint) == {"Interface": {"MacAddress": "02:42:0a:01:00:02"}}
    assert fw.opens("10.1.0.2") == set()
    assert fw.driver("Join", endpoint) == {
        "InterfaceName": {"SrcName": container_side(endpoint["EndpointID"]), "DstPrefix": "eth"},
        "DisableGatewayService": True,
        "Gateway": "10.1.0.1",
        "GatewayIPv6": "2001:db8:1::1",
    }
    assert fw.opens("10.1.0.2") == fw.opens("2001:db8:1::2") == BASE
    assert fw.links() == names_of(network, endpoint)
    info = fw.driver("EndpointOperInfo", endpoint)
    assert info == {"Value": {"com.docker.network.endpoint.macaddress": "02:42:0a:01:00:02"}}
    publish = {**endpoint, "Options": {PORTMAP: [{"Proto": 6, "Port": 80, "HostPort": 8081}]}}
    assert fw.driver("ProgramExternalConnectivity", publish) == {}
    assert "6 . 8081 : 10.1.0.2 . 80" in fw.elements()
    assert "6 . 8081 : 2001:db8:1::2 . 80" in fw.elements()
    assert fw.driver("RevokeExternalConnectivity", endpoint) == {}
    assert "8081" not in fw.elements()
    assert fw.driver("Leave", endpoint) == {}
    assert fw.links() == {"fw-000000000001"}
    assert fw.opens("10.1.0.2") == set()
    assert fw.driver("DeleteEndpoint", endpoint) == {}
    assert fw.driver("DeleteNetwork", {"NetworkID": network["NetworkID"]}) == {}
    fw.nothing_left()


def test_every_call_may_come_twice(fw: Running) -> None:
    """Docker repeats a call whose answer was lost: the second call changes nothing and returns the same answer."""
    network = fw.network(1)
    endpoint = fw.endpoint(network, 2)
    publish = {**endpoint, "Options": {PORTMAP: [{"Proto": 6, "Port": 80, "HostPort": 8081}]}}
    fw.docker.container("web", endpoint["EndpointID"], network["NetworkID"], {"fw.allow": "8080"})
    for name, body in (
        ("CreateNetwork", network),
        ("CreateEndpoint", endpoint),
        ("Join", endpoint),
        ("ProgramExternalConnectivity", publish),
        ("EndpointOperInfo", endpoint),
        ("RevokeExternalConnectivity", endpoint),
        ("Leave", endpoint),
        ("DeleteEndpoint", endpoint),
        ("DeleteNetwork", network),
    ):
        first = fw.well(name, body)
        before = (fw.links(), fw.elements(), fw.kept())
        assert fw.well(name, body) == first
        assert (fw.links(), fw.elements(), fw.kept()) == before


def test_an_endpoint_that_has_not_joined_has_no_flows(fw: Running) -> None:
    """Its Leave has none to cut, so that no later container inherits any: each packet to its addresses is dropped."""
    network = fw.network(1)
    endpoint = fw.endpoint(network, 2)
    fw.docker.container("web", endpoint["EndpointID"], network["NetworkID"])
    fw.well("CreateNetwork", network)
    fw.well("CreateEndpoint", endpoint)
    fw.publish(endpoint, 8081, 80)
    own = {"10.1.0.2", "2001:db8:1::2"}
    to = [(proto, address, port) for proto, port in (("tcp", 80), ("udp", 53)) for address in own]
    to += [("tcp", str(address), 8081) for address in (fw.site.HOST4, fw.site.HOST6)]

    def tracked() -> set[str]:
        fw.site.wan.probe(to, timeout=0.4)
        lists = (fw.site.run("conntrack", "-L", "-f", family, check=False).stdout for family in ("ipv4", "ipv6"))
        return set(re.findall(r"(?:src|dst)=(\S+)", "".join(lists)))

    assert not own & tracked()
    fw.well("Join", endpoint)
    assert own <= tracked()


def test_an_internal_network_has_no_gateway_and_nothing_open(fw: Running) -> None:
    """On `--internal` a container gets no default route, and no address accepts anything from elsewhere."""
    network = fw.network(1)
    network["Options"]["com.docker.network.internal"] = True
    fw.well("CreateNetwork", network)
    endpoint = fw.start_container(network, 2, {"fw.allow": "8080"})
    assert endpoint["Joined"].keys() == {"InterfaceName", "DisableGatewayService"}
    assert fw.opens("10.1.0.2") == set()
    publish = {**endpoint, "Options": {PORTMAP: [{"Proto": 6, "Port": 80, "HostPort": 8081}]}}
    assert fw.driver("ProgramExternalConnectivity", publish) == {}
    assert "8081" not in fw.elements()


def test_single_stack(fw: Running) -> None:
    """An IPv6-only and an IPv4-only network return their own gateway in Join."""
    six = fw.network(1, IPv4Data=None)
    four = fw.network(2, IPv6Data=[])
    for network, gone, gateway in ((six, "Address", "GatewayIPv6"), (four, "AddressIPv6", "Gateway")):
        fw.well("CreateNetwork", network)
        endpoint = fw.endpoint(network, 2)
        endpoint["Interface"][gone] = ""
        fw.docker.container("x", endpoint["EndpointID"], network["NetworkID"])
        mac = fw.well("CreateEndpoint", endpoint)["Interface"]["MacAddress"]
        assert int(mac[:2], 16) & 3 == 2
        reply = fw.well("Join", endpoint)
        assert [key for key in reply if key.startswith("Gateway")] == [gateway]
    assert fw.opens("2001:db8:1::2") == fw.opens("10.2.0.2") == BASE


def test_a_chosen_mac_is_not_answered(fw: Running) -> None:
    """The driver does not return a MAC that Docker chose itself: Docker refuses such an answer."""
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    endpoint = fw.endpoint(network, 2)
    endpoint["Interface"]["MacAddress"] = "02:42:AC:00:00:99"
    assert fw.driver("CreateEndpoint", endpoint) == {"Interface": {}}
    fw.docker.container("x", endpoint["EndpointID"], network["NetworkID"])
    fw.well("Join", endpoint)
    shown = fw.site.run("ip", "link", "show", container_side(endpoint["EndpointID"])).stdout
    assert "02:42:ac:00:00:99" in shown


def test_keep_alive(fw: Running) -> None:
    """Docker keeps its connections open: many calls on one connection, without a pause."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(fw.socket))
        for _ in range(50):
            sock.sendall(b"POST /Plugin.Activate HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            reply = b""
            while b"]}" not in reply:
                reply += sock.recv(4096)
            assert reply.startswith(b"HTTP/1.1 200")


# --- labels -----------------------------------------------------------------------------------------------------------


def test_labels_open_before_join_returns(fw: Running) -> None:
    """A container's exceptions are active when Join returns: before its first instruction."""
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    endpoint = fw.endpoint(network, 2)
    fw.docker.container("web", endpoint["EndpointID"], network["NetworkID"], {"fw.allow": "8080, 53/udp", "x": "y"})
    fw.well("CreateEndpoint", endpoint)
    assert fw.opens("2001:db8:1::2") == set()
    fw.well("Join", endpoint)
    assert fw.opens("2001:db8:1::2") == fw.opens("10.1.0.2") == {*BASE, "8080/6", "53/17"}
    (shown,) = fw.status()["networks"][0]["endpoints"]
    assert (shown["container"], shown["known"]) == ("web", True)


def test_options_of_the_attachment_and_of_the_network_open_too(fw: Running) -> None:
    """`driver_opts` of a service's network, and `-o` of a network, set `fw.allow` as well, and all add up."""
    network = fw.network(1, {"fw.allow": "9000"})
    fw.well("CreateNetwork", network)
    fw.start_container(network, 2, {"fw.allow": "8080"}, **{"fw.allow": "8081"})
    fw.start_container(network, 3)
    assert fw.opens("2001:db8:1::2") == {*BASE, "9000/6", "8080/6", "8081/6"}
    assert fw.opens("2001:db8:1::3") == {*BASE, "9000/6"}


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (
            {"fw.allow": "808O"},
            'web: label fw.allow="808O": "808O" is not a port (1-65535, a range like 9000-9100, or *)',
        ),
        ({"fw.alow": "8080"}, 'web: label fw.alow="8080": is not a key of docker-fw; did you mean fw.allow?'),
        ({"fw.allow": "0, 8080, 70000"}, '"0" is not a port'),
    ],
    ids=str,
)
def test_a_wrong_label_refuses_the_start(fw: Running, labels: dict[str, str], words: str) -> None:
    """Docker gets the container's name and each mistake as text; nothing is open, no link remains."""
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    endpoint = fw.endpoint(network, 2)
    fw.docker.container("web", endpoint["EndpointID"], network["NetworkID"], labels)
    fw.well("CreateEndpoint", endpoint)
    reply = fw.driver("Join", endpoint)
    assert words in reply["Err"]
    assert reply.keys() == {"Err"}
    assert fw.links() == names_of(network)
    assert fw.opens("10.1.0.2") == set()
    # Docker 29 and later send the first call after a failed Join, and all versions the others:
    fw.well("Leave", endpoint)
    fw.well("DeleteEndpoint", endpoint)


@pytest.mark.parametrize("name", ["CreateNetwork", "CreateEndpoint"])
def test_a_wrong_option_refuses_too(fw: Running, name: str) -> None:
    """A mistake in a network's or an attachment's options is reported at once, and nothing is created."""
    network = fw.network(1, {"fw.allow": "x"} if name == "CreateNetwork" else {})
    if name == "CreateNetwork":
        assert 'network option fw.allow="x": "x" is not a port' in fw.driver(name, network)["Err"]
        fw.nothing_left()
    else:
        fw.well("CreateNetwork", network)
        endpoint = fw.endpoint(network, 2, **{"fw.allow": "x"})
        assert 'driver option fw.allow="x": "x" is not a port' in fw.driver(name, endpoint)["Err"]
        assert fw.status()["networks"][0]["endpoints"] == []


def test_an_image_opens_nothing_by_itself(fw: Running) -> None:
    """A label from the image is ignored; the same key with another value is the user's."""
    fw.docker.images = {"sha256:loud": {"fw.allow": "8080", "fw.alow": "mistake"}}
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    for number, value, more in ((2, "8080", set()), (3, "9090", {"9090/6"})):
        endpoint = fw.endpoint(network, number)
        labels = {"fw.allow": value, "fw.alow": "mistake"}
        fw.docker.container(f"c{number}", endpoint["EndpointID"], network["NetworkID"], labels, "sha256:loud")
        fw.well("CreateEndpoint", endpoint)
        fw.well("Join", endpoint)
        assert fw.opens(f"10.1.0.{number}") == BASE | more


def test_a_container_of_a_similar_name_is_another(fw: Running) -> None:
    """Docker's name filter is a pattern: `web` is never taken for `web2` or `a.web`, nor `a.b` for `axb`."""
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    names = {"web2": "1", "my-web": "2", "axb": "3", "web": "4", "a.b": "5"}
    for number, (name, port) in enumerate(names.items(), 2):
        endpoint = fw.endpoint(network, number)
        fw.docker.container(name, endpoint["EndpointID"], network["NetworkID"], {"fw.allow": port})
    for number, port in ((5, "4"), (6, "5")):
        endpoint = fw.endpoint(network, number)
        fw.well("CreateEndpoint", endpoint)
        fw.well("Join", endpoint)
        assert fw.opens(f"10.1.0.{number}") == {*BASE, f"{port}/6"}


def test_a_container_that_docker_does_not_list_yet(fw: Running) -> None:
    """Docker answers but does not list the endpoint yet: only ICMP passes until it does, then the container opens."""
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    endpoint = fw.endpoint(network, 2)
    fw.well("CreateEndpoint", endpoint)
    fw.well("Join", endpoint)
    assert fw.opens("10.1.0.2") == set()
    fw.docker.container("late", endpoint["EndpointID"], network["NetworkID"], {"fw.allow": "8080"})
    fw.docker.event("container", "start")
    until(lambda: fw.opens("10.1.0.2") == {*BASE, "8080/6"}, "the labels are known")


# --- when Docker's API does not answer ----------------------------------------------------------------------------

SILENT: list[Mode] = ["hang", "hang up", "garbage", "wrong JSON", "error 500", "drip"]


@pytest.mark.parametrize("mode", SILENT)
def test_a_hook_never_waits_for_docker(fw: Running, mode: Mode) -> None:
    """While the API does not answer, only the first start is delayed, by at most a second; all stays closed.

    Later starts are not delayed. As soon as the API answers, the exceptions become active without another call.
    """
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    fw.docker.mode = mode
    fw.docker.end_streams()
    endpoints = [fw.endpoint(network, number) for number in (2, 3, 4)]
    durations = []
    for endpoint in endpoints:
        fw.docker.container(
            "web" + endpoint["EndpointID"][:12], endpoint["EndpointID"], network["NetworkID"], {"fw.allow": "8080"}
        )
        fw.well("CreateEndpoint", endpoint)
        began = time.monotonic()
        fw.well("Join", endpoint)
        durations.append(took(began))
    assert durations[0] < 2.5  # about one second, on a busy machine
    assert max(durations[1:]) < 1
    for number in (2, 3, 4):
        assert fw.opens(f"10.1.0.{number}") == fw.opens(f"2001:db8:1::{number}") == set()
    fw.docker.mode = "answer"
    for number in (2, 3, 4):
        until(lambda n=number: fw.opens(f"10.1.0.{n}") == {*BASE, "8080/6"}, "the exceptions appear", 15)  # type: ignore[misc]


def test_wrong_labels_that_become_known_later_stay_closed(fw: Running) -> None:
    """Where Join could not refuse, a mistake in a label keeps the container closed, and the status reports why."""
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    fw.docker.mode = "hang up"
    fw.docker.end_streams()
    fw.start_container(network, 2, {"fw.allow": "808O"})
    fw.docker.mode = "answer"

    def shown() -> Any:
        return fw.status()["networks"][0]["endpoints"][0]

    until(lambda: bool(shown()["problems"]), "the mistake is known", 15)
    assert shown()["problems"] == [
        'label fw.allow="808O": "808O" is not a port (1-65535, a range like 9000-9100, or *)'
    ]
    assert fw.opens("10.1.0.2") == set()


def test_other_hooks_need_no_docker(fw: Running) -> None:
    """Networks are created and deleted, containers stop, ports are published, while the API hangs."""
    fw.docker.mode = "hang"
    fw.docker.end_streams()
    began = time.monotonic()
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    endpoint = fw.start_container(network, 2)
    fw.well("ProgramExternalConnectivity", {**endpoint, "Options": {PORTMAP: [{"Proto": 6, "Port": 80}]}})
    fw.stop_container(endpoint)
    fw.well("DeleteNetwork", network)
    assert took(began) < 3


# --- objects that cannot be created -----------------------------------------------------------------------------------


def test_a_taken_bridge_name_is_refused(fw: Running) -> None:
    """A bridge name that the host uses is refused with a text; the host's link and docker-fw's state are unchanged."""
    fw.site.host.ip("link add front0 type bridge", "addr add 10.200.0.1/24 dev front0")
    before = fw.site.run("ip", "-d", "addr", "show", "front0").stdout
    try:
        reply = fw.driver("CreateNetwork", fw.network(1, {"com.docker.network.bridge.name": "front0"}))
        assert "bridge name front0 is taken" in reply["Err"]
        assert fw.site.run("ip", "-d", "addr", "show", "front0").stdout == before
        assert fw.links() == {"front0"}
        assert fw.elements() == ""
        assert fw.kept()["networks"] == {}
    finally:
        fw.site.host.ip("link del front0")


def test_an_overlapping_subnet_is_refused(fw: Running) -> None:
    """A subnet of the host or of another docker-fw network is refused with both names, and nothing is created."""
    fw.well("CreateNetwork", fw.network(1))
    clash = {**fw.network(2), "IPv4Data": [{"Gateway": "10.1.0.129/25"}]}
    assert "10.1.0.128/25 overlaps 10.1.0.0/24 of network 000000000001" in fw.driver("CreateNetwork", clash)["Err"]
    clash = {**fw.network(2), "IPv6Data": [{"Gateway": "2001:db8:ffff::9/64"}]}
    assert "overlaps 2001:db8:ffff::1/64 on eth0" in fw.driver("CreateNetwork", clash)["Err"]
    assert fw.links() == {"fw-000000000001"}
    assert len(fw.status()["networks"]) == 1


def test_the_same_network_with_other_options_is_refused(fw: Running) -> None:
    """A second CreateNetwork with the same ID and other options is refused, and the first network is unchanged."""
    fw.well("CreateNetwork", fw.network(1))
    before = fw.kept()
    assert "exists already with other options" in fw.driver("CreateNetwork", fw.network(1, {"fw.allow": "1"}))["Err"]
    assert fw.kept() == before


def test_the_same_endpoint_with_other_addresses_is_refused(fw: Running) -> None:
    """A second CreateEndpoint with the same ID and other addresses is refused, too."""
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    endpoint = fw.endpoint(network, 2)
    fw.well("CreateEndpoint", endpoint)
    other = {**endpoint, "Interface": {"Address": "10.1.0.9/24"}}
    assert "exists already with other addresses" in fw.driver("CreateEndpoint", other)["Err"]


@pytest.mark.parametrize("name", ["CreateEndpoint", "Join", "EndpointOperInfo", "ProgramExternalConnectivity"])
def test_calls_about_unknown_objects_say_what_to_do(fw: Running, name: str) -> None:
    """Calls about unknown networks and endpoints (the state was lost) are errors that say what to do."""
    error = fw.driver(name, fw.endpoint(fw.network(1), 2))["Err"]
    assert re.search(r"docker-fw does not know (network|endpoint) .*(remove the network|restart the container)", error)


@pytest.mark.parametrize("name", ["Leave", "DeleteEndpoint", "DeleteNetwork", "RevokeExternalConnectivity"])
def test_removing_unknown_objects_succeeds(fw: Running, name: str) -> None:
    """Calls that remove something succeed if it does not exist: Docker must be able to clean up after the plugin."""
    assert fw.driver(name, fw.endpoint(fw.network(1), 2)) == {}


def test_a_deleted_network_takes_its_endpoints_along(fw: Running) -> None:
    """DeleteNetwork without the expected earlier calls (Docker omits some) leaves nothing behind."""
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    endpoint = fw.start_container(network, 2)
    fw.publish(endpoint, 8081, 80)
    fw.well("DeleteNetwork", network)
    fw.nothing_left()
    with inside(fw.site.host.path), socket.socket() as sock:
        sock.bind(("127.0.0.1", 8081))  # the host port is free again


def test_a_full_disk_is_reported_and_harms_nothing(fw: Running) -> None:
    """When the state cannot be written a start is refused with the path, and a stop still closes."""
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    endpoint = fw.start_container(network, 2, {"fw.allow": "8080"})
    another = fw.network(2)
    fw.well("CreateNetwork", another)  # the state file is rewritten, and its log is not started
    full = [Path(f"{fw.state}.new"), Path(f"{fw.state}.log")]
    for path in full:
        path.unlink(missing_ok=True)
        path.symlink_to("/dev/full")
    try:
        for path in (f"{fw.state}.log", fw.state):
            reply = fw.driver("CreateEndpoint", fw.endpoint(network, 3))
            assert f"could not write the state file {path}: No space left on device" in reply["Err"]
        fw.driver("Leave", endpoint)
        assert fw.opens("10.1.0.2") == fw.opens("2001:db8:1::2") == set()
    finally:
        for path in full:
            path.unlink()
    fw.well("DeleteNetwork", another)
    fw.stop_container(endpoint)


# --- any bytes at all ---------------------------------------------------------------------------------------------


def answered(fw: Running, path: str, data: bytes, **headers: str) -> Body:
    """Send bytes to a call and expect a JSON object, whatever they are; the five seconds allow for a busy machine."""
    status, reply = fw.raw("POST", path, data, timeout=5, headers=headers)
    assert status in (200, 413), (path, data[:200], status)
    value = json.loads(reply)
    assert isinstance(value, dict)
    assert isinstance(value.get("Err", ""), str)
    assert len(reply) < 100_000
    return value


BAD: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n ",
    "cut": b'{"NetworkID": "ab',
    "null": b"null",
    "number": b"1",
    "text": b'"x"',
    "list": b"[]",
    "empty object": b"{}",
    "not UTF-8": b'{"NetworkID": "\xff\xfe"}',
    "UTF-16": '{"NetworkID": "ab"}'.encode("utf-16"),
    "NaN": b'{"NetworkID": NaN}',
    "infinity": b'{"NetworkID": "ab", "EndpointID": -Infinity}',
    "lone surrogate": b'{"NetworkID": "\\ud800"}',
    "nested": b'{"a":' * 100_000,
    "nested lists": b"[" * 1_000_000,
    "long number": b'{"NetworkID": ' + b"9" * 100_000 + b"}",
    "long text": b'{"NetworkID": "' + b"a" * 1_000_000 + b'"}',
    "same key often": b'{"NetworkID": "a"' + b', "NetworkID": "a"' * 50_000 + b"}",
    "path as ID": b'{"NetworkID": "../../etc/passwd", "EndpointID": "/"}',
    "code as ID": b'{"NetworkID": "a; delete table inet docker-fw", "EndpointID": "$(reboot)"}',
    "zeroes": b"\0" * 1000,
    "many wrong labels": json.dumps(
        {**CREATE_NETWORK, "Options": {GENERIC: {f"fw.{n}": "x" for n in range(100_000)}}}
    ).encode(),
    "many ports": json.dumps({**CREATE_ENDPOINT, "Options": {PORTMAP: [{"Proto": 6, "Port": 80}] * 100_000}}).encode(),
}


@pytest.mark.parametrize("content", BAD)
def test_bad_bodies_are_answered(fw: Running, content: str) -> None:
    """Each call answers each kind of malformed body with a JSON object, in time, and keeps nothing of it."""
    for path in CALLS:
        value = answered(fw, f"/{path}", BAD[content])
        if path.endswith(("CreateNetwork", "CreateEndpoint", "Join", "Info", "ProgramExternalConnectivity")):
            assert value.get("Err"), path
    fw.clean()
    fw.nothing_left()


@pytest.mark.parametrize("path", ["/NetworkDriver.Join", "/NetworkDriver.CreateNetwork", "/Plugin.Activate"])
def test_nine_megabytes_are_refused(fw: Running, path: str) -> None:
    """A request larger than any of Docker's is not read: the answer is a JSON object with a text."""
    data = b'{"NetworkID": "' + b"a" * (9 << 20) + b'"}'
    value = answered(fw, path, data)
    if path != "/Plugin.Activate":
        assert "Too Large" in value["Err"]


def test_chunks_without_a_length(fw: Running) -> None:
    """A chunked request is read; one without a stated length is cut off where it becomes too large."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(fw.socket))
        sock.sendall(b"POST /NetworkDriver.Leave HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        body = b'{"NetworkID": "ab", "EndpointID": "cd"}'
        sock.sendall(f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n")
        reply = sock.recv(4096)
        assert reply.startswith(b"HTTP/1.1 200")


def test_a_client_that_sends_half_a_request_blocks_no_other(fw: Running) -> None:
    """Clients that send half a request and fall silent (a stopped dockerd) do not block the others."""
    silent = []
    try:
        for _ in range(10):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(fw.socket))
            sock.sendall(b"POST /NetworkDriver.Join HTTP/1.1\r\nHost: x\r\nContent-")
            silent.append(sock)
        began = time.monotonic()
        assert fw.call("Plugin.Activate") == {"Implements": ["NetworkDriver"]}
        assert took(began) < 2
    finally:
        for sock in silent:
            sock.close()


_sane = st.sampled_from(
    [{**CREATE_NETWORK, "Options": {**CREATE_NETWORK["Options"], GENERIC: {}}}, CREATE_ENDPOINT]
).flatmap(shapes)


@given(path=st.sampled_from(CALLS), body=st.one_of(_sane, json_values))
@inputs(150)
def any_json_is_answered(running: Running, path: str, body: Any) -> None:
    """Any JSON value to any call is answered with an object, in time; no call fails in an unforeseen way."""
    value = answered(running, f"/{path}", json.dumps(body).encode())
    assert "docker-fw failed on" not in value.get("Err", ""), value


@given(path=st.sampled_from(CALLS), data=st.binary(max_size=300))
@inputs(50)
def any_bytes_are_answered(running: Running, path: str, data: bytes) -> None:
    """Any bytes are answered, not only JSON."""
    assert "docker-fw failed on" not in answered(running, f"/{path}", data).get("Err", "")


def test_any_request_is_answered_and_leaves_nothing(fw: Running) -> None:
    """Any JSON and any bytes are answered. Objects that they created are removed with their networks, and a plain
    container starts as before."""
    any_json_is_answered(fw)
    any_bytes_are_answered(fw)
    fw.clean()
    fw.nothing_left()
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    fw.start_container(network, 2, {"fw.allow": "8080"})
    assert fw.opens("10.1.0.2") == {*BASE, "8080/6"}


_steps = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "CreateNetwork",
                "DeleteNetwork",
                "CreateEndpoint",
                "Join",
                "Join",
                "Leave",
                "DeleteEndpoint",
                "ProgramExternalConnectivity",
                "RevokeExternalConnectivity",
                "EndpointOperInfo",
            ]
        ),
        st.integers(1, 2),
        st.integers(2, 3),
    ),
    max_size=14,
)


@given(steps=_steps)
@inputs(35)
def test_calls_in_any_order(running: Running, steps: list[tuple[str, int, int]]) -> None:
    """In any order, each call is answered, only joined endpoints are open, and at the end nothing is left."""
    fw = running
    fw.docker.mode = "answer"
    joined: set[tuple[int, int]] = set()
    known: set[tuple[int, int]] = set()
    nets: set[int] = set()
    for name, net, number in steps:
        network = fw.network(net)
        endpoint = fw.endpoint(network, number)
        fw.docker.container(f"n{net}c{number}", endpoint["EndpointID"], network["NetworkID"], {"fw.allow": "8080"})
        body = {
            "CreateNetwork": network,
            "DeleteNetwork": network,
            "ProgramExternalConnectivity": {
                **endpoint,
                "Options": {PORTMAP: [{"Proto": 6, "Port": 80, "HostPort": 8000 + 10 * net + number}]},
            },
        }.get(name, endpoint)
        value = answered(fw, f"/NetworkDriver.{name}", json.dumps(body).encode())
        key = (net, number)
        if name == "CreateNetwork":
            nets.add(net)
        elif name == "DeleteNetwork":
            nets.discard(net)
            known = {k for k in known if k[0] != net}
            joined = {k for k in joined if k[0] != net}
        elif name == "CreateEndpoint" and net in nets:
            known.add(key)
        elif name == "Join" and key in known:
            joined.add(key)
        elif name in ("Leave", "DeleteEndpoint"):
            joined.discard(key)
            known -= {key} if name == "DeleteEndpoint" else set()
        refused = name in ("CreateEndpoint", "Join", "EndpointOperInfo", "ProgramExternalConnectivity") and (
            net not in nets or (name != "CreateEndpoint" and key not in known)
        )
        assert bool(value.get("Err")) is refused, (name, value)
    shown = {
        tuple(map(int, re.findall(r"10\.(\d+)\.0\.(\d+)", endpoint["addresses"][0])[0]))
        for network in fw.status()["networks"]
        for endpoint in network["endpoints"]
        if endpoint["accepts"]
    }
    assert shown == joined
    fw.clean()
    fw.nothing_left()


# --- many at once -------------------------------------------------------------------------------------------------


def test_many_at_once(fw: Running) -> None:
    """Compose starts everything at once: six networks and their 48 containers, concurrently, each as if alone."""

    def life(number: int) -> None:
        network = fw.network(number)
        fw.well("CreateNetwork", network)
        with ThreadPoolExecutor(8) as inner:
            list(inner.map(lambda n: fw.start_container(network, n, {"fw.allow": str(8000 + n)}), range(2, 10)))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(life, range(1, 7)))

    def all_known() -> bool:
        return all(e["known"] for network in fw.status()["networks"] for e in network["endpoints"])

    until(all_known, "all labels are known (at once, but on a very busy machine)", 15)
    shown = fw.status()["networks"]
    assert len(shown) == 6
    for network in shown:
        assert len(network["endpoints"]) == 8
        for endpoint in network["endpoints"]:
            last = int(endpoint["addresses"][0].rpartition(".")[2])
            assert f"{8000 + last}/tcp" in endpoint["accepts"]
            assert fw.opens(endpoint["addresses"][0]) == {*BASE, f"{8000 + last}/6"}

    def stop(number: int) -> None:
        network = fw.network(number)
        with ThreadPoolExecutor(8) as inner:
            list(inner.map(lambda n: fw.stop_container(fw.endpoint(network, n)), range(2, 10)))
        fw.well("DeleteNetwork", network)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(stop, range(1, 7)))
    fw.nothing_left()


def test_requests_for_status_block_no_other(fw: Running) -> None:
    """Status is requested continuously while Docker reports changes: every request is answered."""
    identity, stop = "d" * 64, threading.Event()
    fw.docker.bridge_network(identity, "app", "172.30.0.0/16")
    for number in range(3):
        fw.docker.container(f"g{number}", f"{number:064x}", identity, {"fw.allow": "8080"})

    def asks() -> int:
        count = 0
        while not stop.is_set():
            count += bool(fw.status()["version"])
        return count

    def change(number: int) -> None:
        """Replace the listed container, so that the next full listing changes the table."""
        before = sum("/containers/json" in path for path in fw.docker.asked)
        place = fw.docker.containers[f"{number % 3:064x}"]["NetworkSettings"]["Networks"]["net"]
        place["IPAddress"] = f"172.30.1.{number}"
        fw.docker.event("network", "create")
        until(lambda: sum("/containers/json" in path for path in fw.docker.asked) > before, "Docker is listed")

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(asks) for _ in range(4)]
        try:
            for number in range(30):
                change(number)
        finally:
            stop.set()
        assert all(each.result(10) for each in asking)
    fw.docker.networks.clear()
    fw.docker.containers.clear()
    fw.docker.event("network", "create")
    until(lambda: not fw.status()["guarded"], "the containers are removed")


def test_two_hundred_on_one_network(fw: Running) -> None:
    """The two-hundredth container of a network starts like the first, answers by its own label, and is removed."""
    network = fw.network(1, IPv4Data=[{"Gateway": "10.1.0.1/16"}])
    fw.well("CreateNetwork", network)

    def start(number: int) -> Body:
        endpoint = fw.endpoint(network, number)
        endpoint["Interface"]["Address"] = f"10.1.{number >> 8}.{number & 255}/16"
        fw.docker.container(f"c{number}", endpoint["EndpointID"], network["NetworkID"], {"fw.allow": str(number)})
        fw.well("CreateEndpoint", endpoint)
        fw.well("Join", endpoint)
        return endpoint

    with ThreadPoolExecutor(4) as pool:
        endpoints = list(pool.map(start, range(2, 202)))
    until(lambda: all(e["known"] for e in fw.status()["networks"][0]["endpoints"]), "all labels are known", 15)
    assert len(fw.links()) == 1 + 2 * 200
    opened = fw.table()
    for number in range(2, 202):
        assert f"10.1.{number >> 8}.{number & 255} . 6 . {number}" in opened
        assert f"2001:db8:1::{number:x} . 6 . {number}" in opened
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fw.stop_container, endpoints))
    assert fw.links() == names_of(network)


def test_two_networks_that_want_the_same(fw: Running) -> None:
    """Of eight networks that request one bridge name or one subnet at the same moment, one gets it."""
    for clash in ("name", "subnet"):
        barrier = threading.Barrier(8)

        def create(number: int, clash: str = clash, barrier: threading.Barrier = barrier) -> Any:
            options = {"com.docker.network.bridge.name": "front0"} if clash == "name" else {}
            body = fw.network(number, options)
            if clash == "subnet":
                body.update(IPv4Data=[{"Gateway": "10.99.0.1/24"}], IPv6Data=None)
            barrier.wait(60)
            return fw.driver("CreateNetwork", body)

        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(create, range(1, 9)))
        assert sum("Err" not in reply for reply in replies) == 1, replies
        assert len(fw.status()["networks"]) == 1
        assert len(fw.links()) == 1
        fw.clean()


# --- packets ------------------------------------------------------------------------------------------------------


def test_not_one_packet_before_the_labels_are_known(fw: Running) -> None:
    """Under fire since before its network exists, a container receives only ping until its labels are known.

    Neither the creation of the network, nor Join, nor moving the link into the container leaves a gap. Afterwards the
    base and the container's own port are open, and no other.
    """
    site = fw.site
    target4, target6 = ip_address("10.1.0.2"), ip_address("2001:db8:1::2")
    stop = threading.Event()
    sports = iter(range(1024, 65000))
    with site.inside():
        site.sysctl.forward({2, 10})  # the host is a router already
    fired: list[Any] = []

    def fire() -> None:
        while not stop.is_set():
            sport = next(sports)
            volley = [
                new_flow("tcp", src, dst, port, sport)
                for src, dst in ((Site.OUT4, target4), (Site.OUT6, target6))
                for port in (22, 80, 8080, 8081)
            ]
            site.send(volley)
            fired.extend(volley)

    thread = threading.Thread(target=fire)
    thread.start()
    try:
        network = fw.network(1, {"com.docker.network.bridge.name": "front0"})
        fw.well("CreateNetwork", network)
        fw.docker.mode = "hang up"
        fw.docker.end_streams()
        endpoint = fw.start_container(network, 2, {"fw.allow": "8080"})
        box = fw.move(endpoint, "front0")
        sniffer = site.sniffer(box)
        last = ping(Site.OUT6, target6)
        count = len(fired)
        until(lambda: len(fired) > count + 200, "some hundred packets more")
        site.send([last])
        (seen,) = arrived([sniffer], last)
        assert not seen & set(fired)
        fw.docker.mode = "answer"
        until(lambda: fw.opens("10.1.0.2") == {*BASE, "8080/6"}, "the labels are known", 15)
        count = len(fired)
        until(lambda: len(fired) > count + 200, "some hundred packets more")
    finally:
        stop.set()
        thread.join(60)
    last = ping(Site.OUT6, target6)
    site.send([last])
    (seen,) = arrived([sniffer], last)
    passed = {int.from_bytes(packet.data[2:4], "big") for packet in seen & set(fired)}
    assert passed == {22, 80, 8080}


# --- kills and restarts -----------------------------------------------------------------------------------------------


@pytest.fixture
def own() -> Iterator[Running]:
    """Yield a plugin for one test, not started."""
    with Site() as site:
        made = Running(site)
        yield made
        made.close()


def test_a_killed_worker_is_replaced_and_nothing_changes(own: Running) -> None:
    """After SIGKILL the next worker takes over links, table, state and published ports as they were."""
    fw = own.start()
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    endpoint = fw.start_container(network, 2, {"fw.allow": "8080"})
    fw.publish(endpoint, 8081, 80)
    fw.move(endpoint)
    before = fw.current_state()
    for _ in range(2):
        fw.kill_worker()
        until(lambda: fw.current_state() == before, "everything is as before")
    fw.stop_container(endpoint)
    fw.well("DeleteNetwork", network)
    fw.nothing_left()


def test_killed_at_any_time(own: Running) -> None:
    """The plugin is killed repeatedly in the middle of calls.

    No call opens what it should not, the table is never removed, and once Docker has repeated or given up its calls,
    everything is in order.
    """
    fw = own.start()
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    kept = fw.start_container(network, 200, {"fw.allow": "9999"})
    fw.move(kept)
    stop = threading.Event()
    gone: list[str] = []
    chance = random.Random(7)

    def watch() -> None:
        with inside(fw.site.host.path):
            while not stop.is_set():
                shown = fw.site.run("nft", "list", "chain", "inet", "docker-fw", "inbound", check=False)
                if shown.returncode or "goto deny" not in shown.stdout:
                    gone.append(shown.stdout + shown.stderr)

    def retried(name: str, body: Body) -> Any:
        """Call as Docker does: a transport error is retried."""
        for _ in range(200):
            try:
                return fw.driver(name, body)
            except (OSError, json.JSONDecodeError, AssertionError):
                stop.wait(0.05)
            except Exception as error:
                if type(error).__module__ != "http.client":
                    raise
                stop.wait(0.05)
        raise AssertionError(f"{name} was never answered")

    def work() -> None:
        for number in range(2, 14):
            endpoint = fw.endpoint(network, number)
            fw.docker.container(f"c{number}", endpoint["EndpointID"], network["NetworkID"], {"fw.allow": "8080"})
            for name in ("CreateEndpoint", "Join", "Leave", "DeleteEndpoint"):
                retried(name, endpoint)
        stop.set()

    threads = [threading.Thread(target=watch), threading.Thread(target=work)]
    for thread in threads:
        thread.start()
    killed = 0
    while not stop.is_set() and killed < 6:
        stop.wait(chance.uniform(0.05, 0.4))
        os.kill(fw.worker(), 9)
        killed += 1
        until(lambda: stop.is_set() or fw.answers(), "a worker answers", 15)
    for thread in threads:
        thread.join(60)
    assert stop.is_set()
    assert killed >= 3
    assert not gone
    fw.answers()
    until(lambda: fw.opens("10.1.0.200") == {*BASE, "9999/6"}, "running containers still answer")
    (shown,) = fw.status()["networks"]
    assert [e["id"] for e in shown["endpoints"]] == [kept["EndpointID"]]
    left = names_of(network, kept) - {container_side(kept["EndpointID"])}
    until(lambda: fw.links() == left, "no link is left over")
    fw.stop_container(kept)
    fw.well("DeleteNetwork", network)
    fw.nothing_left()


def test_a_restart_finds_everything(own: Running) -> None:
    """After SIGTERM and a new start: the same networks, containers, exceptions; the rules were active throughout."""
    fw = own.start()
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    endpoint = fw.start_container(network, 2, {"fw.allow": "8080"})
    fw.move(endpoint)
    before = (fw.links(), fw.elements(), fw.status()["networks"])
    fw.stop()
    assert (fw.links(), fw.elements()) == before[:2]
    fw.docker.mode = "hang"  # Docker itself is just starting
    fw.start()
    assert (fw.links(), fw.elements(), fw.status()["networks"]) == before
    fw.stop_container(endpoint)
    fw.well("DeleteNetwork", network)
    fw.nothing_left()


def test_containers_removed_meanwhile_are_closed(own: Running) -> None:
    """A container removed while the plugin was down has no open port afterwards, for its address's next owner."""
    fw = own.start()
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    endpoint = fw.start_container(network, 2, {"fw.allow": "8080"})
    assert fw.opens("10.1.0.2") == {*BASE, "8080/6"}
    fw.stop()
    fw.site.host.ip(f"link del {host_side(endpoint['EndpointID'])}")
    fw.start()
    assert fw.opens("10.1.0.2") == set()
    assert fw.status()["networks"][0]["endpoints"] == []


def test_a_pair_that_dockerd_took_back_is_removed(own: Running) -> None:
    """When dockerd gave up on a call, it moved the inner side back to the host: the next start closes that address.

    If docker-fw was killed during a Join instead, the Join can be repeated.
    """
    fw = own.start()
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    endpoint = fw.start_container(network, 2, {"fw.allow": "8080"})
    fw.stop()
    fw.start()
    assert fw.opens("10.1.0.2") == set()
    until(lambda: fw.links() == names_of(network), "the pair is gone")
    fw.well("Join", endpoint)
    assert fw.opens("10.1.0.2") == {*BASE, "8080/6"}


def test_a_reboot(own: Running) -> None:
    """Links and rules are lost, the disk is not: bridges are created again, closed; no old endpoint opens anything."""
    fw = own.start()
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    endpoint = fw.start_container(network, 2, {"fw.allow": "8080"})
    fw.stop()
    fw.site.host.ip(f"link del {host_side(endpoint['EndpointID'])}", f"link del {bridge_name(network['NetworkID'])}")
    fw.site.run("nft", "flush ruleset")
    fw.state.write_text(re.sub(r'"boot": "[^"]*"', '"boot": "before"', fw.state.read_text()))
    fw.docker.mode = "hang"
    fw.start()
    until(lambda: fw.links() == names_of(network), "the bridge is back")
    assert "10.1.0.1/24" in fw.site.run("ip", "addr", "show", bridge_name(network["NetworkID"])).stdout
    assert fw.opens("10.1.0.2") == set()
    # Docker starts the container again, with a new endpoint.
    fw.docker.mode = "answer"
    again = fw.start_container(network, 3, {"fw.allow": "8080"})
    until(lambda: fw.opens("10.1.0.3") == {*BASE, "8080/6"}, "the container is known", 15)
    fw.stop_container(again)


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b'{"version": 1, "networks": []}'])
def test_a_corrupt_state_file_stops_nothing(own: Running, content: bytes) -> None:
    """The plugin starts, sets the file aside and stays closed; running containers keep their network."""
    fw = own.start()
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    endpoint = fw.start_container(network, 2, {"fw.allow": "8080"})
    box = fw.move(endpoint)
    fw.stop()
    fw.state.write_bytes(content)
    Path(f"{fw.state}~").unlink(missing_ok=True)
    fw.start()
    assert fw.opens("10.1.0.2") == set()
    assert [p.read_bytes() for p in fw.state.parent.glob("state.json.corrupt-*")] == [content]
    assert box.probe.ping("10.1.0.1") == "open"
    error = fw.driver("CreateEndpoint", fw.endpoint(network, 3))["Err"]
    assert "if its state was lost, remove the network (docker network rm) and create it again" in error
    fw.well("DeleteNetwork", network)


def test_a_newer_state_file_is_left_alone_with_the_rules(own: Running) -> None:
    """After a downgrade the plugin says what to do, and does not touch the file and the rules."""
    fw = own.start()
    fw.well("CreateNetwork", fw.network(1))
    fw.stop()
    newer = fw.state.read_text().replace(f'"version": {VERSION}', '"version": 9')
    fw.state.write_text(newer)
    lasting = re.compile(r" expires \w+")
    rules = lasting.sub("", fw.table())
    fw.start()
    spec = fw.driver("CreateNetwork", fw.network(2))["Err"]
    assert "the state file is of version 9, newer than this docker-fw" in spec
    fw.stop()
    assert fw.state.read_text() == newer
    assert lasting.sub("", fw.table()) == rules


def test_wrong_settings_are_an_error_at_start(own: Running) -> None:
    """Every wrong setting is named, and nothing is touched."""
    own.environ.update(FW_MARK="3", FW_ALLOW="808O")
    own.spawn()
    assert own.process
    assert own.process.wait(20) != 0
    own.process = None
    spec = own.log.read_text()
    assert 'FW_MARK="3": must be one bit of 32' in spec
    assert 'FW_ALLOW="808O": "808O" is not a port' in spec
    assert own.table() == ""


def test_a_setting_opens_on_every_container(own: Running) -> None:
    """FW_ALLOW adds to the ports that every container accepts."""
    own.environ.update(FW_ALLOW="9100")
    fw = own.start()
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    fw.start_container(network, 2)
    assert fw.opens("10.1.0.2") == {*BASE, "9100/6"}


@pytest.mark.parametrize(
    "command", ["flush ruleset", "delete table inet docker-fw", "add rule inet docker-fw inbound accept"]
)
def test_a_flush_by_another_tool_is_repaired(own: Running, command: str) -> None:
    """`nft flush ruleset` (a firewall's restart) leaves the containers without docker-fw's rules for a moment only."""
    fw = own.start()
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    fw.start_container(network, 2, {"fw.allow": "8080"})
    # Chains alone: listed sets have the same elements, but not always in the same order.
    rules = fw.site.run("nft", "list", "chain", "inet", "docker-fw", "inbound").stdout
    fw.site.run("nft", command)
    began = time.monotonic()

    def repaired() -> bool:
        return fw.site.run("nft", "list", "chain", "inet", "docker-fw", "inbound", check=False).stdout == rules

    until(repaired, "the rules are loaded again")
    assert took(began) < 2
    assert fw.opens("10.1.0.2") == {*BASE, "8080/6"}


def tracked(fw: Running) -> None:
    """Add another owner's (Docker's) rules on states, so flows are tracked also while docker-fw's table is absent."""
    fw.site.run(
        "nft",
        "add table inet other; add chain inet other f { type filter hook forward priority 0; };"
        "add rule inet other f ct state new counter",
    )


def test_connections_through_a_flushed_table_are_cut(own: Running) -> None:
    """A connection to a closed port, opened while the rules were absent, is cut when the rules are active again."""
    fw = own.start()
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    box = fw.move(fw.start_container(network, 2))
    tracked(fw)
    worker = fw.worker()
    with box.probe.serve(tcp=[8080]), inside(fw.site.wan.path), socket.socket(socket.AF_INET6) as sock:
        sock.settimeout(5)
        os.kill(worker, signal.SIGSTOP)
        try:
            fw.site.run("nft", "delete table inet docker-fw")
            sock.connect(("2001:db8:1::2", 8080))
            assert sock.recv(4096)
        finally:
            os.kill(worker, signal.SIGCONT)
        until(lambda: fw.opens("10.1.0.2") == BASE, "the rules are loaded again")
        sock.settimeout(0.05)

        def silent() -> bool:
            with contextlib.suppress(BlockingIOError):
                sock.send(b"still there?")
            try:
                return not sock.recv(4096)
            except TimeoutError:
                return True

        until(silent, "the connection is cut")


@pytest.mark.parametrize("repaired", ["by the watch", "by a start"])
def test_a_server_that_sends_first_reopens_no_cut_connection(own: Running, repaired: str) -> None:
    """After a flush, a connection to a closed port stays cut though its server continues to send.

    A connection that the container itself opened continues in both directions.
    """
    fw = own.start()
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    box = fw.move(fw.start_container(network, 2))
    tracked(fw)
    with contextlib.ExitStack() as stack:

        def socket_at(path: str) -> socket.socket:
            with inside(path):
                made = stack.enter_context(socket.socket(socket.AF_INET6))
            made.settimeout(5)
            return made

        inner, outer = socket_at(box.path), socket_at(fw.site.wan.path)
        inner.bind(("::", 8080))
        outer.bind(("::", 9000))
        inner.listen()
        outer.listen()
        calls = socket_at(box.path)
        calls.connect((str(Site.OUT6), 9000))
        called = stack.enter_context(outer.accept()[0])
        worker = fw.worker()
        if repaired == "by a start":
            fw.stop()
        else:
            os.kill(worker, signal.SIGSTOP)
        try:
            fw.site.run("nft", "delete table inet docker-fw")
            intruder = socket_at(fw.site.wan.path)
            intruder.connect(("2001:db8:1::2", 8080))
            served = stack.enter_context(inner.accept()[0])
        finally:
            if repaired == "by a start":
                fw.start()
            else:
                os.kill(worker, signal.SIGCONT)
        until(lambda: fw.opens("10.1.0.2") == BASE, "the rules are loaded again")
        drops = re.compile(r"packets (\d+)")

        def dropped() -> int:
            shown = fw.site.run("nft", "list", "counter", "inet", "docker-fw", "drops").stdout
            return int(drops.findall(shown)[0])

        until(
            lambda: "8080" not in fw.site.run("conntrack", "-L", "-f", "ipv6", check=False).stdout,
            "the connection is cut",
        )
        before = dropped()
        served.sendall(b"secret")
        until(lambda: dropped() > before, "the server's packets are dropped")
        intruder.setblocking(False)
        with pytest.raises(BlockingIOError):
            intruder.recv(4096)
        called.settimeout(5)
        calls.sendall(b"out")
        assert called.recv(10) == b"out"
        called.sendall(b"and back")
        assert calls.recv(10) == b"and back"


def test_a_change_after_a_flush_heals_at_once(own: Running) -> None:
    """A container that starts just after a flush gets its rules and all others', by its own Join."""
    fw = own.start()
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    fw.start_container(network, 2)
    endpoint = fw.endpoint(network, 3)
    fw.docker.container("next", endpoint["EndpointID"], network["NetworkID"])
    fw.well("CreateEndpoint", endpoint)
    fw.site.run("nft", "flush ruleset")
    fw.well("Join", endpoint)
    assert fw.opens("10.1.0.2") == BASE
    until(lambda: fw.opens("10.1.0.3") == BASE, "its labels are known (at once, but on a very busy machine)")
