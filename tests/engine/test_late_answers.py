"""Test that what Docker's API answers late opens nothing."""

from __future__ import annotations

import json
import sys
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer

import pytest

from tests.documents import rows
from tests.engine.outside import SERVERS, dockers, hosts, served, setting
from tests.product import Fw
from tests.readonly import ReadOnly
from tests.waiting import until

CALLS = [cells[1].strip("`") for cells in rows("SECURITY.md", "method")]
LIST = "/containers/json"


class Volumes:
    """A volume driver, `slow`, for an engine. dockerd waits for `free` when it unmounts a volume, after the network."""

    def __init__(self, fw: Fw) -> None:
        directory = fw.host.inside / "run/docker/plugins"
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "slow.sock"
        self.unmounting, self.free = unmounting, free = threading.Event(), threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.path == "/VolumeDriver.Unmount":
                    unmounting.set()
                    free.wait(120)
                answer = {"Implements": ["VolumeDriver"], "Mountpoint": "/tmp", "Volume": {"Name": "slow"}, "Err": ""}
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingMixIn, UnixStreamServer):
            daemon_threads = True

        self._server = Server(str(self._path), Handler)

    def __enter__(self) -> Volumes:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.free.set()
        self._server.shutdown()
        self._server.server_close()
        self._path.unlink()


@pytest.mark.parametrize("each", ["20.10.24"], indirect=True)
def test_a_list_from_before_a_removal_opens_nothing(each: Fw) -> None:
    """Docker 20.10 lists a container that ended while it unmounts the volumes, when the addresses are free already.

    docker-fw requests the list at that moment, and gets it when the container was removed and another one, whose label
    opens another port, has its addresses: the former label opens nothing, by DNAT, by docker-proxy, or directly.
    """
    probe, docker = each.wan.probe, each.engine.docker

    def guarded() -> set[str]:
        return {network["name"] for network in each.status()["guarded"]}

    with ExitStack() as late, ExitStack() as around:
        proxy = around.enter_context(ReadOnly(each.host.inside / "run/late.sock", Path(each.engine.socket), CALLS))
        around.enter_context(setting(each, "FW_DOCKER_SOCKET=/host/run/late.sock"))
        volumes = around.enter_context(Volumes(each))
        net = around.enter_context(dockers(each))
        around.callback(each.engine.try_docker, "volume", "rm", "slow")
        around.callback(each.engine.try_docker, "network", "rm", "listed-first", "listed-late")
        options = ("-p", "18080:8080", "--volume-driver", "slow", "-v", "slow:/volume", "--label", "fw.allow=8080")
        former = each.run(net, *options, command=SERVERS)
        served(each)
        v4, v6 = each.addresses(former, net)
        each.host.run(["kill", "-9", str(each.engine.inspect(former)["State"]["Pid"])])
        assert volumes.unmounting.wait(20)
        docker("network", "create", "listed-first")
        until(lambda: "listed-first" in guarded(), "docker-fw has listed everything since the addresses are free")
        came = late.enter_context(proxy.hold(LIST))
        docker("network", "create", "listed-late")
        assert came.wait(20)
        assert former in docker("ps", "--format", "{{.Names}}").split()  # Docker lists it as running
        volumes.free.set()
        docker("rm", "-f", former)
        docker("network", "rm", "listed-first")
        until(lambda: "listed-first" not in guarded(), "docker-fw received the events of both removals")
        with proxy.hold("/events"), proxy.hold(LIST) as requested:  # docker-fw does not learn of the heir
            heir = ("--ip", v4, "--ip6", v6, "-p", "18080:8080", "--label", "fw.allow=9090")
            each.run(net, *heir, command=SERVERS)
            until(lambda: each.host.probe.tcp(v4, 8080) == "open", "the heir's server answers the host")
            late.close()
            assert requested.wait(
                20
            )  # the removed network's bridge made docker-fw ask again, when it had read the list
            targets = [("tcp", host, 18080) for host in hosts(each)] + [("tcp", v4, 8080), ("tcp", v6, 8080)]
            assert set(probe(targets).values()) == {"silent"}
        until(lambda: probe.tcp(v6, 9090) == "open", "the heir's own label opens its port")
        assert set(probe(targets).values()) == {"silent"}


@pytest.mark.parametrize("each", ["28.5.2"], indirect=True)
def test_a_source_port_that_is_used_again_opens_nothing(each: Fw) -> None:
    """A client's connection through docker-proxy ended; its port on the host still waits for late packets.

    Another container, which accepts nothing, has the published port now, and Docker has not listed it yet: a connection
    from the same source port is not accepted.
    """
    with ExitStack() as around:
        proxy = around.enter_context(ReadOnly(each.host.inside / "run/late.sock", Path(each.engine.socket), CALLS))
        around.enter_context(setting(each, "FW_DOCKER_SOCKET=/host/run/late.sock"))
        net = around.enter_context(dockers(each, v6=False))
        former = each.run(net, "-p", "18080:8080", "--label", "fw.allow=8080", command=SERVERS)
        served(each)
        assert get(each, 40001)
        each.remove(former)
        until(lambda: not any(n["endpoints"] for n in each.status()["guarded"]), "docker-fw knows of the removal")
        with proxy.hold("/events"), proxy.hold(LIST):
            each.run(net, "-p", "18080:8080", command=SERVERS)
            until(lambda: each.host.probe.tcp("::1", 18080) == "open", "docker-proxy listens")
            assert each.host.run(["ss", "-Htn", "state", "time-wait", "sport = 18080 and dport = 40001"]).stdout
            assert not get(each, 40002)
            assert not get(each, 40001)


def get(fw: Fw, source: int) -> bool:
    """Return True if the published port answers a request from this source port over IPv6; the server closes first."""
    code = f"""
import socket
s = socket.socket(socket.AF_INET6)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("::", {source}))
s.settimeout(3)
try:
    s.connect(("{fw.host.v6}", 18080))
except OSError:
    raise SystemExit(1)
s.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
while s.recv(1000):
    pass
"""
    return fw.wan.run([sys.executable, "-c", code], check=False).returncode == 0
