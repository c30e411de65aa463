"""Lists of Docker's API from engines of every age; an unexpected entry is an error that names it."""

from __future__ import annotations

import copy
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest
from hypothesis import given

from plugin.docker import container_labels, parse
from plugin.docker.listing import Listing, RunningContainer
from plugin.model import Container, PolicySpec, Published, Rule
from tests.pure.strategies import examples, json_values

#: GET /networks of Docker 28.5.2, of a network made with --ipv6 -o …gateway_mode_ipv6=routed -o fw.allow=9100
NETWORK: dict[str, Any] = {
    "Name": "front", "Id": "1a2b3c4d5e6f" + "0" * 52, "Created": "2026-01-01T00:00:00Z", "Scope": "local",
    "Driver": "bridge", "EnableIPv4": True, "EnableIPv6": True,
    "IPAM": {"Driver": "default", "Options": {}, "Config": [
        {"Subnet": "172.18.0.0/16", "Gateway": "172.18.0.1"}, {"Subnet": "2001:db8:1::/64", "Gateway": "2001:db8:1::1"},
    ]},
    "Internal": False, "Attachable": False, "Ingress": False, "ConfigFrom": {"Network": ""}, "ConfigOnly": False,
    "Containers": {},
    "Options": {"com.docker.network.bridge.gateway_mode_ipv6": "routed", "fw.allow": "9100"},
    "Labels": {},
}  # fmt: skip
#: GET /containers/json
RUNNING: dict[str, Any] = {
    "Id": "c" * 64, "Names": ["/web"], "ImageID": "sha256:1", "Labels": {}, "State": "running",
    "Ports": [
        {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
        {"IP": "::", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
        {"PrivatePort": 443, "Type": "tcp"},
    ],
    "HostConfig": {"NetworkMode": "front"},
    "NetworkSettings": {"Networks": {
        "front": {"NetworkID": NETWORK["Id"], "EndpointID": "e" * 64, "IPAddress": "172.18.0.2",
                  "GlobalIPv6Address": "2001:db8:1::2"},
        "six": {"NetworkID": "6" * 64, "EndpointID": "f" * 64, "IPAddress": "", "GlobalIPv6Address": "2001:db8:2::2"},
        "down": {"NetworkID": "7" * 64, "EndpointID": "", "IPAddress": "", "GlobalIPv6Address": ""},
    }},
}  # fmt: skip


COMPOSE = {"com.docker.compose.project": "shop", "com.docker.compose.container-number": "1"}
WEB = container_labels.read(RUNNING, None)
MORE, SSH = Rule("tcp", 8080, 8080), Rule("tcp", 22, 22)


def test_a_network_is_read_as_docker_lists_it() -> None:
    """A network has its bridge by Docker's rule, its subnets and gateway modes, and the ports that its options open."""
    found = parse.network(NETWORK)
    assert found
    assert (found.bridge, found.mode4, found.mode6, found.internal) == ("br-1a2b3c4d5e6f", "nat", "routed", False)
    assert found.subnets == (IPv4Network("172.18.0.0/16"), IPv6Network("2001:db8:1::/64"))
    assert found.spec == PolicySpec(allow=(Rule("tcp", 9100, 9100),))
    assert found.flat


@pytest.mark.parametrize("value", ["false", "0", "F", "False"])
def test_a_network_without_communication_between_containers(value: str) -> None:
    """enable_icc=false, as on swarm's docker_gwbridge, in all of Go's spellings."""
    found = parse.network({**NETWORK, "Options": {"com.docker.network.bridge.enable_icc": value}})
    assert found
    assert not found.flat


def test_every_key_may_be_a_network_option() -> None:
    """Every label key may be a network option, except fw.network.NAME."""
    options = {"fw.deny": "22", "fw.policy": "closed", "FW.EGRESS": "none", "fw.log": "drop"}
    found = parse.network({**NETWORK, "Options": options})
    assert found
    assert found.spec == PolicySpec(deny=(SSH,), policy="closed", egress=(), log="drop")
    found = parse.network({**NETWORK, "Options": {"fw.network.front.deny": "22"}})
    assert found
    assert str(found.problems[0]) == (
        'network option fw.network.front.deny="22": is for container labels; here write fw.deny'
    )


def test_a_bridge_with_a_chosen_name() -> None:
    """The name in the options is the bridge's, as on the default network and docker_gwbridge."""
    options = {"com.docker.network.bridge.name": "docker0"}
    found = parse.network({**NETWORK, "Options": options})
    assert found
    assert found.bridge == "docker0"


@pytest.mark.parametrize("name", ["_front", "@br", "br+x", "-x", "ü", "a b"])
def test_a_bridge_of_any_name_is_dockers(name: str) -> None:
    """A network whose bridge docker-fw cannot name in its table is not read; its bridge still counts as Docker's."""
    odd = {**NETWORK, "Id": "f" * 64, "Options": {"com.docker.network.bridge.name": name}}
    with pytest.raises(ValueError, match="bridge name"):
        parse.network(odd)
    assert parse.bridges([NETWORK, odd]) == ({"br-1a2b3c4d5e6f", name}, True)


@pytest.mark.parametrize(
    "odd",
    [
        None,
        {},
        {"Driver": "bridge"},
        {"Driver": "bridge", "Id": 7},
        "network",
        {**NETWORK, "Options": {"com.docker.network.bridge.name": ["x"]}},
    ],
)
def test_a_list_with_an_unreadable_network_is_incomplete(odd: Any) -> None:
    """A network that cannot be read leaves the others known, and the list incomplete."""
    assert parse.bridges([odd, NETWORK]) == ({"br-1a2b3c4d5e6f"}, False)


@pytest.mark.parametrize("driver", ["host", "null", "overlay", "macvlan", "fw:latest", ""])
def test_networks_of_other_drivers_are_not_dockers_bridges(driver: str) -> None:
    """Only networks of Docker's bridge driver are protected as Docker networks."""
    assert parse.network({**NETWORK, "Driver": driver}) is None


def test_a_wrong_option_of_a_network_is_a_problem_of_that_network() -> None:
    """The option opens nothing, and is reported with its place."""
    found = parse.network({**NETWORK, "Options": {"fw.allow": "808O"}})
    assert found
    assert found.spec.allow == ()
    assert str(found.problems[0]).startswith('network option fw.allow="808O": ')


def test_a_running_container_has_its_networks_and_ports() -> None:
    """A container has each network with its addresses of either family; a network without endpoint ID is left out."""
    front, six = parse.endpoints(RUNNING, WEB)
    assert (front.id, front.network_id) == ("e" * 64, NETWORK["Id"])
    assert (front.addr4, front.addr6) == (IPv4Address("172.18.0.2"), IPv6Address("2001:db8:1::2"))
    assert (six.addr4, six.addr6) == (None, IPv6Address("2001:db8:2::2"))
    assert front.container == Container("c" * 64, "web", network="front")
    assert six.container == Container("c" * 64, "web", network="six")
    assert front.joined
    assert front.published == (
        Published("tcp", IPv4Address("0.0.0.0"), 8080, 80),
        Published("tcp", IPv6Address("::"), 8080, 80),
    )


def test_each_endpoint_has_its_own_labels_and_options() -> None:
    """Labels for one network, by its Docker or compose name, and an attachment's driver_opts."""
    raw = {
        **RUNNING,
        "Labels": {"fw.network.front.allow": "8080", "fw.network.six.policy": "closed", "fw.deny": "22", **COMPOSE},
    }
    who = container_labels.read(raw, None)
    front, six = parse.endpoints(raw, who, {}, {"front": {"fw.allow": "53/udp"}})
    assert front.container
    assert six.container
    assert (front.container.spec, front.spec) == (
        PolicySpec(allow=(MORE,), deny=(SSH,)),
        PolicySpec(allow=(Rule("udp", 53, 53),)),
    )
    assert (six.container.spec, six.spec) == (PolicySpec(deny=(SSH,), policy="closed"), PolicySpec())
    renamed = {"Networks": {"edge": RUNNING["NetworkSettings"]["Networks"]["front"]}}
    (edge,) = parse.endpoints({**raw, "NetworkSettings": renamed}, who, {NETWORK["Id"]: "shop/front"})
    assert edge.container
    assert edge.container.spec.allow == (MORE,)


def test_a_wrong_option_of_an_attachment_is_the_containers_mistake() -> None:
    """On Docker networks nothing can be refused: the mistake is reported with the container's own ones, for that
    endpoint."""
    raw = {**RUNNING, "Labels": {"fw.allow": "0"}}
    options = {"front": {"fw.policy": "opne", "com.docker.network.endpoint.sysctls": "x"}}
    front, six = parse.endpoints(raw, container_labels.read(raw, None), {}, options)
    assert front.container
    assert six.container
    assert [str(problem).partition(":")[0] for problem in front.container.problems] == [
        'label fw.allow="0"',
        'driver option fw.policy="opne"',
    ]
    assert len(six.container.problems) == 1
    assert front.spec == PolicySpec()


def test_a_containers_endpoints_and_their_options() -> None:
    """The container's endpoint IDs, which change at each start; the options of its attachments, if they have any."""
    assert parse.endpoint_ids(RUNNING) == ("", "e" * 64, "f" * 64)
    assert parse.endpoint_ids({}) == ()
    inspected = {
        "NetworkSettings": {
            "Networks": {
                "front": {"DriverOpts": {"fw.allow": "1"}},
                "six": {"DriverOpts": None},
                "odd": {"DriverOpts": ["x"]},
                "none": None,
            }
        }
    }
    assert parse.driver_options(inspected) == {"front": {"fw.allow": "1"}, "six": {}}
    assert parse.driver_options({"NetworkSettings": None}) == {}


@pytest.mark.parametrize("key", ["ep-" + "e" * 64, "c" * 64])
def test_a_container_is_found_while_it_is_being_connected(key: str) -> None:
    """Before Docker has set up the sandbox, the entry's key contains the endpoint's ID, afterwards the container's ID;
    its name is the container's."""
    entry = {"Name": "web", "EndpointID": "e" * 64, "IPv4Address": "172.18.0.2/16", "IPv6Address": "2001:db8:1::2/64"}
    entry["MacAddress"] = "02:42:AC:12:00:02"
    other = {"Name": "db", "EndpointID": "d" * 64, "IPv4Address": "172.18.0.9/16", "IPv6Address": ""}
    there = {**NETWORK, "Containers": {"ep-" + "d" * 64: other, key: entry}}
    found = parse.attached(there, WEB, {"fw.deny": "22"})
    assert found
    assert (found.container, found.spec) == (Container("c" * 64, "web", network="front"), PolicySpec(deny=(SSH,)))
    assert found.unlisted
    assert not found.published
    listed = {"Ports": [{"IP": "127.0.0.1", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}]}
    known = parse.attached(there, WEB, {}, listed)
    assert known
    assert (known.published, known.unlisted) == ((Published("tcp", IPv4Address("127.0.0.1"), 8080, 80),), False)
    assert (found.id, found.addr4, found.addr6) == ("e" * 64, IPv4Address("172.18.0.2"), IPv6Address("2001:db8:1::2"))
    assert found.mac == "02:42:ac:12:00:02"
    entry["MacAddress"] = "02:42"
    unknown = parse.attached(there, WEB, {})
    assert unknown
    assert unknown.mac == "", "nothing depends on it"
    assert parse.attached({**NETWORK, "Containers": {"ep-" + "d" * 64: other}}, WEB, {}) is None


def test_a_name_alone_identifies_no_container() -> None:
    """An entry under another container's ID is not this container's, though it has the same name."""
    entry = {"Name": "web", "EndpointID": "e" * 64, "IPv4Address": "172.18.0.2/16", "IPv6Address": ""}
    assert parse.attached({**NETWORK, "Containers": {"f" * 64: entry}}, WEB, {}) is None


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in inner for found in _paths(item, (*path, key)))]


