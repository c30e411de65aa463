"""The facts: which owner has which elements, and which owners a change concerns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from plugin.model import (
    AddressPolicy,
    BridgeNetwork,
    Container,
    Defaults,
    Endpoint,
    Network,
    Override,
    Overriding,
    PolicySpec,
    Problem,
    Published,
    Rule,
    TrackedEndpoint,
)
from plugin.nftables.compile import ElementCompiler
from plugin.nftables.sets import Element
from plugin.policy.decide import closed_together
from plugin.policy.facts import EGRESS, LAST_RUN, SUSPECTS, ElementOwner, Facts, Kind
from plugin.policy.frozen import FrozenDict
from plugin.policy.overrides import with_one
from plugin.policy.saved import SavedState
from plugin.policy.view import PolicyView, evaluated
from tests.specs import spec_of as spec

OURS = Network("o" * 64, "fw-o", IPv4Interface("10.1.0.1/24"), IPv6Interface("2001:db8:1::1/64"))
APP = BridgeNetwork("a" * 64, "app", "br-app", (IPv4Network("172.18.0.0/16"), IPv6Network("2001:db8:2::/64")))
ISOLATED = dataclasses.replace(APP, id="p" * 64, name="apart", bridge="br-p", flat=False)
PORT, SCTP = Published("tcp", IPv4Address("0.0.0.0"), 15432, 5432), Published("sctp", IPv4Address("0.0.0.0"), 9, 9)


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


def guest(endpoint: Endpoint, *, sure: bool = True) -> TrackedEndpoint:
    return TrackedEndpoint(endpoint, True, sure)


def tracked(endpoint: Endpoint) -> ElementOwner:
    return ElementOwner(Kind.TRACKED, endpoint.id)


OF_WEB, OF_DB = ElementOwner(Kind.ENDPOINT, WEB.id), tracked(DB)
FACTS = Facts(
    SavedState({OURS.id: OURS}, {WEB.id: WEB}),
    networks=FrozenDict({each.id: each for each in (APP, ISOLATED)}),
    guests=FrozenDict({DB.id: guest(DB)}),
    listed=True,
)


def made(*guests: TrackedEndpoint) -> PolicyView:
    return evaluated(Defaults(), FACTS.with_guests({each.endpoint.id: each for each in guests}))


def edited(known: PolicyView, edit: Callable[[Facts], Facts]) -> list[ElementOwner]:
    """Make the edit; return the owners to recompute, starting with those that changed themselves."""
    after = edit(known.facts)
    owners = known.changed(known.facts, after)
    known.take(after, owners)
    return ElementCompiler(known).reindex(owners)


def elements(known: PolicyView, owner: ElementOwner) -> frozenset[Element]:
    return ElementCompiler(known).elements(owner)


def endpoints(*there: Endpoint) -> Callable[[Facts], Facts]:
    return lambda facts: facts.keeping(
        lambda state: dataclasses.replace(state, endpoints=FrozenDict({each.id: each for each in there}))
    )


def guests(*more: TrackedEndpoint, less: tuple[str, ...] = ()) -> Callable[[Facts], Facts]:
    return lambda facts: facts.with_guests({each.endpoint.id: each for each in more}, less)


def test_a_container_sends_from_all_its_addresses_by_each_port() -> None:
    """A container answers through the link of its default route, whichever address was addressed; when it leaves a
    network, that address is removed. No other container may send from its addresses."""
    bound = dataclasses.replace(WEB, mac="02:42:0a:01:00:02")
    other = dataclasses.replace(bound, id="x" * 64, addr4=IPv4Address("10.1.0.3"), addr6=None, container=who("x"))
    inventory = made()
    edited(inventory, endpoints(bound, other))

    def sources(endpoint: Endpoint) -> set[str]:
        owner = ElementOwner(Kind.ENDPOINT, endpoint.id)
        found = {str(e.key[2]) for e in elements(inventory, owner) if e.set.startswith("bound")}
        return found - {"fe80::42:aff:fe01:2"}

    assert sources(bound) == {"10.1.0.2", "2001:db8:1::2"}
    second = dataclasses.replace(DB, id="s" * 64, addr4=IPv4Address("172.18.0.9"), container=WEB.container)
    assert {*edited(inventory, guests(guest(second)))} == {tracked(second), OF_WEB, OF_DB}
    assert sources(bound) == {"10.1.0.2", "2001:db8:1::2", "172.18.0.9"}
    assert sources(other) == {"10.1.0.3"}
    edited(inventory, guests(less=(second.id,)))
    assert sources(bound) == {"10.1.0.2", "2001:db8:1::2"}


def test_a_container_sends_from_no_address_that_it_has_left() -> None:
    """Also if both networks are docker-fw's: the other endpoint is computed again."""
    one = dataclasses.replace(WEB, mac="02:42:0a:01:00:02")
    other = dataclasses.replace(one, id="x" * 64, addr4=IPv4Address("10.1.0.3"), addr6=None)
    inventory = made()
    edited(inventory, endpoints(one, other))
    assert {str(e.key[2]) for e in elements(inventory, OF_WEB) if e.set == "bound4"} == {"10.1.0.2", "10.1.0.3"}
    assert OF_WEB in edited(inventory, endpoints(one))
    assert {str(e.key[2]) for e in elements(inventory, OF_WEB) if e.set == "bound4"} == {"10.1.0.2"}


