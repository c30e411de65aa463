"""What all probes found, kept between runs: so one set-up can be tried at a time, and all are judged in each run.

An expectation is not part of it. After a correction of one the same results are judged again (`--judge`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import NamedTuple

from tests.promises import site
from tests.promises.model import Seen, Setup
from tests.promises.world import Asked, Found, chosen

RESULTS = Path(__file__).resolve().parents[2] / "build/promises.json"


class Tried(NamedTuple):
    """What was found in one set-up, by Docker alone and with docker-fw."""

    without: Found
    ours: Found


def asked(setup: Setup) -> dict[tuple[str, str], Asked]:
    """Return the probes of a set-up by their promise's name and their text."""
    return {(each.name, probe.text): (each.name, probe) for each in chosen(setup) for probe in each.probes}


def fingerprint(setup: Setup) -> str:
    """Return a digest of what is tried in a set-up: results of other probes, containers or networks do not count."""
    promises = [
        (each.name, each.boxes, each.act, sorted(probe.text for probe in each.probes)) for each in chosen(setup)
    ]
    what = repr((promises, site.BOXES, site.NETWORKS, site.PROFILES[setup.profile]))
    return hashlib.sha256(what.encode()).hexdigest()[:12]


def load() -> dict[Setup, Tried]:
    """Return the results of earlier runs, without those of set-ups that have changed."""
    try:
        kept = json.loads(RESULTS.read_text())
    except FileNotFoundError:
        return {}
    there = {Setup(*key.split(" ")): each for key, each in kept.items()}
    return {
        setup: Tried(_found(setup, each["without"]), _found(setup, each["with"]))
        for setup, each in there.items()
        if each["fingerprint"] == fingerprint(setup)
    }


def _found(setup: Setup, lines: list[list[str]]) -> Found:
    by_text = asked(setup)
    return {by_text[promise, text]: Seen(*seen) for promise, text, *seen in lines}


def save(results: Mapping[Setup, Tried]) -> None:
    """Keep the results of all set-ups."""
    RESULTS.parent.mkdir(exist_ok=True)
    kept = {
        f"{setup.version} {setup.profile}": {
            "fingerprint": fingerprint(setup),
            "without": _lines(tried.without),
            "with": _lines(tried.ours),
        }
        for setup, tried in results.items()
    }
    RESULTS.write_text(json.dumps(kept, indent=1))


def _lines(found: Found) -> list[list[str]]:
    return [[promise, probe.text, *astuple(seen)] for (promise, probe), seen in found.items()]
