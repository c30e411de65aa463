"""The features of kernel and nft that the tables use where they exist. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from plugin.nftables.fields import CGROUP
from plugin.nftables.sets import TRIED, Element, SetSpec, numbers

#: The flags of an owned table, in nft's syntax.
OWNED_FLAGS = "flags owner, persist"


@dataclass(frozen=True, slots=True)
class Features:
    """The parts that this kernel and nft support; the text leaves out the others.

    `owned`: only the socket that creates a table may change it, and the table outlives the socket (kernel ≥ 6.9, nft ≥
    1.1.0).
    `bridge`: frames within docker-fw's bridges pass through a table too, which binds a port to its container's
    addresses (CONFIG_NF_TABLES_BRIDGE).
    `listeners`: the kernel can match whether a socket listens at a packet's destination (≥ 4.18), so that a new
    listener is blocked until its owner is known. Without `cgroups`, that is always done.
    `cgroups`: the kernel can match a socket's control group (≥ 5.13).
    `late_fib`: a packet's source can be looked up in the routes after it was routed, in the hooks forward and input (≥
    5.19). Otherwise that is done before, and within one network too (`reverse_path_early`).
    `labels`: connection tracking can label a flow (CONFIG_NF_CONNTRACK_LABELS), so that no flow which was opened
    without any container counts as one of a container that gets its addresses later. Otherwise such flows are cut only
    (`plugin.state.forged_flows`).
    `logs`: the kernel has nfnetlink_log.
    `sctp`: connection tracking distinguishes SCTP's flows by their ports (CONFIG_NF_CT_PROTO_SCTP). Otherwise all SCTP
    between two addresses is one flow, so the first packet to an open port would make every port part of an established
    flow. Then each SCTP packet is judged by the rules; replies to SCTP flows that a container opens are dropped.
    """

    owned: bool = False
    bridge: bool = True
    listeners: bool = True
    cgroups: bool = True
    logs: bool = True
    sctp: bool = True
    late_fib: bool = True
    labels: bool = True

    @property
    def flows(self) -> str:
        """The condition, in nft's syntax, for packets whose established flows are those of one port."""
        return "" if self.sctp else "meta l4proto != sctp "

    @property
    def flags(self) -> str:
        """The line with the flags of the tables, for each text that declares one; "" without flags."""
        return f"\t{OWNED_FLAGS};\n" if self.owned else ""

    def loadable(self, elements: Iterable[Element]) -> tuple[Element, ...]:
        """Return the elements whose sets are in the tables."""
        if self.bridge and self.cgroups:
            return tuple(elements)
        there = numbers(self._has)
        return tuple(element for element in elements if element[0] in there)

    def _has(self, spec: SetSpec) -> bool:
        return (self.bridge or not spec.bridge) and (self.cgroups or CGROUP not in spec.key)


class Probe(NamedTuple):
    """Commands that succeed if kernel and nft have a feature. `otherwise`: for the log.

    They try it with an empty table: a complete one takes seconds to be refused, and until a table is active all ports
    are open.

    `leaves`: a table remains, which `FORGET` removes in a second transaction. Linux 5.10 checks at the end of a
    transaction whether an expression is valid in its hook, and not in a table that the transaction has deleted.
    """

    feature: str
    text: str
    otherwise: str
    leaves: bool = False


#: Removes the table that a probe leaves, also that of a process that was killed amid it: most others fail beside it.
FORGET = f"table inet {TRIED} {{}}\ndelete table inet {TRIED}\n"
#: `cgroups` and `logs` have none: almost every kernel has them, and the first table is written again without them.
PROBES = (
    Probe(
        "owned",
        f"create table inet {TRIED} {{ {OWNED_FLAGS}; }}\ndelete table inet {TRIED}\n",
        "the tables cannot be owned, so docker-fw watches them",
    ),
    Probe(
        "bridge",
        f"create table bridge {TRIED}\n"
        f"add chain bridge {TRIED} try {{ type filter hook prerouting priority filter; }}\n"
        f"delete table bridge {TRIED}\n",
        "containers on one network can use each other's addresses",
    ),
    Probe(
        "listeners",
        f"create table inet {TRIED} {{ chain try {{ socket transparent 0; }}; }}\ndelete table inet {TRIED}\n",
        "new listening ports cannot be closed until their owner is known",
    ),
    Probe(
        "late_fib",
        f"create table inet {TRIED} {{ chain try {{ type filter hook forward priority filter; "
        f"fib saddr . iif oif missing accept; }}; }}\n",
        "sources are looked up in the routes before a packet is routed",
        leaves=True,
    ),
    Probe(
        "labels",
        f"create table inet {TRIED} {{ chain try {{ ct label set 0; }}; }}\ndelete table inet {TRIED}\n",
        "flows that outsiders open from a future container's address are cut some tenths of a second late",
    ),
    Probe(  # connection tracking is loaded with its first rule, and lists its protocols then
        "sctp",
        f"create table inet {TRIED} {{ chain try {{ ct state new; }}; }}\ndelete table inet {TRIED}\n",
        "the kernel has no connection tracking",
    ),
)