# --- which owners are recomputed ----------------------------------------------------------------------------------


def test_a_changed_container_recomputes_the_rules_that_name_it() -> None:
    """A container that is added or removed is recomputed with the owners whose rules name it, and no other owner is."""
    inventory = made()
    assert edited(inventory, endpoints(WEB)) == []  # nothing has changed
    assert edited(inventory, endpoints()) == [OF_WEB, OF_DB]
    assert edited(inventory, endpoints(WEB)) == [OF_WEB, OF_DB]
    edited(inventory, guests(guest(dataclasses.replace(DB, container=who("db")))))
    assert edited(inventory, endpoints()) == [OF_WEB]


def test_an_override_with_a_named_peer_follows_it() -> None:
    """`fwctl allow web "22 from service:db"` follows the service like a label."""
    inventory = made()
    assert WEB.container
    (rule,) = spec(allow="22 from service:db").allow
    word = Overriding(WEB.container.id, rule)
    edited(inventory, lambda facts: facts.keeping(lambda state: with_one(state, word)))
    assert Element("from4", (WEB.addr4, 6, 22, 32, DB.addr4)) in elements(inventory, OF_WEB)
    assert edited(inventory, guests(less=(DB.id,))) == [OF_DB, OF_WEB]
    assert not {e for e in elements(inventory, OF_WEB) if e.set.startswith("from")}


def test_an_unknown_container_is_no_peer() -> None:
    """No rule accepts an address whose container is unknown, on any network."""
    inventory = made()
    edited(inventory, endpoints(dataclasses.replace(WEB, spec=spec(allow="22 from service:db"))))
    assert {e.key[4] for e in elements(inventory, OF_WEB) if e.set == "from4"} == {DB.addr4}
    assert OF_WEB in edited(inventory, guests(guest(DB, sure=False)))
    assert not {e for e in elements(inventory, OF_WEB) if e.set == "from4"}


def test_a_changed_network_recomputes_its_endpoints() -> None:
    """A change of a network of either kind recomputes its endpoints and no other owners. A list with unchanged content
    changes nothing."""
    inventory = made(guest(dataclasses.replace(DB, id="p" * 64, network_id=ISOLATED.id, container=who("other"))))
    opens = dataclasses.replace(APP, spec=spec(allow="9100"))
    assert {*edited(inventory, lambda facts: facts.with_networks({APP.id: opens}))} == {
        ElementOwner(Kind.DOCKER_NETWORK, APP.id),
        OF_DB,
    }
    assert edited(inventory, lambda facts: facts.with_networks({APP.id: dataclasses.replace(opens)})) == []
    inner = dataclasses.replace(OURS, internal=True)
    assert {*edited(inventory, lambda facts: facts.keeping(lambda state: state.with_network(inner)))} == {
        ElementOwner(Kind.NETWORK, OURS.id),
        OF_WEB,
    }


