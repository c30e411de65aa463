"""Measure packets from outside to a container, on four paths.

Through a docker-fw network; through Docker's bridge, protected by docker-fw; through Docker's bridge on an engine that
has no docker-fw; through a host without any rule; through one with connection tracking and a single `accept`, which any
stateful firewall costs at least. The paths are alike: outsider, veth, a host that forwards, bridge, veth, container.
Established: small datagrams of one answered UDP flow. Rates are per second of one CPU, see `traffic`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from plugin.kernel import netlink as nl
from tests.bench.bed import LABEL, PROTECTED, Bed
from tests.bench.table import Table, percentile, say
from tests.bench.traffic import PORT, Datagrams, Path, new_flows, within
from tests.lab import Engine
from tests.lab.claims import Claim
from tests.lab.netns import NamedNetns, Netns

_KINDS = {
    "established UDP in": "packets/s",
    "established UDP out": "packets/s",
    "new UDP flows": "flows/s",
    "TCP connects": "connects/s",
    "bulk TCP": "Gbit/s",
}
_FREE, _TRACKED, _DOCKER, _FW = "rule-free", "connection tracking", "Docker's bridge", "docker-fw"
_PROTECTED = "Docker's bridge, protected"
#: Docker leaves it open to packets that are routed to the container.
_PORTS = ("-p", f"{PORT}:{PORT}/tcp", "-p", f"{PORT}:{PORT}/udp")
#: …and so does docker-fw.
_LABEL = ("--label", f"fw.allow={LABEL}")
_DELETE = (1 << 8) | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
#: Datagrams, connections and bytes in one run: some 50 ms each, so that other load affects all paths alike.
_DATAGRAMS, _FLOWS, _CONNECTS, _BYTES = 8000, 6000, 400, 1 << 28
#: Docker's own figures for comparison are those of 28.5.2 (NFTABLES: .57/.70/.62 of the rule-free path).
_AIM = "ratio > 0.95"
#: Of docker-fw networks to connection tracking alone, in the order of `_KINDS`.
_TRACKED_AIMS = ("ratio > 0.97", "ratio > 0.97", "ratio > 0.88", "ratio > 0.97", "ratio > 0.97")
_ONE_ACCEPT = """\
table inet one {
	chain forward {
		type filter hook forward priority filter; policy accept;
		ct state established,related accept
	}
}
"""
Rates = dict[tuple[str, str], float]


class Packets:
    """Measure in two states: with one container on a network, and with the crowd. They share the other paths."""

    def __init__(self) -> None:
        self._alone: dict[int, Rates] = {}

    def one(self, bed: Bed, table: Table) -> None:
        with (
            _free(bed) as free,
            _tracked(bed) as tracked,
            _docker(bed) as docker,
            _ours(bed) as ours,
            _protected(bed) as protected,
        ):
            targets = {_FREE: free, _TRACKED: tracked, _DOCKER: docker, _FW: ours, _PROTECTED: protected}
            for family in bed.scale.families:
                self._alone[family] = _measure(bed, table, family, "1 container", targets)

    def many(self, bed: Bed, table: Table) -> None:
        bed.protected()
        count = bed.scale.containers
        with (
            _free(bed) as free,
            _tracked(bed) as tracked,
            _docker(bed) as docker,
            _one_more(bed, "crowd") as ours,
            _one_more(bed, PROTECTED) as protected,
        ):
            targets = {_FREE: free, _TRACKED: tracked, _DOCKER: docker, _FW: ours, _PROTECTED: protected}
            rates = _measure(bed, table, 6, f"{count} containers", targets)
        alone = self._alone.get(6)
        if alone is None:
            return
        for kind, unit in _KINDS.items():
            drift = rates[kind, _FREE] / alone[kind, _FREE]
            for path, of in ((_FW, ""), (_PROTECTED, f": {_PROTECTED},")):
                name = f"packets: {kind}, IPv6, {count} containers{of} vs 1 (by the rule-free path's own drift)"
                table.add(name, rates[kind, path], unit, alone[kind, path] * drift, _AIM)


@dataclass(frozen=True)
class Target:
    """A container: the path of its network namespace, its addresses by family; `settle` as a `Path` has it."""

    netns: str
    addresses: dict[int, str]
    settle: Callable[[], None] = lambda: None


def _measure(bed: Bed, table: Table, family: int, state: str, targets: Mapping[str, Target]) -> Rates:
    say(f"packets: IPv{family}, {state}…")
    wan = bed.engine.wan.path
    paths = [Path(name, wan, to.netns, to.addresses[family], to.settle) for name, to in targets.items()]
    small, fresh = Datagrams(_DATAGRAMS, bytes(18), 18), new_flows(_FLOWS)
    costs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for turn in range(bed.scale.rounds + 1):
        for path in paths if turn % 2 else reversed(paths):
            inward, outward = path.established(small)
            found = (inward, outward, path.new_flows(fresh), path.connects(_CONNECTS), path.bulk(_BYTES))
            for kind, cost in zip(_KINDS, found, strict=True):
                if turn:  # the first finds neighbours and fills caches
                    costs[kind, path.name].append(cost)
    # The lower quartile: other work on the CPU's second thread only ever adds to a cost.
    quartiles = {key: percentile(values, 25) for key, values in costs.items()}
    rates = {key: (8 if key[0] == "bulk TCP" else 1e9) / cost for key, cost in quartiles.items()}
    for (kind, unit), aim in zip(_KINDS.items(), _TRACKED_AIMS, strict=True):
        where = f"packets: {kind}, IPv{family}, {state}"
        table.add(f"{where} vs rule-free", rates[kind, _FW], unit, rates[kind, _FREE])
        table.add(f"{where} vs {_TRACKED} alone", rates[kind, _FW], unit, rates[kind, _TRACKED], aim)
        table.add(f"{where} vs Docker's bridge", rates[kind, _FW], unit, rates[kind, _DOCKER], _AIM)
        table.add(f"{where}: {_PROTECTED} vs rule-free", rates[kind, _PROTECTED], unit, rates[kind, _FREE])
        table.add(
            f"{where}: {_PROTECTED} vs Docker's bridge", rates[kind, _PROTECTED], unit, rates[kind, _DOCKER], _AIM
        )
        if state == "1 container":
            table.add(f"{where}: Docker's bridge vs rule-free", rates[kind, _DOCKER], unit, rates[kind, _FREE])
    table.note("packets: rates are per second of one CPU (the sender's thread, which carries the whole path)")
    return rates


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
        yield replace(target, settle=lambda: within(host.path, _flush))


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
        _cable(bed, host, number)
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
        _route(bed, number, addresses)
        yield host, Target(container.path, addresses)
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
            _cable(bed, engine.host.netns, engine.host.number)
        _route(bed, engine.host.number, target.addresses)
        yield target
    finally:
        engine.docker("rm", "-f", name)


def _target(engine: Engine, container: str, network: str) -> Target:
    addresses = dict(zip((4, 6), engine.address(container, network), strict=True))
    host = engine.host.netns.path
    return Target(engine.netns(container).path, addresses, lambda: within(host, _flush))


def _cable(bed: Bed, host: Netns, number: int) -> None:
    """Connect the outsider straight to a host by a veth.

    The lab's own link passes a bridge, which costs all paths alike.
    """
    wan, name = bed.engine.wan, f"bench{number}"
    host.ip("link add bench0 type veth peer name peer0")
    host.run(["ip", "link", "set", "peer0", "name", name, "netns", wan.name])
    for netns, link, end in ((host, "bench0", 1), (wan, name, 2)):
        netns.ip(
            f"addr add 192.0.2.{4 * number + end}/30 dev {link}",
            f"addr add 2001:db8:e:{number}::{end}/64 dev {link} nodad",
            f"link set {link} up",
        )


def _route(bed: Bed, number: int, addresses: dict[int, str]) -> None:
    wan = bed.engine.wan
    wan.ip(f"route replace {addresses[4]}/32 via 192.0.2.{4 * number + 1}")
    wan.ip(f"route replace {addresses[6]}/128 via 2001:db8:e:{number}::1")
    # The ports are free again at once after a removal: connections are reset, none waits.
    wan.sysctl({"net/ipv4/ip_local_port_range": "1024 65535"})


def _flush() -> None:
    with nl.open_socket() as sock:
        nl.request(sock, _DELETE, nl.NLM_F_ACK, nl.nfgen(0))
