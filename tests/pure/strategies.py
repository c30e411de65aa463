"""Hypothesis strategies over the types of `plugin.model`, and the settings that keep runs alike everywhere."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_network
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from plugin.labels.grammar import LONGEST, remembered
from plugin.labels.keys import EVERYTHING
from plugin.model import (
    Container,
    Endpoint,
    Network,
    Override,
    Overriding,
    Peer,
    PolicySpec,
    Prefix,
    Problem,
    Published,
    Rate,
    Rule,
)
from plugin.protocols import PORTLESS, WITH_PORTS
from tests.inputs import inputs


def examples(count: int) -> settings:
    """Use this number of examples, see `inputs`."""
    return inputs(count)


protos = st.sampled_from(sorted(WITH_PORTS))
#: Ports, starting with those at an edge: of the base, of blocks of 16, 256 and 4096, of the range.
ports = st.one_of(
    st.sampled_from([1, 15, 16, 17, 22, 80, 255, 256, 443, 4095, 4096, 8080, 61440, 65520, 65534, 65535]),
    st.integers(1, 65535),
)
rules = st.builds(lambda proto, a, b: Rule(proto, min(a, b), max(a, b)), protos, ports, ports)
some_rules = st.lists(rules, max_size=4).map(tuple)
texts = st.text(max_size=10)
problems = st.builds(Problem, texts, texts, texts, st.booleans(), st.booleans())
ids = st.integers(0, 2**256 - 1).map("{:064x}".format)
ipv4 = st.integers(0, 2**32 - 1).map(IPv4Address)
ipv6 = st.integers(0, 2**128 - 1).map(IPv6Address)


# --- peers and rules ----------------------------------------------------------------------------------------------


def _cut(address: IPv4Address | IPv6Address, length: int) -> Prefix:
    return ip_network((int(address).to_bytes(address.max_prefixlen // 8, "big"), length), strict=False)


#: Addresses close to each other, so that prefixes and sources meet.
near4 = st.integers(0, 0x3FF).map(lambda n: IPv4Address((10 << 24) + n))
near6 = st.integers(0, 2**10 - 1).map(lambda n: IPv6Address((0x20010DB8 << 96) + (n >> 5 << 64) + (n & 31)))
prefixes4: st.SearchStrategy[Prefix] = st.builds(_cut, ipv4 | near4, st.integers(0, 32))
prefixes6: st.SearchStrategy[Prefix] = st.builds(_cut, ipv6 | near6, st.integers(0, 128))
prefixes = prefixes4 | prefixes6.filter(lambda p: p.network_address.ipv4_mapped is None)  # type: ignore[union-attr]
names = st.sampled_from(["api", "db", "web", "shop", "front", "A.b_c-d"])


def prefix_peer(prefix: IPv4Network | IPv6Network) -> Peer:
    whole = prefix.prefixlen == prefix.max_prefixlen
    return Peer("prefix", str(prefix.network_address if whole else prefix))


prefix_peers = st.builds(prefix_peer, prefixes)
named_peers = st.builds(Peer, st.sampled_from(["container", "service", "project", "network"]), names)
peers = prefix_peers | named_peers | st.just(Peer("host"))


def _with(rule: Rule, who: list[Peer]) -> Rule:
    return Rule(rule.proto, rule.first, rule.last, tuple(sorted(set(who))), rule.origin)


portless = st.sampled_from(sorted(PORTLESS)).map(lambda proto: Rule(proto, 0, 0))
#: Rules of a label: with ports and without, for all and for some peers.
any_rules = st.builds(_with, rules | portless, st.just([]) | st.lists(peers, min_size=1, max_size=3))
#: The same with addresses only, as a policy has them once names are resolved.
resolved_rules = st.builds(_with, rules | portless, st.just([]) | st.lists(prefix_peers, min_size=1, max_size=3))
some_any_rules = st.lists(any_rules, max_size=3).map(tuple)
denied = st.lists(rules | portless, max_size=2).map(tuple)
rates = st.builds(
    lambda rule, count, unit, burst: Rate(rule.proto, rule.first, rule.last, count, unit, burst),
    rules,
    st.integers(1, 1_000_000),
    st.sampled_from(["second", "minute", "hour", "day"]),
    st.integers(1, 65535),
).filter(lambda rate: remembered(rate.count, rate.unit, rate.burst) <= LONGEST)
policies = st.sampled_from(["", "", "default", "closed", "open"])
specs = st.builds(
    PolicySpec,
    allow=some_any_rules,
    deny=denied,
    policy=policies,
    egress=st.none() | st.just(()) | st.just(EVERYTHING) | some_any_rules,
    rate=st.none() | st.lists(rates, max_size=2).map(tuple),
    log=st.sampled_from(["", "drop", "none"]),
)
overrides = st.builds(Override, some_any_rules, denied)
overridings = st.builds(
    Overriding, ids, any_rules, st.booleans(), st.sampled_from([0, 0.0, 1.5, 1_900_000_000, 1_900_000_000.25])
)


# --- containers and endpoints -------------------------------------------------------------------------------------

containers = st.builds(
    Container,
    id=ids,
    name=texts | names,
    spec=specs,
    problems=st.lists(problems, max_size=2).map(tuple),
    notices=st.lists(texts, max_size=2).map(tuple),
    network=texts | names,
    project=texts | names,
    service=texts | names,
    image_spec=st.just(PolicySpec()) | specs,
)
published = st.builds(Published, protos, st.one_of(ipv4, ipv6), ports, ports)
bridges = st.from_regex(r"[a-z][a-z0-9_.-]{0,14}", fullmatch=True)
networks = st.builds(
    Network,
    id=ids,
    bridge=bridges,
    gateway4=st.none() | st.builds(lambda a, n: IPv4Interface((a, n)), ipv4, st.integers(0, 32)),
    gateway6=st.none() | st.builds(lambda a, n: IPv6Interface((a, n)), ipv6, st.integers(0, 128)),
    internal=st.booleans(),
    mtu=st.integers(68, 65535),
    masquerade=st.booleans(),
    host_ip=st.none() | ipv4,
    iface_prefix=st.sampled_from(["eth", "net"]),
    spec=specs,
)
endpoints = st.builds(
    Endpoint,
    id=ids,
    network_id=ids,
    addr4=st.none() | ipv4,
    addr6=st.none() | ipv6,
    mac=st.sampled_from(["", "02:42:ac:12:00:02"]),
    joined=st.booleans(),
    spec=specs,
    container=st.none() | containers,
    published=st.lists(published, max_size=3).map(tuple),
)
#: Any JSON value, as `json.loads` gives it.
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)

_IP = r"[0-9a-f:]+(\.[0-9.]+)?|[0-9.]+"
_WORD = rf'(({_IP})|tcp|udp|sctp|gre|esp|ah|ipv4|ipv6|[0-9]+|0x[0-9a-f]+|"[A-Za-z0-9][A-Za-z0-9_.-]{{0,14}}")'
#: The name of a rate's chain, and any text of an element in nft's syntax.
_CHAIN = r"limit(_host)?[46]__[0-9a-f.-]+(__[0-9]+_(second|minute|hour|day)_[0-9]+)+"
ELEMENT_TEXT = rf"{_WORD}( \. {_WORD})*( : (jump {_CHAIN}|{_WORD}( \. {_WORD})*))?"


def shapes(value: Any) -> st.SearchStrategy[Any]:
    """Draw JSON that has a request's shape in most places and any value in the others."""
    if isinstance(value, dict):
        inner: st.SearchStrategy[Any] = st.fixed_dictionaries({}, optional={k: shapes(v) for k, v in value.items()})
        full: st.SearchStrategy[Any] = st.fixed_dictionaries({k: shapes(v) for k, v in value.items()})
        return st.one_of(full, full, inner, json_values)
    if isinstance(value, list):
        return st.one_of(st.just(value), st.lists(shapes(value[0]), max_size=3) if value else st.just([]), json_values)
    return st.one_of(st.just(value), st.just(value), st.just(value), json_values)


