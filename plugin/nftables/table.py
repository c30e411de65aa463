"""Write docker-fw's tables in the kernel: replace them, change their elements, detect changes by other programs.

There are two ways of writing over one netlink socket. The table's text is sent through libnftables, in process.
Elements are sent as raw netlink over libnftables' own socket: libnftables reads every interval set of every table
before each transaction, so that on a host with a large blocklist (CrowdSec, fail2ban) one element would take 200 ms
instead of 0.1. There is one socket because a table with `flags owner` accepts changes only from the socket that
created it.

Not re-entrant, hence the lock. Create this object first: libnftables aborts the process if its socket's number is 1024
or more. No text from outside becomes part of a command: elements are addresses, numbers and checked names.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from types import MappingProxyType

from plugin.kernel import netlink as nl
from plugin.model import Address
from plugin.nftables import identity, rate_chains
from plugin.nftables.codec import NFPROTO_BRIDGE, NFPROTO_INET, bodies, counted, of_set
from plugin.nftables.document import TRY_BRIDGE, TRY_HOLD, TRY_OWNED, named, replace, skeleton
from plugin.nftables.fields import CGROUP
from plugin.nftables.sets import BANNING, SHUT, SHUT_SECONDS, TABLE, Change, Element, limiting, spec_of

_SUBSYS = 10 << 8
_GETTABLE, _GETCHAIN, _GETRULE, _NEWSETELEM, _GETSETELEM, _DELSETELEM = (_SUBSYS | n for n in (1, 4, 7, 12, 13, 14))
_BATCH_BEGIN, _BATCH_END = 16, 17
_TABLE_NAME, _TABLE_FLAGS, _TABLE_HANDLE, _RULE_TABLE, _RULE_CHAIN = 1, 2, 4, 1, 2
_CHAIN_TABLE, _CHAIN_NAME = 1, 3

log = logging.getLogger(__name__)


#: Maximum number of attempts at a change that the kernel refuses because another program changed the ruleset first.
_TRIES = 20


class NftError(Exception):
    """The kernel or libnftables refused a transaction; the text is theirs."""


class Nft:
    """The only writer of docker-fw's tables. Every call is one transaction: it is applied completely or not at all."""

    def __init__(self, mark: int, table: str = TABLE) -> None:
        import nftables  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: PLC0415

        before = nl.netfilter_fds()
        self._nft = nftables.Nftables()
        self._nft.set_numeric_proto_output(True)
        ((fd, _),) = nl.netfilter_fds() - before
        self._sock = socket.socket(fileno=os.dup(fd))
        self._sock.settimeout(30)  # this leaves the socket non-blocking, as libnftables made it and needs it
        self._read = nl.open_socket()
        self._lock = threading.Lock()
        self._mark = mark
        self._table = table
        self._seq = 1 << 20
        #: Number of successful transactions of this object: each raised the ruleset's generation by one.
        self.changes = 0
        self._print: tuple[bytes, ...] = ()
        #: The kernel can match a socket's control group, and has nfnetlink_log; known after the first `replace`.
        self.tells_cgroups = self.logs = True
        #: The table belongs to this process while this object exists, and outlives it: no other program can change or
        #: flush it.
        self.owned = True
        #: The kernel has tables for frames within a bridge: a bridge port is bound to its container's addresses.
        self.binds = True
        #: The kernel can match whether a socket listens at a packet's destination: a new listener is blocked at first.
        self.holds = True
        #: A replacement was interrupted: the table closes, but some ports that should be open are not.
        self.incomplete = False
        #: The chains of rates that are in the table, and the elements that lead to each.
        self._rates: dict[str, set[Element]] = {}
        #: The ruleset's generation, minus this object's transactions, when the table was last seen unchanged.
        self._untouched = -1

    def replace(self, elements: Iterable[Element], timed: Mapping[Element, int] = MappingProxyType({})) -> None:
        """Create or replace the table with exactly these elements. Raises NftError.

        `timed`: elements with a timeout, in seconds.

        If the table exists, it is exchanged in one transaction. If it does not, or if another program changed its
        rules, something may be open, and thousands of elements take seconds as text. So the rules are written first,
        within milliseconds, and the table is shut (`sets.SHUT`). A second transaction adds the elements and ends that.
        The same applies if there are elements that nft has no syntax for: nothing that closes is missing at any time.
        """
        elements = list(elements)
        with self._alone():
            whole = self._stands_untouched()
            if not self._print:
                self.owned = self._can(TRY_OWNED, "the tables cannot be owned here, they are watched")
                self.binds = self._can(TRY_BRIDGE, "containers of one network may take each other's addresses")
                self.holds = self._can(TRY_HOLD, "what begins to listen cannot be held until it is known whose it is")
            elements = [e for e in elements if self.binds or not spec_of(e.set).bridge]
            rates = _rates(elements)
            rest = tuple(e for e in elements if not whole or spec_of(e.set).raw)
            shut = bool(rest) or not whole
            self.incomplete = True
            self._rewrite(elements if whole else [], timed if whole else {}, rates if whole else (), shut=shut)
            if rates and not whole:  # takes a while if there are many rates
                self._run_again(named(rate_chains.added(rates), self._table))
            self._rates = rates
            if shut:
                self._fill(rest, {} if whole else timed, wanted=set(elements))
            self._print = self._fingerprint()  # last: a table that is not complete is not intact
            self.incomplete = False

    def _stands_untouched(self) -> bool:
        """True if a table that closes exists and is unchanged.

        Before the first `replace`, any table of docker-fw counts.
        """
        if self._print:
            return self._fingerprint() == self._print
        return any(identity.closes(self._read, table) for table in identity.find(self._read).ours)

    def _rewrite(
        self, elements: list[Element], timed: Mapping[Element, int], rates: Iterable[str], *, shut: bool
    ) -> None:
        """Write the table as text with these elements; `shut` if more are to be added."""
        if shut:
            elements = [*elements, *BANNING]
            timed = {**timed, **dict.fromkeys(SHUT, SHUT_SECONDS)}
        others = self._others()
        # A kernel before 5.13 cannot match a socket's control group. A feature that was refused once is not tried
        # again.
        tries = [(self.tells_cgroups, self.logs)]
        if not self._print:
            tries = list(dict.fromkeys((*tries, (True, False), (False, True), (False, False))))
        for attempt, (cgroups, logs) in enumerate(tries, 1):
            text = replace(
                self._mark,
                dict.fromkeys(elements),
                owned=self.owned,
                binds=self.binds,
                holds=self.holds,
                cgroups=cgroups,
                logs=logs,
                timed=timed,
                rates=rates,
            )
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
        """Add the elements of a shut table and open it."""
        asking = tuple(element for element in BANNING if element not in wanted)
        try:
            self._batch(self._possible(Change((*SHUT, *asking), add)), timed)
        except NftError:  # the shut elements expired on a very busy machine, or the kernel refused only once
            self._batch(self._possible(Change(asking, add)), timed)
            with suppress(NftError):
                self._batch(self._possible(Change(SHUT)))

    def _others(self) -> str:
        """Return the commands that delete docker-fw's tables of other names (a former version's).

        They run in the same transaction. Raises NftError instead of replacing another program's table.
        """
        found = identity.find(self._read)
        if not self._print and (taken := [table for table in found.unmanaged if table.name == self._table]):
            raise NftError(f"table {taken[0]} is another program's")
        return "".join(f"delete table {table}\n" for table in found.ours if table.name != self._table)

    def _can(self, text: str, otherwise: str) -> bool:
        """True if the kernel accepts `text`, tested with an empty table.

        A complete table takes seconds to be refused, and until it is active all ports are open.
        """
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
        """Remove and add elements in one transaction. Raises NftError: then nothing changed, and `replace` repairs it.

        `timed`: elements to be added with a timeout in seconds.
        """
        if not change and not timed:
            return
        with self._alone():
            rates = _rates(change.add)
            if new := rates.keys() - self._rates.keys():
                self._add_rates(new)
            self._batch(self._possible(change), timed)
            for chain_, those in rates.items():
                self._rates[chain_] |= those
            self._drop_rates(change.remove)

    def dropped(self) -> dict[Address, tuple[int, int]]:
        """Return by address how many packets were dropped on their way to it, and how many that it sent.

        The counts start when the table was last replaced. Raises OSError.
        """
        found: dict[Address, list[int]] = {}
        for name, which in (("ingress_drops4", 0), ("ingress_drops6", 0), ("egress_drops4", 1), ("egress_drops6", 1)):
            with suppress(FileNotFoundError):
                for address, packets in counted(self.dump(name)):
                    found.setdefault(address, [0, 0])[which] = packets
        return {address: (counts[0], counts[1]) for address, counts in found.items()}

    def dump(self, name: str) -> list[bytes]:
        """Return a set's elements, as the kernel encodes them.

        Raises OSError, and FileNotFoundError if there is no such set.
        """
        # With a socket of its own and no lock: with thousands of containers a dump takes a while, and hooks would
        # wait.
        with nl.open_socket() as sock:
            return [body[4:] for _, body in nl.request(sock, _GETSETELEM, nl.NLM_F_DUMP, of_set(name))]

    def _add_rates(self, rates: Collection[str]) -> None:
        """Add chains and sets of rates before an element leads to them; until then they have no effect."""
        before = self._seen_untouched()
        self._run_again(named(rate_chains.added(rates), self._table))
        self._rates |= {name: set() for name in rates}
        chains = [name for rate in sorted(rates) for name in rate_chains.limit(rate).chains]
        if self._generation() == before + 1:
            self._print = self._with(chain(*(self._rules(NFPROTO_INET, name) for name in chains)))
            return
        # Another program changed the ruleset meanwhile. That only matters if it changed docker-fw's table.
        now = self._fingerprint()
        more = Counter(now) - Counter(self._print)
        ours = all(_chain_of(rule) in chains for rule in more) and sum(more.values()) == rate_chains.rule_count(rates)
        if not ours or Counter(self._print) - Counter(now):
            raise NftError("somebody touched the rules")
        self._print = now

    def _drop_rates(self, gone: Iterable[Element]) -> None:
        """Remove chains and sets of rates that no element leads to any more. A failure is retried later."""
        left = _rates(gone)
        for name, elements in left.items():
            self._rates.get(name, set()).difference_update(elements)
        unused = [name for name, elements in self._rates.items() if not elements] if left else []
        if not unused:
            return
        try:
            self._seen_untouched()
            chains = [name for rate in unused for name in rate_chains.limit(rate).chains]
            rules = {rule for name in chains for rule in self._rules(NFPROTO_INET, name)}
            self._run_again(named(rate_chains.removed(unused), self._table))
        except (NftError, OSError) as error:
            log.warning("rates that are not used any more stay in the table for now: %s", error)
            return
        for name in unused:
            del self._rates[name]
        self._print = tuple(part for part in self._print if part not in rules)

    def _seen_untouched(self) -> int:
        """Return the ruleset's generation.

        Raises NftError if another program changed the rules: they are not extended then.
        """
        generation = self._generation()
        if generation - self.changes != self._untouched:
            if self._fingerprint() != self._print:
                raise NftError("somebody touched the rules")
            self._untouched = generation - self.changes
        return generation

    def _run_again(self, text: str) -> None:
        """Run `text`, again if the kernel refused it because another program changed the ruleset at the same time."""
        for _ in range(_TRIES):
            before = self._generation()
            try:
                self._run(text)
            except NftError as error:
                if self._generation() == before:
                    raise
                failed = error
            else:
                return
        raise failed

    def _with(self, rules: Iterable[bytes]) -> tuple[bytes, ...]:
        """Return the table's fingerprint with rules in chains that were just added, the last ones of the inet table."""
        behind = len(self._rules(NFPROTO_BRIDGE)) if self.binds else 0
        end = len(self._print) - behind
        return (*self._print[:end], *rules, *self._print[end:])

    def limits(self) -> frozenset[str]:
        """Return the chains of rates that exist in the kernel, whichever process created them. Raises NftError."""
        asked = nl.nfgen(NFPROTO_INET) + nl.attr(_CHAIN_TABLE, self._table.encode() + b"\0")
        with self._alone():
            try:
                told = nl.request(self._read, _GETCHAIN, nl.NLM_F_DUMP, asked)
            except FileNotFoundError:
                return frozenset()
            chains = (nl.attributes(body[4:]) for _, body in told)
            names = [_text(of[_CHAIN_NAME]) for of in chains if _text(of[_CHAIN_TABLE]) == self._table]
            # A dot in the last part marks a chain that only such a chain leads to.
            last = {name: name.rpartition("__")[2] for name in names if name.startswith("limit")}
        return frozenset(name for name, rate in last.items() if rate != name and "." not in rate)

    def put(self) -> tuple[str, tuple[bytes, ...]]:
        """Return the rules: as text, and as the kernel returned them after they were written."""
        with self._lock:
            text = skeleton(
                self._mark,
                owned=self.owned,
                binds=self.binds,
                holds=self.holds,
                cgroups=self.tells_cgroups,
                logs=self.logs,
                rates=self._rates,
            )
            return text, self._print[2 * len(self._families) :]

    def generation(self) -> int:
        """Return the ruleset's generation, which every transaction of any program raises (3 µs; cheap to poll)."""
        with self._lock:
            return self._generation()

    def _generation(self) -> int:
        return identity.generation(self._read)

    def stands(self) -> bool:
        """True if a table of docker-fw that closes exists, from any process and also of a former version."""
        with self._lock:
            return any(identity.closes(self._read, table) for table in identity.find(self._read).ours)

    def intact(self) -> bool:
        """True if the table and its rules are exactly those that this object wrote.

        Another program may have flushed them.
        """
        with self._lock:
            return bool(self._print) and self._fingerprint() == self._print

    @property
    def _families(self) -> tuple[int, ...]:
        return (NFPROTO_INET, NFPROTO_BRIDGE) if self.binds else (NFPROTO_INET,)

    def _fingerprint(self) -> tuple[bytes, ...]:
        """Return each table's flags and handle, and all the rules.

        A table may be dormant (flags), or an old one, from a file (handle). Whole rules are compared, because a rule
        that is replaced in place keeps its handle. None of the rules has a counter of its own.
        """
        told = [self._told(family) for family in self._families]
        heads, rules = zip(*told, strict=True)
        return (*chain(*heads), *chain(*rules)) if all(heads) else ()

    def _told(self, family: int) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """Return a table's flags and handle, and its rules; empty if it does not exist."""
        name = self._table.encode() + b"\0"
        try:
            ((_, table),) = nl.request(self._read, _GETTABLE, 0, nl.nfgen(family) + nl.attr(_TABLE_NAME, name))
            rules = self._rules(family)
        except FileNotFoundError:
            return (), ()
        of = nl.attributes(table[4:])
        return (of[_TABLE_FLAGS], of[_TABLE_HANDLE]), rules

    def _rules(self, family: int, of_chain: str = "") -> tuple[bytes, ...]:
        asked = nl.nfgen(family) + nl.attr(_RULE_TABLE, self._table.encode() + b"\0")
        if of_chain:
            asked += nl.attr(_RULE_CHAIN, of_chain.encode() + b"\0")
        return tuple(rule[4:] for _, rule in nl.request(self._read, _GETRULE, nl.NLM_F_DUMP, asked))

    def _batch(self, change: Change, timed: Mapping[Element, int] = MappingProxyType({})) -> None:
        if not change and not timed:
            return
        # Each batch uses new numbers, so that a late answer to an earlier batch is not mistaken for one of this batch.
        first = self._seq
        begin = nl.message(_BATCH_BEGIN, 0, first, nl.nfgen(0, 10))
        sent = [(_DELSETELEM, 0, body) for body in bodies(change.remove, table=self._table)]
        # NLM_F_CREATE as nft sets it. Not EXCL: it is no error if an element exists already.
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
        """Read until the batch's last message is acknowledged, and return the errors reported before (errno)."""
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


def _rates(elements: Iterable[Element]) -> dict[str, set[Element]]:
    """Return the chains of rates that elements need, each with these elements."""
    found: dict[str, set[Element]] = {}
    for element in elements:
        for name in limiting(element):
            found.setdefault(name, set()).add(element)
    return found


def _chain_of(rule: bytes) -> str:
    return _text(nl.attributes(rule).get(_RULE_CHAIN, b""))


def _text(packed: bytes) -> str:
    return packed.rstrip(b"\0").decode("utf-8", "replace")
