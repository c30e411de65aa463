"""What `fwctl` changes: overrides of a container's labels, bans; and their end, when their time is over.

Whatever is asked for is read and checked before any lock is taken. Lock order: nothing of ours, for there is no lock
here; the reconciler's, then (after it has been given back) the guard's.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Any

from plugin.fwctl.api.find_container import containers, whom
from plugin.fwctl.api.status import override
from plugin.kernel import link_monitor
from plugin.labels.grammar import parse_allow, parse_deny
from plugin.model import Address, FwError, Overriding, Prefix, Rule
from plugin.policy import bans, overrides
from plugin.policy.saved import State
from plugin.state.reconciler import Reconciler

#: Words of `fwctl` about one container.
MOST = 256
#: Seconds at most until it is looked whether something has ended: the clock may have been set meanwhile.
_LOOK = 30.0
#: Seconds between two times that bans which have ended are forgotten: the kernel has dropped them by itself.
_SWEEP = 60.0
#: Seconds until the next try, where the disk or the kernel refused.
_AGAIN = 5.0
log = logging.getLogger(__name__)


class AdminCommands:
    """`apart` tells which containers have no network of their own, and why; `spoken` is called when something may end.

    Thread-safe. Every call but `end` raises FwError.
    """

    def __init__(
        self,
        reconciler: Reconciler,
        not_guarded: Callable[[], Mapping[str, str]] = dict,
        spoken: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
        own: Callable[[], set[bytes]] = link_monitor.addresses,
    ) -> None:
        self._state = reconciler
        self._apart = not_guarded
        self._spoken = spoken
        self._clock = clock
        self._own = own
        self._swept = clock()

    def override(self, container: str, texts: Sequence[str], seconds: float | None, *, deny: bool) -> dict[str, Any]:
        """`fwctl allow` and `fwctl deny`: `texts` in the language, for `seconds` (None: for ever)."""
        rules = _read(texts, deny=deny)
        there = self._state.read(containers)
        identity = whom(there, container, self._apart())
        until = self._clock() + seconds if seconds else 0
        words = [Overriding(identity, rule, deny, until) for rule in rules]
        self._state.edit_state(partial(_with, words))
        self._spoken()
        for word in words:
            log.info("fwctl %s %s of %s%s", "deny" if deny else "allow", word.rule, there[identity], _for(seconds))
        return {"container": there[identity], "id": identity, "said": list(map(override, words))}

    def revert(self, container: str | None) -> dict[str, Any]:
        """`fwctl revert`: a container is as its labels say; None: all are. One that does not run goes by its ID."""
        spoken = {each.container for each in self._state.state.overrides}
        there = self._state.read(containers)
        meant = spoken
        if container is not None:
            known = {**dict.fromkeys(spoken, ""), **there}
            meant = {whom(known, container, self._apart())} & spoken
        if meant:
            self._state.edit_state(partial(overrides.without, containers=meant))
        for each in meant:
            log.info("fwctl revert %s", there.get(each) or each[:12])
        return {"reverted": [{"container": there.get(each) or None, "id": each} for each in sorted(meant)]}

    def ban(self, wanted: Sequence[tuple[str, float | None]]) -> dict[str, Any]:
        """`fwctl ban`: addresses and prefixes, each for so many seconds (None: for ever). All of them, or none.

        What they had established is cut, which takes a moment where the host has very many flows.
        """
        now = self._clock()
        read, wrong = _banned([(text, now + seconds if seconds else 0) for text, seconds in wanted])
        own = _around(self._own_addresses())
        wrong += [f"cannot ban {bans.written(prefix)}: {own[prefix]}" for prefix in read if prefix in own]
        if wrong:
            more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
            raise FwError("; ".join(wrong[:8]) + more)
        # Their packets are dropped at once, but for those of flows in a flow table, which pass by every rule.
        cut = self._state.edit_state(lambda state: dataclasses.replace(state, bans={**state.bans, **read}))
        log.info("fwctl ban %s: %d flows cut", ", ".join(map(bans.written, list(read)[:8])), cut.deleted)
        told = [bans.told(prefix, until) for prefix, until in read.items()]
        return {"banned": told, "cut": cut.deleted, "notes": cut.notes}

    def unban(self, addresses: Sequence[str] | None) -> dict[str, Any]:
        """`fwctl unban`; None: everybody. Who is not banned is told of, and no mistake."""
        known = self._state.state.bans
        meant = list(known) if addresses is None else list(dict.fromkeys(map(bans.read, addresses)))
        gone = [prefix for prefix in meant if prefix in known]
        if gone:
            self._state.edit_state(partial(_unbanned, gone=gone))
        left, now = self._state.state.bans, self._clock()
        wider = ((prefix, bans.holding(prefix, left, now)) for prefix in meant if addresses is not None)
        still = [{"address": bans.written(prefix), "by": bans.written(by)} for prefix, by in wider if by]
        absent = [bans.written(prefix) for prefix in meant if prefix not in known]
        return {"unbanned": list(map(bans.written, gone)), "absent": absent, "still": still}

    def bans(self) -> dict[str, Any]:
        """Who is banned now, until when."""
        now = self._clock()
        there = [bans.told(prefix, until) for prefix, until in self._state.state.bans.items() if not 0 < until <= now]
        return {"now": now, "bans": there}

    def end(self) -> float:
        """Ends what has ended; returns the seconds until it is to be called again. Never raises FwError."""
        now = self._clock()
        try:
            for deny in (False, True):  # one by one: what closes must not wait for what opens, if the disk is full
                concerned = {each.container for each in overrides.ended(self._state.state, now) if each.deny is deny}
                if concerned:
                    self._state.edit_state(partial(overrides.lapsed, now=now, deny=deny))
                    log.info("an override by fwctl %s has ended", "deny" if deny else "allow")
            if abs(now - self._swept) >= _SWEEP:
                self._swept = now
                if any(0 < until <= now for until in self._state.state.bans.values()):
                    self._state.edit_state(partial(overrides.swept, now=now))
        except FwError as error:
            log.error("what fwctl said for a time could not be ended: %s", error)
            return _AGAIN
        ends = [each.until - now for each in self._state.state.overrides if each.until]
        return max(0.05, min(_LOOK, *ends)) if ends else _LOOK

    def _own_addresses(self) -> dict[Address, str]:
        """The host's own addresses, and those of the driver's networks that their containers' packets go to."""
        found: dict[Address, str] = {
            ip_address(packed): "the host's own" for packed in self._own() if len(packed) in (4, 16)
        }
        for network in self._state.networks.values():
            for gateway in (network.gateway4, network.gateway6):
                if gateway:
                    found[gateway.ip] = f"the gateway of the network on {network.bridge}"
        return found


