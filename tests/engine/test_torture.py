"""Break everything around docker-fw, one part after the other, while an outsider never stops probing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Engine
from tests.product import NEWEST, Fw
from tests.torture.__main__ import leaks
from tests.torture.bed import HEADER, Bed
from tests.torture.blows import SHORT


@pytest.fixture(scope="module", params=[NEWEST])
def fw(_root: None, request: pytest.FixtureRequest) -> Iterator[Fw]:
    """Yield an engine that no other test needs."""
    with Engine(request.param) as engine:
        yield Fw.install(engine)


def test_no_blow_opens_what_is_closed_and_all_that_was_open_comes_back(fw: Fw) -> None:
    """No closed port answers at any moment, and open ones are open again without intervention.

    The blows are crashes, hangs, flushes and lost state, on driver and Docker networks, IPv4 and IPv6.
    """
    with Bed(fw).created() as bed:
        rows = [bed.strike(blow) for blow in SHORT]
    print(HEADER, *rows, sep="\n")
    assert not [str(row) for row in rows if row.broken]
    assert leaks(fw) == ""


def test_the_torture_sees_a_port_that_is_really_opened(fw: Fw) -> None:
    """A blow that opens a closed port is reported as broken."""

    def opened(bed: Bed) -> None:
        bed.fw.fwctl("allow", "tortured-app", "9090")

    with Bed(fw).created() as bed:
        row = bed.strike(opened)
    assert row.broken
    assert row.opened
