"""Break everything around docker-fw, one part after the other, while an outsider never stops shooting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Engine
from tests.product import NEWEST, Fw, with_plugin
from tests.torture.__main__ import leaks
from tests.torture.bed import HEADER, Bed
from tests.torture.blows import SHORT


@pytest.fixture(scope="module", params=[NEWEST])
def fw(_root: None, request: pytest.FixtureRequest) -> Iterator[Fw]:
    """Yield an engine that no other test needs."""
    with Engine(request.param, data=with_plugin(request.param)) as engine:
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


def test_the_torture_sees_a_port_that_is_really_opened_and_records_how(fw: Fw, tmp_path: Path) -> None:
    """A blow that opens a closed port is reported as broken. The recording has its packets, its rules and its trace."""

    def opened(bed: Bed) -> None:
        bed.fw.fwctl("allow", "tortured-app", "9090")

    with Bed(fw, records=tmp_path).created() as bed:
        row = bed.strike(opened)
        assert bed.recorder
        (record,) = bed.recorder.kept
    assert row.broken
    assert {answer.how for answer in row.opened} == {"syn-ack"}
    assert "10.89.1.9:9090/tcp syn-ack" in (record / "answers.txt").read_text()
    shot, answer = row.opened[0].port.number, (record / "outsider.pcap").read_bytes()
    assert answer.count(shot.to_bytes(2, "big")) > len(row.opened)
    assert (record / "host.pcap").stat().st_size > 1000
    assert "permit rule accept" in (record / "trace.txt").read_text()
    assert "10.89.1.9 . tcp . 9090" in (record / "ruleset.txt").read_text()
    assert "10.89.1.9 . tcp . 9090" in (record / "rules.txt").read_text()
    assert "dport=9090" in (record / "flows.txt").read_text()
    assert "fwctl allow 9090/tcp of tortured-app" in (record / "dockerd.log").read_text()
