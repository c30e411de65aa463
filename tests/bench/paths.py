"""Compare paths of packets: all of them in each turn, so that other load affects all alike; ratios are of pairs.

The outsider is connected straight to each host: the lab's own link passes a bridge, which costs all paths alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from plugin.kernel import netlink as nl
from tests.bench.table import Table, median
from tests.bench.traffic import Datagrams, Path, new_flows, within
from tests.lab.netns import NamedNetns, Netns

#: Datagrams, connections and bytes in one run: some 50 ms each, so that other load affects all paths alike.
_DATAGRAMS, _FLOWS, _CONNECTS, _BYTES = 8000, 6000, 400, 1 << 28
_DELETE = (1 << 8) | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE


@dataclass(frozen=True)
class Target:
    """A container: the paths of the outsider's and of its own network namespace, its addresses by family.

    `settle` is as a `Path` has it.
    """

    wan: str
    netns: str
    addresses: Mapping[int, str]
    settle: Callable[[], None] = lambda: None


class Costs:
    """The cost of each kind of packets on each path, turn by turn."""

    def __init__(self) -> None:
        self._costs: dict[tuple[str, str], list[float]] = defaultdict(list)

    def add(self, kind: str, path: str, cost: float) -> None:
        self._costs[kind, path].append(cost)

    def rate(self, kind: str, path: str) -> float:
        """Return the median rate of one CPU."""
        return (8 if kind == "bulk" else 1e9) / median(self._costs[kind, path])

    def ratio(self, kind: str, path: str, base: str) -> float:
        """Return how much of the base's rate the path has: the median of the pairs of each turn."""
        pairs = zip(self._costs[kind, base], self._costs[kind, path], strict=True)
        return median([theirs / ours for theirs, ours in pairs])

    def put(self, table: Table, key: str, kind: str, path: str, base: str) -> None:
        """Store a row's result."""
        table.put(key, *self.result(kind, path, base))

    def result(self, kind: str, path: str, base: str) -> tuple[float, float, float]:
        """Return a row's value, baseline and ratio."""
        return self.rate(kind, path), self.rate(kind, base), self.ratio(kind, path, base)


def compare(targets: Mapping[str, Target], family: int, rounds: int, kinds: Sequence[str]) -> Costs:
    """Measure packets of the outsider to each target, `rounds` times in alternating order."""
    paths = [Path(name, to.wan, to.netns, to.addresses[family], to.settle) for name, to in targets.items()]
    costs, small, fresh = Costs(), Datagrams(_DATAGRAMS, bytes(18), 18), new_flows(_FLOWS)
    for turn in range(rounds + 1):
        for path in paths if turn % 2 else reversed(paths):
            inward, outward = path.established(small)
            found = {"established in": inward, "established out": outward}
            found |= {"new UDP flows": path.new_flows(fresh), "TCP connects": path.connects(_CONNECTS)}
            if "bulk" in kinds:
                found["bulk"] = path.bulk(_BYTES)
            for kind in kinds if turn else ():  # the first finds neighbours and fills caches
                costs.add(kind, path.name, found[kind])
    return costs


def cable(wan: NamedNetns, host: Netns, number: int) -> None:
    """Connect the outsider straight to a host by a veth; `number` is the link's own on this wan."""
    name = f"bench{number}"
    host.ip("link add bench0 type veth peer name peer0")
    host.run(["ip", "link", "set", "peer0", "name", name, "netns", wan.name])
    for netns, link, end in ((host, "bench0", 1), (wan, name, 2)):
        netns.ip(
            f"addr add 192.0.2.{4 * number + end}/30 dev {link}",
            f"addr add 2001:db8:e:{number}::{end}/64 dev {link} nodad",
            f"link set {link} up",
        )


def route(wan: Netns, number: int, addresses: Mapping[int, str]) -> None:
    """Have the outsider reach these addresses by that link."""
    wan.ip(f"route replace {addresses[4]}/32 via 192.0.2.{4 * number + 1}")
    wan.ip(f"route replace {addresses[6]}/128 via 2001:db8:e:{number}::1")
    # The ports are free again at once after a removal: connections are reset, none waits.
    wan.sysctl({"net/ipv4/ip_local_port_range": "1024 65535"})


def flush(netns: str) -> None:
    """Forget all flows of a host."""

    def delete() -> None:
        with nl.open_socket() as sock:
            nl.request(sock, _DELETE, nl.NLM_F_ACK, nl.nfgen(0))

    within(netns, delete)
