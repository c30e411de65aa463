"""Drops with names: any bytes are read, the last drops are kept, and no container floods the log."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address
from typing import Any

import pytest
from flask import Flask
from hypothesis import example, given
from hypothesis import strategies as st

from plugin.fwctl.api.drop_names import Names
from plugin.fwctl.api.droplog import NO_KERNEL, RETRY, TAKEN, DropLog, Lines, Ring
from plugin.fwctl.api.droplog_http import FOLLOWERS, add_route
from plugin.fwctl.cli import log as droplog_cli
from plugin.fwctl.drop_record import Drop, Header, header, line
from plugin.kernel.nflog import LOCAL_IN, Logged, TakenError
from plugin.model import Container, Defaults, Endpoint, Network, PolicySpec
from plugin.policy.facts import ElementOwner, Facts
from plugin.policy.saved import SavedState
from plugin.policy.view import PolicyView, evaluated
from tests.kernel import packets as made
from tests.pure.fakes import Clock
from tests.pure.strategies import examples

OUT4, OUT6 = IPv4Address("203.0.113.9"), IPv6Address("2001:db8:9::1")
WEB4, WEB6 = IPv4Address("10.1.0.2"), IPv6Address("2001:db8:1::2")
API4 = IPv4Address("10.2.0.2")


def network(number: int) -> Network:
    return Network(
        f"n{number}", f"fw-{number}", IPv4Interface(f"10.{number}.0.1/24"), IPv6Interface(f"2001:db8:{number}::1/64")
    )


def endpoint(number: int, name: str, **spec: Any) -> Endpoint:
    """A container `name` as .2 of network `number`."""
    return Endpoint(
        f"e{number}",
        f"n{number}",
        IPv4Address(f"10.{number}.0.2"),
        IPv6Address(f"2001:db8:{number}::2"),
        joined=True,
        container=Container(f"c{number}", name, PolicySpec(**spec)),
    )


class Known:
    """The reconciler, as far as the drop log uses it."""

    def __init__(self, *endpoints: Endpoint, **spec: Any) -> None:
        networks = {f"n{number}": network(number) for number in (1, 2)}
        self.inventory = evaluated(
            Defaults(PolicySpec(**{"log": "none", **spec})), Facts(SavedState(networks, {e.id: e for e in endpoints}))
        )
        self._lock = threading.RLock()

    def read(self, question: Callable[[PolicyView], Any]) -> Any:
        with self._lock:
            return question(self.inventory)

    def put(self, each: Endpoint) -> None:
        facts = self.inventory.facts.keeping(lambda state: state.with_endpoint(each))
        self.inventory = evaluated(self.inventory.defaults, facts)


def logged(packet: made.Packet, **fields: Any) -> Logged:
    return Logged(bytes(packet), **fields)


def drops_of(known: Known, *records: Logged, clock: Callable[[], float] | None = None) -> list[Drop]:
    """Return what becomes of packets; without a `clock`, at one moment, however slow the machine is."""
    log = DropLog(known, lambda: True, clock=clock or Clock())
    log.take(records)
    return log.ring.after(0)


def lines_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "plugin.fwctl.api.droplog"]


# --- bytes --------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=160))
@example(b"")
@example(b"\x40" + bytes(19))
@example(b"\x4f" + bytes(40))
@example(b"\x60" + bytes(5) + b"\x00" + bytes(33) + b"\x00\xff" + bytes(100))
@example(b"\x60" + bytes(5) + b"\x2c" + bytes(33) + b"\x06\x00\x00\x01" + bytes(100))
@examples(1000)
def test_any_bytes_are_read_or_skipped(data: bytes) -> None:
    """The result for any packet bytes is a record and a line without control characters, or nothing."""
    known = Known(endpoint(1, "web", log="drop"), endpoint(2, "api", egress=()))
    records = [Logged(data), Logged(data, LOCAL_IN, 1, 1 << 30, 0xFFFFFFFF)]
    for drop in drops_of(known, *records):
        text = line(json.loads(json.dumps(drop.as_data())))
        assert text.isprintable()
        assert text
    if of := header(data):
        assert 0 <= of.port <= 65535
        assert len(data) >= (20 if of.source.version == 4 else 40)


@given(st.binary(min_size=40, max_size=128), st.sampled_from([0x45, 0x60]))
@examples(300)
def test_any_ip_header_is_read(rest: bytes, first: int) -> None:
    """A packet of any protocol, with any bytes after its header, has its addresses read correctly."""
    of = header(bytes([first]) + rest)
    assert of is not None
    four = first == 0x45
    assert of.source.packed == (rest[11:15] if four else rest[7:23])
    assert of.target.packed == (rest[15:19] if four else rest[23:39])


@pytest.mark.parametrize("proto", ["tcp", "udp", "sctp"])
@pytest.mark.parametrize(("source", "target"), [(OUT4, WEB4), (OUT6, WEB6)])
def test_the_first_packet_of_a_flow_is_read(proto: str, source: Any, target: Any) -> None:
    """Addresses, protocol and both ports of TCP, UDP and SCTP are read in both families."""
    packet = made.new_flow(proto, source, target, 5432, 40000)
    assert header(bytes(packet)[:128]) == Header(source, target, proto, 5432, 40000)


def test_ipv6_extension_headers_do_not_hide_the_port() -> None:
    """The port is read after hop-by-hop, routing and destination options and a first fragment's header."""
    packet = made.tcp(OUT6, WEB6, 5432, 40000)
    for kind in (60, 43, 0):
        packet = made.extended(packet, kind, b"\0" + bytes(6))
    assert header(bytes(packet)) == Header(OUT6, WEB6, "tcp", 5432, 40000)
    for place, port in ((b"\0\1", 5432), (b"\1\0", 0)):
        part = made.extended(made.tcp(OUT6, WEB6, 5432, 40000), 44, b"\0" + place + b"abcd")
        of = header(bytes(part))
        assert of
        assert (of.proto, of.port) == ("tcp", port)


