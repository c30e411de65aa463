"""The lease: Docker's own networks take new flows while docker-fw says every few seconds that it still follows Docker.

Docker gives their addresses to others, and nobody but docker-fw takes an exception back then. On docker-fw's own
networks Leave does, at its next start at the latest; so they stand without.
"""

from __future__ import annotations

import math
import time

from plugin.nftables.sets import WATCHED, Change, Element
from plugin.nftables.table import Nft, NftError

#: Seconds that it lasts, and between two tries to renew it: a host under load must not lose it.
SECONDS, EVERY = 30, 10.0


class Lease:
    """To be called under the reconciler's lock."""

    def __init__(self, nft: Nft) -> None:
        self._nft = nft
        self._until = 0.0

    def begin(self) -> None:
        """It is put there with the whole table."""
        self._until = time.monotonic() + SECONDS

    def left(self) -> dict[Element, int]:
        """The seconds that are left of it; nothing when it is out, which is no drift."""
        seconds = self._until - time.monotonic()
        return dict.fromkeys(WATCHED, math.ceil(seconds)) if seconds > 0 else {}

    def renew(self) -> None:
        """Raises NftError."""
        began, lasts = time.monotonic(), dict.fromkeys(WATCHED, SECONDS)
        # To add an element that stands would leave it the time that it had, so it goes first.
        try:
            self._nft.change(Change(remove=WATCHED), lasts)
        except NftError:  # it is out
            self._nft.change(Change(), lasts)
        self._until = began + SECONDS
