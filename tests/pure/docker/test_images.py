"""Labels count as the image's if the variant from which the container was created has them, on every engine."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from plugin.docker import client
from plugin.docker import request as asking
from plugin.docker.client import DockerApi
from plugin.docker.images import Images, UnknownLabels, Variant, image_labels, in_containerd, variant
from plugin.model import Container, DockerUnavailable, PolicySpec
from tests.kernel.fakedocker import FakeDocker

NETWORK, INDEX = "a" * 64, "sha256:" + "1" * 64
OPEN = {"fw.policy": "open"}
#: The releases with containerd's image store, and the newest API version of each.
RELEASES = {"24.0.9": 43, "26.1.5": 45, "27.5.1": 47, "28.0.4": 48, "28.1.0": 49, "28.5.2": 51, "29.7.2": 55}
#: The releases that show the variant of a platform.
SHOW = ["28.1.0", "28.5.2", "29.7.2"]


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


@dataclass
class Manifest:
    """One variant in the index. `config`: Docker has it."""

    number: int
    architecture: str
    labels: dict[str, str] = field(default_factory=dict)
    config: bool = True

    @property
    def platform(self) -> dict[str, str]:
        return {"os": "linux", "architecture": self.architecture}

    @property
    def descriptor(self) -> dict[str, Any]:
        kind = "application/vnd.oci.image.manifest.v1+json"
        return {"mediaType": kind, "digest": digest(self.number), "size": 422, "platform": self.platform}


class Store(FakeDocker):
    """Docker with containerd's image store, on amd64, modelled on moby's source. `index`: the variants of the one
    image."""

    release = "29.7.2"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.index: list[Manifest] = []

    def create(self, name: str, manifest: Manifest, labels: dict[str, str] | None = None, **more: Any) -> None:
        """Run a container of the variant: it has the image's labels, overridden by the user's."""
        endpoint = f"{len(self.containers) + 1:064x}"
        self.container(name, endpoint, NETWORK, {**manifest.labels, **(labels or {})}, INDEX)
        self.containers[endpoint].update({"ImageManifestDescriptor": manifest.descriptor, **more})

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        asked = re.match(r"/v1\.(\d+)/", url.path)
        version = int(asked[1]) if asked else RELEASES[self.release]
        if url.path == "/version":
            most = RELEASES[self.release]
            self._reply(request, {"Version": self.release, "ApiVersion": f"1.{most}", "MinAPIVersion": "1.24"})
        elif url.path.endswith("/info"):
            self._reply(request, {"Driver": "overlayfs", "DriverStatus": STORE})
        elif url.path.endswith("/containers/json") and version < 48:
            without = [{k: v for k, v in c.items() if k != "ImageManifestDescriptor"} for c in self.containers.values()]
            self._reply(request, without)
        elif match := re.search(r"/images/([^/]+)/json", url.path):
            self._inspect(request, match[1], version, parse_qs(url.query).get("platform", [""])[0])
        else:
            super()._answer(request)

    def _inspect(self, request: BaseHTTPRequestHandler, image: str, version: int, platform: str) -> None:
        chosen = json.loads(platform) if platform and version >= 49 else None
        wanted = chosen or {"os": "linux", "architecture": "amd64"}
        best = next((each for each in self.index if each.platform == wanted), None)
        if image != INDEX or not self.index or (chosen and not best):
            self._reply(request, {"message": f"no such image: {image}"}, 404)
            return
        descriptor = {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": INDEX, "size": 726}
        if chosen and best:
            descriptor = best.descriptor
        answer: dict[str, Any] = {"Id": descriptor["digest"], "Config": {"Labels": None}, "Os": "", "Architecture": ""}
        if best and best.config:
            answer.update({"Config": {"Labels": best.labels or None}, "Os": "linux", "Architecture": best.architecture})
        self._reply(request, {**answer, **({"Descriptor": descriptor} if version >= 48 else {})})


STORE = [["driver-type", "io.containerd.snapshotter.v1"]]
PLAIN, LOUD = Manifest(1, "amd64"), Manifest(2, "386", OPEN)


@pytest.fixture
def docker(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "docker.sock")
    made.index = [PLAIN, LOUD]
    yield made
    made.close()


def look(docker: Store, api: DockerApi | None = None) -> dict[str, Container]:
    """Return each container by name, as docker-fw reads it."""
    return {each.name: each for each in (api or DockerApi(str(docker.path))).look().containers.values()}


def closed(container: Container) -> bool:
    """True if no opening label applies and the reason is reported."""
    return container.spec == PolicySpec() and container.image_spec == PolicySpec() and bool(container.problems)


# --- the variant --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES)
def test_a_label_of_any_variant_is_the_images(docker: Store, release: str) -> None:
    """On each Docker with containerd's image store, labels that open have no effect if they come from the image."""
    docker.release = release
    docker.create("loud", LOUD)
    made = look(docker)["loud"]
    assert made.spec == PolicySpec()
    assert "from the image and opens nothing" in made.notices[0]
    assert bool(made.problems) is (release not in SHOW)


