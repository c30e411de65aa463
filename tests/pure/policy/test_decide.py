"""The policy of an address: the base, the labels that open more or close, and the precedence of their places."""

from __future__ import annotations

import dataclasses
import itertools
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.labels.keys import EVERYTHING
from plugin.labels.parser import over, parse
from plugin.model import (
    BridgeNetwork,
    Container,
    Defaults,
    Endpoint,
    Network,
    Override,
    Peer,
    Policy,
    PolicySpec,
    Problem,
    Published,
    Rate,
    Rule,
)
from plugin.policy.decide import (
    BASE,
    closed_ports,
    covers,
    labels_valid,
    minus,
    of,
    passes,
    prefix_of,
    published,
    unconfirmed,
    words,
)
from plugin.protocols import PORTLESS
from tests.pure import strategies
from tests.pure.strategies import endpoints, examples, ipv4, ipv6, networks, overrides, ports, protos, specs
from tests.specs import spec_of as spec

V4, V6 = IPv4Address("172.18.0.2"), IPv6Address("2001:db8:1::2")
NETWORK = Network("n" * 64, "fw-nnnnnnnnnnnn")
DOCKER_NETWORK = BridgeNetwork("g" * 64, "front", "br-gggggggggggg", (IPv4Network("172.18.0.0/16"),))
KNOWN = Container("c" * 64, "web")
ENDPOINT = Endpoint("e" * 64, NETWORK.id, V4, V6, joined=True, container=KNOWN)
WRONG = Problem("label fw.allow", "808O", "is not a port")
MORE = (Rule("tcp", 8080, 8080),)
SSH, HTTP, HTTPS = BASE
NO_LABELS, NOTHING = PolicySpec(), Override()
TEN, OUTSIDE = Peer("prefix", "10.0.0.0/8"), IPv4Address("203.0.113.7")
INSIDE = IPv4Address("10.1.2.3")


def policy(settings: PolicySpec = NO_LABELS, override: Override = NOTHING, **pairs: str) -> Policy:
    """Return the policy of a container with these labels."""
    endpoint = dataclasses.replace(ENDPOINT, container=dataclasses.replace(KNOWN, spec=spec(**pairs)))
    return of(NETWORK, endpoint, Defaults(settings), override)


def texts(rules: tuple[Rule, ...]) -> list[str]:
    return [str(rule) for rule in rules]


# --- the base -----------------------------------------------------------------------------------------------------


def test_the_base_is_ssh_http_and_https_over_tcp() -> None:
    """A container without any configuration answers on TCP 22, 80 and 443, and may open any connection."""
    assert of(NETWORK, ENDPOINT) == Policy(accepts=BASE, labels_valid=True, known=True)
    assert [(rule.proto, rule.first, rule.last) for rule in BASE] == [("tcp", n, n) for n in (22, 80, 443)]
    assert of(DOCKER_NETWORK, ENDPOINT) == of(NETWORK, ENDPOINT)


def test_without_configuration_nothing_else_is_open() -> None:
    """Only the base's three ports are open, of all ports of all protocols."""
    accepts = of(NETWORK, ENDPOINT).accepts
    assert [port for port in range(65536) if passes(accepts, "tcp", port, OUTSIDE)] == [22, 80, 443]
    for proto in ("udp", "sctp"):
        assert not [port for port in range(0, 65536, 11) if passes(accepts, proto, port, OUTSIDE)]
    assert not [proto for proto in (*PORTLESS, "other", "icmp") if passes(accepts, proto, 0, OUTSIDE)]


@pytest.mark.parametrize("where", ["everywhere", "network", "endpoint", "container"])
def test_each_place_can_open_more(where: str) -> None:
    """A rule of the host's setting, the network, the attachment or the container's label adds to the base."""

    def spec(place: str) -> PolicySpec:
        return PolicySpec(allow=MORE if where == place else ())

    network = dataclasses.replace(NETWORK, spec=spec("network"))
    container = dataclasses.replace(KNOWN, spec=spec("container"))
    endpoint = dataclasses.replace(ENDPOINT, spec=spec("endpoint"), container=container)
    assert set(of(network, endpoint, Defaults(spec("everywhere"))).accepts) == {*BASE, *MORE}


