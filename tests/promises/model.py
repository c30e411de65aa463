"""The nouns of the suite: a promise, its probes, and the conditions under which an expectation holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: What a probe can find. "hollow": docker-proxy accepted the connection, and no server of a container spoke.
VERDICTS = ("open", "refused", "silent", "unsent", "hollow")


@dataclass(frozen=True)
class Setup:
    """Where promises are tried: an engine, and how its dockerd is started."""

    version: str
    profile: str

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    def fits(self, condition: str) -> bool:
        """Return True if each word holds: a profile (`no-proxy`), or a range of versions (`<27`, `>=28`)."""
        return all(self._word(word) for word in condition.split())

    def _word(self, word: str) -> bool:
        if word.startswith(">="):
            return self.major >= int(word[2:])
        if word.startswith("<"):
            return self.major < int(word[1:])
        return word == self.profile

    def choose(self, usual: str, but: Mapping[str, str]) -> str:
        """Return the value whose condition fits and has most words, or else `usual`. ValueError if two are as good."""
        fitting = sorted((len(condition.split()), value) for condition, value in but.items() if self.fits(condition))
        if not fitting:
            return usual
        best = {value for words, value in fitting if words == fitting[-1][0]}
        if len(best) > 1:
            raise ValueError(f"{self}: {sorted(but)} do not say which applies")
        return best.pop()


@dataclass(frozen=True)
class Probe:
    """One packet, or one connection: from where, to where, and what it finds according to Docker.

    `source` and `place` are names: `host`, `remote` (another machine) or a box. A `place` can also be `lo` (the host's
    loopback), `second` (the host's second address), `gw/NETWORK` (its gateway), or `BOX/NETWORK`.
    """

    source: str
    proto: str
    family: int
    place: str
    port: int
    expected: str
    #: The client's address as the server sees it: `client`, `host`, or "" for any.
    peer: str
    but: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def text(self) -> str:
        port = f":{self.port}" if self.port else ""
        return f"{self.source} → {self.proto}{self.family or ''} {self.place}{port}"


@dataclass(frozen=True)
class To:
    """A probe without its source, of one family or (0) of both."""

    proto: str
    place: str
    port: int
    expected: str
    family: int
    peer: str
    but: Mapping[str, str]
    but6: Mapping[str, str]


def to(
    what: str,
    expected: str = "open",
    *,
    family: int = 0,
    peer: str = "",
    but: Mapping[str, str] | None = None,
    but6: Mapping[str, str] | None = None,
) -> To:
    """Return where a probe goes, such as `to("tcp host:8080")` or `to("ping web", "silent", family=4)`.

    `but` has the verdicts that differ, by condition; `but6` those that differ over IPv6 only.
    """
    proto, place = what.split(" ")
    place, _, port = place.partition(":")
    return To(proto, place, int(port or 0), expected, family, peer, but or {}, but6 or {})


def probes(source: str, *targets: To) -> tuple[Probe, ...]:
    """Return the probes from one source (or several: `mate, stranger`), of both families where none is named."""
    return tuple(
        Probe(
            each,
            target.proto,
            family,
            target.place,
            target.port,
            target.expected,
            target.peer,
            {**target.but, **target.but6} if family == 6 else target.but,
        )
        for each in source.split(", ")
        for target in targets
        for family in ((0,) if target.proto == "name" else (target.family,) if target.family else (4, 6))
    )


@dataclass(frozen=True)
class Promise:
    """One promise: what Docker's users rely on, and where it comes from.

    `boxes` are the containers that must run; the first one is the one that answers. `act` is what happens to the engine
    before the probes (`world.ACTS`), `profiles` how dockerd is started, `since` the first major version that has it.
    """

    name: str
    says: str
    origin: str
    boxes: tuple[str, ...]
    probes: tuple[Probe, ...]
    profiles: tuple[str, ...] = ("default",)
    since: int = 0
    act: str = ""

    def applies(self, setup: Setup) -> bool:
        return setup.profile in self.profiles and setup.major >= self.since


@dataclass(frozen=True)
class Difference:
    """What docker-fw changes on purpose, even if its policy is open. `promise`, `probe` and `when` say where."""

    promise: str
    probe: str
    #: Docker's verdict, and docker-fw's.
    docker: str
    ours: str
    reason: str
    when: str = ""

    def applies(self, promise: Promise, probe: Probe, setup: Setup) -> bool:
        return (self.promise, self.probe) == (promise.name, probe.text) and setup.fits(self.when)


@dataclass(frozen=True)
class Seen:
    """What a probe found: the verdict, who answered, and which client's address the server saw."""

    verdict: str
    server: str = ""
    peer: str = ""

    def __str__(self) -> str:
        if not self.server:
            return self.verdict
        return f"{self.verdict} (by {self.server}{f', which saw {self.peer}' if self.peer else ''})"
