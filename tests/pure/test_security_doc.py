"""SECURITY.md lists exactly the mounts, capabilities and Docker calls that docker-fw needs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from plugin.docker.client import DockerApi
from plugin.kernel.capabilities import NEEDED, NET_ADMIN, NET_BIND_SERVICE, NET_RAW
from tests.documents import rows
from tests.kernel.fakedocker import FakeDocker
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()
NETWORK, ENDPOINT, IMAGE = "a" * 64, "e" * 64, "sha256:labelled"


@pytest.fixture
def docker(tmp_path: Path) -> Iterator[FakeDocker]:
    made = FakeDocker(tmp_path / "docker.sock")
    made.version = "29.0.3"
    try:
        yield made
    finally:
        made.close()


def general(path: str, container_id: str) -> str:
    """Return a request's path without version, query and ID, as the table has it."""
    path = re.sub(r"^/v[0-9.]+", "", urlsplit(path).path)
    for identity in (NETWORK, container_id, IMAGE):
        path = path.replace(identity, "ID")
    return path


def test_docker_gets_exactly_the_listed_calls(docker: FakeDocker) -> None:
    """Each call of the table is made, with GET, which is all that this Docker answers to; no other call is made.

    Every request that docker-fw ever makes is made: in a hook, for a full listing, of one container, of a Docker
    endpoint, events.
    """
    docker.container("web", ENDPOINT, NETWORK, {"fw.allow": "8080"}, IMAGE)
    docker.images[IMAGE] = {}
    docker.networks[NETWORK]["Driver"] = "bridge"
    container_id = str(docker.containers[ENDPOINT]["Id"])
    api = DockerApi(str(docker.path))
    assert len(api.look().containers) == 1
    assert api.find(NETWORK, ENDPOINT)
    assert api.bridges()
    assert api.guest(NETWORK, container_id)
    assert api.running(container_id)
    events = api.events()
    assert next(events)
    table = rows("SECURITY.md", "method")
    assert {method for method, *_ in table} == {"GET"}
    assert {general(path, container_id) for path in docker.asked} == {path.strip("`") for _, path, _ in table}
    until(lambda: bool(docker._streams), "Docker tells what happens")
    docker.end_streams()
    assert list(events) == []


def test_the_table_of_mounts_equals_config_and_compose_file() -> None:
    """Sources and modes, of the managed plugin and of the sidecar."""
    documented = {row[0].split("`")[1]: (row[1], "(sidecar)" in row[0]) for row in rows("SECURITY.md", "mount")}
    config = json.loads((ROOT / "config.json").read_text())
    plugins = {each["source"]: "read-only" if "ro" in each["options"] else "writable" for each in config["mounts"]}
    assert plugins == {source: mode for source, (mode, sidecars) in documented.items() if not sidecars}
    compose = (ROOT / "compose-examples/sidecar.yml").read_text()
    mounted = re.findall(r"^ +- (/[\w/-]+):/[\w/-]+?(:ro)?(?: |$)", compose, re.MULTILINE)
    assert {source: "read-only" if ro else "writable" for source, ro in mounted} == {
        source: mode for source, (mode, _) in documented.items()
    }


def test_the_capabilities_are_those_of_config_and_compose_file() -> None:
    """The plugin requests CAP_NET_ADMIN only; the sidecar drops all and adds those that the text names, which are the
    ones that the process keeps."""
    config = json.loads((ROOT / "config.json").read_text())
    assert config["linux"]["capabilities"] == ["CAP_NET_ADMIN"]
    compose = (ROOT / "compose-examples/sidecar.yml").read_text()
    assert "cap_drop: [ALL]" in compose
    assert "cap_add: [NET_ADMIN, NET_BIND_SERVICE, NET_RAW]" in compose
    assert {NET_ADMIN, NET_BIND_SERVICE, NET_RAW} == set(NEEDED)
    assert [cells[0].strip("`") for cells in rows("SECURITY.md", "right")] == [
        "CAP_NET_ADMIN",
        "CAP_NET_BIND_SERVICE",
        "CAP_NET_RAW",
    ]
