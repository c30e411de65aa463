"""Named peers follow their containers, and a name without a container matches nothing."""

from __future__ import annotations

import dataclasses
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from plugin.model import Address, Container, Endpoint, Peer, Policy, Rule
from plugin.policy.peers import Key, PeerIndex, Who, names, who
from tests.inputs import inputs

A, B, C = (IPv4Address(f"172.18.0.{n}") for n in (2, 3, 4))
A6 = IPv6Address("2001:db8:1::2")
WEB = Container("c" * 64, "shop-web-1", project="shop", service="web", network="shop_front")
BLOG = dataclasses.replace(WEB, project="blog")
BOTH = ["172.18.0.2", "2001:db8:1::2"]


def named(
    addresses: tuple[Address, ...], name: str, project: str, service: str, network: str = "", id: str = ""
) -> Who:
    """Return a container with these addresses and names."""
    return Who(addresses, names(Container(id, name, network=network, project=project, service=service)))


API = named((A, A6), "shop-api-1", "shop", "api", "shop_front")


def for_peers(*peers: Peer) -> Rule:
    return Rule("tcp", 22, 22, peers)


def resolved(directory: PeerIndex, *peers: Peer, asker: Container | None = WEB) -> set[str]:
    """Return the addresses that a rule for these peers accepts."""
    policy = directory.resolved(Policy(accepts=(for_peers(*peers),)), asker)
    return {peer.value for rule in policy.accepts for peer in rule.peers}


@pytest.fixture
def directory() -> PeerIndex:
    made = PeerIndex()
    made.networks = frozenset({"shop_front", "front", "bridge"})
    made.put("a", API)
    return made


# --- which names a container has ----------------------------------------------------------------------------------


def test_an_endpoint_is_known_by_its_names() -> None:
    """An endpoint is known by its container's name, compose's project and service, and its network's name."""
    endpoint = Endpoint("e", "n", A, A6, joined=True, container=WEB)
    assert who(endpoint) == named((A, A6), "shop-web-1", "shop", "web", "shop_front", WEB.id)
    assert who(dataclasses.replace(endpoint, addr4=None)) == dataclasses.replace(who(endpoint), addresses=(A6,))


def test_an_unknown_endpoint_is_no_peer() -> None:
    """An endpoint that has not joined, or whose container is not reported, is no peer."""
    endpoint = Endpoint("e", "n", A, A6, joined=True, container=WEB)
    assert who(dataclasses.replace(endpoint, joined=False)) is None
    assert who(dataclasses.replace(endpoint, container=None)) is None


def test_an_empty_name_is_none() -> None:
    """A container without a project, a service or even a name is no peer of rules for an empty one.

    Such a rule keeps a port closed whose opening for a limited time is suspended.
    """
    bare = who(Endpoint("e", "n", A, joined=True, container=Container("c" * 64, "")))
    assert bare
    assert bare.keys == {("itself", "", "c" * 64)}


@pytest.mark.parametrize(
    ("peer", "found"),
    [
        (Peer("container", "shop-api-1"), BOTH),
        (Peer("service", "api"), BOTH),
        (Peer("project", "shop"), BOTH),
        (Peer("network", "shop_front"), BOTH),
        (Peer("network", "front"), BOTH),
        (Peer("prefix", "10.0.0.0/8"), ["10.0.0.0/8"]),
        (Peer("container", "api"), []),
        (Peer("container", "SHOP-API-1"), []),
        (Peer("container", ""), []),
        (Peer("service", "shop-api-1"), []),
        (Peer("project", "api"), []),
        (Peer("network", "bridge"), []),
        (Peer("host"), []),
    ],
    ids=str,
)
def test_each_kind_of_name_matches_its_own(directory: PeerIndex, peer: Peer, found: list[str]) -> None:
    """A name matches the addresses of containers with exactly this name of this kind; other names match none."""
    assert sorted(resolved(directory, peer)) == found