# --- closed until known -------------------------------------------------------------------------------------------

_CLOSED = {
    "not joined": (NETWORK, dataclasses.replace(ENDPOINT, joined=False)),
    "labels unknown": (NETWORK, dataclasses.replace(ENDPOINT, container=None)),
    "labels wrong": (NETWORK, dataclasses.replace(ENDPOINT, container=dataclasses.replace(KNOWN, problems=(WRONG,)))),
    "internal network": (dataclasses.replace(NETWORK, internal=True), ENDPOINT),
    "internal network of Docker's": (dataclasses.replace(DOCKER_NETWORK, internal=True), ENDPOINT),
}
OPEN = PolicySpec(allow=(Rule("tcp", 1, 65535),), policy="open", egress=EVERYTHING)


@pytest.mark.parametrize(("network", "endpoint"), _CLOSED.values(), ids=_CLOSED)
def test_an_address_is_closed_until_it_is_known_and_valid(network: Network | BridgeNetwork, endpoint: Endpoint) -> None:
    """An address accepts nothing, not even the base, until it is joined, known and without mistakes, on a network that
    is not internal.

    The rules of the host, the network or the attachment do not change that, nor does fwctl.
    """
    network = dataclasses.replace(network, spec=OPEN)
    endpoint = dataclasses.replace(endpoint, spec=OPEN, published=(Published("tcp", IPv4Address("0.0.0.0"), 8080, 80),))
    closed = of(network, endpoint, Defaults(OPEN, published=True), Override(allow=OPEN.allow))
    assert (closed.accepts, closed.published, closed.rates, closed.labels_valid) == ((), (), (), False)


def test_a_known_container_may_have_wrong_labels() -> None:
    """An address with wrong labels is known; one whose container is not reported, or that has left, is not."""
    known = {name: of(network, endpoint).known for name, (network, endpoint) in _CLOSED.items()}
    assert known == {
        "not joined": False,
        "labels unknown": False,
        "labels wrong": True,
        "internal network": True,
        "internal network of Docker's": True,
    }


def test_an_unknown_container_is_closed() -> None:
    """The address's container is unknown now: it accepts nothing, and if it was egress-restricted, it may open no
    connection."""
    assert unconfirmed(policy(allow="8080", log="drop")) == Policy(log="drop")
    assert unconfirmed(policy(egress="443")) == Policy(egress=())
    assert unconfirmed(policy(egress="none")) == Policy(egress=())


@given(networks, endpoints, specs, overrides)
@examples(80)
def test_a_policy_is_empty_or_all_places_together(
    network: Network, endpoint: Endpoint, everywhere: PolicySpec, override: Override
) -> None:
    """A policy accepts nothing, or the rules of all places together if all conditions are met, for any network and
    endpoint."""
    decided = of(network, endpoint, Defaults(everywhere), override)
    container = endpoint.container
    right = container is not None and not container.problems and endpoint.joined and not network.internal
    assert decided.labels_valid is labels_valid(network, endpoint) is right
    assert decided.known is (endpoint.joined and container is not None)
    if not right:
        assert (decided.accepts, decided.published, decided.rates) == ((), (), ())
    else:
        assert list(decided.accepts) == sorted(set(decided.accepts))
        together = words(network, endpoint, Defaults(everywhere))
        assert set(override.allow) <= set(decided.accepts)
        if not override.deny:
            assert set(together.allow) <= set(decided.accepts)
    if container is not None and container.problems:
        assert decided.egress == ()


# --- deny, from, policy -------------------------------------------------------------------------------------------


