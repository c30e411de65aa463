"""A label key is one entry of `plugin.labels.keys`; any other missing part is named until it exists."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from plugin.labels.keys import KEYS, Key
from tests.pure.registries import Entry, check, copied, run

ENTRY = Entry(
    "plugin/labels/keys.py",
    ")\nKEYS = {",
    """    Key(
        name="fw.note",
        field="note",
        meaning="a note",
        values="text",
        default="–",
        example="front desk",
        setting="FW_NOTE",
        read=lambda text, _: (PolicySpec(note=text), [] if text else ["is empty"]),
        specific="replaces",
        twice=max,
        closes=False,
        confines=False,
        harmless=_unchanged,
        may_close=_never,
        only_opens=_always,
        counts=_never,
        closes_elsewhere=False,
        opens=False,
    ),
""",
)
FIELD = Entry(
    "plugin/model.py",
    '    log: str = ""\n\n\n@dataclass(frozen=True, slots=True)\nclass Network',
    '    note: str = ""\n',
)
STATE = Entry("plugin/state/codec.py", '    "log": _one_of(*LOGS),\n', '    "note": text,\n')
SETTING = Entry("plugin/settings.py", '    _label("FW_LOG",', '    _label("FW_NOTE", "", "a note", key="fw.note"),\n')


def test_a_new_label_is_known_everywhere(tmp_path: Path) -> None:
    """A key is known in every place with its entry, its field and its reader."""
    check(copied(tmp_path, ENTRY, FIELD, STATE, SETTING), "tests/pure/registries/label_added.py")


@pytest.mark.parametrize(
    ("there", "module", "missing"),
    [
        ((ENTRY,), "labels.keys", "fw.note sets PolicySpec.note, which plugin.model does not have"),
        ((FIELD,), "labels.keys", "no label key sets PolicySpec.note"),
        ((ENTRY, FIELD), "settings", "fw.note names the setting FW_NOTE, which is not one for it"),
        ((ENTRY, FIELD, SETTING), "state.codec", "do not agree on note"),
    ],
)
def test_a_missing_part_of_a_new_label_is_named(
    tmp_path: Path, there: tuple[Entry, ...], module: str, missing: str
) -> None:
    """A missing part stops the program with its name, before any packet is judged without it."""
    done = run(copied(tmp_path, *there), "-c", f"import plugin.{module}")
    assert done.returncode
    assert missing in done.stderr


def test_an_incomplete_entry_is_an_error() -> None:
    """An entry without its merge rule, or without the effect of a mistake, is an error that names the part."""
    whole = {each.name: getattr(KEYS["fw.log"], each.name) for each in dataclasses.fields(Key)}
    for part in whole.keys() - {"several"}:
        with pytest.raises(TypeError, match=part):
            Key(**{name: value for name, value in whole.items() if name != part})
