"""docker-fw's tables in the kernel: replace them, change their elements, detect changes by other programs."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import NamedTuple

from plugin.kernel import conntrack
from plugin.kernel import netlink as nl
from plugin.model import Address
from plugin.nftables import identity, optional_chains, ruleset
from plugin.nftables.client import NftClient, NftError
from plugin.nftables.codec import NFPROTO_BRIDGE, NFPROTO_INET, counted
from plugin.nftables.document import named, replace, skeleton
from plugin.nftables.features import FORGET, PROBES, Features, Probe
from plugin.nftables.hooks import HOOKS
from plugin.nftables.ruleset import Header, Table
from plugin.nftables.sets import (
    LOADING,
    LOADING_SECONDS,
    TABLE,
    Change,
    Element,
    chained,
    chains_for,
    numbers,
    quarantine_gates,
)

log = logging.getLogger(__name__)
#: Sets whose elements nft has no syntax for, by number.
_RAW = numbers(lambda spec: spec.raw)
#: Sets of which each container has elements, by number, but for those whose elements close something, and those that
#: let a container's frames into its bridge: established flows need them.
_OF_CONTAINERS = numbers(
    lambda spec: spec.effect != "closes" and not spec.bridge and any(name.startswith("ip") for name in spec.key)
)
#: Most elements that are written as text while a table is there: each takes a kilobyte of memory and 0.01 ms.
_AS_TEXT = 50_000


class ExpectedRules(NamedTuple):
    """The rules that the tables should have: as text, and as the kernel returned them after they were written."""

    text: str
    loaded: tuple[bytes, ...]


class _Content(NamedTuple):
    """One table without its elements. Whole rules, because a rule that is replaced in place keeps its handle."""

    header: Header
    rules: tuple[bytes, ...]


#: The tables by family, to recognise changes: a table may have become dormant (flags), or be an old one, loaded from a
#: file (handle). None of the rules has a counter of its own. Empty if a table is missing.
_Fingerprint = Mapping[int, _Content]


class KernelTable:
    """The only writer of docker-fw's tables: `inet docker-fw`, and `bridge docker-fw` where the kernel has it.

    Thread-safe. Create this object early (see `NftClient`). `later` queues work that must not delay a change.
    """

    def __init__(
        self,
        mark: int,
        name: str = TABLE,
        later: Callable[[Callable[[], object]], object] = lambda work: work(),
    ) -> None:
        self._later = later
        self._client = NftClient()
        self._lock = threading.Lock()
        self._mark = mark
        self._name = name
        #: Features of kernel and nft, known after the first `replace`. `owned`: no other program can change or flush
        #: the tables while this object exists.
        self.features = Features(owned=True)
        #: A replacement was interrupted: the table closes, but some ports that should be open are not.
        self.incomplete = False
        #: The tables as this object wrote them; empty before the first `replace`.
        self._written: _Fingerprint = {}
        #: Those of the chains that do not always exist which are in the table, and the elements that need each.
        self._chains: dict[str, set[Element]] = {}
        #: Base chains that may be missing, because the answer to a transaction was an error, or none came: they are
        #: added again when an element needs them.
        self._doubtful: frozenset[str] = frozenset()
        #: The count of other programs' changes when the table was last seen unchanged.
        self._seen = -1

    def replace(self, elements: Iterable[Element], timed: Mapping[Element, int] = MappingProxyType({})) -> None:
        """Create or replace the table with exactly these elements. Raises NftError.

        `timed`: elements with a timeout, in seconds.

        If the table exists, it is exchanged in one transaction. If it does not, or if another program changed its
        rules, something may be open, and thousands of elements take seconds as text. So the rules are written first,
        within milliseconds, and drop new flows (`sets.LOADING`). A second transaction adds the elements and ends that.
        The same applies if there are elements that nft has no syntax for, and if there are very many, which as text
        would take a gigabyte of memory: nothing that closes is missing at any time.
        """
        with self._exclusive():
            closed = self._closes_unchanged()
            if not self._written:
                self._find_features()
            elements = self.features.loadable(elements)
            elements += quarantine_gates((*elements, *timed))
            self.incomplete, self._doubtful = True, frozenset(HOOKS)
            if closed:
                later = _RAW if len(elements) <= _AS_TEXT else _RAW | _OF_CONTAINERS
                rest = tuple(element for element in elements if element[0] in later)
                first = tuple(element for element in elements if element[0] not in later)
                self._write(first, timed, loading=bool(rest))
            else:
                rest = elements
                self._write((), {}, loading=True)
                chains = _chains(elements, timed)
                if new := chains.keys() - self._chains.keys():  # takes a while if there are many
                    self._client.run_again(named(optional_chains.added(new, self.features.flags), self._name))
                self._chains |= chains
            if rest or not closed:
                self._fill(rest, {} if closed else timed)
            self._written = self._fingerprint()  # last: a table that is not complete is not intact
            self.incomplete, self._doubtful = False, frozenset()
            self._drop_chains()

    def change(self, change: Change, timed: Mapping[Element, int] = MappingProxyType({})) -> None:
        """Remove and add elements in one transaction. Raises NftError: no element changed, and `replace` repairs it.

        `timed`: elements to be added with a timeout in seconds. Chains that the elements need are added before it, in a
        transaction of their own. Those that none needs any more are removed later: that is text, for which nft reads
        all sets of the host first, and the next container that leaves must not wait for it.
        """
        if not change and not timed:
            return
        if gates := quarantine_gates(itertools.chain(change.add, timed)):
            change = Change(change.remove, (*change.add, *gates))
        with self._exclusive():
            chains = _chains(change.add, timed)
            if new := chains.keys() - (self._chains.keys() - self._doubtful):
                self._add_chains(new)
            for name, elements in chains.items():  # first: they may be in the kernel even if its answer is lost
                self._chains[name] |= elements
            self._send(change, timed)
            unneeded = self._forget_elements({*chained(change.remove)}.difference(change.add, timed))
        if unneeded:
            self._later(self._tidy)

    def _tidy(self) -> None:
        with self._lock:
            self._drop_chains()

    def intact(self) -> bool:
        """True if the table and its rules are exactly those that this object wrote. Raises OSError.

        Another program may have flushed them.
        """
        # Without the lock first: with thousands of rates it takes a while, and a closing would wait.
        written = self._written
        with suppress(OSError), nl.kept_socket() as sock:
            if written and self._fingerprint(sock) == written:
                return True
        with self._lock:  # a change of docker-fw itself may have been in progress
            return bool(self._written) and self._fingerprint() == self._written

    def closes(self) -> bool:
        """True if a table of docker-fw that closes exists, from any process and also of a former version.

        Raises OSError.
        """
        with self._lock:
            return self._closes()

    def generation(self) -> int:
        """Return the ruleset's generation, which every transaction of any program raises. Raises OSError.

        It takes 3 µs, cheap enough to poll.
        """
        with self._lock:
            return self._client.generation()

    def foreign_changes(self) -> int:
        """Return a number that other programs' transactions change and this object's do not. Raises OSError."""
        with self._lock:
            return self._client.foreign_changes()

    def expected_rules(self) -> ExpectedRules:
        """Return the rules that the tables should have; none as loaded before the first `replace`."""
        with self._lock:
            text = skeleton(self._mark, self.features, chains=self._chains)
            return ExpectedRules(text, tuple(rule for content in self._written.values() for rule in content.rules))

    def rate_chains(self) -> frozenset[str]:
        """Return the chains of rates that exist in the kernel, whichever process created them. Raises NftError."""
        with self._exclusive():
            names = ruleset.chains(self._client.reader, Table(NFPROTO_INET, self._name))
        # A dot in the last part marks a chain that only such a chain leads to.
        last = {name: name.rpartition("__")[2] for name in names if name.startswith("limit")}
        return frozenset(name for name, rate in last.items() if rate != name and "." not in rate)

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
        with nl.kept_socket() as sock:
            return ruleset.elements(sock, name)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except OSError as error:
                raise NftError(f"netlink: {error}") from error

    # --- the whole table ------------------------------------------------------------------------------------------

    def _closes(self) -> bool:
        return identity.any_closes(self._client.reader)

    def _closes_unchanged(self) -> bool:
        """True if a table that closes exists and is unchanged.

        Before the first `replace`, any table of docker-fw counts.
        """
        return self._fingerprint() == self._written if self._written else self._closes()

    def _find_features(self) -> None:
        self._forget()
        found = {probe.feature: self._succeeds(probe) for probe in PROBES}
        if not conntrack.distinguishes_sctp():
            found["sctp"] = False
            log.warning("this kernel does not track SCTP by port: replies to SCTP flows of containers are dropped")
        self.features = dataclasses.replace(self.features, **found)

    def _succeeds(self, probe: Probe) -> bool:
        try:
            self._client.run(probe.text)
        except NftError as error:
            log.info("%s: %s", probe.otherwise, error)
            return False
        if probe.leaves:
            self._forget()
        return True

    def _forget(self) -> None:
        """Remove what a probe left. If the kernel refuses it, the table that closes is loaded all the same."""
        try:
            self._client.run_again(FORGET)
        except NftError as error:
            log.warning("could not remove a table that a probe left: %s", error)

    def _write(self, elements: Sequence[Element], timed: Mapping[Element, int], *, loading: bool) -> None:
        """Write the table as text with these elements; `loading` if more are to be added."""
        if loading:
            timed = {**timed, **dict.fromkeys(LOADING, LOADING_SECONDS)}
        removed = self._remove_former()
        tries = self._feature_sets()
        for attempt, features in enumerate(tries, 1):
            text = replace(self._mark, dict.fromkeys(elements), features, timed=timed)
            try:
                self._client.run(removed + named(text, self._name))
            except NftError as error:
                if attempt == len(tries):
                    raise
                log.warning("this kernel does not support all of the table: %s", error)
            else:
                self.features = features
                self._chains = _chains(elements, timed)
                return

    def _feature_sets(self) -> list[Features]:
        """Return the features to try, most first. A feature that was refused once is not tried again."""
        if self._written:
            return [self.features]
        tries = [(self.features.cgroups, self.features.logs), (True, False), (False, True), (False, False)]
        return [
            dataclasses.replace(self.features, cgroups=cgroups, logs=logs) for cgroups, logs in dict.fromkeys(tries)
        ]

    def _remove_former(self) -> str:
        """Return the commands that delete docker-fw's tables of other names (a former version's).

        They run in the same transaction. Raises NftError instead of replacing another program's table.
        """
        found = identity.find(self._client.reader)
        if not self._written and (taken := [table for table in found.unmanaged if table.name == self._name]):
            raise NftError(f"table {taken[0]} is another program's")
        return "".join(f"delete table {table}\n" for table in found.ours if table.name != self._name)

    def _fill(self, add: tuple[Element, ...], timed: Mapping[Element, int]) -> None:
        """Add the elements of a table that is being loaded, and open it."""
        try:
            self._send(Change(LOADING, add), timed)
        except NftError:  # the loading elements expired on a very busy machine, or the kernel refused only once
            self._send(Change((), add), timed)
            with suppress(NftError):
                self._send(Change(LOADING))
        self._forget_elements({*LOADING} - {*add})

    def _send(self, change: Change, timed: Mapping[Element, int] = MappingProxyType({})) -> None:
        """Send the elements whose sets this kernel has."""
        possible = Change(self.features.loadable(change.remove), self.features.loadable(change.add))
        self._client.send(possible, timed, self._name)

    def _fingerprint(self, sock: socket.socket | None = None) -> _Fingerprint:
        found, sock = {}, sock or self._client.reader
        for family in (NFPROTO_INET, NFPROTO_BRIDGE) if self.features.bridge else (NFPROTO_INET,):
            table = Table(family, self._name)
            header = ruleset.header(sock, table)
            if header is None:
                return {}
            found[family] = _Content(header, ruleset.rules(sock, table))
        return found

    # --- the chains that do not always exist ----------------------------------------------------------------------

    def _add_chains(self, names: Collection[str]) -> None:
        """Add chains, and their sets, before an element needs them; until then they have no effect.

        Where another program changed the rules, no rate is added. A base chain is: it only closes. The table does not
        count as intact then, and is written anew.
        """
        before = None
        try:
            before = self._seen_unchanged()
        except NftError:
            if not HOOKS.keys() >= {*names}:
                raise
        self._client.run_again(named(optional_chains.added(names, self.features.flags), self._name))
        self._chains = {name: set[Element]() for name in names} | self._chains
        if not self.incomplete:
            self._doubtful -= {*names}
        if before is None:
            return
        chains = [chain for name in sorted(names) for chain in optional_chains.parts(name).chains]
        if self._client.foreign_changes() == before:
            self._written = _with_rules(self._written, (*self._written[NFPROTO_INET].rules, *self._rules_of(chains)))
            return
        # Another program changed the ruleset meanwhile. That only matters if it changed docker-fw's table.
        now = self._fingerprint()
        if _only_added(self._written, now, chains, optional_chains.rule_count(names)):
            self._written = now
        elif not HOOKS.keys() >= {*names}:
            raise NftError("another program changed the rules")

    def _drop_chains(self) -> None:
        """Remove chains, and their sets, that no element needs any more. A failure is retried later."""
        unused = [name for name, elements in self._chains.items() if not elements]
        if not unused or self.incomplete:
            return
        try:
            self._seen_unchanged()
            chains = (chain for name in unused for chain in optional_chains.parts(name).chains)
            removed = {*self._rules_of(chains)}
            self._client.run_again(named(optional_chains.removed(unused), self._name))
        except (NftError, OSError) as error:
            log.warning("could not remove unused chains from the table yet: %s", error)
            self._doubtful |= HOOKS.keys() & {*unused}
            return
        for name in unused:
            del self._chains[name]
        remaining = (rule for rule in self._written[NFPROTO_INET].rules if rule not in removed)
        self._written = _with_rules(self._written, remaining)

    def _forget_elements(self, gone: Iterable[Element]) -> bool:
        """Note that these elements need no chain any more. Return True if one needed any."""
        left = _chains(gone)
        for name, elements in left.items():
            self._chains.get(name, set()).difference_update(elements)
        return bool(left)

    def _seen_unchanged(self) -> int:
        """Return the count of other programs' changes.

        Raises NftError if another program changed the rules: they are not extended then.
        """
        foreign = self._client.foreign_changes()
        if foreign != self._seen:
            if self._fingerprint() != self._written:
                raise NftError("another program changed the rules")
            self._seen = foreign
        return foreign

    def _rules_of(self, chains: Iterable[str]) -> Iterator[bytes]:
        table = Table(NFPROTO_INET, self._name)
        for chain in chains:
            yield from ruleset.rules(self._client.reader, table, chain)


def _with_rules(tables: _Fingerprint, rules: Iterable[bytes]) -> _Fingerprint:
    """Return the tables with these rules in the inet table."""
    return {**tables, NFPROTO_INET: tables[NFPROTO_INET]._replace(rules=tuple(rules))}


def _only_added(before: _Fingerprint, now: _Fingerprint, chains: Collection[str], count: int) -> bool:
    """True if the tables differ only by `count` more rules, all of them in these chains of the inet table."""
    if not now or _with_rules(now, ()) != _with_rules(before, ()):
        return False
    then, since = (Counter(tables[NFPROTO_INET].rules) for tables in (before, now))
    more = since - then
    return not then - since and more.total() == count and all(ruleset.chain_of(rule) in chains for rule in more)


def _chains(*elements: Iterable[Element]) -> dict[str, set[Element]]:
    """Return the chains that elements need, each with these elements."""
    found: dict[str, set[Element]] = {}
    for element in chained(itertools.chain(*elements)):
        for name in chains_for(element):
            found.setdefault(name, set()).add(element)
    return found