@pytest.mark.parametrize("release", SHOW)
def test_a_users_label_opens(docker: Store, release: str) -> None:
    """The label applies on the variant that lacks it, also next to a container of the variant that has it, in either
    order."""
    docker.release = release
    for name, manifest in (("one", LOUD), ("two", PLAIN), ("three", LOUD), ("four", PLAIN)):
        docker.create(name, manifest, OPEN)
    api = DockerApi(str(docker.path))
    for _ in range(2):
        made = look(docker, api)
        assert [made[each].spec.policy for each in ("one", "two", "three", "four")] == ["", "open", "", "open"]
        assert not any(each.problems for each in made.values())
    assert len([path for path in docker.asked if "/images/" in path]) == 2, "each variant is asked for once"


@pytest.mark.parametrize("release", ["24.0.9", "26.1.5", "27.5.1"])
def test_without_a_variant_any_label_may_be_the_images(docker: Store, release: str) -> None:
    """Docker 24 to 27 with this store: labels that open are ignored, labels that close apply, and the message says what
    to do."""
    docker.release = release
    docker.create("users", PLAIN, OPEN)
    docker.create("closing", PLAIN, {"fw.deny": "22", "fw.egress": "none"})
    made = look(docker)
    assert closed(made["users"])
    assert "upgrade Docker to 28.1 or newer, or set FW_IMAGE_LABELS=trust" in str(made["users"].problems[0])
    assert not made["closing"].problems
    assert made["closing"].spec.egress == ()
    trusting = {each.name: each for each in DockerApi(str(docker.path), trust_images=True).look().containers.values()}
    assert trusting["users"].spec.policy == "open"


@pytest.mark.parametrize("release", SHOW)
def test_an_answer_about_another_variant_is_ignored(docker: Store, release: str) -> None:
    """A platform that the index names twice, an image that was removed, a variant that was removed or is incomplete: in
    each case any label may be the image's."""
    docker.release = release
    docker.create("loud", LOUD)
    docker.create("users", PLAIN, OPEN)
    twice = [Manifest(3, "386"), LOUD, Manifest(4, "amd64", {"x": "y"}), PLAIN]
    half = [Manifest(1, "amd64", config=False), Manifest(2, "386", OPEN, config=False)]
    for index in (twice, [], [Manifest(5, "arm64")], half):
        docker.index = index
        made = look(docker)
        assert closed(made["loud"]), index
        assert closed(made["users"]), index


@pytest.mark.parametrize(
    "descriptor",
    [
        None,
        {},
        {"digest": digest(1)},
        {"digest": digest(1), "platform": None},
        {"digest": "", "platform": {}},
        {"digest": digest(1), "platform": {"os": "linux", "architecture": "a" * 4096}},
    ],
)
def test_an_unusable_variant_is_none(docker: Store, descriptor: Any) -> None:
    """Docker's list names no variant, or not in a form that can be used in a request."""
    docker.create("users", PLAIN, OPEN, ImageManifestDescriptor=descriptor)
    assert closed(look(docker)["users"])


def test_one_variant_is_known_without_platforms_too(docker: Store) -> None:
    """Docker 28.0 shows no platform's variant; an image that is a single manifest is that variant."""
    docker.release = "28.0.4"
    docker.create("users", PLAIN, OPEN)
    (container,) = docker.containers.values()
    container["ImageManifestDescriptor"]["digest"] = INDEX
    assert look(docker)["users"].spec.policy == "open"