def test_other_protocols_have_their_names_or_numbers() -> None:
    """GRE, ESP and AH have the names that labels use, ICMP is shown with its type, all others by number."""
    raw = {47: "gre", 50: "esp", 51: "ah", 89: "89", 1: "icmp"}
    for number, name in raw.items():
        of = header(bytes(made.Packet(OUT4.packed, WEB4.packed, number, b"\x08abcdefg")))
        assert of
        assert (of.proto, of.port, of.kind) == (name, 0, 8 if number == 1 else None)
    of = header(bytes(made.icmp(OUT6, WEB6, 137)))
    assert of
    assert (of.proto, of.kind) == ("icmpv6", 137)


def test_a_later_fragment_has_no_ports() -> None:
    """The bytes of a later IPv4 fragment are never taken for a port."""
    whole = made.tcp(OUT4, WEB4, 5432, 40000)
    of = header(bytes(made.Fragment(whole, 1, 7, whole.data)))
    assert of == Header(OUT4, WEB4, "tcp")


@given(st.text(min_size=1))
@examples(200)
def test_names_from_outside_are_on_one_line(text: str) -> None:
    """No newline, escape or other control character of a container's name reaches a log or a terminal."""
    drops = drops_of(Known(endpoint(1, text)), logged(made.tcp(OUT6, WEB6, 5432, 40000)))
    assert all(line(drop.as_data()).isprintable() for drop in drops)
    assert drops[0].container
    assert drops[0].container.isprintable()


# --- names and reasons --------------------------------------------------------------------------------------------


def test_an_inbound_drop_has_the_containers_name_and_the_reason() -> None:
    """A closed port's drop names the container, the port, the source, and that the container does not accept it."""
    (drop,) = drops_of(Known(endpoint(1, "web")), logged(made.tcp(OUT6, WEB6, 5432, 40000), hook=2))
    assert (drop.number, drop.direction, drop.container, drop.source) == (1, "to", "web", None)
    assert line(drop.as_data()) == (
        "web 2001:db8:1::2 5432/tcp from 2001:db8:9::1 (inbound; as of now: web does not accept 5432/tcp)"
    )


