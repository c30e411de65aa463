"""dockerd's calls in any order, twice, late, or about unknown objects: the sets equal what the labels open.

The table is walked as the kernel would (`tests.pure.tracer`); the expected open ports are read from labels by
`tests.pure.naive`, and the existing endpoints are kept by the few lines of `Docker` here: neither knows the plugin's
code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from plugin.driver import driver
from plugin.driver.driver import Driver
from plugin.driver.http import create_app
from plugin.labels.parser import parse
from plugin.model import Container, Defaults, DockerUnavailable
from plugin.policy.facts import Facts
from plugin.policy.saved import SavedState
from plugin.state.reconciler import Reconciler
from tests.inputs import inputs
from tests.pure import naive
from tests.pure.fakes import Disk, Kernel, NoLinks, cut_no_flows
from tests.pure.tracer import Packet, Table
from tests.recorded import GENERIC, PORTMAP

Address = IPv4Address | IPv6Address
NET, INTERNAL, WITH_OPTIONS, NOWHERE = ("1" * 64, "2" * 64, "3" * 64, "9" * 64)
#: The options of a network, and a setting, for all containers there.
OPTIONS: dict[str, dict[str, str]] = {NET: {}, INTERNAL: {}, WITH_OPTIONS: {"fw.allow": "9100", "fw.deny": "22"}}
SETTING = {"fw.allow": "161/udp"}
ENDPOINTS = tuple(f"e{n}".ljust(64, "0") for n in range(5))
HOSTS = (2, 3, 4)
NAMES = {"fw.allow": "8080 from container:c1 container:c2, 22 from 203.0.113.0/24"}
#: None: Docker's API is silent. The last two are wrong, and Docker's start is refused.
LABELS: tuple[dict[str, str] | None, ...] = (
    None,
    {},
    {"fw.allow": "8080, 53/udp"},
    {"fw.policy": "closed"},
    {"fw.policy": "open", "fw.deny": "80"},
    NAMES,
    {"fw.allow": "808O"},
    {"fw.alow": "8080"},
)
WRONG = LABELS[-2:]
TRIED = (("tcp", 22), ("tcp", 80), ("tcp", 8080), ("tcp", 9100), ("udp", 53), ("udp", 161), ("udp", 80))
OUTSIDERS = (IPv4Address("203.0.113.7"), IPv4Address("192.0.2.1"), IPv6Address("2001:db8:99::1"))
NUMBERS = {"tcp": 6, "udp": 17}


#: The endpoint: mostly an existing one.
which = st.integers(0, 29)


def subnet(network: str) -> int:
    return int(network[0])


@dataclass
class Place:
    """An endpoint as dockerd knows it. `labels` None: they are unknown."""

    network: str
    number: int
    joined: bool = False
    labels: dict[str, str] | None = None
    published: bool = False

    @property
    def addresses(self) -> tuple[Address, ...]:
        net = subnet(self.network)
        return ip_address(f"10.{net}.0.{self.number}"), ip_address(f"2001:db8:{net}::{self.number}")


@dataclass
class Docker:
    """The networks and endpoints that were created and not deleted."""

    networks: set[str] = field(default_factory=set)
    places: dict[str, Place] = field(default_factory=dict)

    def forget(self, network: str, number: int, *, but: str) -> None:
        """Remove any other endpoint with this address: its end was never reported."""
        for key, place in list(self.places.items()):
            if key != but and (place.network, place.number) == (network, number):
                del self.places[key]

    def names(self) -> dict[str, set[Address]]:
        found: dict[str, set[Address]] = {}
        for key, place in self.places.items():
            if place.joined and place.labels is not None:
                found.setdefault(f"container:c{key[1]}", set()).update(place.addresses)
        return found

    def accepts(self, flow: naive.Flow, at: Address) -> bool:
        for place in self.places.values():
            if at in place.addresses:
                if not place.joined or place.labels is None or place.network == INTERNAL:
                    return False
                spec = naive.read([SETTING, OPTIONS[place.network], place.labels])
                return naive.accepts(spec, flow, self.names())
        return False


class Api(NoLinks):
    """Docker's API in a hook, with its current answer."""

    def __init__(self) -> None:
        self.labels: dict[str, str] | None = None

    def find(self, _: object, endpoint: object) -> Container:
        if self.labels is None:
            raise DockerUnavailable("silent")
        parsed = parse(self.labels)
        number = str(endpoint)[1]
        return Container(number * 64, f"c{number}", parsed.spec, parsed.problems)


