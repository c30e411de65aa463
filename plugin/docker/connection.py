"""The connections to Docker's API, one for each thread and time-out; the API's version, the engine's version."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import docker
from docker.transport import UnixHTTPAdapter
from docker.transport.unixconn import UnixHTTPConnectionPool

from plugin.docker import boundary, request
from plugin.docker.engine import Engine, unfit
from plugin.model import DockerUnavailable

#: The version of the first request: every supported engine accepts it, or answers requests without a version.
_FIRST = "1.41"
log = logging.getLogger(__name__)


class Connection:
    """`path` is the API's unix socket. Thread-safe; connects when first used, not when created.

    `reconnected` is called when another daemon may answer from now on.
    """

    def __init__(self, path: str, reconnected: Callable[[], None] = lambda: None) -> None:
        self._url = f"unix://{path}"
        self._reconnected = reconnected
        self._local = threading.local()
        #: For the two below: the version, "" if unknown, and how often it was forgotten.
        self._lock = threading.Lock()
        self._version, self._losses = "", 0
        #: The known properties of the daemon that answered last.
        self.engine = Engine()

    @contextmanager
    def answers(self, what: str = "Docker's API did not answer") -> Iterator[None]:
        """Turn each failure into DockerUnavailable. The next call negotiates the version anew."""
        try:
            with boundary.answers(what):
                yield
        except DockerUnavailable:
            self.lost()
            raise

    def lost(self) -> None:
        """Forget the version: the next daemon may have another one. So may the one that is being asked for now."""
        with self._lock:
            self._version = ""
            self._losses += 1

    def client(self, timeout: Any) -> docker.APIClient:
        """Return this thread's client with this time-out for each read, in seconds."""
        version = self._negotiated(timeout)
        clients: dict[tuple[str, Any], docker.APIClient] = self._local.__dict__.setdefault("clients", {})
        key = (version, timeout)
        if key not in clients:
            for old in [old for old in clients if old[0] != version]:
                clients.pop(old).close()
            clients[key] = self._made(version, timeout)
        return clients[key]

    def new_client(self, timeout: Any) -> docker.APIClient:
        """Return a client that the caller closes."""
        return self._made(self._negotiated(timeout), timeout)

    def _made(self, version: str, timeout: Any) -> docker.APIClient:
        client = docker.APIClient(base_url=self._url, version=version, timeout=timeout)
        client.mount("http+docker://", _OneConnection(self._url, timeout))
        return client

    def _negotiated(self, timeout: Any) -> str:
        with self._lock:
            known, losses = self._version, self._losses
        if known:
            return known
        client = self._made(_FIRST, timeout)
        try:
            versions = client.version(api_version=False)
            engine = _engine(client, versions)
        finally:
            client.close()
        self._reconnected()
        found = request.version(versions)
        with self._lock:
            if losses == self._losses:  # otherwise this may be the former daemon's answer
                self.engine = checked(engine, self.engine)
                self._version = found
        return found


class _OneConnection(UnixHTTPAdapter):
    """Keeps one connection open, for a client that sends one request at a time.

    docker-py's own keeps a connection for each of the last 25 URLs, and the path of most requests has an ID: a client
    would hold 25 connections, and almost each request would open another one.
    """

    def __init__(self, url: str, timeout: Any) -> None:
        super().__init__(f"http+{url}", timeout, pool_connections=1, max_pool_size=1)

    def get_connection(self, url: bytes | str, proxies: Any = None) -> UnixHTTPConnectionPool:
        """Return the one pool: all URLs are those of one socket."""
        return super().get_connection("http+docker://localhost", proxies)


def _engine(client: docker.APIClient, versions: Any) -> Engine:
    engine = Engine(str(versions.get("Version") or ""))
    if engine.major >= 29:
        # Without a version, for the newest answer: older ones lack the field, and 29 refuses 1.41.
        raw: Any = client
        info = raw._result(raw._get(raw._url("/info", versioned_api=False)), json=True)
        backend = info.get("FirewallBackend") or {}
        engine = replace(engine, backend=str(backend.get("Driver") or ""))
    return engine


def checked(engine: Engine, before: Engine) -> Engine:
    """Return the engine that answers now. Log why docker-fw does not work on it, once for each version that answers."""
    if engine.version != before.version and (why := unfit(engine)):
        log.error("%s", why)
    return engine
