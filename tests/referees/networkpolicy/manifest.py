"""Read NetworkPolicy objects from YAML, in the form that `kubectl apply -f` takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from typing import Any

import yaml

from tests.referees.networkpolicy.spec import (
    Block,
    NetworkPolicy,
    Peer,
    Port,
    Refused,
    Requirement,
    Rule,
    Selector,
)


def policies(text: str) -> list[NetworkPolicy]:
    """Return the policies of a YAML text, which may have several documents. Raises `Refused`."""
    return [_policy(document) for document in yaml.safe_load_all(text) if document]


def _policy(document: Mapping[str, Any]) -> NetworkPolicy:
    _only(document, "apiVersion", "kind", "metadata", "spec")
    if (document.get("apiVersion"), document.get("kind")) != ("networking.k8s.io/v1", "NetworkPolicy"):
        raise Refused(f"{document.get('kind')} of {document.get('apiVersion')} is not a NetworkPolicy")
    metadata, spec = document["metadata"], document["spec"]
    _only(metadata, "name", "namespace")
    _only(spec, "podSelector", "policyTypes", "ingress", "egress")
    types = spec.get("policyTypes")
    return NetworkPolicy(
        metadata["name"],
        metadata.get("namespace", "default"),
        _selector(spec["podSelector"]),
        tuple(_rule(each, "from") for each in spec.get("ingress") or ()),
        tuple(_rule(each, "to") for each in spec.get("egress") or ()),
        None if types is None else tuple(_direction(each) for each in types),
    )


def _direction(text: str) -> Any:
    if text not in ("Ingress", "Egress"):
        raise Refused(f"policyTypes: {text}")
    return text.lower()


def _rule(rule: Mapping[str, Any], peers: str) -> Rule:
    _only(rule, "ports", peers)
    return Rule(tuple(map(_port, rule.get("ports") or ())), tuple(map(_peer, rule.get(peers) or ())))


def _port(port: Mapping[str, Any]) -> Port:
    _only(port, "protocol", "port", "endPort")
    return Port(port.get("protocol", "TCP").lower(), port.get("port"), port.get("endPort"))


def _peer(peer: Mapping[str, Any]) -> Peer:
    _only(peer, "podSelector", "namespaceSelector", "ipBlock")
    block = peer.get("ipBlock")
    return Peer(
        _selector(peer["podSelector"]) if "podSelector" in peer else None,
        _selector(peer["namespaceSelector"]) if "namespaceSelector" in peer else None,
        None if block is None else Block(ip_network(block["cidr"]), tuple(map(ip_network, block.get("except") or ()))),
    )


def _selector(selector: Mapping[str, Any] | None) -> Selector:
    selector = selector or {}
    _only(selector, "matchLabels", "matchExpressions")
    expressions: Sequence[Mapping[str, Any]] = selector.get("matchExpressions") or ()
    return Selector(
        tuple(sorted((selector.get("matchLabels") or {}).items())),
        tuple(Requirement(each["key"], each["operator"], tuple(each.get("values") or ())) for each in expressions),
    )


def _only(mapping: Mapping[str, Any], *known: str) -> None:
    if more := set(mapping) - set(known):
        raise Refused(f"unknown fields: {', '.join(sorted(more))}")
