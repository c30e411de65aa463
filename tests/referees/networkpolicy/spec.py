"""NetworkPolicy, pods and namespaces, by the specification (networking.k8s.io/v1). Nothing here knows docker-fw.

What Kubernetes' API refuses is refused here too, with `Refused`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network
Direction = Literal["ingress", "egress"]
DIRECTIONS: tuple[Direction, ...] = ("ingress", "egress")
#: The protocols of NetworkPolicy. It leaves all others, and ICMP, to the network plugin.
PROTOCOLS = ("tcp", "udp", "sctp")
OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")
#: The label that every namespace has, with its name.
NAME_LABEL = "kubernetes.io/metadata.name"


class Refused(ValueError):
    """Kubernetes' API refuses such an object. The text says why."""


def _require(right: bool, why: str) -> None:
    if not right:
        raise Refused(why)


@dataclass(frozen=True)
class Requirement:
    """One of a selector's matchExpressions."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(self.operator in OPERATORS, f"{self.operator!r} is not an operator")
        _require(bool(self.values) is (self.operator in ("In", "NotIn")), f"{self.operator} with {self.values}")

    def met(self, labels: Mapping[str, str]) -> bool:
        """True if an object with these labels meets it. NotIn is met by an object without the label."""
        if self.operator in ("Exists", "DoesNotExist"):
            return (self.key in labels) is (self.operator == "Exists")
        return (labels.get(self.key) in self.values) is (self.operator == "In")


@dataclass(frozen=True)
class Selector:
    """A label selector: all of its labels and requirements must be met. An empty one selects everything."""

    labels: tuple[tuple[str, str], ...] = ()
    expressions: tuple[Requirement, ...] = ()

    def selects(self, labels: Mapping[str, str]) -> bool:
        """True if it selects an object with these labels."""
        return all(labels.get(key) == value for key, value in self.labels) and all(
            each.met(labels) for each in self.expressions
        )


#: Selects everything.
ALL = Selector()


def labelled(**labels: str) -> Selector:
    """Return a selector by matchLabels."""
    return Selector(tuple(sorted(labels.items())))


def within(key: str, *values: str) -> Selector:
    """Return a selector by one matchExpression: the label has one of these values."""
    return Selector(expressions=(Requirement(key, "In", values),))


@dataclass(frozen=True)
class Block:
    """An ipBlock: a prefix without the prefixes in `excepts`, which are within it."""

    cidr: Prefix
    excepts: tuple[Prefix, ...] = ()

    def __post_init__(self) -> None:
        for each in self.excepts:
            inside = each.version == self.cidr.version and each.subnet_of(self.cidr)  # type: ignore[arg-type]
            _require(inside and each != self.cidr, f"except {each} is not strictly within {self.cidr}")

    def __contains__(self, address: Address) -> bool:
        return address in self.cidr and not any(address in each for each in self.excepts)


@dataclass(frozen=True)
class Peer:
    """One entry of `from` or `to`: selectors of pods and namespaces, or a block of addresses.

    Without `namespaces`, `pods` selects within the policy's own namespace. Without `pods`, all pods of the namespaces.
    """

    pods: Selector | None = None
    namespaces: Selector | None = None
    block: Block | None = None

    def __post_init__(self) -> None:
        selects = self.pods is not None or self.namespaces is not None
        _require(selects or self.block is not None, "an empty peer")
        _require(not (selects and self.block is not None), "ipBlock together with a selector")


@dataclass(frozen=True)
class Port:
    """One entry of `ports`. `port` None: all ports of the protocol. A name is the name of a pod's port."""

    protocol: str = "tcp"
    port: int | str | None = None
    end: int | None = None

    def __post_init__(self) -> None:
        _require(self.protocol in PROTOCOLS, f"protocol {self.protocol!r}")
        if isinstance(self.port, int):
            _require(1 <= self.port <= 65535, f"port {self.port}")
        if isinstance(self.port, str):
            _require(0 < len(self.port) <= 15, f"port name {self.port!r}")
        if self.end is not None:
            _require(isinstance(self.port, int), "endPort without a port number")
            assert isinstance(self.port, int)
            _require(self.port <= self.end <= 65535, f"endPort {self.end} is before port {self.port}")


@dataclass(frozen=True)
class Rule:
    """One entry of `ingress` or `egress`: any of the ports, with any of the peers. None written: all of them."""

    ports: tuple[Port, ...] = ()
    peers: tuple[Peer, ...] = ()


