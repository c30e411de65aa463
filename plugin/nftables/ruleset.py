"""Read objects of nf_tables from the kernel: tables, chains, rules, sets, elements, and the ruleset's generation.

Each function takes the netlink socket to ask over, which is bound to the network namespace that it was opened in, and
raises OSError. Names and numbers are those of linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import socket
from typing import NamedTuple

from plugin.kernel import netlink as nl
from plugin.nftables.codec import NFPROTO_BRIDGE, NFPROTO_INET, of_set
from plugin.nftables.sets import TABLE

_SUBSYS = 10 << 8
_GETTABLE, _GETCHAIN, _GETRULE, _GETSET, _GETSETELEM, _GETGEN = (_SUBSYS | n for n in (1, 4, 7, 10, 13, 16))
_TABLE_NAME, _TABLE_FLAGS, _TABLE_HANDLE, _GEN_ID = 1, 2, 4, 1
_CHAIN_TABLE, _CHAIN_NAME, _SET_TABLE, _SET_NAME, _RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE = 1, 3, 1, 2, 1, 2, 3
_DORMANT = 1
_FAMILIES = {NFPROTO_INET: "inet", NFPROTO_BRIDGE: "bridge"}


class Table(NamedTuple):
    """A table in the kernel, by its family and name."""

    family: int
    name: str

    def __str__(self) -> str:
        return f"{_FAMILIES[self.family]} {self.name}"


class Header(NamedTuple):
    """A table's flags (NFT_TABLE_F_*) and its handle: a number that no later table gets."""

    flags: int
    handle: int

    @property
    def dormant(self) -> bool:
        """True if the table is switched off: its rules have no effect."""
        return bool(self.flags & _DORMANT)


def generation(sock: socket.socket) -> int:
    """Return the ruleset's generation, which every transaction of any program raises."""
    ((_, body),) = nl.request(sock, _GETGEN, 0, nl.nfgen(0))
    return int.from_bytes(nl.attributes(body[4:])[_GEN_ID], "big")


def header(sock: socket.socket, table: Table) -> Header | None:
    """Return the table's flags and handle, or None if there is no such table."""
    try:
        ((_, body),) = nl.request(sock, _GETTABLE, 0, nl.nfgen(table.family) + _named(_TABLE_NAME, table.name))
    except FileNotFoundError:
        return None
    found = nl.attributes(body[4:])
    return Header(int.from_bytes(found[_TABLE_FLAGS], "big"), int.from_bytes(found[_TABLE_HANDLE], "big"))


def chains(sock: socket.socket, table: Table) -> tuple[str, ...]:
    """Return the names of the table's chains, none if there is no such table."""
    return _names(sock, _GETCHAIN, table, _CHAIN_TABLE, _CHAIN_NAME)


def sets(sock: socket.socket, table: Table) -> tuple[str, ...]:
    """Return the names of the table's sets and maps, none if there is no such table."""
    return _names(sock, _GETSET, table, _SET_TABLE, _SET_NAME)


def rules(sock: socket.socket, table: Table, chain: str = "") -> tuple[bytes, ...]:
    """Return the table's rules, or those of one chain, as the kernel encodes them; none if there is no such table."""
    more = _named(_RULE_CHAIN, chain) if chain else b""
    return tuple(_dump(sock, _GETRULE, table, _RULE_TABLE, more))


def elements(sock: socket.socket, name: str, table: str = TABLE) -> list[bytes]:
    """Return a set's elements, as the kernel encodes them; `codec` decodes them.

    Raises FileNotFoundError if there is no such set.
    """
    return [body[4:] for _, body in nl.request(sock, _GETSETELEM, nl.NLM_F_DUMP, of_set(name, table))]


def chain_of(rule: bytes) -> str:
    """Return the name of the chain that a rule is in."""
    return text(nl.attributes(rule).get(_RULE_CHAIN, b""))


def handle_of(rule: bytes) -> int:
    """Return a rule's number, as `nft -a` shows it."""
    return int.from_bytes(nl.attributes(rule)[_RULE_HANDLE], "big")


def text(packed: bytes) -> str:
    """Return a name as the kernel encodes it: it ends with a zero byte."""
    return packed.rstrip(b"\0").decode("utf-8", "replace")


def _names(sock: socket.socket, kind: int, table: Table, table_attribute: int, name: int) -> tuple[str, ...]:
    """Return the names of the table's objects of a kind."""
    found = map(nl.attributes, _dump(sock, kind, table, table_attribute))
    # The kernel lists the chains of all tables, whatever was asked.
    return tuple(text(each[name]) for each in found if text(each[table_attribute]) == table.name)


def _dump(sock: socket.socket, kind: int, table: Table, table_attribute: int, more: bytes = b"") -> list[bytes]:
    body = nl.nfgen(table.family) + _named(table_attribute, table.name) + more
    try:
        return [answer[4:] for _, answer in nl.request(sock, kind, nl.NLM_F_DUMP, body)]
    except FileNotFoundError:
        return []


def _named(kind: int, name: str) -> bytes:
    return nl.attr(kind, name.encode() + b"\0")
