"""Docker networks: which ports their containers accept, and that no exception outlives its container."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from plugin.docker.tracker import REMEMBERED, EndpointTracker
from plugin.kernel import conntrack
from plugin.labels.parser import parse
from plugin.model import (
    Address,
    BridgeNetwork,
    Container,
    Defaults,
    Endpoint,
    Overriding,
    PolicySpec,
    Problem,
    Published,
    Rule,
)
from plugin.nftables.sets import Element
from plugin.policy.decide import BASE, of, passes
from plugin.policy.facts import Facts
from plugin.policy.overrides import with_one
from plugin.policy.saved import SavedState
from plugin.state import closed_flows
from plugin.state.reconciler import Reconciler
from tests.inputs import inputs
from tests.pure.fakes import Disk, Kernel, cut_no_flows
from tests.specs import spec_of as spec

SUBNETS = (IPv4Network("172.18.0.0/16"), IPv6Network("2001:db8:1::/64"))
NETWORK = BridgeNetwork("n" * 64, "app_default", "br-nnnnnnnnnnnn", SUBNETS)
OTHER = BridgeNetwork("o" * 64, "other", "br-oooooooooooo", (IPv4Network("172.19.0.0/16"),))
ANY4, ANY6 = IPv4Address("0.0.0.0"), IPv6Address("::")
PLAIN = Defaults()


def container(name: str, *ports: int, **labels: str) -> Container:
    allow = {"allow": ", ".join(map(str, ports))} if ports else {}
    return Container(name.ljust(64, "0"), name, spec(**allow, **labels))


def endpoint(
    name: str, host: int, of: Container | None, network: BridgeNetwork = NETWORK, *ports: Published
) -> Endpoint:
    v4 = IPv4Address(int(network.subnets[0].network_address) + host)
    v6 = IPv6Address(f"2001:db8:1::{host:x}") if network is NETWORK else None
    return Endpoint(name.ljust(64, "e"), network.id, v4, v6, joined=True, container=of, published=ports)


#: The time of a request made just now: newer than every departure.
NOW = 1 << 30
WEB, DB = container("web", 8080), container("db", 5432)


class Table(Reconciler):
    """A reconciler with a fake kernel and a fake disk."""

    def __init__(self, defaults: Defaults = PLAIN, state: SavedState | None = None) -> None:
        self.kernel, self.disk = Kernel(), Disk()
        super().__init__(self.kernel, self.disk, defaults)  # type: ignore[arg-type]
        self.start(Facts(state or SavedState()))

    def only(self, bridges: Collection[str]) -> None:
        """Remove all bridges except these."""
        self.observe(lambda facts: facts.keeping(lambda state: state.with_bridges(bridges)))

    def elements(self) -> set[Element]:
        return set(self.kernel.table or ())

    def opens(self, address: object) -> set[int]:
        """Return the single TCP ports that the table opens for an address."""
        found = {e.key[2] for e in self.elements() if e.set in ("allow4", "allow6") and e.key[0] == address}
        return found - {22, 80, 443}  # type: ignore[return-value]

    def knows(self, address: object) -> bool:
        return any(e.key[0] == address for e in self.elements() if e.set in ("allow4", "allow6"))

    def of(self, *sets: str) -> set[Element]:
        return {element for element in self.elements() if element.set.startswith(sets)}


@pytest.fixture
def table(cut: list[Address]) -> Table:
    return Table()


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch, judged: list[Any]) -> list[Address]:
    """Return the addresses whose flows were cut."""
    found: list[Address] = []
    monkeypatch.setattr(conntrack, "cut_addresses", found.extend)
    monkeypatch.setattr(conntrack, "cut_published", lambda *_: None)
    return found


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record each search for flows to closed ports: by address, what was accepted."""
    found: list[Any] = []
    monkeypatch.setattr(closed_flows, "cut_closed", lambda policies, _: found.append(policies))
    return found


@pytest.fixture
def tracker(table: Table) -> EndpointTracker:
    return EndpointTracker(table)


# --- what an address accepts --------------------------------------------------------------------------------------


def test_a_container_on_a_docker_network_accepts_its_ports() -> None:
    """A container accepts the base, and the ports that its labels, its network's options and the setting open."""
    network = dataclasses.replace(NETWORK, spec=spec(allow="9100"))
    rules = of(network, endpoint("e", 2, WEB), Defaults(spec(allow="161/udp"))).accepts
    assert set(rules) == {*BASE, Rule("tcp", 8080, 8080), Rule("tcp", 9100, 9100), Rule("udp", 161, 161)}
    assert of(dataclasses.replace(NETWORK, internal=True), endpoint("e", 2, WEB)).accepts == ()
    assert of(NETWORK, endpoint("e", 2, None)).accepts == ()


@pytest.mark.parametrize(
    ("key", "base"), [("fw.allow", True), ("fw.dney", False), ("fw.policy", False), ("fw.", False)]
)
@pytest.mark.parametrize("where", ["container", "network"])
def test_a_mistake_only_closes(key: str, base: bool, where: str) -> None:
    """A container that runs with mistakes: a wrong fw.allow opens nothing and leaves the base; any other mistake may
    have been meant to close, and leaves ICMP only."""
    parsed = parse({key: "808O", "fw.allow": "808O"})
    assert parsed.problems
    web = dataclasses.replace(WEB, spec=parsed.spec, problems=parsed.problems if where == "container" else ())
    network = dataclasses.replace(NETWORK, problems=parsed.problems if where == "network" else ())
    if where == "network":
        web = container("web")
    assert of(network, endpoint("e", 2, web)).accepts == (BASE if base else ())


