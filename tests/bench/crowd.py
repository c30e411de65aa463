"""The real docker-fw processes in a host's network namespace, beside a simulated Docker API with a crowd of containers.

The API answers at once whatever the crowd: its JSON is as long as Docker's, and is written when a container is added,
not when it is asked for. The crowd's containers are on Docker networks, of a hundred each, and all have a label that
opens a port. No packet is sent to them, so they have no links.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from plugin.kernel import netlink as nl
from plugin.nftables import ruleset
from plugin.nftables.codec import bodies
from plugin.nftables.sets import Element
from tests.bench.traffic import within
from tests.kernel.fakedocker import FakeDocker
from tests.kernel.running import Running
from tests.kernel.site import Site
from tests.waiting import until

#: Containers of each Docker network of a crowd, and of each compose project.
SIZE, PROJECT = 100, 10
#: The port that the label of each container opens.
PORT = 8080
LABEL = str(PORT)
_GETSETELEM = (10 << 8) | 13
_numbers = itertools.count(1)
#: Seconds after which a crowd must be known.
_PATIENCE = 600.0


@dataclass
class Simulated:
    """A container of the simulated API. `state`: as Docker lists it; `network`: its network's ID, if it is attached."""

    number: int
    labels: Mapping[str, str]
    network: str
    network_name: str
    addr4: str
    addr6: str
    state: str = "running"
    #: Docker's key for its endpoint, until it reports the container's sandbox, and then
    sandbox: bool = True
    id: str = field(init=False)
    endpoint: str = field(init=False)

    def __post_init__(self) -> None:
        self.id, self.endpoint = f"c{self.number:063x}", f"e{self.number:063x}"

    @property
    def name(self) -> str:
        return f"c{self.number}"

    def attachment(self) -> dict[str, Any]:
        running = self.state == "running"
        return {
            "IPAMConfig": None,
            "Links": None,
            "Aliases": None,
            "MacAddress": "02:42:0a:00:00:02" if running else "",
            "DriverOpts": None,
            "GwPriority": 0,
            "NetworkID": self.network,
            "EndpointID": self.endpoint if running else "",
            "Gateway": "10.0.0.1" if running else "",
            "IPAddress": self.addr4 if running else "",
            "IPPrefixLen": 24,
            "IPv6Gateway": "",
            "GlobalIPv6Address": self.addr6 if running else "",
            "GlobalIPv6PrefixLen": 64,
            "DNSNames": None,
        }

    def listed(self) -> bytes:
        """Return it as `GET /containers/json` lists it."""
        return json.dumps(
            {
                "Id": self.id,
                "Names": [f"/{self.name}"],
                "Image": "busybox",
                "ImageID": "sha256:plain",
                "Command": "sleep inf",
                "Created": 1700000000,
                "Ports": [],
                "Labels": dict(self.labels),
                "State": self.state,
                "Status": "Up 2 hours" if self.state == "running" else "Created",
                "HostConfig": {"NetworkMode": self.network_name},
                "NetworkSettings": {"Networks": {self.network_name: self.attachment()}},
                "Mounts": [],
            }
        ).encode()

    def inspected(self) -> dict[str, Any]:
        """Return it as `GET /containers/ID/json` shows it."""
        return {
            "Id": self.id,
            "Name": f"/{self.name}",
            "Image": "sha256:plain",
            "State": {"Status": self.state, "Running": self.state == "running"},
            "HostConfig": {"NetworkMode": self.network_name, "PortBindings": {}, "PublishAllPorts": False},
            "Config": {"Image": "busybox", "Labels": dict(self.labels), "ExposedPorts": {}},
            "NetworkSettings": {"Ports": {}, "Networks": {self.network_name: self.attachment()}},
        }

    def entry(self) -> bytes:
        """Return its part of `GET /networks/ID`."""
        key = self.id if self.sandbox else f"ep-{self.endpoint}"
        shown = {
            "Name": self.name,
            "EndpointID": self.endpoint,
            "MacAddress": "02:42:0a:00:00:02",
            "IPv4Address": f"{self.addr4}/24",
            "IPv6Address": f"{self.addr6}/64",
        }
        return json.dumps({key: shown}).encode()[1:-1]


