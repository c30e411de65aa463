"""The chains that limit new flows to ports with a rate, and their sets of sources, as nft's text. Pure.

Each container has its own chains and sets, so that sources which flood one container take no room from another's. A
chain's name contains its address and its rates (`sets.limit_chain`), and its content follows from the name.

- `sources`: the recent sources. A source can be forged, so it is forgotten after `SHORT` seconds at most, and only so
  many are added in that time: the set holds twice `NEW`, and has room again right after a flood. When it is full, new
  sources are dropped.
- `networks`: the networks of these sources. One network may add a quarter of them. When it is full, as in a flood from
  all over the Internet, it limits nothing.
- `proven`, for a rate whose burst takes longer to refill: sources that completed a TCP handshake, which a forged one
  cannot. They are remembered for as long as that takes. When it is full, `sources` still limits.

The kernel allocates buckets for a set's size. `sources` has no size: 65,535 elements, without buckets for them.
The others are made to shrink at once.
"""

from __future__ import annotations

from typing import NamedTuple

from plugin.labels.grammar import remembered
from plugin.nftables.sets import DENIED, SetSpec

#: Maximum seconds that a source is remembered, unless it has proven that it is not forged.
SHORT = 60
#: New sources accepted at once, and again in the time that they are remembered; and the same for one network.
NEW, NEW_OF_ONE = 4096, 1024
#: Maximum number of proven sources, and of networks, that are remembered.
PROVEN, NETWORKS = 4096, 1024
_IP = {4: "ip", 6: "ip6"}
#: A source: an address, for IPv6 its /64, which belongs to one customer at least. And the source's network.
_SOURCE = {4: "ip saddr", 6: "ip6 saddr & ffff:ffff:ffff:ffff::"}
_NETWORK = {4: "ip saddr & 255.255.255.0", 6: "ip6 saddr & ffff:ffff:ffff::"}
#: A segment of an open connection. (Of established flows, only TCP reaches this rule.)
_ESTABLISHED = "ct state established tcp flags & (fin | syn | rst | ack) != syn"


class Limit(NamedTuple):
    """The parts of a rate chain: sets by name, and chains with their rules by name, the chain itself first."""

    sets: dict[str, SetSpec]
    chains: dict[str, tuple[str, ...]]


def limit(name: str) -> Limit:
    """Return the sets and chains of a rate."""
    kind, _, *rates = name.split("__")
    if len(rates) == 1:
        return _one(name, int(kind[-1]), rates[0])
    each = {f"{name}.{number}": rate for number, rate in enumerate(rates)}
    needed = [_one(chain, int(kind[-1]), rate) for chain, rate in each.items()]
    chains = {name: tuple(f"jump {chain}" for chain in each)}
    for one in needed:
        chains |= one.chains
    return Limit({key: spec for one in needed for key, spec in one.sets.items()}, chains)


def _one(chain: str, version: int, rate: str) -> Limit:
    count, unit, burst = rate.split("_")
    limited = f"{count}/{unit} burst {burst} packets"
    memory = remembered(int(count), unit, int(burst))
    short = min(memory, SHORT)
    of, ip = chain.removeprefix("limit"), _IP[version]
    sources, networks, proven_sources = f"sources{of}", f"networks{of}", f"proven{of}"
    typed, key = ("meta l4proto", "th dport", f"{ip} saddr"), f"meta l4proto . th dport . {_SOURCE[version]}"
    sets = {
        sources: SetSpec(typed, comment="recent sources", meter=short),
        networks: SetSpec((f"{ip} saddr",), comment="networks of recent sources", meter=short, size=NETWORKS),
    }
    of_one = f"{_NETWORK[version]} limit rate over {NEW_OF_ONE // short}/second burst {NEW_OF_ONE} packets"
    rules = (
        f"{key} != @{sources} update @{networks} {{ {of_one} }} goto {DENIED}",
        f"{key} != @{sources} limit rate over {NEW // short}/second burst {NEW} packets goto {DENIED}",
        f"update @{sources} {{ {key} limit rate {limited} }} return",
        f"goto {DENIED}",
    )
    if memory <= SHORT:
        return Limit(sets, {chain: (f"{_ESTABLISHED} return", *rules)})
    sets[proven_sources] = SetSpec(typed, comment="sources that have completed a handshake", meter=memory, size=PROVEN)
    # A look-up that finds an element also counts against its limit; one that finds none does not.
    over = f"@{proven_sources} {{ {key} limit rate over {limited} }}"
    proven = (
        f"{_ESTABLISHED} {key} != @{proven_sources} add {over}",
        f"{_ESTABLISHED} return",
        f"{key} != @{proven_sources} goto {chain}.short",
        f"update {over} goto {DENIED}",
        f"{key} != @{proven_sources} goto {DENIED}",
    )
    return Limit(sets, {chain: proven, f"{chain}.short": rules})


def size(name: str) -> int:
    """Return the number of limits of a chain: they cost memory."""
    return 0 if name == DENIED else max(1, name.count("__") - 1)


def remembers(count: int, unit: str, burst: int) -> bool:
    """True if a source must be remembered longer than a source that may be forged."""
    return remembered(count, unit, burst) > SHORT
