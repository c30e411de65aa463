"""The elements mean exactly the policy, and the table's text is valid on every host.

The golden files under tests/golden contain the whole table for a few networks; `FW_GOLDEN=write pytest tests/pure`
rewrites them after a wanted change, for a review of the diff.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.docker.proxy_ports import own_ports
from plugin.labels.parser import parse
from plugin.model import (
    Address,
    AddressPolicy,
    BridgeNetwork,
    Container,
    Defaults,
    Endpoint,
    Network,
    Policy,
    PolicySpec,
    Published,
    Rate,
    Rule,
)
from plugin.nftables import optional_chains, rate_chains
from plugin.nftables.compile import compiled
from plugin.nftables.document import document, element_text, replace, skeleton
from plugin.nftables.elements import (
    address_elements,
    endpoint_elements,
    guarded_elements,
    guest_elements,
    network_elements,
    port_elements,
    proxied_element,
    rule_elements,
)
from plugin.nftables.features import Features
from plugin.nftables.hooks import HOOKS
from plugin.nftables.rules_forward import PORT_0
from plugin.nftables.sets import RATED, SETS, Element, spec_of
from plugin.policy.decide import covers, of, passes, prefix_of
from plugin.policy.facts import ElementOwner, Facts, Kind
from plugin.policy.peers import PeerIndex
from plugin.protocols import NUMBER, WITH_PORTS
from tests.pure import strategies
from tests.pure.nftables.examples import DOCKER_NETWORK, MARK, OUT4, OUT6, V4, V6, golden
from tests.pure.strategies import (
    ELEMENT_TEXT,
    endpoints,
    examples,
    networks,
    ports,
    protos,
    rates,
    resolved_rules,
    rules,
    specs,
)
from tests.pure.tracer import CHAINS, Packet, Table, value

GOLDEN = Path(__file__).parents[2] / "golden"
NUMBERS: dict[str, int] = {**NUMBER, "other": 89}


def decided(network: Network | BridgeNetwork, endpoint: Endpoint, everywhere: PolicySpec) -> Policy:
    """Return the endpoint's policy where no other container is known."""
    return PeerIndex().resolved(of(network, endpoint, Defaults(everywhere)), endpoint.container)


def elements_of(network: Network, endpoint: Endpoint, everywhere: PolicySpec) -> frozenset[Element]:
    return endpoint_elements(network, endpoint, decided(network, endpoint, everywhere))


# --- what the kernel looks up -------------------------------------------------------------------------------------


def _probed(listed: Iterable[Rule], drawn: list[int]) -> list[int]:
    """Return the ports at each rule's edges and those of its blocks, and in addition the base's ports and the drawn
    ones."""
    edges = {
        port
        for rule in listed
        for size in (1, 16, 4096)
        for port in (
            rule.first - 1,
            rule.first,
            rule.last,
            rule.last + 1,
            rule.first // size * size,
            rule.last // size * size + size,
        )
    }
    return sorted(port for port in {*edges, *drawn, 22, 23, 80} if 1 <= port <= 65535)


def _sources(listed: Iterable[Rule], version: int, drawn: list[Address]) -> list[Address]:
    """Return addresses at the edges of each prefix that a rule names, and some others."""
    found: set[Address] = {OUT4 if version == 4 else OUT6, *(a for a in drawn if a.version == version)}
    for rule in listed:
        for peer in rule.peers:
            if peer.kind == "prefix" and (prefix := prefix_of(peer)).version == version:
                edges = (prefix.network_address, prefix.broadcast_address)
                found |= {*edges, *(a + 1 for a in edges[1:] if int(a) + 1 < 1 << a.max_prefixlen)}
    return sorted(found, key=int)[:5]


def _flows(
    listed: tuple[Rule, ...], address: Address, drawn: list[int], peers: list[Address]
) -> Iterable[tuple[str, int, Address]]:
    for proto in NUMBERS:
        about = [rule for rule in listed if rule.proto == proto]
        for port in _probed(about, drawn) if proto in WITH_PORTS else [0]:
            for peer in _sources(about, address.version, peers):
                yield proto, port, peer


_drawn = st.lists(ports, max_size=3)
_peers = st.lists(strategies.near4 | strategies.near6 | strategies.ipv4 | strategies.ipv6, max_size=2)


