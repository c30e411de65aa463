"""What there is and what it answers on, as data for `fwctl` and for programs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from plugin.effect import Engine, without_effect
from plugin.model import Address, Answers, Endpoint, Guarded, Network, Published, Rule
from plugin.policy import accepted, closed_ports, in_order, reachable


def driver_networks(
    networks: Mapping[str, Network], endpoints: Iterable[Endpoint], everywhere: tuple[Rule, ...], published: bool
) -> list[dict[str, Any]]:
    """Networks of docker-fw's own driver."""
    there = list(endpoints)
    return [
        {
            "id": network.id,
            "bridge": network.bridge,
            "subnets": [str(g.network) for g in (network.gateway4, network.gateway6) if g],
            "internal": network.internal,
            "endpoints": [_endpoint(network, e, everywhere, published) for e in there if e.network_id == network.id],
        }
        for network in networks.values()
    ]


def guarded_networks(
    networks: Mapping[str, Guarded], guests: Iterable[Endpoint], everywhere: tuple[Rule, ...], published: bool,
    engine: Engine, mark: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Docker's own bridge networks."""
    there = list(guests)
    return [
        {
            "id": network.id,
            "name": network.name,
            "bridge": network.bridge,
            "subnets": [str(subnet) for subnet in network.subnets],
            "internal": network.internal,
            "problems": [str(problem) for problem in network.problems],
            "endpoints": [
                {
                    **_endpoint(network, endpoint, everywhere, published),
                    "no_effect": list(without_effect(network, endpoint, engine, mark)),
                }
                for endpoint in there
                if endpoint.network_id == network.id
            ],
        }
        for network in networks.values()
    ]


def answers(
    networks: Mapping[str, Guarded], guests: Iterable[Endpoint], everywhere: tuple[Rule, ...], published: bool
) -> dict[Address, Answers]:
    """What each address on Docker's own networks accepts from outside its subnet."""
    return {
        address: Answers(subnet, reachable(networks[guest.network_id], guest, everywhere, published))
        for guest in guests
        if guest.network_id in networks
        for address in (guest.addr4, guest.addr6)
        for subnet in networks[guest.network_id].subnets
        if address and address in subnet
    }


def closed(
    networks: Mapping[str, Guarded], guests: Iterable[Endpoint], everywhere: tuple[Rule, ...], published: bool
) -> list[Published]:
    """The published ports on Docker's own networks that nobody from outside may reach."""
    return [
        port
        for guest in guests
        if guest.network_id in networks
        for port in closed_ports(networks[guest.network_id], guest, everywhere, published)
    ]


def _endpoint(
    network: Network | Guarded, endpoint: Endpoint, everywhere: tuple[Rule, ...], published: bool
) -> dict[str, Any]:
    container = endpoint.container
    closed = closed_ports(network, endpoint, everywhere, published)
    return {
        "id": endpoint.id,
        "container": container.name if container else None,
        "addresses": [str(a) for a in (endpoint.addr4, endpoint.addr6) if a],
        "known": container is not None,
        "accepts": [str(rule) for rule in accepted(network, endpoint, everywhere)],
        "icmp_only": not in_order(network, endpoint),
        "published": [_port(port, port not in closed) for port in endpoint.published],
        "problems": [str(p) for p in container.problems] if container else [],
    }


def _port(port: Published, is_open: bool) -> dict[str, Any]:
    return {
        "proto": port.proto,
        "host_ip": str(port.host_ip),
        "host_port": port.host_port,
        "container_port": port.container_port,
        "open": is_open,
    }
