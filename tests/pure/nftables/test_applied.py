"""The elements in the table by owner: owners share an element, and a change is exactly the difference."""

from __future__ import annotations

import re
from collections import Counter
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.nftables.applied import AppliedElements
from plugin.nftables.document import skeleton
from plugin.nftables.sets import SETS, Change, Element
from tests.pure.nftables.examples import blank
from tests.pure.strategies import examples

ELEMENTS = [Element("dockers", (f"br{n}",)) for n in range(5)]
_elements = st.frozensets(st.sampled_from(ELEMENTS), max_size=4)
_owned = st.dictionaries(st.sampled_from("abc"), _elements, max_size=3)


def union(owned: dict[str, frozenset[Element]]) -> set[Element]:
    return {element for elements in owned.values() for element in elements}


@given(_owned, st.lists(_owned, max_size=6))
@examples(200)
def test_after_any_sequence_the_table_has_all_owners_elements(
    first: dict[str, frozenset[Element]], steps: list[dict[str, frozenset[Element]]]
) -> None:
    """The table has the union of all owners' elements, each change is exactly the difference of the two unions, and
    computing a change has no side effect, for any changes of owners."""
    applied, owned = AppliedElements(), dict(first)
    applied.start(first.items())
    for new in steps:
        before, wanted = union(owned), union({**owned, **new})
        assert set(applied) == before
        change = applied.change(new)
        assert set(change.remove) == before - wanted
        assert set(change.add) == wanted - before
        assert len(change.remove) == len(set(change.remove))
        assert len(change.add) == len(set(change.add))
        assert bool(change) is (before != wanted)
        assert set(applied.after(new)) == wanted
        assert len(applied.after(new)) == len(wanted)
        assert set(applied) == before  # nothing is written yet
        applied.write(new)
        owned.update(new)
        assert Counter(applied) == Counter(wanted)  # each once
        assert not applied.change(new)
        for owner in "abc":
            assert applied.of(owner) == owned.get(owner, frozenset())
    applied.write(dict.fromkeys("abc", frozenset()))
    assert list(applied) == []


def test_an_element_of_two_owners_is_removed_with_the_last() -> None:
    """Docker may reuse an address before its old endpoint is gone: the elements that the new one needs stay."""
    applied = AppliedElements()
    applied.start({"a": frozenset(ELEMENTS[:2]), "b": frozenset(ELEMENTS[1:3])}.items())
    assert applied.change({"a": frozenset()}) == Change(remove=(ELEMENTS[0],))
    applied.write({"a": frozenset()})
    change = applied.change({"b": frozenset()})
    assert (set(change.remove), change.add) == (set(ELEMENTS[1:3]), ())
    # From one to the other in one step: nothing to do.
    assert not applied.change({"b": frozenset(), "c": frozenset(ELEMENTS[1:3])})


V4 = IPv4Address("172.18.0.2")
_OPENING = [
    "allow4",
    "allow6_blocks",
    "allow_other4",
    "from4",
    "from6_blocks",
    "host_from4",
    "allow_published4",
    "host_open",
    "host_open6",
    "egress_allow4",
    "egress_peer_ports4_blocks",
    "egress_to6",
    "egress_host4",
    "egress_all4",
    "same_bridge",
    "host_neighbours",
    "host_neighbours4",
    "dockers",
    "routed",
    "host_own6",
]
_OTHERS = [
    "peer_ports4",
    "peer_families",
    "ingress_drops4",
    "egress_drops6",
    "rate_limit4",
    "rate_proven4",
    "rate_limit_host",
    "protected_bridges",
    "docker_proxy",
    "publish4",
    "hairpin4",
]


@pytest.mark.parametrize("name", _OPENING)
def test_removing_an_element_that_opens_narrows(name: str) -> None:
    """Removing an element that let flows pass is narrower: established flows may remain that could not be opened
    again."""
    applied, element = AppliedElements(), blank(name)
    applied.start({"a": frozenset({element})}.items())
    assert applied.narrower("a", frozenset())
    assert not applied.narrower("a", frozenset({element, Element("ingress_drops4", (V4,))}))
    assert not applied.narrower("b", frozenset({element}))