class CrowdDocker(FakeDocker):
    """A Docker API with many containers; `seconds` is how long its answers about single objects took, in all."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.version = "28.5.2"
        self.seconds = 0.0
        #: The IDs of the containers that were inspected.
        self.inspected: set[str] = set()
        self.heads: dict[str, dict[str, Any]] = {}
        self.members: dict[str, dict[str, bytes]] = {}
        self.known: dict[str, Simulated] = {}
        self._names: dict[str, str] = {}
        self._entries: dict[str, bytes] = {}
        self._list: bytes | None = None

    def network(self, identity: str, name: str, driver: str, *subnets: str) -> None:
        """Add a network without containers."""
        self.heads[identity] = {
            "Name": name,
            "Id": identity,
            "Created": "2026-01-01T00:00:00Z",
            "Scope": "local",
            "Driver": driver,
            "EnableIPv4": True,
            "EnableIPv6": True,
            "IPAM": {"Driver": "default", "Options": None, "Config": [{"Subnet": each} for each in subnets]},
            "Internal": False,
            "Options": {},
            "Labels": {},
        }
        self.members.setdefault(identity, {})

    def put(self, container: Simulated, *, attached: bool = True) -> None:
        """Add a container, or replace it; `attached`: its network shows it."""
        self.known[container.id] = container
        self._names[container.name] = container.id
        self._entries[container.id] = container.listed()
        self._list = None
        if attached:
            self.members[container.network][container.id] = container.entry()

    def drop(self, container: Simulated) -> None:
        """Remove a container."""
        del self.known[container.id], self._names[container.name], self._entries[container.id]
        self._list = None
        self.members[container.network].pop(container.id, None)

    def report(self, kind: str, action: str, identity: str, **attributes: str) -> int:
        """Send an event to every subscriber; return when, in nanoseconds."""
        now = time.time_ns()
        actor = {"ID": identity, "Attributes": attributes}
        event = {
            "Type": kind,
            "Action": action,
            "Actor": actor,
            "scope": "local",
            "time": now // 10**9,
            "timeNano": now,
        }
        if kind == "container":
            event |= {"status": action, "id": identity, "from": "busybox"}
        self.send(json.dumps(event).encode() + b"\n")
        return now

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        began = time.perf_counter()
        url = urlsplit(request.path)
        path, query = re.sub(r"^/v1\.\d+", "", url.path), parse_qs(url.query)
        if path == "/networks":
            self._reply(request, [{**head, "Containers": {}} for head in list(self.heads.values())])
            return
        if path == "/containers/json":
            filters = json.loads(query.get("filters", ["{}"])[0])
            self._body(request, b"[" + self._listing(filters) + b"]")
            if not filters:
                return
        elif (match := re.fullmatch(r"/networks/(\w+)", path)) and match[1] in self.heads:
            head = json.dumps(self.heads[match[1]]).encode()[:-1]
            members = b", ".join(list(self.members[match[1]].values()))
            self._body(request, head + b', "Containers": {' + members + b"}}")
        elif (match := re.fullmatch(r"/containers/(\w+)/json", path)) and match[1] in self.known:
            self._reply(request, self.known[match[1]].inspected())
            self.inspected.add(match[1])
        else:
            super()._answer(request)
        self.seconds += time.perf_counter() - began

    def _listing(self, filters: Mapping[str, Any]) -> bytes:
        if names := filters.get("name"):  # as docker-fw asks: one name, ^/NAME$
            identity = self._names.get(re.sub(r"\\(.)", r"\1", names[0][2:-1]), "")
            return self._entries.get(identity, b"")
        if ids := filters.get("id"):
            return self._entries.get(ids[0], b"")
        if self._list is None:
            self._list = b",".join(list(self._entries.values()))
        return self._list

    @staticmethod
    def _body(request: BaseHTTPRequestHandler, body: bytes) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


class Groups:
    """Control groups as on a host of docker-fw's users: one for docker-fw's processes, one for dockerd's."""

    def __init__(self) -> None:
        roots = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
        self.root = next((root for root in roots if (root / "cgroup.controllers").exists()), None)
        if self.root is None:
            raise RuntimeError("the bench needs control groups of version 2")
        self._own = self.root / f"docker-fw-bench-{os.getpid()}-{next(_numbers)}"
        self.processes, self._dockerd = self._own / "docker-fw", self._own / "dockerd"
        for each in (self._own, self.processes, self._dockerd):
            each.mkdir()

    @property
    def settings(self) -> dict[str, str]:
        return {"FW_CGROUP": str(self.root), "FW_DOCKERD_CGROUP": f"{self._own.name}/{self._dockerd.name}"}

    def remove(self) -> None:
        for each in (self.processes, self._dockerd, self._own):
            until(lambda each=each: _removed(each), f"{each} is removed")  # type: ignore[misc]


