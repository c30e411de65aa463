"""Our tables in the kernel: replace them whole, change their elements, notice that somebody touched them.

Two ways in, one netlink socket. The table's text goes through libnftables, in process. Elements go as raw netlink
over libnftables' own socket: libnftables reads every interval set of every table before each transaction, so that
on a host with a large blocklist (CrowdSec, fail2ban) one element would take 200 ms instead of 0.1. One socket,
because a table with `flags owner` obeys just the socket that made it.

Not re-entrant, hence the lock. Make this object first: libnftables aborts the process when its socket's number is
1024 or more. No text from outside ever becomes part of a command: elements are addresses, numbers, checked names.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from types import MappingProxyType

from plugin import identity
from plugin import netlink as nl
from plugin.model import Address
from plugin.packing import NFPROTO_BRIDGE, NFPROTO_INET, bodies, counted, of_set
from plugin.sets import BANNING, CGROUP, SHUT, SHUT_SECONDS, TABLE, Change, Element, rate_of, spec_of
from plugin.table import TRY_BRIDGE, TRY_OWNED, named, rates_added, replace, skeleton

_SUBSYS = 10 << 8
_GETTABLE, _GETRULE, _NEWSETELEM, _GETSETELEM, _DELSETELEM = (_SUBSYS | n for n in (1, 7, 12, 13, 14))
_BATCH_BEGIN, _BATCH_END = 16, 17
_TABLE_NAME, _TABLE_FLAGS, _TABLE_HANDLE, _RULE_TABLE = 1, 2, 4, 1

log = logging.getLogger(__name__)


class NftError(Exception):
    """The kernel or libnftables refused; the text is theirs."""


class Nft:
    """The only writer of our tables. Every call is one transaction: all of it stands, or nothing changed."""

    def __init__(self, mark: int, table: str = TABLE) -> None:
        import nftables  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: PLC0415

        before = nl.netfilter_fds()
        self._nft = nftables.Nftables()
        self._nft.set_numeric_proto_output(True)
        ((fd, _),) = nl.netfilter_fds() - before
        self._sock = socket.socket(fileno=os.dup(fd))
        self._sock.settimeout(30)  # which leaves the socket non-blocking, as libnftables made it and needs it
        self._read, self._dump = nl.open_socket(), nl.open_socket()
        self._dumping = threading.Lock()
        self._lock = threading.Lock()
        self._mark = mark
        self._table = table
        self._seq = 1 << 20
        #: Transactions of ours that went through: each raised the ruleset's generation by one.
        self.changes = 0
        self._print: tuple[bytes, ...] = ()
        #: The kernel can tell a socket's control group, and has nfnetlink_log; known after the first `replace`.
        self.tells_cgroups = self.logs = True
        #: The table is ours alone while this object lives, and outlives it: nobody else can change or flush it.
        self.owned = True
        #: The kernel has tables for frames within a bridge: a port of ours is bound to its container's addresses.
        self.binds = True
        #: A replacement ended halfway: the table closes, and not all that should be open is.
        self.incomplete = False
        #: Rates that have their sets and rules in the table.
        self._rates: frozenset[str] = frozenset()

    def replace(self, elements: Iterable[Element], timed: Mapping[Element, int] = MappingProxyType({})) -> None:
        """Puts the table there with exactly these elements, whatever stood before. Raises NftError.

        `timed`: elements that last for so many seconds.

        Where the table stands it is exchanged in one transaction. Where it does not, or somebody touched its rules,
        something may be open, and thousands of elements take seconds as text: so the rules come first, within
        milliseconds, and shut (`sets.SHUT`). One more transaction brings the elements and ends that. The same where
        there are elements that text has no words for: what closes is never missing.
        """
        elements = list(elements)
        with self._alone():
            whole = self._stands_untouched()
            if not self._print:
                self.owned = self._can(TRY_OWNED, "the tables cannot be owned here, they are watched")
                self.binds = self._can(TRY_BRIDGE, "containers of one network may take each other's addresses")
            elements = [e for e in elements if self.binds or not spec_of(e.set).bridge]
            rates = _rates(elements)
            rest = tuple(e for e in elements if not whole or spec_of(e.set).raw)
            shut = bool(rest) or not whole
            self.incomplete = True
            self._rewrite(elements if whole else [], timed if whole else {}, rates, shut=shut)
            self._rates = rates
            if shut:
                self._fill(rest, {} if whole else timed, wanted=set(elements))
            self._print = self._fingerprint()  # last: what is not there whole is not intact
            self.incomplete = False

    def _stands_untouched(self) -> bool:
        """True if a table stands that closes: the one that we put there, or at the first time whatever stood."""
        if self._print:
            return self._fingerprint() == self._print
        return any(identity.closes(self._read, table) for table in identity.find(self._read).ours)

    def _rewrite(
        self, elements: list[Element], timed: Mapping[Element, int], rates: frozenset[str], *, shut: bool
    ) -> None:
        """The table as text, with these elements; `shut` if there are more to come."""
        if shut:
            elements = [*elements, *BANNING]
            timed = {**timed, **dict.fromkeys(SHUT, SHUT_SECONDS)}
        others = self._others()
        # A kernel before 5.13 does not know a socket's control group; one that never did may learn no more.
        tries = [(self.tells_cgroups, self.logs)]
        if not self._print:
            tries = list(dict.fromkeys((*tries, (True, False), (False, True), (False, False))))
        for attempt, (cgroups, logs) in enumerate(tries, 1):
            text = replace(
                self._mark, dict.fromkeys(elements), owned=self.owned, binds=self.binds, cgroups=cgroups, logs=logs,
                timed=timed, rates=rates,
            )  # fmt: skip
            try:
                self._run(others + named(text, self._table))
            except NftError as error:
                if attempt == len(tries):
                    raise
                log.warning("this kernel does not take all of the table: %s", error)
            else:
                self.tells_cgroups, self.logs = cgroups, logs
                return

    def _fill(self, add: tuple[Element, ...], timed: Mapping[Element, int], wanted: Collection[Element]) -> None:
        """Brings the elements of a shut table, which then is shut no more."""
        asking = tuple(element for element in BANNING if element not in wanted)
        try:
            self._batch(self._possible(Change((*SHUT, *asking), add)), timed)
        except NftError:  # it has ended by itself on a machine that is very busy
            self._batch(self._possible(Change(asking, add)), timed)

    def _others(self) -> str:
        """Takes away our tables of other names, a former version's for example, in the same transaction. Raises
        NftError rather than to take another program's table for ours."""
        found = identity.find(self._read)
        if not self._print and (taken := [table for table in found.foreign if table.name == self._table]):
            raise NftError(f"table {taken[0]} is another program's")
        return "".join(f"delete table {table}\n" for table in found.ours if table.name != self._table)

    def _can(self, text: str, otherwise: str) -> bool:
        """Asked of an empty table: a whole one takes seconds to be refused, and until it stands all is open."""
        try:
            self._run(text)
        except NftError as error:
            log.info("%s: %s", otherwise, error)
            return False
        return True

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except OSError as error:
                raise NftError(f"netlink: {error}") from error

    def _run(self, text: str) -> None:
        code, _, error = self._nft.cmd(text)
        if code:
            raise NftError(error.strip() or f"libnftables failed with {code}")
        self.changes += 1

    def _possible(self, change: Change) -> Change:
        if self.tells_cgroups and self.binds:
            return change

        def knows(element: Element) -> bool:
            spec = spec_of(element.set)
            return (self.tells_cgroups or CGROUP not in spec.key) and (self.binds or not spec.bridge)

        return Change(*(tuple(filter(knows, part)) for part in (change.remove, change.add)))

    def change(self, change: Change, timed: Mapping[Element, int] = MappingProxyType({})) -> None:
        """Removes and adds elements in one transaction. Raises NftError: then nothing changed, `replace` mends it.

        `timed`: elements to be added for so many seconds; they go by themselves.
        """
        if not change and not timed:
            return
        with self._alone():
            if new := _rates(change.add) - self._rates:
                self._add_rates(new)
            self._batch(self._possible(change), timed)

    def dropped(self) -> dict[Address, tuple[int, int]]:
        """By address, how many packets were dropped on their way to it, and how many that it began.

        Since the table was put there last. Raises OSError.
        """
        found: dict[Address, list[int]] = {}
        for name, which in (("dropped4", 0), ("dropped6", 0), ("refused4", 1), ("refused6", 1)):
            with suppress(FileNotFoundError):
                for address, packets in counted(self.dump(name)):
                    found.setdefault(address, [0, 0])[which] = packets
        return {address: (counts[0], counts[1]) for address, counts in found.items()}

    def dump(self, name: str) -> list[bytes]:
        """A set's elements, as the kernel tells them. Raises OSError, FileNotFoundError where there is no such set."""
        # With a socket and a lock of its own: with thousands of containers a dump takes a while, and hooks would wait.
        with self._dumping:
            return [body[4:] for _, body in nl.request(self._dump, _GETSETELEM, nl.NLM_F_DUMP, of_set(name))]

    def _add_rates(self, rates: frozenset[str]) -> None:
        before = self._generation()
        if self._fingerprint() != self._print:
            raise NftError("somebody touched the rules")
        self._run(named(rates_added(rates), self._table))
        now = self._fingerprint()
        if self._generation() != before + 1:
            raise NftError("somebody changed the ruleset at the same moment")
        self._rates |= rates
        self._print = now

    def put(self) -> tuple[str, tuple[bytes, ...]]:
        """The rules: as text, and as the kernel told them when they had been put there."""
        with self._lock:
            text = skeleton(
                self._mark, owned=self.owned, binds=self.binds, cgroups=self.tells_cgroups, logs=self.logs,
                rates=self._rates,
            )  # fmt: skip
            return text, self._print[2 * len(self._families) :]

    def generation(self) -> int:
        """The ruleset's generation, which every transaction of anybody raises (3 µs; cheap to poll)."""
        with self._lock:
            return self._generation()

    def _generation(self) -> int:
        return identity.generation(self._read)

    def stands(self) -> bool:
        """True if there is a table of ours that closes, whoever put it there, also a former version's."""
        with self._lock:
            return any(identity.closes(self._read, table) for table in identity.find(self._read).ours)

    def intact(self) -> bool:
        """True if the table and its rules are the very ones that we put there (somebody may have flushed them)."""
        with self._lock:
            return bool(self._print) and self._fingerprint() == self._print

    @property
    def _families(self) -> tuple[int, ...]:
        return (NFPROTO_INET, NFPROTO_BRIDGE) if self.binds else (NFPROTO_INET,)

    def _fingerprint(self) -> tuple[bytes, ...]:
        """Each table's flags (it may be dormant) and handle (it may be an old one, from a file), and all the rules.

        Whole rules, for one that is exchanged in its place keeps its handle; none of ours has a counter of its own.
        """
        told = [self._told(family) for family in self._families]
        heads, rules = zip(*told, strict=True)
        return (*chain(*heads), *chain(*rules)) if all(heads) else ()

    def _told(self, family: int) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """A table's flags and handle, and its rules; nothing where it is not there."""
        name = self._table.encode() + b"\0"
        try:
            ((_, table),) = nl.request(self._read, _GETTABLE, 0, nl.nfgen(family) + nl.attr(_TABLE_NAME, name))
            rules = nl.request(self._read, _GETRULE, nl.NLM_F_DUMP, nl.nfgen(family) + nl.attr(_RULE_TABLE, name))
        except FileNotFoundError:
            return (), ()
        of = nl.attributes(table[4:])
        return (of[_TABLE_FLAGS], of[_TABLE_HANDLE]), tuple(rule[4:] for _, rule in rules)

    def _batch(self, change: Change, timed: Mapping[Element, int] = MappingProxyType({})) -> None:
        if not change and not timed:
            return
        # Numbers of its own for each batch: an answer that was left over from an earlier one is not taken for ours.
        first = self._seq
        begin = nl.message(_BATCH_BEGIN, 0, first, nl.nfgen(0, 10))
        sent = [(_DELSETELEM, 0, body) for body in bodies(change.remove, table=self._table)]
        # NLM_F_CREATE as nft sets it. Not EXCL: an element that stands already is what we want.
        sent += [(_NEWSETELEM, 0x400, body) for body in bodies((*change.add, *timed), timed, self._table)]
        last = first + len(sent)
        self._seq = (last + 2) & 0x3FFFFFFF
        parts = [
            nl.message(kind, flags | (nl.NLM_F_ACK if seq == last else 0), seq, body)
            for seq, (kind, flags, body) in enumerate(sent, first + 1)
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


def _rates(elements: Iterable[Element]) -> frozenset[str]:
    return frozenset(rate for element in elements if (rate := rate_of(element.set)))
