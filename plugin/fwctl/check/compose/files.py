"""Reads compose files into one project, as `docker compose -f a -f b` does: variables, `include`, `extends`, merging.

It reads only the files it is given and those that they name, and only through `fetch`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import yaml

from plugin.fwctl.check.compose.form import FILE, formed
from plugin.fwctl.check.compose.model import Notes, Place, Unreadable, Value
from plugin.fwctl.check.compose.tree import MAX_TEXT, MAX_VALUES, Walker, documents, scalar
from plugin.fwctl.check.compose.variables import dotenv, expand

#: The most files of one project, and the longest chain of `extends`: a longer one is a circle.
MAX_FILES = 64
MAX_EXTENDS = 16

#: Returns a file's content by its path, at least the first `MAX_TEXT` characters and one more. Raises OSError.
Fetch = Callable[[str], bytes]


def read_file(path: str) -> bytes:
    """Return the file's first bytes; so a device or pipe that never ends is not read endlessly."""
    with open(path, "rb") as file:
        return file.read(4 * MAX_TEXT + 1)


@dataclass(frozen=True, slots=True)
class Project:
    """The merged project: its name, services and networks."""

    name: str
    services: Mapping[str, Value]
    networks: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class _Around:
    """The context of a file's names: the directory of relative paths, and the variables."""

    directory: str
    variables: Mapping[str, str]


def read(paths: Sequence[str], environ: Mapping[str, str], notes: Notes, fetch: Fetch = read_file) -> Project:
    """Read and merge the files, the later over the earlier. Raises Unreadable; other mistakes are in `notes`."""
    return _Reader(notes, fetch).project(paths, environ)


def merge(old: Value | None, new: Value) -> Value | None:
    """Merge `new` over `old`: maps by key, lists are joined, otherwise the new value counts. None: it was removed."""
    if new.tag == "reset":
        return None
    if new.data is None:
        return old or new
    if old is None or new.tag == "override" or type(old.data) is not type(new.data):
        old = replace(new, data=type(new.data)())
    if isinstance(new.data, dict):
        merged = {**old.map, **{key: merge(old.map.get(key), value) for key, value in new.data.items()}}
        return replace(new, data={key: value for key, value in merged.items() if value is not None}, tag="")
    return replace(new, data=[*old.items, *new.items] if isinstance(new.data, list) else new.data, tag="")


