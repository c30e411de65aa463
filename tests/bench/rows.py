"""The rows of the benchmark: what is measured, against what, the goal, and why a goal is missed. Data only.

One entry adds a row. A group is measured together, and alone with `--only`. A row without a result is in the table all
the same, as "not measured".
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

KINDS: Mapping[str, str] = {
    "established in": "packets/s",
    "established out": "packets/s",
    "bulk": "Gbit/s",
    "new UDP flows": "flows/s",
    "TCP connects": "connects/s",
}
ESTABLISHED, FRESH = ("established in", "established out"), ("new UDP flows", "TCP connects")
FAMILIES: Mapping[int, str] = {6: "IPv6", 4: "IPv4"}
#: The kinds of packets that are compared between crowds.
COMPARED = (*ESTABLISHED, *FRESH)
#: Endpoints beside which packets are measured: those of real engines first, the others are simulated.
REAL, SIMULATED = 200, (10_000, 50_000)
#: What else may be in use on a host, beside a port that none of it concerns; and why that costs something.
FEATURES: Mapping[str, tuple[str, str]] = {
    "rates": (
        "1,000 rates",
        "while a rate is in use, each packet passes its chain, where a new flow's address and port are looked up",
    ),
    "lists": ("10,000 `from` lists", ""),
    "bans": ("50,000 bans", "a ban ends established flows too, so each packet is looked up in the sets of bans"),
}
#: The paths through the networks that docker-fw filters.
FW, PROTECTED = "docker-fw network", "protected Docker bridge"

GROUPS: Mapping[str, str] = {
    "packets": "Packets from an outsider to a container on real engines: small datagrams of one answered UDP flow, "
    "in to the container and out of it (established), one TCP stream (bulk), first packets of UDP flows, and TCP "
    "connections that are opened, accepted and reset. The compared paths are measured in turn, and a ratio is the "
    "median of the pairs of one turn. Rates are per second of one CPU: all that a packet causes on these paths "
    "happens in the sender's own system call, so the sender's CPU time is the cost of the whole path. The rows "
    "beside 200 containers compare two moments of one engine, by the drift of the rule-free path between them.",
    "crowds": "The same beside crowds that real engines do not carry here. Simulated: hosts in network namespaces, "
    "with the tables that docker-fw's own code makes of so many endpoints, half of them on docker-fw networks and half "
    "on Docker networks. Each host has two real containers, one of each kind, and all hosts are measured in turn. "
    "Neither Docker nor its rules are there, so nothing hides the cost of docker-fw's.",
    "features": "The same beside features in use, to a port that none of them concerns. Simulated like the crowds.",
    "run": "Docker's commands, by the clock, on engines of one version: with docker-fw, and without it. The variants "
    "are run in turn; values are medians.",
    "flush": "After another program's `iptables -F` on a real engine, an outsider opens connections to an open port "
    "of a container, one each few milliseconds. The value is the longest gap.",
    "join": "The real docker-fw processes beside a simulated Docker API. The value is the time from the request of "
    "Join to its answer, without the time in which the simulated Docker answers docker-fw's questions. The crowd is "
    "on Docker networks of 100 containers; the last row's is on the docker-fw network of the container that joins.",
    "events": "From the moment at which Docker reports an event to the moment at which the kernel reports the "
    "changed element. 200 containers: a real engine, with all of them on the same network; 10,000: the real "
    "docker-fw processes beside a simulated Docker API, on networks of 100 containers. The bench may receive the "
    "kernel's report late, never early.",
    "memory": "The proportional share (PSS) of all of docker-fw's processes, beside a simulated Docker API that "
    "lists so many running containers on Docker networks.",
    "cpu": "The CPU time of docker-fw's processes and of the programs that they start, beside a simulated Docker API.",
    "start": "docker-fw is started beside a simulated Docker API that lists 50,000 running containers, each with a "
    "label that opens a port, after all rules were removed, as at a boot.",
    "load": "docker-fw is started on a host without rules and with few containers. Values are medians of several "
    "starts.",
    "rules": "Single operations on the table, in a network namespace. They have no goals.",
}


@dataclass(frozen=True)
class Row:
    """One measure. `goal`: a bound on the value or on the ratio to the baseline, as "ratio >= 0.97".

    `why`: the reason if the goal is missed. `unbuilt`: the product does not have it yet, so it is missed.
    """

    key: str
    group: str
    name: str
    unit: str
    goal: str = ""
    baseline: str = ""
    why: str = ""
    unbuilt: bool = False

    def holds(self, value: float, ratio: float | None) -> bool:
        """Return True if a result reaches the goal."""
        what, sign, bound = self.goal.split()
        got = value if what == "value" else ratio
        if got is None:
            return False
        return {"<=": got <= float(bound), ">=": got >= float(bound), "<": got < float(bound)}[sign]


def _per_packet(
    key: str, group: str, name: str, baseline: str, goals: Mapping[str, float], why: str = "", *, unbuilt: bool = False
) -> Iterator[Row]:
    """Yield a row for each kind of packets and each family."""
    for (kind, bound), (number, family) in itertools.product(goals.items(), FAMILIES.items()):
        goal = f"ratio >= {bound:.2f}"
        what = f"{name}: {kind}, {family}"
        yield Row(f"{key} {kind} {number}", group, what, KINDS[kind], goal, baseline, why, unbuilt)


def _packets() -> Iterator[Row]:
    host = "Docker's bridge on a host without docker-fw"
    yield from _per_packet(
        "fw/docker",
        "packets",
        FW,
        host,
        dict.fromkeys((*ESTABLISHED, "bulk"), 1.00),
        "each frame of a container is compared with its own MAC and addresses; Docker lets a container send from any",
    )
    yield from _per_packet(
        "fw/docker",
        "packets",
        FW,
        host,
        dict.fromkeys(FRESH, 1.00),
        "a new flow's address, its port and the route to its source are looked up; Docker looks at none of the three",
    )
    yield from _per_packet(
        "fw/tracked",
        "packets",
        FW,
        "a host with connection tracking and one `accept`",
        {"established in": 0.97, "established out": 0.97, "new UDP flows": 0.88, "TCP connects": 0.97},
        "each frame of a container is compared with its own MAC and addresses, and of each new flow the address, the "
        "port and the route to its source are looked up",
    )
    yield from _per_packet(
        "flowtable/free",
        "packets",
        "docker-fw network with a flow table",
        "no firewall",
        dict.fromkeys(ESTABLISHED, 1.00),
        "not built: docker-fw has no flow table yet",
        unbuilt=True,
    )
    yield from _per_packet(
        "protected/docker",
        "packets",
        PROTECTED,
        "the same Docker without docker-fw",
        dict.fromkeys(ESTABLISHED, 0.98) | dict.fromkeys(FRESH, 0.93),
        "docker-fw's rules judge each packet in addition to Docker's",
    )
    beside_one = dict.fromkeys(COMPARED, 0.97)
    for key, name in (("fw", FW), ("protected", PROTECTED)):
        yield from _per_packet(f"{key}@{REAL}", "packets", f"{name}, {REAL} containers", "1 container", beside_one)
    for count, (key, name) in itertools.product(SIMULATED, (("fw", FW), ("protected", PROTECTED))):
        what = f"{name}, {count:,} endpoints"
        yield from _per_packet(f"{key}@{count}", "crowds", what, "1 endpoint", beside_one)
    for key, (name, why) in FEATURES.items():
        what = f"unaffected port, {name}"
        yield from _per_packet(f"{key}/none", "features", what, "none of these in use", beside_one, why)


#: Docker's commands that are measured, by key.
COMMANDS: Mapping[str, str] = {
    "run": "docker run",
    "run -p": "docker run with a published port and a label",
    "rm": "docker rm -f",
    "rm -p": "docker rm -f with a published port and a label",
    "up": "docker compose up of 20 services",
}


def _run() -> Iterator[Row]:
    for key, command in COMMANDS.items():
        yield Row(
            f"fw {key}",
            "run",
            f"{command}, {FW}",
            "ms",
            "ratio <= 1.00",
            "Docker's bridge, without docker-fw",
            "libnetwork calls a plugin over HTTP, six times for a start and a stop, and functions of its own driver",
        )
        yield Row(
            f"protected {key}",
            "run",
            f"{command}, {PROTECTED}",
            "ms",
            "ratio <= 1.03",
            "the same, without",
            "dockerd answers seven requests of docker-fw about a container while it starts it, and the kernel five "
            "transactions of nftables",
        )


#: Endpoints beside which Join is measured.
JOIN_CROWDS = (10, 1_000, 50_000)
ON_ONE_NETWORK = 1_000
EVENT_CROWDS = (REAL, 10_000)
MANY = 1_000
MEMORY_BOUNDS: Mapping[int, int] = {0: 60, 1_000: 80, 50_000: 250}
#: The crowd that a start finds.
START_CROWD = 50_000
#: Starts of containers each second.
STARTS = 100


def _processes() -> Iterator[Row]:
    few = JOIN_CROWDS[0]
    for count in JOIN_CROWDS:
        yield Row(f"join@{count} p99", "join", f"Join, p99, {count:,} endpoints", "ms", "value <= 15")
    yield Row("join@net p99", "join", f"Join, p99, on a network of {ON_ONE_NETWORK:,}", "ms", "value <= 15")
    for key, name in (*((str(n), f"{n:,} endpoints") for n in JOIN_CROWDS[1:]), ("net", "on a network of 1,000")):
        yield Row(f"join@{key} ratio", "join", f"Join, p99, {name}", "ms", "ratio <= 1.3", f"{few} endpoints")
    many_inspections = "docker-fw asks Docker about each running container once, because no list has all it needs"
    for count in EVENT_CROWDS:
        name = f"event → exception, {PROTECTED}"
        yield Row(f"open@{count} p50", "events", f"{name}, median, {count:,} containers", "ms", "value <= 2.5")
        yield Row(f"open@{count} p99", "events", f"{name}, p99, {count:,} containers", "ms", "value <= 15")
        name = "a container leaves → closed"
        yield Row(f"close@{count} p99", "events", f"{name}, p99, {count:,} containers", "ms", "value <= 2")
    where = "beside 10,000 containers with peers by name"
    yield Row("close@peers p99", "events", f"a container leaves → closed, p99, {where}", "ms", "value <= 2")
    for count, bound in MEMORY_BOUNDS.items():
        name = f"memory, {count:,} endpoints" if count else "memory, idle"
        why = "the objects of a container take 13 kB: its endpoint, its labels, and its elements of the table"
        if count <= MANY:
            why = "the modules of two Python processes take almost all of it"
        yield Row(f"memory@{count}", "memory", name, "MB", f"value <= {bound}", why=why)
    what = "CPU with nothing happening"
    yield Row(
        f"idle@{few}",
        "cpu",
        f"{what}, {few} containers",
        "%",
        "value <= 0.2",
    )
    yield Row(
        f"idle@{START_CROWD}",
        "cpu",
        f"{what}, {START_CROWD:,} containers",
        "%",
        "value <= 0.2",
        why="all of Docker's list is read again each 30 s, because an event may be lost",
    )
    name = f"{STARTS} starts a second: the last exception after its event"
    yield Row("starts behind", "cpu", name, "ms", "value <= 100")
    yield Row(
        "starts transactions",
        "cpu",
        f"{STARTS} starts a second: transactions for each start",
        "",
        "value < 1",
        why="`create` closes all SCTP ports of the host until docker-fw knows the container's published ports: two "
        "transactions, because the kernel cannot tell whose an SCTP port is. Its exceptions are the third one, added "
        "at once",
    )
    crowd = f"start with {START_CROWD:,} containers"
    yield Row("start closed", "start", f"{crowd}: closed", "s", "value <= 0.3")
    yield Row("start open", "start", f"{crowd}: all exceptions", "s", "value <= 2", why=many_inspections)
    yield Row("start cpu", "start", f"{crowd}: CPU time", "s", "value <= 3", why=many_inspections)
    yield Row("load answer", "load", "dockerd's first connection → its first answer", "s", "value <= 0.6")
    yield Row("load boot", "load", "start → closed by the boot table", "s", "value <= 0.1")
    yield Row(
        "load early",
        "load",
        "start → closed by the early table, at the first start of all",
        "s",
        "value <= 0.1",
        why="the early table needs more modules than Python loads in that time; at every later start the boot table "
        "closes before it",
    )


def _flush() -> Iterator[Row]:
    for number, family in FAMILIES.items():
        yield Row(
            f"flush {number}",
            "flush",
            f"open port of a {FW} after `iptables -F` by another program, {family}",
            "s",
            "value <= 0.5",
            why="the policy of Docker's chain FORWARD drops, and the flush removed the jump to DOCKER-USER, where "
            "docker-fw's rule is: only a restart of dockerd puts it back",
        )


ROWS: Mapping[str, Row] = {row.key: row for row in (*_packets(), *_run(), *_flush(), *_processes())}


@dataclass(frozen=True)
class Peer:
    """Another firewall, as measured before this benchmark: the ratio to the rule-free path by number of containers.

    In the order of `PICTURED`.
    """

    name: str
    ratios: Mapping[int, tuple[float, float, float]]


#: The kinds of packets in the picture.
PICTURED = ("established in", "new UDP flows", "TCP connects")
PEERS = (
    Peer("Docker 28, iptables", {1: (0.57, 0.70, 0.62), 200: (0.56, 0.70, 0.61)}),
    Peer("Docker 29, nftables", {1: (0.74, 0.76, 0.69), 200: (0.68, 0.71, 0.68)}),
    Peer("whalewall", {200: (0.39, 0.54, 0.45)}),
    Peer("ufw-docker", {200: (0.41, 0.61, 0.51)}),
)
