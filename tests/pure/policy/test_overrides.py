"""`fwctl allow` and `fwctl deny`: the later one takes precedence while it lasts, and afterwards the earlier applies
again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from ipaddress import IPv4Address, ip_network

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from plugin.model import Container, Endpoint, Network, Override, Overriding, Peer, PolicySpec, Prefix, Rule
from plugin.policy.decide import of, passes
from plugin.policy.overrides import ended, expired, in_force, lapsed, suspended, swept, with_one, without
from plugin.policy.saved import SavedState
from tests.pure.strategies import examples

SSH, MORE = Rule("tcp", 22, 22), Rule("tcp", 8080, 8080)
TEN = Peer("prefix", "10.0.0.0/8")
ONLY_TEN = Rule("tcp", 22, 22, (TEN,))
INSIDE, OUTSIDE = IPv4Address("10.1.2.3"), IPv4Address("203.0.113.7")
ENDPOINT = Endpoint("e", "n", IPv4Address("172.18.0.2"), joined=True, container=Container("web", "web"))


def allow(rule: Rule, until: float = 0, container: str = "web") -> Overriding:
    return Overriding(container, rule, False, until)


def deny(rule: Rule, until: float = 0, container: str = "web") -> Overriding:
    return Overriding(container, rule, True, until)


def after(*words: Overriding) -> SavedState:
    """Return the state after these overrides, in this order."""
    state = SavedState()
    for word in words:
        state = with_one(state, word)
    return state


def accepted(state: SavedState, ports: Iterable[int] = (22, 80, 443, 8080)) -> set[tuple[int, str]]:
    """Return what a container without labels then accepts: each port, from inside 10.0.0.0/8 and from elsewhere."""
    rules = of(Network("n", "fw-n"), ENDPOINT, override=in_force(state).get("web", Override())).accepts
    peers = {"in": INSIDE, "out": OUTSIDE}
    return {(port, name) for port in ports for name, peer in peers.items() if passes(rules, "tcp", port, peer)}


BASE = {(port, name) for port in (22, 80, 443) for name in ("in", "out")}


# --- the later override -------------------------------------------------------------------------------------------


def test_the_later_override_applies() -> None:
    """`allow` after `deny` opens, `deny` after `allow` closes, port by port."""
    assert accepted(after()) == BASE
    assert accepted(after(deny(SSH))) == BASE - {(22, "in"), (22, "out")}
    assert accepted(after(deny(SSH), allow(SSH))) == BASE
    assert accepted(after(allow(MORE), deny(MORE))) == BASE
    assert accepted(after(deny(MORE), allow(MORE))) == BASE | {(8080, "in"), (8080, "out")}
    assert accepted(after(deny(Rule("tcp", 1, 100)), allow(Rule("tcp", 80, 80)))) == BASE - {(22, "in"), (22, "out")}
    assert accepted(after(allow(Rule("tcp", 1, 65535)), deny(SSH)), (21, 22, 23)) == {
        (21, "in"),
        (21, "out"),
        (23, "in"),
        (23, "out"),
    }


def test_allow_for_some_sources_leaves_a_deny_in_force_for_all_others() -> None:
    """A port that a label opens to all, and `fwctl deny` closed, opens to the allowed sources only."""
    labelled = dataclasses.replace(ENDPOINT, container=Container("web", "web", PolicySpec(allow=(MORE,))))
    override = in_force(after(deny(MORE), allow(Rule("tcp", 8080, 8080, (TEN,)))))["web"]
    rules = of(Network("n", "fw-n"), labelled, override=override).accepts
    assert passes(rules, "tcp", 8080, INSIDE)
    assert not passes(rules, "tcp", 8080, OUTSIDE)


def test_allow_for_some_sources_closes_to_others() -> None:
    """`fwctl allow web "22 from 10.0.0.0/8"` closes 22 to others, also after a deny; a deny after it closes all."""
    some = BASE - {(22, "out")}
    assert accepted(after(allow(ONLY_TEN))) == accepted(after(deny(SSH), allow(ONLY_TEN))) == some
    assert accepted(after(allow(ONLY_TEN), deny(SSH))) == BASE - {(22, "in"), (22, "out")}


def test_each_container_has_its_own_overrides() -> None:
    """An override of one container does not apply to another."""
    state = after(deny(SSH, container="db"), allow(MORE), deny(MORE, container="db"))
    assert in_force(state) == {"web": Override(allow=(MORE,)), "db": Override(deny=(SSH, MORE))}
    assert in_force(without(state, {"web", "missing"})) == {"db": Override(deny=(SSH, MORE))}
    assert in_force(without(state, {"web", "db"})) == {}


def test_a_repeated_override_is_stored_once() -> None:
    """Repeating an override gives it a new duration, also a shorter one, and makes it the latest."""
    state = after(allow(MORE, 50), deny(MORE), allow(MORE, 90))
    assert [(each.deny, each.until) for each in state.overrides] == [(True, 0), (False, 90)]
    assert after(allow(MORE), allow(dataclasses.replace(MORE, origin="again"))).overrides == (allow(MORE),)
    assert after(allow(MORE, 90), allow(MORE, 50)).overrides == (allow(MORE, 50),)
    assert after(deny(MORE), deny(MORE, 50)).overrides == (deny(MORE, 50),)


def test_an_override_that_cannot_apply_again_is_removed() -> None:
    """A permanent override replaces what it contradicts; a temporary one keeps overrides that last longer."""
    assert after(allow(Rule("tcp", 1, 100)), deny(SSH)).overrides == (
        allow(Rule("tcp", 1, 21)),
        allow(Rule("tcp", 23, 100)),
        deny(SSH),
    )
    assert after(deny(SSH, 50), allow(SSH, 90)).overrides == (allow(SSH, 90),)
    assert after(deny(SSH, 90), allow(SSH, 50)).overrides == (deny(SSH, 90), allow(SSH, 50))
    assert after(deny(SSH), allow(ONLY_TEN)).overrides == (deny(SSH), allow(ONLY_TEN))
    assert after(deny(SSH, container="db"), allow(SSH)).overrides == (deny(SSH, container="db"), allow(SSH))


# --- duration -----------------------------------------------------------------------------------------------------


def test_an_earlier_override_applies_after_a_later_one_expires() -> None:
    """A port that is opened for an hour is as it was before when the hour is over."""
    state = after(deny(SSH), allow(SSH, 100))
    assert accepted(expired(state, 99.9)) == BASE
    assert accepted(expired(state, 100)) == BASE - {(22, "in"), (22, "out")}
    assert expired(state, 99.9) == state
    assert ended(state, 99) == []
    assert ended(state, 100) == [allow(SSH, 100)]


def test_overrides_expire_one_by_one() -> None:
    """Denies and allows expire one by one, and nothing else changes."""
    state = after(deny(SSH, 50), allow(MORE, 60), deny(Rule("tcp", 443, 443)))
    assert lapsed(state, 100, deny=True).overrides == (allow(MORE, 60), deny(Rule("tcp", 443, 443)))
    assert lapsed(state, 100, deny=False).overrides == (deny(SSH, 50), deny(Rule("tcp", 443, 443)))
    assert lapsed(state, 55, deny=False) == state


def test_bans_expire_too() -> None:
    """A temporary ban expires, a permanent one does not."""
    bans: dict[Prefix, float] = {ip_network(f"203.0.113.{n}"): until for n, until in enumerate((0, 50, 100.5))}
    assert list(swept(SavedState(bans=bans), 100).bans.values()) == [0, 100.5]
    assert list(expired(SavedState(bans=bans), 101).bans.values()) == [0]


def test_suspended_overrides_open_no_port_for_a_time() -> None:
    """When docker-fw stops, ports that were opened for a time are closed, and ports that were closed for a time stay
    closed."""
    assert accepted(suspended(after(allow(MORE, 100)))) == BASE
    assert accepted(suspended(after(allow(MORE)))) == BASE | {(8080, "in"), (8080, "out")}
    assert accepted(suspended(after(deny(SSH, 100)))) == BASE - {(22, "in"), (22, "out")}
    # The sources that were allowed alone lose access, and the others do not get it.
    assert accepted(suspended(after(allow(ONLY_TEN, 100)))) == BASE - {(22, "in"), (22, "out")}


# --- any sequence -------------------------------------------------------------------------------------------------

_rules = st.builds(
    lambda a, b, who: Rule("tcp", min(a, b), max(a, b), who),
    st.integers(20, 25),
    st.integers(20, 25),
    st.sampled_from([(), (), (TEN,)]),
)
_overrides = st.builds(
    lambda rule, no, until: Overriding("web", dataclasses.replace(rule, peers=() if no else rule.peers), no, until),
    _rules,
    st.booleans(),
    st.sampled_from([0, 0, 10, 20, 30]),
)
_sequences = st.lists(_overrides, max_size=6)
PORTS = range(19, 27)


def by_hand(words: list[Overriding], now: float) -> set[tuple[int, str]]:
    """Return what a container without labels accepts, by the overrides that have not expired, the latest one first."""
    there = [word for word in words if not 0 < word.until <= now]
    found = set()
    for port in PORTS:
        about = [word for word in there if word.rule.first <= port <= word.rule.last]
        denied = max((n + 1 for n, word in enumerate(about) if word.deny), default=0)
        for name, peer in (("in", INSIDE), ("out", OUTSIDE)):
            allowed = any(not word.rule.peers or peer in ip_network(TEN.value) for word in about[denied:])
            base = port == 22 and not denied and not any(word.rule.peers for word in about)
            if allowed or base:
                found.add((port, name))
    return found


@given(_sequences, st.sampled_from([0, 10, 15, 20, 25, 30]))
@examples(300)
def test_of_any_overrides_the_latest_decides_about_a_port(words: list[Overriding], now: float) -> None:
    """The latest unexpired override decides about each port, for any overrides in any order and with any duration."""
    for n, word in enumerate(words):  # a repeated override is a different case: it has another duration
        assume(all((each.rule, each.deny) != (word.rule, word.deny) for each in after(*words[:n]).overrides))
    assert accepted(expired(after(*words), now), PORTS) == by_hand(words, now)


@given(_sequences, st.sampled_from([0, 10, 15, 20, 25, 30]))
@examples(200)
def test_suspending_overrides_opens_nothing(words: list[Overriding], now: float) -> None:
    """Nothing is open that the clock would close, at any time, after timed overrides are suspended."""
    state = after(*words)
    assert accepted(suspended(state), PORTS) <= accepted(expired(state, now), PORTS)


@pytest.mark.parametrize("now", [0, 5, 100])
def test_a_state_without_overrides_does_not_change(now: float) -> None:
    """A state without overrides and bans does not change."""
    assert expired(SavedState(), now) == suspended(SavedState()) == SavedState()