def test_a_rule_for_an_unknown_name_matches_nothing(directory: PeerIndex) -> None:
    """A name that matches no container matches nothing, never everything; next to other peers it is left out."""
    unmatched = for_peers(Peer("service", "gone"))
    policy = Policy(accepts=(unmatched, Rule("tcp", 80, 80)), egress=(unmatched,))
    assert directory.resolved(policy, WEB) == Policy(accepts=(Rule("tcp", 80, 80),), egress=())
    assert resolved(directory, Peer("service", "gone"), Peer("prefix", "10.0.0.1")) == {"10.0.0.1"}


def test_a_service_is_one_of_the_same_project(directory: PeerIndex) -> None:
    """`service:api` is this project's api: another project's is a different service, and without a project there is
    none."""
    directory.put("b", named((B,), "blog-api-1", "blog", "api", "blog_front"))
    directory.put("c", named((C,), "api", "", "api", "bridge"))
    assert resolved(directory, Peer("service", "api")) == {"172.18.0.2", "2001:db8:1::2"}
    assert resolved(directory, Peer("service", "api"), asker=BLOG) == {"172.18.0.3"}
    assert resolved(directory, Peer("service", "api"), asker=dataclasses.replace(WEB, project="")) == set()
    assert resolved(directory, Peer("service", "api"), asker=None) == set()


def test_a_network_is_the_projects_own_or_dockers(directory: PeerIndex) -> None:
    """`network:front` is the project's own front if there is one, and otherwise the Docker network of that name."""
    directory.put("b", named((B,), "other", "", "", "front"))
    assert resolved(directory, Peer("network", "front")) == {"172.18.0.2", "2001:db8:1::2"}
    assert resolved(directory, Peer("network", "front"), asker=BLOG) == {"172.18.0.3"}
    assert resolved(directory, Peer("network", "front"), asker=None) == {"172.18.0.3"}
    directory.networks = frozenset({"front"})
    assert resolved(directory, Peer("network", "front")) == {"172.18.0.3"}


def test_the_projects_own_network_applies_even_if_empty() -> None:
    """If no container is on the project's own front, the rule matches no container, and none on another front."""
    made = PeerIndex()
    made.networks = frozenset({"shop_front", "front"})
    made.put("b", named((B,), "other", "", "", "front"))
    assert resolved(made, Peer("network", "front")) == set()


def test_the_host_is_a_peer_of_egress_rules_only(directory: PeerIndex) -> None:
    """Traffic from the host needs no rule; connections to the host can be restricted by egress rules."""
    rule = for_peers(Peer("host"), Peer("prefix", "10.0.0.1"))
    policy = directory.resolved(Policy(accepts=(rule,), egress=(rule,)), WEB)
    assert policy.accepts == (for_peers(Peer("prefix", "10.0.0.1")),)
    assert policy.egress == (rule,)
    only = directory.resolved(Policy(accepts=(for_peers(Peer("host")),), egress=(for_peers(Peer("host")),)), WEB)
    assert (only.accepts, only.egress) == ((), (for_peers(Peer("host")),))


def test_resolving_changes_peers_only(directory: PeerIndex) -> None:
    """Only peers are resolved: unrestricted egress and all other decisions stay unchanged."""
    policy = Policy(published=(Rule("tcp", 1, 1),), egress=None, log="drop", labels_valid=True, known=True)
    assert directory.resolved(policy, WEB) == policy
    rule = Rule("tcp", 1, 2, (Peer("service", "api"),), "label fw.allow")
    (found,) = directory.resolved(Policy(accepts=(rule,)), WEB).accepts
    assert (found.origin, found.first, found.last) == ("label fw.allow", 1, 2)


# --- additions and removals ---------------------------------------------------------------------------------------


def test_peers_follow_containers(directory: PeerIndex) -> None:
    """A new container of a service is added to its rules, one that leaves is removed from them, a renamed one has its
    new name."""
    more = named((B,), "shop-api-2", "shop", "api", "shop_front")
    directory.put("b", more)
    assert resolved(directory, Peer("service", "api")) == {"172.18.0.2", "2001:db8:1::2", "172.18.0.3"}
    directory.put("a", None)
    assert resolved(directory, Peer("service", "api")) == {"172.18.0.3"}
    directory.put("b", named((B,), "renamed", "shop", "api", "shop_front"))
    assert resolved(directory, Peer("container", "shop-api-2")) == set()
    assert resolved(directory, Peer("container", "renamed")) == {"172.18.0.3"}
    directory.put("b", None)
    assert resolved(directory, Peer("service", "api"), Peer("project", "shop"), Peer("network", "front")) == set()


