"""docs/icmpv6.md agrees with the registry of RFC 4890's rows, and the registry with the RFC and the rules."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.icmpv6 import ACCEPT, ACCEPTED4, DIRECTIONS, DROP, FILE, ROWS, SECTIONS, written

README = Path(FILE).parent.parent / "README.md"


def test_the_document_is_current() -> None:
    """The table of the document is the registry's. `python -m tests.icmpv6` writes it."""
    text = FILE.read_text()
    assert text == written(text)


def test_every_type_has_one_row() -> None:
    """All types from 1 to 255 are in exactly one row; only those of 3 and 4 are divided by code."""
    rows = Counter((kind, row.codes) for row in ROWS for first, last in row.types for kind in range(first, last + 1))
    assert set(rows.values()) == {1}
    assert {kind for kind, _ in rows} == set(range(1, 256))
    assert {kind for kind, codes in rows if codes} == {3, 4}


def test_every_difference_from_the_rfc_has_a_reason() -> None:
    """A row without a reason does what the RFC says in every direction: accepts the needed, drops the dangerous."""
    for row in ROWS:
        for name, kind in DIRECTIONS.items():
            category = SECTIONS[row.transit if kind == "4.3" else row.local]
            verdict = getattr(row, name)
            if category in ("must not be dropped", "should not be dropped") and verdict not in ("", ACCEPT):
                assert row.why, f"{row.name}: {name}"
            if category == "should be dropped" and name in ("inbound", "in_flow") and verdict == ACCEPT:
                assert row.why, f"{row.name}: {name}"


def test_nothing_dangerous_is_accepted_from_outside() -> None:
    """Of all types that the RFC wants dropped or decided, none is accepted from outside about no flow."""
    for row in ROWS:
        if row.transit in ("4.3.4", "4.3.5"):
            assert row.inbound == DROP


def test_the_readme_says_what_useful_icmp_is() -> None:
    """The README's "useful ICMP" is errors and ping, in both families, and leads to the table."""
    text = " ".join(README.read_text().split())
    assert "useful ICMP (errors, ping)" in text
    assert "docs/icmpv6.md" in text
    accepted = {row.name for row in ROWS if row.inbound == ACCEPT}
    errors = {name for name in accepted if name.startswith(("destination", "packet", "time", "parameter"))}
    listed = {"router advertisement", "neighbour solicitation, advertisement"}
    assert accepted - errors == {"echo request", *listed}
    assert [name.split(",")[0] for name in ACCEPTED4.values()] == [
        "destination unreachable",
        "echo request",
        "time exceeded",
        "parameter problem",
    ]