def _with(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    changed = copy.deepcopy(value)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = new
    return changed


@given(json_values)
@examples(25)
def test_any_json_is_read_or_refused_and_never_opens(new: Any) -> None:
    """Any value at any place of Docker's answers is read, or is an error; a value that opens was at the right place."""
    for path in _paths(NETWORK)[1:]:
        try:
            found = parse.network(_with(NETWORK, path, new))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        assert found is None or path[0] == "Options" or found.spec == PolicySpec(allow=(Rule("tcp", 9100, 9100),))
    for path in _paths(RUNNING)[1:]:
        try:
            raw = _with(RUNNING, path, new)
            places = list(parse.endpoints(raw, container_labels.read(raw, None)))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        for place in places:
            assert place.container
            assert (place.container.spec, place.spec) == (PolicySpec(), PolicySpec()) or path[0] == "Labels"


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("host", "has the host's network, which docker-fw does not filter"),
        ("container:" + "a" * 64, f"shares the network of {'a' * 12}: that container's labels apply, not its own"),
        ("front", ""),
        ("none", ""),
        ("", ""),
    ],
)
def test_a_container_without_a_network_of_its_own_has_a_reason(mode: str, why: str) -> None:
    """The reason is reported for a container whose labels have no effect."""
    assert parse.not_guarded({**RUNNING, "HostConfig": {"NetworkMode": mode}}) == why
    assert parse.not_guarded({}) == ""


