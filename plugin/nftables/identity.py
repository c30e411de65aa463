"""Recognise docker-fw's tables in the kernel by their sets, because a host may use the same names.

This is the only module with the names of docker-fw's tables, including those of former versions, and with the criteria
that distinguish them from a host's own tables. A table of another program is never changed, and never counts as one
that closes.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection
from contextlib import suppress
from typing import NamedTuple

from plugin.kernel import netlink as nl
from plugin.model import FwError
from plugin.nftables import ruleset
from plugin.nftables.client import batch
from plugin.nftables.codec import NFPROTO_BRIDGE, NFPROTO_INET, keys
from plugin.nftables.ruleset import Table
from plugin.nftables.sets import CLOSED, FORMER, QUARANTINE_SETS, TABLE, TRIED

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
#: linux/netfilter/nf_tables.h: NFT_MSG_DELTABLE, NFTA_TABLE_NAME
_DELTABLE, _TABLE_NAME = 10 << 8 | 2, 1
_FAMILY_NAMES = {2: "ipv4", 10: "ipv6"}
#: Maximum number of readings of the tables if another program changes the ruleset meanwhile.
_TRIES = 20


class ForeignTableError(FwError):
    """Another program's table has the name of docker-fw's table."""


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
        before, found = ruleset.generation(sock), _find(sock)
        if ruleset.generation(sock) == before:  # otherwise a part may be missing
            break
    return found


def _find(sock: socket.socket) -> Found:
    ours, unmanaged = [], []
    for name in (TABLE, CLOSED, FORMER):
        for family, characteristic in SETS_OF_OURS.items():
            table = Table(family, name)
            if ruleset.header(sock, table) is None:
                continue
            sets = ruleset.sets(sock, table)
            if characteristic.issubset(sets):
                ours.append(table)
            elif sets or ruleset.chains(sock, table):
                unmanaged.append(table)
            elif name != FORMER:  # an empty one: there is nothing in it to lose
                ours.append(table)
    return Found(tuple(ours), tuple(unmanaged))


def closes(sock: socket.socket, table: Table) -> bool:
    """True if a docker-fw table has its rules: another program may have flushed them, or made the table dormant."""
    header = ruleset.header(sock, table)
    if table.family != NFPROTO_INET or header is None or header.dormant:
        return False
    return _CLOSE.issubset(map(ruleset.chain_of, ruleset.rules(sock, table)))


def any_closes(sock: socket.socket | None = None) -> bool:
    """True if a table of docker-fw that closes exists, of any process or former version. Raises OSError."""
    if sock is None:
        with nl.open_socket() as own:
            return any_closes(own)
    return any(closes(sock, table) for table in find(sock).ours)


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
                with suppress(FileNotFoundError):
                    answers = ruleset.elements(sock, "no_transit", table.name)
                    families |= {_FAMILY_NAMES.get(key[0], "") for key in keys(answers) if key}
    return tuple(name for name in _FAMILY_NAMES.values() if name in families)


def remove() -> Found:
    """Remove docker-fw's tables for an uninstall. Return those removed, and those of other programs, which stay.

    Raises OSError with the kernel's errno.
    """
    found = find()
    _removed(Table(NFPROTO_INET, TRIED))  # of a start that was killed; it has no sets by which `find` knows it
    return Found(tuple(table for table in found.ours if _removed(table)), found.unmanaged)


def _removed(table: Table) -> bool:
    body = nl.nfgen(table.family) + nl.attr(_TABLE_NAME, table.name.encode() + b"\0")
    with nl.open_socket() as sock:
        sock.send(batch([(_DELTABLE, 0, body)], 1))
        code = next(nl.error_of(answer) for kind, _, answer in nl.replies(sock) if kind == nl.NLMSG_ERROR)
    if code == errno.ENOENT:
        return False
    if code:
        raise OSError(code, os.strerror(code))
    return True
