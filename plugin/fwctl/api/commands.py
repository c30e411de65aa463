"""The changes that `fwctl` makes: overrides of a container's labels, bans, and their end when their time is over.

A request is read and checked before any lock is taken. This module has no lock of its own.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Any

from plugin.fwctl.api.flow_ends import containers, find_container
from plugin.fwctl.api.status import override
from plugin.kernel import link_monitor
from plugin.labels.grammar import parse_allow, parse_deny
from plugin.model import Address, FwError, Overriding, Prefix, Rule
from plugin.policy import bans, overrides
from plugin.policy.saved import SavedState
from plugin.state.reconciler import Reconciler

#: Overrides of one container.
MAX_OVERRIDES = 256
#: The longest time, in seconds, between two checks for expired overrides: the clock may have been set meanwhile.
_LONGEST_WAIT = 30.0
#: Seconds between two removals of expired bans from the state: the kernel has ended them by itself.
_SWEEP = 60.0
#: Seconds until the next try after the disk or the kernel has failed.
_RETRY = 5.0
log = logging.getLogger(__name__)


class AdminCommands:
    """`not_guarded`: containers that docker-fw does not filter, with the reason. `wake`: called after each override.

    Thread-safe. Every call but `end` raises FwError.
    """

    def __init__(
        self,
        reconciler: Reconciler,
        not_guarded: Callable[[], Mapping[str, str]] = dict,
        wake: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
        host_addresses: Callable[[], set[bytes]] = link_monitor.addresses,
    ) -> None:
        self._reconciler = reconciler
        self._not_guarded = not_guarded
        self._wake = wake
        self._clock = clock
        self._host_addresses = host_addresses
        self._swept = clock()

    def override(self, container: str, texts: Sequence[str], seconds: float | None, *, deny: bool) -> dict[str, Any]:
        """`fwctl allow` and `fwctl deny`: add rules, written as in labels, for `seconds` (None: permanently)."""
        rules = _read_rules(texts, deny=deny)
        there = self._reconciler.read(containers)
        identity = find_container(there, container, self._not_guarded())
        until = self._clock() + seconds if seconds else 0
        added = [Overriding(identity, rule, deny, until) for rule in rules]
        self._reconciler.edit_state(partial(_with_overrides, added))
        self._wake()
        for each in added:
            log.info("fwctl %s %s of %s%s", "deny" if deny else "allow", each.rule, there[identity], _duration(seconds))
        self._wait_saved()
        return {"container": there[identity], "id": identity, "said": list(map(override, added))}

    def revert(self, container: str | None) -> dict[str, Any]:
        """`fwctl revert`: remove the overrides of a container; None: of all. A stopped one is named by its ID."""
        overridden = {each.container for each in self._reconciler.state.overrides}
        there = self._reconciler.read(containers)
        meant = overridden
        if container is not None:
            known = {**dict.fromkeys(overridden, ""), **there}
            meant = {find_container(known, container, self._not_guarded())} & overridden
        if meant:
            self._reconciler.edit_state(partial(overrides.without, containers=meant))
        for each in meant:
            log.info("fwctl revert %s", there.get(each) or each[:12])
        self._wait_saved()
        return {"reverted": [{"container": there.get(each) or None, "id": each} for each in sorted(meant)]}

    def ban(self, wanted: Sequence[tuple[str, float | None]]) -> dict[str, Any]:
        """`fwctl ban`: ban addresses and prefixes, each for a number of seconds (None: permanently). All, or none.

        Their established connections are cut, which takes a moment on a host with very many.
        """
        now = self._clock()
        read, wrong = _read_bans([(text, now + seconds if seconds else 0) for text, seconds in wanted])
        own = _prefixes_containing(self._own_addresses())
        wrong += [f"cannot ban {bans.written(prefix)}: {own[prefix]}" for prefix in read if prefix in own]
        if wrong:
            more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
            raise FwError("; ".join(wrong[:8]) + more)
        # Their packets are dropped at once, but for those of flows in a flow table, which pass by every rule.
        cut = self._reconciler.edit_state(lambda state: dataclasses.replace(state, bans={**state.bans, **read}))
        log.info("fwctl ban %s: %d flows cut", ", ".join(map(bans.written, list(read)[:8])), cut.deleted)
        self._wait_saved()
        banned = [bans.as_data(prefix, until) for prefix, until in read.items()]
        return {"banned": banned, "cut": cut.deleted, "notes": cut.notes}

    def unban(self, addresses: Sequence[str] | None) -> dict[str, Any]:
        """`fwctl unban`: remove bans, all of them if None. An address that is not banned is reported, and no error."""
        known = self._reconciler.state.bans
        meant = list(known) if addresses is None else list(dict.fromkeys(map(bans.read, addresses)))
        removed = [prefix for prefix in meant if prefix in known]
        if removed:
            self._reconciler.edit_state(partial(_unbanned, removed=removed))
        self._wait_saved()
        left, now = self._reconciler.state.bans, self._clock()
        wider = ((prefix, bans.holding(prefix, left, now)) for prefix in meant if addresses is not None)
        still = [{"address": bans.written(prefix), "by": bans.written(by)} for prefix, by in wider if by]
        absent = [bans.written(prefix) for prefix in meant if prefix not in known]
        return {"unbanned": list(map(bans.written, removed)), "absent": absent, "still": still}

    def bans(self) -> dict[str, Any]:
        """Return the banned addresses, and until when."""
        now = self._clock()
        found = [
            bans.as_data(prefix, until) for prefix, until in self._reconciler.state.bans.items() if not 0 < until <= now
        ]
        return {"now": now, "bans": found}

    def end(self) -> float:
        """Remove what has expired; return the seconds until the next call. Never raises FwError."""
        now = self._clock()
        try:
            for deny in (False, True):  # one by one: what closes must not wait for what opens, if the disk is full
                concerned = {
                    each.container for each in overrides.ended(self._reconciler.state, now) if each.deny is deny
                }
                if concerned:
                    self._reconciler.edit_state(partial(overrides.lapsed, now=now, deny=deny))
                    log.info("an override by fwctl %s has expired", "deny" if deny else "allow")
            if abs(now - self._swept) >= _SWEEP:
                self._swept = now
                if any(0 < until <= now for until in self._reconciler.state.bans.values()):
                    self._reconciler.edit_state(partial(overrides.swept, now=now))
        except FwError as error:
            log.error("an expired override or ban could not be removed: %s", error)
            return _RETRY
        ends = [each.until - now for each in self._reconciler.state.overrides if each.until]
        return max(0.05, min(_LONGEST_WAIT, *ends)) if ends else _LONGEST_WAIT

    def _wait_saved(self) -> None:
        """Wait until the disk has the change, also if an earlier request made it. Raises FwError."""
        try:
            self._reconciler.wait_saved()
        except FwError as error:
            raise FwError(f"{error}; the change is in effect, and a restart or a power cut may undo it") from error

    def _own_addresses(self) -> dict[Address, str]:
        """Return the host's own addresses, and the gateways of docker-fw networks, each with what it is."""
        found: dict[Address, str] = {
            ip_address(packed): "the host's own address" for packed in self._host_addresses() if len(packed) in (4, 16)
        }
        for network in self._reconciler.networks.values():
            for gateway in (network.gateway4, network.gateway6):
                if gateway:
                    found[gateway.ip] = f"the gateway of the network on {network.bridge}"
        return found


