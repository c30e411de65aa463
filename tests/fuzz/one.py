"""Run one parser under atheris: `python -m tests.fuzz.one PARSER` and libFuzzer's own options."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["plugin"]):
    from tests.fuzz.targets import TARGETS

atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]])
atheris.Fuzz()