def test_an_outbound_drop_has_the_containers_name_and_the_reason() -> None:
    """The drop of an outbound packet names the container, the target, and the connections that the container may
    open."""
    (drop,) = drops_of(Known(endpoint(1, "web", egress=())), logged(made.udp(WEB4, OUT4, 53, 40000), hook=2))
    assert (drop.direction, drop.container, drop.target) == ("by", "web", None)
    assert line(drop.as_data()) == (
        "web 10.1.0.2 to 203.0.113.9 53/udp (outbound; as of now: web may open no connections)"
    )


def test_between_containers_both_have_their_names() -> None:
    """A drop between two containers is reported for the target, and names both."""
    known = Known(endpoint(1, "web"), endpoint(2, "api"))
    (drop,) = drops_of(known, logged(made.tcp(API4, WEB4, 5432, 40000), hook=2))
    assert (drop.direction, drop.source, drop.target, drop.container) == ("to", "api", "web", "web")
    assert line(drop.as_data()).startswith("web 10.1.0.2 5432/tcp from api 10.2.0.2 (inbound; ")


def test_a_packet_to_the_host_is_outbound() -> None:
    """A packet to the host's own address is outbound, whatever that address is."""
    known = Known(endpoint(1, "web", egress=()))
    (drop,) = drops_of(known, logged(made.tcp(WEB4, "10.1.0.1", 2375, 40000), hook=LOCAL_IN))
    assert (drop.direction, drop.container) == ("by", "web")


def test_an_accepted_port_is_not_reported_as_closed() -> None:
    """The reason for a segment without a connection, or a redirect, is factual, and names no rule that does not
    exist."""
    known = Known(endpoint(1, "web"))
    stray, redirect = made.tcp(OUT6, WEB6, 80, 40000, flags=0x10), made.icmp(OUT6, WEB6, 137)
    first, second = drops_of(known, logged(stray), logged(redirect))
    assert first.reason == "it opens no connection, and belongs to no established one"
    assert second.reason == "it is not a useful ICMP message"


def test_an_unknown_address_has_no_name() -> None:
    """An address whose container is unknown has no name."""
    known = Known(dataclasses.replace(endpoint(1, "web"), container=None))
    (drop,) = drops_of(known, logged(made.tcp(OUT6, WEB6, 5432, 40000)))
    assert (drop.direction, drop.container) == ("to", None)
    assert line(drop.as_data()).startswith(
        "2001:db8:1::2 5432/tcp from 2001:db8:9::1 (inbound; as of now: it is unknown"
    )


def test_a_new_container_has_its_name_at_once() -> None:
    """A container's first drop has its name, even if another container's packet was resolved a moment before."""
    known = Known(endpoint(1, "web"))
    log = DropLog(known, lambda: True, clock=Clock())
    log.take([logged(made.tcp(OUT4, WEB4, 5432, 40000))])
    known.put(endpoint(2, "api"))
    log.take([logged(made.tcp(OUT4, API4, 5432, 40001))])
    assert [drop.container for drop in log.ring.after(0)] == ["web", "api"]


def test_an_address_has_the_name_of_its_current_owner() -> None:
    """The name is that of the container that has the address now, never of an earlier one."""
    known = Known(endpoint(1, "web"))
    names = Names(Clock())
    assert names.either(known.inventory, WEB4, OUT4)[0]
    heir = dataclasses.replace(endpoint(1, "heir"), id="e9")
    facts = known.inventory.facts.keeping(lambda state: dataclasses.replace(state, endpoints={"e9": heir}))
    known.inventory = evaluated(known.inventory.defaults, facts)
    found, other = names.either(known.inventory, WEB4, OUT4)
    assert found
    assert (found.name, other) == ("heir", None)


def test_many_drops_build_the_list_of_addresses_once() -> None:
    """Ten thousand packets from outside to known containers build the list of addresses once, not each time."""
    known, clock, asked = Known(endpoint(1, "web")), Clock(), 0
    owners = known.inventory.owners

    class Counting(PolicyView):
        def owners(self) -> list[ElementOwner]:
            nonlocal asked
            asked += 1
            return owners()

    inventory = Counting(known.inventory.defaults, known.inventory.facts)
    names = Names(clock)
    for number in range(10_000):
        assert names.either(inventory, WEB4, IPv4Address(number + 1))[0]
    assert asked == 1