class Calls(RuleBasedStateMachine):
    """The driver's protocol over its socket's application."""

    def __init__(self) -> None:
        super().__init__()
        self.docker, self.api, self.disk = Docker(), Api(), Disk()
        self._patch = pytest.MonkeyPatch()
        cut_no_flows(self._patch)
        self._patch.setattr(driver, "exists", lambda _: True)
        self.start(SavedState())

    def teardown(self) -> None:
        self._patch.undo()

    def start(self, state: SavedState) -> None:
        self.kernel = Kernel()
        self.state = Reconciler(self.kernel, self.disk, Defaults(parse(SETTING, "setting ").spec))  # type: ignore[arg-type]
        self.state.start(Facts(state))
        none: Any = NoLinks()
        made = Driver(self.state, none, none, none, self.api)  # type: ignore[arg-type]
        self.client = create_app(made, none).test_client()

    def call(self, name: str, body: dict[str, Any], *, well: bool) -> None:
        """Make the call and check that the answer is an error, or not, as expected."""
        answer = json.loads(self.client.post(f"/NetworkDriver.{name}", data=json.dumps(body)).data)
        assert ("Err" not in answer) == well, (name, answer)

    def endpoint(self, drawn: int) -> str:
        known = sorted(self.docker.places)
        return known[drawn % len(known)] if known and drawn > 3 else ENDPOINTS[drawn % len(ENDPOINTS)]

    # --- calls ----------------------------------------------------------------------------------------------------

    @initialize()
    def networks(self) -> None:
        for network in OPTIONS:
            self.create_network(network, 1)

    @rule(network=st.sampled_from([NET, INTERNAL, WITH_OPTIONS]), other=st.integers(0, 9))
    def create_network(self, network: str, other: int) -> None:
        """Repeat the same request; sometimes with other options under the same ID."""
        net, changed = subnet(network), not other and network in self.docker.networks
        body = {
            "NetworkID": network,
            "Options": {
                GENERIC: {**OPTIONS[network], **({"fw.policy": "open"} if changed else {})},
                "com.docker.network.internal": network == INTERNAL,
            },
            "IPv4Data": [{"Gateway": f"10.{net}.0.1/24"}],
            "IPv6Data": [{"Gateway": f"2001:db8:{net}::1/64"}],
        }
        self.call("CreateNetwork", body, well=not changed)
        self.docker.networks.add(network)

    @rule(network=st.sampled_from([NET, INTERNAL, WITH_OPTIONS, NOWHERE]), seldom=st.integers(0, 3))
    def delete_network(self, network: str, seldom: int) -> None:
        """Delete a network, also with containers on it, and twice."""
        if seldom:
            return
        self.call("DeleteNetwork", {"NetworkID": network}, well=True)
        self.docker.networks.discard(network)
        self.docker.places = {k: v for k, v in self.docker.places.items() if v.network != network}

    @rule(
        endpoint=st.sampled_from(ENDPOINTS),
        network=st.sampled_from([NET, NET, INTERNAL, WITH_OPTIONS, NOWHERE]),
        number=st.sampled_from(HOSTS),
    )
    def create_endpoint(self, endpoint: str, network: str, number: int) -> None:
        """An address of another endpoint now belongs to this one."""
        net, known = subnet(network), self.docker.places.get(endpoint)
        there = network in self.docker.networks
        same = known is None or (known.network, known.number) == (network, number)
        interface = {"Address": f"10.{net}.0.{number}/24", "AddressIPv6": f"2001:db8:{net}::{number}/64"}
        body = {"NetworkID": network, "EndpointID": endpoint, "Interface": interface, "Options": {}}
        self.call("CreateEndpoint", body, well=there and same)
        if there:
            self.docker.forget(network, number, but=endpoint)
            if known is None:
                self.docker.places[endpoint] = Place(network, number)

    @rule(drawn=which, labels=st.sampled_from(LABELS), astray=st.integers(0, 9))
    def join(self, drawn: int, labels: dict[str, str] | None, astray: int) -> None:
        """Join with any labels, known or not; sometimes on a network that the endpoint is not on."""
        self._join(self.endpoint(drawn), labels, astray)

    def _join(self, endpoint: str, labels: dict[str, str] | None, astray: int) -> None:
        place = self.docker.places.get(endpoint)
        network = place.network if place and astray else NOWHERE
        self.api.labels = labels
        well = bool(place and astray and labels not in WRONG)
        self.call("Join", {"NetworkID": network, "EndpointID": endpoint, "SandboxKey": "x", "Options": {}}, well=well)
        if place and astray:
            self.docker.forget(place.network, place.number, but=endpoint)
            if well:
                place.joined = True
                place.labels = place.labels if labels is None else labels

    @rule(
        drawn=which,
        labels=st.sampled_from([*LABELS[1:-2], NAMES]),
        network=st.sampled_from([NET, NET, WITH_OPTIONS, INTERNAL]),
        number=st.sampled_from(HOSTS),
    )
    def start_container(self, drawn: int, labels: dict[str, str], network: str, number: int) -> None:
        """Make the calls of a container's usual start."""
        endpoint = ENDPOINTS[drawn % len(ENDPOINTS)]
        self.create_endpoint(endpoint, network, number)
        self._join(endpoint, labels, 1)

    @rule(drawn=which, network=st.sampled_from([NET, NOWHERE]))
    def leave(self, drawn: int, network: str) -> None:
        """Leave, also for an endpoint that has never joined, or has left already."""
        endpoint = self.endpoint(drawn)
        self.call("Leave", {"NetworkID": network, "EndpointID": endpoint}, well=True)
        if place := self.docker.places.get(endpoint):
            place.joined, place.labels, place.published = False, None, False

    @rule(drawn=which)
    def delete_endpoint(self, drawn: int) -> None:
        """Delete an endpoint, also without a Leave, and twice."""
        endpoint = self.endpoint(drawn)
        self.call("DeleteEndpoint", {"NetworkID": NET, "EndpointID": endpoint}, well=True)
        self.docker.places.pop(endpoint, None)

    @rule(drawn=which)
    def publish(self, drawn: int) -> None:
        """Publish with `-p 18080:8080`, which alone opens nothing."""
        endpoint = self.endpoint(drawn)
        place = self.docker.places.get(endpoint)
        network = place.network if place else NET
        wish = {PORTMAP: [{"Proto": 6, "Port": 8080, "HostPort": 18000 + int(endpoint[1])}]}
        body = {"NetworkID": network, "EndpointID": endpoint, "Options": wish}
        self.call("ProgramExternalConnectivity", body, well=place is not None)
        if place:
            place.published = network != INTERNAL

    @rule(drawn=which)
    def revoke(self, drawn: int) -> None:
        endpoint = self.endpoint(drawn)
        self.call("RevokeExternalConnectivity", {"NetworkID": NET, "EndpointID": endpoint}, well=True)
        if place := self.docker.places.get(endpoint):
            place.published = False

    @precondition(lambda self: self.docker.places)
    @rule()
    def restart(self) -> None:
        """docker-fw is killed; the next process has its state file and nothing else."""
        self.start(self.disk.kept)

    # --- invariants -----------------------------------------------------------------------------------------------

    @invariant()
    def the_sets_open_exactly_the_labels_ports(self) -> None:
        """The sets open exactly the ports of the labels, at each possible address, from outside and from other
        containers."""
        assert self.kernel.table is not None
        table = Table(self.kernel.table)
        addresses = [a for net in (NET, INTERNAL, WITH_OPTIONS) for n in HOSTS for a in Place(net, n).addresses]
        names = self.docker.names()
        theirs = {address for place in self.docker.places.values() for address in place.addresses}
        for at in addresses:
            peers = {a for a in OUTSIDERS if a.version == at.version}
            there = {*names.get("container:c1", ()), *names.get("container:c2", ())}
            peers |= {address for address in there if address.version == at.version}
            for proto, port in TRIED if at in theirs else TRIED[2:3]:
                for peer in peers:
                    found = table.verdict(f"inbound{at.version}", Packet(peer, at, NUMBERS[proto], port)) == "permit"
                    assert found == self.docker.accepts(naive.Flow(proto, port, peer), at), (at, proto, port, peer)

    @invariant()
    def host_ports_lead_to_their_publishers(self) -> None:
        """No host port leads to a container that has left."""
        assert self.kernel.table is not None
        led = {(int(str(e.key[1])), e.data[0]) for e in self.kernel.table if e.set.endswith("_any") and e.data}
        assert led == {
            (18000 + int(key[1]), address)
            for key, place in self.docker.places.items()
            if place.joined and place.published
            for address in place.addresses
        }

    @invariant()
    def nothing_remains_of_departed_endpoints(self) -> None:
        """State and table contain the same endpoints as dockerd."""
        assert set(self.state.endpoints) == set(self.docker.places)
        assert set(self.state.networks) == self.docker.networks


Calls.TestCase.settings = inputs(30, steps=30, suppress_health_check=list(HealthCheck))


class TestCallsInAnyOrder(Calls.TestCase):
    """For any calls in any order: the sets equal what labels, options and base say of the existing endpoints."""
