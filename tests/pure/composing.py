"""Compose files in memory, read and checked."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from textwrap import dedent
from typing import Any, NamedTuple

from plugin.fwctl.check import run as run_module
from plugin.fwctl.check.compose.files import Fetch, Project, read
from plugin.fwctl.check.compose.model import Notes, Value
from plugin.fwctl.check.run import run
from plugin.model import Defaults


class Checked(NamedTuple):
    """The output of `fwctl check`, as text and as data."""

    status: int
    text: str
    data: dict[str, Any]

    @property
    def mistakes(self) -> list[str]:
        return [_line(each) for each in self.data["mistakes"]]

    @property
    def warnings(self) -> list[str]:
        return [_line(each) for each in self.data["warnings"]]

    def on(self, service: str, network: str = "default") -> dict[str, Any]:
        """Return the data about a service on a network."""
        (found,) = (s for s in self.data["services"] if s["service"] == service)
        (there,) = (n for n in found["networks"] if n["network"] == network)
        return dict(there)

    def accepts(self, service: str, network: str = "default") -> list[str]:
        """Return the accepted ports, with their peers."""
        rules = self.on(service, network)["accepts"]
        return [" from ".join(filter(None, (rule["what"], " ".join(rule["peers"])))) for rule in rules]


def _line(note: Mapping[str, Any]) -> str:
    who = f"{note['service']}: " if note["service"] else ""
    return f"{note['file']}:{note['line']}: {who}{note['text']}"


def fetching(files: Mapping[str, str | bytes]) -> Fetch:
    def fetch(path: str) -> bytes:
        if path not in files:
            raise FileNotFoundError(2, "No such file or directory", path)
        text = files[path]
        return text if isinstance(text, bytes) else dedent(text).encode("utf-8", "surrogatepass")

    return fetch


def checked(
    files: str | Mapping[str, str | bytes],
    *paths: str,
    environ: Mapping[str, str] | None = None,
    defaults: Defaults = run_module.PLAIN,
) -> Checked:
    """Check the files (a single text is compose.yml) in both forms of output."""
    there = {"compose.yml": files} if isinstance(files, str) else files
    fetch, env, names = fetching(there), environ or {}, paths or tuple(there)[:1]
    people, programs = io.StringIO(), io.StringIO()
    status = run(names, env, False, people, defaults, fetch)
    assert run(names, env, True, programs, defaults, fetch) == status
    return Checked(status, people.getvalue(), json.loads(programs.getvalue()))


def project(
    files: str | Mapping[str, str | bytes], *paths: str, environ: Mapping[str, str] | None = None
) -> tuple[Project, Notes]:
    """Read the files as compose would."""
    there = {"compose.yml": files} if isinstance(files, str) else files
    notes = Notes()
    return read(paths or tuple(there)[:1], environ or {}, notes, fetching(there)), notes


def labels(value: Value) -> dict[str, str]:
    """Return a service's labels as the container gets them."""
    return {key: label.text for key, label in value.map["labels"].map.items()} if "labels" in value.map else {}
