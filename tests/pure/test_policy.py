"""What an address accepts: the floor, what opens more, and what keeps it closed."""

from __future__ import annotations

import dataclasses
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.labels import parse
from plugin.model import Container, Endpoint, Network, Problem, Rule
from plugin.policy import BASE, accepted, verdict
from tests.pure.strategies import containers, endpoints, examples, ipv4, ipv6, networks, ports, protos, some_rules

V4, V6 = IPv4Address("172.18.0.2"), IPv6Address("2001:db8:1::2")
NETWORK = Network("n" * 64, "fw-nnnnnnnnnnnn")
KNOWN = Container("c" * 64, "web")
ENDPOINT = Endpoint("e" * 64, NETWORK.id, V4, V6, joined=True, container=KNOWN)
WRONG = Problem("label fw.allow", "808O", "is not a port")
MORE = (Rule("tcp", 8080, 8080),)


def test_the_base_is_ssh_http_and_https_over_tcp() -> None:
    """Without any configuration a container answers on TCP 22, 80 and 443."""
    assert accepted(NETWORK, ENDPOINT) == (Rule("tcp", 22, 22), Rule("tcp", 80, 80), Rule("tcp", 443, 443)) == BASE


def test_without_configuration_nothing_else_is_open() -> None:
    """Of all ports of all protocols, just the base's three are open."""
    open_ports = [
        (proto, port)
        for address, proto, step in ((V6, "tcp", 1), (V4, "tcp", 1), (V6, "udp", 11), (V4, "sctp", 11))
        for port in range(0, 65536, step)
        if verdict(NETWORK, ENDPOINT, address, proto, port)  # type: ignore[arg-type]
    ]
    assert open_ports == [("tcp", 22), ("tcp", 80), ("tcp", 443)] * 2


@pytest.mark.parametrize("where", ["everywhere", "network", "endpoint", "container"])
def test_each_place_can_open_more(where: str) -> None:
    """A rule of the host's setting, the network, the attachment or the container's label adds to the base."""
    network = dataclasses.replace(NETWORK, allow=MORE if where == "network" else ())
    container = dataclasses.replace(KNOWN, allow=MORE if where == "container" else ())
    endpoint = dataclasses.replace(ENDPOINT, allow=MORE if where == "endpoint" else (), container=container)
    assert set(accepted(network, endpoint, MORE if where == "everywhere" else ())) == {*BASE, *MORE}


_CLOSED = {
    "not joined": (NETWORK, dataclasses.replace(ENDPOINT, joined=False)),
    "labels unknown": (NETWORK, dataclasses.replace(ENDPOINT, container=None)),
    "labels wrong": (NETWORK, dataclasses.replace(ENDPOINT, container=dataclasses.replace(KNOWN, problems=(WRONG,)))),
    "internal network": (dataclasses.replace(NETWORK, internal=True), ENDPOINT),
}


@pytest.mark.parametrize(("network", "endpoint"), _CLOSED.values(), ids=_CLOSED)
def test_closed_until_known_and_right(network: Network, endpoint: Endpoint) -> None:
    """An address accepts nothing, not even the base, until it is joined, known and right, on a network with an outside.

    What the host, the network or the attachment allow does not change that.
    """
    open_everywhere = (Rule("tcp", 1, 65535),)
    network = dataclasses.replace(network, allow=open_everywhere)
    endpoint = dataclasses.replace(endpoint, allow=open_everywhere)
    assert accepted(network, endpoint, open_everywhere) == ()


@given(networks, endpoints, some_rules)
@examples(80)
def test_nothing_is_accepted_unless_everything_is_in_order(
    network: Network, endpoint: Endpoint, everywhere: tuple[Rule, ...]
) -> None:
    """For any network and endpoint: accepted is empty or, all being in order, the base and each place's rules."""
    rules = accepted(network, endpoint, everywhere)
    container = endpoint.container
    if container is None or container.problems or not endpoint.joined or network.internal:
        assert rules == ()
    else:
        assert set(rules) == {*BASE, *everywhere, *network.allow, *endpoint.allow, *container.allow}
        assert list(rules) == sorted(rules)


@given(networks, endpoints, some_rules, protos, ports, ipv4 | ipv6)
@examples(60)
def test_an_address_that_is_not_the_endpoints_is_closed(
    network: Network, endpoint: Endpoint, everywhere: tuple[Rule, ...], proto: str, port: int, other: IPv4Address
) -> None:
    """What a container may answer on holds for its own addresses only; one that it took by itself has nothing."""
    if other not in (endpoint.addr4, endpoint.addr6):
        assert not verdict(network, endpoint, other, proto, port, everywhere)  # type: ignore[arg-type]


@given(containers, some_rules, protos, ports, st.sampled_from([V4, V6]))
@examples(100)
def test_a_verdict_is_what_the_rules_say(
    container: Container, everywhere: tuple[Rule, ...], proto: str, port: int, address: IPv4Address
) -> None:
    """A port is open if and only if a rule of its protocol spans it."""
    endpoint = dataclasses.replace(ENDPOINT, container=container)
    spans = [r for r in accepted(NETWORK, endpoint, everywhere) if r.proto == proto and r.first <= port <= r.last]
    assert verdict(NETWORK, endpoint, address, proto, port, everywhere) is bool(spans)  # type: ignore[arg-type]


_wrong_labels = st.sampled_from(
    [("fw.allow", "808O"), ("fw.alow", "1"), ("FW.Allow", ""), ("fw.", ""), ("fw.allow", "*/any")]
)


@given(st.lists(st.sampled_from(["8080", "53/udp", "*", "1-1024/sctp"]), max_size=3), _wrong_labels, protos, ports)
@examples(100)
def test_a_wrong_label_never_opens(right: list[str], wrong: tuple[str, str], proto: str, port: int) -> None:
    """Whatever else stands on a container: one wrong label more, and it accepts nothing that it did not before."""
    labels = {"fw.allow": ", ".join(right)} if right else {}

    def answers(pairs: dict[str, str]) -> bool:
        said = parse(pairs)
        endpoint = dataclasses.replace(ENDPOINT, container=Container("c", "web", said.allow, said.problems))
        return verdict(NETWORK, endpoint, V6, proto, port)  # type: ignore[arg-type]

    assert answers({**labels, wrong[0]: wrong[1]}) <= answers(labels)
    assert not answers({**labels, wrong[0]: wrong[1]})