def test_reasons_take_a_bounded_share_of_time() -> None:
    """Drops have their names even if finding reasons takes long, and no reason until there is time again."""
    clock = Clock()
    known = Known(endpoint(1, "web"))
    decide = known.inventory.decide

    class Dear(PolicyView):
        def decide(self, *of: Any) -> Any:
            clock.now += 1.0
            return decide(*of)

    known.inventory = Dear(known.inventory.defaults, known.inventory.facts)
    log = DropLog(known, lambda: True, clock=clock)
    packet = logged(made.tcp(OUT4, WEB4, 5432, 40000))
    log.take([packet])
    known.inventory = PolicyView(known.inventory.defaults, known.inventory.facts)
    log.take([packet, packet])
    clock.now += 1000
    log.take([packet])
    assert [(d.container, bool(d.reason)) for d in log.ring.after(0)] == [
        ("web", True),
        ("web", False),
        ("web", False),
        ("web", True),
    ]


# --- storage and log ------------------------------------------------------------------------------------------------


def test_only_the_last_drops_are_kept() -> None:
    """A thousand drops are kept, numbered without gaps; a hundred thousand take no more space."""
    log = DropLog(Known(endpoint(1, "web")), lambda: True)
    for _ in range(25):
        log.take([logged(made.tcp(OUT4, WEB4, 5432, 40000))] * 100)
    numbers = [drop.number for drop in log.ring.after(0)]
    assert numbers == list(range(1501, 2501))
    assert [drop.number for drop in log.ring.after(2498)] == [2499, 2500]
    assert log.ring.after(2500) == []


def test_a_follower_gets_each_drop_at_once() -> None:
    """A follower sleeps until there is a drop, and gets it at once."""
    ring, found = Ring(), []
    waiting = threading.Thread(target=lambda: found.extend(ring.after(0, 30)))
    waiting.start()
    ring.put(drops_of(Known(endpoint(1, "web")), logged(made.tcp(OUT4, WEB4, 5432, 40000))))
    waiting.join(10)
    assert [drop.number for drop in found] == [1]


def test_only_a_container_with_the_label_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """fw.log=drop writes a container's drops into docker-fw's log; without it, and with "none", nothing is written."""
    caplog.set_level(logging.INFO)
    known = Known(endpoint(1, "web", log="drop"), endpoint(2, "api", log="none"))
    drops_of(known, logged(made.tcp(OUT4, API4, 5432, 40000)), logged(made.tcp(OUT4, WEB4, 5432, 40001)))
    assert lines_in(caplog) == [
        "dropped: web 10.1.0.2 5432/tcp from 203.0.113.9 (inbound; as of now: web does not accept 5432/tcp)"
    ]


def test_the_setting_applies_to_containers_without_the_label(caplog: pytest.LogCaptureFixture) -> None:
    """FW_LOG=drop logs the drops of all containers except those with fw.log=none."""
    caplog.set_level(logging.INFO)
    known = Known(endpoint(1, "web"), endpoint(2, "api", log="none"), log="drop")
    drops_of(known, logged(made.tcp(OUT4, API4, 5432, 40000)), logged(made.tcp(OUT4, WEB4, 5432, 40001)))
    assert [text.split()[1] for text in lines_in(caplog)] == ["web"]


