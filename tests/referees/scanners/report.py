"""Write docs/scanners.md: each case, its expectation, and what a run has seen."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Collection, Iterable
from pathlib import Path

from .case import KINDS, Case, Kind
from .referee import Result
from .registry import CASES, NOT_APPLICABLE, PROGRAMS

DOCUMENT = Path(__file__).parents[3] / "docs/scanners.md"
INTRODUCTION = """\
# Scanners and attack tools against docker-fw

`make referee-scanners` writes this page. It runs tools that this project did not write, from Debian's packages, against
the plugin in network namespaces: thc-ipv6, ipv6toolkit and nmap. The attacked container has `fw.allow: "8080,
5353/udp"`, and its servers also listen on the closed ports 9090/tcp and 9053/udp. The result is not taken from what a
tool prints. It is what arrives at the container's link before any rule of the container, with fragments reassembled by
the test itself:

- "tcp 8080": a segment or datagram to this port. "icmpv6 128": a message of this type.
- "part of …": a fragment of such a packet, without the others. The container's kernel discards it.

From outside, only ICMP that the policy accepts may arrive, and packets to ports that `fwctl status` lists as open. Both
kinds of networks are tested; a row for "both" means equal results. The last rows of some tools are attacks of a hostile
container on its neighbour: it has every capability over its own network. On docker-fw networks these attacks do not
leave the container. Docker networks are as Docker makes them
([SECURITY.md](../SECURITY.md#between-containers-of-one-network)); there the rows show what an attack achieves.
"""


def write(results: Collection[Result]) -> None:
    """Write the page from a run of all cases. Raises ValueError if one is missing."""
    by_run = {(result.case, result.kind): result for result in results}
    missing = [case.title for case in CASES for kind in case.kinds if (case, kind) not in by_run]
    if missing:
        raise ValueError(f"a page is written from all cases; not run: {missing[:5]}")
    parts = [INTRODUCTION, _summary(results)]
    for tool in dict.fromkeys(case.tool for case in CASES):
        cases = [case for case in CASES if case.tool == tool]
        lines = [line for case in cases for line in _rows(case, by_run)]
        parts.append(f"## {tool}\n\n{HEAD}\n" + "\n".join(lines) + "\n")
    skipped = [f"| {each.tool} | {each.name} | {each.reason} |" for each in NOT_APPLICABLE]
    parts.append("## Not applicable\n\n| tool | case | reason |\n|---|---|---|\n" + "\n".join(skipped) + "\n")
    DOCUMENT.write_text("\n".join(parts))


HEAD = "| case | target's network | may arrive | may change | seen | remark |\n|---|---|---|---|---|---|"


def _rows(case: Case, by_run: dict[tuple[Case, Kind], Result]) -> list[str]:
    """Return one row for a case, or one for each kind of network if they differ."""
    ran = {kind: by_run[case, kind] for kind in case.kinds}
    alike = len({_seen(result) for result in ran.values()}) == 1
    shown = {" and ".join(ran): next(iter(ran.values()))} if alike else ran
    return [
        f"| {case.name} | {'both' if kinds == ' and '.join(KINDS) else kinds} | {_words(case.arrives)}"
        f" | {_words(case.changes)} | {_seen(result)} | {case.note} |"
        for kinds, result in shown.items()
    ]


def _seen(result: Result) -> str:
    return "; ".join(result.problems) or "as expected"


def _words(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def _summary(results: Collection[Result]) -> str:
    """Return the number of runs, and the kernel's and the packages' versions."""
    asked = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${source:Upstream-Version}\n", *PROGRAMS],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    kernel = ".".join(platform.release().split("-")[0].split(".")[:2])
    versions = ", ".join(asked.stdout.split("\n")[:-1])
    wrong = sum(bool(result.problems) for result in results)
    return f"{len(results)} runs, {wrong} not as expected, with Linux {kernel}, {versions}.\n"
