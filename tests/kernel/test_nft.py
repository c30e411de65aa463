"""Test the table in the kernel: whole replacements, changes by elements, and changes by other programs."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import threading
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from plugin.kernel import netlink
from plugin.model import Rule
from plugin.nftables import table as nft_table
from plugin.nftables.client import NftError
from plugin.nftables.document import document, element_text, skeleton
from plugin.nftables.elements import rule_elements
from plugin.nftables.features import Features
from plugin.nftables.fields import CGROUP, TARGET
from plugin.nftables.sets import RATED, SETS, Change, Element, SetSpec, spec_of
from plugin.nftables.table import KernelTable
from plugin.protocols import NUMBER
from tests.inputs import inputs
from tests.kernel.netns import empty, inside
from tests.kernel.site import MARK
from tests.lab import NamedNetns
from tests.lab.roots import engine_root
from tests.product import VERSIONS
from tests.waiting import until

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def host() -> Iterator[NamedNetns]:
    """Yield a network namespace with nothing in it."""
    with empty() as made:
        yield made


@pytest.fixture
def nft(host: NamedNetns) -> Iterator[KernelTable]:
    """Yield the plugin's firewall in an empty ruleset."""
    host.run(["nft", "flush", "ruleset"])
    with inside(host.path):
        yield KernelTable(MARK)


def listed(host: NamedNetns) -> str:
    """Return docker-fw's tables as this host's own nft shows them, without counters and remaining times."""
    shown = "".join(host.run(["nft", "-nn", "list", "table", each, "docker-fw"]).stdout for each in ("inet", "bridge"))
    return re.sub(r"packets \d+ bytes \d+| expires \w+", "", shown)


def blocks(host: NamedNetns) -> list[str]:
    """Return the sets and chains, sorted: those of added rates are the last, whatever their names."""
    return sorted(re.findall(r"\t(?:set|map|chain) .*?\n\t\}", listed(host), re.DOTALL))


def elements_in(host: NamedNetns) -> set[str]:
    """Return the elements of all sets as nft lists them, as `SET: element`."""
    found: set[str] = set()
    for name, body in re.findall(r"\t(?:set|map) (\w+) \{\n(.*?)\n\t\}", listed(host), re.DOTALL):
        match = re.search(r"elements = \{(.*?)\}", body, re.DOTALL)
        if match:
            found |= {f"{name}: {' '.join(part.split())}" for part in match[1].split(",")}
    return found


# --- any elements -------------------------------------------------------------------------------------------------

_WORDS: dict[str, st.SearchStrategy[Any]] = {
    "ip daddr": st.integers(1 << 24, (224 << 24) - 1).map(IPv4Address),
    "ip6 daddr": st.integers(0, 2**64 - 1).map(lambda n: IPv6Address((0x20010DB8 << 96) + n)),
    "meta l4proto": st.sampled_from(sorted(NUMBER.values())),
    "th dport": st.integers(0, 65535),
    "meta nfproto": st.sampled_from([2, 10]),
    "iifname": st.sampled_from(["br0", "fw-0123456789ab", "a", "fifteen-letters", "x.1", "B_2"]),
}
_WORDS |= {"ip saddr": _WORDS["ip daddr"], "ip6 saddr": _WORDS["ip6 daddr"]}
_WORDS[CGROUP] = st.integers(1 << 40, 1 << 60)  # no control group of this machine has such a number
_WORDS["ether saddr"] = st.binary(min_size=6, max_size=6).map(lambda mac: mac.hex(":"))
_WORDS[TARGET] = _WORDS["ip6 daddr"]
_WORDS["th sport"] = _WORDS["th dport"]
_WORDS["oif"] = st.integers(2, 2**31 - 1)
_WORDS["meta iiftype"] = st.integers(2, 2**16 - 1)
_WORDS |= dict.fromkeys(("oifname", "fib saddr oifname"), _WORDS["iifname"])
#: Chains of rates: they are added with the first element that leads to them.
_LIMITS = (
    "limit4__10.1.2.3__5_minute_10",
    "limit_host6__2001-db8--1__1_second_1",
    "limit6__2001-db8--1__1_day_2__7_hour_9",
)
_WORDS["verdict"] = st.sampled_from([*_LIMITS, "deny"])