def test_a_changed_container_recomputes_all_its_endpoints() -> None:
    """A published port is closed or open for the container as a whole: one endpoint that is unknown closes it at the
    others."""
    second = dataclasses.replace(DB, id="s" * 64, network_id=ISOLATED.id)
    inventory = made(
        guest(dataclasses.replace(DB, container=who("db", allow="5432"))),
        guest(dataclasses.replace(second, container=who("db", allow="5432"))),
    )
    served = Element("host_open", (2, 6, 15432))
    assert served in elements(inventory, OF_DB)
    unknown = guest(dataclasses.replace(second, container=who("db", allow="5432")), sure=False)
    assert {*edited(inventory, guests(unknown))} == {tracked(second), OF_DB}
    assert served not in elements(inventory, OF_DB)
    assert Element("host_closed", (2, 6, 15432)) in elements(inventory, OF_DB)


def test_openings_for_a_limited_time_are_closed_while_docker_fw_stops() -> None:
    """No process would check their time, so exactly their containers are recomputed; they open again at the start."""
    inventory = made()
    assert WEB.container
    assert DB.container
    words = [
        Overriding(WEB.container.id, Rule("tcp", 9000, 9000), until=9e9),
        Overriding(DB.container.id, Rule("tcp", 1, 1)),
    ]
    for word in words:
        edited(inventory, lambda facts, word=word: facts.keeping(lambda state: with_one(state, word)))  # type: ignore[misc]
    opened = Element("allow4", (WEB.addr4, 6, 9000))
    for stopping in (True, False):
        assert (opened in elements(inventory, OF_WEB)) is stopping
        changed = edited(inventory, lambda facts, stopping=stopping: dataclasses.replace(facts, suspended=stopping))  # type: ignore[misc]
        assert changed == [OF_WEB]
    assert opened in elements(inventory, OF_WEB)


def test_a_removed_network_is_forgotten() -> None:
    """Docker's report that a network is gone removes it; one that a newer list contains stays."""
    assert FACTS.with_networks({}, [APP.id]).networks == {ISOLATED.id: ISOLATED}
    assert FACTS.with_networks({APP.id: APP}, [APP.id, ISOLATED.id]).networks == {APP.id: APP}


def test_a_rule_that_names_a_network_follows_dockers_list() -> None:
    """If the project gets a network of its own by that name, the rule means it at once, and no longer the other one."""
    inventory = made()
    edited(inventory, endpoints(dataclasses.replace(WEB, spec=spec(allow="22 from network:front"))))
    assert edited(inventory, lambda facts: dataclasses.replace(facts, names=frozenset({"front"}))) == [OF_WEB]
    listed = dataclasses.replace(inventory.facts, names=frozenset({"front", "shop_front"}))
    assert edited(inventory, lambda _: listed) == [OF_WEB]
    assert edited(inventory, lambda _: dataclasses.replace(listed)) == []


def test_egress_to_a_name_follows_it() -> None:
    """A container that leaves is no destination any more for those whose `fw.egress` names it."""
    inventory = made()
    edited(inventory, endpoints(dataclasses.replace(WEB, spec=spec(egress="5432 to service:db"))))
    assert {e.key[4] for e in elements(inventory, OF_WEB) if e.set == "egress_to4"} == {DB.addr4}
    assert OF_WEB in edited(inventory, guests(less=(DB.id,)))
    assert not {e for e in elements(inventory, OF_WEB) if e.set == "egress_to4"}


def test_a_decision_is_used_again_for_the_same_facts_only() -> None:
    """While one change is made, another network, endpoint or override makes another policy."""
    inventory = made()
    assert WEB.container
    with inventory.deciding():
        assert inventory.decide(OURS, WEB).accepts
        assert not inventory.decide(dataclasses.replace(OURS, internal=True), WEB).accepts
        assert inventory.decide(OURS, WEB).accepts
        assert not inventory.decide(OURS, dataclasses.replace(WEB, joined=False)).accepts
        assert inventory.decide(OURS, WEB).accepts
        inventory.overrides = {WEB.container.id: Override(deny=(Rule("tcp", 1, 65535),))}
        assert not inventory.decide(OURS, WEB).accepts


