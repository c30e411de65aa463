"""Requests of every engine are understood; any other request is an error that names the wrong part."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.driver import protocol
from plugin.model import Endpoint, FwError, Network, PolicySpec, PortBinding, Rate, Rule
from tests.pure.strategies import examples, shapes
from tests.recorded import CREATE_ENDPOINT, CREATE_NETWORK, ENDPOINT_ID, GENERIC, NETWORK_ID, PORTMAP

BRIDGE = "com.docker.network.bridge."
Body = dict[str, Any]


def network(change: Callable[[Body], object] = lambda _: None) -> Network:
    """Return the network of the recorded request, after a change of it."""
    body = copy.deepcopy(CREATE_NETWORK)
    change(body)
    return protocol.create_network(body, lambda network_id: "fw-" + network_id[:12])


def option(**options: object) -> Network:
    """Return the network with `-o` options; dots are written as double underscores."""
    return network(lambda b: b["Options"][GENERIC].update({k.replace("__", "."): v for k, v in options.items()}))


def endpoint(change: Callable[[Body], object] = lambda _: None) -> Endpoint:
    body = copy.deepcopy(CREATE_ENDPOINT)
    change(body)
    return protocol.create_endpoint(body)


def bindings(*portmap: object) -> tuple[PortBinding, ...]:
    return protocol.port_bindings({"Options": {PORTMAP: list(portmap)}})


# --- networks -----------------------------------------------------------------------------------------------------


def test_a_plain_dual_stack_network() -> None:
    """Docker's request for a plain network becomes one with its gateways, masqueraded, with Docker's defaults."""
    assert network() == Network(
        id=NETWORK_ID,
        bridge="fw-4b4b1cd3b7a0",
        gateway4=IPv4Interface("172.18.0.1/16"),
        gateway6=IPv6Interface("2001:db8:1::1/64"),
    )


def test_an_engine_without_ipv4_options() -> None:
    """20.10 sends no enable_ipv4 and a null IPv6Data: an IPv4 network."""

    def older(body: Body) -> None:
        del body["Options"]["com.docker.network.enable_ipv4"]
        body["Options"]["com.docker.network.enable_ipv6"] = False
        body["IPv6Data"] = None

    assert network(older) == dataclasses.replace(network(), gateway6=None)


def test_ipv6_only() -> None:
    """`--ipv4=false --ipv6` (28 and later) is a network with IPv6 addresses only."""
    for nothing in (None, []):
        only6 = network(lambda b, nothing=nothing: b.update(IPv4Data=nothing))  # type: ignore[misc]
        assert only6 == dataclasses.replace(network(), gateway4=None)


def test_internal() -> None:
    """`--internal` arrives among the options, as a boolean or as text."""
    for value in (True, "true", "1"):
        assert network(lambda b, v=value: b["Options"].update({"com.docker.network.internal": v})).internal  # type: ignore[misc]
    assert not network(lambda b: b["Options"].update({"com.docker.network.internal": False})).internal


def test_options_are_those_of_dockers_bridge_driver() -> None:
    """MTU, bridge name, interface prefix, masquerading and host address are the bridge driver's own options."""
    assert option(com__docker__network__driver__mtu="9000").mtu == 9000
    assert option(com__docker__network__bridge__name="front0").bridge == "front0"
    assert option(com__docker__network__container_iface_prefix="net").iface_prefix == "net"
    assert not option(com__docker__network__bridge__enable_ip_masquerade="false").masquerade
    assert not option(com__docker__network__bridge__gateway_mode_ipv4="routed").masquerade
    assert option(com__docker__network__bridge__gateway_mode_ipv4="nat").masquerade
    assert option(com__docker__network__bridge__host_binding_ipv4="127.0.0.1").host_ip == IPv4Address("127.0.0.1")
    assert option(some__other__drivers__option="x") == network()


def test_allow_may_be_a_networks_option() -> None:
    """`-o fw.allow=…` opens ports for every container on the network, in whatever case the CLI left the key."""
    assert option(fw__allow="8080, 53/udp").spec == PolicySpec(allow=(Rule("tcp", 8080, 8080), Rule("udp", 53, 53)))
    assert option(FW__Allow="8080").spec == PolicySpec(allow=(Rule("tcp", 8080, 8080),))


