"""The objects to measure: an engine with the managed plugin, one without, similar networks, and a crowd that grows."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType

from tests.bench.scale import Scale
from tests.bench.table import say
from tests.bench.traffic import PORT
from tests.bench.wire import Client
from tests.lab import Engine
from tests.product import Fw, with_plugin

#: An idle container with a label of docker-fw.
LABEL = f"8080, {PORT}/tcp, {PORT}/udp"
#: The Docker network that the crowd is also on.
PROTECTED = "protected"


class Bed:
    """An engine with the plugin; the rest, such as the crowd, is created at its first use."""

    def __init__(self, version: str, scale: Scale) -> None:
        self.scale = scale
        self.engine = Engine(version, data=with_plugin(version))
        self._numbers = itertools.count(1)
        self._bare: Engine | None = None
        self._crowd: list[str] = []
        self._protected = False

    def __enter__(self) -> Bed:
        self.engine.__enter__()
        try:
            self.fw = Fw.install(self.engine)
            self.docker = Client(self.engine.socket)
        except BaseException:
            self.engine.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if self._bare:
                self._bare.close()
        finally:
            self.engine.close()

    @property
    def bare(self) -> Engine:
        """A second engine of the same version on the same wan, which never saw docker-fw.

        On the first one Docker networks are protected, and with the plugin stopped nothing opens there at all.
        """
        if self._bare is None:
            say("starting a second Docker, without docker-fw…")
            self._bare = Engine(self.engine.version, wan=self.engine.wan).__enter__()
        return self._bare

    def plugin_pids(self) -> list[int]:
        """Return the plugin's processes, gunicorn's master first."""
        client = Client(self.fw.socket())
        # The listener is the process that called listen(2): the master.
        raw = client.socket().getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        client.close()
        master: int = struct.unpack("iII", raw)[0]
        children = [pid for pid, parent in _parents() if parent == master]
        return [master, *children]

    def network(self, driver: str, name: str, *options: str, engine: Engine | None = None) -> str:
        """Create a network with subnets of its own, IPv4 and IPv6; return its ID."""
        number = next(self._numbers)
        subnets = ("--ipv6", "--subnet", f"2001:db8:b:{number:x}::/64", "--subnet", f"10.77.{number}.0/24")
        return (engine or self.engine).docker("network", "create", "-d", driver, *subnets, *options, name)

    @property
    def routed(self) -> tuple[str, ...]:
        """Return options for a Docker network that accepts routed traffic: from 28 on only this mode does."""
        mode = "com.docker.network.bridge.gateway_mode_"
        recent = int(self.engine.version.partition(".")[0]) >= 28
        return ("-o", f"{mode}ipv4=routed", "-o", f"{mode}ipv6=routed") if recent else ()

    def start(self, name: str, network: str, client: Client | None = None) -> None:
        """Start a container that sleeps and has a label, by the API."""
        client = client or self.docker
        made = {
            "Image": "busybox",
            "Cmd": ["sleep", "inf"],
            "Labels": {"fw.allow": LABEL},
            "HostConfig": {"NetworkMode": network},
        }
        client.must("POST", f"/containers/create?name={name}", made)
        client.must("POST", f"/containers/{name}/start")

    def containers(self) -> list[str]:
        """Start the crowd: `scale.containers` containers on the network `crowd`."""
        if not self._crowd:
            say(f"starting {self.scale.containers} containers on one network…")
            self.network(self.fw.driver, "crowd")
            names = [f"crowd{n}" for n in range(self.scale.containers)]
            self._all(names, lambda client, name: self.start(name, "crowd", client))
            self._crowd = names
        return self._crowd

    def protected(self) -> None:
        """Connect the crowd's containers to `PROTECTED`, too, and wait until docker-fw knows them all there."""
        crowd = self.containers()
        if not self._protected:
            say(f"connecting them to a network of Docker's own, {PROTECTED}…")
            self.network("bridge", PROTECTED, *self.routed)
            self._protected = True
            self._all(crowd, partial(_connect_to, PROTECTED))
            end = time.monotonic() + 60
            while self._known() < len(crowd):
                if time.monotonic() > end:
                    raise RuntimeError(
                        f"docker-fw knows only {self._known()} of {len(crowd)} on {PROTECTED} after 60 s"
                    )
                time.sleep(0.2)

    def _known(self) -> int:
        (network,) = (network for network in self.fw.status()["guarded"] if network["name"] == PROTECTED)
        return sum(endpoint["known"] for endpoint in network["endpoints"])

    def _all(self, names: list[str], do: Callable[[Client, str], None], threads: int = 2) -> None:
        queue: SimpleQueue[str] = SimpleQueue()
        failed: list[Exception] = []
        for name in names:
            queue.put(name)

        def work() -> None:
            client = Client(self.engine.socket)
            try:
                while not failed:
                    do(client, queue.get_nowait())
            except Empty:
                pass
            except Exception as error:
                failed.append(error)
            client.close()

        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(600)
        if failed:
            raise failed[0]


def _connect_to(network: str, client: Client, container: str) -> None:
    client.must("POST", f"/networks/{network}/connect", {"Container": container})


def _parents() -> Iterator[tuple[int, int]]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        yield int(stat.parent.name), int(fields[1])
