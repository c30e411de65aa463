"""Measure how soon the kernel reflects a container's removal, beside ten thousand containers whose rules name peers.

It runs in a namespace and a process of its own; nothing here needs Docker. The time is from the call, a hook's or an
event's, to the return of the transaction after which neither its own ports are open nor others' ports to its address.
The bench also measures the cost of reading 4 KB of labels, whatever their content.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from types import MappingProxyType
from typing import Any

from plugin.docker.tracker import EndpointTracker
from plugin.labels import parser
from plugin.labels.grammar import MAX_LENGTH
from plugin.labels.keys import KEYS
from plugin.model import BridgeNetwork, Container, Defaults, Endpoint, Network, Peer, PolicySpec, Rule
from plugin.nftables.sets import Change, Element
from plugin.nftables.table import KernelTable
from plugin.policy.facts import Facts
from plugin.policy.saved import SavedState
from plugin.state.reconciler import Reconciler
from plugin.state.store import Store
from tests.bench.bed import Bed
from tests.bench.child import measured
from tests.bench.table import Table, percentile, say
from tests.kernel.site import Site

#: Members of each project of the crowd, and of the one whose members leave: each names all of its own project.
_SMALL, _LARGE = 10, 100
_NET = Network(
    "b" * 64, "fw-bench", IPv4Interface("10.99.0.1/16"), IPv6Interface("2001:db8:99::1/64"), masquerade=False
)
_DOCKER_NETWORK = BridgeNetwork(
    "d" * 64, "bench", "br-bench", (IPv4Network("10.98.0.0/16"), IPv6Network("2001:db8:98::/64")), mode6="routed"
)
#: The known texts that cost most to read: each repeated, to 4 KB.
_TEXTS = (
    "1 ",
    "22 from ",
    "22 from 10.0.0.1/33,",
    "1-65534 from ::/1,",
    "1 from container:a,",
    "22 5/minute ",
    "1\t",
    "22 5/minute burst 1,",
    "\n",
    "1::1 ",
    "22 form 1,",
)
_ROUNDS = 15


def measure(bed: Bed, table: Table) -> None:
    many = bed.scale.lists
    say(f"leaving: containers go beside {many:,} that name their peers")
    add_rows(table, measured("leaving", many, timeout=1800), many)


def add_rows(table: Table, results: Mapping[str, Any], many: int) -> None:
    for kind, where in (("hook", "docker-fw's network (Leave)"), ("event", "Docker's network (die)")):
        few, crowd = results["few"][kind], results["many"][kind]
        for part, words, percent, aim in (
            ("closed", "closed", 50, ""),
            ("closed", "closed", 99, "value < 5"),
            ("work", "closed, work for it", 50, ""),
            ("work", "closed, work for it", 99, "value < 5"),
            ("done", "all done", 50, ""),
        ):
            what = f"leaving: {words}, on {where}, p{percent}, beside {many:,} with peers by name vs beside none"
            value, base = (1e3 * percentile(times[part], percent) for times in (crowd, few))
            table.add(what, value, "ms", base, aim)
    for key, (worst, text, plain) in results["labels"].items():
        table.add(f"labels: 4 KB of {key}, the slowest ({text!r}) vs 256 ports", worst, "ms", plain, "value < 10")


class Watched:
    """`KernelTable`, with the time when the last element that opens for an address was removed."""

    def __init__(self, nft: KernelTable, elements: Iterable[Element], addresses: Iterable[IPv6Address]) -> None:
        self._change = nft.change
        self._open: dict[object, set[Element]] = {address: set() for address in addresses}
        for element in elements:
            self._noted(element)
        self._waiting: set[Element] = set()
        self._closed = 0.0, 0.0
        nft.change = self._watched  # type: ignore[method-assign]

    def _noted(self, element: Element) -> None:
        if element.set.startswith(("allow", "from", "egress_allow", "egress_to", "egress_all")):
            for value in element.key:
                if type(value) is IPv6Address and value in self._open:
                    self._open[value].add(element)

    def _watched(self, change: Change, timed: Mapping[Element, int] = MappingProxyType({})) -> None:
        self._change(change, timed)
        if self._waiting:
            self._waiting.difference_update(change.remove)
            if not self._waiting:
                self._closed = time.perf_counter(), time.thread_time()
        for opened in self._open.values():
            opened.difference_update(change.remove)
        for element in change.add:
            self._noted(element)

    def leave(self, address: IPv6Address, go: Callable[[], object]) -> dict[str, float]:
        """Return seconds until it was closed, how many of them this process worked, and seconds until `go` returned."""
        self._waiting = set(self._open[address])
        assert self._waiting
        began, worked = time.perf_counter(), time.thread_time()
        go()
        done = time.perf_counter()
        assert not self._waiting, "it is not closed"
        return {"closed": self._closed[0] - began, "work": self._closed[1] - worked, "done": done - began}


def _members(network: Network | BridgeNetwork, first: int, count: int, size: int, name: str) -> Iterator[Endpoint]:
    prefix = 99 if isinstance(network, Network) else 98
    for n in range(first, first + count):
        project = f"{name}{n // size}"
        spec = PolicySpec(allow=(Rule("tcp", 5432, 5432, (Peer("project", project),)), Rule("tcp", 8080, 8080)))
        identity = f"{prefix:02x}{n:062x}"
        container = Container(identity, f"{name}{n}", spec, project=project, service=f"s{n}")
        four = IPv4Address(f"10.{prefix}.{n >> 8}.{n & 255}")
        six = IPv6Address(f"2001:db8:{prefix}::{n:x}")
        yield Endpoint(identity, network.id, four, six, joined=True, container=container)


def _child(many: int) -> dict[str, Any]:
    results: dict[str, Any] = {"labels": _labels()}
    with Site() as site, site.inside(), tempfile.TemporaryDirectory() as directory:
        change = site.nft.change
        for state, count in (("few", 0), ("many", many)):
            results[state] = {}
            for kind, network in (("hook", _NET), ("event", _DOCKER_NETWORK)):
                crowd = list(_members(network, 1024, count, _SMALL, "crowd"))
                leavers = list(_members(network, 0, _LARGE, _LARGE, "leaver"))[2:]
                reconciler = Reconciler(site.nft, Store(f"{directory}/{state}{kind}"), Defaults(), later=lambda _: None)
                site.nft.change = change  # type: ignore[method-assign]
                go = (_hook if kind == "hook" else _event)(reconciler, crowd, leavers)
                watched = Watched(site.nft, reconciler.should()[1], [each.addr6 for each in leavers if each.addr6])
                results[state][kind] = _timed(watched, leavers, go)
    return results


def _hook(state: Reconciler, crowd: list[Endpoint], leavers: list[Endpoint]) -> Callable[[Endpoint], object]:
    state.start(Facts(SavedState({_NET.id: _NET}, {each.id: each for each in (*crowd, *leavers)})))
    # The first save writes everything; each later one is a line.
    state.put_endpoint(replace(leavers[0], mac="02:00:00:00:00:01"))

    return lambda each: state.edit_endpoint(each.id, lambda e: replace(e, joined=False, container=None, published=()))


def _event(state: Reconciler, crowd: list[Endpoint], leavers: list[Endpoint]) -> Callable[[Endpoint], object]:
    state.start(Facts())
    guard = EndpointTracker(state)
    guard.replace([_DOCKER_NETWORK], [*crowd, *leavers], asked=guard.now())

    def die(each: Endpoint) -> None:
        assert each.container
        guard.leaves("", each.container.id)

    return die


def _timed(watched: Watched, leavers: list[Endpoint], go: Callable[[Endpoint], object]) -> dict[str, Any]:
    times = []
    for each in leavers:
        assert each.addr6
        times.append(watched.leave(each.addr6, partial(go, each)))
    return {what: [each[what] for each in times] for what in ("closed", "work", "done")}


def _labels() -> dict[str, tuple[float, str, float]]:
    """Return the slowest text of 4 KB for each key, in milliseconds, and the cost of plain ports."""
    found = {}
    for key in KEYS:
        times = [(_read(key, (text * MAX_LENGTH)[:MAX_LENGTH]), text) for text in _TEXTS]
        times += [(_read(key, ("22 from " + text * MAX_LENGTH)[:MAX_LENGTH]), "22 from " + text) for text in _TEXTS]
        found[key] = (*max(times), _read(key, ", ".join(str(3 * n + 1) for n in range(256))))
    return found


def _read(key: str, value: str) -> float:
    times = []
    for _ in range(_ROUNDS):
        began = time.thread_time()
        parser.parse({key: value})
        times.append(1e3 * (time.thread_time() - began))
    return percentile(times, 50)


if __name__ == "__main__":
    print(json.dumps(_child(int(sys.argv[1]))))
