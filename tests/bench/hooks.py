"""Measure the time inside the plugin of each hook, on the wire: from Docker's request to the plugin's answer.

Docker reaches the plugin through a recording proxy (a driver called `bench`), so its requests are real, with real
containers and the real look-up of their labels in Join. CreateNetwork and Program, of which Docker makes few, are
called directly. Two engines of the same version, one with few endpoints and one with many, are measured alternately.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import secrets
import time
import urllib.parse
from collections import defaultdict
from typing import Any

from tests.bench.bed import Bed, connect, disconnect
from tests.bench.table import Table, median, percentile, say
from tests.bench.wire import Client

_HOOKS = ("CreateNetwork", "CreateEndpoint", "Join", "Program", "Leave", "DeleteEndpoint")
#: Containers and endpoints of the small engine.
_FEW = (2, 10)
#: Docker's and the plugin's background work from earlier calls should not overlap the next ones…
_PAUSE = 0.05
#: …and if it all takes too long, fewer samples must be enough.
_LIMIT, _LEAST = 300.0, 30
_numbers = itertools.count(1)
Times = dict[str, list[float]]


def measure(bed: Bed, table: Table) -> None:
    bed.endpoints()
    scale = dataclasses.replace(bed.scale, containers=_FEW[0], endpoints=_FEW[1])
    say(f"hooks: a second engine, with {scale.endpoints} endpoints…")
    with Bed(bed.engine.version, scale) as small:
        small.endpoints()
        probes = {"few": Probe(small), "many": Probe(bed), "crowd": Probe(bed, "crowd")}
        times: dict[str, Times] = {name: defaultdict(list) for name in probes}
        end = time.monotonic() + _LIMIT
        for turn in range(bed.scale.hooks):
            if turn % 50 == 0:
                say(f"hooks: round {turn} of {bed.scale.hooks}…")
            if turn > _LEAST and time.monotonic() > end:
                break
            for name, probe in probes.items():
                probe.cycle(times[name])
                if turn % 2 and name != "crowd":
                    probe.direct(times[name])
                time.sleep(_PAUSE)
        for probe in probes.values():
            probe.close()
    _add_rows(table, times, bed)


def _add_rows(table: Table, times: dict[str, Times], bed: Bed) -> None:
    few, lots, crowd = times["few"], times["many"], times["crowd"]
    many = f"{bed.scale.endpoints:,}"
    for hook in _HOOKS:
        aim = "value < 15" if hook == "Join" else ""
        floor, what = ("Docker", "Docker's part of it") if hook == "Join" else ("nothing", "a hook that does nothing")
        for name, percent in (("p50", 50), ("p99", 99)):
            base, value, more = (1e3 * percentile(found, percent) for found in (few[floor], few[hook], lots[hook]))
            table.add(f"hooks: {hook} {name}, {_FEW[1]} endpoints vs {what}", value, "ms", base, aim)
            table.add(f"hooks: {hook} {name}, {many} endpoints vs {_FEW[1]}", more, "ms", value, aim)
    where = f"on a network of {bed.scale.containers} containers"
    for name, percent in (("p50", 50), ("p99", 99)):
        base, value = (1e3 * percentile(crowd[what], percent) for what in ("Docker", "Join"))
        table.add(f"hooks: Join {name}, {where} vs Docker's part of it", value, "ms", base, "value < 15")
    own = 1e3 * (median(crowd["Join"]) - median(crowd["Docker"]))
    base = 1e3 * (median(few["Join"]) - median(few["Docker"]))
    table.add(f"hooks: Join p50 without Docker's part, {where} vs alone", own, "ms", base)
    table.note(f"hooks: {len(few['Join'])} samples; Docker's part of Join: the same two questions, asked by the bench")


class Probe:
    """A container that is connected to a docker-fw network and disconnected, again and again."""

    def __init__(self, bed: Bed, crowd: str = "") -> None:
        self._bed = bed
        self._name = f"probe{next(_numbers)}"
        self._plugin = bed.plugin()
        bed.start(self._name, "bridge")
        self._own = "" if crowd else f"{self._name}-net"
        if self._own:
            bed.network("bench", self._own)
        self._network = crowd or self._own
        self._id = json.loads(bed.engine.docker("network", "inspect", self._network))[0]["Id"]

    def cycle(self, times: Times) -> None:
        """Call CreateEndpoint, Join, Leave, DeleteEndpoint, as Docker does."""
        docker = self._bed.docker
        self._bed.recorder.take()
        connect(docker, self._network, self._name)
        times["Docker"].append(look_up(docker, self._id, self._name))
        disconnect(docker, self._network, self._name)
        for hook, seconds in self._bed.recorder.take():
            times[hook].append(seconds)

    def direct(self, times: Times) -> None:
        """Call CreateNetwork and Program, for a network that Docker does not know."""
        network, endpoint = secrets.token_hex(32), {"NetworkID": "", "EndpointID": secrets.token_hex(32)}
        endpoint["NetworkID"] = network
        times["nothing"].append(self._call("DiscoverNew"))
        created = self._call(
            "CreateNetwork",
            NetworkID=network,
            Options={"com.docker.network.generic": {}},
            IPv4Data=[{"Pool": "10.78.0.0/24", "Gateway": "10.78.0.1/24"}],
            IPv6Data=[{"Pool": "2001:db8:c::/64", "Gateway": "2001:db8:c::1/64"}],
        )
        times["CreateNetwork"].append(created)
        interface = {"Address": "10.78.0.2/24", "AddressIPv6": "2001:db8:c::2/64"}
        self._call("CreateEndpoint", **endpoint, Interface=interface, Options={})
        self._call("Join", **endpoint, SandboxKey="", Options={})
        port = {"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 0, "HostPortEnd": 0}
        options = {"com.docker.network.portmap": [port]}
        times["Program"].append(self._call("ProgramExternalConnectivity", **endpoint, Options=options))
        self._call("RevokeExternalConnectivity", **endpoint)
        self._call("DeleteNetwork", NetworkID=network)

    def close(self) -> None:
        self._plugin.close()
        self._bed.engine.try_docker("rm", "-f", self._name)
        if self._own:
            self._bed.engine.try_docker("network", "rm", self._own)

    def _call(self, hook: str, **body: Any) -> float:
        return self._plugin.must("POST", f"/NetworkDriver.{hook}", body).seconds


def look_up(docker: Client, network: str, container: str) -> float:
    """Return the seconds that Docker takes for the two answers that Join needs."""
    wanted = urllib.parse.quote(json.dumps({"name": [f"^/{container}$"]}))
    first = docker.must("GET", f"/networks/{network}")
    return first.seconds + docker.must("GET", f"/containers/json?all=1&filters={wanted}").seconds
