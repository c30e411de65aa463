"""Properties of a label key with only its entry, a field and a reader of the state: `test_labels` runs this."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugin.docker.container_labels import on_network, read
from plugin.fwctl.check.places import lookalike
from plugin.labels.keys import KEYS
from plugin.labels.parser import for_network, only_closing, over, parse
from plugin.model import Network, PolicySpec
from plugin.policy.saved import SavedState
from plugin.settings import read as settings
from plugin.state import codec
from plugin.state.store import Store
from tests import reference

LISTED = {"Id": "c" * 64, "Names": ["/web"], "NetworkSettings": {"Networks": {"front": {}}}}


def test_it_is_read_in_every_place() -> None:
    """The label's value becomes its field: for a container, for one of its networks, for the setting that it names."""
    assert parse({"FW.Note": "one"}).spec.note == "one"  # type: ignore[attr-defined]
    parsed = parse({"fw.note": "all", "fw.network.front.note": "front"})
    assert for_network(parsed, {"front"}).note == "front"  # type: ignore[attr-defined]
    assert for_network(parsed, {"back"}).note == "all"  # type: ignore[attr-defined]
    assert settings({"FW_NOTE": "host"}).defaults.spec.note == "host"  # type: ignore[attr-defined]


def test_places_are_merged_by_its_rule() -> None:
    """The most specific place takes precedence."""
    one, other = parse({"fw.note": "one"}).spec, parse({"fw.note": "other", "fw.allow": "8080"}).spec
    assert over(one, other).note == "other"  # type: ignore[attr-defined]
    assert over(other, one).note == "one"  # type: ignore[attr-defined]
    assert over(other, one).allow == other.allow
    assert over(one, PolicySpec()) == one


def test_a_mistake_in_it_does_what_its_entry_says() -> None:
    """A wrong value opens nothing and closes nothing; a right value remains if another label is wrong."""
    (problem,) = parse({"fw.note": ""}).problems
    assert (problem.closes, problem.confines) == (False, False)
    parsed = parse({"fw.note": "kept", "fw.allow": "wrong"})
    assert parsed.spec == PolicySpec(note="kept")  # type: ignore[call-arg]
    (problem,) = parse({"fw.note": 7}).problems
    assert "must be text" in problem.text
    (problem,) = parse({"fw.nite": "x"}).problems
    assert "did you mean fw.note?" in problem.text


def test_an_images_value_does_not_apply() -> None:
    """An image's value applies neither as the user's value nor as a default, and that is reported."""
    labels = {"fw.note": "of the image"}
    assert not only_closing(labels)
    container = on_network(read({**LISTED, "Labels": labels}, labels), "front")
    assert container.spec == container.image_spec == PolicySpec()
    assert not container.problems
    assert "comes from the image and is ignored" in container.notices[0]


def test_it_closes_nothing_where_it_does_not_apply() -> None:
    """The label has no effect, and causes no mistake that closes, for unknown images and for networks that the
    container is not on."""
    labels = {"fw.note": "whose?"}
    (problem,) = on_network(read({**LISTED, "Labels": labels}, {}, unknown="the image is gone"), "front").problems
    assert (problem.closes, problem.confines) == (False, False)
    container = on_network(read({**LISTED, "Labels": {"fw.network.nowhere.note": "x"}}, {}), "front")
    assert not container.problems
    assert "has no effect" in container.notices[0]


def test_it_is_kept_over_restarts(tmp_path: Path) -> None:
    """The label is written to the state file, and read back."""
    file = str(tmp_path / "state.json")
    network = Network("n" * 64, "fw-one", spec=parse({"fw.note": "kept"}).spec)
    Store(file).save(SavedState({network.id: network}))
    assert Store(file).load().networks[network.id] == network


def test_the_state_of_an_earlier_release_is_read() -> None:
    """A state file from before the key existed leaves it unset; one that lacks an older key is refused."""
    file: dict[str, object] = {"allow": [], "deny": [], "policy": "", "egress": None, "rate": None, "log": ""}
    assert codec.one(file) == PolicySpec()
    assert codec.one({**file, "note": "kept"}) == PolicySpec(note="kept")  # type: ignore[call-arg]
    del file["deny"]
    with pytest.raises((KeyError, ValueError), match="deny"):
        codec.one(file)


def test_it_is_documented() -> None:
    """LABELS.md is wrong without its row, and `python -m tests.reference` writes it."""
    text = reference.FILE.read_text()
    assert "| `fw.note` | a note | text | – | `front desk` |" in reference.written(text)
    assert reference.written(text) != text


def test_a_mistyped_key_in_a_compose_file_is_reported() -> None:
    """`fwctl check` suggests the label's key."""
    assert lookalike("fw-note") == "fw.note"
    assert "fw.note" in KEYS
