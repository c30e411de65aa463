"""A state with a value in each field, and a directory for files, for tests of the store."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, ip_network
from pathlib import Path

from plugin.labels.keys import EVERYTHING
from plugin.model import Container, Endpoint, Network, Overriding, Peer, PolicySpec, Published, Rate, Rule
from plugin.policy.saved import SavedState

MORE, TEN = Rule("tcp", 8080, 8080, origin="network option fw.allow"), Peer("prefix", "10.0.0.0/8")
NETWORK = Network("a" * 64, "fw-aaaaaaaaaaaa", IPv4Interface("172.18.0.1/16"), spec=PolicySpec(allow=(MORE,)))
SPEC = PolicySpec(
    (Rule("tcp", 22, 22, (TEN, Peer("service", "api"))), Rule("gre", 0, 0)),
    (Rule("tcp", 80, 80),),
    "closed",
    (Rule("udp", 53, 53, (Peer("host"),)),),
    (Rate("tcp", 22, 22, 5, "minute", 10, "label fw.rate"),),
    "drop",
)
ENDPOINT = Endpoint(
    "b" * 64,
    NETWORK.id,
    IPv4Address("172.18.0.2"),
    IPv6Address("2001:db8::2"),
    "02:42:ac:12:00:02",
    joined=True,
    spec=PolicySpec(egress=EVERYTHING),
    container=Container("c" * 64, "wéb", SPEC, (), ("a notice",), "front", "shop", "web", PolicySpec(egress=())),
    published=(Published("tcp", IPv4Address("0.0.0.0"), 8081, 80),),
)
AFTER = SavedState(
    {NETWORK.id: NETWORK},
    {ENDPOINT.id: ENDPOINT},
    "boot-1",
    frozenset({2, 10}),
    frozenset({"virbr0"}),
    {"c" * 64: (Published("tcp", IPv6Address("::"), 8443, 443),)},
    frozenset({"br-front"}),
    (
        Overriding("c" * 64, Rule("tcp", 9000, 9000, (TEN,), "fwctl allow"), False, 1_900_000_000.5),
        Overriding("d" * 64, Rule("udp", 1, 65535), True),
    ),
    {ip_network("203.0.113.7"): 0, ip_network("2001:db8::/48"): 1_900_000_000.25},
    internal=frozenset({"br-inner"}),
)


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """Return a directory in memory, where one exists: some tests write thousands of files."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fw-store-", dir=memory) as path:
        yield Path(path)
