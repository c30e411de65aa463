"""Docker's socket tells wrong things: what is wrong stays closed, and takes nothing of anybody else with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plugin.dockerapi import ApiSilent, DockerApi
from tests.kernel.fakedocker import FakeDocker

NETWORK, WEB, BAD = "a" * 64, "b" * 64, "c" * 64
WRONG: tuple[Any, ...] = (5, -1, True, "\u2603", [None], [[]], {"\u2603": []}, {"Networks": 5})
PLACES = ("Names", "ImageID", "Labels", "State", "NetworkSettings", "HostConfig", "Ports")


@pytest.fixture
def docker(tmp_path: Path) -> Iterator[FakeDocker]:
    made = FakeDocker(tmp_path / "docker.sock")
    made.container("web", WEB, NETWORK, {"fw.allow": "8080"})
    made.container("bad", BAD, NETWORK, {"fw.allow": "9090"})
    yield made
    made.close()


@pytest.mark.parametrize("place", PLACES)
def test_one_containers_garbage_is_its_own(docker: FakeDocker, place: str) -> None:
    """Whatever of a wrong type Docker tells of one container, every other container's labels are read, and when it
    tells the truth again that container's are too."""
    api, truth = DockerApi(str(docker.path)), docker.containers[BAD]
    for wrong in WRONG:
        docker.containers[BAD] = {**truth, place: wrong}
        look = api.look()
        assert WEB in look.containers, (place, wrong)
        assert truth["Id"] in look.existing
    docker.containers[BAD] = truth
    assert set(api.look().containers) == {WEB, BAD}


@pytest.mark.parametrize("version", [[], {}, {"ApiVersion": None}, {"ApiVersion": "x.y"}, {"ApiVersion": []}])
def test_a_wrong_version_ends_no_listening(docker: FakeDocker, monkeypatch: pytest.MonkeyPatch, version: Any) -> None:
    """A daemon that answers with nonsense when asked for its version counts as silent: it is asked again."""
    api, reply = DockerApi(str(docker.path)), docker._reply
    monkeypatch.setattr(docker, "_reply", lambda to, value: reply(to, version if to.path == "/version" else value))
    with pytest.raises(ApiSilent):
        next(api.events())
    monkeypatch.undo()
    assert next(api.events()).what == "subscribed"
