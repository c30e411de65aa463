"""The state file: what was saved is loaded; a crash, a full disk or an editor never prevents the start."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.labels.keys import EVERYTHING
from plugin.model import (
    BridgeNetwork,
    Container,
    Defaults,
    Endpoint,
    FwError,
    Network,
    PolicySpec,
    Problem,
    Published,
    Rule,
)
from plugin.nftables.compile import compiled
from plugin.nftables.document import element_text
from plugin.nftables.sets import Element
from plugin.policy.facts import Facts
from plugin.policy.saved import SavedState
from plugin.state import store as stores
from plugin.state.reconciler import Reconciler
from plugin.state.store import VERSION, Store
from tests.pure.fakes import Kernel
from tests.pure.states import AFTER, ENDPOINT, MORE, NETWORK, directory
from tests.pure.strategies import (
    ELEMENT_TEXT,
    bridges,
    endpoints,
    examples,
    json_values,
    networks,
    overridings,
    prefixes,
    published,
)

V1 = Path(__file__).parents[2] / "golden" / "state-1.json"
SHORT = SavedState({NETWORK.id: NETWORK}, {"b": Endpoint("b", NETWORK.id, container=Container("c", "wéb"))}, "boot-1")
BEFORE = SavedState({NETWORK.id: NETWORK}, {}, "boot-1", frozenset({2}))


def by_id(items: list[Any]) -> dict[str, Any]:
    return {item.id: item for item in items}


states = st.builds(
    SavedState,
    networks=st.lists(networks, max_size=3).map(by_id),
    endpoints=st.lists(endpoints, max_size=4).map(by_id),
    boot=st.text(max_size=36),
    switched=st.frozensets(st.sampled_from([2, 10])),
    unmanaged=st.frozensets(bridges, max_size=2),
    proxied=st.dictionaries(st.text(max_size=8), st.lists(published, max_size=2).map(tuple), max_size=2),
    egress_restricted=st.frozensets(bridges, max_size=2),
    overrides=st.lists(overridings, max_size=3).map(tuple),
    bans=st.dictionaries(prefixes, st.sampled_from([0, 1.5, 1_900_000_000]), max_size=3),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lib" / "state.json"


@given(st.lists(st.tuples(states, st.booleans()), min_size=1, max_size=4))
@examples(25)
def test_a_saved_state_is_loaded(saved: list[tuple[SavedState, bool]]) -> None:
    """The last saved state, flushed or not, is loaded by the next start: every field of every record."""
    with directory() as where:
        store = Store(str(where / "state.json"))
        for state, flush in saved:
            store.save(state)
            if flush:
                store.flush()
            assert Store(str(where / "state.json")).load() == state


def test_a_missing_file_is_an_empty_state(path: Path) -> None:
    """The first start finds no file and needs none; the directory is created, for root only."""
    store = Store(str(path))
    assert store.load() == SavedState()
    store.save(BEFORE)
    store.flush()
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600


def test_one_record_a_line(path: Path) -> None:
    """The file and its diffs are readable: JSON, one record a line."""
    Store(str(path)).save(AFTER)
    lines = path.read_text().splitlines()
    assert [line.partition(":")[0] for line in lines if line.startswith('"')] == [
        '"networks"',
        f'"{NETWORK.id}"',
        '"endpoints"',
        f'"{ENDPOINT.id}"',
        '"proxied"',
        *(f'"{container}"' for container in AFTER.proxied),
        '"asked"',
    ]
    assert json.loads(path.read_text())["version"] == VERSION


def test_a_file_cut_anywhere_allows_the_start() -> None:
    """A file that is cut at any byte (a power cut, a full disk) is kept aside, and the last flushed one is read."""
    with directory() as where:
        file = where / "state.json"
        store = Store(str(file))
        store.save(BEFORE)
        store.flush()
        store.save(SHORT)
        whole, flushed = file.read_bytes(), (where / "state.json~").read_bytes()
    with directory() as where:
        file = where / "state.json"
        for length in range(len(whole)):
            file.write_bytes(whole[:length])
            (where / "state.json~").write_bytes(flushed)
            state = Store(str(file)).load()
            if state == SHORT:  # only the last newline is missing
                assert length == len(whole) - 1
                continue
            assert state == BEFORE
            (aside,) = where.glob("state.json.corrupt-*")
            assert aside.read_bytes() == whole[:length]
            aside.unlink()


def test_a_cut_file_without_a_fallback_is_an_empty_state() -> None:
    """Everything stays closed without a readable file, the file is kept for inspection, and the start continues."""
    with directory() as where:
        Store(str(where / "state.json")).save(SHORT)
        whole = (where / "state.json").read_bytes()
    for length in range(0, len(whole) - 1, 7):
        with directory() as where:
            (where / "state.json").write_bytes(whole[:length])
            store = Store(str(where / "state.json"))
            assert store.load() == SavedState()
            assert len(list(where.glob("state.json.corrupt-*"))) == 1
            store.save(BEFORE)
            store.flush()
            assert store.load() == BEFORE


def elements_of(state: SavedState) -> set[Element]:
    return compiled(Defaults(), Facts(state)).all_elements()


def _damaged(document: Any, data: st.DataObject) -> Any:
    """Return the document with one value somewhere in it replaced, or removed."""
    here, steps = document, data.draw(st.integers(1, 5))
    for step in range(steps):
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if step < steps - 1 and isinstance(here[key], dict | list) and here[key]:
            here = here[key]
        elif isinstance(here, dict) and data.draw(st.booleans()):
            del here[key]
            break
        else:
            here[key] = data.draw(json_values)
            break
    return document


@given(data=st.data())
@examples(80)
def test_a_damaged_file_allows_the_start(data: st.DataObject) -> None:
    """A state with any one value changed or missing has valid records, or is replaced by the fallback; the start never
    fails."""
    with directory() as where:
        file = where / "state.json"
        Store(str(file)).save(AFTER)
        document = _damaged(json.loads(file.read_text()), data)
        file.write_text(json.dumps(document))
        Store(str(where / "other.json")).save(BEFORE)
        (where / "other.json").rename(where / "state.json~")
        version = document.get("version") if isinstance(document, dict) else None
        if isinstance(version, int) and not isinstance(version, bool) and version > VERSION:
            with pytest.raises(FwError, match="newer"):
                Store(str(file)).load()
            return
        state = Store(str(file)).load()
        for network in state.networks.values():
            assert isinstance(network.gateway4, IPv4Interface | None)
            assert network.gateway6 is None or network.gateway6.version == 6
            assert isinstance(network.internal, bool)
        for endpoint in state.endpoints.values():
            assert isinstance(endpoint.addr4, IPv4Address | None)
            assert isinstance(endpoint.addr6, IPv6Address | None)
            assert isinstance(endpoint.joined, bool)
        assert all(isinstance(until, int | float) for until in state.bans.values())
        assert state == BEFORE or not list(where.glob("state.json.corrupt-*"))
        for item in elements_of(state):
            assert re.fullmatch(ELEMENT_TEXT, element_text(item))
        Store(str(file)).save(state)


@given(st.binary(max_size=200) | json_values.map(lambda v: json.dumps(v).encode()))
@examples(100)
def test_any_bytes_allow_the_start(content: bytes) -> None:
    """A file with any content is set aside, or is a newer version's and refused with a message."""
    with directory() as where:
        (where / "state.json").write_bytes(content)
        try:
            assert Store(str(where / "state.json")).load() == SavedState()
        except FwError as refused:
            message = str(refused)
            assert "newer" in message
        else:
            (aside,) = where.glob("state.json.corrupt-*")
            assert aside.read_bytes() == content