def test_a_denied_port_leaves_the_base() -> None:
    """`fw.deny: "22"` closes 22 and nothing else; a port that `fw.allow` opens is not denied."""
    assert policy(deny="22").accepts == (HTTP, HTTPS)
    assert policy(deny="22, 80, 443, 8080").accepts == ()
    assert policy(deny="1-100").accepts == (HTTPS,)
    assert policy(deny="*/udp").accepts == BASE
    assert texts(policy(deny="22", allow="22").accepts) == ["22/tcp", "80/tcp", "443/tcp"]
    assert texts(policy(deny="8080", allow="8080").accepts) == ["22/tcp", "80/tcp", "443/tcp", "8080/tcp"]
    assert texts(policy(settings=spec(deny="22"), allow="22").accepts) == ["22/tcp", "80/tcp", "443/tcp"]


def test_from_on_a_base_port_replaces_it() -> None:
    """`22 from 10.0.0.0/8` closes 22 to all other sources; on another port it opens for these sources only."""
    decided = policy(allow="22 from 10.0.0.0/8, 5432 from 10.0.0.0/8")
    assert texts(decided.accepts) == ["22/tcp from 10.0.0.0/8", "80/tcp", "443/tcp", "5432/tcp from 10.0.0.0/8"]
    for port in (22, 5432):
        assert passes(decided.accepts, "tcp", port, INSIDE)
        assert not passes(decided.accepts, "tcp", port, OUTSIDE)
    assert texts(policy(allow="20-25 from 10.0.0.0/8").accepts) == ["20-25/tcp from 10.0.0.0/8", "80/tcp", "443/tcp"]
    assert texts(policy(allow="22/udp from 10.0.0.0/8").accepts)[:2] == ["22/tcp", "80/tcp"]
    # It replaces the base only: a port that another rule opens to all stays open to all.
    assert passes(policy(allow="22 from 10.0.0.0/8, 22").accepts, "tcp", 22, OUTSIDE)
    assert policy(allow="22 from any").accepts == BASE


def test_from_in_any_place_removes_the_port_from_the_base() -> None:
    """Lists add up: with `22 from …` in any place, the base's 22 is no longer open to all."""
    settings = Defaults(spec(allow="22 from 10.0.0.0/8"))
    assert texts(of(NETWORK, ENDPOINT, settings).accepts) == ["22/tcp from 10.0.0.0/8", "80/tcp", "443/tcp"]
    more = dataclasses.replace(ENDPOINT, spec=spec(allow="22 from 192.0.2.1"))
    assert texts(of(NETWORK, more, settings).accepts)[:2] == ["22/tcp from 10.0.0.0/8", "22/tcp from 192.0.2.1"]


def test_a_name_without_a_match_removes_its_port_from_the_base() -> None:
    """No source reaches 22 with `22 from service:api` and no container of service api."""
    assert texts(policy(allow="22 from service:api").accepts) == ["22/tcp from service:api", "80/tcp", "443/tcp"]
    assert not passes(policy(allow="22 from service:api").accepts, "tcp", 22, INSIDE)


def test_a_closed_policy_accepts_allowed_ports_only() -> None:
    """`fw.policy: closed` removes the whole base; `fw.allow` opens as before."""
    assert policy(policy="closed") == Policy(labels_valid=True, known=True)
    assert texts(policy(policy="closed", allow="443, 53/udp from 10.0.0.0/8").accepts) == [
        "443/tcp",
        "53/udp from 10.0.0.0/8",
    ]


def test_an_open_policy_accepts_all_but_denied_ports() -> None:
    """`fw.policy: open` accepts every port and protocol except denied ones and those restricted by `from`."""
    assert set(policy(policy="open").accepts) == set(EVERYTHING)
    some = policy(policy="open", deny="25, */udp, gre", allow="22 from 10.0.0.0/8, esp from 10.0.0.0/8").accepts
    assert texts(some) == [
        "ah",
        "esp from 10.0.0.0/8",
        "other",
        "1-65535/sctp",
        "1-21/tcp",
        "22/tcp from 10.0.0.0/8",
        "23-24/tcp",
        "26-65535/tcp",
    ]
    assert passes(some, "tcp", 65535, OUTSIDE)
    assert passes(some, "other", 0, OUTSIDE)
    for proto, port in (("tcp", 22), ("tcp", 25), ("udp", 53), ("gre", 0), ("esp", 0)):
        assert not passes(some, proto, port, OUTSIDE)
    assert passes(some, "esp", 0, INSIDE)


