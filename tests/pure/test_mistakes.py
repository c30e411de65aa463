"""The promise about mistakes, for labels of every kind: a wrong label never opens anything, and a right one opens
exactly what it says, as `tests.pure.naive` reads it.

Flows are tried one by one; the plugin's decisions are read from its policies by this file's own loops.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.docker import container_labels
from plugin.labels import parser
from plugin.model import (
    BridgeNetwork,
    Container,
    Defaults,
    Endpoint,
    Network,
    Override,
    Policy,
    PolicySpec,
    Published,
    Rule,
)
from plugin.policy import decide as policy
from plugin.policy.decide import closed_ports
from plugin.policy.peers import PeerIndex, Who, names
from tests.pure import naive
from tests.pure.naive import Flow
from tests.pure.strategies import examples, near_text

FRONT = BridgeNetwork("f" * 64, "front", "br-f", (IPv4Network("172.18.0.0/16"),))
OURS = Network("o" * 64, "fw-oooooooooooo")
PORTS = (
    Published("tcp", IPv4Address("0.0.0.0"), 18080, 8080),
    Published("udp", IPv4Address("0.0.0.0"), 15353, 53),
    Published("tcp", IPv4Address("0.0.0.0"), 10022, 22),
)
API, DB, OUT4, OUT6 = (
    IPv4Address("172.18.0.7"),
    IPv6Address("2001:db8:1::8"),
    IPv4Address("203.0.113.7"),
    IPv6Address("2001:db8:9::9"),
)
NOTHING = PolicySpec()
HOST = frozenset({IPv4Address("172.18.0.1")})
NAMES: dict[str, set[naive.Address]] = {
    "service:api": {API},
    "container:db": {DB},
    "project:shop": {API},
    "network:front": {API},
    "network:shop_back": {DB},
}
PEERS = (API, DB, OUT4, OUT6, IPv4Address("10.1.2.3"), IPv4Address("10.0.0.1"), *HOST)
_TRIED = (
    *(("tcp", port) for port in (1, 21, 22, 23, 80, 443, 5432, 8080, 8081, 9000, 9050, 65535)),
    *(("udp", port) for port in (22, 53, 80, 443)),
    ("sctp", 80),
    ("sctp", 9000),
    ("gre", 0),
    ("esp", 0),
    ("ah", 0),
    ("other", 0),
)
FLOWS = tuple(Flow(proto, port, peer) for (proto, port), peer in itertools.product(_TRIED, PEERS))


# --- the plugin's decisions ---------------------------------------------------------------------------------------


def container(pairs: Mapping[str, Any], image: Mapping[str, str] | None = None, network: str = "front") -> Any:
    """Return the container as the plugin reads it from Docker's list, on a network."""
    labels = {
        "com.docker.compose.project": "shop",
        "com.docker.compose.service": "web",
        "com.docker.compose.container-number": "1",
        **pairs,
    }
    return container_labels.on_network(container_labels.read(listed(labels), image), network)


def listed(labels: Mapping[str, str]) -> dict[str, Any]:
    """Return a container on two networks as `GET /containers/json` lists it."""
    return {
        "Id": "c" * 64,
        "Names": ["/web"],
        "Labels": dict(labels),
        "NetworkSettings": {"Networks": {"front": {}, "shop_back": {}}},
    }


def directory() -> PeerIndex:
    made = PeerIndex()
    made.networks = frozenset({"front", "shop_back"})
    made.put("a", Who((API,), names(Container("", "api-1", network="front", project="shop", service="api"))))
    made.put("d", Who((DB,), names(Container("", "db", network="shop_back", project="other", service="db"))))
    return made


@dataclasses.dataclass(frozen=True)
class World:
    """The container's network, and the policies of other places."""

    network: BridgeNetwork | Network = FRONT
    settings: PolicySpec = NOTHING
    published: bool = False
    override: Override = policy.NOTHING
    attached: PolicySpec = NOTHING

    def decide(self, who: Any) -> tuple[Policy, Endpoint]:
        endpoint = Endpoint("e", self.network.id, joined=True, container=who, published=PORTS, spec=self.attached)
        decided = policy.of(self.network, endpoint, Defaults(self.settings, self.published), self.override)
        return directory().resolved(decided, who), endpoint