def test_an_image_that_docker_refuses_to_show_delays_no_other(docker: Store) -> None:
    """A hook is not blocked either: the image's container is closed, and the next container's labels are read."""
    docker.create("odd", Manifest(7, ""), OPEN)
    docker.create("users", PLAIN, OPEN)
    docker.index = [PLAIN]
    truth = docker._inspect

    def refuse(request: BaseHTTPRequestHandler, image: str, version: int, platform: str) -> None:
        if json.loads(platform)["architecture"]:
            truth(request, image, version, platform)
        else:
            docker._reply(request, {"message": "both OS and Architecture must be provided"}, 400)

    docker._inspect = refuse  # type: ignore[method-assign]
    api = DockerApi(str(docker.path))
    odd, users = docker.containers
    assert closed(api.find(NETWORK, odd) or Container("", ""))
    found = api.find(NETWORK, users)
    assert found
    assert found.spec.policy == "open"
    assert {name: made.spec.policy for name, made in look(docker, api).items()} == {"odd": "", "users": "open"}


def wait_in_proportion(monkeypatch: pytest.MonkeyPatch, docker: Store, plain: str) -> None:
    """Set the time-outs to many times what an answer takes on this machine, however slow it is."""
    monkeypatch.setattr(client, "HOOK_TIMEOUT", 30.0)
    monkeypatch.setattr(client, "HOOK_LIMIT", 120.0)
    began = time.monotonic()
    assert DockerApi(str(docker.path)).find(NETWORK, plain)
    many = 20 * (time.monotonic() - began)
    monkeypatch.setattr(client, "HOOK_TIMEOUT", max(0.3, many))
    monkeypatch.setattr(client, "HOOK_LIMIT", max(1.0, 4 * many))
    monkeypatch.setattr(client, "LOOK_TIMEOUT", max(0.2, many))


