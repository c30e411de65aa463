"""docker-fw agrees with Kubernetes' NetworkPolicy, and docs/networkpolicy.md is right.

The evaluator of the specification is tested itself, with outcomes that are computed by hand from Kubernetes'
documentation. `make referee-policy` compares everything; these tests take a part of every case.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from itertools import islice

import pytest

from plugin.labels.parser import parse
from tests.referees.networkpolicy import documented, families, report
from tests.referees.networkpolicy.cases import CYCLONUS, FAMILIES
from tests.referees.networkpolicy.evaluator import Connection, allowed
from tests.referees.networkpolicy.expected import DIFFERENCES, HOST, NARROWER, NEIGHBOURS
from tests.referees.networkpolicy.manifest import policies
from tests.referees.networkpolicy.placing import LAYOUTS, Layout, imagined
from tests.referees.networkpolicy.probes import FULL, probes
from tests.referees.networkpolicy.pure import Result, State, TooLarge, compiled, judge, ready, states
from tests.referees.networkpolicy.random_cases import random_case
from tests.referees.networkpolicy.spec import Block, Cluster, Namespace, Pod, Refused, Requirement, Selector
from tests.referees.networkpolicy.translation import Translation, prefixes

assert families.__all__
#: One connection of so many is judged, another one in each state, so that all kinds are.
STEP = 97

# --- the evaluator, by hand -------------------------------------------------------------------------------------------

OUTSIDE = IPv4Address("172.17.2.9")


def _pod(namespace: str, name: str, number: int, **labels: str) -> Pod:
    addresses = IPv4Address(f"10.0.0.{number}"), IPv6Address(f"fd00::{number}")
    return Pod(namespace, name, tuple(labels.items()), addresses, (("web", "tcp", 8000 + number),))


def _cluster(*documents: str) -> Cluster:
    """Return the pods of the documentation's example: a database, a front end, one in another project, one without."""
    pods = (
        _pod("default", "db", 2, role="db"),
        _pod("default", "front", 3, role="frontend"),
        _pod("default", "other", 4),
        _pod("mine", "front", 5, role="frontend"),
        _pod("theirs", "front", 6, role="frontend"),
    )
    spaces = {"default": (), "mine": (("project", "myproject"),), "theirs": (("project", "theirs"),)}
    cluster = Cluster(
        {name: Namespace(name, labels) for name, labels in spaces.items()},
        {pod.id: pod for pod in pods},
        node=(IPv4Address("10.0.0.1"),),
    )
    return cluster.apply(*(policy for document in documents for policy in policies(document)))


def _policy(spec: str, name: str = "p") -> str:
    head = f"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: default}}\n"
    return f"{head}spec: {spec}"


def _passes(cluster: Cluster, source: str, target: str, port: int = 6379, protocol: str = "tcp") -> bool:
    def address(end: str) -> IPv4Address | IPv6Address:
        return cluster.pods[end].addresses[0] if end in cluster.pods else IPv4Address(end)

    return allowed(cluster, Connection(address(source), address(target), protocol, port))


#: The form of the concept page's first example.
ONE_LIST = """{podSelector: {matchLabels: {role: db}}, policyTypes: [Ingress, Egress],
  ingress: [{from: [{ipBlock: {cidr: 172.17.0.0/16, except: [172.17.1.0/24]}},
                    {namespaceSelector: {matchLabels: {project: myproject}}},
                    {podSelector: {matchLabels: {role: frontend}}}],
             ports: [{protocol: TCP, port: 6379}]}],
  egress: [{to: [{ipBlock: {cidr: 10.0.0.0/24}}], ports: [{protocol: TCP, port: 5978}]}]}"""


@pytest.mark.parametrize(
    ("source", "target", "port", "protocol", "expected"),
    [
        ("172.17.0.0", "default/db", 6379, "tcp", True),
        ("172.17.0.255", "default/db", 6379, "tcp", True),
        ("172.17.1.0", "default/db", 6379, "tcp", False),
        ("172.17.1.255", "default/db", 6379, "tcp", False),
        ("172.17.2.0", "default/db", 6379, "tcp", True),
        ("172.18.0.0", "default/db", 6379, "tcp", False),
        ("default/front", "default/db", 6379, "tcp", True),
        ("default/other", "default/db", 6379, "tcp", False),
        ("mine/front", "default/db", 6379, "tcp", True),
        ("theirs/front", "default/db", 6379, "tcp", False),
        ("default/front", "default/db", 6378, "tcp", False),
        ("default/front", "default/db", 6379, "udp", False),
        ("default/db", "default/front", 5978, "tcp", True),
        ("default/db", "default/front", 5979, "tcp", False),
        ("default/db", "172.17.0.1", 5978, "tcp", False),
        ("default/other", "default/front", 1, "sctp", True),
        ("10.0.0.1", "default/db", 1, "tcp", True),
        ("default/db", "10.0.0.1", 1, "tcp", True),
        ("default/db", "default/db", 1, "tcp", True),
    ],
)
def test_the_documentations_example(source: str, target: str, port: int, protocol: str, expected: bool) -> None:
    """The evaluator decides as the concept page explains its first example, sentence by sentence."""
    assert _passes(_cluster(_policy(ONE_LIST)), source, target, port, protocol) is expected