def _passes(rules: Iterable[Rule], flow: Flow, *, host: bool) -> bool:
    """Brute force: is there a rule for this flow with this peer?"""
    for rule in rules:
        if rule.proto != flow.proto or not rule.first <= flow.port <= rule.last:
            continue
        if not rule.peers:
            return True
        for peer in rule.peers:
            if peer.kind == "host" and host and flow.peer in HOST:
                return True
            if peer.kind == "prefix" and flow.peer in ip_network(peer.value):
                return True
    return False


def accepted(decided: Policy) -> set[Flow]:
    """Return the flows that are accepted, through the container's address or through a published port."""
    return {flow for flow in FLOWS if _passes((*decided.accepts, *decided.published), flow, host=False)}


def permitted(decided: Policy) -> set[Flow]:
    return set(FLOWS) if decided.egress is None else {f for f in FLOWS if _passes(decided.egress, f, host=True)}


def no_wider(world: World, narrow: Any, wide: Any) -> None:
    """Check that a container with the first labels accepts, publishes and opens nothing that one with the second would
    not."""
    (one, endpoint), (two, _) = world.decide(narrow), world.decide(wide)
    assert accepted(one) <= accepted(two)
    assert permitted(one) <= permitted(two)
    assert set(closed_ports(one, endpoint)) >= set(closed_ports(two, endpoint))


# --- labels that people write -------------------------------------------------------------------------------------

_ports = st.sampled_from(
    ["22", "80", "443", "8080", "5432", "1-1024", "9000-9100", "*", "53/udp", "*/udp", "80/sctp", "20 - 25", "1-65535"]
)
_whom = st.lists(
    st.sampled_from(
        [
            "10.0.0.0/8",
            "203.0.113.7",
            "2001:db8::/32",
            "::/0",
            "0.0.0.0/0",
            "service:api",
            "container:db",
            "project:shop",
            "network:front",
            "network:back",
            "service:missing",
            "host",
            "any",
        ]
    ),
    min_size=1,
    max_size=3,
).map(" ".join)
_what = _ports | st.sampled_from(["gre", "ESP"])


def _list(word: str) -> st.SearchStrategy[str]:
    rule = _what | st.builds(f"{{}} {word} {{}}".format, _what, _whom)
    return st.lists(rule, min_size=1, max_size=3).map(", ".join)


RIGHT: dict[str, st.SearchStrategy[str]] = {
    "fw.allow": _list("from"),
    "fw.deny": st.lists(_what, min_size=1, max_size=3).map("\n".join),
    "fw.policy": st.sampled_from(["default", "closed", "open", " Open "]),
    "fw.egress": st.sampled_from(["all", "none", "NONE"]) | _list("to"),
    "fw.rate": st.builds("{} {}/minute burst {}".format, _ports, st.integers(1, 9), st.integers(1, 9)),
    "fw.log": st.sampled_from(["drop", "none"]),
}
#: The place of a label on the container.
_WHERE = ("fw.", "fw.network.front.", "fw.network.back.")


def _pairs(where: tuple[str, ...] = _WHERE, size: int = 4) -> st.SearchStrategy[dict[str, str]]:
    pair = st.sampled_from(sorted(RIGHT)).flatmap(
        lambda key: st.tuples(st.sampled_from(where).map(lambda w: w + key[3:]), RIGHT[key])
    )
    return st.lists(pair, max_size=size).map(dict)


def _damaged(text: str, at: int, scrap: str) -> str:
    at %= len(text) + 1
    return text[:at] + scrap + text[at + (at % 2) :]


