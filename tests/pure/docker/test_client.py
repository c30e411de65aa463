"""The container of an endpoint that is being joined is the one that has the name now, by Docker's own answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from plugin.docker import client as asking
from plugin.docker import one_endpoint
from plugin.docker.client import DockerApi
from plugin.docker.connection import Connection

NETWORK, WEB, DB = "e" * 64, "a" * 64, "b" * 64


class Answers:
    """Docker's answers: containers by ID, each with its names; `asked` is the filters of each list."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.containers = {WEB: ["/web"], DB: ["/db"]}
        self.endpoints = {"1" * 64: "web", "2" * 64: "db"}
        self.asked: list[dict[str, list[str]]] = []
        monkeypatch.setattr(Connection, "client", lambda *_: None)
        monkeypatch.setattr(asking.request, "text", self.text)
        monkeypatch.setattr(asking.request, "several", self.several)
        self.api = DockerApi("")

    def text(self, *_: object) -> bytes:
        there = {f"ep-{key}": {"Name": name, "EndpointID": key} for key, name in self.endpoints.items()}
        return json.dumps({"Id": NETWORK, "Name": "app", "Containers": there}, separators=(",", ":")).encode()

    def several(self, _: object, path: str, *__: object, filters: str = "{}", **___: str) -> list[Mapping[str, Any]]:
        if path == "/networks":
            return [{"Id": NETWORK, "Name": "app", "Driver": "fw"}]
        self.asked.append(wanted := json.loads(filters))
        ids, names = wanted.get("id", self.containers), wanted.get("name")
        return [
            {"Id": key, "Names": there, "State": "created", "Labels": {}, "ImageID": "x"}
            for key, there in self.containers.items()
            if key in ids and (names is None or any(name.replace("^", "").rstrip("$") in there for name in names))
        ]

    def found(self, endpoint: str) -> tuple[str, list[str]]:
        """Return the ID of the endpoint's container, and by what Docker was asked."""
        self.asked.clear()
        found = self.api.find(NETWORK, endpoint)
        return found.id if found else "", [next(iter(each), "all") for each in self.asked]


@pytest.fixture
def docker(monkeypatch: pytest.MonkeyPatch) -> Answers:
    return Answers(monkeypatch)


def test_a_known_name_is_found_by_its_id(docker: Answers) -> None:
    """Docker is asked by ID once the name was listed, or its creation reported: it need not compare all names."""
    assert docker.found("1" * 64) == (WEB, ["name"])
    docker.api.created(WEB, "web")
    assert docker.found("1" * 64) == (WEB, ["id"])
    docker.api.look()
    assert [docker.found("1" * 64), docker.found("2" * 64)] == [(WEB, ["id"]), (DB, ["id"])]


def test_a_name_that_another_container_has_now_is_not_mistaken(docker: Answers) -> None:
    """After a change of names that docker-fw has not learned, each endpoint still gets the container of its name."""
    docker.api.look()
    docker.containers = {WEB: ["/db"], DB: ["/web"]}
    assert [docker.found("1" * 64), docker.found("2" * 64)] == [(DB, ["id", "name"]), (WEB, ["id", "name"])]
    docker.containers = {"c" * 64: ["/web"]}  # removed, and created again
    assert [docker.found("1" * 64), docker.found("2" * 64)] == [("c" * 64, ["id", "name"]), ("", ["id", "name"])]


def test_names_created_while_everything_is_listed_stay_known(docker: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that is created during a listing is not in it; its name is known nevertheless."""
    listed = docker.several

    def meanwhile(*arguments: Any, **query: Any) -> list[Mapping[str, Any]]:
        found = listed(*arguments, **query)
        docker.api.created("c" * 64, "new")
        return found

    monkeypatch.setattr(asking.request, "several", meanwhile)
    docker.api.look()
    monkeypatch.setattr(asking.request, "several", listed)
    docker.containers["c" * 64], docker.endpoints["3" * 64] = ["/new"], "new"
    assert docker.found("3" * 64) == ("c" * 64, ["id"])


def test_a_join_costs_the_same_beside_a_thousand(docker: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a thousand containers on the network a Join asks as much, and parses as much, as beside ten."""

    def cost(many: int) -> tuple[list[str], int]:
        docker.containers |= {f"{n:064x}": [f"/c{n}"] for n in range(many)}
        docker.endpoints |= {f"{n + 4096:064x}": f"c{n}" for n in range(many)}
        docker.api.look()
        sizes, loads = [], json.loads
        monkeypatch.setattr(one_endpoint.json, "loads", lambda text: [sizes.append(len(text)), loads(text)][1])
        _, asked = docker.found(f"{4096:064x}")
        monkeypatch.setattr(one_endpoint.json, "loads", loads)
        return asked, sum(sizes)

    assert cost(10) == cost(1000)
