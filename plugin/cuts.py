"""Which established flows end when less is let through than before: just those that would not begin any more."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from functools import partial

from plugin import conntrack
from plugin.inventory import Inventory, Owner, subnets
from plugin.model import Address, Answers
from plugin.nft import Nft, NftError
from plugin.sets import Change, Element

log = logging.getLogger(__name__)
#: Seconds that a cut UDP flow is kept from coming back: longer than the peer keeps asking, and than nf_conntrack's own
#: time-out of a stream (nf_conntrack_udp_timeout_stream, 120).
HELD = 180


class Cuts:
    """To be called under the reconciler's lock. `later` takes work that may last, and must return at once."""

    def __init__(self, nft: Nft, known: Inventory, later: Callable[[Callable[[], None]], None]) -> None:
        self._nft = nft
        self._known = known
        self._later = later
        #: Until when cut flows are held.
        self._held: dict[Element, float] = {}
        self._holding = threading.Lock()

    def everywhere(self) -> None:
        """What came in while the rules were not there, or accepted more, would stay, as established."""
        for cut in self.of(self._known.owners()):
            cut()

    def later(self, owners: list[Owner]) -> None:
        """Cuts what these owners do not let through any more, by docker-proxy too, and waits for nothing."""
        for cut in self.of(owners):
            self._later(cut)

    def of(self, owners: Iterable[Owner]) -> list[Callable[[], None]]:
        """What cuts that: to their addresses, and to the host's ports that docker-proxy serves for them."""
        owners = list(owners)
        answers, (ports, stays) = self.answers(owners), self._known.through_proxy(owners)
        cuts: list[Callable[[], None]] = []
        if answers:
            cuts.append(partial(conntrack.cut_closed, answers, self.hold))
        if ports:
            cuts.append(partial(conntrack.cut_published, ports, stays))
        return cuts

    def strangers(self, bridges: Collection[str]) -> None:
        """Cuts what was begun on networks that are confined from now on by whoever is not known there."""
        networks = [network for network in self._known.networks() if network.bridge in bridges]
        prefixes = [subnet for network in networks for subnet in subnets(network)]
        known = frozenset(self.answers(self._known.owners()))
        if prefixes:
            self._later(partial(conntrack.cut_strangers, prefixes, known))

    def answers(self, owners: Iterable[Owner]) -> dict[Address, Answers]:
        return self._known.answers_of(owners)

    def hold(self, ways: list[conntrack.Way]) -> None:
        """Keeps cut UDP flows from coming back by the container's own next datagram."""
        held = {Element(f"held{way.source.version}", tuple(way)): HELD for way in ways}
        try:
            with self._holding:
                self._hold(held, time.monotonic())
        except NftError as error:
            log.error("cut UDP flows may come back: %s", error)

    def _hold(self, held: dict[Element, int], now: float) -> None:
        self._held = {element: until for element, until in self._held.items() if until > now}
        # An element that stands keeps its time when it is added again, so it goes first.
        standing = tuple(held.keys() & self._held.keys())
        try:
            self._nft.change(Change(standing), held)
        except NftError:  # some have just gone by themselves, or with the table
            for element in held:
                try:
                    self._nft.change(Change((element,)), {element: HELD})
                except NftError:
                    self._nft.change(Change(), {element: HELD})
        self._held.update(dict.fromkeys(held, now + HELD))
