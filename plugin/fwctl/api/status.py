"""Networks, containers and what they accept, with the origin of each rule, as data for `fwctl` and programs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from plugin.docker.engine import Engine
from plugin.fwctl.api.docker_firewall import within, without_effect
from plugin.fwctl.api.flow_ends import containers
from plugin.model import Address, BridgeNetwork, Endpoint, Network, Overriding, Policy, Published, Rule
from plugin.policy.decide import covers
from plugin.policy.facts import ElementOwner, Kind
from plugin.policy.rate_quota import FULL
from plugin.policy.view import PolicyView

#: By address: packets to it that were dropped, and packets from it that were dropped.
Dropped = Mapping[Address, tuple[int, int]]


def driver_networks(inventory: PolicyView, dropped: Dropped) -> list[dict[str, Any]]:
    """Return the networks of docker-fw's driver. Docker gives their names only with their containers."""
    found, by_network = [], _by_network(inventory.state.endpoints.values())
    for network in inventory.state.networks.values():
        there = by_network.get(network.id, [])
        names = {e.container.network for e in there if e.container and e.container.network}
        found.append(
            {
                "id": network.id,
                "name": min(names, default=""),
                "bridge": network.bridge,
                "subnets": [str(subnet) for subnet in network.subnets],
                "internal": network.internal,
                "problems": [],
                "endpoints": [
                    _endpoint(inventory, ElementOwner(Kind.ENDPOINT, e.id), network, e, dropped) for e in there
                ],
            }
        )
    return found


def guarded_networks(inventory: PolicyView, engine: Engine, mark: int, dropped: Dropped) -> list[dict[str, Any]]:
    """Return Docker networks with their endpoints; an unconfirmed endpoint has no container."""
    there = _by_network(guest.as_known for guest in inventory.facts.guests.values())
    return [
        {
            "id": network.id,
            "name": network.name,
            "bridge": network.bridge,
            "subnets": [str(subnet) for subnet in network.subnets],
            "internal": network.internal,
            "problems": [str(problem) for problem in network.problems],
            "endpoints": [
                _tracked_endpoint(inventory, network, endpoint, engine, mark, dropped)
                for endpoint in there.get(network.id, ())
            ],
        }
        for network in inventory.facts.networks.values()
    ]


def _by_network(endpoints: Iterable[Endpoint]) -> dict[str, list[Endpoint]]:
    found: dict[str, list[Endpoint]] = {}
    for endpoint in endpoints:
        found.setdefault(endpoint.network_id, []).append(endpoint)
    return found


def _tracked_endpoint(
    inventory: PolicyView, network: BridgeNetwork, endpoint: Endpoint, engine: Engine, mark: int, dropped: Dropped
) -> dict[str, Any]:
    endpoint_data = _endpoint(inventory, ElementOwner(Kind.TRACKED, endpoint.id), network, endpoint, dropped)
    endpoint_data["no_effect"] += _without_effect(inventory, network, endpoint, engine, mark)
    return endpoint_data


def _without_effect(
    inventory: PolicyView, network: BridgeNetwork, endpoint: Endpoint, engine: Engine, mark: int
) -> tuple[str, ...]:
    return without_effect(network, endpoint, engine, mark, inventory.override(endpoint.container).allow)


def _endpoint(
    inventory: PolicyView, owner: ElementOwner, network: Network | BridgeNetwork, endpoint: Endpoint, dropped: Dropped
) -> dict[str, Any]:
    container = endpoint.container
    policy = inventory.decide(network, endpoint)
    resolved = inventory.resolved(network, endpoint)
    addresses = [address for address in (endpoint.addr4, endpoint.addr6) if address]
    return {
        "id": endpoint.id,
        "container": container.name if container else None,
        "container_id": container.id if container else None,
        "addresses": [str(address) for address in addresses],
        "known": container is not None,
        "icmp_only": not policy.labels_valid,
        "accepts": [str(rule) for rule in policy.accepts],
        "rules": [_rule(rule, resolved.accepts) for rule in policy.accepts],
        "egress": None if policy.egress is None else [_rule(rule, resolved.egress or ()) for rule in policy.egress],
        "rates": [{"rate": str(rate), "origin": rate.origin} for rate in policy.rates],
        "log": policy.log,
        "published": [_port(port, policy) for port in endpoint.published],
        "problems": [
            *(str(p) for p in (container.problems if container else ())),
            *([FULL] if policy.rates and inventory.rates_refused(owner) else []),
        ],
        "no_effect": [
            *(container.notices if container else ()),
            *within(network, endpoint, resolved),
            *inventory.too_many(owner),
        ],
        "overrides": [
            override(each) for each in inventory.state.overrides if container and each.container == container.id
        ],
        "dropped": sum(dropped.get(address, (0, 0))[0] for address in addresses),
        "refused": sum(dropped.get(address, (0, 0))[1] for address in addresses),
    }


def _rule(rule: Rule, resolved: Iterable[Rule]) -> dict[str, Any]:
    """Return a rule. `peers`: as written; `addresses`: theirs now, None if the rule has no peers."""
    now = {
        str(peer)
        for each in resolved
        if (each.proto, each.first, each.last, each.origin) == (rule.proto, rule.first, rule.last, rule.origin)
        for peer in each.peers
    }
    return {
        "what": rule.what,
        "peers": [str(peer) for peer in rule.peers],
        "addresses": sorted(now) if rule.peers else None,
        "origin": rule.origin,
    }


def override(each: Overriding) -> dict[str, Any]:
    """Return one rule of `fwctl allow` or `deny`; `until` None is permanent."""
    return {"kind": "deny" if each.deny else "allow", "rule": str(each.rule), "until": each.until or None}


def _port(port: Published, policy: Policy) -> dict[str, Any]:
    """Return a published port. `open`: to every address; `some`: to the `peers` that a rule with `from` names."""
    rules = [r for r in (*policy.accepts, *policy.published) if covers(r, port.proto, port.container_port)]
    return {
        "proto": port.proto,
        "host_ip": str(port.host_ip),
        "host_port": port.host_port,
        "container_port": port.container_port,
        "open": port.host_ip.is_loopback or any(not rule.peers for rule in rules),
        "some": any(rule.peers for rule in rules),
        "peers": sorted({str(peer) for rule in rules for peer in rule.peers}),
    }


def places(inventory: PolicyView, container_id: str, engine: Engine, mark: int) -> list[dict[str, Any]]:
    """Return what a container accepts, network by network."""
    found = []
    for owner in inventory.of_container(container_id):
        if place := inventory.endpoint(owner):
            network, endpoint = place
            endpoint_data = _endpoint(inventory, owner, network, endpoint, {})
            if isinstance(network, BridgeNetwork):
                endpoint_data["no_effect"] += _without_effect(inventory, network, endpoint, engine, mark)
            found.append({"network": network.name, **endpoint_data})
    return found


def elsewhere(inventory: PolicyView) -> list[dict[str, Any]]:
    """Return the overrides of containers that are on no network now, because they do not run."""
    there = containers(inventory)
    stopped = (each for each in inventory.state.overrides if each.container not in there)
    return [{"container_id": each.container, **override(each)} for each in stopped]
