"""The table's sets, and what an element of one is. Pure. ARCHITECTURE explains them; `nft list` shows them.

Per-container data are elements of plain hash sets, so that a packet pays the same with one container and with ten
thousand.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from plugin.kernel.names import AF
from plugin.model import Address, Rate
from plugin.nftables.fields import CGROUP, TARGET, VERDICT, Value
from plugin.policy.bans import BAN_LENGTHS

#: The name of the tables, inet and bridge: one that no host gives to a table of its own.
TABLE = "docker-fw"
#: Where another program's table has that name, a table that opens nothing has this one (`plugin.nftables.identity`).
CLOSED = "docker-fw-closed"
#: The name in former versions.
FORMER = "fw"


#: Seconds for which a cut flow is held since who answered in it spoke last: as long as conntrack itself remembers a
#: silent flow of any protocol but TCP (nf_conntrack_generic_timeout is the longest), for then it would be a new one.
HELD = 600

#: At which levels a socket's control group is looked for: openrc.docker is of level 1, system.slice/docker.service of
#: level 2. A group's number is no other's at any level.
CGROUP_LEVELS = (1, 2, 3, 4)
#: A published port on every address of a family.
_ANY = ("meta nfproto", "meta l4proto", "th dport")
#: The length of a prefix, in front of it.
_NET = ("th sport",)


class SetSpec(NamedTuple):
    """A named set, or a map where `data` is not empty: the nft expressions its key and data are typed by.

    `raw`: nft has no words for its elements, so they go by netlink alone. `timed`: each may last for a time of its own.
    `counted`: each counts the packets that it was found for. `meter`: seconds that a packet's own elements last, and
    `size` how many there may be (0: as many as the kernel takes then, 65,535). `bridge`: it is of the table that frames
    within a bridge go through.

    `effect`: what an element does to packets: "opens" (something passes that did not), "closes" (something does not
    pass, or not as often), or "" (it counts, reports, translates, or leads to a look-up). Changes go by it:
    what closes comes first and may come alone, and flows are cut where something opens no more.
    """

    key: tuple[str, ...]
    data: tuple[str, ...] = ()
    comment: str = ""
    raw: bool = False
    timed: bool = False
    counted: bool = False
    meter: int = 0
    size: int = 65535
    bridge: bool = False
    effect: Literal["opens", "closes", ""] = ""


def _family(v: int) -> dict[str, SetSpec]:
    """The sets that there are for IPv4 and for IPv6."""
    ip = "ip" if v == 4 else "ip6"
    to, by = (f"{ip} daddr", "meta l4proto", "th dport"), (f"{ip} saddr", "meta l4proto", "th dport")
    source, target = f"{ip} saddr", f"{ip} daddr"
    flow = (source, "meta l4proto", "th sport", target, "th dport")
    held = "flows that were cut, the way they were answered: none begins so"
    return {
        f"allow{v}": SetSpec(to, comment=f"what IPv{v} addresses accept from everybody", effect="opens"),
        f"allow{v}_blocks": SetSpec(
            to, comment="the same, blocks of 16, 256, 4096 and all ports by their middle", effect="opens"
        ),
        f"other{v}": SetSpec((target,), comment="who accepts every protocol that no rule can name", effect="opens"),
        f"gate{v}": SetSpec(to, comment="what is accepted from some"),
        f"gate{v}_blocks": SetSpec(to, comment="the same, blocks of ports"),
        f"from{v}": SetSpec((*to, *_NET, source), comment="from which prefix, its length before it", effect="opens"),
        f"from{v}_blocks": SetSpec((*to, *_NET, source), comment="blocks of ports: from which prefix", effect="opens"),
        f"rated{v}": SetSpec(
            to, VERDICT, "ports to which a source may open only so many flows in a time", effect="closes"
        ),
        f"rated{v}_blocks": SetSpec(to, VERDICT, "the same, blocks of ports", effect="closes"),
        f"rated_host{v}": SetSpec(
            to, VERDICT, "published ports of the host, on one address, that have a rate", effect="closes"
        ),
        f"remembering{v}": SetSpec(
            (target,), comment="addresses with a rate for which sources are remembered longer", effect="closes"
        ),
        f"free{v}": SetSpec(
            ("iifname", source), comment="who may begin everything, on a network where not all may", effect="opens"
        ),
        f"out{v}": SetSpec(by, comment="what a confined container may begin, to everybody", effect="opens"),
        f"out{v}_blocks": SetSpec(by, comment="the same, blocks of ports", effect="opens"),
        f"outgate{v}": SetSpec(by, comment="what it may begin, to some", effect="opens"),
        f"outgate{v}_blocks": SetSpec(by, comment="the same, blocks of ports", effect="opens"),
        f"to{v}": SetSpec((*by, *_NET, target), comment="to which prefix, its length before it", effect="opens"),
        f"to{v}_blocks": SetSpec((*by, *_NET, target), comment="blocks of ports: to which prefix", effect="opens"),
        f"tohost{v}": SetSpec(by, comment="what it may begin, to the host", effect="opens"),
        f"tohost{v}_blocks": SetSpec(by, comment="the same, blocks of ports", effect="opens"),
        f"banned{v}": SetSpec(
            (source,), comment="nothing from and to these, before everything", timed=True, effect="closes"
        ),
        **{
            f"banned{v}_{n}": SetSpec(
                (source,), comment=f"the same, prefixes of length {n}", timed=True, effect="closes"
            )
            for n in BAN_LENGTHS[v]
        },
        f"dropped{v}": SetSpec((target,), comment="containers, and what was dropped on its way to them", counted=True),
        f"refused{v}": SetSpec((source,), comment="containers, and what they began and may not", counted=True),
        f"noticed{v}": SetSpec((target,), comment="whose drops were told a moment ago", meter=10),
        f"noticed_by{v}": SetSpec((source,), comment="the same, of what they began", meter=10),
        f"dnat{v}": SetSpec(
            to, comment="what -p itself opens, reached by a published port (FW_PUBLISHED=allow)", effect="opens"
        ),
        f"proxied{v}": SetSpec(
            to, comment="published ports of the host, on one address, that not everybody may reach", effect="closes"
        ),
        f"served{v}": SetSpec(
            to, comment="published ports of the host, on one address, that everybody may reach", effect="opens"
        ),
        f"listening{v}": SetSpec(
            to, comment="ports of the host, on one address, that its own programs serve", effect="opens"
        ),
        f"neighbour{v}": SetSpec(
            ("iifname", *to), comment="the same as neighbour, ports of one address of the host", effect="opens"
        ),
        f"via{v}": SetSpec(
            (*_ANY[1:], *_NET, source), comment="published ports: from which prefix all the same", effect="opens"
        ),
        f"held{v}": SetSpec(flow, comment=held, meter=HELD, effect="closes"),
        f"held{v}_pairs": SetSpec(
            (source, "meta l4proto", target), comment="the same, protocols without ports", meter=HELD, effect="closes"
        ),
        f"held{v}_ports_from": SetSpec(
            by[:2] + ("th sport",),
            comment="too many to be held one by one: ports that begin none",
            meter=HELD,
            effect="closes",
        ),
        f"held{v}_ports_to": SetSpec(to, comment="the same: ports to which none is begun", meter=HELD, effect="closes"),
        f"held{v}_all_from": SetSpec(
            (source, "meta l4proto"), comment="too many ports: containers that begin none", meter=HELD, effect="closes"
        ),
        f"held{v}_all_to": SetSpec(
            (target, "meta l4proto"), comment="the same: containers to which none is begun", meter=HELD, effect="closes"
        ),
        f"self{v}": SetSpec((source, target), comment="who publishes ports, and may come back to itself by them"),
        f"publish{v}": SetSpec(to, (target, "th dport"), "-p HOSTIP:…"),
        f"publish{v}_any": SetSpec(to[1:], (target, "th dport"), f"-p on every IPv{v} address"),
    }


SETS: dict[str, SetSpec] = {
    **_family(4),
    **_family(6),
    "same_bridge": SetSpec(
        ("iifname", "oifname"), comment="within one network, seen here with br_netfilter", effect="opens"
    ),
    "bridges": SetSpec(("fib saddr oifname",), comment="every bridge but foreign ones", effect="closes"),
    "internal": SetSpec(("oifname",), comment="networks nobody enters or leaves", effect="closes"),
    "confined": SetSpec(("iifname",), comment="networks where somebody may not begin everything", effect="closes"),
    "masqueraded": SetSpec(("iifname",), comment="networks whose IPv4 leaves with the host's address"),
    "foreign": SetSpec(
        ("oif",), comment="bridges that are neither ours nor Docker's, and are left alone", effect="opens"
    ),
    "dockers": SetSpec(("iifname",), comment="bridges that Docker claims, which forward as it says", effect="opens"),
    "routed": SetSpec(
        ("meta nfproto", "oifname"), comment="networks of Docker's that are reached by their addresses", effect="opens"
    ),
    "watched": SetSpec(
        ("meta nfproto",), comment="families in which docker-fw follows Docker: a lease", timed=True, effect="opens"
    ),
    "proxied": SetSpec(_ANY, comment="published ports of the host that not everybody may reach", effect="closes"),
    "served": SetSpec(_ANY, comment="published ports of the host that everybody may reach", effect="opens"),
    "listening": SetSpec(
        _ANY, comment="ports of the host that its own programs serve: no docker-proxy does", effect="opens"
    ),
    "holding": SetSpec(
        ("meta nfproto",), comment="families in which docker-proxy is not known by its control group", effect="closes"
    ),
    "rated_host": SetSpec(
        _ANY, VERDICT, "published ports to which a source may open only so many flows in a time", effect="closes"
    ),
    "noticed_host": SetSpec(("meta l4proto", "th dport"), comment="published ports, the same", meter=10),
    "dockerd": SetSpec(
        ("meta l4proto", "th dport"), comment="ports of dockerd's own: its API, swarm, metrics", effect="opens"
    ),
    "proxies": SetSpec(
        (CGROUP,), comment="the control group of dockerd and docker-proxy, by its number", raw=True, effect="closes"
    ),
    "neighbour": SetSpec(
        ("iifname", *_ANY), comment="published ports, and on whose network all may reach them", effect="opens"
    ),
    "unregistered": SetSpec(("oifname",), comment="networks, and packets to addresses of no known container", meter=10),
    "gating": SetSpec(("meta nfproto",), comment="families in which something is accepted from some"),
    "banning": SetSpec(("meta nfproto",), comment="families of which addresses are banned", effect="closes"),
    "banning_nets": SetSpec(("meta nfproto",), comment="families of which prefixes are banned", effect="closes"),
    "shut": SetSpec(
        ("meta nfproto",), comment="families whose elements are not there yet: nothing new", timed=True, effect="closes"
    ),
    "no_transit": SetSpec(
        ("meta nfproto",), comment="families whose forwarding docker-fw switched on", effect="closes"
    ),
    "published": SetSpec(("meta l4proto", "th dport"), comment="the host's ports that lead to our containers"),
    "shut_ports": SetSpec(
        ("meta iiftype",), comment="the same: no frame of a port of ours", timed=True, bridge=True, effect="closes"
    ),
    "ports": SetSpec(
        ("iifname",), comment="ports of our bridges whose containers are known", bridge=True, effect="closes"
    ),
    "bound4": SetSpec(
        ("iifname", "ether saddr", "ip saddr"), comment="what its container sends from", bridge=True, effect="opens"
    ),
    "bound6": SetSpec(
        ("iifname", "ether saddr", "ip6 saddr"), comment="the same, of IPv6", bridge=True, effect="opens"
    ),
    "targets": SetSpec(
        ("iifname", "ether saddr", TARGET), comment="what it may say to have", bridge=True, effect="opens"
    ),
}


class Element(NamedTuple):
    """One element of one set: the key's values in the order of `spec_of`, and the data's for a map."""

    set: str
    key: tuple[Value, ...]
    data: tuple[Value, ...] = ()


#: Sets of cut flows, by family: one by one, by the pair of addresses, and all of a container's port or of a container.
HELD_SETS = {
    v: (f"held{v}", *(f"held{v}_{of}" for of in ("pairs", "ports_from", "ports_to", "all_from", "all_to"))) for v in AF
}
#: The lease: docker-fw follows Docker.
WATCHED = tuple(Element("watched", (family,)) for family in AF.values())


#: A table that is put there without its elements lets nothing new pass until they are there.
SHUT = (*(Element("shut", (family,)) for family in AF.values()), Element("shut_ports", (1,)))  # 1: ARPHRD_ETHER
#: Seconds until a shut table ends by itself to be so: no error locks the host's owner out for good.
SHUT_SECONDS = 60
#: What leads packets to the bans, and to where a table is shut.
BANNING = tuple(Element("banning", (family,)) for family in AF.values())


@dataclass(frozen=True, slots=True)
class Change:
    """One transaction: what goes and what comes."""

    remove: tuple[Element, ...] = ()
    add: tuple[Element, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.remove or self.add)


#: Maps from ports that have a rate to the chain that limits them, which is there only while an element leads to it.
RATED = frozenset(name for name, spec in SETS.items() if spec.data == VERDICT)
#: The chain for a port whose rate found no room in the table.
DENIED = "deny"
#: Chains that send packets through these maps, while there are elements: forwarded, and to the host.
RATING, RATING_HOST = "rates", "rates_host"


def limit_chain(where: Address, version: int, rates: Iterable[Rate], *, host: bool = False) -> str:
    """The chain that applies these rates to ports of a container with the address `where`, or to its host ports.

    Its name says all that it does. Each container's is its own, so that no source counts for two.
    """
    names = sorted(f"{rate.count}_{rate.unit}_{rate.burst}" for rate in rates)
    return "__".join((f"limit{'_host' if host else ''}{version}", str(where).replace(":", "-"), *dict.fromkeys(names)))


def limiting(element: Element) -> tuple[str, ...]:
    """The chains that this element needs and that are not always there."""
    if element.set not in RATED:
        return ()
    base = RATING_HOST if element.set.startswith("rated_host") else RATING
    chain = str(element.data[0])
    return (base,) if chain == DENIED else (base, chain)


def spec_of(name: str) -> SetSpec:
    """The specification of a set by its name; each rate has sets of its own (`NAME__RATE`)."""
    return SETS[name.partition("__")[0]]
