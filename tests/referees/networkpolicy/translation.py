"""NetworkPolicy → docker-fw's labels: the labels that each pod's container gets from the policies of a cluster.

A namespace is a compose project, a pod a service of it. Labels name containers, not labels of containers, so selectors
are resolved here: a whole namespace becomes `project:`, a pod of the same namespace `service:`, another pod
`container:`. A named port becomes the number that it has at the pod that serves it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import collapse_addresses

from tests.referees.networkpolicy.evaluator import isolating
from tests.referees.networkpolicy.placing import container_name
from tests.referees.networkpolicy.spec import (
    ALL,
    PROTOCOLS,
    Block,
    Cluster,
    Direction,
    NetworkPolicy,
    Peer,
    Pod,
    Port,
    Prefix,
    Rule,
)

#: Kubernetes always allows connections to the pod's own node.
TO_NODE = tuple(f"*/{protocol} to host" for protocol in PROTOCOLS)
#: Peers of a rule: None is any.
Peers = tuple[str, ...] | None


@dataclass(frozen=True)
class Translation:
    """Translates the policies of one cluster. `node`: connections to the host are allowed, as Kubernetes always does.

    Without `node`, an isolated container may open connections to its host only if a rule without peers allows them.
    """

    cluster: Cluster
    node: bool = True

    def labels(self, pod: Pod) -> dict[str, str]:
        """Return the labels of a pod's container."""
        labels = {}
        entering = self._entries(pod, "ingress")
        if entering is None:
            labels["fw.policy"] = "open"
        else:
            labels["fw.policy"] = "closed"
            if entering:
                labels["fw.allow"] = ", ".join(entering)
        leaving = self._entries(pod, "egress")
        if leaving is not None:
            labels["fw.egress"] = ", ".join((*leaving, *(TO_NODE if self.node else ()))) or "none"
        return labels

    def all_labels(self) -> dict[str, dict[str, str]]:
        """Return the labels of all pods' containers, by NAMESPACE/NAME."""
        return {pod.id: self.labels(pod) for pod in self.cluster.pods.values()}

    def _entries(self, pod: Pod, direction: Direction) -> list[str] | None:
        """Return the entries of the list for one direction; None if everything is allowed."""
        policies = isolating(self.cluster, pod, direction)
        rules = [(policy, rule) for policy in policies for rule in policy.rules(direction)]
        if not policies or any(not rule.ports and not rule.peers for _, rule in rules):
            return None
        word = "from" if direction == "ingress" else "to"
        found = (each for policy, rule in rules for each in self._rule(pod, policy, rule, direction))
        texts = (what if peers is None else f"{what} {word} {' '.join(peers)}" for what, peers in found)
        return list(dict.fromkeys(texts))

    def _rule(self, pod: Pod, policy: NetworkPolicy, rule: Rule, direction: Direction) -> Iterator[tuple[str, Peers]]:
        """Yield the ports and peers of a rule; nothing for a rule whose peers or ports are none."""
        for port in rule.ports or map(Port, PROTOCOLS):
            for what, serving in self._ports(pod, port, direction):
                peers = self._peers(policy, rule, serving)
                if peers != ():
                    yield what, peers

    def _ports(self, pod: Pod, port: Port, direction: Direction) -> Iterator[tuple[str, list[Pod] | None]]:
        """Yield a port as labels write it, with the pods that serve it if it is about these alone."""
        if not isinstance(port.port, str):
            yield _written(port), None
        elif direction == "ingress":
            yield from ((f"{number}/{port.protocol}", None) for number in pod.numbers(port))
        else:
            by_number: dict[int, list[Pod]] = {}
            for each in self.cluster.pods.values():
                for number in each.numbers(port):
                    by_number.setdefault(number, []).append(each)
            yield from ((f"{number}/{port.protocol}", pods) for number, pods in sorted(by_number.items()))

    def _peers(self, policy: NetworkPolicy, rule: Rule, serving: list[Pod] | None) -> Peers:
        """Return the peers of a rule as labels name them, None for any; `serving`: only these pods."""
        if not rule.peers and serving is None:
            return None
        if serving is None:
            return tuple(dict.fromkeys(name for peer in rule.peers for name in self._peer(policy, peer)))
        some = rule.peers or (Peer(namespaces=ALL),)
        return tuple(dict.fromkeys(name for peer in some for pod in serving for name in self._at(policy, peer, pod)))

    def _at(self, policy: NetworkPolicy, peer: Peer, pod: Pod) -> Iterator[str]:
        """Yield a pod's name if a peer selects it; its addresses that a block has."""
        if peer.block is not None:
            yield from (str(address) for address in pod.addresses if address in peer.block)
        elif self._is(policy, peer, pod):
            yield self._name(policy, pod)

    def _peer(self, policy: NetworkPolicy, peer: Peer) -> Iterator[str]:
        if peer.block is not None:
            yield from map(_prefix, prefixes(peer.block))
        elif peer.pods is None or peer.pods == ALL:
            yield from (f"project:{name}" for name in self._namespaces(policy, peer))
        else:
            matching = (pod for pod in self.cluster.pods.values() if self._is(policy, peer, pod))
            yield from (self._name(policy, pod) for pod in matching)

    def _is(self, policy: NetworkPolicy, peer: Peer, pod: Pod) -> bool:
        in_namespace = pod.namespace in self._namespaces(policy, peer)
        return in_namespace and (peer.pods is None or peer.pods.selects(pod.labels))

    def _namespaces(self, policy: NetworkPolicy, peer: Peer) -> list[str]:
        if peer.namespaces is None:
            return [policy.namespace]
        there = self.cluster.namespaces.values()
        return [each.name for each in there if peer.namespaces.selects(each.labels)]

    def _name(self, policy: NetworkPolicy, pod: Pod) -> str:
        return f"service:{pod.name}" if pod.namespace == policy.namespace else f"container:{container_name(pod)}"


def prefixes(block: Block) -> list[Prefix]:
    """Return the prefixes that an ipBlock without its `except` consists of, the fewest possible."""
    left: list[Prefix] = [block.cidr]
    for hole in block.excepts:
        left = [piece for prefix in left for piece in _cut(prefix, hole)]
    return list(_collapsed(left))


def _cut(prefix: Prefix, hole: Prefix) -> Iterable[Prefix]:
    if prefix.subnet_of(hole):  # type: ignore[arg-type]
        return ()
    if not hole.subnet_of(prefix):  # type: ignore[arg-type]
        return (prefix,)
    return prefix.address_exclude(hole)  # type: ignore[arg-type]


def _collapsed(found: list[Prefix]) -> Iterable[Prefix]:
    return collapse_addresses(found)  # type: ignore[type-var]


def _prefix(prefix: Prefix) -> str:
    whole = prefix.prefixlen == prefix.max_prefixlen
    return str(prefix.network_address if whole else prefix)


def _written(port: Port) -> str:
    assert not isinstance(port.port, str)
    if port.port is None:
        return f"*/{port.protocol}"
    ports = str(port.port) if port.end in (None, port.port) else f"{port.port}-{port.end}"
    return f"{ports}/{port.protocol}"
