"""The lease is renewed only while departures are noticed, and its end is reported."""

from __future__ import annotations

import pytest

from plugin.model import Defaults
from plugin.nftables.client import NftError
from plugin.nftables.drift import TableDump
from plugin.nftables.sets import SETS, WATCHED, Element
from plugin.policy.facts import Facts
from plugin.policy.view import PolicyView
from plugin.state import lease
from plugin.state.applier import TableApplier
from plugin.state.lease import SECONDS
from plugin.state.reconciler import Reconciler
from tests.pure.fakes import Clock, Disk, Kernel


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(lease, "time", made)
    return made


@pytest.fixture
def kernel(no_flows: None) -> Kernel:
    return Kernel()


def writer(kernel: Kernel) -> TableApplier:
    made = TableApplier(kernel, PolicyView(Defaults()), lambda _: None)  # type: ignore[arg-type]
    made.start()
    return made


def found(kernel: Kernel, *, leaving: frozenset[Element] = frozenset()) -> TableDump:
    return TableDump(1, frozenset(SETS), frozenset((*(kernel.table or ()), *kernel.timed)), leaving, ())


# --- in the kernel ----------------------------------------------------------------------------------------------------


def test_a_whole_table_contains_the_remaining_lease(kernel: Kernel, clock: Clock) -> None:
    """A new table contains the lease. A table that is restored later contains the remaining time, and no lease after
    its end: flushing the table does not renew it."""
    made = writer(kernel)
    assert kernel.timed == dict.fromkeys(WATCHED, SECONDS)
    clock.now += 12.5
    kernel.table = None
    assert made.repair()
    assert kernel.timed == dict.fromkeys(WATCHED, SECONDS - 12)
    clock.now += SECONDS
    kernel.table = None
    assert made.repair()
    assert kernel.timed == {}


def test_a_renewal_restarts_the_full_duration(kernel: Kernel, clock: Clock) -> None:
    """Each renewal starts the full duration again; a renewal that the kernel refuses changes nothing."""
    made = writer(kernel)
    clock.now += 20
    made.lease.renew()
    assert made.lease.left() == dict.fromkeys(WATCHED, SECONDS)
    clock.now += SECONDS
    kernel.timed.clear()
    assert made.lease.left() == {}
    made.lease.renew()
    assert kernel.timed == made.lease.left() == dict.fromkeys(WATCHED, SECONDS)
    clock.now += 10
    kernel.refuses = 2
    with pytest.raises(NftError):
        made.lease.renew()
    assert made.lease.left() == dict.fromkeys(WATCHED, SECONDS - 10)


def test_an_expired_lease_is_no_drift(kernel: Kernel, clock: Clock) -> None:
    """When elements are synced, a deleted lease is restored for the remaining time. An expired one is not restored, and
    one that is about to expire is not removed."""
    made = writer(kernel)
    assert made.sync_elements(found(kernel)) == 0
    clock.now += 10
    kernel.timed.clear()
    assert made.sync_elements(found(kernel)) == 2
    assert kernel.timed == dict.fromkeys(WATCHED, SECONDS - 10)
    clock.now += SECONDS
    assert made.sync_elements(found(kernel, leaving=frozenset(WATCHED))) == 0
    kernel.timed.clear()
    assert made.sync_elements(found(kernel)) == 0
    assert kernel.timed == {}


def test_the_view_contains_whether_the_lease_is_active(kernel: Kernel, clock: Clock) -> None:
    """The view for status and explain contains True from the start until the lease expires."""
    state = Reconciler(kernel, Disk(), Defaults())  # type: ignore[arg-type]
    state.start(Facts())
    assert state.snapshot().watched
    clock.now += SECONDS
    assert not state.snapshot().watched
