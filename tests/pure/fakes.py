"""The kernel's table as a set of elements, and the disk as a state; both may fail at any step, as the real ones do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from plugin.model import FwError
from plugin.nftables.sets import Change, Element, limiting
from plugin.nftables.table import NftError
from plugin.policy.saved import State


class Kernel:
    """A table as the kernel holds it: a change is refused whole when it removes what is not there."""

    def __init__(self) -> None:
        self.table: set[Element] | None = None
        #: Elements that last for so many seconds, as they were last put there.
        self.timed: dict[Element, int] = {}
        self.refuses = 0  # so many transactions from now on
        self.incomplete = False

    def replace(self, elements: Iterable[Element], timed: Mapping[Element, int] = MappingProxyType({})) -> None:
        wanted, lasting = set(elements), dict(timed)
        self.incomplete = True
        self._may_refuse()
        self.incomplete = False
        self.table, self.timed = wanted, lasting

    def change(self, change: Change, timed: Mapping[Element, int] = MappingProxyType({})) -> None:
        if not change and not timed:
            return
        self._may_refuse()
        if self.table is None or set(change.remove) - self.table - self.timed.keys():
            raise NftError("No such file or directory")
        again = set(change.add) & (self.table - set(change.remove))
        assert all(element.set.startswith("ban_families") for element in again), "added twice"
        self.table = (self.table - set(change.remove)) | set(change.add)
        self.timed = {element: n for element, n in self.timed.items() if element not in change.remove} | dict(timed)

    def dump(self, name: str) -> list[bytes]:
        """Nothing is held."""
        return []

    def limits(self) -> frozenset[str]:
        return frozenset(chain for element in self.table or () for chain in limiting(element)[1:])

    def intact(self) -> bool:
        return self.table is not None

    def _may_refuse(self) -> None:
        if self.refuses:
            self.refuses -= 1
            raise NftError("refused")


class Disk:
    """A store that may be full."""

    def __init__(self) -> None:
        self.kept = State()
        self.full = False
        self.unsaved_reason = ""

    def save(self, state: State, *, flush: bool, endpoint: str = "") -> None:
        if self.full:
            self.unsaved_reason = "could not write the state file: No space left on device"
            raise FwError(self.unsaved_reason)
        self.kept, self.unsaved_reason = dataclasses.replace(state), ""
