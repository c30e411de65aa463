"""Endpoints on Docker networks are found by container and by address."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from plugin.docker.tracked import Guests
from plugin.model import Container, Endpoint, TrackedEndpoint
from tests.pure.strategies import examples

_FOUR = [None, IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")]
_WHO = [None, Container("web", "web"), Container("db", "db")]
_guests = st.builds(
    lambda *each: TrackedEndpoint(Endpoint(*each[:4], joined=True, container=each[4]), listed=True),
    st.sampled_from("abcd"),
    st.sampled_from("mn"),
    st.sampled_from(_FOUR),
    st.sampled_from([None, IPv6Address("::9")]),
    st.sampled_from(_WHO),
)


@given(st.lists(_guests | st.sampled_from("abcd"), max_size=12), _guests)
@examples(300)
def test_the_index_finds_what_a_search_of_all_finds(steps: list[TrackedEndpoint | str], asked: TrackedEndpoint) -> None:
    """The index equals a search of all endpoints after any additions and removals. An address may have changed owners:
    the previous owner is removed first."""
    guests, plain = Guests(), dict[str, TrackedEndpoint]()
    for step in steps:
        if isinstance(step, str):
            guests.remove(step)
            plain.pop(step, None)
            continue
        for other in guests.at(step.endpoint):
            guests.remove(other.endpoint.id)
            del plain[other.endpoint.id]
        guests.put(step)
        plain[step.endpoint.id] = step
    assert {guest.endpoint.id: guest for guest in guests} == plain
    assert all(guests.get(name) == plain.get(name) for name in "abcd")
    for who in ("", "web", "db", "missing"):
        assert {g.endpoint.id for g in guests.of(who)} == {k for k, g in plain.items() if g.container_id == who}
    shares = {
        k
        for k, g in plain.items()
        if g.endpoint.network_id == asked.endpoint.network_id
        and k != asked.endpoint.id
        and set(g.endpoint.addresses) & set(asked.endpoint.addresses)
    }
    assert {g.endpoint.id for g in guests.at(asked.endpoint)} == shares
