"""docker-fw's connections to Docker's API are few: one for each thread that asks, whatever Docker answers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker as docker_py
import pytest
from requests.exceptions import RequestException

from plugin.docker import request
from plugin.docker.boundary import FAILED
from plugin.docker.client import DockerApi
from plugin.docker.connection import Connection
from plugin.model import DockerUnavailable
from tests.kernel.fakedocker import FakeDocker, Mode
from tests.waiting import until

NETWORKS = [f"{number:064x}" for number in range(40)]
#: What Docker may do instead of answering.
FAULTS: tuple[Mode, ...] = ("error 500", "wrong JSON", "garbage", "hang up", "hang", "drip")
#: The threads in which docker-fw asks for hooks, and for inspections.
HOOKS, INSPECTIONS = 16, 8


@pytest.fixture
def docker(tmp_path: Path) -> Iterator[FakeDocker]:
    made = FakeDocker(tmp_path / "docker.sock")
    for number, network in enumerate(NETWORKS):
        made.container(f"c{number}", _endpoint(number), network, {"fw.allow": "8080"})
    yield made
    made.close()


def _endpoint(number: int) -> str:
    return f"{number:063x}e"


def test_a_thread_asks_everything_over_one_connection(docker: FakeDocker) -> None:
    """All requests of a thread use one connection, whatever they ask for: no hook waits for a new one.

    Nor does the number of open connections grow with the number of containers and networks.
    """
    client = Connection(str(docker.path)).client(5.0)
    before = docker.accepted
    for network in NETWORKS:
        assert request.one(client, "/networks/{0}", network)["Id"] == network
        assert len(request.several(client, "/containers/json", filters="{}", all=network)) == len(NETWORKS)
        with pytest.raises(FAILED):
            request.one(client, "/networks/{0}", "missing")
    assert docker.accepted - before == 1
    until(lambda: len(docker.connections) == 1, "one connection is left")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_thread_keeps_one_connection_after_failures(
    docker: FakeDocker, fault: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that are late, broken, refused or too long leave no connection behind, and the next request succeeds."""
    monkeypatch.setattr(request, "LONGEST", 0.5)
    client = Connection(str(docker.path)).client(0.5)  # enough for a good answer of a busy machine
    for network in NETWORKS[:2]:
        docker.mode = fault
        with suppress(*FAILED, ValueError):
            request.one(client, "/networks/{0}", network)
        docker.mode = "answer"
        assert request.one(client, "/networks/{0}", network)["Id"] == network
        assert len(request.several(client, "/networks")) == len(NETWORKS)
    until(lambda: len(docker.connections) == 1, "one connection is left")


def test_an_answer_that_is_not_read_to_its_end_leaves_no_connection(docker: FakeDocker) -> None:
    """Docker-fw stops reading an answer that is too large; what is left of it is not taken for the next answer."""
    docker.networks[NETWORKS[0]]["Labels"] = {"x": "y" * (9 << 20)}
    client = Connection(str(docker.path)).client(5.0)
    for network in NETWORKS[1:3]:
        with pytest.raises(ValueError, match="more than"):
            request.one(client, "/networks/{0}", NETWORKS[0])
        assert not request.beginning(client, "/networks/{0}", NETWORKS[0])[1]
        assert request.one(client, "/networks/{0}", network)["Id"] == network
    until(lambda: len(docker.connections) == 1, "one connection is left")


def test_many_threads_keep_one_connection_each(docker: FakeDocker, caplog: pytest.LogCaptureFixture) -> None:
    """Hooks and lists in many threads, some answered and some not, keep at most one connection for each thread.

    Nothing is logged about full pools.
    """
    caplog.set_level(logging.WARNING, "urllib3")
    api, callers = DockerApi(str(docker.path)), 6
    lock = threading.Lock()

    def starts(number: int) -> None:
        with lock:
            docker.mode = "error 500" if number % 7 == 0 else "answer"
        with suppress(DockerUnavailable):
            api.find(NETWORKS[number], _endpoint(number))
        with suppress(DockerUnavailable):
            api.guest(NETWORKS[number], docker.containers[_endpoint(number)]["Id"])
        with suppress(DockerUnavailable):
            api.look()

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(starts, range(len(NETWORKS))))
        docker.mode = "answer"
        api.look()
        found = list(pool.map(lambda number: api.find(NETWORKS[number], _endpoint(number)), range(len(NETWORKS))))
        assert all(found)
        most = HOOKS + INSPECTIONS + callers + 1
        until(lambda: len(docker.connections) <= most, "there is at most one connection for each thread")
    assert not [record for record in caplog.records if record.name.startswith("urllib3")]


def test_a_daemon_that_restarts_is_asked_over_a_new_connection(docker: FakeDocker) -> None:
    """The first request after dockerd restarts succeeds: its old connection is not used again."""
    client = Connection(str(docker.path)).client(5.0)
    for network in NETWORKS[:4]:
        assert request.one(client, "/networks/{0}", network)["Id"] == network
        docker.end_connections()
        until(lambda: not docker.connections, "the connections ended")
    assert request.one(client, "/networks/{0}", NETWORKS[5])["Id"] == NETWORKS[5]


def test_the_former_daemons_late_answer_does_not_replace_the_new_ones_version(
    docker: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an upgrade of Docker the new version counts, though a thread still has the former daemon's answer.

    Otherwise networks could be refused until docker-fw restarts, because of a version that does not run any more.
    """
    connection, ask = Connection(str(docker.path)), docker_py.APIClient.version
    answered, proceed = threading.Event(), threading.Event()

    def held(client: docker_py.APIClient, *, api_version: bool) -> Any:
        answer = ask(client, api_version)
        if not answered.is_set():
            answered.set()
            assert proceed.wait(20)
        return answer

    monkeypatch.setattr(docker_py.APIClient, "version", held)
    docker.version = "29.0.2"
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(lambda: connection.client(5.0))
        assert answered.wait(20)
        connection.lost()
        docker.version = "29.0.3"
        connection.client(5.0)
        assert connection.engine.version == "29.0.3"
        proceed.set()
        late.result(20)
    assert connection.engine.version == "29.0.3"
    connection.lost()
    connection.client(5.0)
    assert connection.engine.version == "29.0.3"


def test_an_ended_event_stream_leaves_no_connection(docker: FakeDocker) -> None:
    """A subscription that ends, at either side, or is refused, closes its connection."""
    api = DockerApi(str(docker.path))
    for end in (True, False):
        events = api.events()
        assert next(events).action == "subscribed"
        assert docker.connections
        if end:
            docker.end_streams()
            assert not list(events)
        else:
            events.close()  # type: ignore[attr-defined]
        until(lambda: not docker.connections, "no connection is left")
    kept: list[Exception] = []  # an error that is kept, in a log or a traceback, keeps no connection open
    docker.before = lambda path: setattr(docker, "mode", "error 500" if "/events" in path else "answer")
    for _ in range(3):
        with pytest.raises(DockerUnavailable) as refused:
            next(api.events())
        kept.append(refused.value)
        assert isinstance(refused.value.__cause__, (*FAILED, RequestException))
    until(lambda: not docker.connections, "no connection is left")
