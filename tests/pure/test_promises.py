"""The registry of Docker's promises is complete, and its judge lets no difference pass."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.lab import ENGINES
from tests.promises import report, results
from tests.promises.differences import DIFFERENCES, REASONS, UNTRIED
from tests.promises.judge import judge, unlike
from tests.promises.model import VERDICTS, Probe, Promise, Seen, Setup, probes, to
from tests.promises.registry import PROMISES
from tests.promises.site import BOXES, LOOPBACKS, NETWORKS, PROFILES
from tests.promises.world import ACTS

SETUPS = [Setup(version, profile) for version in ENGINES for profile in PROFILES]
NEWEST = Setup("28.5.2", "default")
ONE = Promise("one", "It answers.", "moby: none", ("web",), probes("remote", to("tcp host:8080", family=4)))
OPEN, SILENT = Seen("open", "web", "client"), Seen("silent")


def found(promise: Promise, *seen: Seen) -> dict[tuple[str, Probe], Seen]:
    return {(promise.name, probe): each for probe, each in zip(promise.probes, seen, strict=True)}


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.name)
def test_a_promise_is_complete(promise: Promise) -> None:
    """It says what holds and where this is from, and its probes name boxes, places and verdicts that there are."""
    assert [each.name for each in PROMISES].count(promise.name) == 1
    assert promise.says.endswith((".", ")"))
    assert re.match(r"moby: integration/|docs\.docker\.com: ", promise.origin)
    assert set(promise.profiles) <= set(PROFILES)
    assert promise.act in ACTS
    assert set(promise.boxes) <= set(BOXES)
    assert len({probe.text for probe in promise.probes}) == len(promise.probes), "no probe is there twice"
    for probe in promise.probes:
        kind, _, name = probe.place.partition("/")
        assert probe.source in {*BOXES, "host", "remote"}
        assert kind in {*BOXES, *LOOPBACKS, "host", "remote", "second", "gw"}
        assert not name or name in NETWORKS
        assert {probe.expected, *probe.but.values()} <= set(VERDICTS)
        for setup in filter(promise.applies, SETUPS):
            setup.choose(probe.expected, probe.but)  # raises where two expectations are equally good
    assert any(promise.applies(setup) for setup in SETUPS), "an engine of the lab has it"


def test_every_difference_is_one_of_a_probe_that_there_is() -> None:
    """A documented difference names a promise, a probe and a reason; none of the three may be out of date."""
    there = {(promise.name, probe.text) for promise in PROMISES for probe in promise.probes}
    for each in DIFFERENCES:
        assert (each.promise, each.probe) in there
        assert each.docker != each.ours
    assert {each.reason for each in DIFFERENCES} == set(REASONS)


def test_the_document_has_the_registry() -> None:
    """docs/docker-promises.md, which `make referee-docker` writes, has every promise, reason and untried case."""
    text = report.DOCUMENT.read_text()
    assert report.promises_in(text) == [promise.name for promise in PROMISES]
    for words in (*REASONS.values(), *UNTRIED.values()):
        assert words in text
    assert "wrong**" not in text, "the last run found an undocumented difference"


def test_what_docker_fw_changes_is_wrong() -> None:
    """A verdict, the server that answers, or the address that it sees may not change without a documented reason."""
    assert judge(NEWEST, [ONE], found(ONE, OPEN), found(ONE, OPEN))[0].same == 1
    for changed in (SILENT, Seen("hollow"), Seen("open", "mate", "client"), Seen("open", "web", "host")):
        (row,) = judge(NEWEST, [ONE], found(ONE, OPEN), found(ONE, changed))
        assert row.same == 0
        assert row.wrong == (f"remote → tcp4 host:8080: {OPEN} without docker-fw, {changed} with it",)


def test_what_docker_itself_does_not_do_is_wrong() -> None:
    """A promise that Docker does not keep in the lab proves nothing: the row is wrong, though nothing changed."""
    for seen in (SILENT, Seen("open", "mate", "client")):
        (row,) = judge(NEWEST, [ONE], found(ONE, seen), found(ONE, seen))
        assert row.wrong
    assert unlike(NEWEST, ONE, ONE.probes[0], OPEN) == []


def test_a_probe_that_was_not_sent_is_wrong() -> None:
    """A promise without probes, or with one that was sent on one side only, does not count as kept."""
    assert judge(NEWEST, [ONE], {}, {})[0].wrong
    assert judge(NEWEST, [ONE], found(ONE, OPEN), {})[0].wrong
    assert judge(NEWEST, [ONE], {}, found(ONE, OPEN))[0].wrong


def test_results_are_kept_for_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier run's results count, with expectations of today; not if other probes are sent today."""
    monkeypatch.setattr(results, "RESULTS", tmp_path / "build" / "promises.json")
    assert results.load() == {}
    key = ("published from another machine", next(iter(PROMISES[0].probes)))
    tried = {NEWEST: results.Tried({key: OPEN}, {key: SILENT})}
    results.save(tried)
    assert results.load() == tried
    monkeypatch.setattr(results, "chosen", lambda setup: list(PROMISES[1:2]))
    assert results.load() == {}


def test_a_documented_difference_must_be_seen_as_documented() -> None:
    """If docker-fw no longer differs there, or differs otherwise, the row is wrong."""
    (promise,) = (each for each in PROMISES if each.name == "direct, nat for IPv4 and routed for IPv6")
    (probe,) = (each for each in promise.probes if each.text == "remote → tcp6 mixed:81")
    only = Promise("direct, nat for IPv4 and routed for IPv6", promise.says, promise.origin, promise.boxes, (probe,))
    opened = Seen("open", "mixed", "client")
    assert not judge(NEWEST, [only], found(only, SILENT), found(only, opened))[0].wrong
    assert judge(NEWEST, [only], found(only, SILENT), found(only, SILENT))[0].wrong
    assert judge(NEWEST, [only], found(only, opened), found(only, opened))[0].wrong


def test_the_most_particular_expectation_applies() -> None:
    """Of several conditions that fit, the one with most words counts; two equally good ones are an error."""
    but = {"<27": "open", "<27 no-proxy": "refused", ">=28": "hollow"}
    assert Setup("26.1.5", "default").choose("silent", but) == "open"
    assert Setup("26.1.5", "no-proxy").choose("silent", but) == "refused"
    assert Setup("28.5.2", "default").choose("silent", but) == "hollow"
    with pytest.raises(ValueError, match="which applies"):
        Setup("26.1.5", "default").choose("silent", {"<27": "open", "default": "refused"})