def test_a_default_policy_restores_the_base() -> None:
    """`fw.policy: default` on a container overrides the policy of its network or of a setting."""
    for general in ("open", "closed"):
        assert policy(settings=spec(policy=general), policy="default").accepts == BASE


def test_each_rule_has_its_origin() -> None:
    """`fwctl` reports whether a port comes from the base, a label, a setting or fwctl."""
    decided = policy(
        settings=dataclasses.replace(spec(), allow=parse({"fw.allow": "161/udp"}, "setting ").spec.allow),
        override=Override(allow=(Rule("tcp", 9000, 9000, origin="fwctl allow"),)),
        allow="8080",
    )
    assert {str(rule): rule.origin for rule in decided.accepts} == {
        "22/tcp": "base",
        "80/tcp": "base",
        "443/tcp": "base",
        "8080/tcp": "label fw.allow",
        "161/udp": "setting fw.allow",
        "9000/tcp": "fwctl allow",
    }
    assert {rule.origin for rule in policy(policy="open").accepts} == {"fw.policy: open"}


# --- precedence ---------------------------------------------------------------------------------------------------

_PLACES = ("image", "settings", "network", "container", "attachment")


def _placed(**by_place: PolicySpec) -> PolicySpec:
    """Return the values that apply where each place sets its own."""
    container = dataclasses.replace(
        KNOWN, spec=by_place.get("container", PolicySpec()), image_spec=by_place.get("image", PolicySpec())
    )
    endpoint = dataclasses.replace(ENDPOINT, container=container, spec=by_place.get("attachment", PolicySpec()))
    network = dataclasses.replace(NETWORK, spec=by_place.get("network", PolicySpec()))
    return words(network, endpoint, Defaults(by_place.get("settings", PolicySpec())))


@pytest.mark.parametrize(("farther", "closer"), list(itertools.combinations(_PLACES, 2)))
def test_the_more_specific_place_wins(farther: str, closer: str) -> None:
    """Precedence is image < setting < network < container < attachment, for the base, egress, rates and logging."""
    rate, other = (Rate("tcp", 22, 22, n, "minute", 5) for n in (5, 6))
    near, far = (
        PolicySpec(policy="closed", egress=(), rate=(rate,), log="drop"),
        PolicySpec((), (), "open", MORE, (other,), "none"),
    )
    for one, two in ((near, far), (far, near)):
        assert _placed(**{closer: one, farther: two}) == one
        assert _placed(**{farther: two}) == two


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(_PLACES[1:], 2)))
def test_lists_add_up_over_all_places(one: str, other: str) -> None:
    """Allowed and denied ports of several places add up."""
    together = _placed(**{one: spec(allow="1", deny="22"), other: spec(allow="2", deny="80")})
    assert set(together.allow) == {Rule("tcp", 1, 1), Rule("tcp", 2, 2)}
    assert set(together.deny) == {SSH, HTTP}


def test_overrides_have_the_highest_precedence() -> None:
    """`fwctl deny` closes a port that a label opens, `fwctl allow` opens a port that labels deny or close."""
    ssh, dns = Rule("tcp", 22, 22), Rule("udp", 53, 53)
    assert policy(override=Override(deny=(ssh,))).accepts == (HTTP, HTTPS)
    assert policy(override=Override(deny=(ssh, *MORE)), allow="8080, 22").accepts == (HTTP, HTTPS)
    assert policy(override=Override(allow=(ssh,)), deny="22").accepts == BASE
    assert policy(override=Override(allow=(dns,)), policy="closed").accepts == (dns,)
    assert Rule("tcp", 9001, 65535) in policy(override=Override(deny=(Rule("tcp", 9000, 9000),)), policy="open").accepts
    restricted = policy(override=Override(allow=(Rule("tcp", 22, 22, (TEN,)),)))
    assert texts(restricted.accepts) == ["22/tcp from 10.0.0.0/8", "80/tcp", "443/tcp"]


