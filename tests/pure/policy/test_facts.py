"""All that is known at one moment: whose elements are which, who must be looked at again, what a place in doubt is."""

from __future__ import annotations

import dataclasses
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from plugin.labels.parser import parse
from plugin.model import (
    AddressPolicy,
    BridgeNetwork,
    Container,
    Defaults,
    Endpoint,
    Network,
    Override,
    PolicySpec,
    Problem,
    Published,
    Rule,
    TrackedEndpoint,
)
from plugin.nftables.sets import Element
from plugin.policy.decide import closed_together
from plugin.policy.facts import Inventory, Noted, Place, subnets
from plugin.policy.saved import State

OURS = Network("o" * 64, "fw-o", IPv4Interface("10.1.0.1/24"), IPv6Interface("2001:db8:1::1/64"))
APP = BridgeNetwork("a" * 64, "app", "br-app", (IPv4Network("172.18.0.0/16"), IPv6Network("2001:db8:2::/64")))
APART = dataclasses.replace(APP, id="p" * 64, name="apart", bridge="br-p", flat=False)
PORT, SCTP = Published("tcp", IPv4Address("0.0.0.0"), 15432, 5432), Published("sctp", IPv4Address("0.0.0.0"), 9, 9)


def spec(**pairs: str) -> PolicySpec:
    parsed = parse({f"fw.{key}": value for key, value in pairs.items()})
    assert not parsed.problems
    return parsed.spec


def who(name: str, **pairs: str) -> Container:
    return Container(name.ljust(64, "0"), name, spec(**pairs), project="shop", service=name)


WEB = Endpoint(
    "w" * 64, OURS.id, IPv4Address("10.1.0.2"), IPv6Address("2001:db8:1::2"), joined=True, container=who("web")
)
DB = Endpoint(
    "d" * 64,
    APP.id,
    IPv4Address("172.18.0.2"),
    joined=True,
    published=(PORT,),
    container=who("db", allow="5432 from service:web 203.0.113.0/24"),
)


def guest(
    endpoint: Endpoint, network: BridgeNetwork = APP, *, sure: bool = True, closed: tuple[Published, ...] = ()
) -> Noted:
    return Noted(place=Place(network, TrackedEndpoint(endpoint, True, 0, sure), frozenset(closed)))


def made(**noted: Noted) -> Inventory:
    inventory = Inventory(
        Defaults(),
        State({OURS.id: OURS}, {WEB.id: WEB}),
        {"network app": Noted(place=Place(APP)), "endpoint db": guest(DB, closed=(PORT,)), **noted},
    )
    inventory.reindex(inventory.owners())
    return inventory


def test_a_container_sends_from_all_its_addresses_by_each_port() -> None:
    """It answers by the link of its default route, whichever address it was asked on; when it leaves a network that
    address goes. Nobody else sends from it."""
    bound = dataclasses.replace(WEB, mac="02:42:0a:01:00:02")
    other = dataclasses.replace(bound, id="x" * 64, addr4=IPv4Address("10.1.0.3"), addr6=None, container=who("x"))
    inventory = made()
    inventory.state = dataclasses.replace(inventory.state, endpoints={bound.id: bound, other.id: other})
    inventory.reindex([bound.id, other.id])

    def sources(owner: str) -> set[str]:
        found = {str(e.key[2]) for e in inventory.elements(owner) if e.set.startswith("bound")}
        return found - {"fe80::42:aff:fe01:2"}

    assert sources(bound.id) == {"10.1.0.2", "2001:db8:1::2"}
    second = dataclasses.replace(DB, id="s" * 64, addr4=IPv4Address("172.18.0.9"), container=WEB.container)
    inventory.noted["endpoint second"] = guest(second)
    assert {*inventory.reindex(["endpoint second"])} == {"endpoint second", bound.id, "endpoint db"}
    assert sources(bound.id) == {"10.1.0.2", "2001:db8:1::2", "172.18.0.9"}
    assert sources(other.id) == {"10.1.0.3"}
    del inventory.noted["endpoint second"]
    inventory.reindex(["endpoint second"])
    assert sources(bound.id) == {"10.1.0.2", "2001:db8:1::2"}


# --- who must be looked at again ----------------------------------------------------------------------------------


