"""The connection to nf_tables: each call is one transaction, applied completely or not at all.

There are two ways of writing over one netlink socket. The table's text is sent through libnftables, in process.
Elements are sent as raw netlink over libnftables' own socket: libnftables reads every interval set of every table
before each transaction, so that on a host with a large blocklist (CrowdSec, fail2ban) one element would take 200 ms
instead of 0.1. There is one socket because a table with `flags owner` accepts changes only from the socket that
created it.

No text from outside becomes part of a command: elements are addresses, numbers and checked names.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from types import MappingProxyType

from plugin.kernel import netlink as nl
from plugin.nftables import ruleset
from plugin.nftables.codec import bodies
from plugin.nftables.sets import TABLE, Change, Element

_SUBSYS = 10 << 8
NEWSETELEM, DELSETELEM = _SUBSYS | 12, _SUBSYS | 14
_BATCH_BEGIN, _BATCH_END = 16, 17
#: As nft sets it: an element that does not exist is created. Without NLM_F_EXCL it is no error if it exists already.
_NLM_F_CREATE = 0x400
_SO_SNDBUFFORCE = 32
#: Maximum number of attempts at a text that the kernel refuses because another program changed the ruleset first.
_TRIES = 20


class NftError(Exception):
    """The kernel or libnftables refused a transaction; the text is theirs."""


class NftClient:
    """One connection, of the network namespace that it is made in. Not thread-safe.

    Create it first: libnftables aborts the process if its socket's number is 1024 or more.
    """

    def __init__(self) -> None:
        import nftables  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: PLC0415

        before = nl.netfilter_fds()
        self._nft = nftables.Nftables()
        self._nft.set_numeric_proto_output(True)
        ((fd, _),) = nl.netfilter_fds() - before
        self._writer = socket.socket(fileno=os.dup(fd))
        self._writer.settimeout(30)  # this leaves the socket non-blocking, as libnftables made it and needs it
        #: A socket for the questions of `plugin.nftables.ruleset`.
        self.reader = nl.open_socket()
        self._seq = 1 << 20
        #: Number of successful transactions of this object: each raised the ruleset's generation by one.
        self._changes = 0

    def run(self, text: str) -> None:
        """Run nft commands as one transaction. Raises NftError."""
        code, _, error = self._nft.cmd(text)
        if code:
            raise NftError(error.strip() or f"libnftables failed with {code}")
        self._changes += 1

    def run_again(self, text: str) -> None:
        """Run `text`, again if the kernel refused it because another program changed the ruleset at the same time.

        Raises NftError.
        """
        for _ in range(_TRIES):
            before = self.generation()
            try:
                self.run(text)
            except NftError as error:
                if self.generation() == before:
                    raise
                failed = error
            else:
                return
        raise failed

    def send(self, change: Change, timed: Mapping[Element, int] = MappingProxyType({}), table: str = TABLE) -> None:
        """Remove and add elements as one transaction; none if there is nothing to change. Raises NftError.

        `timed`: elements to be added with a timeout in seconds. `table`: the name of the tables.
        """
        if not change and not timed:
            return
        sent = [(DELSETELEM, 0, body) for body in bodies(change.remove, table=table)]
        sent += [(NEWSETELEM, _NLM_F_CREATE, body) for body in bodies((*change.add, *timed), timed, table)]
        # Each batch uses new numbers, so that a late answer to an earlier batch is not mistaken for one of this batch.
        first, last = self._seq, self._seq + len(sent)
        self._seq = (last + 2) & 0x3FFFFFFF
        data = batch(sent, first)
        self._writer.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, max(1 << 18, 2 * len(data)))
        try:
            self._writer.send(data)
            codes = self._acknowledged(first, last)
        except OSError as error:
            raise NftError(f"netlink: {error}") from error
        if codes:
            raise NftError(", ".join(sorted({os.strerror(code) for code in codes})))
        self._changes += 1

    def _acknowledged(self, first: int, last: int) -> list[int]:
        """Read until the batch's last message is acknowledged, and return the errors reported before (errno)."""
        codes: list[int] = []
        for kind, seq, body in nl.replies(self._writer):
            if kind != nl.NLMSG_ERROR or not first <= seq <= last:
                continue
            code = nl.error_of(body)
            if code:
                codes.append(code)
            if seq in (first, last):  # the first: the batch as a whole was refused
                break
        return codes

    def generation(self) -> int:
        """Return the ruleset's generation, which every transaction of any program raises (3 µs). Raises OSError."""
        return ruleset.generation(self.reader)

    def foreign_changes(self) -> int:
        """Return a number that other programs' transactions change and this object's do not. Raises OSError."""
        return self.generation() - self._changes


def batch(messages: list[tuple[int, int, bytes]], first: int) -> bytes:
    """Return (type, flags, body) of messages as one transaction, numbered from `first`, which is its beginning.

    The kernel acknowledges the last message.
    """
    last = first + len(messages)
    parts = [
        nl.message(kind, flags | (nl.NLM_F_ACK if seq == last else 0), seq, body)
        for seq, (kind, flags, body) in enumerate(messages, first + 1)
    ]
    begin = nl.message(_BATCH_BEGIN, 0, first, nl.nfgen(0, 10))
    return b"".join((begin, *parts, nl.message(_BATCH_END, 0, last + 1, nl.nfgen(0, 10))))