@given(networks, endpoints, specs, _drawn, _peers)
@examples(50)
def test_the_sets_decide_as_the_policy_does(
    network: Network, endpoint: Endpoint, everywhere: PolicySpec, drawn: list[int], peers: list[Address]
) -> None:
    """The result of the rules' set look-ups equals the policy, for any network, endpoint and packet."""
    policy = decided(network, endpoint, everywhere)
    table = Table(endpoint_elements(network, endpoint, policy) | network_elements(network))
    for address in filter(None, (endpoint.addr4, endpoint.addr6)):
        for proto, port, peer in _flows(policy.accepts, address, drawn, peers):
            packet = Packet(peer, address, NUMBERS[proto], port or 40001)
            found = table.verdict(f"inbound{address.version}", packet)
            assert found == ("permit" if passes(policy.accepts, proto, port, peer) else "deny"), (proto, port, peer)


@given(st.lists(resolved_rules, max_size=3).map(tuple), st.sampled_from([V4, V6]), _drawn, _peers)
@examples(80)
def test_a_rule_with_peers_accepts_exactly_those_peers(
    listed: tuple[Rule, ...], address: Address, drawn: list[int], peers: list[Address]
) -> None:
    """A packet is permitted if and only if a rule matches its port and source, for any rules with addresses and
    prefixes."""
    table = Table(address_elements("br0", address, Policy(accepts=listed, labels_valid=True, known=True)))
    for proto, port, peer in _flows(listed, address, drawn, peers):
        found = table.verdict(f"inbound{address.version}", Packet(peer, address, NUMBERS[proto], port or 40001))
        assert found == ("permit" if passes(listed, proto, port, peer) else "deny"), (proto, port, peer)


@given(st.lists(resolved_rules, max_size=3).map(tuple), st.sampled_from([V4, V6]), _drawn, _peers)
@examples(80)
def test_the_egress_sets_decide_as_the_policy_does(
    listed: tuple[Rule, ...], address: Address, drawn: list[int], peers: list[Address]
) -> None:
    """A packet of the container leaves if and only if a rule matches its port and target, for any egress."""
    table = Table(address_elements("br0", address, Policy(egress=listed, labels_valid=True, known=True)))
    assert not {name for name in table.sets if name.startswith(("egress_all4", "egress_all6", "allow", "from"))}
    for proto, port, peer in _flows(listed, address, drawn, peers):
        found = table.verdict(f"egress_allow{address.version}", Packet(address, peer, NUMBERS[proto], port or 40001))
        assert found == ("accept" if passes(listed, proto, port, peer) else ""), (proto, port, peer)


def test_a_rule_to_host_matches_the_host_only() -> None:
    """`8125/udp to host` matches packets to the host, and not packets that leave it."""
    spec = parse({"fw.egress": "8125/udp to host, 53/udp to host 203.0.113.7"}).spec
    table = Table(address_elements("br0", V4, Policy(egress=spec.egress, known=True)))
    for port, host, out in ((8125, "accept", ""), (53, "accept", "accept"), (80, "", "")):
        packet = Packet(V4, OUT4, 17, port)
        assert _to_host(table, packet) == host
        assert table.verdict("egress_allow4", packet) == out
    assert _to_host(table, Packet(V4, OUT4, 6, 8125)) == ""


def _to_host(table: Table, packet: Packet) -> str:
    """Return the result of chain `egress_allow_host`; its first rules are about connection tracking and port 0."""
    assert CHAINS["egress_allow_host"][:2] == ["ct state invalid return", f"{PORT_0} return"]
    return "accept" if table.found(CHAINS["egress_allow_host"][2:], packet) else ""


def test_a_known_unrestricted_container_is_free() -> None:
    """On an egress-restricted network each known container without restriction has its own element; an unknown one has
    none."""
    for known, free in ((True, {("br0", V4)}), (False, None)):
        table = Table(address_elements("br0", V4, Policy(known=known)))
        assert table.sets.get("egress_all4") == free
        assert "egress_restricted" not in table.sets