def elements_of(name: str, spec: SetSpec) -> st.SearchStrategy[Element]:
    def words(expressions: tuple[str, ...]) -> st.SearchStrategy[tuple[Any, ...]]:
        return st.tuples(*(_WORDS[e] for e in expressions))

    return st.builds(Element, st.just(name), words(spec.key), words(spec.data))


def distinct(elements: Iterable[Element]) -> list[Element]:
    """Keep one for each key: a map has no two."""
    return list({(e.set, e.key): e for e in elements}.values())


#: Without the sets that packets fill.
WRITTEN = {name: spec for name, spec in SETS.items() if not spec.meter}
#: And without those that mark elements as missing.
WHOLE = {name: spec for name, spec in WRITTEN.items() if not name.startswith("loading")}
any_elements = st.lists(st.one_of(*(elements_of(n, s) for n, s in WHOLE.items())), max_size=40).map(distinct)
bounded = inputs(25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_every_kind_of_set_is_written_alike_both_ways(host: NamedNetns, nft: KernelTable) -> None:
    """In each set and map, an element added over netlink equals the one that the text adds."""
    one = {
        name: Element(name, *(tuple(_EXAMPLE[e] for e in words) for words in (spec.key, spec.data)))
        for name, spec in WRITTEN.items()
    }
    nft.replace(one.values())
    by_text = blocks(host)
    nft.replace(())
    assert elements_in(host) == set()
    nft.change(Change(add=tuple(one.values())))
    assert blocks(host) == by_text
    nft.change(Change(remove=tuple(one.values())))
    assert elements_in(host) == set()


_EXAMPLE: dict[str, Any] = {
    "verdict": _LIMITS[0],
    "ip daddr": IPv4Address("10.1.2.3"), "ip6 daddr": IPv6Address("2001:db8::1:2"), "ip saddr": IPv4Address("10.3.2.1"),
    "ip6 saddr": IPv6Address("2001:db8::2:1"), "meta l4proto": 132, "th dport": 0x1234, "meta nfproto": 10,
    "meta iiftype": 1,
    "iifname": "fw-0123456789ab", "oifname": "a", "fib saddr oifname": "a",
    "th sport": 0x4321, "oif": 0x12345678, CGROUP: 1 << 50, "ether saddr": "02:42:ac:12:00:03",
    TARGET: IPv6Address("fe80::42:acff:fe12:3"),
}  # fmt: skip


@given(before=any_elements, after=any_elements)
@bounded
def test_a_change_makes_what_a_replacement_makes(
    host: NamedNetns, nft: KernelTable, before: list[Element], after: list[Element]
) -> None:
    """Between any two states the difference over netlink leads to the same table as the whole text."""
    nft.replace(before)
    nft.change(Change(tuple(set(before) - set(after)), tuple(set(after) - set(before))))
    by_change = blocks(host)
    assert len(elements_in(host)) == len(after)
    assert nft.intact()
    nft.replace(after)
    assert blocks(host) == by_change


def test_thousands_of_elements_in_one_transaction(host: NamedNetns, nft: KernelTable) -> None:
    """A restart with thousands of containers' elements, and their removal, are one transaction each."""
    nft.replace(())
    many = tuple(
        element
        for number in range(2000)
        for element in rule_elements(IPv6Address((0x20010DB8 << 96) + number), [Rule("tcp", 22, 22), Rule("udp", 1, 2)])
    )
    generation = nft.generation()
    nft.change(Change(add=many))
    assert nft.generation() == generation + 1
    assert len(elements_in(host)) == 6000
    nft.change(Change(remove=many[1:]))
    assert nft.generation() == generation + 2
    assert elements_in(host) == {"allow6: 2001:db8:: . 6 . 22"}


# --- all of it or nothing -----------------------------------------------------------------------------------------

HERE = Element("allow4", (IPv4Address("10.0.0.2"), 6, 80))
THERE = Element("allow4", (IPv4Address("10.0.0.3"), 6, 80))
ABSENT = Element("allow4", (IPv4Address("10.0.0.4"), 6, 80))
MAPPED = Element("publish4_any", (6, 80), (IPv4Address("10.0.0.2"), 80))
CLASHING = Element("publish4_any", (6, 80), (IPv4Address("10.0.0.3"), 80))

REFUSED = {
    "removes what is not there": Change(remove=(ABSENT,), add=(THERE,)),
    "removes what is not there, last": Change(remove=(HERE, ABSENT), add=(THERE,)),
    "maps one key twice": Change(add=(THERE, CLASHING)),
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_a_refused_change_changes_nothing(host: NamedNetns, nft: KernelTable, change: Change) -> None:
    """A transaction that the kernel refuses leaves everything as it was, reports why, and affects no later one."""
    nft.replace([HERE, MAPPED])
    before, generation = listed(host), nft.generation()
    for _ in range(3):
        with pytest.raises(NftError, match=r"No such file|File exists"):
            nft.change(change)
    assert (listed(host), nft.generation()) == (before, generation)
    nft.change(Change(remove=(HERE,), add=(THERE,)))
    assert "10.0.0.3" in listed(host)
    assert "10.0.0.2 . 6 . 80" not in listed(host)


def test_adding_an_existing_element_is_no_error(host: NamedNetns, nft: KernelTable) -> None:
    """A repeated add is no error: the wanted element is present."""
    nft.replace([HERE, MAPPED])
    before = listed(host)
    nft.change(Change(add=(HERE, MAPPED)))
    assert listed(host) == before


def test_nothing_to_change_costs_no_transaction(nft: KernelTable) -> None:
    """An empty change does not touch the ruleset: other watchers are not woken."""
    nft.replace([HERE])
    generation = nft.generation()
    nft.change(Change())
    assert nft.generation() == generation


def test_a_replacement_that_is_refused_changes_nothing(host: NamedNetns, nft: KernelTable) -> None:
    """If the kernel refuses the whole table, the previous one remains active."""
    nft.replace([HERE])
    before = listed(host)
    with pytest.raises(NftError):
        nft.replace([MAPPED, CLASHING])
    assert listed(host) == before
    assert nft.intact()


def test_one_replacement_is_one_generation(host: NamedNetns, nft: KernelTable) -> None:
    """The table is never absent or incomplete in between: its removal and its creation are one transaction."""
    nft.replace([HERE])
    generation = nft.generation()
    nft.replace([THERE])
    assert nft.generation() == generation + 1


def test_very_many_elements_of_containers_follow_those_that_close(
    host: NamedNetns, nft: KernelTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Very many elements are not written as text, which would take a gigabyte: the transaction that exchanges the table
    has all that close, and drops new flows until the next one has added the others. Established flows continue: frames
    of containers are let into their bridges all the time."""
    monkeypatch.setattr(nft_table, "_AS_TEXT", 2)
    closing = [Element("host_closed4", (IPv4Address("192.0.2.1"), 6, 80)), Element("ports", ("fwv1",))]
    bound = Element("bound4", ("fwv1", "02:42:0a:00:00:02", IPv4Address("10.0.0.2")))
    nft.replace([HERE, MAPPED])
    send, between = nft._client.send, list[set[str]]()

    def sent(*args: Any) -> None:
        between.append(elements_in(host))
        send(*args)

    monkeypatch.setattr(nft._client, "send", sent)
    nft.replace([HERE, THERE, bound, *closing])
    exchanged, now = between[0], elements_in(host)
    assert len(between) == 1
    at_once = {"host_closed4", "ports", "bound4"}
    assert {each.partition(":")[0] for each in exchanged} == {*at_once, "loading", "loading_ports"}
    assert {each.partition(":")[0] for each in now} == {*at_once, "allow4"}
    assert nft.intact()


def test_tables_of_others_are_left_alone(host: NamedNetns, nft: KernelTable) -> None:
    """Whatever docker-fw does, another tool's table stays as it is."""
    other = "table inet fw2 {\n\tset allow4 {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.9 }\n\t}\n}\n"
    host.run(["nft", "-f", "-"], input=other)
    before = host.run(["nft", "list", "table", "inet", "fw2"]).stdout
    nft.replace([HERE])
    nft.change(Change(remove=(HERE,), add=(THERE,)))
    nft.replace([])
    assert host.run(["nft", "list", "table", "inet", "fw2"]).stdout == before


# --- changes by other programs ----------------------------------------------------------------------------------------

TOUCHES = {
    "flush ruleset": "flush ruleset",
    "delete the table": "delete table inet docker-fw",
    "flush the table's rules": "flush table inet docker-fw",
    "flush one chain": "flush chain inet docker-fw inbound",
    "add a rule": "add rule inet docker-fw inbound accept",
    "insert a rule": "insert rule inet docker-fw forward accept",
    "delete and add again": "delete table inet docker-fw; add table inet docker-fw",
    "make the table dormant": "add table inet docker-fw { flags dormant; }",
}


@pytest.mark.parametrize("command", TOUCHES.values(), ids=TOUCHES)
def test_a_changed_table_is_noticed_and_restored(host: NamedNetns, nft: KernelTable, command: str) -> None:
    """A change to docker-fw's rules by another tool raises the generation, is noticed, and one replacement fixes it."""
    nft.replace([HERE])
    whole, generation = listed(host), nft.generation()
    host.run(["nft", command])
    assert nft.generation() != generation
    assert not nft.intact()
    nft.replace([HERE])
    assert nft.intact()
    assert listed(host) == whole


def test_a_replaced_rule_is_noticed(host: NamedNetns, nft: KernelTable) -> None:
    """A rule that another tool replaced in its place is noticed too."""
    nft.replace([HERE])
    shown = host.run(["nft", "-a", "list", "chain", "inet", "docker-fw", "deny"]).stdout
    handle = re.search(r"drop # handle (\d+)", shown)
    assert handle
    host.run(["nft", f"replace rule inet docker-fw deny handle {handle[1]} accept"])
    assert not nft.intact()


def test_a_saved_ruleset_loaded_again_is_noticed(host: NamedNetns, nft: KernelTable) -> None:
    """A reload of /etc/nftables.conf with an old copy of docker-fw's table does not leave old ports open."""
    nft.replace([HERE])
    saved = "flush ruleset\n" + host.run(["nft", "list", "ruleset"]).stdout
    nft.change(Change(remove=(HERE,), add=(THERE,)))
    host.run(["nft", "-f", "-"], input=saved)
    assert "10.0.0.2" in listed(host)
    assert not nft.intact()
    nft.replace([THERE])
    assert "10.0.0.2" not in listed(host)
    assert nft.intact()


def test_our_own_changes_are_no_touch(nft: KernelTable) -> None:
    """docker-fw's own changes are never taken for another program's."""
    nft.replace([HERE])
    nft.change(Change(remove=(HERE,), add=(THERE,)))
    assert nft.intact()
    nft.replace([])
    assert nft.intact()


def test_the_generation_counts_all_transactions(host: NamedNetns, nft: KernelTable) -> None:
    """Another table's change raises the generation too; docker-fw's table stays intact."""
    nft.replace([HERE])
    generation = nft.generation()
    assert nft.generation() == generation
    host.run(["nft", "add table inet elsewhere"])
    assert nft.generation() > generation
    assert nft.intact()


def test_a_change_after_a_flush_is_refused_and_a_replacement_heals(host: NamedNetns, nft: KernelTable) -> None:
    """When the table is absent, adding to it is an error, not a silent no-op."""
    nft.replace([HERE])
    host.run(["nft", "flush ruleset"])
    with pytest.raises(NftError, match="No such file"):
        nft.change(Change(add=(THERE,)))
    nft.replace([HERE, THERE])
    assert len(elements_in(host)) == 2


# --- other programs' tables do not slow docker-fw ---------------------------------------------------------------------


class Recorder:
    """A netlink socket that records the kinds of the messages, and forwards them."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.sent: list[int] = []
        self.received = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def send(self, data: bytes) -> int:
        offset = 0
        while offset < len(data):
            length, kind = struct.unpack_from("=IH", data, offset)
            self.sent.append(kind)
            offset += (length + 3) & ~3
        return self._sock.send(data)

    def recv(self, size: int) -> bytes:
        data = self._sock.recv(size)
        self.received += len(data)
        return data


def test_a_blocklist_of_another_tool_is_never_read(host: NamedNetns, nft: KernelTable) -> None:
    """With 20,000 ranges in another tool's interval set a change sends a few messages and reads one answer.

    libnftables would read that whole set before each transaction (200 ms).
    """
    ranges = ", ".join(f"10.{n >> 8}.{n & 255}.0-10.{n >> 8}.{n & 255}.9" for n in range(20000))
    text = f"table ip bans {{\n set s {{\n type ipv4_addr\n flags interval\n elements = {{ {ranges} }}\n }}\n}}\n"
    host.run(["nft", "-f", "-"], input=text)
    nft.replace([HERE])
    recorder = Recorder(nft._client._writer)
    nft._client._writer = recorder  # type: ignore[assignment]
    nft.change(Change(remove=(HERE,), add=(THERE,)))
    # begin, one removal, one addition, end; and one acknowledgement is returned
    assert recorder.sent == [16, (10 << 8) | 14, (10 << 8) | 12, 17]
    assert recorder.received < 200
    host.run(["nft", "delete table ip bans"])


def test_watching_reads_no_elements(host: NamedNetns, nft: KernelTable) -> None:
    """The check that the table is intact costs the same with one container and with ten thousand."""

    def read(elements: Iterable[Element]) -> int:
        nft.replace(elements)
        recorder, kept = Recorder(nft._client.reader), nft._client.reader
        nft._client.reader = recorder  # type: ignore[assignment]
        assert nft.intact()
        nft.generation()
        nft._client.reader = kept
        return recorder.received

    many = [Element("allow4", (IPv4Address((10 << 24) + n), 6, 80)) for n in range(10000)]
    assert read(many) == read([HERE])


# --- many threads, many sockets -----------------------------------------------------------------------------------


def test_many_threads_at_once(host: NamedNetns, nft: KernelTable) -> None:
    """Hooks and loops use it at the same time: each answer reaches its own request, and no thread waits in vain."""
    nft.replace([])
    stop, failures = threading.Event(), []

    def caught(work: Any) -> Any:
        def run() -> None:
            try:
                while not stop.is_set():
                    work()
            except Exception as error:
                failures.append(error)
                stop.set()

        return run

    def changes(number: int) -> Any:
        mine = Element("allow4", (IPv4Address((10 << 24) + number), 6, 80))

        def work() -> None:
            nft.change(Change(add=(mine,)))
            nft.change(Change(remove=(mine,)))

        return work

    def replaced() -> None:
        before = nft.generation()
        nft.replace([])
        assert nft.generation() > before

    threads = [threading.Thread(target=caught(work)) for work in (nft.generation, nft.generation, nft.intact)]
    done: list[int] = []

    def bounded_changes() -> None:
        for round_ in range(50):  # each change may wait for a look at all rules, and that for a replacement
            for number in range(3):
                changes(number)()
            if round_ % 10 == 0:
                replaced()
        done.append(1)
        stop.set()

    threads.append(threading.Thread(target=caught(bounded_changes)))
    for thread in threads:
        thread.start()
    until(stop.is_set, "the threads are done", 120)
    for thread in threads:
        thread.join(10)
    assert not failures
    assert done


def test_it_may_be_made_beside_many_open_files(host: NamedNetns) -> None:
    """The firewall finds its own socket among all other open files of the process."""
    with inside(host.path):
        others = [netlink.open_socket() for _ in range(3)]
        made = KernelTable(MARK)
    made.replace([HERE])
    assert made.intact()
    for sock in others:
        sock.close()


def test_where_nftables_is_forbidden_it_says_so(host: NamedNetns) -> None:
    """Without CAP_NET_ADMIN the start fails with the kernel's own message, and nothing else happens."""
    script = (
        "from plugin.nftables.client import NftError\n"
        "from plugin.nftables.table import KernelTable\n"
        "import ctypes\n"
        "nft = KernelTable(0x08000000)\n"
        "import os\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "try:\n    nft.replace([])\nexcept NftError as error:\n    print('refused:', error)\n"
    )
    import sys

    done = host.run([sys.executable, "-c", script], check=False)
    assert "refused:" in done.stdout, done.stderr
    assert "Operation not permitted" in done.stdout


# --- kernels with fewer features --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cgroups", [True, False])
@pytest.mark.parametrize("logs", [True, False])
@pytest.mark.parametrize("holds", [True, False])
def test_the_table_loads_without_what_a_kernel_may_not_know(
    host: NamedNetns, cgroups: bool, logs: bool, holds: bool
) -> None:
    """The table is complete except for the parts that the kernel does not support.

    These are a socket's control group (before 5.13), nfnetlink_log, and the test for a listening socket.
    """
    host.run(["nft", "flush", "ruleset"])
    text = document(
        MARK, [HERE, MAPPED, *_one_of_each().values()], Features(cgroups=cgroups, logs=logs, listeners=holds)
    )
    host.run(["nft", "-f", "-"], input=text)
    shown = listed(host)
    assert ("socket cgroupv2" in shown) is cgroups
    assert ("socket transparent" in shown) is holds
    assert ("@proxy_unidentified socket transparent" in shown) is (holds and cgroups)
    assert ("log " in shown) is logs
    assert "10.0.0.2 . 6 . 80" in shown


@pytest.mark.parametrize(
    "unknown",
    [("log group",), ("socket cgroupv2",), ("socket transparent",), ("log group", "socket cgroupv2")],
    ids=str,
)
def test_a_kernel_that_knows_less_gets_the_rest(
    host: NamedNetns, nft: KernelTable, monkeypatch: pytest.MonkeyPatch, unknown: tuple[str, ...]
) -> None:
    """Expressions that the kernel does not know are left out in a second try, once and permanently.

    The other rules are complete, and elements of a set that does not exist are left out.
    """
    run = nft._client.run

    def refusing(text: str) -> None:
        if any(words in text for words in unknown):
            raise NftError("Could not process rule: Operation not supported")
        run(text)

    monkeypatch.setattr(nft._client, "run", refusing)
    nft.replace([HERE, Element("docker_proxy", (1 << 50,))])
    assert (nft.features.logs, nft.features.cgroups) == ("log group" not in unknown, "socket cgroupv2" not in unknown)
    assert nft.features.listeners == ("socket transparent" not in unknown)
    assert nft.intact()
    nft.change(
        Change(remove=(HERE, Element("docker_proxy", (1 << 50,))), add=(THERE, Element("docker_proxy", (1 << 51,))))
    )
    monkeypatch.setattr(nft._client, "run", run)
    nft.replace([HERE])  # it has learnt
    assert not any(words in listed(host) for words in unknown)
    monkeypatch.setattr(
        nft._client, "run", lambda text: refusing("log group" + "socket cgroupv2" + "socket transparent")
    )
    with pytest.raises(NftError, match="not supported"):
        nft.replace([HERE])
    assert "10.0.0.2 . 6 . 80" in listed(host), "existing elements remain"


# --- this host's own nft ------------------------------------------------------------------------------------------


def _one_of_each() -> dict[str, Element]:
    """Return an element of each set that nft has keywords for, and of each kind of rate.

    Sets that packets fill are left out.
    """
    found = {}
    for name, spec in WRITTEN.items():
        if not spec.raw:
            key, data = (tuple(_EXAMPLE[e] for e in words) for words in (spec.key, spec.data))
            found[name] = Element(name, key, data)
            if name in RATED:
                more = (Element(name, (*key[:-1], port), (chain,)) for port, chain in enumerate((*_LIMITS[1:], "deny")))
                found |= {f"{name}, {element.data[0]}": element for element in more}
    return found


class Command:
    """The nft in the root file system of an engine of this version: each is of another Debian release."""

    def __init__(self, engine: str) -> None:
        self._prefix = ["chroot", str(engine_root(engine))]
        shown = subprocess.run(
            [*self._prefix, "nft", "--version"], capture_output=True, text=True, check=True, timeout=60
        ).stdout
        self.version = shown.split()[1]

    def __call__(self, host: NamedNetns, *argv: str, input: str | None = None) -> str:
        return host.run([*self._prefix, "nft", *argv], input=input).stdout


#: The version of the library in the image; a host's own nft must be able to save and load what it wrote.
OURS = "v1.1.3"


@pytest.mark.parametrize("reading", VERSIONS)
@pytest.mark.parametrize("writing", VERSIONS)
def test_every_nft_reads_what_another_one_wrote(host: NamedNetns, writing: str, reading: str) -> None:
    """Each nft version takes the table with every kind of element, and each other lists it whole, as text and as JSON.

    A version loads `nft list ruleset` of what it or docker-fw's version wrote again: the same table.
    """
    writer, reader = Command(writing), Command(reading)
    each = list(_one_of_each().values())
    timed = {element: 4000 for element in each if spec_of(element.set).timed}
    text = document(MARK, [element for element in each if element not in timed], timed=timed)
    writer(host, "flush", "ruleset")
    writer(host, "-c", "-f", "-", input=text)
    writer(host, "-f", "-", input=text)

    def listing() -> str:
        return re.sub(r"packets \d+ bytes \d+| expires \w+", "", reader(host, "list", "ruleset"))

    shown = listing()
    for element in each:
        assert re.search(rf"(set|map) {element.set} {{[^}}]*elements = {{", shown), element
    assert json.loads(reader(host, "-j", "list", "ruleset"))["nftables"]
    # It may not load other versions' output: they differ in the name of the type of `fib saddr oifname`.
    if writer.version in (reader.version, OURS):
        reader(host, "-f", "-", input="flush ruleset\n" + reader(host, "list", "ruleset"))
        assert listing() == shown
    reader(host, "flush", "ruleset")


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.nft")), ids=lambda p: p.stem)
def test_the_golden_tables_load(host: NamedNetns, nft: KernelTable, path: Path) -> None:
    """`nft -f` takes each golden file, and nft's listing of it can be loaded again."""
    host.run(["nft", "-f", str(path)])
    shown = host.run(["nft", "list", "table", "inet", "docker-fw"]).stdout
    host.run(["nft", "flush ruleset"])
    host.run(["nft", "-f", "-"], input=shown)
    assert host.run(["nft", "list", "table", "inet", "docker-fw"]).stdout == shown


def test_the_skeleton_and_the_document_are_files_for_nft(host: NamedNetns, nft: KernelTable) -> None:
    """The policy can be saved as a file, checked and applied by hand, as the article requests."""
    text = document(MARK, [HERE, MAPPED])
    assert host.run(["nft", "-c", "-f", "-"], input=text).returncode == 0
    host.run(["nft", "-f", "-"], input=text)
    by_hand = listed(host)
    nft.replace([HERE, MAPPED])
    assert listed(host) == by_hand
    assert element_text(HERE) in text
    assert skeleton(MARK) in text


def test_nft_lists_the_ruleset(host: NamedNetns, nft: KernelTable) -> None:
    """`nft list ruleset`, as text and as JSON, shows it on this host's version of nft."""
    nft.replace([HERE, MAPPED])
    assert "chain inbound" in host.run(["nft", "list", "ruleset"]).stdout
    shown = json.loads(host.run(["nft", "-j", "list", "ruleset"]).stdout)
    assert any(item.get("chain", {}).get("name") == "inbound" for item in shown["nftables"])


def test_a_thousand_and_more_open_files_later(host: NamedNetns, nft: KernelTable) -> None:
    """A process with thousands of open files (published ports) can still change and replace the table."""
    nft.replace([HERE])
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(900)]
    try:
        nft.change(Change(add=(THERE,)))
        nft.replace([HERE])
        assert nft.intact()
    finally:
        for fd in opened:
            os.close(fd)
    assert subprocess.run(["true"], check=False, timeout=60).returncode == 0


def test_a_table_whose_last_elements_were_not_added_is_not_intact(
    host: NamedNetns, nft: KernelTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docker-proxy's control group is added after the text; if that fails, the table is loaded again."""
    proxies = Element("docker_proxy", (1 << 50,))
    nft.replace([proxies])
    assert nft.intact()

    def refused(*_: object) -> None:
        raise NftError("No buffer space available")

    with monkeypatch.context() as broken:
        broken.setattr(nft._client, "send", refused)
        with pytest.raises(NftError):
            nft.replace([proxies])
    assert not nft.intact()
    nft.replace([proxies])
    assert nft.intact()
