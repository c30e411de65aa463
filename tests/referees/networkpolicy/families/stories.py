"""Policies, pods and namespaces that are created, changed and deleted, and the stories of Kubernetes' own tests."""

from __future__ import annotations

from collections.abc import Iterator

from tests.referees.networkpolicy.cases import CYCLONUS, Case, Step, created, family, single
from tests.referees.networkpolicy.families.base import (
    ANY,
    BASE,
    DNS,
    both,
    egress,
    ingress,
    peers,
    with_peers,
    with_ports,
)
from tests.referees.networkpolicy.placing import Layout
from tests.referees.networkpolicy.spec import (
    ALL,
    Peer,
    Port,
    Requirement,
    Rule,
    Selector,
    labelled,
    within,
)

_A = labelled(pod="a")


def _labels(namespace: str, /, **labels: str) -> Step:
    """Return the step that gives these labels to a namespace."""
    return Step(f"label namespace {namespace}", lambda cluster: cluster.with_namespace(namespace, **labels))


def _pod_labels(pod: str, /, **labels: str) -> Step:
    """Return the step that gives these labels to a pod."""
    return Step(f"label pod {pod}", lambda cluster: cluster.with_pod_labels(pod, **labels))


def _pod(layout: Layout, *pods: str) -> Step:
    """Return the step that creates pods."""

    def change(cluster):  # type: ignore[no-untyped-def]
        for pod in pods:
            cluster = cluster.with_pod(layout.pod(pod))
        return cluster

    return Step(f"create {', '.join(pods)}", change)


def _without_pod(pod: str) -> Step:
    return Step(f"delete {pod}", lambda cluster: cluster.without_pod(pod))


def _without_namespace(name: str) -> Step:
    return Step(f"delete namespace {name}", lambda cluster: cluster.without_namespace(name))


def _without_policy(namespace: str, name: str) -> Step:
    return Step(f"delete policy {name}", lambda cluster: cluster.without_policy(namespace, name))


@family("actions", "policies, pods and namespaces are created, changed and deleted", CYCLONUS)
def _actions(layout: Layout) -> Iterator[Case]:
    yield Case("a policy is created and deleted", (created(BASE), _without_policy("x", "base")))
    changed = with_ports("ingress", Port("udp", "udp-81"))
    yield Case("a policy is created and changed", (created(BASE), created(changed)))
    yield Case(
        "a namespace is created and deleted",
        (created(BASE), _labels("y-2", ns="y"), _pod(layout, "y-2/a", "y-2/b"), _without_namespace("y-2")),
    )
    by_label = with_peers("ingress", Peer(namespaces=labelled(team="new")))
    yield Case(
        "a namespace gets a label and loses it",
        (created(by_label), _labels("y", ns="y", team="new"), _labels("y", ns="y")),
    )
    yield Case("a pod is created and deleted", (created(BASE), _pod(layout, "x/d"), _without_pod("x/d")))
    by_pod_label = with_peers("ingress", Peer(labelled(role="new"), within("ns", "y", "z")))
    yield Case(
        "a pod gets a label and loses it",
        (created(by_pod_label), _pod_labels("y/b", pod="b", role="new"), _pod_labels("y/b", pod="b")),
    )


@family("example", "one named port, while pods and namespaces are added and removed", CYCLONUS)
def _example(layout: Layout) -> Iterator[Case]:
    policy = ingress("named", "x", ALL, Rule((Port(port="tcp-81"),)))
    steps = (created(policy), _labels("w", ns="w"), _pod(layout, "w/a"), _without_pod("w/a"), _without_namespace("w"))
    yield Case("a named port of all pods", steps)


@family("e2e", "the stories of Kubernetes' end-to-end tests", CYCLONUS)
def _e2e(_: Layout) -> Iterator[Case]:
    yield from _e2e_single()
    from_y = (Peer(namespaces=labelled(ns="y")),)
    stacked = [ingress(f"from-y-{port}", "x", _A, Rule((Port(port=port),), from_y)) for port in (81, 80)]
    yield Case("policies for the same pods add up", tuple(map(created, stacked)))
    yield Case("a policy is replaced", (created(ingress("one", "x", ALL, *ANY)), created(ingress("one", "x", ALL))))
    updated = peers(Peer(namespaces=labelled(ns2="updated")))
    yield Case(
        "a namespace gets the label of a peer",
        (created(ingress("one", "x", _A, updated)), _labels("y", ns="y", ns2="updated")),
    )
    updated = peers(Peer(labelled(pod="b", pod2="updated")))
    yield Case(
        "a pod gets the label of a peer",
        (created(ingress("one", "x", _A, updated)), _pod_labels("x/b", pod="b", pod2="updated")),
    )
    yield Case(
        "a pod gets the label of the policy's selector",
        (created(ingress("one", "x", labelled(target="isolated"))), _pod_labels("x/a", target="isolated")),
    )
    nothing = both("nothing", "x", ALL, (), ())
    yield Case("a deleted policy has no effect", (created(nothing), _without_policy("x", "nothing")))


def _e2e_single() -> Iterator[Case]:
    yield single("deny all ingress", ingress("none", "x", ALL))
    yield single("deny everything but DNS", both("dns", "x", ALL, (), (DNS,)))
    others = Selector(expressions=(Requirement("ns", "NotIn", ("x",)),))
    b_and_c = peers(Peer(within("pod", "b", "c"), others))
    yield single("pods by label in other namespaces", ingress("one", "x", _A, b_and_c))
    yield single("allow all ingress", ingress("all", "x", ALL, *ANY))
    yield single("a named port of all pods", ingress("named", "x", ALL, Rule((Port(port="tcp-81"),))))
    web = Rule((Port(port=80), Port("udp", 53)))
    yield single("both directions in one policy", both("both", "x", _A, (peers(Peer(labelled(pod="b"))),), (web,)))
    x_a = peers(Peer(_A, labelled(ns="x")))
    yield single(
        "the source denies although the destination allows",
        egress("to-y-a", "x", _A, peers(Peer(_A, labelled(ns="y"))), Rule((Port("udp", 53),))),
        ingress("to-a", "y", _A, x_a),
        ingress("to-b", "y", labelled(pod="b"), x_a),
    )
