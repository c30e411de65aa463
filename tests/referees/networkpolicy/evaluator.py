"""The truth: whether Kubernetes lets a connection pass, by the specification of NetworkPolicy alone.

Written from https://kubernetes.io/docs/concepts/services-networking/network-policies/ and the API reference:

- A pod is isolated in a direction as soon as a policy of its namespace selects it for that direction; otherwise all is
  allowed in that direction. Policies add up: their order does not matter, and none takes anything back.
- A connection needs both ends: the egress of its source and the ingress of its destination. Replies are implied.
- A pod reaches itself, and its node reaches it and is reached by it, whatever the policies are.
- NetworkPolicy is about TCP, UDP and SCTP. What applies to other protocols is not specified: this module refuses them.

Nothing is imported from docker-fw.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.referees.networkpolicy.spec import (
    PROTOCOLS,
    Address,
    Cluster,
    Direction,
    NetworkPolicy,
    Peer,
    Pod,
    Port,
    Rule,
)


@dataclass(frozen=True)
class Connection:
    """A connection: from an address to an address and a port (a number)."""

    source: Address
    destination: Address
    protocol: str
    port: int


def allowed(cluster: Cluster, connection: Connection) -> bool:
    """True if the policies of the cluster let the connection pass."""
    if connection.protocol not in PROTOCOLS:
        raise ValueError(f"NetworkPolicy does not specify {connection.protocol}")
    source, destination = cluster.by_address.get(connection.source), cluster.by_address.get(connection.destination)
    if source and destination and source.id == destination.id:
        return True
    if connection.source in cluster.node or connection.destination in cluster.node:
        return True
    leaves = source is None or _permits(cluster, "egress", source, connection.destination, destination, connection)
    enters = destination is None or _permits(cluster, "ingress", destination, connection.source, source, connection)
    return leaves and enters


def isolating(cluster: Cluster, pod: Pod, direction: Direction) -> list[NetworkPolicy]:
    """Return the policies that isolate a pod in a direction; without one, the pod is not isolated."""
    return [
        policy
        for policy in cluster.policies.values()
        if policy.namespace == pod.namespace and direction in policy.directions and policy.pods.selects(pod.labels)
    ]


def _permits(
    cluster: Cluster,
    direction: Direction,
    pod: Pod,
    other: Address,
    other_pod: Pod | None,
    connection: Connection,
) -> bool:
    """True if one side's policies allow it. `pod` is that side; `other` and `other_pod` are the other end."""
    policies = isolating(cluster, pod, direction)
    if not policies:
        return True
    serving = pod if direction == "ingress" else other_pod
    return any(
        _ports(rule, serving, connection) and _peers(cluster, policy, rule, other, other_pod)
        for policy in policies
        for rule in policy.rules(direction)
    )


def _ports(rule: Rule, serving: Pod | None, connection: Connection) -> bool:
    return not rule.ports or any(_port(port, serving, connection) for port in rule.ports)


def _port(port: Port, serving: Pod | None, connection: Connection) -> bool:
    """True if the port is the connection's. A name is that of a port of the pod that serves the connection."""
    if port.protocol != connection.protocol:
        return False
    if port.port is None:
        return True
    if isinstance(port.port, str):
        return serving is not None and connection.port in serving.numbers(port)
    return port.port <= connection.port <= (port.end if port.end is not None else port.port)


def _peers(cluster: Cluster, policy: NetworkPolicy, rule: Rule, other: Address, other_pod: Pod | None) -> bool:
    return not rule.peers or any(_peer(cluster, policy, peer, other, other_pod) for peer in rule.peers)


def _peer(cluster: Cluster, policy: NetworkPolicy, peer: Peer, other: Address, other_pod: Pod | None) -> bool:
    if peer.block is not None:
        return other in peer.block
    if other_pod is None:
        return False
    if peer.namespaces is None:
        in_namespace = other_pod.namespace == policy.namespace
    else:
        in_namespace = peer.namespaces.selects(cluster.namespaces[other_pod.namespace].labels)
    return in_namespace and (peer.pods is None or peer.pods.selects(other_pod.labels))
