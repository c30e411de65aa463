"""The documentation agrees with the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

from plugin.labels.keys import KEYS
from plugin.labels.parser import parse
from plugin.labels.peer_kinds import NAMED
from plugin.nftables.sets import SETS
from plugin.protocols import PORTLESS, WITH_PORTS
from plugin.settings import SETTINGS, read
from tests import reference

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """Return the table under a heading of the README, without its head."""
    section = README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_label_is_documented_and_its_example_is_right() -> None:
    """The README has one row for each label key, with an example that parses."""
    table = {row[0]: row for row in rows("Labels")}
    assert set(table) == {*KEYS, "fw.network.NAME.KEY"}
    for key in KEYS:
        assert not parse({key: table[key][1]}).problems


def test_the_reference_of_labels_equals_the_code() -> None:
    """LABELS.md has the code's own table of keys, and its "labels → rules" are the rules that the code makes of them.

    `python -m tests.reference` rewrites both.
    """
    text = reference.FILE.read_text()
    assert text == reference.written(text)


def test_the_grammar_names_every_protocol() -> None:
    """LABELS.md lists exactly the protocols of the registry."""
    first, *others = WITH_PORTS
    line = f"; proto: {first} (default), {', '.join(others)}; portless: {', '.join(PORTLESS)}\n"
    assert line in reference.FILE.read_text()


def test_the_grammar_names_every_kind_of_peer() -> None:
    """LABELS.md lists exactly the kinds of the registry."""
    kinds = " / ".join(f'"{kind}:" name' for kind in NAMED)
    assert f'peer   = address / prefix / {kinds} / "host" / "any"\n' in reference.FILE.read_text()


def test_every_setting_is_documented_with_its_default() -> None:
    """The README has one row for each setting, with its meaning and default, and no other row."""
    table = {row[0]: row[1:] for row in rows("Settings")}
    assert table == {name: [setting.default, setting.meaning] for name, setting in SETTINGS.items()}
    assert read({}).mark == 0x08000000


def test_every_setting_is_offered_by_docker_plugin_set() -> None:
    """config.json has one entry for each setting that `docker plugin set` offers, and no other; the plugin starts with
    the default that the README names."""
    env = json.loads((ROOT / "config.json").read_text())["env"]
    offered = [entry for entry in env if entry["name"].startswith("FW_")]
    wanted = {
        name: {"name": name, "description": each.meaning, "value": each.default, "settable": ["value"]}
        for name, each in SETTINGS.items()
        if each.plugin
    }
    assert {entry["name"]: entry for entry in offered} == wanted
    assert len(offered) == len(wanted)
    assert not [entry for entry in env if entry.get("settable") and entry not in offered]


def test_every_make_target_of_the_readme_exists() -> None:
    """`make WORD` in the README works."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", README, re.MULTILINE))
    assert {first or second for first, second in named} <= targets


def test_files_of_the_readme_exist() -> None:
    """Links in the README lead to existing files."""
    for name in re.findall(r"\]\(([^)]+)\)", README):
        if name.startswith("#"):
            headings = re.findall(r"^## (.*)$", README, re.MULTILINE)
            assert name[1:] in {heading.lower().replace(" ", "-") for heading in headings}
        else:
            assert (ROOT / name).exists(), name


def test_sets_that_users_list_are_there() -> None:
    """`nft list set inet docker-fw NAME` and "the set `NAME`" in the users' documents name sets of the table."""
    for name in ("README.md", "LABELS.md", "SECURITY.md", "CHANGELOG.md"):
        text = (ROOT / name).read_text()
        named = re.findall(r"nft list set inet docker-fw (\w+)|\bthe set `(\w+)`", text)
        assert {first or second for first, second in named} <= set(SETS), name
    assert "nft list set inet docker-fw lease" in README


def test_the_version_is_one() -> None:
    """pyproject.toml, the package and the README have the same version."""
    from plugin import __version__

    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert set(re.findall(r"docker-fw:(\d[\d.]*)", README)) == {__version__}
