"""Docker's API as far as the plugin asks it, on a unix socket; it can also hang, hang up, talk nonsense, or drip.

docker = FakeDocker(path)
docker.container("web", endpoint_id, network_id, {"fw.allow": "8080"})
docker.mode = "hang"
"""

from __future__ import annotations

import json
import re
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

Mode = Literal["answer", "hang", "hang up", "garbage", "wrong JSON", "error 500", "drip"]


class FakeDocker:
    """A fake Docker: `mode` sets how it treats requests; `asked` is every requested path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mode: Mode = "answer"
        self.version = ""
        self.asked: list[str] = []
        self.containers: dict[str, dict[str, Any]] = {}  # by endpoint ID
        self.networks: dict[str, dict[str, Any]] = {}
        self.images: dict[str, dict[str, str]] = {"sha256:plain": {}}
        self.before: Callable[[str], None] = lambda _: None
        #: The connections that clients have open now, and the number of those that were ever accepted.
        self.connections: set[socket.socket] = set()
        self.accepted = 0
        self._streams: set[socket.socket] = set()
        self._closed = threading.Event()
        docker = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                docker._get(self)

            def log_message(self, *_: object) -> None:
                pass

            def address_string(self) -> str:
                return "unix"

        class Server(ThreadingMixIn, UnixStreamServer):
            daemon_threads = True
            request_queue_size = 64

            def process_request(self, request: Any, client_address: Any) -> None:
                docker.accepted += 1
                docker.connections.add(request)
                super().process_request(request, client_address)

            def shutdown_request(self, request: Any) -> None:
                docker.connections.discard(request)
                super().shutdown_request(request)

            def handle_error(self, *_: object) -> None:
                pass  # the plugin hung up

        self._server = Server(str(path), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()
        self.end_streams()
        self.path.unlink(missing_ok=True)

    def container(
        self,
        name: str,
        endpoint_id: str,
        network_id: str,
        labels: dict[str, str] | None = None,
        image: str = "sha256:plain",
    ) -> None:
        """Add a container that Docker is starting, and its endpoint."""
        self.containers[endpoint_id] = {
            "Id": f"{len(self.containers):064x}",
            "Names": [f"/{name}"],
            "ImageID": image,
            "Labels": labels or {},
            "State": "running",
            "HostConfig": {},
            "NetworkSettings": {"Networks": {"net": {"EndpointID": endpoint_id, "NetworkID": network_id}}},
        }
        network = {"Id": network_id, "Name": "net", "Driver": "fw:latest", "Containers": {}}
        known = self.networks.setdefault(network_id, network)
        known["Containers"][f"ep-{endpoint_id}"] = {"Name": name, "EndpointID": endpoint_id}

    def bridge_network(self, network_id: str, name: str, *subnets: str, bridge: str = "") -> None:
        """Add a network of Docker's bridge driver, with a bridge of that name if one is given."""
        self.networks[network_id] = {
            "Id": network_id,
            "Name": name,
            "Driver": "bridge",
            "Containers": {},
            "Options": {"com.docker.network.bridge.name": bridge} if bridge else {},
            "IPAM": {"Config": [{"Subnet": subnet} for subnet in subnets]},
        }

    def event(self, kind: str, action: str) -> None:
        """Send an event to every subscriber."""
        self.send(json.dumps({"Type": kind, "Action": action}).encode() + b"\n")

    def send(self, line: bytes) -> None:
        """Send a line to every subscriber to the events."""
        for stream in list(self._streams):
            try:
                stream.sendall(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            except OSError:
                self._streams.discard(stream)

    def end_streams(self) -> None:
        """End the event streams, as a daemon that exits."""
        for stream in list(self._streams):
            self._streams.discard(stream)
            _end(stream)

    def end_connections(self) -> None:
        """End all connections, idle ones too, as a daemon that restarts."""
        for connection in list(self.connections):
            _end(connection)

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(request.path)
        self.before(request.path)
        if self.mode == "hang":
            while self.mode == "hang" and not self._closed.wait(0.01):
                pass
            request.close_connection = True
        elif self.mode == "hang up":
            request.close_connection = True
        elif self.mode == "garbage":
            request.wfile.write(b"\x00\xff not HTTP at all\r\n\r\n")
            request.close_connection = True
        elif self.mode == "drip":
            request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
            while self.mode == "drip" and not self._closed.is_set():
                request.wfile.write(b" ")
                request.wfile.flush()
                time.sleep(0.05)
            request.close_connection = True
        elif self.mode == "error 500":
            self._reply(request, {"message": "daemon is shutting down"}, 500)
        elif self.mode == "wrong JSON":
            self._reply(request, [None, {"ApiVersion": [1]}])
        else:
            self._answer(request)

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        path = re.sub(r"^/v1\.\d+", "", url.path)
        query = parse_qs(url.query)
        if path == "/version":
            self._reply(request, {"Version": self.version, "ApiVersion": "1.44", "MinAPIVersion": "1.24"})
        elif path == "/info":
            self._reply(request, {"Driver": "overlay2", "DriverStatus": [["Backing Filesystem", "extfs"]]})
        elif path == "/events":
            self._stream(request)
        elif path == "/networks":
            self._reply(request, list(self.networks.values()))
        elif path == "/containers/json":
            patterns = json.loads(query.get("filters", ["{}"])[0]).get("name") or []
            all_containers = self.containers.values()
            listed = [c for c in all_containers if not patterns or any(re.search(p, c["Names"][0]) for p in patterns)]
            self._reply(request, listed)
        elif match := re.fullmatch(r"/containers/(\w+)/json", path):
            one = next((c for c in self.containers.values() if c["Id"] == match[1]), None)
            self._reply(request, one or {"message": "no such container"}, 200 if one else 404)
        elif match := re.fullmatch(r"/networks/(\w+)", path):
            found = self.networks.get(match[1])
            self._reply(request, found or {"message": "no such network"}, 200 if found else 404)
        elif match := re.fullmatch(r"/images/(.+)/json", path):
            labels = self.images.get(match[1])
            if labels is None:
                self._reply(request, {"message": f"No such image: {match[1]}"}, 404)
            else:
                self._reply(request, {"Id": match[1], "Config": {"Labels": labels}})
        else:
            self._reply(request, {"message": f"page not found: {path}"}, 404)

    def _stream(self, request: BaseHTTPRequestHandler) -> None:
        stream = request.connection
        self._streams.add(stream)  # before the head: who has read that may end the streams
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        request.wfile.flush()
        while stream in self._streams and not self._closed.wait(0.05) and not _hung_up(stream):
            pass
        self._streams.discard(stream)
        request.close_connection = True

    @staticmethod
    def _reply(request: BaseHTTPRequestHandler, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _hung_up(client: socket.socket) -> bool:
    return bool(select.select([client], [], [], 0)[0]) and not client.recv(1, socket.MSG_PEEK)