@given(networks, endpoints, specs)
@examples(40)
def test_elements_open_only_the_endpoints_own_addresses(
    network: Network, endpoint: Endpoint, everywhere: PolicySpec
) -> None:
    """No element that opens a port or permits a connection contains any address except the endpoint's own."""
    own = {endpoint.addr4, endpoint.addr6}
    for element in elements_of(network, endpoint, everywhere):
        if element.set.startswith(("allow", "peer_ports", "from", "egress_allow", "egress_peer_ports", "egress_to")):
            assert element.key[0] in own
        if element.set.startswith(("egress_all4", "egress_all6")):
            assert element.key[1] in own
        if element.data and element.set not in RATED:
            assert element.data[0] in own
        if element.set in RATED:
            assert str(element.data[0]).split("__")[1] in {str(each).replace(":", "-") for each in own}


@given(networks, endpoints, specs)
@examples(30)
def test_a_left_endpoint_leaves_no_element(network: Network, endpoint: Endpoint, everywhere: PolicySpec) -> None:
    """An endpoint that is not joined has no element, port or publication in the table, except the binding of its
    link."""
    left = dataclasses.replace(endpoint, joined=False)
    assert elements_of(network, left, everywhere) == {*port_elements(left)}


@given(networks, endpoints, specs)
@examples(60)
def test_an_element_contains_no_text_of_a_user(network: Network, endpoint: Endpoint, everywhere: PolicySpec) -> None:
    """An element's text consists of addresses, numbers, protocol names and interface names, whatever labels and names
    contain; its set is one of docker-fw's."""
    guests = guest_elements(DOCKER_NETWORK, endpoint, decided(DOCKER_NETWORK, endpoint, everywhere))
    for element in elements_of(network, endpoint, everywhere) | network_elements(network) | guests:
        assert re.fullmatch(ELEMENT_TEXT, element_text(element))
        spec = spec_of(element.set)
        assert (len(element.key), len(element.data)) == (len(spec.key), len(spec.data))
        assert element.set in SETS


@given(st.lists(rules, max_size=3), st.sampled_from([V4, V6]))
@examples(50)
def test_rules_without_peers_need_no_source(listed: list[Rule], address: Address) -> None:
    """Rules without peers are in the sets that are looked up first, and need no look-up of a source."""
    made = set(rule_elements(address, listed))
    assert {element.set for element in made} <= {f"allow{address.version}", f"allow{address.version}_blocks"}
    table = Table(made)
    for rule in listed:
        for port in (rule.first, rule.last):
            packet = Packet(OUT4 if address.version == 4 else OUT6, address, NUMBERS[rule.proto], port)
            assert table.verdict(f"inbound{address.version}", packet) == "permit"


def test_every_port_costs_one_element() -> None:
    """`*` and `1-65535` mean the same and need one element for an address; so does a protocol without ports."""
    for rule in (Rule("tcp", 1, 65535), Rule("tcp", 0, 65535), Rule("gre", 0, 0), Rule("other", 0, 0)):
        assert len(list(rule_elements(V4, [rule]))) == 1


def test_a_prefix_costs_one_element_for_each_port() -> None:
    """`8080 from 10.0.0.0/8` needs one element for the port and one for the prefix, and none in a family without such a
    prefix."""
    spec = parse({"fw.allow": "8080 from 10.0.0.0/8 2001:db8::/32"}).spec
    assert set(rule_elements(V4, spec.allow)) == {
        Element("peer_ports4", (V4, 6, 8080)),
        Element("from4", (V4, 6, 8080, 8, IPv4Address("10.0.0.0"))),
    }
    assert set(rule_elements(V6, spec.allow)) == {
        Element("peer_ports6", (V6, 6, 8080)),
        Element("from6", (V6, 6, 8080, 32, IPv6Address("2001:db8::"))),
    }
    only4 = parse({"fw.allow": "8080 from 10.0.0.0/8"}).spec
    assert list(rule_elements(V6, only4.allow)) == []
    assert {e.set for e in address_elements("br0", V6, Policy(accepts=only4.allow))} == {
        "ingress_drops6",
        "egress_drops6",
    }


# --- rates --------------------------------------------------------------------------------------------------------