@dataclass(frozen=True)
class NetworkPolicy:
    """A policy. `types` None: policyTypes is not written, so Ingress, and Egress if there are egress rules."""

    name: str
    namespace: str
    pods: Selector = ALL
    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()
    types: tuple[Direction, ...] | None = None

    @cached_property
    def directions(self) -> frozenset[Direction]:
        """The directions in which the policy isolates its pods."""
        if self.types is not None:
            return frozenset(self.types)
        return frozenset(("ingress", "egress") if self.egress else ("ingress",))

    def rules(self, direction: Direction) -> tuple[Rule, ...]:
        """The rules of one direction; none if the policy is not about it."""
        if direction not in self.directions:
            return ()
        return self.ingress if direction == "ingress" else self.egress


@dataclass(frozen=True)
class Namespace:
    """A namespace. It has the label `kubernetes.io/metadata.name` in addition to its own."""

    name: str
    own: tuple[tuple[str, str], ...] = ()

    @cached_property
    def labels(self) -> dict[str, str]:
        """All of its labels."""
        return {**dict(self.own), NAME_LABEL: self.name}


@dataclass(frozen=True)
class Pod:
    """A pod: its labels, its addresses (one of each family), and its named ports (name, protocol, number)."""

    namespace: str
    name: str
    own: tuple[tuple[str, str], ...]
    addresses: tuple[Address, ...]
    ports: tuple[tuple[str, str, int], ...] = ()

    @property
    def id(self) -> str:
        """NAMESPACE/NAME."""
        return f"{self.namespace}/{self.name}"

    @cached_property
    def labels(self) -> dict[str, str]:
        """Its labels."""
        return dict(self.own)

    def numbers(self, port: Port) -> list[int]:
        """Return the numbers of its ports with the name and the protocol of a port of a policy."""
        return [number for name, protocol, number in self.ports if (name, protocol) == (port.port, port.protocol)]


@dataclass(frozen=True)
class Cluster:
    """Namespaces and pods by their names, policies by namespace and name, and the addresses of the one node."""

    namespaces: Mapping[str, Namespace] = field(default_factory=dict)
    pods: Mapping[str, Pod] = field(default_factory=dict)
    policies: Mapping[tuple[str, str], NetworkPolicy] = field(default_factory=dict)
    node: tuple[Address, ...] = ()

    @cached_property
    def by_address(self) -> dict[Address, Pod]:
        """The pods by their addresses."""
        return {address: pod for pod in self.pods.values() for address in pod.addresses}

    def apply(self, *policies: NetworkPolicy) -> Cluster:
        """Return the cluster with these policies created, or replaced."""
        for policy in policies:
            _require(policy.namespace in self.namespaces, f"there is no namespace {policy.namespace!r}")
        return replace(self, policies={**self.policies, **{(each.namespace, each.name): each for each in policies}})

    def without_policy(self, namespace: str, name: str) -> Cluster:
        """Return the cluster without this policy, which exists."""
        return replace(self, policies=_less(self.policies, (namespace, name)))

    def with_namespace(self, name: str, /, **labels: str) -> Cluster:
        """Return the cluster with this namespace created, or with these labels in place of its own."""
        made = Namespace(name, tuple(sorted(labels.items())))
        return replace(self, namespaces={**self.namespaces, name: made})

    def without_namespace(self, name: str) -> Cluster:
        """Return the cluster without this namespace, its pods and policies."""
        pods = {key: pod for key, pod in self.pods.items() if pod.namespace != name}
        policies = {key: policy for key, policy in self.policies.items() if policy.namespace != name}
        return replace(self, namespaces=_less(self.namespaces, name), pods=pods, policies=policies)

    def with_pod(self, pod: Pod) -> Cluster:
        """Return the cluster with this pod created, or replaced."""
        _require(pod.namespace in self.namespaces, f"there is no namespace {pod.namespace!r}")
        return replace(self, pods={**self.pods, pod.id: pod})

    def with_pod_labels(self, pod: str, /, **labels: str) -> Cluster:
        """Return the cluster with these labels in place of the pod's own."""
        return self.with_pod(replace(self.pods[pod], own=tuple(sorted(labels.items()))))

    def without_pod(self, pod: str) -> Cluster:
        """Return the cluster without this pod, which exists."""
        return replace(self, pods=_less(self.pods, pod))


def _less(mapping: Mapping, key: object) -> dict:  # type: ignore[type-arg]
    assert key in mapping, f"there is no {key}"
    return {each: value for each, value in mapping.items() if each != key}