def test_a_newer_versions_file_is_refused_and_unchanged(path: Path) -> None:
    """The start after a downgrade reports what to do, and the newer file stays unchanged."""
    Store(str(path)).save(BEFORE)
    newer = path.read_text().replace('"version": 2', '"version": 3')
    path.write_text(newer)
    with pytest.raises(FwError, match=r"version 3, newer than this docker-fw \(version 2\); install the newer"):
        Store(str(path)).load()
    assert path.read_text() == newer
    assert [p.name for p in path.parent.iterdir()] == ["state.json"]


def test_every_field_is_kept(path: Path) -> None:
    """Labels and their places, names, notices, overrides, bans and their ends are all restored, with the exact texts
    that users see."""
    Store(str(path)).save(AFTER)
    state = Store(str(path)).load()
    assert state == AFTER
    assert state.networks[NETWORK.id].spec.allow[0].origin == MORE.origin
    assert [each.rule.origin for each in state.overrides] == ["fwctl allow", ""]
    container = state.endpoints[ENDPOINT.id].container
    assert container
    assert (container.spec.rate or ())[0].origin == "label fw.rate"
    assert list(state.bans) == list(AFTER.bans)


def test_all_egress_remains_all_when_a_protocol_is_added(path: Path) -> None:
    """`fw.egress: all` is saved as a rule for each protocol; an older file, with fewer of them, restricts no egress."""
    network = dataclasses.replace(NETWORK, spec=PolicySpec(egress=tuple(r for r in EVERYTHING if r.proto != "sctp")))
    Store(str(path)).save(SavedState({network.id: network}))
    assert Store(str(path)).load().networks[network.id].spec.egress == EVERYTHING