def test_a_flood_writes_a_few_lines_and_a_count(caplog: pytest.LogCaptureFixture) -> None:
    """A container's flood takes ten lines in ten seconds, then one line that counts the rest; other containers keep
    their lines."""
    caplog.set_level(logging.INFO)
    clock = Clock()
    log = DropLog(Known(endpoint(1, "web"), endpoint(2, "api"), log="drop"), lambda: True, clock=clock)
    log.take([logged(made.tcp(OUT4, WEB4, 5432, 40000))] * 500)
    log.take([logged(made.tcp(OUT4, API4, 5432, 40000))])
    assert [text.split()[1] for text in lines_in(caplog)] == ["web"] * 10 + ["api"]
    clock.now += 10
    log.take([])
    assert lines_in(caplog)[11:] == ["dropped: web: 490 more were not logged"]
    log.take([logged(made.tcp(OUT4, WEB4, 5432, 40000))])
    assert len(lines_in(caplog)) == 13


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=200))
@examples(200)
def test_every_line_is_written_or_counted(events: list[tuple[str, int]]) -> None:
    """For any arrival of drops, each has a line or is counted, and no container has more lines in a period than
    allowed."""
    lines, now = Lines(3, 5.0), 0.0
    written, counted, asked = 0, 0, len(events)
    for who, later in events:
        now += later
        counted += sum(count for _, count in lines.over(now))
        written += lines.allow(who, now)
    counted += sum(count for _, count in lines.over(now + 5))
    assert written + counted == asked
    assert written <= 3 * 3 * (1 + now / 5)


# --- the kernel's side ------------------------------------------------------------------------------------------------


class Kernel:
    """A log group that returns what the test gives it, then nothing."""

    def __init__(self, *batches: Sequence[Logged] | OSError) -> None:
        self.batches = list(batches)
        self.lost = 0
        self.closed = False
        self.empty = threading.Event()

    def __call__(self, group: int) -> Kernel:
        return self

    def read(self) -> Sequence[Logged]:
        if not self.batches:
            self.empty.set()
            return []
        if isinstance(first := self.batches.pop(0), OSError):
            raise first
        return first

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def looping() -> Iterator[Callable[[DropLog], threading.Thread]]:
    """Run a log's loop until the test is over."""
    running: list[tuple[DropLog, threading.Thread]] = []

    def run(log: DropLog) -> threading.Thread:
        thread = threading.Thread(target=log.drop_loop)
        thread.start()
        running.append((log, thread))
        return thread

    yield run
    for log, thread in running:
        log.stop()
        thread.join(10)
        assert not thread.is_alive()


def test_the_loop_takes_drops_and_closes_its_group(looping: Callable[[DropLog], threading.Thread]) -> None:
    """Drops are added to the ring as they are reported; at the end the group is closed."""
    kernel = Kernel([logged(made.tcp(OUT4, WEB4, 5432, 40000))], [], [logged(made.tcp(OUT4, WEB4, 5433, 40000))])
    log = DropLog(Known(endpoint(1, "web")), lambda: True, kernel)
    thread = looping(log)
    assert kernel.empty.wait(10)
    assert [drop.header.port for drop in log.ring.after(0)] == [5432, 5433]
    log.stop()
    thread.join(10)
    assert (kernel.closed, log.trouble) == (True, "")


