"""The examples of docs/networkpolicy.md: fields of a NetworkPolicy and the labels for them, and whole policies.

They are about a compose project `shop` with the services `web`, `api` and `db`, and a project `monitoring` with
`prometheus`. Each container has a network of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from textwrap import indent
from typing import Any

import yaml

from tests.referees.networkpolicy.cases import Case, Step
from tests.referees.networkpolicy.expected import Promises
from tests.referees.networkpolicy.manifest import policies
from tests.referees.networkpolicy.placing import OUTSIDERS, Layout, Seat
from tests.referees.networkpolicy.probes import Grid
from tests.referees.networkpolicy.pure import Labels, State
from tests.referees.networkpolicy.spec import NetworkPolicy
from tests.referees.networkpolicy.translation import Translation

_PODS = {"shop/web": "web", "shop/api": "api", "shop/db": "db", "monitoring/prometheus": "prometheus"}
SHOP = Layout(
    "shop",
    "one network for each container",
    {pod: Seat(pod.replace("/", "_"), number, 2, number % 2 == 0) for number, pod in enumerate(_PODS, 70)},
    {"shop": {"team": "sales"}, "monitoring": {"team": "operations"}},
    {pod: {"app": app} for pod, app in _PODS.items()},
    (("http", "tcp", 8080), ("postgres", "tcp", 5432), ("metrics", "tcp", 9100)),
)
GRID = Grid("documentation", (53, 80, 443, 5432, 8080, 9100, 9150, 9201), OUTSIDERS, gateways=True)
_ROOM = "namespace: shop, name: example"


@dataclass(frozen=True)
class Row:
    """One row of the table of fields. `spec`: of a NetworkPolicy in namespace shop; "" is none.

    `pod`: whose labels are shown. `node`: connections to the host are in them.
    """

    subject: str
    spec: str
    pod: str = "shop/db"
    node: bool = False

    def policies(self) -> list[NetworkPolicy]:
        """Return the policy, as a list."""
        if not self.spec:
            return []
        head = f"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{{_ROOM}}}\nspec:\n"
        spec = (
            self.spec
            if "podSelector: {match" in self.spec.partition("gress:")[0]
            else f"podSelector: {{}}\n{self.spec}"
        )
        return policies(head + indent(spec, "  "))

    def labels(self) -> dict[str, str]:
        """Return the labels of the row's pod."""
        cluster = SHOP.cluster().apply(*self.policies())
        return Translation(cluster, self.node).labels(cluster.pods[self.pod])

    def state(self) -> State:
        """Return the state of the cluster, in which all pods have the labels for the row's policy."""
        cluster = SHOP.cluster().apply(*self.policies())
        labels = Translation(cluster, self.node).all_labels()
        step = Step(self.subject, lambda _: cluster)
        promises = Promises(SHOP, cluster, cluster, self.node)
        return State(Case("documentation", (step,)), step, cluster, labels, promises)


_WEB = "shop/web"
ROWS = (
    Row("no policy selects the pod", ""),
    Row("no rule: nothing may enter", "ingress: []\npolicyTypes: [Ingress]"),
    Row("an empty rule: everything may enter", "ingress: [{}]"),
    Row("`podSelector`", "ingress: [{from: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 5432}]}]"),
    Row("an empty `podSelector`", "ingress: [{from: [{podSelector: {}}], ports: [{port: 5432}]}]"),
    Row(
        "`namespaceSelector`",
        "ingress: [{from: [{namespaceSelector: {matchLabels: {team: operations}}}], ports: [{port: 9100}]}]",
    ),
    Row(
        "both in one peer",
        "ingress: [{from: [{namespaceSelector: {matchLabels: {team: operations}}, "
        "podSelector: {matchLabels: {app: prometheus}}}], ports: [{port: 9100}]}]",
    ),
    Row("`ipBlock`", "ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24}}], ports: [{port: 5432}]}]"),
    Row(
        "`except`",
        'ingress: [{from: [{ipBlock: {cidr: "2001:db8::/32", except: ["2001:db8:5::/48"]}}], ports: [{port: 443}]}]',
    ),
    Row("`port` and `protocol`", "ingress: [{ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]}]"),
    Row("`protocol` alone", "ingress: [{ports: [{protocol: UDP}]}]"),
    Row("`endPort`", "ingress: [{ports: [{port: 9100, endPort: 9200}]}]"),
    Row("a named port", "ingress: [{ports: [{port: postgres}]}]"),
    Row("no `ports`", "ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]"),
    Row(
        "several rules or policies",
        "ingress: [{from: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 5432}]}, {ports: [{port: 443}]}]",
    ),
    Row("no egress rule: nothing may leave", "egress: []\npolicyTypes: [Egress]", _WEB),
    Row("an empty egress rule: everything may leave", "egress: [{}]\npolicyTypes: [Egress]", _WEB),
    Row(
        "`to`",
        "egress: [{to: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 8080}]}]\npolicyTypes: [Egress]",
        _WEB,
    ),
    Row("DNS", "egress: [{ports: [{port: 53, protocol: UDP}, {port: 53}]}]\npolicyTypes: [Egress]", _WEB),
    Row("connections to the node, always allowed", "egress: []\npolicyTypes: [Egress]", _WEB, node=True),
)


def fields() -> str:
    """Return the table of fields."""
    lines = ["| NetworkPolicy | example | labels |", "|---|---|---|"]
    for row in ROWS:
        example = " ".join(f"`{line}`" for line in row.spec.splitlines()) or "–"
        labels = "<br>".join(f'`{key}: "{value}"`' for key, value in row.labels().items())
        lines.append(f"| {row.subject} | {example} | {labels} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Example:
    """A whole policy of the document, and the labels that it has for the services of the project shop."""

    policies: tuple[NetworkPolicy, ...]
    labels: Labels

    def state(self, name: str) -> State:
        """Return the state in which the other pods have the labels for the policy."""
        cluster = SHOP.cluster().apply(*self.policies)
        labels = {**Translation(cluster, node=False).all_labels(), **self.labels}
        step = Step(name, lambda _: cluster)
        return State(Case(name, (step,)), step, cluster, labels, Promises(SHOP, cluster, cluster, node=False))


def examples(text: str) -> Iterator[Example]:
    """Yield the document's examples: a block of YAML with policies, and after it one with a compose file."""
    blocks = re.findall(r"^```yaml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    for first, second in zip(blocks[::2], blocks[1::2], strict=True):
        services: Mapping[str, Any] = yaml.safe_load(second)["services"]
        labels = {f"shop/{name}": {k: str(v) for k, v in each["labels"].items()} for name, each in services.items()}
        yield Example(tuple(policies(first)), labels)