def test_a_file_of_version_1_is_read(path: Path) -> None:
    """A state file of docker-fw 0.1 is read after an upgrade: its lists of ports, and all other fields.

    The file was written by version 0.1.0 itself.
    """
    path.parent.mkdir()
    path.write_bytes(V1.read_bytes())
    state = Store(str(path)).load()
    network = Network(
        "a" * 64,
        "fw-aaaaaaaaaaaa",
        IPv4Interface("172.18.0.1/16"),
        IPv6Interface("2001:db8:1::1/64"),
        False,
        1400,
        False,
        IPv4Address("127.0.0.1"),
        "net",
        PolicySpec(allow=(Rule("tcp", 9100, 9100),)),
    )
    web = Container("c" * 64, "web", PolicySpec(allow=(Rule("tcp", 8080, 8080), Rule("udp", 53, 53))))
    wrong = Container("d" * 64, "wröng", problems=(Problem("label fw.allow", "808O", "is not a port", False, False),))
    endpoints = [
        Endpoint(
            "b" * 64,
            network.id,
            IPv4Address("172.18.0.2"),
            IPv6Address("2001:db8:1::2"),
            "02:42:ac:12:00:02",
            True,
            PolicySpec(allow=(Rule("sctp", 1, 65535),)),
            web,
            (Published("tcp", IPv4Address("0.0.0.0"), 8081, 80),),
        ),
        Endpoint("e" * 64, network.id, IPv4Address("172.18.0.3"), None, "02:42:ac:12:00:03", True, container=wrong),
        Endpoint("f" * 64, network.id, None, IPv6Address("2001:db8:1::4")),
    ]
    assert state == SavedState(
        {network.id: network},
        by_id(endpoints),
        "boot-1",
        frozenset({2}),
        frozenset({"virbr0"}),
        {web.id: (Published("tcp", IPv6Address("::"), 8443, 443),)},
    )
    Store(str(path)).save(state)
    assert Store(str(path)).load() == state
    assert json.loads(path.read_text())["version"] == 2


def test_a_file_of_version_1_that_is_damaged_is_not_guessed_at(path: Path) -> None:
    """A file with neither the old nor the new keys is set aside like any file that cannot be read."""
    path.parent.mkdir()
    path.write_text(V1.read_text().replace('"allow"', '"alow"'))
    assert Store(str(path)).load() == SavedState()
    assert len(list(path.parent.glob("state.json.corrupt-*"))) == 1