@pytest.mark.parametrize(
    ("spec", "into", "out"),
    [
        ("{podSelector: {}, policyTypes: [Ingress]}", False, True),
        ("{podSelector: {}}", False, True),
        ("{podSelector: {}, policyTypes: [Ingress], ingress: [{}]}", True, True),
        ("{podSelector: {}, policyTypes: [Egress]}", True, False),
        ("{podSelector: {}, policyTypes: [Egress], egress: [{}]}", True, True),
        ("{podSelector: {}, policyTypes: [Ingress, Egress]}", False, False),
        ("{podSelector: {}, egress: [{}]}", False, True),
        ("{podSelector: {}, policyTypes: [Egress], ingress: [{}]}", True, False),
        ("{podSelector: {matchLabels: {role: none}}, policyTypes: [Ingress, Egress]}", True, True),
    ],
)
def test_the_documentations_defaults(spec: str, into: bool, out: bool) -> None:
    """Default policies deny or allow one direction or both; policyTypes that are left out are Ingress, and Egress if
    there are egress rules."""
    cluster = _cluster(_policy(spec))
    assert _passes(cluster, str(OUTSIDE), "default/db") is into
    assert _passes(cluster, "default/db", str(OUTSIDE)) is out
    assert _passes(cluster, "theirs/front", "mine/front"), "a policy applies to its own namespace alone"


def test_one_peer_means_both_and_two_peers_mean_either() -> None:
    """A peer with both selectors selects pods of these namespaces; two peers select either."""
    one = "[{namespaceSelector: {matchLabels: {project: myproject}}, podSelector: {matchLabels: {role: db}}}]"
    two = "[{namespaceSelector: {matchLabels: {project: myproject}}}, {podSelector: {matchLabels: {role: frontend}}}]"
    for peers, expected in ((one, [False, False, False]), (two, [True, True, False])):
        cluster = _cluster(_policy(f"{{podSelector: {{matchLabels: {{role: db}}}}, ingress: [{{from: {peers}}}]}}"))
        sources = ("mine/front", "default/front", "default/other")
        assert [_passes(cluster, source, "default/db") for source in sources] == expected


def test_policies_add_up_and_both_ends_decide() -> None:
    """No policy takes back what another allows, in any order; a connection needs its source and its destination."""
    deny = _policy("{podSelector: {}, policyTypes: [Ingress, Egress]}", "deny")
    enter = _policy("{podSelector: {matchLabels: {role: db}}, ingress: [{ports: [{port: 6379}]}]}", "enter")
    leave = _policy(
        "{podSelector: {matchLabels: {role: frontend}}, policyTypes: [Egress], egress: [{ports: [{port: 6379}]}]}",
        "leave",
    )
    for order in ((deny, enter), (enter, deny)):
        assert not _passes(_cluster(*order), "default/front", "default/db"), "the source denies"
        assert _passes(_cluster(*order), "mine/front", "default/db")
    assert _passes(_cluster(deny, enter, leave), "default/front", "default/db")
    assert not _passes(_cluster(deny, leave), "default/front", "default/db"), "the destination denies"


def test_ports_of_the_evaluator() -> None:
    """A range includes both ends; a protocol that is left out is TCP; a name is that of a port of the pod that
    serves, and means nothing outside."""
    ranged = "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 32000, endPort: 32768}]}]}"
    cluster = _cluster(_policy(ranged))
    ports = (31999, 32000, 32768, 32769)
    assert [_passes(cluster, "default/db", str(OUTSIDE), port) for port in ports] == [False, True, True, False]
    assert not _passes(cluster, "default/db", str(OUTSIDE), 32000, "udp")
    named = _cluster(_policy("{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: web}]}]}"))
    assert _passes(named, "default/db", "mine/front", 8005)
    assert not _passes(named, "default/db", "mine/front", 8006)
    assert not _passes(named, "default/db", str(OUTSIDE), 8005)


