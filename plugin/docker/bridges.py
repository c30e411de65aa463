"""Classify the host's bridges: Docker's, those of other programs, and those that are left alone (unmanaged).

Every bridge is protected until it is known not to be Docker's: a Docker network with a custom bridge name is closed
before docker-fw knows the network. Docker creates the bridge before it lists the network, so its list is trusted only
about bridges that have existed for a while.
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

#: Names that Docker gives to its bridges by default.
DOCKERS = re.compile(r"docker0|docker_gwbridge|br-[0-9a-f]{12}")
#: Seconds that a bridge must have existed before its absence from Docker's list is trusted.
SETTLE = 2.0


class Bridges:
    """Thread-safe.

    `uplinks` returns the links of the host's default route: they are the host's own, never Docker's. `remembered`:
    bridges that were unmanaged when docker-fw last ran, trusted until Docker has been asked.
    """

    def __init__(
        self,
        uplinks: Callable[[], set[str]],
        remembered: frozenset[str] = frozenset(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._uplinks = uplinks
        self._remembered = remembered
        #: The clock for the moments passed to `set_listed`.
        self.now = clock
        self._lock = threading.Lock()
        self._seen: dict[int, tuple[Link, float]] = {}
        self._listed: frozenset[str] | None = None
        self._claimed: set[int] = set()
        self._unmanaged: set[int] = set()
        #: The last moment at which the owners of bridges became uncertain.
        self._unknown_since = -math.inf
        self._unsure: set[int] = set()

    def see(self, links: Iterable[Link]) -> None:
        """Set the host's links of now."""
        with self._lock:
            now = self.now()
            there = {link.index: link for link in links if link.bridge and not link.ours}
            # A remembered bridge counts as unmanaged for long, unless Docker claims it now.
            old = self._remembered if self._listed is None else frozenset()
            self._seen = {
                index: (link, self._seen[index][1] if index in self._seen else now - SETTLE * (link.name in old))
                for index, link in there.items()
            }
            self._claim()

    def set_listed(self, dockers: frozenset[str], asked: float, *, complete: bool = True) -> None:
        """Note the bridges of Docker networks as listed by Docker; it was asked at this moment (of the clock).

        An answer requested before the last `mark_unknown` makes no bridge unmanaged. Nor does one that is not
        `complete`: it had something that docker-fw does not understand.
        """
        with self._lock:
            self._listed = dockers
            if complete and asked >= self._unknown_since:
                self._unsure = set()
                self._unmanaged |= {index for index, (_, since) in self._seen.items() if asked - since >= SETTLE}
            self._claim()

    def mark_unknown(self) -> bool:
        """Note that Docker created a network: any bridge may be its, a new one or an existing one.

        Return True if a bridge was left alone until now.
        """
        with self._lock:
            left_alone = bool(self._unmanaged)
            self._unsure |= self._unmanaged
            self._unmanaged = set()
            self._unknown_since = self.now()
            return left_alone

    def unsure(self) -> frozenset[str]:
        """Return the names of bridges that were left alone, and are not until Docker has been asked."""
        with self._lock:
            return self._names((self._unsure & self._seen.keys()) - self._exempt())

    def waiting(self) -> bool:
        """True while a bridge is protected that Docker has not claimed: ask Docker again in SETTLE seconds."""
        with self._lock:
            return bool(self._seen.keys() - self._claimed - self._unmanaged)

    def dockers(self) -> frozenset[str]:
        """Return the names of bridges that are known to be Docker's."""
        with self._lock:
            return self._names(self._claimed)

    def unmanaged(self) -> frozenset[str]:
        """Return the names of bridges that are left alone."""
        with self._lock:
            return frozenset(self._seen[index][0].name for index in self._exempt())

    def facts(self) -> BridgeFacts:
        """Return the facts about bridges that the table needs."""
        with self._lock:
            exempt = self._exempt()
            return BridgeFacts(
                frozenset(exempt),
                self._names(self._claimed),
                self._names(self._seen.keys() - exempt),
                self._names(self._seen),
            )

    def _claim(self) -> None:
        """Mark bridges as Docker's. They stay so as long as they exist, even if they are renamed."""
        listed = self._listed or frozenset()
        self._claimed &= self._seen.keys()
        self._claimed |= {
            index for index, (link, _) in self._seen.items() if DOCKERS.fullmatch(link.name) or link.name in listed
        }
        self._unmanaged &= self._seen.keys() - self._claimed

    def _names(self, indices: Iterable[int]) -> frozenset[str]:
        """Return the bridges' names.

        One that nft would have to quote is left out: that bridge is protected, and no more.
        """
        names = (self._seen[index][0].name for index in indices)
        return frozenset(name for name in names if INTERFACE_NAME.fullmatch(name))

    def _exempt(self) -> set[int]:
        exempt = set(self._unmanaged)
        if unsure := self._seen.keys() - self._claimed - exempt:
            uplinks = self._uplinks()
            for index in unsure:
                name = self._seen[index][0].name
                if name in uplinks or (self._listed is None and name in self._remembered):
                    exempt.add(index)
        return exempt