def test_two_endpoints_with_one_name_are_both_found(directory: PeerIndex) -> None:
    """A container on two networks is found on both; an address that one endpoint gives up remains if the other has
    it."""
    directory.put("b", named((B,), "shop-api-1", "shop", "api", "back"))
    assert resolved(directory, Peer("container", "shop-api-1")) == {"172.18.0.2", "2001:db8:1::2", "172.18.0.3"}
    directory.put("b", named((A, A6), "shop-api-1", "shop", "api", "back"))  # the same address on two networks
    directory.put("a", None)
    assert resolved(directory, Peer("container", "shop-api-1")) == {"172.18.0.2", "2001:db8:1::2"}
    assert resolved(directory, Peer("network", "shop_front")) == set()


def test_a_change_returns_the_owners_whose_rules_name_it(directory: PeerIndex) -> None:
    """An addition or removal returns exactly the owners whose rules name the container."""
    directory.asks("w", [for_peers(Peer("service", "api"), Peer("prefix", "10.0.0.1")), Rule("tcp", 1, 1)], WEB)
    directory.asks("x", [for_peers(Peer("container", "shop-api-1"))], None)
    directory.asks("y", [for_peers(Peer("service", "db"), Peer("host"))], WEB)
    directory.asks("z", [for_peers(Peer("network", "front"))], WEB)
    assert directory.dependents(directory.put("a", API)) == set()
    assert directory.dependents(directory.put("a", None)) == {"w", "x", "z"}
    assert directory.dependents(directory.put("b", named((B,), "one", "shop", "db"))) == {"y"}
    assert directory.dependents(directory.put("c", named((C,), "two", "blog", "api"))) == set()
    directory.asks("x", (), None)
    directory.asks("z", (), None)
    assert directory.dependents(directory.put("a", API)) == {"w"}


def test_what_a_change_takes_away_is_known_before_it_is_made(directory: PeerIndex) -> None:
    """An address that a container gives up, or that loses a name, is closed first in the rules that use the name."""
    directory.asks("w", [for_peers(Peer("service", "api"))], WEB)
    directory.asks("x", [for_peers(Peer("container", "shop-api-1"))], None)
    everyone: dict[Address, set[str]] = {A: {"w", "x"}, A6: {"w", "x"}}
    renamed = named((A, A6), "other", "shop", "api", "shop_front")
    assert directory.losing({"a": None}) == (["a"], everyone)  # type: ignore[dict-item]
    assert directory.losing({"a": dataclasses.replace(API, addresses=(C,))}) == ([], everyone)  # type: ignore[dict-item]
    assert directory.losing({"a": renamed}) == ([], {A: {"x"}, A6: {"x"}})  # type: ignore[dict-item]
    assert directory.losing({"a": API, "b": named((B,), "new", "shop", "api")}) == ([], {})  # type: ignore[dict-item]


def test_rules_for_networks_wait_until_docker_has_listed_them() -> None:
    """Which network a name means is known then: exactly the owners whose rules name one are computed again."""
    made = PeerIndex()
    made.asks("n", [for_peers(Peer("network", "front"))], WEB)
    made.asks("s", [for_peers(Peer("service", "api"))], WEB)
    made.networks = frozenset({"front"})
    assert made.network_askers(None) == ["n"]
    made.networks = None
    assert made.network_askers(frozenset({"front"})) == ["n"]


# --- any order ----------------------------------------------------------------------------------------------------