def test_a_mistake_is_logged_once(tracker: EndpointTracker, caplog: pytest.LogCaptureFixture) -> None:
    """A mistake is not logged with each list, which may come every second. It is logged again when the container
    restarts or its labels change."""

    def logged(name: str, *values: str) -> int:
        caplog.clear()
        for value in values:
            who = Container("w" * 64, "web", problems=parse({"fw.allow": value}).problems)
            tracker.replace([NETWORK], [endpoint(name, 2, who)], asked=tracker.now())
        return sum("web answers on" in record.getMessage() for record in caplog.records)

    assert logged("one", "808O", "808O", "808O") == 1
    assert logged("one", "8O8O") == 1
    assert logged("two", "8O8O", "8O8O") == 1


def test_a_published_port_is_closed_as_the_containers_is(table: Table, tracker: EndpointTracker) -> None:
    """docker-proxy's port is closed to the outside unless the container's port is open; loopback is not the outside."""
    ports = (
        Published("tcp", ANY4, 15432, 5432),
        Published("tcp", ANY6, 15432, 5432),
        Published("tcp", ANY4, 18080, 80),
        Published("udp", IPv4Address("198.51.100.1"), 53, 53),
        Published("tcp", IPv6Address("2001:db8::1"), 99, 99),
        Published("tcp", IPv4Address("127.0.0.1"), 6379, 6379),
    )
    tracker.replace([NETWORK], [endpoint("e", 2, container("c"), NETWORK, *ports)], asked=NOW)
    assert table.of("host_closed") == {
        Element("host_closed", (2, 6, 15432)),
        Element("host_closed", (10, 6, 15432)),
        Element("host_closed4", (IPv4Address("198.51.100.1"), 17, 53)),
        Element("host_closed6", (IPv6Address("2001:db8::1"), 6, 99)),
    }
    assert table.of("host_open") == {Element("host_open", (2, 6, 18080))}
    tracker.replace([NETWORK], [endpoint("e", 2, DB, NETWORK, *ports[:2])], asked=NOW)
    assert not table.of("host_closed")
    tracker.replace([NETWORK], [endpoint("e", 2, None, NETWORK, *ports[:3])], asked=NOW)
    assert {e.key[2] for e in table.of("host_closed")} == {15432, 18080}


def test_with_the_setting_publishing_opens() -> None:
    """FW_PUBLISHED=allow: the container is reachable through the published port only. A denied port, a port restricted
    by `from` and a wrong label still close."""
    ports = (
        Published("tcp", ANY4, 15432, 5432),
        Published("tcp", IPv4Address("127.0.0.1"), 16379, 6379),
    )
    table = Table(Defaults(published=True))
    tracker = EndpointTracker(table)
    guest = endpoint("e", 2, container("c"), NETWORK, *ports)
    tracker.replace([NETWORK], [guest], asked=NOW)
    assert {(e.set, e.key[0]) for e in table.of("allow_published", "host_closed")} == {
        ("allow_published4", guest.addr4),
        ("allow_published6", guest.addr6),
    }
    assert not passes(of(NETWORK, guest, Defaults(published=True)).accepts, "tcp", 5432, IPv4Address("203.0.113.7"))
    wrong = Container("c", "c", problems=(Problem("label fw.x", "", ""),))
    for closed in (wrong, container("c", deny="5432"), container("c", allow="5432 from 10.0.0.0/8")):
        tracker.replace([NETWORK], [dataclasses.replace(guest, container=closed)], asked=NOW)
        assert not table.of("allow_published")
        assert {e.key[2] for e in table.of("host_closed")} == {15432}


def test_a_published_port_for_some_sources() -> None:
    """Only the sources of `5432 from 203.0.113.0/24` reach the published port, by DNAT and by docker-proxy."""
    table, port = Table(), Published("tcp", ANY4, 15432, 5432)
    guest = endpoint("e", 2, container("c", allow="5432 from 203.0.113.0/24"), NETWORK, port)
    EndpointTracker(table).replace([NETWORK], [guest], asked=NOW)
    net = IPv4Address("203.0.113.0")
    assert table.of("host_closed", "host_from", "from") == {
        Element("host_closed", (2, 6, 15432)),
        Element("host_from4", (6, 15432, 24, net)),
        Element("from4", (guest.addr4, 6, 5432, 24, net)),
    }


# --- which container an exception belongs to ----------------------------------------------------------------------


def test_an_exception_lasts_as_long_as_the_connection(
    table: Table, tracker: EndpointTracker, cut: list[Address]
) -> None:
    """When Docker connects a container, its ports are open before its process runs. When it leaves, they are closed and
    its flows are cut."""
    guest = endpoint("e", 2, WEB)
    tracker.put(NETWORK, [guest], listed=False, asked=NOW)
    assert table.opens(guest.addr4) == table.opens(guest.addr6) == {8080}
    tracker.leaves(NETWORK.id, WEB.id)
    assert not table.knows(guest.addr4)
    assert not table.knows(guest.addr6)
    assert cut == [guest.addr4, guest.addr6]