# --- published ports ----------------------------------------------------------------------------------------------

ANY4, ANY6, LOOPBACK = IPv4Address("0.0.0.0"), IPv6Address("::"), IPv4Address("127.0.0.1")
PORTS = (
    Published("tcp", ANY4, 15432, 5432),
    Published("tcp", ANY6, 15432, 5432),
    Published("tcp", ANY4, 18080, 80),
    Published("udp", IPv4Address("198.51.100.1"), 53, 53),
    Published("tcp", LOOPBACK, 16379, 6379),
)


def by_p(**pairs: str) -> tuple[list[str], list[int]]:
    """Return, for FW_PUBLISHED=allow, the ports that `-p` itself opens, and the host ports that are not open to all."""
    endpoint = dataclasses.replace(ENDPOINT, published=PORTS, container=dataclasses.replace(KNOWN, spec=spec(**pairs)))
    decided = of(NETWORK, endpoint, Defaults(published=True))
    assert of(NETWORK, endpoint).published == ()
    return texts(decided.published), sorted({port.host_port for port in closed_ports(decided, endpoint)})


def test_a_published_port_needs_an_allow_like_any_other() -> None:
    """By default `-p` opens nothing: the container's port must be open to all; loopback is not the outside."""
    endpoint = dataclasses.replace(ENDPOINT, published=PORTS)
    assert closed_ports(of(NETWORK, endpoint), endpoint) == (PORTS[0], PORTS[1], PORTS[3])
    labelled = dataclasses.replace(endpoint, container=dataclasses.replace(KNOWN, spec=spec(allow="5432, 53/udp")))
    assert closed_ports(of(NETWORK, labelled), labelled) == ()
    some = dataclasses.replace(endpoint, container=dataclasses.replace(KNOWN, spec=spec(allow="1-9000 from ::/0, *")))
    assert closed_ports(of(NETWORK, some), some) == (PORTS[3],)


def test_with_the_setting_publishing_opens() -> None:
    """FW_PUBLISHED=allow opens every port that is published beyond the host, unless a label closes it."""
    assert by_p() == (["80/tcp", "5432/tcp", "53/udp"], [])
    assert by_p(deny="5432") == (["80/tcp", "53/udp"], [15432])
    assert by_p(allow="5432 from 10.0.0.0/8") == (["80/tcp", "53/udp"], [15432])
    assert by_p(deny="5432", allow="5432") == (["80/tcp", "53/udp"], [])
    assert by_p(policy="closed") == ([], [53, 15432, 18080])
    assert by_p(policy="closed", allow="53/udp") == ([], [15432, 18080])
    assert by_p(policy="open") == (["80/tcp", "5432/tcp", "53/udp"], [])
    assert by_p(policy="open", deny="*/udp") == (["80/tcp", "5432/tcp"], [53])


def test_with_the_setting_fwctl_still_closes() -> None:
    """`fwctl deny` closes a port that `-p` opens."""
    endpoint = dataclasses.replace(ENDPOINT, published=PORTS)
    decided = of(NETWORK, endpoint, Defaults(published=True), Override(deny=(Rule("tcp", 5432, 5432),)))
    assert texts(decided.published) == ["80/tcp", "53/udp"]


def test_a_wrong_label_closes_published_ports() -> None:
    """FW_PUBLISHED=allow changes nothing where only ICMP is answered."""
    container = dataclasses.replace(KNOWN, problems=(WRONG,))
    endpoint = dataclasses.replace(ENDPOINT, published=PORTS, container=container)
    for network in (NETWORK, DOCKER_NETWORK):
        assert of(network, endpoint, Defaults(published=True)).published == ()


