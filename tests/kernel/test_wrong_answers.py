"""Docker's socket returns wrong data: the affected object stays closed, and no other object is affected."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from plugin.docker.client import DockerApi
from plugin.model import DockerUnavailable
from tests.kernel.fakedocker import FakeDocker
from tests.kernel.packets import new_flow
from tests.kernel.running import BASE, Body, Running
from tests.kernel.site import Box, Site
from tests.waiting import until

LARGE = 5 << 20
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
def test_wrong_data_about_a_container_affects_no_other(docker: FakeDocker, place: str) -> None:
    """Whatever values of a wrong type Docker returns for one container, the labels of all others are read.

    When Docker returns correct data again that container's are too.
    """
    api, truth = DockerApi(str(docker.path)), docker.containers[BAD]
    for wrong in WRONG:
        docker.containers[BAD] = {**truth, place: wrong}
        look = api.look()
        assert WEB in look.containers, (place, wrong)
        assert truth["Id"] in look.container_ids
    docker.containers[BAD] = truth
    assert set(api.look().containers) == {WEB, BAD}


@pytest.mark.parametrize("large", [{"Labels": {"fw.allow": "9090", "x": "y" * LARGE}}, {"Command": "y" * LARGE}])
def test_an_oversized_container_affects_no_other(docker: FakeDocker, large: dict[str, Any]) -> None:
    """A container whose entry is too large to read stays closed, and exists; the labels of all others are read.

    It is reported by name, and no look-up waits for it when it is requested alone.
    """
    api, truth = DockerApi(str(docker.path)), docker.containers[BAD]
    first = {"Id": truth["Id"], "Names": truth["Names"]}
    docker.containers = {BAD: {**first, **truth, **large}, WEB: docker.containers[WEB]}
    look = api.look()
    assert set(look.containers) == {WEB}
    assert truth["Id"] in look.container_ids
    assert look.complete
    assert "stays closed" in look.not_guarded["bad"]
    assert [endpoint.id for endpoint in look.endpoints] == [WEB]
    found = api.find(NETWORK, BAD)
    assert found
    assert "exceeds 4 MiB" in str(found.problems[0])
    assert api.find(NETWORK, WEB), "hooks go on asking"
    del docker.containers[WEB]
    assert api.running(truth["Id"]) == []
    docker.networks[NETWORK]["Driver"] = "bridge"
    assert api.guest(NETWORK, truth["Id"]) is None
    assert api.look().container_ids == {truth["Id"]}


@pytest.mark.parametrize("path", ["/networks/", "/images/"])
def test_an_oversized_answer_about_one_object_affects_no_other(docker: FakeDocker, path: str) -> None:
    """A full listing continues without an oversized answer about one object."""
    docker.containers[BAD]["ImageID"] = "sha256:large"
    docker.images["sha256:large"] = {}
    docker.networks["f" * 64] = {"Id": "f" * 64, "Name": "docker_gwbridge", "Driver": "bridge"}
    with answering(
        docker, path, lambda answer: answer if "sha256:plain" in str(answer) else {**answer, "x": "y" * 2 * LARGE}
    ):
        look = DockerApi(str(docker.path)).look()
    assert WEB in look.containers
    assert (BAD in look.containers) is (path == "/networks/")


@pytest.mark.parametrize("place", ["Id", "Name", "Driver", "Labels", "Options", "IPAM", "Internal", "Containers"])
def test_wrong_data_about_a_network_affects_no_other(docker: FakeDocker, place: str) -> None:
    """Wrong data about one network affects no other network and no container's labels."""
    api = DockerApi(str(docker.path))
    front, fault = ({"Id": each * 64, "Name": each, "Driver": "bridge"} for each in "de")
    docker.networks["front"], docker.networks["lie"] = front, fault
    assert [network.name for network in api.look().networks] == ["d", "e"]
    for wrong in (*WRONG, None):
        docker.networks["lie"] = {**fault, place: wrong}
        look = api.look()
        assert set(look.containers) == {WEB, BAD}, (place, wrong)
        assert "d" in [network.name for network in look.networks], (place, wrong)
        assert "br-dddddddddddd" in api.bridges()[0]


def test_networks_are_removed_only_by_a_complete_list(docker: FakeDocker) -> None:
    """A list with an unreadable entry does not show which networks exist, and neither does an empty one.

    Docker always has some of its own. So no docker-fw network is taken for removed.
    """
    api = DockerApi(str(docker.path))
    assert api.look().network_ids == {NETWORK}
    for answer in ([], [{"Id": NETWORK, "Name": "net"}, {"Name": "other"}]):
        with answering(docker, "/networks", lambda _, answer=answer: answer):
            assert api.look().network_ids is None


@pytest.mark.parametrize("path", ["/networks", "/containers/json"])
@pytest.mark.parametrize("answer", [{}, {"message": "busy"}, [5], [{"message": "busy"}], None, "x"])
def test_no_list_is_no_answer(docker: FakeDocker, path: str, answer: Any) -> None:
    """An answer that is not a list does not mean that no container exists.

    Docker counts as silent, all stays unchanged.
    """
    with answering(docker, path, lambda _: answer), pytest.raises(DockerUnavailable):
        DockerApi(str(docker.path)).look()