def test_a_container_that_dies_leaves_every_network(table: Table, tracker: EndpointTracker) -> None:
    """One event closes all addresses of a container, and no other container's."""
    mine = [endpoint("a", 2, WEB), endpoint("b", 2, WEB, OTHER)]
    his = endpoint("c", 3, DB)
    tracker.replace([NETWORK, OTHER], [*mine, his], asked=NOW)
    tracker.leaves("", WEB.id)
    assert not any(table.knows(e.addr4) for e in mine)
    assert table.opens(his.addr4) == {5432}


def test_a_list_older_than_a_departure_opens_nothing(table: Table, tracker: EndpointTracker) -> None:
    """A list that still contains a container after its departure event opens nothing until Docker connects it again."""
    guest = endpoint("e", 2, WEB)
    tracker.replace([NETWORK], [guest], asked=NOW)
    tracker.leaves(NETWORK.id, WEB.id)
    tracker.replace([NETWORK], [guest], asked=NOW)
    tracker.put(NETWORK, [guest], listed=False, asked=NOW)
    assert not table.knows(guest.addr4)
    tracker.returns(NETWORK.id, WEB.id)
    tracker.put(NETWORK, [guest], listed=False, asked=NOW)
    assert table.opens(guest.addr4) == {8080}


def test_an_answer_older_than_a_departure_is_ignored(table: Table, tracker: EndpointTracker) -> None:
    """An answer requested before the container left and rejoined elsewhere is ignored."""
    old, new, heir = endpoint("a", 2, WEB), endpoint("b", 3, WEB), endpoint("c", 2, DB)
    tracker.replace([NETWORK], [old], asked=NOW)
    asked = tracker.now()
    tracker.leaves(NETWORK.id, WEB.id)
    tracker.returns(NETWORK.id, WEB.id)
    tracker.put(NETWORK, [new], listed=False, asked=tracker.now())
    tracker.put(NETWORK, [heir], listed=False, asked=tracker.now())
    tracker.put(None, [old], listed=True, asked=asked)
    assert table.opens(old.addr4) == {5432}
    assert table.opens(new.addr4) == {8080}
    tracker.replace([NETWORK], [old], asked=asked)
    assert table.opens(old.addr4) == {5432}


def test_a_name_is_not_taken_back_by_a_late_answer(table: Table, tracker: EndpointTracker) -> None:
    """A container that is renamed while Docker answers about its start has its new name, as the list has it."""
    old = endpoint("a", 2, WEB)
    new = dataclasses.replace(old, container=dataclasses.replace(WEB, name="new"))
    tracker.replace([NETWORK], [old], asked=tracker.now())
    asked = tracker.now()
    tracker.renamed(WEB.id)
    assert tracker.replace([NETWORK], [new], asked=tracker.now())
    assert not tracker.put(None, [old], listed=True, asked=asked)
    assert [guest.endpoint.container for guest in tracker.guests] == [new.container]
    assert tracker.put(None, [new], listed=True, asked=tracker.now())


def test_a_name_is_not_taken_back_by_a_late_list(table: Table, tracker: EndpointTracker) -> None:
    """A list from before a container was renamed, which arrives after the answer about it, changes nothing about it.

    Otherwise peers that are named by the old name would be open to it once more.
    """
    old, other = endpoint("a", 2, WEB), endpoint("b", 3, DB)
    new = dataclasses.replace(old, container=dataclasses.replace(WEB, name="new"))
    tracker.replace([NETWORK], [old], asked=tracker.now())
    asked = tracker.now()
    tracker.renamed(WEB.id)
    assert tracker.put(None, [new], listed=True, asked=tracker.now())
    assert tracker.replace([NETWORK], [old, other], asked=asked)
    assert {guest.endpoint.container for guest in tracker.guests} == {new.container, DB}
    asked = tracker.now()
    tracker.renamed(WEB.id)  # again, and now the list comes before the answer about the container
    assert tracker.replace([NETWORK], [new, other], asked=asked)
    assert {guest.endpoint.container for guest in tracker.guests} == {new.container, DB}
    assert tracker.replace([NETWORK], [new, other], asked=tracker.now())
    assert {guest.endpoint.container for guest in tracker.guests} == {new.container, DB}


def test_a_container_reported_during_a_listing_stays(table: Table, tracker: EndpointTracker) -> None:
    """A container that joins while a full listing is in progress is not in the list, and stays, with its network."""
    asked = tracker.now()
    guest = endpoint("e", 2, WEB)
    tracker.put(NETWORK, [guest], listed=False, asked=tracker.now())
    tracker.put(None, [guest], listed=True, asked=tracker.now())
    tracker.replace([], [], asked=asked)
    assert table.opens(guest.addr4) == {8080}
    stale = endpoint("s", 2, DB)
    tracker.replace([NETWORK], [stale], asked=asked)
    assert table.opens(guest.addr4) == {8080}
    tracker.replace([NETWORK], [], asked=tracker.now())
    assert not table.knows(guest.addr4)


