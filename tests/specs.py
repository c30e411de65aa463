"""Build policies from labels."""

from __future__ import annotations

from plugin.labels.parser import parse
from plugin.model import PolicySpec


def spec_of(**labels: str) -> PolicySpec:
    """Return the policy of these labels (`allow="8080"` is `fw.allow=8080`). Raises AssertionError if one is wrong."""
    parsed = parse({f"fw.{key}": value for key, value in labels.items()})
    assert not parsed.problems
    return parsed.spec
