"""Measure for how long an open port of a docker-fw network is closed after another program's `iptables -F`."""

from __future__ import annotations

import time

from tests.bench.bed import LABEL, Bed
from tests.bench.rows import FAMILIES
from tests.bench.table import Table, median, say
from tests.waiting import until

_NETWORK, _NAME, _PORT = "flush", "flush", 8080
#: Seconds between two connections of the outsider, and for which it waits for an answer.
_EVERY, _PATIENCE = 0.005, 0.1
#: Seconds after which it counts as still closed; of connections before a flush, and after it.
_LONGEST, _BEFORE, _SETTLED = 30.0, 0.2, 1.0


def measure(bed: Bed, table: Table) -> None:
    engine = bed.engine
    say("flush: another program flushes iptables…")
    bed.network(bed.fw.driver, _NETWORK)
    engine.docker(
        "run", "-d", "--name", _NAME, "--network", _NETWORK, "--label", f"fw.allow={LABEL}", "busybox", "sleep", "inf"
    )
    addresses = dict(zip((4, 6), engine.address(_NAME, _NETWORK), strict=True))
    with engine.serve(_NAME, tcp=[_PORT]):
        for family in FAMILIES:
            one = _gaps(bed, family, addresses[family], "DOCKER-USER")
            table.detail("flush", f"median, of the chain DOCKER-USER alone, {FAMILIES[family]}", median(one), "s")
        for family in FAMILIES:
            gaps = _gaps(bed, family, addresses[family])
            table.put(f"flush {family}", median(gaps))
            table.detail("flush", f"longest, {FAMILIES[family]}", max(gaps), "s")
    engine.docker("rm", "-f", _NAME)
    engine.docker("network", "rm", _NETWORK)


def _gaps(bed: Bed, family: int, address: str, *chain: str) -> list[float]:
    gaps: list[float] = []
    while len(gaps) < bed.scale.flushes and _LONGEST not in gaps:  # else it stays closed
        gaps.append(_gap(bed, family, address, *chain))
    return gaps


def _gap(bed: Bed, family: int, address: str, *chain: str) -> float:
    """Flush once; return the seconds for which no new connection was answered, at most `_LONGEST`."""
    wan, tool = bed.engine.wan, "iptables" if family == 4 else "ip6tables"

    def answered() -> bool:
        return wan.probe.tcp(address, _PORT, timeout=_PATIENCE) == "open"

    until(answered, f"{address} answers")
    with wan.probe.hammer(("tcp", address, _PORT), every=_EVERY, timeout=_PATIENCE) as hammer:
        time.sleep(_BEFORE)
        bed.engine.host.run([tool, "-F", *chain])
        time.sleep(_PATIENCE)
        try:
            until(answered, f"{address} answers again", _LONGEST)
        except AssertionError:
            return _LONGEST
        time.sleep(_SETTLED)
    return hammer.result.longest_gap
