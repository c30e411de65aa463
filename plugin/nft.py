"""Our table in the kernel: replace it whole, change its elements, notice that somebody touched it.

Two ways in, one netlink socket. The table's text goes through libnftables, in process. Elements go as raw netlink
over libnftables' own socket: libnftables reads every interval set of every table before each transaction, so that
on a host with a large blocklist (CrowdSec, fail2ban) one element would take 200 ms instead of 0.1. One socket,
because a table with `flags owner` obeys just the socket that made it.

Not re-entrant, hence the lock. Make this object first: libnftables aborts the process when its socket's number is
1024 or more. No text from outside ever becomes part of a command: elements are addresses, numbers, checked names.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import threading
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from plugin import netlink as nl
from plugin.ruleset import CGROUP, SETS, TABLE, Change, Element, Value
from plugin.table import replace

_NFPROTO_INET = 1
_SUBSYS = 10 << 8
_GETTABLE, _DELTABLE, _GETRULE, _NEWSETELEM, _DELSETELEM, _GETGEN = (_SUBSYS | n for n in (1, 2, 7, 12, 14, 16))
_BATCH_BEGIN, _BATCH_END = 16, 17
#: linux/netfilter/nf_tables.h: NFTA_SET_ELEM_LIST_{TABLE,SET,ELEMENTS}, NFTA_LIST_ELEM, NFTA_SET_ELEM_{KEY,DATA}, …
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_ELEM, _KEY, _DATA, _TIMEOUT, _VALUE = 1, 2, 3, 1, 1, 2, 4, 1
_TABLE_NAME, _TABLE_FLAGS, _TABLE_HANDLE, _RULE_TABLE, _GEN_ID = 1, 2, 4, 1, 1
#: How a number stands in a key, where it takes more than a byte.
_FORMATS = {"th dport": "!H", "th sport": "!H", "oif": "=I", CGROUP: "=Q"}
#: Elements in one message: an attribute holds 64 KiB, an element at most 80 bytes.
_PER_MESSAGE = 500


log = logging.getLogger(__name__)


class NftError(Exception):
    """The kernel or libnftables refused; the text is theirs."""


class Nft:
    """The only writer of table `inet fw`. Every call is one transaction: all of it stands, or nothing changed."""

    def __init__(self, mark: int) -> None:
        import nftables  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: PLC0415

        before = _netlink_fds()
        self._nft = nftables.Nftables()
        self._nft.set_numeric_proto_output(True)
        ((fd, _),) = _netlink_fds() - before
        self._sock = socket.socket(fileno=os.dup(fd))
        self._sock.settimeout(30)  # which leaves the socket non-blocking, as libnftables made it and needs it
        self._read = nl.open_socket()
        self._lock = threading.Lock()
        self._mark = mark
        self._seq = 1 << 20
        #: Transactions of ours that went through: each raised the ruleset's generation by one.
        self.changes = 0
        self._print: tuple[bytes, ...] = ()
        #: The kernel can tell a socket's control group; known after the first `replace`.
        self.tells_cgroups = True

    def replace(self, elements: Iterable[Element]) -> None:
        """Puts the table there with exactly these elements, whatever stood before. Raises NftError."""
        elements = list(elements)
        with self._lock:
            try:
                self._run(replace(self._mark, elements, cgroups=self.tells_cgroups))
            except NftError as error:
                # A kernel before 5.13 does not know a socket's control group; one that never did may learn no more.
                if not self.tells_cgroups or self._print:
                    raise
                self._run(replace(self._mark, elements, cgroups=False))
                self.tells_cgroups = False
                log.warning("this kernel cannot tell docker-proxy by its control group: %s", error)
            self._batch(self._possible(Change(add=tuple(e for e in elements if SETS[e.set].raw))))
            self._print = self._fingerprint()  # last: what is not there whole is not intact

    def _run(self, text: str) -> None:
        code, _, error = self._nft.cmd(text)
        if code:
            raise NftError(error.strip() or f"libnftables failed with {code}")
        self.changes += 1

    def _possible(self, change: Change) -> Change:
        if self.tells_cgroups:
            return change
        parts = (change.remove, change.add)
        return Change(*(tuple(e for e in part if CGROUP not in SETS[e.set].key) for part in parts))

    def change(self, change: Change) -> None:
        """Removes and adds elements in one transaction. Raises NftError: then nothing changed, `replace` mends it."""
        if not change:
            return
        with self._lock:
            self._batch(self._possible(change))

    def hold(self, elements: Iterable[Element], seconds: int) -> None:
        """Adds elements that go by themselves after a time. Raises NftError."""
        with self._lock:
            self._batch(Change(add=tuple(elements)), seconds)

    def generation(self) -> int:
        """The ruleset's generation, which every transaction of anybody raises (3 µs; cheap to poll)."""
        with self._lock:
            ((_, body),) = nl.request(self._read, _GETGEN, 0, nl.nfgen(0))
        return int.from_bytes(nl.attributes(body[4:])[_GEN_ID], "big")

    def intact(self) -> bool:
        """True if the table and its rules are the very ones that we put there (somebody may have flushed them)."""
        with self._lock:
            return bool(self._print) and self._fingerprint() == self._print

    def _fingerprint(self) -> tuple[bytes, ...]:
        """The table's flags (it may be dormant) and handle (it may be an old one, from a file), and its rules.

        Whole rules, for one that is exchanged in its place keeps its handle; none of ours has a counter of its own.
        """
        name = TABLE.encode() + b"\0"
        try:
            ((_, table),) = nl.request(self._read, _GETTABLE, 0, nl.nfgen(_NFPROTO_INET) + nl.attr(_TABLE_NAME, name))
            rules = nl.request(
                self._read, _GETRULE, nl.NLM_F_DUMP, nl.nfgen(_NFPROTO_INET) + nl.attr(_RULE_TABLE, name)
            )
        except FileNotFoundError:
            return ()
        told = nl.attributes(table[4:])
        return (told[_TABLE_FLAGS], told[_TABLE_HANDLE], *(rule[4:] for _, rule in rules))

    def _batch(self, change: Change, seconds: int = 0) -> None:
        if not change:
            return
        # Numbers of its own for each batch: an answer that was left over from an earlier one is not taken for ours.
        first = self._seq
        begin = nl.message(_BATCH_BEGIN, 0, first, nl.nfgen(0, 10))
        bodies = [(_DELSETELEM, 0, body) for body in _bodies(change.remove)]
        # NLM_F_CREATE as nft sets it. Not EXCL: an element that stands already is what we want.
        bodies += [(_NEWSETELEM, 0x400, body) for body in _bodies(change.add, seconds)]
        last = first + len(bodies)
        self._seq = (last + 2) & 0x3FFFFFFF
        parts = [
            nl.message(kind, flags | (nl.NLM_F_ACK if seq == last else 0), seq, body)
            for seq, (kind, flags, body) in enumerate(bodies, first + 1)
        ]
        data = b"".join((begin, *parts, nl.message(_BATCH_END, 0, last + 1, nl.nfgen(0, 10))))
        self._sock.setsockopt(socket.SOL_SOCKET, 32, max(1 << 18, 2 * len(data)))  # SO_SNDBUFFORCE
        try:
            self._sock.send(data)
            codes = self._acknowledged(first, last)
        except OSError as error:
            raise NftError(f"netlink: {error}") from error
        if codes:
            raise NftError(", ".join(sorted({os.strerror(code) for code in codes})))
        self.changes += 1

    def _acknowledged(self, first: int, last: int) -> list[int]:
        """Reads until the batch's last message is acknowledged, and returns the errors told before (errno)."""
        codes: list[int] = []
        for kind, seq, body in nl.replies(self._sock):
            if kind != nl.NLMSG_ERROR or not first <= seq <= last:
                continue
            code = nl.error_of(body)
            if code:
                codes.append(code)
            if seq in (first, last):  # the first: the batch as a whole was refused
                break
        return codes