@pytest.mark.parametrize("name", _OTHERS)
def test_removing_any_other_element_does_not_narrow(name: str) -> None:
    """Removing any other element closes nothing."""
    applied, element = AppliedElements(), blank(name)
    applied.start({"a": frozenset({element})}.items())
    assert not applied.narrower("a", frozenset())


@pytest.mark.parametrize(
    ("name", "new", "known"),
    [
        ("egress_restricted", True, True),
        ("host_closed", False, True),
        ("host_closed4", False, True),
        ("allow4", False, False),
    ],
)
def test_adding_an_element_that_closes_narrows(name: str, new: bool, known: bool) -> None:
    """A network that becomes egress-restricted is narrower, and so is a published port that closes for an existing
    owner."""
    applied = AppliedElements()
    applied.start({"a": frozenset(ELEMENTS[:1])}.items())
    wanted = frozenset({blank(name), ELEMENTS[0]})
    assert applied.narrower("a", wanted) is known
    assert applied.narrower("b", wanted) is new


@pytest.mark.parametrize(
    "name",
    ["egress_restricted", "host_closed", "host_closed6", "rate_limit4_blocks", "rate_limit_host4", "rate_proven6"],
)
def test_a_change_that_only_closes_is_recognised(name: str) -> None:
    """A removal, and an element that restricts, closes or limits, need not be on the disk first; any other addition
    must be."""
    applied = AppliedElements()
    applied.start({"a": frozenset(ELEMENTS[:2])}.items())
    assert applied.only_closes("a", frozenset())
    assert applied.only_closes("a", frozenset({ELEMENTS[0], blank(name)}))
    assert not applied.only_closes("a", frozenset(ELEMENTS[:3]))
    assert not applied.only_closes("b", frozenset(ELEMENTS[:1]))
    for other in (*_OPENING, "publish4", "unmanaged"):
        assert not applied.only_closes("a", frozenset({blank(other)}))


PEERS = [
    *(
        Element(f"from4{blocks}", (A, 6, port, 32, peer))
        for A in map(IPv4Address, ("10.0.0.1", "10.0.0.2"))
        for blocks in ("", "_blocks")
        for port in (22, 80)
        for peer in map(IPv4Address, ("10.9.0.1", "10.9.0.2"))
    ),
    Element("host_from4", (6, 8080, 32, IPv4Address("10.9.0.1"))),
    Element("egress_to4", (V4, 6, 53, 32, IPv4Address("10.9.0.1"))),
    Element("from4", (V4, 6, 22, 24, IPv4Address("10.9.0.0"))),
    Element("egress_host4", (V4, 6, 22)),
]
_passing = st.dictionaries(st.sampled_from("abc"), st.frozensets(st.sampled_from(PEERS), max_size=8), max_size=3)


@given(
    _passing, st.lists(_passing, max_size=5), st.sampled_from(["10.9.0.1", "10.9.0.2"]), st.sets(st.sampled_from("abc"))
)
@examples(200)
def test_elements_that_open_an_address_are_indexed(
    first: dict[str, frozenset[Element]], steps: list[dict[str, frozenset[Element]]], peer: str, owners: set[str]
) -> None:
    """An address's elements of these owners are found, and no prefix, after any sequence; without them the table has
    the elements of the other owners."""
    applied, owned = AppliedElements(), dict(first)
    applied.start(first.items())
    for new in steps:
        applied.write(new)
        owned.update(new)
    address = IPv4Address(peer)
    going = applied.departing((), {address: owners})
    wanted = {
        owner: {e for e in elements if e.set != "egress_host4" and e.key[-2:] == (32, address)}
        for owner, elements in owned.items()
        if owner in owners
    }
    assert going == {owner: elements for owner, elements in wanted.items() if elements}
    change, before = applied.closing(going), set(applied)
    applied.write(applied.without(going, change))
    assert (set(applied), change.add) == (before - set(change.remove), ())
    assert {e for owner in "abc" for e in applied.of(owner)} == set(applied)
    assert not applied.departing((), {address: owners})