def test_a_kernel_without_the_log_is_reported_once(
    looping: Callable[[DropLog], threading.Thread], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without nfnetlink_log in the kernel a single message reports it, no further try is made, and docker-fw
    continues."""
    monkeypatch.setattr("plugin.fwctl.api.droplog.RETRY", 0.001)
    asked: list[bool] = []
    thrice = threading.Event()

    def supported() -> bool:
        asked.append(True)
        if len(asked) == 3:
            thrice.set()
        return False

    log = DropLog(Known(), supported, lambda group: pytest.fail("asked a kernel that has none"))
    looping(log)
    assert thrice.wait(10)
    assert log.trouble == NO_KERNEL
    assert lines_in(caplog) == [NO_KERNEL]


def test_a_group_in_use_is_a_warning(
    looping: Callable[[DropLog], threading.Thread], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If another program has the group, this is reported once; docker-fw retries, and reports when it receives drops
    again."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("plugin.fwctl.api.droplog.RETRY", 0.001)
    assert RETRY > 1
    kernel, refusals = Kernel(), [TakenError(1, "x")] * 3

    def listen(group: int) -> Kernel:
        if refusals:
            raise refusals.pop()
        return kernel

    log = DropLog(Known(), lambda: True, listen)
    looping(log)
    assert kernel.empty.wait(10)
    assert lines_in(caplog) == [TAKEN, "drops are reported again"]
    assert log.trouble == ""


def test_lost_drops_are_counted_over_sockets() -> None:
    """The count of lost drops survives a new socket."""
    kernel = Kernel(OSError(5, "broken"))
    kernel.lost = 3
    log = DropLog(Known(), lambda: True, kernel)
    with pytest.raises(OSError, match="broken"):
        log.drop_loop()
    assert (log.lost, kernel.closed) == (3, True)


# --- over HTTP, and as a command --------------------------------------------------------------------------------------


@pytest.fixture
def log() -> DropLog:
    """Return a drop log with three drops."""
    made_log = DropLog(Known(endpoint(1, "web"), endpoint(2, "api")), lambda: True)
    for target, port in ((WEB4, 1), (API4, 2), (WEB4, 3)):
        made_log.take([logged(made.tcp(OUT4, target, port, 40000))])
    return made_log


@pytest.fixture
def app(log: DropLog) -> Flask:
    flask = Flask("test")
    add_route(flask, log)
    return flask


def lines_of(response: Any) -> list[dict[str, Any]]:
    return [json.loads(text) for text in response.get_data(as_text=True).splitlines()]


def test_the_kept_drops_are_json_lines(app: Flask) -> None:
    """GET /drops returns every kept drop, one a line, then a progress line; since=N leaves out older drops."""
    received = lines_of(app.test_client().get("/drops"))
    assert [each.get("port") for each in received] == [1, 2, 3, None]
    assert received[-1] == {"newest": 3, "lost": 0}
    assert [each.get("port") for each in lines_of(app.test_client().get("/drops?since=2"))] == [3, None]
    assert [each.get("port") for each in lines_of(app.test_client().get("/drops?since=9"))] == [1, 2, 3, None]
    assert len(lines_of(app.test_client().get("/drops?since=x"))) == 4


def test_a_follower_gets_kept_drops_then_new_ones(app: Flask, log: DropLog) -> None:
    """follow=1 sends the kept drops, a progress line, then each new drop."""
    response = app.test_client().get("/drops?follow=1", buffered=False)
    received = map(str, (chunk.decode() for chunk in response.response))
    assert [json.loads(text)["port"] for text in next(received).splitlines()] == [1, 2, 3]
    assert json.loads(next(received)) == {"newest": 3, "lost": 0}
    log.take([logged(made.tcp(OUT4, WEB4, 4, 40000))])
    assert json.loads(next(received))["port"] == 4
    response.close()


def test_a_fifth_follower_is_refused_until_one_ends(app: Flask) -> None:
    """Four clients can follow at once; a fifth gets an error that says so, and a place when one of them has ended."""
    client = app.test_client()
    there = [client.get("/drops?follow=1", buffered=False) for _ in range(FOLLOWERS)]
    refused = client.get("/drops?follow=1")
    assert (refused.status_code, "clients follow the drops" in refused.get_json()["Err"]) == (503, True)
    assert client.get("/drops").status_code == 200
    there.pop().close()  # its response was never read
    fifth = client.get("/drops?follow=1", buffered=False)
    assert fifth.status_code == 200
    for response in (*there, fifth):
        response.close()


def test_a_head_request_takes_no_followers_place(app: Flask) -> None:
    """HEAD requests, however many, do not use up followers' places."""
    for _ in range(10):
        assert app.test_client().head("/drops?follow=1").status_code == 200
    with app.test_client().get("/drops?follow=1", buffered=False) as response:
        assert response.status_code == 200


def test_a_follower_that_does_not_read_is_disconnected(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread waits for a client that does not read, and a client that hung up is noticed at the next progress
    line."""
    monkeypatch.setattr("plugin.fwctl.api.droplog_http._STALLED_MS", 10)
    for gone in (False, True):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            if gone:
                theirs.close()
            else:
                with contextlib.suppress(BlockingIOError):
                    while ours.send(bytes(4096)):
                        pass
            response = app.test_client().get(
                "/drops?follow=1", buffered=False, environ_overrides={"gunicorn.socket": ours}
            )
            assert list(response.response) == []
            with pytest.raises(BrokenPipeError):
                ours.send(b"0")  # a write by gunicorn now fails at once
            response.close()


@pytest.mark.parametrize("how", ["stop", "serving"])
def test_followers_end_when_docker_fw_stops(app: Flask, log: DropLog, how: str) -> None:
    """A follower never prevents docker-fw from stopping."""
    response = app.test_client().get("/drops?follow=1", buffered=False)
    received = iter(response.response)
    next(received)
    if how == "stop":
        log.stop()
    else:
        log.serving = lambda: False
    rest = list(received)
    assert len(rest) <= 2
    response.close()


def test_an_error_ends_a_follower(app: Flask, log: DropLog) -> None:
    """The answer contains the reason if no drops are reported; followers get it too."""
    response = app.test_client().get("/drops?follow=1", buffered=False)
    received = iter(response.response)
    next(received)
    log.trouble = TAKEN
    assert json.loads(list(received)[-1]) == {"Err": TAKEN}
    response.close()
    refused = app.test_client().get("/drops")
    assert (refused.status_code, refused.get_json()) == (503, {"Err": TAKEN})


def options(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    droplog_cli.add(parser.add_subparsers())
    return parser.parse_args(["log", *argv])


def shown(received: list[dict[str, Any]], *argv: str) -> list[str]:
    return list(droplog_cli.texts(iter(received), options(*argv)))


@pytest.fixture
def received(log: DropLog) -> list[dict[str, Any]]:
    """Return the lines that a follower receives: three kept drops, then a new one."""
    kept = [drop.as_data() for drop in log.ring.after(0)]
    log.take([logged(made.tcp(OUT4, API4, 4, 40000))])
    (new,) = log.ring.after(3)
    return [*kept, {"newest": 3, "lost": 0}, new.as_data(), {"newest": 4, "lost": 0}]


def test_the_command_shows_the_last_drops_then_new_ones(received: list[dict[str, Any]]) -> None:
    """-n N shows the last N, then each new one; a line starts with the time and the container's name."""
    lines = shown(received, "-n", "2")
    assert [text.split()[1:4] for text in lines] == [
        ["api", "10.2.0.2", "2/tcp"],
        ["web", "10.1.0.2", "3/tcp"],
        ["api", "10.2.0.2", "4/tcp"],
    ]
    assert lines[0].split()[0] == time.strftime("%H:%M:%S", time.localtime(received[1]["time"]))
    assert len(shown(received, "-n", "0")) == 1


@pytest.mark.parametrize("who", ["web", "10.1.0.2"])
def test_the_command_shows_one_container(received: list[dict[str, Any]], who: str) -> None:
    """Only drops with the given name or address at either end are shown; -n counts these."""
    assert [text.split()[3] for text in shown(received, who)] == ["1/tcp", "3/tcp"]
    assert [text.split()[3] for text in shown(received, who, "-n", "1")] == ["3/tcp"]


def test_the_command_prints_the_same_as_json(received: list[dict[str, Any]]) -> None:
    """--json prints each drop as docker-fw sent it, one JSON object a line."""
    assert [json.loads(text) for text in shown(received, "--json")] == [each for each in received if "port" in each]


def test_the_command_reports_lost_drops(received: list[dict[str, Any]]) -> None:
    """Drops that were lost between kernel and terminal are reported in a line of their own."""
    received = [*received, {**received[0], "number": 10}, {"newest": 10, "lost": 1}]
    assert shown(received)[-3] == "… 5 drops are not shown: there were too many"
    assert shown(received)[-1] == "… some drops were lost: there were too many"


def test_the_command_reports_that_nothing_was_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    """stderr says that nothing was dropped, so that a typo does not look like silence."""
    assert shown([{"newest": 0, "lost": 0}], "wbe") == []
    assert capsys.readouterr().err == "fwctl: no packet of wbe was dropped yet; waiting\n"


def test_addresses_are_in_their_shortest_form() -> None:
    """Addresses in records are in their shortest form."""
    (drop,) = drops_of(Known(endpoint(1, "web")), logged(made.tcp(OUT6, WEB6, 1, 2)))
    assert ip_address(drop.as_data()["to"]) == WEB6
    assert drop.as_data()["to"] == "2001:db8:1::2"
