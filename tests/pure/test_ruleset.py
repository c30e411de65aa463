"""The table as data: the elements say exactly what the policy says, and the text is one that any host can read.

The golden files under tests/golden hold the whole table for a few networks; `FW_GOLDEN=write pytest tests/pure`
writes them anew after a wanted change, to be read as a diff.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from itertools import chain, pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from plugin.model import PROTO_NUMBER, Address, Container, Endpoint, Network, Problem, Published, Rule
from plugin.policy import verdict
from plugin.ruleset import (
    SETS,
    Element,
    blocks,
    endpoint_elements,
    network_elements,
    rule_elements,
)
from plugin.table import document, element_text, replace, skeleton
from tests.pure.strategies import ELEMENT_TEXT, endpoints, examples, networks, ports, protos, rules, some_rules

GOLDEN = Path(__file__).parents[1] / "golden"
MARK = 0x08000000
SIZES = {1: "", 16: "_16", 256: "_256", 4096: "_4096"}


# --- ranges as blocks ---------------------------------------------------------------------------------------------


@given(ports, ports)
@example(1, 65535)
@example(1, 1)
@example(65535, 65535)
@example(1, 65534)
@example(4081, 65519)
@examples(250)
def test_blocks_cover_exactly_the_range(a: int, b: int) -> None:
    """A range opens each of its ports and no other, and costs at most 104 elements."""
    first, last = sorted((a, b))
    cut = list(blocks(first, last))
    assert cut[0][1] == first
    assert cut[-1][1] + cut[-1][0] - 1 == last
    assert all(port + size == following for (size, port), (_, following) in pairwise(cut))
    assert all(size in SIZES and port % size == 0 for size, port in cut)
    assert len(cut) <= 104


def test_blocks_are_as_few_as_measured() -> None:
    """20000-21023 takes 19 elements, every port 16, and no range at all more than 104."""
    assert len(list(blocks(20000, 21023))) == 19
    assert len(list(blocks(0, 65535))) == 16
    assert len(list(blocks(1, 65534))) == 104  # 3 × 15 up to a block of 4096, 14 of those, 3 × 15 down again


def test_every_port_costs_as_little_written_either_way() -> None:
    """`*` and `1-65535` mean the same and take sixteen elements for an address."""
    for first in (1, 0):
        assert len(list(rule_elements(IPv4Address("10.0.0.2"), [Rule("tcp", 1, 65535)]))) == 16, first


# --- what the kernel looks up -------------------------------------------------------------------------------------


def looked_up(elements: Iterable[Element], address: Address, proto: str, port: int) -> bool:
    """What the rules of chain `inbound` do with the sets, in Python: four tiers, each asked with the masked port."""
    standing = set(elements)
    family = "allow4" if isinstance(address, IPv4Address) else "allow6"
    number = PROTO_NUMBER[proto]  # type: ignore[index]
    return any(
        Element(family + suffix, (address, number, port & (0x10000 - size))) in standing
        for size, suffix in SIZES.items()
    )


def _probed(rules: Iterable[Rule], drawn: list[int]) -> set[int]:
    """The ports at each rule's edges and those of its blocks, besides the base's and what was drawn."""
    edges = {port for rule in rules for size in SIZES for port in (rule.first - 1, rule.first, rule.last, rule.last + 1,
             rule.first // size * size, rule.last // size * size, rule.last // size * size + size)}  # fmt: skip
    return {port for port in {*edges, *drawn, 21, 22, 23, 79, 80, 81, 442, 443, 444} if 1 <= port <= 65535}


@given(networks, endpoints, some_rules, st.lists(ports, max_size=5))
@examples(100)
def test_the_sets_say_what_the_policy_says(
    network: Network, endpoint: Endpoint, everywhere: tuple[Rule, ...], drawn: list[int]
) -> None:
    """For any network, endpoint and packet: what the kernel finds in the sets equals the reference verdict."""
    elements = endpoint_elements(network, endpoint, everywhere) | network_elements(network)
    asked = [*everywhere, *network.allow, *endpoint.allow, *(endpoint.container.allow if endpoint.container else ())]
    for address in filter(None, (endpoint.addr4, endpoint.addr6)):
        for port in _probed(asked, drawn):
            for proto in PROTO_NUMBER:
                reference = verdict(network, endpoint, address, proto, port, everywhere)
                assert looked_up(elements, address, proto, port) is reference, (address, proto, port)


@given(networks, endpoints, some_rules)
@examples(40)
def test_elements_open_only_the_endpoints_own_addresses(
    network: Network, endpoint: Endpoint, everywhere: tuple[Rule, ...]
) -> None:
    """No element that opens a port is about any address but the endpoint's own."""
    own = {endpoint.addr4, endpoint.addr6}
    for element in endpoint_elements(network, endpoint, everywhere):
        if element.set.startswith("allow"):
            assert element.key[0] in own
        if element.data:
            assert element.data[0] in own


