"""The objects under torture, and the results: containers on a driver network and on Docker networks, an outsider."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab import LabError, Target, Wan
from tests.product import Fw
from tests.waiting import until

from .image import IMAGE, SERVERS, tortured
from .outsider import Answer, Outsider, Port
from .recording import Recorder

#: Seconds within which all is open again, on an idle machine; and the time-out of the wait for it.
AIM, LATEST = 1.0, 60.0
#: A table without a live owner may be open for so long after a flush (seconds).
ORPHAN = 0.5
LABEL = "fw.allow=8080, 8080/udp"
OTHER_LABEL = "fw.allow=8081"
PROTOCOLS = ("tcp", "udp")


def within() -> float:
    """Return the seconds within which all is open again: the aim, as often as programs wait for each processor now."""
    return AIM * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@dataclass(frozen=True)
class Place:
    """A network and its container: 8080 is opened by a label, 9090 by none; both are published.

    A container without an IPv6 address is reached over IPv6 by way of docker-proxy.
    """

    name: str
    driver: str
    v4: str
    v6: str
    ports: int
    last: str = "9"
    #: the protocols whose ports are published
    publishes: tuple[str, ...] = PROTOCOLS

    @property
    def app(self) -> str:
        return f"{self.name}-app"

    def subnets(self) -> list[str]:
        return ["--subnet", f"{self.v4}.0/24", *(["--ipv6", "--subnet", f"{self.v6}::/64"] if self.v6 else [])]

    def addresses(self) -> list[str]:
        return [f"{self.v4}.{self.last}", *([f"{self.v6}::{self.last}"] if self.v6 else [])]

    def published(self, inside: int) -> int:
        return inside + self.ports + 10000

    def mapped(self) -> dict[str, int]:
        """Return the host's port for each published port, such as `8080/tcp`."""
        return {f"{p}/{protocol}": self.published(p) for p in (8080, 9090) for protocol in self.publishes}

    def at(self, inside: int, hosts: Sequence[str], *, direct: bool = True, source: dict[bool, str]) -> Iterator[Port]:
        """Yield each way to a port of the container. `source` is by family, True for IPv6."""
        for protocol in PROTOCOLS:
            for address in self.addresses() if direct else ():
                yield Port(protocol, address, inside, source.get(":" in address, ""))
            for host in hosts if protocol in self.publishes else ():
                yield Port(protocol, host, self.published(inside), source.get(":" in host, ""))

    def options(self) -> list[str]:
        """Return the arguments of `docker run` for its addresses and ports."""
        v4, *v6 = self.addresses()
        ports = [f"{on}:{inside}" for inside, on in self.mapped().items()]
        return ["--ip", v4, *(["--ip6", *v6] if v6 else []), *(word for each in ports for word in ("-p", each))]


@dataclass(frozen=True)
class Row:
    """The result of one blow."""

    blow: str
    shots: int
    #: answers of closed ports that have no excuse
    opened: tuple[Answer, ...]
    #: how long a closed port answered while the table had no owner
    gap: float
    #: seconds from the blow's end until all that should be open was
    back: float
    #: and the limit for that
    within: float
    #: for how long an open port gave no answer, in seconds, on the docker-fw network and on Docker networks; some blows
    #: close it themselves
    outage: float = 0.0
    docker_outage: float = 0.0
    trouble: str = ""

    @property
    def broken(self) -> bool:
        return bool(self.opened or self.trouble) or self.back > self.within or self.shots == 0

    def __str__(self) -> str:
        words = f"{self.blow:36} {self.shots:7} {len(self.opened):7} {self.gap:7.3f}"
        words += f" {self.back:7.2f} {self.outage:7.2f} {self.docker_outage:7.2f}"
        return f"{words} BROKEN {self.trouble}" if self.broken else words


HEADER = f"{'blow':36} {'shots':>7} {'opened':>7} {'orphan':>7} {'back':>7} {'outage':>7} {'docker':>7}"