def test_blocks_are_of_one_address_family() -> None:
    """0.0.0.0/0 has no IPv6 address."""
    cluster = _cluster(_policy("{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}"))
    four, six = cluster.pods["default/db"].addresses
    assert allowed(cluster, Connection(OUTSIDE, four, "tcp", 1))
    assert not allowed(cluster, Connection(IPv6Address("2001:db8::1"), six, "tcp", 1))


def test_the_evaluator_refuses_what_is_not_specified() -> None:
    """ICMP and other protocols have no truth: NetworkPolicy leaves them to the network plugin."""
    with pytest.raises(ValueError, match="icmp"):
        allowed(_cluster(), Connection(OUTSIDE, OUTSIDE, "icmp", 0))


def test_selectors() -> None:
    """NotIn and DoesNotExist are met by an object without the label; an empty selector selects everything."""
    found = {
        operator: Selector(expressions=(Requirement("a", operator, ("x",) if "In" in operator else ()),))
        for operator in ("In", "NotIn", "Exists", "DoesNotExist")
    }
    results = {name: [each.selects(labels) for labels in ({"a": "x"}, {"a": "y"}, {})] for name, each in found.items()}
    assert results == {
        "In": [True, False, False],
        "NotIn": [False, True, True],
        "Exists": [True, True, False],
        "DoesNotExist": [False, False, True],
    }
    assert Selector().selects({})


@pytest.mark.parametrize(
    "spec",
    [
        "{podSelector: {}, ingress: [{from: [{}]}]}",
        "{podSelector: {}, ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]}",
        "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/24]}}]}]}",
        "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]}",
        "{podSelector: {}, ingress: [{ports: [{port: 80, endPort: 79}]}]}",
        "{podSelector: {}, ingress: [{ports: [{port: web, endPort: 80}]}]}",
        "{podSelector: {}, ingress: [{ports: [{endPort: 80}]}]}",
        "{podSelector: {}, ingress: [{ports: [{port: 0}]}]}",
        "{podSelector: {}, ingress: [{ports: [{port: 80, protocol: ICMP}]}]}",
        "{podSelector: {}, policyTypes: [Both]}",
        "{podSelector: {matchExpressions: [{key: a, operator: In}]}}",
        "{podSelector: {}, ingress: [{to: [{podSelector: {}}]}]}",
    ],
)
def test_a_policy_that_kubernetes_refuses_has_no_truth(spec: str) -> None:
    """Kubernetes' API refuses such a policy, and so does the reader."""
    with pytest.raises(Refused):
        policies(_policy(spec))


# --- the cases --------------------------------------------------------------------------------------------------------


def test_the_registry_has_the_cases_of_cyclonus() -> None:
    """As many as its generator makes, of each kind; more are this project's own."""
    layout = LAYOUTS["separate"]
    counts = {name: len(each.cases(layout)) for name, each in FAMILIES.items() if each.origin == CYCLONUS}
    assert counts == {
        "targets": 6,
        "rules": 4,
        "peers": 112,
        "ports": 70,
        "default label": 2,
        "conflicts": 16,
        "actions": 6,
        "example": 1,
        "e2e": 13,
    }
    assert sum(counts.values()) == 230


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_docker_fw_agrees_with_kubernetes(layout: Layout) -> None:
    """The plugin's verdict is Kubernetes', but for the listed differences: a part of the connections of every case."""
    places, result, number = imagined(layout), Result(), 0
    for family in FAMILIES.values():
        for case in family.cases(layout):
            for state, compiler in ready(layout, places, case, result):
                number += 1
                judge(state, compiler, islice(probes(layout, state.cluster, FULL), number % STEP, None, STEP), result)
    assert not result.wrong, "\n".join(result.wrong[:10])
    assert result.states > 300
    assert result.probes > 6_000
    expected = set(DIFFERENCES) - ({NEIGHBOURS} if layout.name == "separate" else set())
    assert expected - {NARROWER} <= set(result.differences) <= expected, "each is seen, or must not be in the list"


def test_chance_finds_no_disagreement() -> None:
    """Policies by chance agree too; the same seed makes the same ones."""
    layout, result = LAYOUTS["separate"], Result()
    assert random_case(7).steps[0].change(layout.cluster()) == random_case(7).steps[0].change(layout.cluster())
    for seed in range(20):
        for state, compiler in ready(layout, imagined(layout), random_case(seed), result):
            judge(state, compiler, islice(probes(layout, state.cluster, FULL), seed, None, STEP), result)
    assert not result.wrong, "\n".join(result.wrong[:10])
    assert result.states > result.too_large


