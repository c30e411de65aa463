"""A few networks with containers: whole tables of them are under tests/golden, and packets are sent through these."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from plugin.labels.parser import parse
from plugin.model import (
    BridgeNetwork,
    Container,
    Defaults,
    Endpoint,
    Network,
    Overriding,
    PolicySpec,
    Problem,
    Published,
    Rule,
    TrackedEndpoint,
)
from plugin.nftables import fields
from plugin.nftables.compile import ElementCompiler, compiled
from plugin.nftables.sets import SETS, Element, packed
from plugin.policy.facts import Facts
from plugin.policy.saved import SavedState

MARK = 0x08000000
V4, V6 = IPv4Address("172.18.0.2"), IPv6Address("2001:db8:1::2")
OUT4, OUT6 = IPv4Address("203.0.113.7"), IPv6Address("2001:db8:9::9")
DOCKER_NETWORK = BridgeNetwork("g" * 64, "app", "br-app", (IPv4Network("172.18.0.0/16"),))


def blank(name: str) -> Element:
    """Return an element of this set whose key is all zeros."""
    return packed(name, bytes(fields.length(SETS[name].key)))


def _id(letter: str) -> str:
    return letter * 64


def labels(**pairs: str) -> PolicySpec:
    """Return what labels mean: `labels(allow="8080")`."""
    parsed = parse({f"fw.{key}": value for key, value in pairs.items()})
    assert not parsed.problems
    return parsed.spec


def dual_network() -> Network:
    """Return a docker-fw network of both families."""
    return Network(
        _id("a"),
        "fw-aaaaaaaaaaaa",
        IPv4Interface("172.18.0.1/16"),
        IPv6Interface("2001:db8:1::1/64"),
        spec=labels(allow="9100"),
    )


def inventory(
    nets: Iterable[Network],
    ends: Iterable[Endpoint],
    everywhere: PolicySpec,
    guests: Iterable[Endpoint] = (),
    network: BridgeNetwork = DOCKER_NETWORK,
    overrides: tuple[Overriding, ...] = (),
) -> ElementCompiler:
    bound = [dataclasses.replace(end, mac=f"02:42:ac:00:00:0{end.id[0]}") for end in ends]
    state = SavedState({net.id: net for net in nets}, {end.id: end for end in bound}, overrides=overrides)
    tracked = {guest.id: TrackedEndpoint(guest, True) for guest in guests}
    known = {network.id: network} if tracked else {}
    return compiled(Defaults(everywhere), Facts(state, networks=known, guests=tracked, listed=True))


def golden() -> dict[str, ElementCompiler]:
    """Return the facts of each golden table, by the name of its file."""
    dual = dual_network()
    inner = Network(_id("b"), "backend0", IPv4Interface("10.9.0.1/24"), internal=True)
    six = Network(_id("c"), "fw-cccccccccccc", None, IPv6Interface("2001:db8:2::1/64"))
    web = Endpoint(
        _id("d"),
        dual.id,
        IPv4Address("172.18.0.2"),
        IPv6Address("2001:db8:1::2"),
        joined=True,
        container=Container(_id("e"), "web", labels(allow="8080, 20000-21023, 53/udp")),
        published=(
            Published("tcp", IPv4Address("0.0.0.0"), 8443, 443),
            Published("tcp", IPv6Address("::"), 8443, 443),
            Published("udp", IPv4Address("198.51.100.1"), 53, 53),
            Published("tcp", IPv4Address("127.0.0.1"), 5432, 5432),
        ),
    )
    unknown = Endpoint(_id("f"), dual.id, IPv4Address("172.18.0.3"), IPv6Address("2001:db8:1::3"), joined=True)
    wrong = dataclasses.replace(
        unknown,
        id=_id("1"),
        addr4=IPv4Address("172.18.0.4"),
        addr6=None,
        container=Container(_id("2"), "w", problems=(Problem("label fw.allow", "808O", "is not a port"),)),
    )
    left = dataclasses.replace(web, id=_id("3"), addr4=IPv4Address("172.18.0.5"), addr6=None, joined=False)
    db = Endpoint(_id("4"), inner.id, IPv4Address("10.9.0.2"), joined=True, container=Container(_id("5"), "db"))
    all_open = Endpoint(
        _id("6"),
        six.id,
        None,
        IPv6Address("2001:db8:2::2"),
        joined=True,
        container=Container(_id("7"), "all", labels(allow="*/sctp")),
    )
    return {
        "empty": inventory([], [], PolicySpec()),
        "one-network": inventory([dual], [web], PolicySpec()),
        "closed": inventory([dual], [unknown, wrong, left], labels(allow="9999")),
        "several": inventory([dual, inner, six], [web, db, all_open], labels(allow="161/udp")),
        "words": _every_keyword(dual, six),
    }


def _every_keyword(dual: Network, six: Network) -> ElementCompiler:
    """Every keyword of the language, and `fwctl` overrides: on docker-fw networks and on a Docker network."""

    def who(letter: str, name: str, **pairs: str) -> Container:
        return Container(_id(letter), name, labels(**pairs), network="shop_front", project="shop", service=name)

    web = Endpoint(
        _id("d"),
        dual.id,
        V4,
        V6,
        joined=True,
        container=who(
            "e",
            "web",
            allow="5432 from service:api 2001:db8:5::/48 203.0.113.7, gre, 22 from 10.0.0.0/9",
            deny="80, 9100-9200",
            rate="443 5/minute burst 10, 5000-6000/udp 1/day",
            log="drop",
        ),
    )
    api = Endpoint(
        _id("f"),
        dual.id,
        IPv4Address("172.18.0.3"),
        IPv6Address("2001:db8:1::3"),
        joined=True,
        container=who("1", "api", policy="closed", egress="5432 to service:web, 53/udp to host 2001:4860::8888, esp"),
    )
    wide = Endpoint(
        _id("2"),
        six.id,
        None,
        IPv6Address("2001:db8:2::2"),
        joined=True,
        container=who("3", "wide", policy="open", deny="25, */udp"),
    )
    guest = Endpoint(
        _id("4"),
        DOCKER_NETWORK.id,
        IPv4Address("172.19.0.2"),
        joined=True,
        container=who("5", "guest", allow="8080 from 203.0.113.0/24 project:shop", rate="80 100/second", egress="none"),
        published=(
            Published("tcp", IPv4Address("0.0.0.0"), 18080, 8080),
            Published("tcp", IPv6Address("::"), 18080, 8080),
            Published("tcp", IPv4Address("198.51.100.1"), 18081, 8080),
            Published("tcp", IPv4Address("0.0.0.0"), 80, 80),
        ),
    )
    wrong = Endpoint(
        _id("6"),
        DOCKER_NETWORK.id,
        IPv4Address("172.19.0.3"),
        joined=True,
        container=dataclasses.replace(who("7", "wrong"), problems=parse({"fw.egress": "x"}).problems),
    )
    ours, theirs = (dataclasses.replace(each, spec=labels(egress="443")) for each in (six, DOCKER_NETWORK))
    subnets = (IPv4Network("172.19.0.0/16"), IPv6Network("2001:db8:3::/64"))
    docker_network = dataclasses.replace(theirs, subnets=subnets, mode6="routed")
    overrides = (Overriding(_id("3"), Rule("tcp", 1000, 1999), True), Overriding(_id("1"), Rule("tcp", 9, 9)))
    return inventory([dual, ours], [web, api, wide], labels(egress="all"), [guest, wrong], docker_network, overrides)