# --- elements -----------------------------------------------------------------------------------------------------


MISSING, OF_APP = ElementOwner(Kind.ENDPOINT, "missing"), ElementOwner(Kind.DOCKER_NETWORK, APP.id)


def test_a_missing_owner_has_no_elements() -> None:
    """An endpoint whose network is unknown has no elements either."""
    inventory = made()
    assert elements(inventory, MISSING) == frozenset()
    assert inventory.answers(MISSING) == inventory.answers(OF_APP) == {}
    assert inventory.decided(OF_APP) is None
    edited(inventory, lambda facts: facts.keeping(lambda state: dataclasses.replace(state, networks=FrozenDict())))
    assert elements(inventory, OF_WEB) == frozenset()
    assert inventory.answers(OF_WEB) == {}


# --- sticky facts -------------------------------------------------------------------------------------------------


def test_a_network_restricts_egress_from_the_start() -> None:
    """A network is egress-restricted if its options, a setting or a mistake about egress say so; a new container is
    restricted until it is known."""
    for network, settings in (
        (dataclasses.replace(APP, spec=spec(egress="443")), PolicySpec()),
        (dataclasses.replace(APP, problems=(Problem("network option fw.egress", "x", "", False, True),)), PolicySpec()),
        (APP, spec(egress="none")),
    ):
        inventory = evaluated(Defaults(settings), Facts(networks=FrozenDict({APP.id: network})))
        assert elements(inventory, EGRESS) == {Element("egress_restricted", ("br-app",))}
        assert inventory.state.egress_restricted == {"br-app"}
        assert inventory.confines(network)
    assert not made().confines(APP)
    free = dataclasses.replace(APP, spec=spec(egress="all"))
    assert not evaluated(
        Defaults(spec(egress="none")), Facts(networks=FrozenDict({APP.id: free}))
    ).state.egress_restricted


def test_a_network_stays_egress_restricted_once_a_container_was() -> None:
    """The restriction remains while the container is unknown, and after it has left; a container that has not joined
    does not restrict. It remains as long as such a container is there."""
    assert made().state.egress_restricted == frozenset()
    shy = dataclasses.replace(DB, container=who("db", egress="443"))
    for sure in (True, False):
        assert made(guest(shy, sure=sure)).state.egress_restricted == {"br-app"}
    ours = dataclasses.replace(WEB, spec=spec(egress="none"))
    for joined in (True, False):
        facts = endpoints(dataclasses.replace(ours, joined=joined))(FACTS)
        assert evaluated(Defaults(), facts).state.egress_restricted == ({"fw-o"} if joined else set())
    inventory = made(guest(shy))
    before = inventory.facts
    after = before.keeping(lambda state: state.with_bridges(()))
    inventory.take(after, inventory.changed(before, after))
    assert inventory.settled(before, [EGRESS]).saved.egress_restricted == {"br-app"}
    gone = after.with_guests({}, [DB.id])
    inventory.take(gone, inventory.changed(after, gone))
    assert inventory.settled(before, [EGRESS, OF_DB]).saved.egress_restricted == frozenset()


def test_closed_ports_are_kept_until_the_container_is_removed() -> None:
    """The closed ports of a container that Docker lists are kept: one that has just been connected has no ports to
    report yet."""
    inventory = made()
    assert DB.container
    assert inventory.state.proxied == {DB.container.id: (PORT,)}
    starting = made(TrackedEndpoint(dataclasses.replace(DB, container=who("other")), False))
    assert starting.state.proxied == {}
    before = inventory.facts
    after = before.with_guests({}, [DB.id])
    inventory.take(after, inventory.changed(before, after))
    assert inventory.settled(before, [OF_DB]) is after


