"""Check the kernel's treatment of a protocol with only an entry in the registry: `test_protocols` runs this."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from plugin.labels.parser import parse
from plugin.model import Address, AddressPolicy, Endpoint, Network, Policy
from plugin.policy.decide import of
from plugin.state.closed_flows import closed_flows, cut_closed
from tests.kernel import packets as pk
from tests.kernel.site import Box, Site

NEW = "udplite"
PORTS = (22, 443, 4000)
_sources = itertools.count(20000)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site() as made:
        yield made


@pytest.fixture(scope="module")
def web(site: Site) -> Box:
    return site.box(site.network(1), 2)


def says(site: Site, web: Box, **labels: str) -> dict[Address, AddressPolicy]:
    """Load the table for a container with these labels; return what its addresses accept."""
    parsed = parse({f"fw.{key}": value for key, value in labels.items()})
    assert not parsed.problems
    endpoint = site.known(web, spec=parsed.spec)
    site.load(endpoint)
    policy = _policy(web.network, endpoint)
    return {
        each: AddressPolicy(ip_network(f"{each}/{length}", strict=False), policy)
        for each, length in ((web.v4, 24), (web.v6, 64))
    }


def _policy(network: Network | None, endpoint: Endpoint) -> Policy:
    assert network
    return of(network, endpoint)


def arriving(site: Site, web: Box) -> set[str]:
    """Return what reaches the container from outside, in both families.

    The packets are to some ports of the new protocol, of UDP, and GRE.
    """
    sent = {}
    for source, target in ((Site.OUT4, web.v4), (Site.OUT6, web.v6)):
        for port in PORTS:
            sent[pk.udplite(source, target, port, next(_sources))] = f"{port}/{NEW}"
            sent[pk.udp(source, target, port, next(_sources))] = f"{port}/udp"
        sent[pk.portless("gre", source, target)] = "gre"
        sent[pk.portless("other", source, target)] = "other"
    return {sent[packet] for packet in site.deliver(sent, web)}


ALL_NEW, ALL_UDP = ({f"{port}/{proto}" for port in PORTS} for proto in (NEW, "udp"))


def test_packets_of_it_obey_the_labels(site: Site, web: Box) -> None:
    """The protocol is closed without a label, and with `fw.deny: */NEW` on an open container.

    It is open exactly where a label opens it.
    """
    says(site, web)
    assert arriving(site, web) == set()
    says(site, web, policy="open", deny=f"*/{NEW}")
    assert arriving(site, web) == {*ALL_UDP, "gre", "other"}
    says(site, web, policy="open")
    assert arriving(site, web) == {*ALL_UDP, *ALL_NEW, "gre", "other"}
    says(site, web, allow=f"4000/{NEW}")
    assert arriving(site, web) == {f"4000/{NEW}"}


def test_established_flows_of_it_end_when_it_is_denied(site: Site, web: Box) -> None:
    """conntrack has its ports: flows to denied ones are cut, and others stay."""
    site.forget_flows()
    says(site, web, policy="open")
    assert arriving(site, web) >= ALL_NEW
    with site.inside():
        denied = says(site, web, policy="open", deny=f"4000/{NEW}")
        assert {(flow.proto, flow.port) for flow in closed_flows(denied)} == {(NEW, 4000)}
        cut_closed(denied)
        assert not closed_flows(denied)
        denied = says(site, web, policy="open", deny=f"*/{NEW}")
        assert {(flow.proto, flow.port) for flow in closed_flows(denied)} == {(NEW, 22), (NEW, 443)}