def test_the_comparison_sees_a_wrong_label() -> None:
    """A label that opens too much, or too little, is a disagreement: the comparison can fail."""
    layout = LAYOUTS["separate"]
    (case,) = [each for each in FAMILIES["rules"].cases(layout) if each.name == "ingress: no rule"]
    (state,) = states(layout, case)
    for label, many in (({"fw.allow": "80"}, True), ({"fw.egress": "none"}, True), ({}, False)):
        changed = replace(state, labels={**state.labels, "x/a": {**state.labels["x/a"], **label}})
        result = Result()
        judge(changed, compiled(layout, imagined(layout), changed), probes(layout, state.cluster, FULL), result)
        assert bool(result.wrong) is many, label


def test_labels_refuse_what_is_too_large_for_them() -> None:
    """The policies that labels cannot express are mistakes as they are, so they open nothing; the nearest are not."""
    layout = LAYOUTS["separate"]
    for case in FAMILIES["limits"].cases(layout):
        with pytest.raises(TooLarge):
            list(ready(layout, imagined(layout), replace(case, nearest=None), Result()))
        assert case.reason


def test_a_block_without_its_exceptions() -> None:
    """The prefixes of a block have exactly the addresses that Kubernetes takes."""
    block = Block(ip_network("10.0.0.0/28"), (ip_network("10.0.0.4/30"), ip_network("10.0.0.9/32")))
    left = prefixes(block)
    for number in range(256):
        address = IPv4Address("10.0.0.0") + number
        assert any(address in each for each in left) is (address in block)


# --- the document -----------------------------------------------------------------------------------------------------


def test_the_document_equals_the_code() -> None:
    """docs/networkpolicy.md has the tables that follow from the code, and the families and differences of the
    registry. `make referee-policy` writes them."""
    text = report.FILE.read_text()
    assert text == report.static(text)
    for level in ("pure", "kernel"):
        table = text.partition(f"<!-- generated: {level} -->")[2].partition(f"<!-- end: {level} -->")[0]
        if table.strip() == "No whole run at this level is recorded yet.":
            continue
        rows = {row[1].strip(): row for row in (line.split("|") for line in table.strip().splitlines()[2:])}
        assert list(rows) == [*FAMILIES, "**all**"]
        for name, family in FAMILIES.items():
            cases = [case for layout in LAYOUTS.values() for case in family.cases(layout)]
            assert int(rows[name][2]) == len(cases), name
            assert int(rows[name][3]) == sum(len(case.steps) for case in cases), name
            assert rows[name][-2].strip() == "0", name


@pytest.mark.parametrize("row", documented.ROWS, ids=lambda row: row.subject)
def test_each_field_and_its_labels_agree(row: documented.Row) -> None:
    """The labels of each row parse, and let pass exactly what the policy beside them does."""
    assert not parse(row.labels()).problems
    _agrees(row.state(), step=5)


def test_the_documents_examples_agree() -> None:
    """Each NetworkPolicy of the document and the compose file after it let pass the same connections."""
    found = list(documented.examples(report.FILE.read_text()))
    assert len(found) == 2
    for number, example in enumerate(found):
        assert example.labels
        assert not [parse(labels).problems for labels in example.labels.values() if parse(labels).problems]
        _agrees(example.state(str(number)), step=2)


def _agrees(state: State, step: int) -> None:
    layout, result = documented.SHOP, Result()
    compiler = compiled(layout, imagined(layout), state)
    judge(state, compiler, islice(probes(layout, state.cluster, documented.GRID), 0, None, step), result)
    assert not result.wrong, "\n".join(result.wrong[:5])
    assert set(result.differences) <= {HOST, *set(DIFFERENCES) - {NEIGHBOURS, NARROWER}}
    assert result.probes > 100


def test_the_hosts_connections_are_an_option() -> None:
    """Labels can allow the connections to the host that Kubernetes always allows, and leave them out."""
    nothing = _policy("{podSelector: {}, policyTypes: [Egress]}").replace("namespace: default", "namespace: x")
    cluster = LAYOUTS["separate"].cluster().apply(*policies(nothing))
    pod = cluster.pods["x/a"]
    assert Translation(cluster, node=False).labels(pod)["fw.egress"] == "none"
    assert Translation(cluster).labels(pod)["fw.egress"] == "*/tcp to host, */udp to host, */sctp to host"
