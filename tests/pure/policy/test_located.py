"""The index of endpoints equals a search of all, after any sequence of changes."""

from __future__ import annotations

import dataclasses
from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st

from plugin.model import Container, Endpoint, TrackedEndpoint
from plugin.policy.facts import ElementOwner, Facts, Kind
from plugin.policy.located import Located
from plugin.policy.saved import SavedState
from tests.pure.strategies import examples

NETWORKS = ["a" * 64, "b" * 64]
ADDRESSES, MACS = [None, IPv4Address("10.0.0.2"), IPv4Address("10.0.0.3")], ["", "02:00:00:00:00:01"]
endpoints = st.builds(
    Endpoint,
    id=st.sampled_from("123"),
    network_id=st.sampled_from(NETWORKS),
    addr4=st.sampled_from(ADDRESSES),
    mac=st.sampled_from(MACS),
    joined=st.booleans(),
    container=st.sampled_from([None, Container("c", "web")]),
)
#: An endpoint of docker-fw (True) or on a Docker network is put, or removed.
edits = st.lists(st.tuples(st.booleans(), endpoints, st.booleans()), max_size=12)


def owners(facts: Facts) -> list[tuple[ElementOwner, Endpoint]]:
    driver = [(ElementOwner(Kind.ENDPOINT, key), endpoint) for key, endpoint in facts.saved.endpoints.items()]
    return driver + [(ElementOwner(Kind.TRACKED, key), guest.endpoint) for key, guest in facts.guests.items()]


def check(index: Located, facts: Facts) -> None:
    there = owners(facts)
    for network in NETWORKS:
        assert set(index.on(network)) == {owner for owner, each in there if each.network_id == network}
        for where in (*filter(None, ADDRESSES), *filter(None, MACS)):
            mine = {e.id for o, e in there if o.kind is Kind.ENDPOINT and e.network_id == network}
            found = index.at(network, where)
            assert sorted(found) == sorted(e for e in mine if where in _places(facts.saved.endpoints[e]))
    driver = facts.saved.endpoints.values()
    assert index.unlabelled is any(each.joined and each.container is None for each in driver)


def _places(endpoint: Endpoint) -> tuple[object, ...]:
    return (*endpoint.addresses, endpoint.mac)


@examples(300)
@given(edits)
def test_the_index_equals_a_search(changes: list[tuple[bool, Endpoint, bool]]) -> None:
    """Endpoints that are added, changed, moved and removed are found where they are, and nowhere else."""
    facts, index = Facts(SavedState()), Located()
    for ours, endpoint, put in changes:
        before = facts
        if ours:
            state = facts.saved.with_endpoint(endpoint) if put else facts.saved.without_endpoint(endpoint.id)
            facts = dataclasses.replace(facts, saved=state)
        else:
            guest = {endpoint.id: TrackedEndpoint(endpoint, listed=True)} if put else {}
            facts = facts.with_guests(guest, [endpoint.id])
        index.take(before, facts, [ElementOwner(Kind.ENDPOINT if ours else Kind.TRACKED, endpoint.id)])
        check(index, facts)
        check(Located(facts), facts)