ALONE = tuple(
    Published("tcp", ip, 8000 + n, n) for n in (22, 80, 8080) for ip in (IPv4Address("127.0.0.1"), IPv6Address("::1"))
)


@pytest.mark.parametrize("base", ["default", "open"])
def test_a_port_published_on_loopback_leaves_the_base(base: str) -> None:
    """A port published for the host alone is not in the base on Docker networks; it is on docker-fw networks, which are
    reached by address. A rule for the port itself, in any place, still applies, and so does a publication that
    others reach."""

    def accepts(
        network: Network | BridgeNetwork,
        *more: Published,
        settings: PolicySpec = NO_LABELS,
        override: Override = NOTHING,
        **labels: str,
    ) -> set[int]:
        container = dataclasses.replace(KNOWN, spec=spec(policy=base, **labels))
        endpoint = dataclasses.replace(ENDPOINT, container=container, published=(*ALONE, *more))
        rules = of(network, endpoint, Defaults(settings), override).accepts
        return {port for port in (22, 80, 443, 8080) if passes(rules, "tcp", port, OUTSIDE)}

    assert accepts(NETWORK) == {22, 80, 443} | ({8080} if base == "open" else set())
    assert accepts(DOCKER_NETWORK) == {443}
    assert accepts(DOCKER_NETWORK, Published("tcp", IPv4Address("198.51.100.1"), 1, 80)) == {80, 443}
    assert accepts(DOCKER_NETWORK, Published("udp", IPv4Address("0.0.0.0"), 1, 80)) == {443}
    rule = Rule("tcp", 80, 80)
    assert accepts(DOCKER_NETWORK, allow="80") == {80, 443}
    assert accepts(DOCKER_NETWORK, settings=PolicySpec(allow=(rule,))) == {80, 443}
    assert accepts(dataclasses.replace(DOCKER_NETWORK, spec=PolicySpec(allow=(rule,)))) == {80, 443}
    assert accepts(DOCKER_NETWORK, override=Override(allow=(rule,))) == {80, 443}


def test_there_is_no_base_until_published_ports_are_known() -> None:
    """A starting container on a Docker network has no base, because it is not yet known which ports are published for
    the host alone. Ports that its labels open are open."""
    container = dataclasses.replace(KNOWN, spec=spec(allow="8080"))
    endpoint = dataclasses.replace(ENDPOINT, container=container, unlisted=True)
    assert [rule.first for rule in of(DOCKER_NETWORK, endpoint).accepts] == [8080]
    assert len(of(DOCKER_NETWORK, dataclasses.replace(endpoint, unlisted=False)).accepts) == 4


@given(st.lists(strategies.published, max_size=4).map(tuple))
@examples(50)
def test_published_ports_are_listed_once(listed: tuple[Published, ...]) -> None:
    """Each container port that is published to an address other than loopback is listed once."""
    found = published(dataclasses.replace(ENDPOINT, published=listed))
    wanted = {(p.proto, p.container_port, p.container_port) for p in listed if not p.host_ip.is_loopback}
    assert {(rule.proto, rule.first, rule.last) for rule in found} == wanted
    assert len(found) == len(wanted)


# --- egress, rates, log -------------------------------------------------------------------------------------------


def test_egress_permits_exactly_its_rules() -> None:
    """`none` permits nothing, a list permits its entries, `all` permits everything, also on an egress-restricted
    network."""
    assert policy().egress is None
    assert policy(egress="none").egress == ()
    assert policy(egress="443, 53/udp").egress == (HTTPS, Rule("udp", 53, 53))
    assert policy(egress="all").egress is None
    assert policy(settings=spec(egress="none")).egress == ()
    assert policy(settings=spec(egress="none"), egress="all").egress is None
    # Egress does not change what the container accepts.
    assert policy(egress="none").accepts == BASE
    assert policy(policy="closed").egress is None