@pytest.mark.parametrize(
    ("driver", "reported"), [("macvlan", True), ("ipvlan", True), ("bridge", False), ("fw", False)]
)
def test_a_container_on_a_network_that_bypasses_the_host_has_a_reason(driver: str, reported: bool) -> None:
    """`fwctl status` names the network, also where the container is on a protected network too."""
    network = {"Id": "n" * 64, "Name": "lan", "Driver": driver}
    entry = {**RUNNING, "Names": ["/web"], "HostConfig": {"NetworkMode": "lan"}}
    attached = {"lan": {"NetworkID": "n" * 64, "EndpointID": "e" * 64}, **RUNNING["NetworkSettings"]["Networks"]}
    entry["NetworkSettings"] = {"Networks": attached}
    found = Listing([network], [entry]).snapshot([RunningContainer(WEB, entry, {})], {})
    why = f"is on the {driver} network lan, which docker-fw does not filter: it bypasses the host's firewall"
    assert found.not_guarded == ({"web": why} if reported else {})


@pytest.mark.parametrize(
    ("names", "renaming"), [(["/web"], False), (["/web", "/shop"], True), (["/web", "/db/alias"], False)]
)
def test_a_container_with_two_names_is_being_renamed(names: list[str], renaming: bool) -> None:
    """A name that a link gives does not count: it remains."""
    entry = {**RUNNING, "Names": names}
    assert Listing([NETWORK], [entry]).snapshot([RunningContainer(WEB, entry, {})], {}).renaming == renaming


@given(json_values)
@examples(50)
def test_any_event_is_read(value: Any) -> None:
    """Any event can be read: missing fields are empty, and no error is raised."""
    for raw in ({"Type": value, "Action": value, "Actor": value}, {"Actor": {"ID": value, "Attributes": value}}):
        found = parse.event(raw)
        assert isinstance(found.id, str)
        assert isinstance(found.container, str)


def test_an_event_is_read() -> None:
    """An event has its action, the network or container, and the container concerned."""
    actor = {"ID": "n", "Attributes": {"container": "c", "type": "bridge"}}
    found = parse.event({"Type": "network", "Action": "connect", "Actor": actor})
    assert found == parse.Event("network connect", "n", "c", "bridge")