@given(networks, endpoints, some_rules)
@examples(30)
def test_a_left_endpoint_leaves_no_element(network: Network, endpoint: Endpoint, everywhere: tuple[Rule, ...]) -> None:
    """An endpoint that is not joined has nothing in the table: no port, no publication."""
    assert not endpoint_elements(network, dataclasses.replace(endpoint, joined=False), everywhere)


@given(networks, endpoints, some_rules)
@examples(70)
def test_no_text_of_a_user_gets_into_a_command(
    network: Network, endpoint: Endpoint, everywhere: tuple[Rule, ...]
) -> None:
    """An element's text is addresses, numbers, protocol names and interface names, whatever labels and names say."""
    for element in endpoint_elements(network, endpoint, everywhere) | network_elements(network):
        assert re.fullmatch(ELEMENT_TEXT, element_text(element))
        spec = SETS[element.set]
        assert (len(element.key), len(element.data)) == (len(spec.key), len(spec.data))


# --- the text -----------------------------------------------------------------------------------------------------


def chains(text: str) -> dict[str, list[str]]:
    """The rules of each chain, without comments and the hook's line."""
    found = {}
    for name, body in re.findall(r"chain (\w+) \{\n(.*?)\n\t\}", text, re.DOTALL):
        lines = [line.strip() for line in body.splitlines()]
        found[name] = [line for line in lines if line and not line.startswith(("#", "type "))]
    return found


def hooks(text: str) -> dict[str, str]:
    return dict(re.findall(r"chain (\w+) \{\n\s*(type .*)", text))


def test_the_skeleton_knows_no_port() -> None:
    """The rules mention no port number, not even the base's: an address that nobody registered has nothing."""
    for line in chain.from_iterable(chains(skeleton(MARK)).values()):
        assert not re.search(r"\b(22|80|443)\b", line)
        assert not re.search(r"port (!=|==)? ?\{?[0-9]", line)


def test_a_host_with_nft_1_0_6_can_list_it() -> None:
    """Sets are `typeof`, and there is no verdict map: those segfault an nft 1.0.6 that lists the table."""
    text = skeleton(MARK)
    for _, name, body in re.findall(r"\t(set|map) (\w+) \{\n(.*?)\n\t\}", text, re.DOTALL):
        assert re.fullmatch(r"\t\ttypeof .*(\n\t\tflags timeout)?", body), name
    assert len(re.findall(r"\t(?:set|map) \w+ \{", text)) == len(SETS)
    assert "vmap" not in text
    assert "verdict" not in text


def test_no_set_is_an_interval_set_nor_takes_memory_empty() -> None:
    """Plain hash sets only, without `flags interval` and without a reserved `size`."""
    assert "interval" not in skeleton(MARK)
    assert not re.search(r"\bsize\b", skeleton(MARK))


def test_every_way_to_a_container_ends_in_a_drop() -> None:
    """Each chain that a packet to a container can get to ends in a drop, and none returns to where it came from."""
    found = chains(skeleton(MARK))
    reachable, todo = set(), ["inbound"]
    while todo:
        name = todo.pop()
        reachable.add(name)
        todo += [t for r in found[name] for t in re.findall(r"(?:goto|jump) (\w+)", r) if t not in reachable]
    assert reachable == {"inbound", "icmp_in", "icmp6_in", "deny"}
    for name in reachable - {"deny"}:
        assert found[name][-1] == "goto deny"
        assert not [rule for rule in found[name] if re.search(r"\b(return|jump|continue)\b", rule)]
    assert found["deny"] == ['counter name "drops" drop']
    assert found["to_docker"][-1] == "goto inbound"


def test_going_out_to_a_container_bridge_comes_first() -> None:
    """A packet that begins something on one of our bridges is judged as inbound, wherever it comes from, known network
    or not; nobody else's mark is believed; before that there is only what is established, or forged."""
    first, established, forged, *verdicts = chains(skeleton(MARK))["forward"]
    assert first == "meta mark set meta mark & 0xf7ffffff"
    assert established == "ct state established goto established"
    assert forged.startswith("ct state new fib saddr oifname @bridges")
    assert forged.endswith("goto deny")
    assert verdicts[0] == "oifgroup 0x66770001 meta mark set meta mark | 0x08000000 goto inbound"


def test_foreign_traffic_is_left_alone() -> None:
    """The base chains' policy is accept and they drop nothing themselves: what is not a container's is not ours."""
    text = skeleton(MARK)
    for name, line in hooks(text).items():
        assert line.endswith("policy accept;"), name
        assert not [rule for rule in chains(text)[name] if "drop" in rule]


