"""The objects under torture, and the results: containers on a driver network and on a Docker network, an outsider."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.lab import Shot, Target
from tests.product import Fw
from tests.waiting import until

#: Seconds within which all is open again; and the time-out of the wait for it.
AIM, LATEST = 1.0, 20.0
#: A table without a live owner may be open for so long after a flush (seconds).
ORPHAN = 0.5
SERVERS = ("sh", "-c", "httpd -p 9090; exec httpd -f -p 8080")


@dataclass(frozen=True)
class Place:
    """A network and its container: 8080 is opened by a label, 9090 by none; both are published."""

    name: str
    driver: str
    v4: str
    v6: str
    ports: int

    @property
    def app(self) -> str:
        return f"{self.name}-app"

    def subnets(self) -> list[str]:
        return ["--subnet", f"{self.v4}.0/24", "--ipv6", "--subnet", f"{self.v6}::/64"]

    def addresses(self) -> list[str]:
        return [f"{self.v4}.9", f"{self.v6}::9"]


@dataclass(frozen=True)
class Row:
    """The result of one blow."""

    blow: str
    shots: int
    #: answers of closed ports that have no excuse
    opened: tuple[Shot, ...]
    #: how long a closed port answered while the table had no owner
    gap: float
    #: seconds from the blow's end until all that should be open was
    back: float
    #: and the limit for that
    within: float
    trouble: str = ""

    @property
    def broken(self) -> bool:
        return bool(self.opened or self.trouble) or self.back > self.within or self.shots == 0

    def __str__(self) -> str:
        words = f"{self.blow:34} {self.shots:7} {len(self.opened):7} {self.gap:7.3f} {self.back:7.2f}"
        return f"{words} BROKEN {self.trouble}" if self.broken else words


HEADER = f"{'blow':34} {'shots':>7} {'opened':>7} {'orphan':>7} {'back':>7}"


class Bed:
    """Two places under fire. `within`: seconds after a blow until all is open again; more on a busy machine."""

    def __init__(self, fw: Fw, within: float = AIM) -> None:
        self.fw = fw
        self.within = within
        self.places = (
            Place("tortured", fw.driver, "10.89.1", "2001:db8:89:1", 0),
            Place("protected", "bridge", "10.89.2", "2001:db8:89:2", 10000),
        )
        self._excuse = (0.0, 0.0)

    def make(self) -> None:
        """Create the networks and their containers."""
        for place in self.places:
            self.fw.engine.docker("network", "create", "-d", place.driver, *place.subnets(), place.name)
            self.run(place)

    def run(self, place: Place, label: str = "fw.allow=8080") -> None:
        """Run a place's container, again."""
        self.fw.remove(place.app)
        v4, v6 = place.addresses()
        self.fw.engine.docker(
            "run",
            "-d",
            "--name",
            place.app,
            "--network",
            place.name,
            "--ip",
            v4,
            "--ip6",
            v6,
            "--restart",
            "always",
            "--stop-timeout",
            "0",
            "--label",
            label,
            "-p",
            f"{place.ports + 18080}:8080",
            "-p",
            f"{place.ports + 19090}:9090",
            "busybox",
            *SERVERS,
        )

    def unmake(self) -> None:
        """Remove both containers; harmless if they do not exist."""
        for place in self.places:
            self.fw.remove(place.app)
            self.fw.engine.try_docker("network", "rm", place.name)

    def remake(self) -> None:
        self.unmake()
        self.make()

    def closed(self) -> list[Target]:
        return self._targets(9090, 19090, [address for place in self.places for address in place.addresses()])

    def opened(self) -> list[Target]:
        # Docker itself drops an outsider's packets to its networks' addresses that bypass the published ports.
        return self._targets(8080, 18080, self.places[0].addresses())

    def _targets(self, inside: int, published: int, addresses: list[str]) -> list[Target]:
        hosts = (self.fw.host.v4, self.fw.host.v6)
        direct: list[Target] = [("tcp", address, inside) for address in addresses]
        return direct + [("tcp", host, place.ports + published) for host in hosts for place in self.places]

    def missing(self) -> list[Target]:
        """Return what should be open and is not."""
        return [t for t, verdict in self.fw.wan.probe(self.opened(), timeout=0.2).items() if verdict != "open"]

    def all_closed(self) -> bool:
        """Return True if nothing answers that is otherwise open."""
        return len(self.missing()) == len(self.opened())

    def orphaned(self, since: float, until: float) -> None:
        """Record that the table had no live owner and was flushed: answers in this time are measured, not blamed."""
        self._excuse = (since, until)

    def strike(self, blow: Callable[[Bed], None]) -> Row:
        """Strike one blow under fire, and wait until all that should be open is open again."""
        self._excuse, trouble = (0.0, 0.0), ""
        with self.fw.wan.probe.hammer(*self.closed(), every=0.005) as hammer:
            try:
                blow(self)
            except AssertionError as error:
                trouble = str(error)
            struck = time.monotonic()
            try:
                until(lambda: not self.missing(), "all ports are open again", LATEST)
            except AssertionError:
                trouble = f"{trouble} still closed: {self.missing()}".strip()
            back = time.monotonic() - struck
        since, end = self._excuse
        answered = hammer.result.opened
        excused = [shot for shot in answered if since <= shot.at <= end]
        gap = max((shot.at - since for shot in excused), default=0.0)
        wrong = tuple(shot for shot in answered if shot not in excused)
        return Row(blow.__name__, len(hammer.result.shots), wrong, gap, back, self.within, trouble)

    @contextmanager
    def created(self) -> Iterator[Bed]:
        """Create the bed, with all open that should be; remove it afterwards."""
        self.unmake()
        try:
            self.make()
            until(lambda: not self.missing(), "all ports that should be open are")
            yield self
        finally:
            self.unmake()
