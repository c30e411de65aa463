"""The difference between the kernel's table and the expected one, as data: + is missing, - is to be removed. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from plugin.model import BridgeNetwork
from plugin.nftables.document import element_text
from plugin.nftables.fields import CGROUP, Value
from plugin.nftables.sets import SETS, TABLE, Change, Element
from plugin.policy.view import PolicyView

DriftLine = dict[str, Any]
#: The name of the container or network with an address or the name of a bridge.
Names = Mapping[Value, str]


def names(inventory: PolicyView) -> dict[Value, str]:
    """Return containers by their addresses, and networks by their bridges."""
    found: dict[Value, str] = {}
    for network in inventory.networks():
        found[network.bridge] = network.name if isinstance(network, BridgeNetwork) else f"network {network.id[:12]}"
    for owner in inventory.owners():
        if (place := inventory.endpoint(owner)) and (container := place[1].container):
            found.update((address, container.name) for address in (place[1].addr4, place[1].addr6) if address)
            if container.network:
                found[place[0].bridge] = container.network
    return found


@dataclass(frozen=True, slots=True)
class Line:
    """One rule: its bytes, as the kernel encodes them, its chain, and its number there."""

    raw: bytes
    chain: str
    handle: int
    family: str = "inet"


@dataclass(frozen=True, slots=True)
class TableDump:
    """The content of the kernel's tables.

    `sets`: all sets, by name. `leaving`: elements that are about to expire. If there is no table, everything is empty.
    """

    generation: int
    sets: frozenset[str]
    elements: frozenset[Element]
    leaving: frozenset[Element]
    lines: tuple[Line, ...]


def drift(
    wanted: Collection[Element],
    timed: Collection[Element],
    kernel: TableDump,
    text: str,
    put: Collection[Line],
    who: Names,
) -> list[DriftLine]:
    """Return the differences that would correct the kernel's table.

    `text`: the rules as they were written, `put` as they were read back then. `timed`: elements that remain until they
    expire.
    """
    if not kernel.sets:
        return [drift_line("+", "table", f"table inet {TABLE} is missing", "")]
    binds = "table bridge" in text
    there = {
        name
        for name, spec in SETS.items()
        if name in kernel.sets or (CGROUP not in spec.key and (binds or not spec.bridge))
    }
    should = {element for element in wanted if element.set in there}
    found = [drift_line("+", "set", f"set {name}", "") for name in sorted(there - kernel.sets)]
    stray = {name for name in kernel.sets if name.partition("__")[0] not in (*SETS, *_METERS)}
    found += [drift_line("-", "set", f"set {name}", "") for name in sorted(stray)]
    too_much = {e for e in kernel.elements - should - set(timed) - kernel.leaving if not (e.spec.meter or e.spec.stays)}
    found += elements(Change(tuple(too_much), tuple((should | set(timed)) - kernel.elements)), who)
    return [*found, *_rules(text, put, kernel.lines)]


#: Sets that belong to rates, with the sources of packets.
_METERS = tuple(
    f"{word}{kind}" for word in ("sources", "networks", "proven") for kind in ("4", "6", "_host4", "_host6")
)


def elements(change: Change, who: Names) -> list[DriftLine]:
    """Return the lines of a change, sorted so that removed and added elements of one set are together."""
    both = [("-", element) for element in change.remove] + [("+", element) for element in change.add]
    return [
        drift_line(sign, "element", f"{element.set} {_text(element)}", who_is(element, who))
        for sign, element in sorted(both, key=lambda each: (each[1].set, _text(each[1]), each[0]))
    ]


def who_is(element: Element, who: Names) -> str:
    """Return the containers, or else the network, that the element is about."""
    values = (*element.key, *element.data)
    by_address = [value for value in values if not isinstance(value, str)]
    found = [who[value] for value in by_address if value in who] or [who[value] for value in values if value in who]
    return ", ".join(dict.fromkeys(found))


def _text(element: Element) -> str:
    return " . ".join(map(str, element.key)) if element.spec.raw else element_text(element)


def drift_line(sign: str, what: str, text: str, who: str) -> DriftLine:
    """Return one line of a difference as data."""
    return {"sign": sign, "what": what, "text": text, "who": who}


def _rules(text: str, put: Collection[Line], now: Iterable[Line]) -> Iterator[DriftLine]:
    """Yield missing rules as docker-fw's text, and another program's rules by their position."""
    ours, there = {each.raw for each in put}, list(now)
    left = {line.raw for line in there}
    words = _by_chain(text)
    number: dict[str, int] = {}
    for line in put:
        at = number[line.chain] = number.get(line.chain, -1) + 1
        if line.raw not in left:
            of = words.get(line.chain, [])
            yield drift_line("+", "rule", f"chain {line.chain}: {of[at] if at < len(of) else f'rule {at + 1}'}", "")
    for line in there:
        if line.raw not in ours:
            where = f"nft -a list chain {line.family} {TABLE} {line.chain}"
            stray = f"a rule that is not docker-fw's, handle {line.handle} ({where})"
            yield drift_line("-", "rule", f"chain {line.chain}: {stray}", "")


def _by_chain(text: str) -> dict[str, list[str]]:
    """Return the rules of a table's text by chain, each as one line."""
    found: dict[str, list[str]] = {}
    chain: list[str] | None = None
    for line in map(str.strip, text.splitlines()):
        if line.startswith("chain ") and line.endswith("{"):
            chain = found.setdefault(line.split()[1], [])
        elif line.startswith(f"add rule inet {TABLE} "):
            name, _, rule = line.removeprefix(f"add rule inet {TABLE} ").partition(" ")
            found.setdefault(name, []).append(rule)
        elif line == "}":
            chain = None
        elif chain is not None and line and not line.startswith(("#", "type ")):
            chain.append(line)
    return found
