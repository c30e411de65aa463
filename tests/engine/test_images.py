"""Test that an image cannot open its own ports, also in containerd's image store, where it has several variants.

There one image ID means several variants (platforms), each with labels of its own. It is Docker 29's default; Debian's
28.5.2 has it as a feature, and so has 26.1.5, which does not report the variant that a container was created from.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engine.outside import labels, seen, tcp
from tests.lab import Engine
from tests.lab.oci import Variant, oci_archive
from tests.product import Fw, with_plugin
from tests.waiting import until

PORTS = (22, 80, 443, 5432)
BASE = {22, 80, 443}
ALL = {*PORTS}
OPEN = {"fw.policy": "open"}
#: `two`: the variant for another platform opens. `twins`: an index that names each platform twice.
IMAGES = {
    "two": (Variant("linux/amd64"), Variant("linux/386", OPEN)),
    "twins": (
        Variant("linux/amd64", {"mark": "1"}), Variant("linux/amd64", {**OPEN, "mark": "2"}),
        Variant("linux/386", {**OPEN, "mark": "3"}), Variant("linux/386", {"mark": "4"}),
    ),
    "one": (Variant("linux/amd64"),),
    "other": (Variant("linux/386", OPEN),),
}  # fmt: skip
OTHER = ("--platform", "linux/386")
BOTH = pytest.mark.parametrize("driver", [None, "bridge"], ids=["docker-fw's", "Docker's"])
#: Docker itself lets the outsider reach the container's own address there.
ROUTED = ("-o", "com.docker.network.bridge.gateway_mode_ipv6=routed")
_host_ports = itertools.count(24000)


def _engine(version: str, directory: Path) -> Iterator[Fw]:
    with Engine(version, containerd_store=True, data=with_plugin(version)[2:]) as engine:
        for name, variants in IMAGES.items():
            engine.load(oci_archive(directory / f"{name}.tar", f"{name}:latest", variants))
        yield Fw.install(engine)


@pytest.fixture(scope="module")
def reporting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fw]:
    """Yield docker-fw on an engine with containerd's image store that reports a container's variant."""
    yield from _engine("28.5.2", tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fw]:
    """Yield the same on one that does not report it."""
    yield from _engine("26.1.5", tmp_path_factory.mktemp("images"))


@contextmanager
def container(fw: Fw, driver: str | None, image: str, *options: str) -> Iterator[tuple[str, Callable[[], set[int]]]]:
    """Yield a container of the image: its name, and a function.

    The function returns the container's ports that an outsider reaches, by its own addresses, or by `-p` and the host's
    addresses.
    """
    hosts = {next(_host_ports): port for port in PORTS}
    published = [word for host, port in hosts.items() for word in ("-p", f"{host}:{port}")]
    with fw.network(*(ROUTED if driver and fw.engine.version != "26.1.5" else ()), driver=driver) as net:
        app = fw.run(net, *options, *published, image=image)
        targets = tcp(fw.addresses(app, net), *PORTS) + tcp((fw.host.v4, fw.host.v6), *hosts)
        with fw.engine.serve(app, tcp=PORTS):
            yield app, lambda: {hosts.get(port, port) for _, _, port in seen(fw, *targets)}


def answers(reached: Callable[[], set[int]], right: set[int]) -> None:
    """Wait for what must answer, then try all again: exactly that answers."""
    until(lambda: reached() >= right, f"{right} answer", 6)
    assert reached() == right


@BOTH
def test_a_variant_for_another_platform_opens_nothing(reporting: Fw, driver: str | None) -> None:
    """The image's other variant has `fw.policy: open`: only the base answers.

    This holds on docker-fw and Docker networks, at the container's own addresses and with `-p`. A label of the user's
    opens its port; status reports both.
    """
    with container(reporting, driver, "two", *OTHER) as (_, reached):
        answers(reached, BASE)
        assert 'label fw.policy="open" comes from the image and opens nothing' in reporting.fwctl("status")
    with container(reporting, driver, "two", *OTHER, *labels(allow="5432")) as (_, reached):
        answers(reached, ALL)
    with container(reporting, driver, "other", *OTHER, *labels(deny="22")) as (_, reached):
        answers(reached, BASE - {22})


@BOTH
def test_a_label_of_the_users_is_the_users_whatever_another_variant_says(reporting: Fw, driver: str | None) -> None:
    """`fw.policy: open` from the user opens everything on the variant without labels, before and after a container of
    the variant that has the same label."""
    for _ in range(2):
        with container(reporting, driver, "two", *labels(policy="open")) as (_, reached):
            answers(reached, ALL)
        with container(reporting, driver, "two", *OTHER, *labels(policy="open")) as (_, reached):
            answers(reached, BASE)
    with container(reporting, driver, "one", *labels(policy="open")) as (_, reached):
        answers(reached, ALL)


@BOTH
def test_an_index_that_names_a_platform_twice_opens_nothing(reporting: Fw, driver: str | None) -> None:
    """No label opens a port, whichever of the two Docker takes, and whichever it shows."""
    for platform in ((), OTHER):
        with container(reporting, driver, "twins", *platform) as (_, reached):
            answers(reached, BASE)


@BOTH
def test_a_committed_container_is_an_image_like_any(reporting: Fw, driver: str | None) -> None:
    """The labels that opened a container are an image's labels once the container is committed to an image."""
    with container(reporting, driver, "two", *OTHER, *labels(allow="5432")) as (app, reached):
        answers(reached, ALL)
        reporting.engine.docker("commit", app, "committed")
    with container(reporting, driver, "committed", *OTHER) as (_, reached):
        answers(reached, BASE)


def test_where_docker_does_not_report_the_variant_no_label_opens(silent: Fw) -> None:
    """On Docker 24 to 27 with containerd's image store, any label may be the image's.

    On Docker networks labels that open are ignored and labels that close count; on docker-fw networks the start is
    refused, with the reason and what to do.
    """
    why = "does not report which variant of its image a container was created from; upgrade Docker to 28.1 or newer"
    for image, options in (("two", OTHER), ("two", labels(policy="open")), ("one", labels(allow="5432"))):
        with container(silent, "bridge", image, *options) as (_, reached):
            answers(reached, BASE)
            assert why in silent.fwctl("status")
    with container(silent, "bridge", "one", *labels(deny="22", policy="closed")) as (_, reached):
        assert reached() == set()
    with silent.network() as net:
        command = ("run", "--rm", "--network", net.name, *labels(allow="5432"), "one", "true")
        assert why in silent.engine.try_docker(*command).stderr
    with container(silent, None, "one") as (_, reached):
        answers(reached, BASE)
