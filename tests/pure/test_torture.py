"""Test what the torture decides: what counts as an answer, when one is permitted, what the document keeps."""

from __future__ import annotations

import socket
import struct
from dataclasses import replace

import pytest

from tests.torture.outsider import Answer, Permission, Port
from tests.torture.report import DOCUMENT, HEADS, Run, parse, written
from tests.torture.shooter import MAGIC, RST, SYN_ACK, TCP, UDP, answered

HERE, THERE = socket.inet_aton("198.51.100.2"), socket.inet_aton("10.89.1.9")


def v4(protocol: int, body: bytes, hops: int = 63) -> bytes:
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, 0, hops, protocol, 0, THERE, HERE) + body


def v6(protocol: int, body: bytes, hops: int = 63) -> bytes:
    return struct.pack("!IHBB32s", 6 << 28, len(body), protocol, hops, bytes(32)) + body


def tcp(flags: int, ack: int, port: int = 30007) -> bytes:
    return struct.pack("!HHIIBBHHH", 9090, port, 0, ack, 0x50, flags, 0, 0, 0)


def datagram(shot: int, ports: tuple[int, int] = (9090, 30000)) -> bytes:
    return struct.pack("!HHHH", *ports, 20, 0) + MAGIC + struct.pack("!I", shot)


UNREACHABLE = struct.pack("!BBHI", 3, 3, 0, 0) + v4(UDP, datagram(7))
UNREACHABLE6 = struct.pack("!BBHI", 1, 4, 0, 0) + v6(UDP, datagram(7))


@pytest.mark.parametrize(
    ("packet", "is_v4", "how"),
    [
        (v4(TCP, tcp(SYN_ACK, 8)), True, "syn-ack"),
        (v4(TCP, tcp(SYN_ACK, 8), 64), True, "syn-ack"),
        (v4(TCP, tcp(SYN_ACK, 8, 60111)), True, "syn-ack"),
        (v6(TCP, tcp(SYN_ACK, 8), 64), False, "syn-ack"),
        (v4(TCP, tcp(RST | 0x10, 8)), True, "reset"),
        (v6(TCP, tcp(RST | 0x10, 8)), False, "reset"),
        (v4(UDP, datagram(7), 64), True, "datagram"),
        (v6(UDP, datagram(7)), False, "datagram"),
        (v4(1, UNREACHABLE), True, "unreachable"),
        (v6(58, UNREACHABLE6), False, "unreachable"),
    ],
)
def test_whatever_a_container_answers_is_seen_with_the_shot_that_it_answers(
    packet: bytes, is_v4: bool, how: str
) -> None:
    """Also a reset or an error of a container without a server: the shot has reached it."""
    assert answered(packet, is_v4) == (7, how)


@pytest.mark.parametrize(
    ("packet", "is_v4"),
    [
        (v4(TCP, tcp(RST | 0x10, 8), 64), True),
        (v6(TCP, tcp(RST | 0x10, 8), 64), False),
        (v4(1, UNREACHABLE, 64), True),
        (v4(1, struct.pack("!BBHI", 3, 1, 0, 0) + v4(UDP, datagram(7))), True),
        (v4(TCP, tcp(SYN_ACK, 8, 38970)), True),
        (v4(UDP, b"\0" * 20), True),
        (v4(UDP, datagram(7, ports=(30000, 9090))), True),
        (v6(UDP, datagram(7, ports=(30000, 9090))), False),
    ],
)
def test_what_answers_no_shot_is_not_counted(packet: bytes, is_v4: bool) -> None:
    """A host that does not forward at the moment sends resets and errors of its own, with a full TTL.

    Another probe's connection may by chance have the sequence number of a shot, but not its source port too. A host
    without a route to the container returns the shot itself, by its default route.
    """
    assert answered(packet, is_v4) is None


def test_a_shot_that_may_have_been_sent_while_its_port_was_open_may_be_answered() -> None:
    """On a busy machine the shooter may have to wait between looking at the clock and sending."""
    times = Permission([(10.0, 20.0)])
    port = Port("tcp", "10.89.1.20", 8080)
    assert times.covers(Answer(port, 9.95, 10.01, 10.02, "syn-ack"))
    assert not times.covers(Answer(port, 9.95, 9.99, 10.02, "syn-ack"))


def test_a_port_that_changes_may_answer_only_shots_from_its_open_time() -> None:
    """Once its end is noted no later shot may be answered, and before its beginning none."""
    port, times = Port("tcp", "10.89.1.20", 8080), Permission()

    def answer(sent: float, left: float = 0.0) -> Answer:
        return Answer(port, sent, left or sent, 0.0, "syn-ack")

    assert not times.covers(answer(0.0))
    times.begin()
    ((since, _),) = times.spans
    assert times.covers(answer(since + 3600))
    assert not times.covers(answer(since - 0.002, since - 0.001))
    times.end()
    ((_, until),) = times.spans
    assert times.covers(answer(until))
    assert not times.covers(answer(until + 0.001, until + 1))
    times.end()
    assert times.spans == [(since, until)]


RUN = Run("26.1.5", "busy (6)", *(str(number) for number in range(len(HEADS) - 2)))


def test_the_document_keeps_the_last_run_of_each_engine_and_load() -> None:
    """A run replaces the row of its engine and load, and leaves all others and the text as they are."""
    text = DOCUMENT.read_text()
    there = parse(text)
    other, again = replace(RUN, load="idle (3)"), replace(RUN, load="busy (4)", seed="99")
    for run in (RUN, other, again):
        text = written(text, run)
    assert [run for run in parse(text) if run.key == RUN.key] == [again]
    assert [run for run in parse(text) if run.key == other.key] == [other]
    assert {run.key for run in there} <= {run.key for run in parse(text)}
    assert text.partition("<!--")[0] == DOCUMENT.read_text().partition("<!--")[0]


def test_no_run_in_the_document_has_an_answered_shot() -> None:
    """What is published is the promise: answered = 0, in every run."""
    assert [run for run in parse(DOCUMENT.read_text()) if run.answered != "0"] == []