PORT = {"proto": "tcp", "first": 1, "last": 1}
RATE = {**PORT, "count": 1, "unit": "day", "burst": 1}
WRONG: dict[str, Any] = {
    "a policy": ("said", {"policy": "opne"}),
    "a log": ("said", {"log": "yes"}),
    "a list": ("said", {"allow": {}}),
    "a rule": ("said", {"allow": [{"proto": "icmp", "first": 1, "last": 1}]}),
    "a port": ("said", {"allow": [{"proto": "tcp", "first": 0, "last": 1}]}),
    "a range": ("said", {"deny": [{"proto": "tcp", "first": 9, "last": 1}]}),
    "a prefix": ("said", {"allow": [{**PORT, "peers": [{"kind": "prefix", "value": "10.0.0.1/8"}]}]}),
    "a peer": ("said", {"egress": [{**PORT, "peers": [{"kind": "any", "value": ""}]}]}),
    "peers that are no list": ("said", {"allow": [{**PORT, "peers": {}}]}),
    "peers that are a text": ("said", {"egress": [{**PORT, "peers": ""}]}),
    "a unit": ("said", {"rate": [{**RATE, "unit": "week"}]}),
    "a count": ("said", {"rate": [{**RATE, "count": 10**9}]}),
    "a burst": ("said", {"rate": [{**RATE, "burst": 70000}]}),
    "a rate's range": ("said", {"rate": [{**RATE, "first": 2}]}),
    "an end": ("bans", {"10.0.0.1": -1}),
    "an end that is none": ("bans", {"10.0.0.1": True}),
    "an end without end": ("bans", {"10.0.0.1": float("inf")}),
    "an end beyond all numbers": ("bans", {"10.0.0.1": 10**400}),
    "a ban": ("bans", {"everybody": 0}),
    "a word": ("overrides", [{"container": "c", "rule": PORT, "deny": 1, "until": 0}]),
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG.values(), ids=WRONG)
def test_records_outside_the_label_language_are_refused(path: Path, key: str, value: Any) -> None:
    """An edited file opens nothing that the label language could not express: it is set aside as a whole."""
    Store(str(path)).save(AFTER)
    document = json.loads(path.read_text())
    if key == "said":
        document["endpoints"][ENDPOINT.id]["container"]["said"].update(value)
    else:
        document[key] = value
    path.write_text(json.dumps(document))
    assert Store(str(path)).load() == SavedState()
    assert len(list(path.parent.glob("state.json.corrupt-*"))) == 1


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("networks", "mtu", 2**64),
        ("networks", "mtu", 0),
        ("networks", "id", "\0"),
        ("endpoints", "id", "../../etc"),
        ("endpoints", "network_id", ""),
        ("endpoints", "mac", "02:42"),
    ],
)
def test_records_that_no_link_could_have_are_refused(path: Path, kind: str, key: str, value: Any) -> None:
    """A record from which no link could be created is detected when the file is read, not when it is too late to
    start."""
    Store(str(path)).save(AFTER)
    document = json.loads(path.read_text())
    (record,) = document[kind].values()
    record[key] = value
    document[kind] = {record["id"]: record}
    path.write_text(json.dumps(document))
    assert Store(str(path)).load() == SavedState()
    assert len(list(path.parent.glob("state.json.corrupt-*"))) == 1


