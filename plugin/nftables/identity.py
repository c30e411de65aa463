"""Recognise docker-fw's tables in the kernel by their sets, because a host may use the same names.

This is the only module with the names of docker-fw's tables, including those of former versions, and with the criteria
that distinguish them from a host's own tables. A table of another program is never changed, and never counts as one
that closes.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection, Iterator
from typing import NamedTuple

from plugin.kernel import netlink as nl
from plugin.model import FwError
from plugin.nftables.codec import NFPROTO_BRIDGE, NFPROTO_INET
from plugin.nftables.sets import CLOSED, FORMER, QUARANTINE_SETS, TABLE

#: Sets that the table of every version has, from the first one on; later versions must keep them.
SETS_OF_OURS = {
    NFPROTO_INET: frozenset(("same_bridge", "dockers", "no_transit", "publish4", "publish6")),
    NFPROTO_BRIDGE: frozenset(("ports", "bound4", "bound6")),
}
#: The names in former versions of sets whose elements are taken over from a table that an older version left.
FORMER_SETS = {
    **{name: name.replace("quarantine", "held") for names in QUARANTINE_SETS.values() for name in names},
    **{f"host_own{v}": f"listening{v}" for v in ("", 4, 6)},
    "proxy_unidentified": "holding",
}
#: Chains that have rules in the table of every version; without these rules the table closes nothing.
_CLOSE = frozenset(("forward", "input", "inbound", "deny"))
_FAMILIES = {NFPROTO_INET: "inet", NFPROTO_BRIDGE: "bridge"}
_SUBSYS = 10 << 8
_GETTABLE, _DELTABLE, _GETCHAIN, _GETRULE, _GETSET, _GETSETELEM, _GETGEN = (
    _SUBSYS | n for n in (1, 2, 4, 7, 10, 13, 16)
)
_BATCH_BEGIN, _BATCH_END = 16, 17
#: linux/netfilter/nf_tables.h: NFTA_{TABLE_NAME,TABLE_FLAGS}, NFTA_{CHAIN,RULE,SET}_TABLE, NFTA_SET_NAME,
#: NFTA_RULE_CHAIN, NFTA_GEN_ID
_NAME, _FLAGS, _OF_TABLE, _SET_NAME, _RULE_CHAIN, _GEN_ID = 1, 2, 1, 2, 2, 1
#: NFTA_SET_ELEM_LIST_{TABLE,SET,ELEMENTS}, NFTA_SET_ELEM_KEY, NFTA_DATA_VALUE
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _ELEMENT_KEY, _DATA_VALUE = 1, 2, 3, 1, 1
_FAMILY_NAMES = {2: "ipv4", 10: "ipv6"}
_DORMANT = 1
#: Maximum number of readings of the tables if another program changes the ruleset meanwhile.
_TRIES = 20


class ForeignTableError(FwError):
    """Another program's table has the name of docker-fw's table."""


class Table(NamedTuple):
    """A table in the kernel, by its family and name."""

    family: int
    name: str

    def __str__(self) -> str:
        return f"{_FAMILIES[self.family]} {self.name}"


class Found(NamedTuple):
    """The tables under the names that docker-fw uses: its own, and those of other programs."""

    ours: tuple[Table, ...]
    unmanaged: tuple[Table, ...]


def find(sock: socket.socket | None = None) -> Found:
    """Find the tables. Raises OSError.

    `sock`: a netlink socket of the network namespace to search (default: the caller's).
    """
    if sock is None:
        with nl.open_socket() as own:
            return find(own)
    for _ in range(_TRIES):
        before, found = generation(sock), _find(sock)
        if generation(sock) == before:  # otherwise a part may be missing
            break
    return found


def _find(sock: socket.socket) -> Found:
    ours, unmanaged = [], []
    for name in (TABLE, CLOSED, FORMER):
        for family, characteristic in SETS_OF_OURS.items():
            table = Table(family, name)
            if _flags(sock, table) is None:
                continue
            sets = _names(sock, _GETSET, table, _SET_NAME)
            if sets >= characteristic:
                ours.append(table)
            elif sets or _has_chains(sock, table):
                unmanaged.append(table)
            elif name != FORMER:  # an empty one: there is nothing in it to lose
                ours.append(table)
    return Found(tuple(ours), tuple(unmanaged))


def closes(sock: socket.socket, table: Table) -> bool:
    """True if a docker-fw table has its rules: another program may have flushed them, or made the table dormant."""
    flags = _flags(sock, table)
    if table.family != NFPROTO_INET or flags is None or flags & _DORMANT:
        return False
    return _names(sock, _GETRULE, table, _RULE_CHAIN) >= _CLOSE


def free_name(sock: socket.socket | None = None) -> str:
    """Return the name for a table that closes: TABLE, or CLOSED if another program's table has that name."""
    return CLOSED if any(table.name == TABLE for table in find(sock).unmanaged) else TABLE


def refuse_foreign(sock: socket.socket | None = None) -> None:
    """Raise ForeignTableError, with instructions, if another program's table has the name of docker-fw's table."""
    if why := refusal(find(sock).unmanaged):
        raise ForeignTableError(why)


def refusal(unmanaged: Collection[Table]) -> str:
    """Return why docker-fw does not start with these tables, what to do, and what is closed meanwhile.

    The result is "" if it starts.
    """
    table = next((table for table in unmanaged if table.name == TABLE), None)
    if table is None:
        return ""
    if any(other.name == CLOSED for other in unmanaged):
        meanwhile = f"Until then docker-fw filters nothing, because another program uses the name {CLOSED} too."
    else:
        meanwhile = (
            f"Until then docker-fw opens nothing: table inet {CLOSED} blocks new connections to all containers on "
            "bridges, except ICMP."
        )
    return (
        f"table {table} on this host was not made by docker-fw, which uses that name and leaves the table as it is; "
        f"rename it where it is loaded (/etc/nftables.conf, for example), delete it (nft delete table {table}), then "
        f"start docker-fw again. {meanwhile}"
    )


def forwarding_enabled() -> tuple[str, ...]:
    """Return the families ("ipv4", "ipv6") for which docker-fw enabled forwarding.

    Its tables in the kernel record them.
    """
    families: set[str] = set()
    with nl.open_socket() as sock:
        for table in find(sock).ours:
            if table.family == NFPROTO_INET:
                families |= {_FAMILY_NAMES.get(key[0], "") for key in _keys(sock, table, "no_transit") if key}
    return tuple(name for name in _FAMILY_NAMES.values() if name in families)


def _keys(sock: socket.socket, table: Table, name: str) -> Iterator[bytes]:
    """Yield the keys of a set's elements; none if the table has no such set."""
    body = nl.nfgen(table.family) + _attribute(_LIST_TABLE, table) + nl.attr(_LIST_SET, name.encode() + b"\0")
    try:
        answers = nl.request(sock, _GETSETELEM, nl.NLM_F_DUMP, body)
    except FileNotFoundError:
        return
    for _, answer in answers:
        for element in nl.each(nl.attributes(answer[4:]).get(_LIST_ELEMENTS, b"")):
            yield nl.attributes(nl.attributes(element)[_ELEMENT_KEY])[_DATA_VALUE]


def remove() -> Found:
    """Remove docker-fw's tables for an uninstall. Return those removed, and those of other programs, which stay.

    Raises OSError with the kernel's errno.
    """
    found = find()
    return Found(tuple(table for table in found.ours if _removed(table)), found.unmanaged)


def _removed(table: Table) -> bool:
    begin, end = (nl.message(kind, 0, seq, nl.nfgen(0, 10)) for kind, seq in ((_BATCH_BEGIN, 1), (_BATCH_END, 3)))
    body = nl.nfgen(table.family) + _attribute(_NAME, table)
    with nl.open_socket() as sock:
        sock.send(begin + nl.message(_DELTABLE, nl.NLM_F_ACK, 2, body) + end)
        code = next(nl.error_of(answer) for kind, _, answer in nl.replies(sock) if kind == nl.NLMSG_ERROR)
    if code == errno.ENOENT:
        return False
    if code:
        raise OSError(code, os.strerror(code))
    return True


def generation(sock: socket.socket) -> int:
    """Return the ruleset's generation, which every transaction of any program raises."""
    ((_, body),) = nl.request(sock, _GETGEN, 0, nl.nfgen(0))
    return int.from_bytes(nl.attributes(body[4:])[_GEN_ID], "big")


def _flags(sock: socket.socket, table: Table) -> int | None:
    """Return the table's flags, or None if there is no such table."""
    try:
        ((_, body),) = nl.request(sock, _GETTABLE, 0, nl.nfgen(table.family) + _attribute(_NAME, table))
    except FileNotFoundError:
        return None
    return int.from_bytes(nl.attributes(body[4:])[_FLAGS], "big")


def _names(sock: socket.socket, kind: int, table: Table, which: int) -> frozenset[str]:
    """Return one attribute of all the table's objects of a kind."""
    body = nl.nfgen(table.family) + _attribute(_OF_TABLE, table)
    try:
        told = [nl.attributes(answer[4:]) for _, answer in nl.request(sock, kind, nl.NLM_F_DUMP, body)]
    except FileNotFoundError:  # removed meanwhile
        return frozenset()
    return frozenset(_text(of[which]) for of in told if _text(of[_OF_TABLE]) == table.name)


def _has_chains(sock: socket.socket, table: Table) -> bool:
    return bool(_names(sock, _GETCHAIN, table, _OF_TABLE))


def _attribute(kind: int, table: Table) -> bytes:
    return nl.attr(kind, table.name.encode() + b"\0")


def _text(packed: bytes) -> str:
    return packed.rstrip(b"\0").decode("utf-8", "replace")
