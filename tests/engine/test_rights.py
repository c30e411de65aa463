"""Test the managed plugin, to which Docker gives more rights than it requests."""

from __future__ import annotations

import re

from plugin.kernel.capabilities import NEEDED
from tests.product import Fw


def test_the_plugin_keeps_three_of_dockers_capabilities(deep: Fw) -> None:
    """No process has other capabilities than those that SECURITY.md names, and no program that one starts gains any.

    Docker adds its default fourteen to the one that config.json lists.
    """
    kept = f"{sum(1 << number for number in NEEDED):016x}"
    pids = deep.pids()
    assert len(pids) >= 2
    for pid in pids:
        shown = deep.host.run(["cat", f"/proc/{pid}/status"]).stdout
        rights = dict(re.findall(r"^(\w+):\s+(\S+)", shown, re.MULTILINE))
        assert {rights[kind] for kind in ("CapPrm", "CapEff", "CapBnd")} == {kept}
        assert {rights[kind] for kind in ("CapInh", "CapAmb")} == {"0" * 16}
        assert rights["NoNewPrivs"] == "1"