def test_closed_ports_stay_recorded_while_nothing_changes() -> None:
    """They are closed at the next start until Docker has listed all containers."""
    inventory = made()
    assert DB.container
    assert inventory.settled(inventory.facts, [OF_DB]).saved.proxied == {DB.container.id: (PORT,)}
    for listed in (True, False):
        edited(inventory, lambda facts, listed=listed: dataclasses.replace(facts, listed=listed))  # type: ignore[misc]
        assert [*inventory.closed_on_host(LAST_RUN)] == ([] if listed else [PORT])


def test_closed_ports_are_recorded_if_more_changes_than_the_doubt() -> None:
    """A port that is closed by the doubt alone is not, for the next start would cut its connections."""
    free = dataclasses.replace(DB, container=who("db", allow="5432, 9/sctp"))
    second = dataclasses.replace(free, id="s" * 64, network_id=ISOLATED.id)
    inventory = made(guest(free), guest(second))
    assert free.container
    before = inventory.facts
    edited(inventory, guests(guest(second, sure=False)))
    assert inventory.settled(before, [tracked(second)]).saved.proxied == {}
    before = inventory.facts
    edited(inventory, guests(guest(dataclasses.replace(free, published=(PORT, SCTP)))))
    assert inventory.settled(before, [OF_DB]).saved.proxied == {free.container.id: (PORT,)}


def test_a_removed_network_takes_its_own_endpoints_along() -> None:
    """Those of other networks stay."""
    state = FACTS.saved.with_network(dataclasses.replace(OURS, id="x" * 64))
    assert state.without_network("x" * 64).endpoints == {WEB.id: WEB}
    assert state.without_network(OURS.id, [WEB.id]).endpoints == {}


def test_an_endpoint_without_published_ports_opens_none() -> None:
    """Docker lists a container's ports at one of its endpoints: the others say nothing about them.

    A port of a container without an ID is closed.
    """
    second = dataclasses.replace(DB, id="s" * 64, network_id=ISOLATED.id, published=())
    inventory = made(guest(DB), guest(second))
    assert DB.container
    assert inventory.closed(DB.container.id) == {PORT}
    assert [*inventory.closed_at(dataclasses.replace(DB, container=Container("", "db")))] == [PORT]


def test_an_endpoint_of_an_unknown_container_is_closed() -> None:
    """The addresses of such an endpoint have no opening elements, its published ports are closed, and its egress stays
    empty."""
    inventory = made(guest(dataclasses.replace(DB, container=who("db", egress="443")), sure=False))
    sets = {element.set for element in elements(inventory, OF_DB)}
    closed = {"host_closed", "host_neighbours", "served_ports"}
    assert sets == {"ingress_drops4", "egress_drops4", *closed, "egress_restricted"}
    assert elements(inventory, EGRESS) == {Element("egress_restricted", ("br-app",))}
    (answer,) = inventory.answers(OF_DB).values()
    assert (answer.policy.accepts, answer.policy.egress, answer.policy.known) == ((), (), False)


# --- address policies ---------------------------------------------------------------------------------------------


def test_each_address_has_its_policy_and_subnet() -> None:
    """Each address has its own policy, with names resolved; an address outside the network's subnets has no
    neighbours."""
    inventory = made()
    found = inventory.answers(OF_DB)
    (answer,) = found.values()
    assert found.keys() == {DB.addr4}
    assert answer == AddressPolicy(APP.subnets[0], answer.policy)
    assert str(answer.policy.accepts[-1]) == "5432/tcp from 10.1.0.2 2001:db8:1::2 203.0.113.0/24"
    stray = dataclasses.replace(DB, addr4=IPv4Address("192.0.2.1"))
    (alone,) = made(guest(stray)).answers(OF_DB).values()
    assert alone == AddressPolicy(IPv4Network("192.0.2.1/32"), alone.policy)
    assert alone.policy.accepts
    assert {a: what.subnet for a, what in inventory.answers(OF_WEB).items()} == {
        WEB.addr4: IPv4Network("10.1.0.0/24"),
        WEB.addr6: IPv6Network("2001:db8:1::/64"),
    }
    assert OURS.subnets == (IPv4Network("10.1.0.0/24"), IPv6Network("2001:db8:1::/64"))


