"""The registry of scanners' cases is complete, arrivals are read without the kernel, and the page shows every case."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

import pytest

from tests.documents import ROOT
from tests.kernel.packets import Fragment, Packet, extended, icmp, ping, tcp, udp
from tests.referees.scanners.arrivals import Arrivals, Frame
from tests.referees.scanners.bed import Seen
from tests.referees.scanners.case import LONGEST, Case
from tests.referees.scanners.referee import problems
from tests.referees.scanners.registry import CASES, NOT_APPLICABLE

SRC, DST = "2001:db8:5::7", "2001:db8:1::2"
SRC4, DST4 = "203.0.113.7", "10.1.0.2"
OPEN = frozenset({"tcp 8080"})


def arrivals(*packets: Packet) -> frozenset[str]:
    return Arrivals.of([Frame("", 0x86DD if len(each.dst) == 16 else 0x0800, bytes(each)) for each in packets])


def fragment(whole: Packet, start: int, end: int | None = None) -> Packet:
    """Return a part of an IPv6 packet; without an end, the last one."""
    place = start | (end is not None)
    piece = Packet(whole.src, whole.dst, whole.proto, whole.data[start:end])
    return extended(piece, 44, struct.pack("!BHI", 0, place, 7))


def test_no_case_of_a_tool_is_left_out() -> None:
    """Each numbered test of thc-ipv6's tools is run, against open and closed ports, and each title is unique."""
    numbers = {
        tool: {case.name.split(",")[0] for case in CASES if case.tool == tool}
        for tool in ("firewall6", "implementation6", "fragmentation6", "denial6")
    }
    counts = {"firewall6": range(1, 40), "implementation6": range(59), "fragmentation6": range(1, 34)}
    for tool, count in {**counts, "denial6": range(1, 8)}.items():
        assert numbers[tool] == {f"test {number}" for number in count}
    ends = [case.name.rpartition(", ")[2] for case in CASES if case.tool == "firewall6"]
    assert {end: ends.count(end) for end in ends} == dict.fromkeys(
        ("closed tcp 9090", "closed udp 9053", "open tcp 8080", "open udp 5353"), 39
    )
    runs = [(case.title, kind) for case in CASES for kind in case.kinds]
    assert len(set(runs)) == len(runs)
    tools = {"fake_router26", "parasite6", "redir6", "fake_advertise6", "frag6", "tcp6", "na6", "ra6", "rd6", "nmap"}
    assert {case.tool for case in CASES} == {*numbers, *tools}


def test_a_tool_that_never_ends_is_bounded() -> None:
    """A flood runs for seconds at most; a longer one is refused when it is written down."""
    assert all(0 <= case.ended_after <= LONGEST for case in CASES)
    with pytest.raises(ValueError, match="may run for at most"):
        Case("denial6", "test 1", "atk6-denial6", ended_after=LONGEST + 1)


def test_the_page_shows_every_case() -> None:
    """docs/scanners.md has a row for each case, with the present expectation, and all were as expected."""
    page = (ROOT / "docs/scanners.md").read_text()
    for case in CASES:
        section = page.partition(f"\n## {case.tool}\n")[2].partition("\n## ")[0]
        cells = [line.split(" | ") for line in section.splitlines() if line.startswith(f"| {case.name} | ")]
        assert cells, case.title
        expected = ", ".join(sorted(case.arrives)) or "nothing"
        assert any(row[2] == expected and row[4] == "as expected" for row in cells), (case.title, cells)
    for each in NOT_APPLICABLE:
        assert f"| {each.tool} | {each.name} | {each.reason} |" in page


def test_arrivals_are_named_by_their_upper_layer() -> None:
    """A packet is named by protocol and port, or type, behind any extension headers; IPv4 and IPv6."""
    option = b"\0\1\4" + bytes(4)
    behind = extended(extended(tcp(SRC, DST, 9090, 1), 60, option), 0, option)
    assert arrivals(behind, udp(SRC4, DST4, 53, 1), ping(SRC, DST), icmp(SRC4, DST4, 5)) == {
        "tcp 9090",
        "udp 53",
        "icmpv6 128",
        "icmp 5",
    }


def test_fragments_are_put_together() -> None:
    """Fragments count as the packet that they make, in any order; some of them have a name of their own."""
    whole = tcp(SRC, DST, 9090, 1)
    pieces = [fragment(whole, 8, 16), fragment(whole, 16), fragment(whole, 0, 8)]
    assert arrivals(*pieces) == {"tcp 9090"}
    assert arrivals(pieces[2]) == {"part of tcp 9090"}
    assert arrivals(pieces[0]) == {"part of an unknown packet"}
    assert arrivals(*pieces[:2], fragment(whole, 0, 16)) == {"unreadable", "part of tcp 9090"}
    four = tcp(SRC4, DST4, 9090, 1)
    assert arrivals(Fragment(four, 0x2000, 9, four.data[:8]), Fragment(four, 1, 9, four.data[8:])) == {"tcp 9090"}


def test_malformed_packets_count_as_arrivals() -> None:
    """Nothing is overlooked: a header that ends after the packet, another version, another EtherType."""
    long = extended(Packet(tcp(SRC, DST, 9090, 1).src, tcp(SRC, DST, 9090, 1).dst, 6, b""), 60, b"\x63\1\4" + bytes(4))
    assert arrivals(long) == {"unreadable"}
    assert Arrivals.of([Frame("", 0x0800, bytes(ping(SRC, DST)))]) == {"unreadable"}
    assert Arrivals.of([Frame("", 0x88CC, b"x"), Frame("", 0x0806, b"x")]) == {"EtherType 0x88cc", "arp"}


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        ({}, ""),
        ({"arrived": {"tcp 9090"}}, "closed, but reached"),
        ({"arrived": {"part of tcp 9090"}}, "closed, but reached"),
        ({"arrived": set()}, "did not arrive"),
        ({"arrived": {"tcp 8080", "icmpv6 134"}}, "not expected"),
        ({"served": {"udp 9053"}}, "closed, but reached"),
        ({"changed": {"host: routes"}}, "changed"),
        ({"printed": "8080/open/tcp//x, 9090/open/tcp//y"}, "nmap says open"),
    ],
)
def test_each_difference_is_a_problem(seen: dict[str, Any], says: str) -> None:
    """A case fails for each thing that arrives, changes or is found without being expected, or that does not."""
    case = Case("nmap", "x", "nmap", frozenset({"tcp 8080"}), finds=("open", "tcp"))
    usual = Seen(frozenset({"tcp 8080"}), frozenset(), frozenset(), "8080/open/tcp//x", 0)
    changed: Any = {key: value if isinstance(value, str) else frozenset(value) for key, value in seen.items()}
    found = list(problems(case, dataclasses.replace(usual, **changed), OPEN))
    assert bool(found) == bool(says)
    assert any(each.startswith(says) for each in found) or not says