class _Reader:
    """The state of one run: what has been read, and how much."""

    def __init__(self, notes: Notes, fetch: Fetch) -> None:
        self._notes = notes
        self._fetch = fetch
        self._walker = Walker(notes)
        self._nodes: dict[str, list[yaml.Node]] = {}
        # With the variables they were read with, which are referenced so that their id stays unique.
        self._documents: dict[tuple[str, str, int], tuple[_Around, list[Value]]] = {}
        self._left = MAX_VALUES
        self._includes = 0

    def project(self, paths: Sequence[str], environ: Mapping[str, str]) -> Project:
        paths = [os.path.normpath(path) for path in paths]
        directory = os.path.dirname(paths[0])
        variables = self._with_dotenv(directory, environ)
        name = self._name(paths, directory, variables)
        around = _Around(directory, {**variables, "COMPOSE_PROJECT_NAME": name})
        merged = self._files(paths, around, ())
        return Project(name, *(merged.map[key].map if key in merged.map else {} for key in ("services", "networks")))

    def _name(self, paths: Sequence[str], directory: str, variables: Mapping[str, str]) -> str:
        """COMPOSE_PROJECT_NAME, the last `name:` of the files, or the directory's name."""
        found = variables.get("COMPOSE_PROJECT_NAME", "")
        for node in (n for path in reversed(paths) for n in reversed(self._read(path, None))):
            for key, value in node.value if isinstance(node, yaml.MappingNode) and not found else ():
                if isinstance(key, yaml.ScalarNode) and isinstance(value, yaml.ScalarNode) and key.value == "name":
                    found = expand(scalar(value) or "", variables).text
        found = found or os.path.basename(os.path.abspath(directory))
        return re.sub(r"[^a-z0-9_-]", "", found.lower()).lstrip("_-") or "default"

    def _files(self, paths: Sequence[str], around: _Around, within: tuple[str, ...]) -> Value:
        """Merge several files, the later over the earlier; `within`: the files that include these."""
        merged = Value({}, Place(paths[0]))
        for path in paths:
            for document in self._formed(path, around, None):
                for included in self._included(document, around, (*within, path)):
                    merged = merge(merged, included) or merged
                services = document.map["services"].map if "services" in document.map else {}
                done = {name: self._extended(name, services, path, around, ()) for name in services}
                data = {key: value for key, value in document.map.items() if key != "include"}
                if "services" in data:
                    data["services"] = replace(data["services"], data=done)
                merged = merge(merged, replace(document, data=data)) or merged
        return merged

    def _included(self, document: Value, around: _Around, within: tuple[str, ...]) -> list[Value]:
        found = []
        for item in document.map["include"].items if "include" in document.map else ():
            path = item.map.get("path", item)
            paths = [each.text for each in (path.items or [path])]
            if set(item.map) - {"path"} or not all(paths) or any("://" in each for each in paths):
                what = "this include was not followed: only local files are, without other settings"
                self._notes.warn(item.place, what)
                continue
            paths = [os.path.normpath(os.path.join(around.directory, each)) for each in paths]
            if set(paths) & set(within):
                self._notes.mistake(item.place, f"{paths[0]} includes itself")
                continue
            self._includes += 1
            for each in paths:
                self._read(each, item.place)
            if self._includes > MAX_FILES:
                raise Unreadable(item.place, f"there are more than {MAX_FILES} includes")
            directory = os.path.dirname(paths[0])
            inner = _Around(directory, self._with_dotenv(directory, around.variables))
            found.append(self._files(paths, inner, within))
        return found

    def _extended(
        self, name: str, services: Mapping[str, Value], file: str, around: _Around, chain: tuple[tuple[str, str], ...]
    ) -> Value:
        """Return a service merged over all that it extends."""
        service = services[name]
        extends = service.map.get("extends")
        if extends is None or extends.tag or extends.data is None:
            return service
        own = replace(service, data={key: value for key, value in service.map.items() if key != "extends"})
        base = extends.map.get("service", extends).text
        if not base:
            what = "extends must name a service, like {service: base} or {file: common.yml, service: base}"
            self._notes.mistake(extends.place, what, name)
            return own
        if "file" in extends.map:
            file = os.path.normpath(os.path.join(around.directory, extends.map["file"].text))
            around = _Around(os.path.dirname(file), around.variables)
            merged: Value | None = None
            for document in self._formed(file, around, extends.place):
                merged = merge(merged, document)
            services = merged.map["services"].map if merged and "services" in merged.map else {}
        if base not in services:
            self._notes.mistake(extends.place, f'extends "{base}", which is not a service in {file}', name)
            return own
        if (file, base) in chain or len(chain) >= MAX_EXTENDS:
            self._notes.mistake(extends.place, f'extends "{base}", which extends this service in turn', name)
            return own
        beneath = self._extended(base, services, file, around, (*chain, (file, base)))
        self._spend(sum(1 + len(v.map) + len(v.items) for v in beneath.map.values()), extends.place)
        return merge(beneath, own) or own

    def _formed(self, path: str, around: _Around, named_at: Place | None) -> list[Value]:
        """Return a file's documents, with variables replaced, label files read, and their form checked."""

        def replaced(text: str, place: Place) -> str | None:
            found = expand(text, around.variables)
            for name in found.unset:
                self._notes.warn(place, f"variable {name} is not set; it is empty here")
            if found.mistake:
                self._notes.mistake(place, found.mistake)
            return None if found.mistake else found.text

        key = (path, around.directory, id(around.variables))
        if key not in self._documents:
            values = [self._walker.value(node, path, FILE, replaced) for node in self._read(path, named_at)]
            found = [self._with_label_files(formed(value, self._notes), around) for value in values if value]
            self._documents[key] = (around, found)
        return self._documents[key][1]

    def _with_label_files(self, document: Value, around: _Around) -> Value:
        services = document.map.get("services")
        if services is None or not any("label_file" in service.map for service in services.map.values()):
            return document
        out = {}
        for name, service in services.map.items():
            given = service.map.get("label_file", Value(None, service.place))
            labels: Value | None = None
            for each in given.items or [given]:
                if each.text:
                    path = os.path.normpath(os.path.join(around.directory, each.text))
                    pairs = dotenv(self._text(path, each.place), {})
                    self._spend(len(pairs), each.place)
                    found = {key: Value(text, Place(path, line)) for key, (text, line) in pairs.items()}
                    labels = merge(labels, Value(found, each.place))
            own = service.map.get("labels")
            together = merge(labels, own) if own and own.tag != "reset" else own or labels
            out[name] = replace(service, data={**service.map, **({"labels": together} if together else {})})
        return replace(document, data={**document.map, "services": replace(services, data=dict(out))})

    def _with_dotenv(self, directory: str, environ: Mapping[str, str]) -> Mapping[str, str]:
        """Return the environment over the variables of the directory's `.env`."""
        path = os.path.join(directory, ".env")
        try:
            text = self._fetch(path).decode(errors="surrogateescape")
        except FileNotFoundError:
            return environ
        except OSError as error:
            self._notes.warn(Place(path), f"was not read: {error.strerror or error}")
            return environ
        return {**{key: value for key, (value, _) in dotenv(text, environ).items()}, **environ}

    def _read(self, path: str, named_at: Place | None) -> list[yaml.Node]:
        if path not in self._nodes:
            if len(self._nodes) >= MAX_FILES:
                raise Unreadable(named_at or Place(path), f"there are more than {MAX_FILES} files")
            self._nodes[path] = documents(self._text(path, named_at), path)
        return self._nodes[path]

    def _spend(self, values: int, place: Place) -> None:
        """Count values; one that is merged several times counts as often."""
        self._left -= values
        if self._left < 0:
            raise Unreadable(place, f"there are more than {MAX_VALUES} values, with all that is extended")

    def _text(self, path: str, named_at: Place | None) -> str:
        """Read a file. `named_at`: the line that names it, to be reported if the file cannot be read."""
        try:
            data = self._fetch(path)
            return data.decode("utf-8-sig")
        except (OSError, ValueError) as error:
            if isinstance(error, UnicodeDecodeError):
                line = data.count(b"\n", 0, error.start) + 1
                raise Unreadable(Place(path, line), "is not UTF-8 text") from error
            why = (error.strerror if isinstance(error, OSError) else None) or str(error)
            whose = f"{path} cannot be read" if named_at else "cannot be read"
            raise Unreadable(named_at or Place(path), f"{whose}: {why}") from error
