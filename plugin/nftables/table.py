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


#: How often a change is written anew that the kernel refused because somebody else was faster.
_TRIES = 20


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
        self._read = nl.open_socket()
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
        #: The kernel tells whether a socket listens where a packet goes: a fresh one is held.
        self.holds = True
        #: A replacement ended halfway: the table closes, and not all that should be open is.
        self.incomplete = False
        #: The chains of rates that are in the table, and the elements that lead to each.
        self._rates: dict[str, set[Element]] = {}
        #: The ruleset's generation, without our own transactions, when the table was last seen to be as we put it.
        self._untouched = -1

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
                self.holds = self._can(TRY_HOLD, "what begins to listen cannot be held until it is known whose it is")
            elements = [e for e in elements if self.binds or not spec_of(e.set).bridge]
            rates = _rates(elements)
            rest = tuple(e for e in elements if not whole or spec_of(e.set).raw)
            shut = bool(rest) or not whole
            self.incomplete = True
            self._rewrite(elements if whole else [], timed if whole else {}, rates if whole else (), shut=shut)
            if rates and not whole:  # which takes a while when they are many
                self._run_again(named(rate_chains.added(rates), self._table))
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
        self, elements: list[Element], timed: Mapping[Element, int], rates: Iterable[str], *, shut: bool
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
        """Brings the elements of a shut table, which then is shut no more."""
        asking = tuple(element for element in BANNING if element not in wanted)
        try:
            self._batch(self._possible(Change((*SHUT, *asking), add)), timed)
        except NftError:  # it has ended by itself on a machine that is very busy, or the kernel refused it just once
            self._batch(self._possible(Change(asking, add)), timed)
            with suppress(NftError):
                self._batch(self._possible(Change(SHUT)))

    def _others(self) -> str:
        """Takes away our tables of other names, a former version's for example, in the same transaction. Raises
        NftError rather than to take another program's table for ours.
        """
        found = identity.find(self._read)
        if not self._print and (taken := [table for table in found.unmanaged if table.name == self._table]):
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
            rates = _rates(change.add)
            if new := rates.keys() - self._rates.keys():
                self._add_rates(new)
            self._batch(self._possible(change), timed)
            for chain_, those in rates.items():
                self._rates[chain_] |= those
            self._drop_rates(change.remove)

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
        # With a socket of its own and no lock: with thousands of containers a dump takes a while, and hooks would wait.
        with nl.open_socket() as sock:
            return [body[4:] for _, body in nl.request(sock, _GETSETELEM, nl.NLM_F_DUMP, of_set(name))]

    def _add_rates(self, rates: Collection[str]) -> None:
        """Chains and sets of rates, before an element leads to them: until then they do nothing."""
        before = self._seen_untouched()
        self._run_again(named(rate_chains.added(rates), self._table))
        self._rates |= {name: set() for name in rates}
        chains = [name for rate in sorted(rates) for name in rate_chains.limit(rate).chains]
        if self._generation() == before + 1:
            self._print = self._with(chain(*(self._rules(NFPROTO_INET, name) for name in chains)))
            return
        # Somebody else changed the ruleset meanwhile, which is no matter of ours unless it was our table.
        now = self._fingerprint()
        more = Counter(now) - Counter(self._print)
        ours = all(_chain_of(rule) in chains for rule in more) and sum(more.values()) == rate_chains.rule_count(rates)
        if not ours or Counter(self._print) - Counter(now):
            raise NftError("somebody touched the rules")
        self._print = now

    def _drop_rates(self, gone: Iterable[Element]) -> None:
        """Takes chains and sets of rates away that no element leads to any more. What fails is tried again later."""
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
        """The ruleset's generation. Raises NftError if somebody touched the rules: nothing is built upon those."""
        generation = self._generation()
        if generation - self.changes != self._untouched:
            if self._fingerprint() != self._print:
                raise NftError("somebody touched the rules")
            self._untouched = generation - self.changes
        return generation

    def _run_again(self, text: str) -> None:
        """The kernel refuses what was written while somebody else changed the ruleset: then it is written again."""
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
        """What the table looks like with rules in chains that have just been added: they are its last."""
        behind = len(self._rules(NFPROTO_BRIDGE)) if self.binds else 0
        end = len(self._print) - behind
        return (*self._print[:end], *rules, *self._print[end:])

    def limits(self) -> frozenset[str]:
        """The chains of rates that stand in the kernel, whoever put them there. Raises NftError."""
        asked = nl.nfgen(NFPROTO_INET) + nl.attr(_CHAIN_TABLE, self._table.encode() + b"\0")
        with self._alone():
            try:
                told = nl.request(self._read, _GETCHAIN, nl.NLM_F_DUMP, asked)
            except FileNotFoundError:
                return frozenset()
            chains = (nl.attributes(body[4:]) for _, body in told)
            names = [_text(of[_CHAIN_NAME]) for of in chains if _text(of[_CHAIN_TABLE]) == self._table]
            # A dot in the last part is of a chain that only such a chain leads to.
            last = {name: name.rpartition("__")[2] for name in names if name.startswith("limit")}
        return frozenset(name for name, rate in last.items() if rate != name and "." not in rate)

    def put(self) -> tuple[str, tuple[bytes, ...]]:
        """The rules: as text, and as the kernel told them when they had been put there."""
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


def _rates(elements: Iterable[Element]) -> dict[str, set[Element]]:
    """The chains of rates that elements need, each with these elements."""
    found: dict[str, set[Element]] = {}
    for element in elements:
        for name in limiting(element):
            found.setdefault(name, set()).add(element)
    return found


def _chain_of(rule: bytes) -> str:
    return _text(nl.attributes(rule).get(_RULE_CHAIN, b""))


def _text(packed: bytes) -> str:
    return packed.rstrip(b"\0").decode("utf-8", "replace")
