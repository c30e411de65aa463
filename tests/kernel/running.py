"""The whole plugin as a process: the real gunicorn, worker and sockets, in a host's network namespace."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from plugin.kernel.names import bridge_name, container_side, host_side
from plugin.kernel.neighbours import PROTOCOL
from plugin.state.store import Store
from tests.kernel import preloaded
from tests.kernel.fakedocker import FakeDocker
from tests.kernel.site import MARK, Box, Site
from tests.recorded import GENERIC, PORTMAP
from tests.waiting import crowded, until

ROOT = Path(__file__).parents[2]
Body = dict[str, Any]
GUNICORN = (sys.executable, "-m", "gunicorn", "-c", "python:plugin.gunicorn_conf")
#: Each plugin loads its modules itself, as on a user's host: on request.
WHOLE = bool(os.environ.get("FW_TEST_WHOLE_STARTS"))


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket, as dockerd uses it with a plugin."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("plugin", timeout=timeout)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Running:
    """docker-fw on a site's host, beside a fake Docker. `call` does what dockerd would."""

    #: The program to start, if it is not gunicorn with the plugin's modules loaded already.
    command: tuple[str, ...] = ()
    #: The fake Docker to put beside it.
    fake: type[FakeDocker] = FakeDocker

    def __init__(self, site: Site, **environ: str) -> None:
        self.site = site
        self.directory = Path(tempfile.mkdtemp(prefix="fw-"))
        self.docker = self.fake(self.directory / "docker.sock")
        self.socket = self.directory / "fw.sock"
        self.state = self.directory / "state" / "state.json"
        self.log = self.directory / "log"
        self.environ = {
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            "PYTHONUNBUFFERED": "1",
            "FW_SOCKET": str(self.socket),
            "FW_DOCKER_SOCKET": str(self.docker.path),
            "FW_STATE": str(self.state),
            "FW_SYSCTL": "/proc/sys/net",
            "FW_MARK": hex(MARK),
            **environ,
        }
        self.process: subprocess.Popen[bytes] | preloaded.Forked | None = None

    def spawn(self) -> None:
        """Start the plugin without waiting for it."""
        with self.log.open("ab") as log:
            if not self.command and not WHOLE:
                self.process = preloaded.start(self.site.host.path, GUNICORN[3:], self.environ, log.fileno())
                return
            self.process = self.site.host.popen(
                self.command or GUNICORN,
                cwd=ROOT,
                env=self.environ,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def start(self) -> Running:
        """Start the plugin, and return when it answers."""
        self.spawn()
        until(self.answers, "the plugin answers", 15)
        return self

    def answers(self) -> bool:
        assert self.process
        assert self.process.poll() is None, f"the plugin ended:\n{self.log.read_text()[-3000:]}"
        try:
            return bool(self.call("Plugin.Activate", timeout=5) == {"Implements": ["NetworkDriver"]})
        except (OSError, http.client.HTTPException):  # killed amid its answer
            return False

    def stop(self) -> None:
        """Stop the plugin as Docker does: send SIGTERM and wait for its exit."""
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(15 * crowded())
            self.process = None

    def worker(self) -> int:
        """Return the worker's process ID."""
        assert self.process
        master = self.process.pid
        children = Path(f"/proc/{master}/task/{master}/children")
        found: list[str] = []

        def one() -> bool:  # read once: under load the kernel shows none for a moment
            found[:] = children.read_text().split()
            return len(found) == 1

        until(one, "gunicorn has its worker")
        return int(found[0])

    def kill_worker(self) -> None:
        """Send SIGKILL to the worker; return when another one answers."""
        worker = self.worker()
        os.kill(worker, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{worker}").exists() or self.worker() != worker, "the worker is dead")
        until(self.answers, "a new worker answers", 15)

    def close(self) -> None:
        try:
            self.stop()
        finally:
            self.docker.close()
            for path in sorted(self.directory.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            self.directory.rmdir()

    # --- calls ----------------------------------------------------------------------------------------------------

    def raw(
        self, method: str, path: str, data: bytes = b"", timeout: float = 10, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Send one request, as bytes; return its status and reply."""
        connection = UnixConnection(self.socket, timeout)
        try:
            accept = {"Accept": "application/vnd.docker.plugins.v1.2+json"}
            with contextlib.suppress(BrokenPipeError):  # refused before the whole request was sent; the answer is there
                connection.request(method, path, data, {**accept, **(headers or {})})
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def call(self, name: str, body: Any = None, timeout: float = 10) -> Any:
        """Make a call as dockerd does: no Content-Type; return the reply's JSON."""
        data = b"" if body is None else json.dumps(body).encode()
        status, reply = self.raw("POST", f"/{name}", data, timeout)
        assert status == 200, (status, reply)
        return json.loads(reply)

    def driver(self, name: str, body: Any = None, timeout: float = 10) -> Any:
        return self.call(f"NetworkDriver.{name}", body, timeout)

    def well(self, name: str, body: Any = None) -> Any:
        """Make a call that must succeed."""
        reply = self.driver(name, body)
        assert "Err" not in reply, reply["Err"]
        return reply

    def status(self) -> Any:
        status, reply = self.raw("GET", "/status")
        assert status == 200
        return json.loads(reply)

    def current_state(self) -> tuple[Any, ...]:
        """Return links, table, state file and status, without values that change by themselves."""
        counts = {"now", "dropped", "refused", "held"}

        def uncounted(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: uncounted(each) for key, each in value.items() if key not in counts}
            return [uncounted(each) for each in value] if isinstance(value, list) else value

        return self.links(), self.elements(), self.kept(), uncounted(self.status())

    # --- networks and containers, as dockerd creates them -------------------------------------------------------------

    def network(self, number: int, options: Body | None = None, **more: Any) -> Body:
        """Return CreateNetwork's body for 10.NUMBER.0.0/24 and 2001:db8:NUMBER::/64."""
        return {
            "NetworkID": f"{number:012x}".ljust(64, "0"),
            "Options": {GENERIC: options or {}, "com.docker.network.enable_ipv6": True},
            "IPv4Data": [{"Pool": f"10.{number}.0.0/24", "Gateway": f"10.{number}.0.1/24"}],
            "IPv6Data": [{"Pool": f"2001:db8:{number}::/64", "Gateway": f"2001:db8:{number}::1/64"}],
            **more,
        }

    def endpoint(self, network: Body, number: int, **options: Any) -> Body:
        """Return CreateEndpoint's body for the network's address .NUMBER; its other calls take it as well."""
        of = network["NetworkID"]
        net = int(of[:12], 16)
        return {
            "NetworkID": of,
            "EndpointID": f"{net:04x}{number:08x}".ljust(64, "e"),
            "Interface": {"Address": f"10.{net}.0.{number}/24", "AddressIPv6": f"2001:db8:{net}::{number:x}/64"},
            "Options": options,
            "SandboxKey": "/var/run/docker/netns/x",
        }

    def start_container(self, network: Body, number: int, labels: dict[str, str] | None = None, **options: Any) -> Body:
        """Start a container up to Join, and return Join's reply under "Joined"."""
        return self.join(self.endpoint(network, number, **options), f"c{number}", labels)

    def join(self, endpoint: Body, name: str, labels: dict[str, str] | None = None) -> Body:
        """Start a container with this endpoint up to Join, and return Join's reply under "Joined"."""
        self.docker.container(name, endpoint["EndpointID"], endpoint["NetworkID"], labels)
        self.well("CreateEndpoint", endpoint)
        return {**endpoint, "Joined": self.well("Join", endpoint)}

    def stop_container(self, endpoint: Body) -> None:
        """Stop a container."""
        for name in ("RevokeExternalConnectivity", "Leave", "DeleteEndpoint"):
            self.well(name, endpoint)

    def publish(self, endpoint: Body, host_port: int, port: int) -> None:
        """Publish a port as `-p HOST_PORT:PORT`."""
        self.well(
            "ProgramExternalConnectivity",
            {**endpoint, "Options": {PORTMAP: [{"Proto": 6, "Port": port, "HostPort": host_port}]}},
        )

    def move(self, endpoint: Body, bridge: str = "") -> Box:
        """Do what Docker does after Join: move the link into the container, with its addresses and routes."""
        joined, given = endpoint["Joined"], endpoint["Interface"]
        return self.site.settle(
            joined["InterfaceName"]["SrcName"],
            bridge or bridge_name(endpoint["NetworkID"]),
            (given["Address"], given["AddressIPv6"]),
            (joined["Gateway"], joined["GatewayIPv6"]),
        )

    # --- the current state --------------------------------------------------------------------------------------------

    def links(self) -> set[str]:
        """Return the host's links, except its own."""
        lines = self.site.run("ip", "-o", "link").stdout.splitlines()
        return {line.split()[1].split(":")[0].split("@")[0] for line in lines} - {"lo", "eth0"}

    def table(self) -> str:
        """Return the table as nft lists it."""
        return self.site.run("nft", "-nn", "list", "table", "inet", "docker-fw", check=False).stdout

    def elements(self) -> str:
        """Return the table's sets with elements, without counters.

        Left out are the sets about the host rather than containers, and those whose elements expire: logged drops and
        cut flows.
        """
        blocks = re.sub(r" counter packets \d+ bytes \d+", "", self.table()).split("\n\t}\n")
        bridges = "unmanaged|dockers|protected_bridges|same_bridge"
        ports = "dockerd_ports|docker_proxy|proxy_unidentified|host_own[46]?"
        hosts = re.compile(rf"set (lease|no_transit|{bridges}|{ports}|log_limit\w*|quarantine\w*) ")
        return "\n".join(b for b in blocks if "elements = " in b and not hosts.search(b))

    def opens(self, address: str) -> set[str]:
        """Return `port/protocol number` of the exact ports that the table opens for an address."""
        found = set()
        for block in self.table().split("\n\t}\n"):
            if "set allow" in block and "elements = " in block:
                for part in block.partition("elements = {")[2].partition("}")[0].split(","):
                    words = part.split()
                    if words[0] == address:
                        found.add(f"{words[4]}/{words[2]}")
        return found

    def kept(self) -> Any:
        """Return the state file, with what its log says of endpoints."""
        saved = json.loads(self.state.read_text())
        del saved["serial"]
        return {**saved, "endpoints": dict(Store(str(self.state)).load().endpoints)}

    def nothing_left(self) -> None:
        """Check that no link, no neighbour entry, no element and no record is left."""
        assert self.links() == set()
        assert self.site.run("ip", "neigh", "show", "proto", str(PROTOCOL)).stdout == ""
        left = self.elements()
        assert left == "", left
        assert (self.kept()["networks"], self.kept()["endpoints"]) == ({}, {}) if self.state.exists() else True
        assert self.status()["networks"] == []

    def clean(self) -> None:
        """Delete every known network, as Docker would."""
        for network in self.status()["networks"]:
            self.well("DeleteNetwork", {"NetworkID": network["id"]})


BASE = {"22/6", "80/6", "443/6"}


def names_of(network: Body, *endpoints: Body) -> set[str]:
    """Return the names of the links of these endpoints and networks."""
    made = {bridge_name(network["NetworkID"])}
    for endpoint in endpoints:
        made |= {host_side(endpoint["EndpointID"]), container_side(endpoint["EndpointID"])}
    return made


def took(began: float) -> float:
    """Return the seconds since `began`, as they would be on a machine that is not crowded."""
    return (time.monotonic() - began) / crowded()


def cleanup(fw: Running) -> subprocess.CompletedProcess[str]:
    """Run `fwctl cleanup` on the site's host."""
    with fw.site.host.popen(
        [sys.executable, "-m", "plugin.fwctl.cli", "cleanup"],
        cwd=ROOT,
        env=fw.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        out, err = process.communicate(timeout=30)
    return subprocess.CompletedProcess("cleanup", process.returncode, out, err)
