"""A setting is one entry of `plugin.settings`; its field and its documentation are required."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugin.settings import SETTINGS, Setting
from tests.pure.registries import Entry, check, copied, run

ENTRY = Entry(
    "plugin/settings.py",
    '    Setting(\n        name="FW_LOG_LEVEL",\n',
    '    Setting(name="FW_SHOUT", default="no", meaning="loud or not", '
    'read=_is("yes", of=("no", "yes")), table=False, field="shout"),\n',
)
FIELD = Entry("plugin/settings.py", "    log_level: str\n", "    shout: bool\n")
README = Entry("README.md", "| `FW_LOG_LEVEL` |", "| `FW_SHOUT` | `no` | loud or not |\n")
CONFIG = Entry(
    "config.json",
    '    {"name": "FW_LOG_LEVEL"',
    '    {"name": "FW_SHOUT", "description": "loud or not", "value": "no", "settable": ["value"]},\n',
)
DOCUMENTED = ("tests/pure/test_docs.py", "-k", "every_setting")


def test_a_new_setting_is_read(tmp_path: Path) -> None:
    """A setting with its entry and its field has its default and its values, and a wrong value stops the start."""
    where = copied(tmp_path, ENTRY, FIELD, README, CONFIG)
    script = """
from plugin.settings import read
assert read({}).shout is read({"FW_SHOUT": " "}).shout is False
assert read({"FW_SHOUT": "Yes"}).shout is True
read({"FW_SHOUT": "loud"})
"""
    assert 'FwError: FW_SHOUT="loud": must be no or yes' in run(where, "-c", script).stderr
    check(where, *DOCUMENTED)


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        ((ENTRY,), "FW_SHOUT gives Settings.shout, which does not exist"),
        ((FIELD,), "no setting gives Settings.shout"),
    ],
)
def test_a_missing_part_of_a_new_setting_is_named(tmp_path: Path, there: tuple[Entry, ...], missing: str) -> None:
    """A missing part stops the program with its name."""
    assert missing in run(copied(tmp_path, *there), "-c", "import plugin.settings").stderr


@pytest.mark.parametrize("there", [(README,), (CONFIG,), ()], ids=["README", "config.json", "neither"])
def test_an_undocumented_setting_fails_a_test(tmp_path: Path, there: tuple[Entry, ...]) -> None:
    """The README's table and config.json both need it."""
    done = run(copied(tmp_path, ENTRY, FIELD, *there), "-m", "pytest", "-q", "-p", "no:cacheprovider", *DOCUMENTED)
    assert done.returncode == 1
    assert "FW_SHOUT" in done.stdout


@pytest.mark.parametrize(("entry"), [README, CONFIG], ids=["README", "config.json"])
def test_a_documented_setting_that_does_not_exist_fails_a_test(tmp_path: Path, entry: Entry) -> None:
    """Neither contains a setting that the program does not read."""
    done = run(copied(tmp_path, entry), "-m", "pytest", "-q", "-p", "no:cacheprovider", *DOCUMENTED)
    assert done.returncode == 1
    assert "FW_SHOUT" in done.stdout


def test_an_incomplete_entry_is_an_error() -> None:
    """A setting without a reader or a meaning is an error that names the part."""
    whole = {"name": "FW_X", "default": "", "meaning": "x", "read": SETTINGS["FW_MARK"].read, "table": True}
    for part in ("name", "default", "meaning", "read", "table"):
        with pytest.raises(TypeError, match=part):
            Setting(**{name: value for name, value in whole.items() if name != part})  # type: ignore[arg-type]