@pytest.mark.parametrize("part", ["", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"], ids=["nothing", "a half"])
def test_an_image_that_docker_never_shows_delays_no_other(
    docker: Store, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image can be crafted so that Docker takes minutes to inspect it: its container is closed, and the labels of
    all others are read, in a listing and in a hook; the image is not waited for again a moment later."""
    docker.create("odd", Manifest(7, "odd"), OPEN)
    docker.create("users", PLAIN, OPEN)
    docker.index, truth, asked = [PLAIN], docker._inspect, []
    odd, users = docker.containers
    wait_in_proportion(monkeypatch, docker, users)

    def hang(request: BaseHTTPRequestHandler, image: str, version: int, platform: str) -> None:
        if json.loads(platform)["architecture"] == "odd":
            asked.append(image)
            request.wfile.write(part.encode())
            docker._closed.wait(60)
        else:
            truth(request, image, version, platform)

    docker._inspect = hang  # type: ignore[method-assign,assignment]
    api = DockerApi(str(docker.path))
    with pytest.raises(DockerUnavailable):
        api.find(NETWORK, odd)
    assert (api.find(NETWORK, users) or Container("", "")).spec.policy == "open"
    for _ in range(2):
        there = look(docker, api)
        assert there["users"].spec.policy == "open"
        assert closed(there["odd"])
    assert len(asked) == 2


def test_an_answer_in_small_pieces_times_out(docker: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each drop arrives in time, but all of them would take hours: the client gives up, and asks again."""
    api = DockerApi(str(docker.path))
    docker.create("users", PLAIN, OPEN)
    assert look(docker, api)
    with monkeypatch.context() as patch:
        patch.setattr(asking, "LONGEST", 0.2)
        docker.mode = "drip"
        with pytest.raises(DockerUnavailable, match="within 0 s"):
            api.look()
    docker.mode = "answer"
    assert look(docker, api)["users"].spec.policy == "open"


def test_an_image_that_docker_fails_to_show_blocks_no_hook(docker: Store) -> None:
    """The image's container joins closed; the next container's labels are read in the hook."""
    docker.create("odd", Manifest(7, "odd"), OPEN)
    docker.create("users", PLAIN, OPEN)
    docker.index, truth = [PLAIN], docker._inspect

    def fail(request: BaseHTTPRequestHandler, image: str, version: int, platform: str) -> None:
        if json.loads(platform)["architecture"] == "odd":
            docker._reply(request, {"message": "unexpected end of JSON input"}, 500)
        else:
            truth(request, image, version, platform)

    docker._inspect = fail  # type: ignore[method-assign]
    api = DockerApi(str(docker.path))
    odd, users = docker.containers
    with pytest.raises(DockerUnavailable):
        api.find(NETWORK, odd)
    assert (api.find(NETWORK, users) or Container("", "")).spec.policy == "open"


# --- the store of graph drivers -----------------------------------------------------------------------------------


def test_with_graph_drivers_an_image_is_inspected_once(tmp_path: Path) -> None:
    """An image ID of graph drivers is the digest of one config: it is inspected once, without a platform, and /info is
    requested only where the API does not distinguish the stores."""
    docker = FakeDocker(tmp_path / "docker.sock")
    docker.images = {"sha256:loud": OPEN, "sha256:plain": {}}
    try:
        for number, image in enumerate(("sha256:loud", "sha256:plain", "sha256:loud")):
            docker.container(f"c{number}", f"{number + 1:064x}", NETWORK, OPEN, image)
        made = {each.name: each for each in DockerApi(str(docker.path)).look().containers.values()}
        assert [made[name].spec.policy for name in ("c0", "c1", "c2")] == ["", "open", ""]
        assert len([path for path in docker.asked if "/images/" in path]) == 2
        assert len([path for path in docker.asked if path.endswith("/info")]) == 1
    finally:
        docker.close()


@pytest.mark.parametrize(
    ("info", "there"),
    [
        ({"Driver": "overlay2", "DriverStatus": [["Backing Filesystem", "extfs"]]}, False),
        ({"Driver": "vfs", "DriverStatus": []}, False),
        ({"Driver": "vfs", "DriverStatus": None}, False),
        ({"Driver": "overlayfs", "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}, True),
        ({"Driver": "zfs", "DriverStatus": [["x", "y"], ["driver-type", "anything"]]}, True),
    ],
)
def test_the_store_is_recognised_by_its_driver(info: dict[str, Any], there: bool) -> None:
    """The store is recognised by the storage driver in `docker info`."""
    assert in_containerd(info) is there


def test_the_store_of_a_former_daemon_is_not_the_next_ones() -> None:
    """If the connection is lost while Docker reports its store, that answer is not kept: another daemon may answer."""
    images, answers = Images(trust=False), [{"Driver": "overlay2"}, {"Driver": "overlayfs", "DriverStatus": STORE}]

    class Client:
        def info(self) -> dict[str, Any]:
            images.forget_store()
            return answers.pop(0)

    client: Any = Client()
    assert [images._in_containerd(client) for _ in range(2)] == [False, True]


@pytest.mark.parametrize("info", [{}, {"Driver": ""}, {"Driver": 5}, {"Driver": "overlay2", "DriverStatus": "x"}])
def test_an_unreported_store_is_unknown(info: dict[str, Any]) -> None:
    """Any label may be the image's if `docker info` does not name the storage driver."""
    with pytest.raises(UnknownLabels):
        in_containerd(info)


def test_another_images_answer_is_an_error() -> None:
    """An answer must name the image that was requested."""
    assert image_labels(Variant("sha256:a"), {"Id": "sha256:a", "Config": None}) == {}
    for answer in ({}, {"Id": "sha256:b"}, {"Id": "sha256:a", "Descriptor": {"digest": "sha256:a"}}):
        with pytest.raises(UnknownLabels):
            image_labels(Variant("sha256:a"), answer)
    with pytest.raises(UnknownLabels):
        image_labels(Variant("sha256:a", "sha256:m", "{}"), {"Id": "sha256:a", "Os": "linux", "Architecture": "386"})


def test_only_labels_that_matter_are_kept() -> None:
    """Only the labels that are compared are kept, of an image's megabytes of labels."""
    answer = {"Id": "x", "Config": {"Labels": {"FW.Allow": "1", "com.docker.compose.service": "a", "other": "b"}}}
    assert image_labels(variant({"ImageID": "x"}), answer) == {"FW.Allow": "1", "com.docker.compose.service": "a"}


def test_the_reason_is_logged_and_shown_for_each_container(docker: Store, caplog: pytest.LogCaptureFixture) -> None:
    """`fwctl status` shows problems; a listing that cannot tell an image's labels is not a failed listing."""
    docker.index = []
    docker.create("users", PLAIN, OPEN)
    with caplog.at_level(logging.ERROR):
        (problem,) = look(docker)["users"].problems
    assert "the image does not exist any more" in str(problem)
    assert not caplog.records


@pytest.mark.parametrize(
    ("least", "most", "asked"),
    [
        (None, "1.41", "1.41"),
        ("1.24", "1.45", "1.45"),
        ("1.24", "1.51", "1.49"),
        ("1.44", "1.55", "1.49"),
        ("1.52", "1.60", "1.52"),
    ],
)
def test_the_version_that_docker_is_asked_in(least: str | None, most: str, asked: str) -> None:
    """The client uses a version that Docker serves: 20.10 knows none after 1.41, 29 none before 1.44, and a later one
    may drop fields that docker-fw knows."""
    assert asking.version({"ApiVersion": most, "MinAPIVersion": least}) == asked
