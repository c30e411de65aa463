"""Test that what Docker's API answers late opens nothing."""

from __future__ import annotations

import json
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