@given(st.lists(rates, min_size=1, max_size=3), st.sampled_from([V4, V6]), ports, protos)
@examples(60)
def test_a_rate_counts_exactly_its_ports(listed: list[Rate], address: Address, port: int, proto: str) -> None:
    """A packet to a limited port is counted by exactly the rates for this port, and no other packet is."""
    v = address.version
    elements = set(address_elements("br0", address, Policy(rates=tuple(listed), labels_valid=True, known=True)))
    chains = {(element.set, element.key): str(element.data[0]) for element in elements if element.set in RATED}
    packet, found = Packet(OUT4 if v == 4 else OUT6, address, NUMBERS[proto], port), set()
    for line in CHAINS[f"rate_limit{v}"]:
        key, _, name = line.partition(" vmap @")
        chain_ = chains.get((name, tuple(value(part, packet) for part in key.split(" . "))), "")  # type: ignore[arg-type]
        text = optional_chains.inside([chain_]) if chain_ else ""
        found |= set(re.findall("limit rate ([0-9]+/[a-z]+ burst [0-9]+)", text))
    about = [rate for rate in listed if rate.proto == proto and rate.first <= port <= rate.last]
    assert found == {f"{rate.count}/{rate.unit} burst {rate.burst}" for rate in about}


def test_the_rates_of_an_address_are_its_own() -> None:
    """Chains and sets are named after the address and the rate. They can be added to an existing table, are part of a
    new one, and are removed completely."""
    (rate,) = parse({"fw.rate": "22 5/minute burst 10"}).spec.rate or ()
    names = set()
    for address in (V4, V4 + 1, V6):
        elements = set(address_elements("br0", address, Policy(rates=(rate,))))
        (chain_,) = {str(element.data[0]) for element in elements if element.set in RATED}
        names.add(chain_)
        added, whole, removed = (
            optional_chains.added([chain_]),
            document(MARK, elements),
            optional_chains.removed([chain_]),
        )
        own = re.findall(r"\t(set|chain) (\S+) \{", added)
        assert len(own) == 5
        for kind, name in own:
            assert f"\t{kind} {name} {{" in whole
            assert f"delete {kind} inet docker-fw {name}\n" in removed
        assert "limit rate 5/minute burst 10 packets" in added
        assert "chain rate_hook {" in whole
    assert len(names) == 3
    assert "limit4__172.18.0.2__5_minute_10" in names
    assert "__" not in document(MARK, set(address_elements("br0", V6, Policy())))


@pytest.mark.parametrize(
    ("rate", "short", "kept"),
    [("1_second_5", 6, 0), ("5_minute_10", 60, 121), ("1_day_2", 60, 172801), ("1000_second_60000", 60, 61)],
)
def test_only_a_proven_source_is_kept_for_long(rate: str, short: int, kept: int) -> None:
    """A source address that may be forged is forgotten after a minute; a source that completed a handshake is forgotten
    when it has its full burst again."""
    sets = rate_chains.limit(f"limit4__172.18.0.2__{rate}").sets
    meters = {name.partition("4__")[0]: spec.meter for name, spec in sets.items()}
    assert meters == {"sources": short, "networks": short} | ({"proven": kept} if kept else {})


def test_no_network_fills_a_set_alone() -> None:
    """A /24 or /48 may add at most a quarter of the sources in the time for which they are remembered."""
    for rate in ("1_second_5", "5_minute_10", "1_day_2", "60_second_1"):
        text = optional_chains.inside([f"limit6__2001-db8--1__{rate}"])
        seconds = int(re.findall("timeout ([0-9]+)s", text)[0])
        found = re.findall(r"(@wide.*)? limit rate over ([0-9]+)/second burst ([0-9]+) packets(?: \})? goto", text)
        one, every = (int(burst) + int(count) * seconds for _, count, burst in found[-2:])
        assert (one, every) == (pytest.approx(every / 4, rel=0.1), pytest.approx(2 * rate_chains.NEW, rel=0.1))
        assert every < 65535


# --- published ports, by docker-proxy -----------------------------------------------------------------------------

_host_ips = st.sampled_from(
    [
        IPv4Address("0.0.0.0"),
        IPv6Address("::"),
        IPv4Address("198.51.100.1"),
        IPv6Address("2001:db8:f::1"),
        IPv4Address("127.0.0.1"),
    ]
)
_published = st.lists(
    st.builds(Published, st.sampled_from(["tcp", "udp"]), _host_ips, st.integers(1, 65535), ports),
    max_size=3,
    unique_by=lambda port: port.host_port,
).map(tuple)


