"""Measure packets from outside to a container, on five paths of real engines.

Through a docker-fw network; through Docker's bridge, protected by docker-fw; through Docker's bridge on an engine that
has no docker-fw; through a host without any rule; through one with connection tracking and a single `accept`, which any
stateful firewall costs at least. The paths are alike: outsider, veth, a host that forwards, bridge, veth, container.
Established: small datagrams of one answered UDP flow. Rates are per second of one CPU, see `traffic`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from tests.bench.bed import LABEL, PROTECTED, Bed
from tests.bench.paths import Costs, Target, cable, compare, flush, route
from tests.bench.rows import COMPARED, FAMILIES, FW, KINDS, REAL
from tests.bench.rows import PROTECTED as PROTECTED_BRIDGE
from tests.bench.table import Table, say
from tests.bench.traffic import PORT
from tests.lab import Engine
from tests.lab.claims import Claim
from tests.lab.netns import NamedNetns, Netns

_FREE, _TRACKED, _DOCKER, _FW, _PROTECTED = "rule-free", "tracked", "docker", "fw", "protected"
_NAMES = {
    _TRACKED: "connection tracking and one `accept`",
    _DOCKER: "Docker's bridge without docker-fw",
    _FW: FW,
    _PROTECTED: PROTECTED_BRIDGE,
}
#: Docker leaves it open to packets that are routed to the container.
_PORTS = ("-p", f"{PORT}:{PORT}/tcp", "-p", f"{PORT}:{PORT}/udp")
#: …and so does docker-fw.
_LABEL = ("--label", f"fw.allow={LABEL}")
_ONE_ACCEPT = """\
table inet one {
	chain forward {
		type filter hook forward priority filter; policy accept;
		ct state established,related accept
	}
}
"""


class Packets:
    """Measure in two states: with one container on a network, and with the crowd."""

    def __init__(self) -> None:
        self._alone: dict[int, Costs] = {}

    def one(self, bed: Bed, table: Table) -> None:
        """Measure one container on each path."""
        with (
            _free(bed) as free,
            _tracked(bed) as tracked,
            _docker(bed) as docker,
            _ours(bed) as ours,
            _protected(bed) as protected,
        ):
            targets = {_FREE: free, _TRACKED: tracked, _DOCKER: docker, _FW: ours, _PROTECTED: protected}
            for family in bed.scale.families:
                say(f"packets: IPv{family}, one container…")
                costs = compare(targets, family, bed.scale.rounds, list(KINDS))
                self._alone[family] = costs
                _put(table, family, costs)

    def many(self, bed: Bed, table: Table) -> None:
        """Measure one container beside the crowd; `one` must have been before."""
        bed.protected()
        with (
            _free(bed) as free,
            _one_more(bed, "crowd") as ours,
            _one_more(bed, PROTECTED) as protected,
        ):
            targets = {_FREE: free, _FW: ours, _PROTECTED: protected}
            for family in bed.scale.families:
                say(f"packets: IPv{family}, beside {bed.scale.containers} containers…")
                costs = compare(targets, family, bed.scale.rounds, COMPARED)
                self._put_beside(table, family, costs)

    def _put_beside(self, table: Table, family: int, costs: Costs) -> None:
        alone = self._alone[family]
        for kind in COMPARED:
            for path in (_FW, _PROTECTED):
                now, then = (each.ratio(kind, path, _FREE) for each in (costs, alone))
                drift = costs.rate(kind, _FREE) / alone.rate(kind, _FREE)
                key = f"{path}@{REAL} {kind} {family}"
                table.put(key, costs.rate(kind, path), alone.rate(kind, path) * drift, now / then)
                if family == 6:
                    table.curve(path, kind, REAL, now)


def _put(table: Table, family: int, costs: Costs) -> None:
    for kind in KINDS:
        rows = [(_FW, _DOCKER), (_FW, _TRACKED), (_PROTECTED, _DOCKER)]
        for path, base in rows[:1] if kind == "bulk" else rows:
            costs.put(table, f"{path}/{base} {kind} {family}", kind, path, base)
        for path in (_TRACKED, _DOCKER, _FW, _PROTECTED):
            name = f"{_NAMES[path]}: {kind}, {FAMILIES[family]}, to a host without any rule"
            value, baseline, ratio = costs.result(kind, path, _FREE)
            table.detail("packets", name, value, KINDS[kind], baseline, ratio)
            if family == 6 and kind != "bulk":
                table.curve(path, kind, 1, ratio)


@contextmanager
def _free(bed: Bed) -> Iterator[Target]:
    """Yield a host and a container without Docker: two namespaces without any table or connection tracking."""
    with _plain(bed, 2) as (_, target):
        yield target


@contextmanager
def _tracked(bed: Bed) -> Iterator[Target]:
    """Yield the same with connection tracking and one rule."""
    with _plain(bed, 5) as (host, target):  # engines have 1 and 3
        host.run(["nft", "-f", "-"], input=_ONE_ACCEPT)
        yield replace(target, settle=lambda: flush(host.path))


@contextmanager
def _plain(bed: Bed, number: int) -> Iterator[tuple[Netns, Target]]:
    """Yield a host without Docker, and a container; `number`: of its link to the outsider."""
    claim = Claim("p")
    host, container = NamedNetns(claim.name), NamedNetns(f"{claim.name}c")
    claim.record.netns += [host.name, container.name]
    claim.save()
    try:
        host.make()
        container.make()
        cable(bed.engine.wan, host, number)
        addresses = {4: f"10.79.{number}.2", 6: f"2001:db8:d:{number}::2"}
        host.ip(
            "link add bridge0 type bridge nf_call_iptables 0 nf_call_ip6tables 0",
            f"addr add 10.79.{number}.1/24 dev bridge0",
            f"addr add 2001:db8:d:{number}::1/64 dev bridge0 nodad",
            "link set bridge0 up",
            f"link add port0 type veth peer name eth0 netns {container.name}",
            "link set port0 master bridge0 up",
        )
        container.ip(
            f"addr add {addresses[4]}/24 dev eth0",
            f"addr add {addresses[6]}/64 dev eth0 nodad",
            "link set eth0 up",
            f"route add default via 10.79.{number}.1",
            f"route add ::/0 via 2001:db8:d:{number}::1",
        )
        off = {f"net/bridge/bridge-nf-call-{kind}": 0 for kind in ("iptables", "ip6tables")}
        host.sysctl({"net/ipv4/conf/all/forwarding": 1, "net/ipv6/conf/all/forwarding": 1, **off})
        route(bed.engine.wan, number, addresses)
        yield host, Target(bed.engine.wan.path, container.path, addresses)
    finally:
        claim.release()


@contextmanager
def _docker(bed: Bed) -> Iterator[Target]:
    """Yield the only container on a Docker bridge, on the engine without docker-fw."""
    with _alone(bed, bed.bare, "bridge", "packets-bridge", bed.routed, _PORTS) as target:
        yield target


@contextmanager
def _protected(bed: Bed) -> Iterator[Target]:
    """Yield the same on the engine with docker-fw, where a label opens the port."""
    with _alone(bed, bed.engine, "bridge", "packets-protected", bed.routed, (*_PORTS, *_LABEL)) as target:
        yield target


@contextmanager
def _ours(bed: Bed) -> Iterator[Target]:
    """Yield the only container on a docker-fw network."""
    with _alone(bed, bed.engine, bed.fw.driver, "packets-fw", (), _LABEL) as target:
        yield target


@contextmanager
def _one_more(bed: Bed, network: str) -> Iterator[Target]:
    """Start one more container beside the crowd.

    It is on this network alone, so its replies return through it.
    """
    ports = _PORTS if network == PROTECTED else ()
    with _container(bed, bed.engine, f"packets-{network}", network, (*ports, *_LABEL)) as target:
        yield target


@contextmanager
def _alone(
    bed: Bed, engine: Engine, driver: str, name: str, network: tuple[str, ...], options: tuple[str, ...]
) -> Iterator[Target]:
    bed.network(driver, name, *network, engine=engine)
    try:
        with _container(bed, engine, name, name, options) as target:
            yield target
    finally:
        engine.docker("network", "rm", name)


@contextmanager
def _container(bed: Bed, engine: Engine, name: str, network: str, options: tuple[str, ...]) -> Iterator[Target]:
    engine.docker("run", "-d", "--name", name, "--network", network, *options, "busybox", "sleep", "inf")
    try:
        target = _target(engine, name, network)
        if "bench0" not in engine.host.netns.run(["ip", "-o", "link"]).stdout:
            cable(engine.wan, engine.host.netns, engine.host.number)
        route(engine.wan, engine.host.number, target.addresses)
        yield target
    finally:
        engine.docker("rm", "-f", name)


def _target(engine: Engine, container: str, network: str) -> Target:
    addresses = dict(zip((4, 6), engine.address(container, network), strict=True))
    host = engine.host.netns.path
    return Target(engine.wan.path, engine.netns(container).path, addresses, lambda: flush(host))