def _read(texts: Sequence[str], *, deny: bool) -> list[Rule]:
    rules: list[Rule] = []
    wrong: list[str] = []
    for text in texts:
        found, mistakes = (parse_deny if deny else parse_allow)(text)
        rules += [dataclasses.replace(rule, origin="fwctl deny" if deny else "fwctl allow") for rule in found]
        wrong += mistakes
    if wrong or not rules:
        raise FwError("; ".join(wrong[:8]) or 'there is no rule; write one like 8080 or "5432 from 203.0.113.7"')
    return list(dict.fromkeys(rules))


def _with(words: Sequence[Overriding], state: State) -> State:
    for word in words:
        state = overrides.with_one(state, word)
    if words and sum(each.container == words[0].container for each in state.overrides) > MOST:
        raise FwError(f"more than {MOST} words of fwctl about one container; take some back with fwctl revert")
    return state


def _unbanned(state: State, gone: Collection[Prefix]) -> State:
    left = dict(state.bans)
    for prefix in gone:
        left.pop(prefix, None)
    return dataclasses.replace(state, bans=left)


def _for(seconds: float | None) -> str:
    return f" for {seconds:.0f} s" if seconds else ""


def _around(addresses: Mapping[Address, str]) -> dict[Prefix, str]:
    """Every prefix that holds one of the addresses, and why that is not to be banned."""
    return {
        ip_network((address, length), strict=False): (
            f"it is {whose}" if length == address.max_prefixlen else f"{address}, in it, is {whose}"
        )
        for address, whose in addresses.items()
        for length in range(bans.WIDEST[address.version], address.max_prefixlen + 1)
    }


def _banned(wanted: Sequence[tuple[str, float]]) -> tuple[dict[Prefix, float], list[str]]:
    """(who, until when), and every mistake. Of one that is named twice the later word counts."""
    found: dict[Prefix, float] = {}
    wrong = []
    for text, until in wanted:
        try:
            found[bans.read(text)] = until
        except FwError as error:
            wrong.append(str(error))
    return found, wrong