# --- text -------------------------------------------------------------------------------------------------------

#: Text with a meaning for a shell, nft, a terminal, a log or a number parser.
HOSTILE_TEXTS = [
    '"; flush ruleset; #', "}", "22; flush ruleset #", "a\nadd rule inet docker-fw x accept", "--help", "-f",
    "$(reboot)", "\x1b[2J\x1b]0;x\x07", "\u202egnp.exe", "\u200b", "\u0000", "\ud800", "٨٠٨٠", "８０８０", "²", "..",
    "../../etc/passwd",
    "0.0.0.0/0", "::/0", "::ffff:10.0.0.1", "fe80::1%eth0", "8080", "1-65535", "icmp", "all", "", " ", "x" * 5000,
    "fw-", "lo", "eth0", "*", "true", "1e400",
]  # fmt: skip
#: Pieces of the label language and similar text, so that random combinations reach its edge cases.
scraps = st.sampled_from(
    [
        "80",
        "8080",
        "65535",
        "65536",
        "0",
        "9000-9100",
        "-",
        "/",
        "udp",
        "tcp",
        "sctp",
        "/udp",
        "*",
        ",",
        "\n",
        " ",
        "\t",
        "x",
        "١",
        "\u2028",
        "\x0b",
        "\u00a0",
        "1" * 30,
        "from",
        "any",
        "Ⅷ",
        "\ud800",
        "\x00",
        '"',
        " from ",
        " to ",
        "10.0.0.1",
        "10.0.0.0/8",
        "::1",
        "2001:db8::/32",
        "service:",
        "service:api",
        "host",
        "gre",
        "/gre",
        "none",
        "all",
        " 5/minute",
        " burst 3",
        "/day",
        ":",
        "::ffff:1.2.3.4",
    ]
)
any_text = st.text(max_size=200) | st.lists(scraps, max_size=30).map("".join)
#: The same, limited to characters of a keyboard and the blanks of the grammar; it is more often almost right.
near_text = st.lists(scraps.filter(lambda s: s.isascii() and s != "\x0b"), max_size=8).map("".join)
