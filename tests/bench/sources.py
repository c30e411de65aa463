"""Measure rules with `from`: the cost of a packet and a change beside ten thousand containers with as many lists.

Each list is different. It runs in a namespace and a process of its own; nothing here needs Docker.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface
from random import Random
from typing import Any

from plugin.kernel import netlink as nl
from plugin.model import Container, Defaults, Endpoint, Network, Peer, PolicySpec, Rule
from plugin.policy.facts import Facts
from plugin.policy.saved import SavedState
from plugin.state.reconciler import Reconciler
from plugin.state.store import Store
from tests.bench.bed import Bed
from tests.bench.child import measured
from tests.bench.table import Table, percentile, say
from tests.bench.traffic import PORT, Path, new_flows
from tests.kernel.site import Site

_LIST = 5  # prefixes in each list
_FLOWS, _ROUNDS, _CHANGES = 4000, 12, 40
_NET = Network(
    "b" * 64, "fw-bench", IPv4Interface("10.99.0.1/16"), IPv6Interface("2001:db8:99::1/64"), masquerade=False
)
_CT_DELETE = (1 << 8) | 2


def measure(bed: Bed, table: Table) -> None:
    many = bed.scale.lists
    say(f"sources: new flows and changes beside {many:,} containers with a `from` list of their own")
    results = measured("sources", many)
    for kind in ("to an open port", "to a port that is open to a list"):
        few, crowd = results["few"][kind], results["many"][kind]
        name = f"sources: new UDP flows {kind}, beside {many:,} lists vs beside none"
        table.add(name, 1e9 / crowd, "flows/s", 1e9 / few, "ratio > 0.95")
    listed, plain = results["few"]["to a port that is open to a list"], results["few"]["to an open port"]
    table.add(
        "sources: new UDP flows to a port that is open to a list vs to everybody", 1e9 / listed, "flows/s", 1e9 / plain
    )
    for what in ("in", "out", "peer"):
        words = {
            "in": "a container with a list comes",
            "out": "it goes",
            "peer": "a peer of one container comes or goes",
        }
        name = f"sources: {words[what]}, beside {many:,} lists vs beside none"
        table.add(name, results["many"][what] * 1e3, "ms", results["few"][what] * 1e3, "ratio < 1.5")
    table.add(
        f"sources: the whole table anew, {many:,} lists ({results['elements']:,} elements)",
        results["replace"] * 1e3,
        "ms",
    )


def _lists(random: Random) -> Iterator[Rule]:
    while True:
        peers = {
            Peer("prefix", f"2001:db8:{random.randrange(1 << 16):x}:{random.randrange(1 << 16):x}::/64")
            for _ in range(_LIST)
        }
        yield Rule("udp", PORT, PORT, tuple(sorted(peers)))


def _crowd(count: int) -> dict[str, Endpoint]:
    lists, first = _lists(Random(1)), int(IPv6Address("2001:db8:99::1:0"))
    return {
        f"{n:064x}": Endpoint(
            f"{n:064x}",
            _NET.id,
            addr6=IPv6Address(first + n),
            joined=True,
            container=Container(f"{n:064x}", f"c{n}", PolicySpec(allow=(next(lists),))),
        )
        for n in range(count)
    }


def _child(many: int) -> dict[str, Any]:
    with Site() as site:
        ours = site.network(1)
        boxes = {"to an open port": site.box(ours, 2), "to a port that is open to a list": site.box(ours, 3)}
        results: dict[str, Any] = {}
        fresh = new_flows(_FLOWS)
        for state, count in (("few", 0), ("many", many)):
            # `from` of each prefix length that the rules look up, so that the outsider's is found after all the others.
            mine = Rule("udp", PORT, PORT, (Peer("prefix", "2001:db8:5::/48"), Peer("prefix", "2001:db8:ffff::/48")))
            open_to = {"to an open port": Rule("udp", PORT, PORT), "to a port that is open to a list": mine}
            known = {
                box.endpoint.id: replace(
                    box.endpoint, container=Container("c", "web", PolicySpec(allow=(open_to[kind],)))
                )
                for kind, box in boxes.items()
            }
            state_ = SavedState({_NET.id: _NET, ours.id: ours}, {**known, **_crowd(count)})
            with site.inside(), tempfile.TemporaryDirectory() as directory:
                reconciler = Reconciler(site.nft, Store(f"{directory}/state"), Defaults(), later=lambda work: None)
                began = time.perf_counter()
                reconciler.start(Facts(state_))
                results["replace"], results["elements"] = time.perf_counter() - began, len(reconciler.should()[1])
                results[state] = {kind: _flows(site, box.path, str(box.v6), fresh) for kind, box in boxes.items()}
                results[state] |= _changes(reconciler)
        return results


def _flows(site: Site, server: str, address: str, fresh: Any) -> float:
    path = Path("", site.wan.path, server, address, lambda: _forget(site))
    return percentile([path.new_flows(fresh) for _ in range(_ROUNDS)], 25)


def _forget(site: Site) -> None:
    with site.inside(), nl.open_socket() as sock:
        nl.request(sock, _CT_DELETE, nl.NLM_F_ACK, nl.nfgen(0))


def _changes(reconciler: Reconciler) -> dict[str, float]:
    """Return the median in seconds, on a disk in memory; the state file is as long as the crowd."""
    lists, times = _lists(Random(2)), dict[str, list[float]]({"in": [], "out": [], "peer": []})
    asker = _one(1, Rule("udp", PORT, PORT, (Peer("container", "peer"),)))
    reconciler.put_endpoint(asker)
    for _ in range(_CHANGES):
        newcomer, peer = _one(2, next(lists)), _one(3, name="peer")
        for kind, work in (
            ("in", partial(reconciler.put_endpoint, newcomer)),
            ("out", partial(reconciler.drop_endpoint, newcomer.id)),
            ("peer", partial(reconciler.put_endpoint, peer)),
            ("peer", partial(reconciler.drop_endpoint, peer.id)),
        ):
            began = time.perf_counter()
            work()
            times[kind].append(time.perf_counter() - began)
    return {kind: percentile(values, 50) for kind, values in times.items()}


def _one(number: int, *rules: Rule, name: str = "") -> Endpoint:
    identity = f"f{number:063x}"
    container = Container(identity, name or f"one{number}", PolicySpec(allow=rules))
    return Endpoint(identity, _NET.id, addr6=IPv6Address(f"2001:db8:99::{number}"), joined=True, container=container)


if __name__ == "__main__":
    print(json.dumps(_child(int(sys.argv[1]))))
