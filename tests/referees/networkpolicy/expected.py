"""Which connections docker-fw lets pass: those that Kubernetes lets pass, but for the differences that are listed here.

`DIFFERENCES` says each of them in words, for docs/networkpolicy.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.referees.networkpolicy.evaluator import Connection, allowed, isolating
from tests.referees.networkpolicy.placing import Layout
from tests.referees.networkpolicy.probes import Probe
from tests.referees.networkpolicy.spec import PROTOCOLS, Cluster, Direction, Pod, Port

NEIGHBOURS, HOST, NARROWER, ICMP, OTHERS = "neighbours", "host", "narrower", "ICMP", "other protocols"
#: Each difference: what Kubernetes does, and what docker-fw does in its place.
DIFFERENCES: Mapping[str, tuple[str, str]] = {
    NEIGHBOURS: (
        "Policies apply between pods of one namespace and one node too.",
        "Containers of one network reach each other on every port, whatever their labels are: frames within a bridge "
        "pass no rule. On separate networks, labels apply to them.",
    ),
    HOST: (
        "A pod may always open connections to its own node.",
        "`fw.egress` applies to the host too. Entries `to host` allow it: `*/tcp to host, */udp to host`.",
    ),
    NARROWER: (
        "A policy may have any number of ports and any `except`.",
        "A value of a label has limits, and a longer one is a mistake. The nearest policy within them is narrower.",
    ),
    ICMP: (
        "ICMP is not specified.",
        "Ping and the errors that the Internet needs always enter. A container with an `fw.egress` list may initiate "
        "none.",
    ),
    OTHERS: (
        "Protocols other than TCP, UDP and SCTP are not specified.",
        "They pass if both ends are unrestricted (`fw.policy: open`, no `fw.egress`). `gre`, `esp` and `ah` can be "
        "written in a list.",
    ),
}


@dataclass
class Promises:
    """What docker-fw does with each connection in one state of a cluster.

    `truth`: the cluster as Kubernetes has it. `written`: the cluster whose policies are in the labels. These are the
    same, unless the policies are too large for labels. `node`: the labels allow connections to the host.
    """

    layout: Layout
    truth: Cluster
    written: Cluster
    node: bool = True
    _free: dict[tuple[str, Direction], bool] = field(default_factory=dict)

    def of(self, probe: Probe) -> tuple[bool, str]:
        """Return whether docker-fw lets a connection pass, and the name of the difference; "" if there is none."""
        source, destination = probe.source.pod, probe.destination.pod
        near = source and destination and self.layout.neighbours(source.id, destination.id)
        if probe.protocol not in PROTOCOLS:
            passes = bool(near) or probe.source.node or self._beyond(probe)
            return passes, ICMP if probe.protocol == "icmp" else OTHERS
        connection = Connection(probe.source.address, probe.destination.address, probe.protocol, probe.port)
        truth = allowed(self.truth, connection)
        if near:
            return True, "" if truth else NEIGHBOURS
        if source and probe.destination.node and not self.node:
            free = self._unrestricted(source, "egress") or self._leaves(source, probe)
            return free, "" if free else HOST
        written = truth if self.written is self.truth else allowed(self.written, connection)
        assert truth or not written, f"the labels are wider than the policy: {probe}"
        return written, "" if written == truth else NARROWER

    def _leaves(self, source: Pod, probe: Probe) -> bool:
        """True if a rule for every destination allows the port: such a rule includes the host."""
        policies = isolating(self.written, source, "egress")
        rules = (rule for policy in policies for rule in policy.rules("egress") if not rule.peers)
        return any(_covers(port, probe) for rule in rules for port in rule.ports)

    def _beyond(self, probe: Probe) -> bool:
        """True for a protocol that Kubernetes does not specify if both ends are unrestricted; ICMP always enters."""
        source, destination = probe.source.pod, probe.destination.pod
        if source and not self._unrestricted(source, "egress"):
            return False
        return probe.protocol == "icmp" or destination is None or self._unrestricted(destination, "ingress")

    def _unrestricted(self, pod: Pod, direction: Direction) -> bool:
        """True if the pod is not isolated, or a rule allows everything."""
        if (pod.id, direction) not in self._free:
            policies = isolating(self.written, pod, direction)
            rules = (rule for policy in policies for rule in policy.rules(direction))
            self._free[pod.id, direction] = not policies or any(not rule.ports and not rule.peers for rule in rules)
        return self._free[pod.id, direction]


def _covers(port: Port, probe: Probe) -> bool:
    """True if a port that is written as a number, or as none, is the probe's."""
    if port.protocol != probe.protocol or isinstance(port.port, str):
        return False
    return port.port is None or port.port <= probe.port <= (port.end or port.port)
