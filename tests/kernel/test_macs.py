"""On a network of docker-fw a MAC is one container's: none is given a neighbour's frames, or the gateway's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from plugin.kernel.links import bridge_mac
from plugin.kernel.names import host_side
from tests.kernel.running import BASE, Body, Running

CHOSEN = "02:aa:00:00:00:07"


@pytest.fixture
def fw(own: Running) -> Running:
    return own.start()


def wanting(fw: Running, network: Body, number: int, mac: str) -> Body:
    """CreateEndpoint's body of `--mac-address`."""
    endpoint = fw.endpoint(network, number)
    return {**endpoint, "Interface": {**endpoint["Interface"], "MacAddress": mac}}


def begin(fw: Running, endpoint: Body, name: str) -> Body:
    fw.docker.container(name, endpoint["EndpointID"], endpoint["NetworkID"])
    fw.well("CreateEndpoint", endpoint)
    return {**endpoint, "Joined": fw.well("Join", endpoint)}


def test_a_mac_that_is_taken_is_refused(fw: Running) -> None:
    """A neighbour's MAC in whatever case, chosen or made by docker-fw, the bridge's own, a group's, none: the container
    does not start, with a message that says why, and nothing of it is left. On another network it is another's."""
    one, two = fw.network(1), fw.network(2)
    fw.well("CreateNetwork", one)
    fw.well("CreateNetwork", two)
    first = begin(fw, wanting(fw, one, 2, CHOSEN), "web")
    made = begin(fw, fw.endpoint(one, 3), "db")
    standing = fw.standing()
    wrong = {
        CHOSEN: "belongs to container web",
        CHOSEN.upper(): "belongs to container web",
        "02:42:0a:01:00:03": "belongs to container db",
        bridge_mac(one["NetworkID"]): "belongs to the network's bridge",
        "33:33:00:00:00:01": "is a multicast address",
        "ff:ff:ff:ff:ff:ff": "is a multicast address",
        "00:00:00:00:00:00": "is all zeros",
    }
    for mac, why in wrong.items():
        error = fw.driver("CreateEndpoint", wanting(fw, one, 9, mac))["Err"]
        assert f"MAC address {mac.lower()} {why}" in error
        assert "--mac-address" in error
    assert fw.standing() == standing
    other = begin(fw, wanting(fw, two, 2, CHOSEN), "elsewhere")
    for endpoint in (first, made, other):
        fw.end(endpoint)
    begin(fw, wanting(fw, one, 9, CHOSEN), "next")  # it is free again


def test_of_many_that_want_one_mac_at_once_one_gets_it(fw: Running) -> None:
    """Compose starts everything at once: just one container has the MAC, whichever comes first."""
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    bodies = [wanting(fw, network, number, CHOSEN) for number in range(2, 18)]
    with ThreadPoolExecutor(16) as pool:
        replies: list[Any] = list(pool.map(lambda body: fw.driver("CreateEndpoint", body), bodies))
    assert sum("Err" not in reply for reply in replies) == 1


def test_a_mac_is_kept_over_a_restart_and_goes_with_its_container(fw: Running) -> None:
    """After docker-fw was killed and started again the MAC is taken as before. Of a container that has ended without a
    word its owner is no more: who comes next has the MAC, and the old address is closed."""
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    first = begin(fw, wanting(fw, network, 2, CHOSEN), "web")
    fw.move(first)
    fw.kill_worker()
    assert "belongs to container web" in fw.driver("CreateEndpoint", wanting(fw, network, 3, CHOSEN))["Err"]
    assert fw.opens("10.1.0.2") == BASE
    fw.site.host.ip(f"link del {host_side(first['EndpointID'])}")
    begin(fw, wanting(fw, network, 3, CHOSEN), "next")
    assert fw.opens("10.1.0.2") == set()
    assert fw.opens("10.1.0.3") == BASE


def test_docker_fw_makes_no_mac_that_somebody_chose(fw: Running) -> None:
    """A container that chose the MAC which the next one's address would give does not keep that one from starting."""
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    begin(fw, wanting(fw, network, 2, "02:42:0a:01:00:03"), "web")
    mac = fw.well("CreateEndpoint", fw.endpoint(network, 3))["Interface"]["MacAddress"]
    assert mac != "02:42:0a:01:00:03"
    assert int(mac[:2], 16) & 3 == 2
    assert fw.well("CreateEndpoint", fw.endpoint(network, 3))["Interface"]["MacAddress"] == mac


def test_an_endpoint_keeps_its_mac(fw: Running) -> None:
    """A repeated CreateEndpoint with another MAC is refused: the bridge's port would belong to the first."""
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    fw.well("CreateEndpoint", wanting(fw, network, 2, CHOSEN))
    assert fw.well("CreateEndpoint", wanting(fw, network, 2, CHOSEN.upper())) == {"Interface": {}}
    error = fw.driver("CreateEndpoint", wanting(fw, network, 2, "02:aa:00:00:00:08"))["Err"]
    assert "exists already with another MAC address" in error
