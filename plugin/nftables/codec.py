"""Encode elements of the table's sets as bodies of netlink messages, and decode them.

linux/netfilter/nf_tables.h: NFTA_SET_ELEM_LIST_{TABLE,SET,ELEMENTS}, NFTA_LIST_ELEM, NFTA_SET_ELEM_{KEY,DATA}, …
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from operator import itemgetter
from types import MappingProxyType

from plugin.kernel import netlink as nl
from plugin.model import Address
from plugin.nftables.fields import VERDICT
from plugin.nftables.sets import SETS, TABLE, Element

NFPROTO_INET, NFPROTO_BRIDGE = 1, 7
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_ELEM, _KEY, _DATA, _TIMEOUT, _VALUE = 1, 2, 3, 1, 1, 2, 4, 1
#: NFTA_SET_ELEM_EXPR, NFTA_EXPR_DATA, NFTA_COUNTER_PACKETS
_ELEM_EXPR, _EXPR_DATA, _COUNTER_PACKETS = 7, 2, 2
#: NFTA_DATA_VERDICT, NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN, NFT_JUMP
_DATA_VERDICT, _VERDICT_CODE, _VERDICT_CHAIN, _JUMP = 2, 1, 2, -3
#: Bytes before the key of an element: the headers of _LIST_ELEM, _KEY and _VALUE.
_HEADERS = 12
#: The key of an element without data: all but the number of its set.
_key = itemgetter(slice(1, None))
#: Elements in one message: an attribute holds 64 KiB, an element at most 80 bytes.
_PER_MESSAGE = 500


def of_set(name: str, table: str = TABLE) -> bytes:
    """Return the body of a message that requests a set's elements."""
    head = nl.nfgen(_family(name)) + nl.attr(_LIST_TABLE, table.encode() + b"\0")
    return head + nl.attr(_LIST_SET, name.encode() + b"\0")


def _family(name: str) -> int:
    spec = SETS.get(name.partition("__")[0])  # a former version's set may not exist any more
    return NFPROTO_BRIDGE if spec and spec.bridge else NFPROTO_INET


def counted(dumped: Iterable[bytes]) -> Iterator[tuple[Address, int]]:
    """Yield the elements of a set with counters, from a dump."""
    for body in dumped:
        for element in nl.each(nl.attributes(body).get(_LIST_ELEMENTS, b"")):
            of = nl.attributes(element)
            key = nl.attributes(of.get(_KEY, b"")).get(_VALUE, b"")
            counter = nl.attributes(nl.attributes(of.get(_ELEM_EXPR, b"")).get(_EXPR_DATA, b""))
            if len(key) in (4, 16):
                yield ip_address(key), int.from_bytes(counter.get(_COUNTER_PACKETS, b""), "big")


def keys(dumped: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the packed keys of a set's elements, from a dump."""
    for body in dumped:
        for element in nl.each(nl.attributes(body).get(_LIST_ELEMENTS, b"")):
            yield nl.attributes(nl.attributes(element)[_KEY])[_VALUE]


def bodies(
    elements: Iterable[Element], timed: Mapping[Element, int] = MappingProxyType({}), table: str = TABLE
) -> list[bytes]:
    """Return netlink bodies with the elements, a few for each set; `timed`: seconds until an element expires."""
    by_set: dict[int, list[Element]] = {}
    for element in elements:
        by_set.setdefault(element[0], []).append(element)
    return [
        of_set(those[0].set, table) + nl.nested(_LIST_ELEMENTS, _list(those[at : at + _PER_MESSAGE], timed))
        for those in by_set.values()
        for at in range(0, len(those), _PER_MESSAGE)
    ]


def _list(elements: list[Element], timed: Mapping[Element, int]) -> bytes:
    """Return elements of one set as a list."""
    if elements[0].spec.data or not timed.keys().isdisjoint(elements):
        return b"".join(_packed(element, timed.get(element, 0)) for element in elements)
    # They are equal but for their keys, which come after the headers of three attributes.
    one = _packed(elements[0], 0)
    before, after = one[:_HEADERS], one[_HEADERS + len(elements[0]) - 1 :]
    return before + (after + before).join(map(_key, elements)) + after


def _packed(element: Element, seconds: int) -> bytes:
    spec = element.spec
    key = nl.nested(_KEY, nl.attr(_VALUE, element.packed_key))
    if seconds:
        return nl.nested(_LIST_ELEM, key, nl.attr(_TIMEOUT, struct.pack("!Q", 1000 * seconds)))
    if not spec.data:
        return nl.nested(_LIST_ELEM, key)
    if spec.data == VERDICT:
        code, chain = struct.pack("!i", _JUMP), element.packed_data + b"\0"
        jump = nl.nested(_DATA_VERDICT, nl.attr(_VERDICT_CODE, code), nl.attr(_VERDICT_CHAIN, chain))
        return nl.nested(_LIST_ELEM, key, nl.nested(_DATA, jump))
    data = nl.nested(_DATA, nl.attr(_VALUE, element.packed_data))
    return nl.nested(_LIST_ELEM, key, data)