def test_a_removed_container_does_not_return_with_an_old_list(table: Table, tracker: EndpointTracker) -> None:
    """A container may reuse an address that `docker rm` freed during a listing: it keeps the address, and nothing of
    the removed container remains."""
    old, heir = endpoint("a", 2, WEB), endpoint("b", 2, DB)
    tracker.replace([NETWORK], [old], asked=tracker.now())
    asked = tracker.now()
    tracker.leaves("", WEB.id)
    tracker.forget(WEB.id)
    tracker.returns(NETWORK.id, DB.id)
    tracker.put(NETWORK, [heir], listed=False, asked=tracker.now())
    tracker.replace([NETWORK], [old], asked=asked)
    assert table.opens(old.addr4) == {5432}


def test_the_ports_of_a_docker_proxy_are_remembered_when_it_has_ended(
    table: Table, tracker: EndpointTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel keeps a client's ended connection for a minute, which would hide docker-proxy from the rules.

    So a published TCP port is an element until some minutes after the departure of its container, when Docker lists
    everything.
    """
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    host = IPv6Address("2001:db8:ffff::1")
    ports = (
        Published("tcp", ANY4, 18080, 8080),
        Published("tcp", host, 18443, 443),
        Published("tcp", IPv4Address("127.0.0.1"), 18081, 8081),
        Published("udp", ANY6, 18053, 53),
    )
    guest = endpoint("e", 2, WEB, NETWORK, *ports)
    tracker.replace([NETWORK], [guest], asked=NOW)
    former = {Element("served_ports", (2, 6, 18080)), Element("served_ports6", (host, 6, 18443))}
    assert table.of("served_ports") == former
    clock[0] += 10 * REMEMBERED
    tracker.leaves("", WEB.id)
    assert table.of("served_ports") == former
    clock[0] += REMEMBERED
    tracker.replace([NETWORK], [], asked=NOW)
    assert table.of("served_ports") == former
    clock[0] += 0.1
    tracker.replace([NETWORK], [], asked=NOW)
    assert not table.of("served_ports")


@pytest.mark.parametrize("reported", ["destroy", "restart", "network destroy"])
def test_an_answer_that_lists_what_left_opens_nothing_later(
    table: Table, tracker: EndpointTracker, reported: str
) -> None:
    """Docker lists a container as running for a moment after it reported its end. If the answer arrives only when the
    container was removed, or has started with another address, its earlier address is not opened again."""
    old, heir = endpoint("a", 2, WEB), endpoint("c", 2, DB)
    tracker.replace([NETWORK], [old], asked=tracker.now())
    tracker.leaves("", WEB.id)
    asked = tracker.now()
    if reported == "destroy":
        tracker.forget(WEB.id)
    elif reported == "restart":
        tracker.returns(OTHER.id, WEB.id)
        tracker.put(OTHER, [endpoint("b", 3, WEB, OTHER)], listed=False, asked=tracker.now())
    else:
        tracker.network_gone(NETWORK.id)
    assert tracker.put(NETWORK, [old], listed=True, asked=asked)
    assert not table.knows(old.addr4)
    tracker.replace([NETWORK, OTHER], [old], asked=asked)
    assert not table.knows(old.addr4)
    tracker.returns(NETWORK.id, DB.id)
    tracker.put(NETWORK, [heir], listed=False, asked=tracker.now())
    assert table.opens(old.addr4) == {5432}


def test_a_removed_network_does_not_return_with_an_old_list(table: Table, tracker: EndpointTracker) -> None:
    """Nothing of a network that was removed during a listing remains, also if another has its bridge's name."""
    network = dataclasses.replace(NETWORK, mode6="routed")
    tracker.replace([network], [], asked=tracker.now())
    asked = tracker.now()
    tracker.network_gone(network.id)
    tracker.put(network, [], listed=True, asked=asked)
    assert table.elements() == set()
    tracker.replace([network], [], asked=asked)
    assert table.elements() == set()


def test_a_removed_container_is_closed_though_its_end_was_not_reported(table: Table, tracker: EndpointTracker) -> None:
    """The report of a container's removal alone closes its addresses."""
    guest = endpoint("e", 2, WEB)
    tracker.replace([NETWORK], [guest], asked=tracker.now())
    tracker.forget(WEB.id)
    assert not table.knows(guest.addr4)


def test_an_answer_from_before_missed_events_confirms_nothing(table: Table, tracker: EndpointTracker) -> None:
    """Answers requested before events were missed, or before a link left a bridge, are not trusted; Docker is asked
    again."""
    guest = endpoint("e", 2, WEB)
    tracker.replace([NETWORK], [guest], asked=tracker.now())
    asked = tracker.now()
    tracker.mark_unknown(NETWORK.bridge)
    assert not tracker.replace([NETWORK], [guest], asked=asked)
    assert not tracker.put(NETWORK, [guest], listed=True, asked=asked)
    assert not table.knows(guest.addr4)
    assert tracker.replace([NETWORK], [guest], asked=tracker.now())
    assert table.opens(guest.addr4) == {8080}
    asked = tracker.now()
    tracker.start_over()
    assert not tracker.replace([NETWORK], [], asked=asked)


def test_a_published_port_belongs_to_all_of_a_containers_endpoints(table: Table, tracker: EndpointTracker) -> None:
    """docker-proxy's port of a container that is also on an internal network is open if one of its endpoints opens it,
    but not while one of them is unknown."""
    port = Published("tcp", ANY6, 18080, 80)
    inner = dataclasses.replace(OTHER, internal=True)
    places = [endpoint("a", 2, WEB, NETWORK, port), endpoint("b", 2, WEB, inner, port)]
    tracker.replace([NETWORK, inner], places, asked=NOW)
    key = (10, 6, 18080)
    assert Element("host_open", key) in table.elements()
    assert Element("host_closed", key) not in table.elements()
    tracker.mark_unknown(inner.bridge)
    assert Element("host_closed", key) in table.elements()
    assert Element("host_open", key) not in table.elements()


def test_a_published_port_is_open_to_sources_of_either_endpoint(table: Table, tracker: EndpointTracker) -> None:
    """A container on two networks, with the port restricted by `from` on one: these sources reach it, whatever the
    other network's labels say."""
    port = Published("tcp", ANY4, 18080, 8080)
    some = dataclasses.replace(WEB, spec=spec(allow="8080 from 203.0.113.7"))
    tracker.replace(
        [NETWORK, OTHER],
        [
            endpoint("a", 2, some, NETWORK, port),
            endpoint("b", 2, dataclasses.replace(WEB, spec=PolicySpec()), OTHER, port),
        ],
        asked=NOW,
    )
    assert Element("host_closed", (2, 6, 18080)) in table.elements()
    assert table.of("host_from4") == {Element("host_from4", (6, 18080, 32, IPv4Address("203.0.113.7")))}


def test_after_docker_fw_stops_no_answer_opens(table: Table, tracker: EndpointTracker) -> None:
    """A Docker answer that arrives after docker-fw has stopped opens nothing."""
    guest = endpoint("e", 2, WEB)
    tracker.replace([NETWORK], [guest], asked=NOW)
    tracker.end()
    tracker.put(NETWORK, [guest], listed=True, asked=NOW)
    tracker.replace([NETWORK], [guest], asked=NOW)
    assert not table.knows(guest.addr4)


def test_a_stopped_containers_closed_ports_are_kept(table: Table, tracker: EndpointTracker) -> None:
    """The ports stay known until the container is removed: at boot, Docker may start it before it reports it."""
    ports = (Published("tcp", ANY4, 15432, 5432), Published("tcp", ANY4, 18080, 80))
    guest = endpoint("e", 2, container("c"), NETWORK, *ports)
    assert guest.container
    tracker.replace([NETWORK], [guest], [guest.container.id], asked=NOW)
    assert table.disk.kept.proxied == {guest.container.id: ports[:1]}
    tracker.leaves("", guest.container.id)
    tracker.replace([NETWORK], [], [guest.container.id], asked=NOW)
    assert table.disk.kept.proxied == {guest.container.id: ports[:1]}
    tracker.forget(guest.container.id)
    assert table.disk.kept.proxied == {}


@pytest.mark.parametrize("networks", [1, 2])
def test_ports_that_are_closed_in_doubt_alone_are_not_remembered(
    table: Table, tracker: EndpointTracker, networks: int
) -> None:
    """After a stop of docker-fw, the next start does not cut connections to a published port that is open: the port was
    closed only because nobody follows Docker. The closed ports from before the stop are remembered."""
    ports = (Published("tcp", ANY4, 15432, 5432), Published("tcp", ANY4, 18080, 80))
    there = [endpoint("e", 2, container("c"), NETWORK, *ports), endpoint("f", 2, container("c"), OTHER, *ports)]
    tracker.replace([NETWORK, OTHER], there[:networks], [container("c").id], asked=NOW)
    tracker.mark_unknown(NETWORK.bridge)
    tracker.end()
    assert {Element("host_closed", (2, 6, port)) for port in (15432, 18080)} <= table.elements()
    assert table.disk.kept.proxied == {container("c").id: ports[:1]}


def test_closed_ports_of_a_container_that_is_not_completely_known_are_remembered(
    table: Table, tracker: EndpointTracker
) -> None:
    """Its ports are closed, and it may start again before docker-fw knows whether they are open."""
    guest = endpoint("e", 2, container("c"), NETWORK, Published("tcp", ANY4, 18080, 80))
    tracker.replace([NETWORK], [guest], [container("c").id], asked=NOW, unsure=[guest.id])
    assert table.disk.kept.proxied == {container("c").id: guest.published}


def test_an_address_with_a_new_owner_keeps_nothing(table: Table, tracker: EndpointTracker) -> None:
    """Docker gives an address to another container in the same second, before it reports the departure of the first."""
    first, second = endpoint("a", 2, WEB), endpoint("b", 2, DB)
    tracker.replace([NETWORK], [first], asked=NOW)
    tracker.put(NETWORK, [second], listed=False, asked=NOW)
    assert table.opens(first.addr4) == {5432}
    tracker.leaves(NETWORK.id, WEB.id)
    assert table.opens(first.addr4) == {5432}


def test_a_starting_container_that_is_not_listed_stays(table: Table, tracker: EndpointTracker) -> None:
    """A full listing does not close a container that Docker has connected but does not list yet."""
    guest = endpoint("e", 2, WEB)
    tracker.put(NETWORK, [guest], listed=False, asked=NOW)
    tracker.replace([NETWORK], [], asked=NOW)
    assert table.opens(guest.addr4) == {8080}
    tracker.put(None, [guest], listed=True, asked=NOW)
    tracker.replace([NETWORK], [], asked=NOW)
    assert not table.knows(guest.addr4)


def test_after_events_were_missed_only_the_list_counts(table: Table, tracker: EndpointTracker) -> None:
    """A container that is missing from the list after Docker's event stream ended and started again is gone, however
    new it is."""
    guest = endpoint("e", 2, WEB)
    tracker.put(NETWORK, [guest], listed=False, asked=NOW)
    tracker.leaves(OTHER.id, WEB.id)
    tracker.start_over()
    tracker.replace([NETWORK, OTHER], [endpoint("b", 2, WEB, OTHER)], asked=NOW)
    assert not table.knows(guest.addr4)
    assert table.opens(IPv4Address("172.19.0.2")) == {8080}


def test_a_bridge_of_unknown_containers_is_closed(table: Table, tracker: EndpointTracker) -> None:
    """While the containers on a bridge are unknown, every address there is closed, including its published ports."""
    port = Published("tcp", ANY4, 18080, 80)
    guest, other = endpoint("e", 2, WEB, NETWORK, port), endpoint("b", 2, DB, OTHER)
    tracker.replace([NETWORK, OTHER], [guest, other], asked=NOW)
    tracker.mark_unknown(NETWORK.bridge)
    assert not table.knows(guest.addr4)
    assert Element("host_closed", (2, 6, 18080)) in table.elements()
    assert table.opens(other.addr4) == {5432}
    tracker.replace([NETWORK, OTHER], [guest, other], asked=NOW)
    assert table.opens(guest.addr4) == {8080}
    tracker.mark_unknown()
    assert not table.knows(guest.addr4)
    assert not table.knows(other.addr4)


def test_an_endpoint_that_accepts_less_cuts_its_flows(
    table: Table, tracker: EndpointTracker, judged: list[Any]
) -> None:
    """When an exception is removed while its container stays, only that endpoint's flows are checked."""
    guest, other = endpoint("e", 2, WEB), endpoint("f", 3, DB)
    tracker.replace([NETWORK], [guest, other], asked=NOW)
    for labels in (PolicySpec(), spec(deny="22"), spec(allow="22 from 10.0.0.1"), spec(egress="none", allow="8080")):
        judged.clear()
        less = dataclasses.replace(guest, container=dataclasses.replace(WEB, spec=labels))
        tracker.replace([NETWORK], [less, other], asked=NOW)
        (once,) = judged
        assert once.keys() == {guest.addr4, guest.addr6}
        tracker.replace([NETWORK], [guest, other], asked=NOW)
    judged.clear()
    more = dataclasses.replace(guest, container=dataclasses.replace(WEB, spec=spec(allow="8080, 9090")))
    tracker.replace([NETWORK], [more, other], asked=NOW)
    assert judged == []


def test_peers_follow_containers(table: Table, tracker: EndpointTracker, judged: list[Any]) -> None:
    """A rule for a service accepts its current containers: a new one from its connection on, none that has left. Flows
    of a container that has left are cut."""
    asker = dataclasses.replace(DB, spec=spec(allow="5432 from service:api"), project="shop", service="db")
    api = dataclasses.replace(WEB, project="shop", service="api")
    tracker.replace([NETWORK, OTHER], [endpoint("d", 5, asker)], asked=NOW)
    assert not table.of("from")
    guest = endpoint("a", 6, api, OTHER)
    tracker.put(OTHER, [guest], listed=False, asked=NOW)
    db4 = IPv4Address("172.18.0.5")
    assert table.of("from") == {Element("from4", (db4, 6, 5432, 32, guest.addr4))}
    judged.clear()
    tracker.mark_unknown(OTHER.bridge)  # the address's container is unknown now
    assert not table.of("from")
    assert any(db4 in each for each in judged)
    tracker.replace([NETWORK, OTHER], [endpoint("d", 5, asker), guest], asked=tracker.now())
    assert table.of("from")
    tracker.leaves("", api.id)
    assert not table.of("from")


def test_a_network_stays_egress_restricted_until_it_is_removed(table: Table, tracker: EndpointTracker) -> None:
    """One container with fw.egress: unknown addresses on its network may not open connections, even after it has left
    (it may return while Docker is silent), until the network is removed."""
    guest, other = endpoint("e", 2, container("c", egress="none")), endpoint("f", 3, DB)
    tracker.replace([NETWORK], [other], asked=NOW)
    assert not table.of("egress_restricted")
    tracker.put(NETWORK, [guest], listed=False, asked=NOW)
    assert table.of("egress_restricted") == {Element("egress_restricted", (NETWORK.bridge,))}
    assert {e.key[1] for e in table.of("egress_all")} == {other.addr4, other.addr6}
    assert table.disk.kept.egress_restricted == {NETWORK.bridge}
    tracker.leaves("", guest.container.id if guest.container else "")
    assert table.of("egress_restricted")
    table.only({NETWORK.bridge})
    assert table.disk.kept.egress_restricted == {NETWORK.bridge}
    table.only(())
    assert not table.of("egress_restricted")
    assert table.disk.kept.egress_restricted == set()


def test_an_egress_restriction_survives_a_restart(cut: list[Address]) -> None:
    """A network that had an egress-restricted container restricts all addresses after a start, when no container is
    known yet."""
    table = Table(state=SavedState(egress_restricted=frozenset({NETWORK.bridge})))
    tracker = EndpointTracker(table)
    assert table.of("egress_restricted") == {Element("egress_restricted", (NETWORK.bridge,))}
    tracker.put(NETWORK, [endpoint("f", 3, DB)], listed=False, asked=NOW)
    assert table.of("egress_restricted")
    table.only(())
    assert not table.of("egress_restricted")


def test_an_override_is_removed_with_its_container(table: Table, tracker: EndpointTracker) -> None:
    """An override is valid while the container exists, running or stopped; another container with its name does not
    inherit it."""
    guest = endpoint("e", 2, WEB, NETWORK, Published("tcp", ANY4, 18080, 8080))
    tracker.replace([NETWORK], [guest], [WEB.id], asked=NOW)
    assert Element("host_open", (2, 6, 18080)) in table.elements()
    table.edit_state(lambda s: with_one(s, Overriding(WEB.id, Rule("tcp", 8080, 8080), deny=True)))
    assert table.opens(guest.addr4) == set()
    assert Element("host_closed", (2, 6, 18080)) in table.elements()
    tracker.leaves("", WEB.id)
    tracker.replace([NETWORK], [], [WEB.id], asked=NOW)
    assert len(table.state.overrides) == 1
    tracker.forget(WEB.id)
    assert table.state.overrides == table.disk.kept.overrides == ()
    table.edit_state(lambda s: with_one(s, Overriding(DB.id, Rule("tcp", 1, 1))))
    tracker.replace([NETWORK], [], [WEB.id], asked=NOW)  # removed while no process followed Docker
    assert table.state.overrides == ()


def test_an_override_of_a_removed_container_waits_for_the_disk(table: Table, tracker: EndpointTracker) -> None:
    """While the disk is full, an override of a removed container is kept; the container is gone anyway, and the listing
    continues."""
    table.edit_state(lambda s: with_one(s, Overriding(WEB.id, Rule("tcp", 1, 1), deny=True)))
    table.disk.full = True
    other = endpoint("f", 3, DB)
    tracker.forget(WEB.id)
    tracker.replace([NETWORK], [other], asked=NOW)
    assert table.opens(other.addr4) == {5432}
    table.disk.full = False
    tracker.forget(WEB.id)
    assert table.state.overrides == ()


def test_after_docker_was_silent_flows_are_checked(table: Table, tracker: EndpointTracker, judged: list[Any]) -> None:
    """A flow that was opened while fewer ports were closed does not survive as established."""
    guest = endpoint("e", 2, WEB)
    tracker.replace([NETWORK], [guest], asked=NOW)
    judged.clear()
    table.cut_closed()
    assert [set(each) for each in judged] == [{guest.addr4, guest.addr6}]


def test_a_container_with_unknown_options_is_closed(table: Table, tracker: EndpointTracker) -> None:
    """An attachment's options become known later than the labels: until then the address answers ICMP only."""
    guest = endpoint("e", 2, WEB)
    tracker.put(NETWORK, [guest], listed=False, asked=NOW, sure=False)
    assert not table.knows(guest.addr4)
    tracker.put(NETWORK, [guest], listed=False, asked=NOW)
    assert table.opens(guest.addr4) == {8080}
    tracker.replace([NETWORK], [guest], asked=NOW, unsure={guest.id})
    assert not table.knows(guest.addr4)


def test_a_removed_network_leaves_nothing(table: Table, tracker: EndpointTracker) -> None:
    """Nothing of a removed network remains in the table."""
    network = dataclasses.replace(NETWORK, mode6="routed")
    tracker.replace([network], [endpoint("e", 2, WEB)], asked=NOW)
    assert Element("routed", (10, NETWORK.bridge)) in table.elements()
    tracker.network_gone(NETWORK.id)
    assert table.elements() == set()


@pytest.mark.parametrize(
    ("mode", "marked"), [("nat", False), ("isolated", False), ("routed", True), ("nat-unprotected", True), ("", False)]
)
def test_the_mark_is_set_for_routed_networks_only(
    table: Table, tracker: EndpointTracker, mode: str, marked: bool
) -> None:
    """The mark is set for networks whose container addresses are meant to be reachable, per address family."""
    tracker.replace([dataclasses.replace(NETWORK, mode6=mode)], [], asked=NOW)
    assert (Element("routed", (10, NETWORK.bridge)) in table.elements()) is marked
    assert Element("routed", (2, NETWORK.bridge)) not in table.elements()
    tracker.replace([dataclasses.replace(NETWORK, mode6=mode, internal=True)], [], asked=NOW)
    assert table.elements() == {Element("internal", (NETWORK.bridge,))}


class Churn(RuleBasedStateMachine):
    """Containers join and leave, in events and lists that may be old, and addresses change owners."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        cut_no_flows(self.patch)
        self.table = Table()
        self.tracker = EndpointTracker(self.table)
        self.tracker.replace([NETWORK], [], asked=NOW)
        self.on: dict[int, Endpoint] = {}  # host number → the container that has the address, according to Docker
        self.reported: set[str] = set()  # endpoints that Docker has reported
        self.serial = 0
        self.old: list[Endpoint] = []

    def teardown(self) -> None:
        self.patch.undo()

    @rule(host=st.integers(2, 4), who=st.sampled_from([1001, 1002, 1003]))
    def connect(self, host: int, who: int) -> None:
        if host in self.on or any(e.container.spec.allow[0].first == who for e in self.on.values() if e.container):
            return
        self.serial += 1
        guest = endpoint(f"{self.serial:x}x", host, container(f"c{who}", who))
        self.on[host] = guest
        assert guest.container
        self.tracker.returns(NETWORK.id, guest.container.id)
        self.tracker.put(NETWORK, [guest], listed=False, asked=NOW)

    @rule(host=st.integers(2, 4))
    def disconnect(self, host: int) -> None:
        if gone := self.on.pop(host, None):
            assert gone.container
            self.old.append(gone)
            self.tracker.leaves(NETWORK.id, gone.container.id)

    @rule(listed=st.booleans())
    def look(self, listed: bool) -> None:
        found = list(self.on.values()) if listed else []
        self.tracker.replace([NETWORK], found, asked=NOW)
        if not listed:  # the list lacks a container that is starting; it marks a listed one that is missing as gone
            self.tracker.put(NETWORK, self.on.values(), listed=True, asked=NOW)

    @rule()
    def old_list(self) -> None:
        gone = [
            e
            for e in self.old
            if e.container and all(e.container.id != o.container.id for o in self.on.values() if o.container)
        ]
        self.tracker.put(NETWORK, gone, listed=True, asked=NOW)

    @rule()
    def doubt(self) -> None:
        self.tracker.mark_unknown()

    @invariant()
    def no_exception_is_anothers(self) -> None:
        for host in (2, 3, 4):
            address = IPv4Address(f"172.18.0.{host}")
            mine = self.on.get(host)
            right = {rule.first for rule in mine.container.spec.allow} if mine and mine.container else set()
            assert self.table.opens(address) <= right


#: Containers by the port that each opens, and the addresses that they have: few, so that they meet often.
WHO, HOST = st.sampled_from([1001, 1002]), st.integers(2, 3)


class LateAnswers(RuleBasedStateMachine):
    """Docker's answers arrive late, and Docker 20.10 lists a container for a while after its addresses are free.

    A container is off, on (`host` is its address), or ending: its end is reported, and it is still listed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        cut_no_flows(self.patch)
        self.table = Table()
        self.tracker = EndpointTracker(self.table)
        self.tracker.replace([NETWORK], [], asked=self.tracker.now())
        self.on: dict[int, Endpoint] = {}
        self.ending: dict[int, Endpoint] = {}
        self.serial = 0
        #: The answers that are under way: of lists, which are requested one after the other, and of look-ups.
        self.list: tuple[int, list[Endpoint]] | None = None
        self.look_ups: list[tuple[int, list[Endpoint]]] = []

    def teardown(self) -> None:
        self.patch.undo()

    @rule(who=WHO, host=HOST)
    def start(self, who: int, host: int) -> None:
        if who in self.on or who in self.ending or any(e.addr4 == address(host) for e in self.on.values()):
            return
        self.serial += 1
        self.on[who] = endpoint(f"{self.serial:x}x", host, container(f"c{who}", who))
        self.tracker.returns(NETWORK.id, f"c{who}".ljust(64, "0"))
        self.ask_for(who)

    @rule(who=WHO)
    def end(self, who: int) -> None:
        if who in self.on:
            self.ending[who] = self.on.pop(who)
            self.tracker.leaves("", f"c{who}".ljust(64, "0"))

    @rule(who=WHO, removed=st.booleans())
    def ended(self, who: int, *, removed: bool) -> None:
        if self.ending.pop(who, None) and removed:
            self.tracker.forget(f"c{who}".ljust(64, "0"))

    @rule()
    def ask(self) -> None:
        self.list = self.list or (self.tracker.now(), [*self.ending.values(), *self.on.values()])

    @rule(who=WHO)
    def ask_for(self, who: int) -> None:
        if found := self.on.get(who) or self.ending.get(who):
            self.look_ups = [*self.look_ups, (self.tracker.now(), [found])][-4:]

    @rule()
    def list_arrives(self) -> None:
        if self.list:
            asked, found = self.list
            self.tracker.replace([NETWORK], found, asked=asked)
            self.list = None

    @rule(which=st.integers(0, 3))
    def look_up_arrives(self, which: int) -> None:
        if which < len(self.look_ups):
            asked, found = self.look_ups.pop(which)
            self.tracker.put(NETWORK, found, listed=True, asked=asked)

    @rule()
    def all_is_known(self) -> None:
        """In the end, Docker's answers open what runs."""
        self.list_arrives()
        self.ask()
        self.list_arrives()
        for who, guest in self.on.items():
            assert self.table.opens(guest.addr4) == {who}

    @invariant()
    def no_exception_is_anothers(self) -> None:
        for host in (2, 3):
            right = {who for who, guest in self.on.items() if guest.addr4 == address(host)}
            assert self.table.opens(address(host)) <= right


def address(host: int) -> IPv4Address:
    return IPv4Address(f"172.18.0.{host}")


TestChurn = Churn.TestCase
TestChurn.settings = inputs(80, steps=30)
TestLateAnswers = LateAnswers.TestCase
TestLateAnswers.settings = inputs(300, steps=30)
