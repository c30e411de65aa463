"""Judge what the probes found: against what Docker promises, and with docker-fw against without it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.promises.differences import DIFFERENCES
from tests.promises.model import Difference, Probe, Promise, Seen, Setup
from tests.promises.site import BOXES, HOST_PORT, REMOTE_PORT


@dataclass(frozen=True)
class Row:
    """One promise in one set-up: how many probes found the same, which differ by a known reason, and what is wrong."""

    promise: str
    same: int = 0
    #: For each documented difference: its reason's word, the probe, and both verdicts.
    differ: tuple[tuple[str, str, str, str], ...] = ()
    wrong: tuple[str, ...] = field(default=())


def judge(
    setup: Setup,
    promises: Sequence[Promise],
    without: Mapping[tuple[str, Probe], Seen],
    ours: Mapping[tuple[str, Probe], Seen],
) -> list[Row]:
    """Return a row for each promise. The keys of the mappings are a promise's name and a probe."""
    return [_row(setup, promise, without, ours) for promise in promises]


def _row(
    setup: Setup,
    promise: Promise,
    without: Mapping[tuple[str, Probe], Seen],
    ours: Mapping[tuple[str, Probe], Seen],
) -> Row:
    same, differ, wrong = 0, [], []
    for probe in promise.probes:
        key = promise.name, probe
        if key not in without and key not in ours:
            continue  # a box or an address family that this version does not have
        if key not in without or key not in ours:
            wrong.append(f"{probe.text}: tried only {'without' if key in without else 'with'} docker-fw")
            continue
        docker, now = without[key], ours[key]
        wrong += [f"{probe.text}: Docker itself: {problem}" for problem in unlike(setup, promise, probe, docker)]
        known = documented(setup, promise, probe)
        if known:
            if (docker.verdict, now.verdict) != (known.docker, known.ours):
                wrong.append(f"{probe.text}: {docker} → {now}, not {known.docker} → {known.ours} as documented")
            differ.append((known.reason, probe.text, docker.verdict, now.verdict))
        elif docker != now:
            wrong.append(f"{probe.text}: {docker} without docker-fw, {now} with it")
        else:
            same += 1
    if not same and not differ and not wrong:
        wrong.append("no probe was sent")
    return Row(promise.name, same, tuple(differ), tuple(wrong))


def documented(setup: Setup, promise: Promise, probe: Probe) -> Difference | None:
    return next((each for each in DIFFERENCES if each.applies(promise, probe, setup)), None)


def unlike(setup: Setup, promise: Promise, probe: Probe, seen: Seen) -> list[str]:
    """Return how a probe's result is not what Docker promises: the verdict, who answers, and whom the server saw."""
    expected = setup.choose(probe.expected, probe.but)
    if seen.verdict != expected:
        return [f"{seen}, not {expected}"]
    problems = []
    if seen.server and seen.server not in servers(promise, probe):
        problems.append(f"answered by {seen.server}, not by {' or '.join(servers(promise, probe))}")
    if seen.peer and probe.peer and seen.peer != probe.peer:
        problems.append(f"the server saw {seen.peer}, not {probe.peer}")
    return problems


def servers(promise: Promise, probe: Probe) -> tuple[str, ...]:
    """Return who may answer: a program of the host or of the other machine, the first box, or the one addressed."""
    if probe.port in (HOST_PORT, REMOTE_PORT):
        return ("host" if probe.port == HOST_PORT else "remote",)
    name = probe.place.partition("/")[0]
    return tuple(dict.fromkeys((promise.boxes[0], *([name] if name in BOXES else []))))