def test_an_unknown_container_has_its_networks_egress() -> None:
    """An address whose container is not yet known may open the connections that its network and the settings permit."""
    egress_restricted = dataclasses.replace(NETWORK, spec=spec(egress="443"))
    for endpoint in (dataclasses.replace(ENDPOINT, container=None), dataclasses.replace(ENDPOINT, joined=False)):
        assert of(egress_restricted, endpoint).egress == (HTTPS,)
        assert of(NETWORK, endpoint).egress is None
        assert not of(NETWORK, endpoint).known


def test_rates_and_logging_are_the_most_specific_ones() -> None:
    """Rates and the log setting are part of the policy; a container with mistakes has no rates, and its log setting
    applies."""
    decided = policy(settings=spec(rate="80 1/second", log="drop"), rate="22 5/minute", log="none")
    assert [str(rate) for rate in decided.rates] == ["22/tcp 5/minute burst 5"]
    assert decided.log == "none"
    assert policy(settings=spec(log="drop")).log == "drop"
    wrong = dataclasses.replace(KNOWN, spec=spec(log="drop"), problems=(WRONG,))
    assert of(NETWORK, dataclasses.replace(ENDPOINT, container=wrong)) == Policy(egress=(), log="drop", known=True)


# --- mistakes -----------------------------------------------------------------------------------------------------

_MISTAKES: dict[str, tuple[dict[str, str], list[int], bool]] = {
    "fw.allow": ({"fw.allow": "808O, 8080"}, [22, 80, 443], True),
    "fw.allow and a right deny": ({"fw.allow": "808O", "fw.deny": "22"}, [80, 443], True),
    "fw.allow and a right from": ({"fw.allow": "808O, 22 from 10.0.0.0/8"}, [80, 443], True),
    "fw.allow with a wrong from": ({"fw.allow": "443 from 10.0.0.0/33"}, [22, 80], True),
    "fw.allow and a closed base": ({"fw.allow": "808O", "fw.policy": "closed"}, [], True),
    "fw.allow and an open base": ({"fw.allow": "808O", "fw.policy": "open"}, [22, 80, 443], True),
    "fw.allow and a way out": ({"fw.allow": "808O", "fw.egress": "443"}, [22, 80, 443], False),
    "fw.log": ({"fw.log": "x", "fw.allow": "8080"}, [22, 80, 443], True),
    "fw.deny": ({"fw.deny": "x"}, [], True),
    "fw.policy": ({"fw.policy": "clsed"}, [], True),
    "fw.rate": ({"fw.rate": "x"}, [], True),
    "an unknown key": ({"fw.alow": "8080"}, [], True),
    "a key like no other": ({"fw.zzzzzzzz": "8080"}, [], False),
    "fw.egress": ({"fw.egress": "x", "fw.deny": "22"}, [80, 443], False),
    "a key that may be fw.egress": ({"fw.egres": "none"}, [], False),
}


@pytest.mark.parametrize(("labels", "open_ports", "free"), _MISTAKES.values(), ids=_MISTAKES)
@pytest.mark.parametrize("where", ["container", "network", "attachment"])
def test_on_docker_networks_a_mistake_only_closes(
    where: str, labels: dict[str, str], open_ports: list[int], free: bool
) -> None:
    """A mistake refuses nothing on Docker networks. A wrong fw.allow leaves the base minus denied ports; a mistake that
    may have been meant to close leaves ICMP only; one that may concern egress permits no outbound connection. This
    applies to each place of the mistake."""
    parsed = parse(labels, "label " if where == "container" else "option ")
    labelled = dataclasses.replace(DOCKER_NETWORK, spec=parsed.spec, problems=parsed.problems)
    network = labelled if where == "network" else DOCKER_NETWORK
    container = dataclasses.replace(
        KNOWN,
        spec=parsed.spec if where == "container" else PolicySpec(),
        problems=parsed.problems if where != "network" else (),
    )
    attached = parsed.spec if where == "attachment" else PolicySpec()
    decided = of(network, dataclasses.replace(ENDPOINT, container=container, spec=attached))
    assert [port for port in range(1, 10_000) if passes(decided.accepts, "tcp", port, OUTSIDE)] == open_ports
    assert (decided.egress is None) is free
    assert decided.known


