"""The lease: Docker networks accept new flows only while docker-fw keeps confirming that it follows Docker.

On Docker networks, Docker gives an address to another container, and only docker-fw then removes the exceptions of the
old one. On docker-fw networks Leave removes them, at docker-fw's next start at the latest, so these need no lease.
"""

from __future__ import annotations

import math
import time

from plugin.nftables.client import NftError
from plugin.nftables.sets import WATCHED, Change, Element
from plugin.nftables.table import KernelTable

#: Seconds that the lease lasts, and between two renewals: a host under load must not lose it.
SECONDS, EVERY = 30, 10.0


class Lease:
    """Call under the reconciler's lock."""

    def __init__(self, nft: KernelTable) -> None:
        self._nft = nft
        self._until = 0.0

    def begin(self) -> None:
        """Start the lease; the whole table is written with it."""
        self._until = time.monotonic() + SECONDS

    def left(self) -> dict[Element, int]:
        """Return the seconds left; an empty dict when it has expired, which is not drift."""
        seconds = self._until - time.monotonic()
        return dict.fromkeys(WATCHED, math.ceil(seconds)) if seconds > 0 else {}

    def renew(self) -> None:
        """Renew the lease. Raises NftError."""
        began, lasts = time.monotonic(), dict.fromkeys(WATCHED, SECONDS)
        # Adding an existing element would keep its old timeout, so it is removed first.
        try:
            self._nft.change(Change(remove=WATCHED), lasts)
        except NftError:  # it has expired
            self._nft.change(Change(), lasts)
        self._until = began + SECONDS