_scraps = st.sampled_from(["x", "", " ", ",", "from", "0", "/", "-", ":", "٣", " to ", "\n", "é", "fw.", "none"])
near_misses = {
    key: st.builds(_damaged, right, st.integers(0, 60), _scraps) | near_text | st.text(max_size=12)
    for key, right in RIGHT.items()
}
_wrong_keys = st.sampled_from(
    [
        "fw.alow",
        "fw.",
        "fw.dney",
        "FW.POLICYS",
        "fw.network.front",
        "fw.network.nowhere.deny",
        "fw.network.front.egres",
        "fw.network.nowhere.allow",
        "fw.zzz",
        "fw.network.nowhere.egress",
    ]
)
#: One label, mostly wrong, with a key of every kind.
suspicious = st.sampled_from(sorted(RIGHT)).flatmap(
    lambda key: st.tuples(
        st.sampled_from(_WHERE).map(lambda w: w + key[3:]) | st.just(key.upper()) | _wrong_keys, near_misses[key]
    )
)
_saids = _pairs(("fw.",), 3).map(lambda pairs: parser.parse(pairs).spec)
worlds = st.builds(
    World,
    network=st.one_of(
        st.just(FRONT),
        st.just(FRONT),
        st.builds(lambda spec: dataclasses.replace(FRONT, spec=spec), _saids),
        st.just(OURS),
        st.builds(lambda spec: dataclasses.replace(OURS, spec=spec), _saids),
    ),
    settings=st.just(NOTHING) | _saids,
    published=st.booleans(),
    override=st.just(policy.NOTHING) | _saids.map(lambda spec: Override(spec.allow, spec.deny)),
    attached=st.just(NOTHING) | _saids,
)


# --- a wrong label never opens ------------------------------------------------------------------------------------


@given(worlds, _pairs(), suspicious)
@examples(700)
def test_one_more_wrong_label_accepts_and_permits_nothing_more(
    world: World, pairs: dict[str, str], label: tuple[str, str]
) -> None:
    """A container with one more wrong label accepts no flow, serves no published port and may open no connection that
    it would not without that label, whatever its other labels are and those around it."""
    key, value = label
    if key in pairs:
        return
    without, with_it = container(pairs), container({**pairs, key: value})
    if len(with_it.problems) == len(without.problems):
        return  # it was right, or a name that has no effect
    no_wider(world, with_it, without)


@given(worlds, _pairs(), suspicious, suspicious)
@examples(150)
def test_a_second_mistake_opens_nothing_either(
    world: World, pairs: dict[str, str], first: tuple[str, str], second: tuple[str, str]
) -> None:
    """A mistake next to another one does not open anything either."""
    before = {**pairs, first[0]: first[1]}
    if second[0] in before or not container(before).problems:
        return
    after = container({**before, second[0]: second[1]})
    if len(after.problems) > len(container(before).problems):
        no_wider(world, after, container(before))


@given(worlds, _pairs(("fw.",)), suspicious, _pairs())
@examples(150)
def test_a_wrong_option_of_a_network_or_an_attachment_opens_nothing(
    world: World, options: dict[str, str], label: tuple[str, str], pairs: dict[str, str]
) -> None:
    """A wrong option of a Docker network, or of an attachment, opens nothing either."""
    key, value = label
    right, wrong = (parser.parse(p, "network option ") for p in (options, {**options, key: value}))
    if key in options or not wrong.problems or isinstance(world.network, Network):
        return
    who = container(pairs)
    networks = (dataclasses.replace(FRONT, spec=p.spec, problems=p.problems) for p in (wrong, right))
    (one, endpoint), (two, _) = (dataclasses.replace(world, network=network).decide(who) for network in networks)
    assert accepted(one) <= accepted(two)
    assert permitted(one) <= permitted(two)
    assert set(closed_ports(one, endpoint)) >= set(closed_ports(two, endpoint))
    mistaken = dataclasses.replace(who, problems=(*who.problems, *wrong.problems))
    (one, _), (two, _) = (
        dataclasses.replace(world, attached=parsed.spec).decide(each)
        for parsed, each in ((wrong, mistaken), (right, who))
    )
    assert accepted(one) <= accepted(two)
    assert permitted(one) <= permitted(two)


@given(worlds, _pairs(), _pairs(), st.lists(suspicious, max_size=1).map(dict))
@examples(250)
def test_an_image_opens_nothing(world: World, mine: dict[str, str], image: dict[str, str], odd: dict[str, str]) -> None:
    """A container accepts and may open nothing that it would not if its image had no labels, for any labels of the
    image."""
    image_labels = {**image, **odd}
    merged = {**image_labels, **mine}
    alone = {key: value for key, value in mine.items() if image_labels.get(key) != value}
    no_wider(world, container(merged, image_labels), container(alone))