@given(_published, st.lists(resolved_rules, max_size=3).map(tuple), _peers)
@examples(120)
def test_docker_proxy_serves_the_sources_that_the_container_accepts(
    there: tuple[Published, ...], listed: tuple[Rule, ...], peers: list[Address]
) -> None:
    """A published port of the host is open to all, or closed except to sources that the container accepts; the
    container never sees the client's address."""
    endpoint = Endpoint("e", DOCKER_NETWORK.id, V4, V6, joined=True, container=Container("c", "c"), published=there)
    made = guest_elements(DOCKER_NETWORK, endpoint, Policy(accepts=listed, labels_valid=True, known=True))
    table = Table(made)
    for port in there:
        served, shut = proxied_element(port, "host_open"), proxied_element(port)
        if port.host_ip.is_loopback:
            assert served not in made
            assert shut not in made
            continue
        about = [rule for rule in listed if covers(rule, port.proto, port.container_port)]
        open_to_all = any(not rule.peers for rule in about)
        assert (served in made, shut in made) == (open_to_all, not open_to_all)
        v, host = port.host_ip.version, port.host_ip
        if host.is_unspecified:
            host = IPv4Address("198.51.100.9") if v == 4 else IPv6Address("2001:db8:f::9")
        for peer in () if open_to_all else _sources(about, v, peers):
            packet = Packet(peer, host, NUMBERS[port.proto], port.host_port)
            found = table.verdict(f"host_from{v}", packet)
            assert found == ("accept_host" if passes(about, port.proto, port.container_port, peer) else "deny_host")


def test_a_rate_applies_to_docker_proxys_port_too() -> None:
    """`fw.rate` applies to the container's port, whichever way a source takes."""
    port = Published("tcp", IPv4Address("0.0.0.0"), 2222, 22)
    rate = Rate("tcp", 22, 22, 5, "minute", 10)
    endpoint = Endpoint("e", DOCKER_NETWORK.id, V4, joined=True, container=Container("c", "c"), published=(port,))
    made = guest_elements(DOCKER_NETWORK, endpoint, Policy(rates=(rate,), labels_valid=True, known=True))
    assert {e for e in made if e.set.startswith("rate_limit_host")} == {
        Element("rate_limit_host", (2, 6, 2222), ("limit_host4__172.18.0.2__5_minute_10",))
    }


def test_a_port_opened_by_publishing_is_open_there_only() -> None:
    """A container's port that FW_PUBLISHED=allow opens is open to packets that were forwarded by the publication, and
    to no others."""
    made = set(address_elements("br0", V4, Policy(published=(Rule("tcp", 8080, 8080),), labels_valid=True, known=True)))
    assert Element("allow_published4", (V4, 6, 8080)) in made
    assert Table(made).verdict("inbound4", Packet(OUT4, V4, 6, 8080)) == "deny"


# --- networks -----------------------------------------------------------------------------------------------------


def test_a_network_has_its_elements() -> None:
    """Containers on the bridge communicate freely; IPv4 is masqueraded; an internal network is closed in both
    directions."""
    four, six = IPv4Interface("10.1.0.1/24"), IPv6Interface("2001:db8::1/64")

    def sets(network: Network) -> set[str]:
        assert {element.key[0] for element in network_elements(network)} == {"br0"}
        return {element.set for element in network_elements(network)} - {"same_bridge", "protected_bridges"}

    assert sets(Network("n", "br0", four, six)) == {"masqueraded"}
    assert sets(Network("n", "br0", None, six)) == set()
    assert sets(Network("n", "br0", four, masquerade=False)) == set()
    assert sets(Network("n", "br0", four, internal=True)) == {"internal"}


@pytest.mark.parametrize(
    ("mode", "routed"), [("nat", False), ("", False), ("isolated", False), ("routed", True), ("nat-unprotected", True)]
)
def test_the_mark_is_set_for_routed_networks_only(mode: str, routed: bool) -> None:
    """The mark is set for networks whose container addresses are meant to be reachable, per family; not for internal
    ones, which no packet enters or leaves."""
    for mode4, mode6 in ((mode, "nat"), ("nat", mode)):
        network = dataclasses.replace(DOCKER_NETWORK, mode4=mode4, mode6=mode6)
        family = 2 if mode4 == mode else 10
        wanted = {Element("routed", (family, "br-app"))} if routed else set()
        assert guarded_elements(network) == wanted
        inner = guarded_elements(dataclasses.replace(network, internal=True))
        assert inner == {Element("internal", ("br-app",))}