class Bed:
    """Places under fire, and the counts of what was done to docker-fw."""

    def __init__(self, fw: Fw, *, proxied: bool = False, records: Path | None = None) -> None:
        """If `proxied`, one place is reached by way of docker-proxy. `records` is the directory for recordings of
        openings; without it there are none."""
        self.fw = fw
        self.places = (
            Place("tortured", fw.driver, "10.89.1", "2001:db8:89:1", 0),
            Place("protected", "bridge", "10.89.2", "2001:db8:89:2", 10000),
            *((Place("proxied", "bridge", "10.89.3", "", 5000),) if proxied else ()),
        )
        #: Containers that come and go in storms, on the networks of the first two places. Published ports cost Docker
        #: much work, so that these have few or none.
        self.guests = (
            Place("tortured", fw.driver, "10.89.1", "2001:db8:89:1", 100, "20", ("tcp",)),
            Place("tortured", fw.driver, "10.89.1", "2001:db8:89:1", 0, "21", ()),
            Place("protected", "bridge", "10.89.2", "2001:db8:89:2", 10100, "20", ("tcp",)),
        )
        self.counts: Counter[str] = Counter()
        self.outsider: Outsider
        self.recorder = Recorder(fw, records, self._watched()) if records else None
        #: the plugin's references in a registry, to which it is upgraded in turn
        self.versions: list[str] = []
        self._excuse = (0.0, 0.0)
        #: How many of the outsider's answers were judged: those between two blows count for the second one.
        self._judged = 0
        self._lock = threading.Lock()

    def count(self, kind: str, number: int = 1) -> None:
        """Count what was done to docker-fw. Storms do so from several threads."""
        with self._lock:
            self.counts[kind] += number

    # ── containers and networks ──

    def make(self) -> None:
        """Create the networks and their containers."""
        for place in self.places:
            self.fw.engine.docker("network", "create", "-d", place.driver, *place.subnets(), place.name)
            self.count("networks")
            self.run(place)

    def run(self, place: Place, label: str = LABEL) -> None:
        """Run a place's container, again."""
        self.fw.remove(place.app)
        self.fw.engine.docker(
            "run",
            "-d",
            "--name",
            place.app,
            "--network",
            place.name,
            "--restart",
            "always",
            "--stop-timeout",
            "0",
            "--label",
            label,
            *place.options(),
            IMAGE,
            *SERVERS,
        )
        self.count("starts")

    def unmake(self) -> None:
        """Remove the containers and networks; harmless if they do not exist."""
        self.fw.remove(*(place.app for place in self.places))
        self.fw.engine.try_docker("network", "rm", *(place.name for place in self.places))

    def remake(self) -> None:
        self.unmake()
        self.make()

    # ── ports ──

    @property
    def hosts(self) -> tuple[str, str]:
        return self.fw.host.v4, self.fw.host.v6

    def closed(self) -> list[Port]:
        """Return the ports that must never answer."""
        return [port for place in (*self.places, *self.guests) for port in place.at(9090, self.hosts, source={})]

    def opened(self) -> list[Port]:
        return [port for place in self.places for port in self.opened_at(place)]

    def opened_at(self, place: Place) -> list[Port]:
        # Docker itself drops an outsider's packets to its networks' addresses that bypass the published ports.
        return list(place.at(8080, self.hosts, direct=place.driver != "bridge", source={}))

    def from_banned(self) -> list[Port]:
        """Return open ports of the first two places, from the address of the outsider that is banned at times."""
        far = {False: Wan.FAR_V4, True: Wan.FAR_V6}
        first, second = self.places[:2]
        return [*first.at(8080, (), source=far), *second.at(8080, self.hosts, direct=False, source=far)]

    def of_guest(self, guest: Place) -> list[Port]:
        """Return the ports of a guest that are open with one label and closed with the other."""
        return list(guest.at(8080, self.hosts, source={}))

    def _watched(self) -> list[Port]:
        changing = (port for guest in self.guests for port in self.of_guest(guest))
        return [*self.closed(), *changing, *self.from_banned()]

    def missing(self) -> list[Target]:
        """Return what should be open and is not."""
        targets: list[Target] = [(port.protocol, port.address, port.number) for port in self.opened()]
        return [t for t, verdict in self.fw.wan.probe(targets, timeout=0.2).items() if verdict != "open"]

    def all_closed(self) -> bool:
        """Return True if nothing answers that is otherwise open."""
        return len(self.missing()) == len(self.opened())

    # ── blows ──

    def orphaned(self, since: float, until: float) -> None:
        """Record that the table had no live owner and was flushed: answers in this time are measured, not blamed."""
        self._excuse = (since, until)

    @contextmanager
    def host_down(self) -> Iterator[None]:
        """Be ready for a reboot of the host: what records there ends, and starts again afterwards."""
        if self.recorder:
            self.recorder.host_halts()
        yield
        if self.recorder:
            self.recorder.host_booted()

    def _excused(self, answer: Answer) -> bool:
        since, end = self._excuse
        return since <= answer.left and answer.sent <= end

    def strike(self, blow: Callable[[Bed], None]) -> Row:
        """Strike one blow under fire, and wait until all that should be open is open again."""
        self._excuse, trouble = (0.0, 0.0), ""
        left: list[Target] = []

        def all_open() -> bool:
            left[:] = self.missing()
            return not left

        first, began, position = self.outsider.shots(), time.monotonic(), self._judged
        logged = self.fw.engine.log.stat().st_size
        try:
            blow(self)
        except (AssertionError, LabError) as error:
            trouble = str(error)
        struck = time.monotonic()
        try:
            until(all_open, "all ports are open again", LATEST)
        except (AssertionError, LabError) as error:
            trouble = f"{trouble} {error}: {left}".strip()
        back = time.monotonic() - struck
        # The next change waits while docker-fw writes more than the refused one, and that may be a closing.
        trouble = "\n".join([trouble, *self.fw.refused(logged)]).strip()
        if trouble:
            trouble = f"{trouble}\n{self._dockers_view()}"
        shots = self.outsider.shots() - first
        self._judged = len(self.outsider.answers)
        unlawful = [a for a in self.outsider.answers[position : self._judged] if not self.outsider.lawful(a)]
        excused = [answer for answer in unlawful if self._excused(answer)]
        gap = max((answer.sent - self._excuse[0] for answer in excused), default=0.0)
        wrong = tuple(answer for answer in unlawful if answer not in excused)
        ours, dockers = (
            self.outsider.outage([port for place in places for port in self.opened_at(place)], began)
            for places in (self.places[:1], self.places[1:])
        )
        row = Row(blow.__name__, shots, wrong, gap, back, within(), ours, dockers, trouble)
        if self.recorder:
            self.recorder.end(row.blow, wrong)
        return row

    def _dockers_view(self) -> str:
        """Return whether Docker has the plugin enabled, and what it wrote about plugins."""
        listed = self.fw.engine.try_docker("plugin", "ls").stdout
        lines = [line for line in self.fw.engine.log_tail(2000).splitlines() if "plugin" in line]
        return "\n".join([listed, *(line[:300] for line in lines[-40:])])

    @contextmanager
    def created(self) -> Iterator[Bed]:
        """Create the bed, with all open that should be, and start the outsider; remove them afterwards."""
        with tempfile.TemporaryDirectory() as directory:
            self.fw.engine.load(tortured(Path(directory)))
        self.unmake()
        try:
            self.make()
            until(lambda: not self.missing(), "all ports that should be open are")
            changing = [*(port for guest in self.guests for port in self.of_guest(guest)), *self.from_banned()]
            self.outsider = Outsider(self.fw.wan, self.closed(), self.opened(), changing)
            self.outsider.permit(self.from_banned())
            try:
                with self.recorder or nothing():
                    if self.recorder:
                        self.outsider.alarm = self.recorder.alarm
                    yield self
            finally:
                self.outsider.close()
        finally:
            self.unmake()


@contextmanager
def nothing() -> Iterator[None]:
    yield