@given(st.integers(0, 31).map(lambda bit: 1 << bit))
@examples(32)
def test_the_mark_is_exactly_one_bit(mark: int) -> None:
    """Only our bit is cleared and set; the other 31 belong to others."""
    found = chains(skeleton(mark))
    assert found["forward"][0] == f"meta mark set meta mark & {0xFFFFFFFF - mark:#010x}"
    assert found["marked"] == [f"meta mark set meta mark | {mark:#010x} accept"]


def test_it_is_replaced_in_one_transaction() -> None:
    """The text to apply brings the table into being, deletes it and makes it anew: never half, never without."""
    text = replace(MARK, ())
    assert text.startswith("table inet fw {}\ndelete table inet fw\ntable inet fw {\n")
    assert text.count("delete ") == 1


@given(st.lists(st.tuples(protos, rules), max_size=5), st.randoms(use_true_random=False))
@examples(50)
def test_the_same_elements_are_the_same_text(drawn: list[tuple[str, Rule]], random: object) -> None:
    """The document is sorted: equal knowledge is equal text, in whatever order it came to be known."""
    address = IPv6Address("2001:db8::2")
    elements = list({e for _, rule in drawn for e in rule_elements(address, [rule])})
    shuffled = elements.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert document(MARK, shuffled) == document(MARK, elements)


# --- golden files -------------------------------------------------------------------------------------------------


def _id(letter: str) -> str:
    return letter * 64


def _dual() -> Network:
    return Network(
        _id("a"), "fw-aaaaaaaaaaaa", IPv4Interface("172.18.0.1/16"), IPv6Interface("2001:db8:1::1/64"),
        allow=(Rule("tcp", 9100, 9100),),
    )  # fmt: skip


def _golden() -> dict[str, tuple[list[Network], list[Endpoint], tuple[Rule, ...]]]:
    dual = _dual()
    inner = Network(_id("b"), "backend0", IPv4Interface("10.9.0.1/24"), internal=True)
    six = Network(_id("c"), "fw-cccccccccccc", None, IPv6Interface("2001:db8:2::1/64"))
    web = Endpoint(
        _id("d"), dual.id, IPv4Address("172.18.0.2"), IPv6Address("2001:db8:1::2"), joined=True,
        container=Container(
            _id("e"), "web", (Rule("tcp", 8080, 8080), Rule("tcp", 20000, 21023), Rule("udp", 53, 53))
        ),
        published=(
            Published("tcp", IPv4Address("0.0.0.0"), 8443, 443),
            Published("tcp", IPv6Address("::"), 8443, 443),
            Published("udp", IPv4Address("198.51.100.1"), 53, 53),
            Published("tcp", IPv4Address("127.0.0.1"), 5432, 5432),
        ),
    )  # fmt: skip
    unknown = Endpoint(_id("f"), dual.id, IPv4Address("172.18.0.3"), IPv6Address("2001:db8:1::3"), joined=True)
    wrong = dataclasses.replace(
        unknown, id=_id("1"), addr4=IPv4Address("172.18.0.4"), addr6=None,
        container=Container(_id("2"), "w", (), (Problem("label fw.allow", "808O", "is not a port"),)),
    )  # fmt: skip
    left = dataclasses.replace(web, id=_id("3"), addr4=IPv4Address("172.18.0.5"), addr6=None, joined=False)
    db = Endpoint(_id("4"), inner.id, IPv4Address("10.9.0.2"), joined=True, container=Container(_id("5"), "db"))
    all_open = Endpoint(
        _id("6"), six.id, None, IPv6Address("2001:db8:2::2"), joined=True,
        container=Container(_id("7"), "all", (Rule("sctp", 1, 65535),)),
    )  # fmt: skip
    return {
        "empty": ([], [], ()),
        "one-network": ([dual], [web], ()),
        "closed": ([dual], [unknown, wrong, left], (Rule("tcp", 9999, 9999),)),
        "several": ([dual, inner, six], [web, db, all_open], (Rule("udp", 161, 161),)),
    }


@pytest.mark.parametrize("name", _golden())
def test_the_whole_table_is_as_it_was(name: str) -> None:
    """The table that a host gets is the one that was last looked at: a change of it is seen as a diff."""
    nets, ends, everywhere = _golden()[name]
    elements = {element for network in nets for element in network_elements(network)}
    for endpoint in ends:
        (network,) = (n for n in nets if n.id == endpoint.network_id)
        elements |= endpoint_elements(network, endpoint, everywhere)
    text = document(MARK, elements)
    path = GOLDEN / f"{name}.nft"
    if os.environ.get("FW_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"differs from {path}; if that is wanted: FW_GOLDEN=write pytest {__file__}"
