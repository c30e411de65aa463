"""Test the plugin with attack tools and scanners of Debian: a part of what `make referee-scanners` runs."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import pytest

from tests.referees.scanners.referee import run
from tests.referees.scanners.registry import CASES, PROGRAMS

MISSING = [package for package, program in PROGRAMS.items() if not shutil.which(program)]


def test_scanners_reach_no_more_than_fwctl_status_lists() -> None:
    """Only packets to open ports arrive at a container, whatever thc-ipv6, ipv6toolkit and nmap send.

    A hostile neighbour on a docker-fw network changes neither the routes, addresses and neighbours of a container nor
    those of the host.
    """
    if MISSING and not os.environ.get("CI"):
        pytest.skip(f"not installed: {', '.join(MISSING)}; `make test` installs them")
    assert not MISSING, f"CI must run the scanners: {MISSING} not installed"
    quick = [case for case in CASES if case.quick]
    # Half of them on each kind of network.
    halves = [replace(case, kinds=(case.kinds[at % len(case.kinds)],)) for at, case in enumerate(quick)]
    results = list(run(halves, lanes=8))
    assert not [str(result) for result in results if result.problems]
    assert {result.case.tool for result in results} >= {"firewall6", "fake_router26", "parasite6", "ra6", "nmap"}
