"""How much of everything a run measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """The size of each measurement. The large crowds are as the rows name them in a full run, and smaller in others."""

    name: str
    #: pairs of `docker run` for each variant, and of `docker compose up`
    runs: int
    compositions: int
    #: containers to add and remove on a protected network: of a hundred samples or fewer, p99 is the longest
    events: int
    #: calls of Join beside each crowd
    joins: int
    #: the containers of the engine's crowd
    containers: int
    #: rounds of each kind of packets on each path
    rounds: int
    #: families to measure packets in
    families: tuple[int, ...]
    #: starts of docker-fw, and the seconds for which an idle one is watched
    starts: int
    idle: float
    #: flushes of another program, for each family
    flushes: int
    #: elements in the large sets of single operations
    elements: int
    #: crowds have one of so many endpoints
    divisor: int

    def crowd(self, count: int) -> int:
        """Return the endpoints for a row that names so many."""
        return max(1, count // self.divisor)


FULL = Scale(
    "full",
    runs=20,
    compositions=3,
    events=101,
    joins=120,
    containers=200,
    rounds=30,
    families=(6, 4),
    starts=5,
    idle=60,
    flushes=5,
    elements=50_000,
    divisor=1,
)
QUICK = Scale(
    "quick",
    runs=1,
    compositions=1,
    events=3,
    joins=10,
    containers=20,
    rounds=3,
    families=(6, 4),
    starts=1,
    idle=5,
    flushes=1,
    elements=2000,
    divisor=20,
)
SCALES = {scale.name: scale for scale in (FULL, QUICK)}
