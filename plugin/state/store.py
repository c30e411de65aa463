"""State that must survive a restart and that Docker does not report again, in one atomic JSON file.

Format: {"version": 2, "boot": BOOT_ID, "networks": {id: {...}}, "endpoints": {id: {...}}}, one record a line.
The file is written under a temporary name and renamed. A change of networks is flushed to the disk (fsync) afterwards,
because networks must survive a power cut. Endpoints end with the host, so their changes need to survive only
docker-fw's own process, and a change of one endpoint is a line in `FILE.log` (`plugin.state.journal`). So is a change
of one container's ports (`proxied`, `asked`): beside ten thousand others, writing the file took 70 ms. The file that
was flushed last is kept as `FILE~`, as a fallback, when a newer one takes its place. A process does not know whether
the file that it reads was flushed: it keeps that as `FILE.prev` until it has flushed one itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_network
from pathlib import Path
from typing import Any, TypeVar

from plugin.jsonio import (
    ID,
    INTERFACE_NAME,
    MAC,
    address,
    boolean,
    integer,
    interface,
    interface_name,
    items,
    matching,
    only,
    optional,
    port,
    published_protocol,
    text,
    within,
)
from plugin.model import (
    Container,
    Endpoint,
    FwError,
    Network,
    NewerStateError,
    PolicySpec,
    Prefix,
    Published,
    RequestedPorts,
)
from plugin.policy.frozen import FrozenDict, frozen
from plugin.policy.saved import SavedState
from plugin.state import codec
from plugin.state.journal import Journal

VERSION = 2
#: Errors while reading a record that a person or a disk error changed.
NOT_AS_IT_SHOULD_BE = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError)
#: Fields that the file has under the names of former versions, which read it after a downgrade.
_KEYS = {"spec": "said", "image_spec": "brought"}
log = logging.getLogger(__name__)
K = TypeVar("K")
V = TypeVar("V")
#: Maximum seconds that a thread waits while another one flushes the file.
PATIENCE = 10.0
#: Bytes that the journal may have, if the file is shorter: a line of thousands of published ports has 400 kB.
JOURNAL = 1 << 20
#: The fields of the state of which a changed record is a line in the journal.
JOURNALED = ("endpoints", "proxied", "asked")
#: The fields that the file has with one record a line.
_RECORDS = ("networks", "endpoints", "proxied", "asked")
_NEW = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC


class Store:
    """The file at `path`; its directory is created (0700) if missing.

    `save` is not thread-safe; `flush` is, and runs beside `save`.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._backup, self._previous = Path(path + "~"), Path(path + ".prev")
        self._new, self._flushing = Path(path + ".new"), Path(path + ".flush")
        self._journal = Journal(Path(path + ".log"))
        self._records: dict[str, _Records] = {name: _Records() for name in _RECORDS}
        self._bans: tuple[Mapping[Prefix, float] | None, str] = (None, "")
        #: The characters of the file that was written last.
        self._size = 0
        #: Held while files get another name, and never during an fsync.
        self._names = threading.Lock()
        #: One fsync at a time.
        self._one_flush = threading.Lock()
        #: Since when (monotonic) a flush is in progress; 0: none is.
        self._flushing_since = 0.0
        #: How many files were written; the number of the last flushed one, and of the last that could not be flushed.
        self._written = self._flushed = self._failed = 0
        #: The file at `path` itself is flushed; it is another process's, and may be flushed or not.
        self._is_flushed = self._is_loaded = False
        self._not_saved = self._not_flushed = ""

    @property
    def unsaved_reason(self) -> str:
        """Why the current state is not on the disk; "" if it is."""
        return self._not_saved or self._not_flushed

    def load(self) -> SavedState:
        """Return the last state; an empty one if there is no file. A corrupt file is kept aside, the fallback is read.

        Raises NewerStateError.
        """
        for path in (self._path, self._previous, self._backup):
            try:
                document = json.loads(path.read_text())
                state = _decode(document)
                serial = document.get("serial", "")
            except FileNotFoundError:
                continue
            except (*NOT_AS_IT_SHOULD_BE, RecursionError, OSError) as error:
                aside = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
                log.error(
                    "state file %s is not readable (%s); docker-fw starts without it, and keeps it as %s",
                    path,
                    error,
                    aside,
                )
                with contextlib.suppress(OSError):
                    path.replace(aside)
                self._journal.keep()  # it has the changes since that file
                continue
            if path == self._path:
                self._written, self._is_loaded = 1, True
            else:
                log.warning("read the last flushed state from %s", path)
            return self._replayed(state, serial)
        return SavedState()

    def sweep(self) -> None:
        """Remove what a process left behind that died while it flushed the file. No other process may be running."""
        with contextlib.suppress(OSError):
            self._flushing.unlink()

    def closing_part(self) -> tuple[SavedState, bool]:
        """Return what a newer version's file closes, as far as this version reads it. Never raises.

        Each entry is read by itself, and the rest is left out. The second value is True if all egress-restricted
        bridges are known.
        """
        try:
            document = json.loads(self._path.read_text())
            found = document if isinstance(document, dict) else {}
        except (ValueError, RecursionError, OSError):
            found = {}
        bridges, internal = found.get("confined"), found.get("internal")
        ports: dict[str, dict[str, Any]] = {
            name: _readable(found, name, partial(_entry, name)) for name in ("proxied", "asked")
        }
        serial = found.get("serial")
        for change in self._journal.read(serial if isinstance(serial, str) else ""):
            for name, entries in ports.items():
                with contextlib.suppress(*NOT_AS_IT_SHOULD_BE):
                    key, closed = _entry(name, change[name], change["ports"])
                    entries[key] = closed
        return SavedState(
            proxied=ports["proxied"],
            asked=ports["asked"],
            egress_restricted=frozenset(filter(_plain_name, bridges if isinstance(bridges, list) else ())),
            bans=_readable(found, "bans", lambda prefix, until: (ip_network(prefix), codec.moment(until))),
            internal=frozenset(filter(_plain_name, internal if isinstance(internal, list) else ())),
        ), isinstance(bridges, list) and all(map(_plain_name, bridges))

    def _replayed(self, state: SavedState, serial: str) -> SavedState:
        """Return the state with the journal's changes, up to the first damaged one."""
        records: dict[str, dict[str, Any]] = {name: dict(getattr(state, name)) for name in JOURNALED}
        for change in self._journal.read(serial):
            try:
                name, key, item = _changed(change)
            except NOT_AS_IT_SHOULD_BE as error:
                log.error("the state file's log is damaged (%s); the rest of it is ignored", error)
                self._journal.keep()
                break
            if item:
                records[name][key] = item
            else:
                records[name].pop(key, None)
        replaced: SavedState = dataclasses.replace(state, **records)  # type: ignore[arg-type]
        return replaced

    def save(self, state: SavedState, *, alone: tuple[str, str] | None = None) -> None:
        """Write the state. Raises FwError if the disk refuses it: then the old state remains there.

        `alone`: the field of the state, one of `JOURNALED`, and the key in it that alone has changed since the last
        save. A power cut may undo the save until `flush`.
        """
        records = sum(len(getattr(state, name)) for name in JOURNALED)
        room = self._journal.length < max(100, records // 2) and self._journal.size < max(JOURNAL, self._size)
        little = bool(alone and self._journal.begun and room)
        try:
            if alone and little:
                name, key = alone
                item = getattr(state, name).get(key)
                self._journal.append(_line(name, key, _plain(item) if item else None))
            else:
                self._replace(state)
        except OSError as error:
            self._journal.begin("")  # the next save writes the whole state, whatever this one was to write
            self._not_saved = f"could not write the state file {self._path}{'.log' * little}: {error.strerror}"
            raise FwError(self._not_saved) from error
        if self._not_saved:
            self._not_saved = ""
            log.warning("the state file %s can be written again", self._path)

    def flush(self) -> None:
        """Wait until the disk has every network that was saved before. Raises FwError if the disk refuses it.

        A slow disk may take seconds: hold no lock that others need. Several callers share one fsync. If it has lasted
        PATIENCE seconds, all callers but the one that makes it get an error: they must not use up all threads.
        """
        wanted, now = self._written, time.monotonic()
        left = (self._flushing_since or now) + PATIENCE - now
        if not self._one_flush.acquire(timeout=max(0.0, left)):
            raise FwError(f"the disk has not flushed the state file {self._path} within {PATIENCE:.0f} s")
        try:
            self._flushing_since = time.monotonic()
            self._flush(wanted)
        finally:
            self._flushing_since = 0.0
            self._one_flush.release()

    def _flush(self, wanted: int) -> None:
        if self._flushed >= wanted:
            return
        # The kernel reports the loss of a file's data once, and then passes it for flushed (fsync(2)).
        if self._failed >= self._written:
            raise FwError(self._not_flushed)
        try:
            self._flush_file()
        except OSError as error:
            self._not_flushed = f"could not flush the state file {self._path} to the disk: {error.strerror}"
            raise FwError(self._not_flushed) from error
        if self._not_flushed:
            self._not_flushed = ""
            log.warning("the state file %s can be flushed to the disk again", self._path)

    def _flush_file(self) -> None:
        with self._names:
            written = self._written
            self._flushing.unlink(missing_ok=True)
            self._failed = written  # until it is flushed
            loaded = self._path.open("rb") if self._is_loaded else None
            if not loaded:
                # A second name (hard link) for the file of now: newer ones may take its place meanwhile.
                os.link(self._path, self._flushing)
        if loaded:
            # If the last process got an error, the kernel passes that file for flushed: only a copy shows it.
            with loaded, os.fdopen(os.open(self._flushing, _NEW | os.O_EXCL, 0o600), "wb") as copy:
                shutil.copyfileobj(loaded, copy)
        _fsync(self._flushing)
        with self._names:
            self._failed, self._is_loaded = 0, False
            self._is_flushed = written == self._written
            self._flushing.replace(self._path if self._is_flushed else self._backup)
            self._flushing.unlink(missing_ok=True)  # rename(2) does nothing if both are names of one file
            self._previous.unlink(missing_ok=True)
        _fsync(self._path.parent)
        self._flushed = written

    def _replace(self, state: SavedState) -> None:
        serial = os.urandom(8).hex()
        document = "".join(self._document(state, serial))
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._new, _NEW | os.O_TRUNC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(document)
        with self._names:
            # A second name, so that a file exists at every moment. (Another program may have removed the first one.)
            if self._is_flushed:
                self._backup.unlink(missing_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    os.link(self._path, self._backup)
            elif self._is_loaded:
                # If there is one already, no process has flushed a file since, and it is the likeliest on the disk.
                with contextlib.suppress(FileNotFoundError, FileExistsError):
                    os.link(self._path, self._previous)
            self._new.replace(self._path)
            self._is_flushed = self._is_loaded = False
            self._written += 1
        self._journal.begin(serial)
        self._size = len(document)

    def _document(self, state: SavedState, serial: str) -> Iterator[str]:
        """Yield the file's text in a few parts, because it may have megabytes."""
        head: dict[str, Any] = {"version": VERSION, "serial": serial, "boot": state.boot}
        head["switched"] = sorted(state.switched)
        head["foreign"] = sorted(state.unmanaged)
        head["confined"] = sorted(state.egress_restricted)
        head["internal"] = sorted(state.internal)
        head["overrides"] = _plain(state.overrides)
        if self._bans[0] is not state.bans:  # a blocklist is long and seldom changes
            self._bans = (state.bans, json.dumps({str(prefix): until for prefix, until in state.bans.items()}))
        yield json.dumps(head)[:-1] + f', "bans": {self._bans[1]}'
        for name in _RECORDS:
            yield f',\n"{name}": {{\n'
            yield self._records[name].text(getattr(state, name))
            yield "\n}"
        yield "}\n"


class _Records:
    """The lines of a mapping's records in the file. A record is frozen: its line serves until another replaces it."""

    def __init__(self) -> None:
        self._records: FrozenDict[str, Any] = FrozenDict()
        self._lines: dict[str, str] = {}

    def text(self, records: Mapping[str, Any]) -> str:
        records = frozen(records)
        for key in records.differing(self._records):
            if key in records:
                self._lines[key] = f"{json.dumps(key)}: {json.dumps(_plain(records[key]), separators=(',', ':'))}"
            else:
                self._lines.pop(key, None)
        self._records = records
        return ",\n".join(map(self._lines.__getitem__, records))


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = (each.name for each in dataclasses.fields(value))
        return {_KEYS.get(name, name): _plain(getattr(value, name)) for name in fields}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _decode(document: Any) -> SavedState:
    version = integer(document, "version")
    if version > VERSION:
        raise NewerStateError(
            f"the state file is of version {version}, newer than this docker-fw (version {VERSION}); "
            "install the newer docker-fw again, or move the file away"
        )
    networks = {key: _network(value) for key, value in document["networks"].items()}
    endpoints = {key: _endpoint(value) for key, value in document["endpoints"].items()}
    state = SavedState(
        networks,
        endpoints,
        text(document, "boot"),
        frozenset(map(_family, items(document, "switched"))),
        frozenset(filter(_plain_name, document.get("foreign", []))),
        {container: _proxied(ports) for container, ports in document.get("proxied", {}).items()},
        frozenset(filter(_plain_name, document.get("confined", []))),
        tuple(map(codec.overriding, document.get("overrides", []))),
        {ip_network(prefix): codec.moment(until) for prefix, until in document.get("bans", {}).items()},
        {container: _asked(ports) for container, ports in document.get("asked", {}).items()},
        frozenset(filter(_plain_name, document.get("internal", []))),
    )
    ids = [each.id for each in networks.values()] + [each.id for each in endpoints.values()]
    if [*networks, *endpoints] != ids:
        raise ValueError("a record has another ID than its key")
    return state


def _readable(document: dict[str, Any], key: str, read: Callable[[str, Any], tuple[K, V]]) -> dict[K, V]:
    """Return the entries of a mapping in the document that `read` understands."""
    found: dict[K, V] = {}
    entries = document.get(key)
    for name, value in entries.items() if isinstance(entries, dict) else ():
        with contextlib.suppress(*NOT_AS_IT_SHOULD_BE):
            entry, content = read(name, value)
            found[entry] = content
    return found


def _line(name: str, key: str, item: Any) -> dict[str, Any]:
    """Return a line of the journal; an `item` of None: the record was removed.

    Former versions know lines of endpoints alone, and read nothing after another line. To them, a line of a container's
    ports removes an endpoint without an ID, of which there is none.
    """
    if name == "endpoints":
        return {"endpoint": key, "is": item}
    return {"endpoint": "", "is": None, name: key, "ports": item}


def _changed(change: dict[str, Any]) -> tuple[str, str, Any]:
    """Return what `_line` got. Raises one of NOT_AS_IT_SHOULD_BE."""
    name = next((name for name in ("proxied", "asked") if name in change), "endpoints")
    key, raw = ("endpoint", change["is"]) if name == "endpoints" else (name, change["ports"])
    key, item = text(change, key), None if raw is None else _READ[name](raw)
    if isinstance(item, Endpoint) and item.id != key:
        raise ValueError("a record has another ID than its key")
    return name, key, item


def _entry(name: str, key: Any, raw: Any) -> tuple[str, Any]:
    """Return a container's entry in a field of the state. Raises one of NOT_AS_IT_SHOULD_BE."""
    return text({"container": key}, "container"), _READ[name](raw)


def _plain_name(value: Any) -> bool:
    """True for an interface name: one invalid name must not make bans and networks unreadable."""
    return isinstance(value, str) and INTERFACE_NAME.fullmatch(value) is not None


def _family(value: Any) -> int:
    if value not in (2, 10):
        raise ValueError("switched must hold address families (2, 10)")
    return int(value)


def _network(raw: Any) -> Network:
    return Network(
        id=matching(raw, "id", ID),
        bridge=interface_name(raw, "bridge"),
        gateway4=optional(raw, "gateway4", only(IPv4Interface, interface)),
        gateway6=optional(raw, "gateway6", only(IPv6Interface, interface)),
        internal=boolean(raw, "internal"),
        mtu=within(raw, "mtu", 68, 65535),
        masquerade=boolean(raw, "masquerade"),
        host_ip=optional(raw, "host_ip", address),
        iface_prefix=text(raw, "iface_prefix"),
        spec=codec.spec(raw),
    )


def _endpoint(raw: Any) -> Endpoint:
    return Endpoint(
        id=matching(raw, "id", ID),
        network_id=matching(raw, "network_id", ID),
        addr4=optional(raw, "addr4", only(IPv4Address, address)),
        addr6=optional(raw, "addr6", only(IPv6Address, address)),
        mac=matching(raw, "mac", MAC) if raw.get("mac") else "",
        joined=boolean(raw, "joined"),
        spec=codec.spec(raw),
        container=None if raw["container"] is None else _container(raw["container"]),
        published=tuple(map(_published, items(raw, "published"))),
    )


def _container(raw: Any) -> Container:
    return Container(
        id=text(raw, "id"),
        name=text(raw, "name"),
        spec=codec.spec(raw),
        image_spec=codec.one(raw["brought"]) if "brought" in raw else PolicySpec(),
        problems=tuple(map(codec.problem, items(raw, "problems"))),
        notices=tuple(text({"notice": each}, "notice") for each in raw.get("notices", [])),
        **{name: text({name: raw.get(name, "")}, name) for name in ("network", "project", "service")},
    )


def _published(raw: Any) -> Published:
    return Published(
        published_protocol(raw, "proto"),
        address(raw["host_ip"]),
        port(raw, "host_port"),
        port(raw, "container_port"),
    )


def _proxied(raw: Any) -> tuple[Published, ...]:
    return tuple(map(_published, raw))


def _asked(raw: Any) -> tuple[RequestedPorts, ...]:
    return tuple(map(codec.requested_ports, raw))


#: How a line of the journal is read, by the field of the state.
_READ: Mapping[str, Callable[[Any], Any]] = {"endpoints": _endpoint, "proxied": _proxied, "asked": _asked}
