"""Which of the host's bridges are Docker's, which are somebody else's, and what is therefore to be left alone.

Every bridge is guarded until it is known to be nobody's of Docker's: a network of Docker's with a bridge name of its
own is closed before anybody knows it. Docker makes the bridge before it lists the network, so its list is believed
only of bridges that had been there for a while.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterable

from plugin.jsonio import INTERFACE_NAME
from plugin.kernel.link_monitor import Link
from plugin.policy.facts import BridgeFacts

#: Names that Docker gives to its own bridges without being asked.
DOCKERS = re.compile(r"docker0|docker_gwbridge|br-[0-9a-f]{12}")
#: Seconds that a bridge must have been there before Docker's list is believed not to know it (yet).
SETTLE = 2.0


class Bridges:
    """Thread-safe. `uplinks` tells the links by which the host's default route leaves: the host's own, never Docker's.

    `remembered`: bridges that were foreign when docker-fw last ran, believed until Docker has been asked.
    """

    def __init__(
        self,
        uplinks: Callable[[], set[str]],
        remembered: frozenset[str] = frozenset(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._uplinks = uplinks
        self._remembered = remembered
        #: The clock by which `told` is asked when.
        self.now = clock
        self._lock = threading.Lock()
        self._seen: dict[int, tuple[Link, float]] = {}
        self._told: frozenset[str] | None = None
        self._claimed: set[int] = set()
        self._foreign: set[int] = set()
        #: When it was doubted last whose they are.
        self._doubted = -math.inf
        self._unsure: set[int] = set()

    def see(self, links: Iterable[Link]) -> None:
        """These are the host's links now."""
        with self._lock:
            now = self.now()
            there = {link.index: link for link in links if link.bridge and not link.ours}
            # A remembered one has been foreign for long, as far as Docker does not claim it now.
            old = self._remembered if self._told is None else frozenset()
            self._seen = {
                index: (link, self._seen[index][1] if index in self._seen else now - SETTLE * (link.name in old))
                for index, link in there.items()
            }
            self._claim()

    def told(self, dockers: frozenset[str], asked: float, *, complete: bool = True) -> None:
        """Docker has listed the bridges of its networks; it was asked at this moment (of the clock).

        An answer that was asked for before a doubt frees none. Nor does one that is not `complete`: there was something
        in it that docker-fw does not understand.
        """
        with self._lock:
            self._told = dockers
            if complete and asked >= self._doubted:
                self._unsure = set()
                self._foreign |= {index for index, (_, since) in self._seen.items() if asked - since >= SETTLE}
            self._claim()

    def doubt(self) -> None:
        """Docker has made a network: any bridge may be its, one that came lately or one that was there."""
        with self._lock:
            self._unsure |= self._foreign
            self._foreign = set()
            self._doubted = self.now()

    def unsure(self) -> frozenset[str]:
        """The names of bridges that were left alone, and are not until Docker has been asked."""
        with self._lock:
            return self._names((self._unsure & self._seen.keys()) - self._exempt())

    def waiting(self) -> bool:
        """True while a bridge is guarded that Docker has not claimed: ask Docker again in SETTLE seconds."""
        with self._lock:
            return bool(self._seen.keys() - self._claimed - self._foreign)

    def dockers(self) -> frozenset[str]:
        """The names of bridges that are Docker's, as far as is known."""
        with self._lock:
            return self._names(self._claimed)

    def unmanaged(self) -> frozenset[str]:
        """The names of bridges that are left alone."""
        with self._lock:
            return frozenset(self._seen[index][0].name for index in self._exempt())

    def facts(self) -> BridgeFacts:
        """What the table needs to know of them."""
        with self._lock:
            exempt = self._exempt()
            return BridgeFacts(
                frozenset(exempt),
                self._names(self._claimed),
                self._names(self._seen.keys() - exempt),
                self._names(self._seen),
            )

    def _claim(self) -> None:
        """A bridge that has been Docker's stays so as long as it exists, whatever it is called by now."""
        told = self._told or frozenset()
        self._claimed &= self._seen.keys()
        self._claimed |= {
            index for index, (link, _) in self._seen.items() if DOCKERS.fullmatch(link.name) or link.name in told
        }
        self._foreign &= self._seen.keys() - self._claimed

    def _names(self, indices: Iterable[int]) -> frozenset[str]:
        """A name that nft would have to quote is nobody's: guarded, and no more."""
        names = (self._seen[index][0].name for index in indices)
        return frozenset(name for name in names if INTERFACE_NAME.fullmatch(name))

    def _exempt(self) -> set[int]:
        exempt = set(self._foreign)
        if unsure := self._seen.keys() - self._claimed - exempt:
            uplinks = self._uplinks()
            for index in unsure:
                name = self._seen[index][0].name
                if name in uplinks or (self._told is None and name in self._remembered):
                    exempt.add(index)
        return exempt
