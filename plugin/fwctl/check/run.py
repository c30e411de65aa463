"""`fwctl check`: what compose files would open, and their mistakes. Needs no Docker."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TextIO

from plugin.fwctl.check import hints, places, show
from plugin.fwctl.check.compose.files import Fetch, Project, read, read_file
from plugin.fwctl.check.compose.model import Notes, Place, Unreadable
from plugin.fwctl.check.compose.stack import Stack, stack
from plugin.fwctl.check.judge import Judged, judge
from plugin.model import Defaults

#: Exit statuses, for CI.
RIGHT, MISTAKES, UNREADABLE = 0, 1, 2
#: A host without settings.
PLAIN = Defaults()


def run(
    paths: Sequence[str],
    environ: Mapping[str, str],
    as_json: bool,
    stream: TextIO,
    defaults: Defaults = PLAIN,
    fetch: Fetch = read_file,
) -> int:
    """Read the files as `docker compose -f A -f B` does, print the result, and return the exit status.

    `environ`: for `${VAR}`; the `.env` beside the first file is read too. `defaults`: from the host's settings.
    """
    notes = Notes()
    found: tuple[Stack, list[Judged]] | None = None
    status = RIGHT
    try:
        if not paths:
            raise Unreadable(Place("fwctl check"), "name the compose files: fwctl check compose.yml")
        found = _checked(read(paths, environ, notes, fetch), paths, defaults, notes)
    except Unreadable as error:
        notes.mistake(error.note.place, error.note.text)
        status = UNREADABLE
    if status == RIGHT and notes.mistakes:
        status = MISTAKES
    text = json.dumps(show.as_data(found, notes), indent=1) if as_json else show.as_text(paths, found, notes)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    return status


def _checked(project: Project, paths: Sequence[str], defaults: Defaults, notes: Notes) -> tuple[Stack, list[Judged]]:
    if not project.services and not notes.mistakes:
        notes.mistake(Place(paths[-1], 1), "it has no services; define them under services:")
    places.misplaced(project.services, project.networks, notes)
    found = stack(project.name, project.services, project.networks, notes)
    judged = judge(found, defaults, notes)
    places.without_effect(found, notes)
    hints.hints(found, judged, notes)
    return found, judged