def remove_table() -> bool:
    """Takes the table away, for an uninstall. False if it was not there; raises OSError with the kernel's errno."""
    body = nl.nfgen(_NFPROTO_INET) + nl.attr(_TABLE_NAME, TABLE.encode() + b"\0")
    begin = nl.message(_BATCH_BEGIN, 0, 1, nl.nfgen(0, 10))
    end = nl.message(_BATCH_END, 0, 3, nl.nfgen(0, 10))
    with nl.open_socket() as sock:
        sock.send(begin + nl.message(_DELTABLE, nl.NLM_F_ACK, 2, body) + end)
        code = next(nl.error_of(answer) for kind, _, answer in nl.replies(sock) if kind == nl.NLMSG_ERROR)
    if code == errno.ENOENT:
        return False
    if code:
        raise OSError(code, os.strerror(code))
    return True


def _bodies(elements: Iterable[Element], seconds: int = 0) -> list[bytes]:
    by_set: dict[str, list[bytes]] = {}
    for element in elements:
        by_set.setdefault(element.set, []).append(_packed(element, seconds))
    head = nl.nfgen(_NFPROTO_INET) + nl.attr(_LIST_TABLE, TABLE.encode() + b"\0")
    return [
        head + nl.attr(_LIST_SET, name.encode() + b"\0") + nl.nested(_LIST_ELEMENTS, *part)
        for name, packed in by_set.items()
        for part in (packed[i : i + _PER_MESSAGE] for i in range(0, len(packed), _PER_MESSAGE))
    ]


def _packed(element: Element, seconds: int) -> bytes:
    spec = SETS[element.set]
    key = nl.nested(_KEY, nl.attr(_VALUE, _concatenated(spec.key, element.key)))
    if seconds:
        return nl.nested(_LIST_ELEM, key, nl.attr(_TIMEOUT, struct.pack("!Q", 1000 * seconds)))
    if not spec.data:
        return nl.nested(_LIST_ELEM, key)
    data = nl.nested(_DATA, nl.attr(_VALUE, _concatenated(spec.data, element.data)))
    return nl.nested(_LIST_ELEM, key, data)


def _concatenated(expressions: tuple[str, ...], values: tuple[Value, ...]) -> bytes:
    fields = [_field(expression, value) for expression, value in zip(expressions, values, strict=True)]
    # In a concatenation each field fills whole 32-bit registers; a field alone stands as it is.
    return fields[0] if len(fields) == 1 else b"".join(f + b"\0" * (-len(f) % 4) for f in fields)


def _field(expression: str, value: Value) -> bytes:
    if isinstance(value, IPv4Address | IPv6Address):
        return value.packed
    if isinstance(value, str):
        return value.encode().ljust(16, b"\0")
    return struct.pack(_FORMATS.get(expression, "=B"), value)


def _netlink_fds() -> set[tuple[int, str]]:
    """The open sockets to nfnetlink, each with what tells it from another one of its number."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if (what := os.readlink(f"/proc/self/fd/{name}")).startswith("socket:"):
                with socket.socket(fileno=os.dup(int(name))) as sock:
                    if sock.family == socket.AF_NETLINK and sock.proto == nl.NETLINK_NETFILTER:
                        found.add((int(name), what))
        except OSError:
            continue  # the directory's own descriptor, closed by now
    return found