def test_whoever_comes_or_goes_is_looked_at_with_those_whose_rules_speak_of_it() -> None:
    """Nobody else needs to be."""
    inventory = made()
    assert inventory.reindex([WEB.id]) == [WEB.id]  # nothing has changed
    inventory.state = dataclasses.replace(inventory.state, endpoints={})
    assert inventory.reindex([WEB.id]) == [WEB.id, "endpoint db"]
    inventory.state = dataclasses.replace(inventory.state, endpoints={WEB.id: WEB})
    assert inventory.reindex([WEB.id, WEB.id]) == [WEB.id, "endpoint db"]
    inventory.noted["endpoint db"] = guest(dataclasses.replace(DB, container=who("db")))
    inventory.reindex(["endpoint db"])
    inventory.state = dataclasses.replace(inventory.state, endpoints={})
    assert inventory.reindex([WEB.id]) == [WEB.id]


def test_what_fwctl_says_of_peers_is_looked_up_too() -> None:
    """`fwctl allow web "22 from service:db"` follows the service like a label."""
    inventory = made()
    assert WEB.container
    (rule,) = spec(allow="22 from service:db").allow
    inventory.overrides = {WEB.container.id: Override((rule,))}
    inventory.reindex([WEB.id])
    assert Element("from4", (WEB.addr4, 6, 22, 32, DB.addr4)) in inventory.elements(WEB.id)
    del inventory.noted["endpoint db"]
    assert inventory.reindex(["endpoint db"]) == ["endpoint db", WEB.id]
    assert not {e for e in inventory.elements(WEB.id) if e.set.startswith("from")}


def test_who_is_in_doubt_is_nobodys_peer() -> None:
    """While nobody tells who has an address now no rule lets it in, on whatever network it asks."""
    inventory = made()
    inventory.state = dataclasses.replace(
        inventory.state, endpoints={WEB.id: dataclasses.replace(WEB, spec=spec(allow="22 from service:db"))}
    )
    inventory.reindex(inventory.owners())
    assert {e.key[4] for e in inventory.elements(WEB.id) if e.set == "from4"} == {DB.addr4}
    inventory.noted["endpoint db"] = guest(DB, sure=False)
    assert WEB.id in inventory.reindex(["endpoint db"])
    assert not {e for e in inventory.elements(WEB.id) if e.set == "from4"}


# --- elements -----------------------------------------------------------------------------------------------------


def test_an_owner_that_is_not_there_has_nothing() -> None:
    """Nor has an endpoint whose network is not known."""
    inventory = made()
    assert inventory.elements("nobody") == frozenset()
    assert inventory.answers("nobody") == inventory.answers("network app") == {}
    assert inventory.decided("network app") is None
    inventory.state = dataclasses.replace(inventory.state, networks={})
    assert inventory.elements(WEB.id) == frozenset()
    assert inventory.answers(WEB.id) == {}


def test_the_host_remembers_what_was_switched_on() -> None:
    """Families whose forwarding docker-fw switched on are kept from being a way for others."""
    inventory = Inventory(Defaults(), State(switched=frozenset({2, 10})))
    assert inventory.elements("host") == {Element("no_transit", (2,)), Element("no_transit", (10,))}


def test_as_it_would_be() -> None:
    """What elements would be in another state is told without anything being changed."""
    inventory = made()
    before = inventory.elements(WEB.id)
    assert inventory.elements(WEB.id, State({OURS.id: OURS}, {})) == frozenset()
    assert inventory.elements(OURS.id, State()) == frozenset()
    assert inventory.elements(WEB.id) == before


def test_what_is_noted_stands_beside_what_follows_from_it() -> None:
    """Elements that somebody notes stand as they are."""
    element = Element("dockers", ("br-app",))
    inventory = made(links=Noted(frozenset({element})))
    assert inventory.elements("links") == {element}


def test_a_network_confines_from_its_first_moment() -> None:
    """Where its own options, a setting, or a mistake about egress do; whoever comes is not free until it is known."""
    for network, settings in (
        (dataclasses.replace(APP, spec=spec(egress="443")), PolicySpec()),
        (dataclasses.replace(APP, problems=(Problem("network option fw.egress", "x", "", False, True),)), PolicySpec()),
        (APP, spec(egress="none")),
    ):
        inventory = Inventory(Defaults(settings), noted={"network app": Noted(place=Place(network))})
        assert Element("confined", ("br-app",)) in inventory.elements("network app")
        assert inventory.confines(network)
    assert not made().confines(APP)
    free = dataclasses.replace(APP, spec=spec(egress="all"))
    assert not Inventory(Defaults(spec(egress="none"))).confines(free)


def test_a_place_in_doubt_is_closed() -> None:
    """Its addresses have nothing that opens, its published ports are closed, and what it may begin stays nothing."""
    egress_restricted = dataclasses.replace(DB, container=who("db", egress="443"))
    inventory = made(**{"endpoint x": guest(egress_restricted, sure=False, closed=(PORT,))})
    sets = {element.set for element in inventory.elements("endpoint x")}
    assert sets == {"confined", "dropped4", "refused4", "proxied", "neighbour"}
    (answer,) = inventory.answers("endpoint x").values()
    assert (answer.policy.accepts, answer.policy.egress, answer.policy.known) == ((), (), False)