_names = st.sampled_from(["", "api", "db"])
#: Addresses, and the names of the container that has them.
_Present = tuple[tuple[Address, ...], Container]
_theirs: st.SearchStrategy[_Present] = st.tuples(
    st.lists(st.sampled_from([A, B, C, A6]), unique=True, max_size=2).map(tuple),
    st.builds(
        Container,
        st.just(""),
        _names,
        project=st.sampled_from(["", "shop", "blog"]),
        service=_names,
        network=st.sampled_from(["", "front", "shop_front"]),
    ),
)
_rules = st.lists(
    st.builds(
        for_peers,
        st.builds(
            Peer,
            st.sampled_from(["container", "service", "project", "network"]),
            st.sampled_from(["api", "db", "shop", "front", "shop_front"]),
        )
        | st.sampled_from([Peer("host"), Peer("prefix", "10.0.0.0/8")]),
    ),
    max_size=3,
)
_containers = st.none() | st.sampled_from([WEB, dataclasses.replace(WEB, project=""), BLOG])


class AnyOrder(RuleBasedStateMachine):
    """Containers are added, removed and changed, and rules name them, in any order; a plain list models all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = PeerIndex()
        self.directory.networks = frozenset({"shop_front"})
        self.there: dict[str, _Present] = {}
        self.asked: dict[str, tuple[list[Rule], Container | None]] = {}

    def found(self, key: Key) -> set[Address]:
        kind, project, name = key
        return {
            address
            for addresses, container in self.there.values()
            if getattr(container, "name" if kind == "container" else kind) == name
            and (kind != "service" or container.project == project)
            for address in addresses
        }

    def keys(self, peer: Peer, asker: Container | None) -> list[Key]:
        project = asker.project if asker else ""
        if peer.kind == "service":
            return [("service", project, peer.value)] if project else []
        if peer.kind == "network" and (project, peer.value) == ("shop", "front"):
            return [("network", "", "shop_front")]
        return [(peer.kind, "", peer.value)] if peer.kind in ("container", "project", "network") else []

    @rule(owner=st.sampled_from("abcd"), now=st.none() | _theirs)
    def put(self, owner: str, now: _Present | None) -> None:
        every = [
            (kind, project, name)
            for kind in ("container", "network", "project", "service")
            for project in ("", "shop", "blog")
            if (kind == "service") == bool(project)
            for name in ("api", "db", "shop", "blog", "front", "shop_front")
        ]
        before = {key: self.found(key) for key in every}
        old = self.there.pop(owner, None)
        if now is not None:
            self.there[owner] = now
        changed = self.directory.put(owner, Who(now[0], names(now[1])) if now else None)
        assert {key for key in every if self.found(key) != before[key]} <= changed
        assert changed <= {key for each in (old, now) if each for key in names(each[1])}
        expected = {
            other
            for other, (rules, asker) in self.asked.items()
            if any(key in changed for rule in rules for peer in rule.peers for key in self.keys(peer, asker))
        }
        assert self.directory.dependents(changed) == expected

    @rule(owner=st.sampled_from("abcd"), rules=_rules, asker=_containers)
    def asks(self, owner: str, rules: list[Rule], asker: Container | None) -> None:
        self.directory.asks(owner, rules, asker)
        self.asked[owner] = (rules, asker)

    @invariant()
    def the_index_equals_a_new_one(self) -> None:
        """The index equals one that is built from the current containers: no earlier state is left in it."""
        fresh = PeerIndex()
        fresh.networks = self.directory.networks
        for owner, (addresses, container) in self.there.items():
            fresh.put(owner, Who(addresses, names(container)))
        for owner, (rules, asker) in self.asked.items():
            fresh.asks(owner, rules, asker)
        assert (fresh._who, fresh._by_key) == (self.directory._who, self.directory._by_key)
        assert (fresh._asks, fresh._asked_by) == (self.directory._asks, self.directory._asked_by)

    @invariant()
    def every_name_finds_its_containers(self) -> None:
        for rules, asker in self.asked.values():
            for each in rules:
                (peer,) = each.peers
                expected = {str(address) for key in self.keys(peer, asker) for address in self.found(key)}
                if peer.kind == "prefix":
                    expected = {peer.value}
                assert resolved(self.directory, peer, asker=asker) == expected


AnyOrder.TestCase.settings = inputs(60, steps=20)


class TestAnyOrder(AnyOrder.TestCase):  # type: ignore[name-defined,misc]
    """After any sequence of additions, removals and look-ups the index equals one computed from scratch."""