def test_every_key_may_be_a_networks_option() -> None:
    """A network's options may contain the same keys as a container's labels, for every container on it."""
    spec = option(fw__deny="22", fw__policy="closed", fw__egress="none", fw__rate="80 1/day", fw__log="drop").spec
    assert spec == PolicySpec(
        deny=(Rule("tcp", 22, 22),), policy="closed", egress=(), rate=(Rate("tcp", 80, 80, 1, "day", 5),), log="drop"
    )


WRONG_NETWORKS: dict[str, tuple[Callable[[Body], object], str]] = {
    "no ID": (lambda b: b.pop("NetworkID"), "NetworkID is missing"),
    "an ID that is none": (lambda b: b.update(NetworkID="../etc"), 'NetworkID must be a Docker ID, not "../etc"'),
    "no address": (lambda b: b.update(IPv4Data=[], IPv6Data=None), "the network has no subnet"),
    "two subnets": (lambda b: b["IPv4Data"].append({}), "IPv4Data has 2 subnets"),
    "no gateway": (lambda b: b["IPv4Data"][0].pop("Gateway"), "IPv4Data has no gateway"),
    "a gateway without its prefix": (lambda b: b["IPv4Data"][0].update(Gateway="10.0.0.1"), "prefix length"),
    "families exchanged": (lambda b: b["IPv4Data"][0].update(Gateway="fd00::1/64"), "Gateway: .* not an IPv4 addr"),
    "a zone": (lambda b: b["IPv6Data"][0].update(Gateway="fe80::1%eth0/64"), "Gateway"),
    "data of a wrong type": (lambda b: b.update(IPv4Data="x"), "IPv4Data must be a list"),
    "options of a wrong type": (lambda b: b.update(Options=[1]), "Options must be an object"),
    "internal of a wrong type": (
        lambda b: b["Options"].update({"com.docker.network.internal": "yes"}), "must be true or false"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), WRONG_NETWORKS.values(), ids=WRONG_NETWORKS)
def test_a_wrong_network_is_refused_with_the_fields_name(change: Callable[[Body], object], words: str) -> None:
    """A missing field or one of a wrong type is named."""
    with pytest.raises(FwError, match=words):
        network(change)


WRONG_OPTIONS: dict[str, object] = {
    "com.docker.network.driver.mtu": ["0", "67", "65536", "big", "1500.0", "-1", [1500], True],
    BRIDGE + "name": ["sixteen-letters-", "a b", "a/b", "..", "", " ", 'a"b', "fw-*", ["a"], 7],
    BRIDGE + "host_binding_ipv4": ["x", "1.2.3", "fe80::1%eth0", 7],
    BRIDGE + "enable_ip_masquerade": ["maybe", 7],
    BRIDGE + "enable_icc": ["false"],
    BRIDGE + "gateway_mode_ipv4": ["nat-unprotected", "isolated", "x", ["nat"]],
    BRIDGE + "gateway_mode_ipv6": ["nat"],
    "com.docker.network.container_iface_prefix": ["0eth", "a" * 13, "a b", 7],
    "fw.allow": ["808O", "", 8080, None],
    "fw.alow": ["8080"],
    "fw.deny": ["22 from any"],
    "fw.policy": ["clsed", True],
    "fw.egress": ["443 from 10.0.0.1"],
    "fw.rate": ["22"],
    "fw.log": ["yes"],
    "fw.network.front.allow": ["8080"],
}


@pytest.mark.parametrize(
    ("key", "value"),
    [(k, v) for k, values in WRONG_OPTIONS.items() for v in values if v != ""] + [("fw.allow", "")],  # type: ignore[attr-defined]
    ids=repr,
)
def test_a_wrong_option_is_refused_with_its_name(key: str, value: object) -> None:
    """A wrong `-o` is refused, and the message contains its key."""
    with pytest.raises(FwError) as caught:
        network(lambda b: b["Options"][GENERIC].update({key: value}))
    assert key in str(caught.value)


def test_a_network_with_ipv6_has_an_mtu_for_ipv6() -> None:
    """IPv6 needs an MTU of 1280 (RFC 8200 section 5): less is refused with that reason."""
    mtu = "com.docker.network.driver.mtu"
    with pytest.raises(FwError, match=r"mtu.*1280"):
        network(lambda b: b["Options"][GENERIC].update({mtu: "1279"}))
    assert network(lambda b: b["Options"][GENERIC].update({mtu: "1280"})).mtu == 1280

    def four(body: Body) -> None:
        body["IPv6Data"] = None
        body["Options"][GENERIC][mtu] = "576"

    assert network(four).mtu == 576


