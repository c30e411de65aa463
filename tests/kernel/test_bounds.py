"""Test containers with masses of labels: they are refused or closed in bounded time, and block no other container."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.kernel.running import BASE, Body, Running, took
from tests.kernel.site import Site
from tests.waiting import until

FULL = ", ".join(str(3 * n + 1) for n in range(256))
#: A container's labels, and the message about them.
MASSES = {
    "labels": ({f"fw.network.n{n}.allow": "8080" for n in range(10_000)}, "at most 256 keys are read"),
    "rules": ({f"fw.network.n{n}.allow": FULL for n in range(1000)}, "there are more than 2048 rules before it"),
    "entries": ({"fw.allow": ", ".join(map(str, range(1, 10_001)))}, "characters long; at most 4096 are read"),
    "megabytes": ({"fw.allow": "8080, " * (1 << 18)}, "characters long; at most 4096 are read"),
    "keys": ({f"fw.{n}" + "x" * 1000: "1" for n in range(1000)}, "docker-fw has none of more than 512"),
    "too large": ({f"fw.{n}" + "x" * 10_000: "1" for n in range(1000)}, "exceeds 4 MiB, so its labels are not read"),
    "names": (
        {"fw.allow": ", ".join(f"{256 * n + 1}-{256 * n + 254} from project:shop" for n in range(100))},
        "expands to more than 20000 rules: ports times peers",
    ),
}


@pytest.fixture
def fw(site: Site) -> Iterator[Running]:
    with closing(Running(site)) as made:
        yield made.start()


def test_masses_of_labels_delay_no_other_container(fw: Running) -> None:
    """10,000 labels, 10,000 entries, megabytes: each start is refused at once with a short reason.

    While Docker lists all of them, another's labels are known at once; and neither log nor state file grows by their
    content.
    """
    network = fw.network(1)
    fw.well("CreateNetwork", network)
    for number, (labels, why) in enumerate(MASSES.values(), 2):
        endpoint = fw.endpoint(network, number)
        fw.docker.container(f"c{number}", endpoint["EndpointID"], network["NetworkID"], labels)
        fw.well("CreateEndpoint", endpoint)
        error: list[str] = []

        def refused(endpoint: Body = endpoint, error: list[str] = error) -> bool:
            began, reply = time.monotonic(), fw.driver("Join", endpoint)
            assert took(began) < 5
            if "Err" not in reply:  # Docker was too slow to report labels: closed, and tried again here
                fw.well("Leave", endpoint)
                return False
            error.append(reply["Err"])
            return True

        until(refused, "the start is refused", 15)
        assert why in error[0]
        assert len(error[0]) <= 8001
        assert fw.opens(f"10.1.0.{number}") == set()
    fw.docker.asked.clear()
    fw.docker.event("network", "create")  # a full listing, meanwhile
    until(lambda: any("containers/json?" in path and "all=1" in path for path in fw.docker.asked), "Docker is asked")
    began = time.monotonic()
    endpoint = fw.start_container(network, 200, {"fw.allow": "8080"})
    assert took(began) < 5
    until(lambda: fw.opens("10.1.0.200") == {*BASE, "8080/6"}, "the other's labels are known")
    assert fw.opens("10.1.0.2") == set()
    assert len(fw.log.read_bytes()) < 100_000
    assert fw.state.stat().st_size < 100_000
    fw.stop_container(endpoint)