def test_each_port_of_dockerd_is_one_element() -> None:
    """Each port of FW_DOCKERD_PORTS is one element."""
    ports = own_ports([Rule("tcp", 2375, 2377), Rule("udp", 4789, 4789)], ())
    assert ports == {(6, 2375), (6, 2376), (6, 2377), (17, 4789)}
    assert compiled(Defaults(), Facts(dockerd=ports)).elements(ElementOwner(Kind.DOCKERD)) == {
        Element("dockerd_ports", port) for port in ports
    }


# --- the text -----------------------------------------------------------------------------------------------------


def hooks(text: str) -> dict[str, str]:
    return dict(re.findall(r"chain (\w+) \{\n\s*(type .*)", text))


def chains(text: str) -> dict[str, list[str]]:
    """Return the rules of each chain, without comments and the hook's line."""
    found = {}
    for name, body in re.findall(r"chain (\w+) \{\n(.*?)^\t\}", text, re.DOTALL | re.MULTILINE):
        lines = [line.strip() for line in body.splitlines()]
        found[name] = [line for line in lines if line and not line.startswith(("#", "type "))]
    return found


def test_the_skeleton_contains_no_port() -> None:
    """The rules contain no port number, not even the base's: an unregistered address has no open port.

    Port 0 is in them, because no rule opens it.
    """
    for line in chain.from_iterable(CHAINS.values()):
        if line in (f"{PORT_0} goto deny", f"{PORT_0} return"):
            continue
        plain = re.sub(r"th sport & 0x0 \| [0-9]+ \. ", "", line)  # a prefix's length
        plain = plain.replace("01:80:c2:00:00:00", "")  # a bridge's own address
        assert not re.search(r"\b(22|80|443)\b", plain)
        assert not re.search(r"port (!=|==)? ?\{?[0-9]", plain)


def test_a_host_with_nft_1_0_6_can_list_it() -> None:
    """Sets are `typeof`, and there is no verdict map: those make an nft 1.0.6 that lists the table crash (segmentation
    fault)."""
    text = skeleton(MARK)
    for _, name, body in re.findall(r"\t(set|map) (\w+) \{\n(.*?)\n\t\}", text, re.DOTALL):
        assert re.fullmatch(
            r"\t\ttypeof .*(\n\t\tflags timeout)?(\n\t\tcounter)?"
            r"|\t\ttypeof .*\n\t\tflags dynamic,timeout\n\t\ttimeout [0-9]+s",
            body,
        ), name
    assert len(re.findall(r"\t(?:set|map) \w+ \{", text)) == len(SETS)
    assert not re.search(r"vmap \{", text)
    assert not re.search(r"type .*verdict", text.replace("typeof", ""))


def test_no_set_is_an_interval_set_or_reserves_memory() -> None:
    """Plain hash sets only, without `flags interval`. Elements that packets add expire, and the kernel bounds their
    number: 65,535, or less in a rate's sets, which have a `size` for which it allocates buckets at once."""
    chain_ = "limit4__172.18.0.2__5_minute_10"
    text, own = skeleton(MARK, chains=[*HOOKS, chain_]), rate_chains.limit(chain_).sets
    assert "interval" not in text
    for _, name, body in re.findall(r"\t(set|map) (\S+) \{\n(.*?)\n\t\}", text, re.DOTALL):
        filled = name in own or bool(spec_of(name).meter)
        assert ("dynamic" in body) is filled, name
        assert ("size" in body) is (name in own and not name.startswith("sources")), name
    for name in re.findall(r"(?:update|add) @(\S+)", text):
        assert name in own or spec_of(name).meter