@given(worlds, _pairs(), suspicious)
@examples(250)
def test_while_an_images_labels_are_unknown_nothing_is_wider(
    world: World, pairs: dict[str, str], odd: tuple[str, str]
) -> None:
    """The image was removed, so that its own labels are unknown: nothing is accepted or opened that would not be if all
    labels were the user's, nor if all of them were the image's."""
    labels = {**pairs, odd[0]: odd[1]}

    entry = listed(labels)
    unsure = container_labels.on_network(container_labels.read(entry, None, unknown="no such image"), "front")
    no_wider(world, unsure, container_labels.on_network(container_labels.read(entry, None), "front"))
    no_wider(world, unsure, container_labels.on_network(container_labels.read(entry, labels), "front"))


# --- a right label opens exactly what it says ---------------------------------------------------------------------


def _general(pairs: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in pairs.items() if not key.startswith("fw.network.")}


def _here(pairs: Mapping[str, str], name: str) -> dict[str, str]:
    start = f"fw.network.{name}."
    return {"fw." + key.removeprefix(start): value for key, value in pairs.items() if key.startswith(start)}


@given(_pairs(("fw.",), 3), _pairs(("fw.",), 3), _pairs(), _pairs(("fw.",), 3), st.booleans())
@examples(500)
def test_valid_labels_accept_and_permit_exactly_what_they_say(
    settings: dict[str, str], options: dict[str, str], pairs: dict[str, str], attached: dict[str, str], by_p: bool
) -> None:
    """Right labels in every place: a flow is accepted, or a connection permitted, if and only if the labels, read one
    by one, say so.

    Setting < network < container < the container's for this network < attachment.
    """
    spec = [parser.parse(each) for each in (settings, options, attached)]
    who = container(pairs)
    assert not [problem for each in (*spec, who) for problem in each.problems]
    network = dataclasses.replace(FRONT, spec=spec[1].spec)
    decided, _ = World(network, spec[0].spec, by_p, attached=spec[2].spec).decide(who)
    reading = naive.read([settings, options, _general(pairs), _here(pairs, "front"), attached])
    published = {(port.proto, port.container_port) for port in PORTS} if by_p else set()
    names = {**NAMES, "network:back": NAMES["network:shop_back"]}
    assert accepted(decided) == {f for f in FLOWS if naive.accepts(reading, f, names, published)}
    assert permitted(decided) == {f for f in FLOWS if naive.may_open(reading, f, names, HOST)}


@given(near_text)
@examples(300)
def test_any_text_in_fw_allow_opens_its_meaning_or_nothing(text: str) -> None:
    """Text that is almost right: it opens what it says when it is read by hand, or no port in addition to the base."""
    decided, _ = World().decide(container({"fw.allow": text}))
    reading = naive.Reading(naive.rules(text) or [], [], "default", None)
    by_hand = {f for f in FLOWS if naive.accepts(reading, f, NAMES)}
    if naive.rules(text) is None:
        assert accepted(decided) <= by_hand
        assert {(f.proto, f.port) for f in accepted(decided)} <= {("tcp", 22), ("tcp", 80), ("tcp", 443)}
    else:
        assert accepted(decided) == by_hand


def test_the_examples_are_partly_valid_and_partly_wrong() -> None:
    """The generated examples are partly right and partly wrong: no test of this file covers only one kind."""
    right = wrong = 0
    for key, text in (
        ("fw.allow", "22 from 10.0.0.0/8"),
        ("fw.egress", "443 to service:api, 53/udp"),
        ("fw.deny", "22"),
        ("fw.policy", "closed"),
        ("fw.rate", "22 5/minute"),
        ("fw.log", "drop"),
    ):
        for at in range(len(text) + 1):
            for scrap in ("x", "", "0", " "):
                problems = parser.parse({key: _damaged(text, at, scrap)}).problems
                right, wrong = right + (not problems), wrong + bool(problems)
    assert right > 50
    assert wrong > 100


@pytest.mark.parametrize("network", [FRONT, OURS])
def test_a_container_without_labels_has_the_base(network: BridgeNetwork | Network) -> None:
    """Without any label, the flows of this file to 22, 80 and 443 are accepted from all, and all connections are
    permitted."""
    decided, _ = World(network).decide(container({}))
    assert {(flow.proto, flow.port) for flow in accepted(decided)} == {("tcp", 22), ("tcp", 80), ("tcp", 443)}
    assert len(accepted(decided)) == 3 * len(PEERS)
    assert permitted(decided) == set(FLOWS)
