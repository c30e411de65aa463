"""The kernel's table, the disk, a clock and the host, in memory; table and disk may fail at any step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import pytest

from plugin.kernel import conntrack
from plugin.labels.parser import parse
from plugin.model import Container, FwError, Published
from plugin.nftables.client import NftError
from plugin.nftables.sets import Change, Element, limits
from plugin.policy.saved import SavedState
from plugin.state import closed_flows


class Kernel:
    """A table like the kernel's: a change is refused as a whole if it removes a missing element."""

    def __init__(self) -> None:
        self.table: set[Element] | None = None
        #: Elements with a timeout in seconds, as they were last written.
        self.timed: dict[Element, int] = {}
        self.refuses = 0  # the number of transactions to refuse from now on
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
        assert all(element.set.startswith(("ban_families", "ban_prefix_families")) for element in again), "added twice"
        self.table = (self.table - set(change.remove)) | set(change.add)
        self.timed = {element: n for element, n in self.timed.items() if element not in change.remove} | dict(timed)

    def dump(self, name: str) -> list[bytes]:
        """Return the table, with an empty quarantine."""
        return []

    def rate_chains(self) -> frozenset[str]:
        return frozenset(chain for element in self.table or () for chain in limits(element))

    def intact(self) -> bool:
        return self.table is not None

    def opens(self, address: object) -> set[int]:
        """Return the TCP ports that every source may reach at the address."""
        found = (e.key[2] for e in self.table or () if e.set.startswith("allow") and e.key[0] == address)
        return {int(port) for port in found}  # type: ignore[arg-type]

    def _may_refuse(self) -> None:
        if self.refuses:
            self.refuses -= 1
            raise NftError("refused")


class Disk:
    """A store that may be full."""

    def __init__(self) -> None:
        self.kept = SavedState()
        self.full = False
        self.unsaved_reason = ""
        #: It was saved once, so that one record may be saved alone.
        self.begun = False
        #: What happens while the disk flushes.
        self.flushing: Callable[[], object] = lambda: None

    def save(self, state: SavedState, *, alone: tuple[str, str] | None = None) -> None:
        if self.full:
            self.unsaved_reason = "could not write the state file: No space left on device"
            raise FwError(self.unsaved_reason)
        if alone and self.begun and not self.unsaved_reason:
            assert state == _with(self.kept, state, *alone), "a line of the journal would lack a change"
        self.kept, self.unsaved_reason, self.begun = dataclasses.replace(state), "", True

    def flush(self) -> None:
        self.flushing()


def _with(state: SavedState, other: SavedState, name: str, key: str) -> SavedState:
    """Return the state with this one record of the other."""
    there = {each: item for each, item in getattr(state, name).items() if each != key}
    if key in getattr(other, name):
        there[key] = getattr(other, name)[key]
    changed: SavedState = dataclasses.replace(state, **{name: there})
    return changed


class Clock:
    """A clock that only the test moves: it is the time as a function, and replaces the module `time`."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    time = monotonic = __call__


def cut_no_flows(patch: pytest.MonkeyPatch) -> None:
    """Do not search the connection tracking of this machine's kernel for flows."""
    for name in ("cut_published", "cut_addresses"):
        patch.setattr(conntrack, name, lambda *_: None)
    patch.setattr(closed_flows, "cut_closed", lambda *_: None)
    patch.setattr(conntrack, "cut_prefixes", lambda _: conntrack.Cut())
    patch.setattr(conntrack, "cut_forwarded", lambda _: conntrack.Cut())


class NoLinks:
    """Links, host ports, sysctls and Docker's API where every call succeeds and nothing exists."""

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_, **__: None

    def missing(self, _: object) -> set[int]:
        return set()

    def find(self, *_: object) -> Container:
        parsed = parse({"fw.allow": "8080"})
        return Container("c" * 64, "web", parsed.spec, parsed.problems)

    def publish(self, _: str, bindings: Any, **addresses: Any) -> tuple[Published, ...]:
        there = [address for name in ("addr4", "addr6") if (address := addresses[name])]
        return tuple(
            Published(b.proto, type(address)(0), b.host_port or 40000, b.container_port)
            for b in bindings
            for address in there
        )