@pytest.mark.parametrize("version", [[], {}, {"ApiVersion": None}, {"ApiVersion": "x.y"}, {"ApiVersion": []}])
def test_a_wrong_version_ends_no_listening(docker: FakeDocker, monkeypatch: pytest.MonkeyPatch, version: Any) -> None:
    """A daemon that answers the version request with nonsense counts as silent: it is asked again."""
    api, reply = DockerApi(str(docker.path)), docker._reply
    monkeypatch.setattr(docker, "_reply", lambda to, value: reply(to, version if to.path == "/version" else value))
    with pytest.raises(DockerUnavailable):
        next(api.events())
    monkeypatch.undo()
    assert next(api.events()).action == "subscribed"


# --- the running plugin, and packets ------------------------------------------------------------------------------

DEEP = b"[" * 200_000
MEGABYTES = b"x" * LARGE
Fault = Callable[[list[Any]], list[Any]]


@pytest.fixture(scope="module")
def fw() -> Iterator[Running]:
    with Site() as site, closing(Running(site)) as made:
        yield made.start()
        assert "stumbled" not in (log := made.log.read_text()), log[-6000:]  # each wrong answer is handled


class Bed:
    """A container whose label opens 8080, one with false data about it, and room for new containers."""

    def __init__(self, fw: Running) -> None:
        self.fw, self.numbers = fw, itertools.count(10)
        self.network = fw.network(1)
        fw.well("CreateNetwork", self.network)
        self.stays, self.misreported = (self.box(number) for number in (2, 3))
        self.known("stays", 2)
        until(lambda: self.opens(2) == {*BASE, "8080/6"}, "the label is known")

    def endpoint(self, number: int) -> Body:
        return self.fw.endpoint(self.network, number)

    def box(self, number: int) -> Box:
        """Join a container while Docker does not report its identity."""
        endpoint = self.endpoint(number)
        self.fw.well("CreateEndpoint", endpoint)
        endpoint["Joined"] = self.fw.well("Join", endpoint)
        return self.fw.move(endpoint)

    def known(self, name: str, number: int) -> None:
        """From now on Docker lists it as a container with a label, and reports an event."""
        endpoint = self.endpoint(number)
        self.fw.docker.container(name, endpoint["EndpointID"], endpoint["NetworkID"], {"fw.allow": "8080"})
        self.fw.docker.event("network", "create")

    def opens(self, number: int) -> set[str]:
        return self.fw.opens(f"10.1.0.{number}")

    def check_newcomer(self) -> None:
        """Check that another container's label is read and opens, at once, not half a minute later."""
        number = next(self.numbers)
        self.box(number)
        self.known(f"c{number}", number)
        until(lambda: self.opens(number) == {*BASE, "8080/6"}, "the newcomer's label is known")

    def gets(self, box: Box) -> bool:
        """Return True if an outsider's SYN reaches its port 8080."""
        packet = new_flow("tcp", Site.OUT6, box.v6, 8080, next(_sports))
        return packet in self.fw.site.deliver([packet], box)


_sports = itertools.count(2000)


@pytest.fixture(scope="module")
def bed(fw: Running) -> Bed:
    return Bed(fw)


@contextlib.contextmanager
def answering(docker: FakeDocker, path: str, fault: Callable[[Any], Any]) -> Iterator[None]:
    """Replace the answers to this path with wrong ones."""
    truth = docker._reply

    def reply(request: Any, value: Any, status: int = 200) -> None:
        if path not in request.path:
            truth(request, value, status)
        elif isinstance(answer := fault(value), bytes):
            request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))
        else:
            truth(request, answer, status)

    docker._reply = reply  # type: ignore[method-assign]
    try:
        yield
    finally:
        docker._reply = truth  # type: ignore[method-assign]


def without(key: str) -> Fault:
    """List one more object, which lacks this key."""
    return lambda answer: [{k: v for k, v in each.items() if k != key} for each in answer[:1]] + answer


FAULTS: dict[str, tuple[str, Fault]] = {
    "a container without an ID": ("/containers/json", without("Id")),
    "a container that is none": ("/containers/json", lambda answer: [None, 5, "x", [], *answer]),
    "a network without an ID": ("/networks", without("Id")),
    "a network that is none": ("/networks", lambda answer: [None, 5, "x", [], *answer]),
    "a network whose labels are none": ("/networks", lambda answer: [{**answer[0], "Labels": 5}, *answer]),
    "our network's labels are none": ("/networks", lambda answer: [{**each, "Labels": [5]} for each in answer]),
}


@pytest.mark.parametrize(("path", "fault"), FAULTS.values(), ids=FAULTS)
def test_wrong_data_in_a_list_affects_no_other_entry(bed: Bed, path: str, fault: Fault) -> None:
    """Whatever else Docker lists, running containers stay open, and new ones are known, as without the wrong data."""

    def one(answer: Any) -> Any:
        return fault(answer) if isinstance(answer, list) else answer

    with answering(bed.fw.docker, path, one):
        bed.check_newcomer()
        assert [bed.gets(box) for box in (bed.stays, bed.misreported)] == [True, False]


