"""A Docker that crashes with network plugins, as the plugin meets it: it is kept alive, and an upgrade mends all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.packets import until
from tests.kernel.running import Running
from tests.kernel.site import Site

WHY = "upgrade Docker to 29.0.3 or newer"


@pytest.fixture
def fw(site: Site) -> Iterator[Running]:
    made = Running(site)
    try:
        made.docker.version = "29.0.2"
        yield made.start()
    finally:
        made.close()


def test_nothing_joins_an_engine_that_would_die_of_it_until_it_is_upgraded(fw: Running) -> None:
    """On Docker 29.0.2 networks and containers of the driver are refused with what to do, which the status and the
    log tell too; nothing half-made is left. Once 29.0.3 answers, without a restart of docker-fw, both work."""
    until(lambda: WHY in fw.status()["unfit"], "the version is known")
    assert WHY in fw.log.read_text()
    network = fw.network(1)
    assert WHY in fw.driver("CreateNetwork", network)["Err"]
    assert fw.links() == set()
    fw.docker.version = "29.0.3"
    fw.docker.end_streams()
    until(lambda: not fw.status()["unfit"], "the upgrade is known")
    fw.well("CreateNetwork", network)
    fw.end(fw.begin(network, 2))
    # A network from before a downgrade: its containers are refused before Docker has a gateway to take from them.
    fw.docker.version = "29.0.0"
    fw.docker.end_streams()
    until(lambda: WHY in fw.status()["unfit"], "the downgrade is known")
    assert WHY in fw.driver("CreateEndpoint", fw.endpoint(network, 3))["Err"]
    fw.well("DeleteNetwork", network)
