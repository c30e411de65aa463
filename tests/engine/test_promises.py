"""What Docker promises about its networks holds beside docker-fw too, if its policy is open.

`make referee-docker` tries all promises on all engines, without docker-fw and with it; here are those that are quick.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.product import Fw
from tests.promises.judge import documented, unlike
from tests.promises.model import Setup
from tests.promises.registry import PROMISES
from tests.promises.world import SETTINGS, World, run
from tests.waiting import until

#: Those of the most used options; the first three have the most probes, and one container restarts.
QUICK = (
    "published from another machine",
    "published from the host",
    "published from another network",
    "published from itself",
    "loopback",
    "IPv6 for a container with IPv4 alone",
    "direct, nat",
    "direct, routed",
    "neighbours",
    "networks are isolated",
    "an isolated network",
    "no inter-container communication",
    "outbound",
    "a container restarts",
)


@contextmanager
def policy_open(fw: Fw) -> Iterator[None]:
    """Change docker-fw's settings to those with which it changes nothing, and back."""
    names = [setting.partition("=")[0] for setting in SETTINGS]
    before = [f"FW_PUBLISHED={'policy'}" if name == "FW_PUBLISHED" else f"{name}=" for name in names]
    configure(fw, SETTINGS)
    try:
        yield
    finally:
        configure(fw, before)


def configure(fw: Fw, settings: tuple[str, ...] | list[str]) -> None:
    fw.engine.docker("plugin", "disable", "-f", fw.driver)
    fw.engine.docker("plugin", "set", fw.driver, *settings)
    fw.engine.docker("plugin", "enable", fw.driver)
    until(fw.answers, "docker-fw answers", 30)


def test_an_open_policy_changes_nothing_that_docker_promises(fw: Fw) -> None:
    """With FW_POLICY=open and FW_PUBLISHED=allow all is as Docker promises, except for the documented differences."""
    setup = Setup(fw.engine.version, "default")
    promises = [promise for promise in PROMISES if promise.name in QUICK]
    assert len(promises) == len(QUICK)
    tried, problems = 0, []
    with policy_open(fw), World(fw.engine, setup, promises, fw) as world:
        found = run(world)
    for promise in promises:
        for probe in promise.probes:
            if (promise.name, probe) not in found:
                continue  # of an address family that the container does not have
            seen = found[promise.name, probe]
            known = documented(setup, promise, probe)
            if known and seen.verdict != known.ours:
                problems.append(f"{promise.name}: {probe.text}: {seen}, not {known.ours} as documented")
            elif not known:
                problems += [f"{promise.name}: {probe.text}: {each}" for each in unlike(setup, promise, probe, seen)]
            tried += 1
    assert not problems
    assert tried > 100