# --- answers ------------------------------------------------------------------------------------------------------


def test_what_an_address_answers_is_known_with_its_subnet() -> None:
    """For each address by itself, with names looked up; for none that is outside of the network's subnets."""
    inventory = made()
    found = inventory.answers("endpoint db")
    (answer,) = found.values()
    assert found.keys() == {DB.addr4}
    assert answer == AddressPolicy(APP.subnets[0], answer.policy)
    assert str(answer.policy.accepts[-1]) == "5432/tcp from 10.1.0.2 2001:db8:1::2 203.0.113.0/24"
    stray = dataclasses.replace(DB, addr4=IPv4Address("192.0.2.1"))
    assert made(**{"endpoint x": guest(stray)}).answers("endpoint x") == {}
    assert {a: what.subnet for a, what in inventory.answers(WEB.id).items()} == {
        WEB.addr4: IPv4Network("10.1.0.0/24"), WEB.addr6: IPv6Network("2001:db8:1::/64")
    }  # fmt: skip
    assert subnets(OURS) == (IPv4Network("10.1.0.0/24"), IPv6Network("2001:db8:1::/64"))


def test_who_may_go_on_using_a_port_of_docker_proxys() -> None:
    """There a flow is the host's: whom a rule lets in, and neighbours where they talk freely, keep theirs."""
    inventory = made(
        **{
            "endpoint doubt": guest(DB, sure=False, closed=(PORT,)),
            "endpoint apart": guest(DB, APART, closed=(PORT, SCTP)),
        }
    )
    allowed, neighbour, other = (IPv4Address(a) for a in ("203.0.113.9", "172.18.0.99", "198.51.100.1"))
    ports, stays = inventory.through_proxy(["endpoint db"])
    assert ports == [PORT]
    assert [stays(PORT, each) for each in (allowed, neighbour, WEB.addr4, other)] == [True, True, True, False]  # type: ignore[arg-type]
    _, stays = inventory.through_proxy(["endpoint doubt"])
    assert [stays(PORT, each) for each in (allowed, neighbour, other)] == [False, True, False]
    ports, stays = inventory.through_proxy(["endpoint apart"])
    assert set(ports) == {PORT, SCTP}
    assert [stays(PORT, each) for each in (allowed, neighbour, other)] == [True, False, False]
    for owner in ("network app", WEB.id, "nobody"):
        assert inventory.through_proxy([owner])[0] == []


# --- whose it is --------------------------------------------------------------------------------------------------


def test_a_container_is_found_at_each_of_its_places() -> None:
    """Its endpoints on networks of docker-fw's own and on Docker's."""
    inventory = made(**{"endpoint x": guest(dataclasses.replace(WEB, id="x", network_id=APP.id, addr4=None))})
    assert WEB.container
    assert inventory.of_container(WEB.container.id) == ["endpoint x", WEB.id]
    assert inventory.of_container("") == inventory.of_container("x") == []
    assert inventory.networks() == [OURS, APP]


def test_an_override_is_a_containers_by_its_id() -> None:
    """Another container of the same name is as its labels say; who is not known has none."""
    assert WEB.container
    inventory = made()
    inventory.overrides = {WEB.container.id: Override((Rule("tcp", 1, 1),))}
    assert inventory.override(WEB.container).allow
    assert not inventory.override(dataclasses.replace(WEB.container, id="other")).allow
    assert not inventory.override(None).allow


def test_a_copy_stays_as_it_was() -> None:
    """What is read at leisure does not change while others go on."""
    inventory = made()
    copy = inventory.copy()
    before = {owner: copy.elements(owner) for owner in copy.owners()}
    inventory.state = State()
    inventory.noted.clear()
    inventory.reindex([WEB.id, "endpoint db"])
    assert {owner: copy.elements(owner) for owner in copy.owners()} == before


def test_a_published_port_is_closed_if_it_is_so_at_each_place() -> None:
    """Docker publishes it for the container: one place where it is open is enough, one in doubt closes it."""
    one, two = frozenset({PORT, SCTP}), frozenset({PORT})
    assert closed_together({"c": [one, two], "d": [one]}, ()) == {"c": two, "d": one}
    assert closed_together({"c": [one, two]}, {"c"}) == {"c": one}
    assert closed_together({}, {"c"}) == {}