def _read_rules(texts: Sequence[str], *, deny: bool) -> list[Rule]:
    rules: list[Rule] = []
    wrong: list[str] = []
    for text in texts:
        found, mistakes = (parse_deny if deny else parse_allow)(text)
        rules += [dataclasses.replace(rule, origin="fwctl deny" if deny else "fwctl allow") for rule in found]
        wrong += mistakes
    if wrong or not rules:
        raise FwError("; ".join(wrong[:8]) or 'there is no rule; write one such as 8080 or "5432 from 203.0.113.7"')
    return list(dict.fromkeys(rules))


def _with_overrides(added: Sequence[Overriding], state: SavedState) -> SavedState:
    for each in added:
        state = overrides.with_one(state, each)
    if added and sum(each.container == added[0].container for each in state.overrides) > MAX_OVERRIDES:
        raise FwError(f"more than {MAX_OVERRIDES} overrides of one container; remove some with fwctl revert")
    return state


def _unbanned(state: SavedState, removed: Collection[Prefix]) -> SavedState:
    left = dict(state.bans)
    for prefix in removed:
        left.pop(prefix, None)
    return dataclasses.replace(state, bans=left)


def _duration(seconds: float | None) -> str:
    return f" for {seconds:.0f} s" if seconds else ""


def _prefixes_containing(addresses: Mapping[Address, str]) -> dict[Prefix, str]:
    """Return every prefix that contains one of the addresses, and why it must not be banned."""
    return {
        ip_network((address, length), strict=False): (
            f"it is {what}" if length == address.max_prefixlen else f"it contains {address}, {what}"
        )
        for address, what in addresses.items()
        for length in range(bans.WIDEST[address.version], address.max_prefixlen + 1)
    }


def _read_bans(wanted: Sequence[tuple[str, float]]) -> tuple[dict[Prefix, float], list[str]]:
    """Read (address, until when); return them, and every mistake. Of an address given twice the last one counts."""
    found: dict[Prefix, float] = {}
    wrong = []
    for text, until in wanted:
        try:
            found[bans.read(text)] = until
        except FwError as error:
            wrong.append(str(error))
    return found, wrong
