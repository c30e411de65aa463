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
from plugin.nftables import fields
from plugin.nftables.codec import NFPROTO_BRIDGE, NFPROTO_INET
from plugin.nftables.drift import Line, TableDump
from plugin.nftables.fields import VERDICT, Value
from plugin.nftables.identity import FORMER_SETS
from plugin.nftables.sets import SETS, TABLE, Element, SetSpec, spec_of
from plugin.protocols import BY_NUMBER

_SUBSYS = 10 << 8
_GETRULE, _GETSET, _GETSETELEM, _GETGEN = (_SUBSYS | n for n in (7, 10, 13, 16))
#: linux/netfilter/nf_tables.h: NFTA_SET_{TABLE,NAME}, NFTA_SET_ELEM_LIST_*, NFTA_RULE_{TABLE,CHAIN,HANDLE}, …
_TABLE, _NAME, _LIST_SET, _LIST_ELEMENTS, _CHAIN, _HANDLE, _GEN_ID = 1, 2, 2, 3, 2, 3, 1
_KEY, _DATA, _EXPIRATION, _VALUE, _DATA_VALUE, _DATA_VERDICT, _VERDICT_CHAIN = 1, 2, 5, 1, 1, 2, 2
#: Every address of a family, as Docker writes it.
_EVERY: dict[Value, Address] = {AF[4]: IPv4Address(0), AF[6]: IPv6Address(0)}
#: Maximum number of readings of the tables if a program changes something meanwhile.
_TRIES = 5


def read() -> TableDump:
    """Read the tables. Raises OSError. If they change all the time, the last reading is returned."""
    with nl.open_socket() as sock:
        for _ in range(_TRIES):
            found = _read(sock)
            if _generation(sock) == found.generation:
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
        told = ((name, _current_or_former(sock, name)) for name in names)
        return frozenset(_port(element) for name, dump in told for element, _ in _elements(dump, name, SETS[name]))


def _current_or_former(sock: socket.socket, name: str) -> list[bytes]:
    """Return a set's elements; those of its former name if the table is an older version's."""
    found = _dump(sock, _GETSETELEM, NFPROTO_INET, name)
    return found or _dump(sock, _GETSETELEM, NFPROTO_INET, FORMER_SETS[name])


def _port(element: Element) -> Published:
    """Return the host port that the element is about."""
    *_, proto, port = element.key
    address = element.key[0]
    host_ip = address if isinstance(address, IPv4Address | IPv6Address) else _EVERY[address]
    return Published(BY_NUMBER[int(proto)].name, host_ip, int(port), int(port))


def lines(rules: Iterable[bytes], family: str = "inet") -> tuple[Line, ...]:
    """Convert rules as the kernel encodes them, without the header of 4 bytes."""
    told = ((raw, nl.attributes(raw)) for raw in rules)
    return tuple(Line(raw, _text(of[_CHAIN]), int.from_bytes(of[_HANDLE], "big"), family) for raw, of in told)


def _read(sock: socket.socket) -> TableDump:
    generation = _generation(sock)
    tables = (NFPROTO_INET, NFPROTO_BRIDGE)
    told = [_text(nl.attributes(body)[_NAME]) for family in tables for body in _dump(sock, _GETSET, family)]
    # Sets without a name of their own belong to a rule.
    names = [name for name in told if not name.startswith("__")]
    elements: set[Element] = set()
    leaving: set[Element] = set()
    for name in names:
        base = name.partition("__")[0]
        if base not in SETS or spec_of(name).meter:
            continue  # elements that packets add are not compared
        family = NFPROTO_BRIDGE if spec_of(name).bridge else NFPROTO_INET
        for element, soon in _elements(_dump(sock, _GETSETELEM, family, name), name, spec_of(name)):
            elements.add(element)
            if soon:
                leaving.add(element)
    rules = lines(_dump(sock, _GETRULE, NFPROTO_INET)), lines(_dump(sock, _GETRULE, NFPROTO_BRIDGE), "bridge")
    return TableDump(generation, frozenset(names), frozenset(elements), frozenset(leaving), (*rules[0], *rules[1]))


def _dump(sock: socket.socket, kind: int, family: int, name: str = "") -> list[bytes]:
    body = nl.nfgen(family) + nl.attr(_TABLE, TABLE.encode() + b"\0")
    if name:
        body += nl.attr(_LIST_SET, name.encode() + b"\0")
    try:
        return [answer[4:] for _, answer in nl.request(sock, kind, nl.NLM_F_DUMP, body)]
    except FileNotFoundError:
        return []


def _generation(sock: socket.socket) -> int:
    ((_, body),) = nl.request(sock, _GETGEN, 0, nl.nfgen(0))
    return int.from_bytes(nl.attributes(body[4:])[_GEN_ID], "big")


def elements(told: Iterable[bytes], name: str) -> Iterator[Element]:
    """Yield a set's elements from a dump; none if an older docker-fw created the set with other fields."""
    spec = spec_of(name)
    length = fields.length(spec.key)
    for body in told:
        for one in nl.each(nl.attributes(body).get(_LIST_ELEMENTS, b"")):
            key = nl.attributes(nl.attributes(one)[_KEY])[_VALUE]
            if len(key) == length:
                yield Element(name, fields.unpacked(spec.key, key))


def _elements(told: Iterable[bytes], name: str, spec: SetSpec) -> Iterator[tuple[Element, bool]]:
    """Yield each element, and True if it expires within two seconds."""
    for body in told:
        for one in nl.each(nl.attributes(body).get(_LIST_ELEMENTS, b"")):
            of = nl.attributes(one)
            key = fields.unpacked(spec.key, nl.attributes(of[_KEY])[_VALUE])
            data = _data(nl.attributes(of[_DATA]), spec.data) if spec.data and _DATA in of else ()
            soon = _EXPIRATION in of and int.from_bytes(of[_EXPIRATION], "big") < 2000
            yield Element(name, key, data), soon


def _data(told: Mapping[int, bytes], expressions: tuple[str, ...]) -> tuple[Value, ...]:
    if expressions == VERDICT:
        return (_text(nl.attributes(told[_DATA_VERDICT]).get(_VERDICT_CHAIN, b"")),)
    return fields.unpacked(expressions, told[_DATA_VALUE])


def _text(packed: bytes) -> str:
    return packed.rstrip(b"\0").decode("utf-8", "replace")