class Daemon(Running):
    """docker-fw as its image starts it, on a host of its own."""

    fake = CrowdDocker
    docker: CrowdDocker

    def __init__(self, site: Site) -> None:
        self._groups = Groups()
        super().__init__(site, **self._groups.settings)
        start = ("sh", "-ec", 'echo $$ > "$0"; exec "$@"', str(self._groups.processes / "cgroup.procs"))
        self.command = (*start, sys.executable, "-m", "plugin.daemon.start")
        self.crowd: list[Simulated] = []
        self._reader = within(site.host.path, nl.open_socket)

    def close(self) -> None:
        self._reader.close()
        super().close()
        self._groups.remove()

    def grow(self, count: int, *, peers: bool = False) -> None:
        """Have Docker list `count` containers. `peers`: each opens another port to its own project, by name."""
        first, docker = len(self.crowd), self.docker
        for n in range(first, count):
            self.crowd.append(
                self.container(n, {"fw.allow": LABEL} | (_peers(n, max(1, count // PROJECT)) if peers else {}))
            )
            docker.put(self.crowd[-1])
        docker.report("network", "create", self.crowd[-1].network, name="n", type="bridge")

    def container(self, number: int, labels: Mapping[str, str]) -> Simulated:
        """Return the nth container, on a Docker network that has space for it."""
        net, host = divmod(number, SIZE)
        identity, name = f"d{net:063x}", f"n{net}"
        v4, v6 = IPv4Address((10 << 24) + (net << 8)), IPv6Address((0x20010DB8C000 << 80) + (net << 64))
        if identity not in self.docker.heads:
            self.docker.network(identity, name, "bridge", f"{v4}/24", f"{v6}/64")
        return Simulated(number, labels, identity, name, str(v4 + host + 2), str(v6 + host + 2))

    def until_known(self) -> None:
        """Wait until the kernel has the exceptions of the whole crowd: of a sample, the last one included."""
        missing = self.crowd[:: max(1, len(self.crowd) // 200)] + self.crowd[-1:]

        def opened() -> bool:
            while missing and self.is_open(missing[-1]):
                missing.pop()
            return not missing

        until(opened, f"docker-fw has opened the ports of {len(self.crowd):,} containers", _PATIENCE)

    def is_open(self, container: Simulated) -> bool:
        """Return True if the kernel has the container's exceptions."""
        return all(self._has(element) for element in exceptions(container))

    def _has(self, element: Element) -> bool:
        (body,) = bodies((element,))
        try:
            return bool(nl.request(self._reader, _GETSETELEM, 0, body))
        except OSError:
            return False

    def boot(self) -> None:
        """Take the host to where docker-fw is started at a boot: no rules, no flows. Its containers are there."""
        self.stop()
        self.site.run("nft", "flush", "ruleset")
        self.site.forget_flows()

    def generation(self) -> int:
        """Return the number of the host's last transaction."""
        return ruleset.generation(self._reader)

    def pids(self) -> list[int]:
        """Return docker-fw's processes: gunicorn's first one, and its worker."""
        assert self.process
        master = self.process.pid
        children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        # An ended process has no command line.
        return [master, *(int(pid) for pid in children if Path(f"/proc/{pid}/cmdline").read_bytes())]

    def memory(self) -> float:
        """Return the proportional share of all processes, in bytes."""
        return sum(_pss(pid) for pid in self.pids())

    def cpu(self) -> float:
        """Return the CPU seconds of all processes, and of the programs that they started and waited for."""
        return sum(_ran(pid) for pid in self.pids())


def _removed(group: Path) -> bool:
    """Remove a control group; False while a process that has ended is still in it."""
    try:
        group.rmdir()
    except OSError:
        return False
    return True


def exceptions(container: Simulated) -> tuple[Element, Element]:
    """Return the elements for the port that a container's label opens."""
    return (
        Element("allow4", (IPv4Address(container.addr4), 6, PORT)),
        Element("allow6", (IPv6Address(container.addr6), 6, PORT)),
    )


def _peers(number: int, projects: int) -> dict[str, str]:
    """Return labels of a project whose members are on different networks: within one, all reach each other."""
    project = f"p{number % projects}"
    compose = {"project": project, "service": f"s{number // projects}", "container-number": "1", "oneoff": "False"}
    names = {f"com.docker.compose.{name}": value for name, value in compose.items()}
    return {"fw.allow": f"{LABEL}, 5432 from project:{project}", **names}


def _pss(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return 1024 * float(line.split()[1])
    raise RuntimeError(f"/proc/{pid}/smaps_rollup has no Pss")


def _ran(pid: int) -> float:
    """Return the nanoseconds of its threads that run, and the ticks of threads and programs that have ended."""
    threads = sum(int(Path(task, "schedstat").read_text().split()[0]) for task in _tasks(pid))
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return threads / 1e9 + sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")


def _tasks(pid: int) -> Iterator[Path]:
    return Path(f"/proc/{pid}/task").iterdir()