def test_a_departing_owners_ports_close_first() -> None:
    """When an owner is removed, its opening elements are removed and its closing elements stay; an element that kept
    docker-proxy's port open is replaced by one that closes it."""
    applied, open_, shut = (
        AppliedElements(),
        Element("host_open4", (V4, 6, 8080)),
        Element("host_closed4", (V4, 6, 8080)),
    )
    stays = Element("rate_limit4", (V4, 6, 22))
    applied.start({"a": frozenset({open_, stays, Element("allow4", (V4, 6, 22))}), "b": frozenset({open_})}.items())
    assert applied.closing(applied.departing("a", {})) == Change((Element("allow4", (V4, 6, 22)),))
    going = applied.departing("ab", {})
    change = applied.closing(going)
    assert (set(change.remove), change.add) == ({open_, Element("allow4", (V4, 6, 22))}, (shut,))
    applied.write(applied.without(going, change))
    assert set(applied) == {stays, shut}
    assert applied.of("a") == {stays, shut}


#: Sets that neither open nor close: they count, report, or redirect.
NEUTRAL = re.compile(
    r"ingress_drops|egress_drops|log_limit|masqueraded|unknown_address_limit|hairpin|publish|peer_(ports|families)"
)


def test_each_set_declares_whether_it_opens_or_closes() -> None:
    """A new set must state its effect or be listed as neutral: cutting flows and closing first depend on it."""
    undeclared = {name for name, spec in SETS.items() if not spec.effect}
    assert {name for name in undeclared if not NEUTRAL.match(name)} == set()
    assert {name for name, spec in SETS.items() if NEUTRAL.match(name)} == undeclared
    for name in (
        "egress_restricted",
        "host_closed",
        "host_closed4",
        "banned6_64",
        "docker_proxy",
        "proxy_unidentified",
        "quarantine4_pairs",
        "loading",
        "ports",
    ):
        assert SETS[name].effect == "closes", name


#: What a rule does with a packet that an element matches, or if the set is negated: with one that none matches.
PASSES, DROPS = re.compile(r"(accept|return|goto (permit|accept\w*))$"), re.compile(r"(drop|goto (deny\w*|stray))$")
#: While docker-fw does not receive Docker's events, docker-proxy's open ports are closed too.
EXCEPTIONS = {("lease_expired", "host_open"), ("lease_expired", "host_open4"), ("lease_expired", "host_open6")}
#: Established packets to unmanaged bridges pass with the mark, and others without it.
EXCEPTIONS |= {("established_outbound", "unmanaged")}
#: Drops are counted.
EXCEPTIONS |= {("deny", f"{way}_drops{v}") for way in ("ingress", "egress") for v in (4, 6)}
#: A flow that was opened without any container passes to no Docker bridge. A protected bridge's own flows get no label.
EXCEPTIONS |= {("elsewhere", "dockers"), ("label_bridges", "unmanaged")}


def test_the_rules_do_what_each_set_declares() -> None:
    """No packet passes because a set that closes, or has no effect, has an element, and none is dropped because a set
    that opens has one."""
    wrong, chain = [], ""
    for line in skeleton(1).splitlines():
        if line.startswith("\tchain "):
            chain = line.split()[1]
        for negated, name in re.findall(r"(!= )?@(\w+)(?![\w,])", line) if "\t\tupdate " not in line else ():
            passes, drops = PASSES.search(line), DROPS.search(line)
            if negated:
                passes, drops = drops, passes
            effect = SETS[name].effect
            if (passes and effect != "opens") or (drops and effect != "closes"):
                wrong.append((chain, name))
    assert set(wrong) == EXCEPTIONS