def _full(step: str) -> Any:
    """Return a system call that fails with a full disk at this step."""
    calls: dict[str, Any] = {"open": os.open, "fsync": os.fsync}

    def fails(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert step in calls
    return fails


def test_a_full_disk_is_an_error_and_the_old_file_remains(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk refuses the new state, Docker gets an error, and the old state remains."""
    store = Store(str(path))
    store.save(BEFORE)
    store.flush()
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", _full("open"))
        with pytest.raises(FwError, match=r"could not write the state file .*state\.json: No space left on device"):
            store.save(AFTER)
    assert Store(str(path)).load() == BEFORE
    store.save(AFTER)
    assert Store(str(path)).load() == AFTER


def test_a_state_that_cannot_be_flushed_is_unsaved_until_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk has no room when a file is flushed, the store reports it, and the fallback is the old state.

    A start reads the new state nevertheless, and the next flush writes it.
    """
    store = Store(str(path))
    store.save(BEFORE)
    store.flush()
    store.save(AFTER)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _full("fsync"))
        for _ in range(2):
            with pytest.raises(
                FwError, match=r"could not flush the state file .*state\.json.*: No space left on device"
            ):
                store.flush()
            assert "No space left on device" in store.unsaved_reason
    assert Store(str(path)).load() == AFTER
    store.save(AFTER)
    store.flush()
    assert store.unsaved_reason == ""
    store.save(SHORT)
    path.write_text("")
    assert Store(str(path)).load() == AFTER
    assert [each.name for each in path.parent.glob("*.flush")] == []


class PowerCuts:
    """What the disk has: names as they are, and of each file what was flushed last (as on XFS)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._flushed: dict[int, bytes] = {}
        #: Files whose next flush fails: then the kernel passes them for flushed.
        self.losing = False
        self._lost: set[int] = set()
        monkeypatch.setattr(os, "fsync", self._fsync)

    def _fsync(self, fd: int) -> None:
        path, number = Path(os.readlink(f"/proc/self/fd/{fd}")), os.fstat(fd).st_ino
        if path.is_dir():
            return
        if self.losing and number not in self._lost:
            self._lost.add(number)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if number not in self._lost:
            self._flushed[number] = path.read_bytes()

    def happen(self, where: Path) -> None:
        contents = {each: self._flushed.get(each.stat().st_ino, b"") for each in where.iterdir()}
        for each, content in contents.items():
            each.unlink()
            each.write_bytes(content)


def test_a_file_that_the_disk_lost_does_not_pass_for_flushed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports lost data once (fsync(2)): only another file can be flushed after that."""
    cuts, store = PowerCuts(monkeypatch), Store(str(path))
    store.save(BEFORE)
    store.flush()
    cuts.losing = True
    store.save(AFTER)
    for _ in range(3):
        with pytest.raises(FwError, match="Input/output error"):
            store.flush()
    assert "Input/output error" in store.unsaved_reason
    cuts.losing = False
    store.save(AFTER)
    store.flush()
    assert store.unsaved_reason == ""
    cuts.happen(path.parent)
    assert Store(str(path)).load() == AFTER


@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("restarts", [1, 2])
def test_networks_survive_a_restart_and_then_a_power_cut(
    path: Path, monkeypatch: pytest.MonkeyPatch, flushed: bool, restarts: int
) -> None:
    """What was flushed last is there after restarts and a power cut, though no process flushed its file since."""
    cuts, store = PowerCuts(monkeypatch), Store(str(path))
    store.save(BEFORE)
    store.flush()
    store.save(AFTER)
    if flushed:
        store.flush()
    for known in (AFTER, SHORT)[:restarts]:
        again = Store(str(path))
        assert again.load() == known
        again.save(SHORT)
    cuts.happen(path.parent)
    assert Store(str(path)).load() == (AFTER if flushed else BEFORE)


def test_a_file_that_the_last_process_lost_does_not_pass_for_flushed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last process got an error when it flushed the file. The kernel does not repeat that to the next process."""
    cuts, store = PowerCuts(monkeypatch), Store(str(path))
    store.save(BEFORE)
    store.flush()
    cuts.losing = True
    store.save(AFTER)
    with pytest.raises(FwError, match="Input/output error"):
        store.flush()
    cuts.losing = False
    again = Store(str(path))
    assert again.load() == AFTER
    again.flush()
    cuts.happen(path.parent)
    assert Store(str(path)).load() == AFTER


def test_a_file_that_is_lost_after_a_restart_takes_no_good_ones_place(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fallback stays as it is until a newer file has been flushed."""
    cuts, store = PowerCuts(monkeypatch), Store(str(path))
    store.save(BEFORE)
    store.flush()
    store.save(AFTER)
    again = Store(str(path))
    assert again.load() == AFTER
    cuts.losing = True
    with pytest.raises(FwError, match="Input/output error"):
        again.flush()
    cuts.losing = False
    again.save(SHORT)
    cuts.happen(path.parent)
    assert Store(str(path)).load() == BEFORE


def test_no_save_waits_for_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the first one after a restart: a container that leaves is closed after it."""
    store = Store(str(path))
    store.save(BEFORE)
    store.flush()
    again = Store(str(path))
    again.load()
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("it waits for the disk"))
    again.save(AFTER)
    again.save(SHORT)


def test_a_disk_that_hangs_stops_one_thread_only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others that wait for it get an error in time: Docker's calls need threads."""
    store, began, proceed, fsync = Store(str(path)), threading.Event(), threading.Event(), os.fsync

    def hangs(fd: int) -> None:
        began.set()
        assert proceed.wait(20)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", hangs)
    monkeypatch.setattr(stores, "PATIENCE", 0.1)
    store.save(BEFORE)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(store.flush)
        try:
            assert began.wait(20)
            for _ in range(3):
                with pytest.raises(FwError, match=r"has not flushed the state file .* within 0 s"):
                    store.flush()
        finally:
            proceed.set()
        first.result(20)
    store.flush()
    assert store.unsaved_reason == ""


def test_a_restart_flushes_what_the_last_process_did_not(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docker-fw is killed while a network waits for the disk. Docker repeats the call: the disk has it then."""
    cuts = PowerCuts(monkeypatch)
    Store(str(path)).save(AFTER)
    path.with_name("state.json.flush").write_text("")
    again = Store(str(path))
    again.sweep()
    assert again.load() == AFTER
    again.flush()
    cuts.happen(path.parent)
    assert Store(str(path)).load() == AFTER
    assert [each.name for each in path.parent.iterdir()] == ["state.json"]


def test_a_save_amid_the_first_flush_leaves_no_third_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush of the last process's file may end after a save has already kept that file as the fallback."""
    Store(str(path)).save(BEFORE)
    store, fsync, saves = Store(str(path)), os.fsync, [AFTER]
    store.load()

    def slow(fd: int) -> None:
        fsync(fd)
        while saves:
            store.save(saves.pop())

    monkeypatch.setattr(os, "fsync", slow)
    store.flush()
    assert {each.name for each in path.parent.iterdir()} == {"state.json", "state.json~"}
    assert Store(str(path)).load() == AFTER
    path.unlink()
    assert Store(str(path)).load() == BEFORE


def test_changes_are_saved_while_the_disk_is_slow(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a flush waits for the disk, further changes are saved; the fallback is then the flushed state.

    Those who wait for the disk meanwhile share the next flush.
    """
    store, fsync = Store(str(path)), os.fsync
    began, proceed, flushes = threading.Event(), threading.Event(), list[str]()

    def slow(fd: int) -> None:
        flushes.append(os.readlink(f"/proc/self/fd/{fd}"))
        began.set()
        assert proceed.wait(20)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", slow)
    store.save(BEFORE)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(store.flush)]
        assert began.wait(20)
        store.save(SHORT)
        store.save(AFTER)
        waiting += [pool.submit(store.flush) for _ in range(3)]
        assert Store(str(path)).load() == AFTER
        proceed.set()
        for each in waiting:
            each.result(20)
    assert [Path(each).name for each in flushes] == ["state.json.flush", path.parent.name] * 2
    assert {each.name for each in path.parent.iterdir()} == {"state.json", "state.json~"}
    assert json.loads(path.with_name("state.json~").read_text())["networks"].keys() == BEFORE.networks.keys()
    path.unlink()
    assert Store(str(path)).load() == BEFORE


def test_a_partial_write_leaves_the_old_file(path: Path) -> None:
    """A write that fails in the middle (here: on a full /dev/full) leaves the old file intact."""
    store = Store(str(path))
    store.save(BEFORE)
    store.flush()
    new = path.with_name("state.json.new")
    new.symlink_to("/dev/full")
    with pytest.raises(FwError, match="No space left on device"):
        store.save(AFTER)
    assert Store(str(path)).load() == BEFORE
    new.unlink()
    store.save(AFTER)
    assert Store(str(path)).load() == AFTER


def test_a_rename_that_fails_leaves_something_to_load(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk fails between keeping the old file and putting the new one in place, the old state is still read."""
    store = Store(str(path))
    store.save(BEFORE)
    store.flush()
    replace = Path.replace

    def fails(self: Path, target: Path) -> Path:
        if self.name.endswith(".new"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fails)
        with pytest.raises(FwError):
            store.save(AFTER)
    assert Store(str(path)).load() == BEFORE
    for flush in (lambda: None, store.flush):
        store.save(AFTER)
        flush()
        assert Store(str(path)).load() == AFTER


def test_a_removed_file_is_written_again(path: Path) -> None:
    """If the state file (or its directory) is removed under a running plugin, nothing is lost: the next change writes
    it."""
    store = Store(str(path))
    store.save(BEFORE)
    store.flush()
    path.unlink()
    with suppress(FwError):
        store.flush()  # there is nothing to flush now
    store.save(AFTER)
    store.flush()
    assert Store(str(path)).load() == AFTER


def test_a_directory_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    """A state path below a file gives an error with the path, at the start or as the answer to a call."""
    (tmp_path / "file").write_text("")
    with pytest.raises(FwError, match="could not write the state file"):
        Store(str(tmp_path / "file" / "state.json")).save(BEFORE)


def test_an_unreadable_place_is_an_empty_state(tmp_path: Path) -> None:
    """A directory in place of the file is set aside like any file that cannot be read."""
    (tmp_path / "state.json").mkdir()
    store = Store(str(tmp_path / "state.json"))
    assert store.load() == SavedState()
    store.save(BEFORE)
    store.flush()
    assert store.load() == BEFORE


def test_networks_survive_a_power_cut(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flushed save is on the disk when it returns: the file, then its name in the directory."""
    synced: list[str] = []
    fsync = os.fsync

    def record_sync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", record_sync)
    store = Store(str(path))
    store.save(AFTER)
    assert synced == []
    store.save(BEFORE)
    store.flush()
    assert synced == [str(path.with_name("state.json.flush")), str(path.parent)]
    store.flush()
    assert len(synced) == 2


@given(st.lists(st.tuples(states, st.booleans()), min_size=1, max_size=4), states)
@examples(12)
def test_the_fallback_is_always_the_last_flushed_state(
    saved: list[tuple[SavedState, bool]], unflushed: SavedState
) -> None:
    """If the file is torn after a power cut, the last flushed state is loaded."""
    with directory() as where:
        store = Store(str(where / "state.json"))
        flushed = SavedState()
        for state, flush in saved:
            store.save(state)
            if flush:
                store.flush()
                flushed = state
        store.save(unflushed)
        (where / "state.json").write_text("")
        assert Store(str(where / "state.json")).load() == flushed


def test_one_odd_name_removes_nothing_else(path: Path) -> None:
    """A bridge name that nft would have to quote is not kept; the bans and networks in the file stay."""
    Store(str(path)).save(dataclasses.replace(AFTER, unmanaged=frozenset({"br+lan", "virbr0"})))
    assert Store(str(path)).load() == AFTER


def test_an_egress_restriction_survives_a_power_cut(path: Path) -> None:
    """The restriction is in the last flushed file: after a boot, no address opens a forbidden connection before Docker
    answers."""
    nothing: Any = Kernel()
    state = Reconciler(nothing, Store(str(path)), Defaults(PolicySpec()))
    bridge = "br-0123456789ab"
    state.start(Facts(SavedState()))
    shy = BridgeNetwork("n" * 64, "front", bridge, spec=PolicySpec(egress=()))
    state.observe(lambda facts: facts.with_networks({shy.id: shy}))
    assert state.unflushed.is_set()  # its loop then does this:
    state.flush()
    state.observe(lambda facts: facts.keeping(lambda known: known.with_foreign({"virbr0"})))  # one that is not flushed
    path.write_text("")  # as it may be on the disk then
    assert bridge in Store(str(path)).load().egress_restricted