def test_every_way_to_a_container_ends_in_a_drop() -> None:
    """Each chain to which a packet to a container is passed (`goto`) ends in a drop, or in `permit`, which only packets
    that match a set reach. Chains that are called (`jump`) return or permit, and accept nothing themselves."""
    found = CHAINS
    final, asked, todo = set(), set(), ["inbound"]
    while todo:
        name = todo.pop()
        final.add(name)
        todo += [t for r in found[name] for t in re.findall(r"goto (\w+)", r) if t not in final]
        asked |= {t for r in found[name] for t in re.findall(r"jump (\w+)", r)}
    ends = {"deny", "deny_inbound", "deny_egress", "permit"}
    icmp = {"inbound_icmp", "icmp_in", "icmp6_in", "to_known_address", "to_unknown_address", "to_unknown_limited"}
    assert final == {"inbound", "inbound4", "inbound6", *icmp, *ends}
    for name in final - ends - {"to_known_address"}:
        assert found[name][-1] == "goto deny"
        assert not [rule for rule in found[name] if re.search(r"\b(return|continue)\b", rule)]
    for name in (*ends - {"permit"}, "deny_host"):
        assert found[name][-1] == 'counter name "drops" drop'
    # For ICMP and related packets: accepted to known containers, a few packets to other addresses.
    assert found["to_known_address"] == [
        "ip6 daddr != @ingress_drops6 goto to_unknown_address",
        "ip daddr != @ingress_drops4 goto to_unknown_address",
        "accept",
    ]
    assert [name for name in found if any("goto to_known_address" in r for r in found[name])] == [
        "inbound_icmp",
        "icmp_in",
        "icmp6_in",
    ]
    assert asked == {"peer_ports4", "peer_ports6", "from_container", "inbound_published"}
    for rule in chain.from_iterable(
        found[name] for name in found if name.startswith(("inbound", "peer_ports", "from"))
    ):
        if re.search("goto permit|accept", rule):
            assert re.search(r"@(allow|other|from|dnat|same_bridge)\w* (goto permit|accept)", rule), rule
    for name in ("peer_ports4", "peer_ports6", *(n for n in found if re.match("from[46]", n))):
        assert not [rule for rule in found[name] if not re.search(r"(jump from\w+|goto permit)$", rule)]
    assert found["permit"] == ["accept"]
    assert found["to_docker"][-1] == "goto inbound"


def test_packets_to_a_container_bridge_are_inbound() -> None:
    """A packet that opens a connection to a container bridge is judged as inbound, whatever its source, whether the
    network is known or not; a mark set by another program is not trusted. Before that come only established flows
    (except a new SYN), forged sources and quarantined flows."""
    established, unmarked, forged, expected, quarantine, *verdicts = CHAINS["forward"]
    assert established == "ct state established jump established"
    assert unmarked == "meta mark set meta mark & 0xf7ffffff"
    first, *_, last = CHAINS["established"]
    assert first == "tcp flags & (fin | syn | rst | ack) == syn ct direction original return"
    assert last == f"{unmarked} accept"
    assert forged == "ct state != related jump reverse_path_forward"
    assert expected == "ct state related meta l4proto != { icmp, ipv6-icmp } jump reverse_path_forward"
    assert quarantine == "meta nfproto @quarantine_families ct state new jump quarantine"
    assert verdicts[0] == "oifgroup 0x66770001 meta mark set meta mark | 0x08000000 goto inbound"


def test_chains_that_run_first_accept_nothing() -> None:
    """Chains that run before all others drop or return, and never accept."""
    for name in (
        "banned",
        "banned_prefixes",
        "from_container",
        "quarantine",
        "quarantine4",
        "quarantine6",
        "reverse_path",
        "reverse_path_bridge",
        "reverse_path_elsewhere",
        "reverse_path_forward",
        "reverse_path_own",
        *(
            name
            for name, hook in HOOKS.items()
            if hook.hook == "forward" and not name.startswith(("internal", "egress", "rate"))
        ),
    ):
        assert not [rule for rule in CHAINS[name] if "accept" in rule or "goto permit" in rule], name


def test_other_programs_traffic_is_not_filtered() -> None:
    """The base chains' policy is accept and they drop nothing themselves: docker-fw does not filter traffic of other
    programs."""
    for name, line in hooks(skeleton(MARK)).items():
        assert line.endswith("policy accept;"), name
        assert not [rule for rule in CHAINS[name] if "drop" in rule]


@given(st.integers(0, 31).map(lambda bit: 1 << bit))
@examples(32)
def test_the_mark_is_exactly_one_bit(mark: int) -> None:
    """Only docker-fw's bit is cleared and set; the other 31 belong to other programs."""
    text = skeleton(mark)
    found = chains(text)
    assert found["forward"][1] == f"meta mark set meta mark & {0xFFFFFFFF - mark:#010x}"
    assert found["accept_marked"] == [f"meta mark set meta mark | {mark:#010x} accept"]
    assert set(re.findall(r"meta mark (?:set meta mark )?([&|] 0x[0-9a-f]+)", text)) == {
        f"& {0xFFFFFFFF - mark:#010x}",
        f"| {mark:#010x}",
    }