def test_every_mistake_in_a_networks_labels_is_reported() -> None:
    """All wrong fw. options of a network are reported in one message."""
    with pytest.raises(FwError) as caught:
        option(fw__allow="808O, 0", fw__alow="1")
    assert str(caught.value).count("network option fw.") == 3


# --- endpoints ----------------------------------------------------------------------------------------------------


def test_a_containers_endpoint() -> None:
    """Docker's request for a container becomes an endpoint with both addresses, not joined, its labels unknown."""
    assert endpoint() == Endpoint(
        id=ENDPOINT_ID, network_id=NETWORK_ID, addr4=IPv4Address("172.18.0.2"), addr6=IPv6Address("2001:db8:1::2")
    )


def test_addresses_of_one_family_and_a_chosen_mac() -> None:
    """A missing family is empty or absent; a chosen MAC is kept, in lower case."""

    def only6(body: Body) -> None:
        body["Interface"] = {"Address": "", "AddressIPv6": "2001:db8:1::2/64", "MacAddress": "02:42:AC:12:00:99"}

    assert endpoint(only6) == dataclasses.replace(endpoint(), addr4=None, mac="02:42:ac:12:00:99")
    assert endpoint(lambda b: b["Interface"].pop("AddressIPv6")).addr6 is None


def test_allow_may_be_an_attachments_option() -> None:
    """`driver_opts` of a service's attachment arrive flat, those of `docker network connect` nested; both open."""
    spec = PolicySpec(allow=(Rule("tcp", 8080, 8080),))
    assert endpoint(lambda b: b["Options"].update({"fw.allow": "8080"})).spec == spec
    assert endpoint(lambda b: b["Options"].update({GENERIC: {"fw.allow": "8080"}})).spec == spec
    assert endpoint(lambda b: b["Options"].update({"fw.policy": "closed"})).spec == PolicySpec(policy="closed")


WRONG_ENDPOINTS: dict[str, tuple[Callable[[Body], object], str]] = {
    "no ID": (lambda b: b.pop("EndpointID"), "EndpointID is missing"),
    "no address": (lambda b: b.pop("Interface"), "no address"),
    "a wrong address": (lambda b: b["Interface"].update(Address="172.18.0.300/16"), "Address"),
    "no prefix": (lambda b: b["Interface"].update(Address="172.18.0.2"), "prefix length"),
    "families exchanged": (
        lambda b: b["Interface"].update(AddressIPv6="172.18.0.2/16"),
        "Address.*not an IPv6 address",
    ),
    "a wrong MAC": (lambda b: b["Interface"].update(MacAddress="02:42"), 'must be a MAC address, like .*, not "02:42"'),
    "a MAC of a wrong type": (lambda b: b["Interface"].update(MacAddress=[1]), "MacAddress must be a MAC address"),
    "a wrong label": (lambda b: b["Options"].update({"fw.allow": "x"}), 'driver option fw.allow="x"'),
    "a wrong interface": (lambda b: b.update(Interface="x"), "Interface must be an object"),
    "wrong options": (lambda b: b.update(Options="x"), "Options must be an object"),
}


@pytest.mark.parametrize(("change", "words"), WRONG_ENDPOINTS.values(), ids=WRONG_ENDPOINTS)
def test_a_wrong_endpoint_is_refused_with_the_fields_name(change: Callable[[Body], object], words: str) -> None:
    """A missing field or one of a wrong type is named."""
    with pytest.raises(FwError, match=words):
        endpoint(change)


# --- published ports ----------------------------------------------------------------------------------------------


def test_the_recorded_port_map() -> None:
    """`-p 8081:80` is read as Docker sends it."""
    assert protocol.port_bindings(CREATE_ENDPOINT) == (PortBinding("tcp", 80, None, 8081, 8081),)


def test_each_form_of_publishing_is_read() -> None:
    """Ephemeral ports, ranges, host addresses of both families, and the three protocols."""
    assert bindings(
        {"Proto": 6, "Port": 80, "HostIP": "", "HostPort": 0, "HostPortEnd": 0},
        {"Proto": 17, "Port": 53, "HostIP": "127.0.0.1", "HostPort": 5353, "HostPortEnd": 5353},
        {"Proto": 132, "Port": 3868, "HostIP": "::1", "HostPort": 3868},
        {"Proto": 6, "Port": 80, "HostIP": "0.0.0.0", "HostPort": 8000, "HostPortEnd": 8010},
    ) == (
        PortBinding("tcp", 80),
        PortBinding("udp", 53, IPv4Address("127.0.0.1"), 5353, 5353),
        PortBinding("sctp", 3868, IPv6Address("::1"), 3868, 3868),
        PortBinding("tcp", 80, IPv4Address("0.0.0.0"), 8000, 8010),
    )


