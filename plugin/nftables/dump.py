"""Read the content of docker-fw's tables back from the kernel: sets, elements and rules.

It uses a socket of its own and no lock: a dump of 80,000 elements takes a while. The ruleset's generation shows
whether anything changed meanwhile; then it is read again.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address

from plugin.kernel import netlink as nl
from plugin.kernel.names import AF
from plugin.model import Address, Published
from plugin.nftables import fields, ruleset
from plugin.nftables.codec import NFPROTO_BRIDGE, NFPROTO_INET
from plugin.nftables.drift import Line, TableDump
from plugin.nftables.fields import VERDICT, Value
from plugin.nftables.identity import FORMER_SETS
from plugin.nftables.ruleset import Table
from plugin.nftables.sets import SETS, TABLE, Element, SetSpec, packed
from plugin.protocols import BY_NUMBER

#: linux/netfilter/nf_tables.h: NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_SET_ELEM_{KEY,DATA,EXPIRATION}, NFTA_DATA_*, …
_LIST_ELEMENTS = 3
_KEY, _DATA, _EXPIRATION, _VALUE, _DATA_VALUE, _DATA_VERDICT, _VERDICT_CHAIN = 1, 2, 5, 1, 1, 2, 2
#: Every address of a family, as Docker writes it.
_EVERY: dict[Value, Address] = {AF[4]: IPv4Address(0), AF[6]: IPv6Address(0)}
#: Maximum number of readings of the tables if a program changes something meanwhile.
_TRIES = 5


def read() -> TableDump:
    """Read the tables. Raises OSError. If they change all the time, the last reading is returned."""
    with nl.kept_socket() as sock:
        for _ in range(_TRIES):
            found = _read(sock)
            if ruleset.generation(sock) == found.generation:
                break
    return found


def listening() -> frozenset[Published] | None:
    """Return the ports of the host's own programs in an existing table.

    The result is None if that table blocks no other listeners. Raises OSError.
    """
    with nl.open_socket() as sock:
        if not _current_or_former(sock, "proxy_unidentified"):
            return None
        names = ("host_own", "host_own4", "host_own6")
        dumped = ((name, _current_or_former(sock, name)) for name in names)
        return frozenset(_port(element) for name, dump in dumped for element, _ in _elements(dump, name, SETS[name]))


def served() -> frozenset[Published]:
    """Return the ports that docker-proxy served lately, according to an existing table.

    Raises OSError.
    """
    names = ("served_ports", "served_ports4", "served_ports6")
    with nl.open_socket() as sock:
        return frozenset(_port(element) for name in names for element in elements(_set(sock, name), name))


def protected() -> frozenset[str] | None:
    """Return the bridges whose addresses an existing table refuses as forged sources; None if that is not known.

    Raises OSError.
    """
    name = "protected_bridges"
    with nl.open_socket() as sock:
        try:
            dumped = ruleset.elements(sock, name)
        except FileNotFoundError:
            return None
        return frozenset(str(element.key[0]) for element, _ in _elements(dumped, name, SETS[name]))


def _current_or_former(sock: socket.socket, name: str) -> list[bytes]:
    """Return a set's elements; those of its former name if the table is an older version's."""
    return _set(sock, name) or _set(sock, FORMER_SETS[name])


def _port(element: Element) -> Published:
    """Return the host port that the element is about."""
    *_, proto, port = element.key
    address = element.key[0]
    host_ip = address if isinstance(address, IPv4Address | IPv6Address) else _EVERY[address]
    return Published(BY_NUMBER[int(proto)].name, host_ip, int(port), int(port))


def lines(rules: Iterable[bytes], family: str = "inet") -> tuple[Line, ...]:
    """Convert rules as the kernel encodes them, without the header of 4 bytes."""
    return tuple(Line(raw, ruleset.chain_of(raw), ruleset.handle_of(raw), family) for raw in rules)


def _read(sock: socket.socket) -> TableDump:
    generation = ruleset.generation(sock)
    inet, bridge = Table(NFPROTO_INET, TABLE), Table(NFPROTO_BRIDGE, TABLE)
    # Sets without a name of their own belong to a rule.
    names = [name for table in (inet, bridge) for name in ruleset.sets(sock, table) if not name.startswith("__")]
    elements: set[Element] = set()
    leaving: set[Element] = set()
    for name in names:
        if name not in SETS or SETS[name].meter:
            continue  # elements that packets add are not compared
        for element, soon in _elements(_set(sock, name), name, SETS[name]):
            elements.add(element)
            if soon:
                leaving.add(element)
    rules = (*lines(ruleset.rules(sock, inet)), *lines(ruleset.rules(sock, bridge), "bridge"))
    return TableDump(generation, frozenset(names), frozenset(elements), frozenset(leaving), rules)


def _set(sock: socket.socket, name: str) -> list[bytes]:
    """Return a set's elements, none if there is no such set."""
    try:
        return ruleset.elements(sock, name)
    except FileNotFoundError:
        return []


def elements(dumped: Iterable[bytes], name: str) -> Iterator[Element]:
    """Yield a set's elements from a dump; none if an older docker-fw created the set with other fields."""
    length = fields.length(SETS[name].key)
    for body in dumped:
        for one in nl.each(nl.attributes(body).get(_LIST_ELEMENTS, b"")):
            key = nl.attributes(nl.attributes(one)[_KEY])[_VALUE]
            if len(key) == length:
                yield packed(name, key)


def _elements(dumped: Iterable[bytes], name: str, spec: SetSpec) -> Iterator[tuple[Element, bool]]:
    """Yield each element, and True if it expires within two seconds."""
    for body in dumped:
        for one in nl.each(nl.attributes(body).get(_LIST_ELEMENTS, b"")):
            of = nl.attributes(one)
            data = _data(nl.attributes(of[_DATA]), spec.data) if spec.data and _DATA in of else b""
            soon = _EXPIRATION in of and int.from_bytes(of[_EXPIRATION], "big") < 2000
            yield packed(name, nl.attributes(of[_KEY])[_VALUE][: fields.length(spec.key)], data), soon


def _data(of_data: Mapping[int, bytes], expressions: tuple[str, ...]) -> bytes:
    if expressions == VERDICT:
        return ruleset.text(nl.attributes(of_data[_DATA_VERDICT]).get(_VERDICT_CHAIN, b"")).encode()
    return of_data[_DATA_VALUE][: fields.length(expressions)]
