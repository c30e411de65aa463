"""A kind of peer is one entry of `plugin.labels.peer_kinds`, and a hint for `fwctl check`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from plugin.labels.peer_kinds import NAMED, PeerKind
from tests.pure.registries import Entry, check, copied, run

ENTRY = Entry(
    "plugin/labels/peer_kinds.py",
    ")\nNAMED = {",
    """    PeerKind(
        kind="id",
        pattern=re.compile("[0-9a-f]{12}"),
        what="ID",
        of=lambda container: ("", container.id[:12]),
        meant=_anywhere,
        networks=False,
    ),
""",
)
HINT = Entry(
    "plugin/fwctl/check/hints.py", '    "project": _Hint(', '    "id": _Hint(lambda *_: "", lambda *_: False),\n'
)


def test_a_new_kind_of_peer_is_parsed_resolved_kept_and_shown(tmp_path: Path) -> None:
    """A kind of peer is known in every place with its entry and its hint."""
    check(copied(tmp_path, ENTRY, HINT), "tests/pure/registries/peer_kind_added.py")


def test_a_forgotten_hint_is_named(tmp_path: Path) -> None:
    """`fwctl check` does not start until it has a hint for a peer that matches no container."""
    done = run(copied(tmp_path, ENTRY), "-c", "import plugin.fwctl.check.hints")
    assert "the kinds of peers do not agree on id" in done.stderr


def test_an_undocumented_kind_fails_a_test(tmp_path: Path) -> None:
    """LABELS.md names each kind."""
    where = copied(tmp_path, ENTRY, HINT)
    done = run(where, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/pure/test_docs.py", "-k", "kind_of_peer")
    assert done.returncode == 1
    assert '"id:" name' in done.stdout


@pytest.mark.parametrize("part", [each.name for each in dataclasses.fields(PeerKind)])
def test_an_incomplete_entry_is_an_error(part: str) -> None:
    """An entry with a missing part is an error that names the part."""
    whole = {each.name: getattr(NAMED["container"], each.name) for each in dataclasses.fields(PeerKind)}
    with pytest.raises(TypeError, match=part):
        PeerKind(**{name: value for name, value in whole.items() if name != part})


@pytest.mark.parametrize("kind", ["Label", "fd", "a:b", ""])
def test_a_kind_that_hides_an_address_or_is_never_read_is_an_error(kind: str) -> None:
    """Kinds are read in lower case, and `fd:1::1` stays an address."""
    with pytest.raises(TypeError, match="cannot be a kind of peer"):
        dataclasses.replace(NAMED["container"], kind=kind)
