"""The journal next to the state file: a change of one record is one line, and no line is lost or guessed."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.model import Endpoint, FwError, Published, RequestedPorts
from plugin.policy.saved import SavedState
from plugin.state import journal
from plugin.state.store import Store
from tests.pure.states import AFTER, ENDPOINT, NETWORK, directory
from tests.pure.strategies import endpoints, examples

BASE = SavedState({NETWORK.id: NETWORK}, {}, "boot-1")
#: A container's ports in each field of the state.
PORTS: dict[str, Any] = {
    "proxied": tuple(Published("tcp", IPv4Address(0), port, 80) for port in (8080, 8081)),
    "asked": tuple(RequestedPorts("tcp", IPv4Address(0), port, port) for port in (8080, 8081)),
}


def other(number: int) -> Endpoint:
    return dataclasses.replace(ENDPOINT, id=f"{number:064x}", addr4=IPv4Address(number))


#: Steps to play in order: an endpoint is added, changed or removed, a container's ports are changed or forgotten,
#: everything is saved, docker-fw restarts.
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), endpoints),
        st.tuples(st.just("drop"), st.integers(0, 5)),
        st.tuples(st.sampled_from(["proxied", "asked"]), st.tuples(st.sampled_from("ab"), st.integers(0, 2))),
        st.tuples(st.sampled_from(["save", "flush", "restart"]), st.none()),
    ),
    max_size=14,
)


def play(path: Path, done: list[tuple[str, Any]]) -> list[SavedState]:
    """Return every state that was saved, in order."""
    store, state = Store(str(path)), BASE
    store.save(state)
    store.flush()
    saved = [state]
    for what, value in done:
        if what == "put":
            state = state.with_endpoint(value)
            store.save(state, alone=("endpoints", value.id))
        elif what == "drop" and state.endpoints:
            key = list(state.endpoints)[value % len(state.endpoints)]
            state = state.without_endpoint(key)
            store.save(state, alone=("endpoints", key))
        elif what in PORTS:
            container, many = value
            others = {key: ports for key, ports in getattr(state, what).items() if key != container}
            state = dataclasses.replace(state, **{what: others | ({container: PORTS[what][:many]} if many else {})})
            store.save(state, alone=(what, container))
        elif what == "restart":
            store = Store(str(path))
            assert store.load() == state
        elif what in ("save", "flush"):
            store.save(state)
            if what == "flush":
                store.flush()
        saved.append(state)
    return saved


@given(steps)
@examples(60)
def test_a_saved_state_is_loaded(done: list[tuple[str, Any]]) -> None:
    """The last state is loaded after any additions and removals, with either kind of save and across restarts."""
    with directory() as where:
        saved = play(where / "state.json", done)
        assert Store(str(where / "state.json")).load() == saved[-1]


@given(steps, st.data())
@examples(60)
def test_a_log_cut_anywhere_is_an_earlier_state(done: list[tuple[str, Any]], data: st.DataObject) -> None:
    """A torn log (docker-fw was killed while it wrote) yields a state that was saved, never a mixture."""
    with directory() as where:
        saved = play(where / "state.json", done)
        log = where / "state.json.log"
        if log.exists():
            whole = log.read_bytes()
            log.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
        assert Store(str(where / "state.json")).load() in saved


@given(st.binary(max_size=300))
@examples(60)
def test_any_bytes_in_the_log_allow_the_start(content: bytes) -> None:
    """A damaged log does not affect the content of the state file."""
    with directory() as where:
        path = where / "state.json"
        Store(str(path)).save(AFTER)
        (where / "state.json.log").write_bytes(content)
        assert Store(str(path)).load() == AFTER


def logged(tmp_path: Path, *changes: Endpoint) -> Path:
    """Write a state file with a log of these endpoints."""
    path, state = tmp_path / "state.json", BASE
    store = Store(str(path))
    store.save(state)
    store.flush()
    for endpoint in changes:
        state = state.with_endpoint(endpoint)
        store.save(state, alone=("endpoints", endpoint.id))
    return path


@pytest.mark.parametrize("line", [0, 1, 2])
@pytest.mark.parametrize("damage", [b"\0\xff", b"[" * 9999, b'{"serial": 1e999, "is": 1e999, "endpoint": "x"}'])
def test_a_damaged_log_is_kept(tmp_path: Path, line: int, damage: bytes) -> None:
    """A log that cannot be read completely is kept for inspection, once, however often docker-fw starts meanwhile; the
    lines before the damage apply each time."""
    path = logged(tmp_path, other(1), other(2))
    log = path.with_name("state.json.log")
    lines = log.read_bytes().split(b"\n")
    lines[line] = damage
    log.write_bytes(b"\n".join(lines))
    for _ in range(2):
        store = Store(str(path))
        state = store.load()
        assert list(state.endpoints) == [other(1).id, other(2).id][: max(0, line - 1)]
        (kept,) = tmp_path.glob("state.json.log.corrupt-*")
        assert kept.read_bytes() == b"\n".join(lines)
    store.save(state)
    store.flush()
    store.save(state.with_endpoint(other(3)), alone=("endpoints", other(3).id))
    assert Store(str(path)).load() == state.with_endpoint(other(3))


def test_a_line_torn_by_a_kill_is_no_damage(tmp_path: Path) -> None:
    """The change was never confirmed, and the caller retries it: no copy is kept."""
    path = logged(tmp_path, other(1), other(2))
    log = path.with_name("state.json.log")
    whole = log.read_bytes()
    second = whole.rindex(b"\n", 0, -1) + 1
    for length in (*range(second, len(whole)), 0, 5):
        log.write_bytes(whole[:length])
        assert list(Store(str(path)).load().endpoints) == ([other(1).id] if length > 5 else [])
    assert not list(tmp_path.glob("*corrupt*"))


def test_a_damaged_state_files_log_is_kept_with_it(tmp_path: Path) -> None:
    """The log next to an unreadable state file would be overwritten: it is kept, like the file."""
    path = logged(tmp_path, other(1))
    log = path.with_name("state.json.log").read_bytes()
    path.write_bytes(b"{")
    assert Store(str(path)).load() == SavedState()
    (kept,) = tmp_path.glob("state.json.log.corrupt-*")
    assert kept.read_bytes() == log


@pytest.mark.parametrize(
    "line", ['{"endpoint": "x"}', '{"endpoint": 1, "is": null}', "[]", '{"endpoint": "x", "is": {}}']
)
def test_a_wrong_record_ends_it(tmp_path: Path, line: str) -> None:
    """A line that is not a change of an endpoint is not guessed at, and the lines after it are ignored; the lines
    before it apply."""
    path, state = tmp_path / "state.json", BASE.with_endpoint(other(1))
    store = Store(str(path))
    store.save(BASE)
    store.flush()
    store.save(state, alone=("endpoints", other(1).id))
    log = tmp_path / "state.json.log"
    after = log.read_text()
    store.save(state.with_endpoint(other(2)), alone=("endpoints", other(2).id))
    log.write_text(after + line + "\n" + log.read_text()[len(after) :])
    assert Store(str(path)).load() == state


def test_the_log_of_another_state_file_is_void(tmp_path: Path) -> None:
    """When the state file has been rewritten, or an older one is restored, a log next to it that belongs to another
    file is ignored."""
    path = tmp_path / "state.json"
    store = Store(str(path))
    store.save(BASE)
    store.flush()
    old = path.read_bytes()
    store.save(BASE.with_endpoint(other(1)), alone=("endpoints", other(1).id))
    log = (tmp_path / "state.json.log").read_bytes()
    store.save(BASE)
    store.flush()
    (tmp_path / "state.json.log").write_bytes(log)
    assert Store(str(path)).load() == BASE
    path.write_bytes(old)
    assert Store(str(path)).load() == BASE.with_endpoint(other(1))


@pytest.mark.parametrize("part", [None, 7])
def test_a_full_disk_is_an_error_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int | None
) -> None:
    """A change that the disk refuses, or writes partially, is refused; the next save includes everything."""
    path = tmp_path / "state.json"
    store, state = Store(str(path)), BASE.with_endpoint(other(1))
    store.save(BASE)
    store.flush()
    store.save(state, alone=("endpoints", other(1).id))
    write = os.write

    def full(fd: int, data: bytes) -> int:
        if part is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data[:part])

    monkeypatch.setattr(journal.os, "write", full)
    refused = state.without_endpoint(other(1).id)
    with pytest.raises(FwError, match=r"state\.json\.log: No space left"):
        store.save(refused, alone=("endpoints", other(1).id))
    monkeypatch.undo()
    assert Store(str(path)).load() == state
    # The change was applied anyway, because it only closes: the next save includes it too.
    later = refused.with_endpoint(other(2))
    store.save(later, alone=("endpoints", other(2).id))
    assert Store(str(path)).load() == later


def test_a_failed_full_save_is_repeated_by_the_next(tmp_path: Path) -> None:
    """A removal of a network that could not be saved is part of the next save, although that is a save of one endpoint
    only; until then the store reports the reason."""
    path = logged(tmp_path, other(1))
    store, new = Store(str(path)), path.with_name("state.json.new")
    store.save(store.load())
    store.flush()
    assert store.unsaved_reason == ""
    new.symlink_to("/dev/full")
    gone = SavedState({}, {}, "boot-2")
    with pytest.raises(FwError):
        store.save(gone)
    assert "No space left on device" in store.unsaved_reason
    new.unlink()
    store.save(gone.with_endpoint(other(2)), alone=("endpoints", other(2).id))
    assert store.unsaved_reason == ""
    assert Store(str(path)).load() == gone.with_endpoint(other(2))


def test_the_log_does_not_grow_without_bound(tmp_path: Path) -> None:
    """One container that joins and leaves for years costs at most 150 kB."""
    path = tmp_path / "state.json"
    store = Store(str(path))
    store.save(BASE)
    store.flush()
    for _ in range(500):
        store.save(BASE.with_endpoint(other(1)), alone=("endpoints", other(1).id))
        store.save(BASE, alone=("endpoints", other(1).id))
    assert (tmp_path / "state.json.log").stat().st_size < 100 * 1500
    assert Store(str(path)).load() == BASE


def test_the_log_of_many_ports_does_not_grow_without_bound(tmp_path: Path) -> None:
    """Beside thousands of containers, one that publishes thousands of ports and is created for years costs 2 MB."""
    path = tmp_path / "state.json"
    store, state = Store(str(path)), BASE
    few = {f"{n:064x}": PORTS["asked"][:1] for n in range(2000)}
    many = {"c" * 64: tuple(Published("tcp", IPv4Address(0), port, 80) for port in range(1, 5000))}
    state = dataclasses.replace(BASE, asked=few)
    store.save(state)
    for _ in range(12):
        for proxied in (many, {}):
            state = dataclasses.replace(state, proxied=proxied)
            store.save(state, alone=("proxied", "c" * 64))
            log = tmp_path / "state.json.log"
            assert not log.exists() or log.stat().st_size < 2 << 20
    assert Store(str(path)).load() == state


@pytest.mark.parametrize("name", ["proxied", "asked"])
def test_a_containers_ports_are_a_line_of_the_log(tmp_path: Path, name: str) -> None:
    """The ports of one container, added, changed and forgotten, do not write the file, and a restart has them."""
    path = tmp_path / "state.json"
    store = Store(str(path))
    store.save(BASE)
    written = path.read_bytes()
    for ports in ({"c" * 64: PORTS[name]}, {"c" * 64: PORTS[name][:1]}, {}):
        state = dataclasses.replace(BASE, **{name: ports})
        store.save(state, alone=(name, "c" * 64))
        assert path.read_bytes() == written
        assert Store(str(path)).load() == state


def former(path: Path) -> dict[str, Any]:
    """Return the endpoints in the log as former versions read it, of which each line is an endpoint."""
    found: dict[str, Any] = {}
    for line in path.read_text().splitlines()[1:]:
        change = json.loads(line)
        assert isinstance(change["endpoint"], str)
        if change["is"] is None:
            found.pop(change["endpoint"], None)
        else:
            found[change["endpoint"]] = change["is"]
    return found


def test_former_versions_read_every_endpoint_of_the_log(tmp_path: Path) -> None:
    """After a downgrade no endpoint is open that left after a container's ports were written: its address may belong to
    another container. Former versions read no line after one that they do not understand."""
    path = tmp_path / "state.json"
    store, state = Store(str(path)), BASE
    store.save(state)
    for endpoint in (other(1), other(2)):
        state = state.with_endpoint(endpoint)
        store.save(state, alone=("endpoints", endpoint.id))
    for name, ports in PORTS.items():
        for each in ({"c" * 64: ports}, {}):
            state = dataclasses.replace(state, **{name: each})
            store.save(state, alone=(name, "c" * 64))
    state = state.without_endpoint(other(1).id)
    store.save(state, alone=("endpoints", other(1).id))
    assert list(former(tmp_path / "state.json.log")) == [other(2).id]
    assert Store(str(path)).load() == state


def test_any_journal_of_a_newer_version_allows_the_start(tmp_path: Path) -> None:
    """A newer version may write other lines; one that this version does not understand closes nothing and hides no
    other line."""
    path, proxied = tmp_path / "state.json", {"c" * 64: PORTS["proxied"]}
    store = Store(str(path))
    store.save(BASE)
    store.save(dataclasses.replace(BASE, asked={"c" * 64: PORTS["asked"]}), alone=("asked", "c" * 64))
    log = tmp_path / "state.json.log"
    with log.open("a") as file:
        for word in ("proxied", "asked", "endpoint"):
            for value in ("[]", "{}", "1", "null", '"x"'):
                file.write(f'{{"{word}": {value}, "is": {value}, "ports": {value}}}\n')
    store.save(dataclasses.replace(BASE, asked={"c" * 64: PORTS["asked"]}, proxied=proxied))
    whole = log.read_bytes().split(b"\n", 1)[1]
    store.save(BASE)
    store.save(dataclasses.replace(BASE, proxied=proxied), alone=("proxied", "c" * 64))
    log.write_bytes(log.read_bytes().split(b"\n", 1)[0] + b"\n" + whole + log.read_bytes().split(b"\n", 1)[1])
    path.write_text(path.read_text().replace('"version": 2', '"version": 3'))
    part = Store(str(path)).closing_part()[0]
    assert (part.proxied, part.asked) == (proxied, {"c" * 64: PORTS["asked"]})


def test_a_newer_versions_log_closes_ports_too(tmp_path: Path) -> None:
    """If an older docker-fw cannot read the file, ports closed since it was written are closed as well."""
    path = tmp_path / "state.json"
    store = Store(str(path))
    store.save(BASE)
    store.save(dataclasses.replace(BASE, proxied={"c" * 64: PORTS["proxied"]}), alone=("proxied", "c" * 64))
    path.write_text(path.read_text().replace('"version": 2', '"version": 3'))
    assert Store(str(path)).closing_part()[0].proxied == {"c" * 64: PORTS["proxied"]}