@pytest.mark.parametrize(
    ("path", "fault"),
    [("/networks", DEEP), ("/containers/json", DEEP), ("/version", b"\xff{")],
    ids=["deep networks", "deep containers", "no text"],
)
def test_unreadable_answers(bed: Bed, path: str, fault: bytes) -> None:
    """While Docker's answers cannot be read, Join is answered and opens nothing, and running containers are unchanged.

    As soon as the answers can be read, the label is known.
    """
    number = next(bed.numbers)
    asked: list[object] = []

    def answer(former: object) -> bytes:
        asked.append(former)
        return fault

    with answering(bed.fw.docker, path, answer):
        if path == "/version":
            bed.fw.docker.end_streams()
            until(lambda: len(asked) > 1, "docker-fw has read the first answer, and asks again")
        bed.known(f"c{number}", number)
        box = bed.box(number)
        assert [bed.gets(each) for each in (bed.stays, box)] == [True, False]
    until(lambda: bed.opens(number) == {*BASE, "8080/6"}, "the label is known")


def chunk(words: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(words), words)


WORDS = {
    "no JSON": chunk(b"proxy: upstream timed out\n"), "deep": chunk(DEEP + b"\n"), "no chunk": b"\r\nHTTP/1.1 500\r\n",
    "wrong types": chunk(b'{"Type": [], "Action": {}, "Actor": 5}\n'), "cut": b"ff\r\n{",
}  # fmt: skip


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_nonsense_among_the_events(bed: Bed, words: bytes) -> None:
    """After any nonsense in Docker's event stream, later events are processed, and it closes no running container."""
    until(lambda: bed.fw.status()["listening"], "docker-fw follows events")
    for stream in list(bed.fw.docker._streams):
        with contextlib.suppress(BrokenPipeError):  # one of an earlier test
            stream.sendall(words)
    if words == WORDS["cut"]:
        bed.fw.docker.end_streams()
    bed.check_newcomer()
    assert [bed.gets(box) for box in (bed.stays, bed.misreported)] == [True, False]


def _line(words: bytes) -> bytes:
    return words + MEGABYTES + b'"}}}\n'


@pytest.mark.parametrize(
    "start",
    [
        b'{"status":"create","id":"%b","from":"x","Type":"container","Action":"create","Actor":{"ID":"%b","Attributes":{"a":"'
        % ((b"9" * 64,) * 2),
        b'{"status":"exec_create: ',
    ],
    ids=["labels", "command"],
)
def test_an_oversized_event_closes_no_container(bed: Bed, start: bytes) -> None:
    """Giant labels or a giant command: the event is attributed to its container, and the stream continues."""
    until(lambda: bed.fw.status()["listening"], "docker-fw follows events")
    subscribed = sum("/events" in path for path in bed.fw.docker.asked)
    for _ in range(10):
        _send(bed.fw.docker, chunk(_line(start)))
        assert bed.gets(bed.stays)
    bed.check_newcomer()
    assert [bed.gets(box) for box in (bed.stays, bed.misreported)] == [True, False]
    assert sum("/events" in path for path in bed.fw.docker.asked) == subscribed


def test_an_oversized_event_of_unknown_origin_leads_to_a_listing(bed: Bed) -> None:
    """An oversized event that any container may have caused leads to one more full listing, and the stream continues.

    Many such events starve no other work.
    """
    until(lambda: bed.fw.status()["listening"], "docker-fw follows events")
    subscribed = sum("/events" in path for path in bed.fw.docker.asked)
    listed = sum("/containers/json" in path for path in bed.fw.docker.asked)
    for _ in range(20):
        _send(bed.fw.docker, chunk(_line(b'{"Type":"network","Action":"prune","Actor":{"Attributes":{"x":"')))
    until(lambda: sum("/containers/json" in path for path in bed.fw.docker.asked) > listed, "everything is looked at")
    bed.check_newcomer()
    assert [bed.gets(box) for box in (bed.stays, bed.misreported)] == [True, False]
    assert sum("/events" in path for path in bed.fw.docker.asked) == subscribed


def test_an_oversized_container_closes_no_other(bed: Bed) -> None:
    """An oversized entry is not read; running containers stay open, new ones are known, and status names it."""
    number = next(bed.numbers)
    endpoint = bed.endpoint(number)
    box = bed.box(number)
    labels = {"fw.policy": "open", "x": "y" * LARGE}
    bed.fw.docker.container("large", endpoint["EndpointID"], endpoint["NetworkID"], labels)
    bed.check_newcomer()
    assert [bed.gets(each) for each in (bed.stays, box)] == [True, False]
    until(lambda: "large" in bed.fw.status()["apart"], "status names the container")
    del bed.fw.docker.containers[endpoint["EndpointID"]]


def _send(docker: FakeDocker, words: bytes) -> None:
    for stream in list(docker._streams):
        with contextlib.suppress(BrokenPipeError):
            stream.sendall(words)
