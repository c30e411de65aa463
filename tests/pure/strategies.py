"""Hypothesis strategies over the nouns of `plugin.model`, and the settings that keep runs alike everywhere."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from plugin.model import PROTO_NUMBER, Container, Endpoint, Network, Problem, Published, Rule


def examples(count: int) -> settings:
    """So many examples, the same ones in every run, without a clock that fails on a busy machine."""
    return settings(max_examples=count, deadline=None, derandomize=True)


protos = st.sampled_from(sorted(PROTO_NUMBER))
#: Ports, with those in front that stand at the edge of something: the base, blocks of 16, 256 and 4096, the end.
ports = st.one_of(
    st.sampled_from([1, 15, 16, 17, 22, 80, 255, 256, 443, 4095, 4096, 8080, 61440, 65520, 65534, 65535]),
    st.integers(1, 65535),
)
rules = st.builds(lambda proto, a, b: Rule(proto, min(a, b), max(a, b)), protos, ports, ports)
some_rules = st.lists(rules, max_size=4).map(tuple)
texts = st.text(max_size=10)
problems = st.builds(Problem, texts, texts, texts, st.booleans())
ids = st.integers(0, 2**256 - 1).map("{:064x}".format)
ipv4 = st.integers(0, 2**32 - 1).map(IPv4Address)
ipv6 = st.integers(0, 2**128 - 1).map(IPv6Address)
containers = st.builds(Container, ids, texts, some_rules, st.lists(problems, max_size=2).map(tuple))
published = st.builds(Published, protos, st.one_of(ipv4, ipv6), ports, ports)
networks = st.builds(
    Network,
    id=ids,
    bridge=st.from_regex(r"[a-z][a-z0-9_.-]{0,14}", fullmatch=True),
    gateway4=st.none() | st.builds(lambda a, n: IPv4Interface((a, n)), ipv4, st.integers(0, 32)),
    gateway6=st.none() | st.builds(lambda a, n: IPv6Interface((a, n)), ipv6, st.integers(0, 128)),
    internal=st.booleans(),
    mtu=st.integers(68, 65535),
    masquerade=st.booleans(),
    host_ip=st.none() | ipv4,
    iface_prefix=st.sampled_from(["eth", "net"]),
    allow=some_rules,
)
endpoints = st.builds(
    Endpoint,
    id=ids,
    network_id=ids,
    addr4=st.none() | ipv4,
    addr6=st.none() | ipv6,
    mac=st.sampled_from(["", "02:42:ac:12:00:02"]),
    joined=st.booleans(),
    allow=some_rules,
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
_WORD = rf'(({_IP})|tcp|udp|sctp|ipv4|ipv6|[0-9]+|"[A-Za-z0-9][A-Za-z0-9_.-]{{0,14}}")'
#: All that an element may be in nft's words.
ELEMENT_TEXT = rf"{_WORD}( \. {_WORD})*( : {_WORD}( \. {_WORD})*)?"