@pytest.mark.parametrize("labels", [labels for labels, _, _ in _MISTAKES.values()], ids=_MISTAKES)
def test_on_docker_fw_networks_a_mistake_leaves_icmp_only(labels: dict[str, str]) -> None:
    """Docker got an error at the start; a container that runs anyway (FW_MISTAKES=close) is closed in both
    directions."""
    parsed = parse(labels)
    container = dataclasses.replace(KNOWN, spec=parsed.spec, problems=parsed.problems)
    decided = of(NETWORK, dataclasses.replace(ENDPOINT, container=container))
    assert (decided.accepts, decided.published, decided.egress, decided.labels_valid) == ((), (), (), False)


# --- sets of ports ------------------------------------------------------------------------------------------------

_few = st.builds(
    lambda proto, a, b: Rule(proto, min(a, b), max(a, b)),
    st.sampled_from(["tcp", "udp"]),
    st.integers(1, 40),
    st.integers(1, 40),
) | st.sampled_from([Rule("gre", 0, 0), Rule("other", 0, 0)])


def _set(rules: object) -> set[tuple[str, int]]:
    return {(rule.proto, port) for rule in rules for port in range(rule.first, rule.last + 1)}  # type: ignore[attr-defined]


@given(st.lists(_few, max_size=4), st.lists(_few, max_size=5))
@examples(400)
def test_minus_is_the_difference_of_sets(rules: list[Rule], holes: list[Rule]) -> None:
    """The result covers the ports of the rules minus the denied ports, rule by rule, in no more pieces than needed."""
    assert _set(minus(rules, holes)) == _set(rules) - _set(holes)
    for rule in rules:
        left = list(minus([rule], holes))
        assert _set(left) == _set([rule]) - _set(holes)
        assert sum(each.last - each.first + 1 for each in left) == len(_set(left))
        assert len(left) <= len(holes) + 1


@given(
    st.builds(
        lambda rule, who: dataclasses.replace(rule, peers=who, origin="here"),
        strategies.rules,
        st.lists(strategies.peers, max_size=2).map(tuple),
    ),
    strategies.denied,
)
@examples(50)
def test_minus_leaves_everything_else_of_a_rule(rule: Rule, holes: tuple[Rule, ...]) -> None:
    """Each piece of a rule keeps its peers and its origin."""
    for piece in minus([rule], holes):
        assert (piece.peers, piece.origin) == (rule.peers, "here")


# --- one flow -----------------------------------------------------------------------------------------------------


@given(st.lists(strategies.resolved_rules, max_size=3).map(tuple), protos, ports, ipv4 | ipv6 | strategies.near4)
@examples(200)
def test_a_flow_passes_by_a_rule_of_its_own(
    rules: tuple[Rule, ...], proto: str, port: int, peer: IPv4Address | IPv6Address
) -> None:
    """A flow passes if and only if one rule has its protocol, its port and its peer."""
    by = [
        rule
        for rule in rules
        if rule.proto == proto
        and rule.first <= port <= rule.last
        and (not rule.peers or any(peer in prefix_of(each) for each in rule.peers))
    ]
    assert passes(rules, proto, port, peer) is bool(by)
    assert all(covers(rule, proto, port) for rule in by)


def test_an_unresolved_name_matches_no_address() -> None:
    """A peer that has not been resolved matches no address, and `host` has no address."""
    for kind in ("container", "service", "project", "network", "host"):
        assert not passes((Rule("tcp", 22, 22, (Peer(kind, "x"),)),), "tcp", 22, INSIDE)


@given(specs, specs)
@examples(50)
def test_any_two_places_merge_alike(one: PolicySpec, two: PolicySpec) -> None:
    """Merging two places gives the same result, whichever two they are; only their order matters."""
    expected = over(one, two)
    for near in range(1, 5):
        for far in range(near):
            assert _placed(**{_PLACES[far]: one, _PLACES[near]: two}) == expected