@pytest.mark.parametrize("nothing", [{}, {"Options": None}, {"Options": {PORTMAP: None}}, {"Options": {PORTMAP: []}}])
def test_a_missing_port_map_is_no_port(nothing: Body) -> None:
    """A container that publishes nothing has no bindings, in whichever form Docker sends that."""
    assert protocol.port_bindings(nothing) == ()


@pytest.mark.parametrize(
    "raw",
    [
        {"Proto": 1, "Port": 80},
        {"Proto": "tcp", "Port": 80},
        {"Proto": 6},
        {"Proto": 6, "Port": 0},
        {"Proto": 6, "Port": 65536},
        {"Proto": 6, "Port": True},
        {"Proto": 6, "Port": 80, "HostPort": 65536},
        {"Proto": 6, "Port": 80, "HostPort": -1},
        {"Proto": 6, "Port": 80, "HostPort": True},
        {"Proto": 6, "Port": 80, "HostPort": "8080"},
        {"Proto": 6, "Port": 80, "HostPort": 8080.0},
        {"Proto": 6, "Port": 80, "HostPort": 8080, "HostPortEnd": 8000},
        {"Proto": 6, "Port": 80, "HostIP": "localhost"},
        {"Proto": 6, "Port": 80, "HostIP": "fe80::1%eth0"},
        {"Proto": 6, "Port": 80, "HostIP": 7},
        {"Proto": True, "Port": 80},
        "80:80",
        None,
    ],
    ids=str,
)
def test_a_wrong_publication_is_refused(raw: object) -> None:
    """A value that is no port, no protocol with ports or no address is refused with a message."""
    with pytest.raises(FwError) as caught:
        bindings(raw)
    assert str(caught.value)


# --- any JSON -----------------------------------------------------------------------------------------------------

PARSERS: dict[str, Callable[[Any], object]] = {
    "create_network": lambda body: protocol.create_network(body, lambda i: "fw-" + i[:12]),
    "create_endpoint": protocol.create_endpoint,
    "port_bindings": protocol.port_bindings,
    "identifier": lambda body: protocol.identifier(body, "NetworkID"),
}


_OPTIONS = dict.fromkeys([*WRONG_OPTIONS, "com.docker.network.internal"], "true")
_WITH_OPTIONS = {**CREATE_NETWORK, "Options": {**CREATE_NETWORK["Options"], GENERIC: _OPTIONS}}


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.data())
@examples(70)
def test_any_json_is_read_or_refused(name: str, data: st.DataObject) -> None:
    """Every parser returns an object for any JSON value, or raises an FwError with a message, and nothing else."""
    like = _WITH_OPTIONS if name == "create_network" else CREATE_ENDPOINT
    body = data.draw(shapes(like) if name != "identifier" else shapes({"NetworkID": NETWORK_ID}))
    json.loads(json.dumps(body))
    try:
        found = PARSERS[name](body)
    except FwError as refused:
        found = str(refused)
        assert 0 < len(found) < 5000
    assert isinstance(found, Network | Endpoint | tuple | str)
    if isinstance(found, Network):
        assert found.gateway4 or found.gateway6
        assert isinstance(found.gateway4, IPv4Interface | None)
        assert isinstance(found.gateway6, IPv6Interface | None)
        assert isinstance(found.mtu, int)
        assert isinstance(found.bridge, str)
        assert isinstance(found.internal, bool)
        assert isinstance(found.masquerade, bool)


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize("body", [None, [], "", 0, 1.5, True, {}, [{}], {"NetworkID": {}}, {"NetworkID": "\ud800"}])
def test_a_body_that_is_no_request_is_refused(name: str, body: Any) -> None:
    """A body that is no object, or an empty one, is an error and never a default."""
    if name == "port_bindings" and isinstance(body, dict):
        assert protocol.port_bindings(body) == ()
        return
    with pytest.raises(FwError):
        PARSERS[name](body)