def test_flows_to_docker_proxys_port_that_may_continue() -> None:
    """A flow to docker-proxy's port continues if a rule accepts its source, or if it comes from a neighbour on a
    network where containers communicate freely."""
    isolated = dataclasses.replace(DB, network_id=ISOLATED.id, published=(PORT, SCTP))
    allowed, neighbour, other = (IPv4Address(a) for a in ("203.0.113.9", "172.18.0.99", "198.51.100.1"))
    ports, stays = made().through_proxy([OF_DB])
    assert ports == [PORT]
    assert [stays(PORT, each) for each in (allowed, neighbour, WEB.addr4, other)] == [True, True, True, False]  # type: ignore[arg-type]
    _, stays = made(guest(DB, sure=False)).through_proxy([OF_DB])
    assert [stays(PORT, each) for each in (allowed, neighbour, other)] == [False, True, False]
    ports, stays = made(guest(isolated)).through_proxy([OF_DB])
    assert set(ports) == {PORT, SCTP}
    assert [stays(PORT, each) for each in (allowed, neighbour, other)] == [True, False, False]
    for owner in (OF_APP, OF_WEB, MISSING):
        assert made().through_proxy([owner])[0] == []
    suspected = made()
    suspected.facts = dataclasses.replace(suspected.facts, suspects=frozenset({PORT}))
    ports, stays = suspected.through_proxy([SUSPECTS])
    assert ports == [PORT]
    assert not stays(PORT, allowed), "it is unknown whose port it is"


def test_no_flow_stays_at_a_port_that_is_closed_because_one_endpoint_is_in_doubt() -> None:
    """A container's rule for all sources opens no port that the doubt about its other endpoint closes."""
    free = dataclasses.replace(DB, container=who("db", allow="5432"))
    second = dataclasses.replace(free, id="e" * 64, network_id=ISOLATED.id, addr4=IPv4Address("172.19.0.2"))
    ports, stays = made(guest(free), guest(second, sure=False)).through_proxy([tracked(free), tracked(second)])
    assert ports == [PORT]
    assert not stays(PORT, IPv4Address("198.51.100.1"))


# --- ownership ----------------------------------------------------------------------------------------------------


def test_a_containers_endpoints_are_found() -> None:
    """A container's endpoints on docker-fw networks and on Docker networks are found, from the start and after
    changes."""
    second = dataclasses.replace(WEB, id="x", network_id=APP.id, addr4=None)
    inventory = made(guest(second))
    assert WEB.container
    assert {*inventory.of_container(WEB.container.id)} == {tracked(second), OF_WEB}
    assert inventory.of_container("") == inventory.of_container("x") == []
    assert inventory.networks() == [OURS, APP, ISOLATED]
    edited(inventory, guests(less=("x",)))
    assert inventory.of_container(WEB.container.id) == [OF_WEB]
    edited(inventory, endpoints())
    assert inventory.of_container(WEB.container.id) == []


def test_an_override_belongs_to_a_container_id() -> None:
    """Another container with the same name has only its labels; an unknown container has no override."""
    assert WEB.container
    inventory = made()
    inventory.overrides = {WEB.container.id: Override((Rule("tcp", 1, 1),))}
    assert inventory.override(WEB.container).allow
    assert not inventory.override(dataclasses.replace(WEB.container, id="other")).allow
    assert not inventory.override(None).allow


def test_a_copy_does_not_change() -> None:
    """A copy does not change while the original does."""
    inventory = made()
    copy = inventory.copy()
    before = {owner: elements(copy, owner) for owner in copy.owners()}
    edited(inventory, endpoints())
    edited(inventory, guests(less=(DB.id,)))
    assert {owner: elements(copy, owner) for owner in copy.owners()} == before


def test_a_published_port_is_closed_if_every_endpoint_closes_it() -> None:
    """Docker publishes a port for the whole container: one endpoint that opens it is enough, and one that is unknown
    closes it."""
    one, two = frozenset({PORT, SCTP}), frozenset({PORT})
    assert closed_together([one, two], doubted=False) == two
    assert closed_together([one, two], doubted=True) == one
    assert closed_together([], doubted=True) == closed_together([], doubted=False) == frozenset()