def test_an_old_kernel_gets_a_table_without_missing_features() -> None:
    """A feature that an old kernel lacks is left out, and nothing else: no rule logs or looks up control groups, every
    new listener is quarantined, connections of a former docker-proxy too, and all other rules are the same."""
    whole, less = skeleton(MARK), skeleton(MARK, Features(cgroups=False, logs=False))
    assert "cgroup" in whole
    assert "log group" in whole

    def older(line: str) -> str:
        line = re.sub(r"limit rate [0-9]+/second burst [0-9]+ packets log group .*", "continue", line)
        return line.removeprefix("meta nfproto @proxy_unidentified ")

    assert chains(less) == {
        name: [older(line) for line in lines if "cgroupv2" not in line and "served_port" not in line]
        for name, lines in chains(whole).items()
        if name != "served_port"
    }


def test_a_port_that_docker_proxy_served_lately_is_one_element() -> None:
    """The port counts on its addresses, and its time is not in the table."""
    facts = Facts(served_ports={Published("tcp", IPv4Address(0), 8080, 0): 17.0})
    assert compiled(Defaults(), facts).elements(ElementOwner(Kind.SERVED)) == {Element("served_ports", (2, 6, 8080))}


def test_the_table_is_replaced_in_one_transaction() -> None:
    """The text creates the tables if missing, deletes them and creates them again in one transaction: at no time is the
    table partial or absent."""
    text = replace(MARK, ())
    both = "".join(f"table {family} docker-fw {{}}\ndelete table {family} docker-fw\n" for family in ("inet", "bridge"))
    assert text.startswith(f"{both}table inet docker-fw {{\n")
    assert text.count("delete ") == text.count("\ntable bridge docker-fw {\n") + 1 == 2
    without = replace(MARK, (Element("ports", ("fwv1",)),), Features(bridge=False))
    assert "bridge docker-fw" not in without


@given(st.lists(st.tuples(protos, resolved_rules), max_size=5), st.randoms(use_true_random=False))
@examples(30)
def test_the_same_elements_are_the_same_text(drawn: list[tuple[str, Rule]], random: object) -> None:
    """The document is sorted: equal elements give equal text, whatever the order in which they were added."""
    elements = list({e for _, rule in drawn for e in rule_elements(V6, [rule])})
    shuffled = elements.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert document(MARK, shuffled) == document(MARK, elements)


def test_an_element_with_a_timeout_is_written_with_it() -> None:
    """A ban for an hour is written with its timeout."""
    element = Element("banned4", (OUT4,))
    text = document(MARK, (), timed={element: 3600})
    assert "add element inet docker-fw banned4 { 203.0.113.7 timeout 3600s }\n" in text


# --- golden files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", golden())
def test_the_whole_table_equals_the_golden_file(name: str) -> None:
    """A host gets the table that was last reviewed: a change is visible as a diff."""
    text = document(MARK, golden()[name].all_elements())
    path = GOLDEN / f"{name}.nft"
    if os.environ.get("FW_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"differs from {path}; if that is wanted: FW_GOLDEN=write pytest {__file__}"


def test_the_policy_of_each_address_is_known() -> None:
    """The ports that each address of the example above accepts and may open are known with its subnet, with names
    resolved."""
    inventory = golden()["words"].view
    found = inventory.answers_of(inventory.owners())
    assert len(found) == 7
    assert found[V4] == AddressPolicy(IPv4Network("172.18.0.0/16"), found[V4].policy)
    assert list(map(str, found[V4].policy.accepts)) == [
        "gre",
        "22/tcp from 10.0.0.0/9",
        "443/tcp",
        "5432/tcp from 172.18.0.3 2001:db8:1::3 2001:db8:5::/48 203.0.113.7",
        "9100/tcp",
    ]
    assert list(map(str, found[IPv6Address("2001:db8:1::3")].policy.egress or ())) == [
        "esp",
        "5432/tcp from 172.18.0.2 2001:db8:1::2",
        "53/udp from host 2001:4860::8888",
    ]
