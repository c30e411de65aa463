"""The table's sets, and the definition of an element. Pure. ARCHITECTURE explains the sets; `nft list` shows them.

Per-container data are elements of plain hash sets, so that a packet costs the same with one container and with ten
thousand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from plugin.kernel.names import AF
from plugin.model import Address, Rate
from plugin.nftables import fields
from plugin.nftables.fields import CGROUP, TARGET, VERDICT, Value
from plugin.policy.bans import BAN_LENGTHS

#: The name of the tables, inet and bridge. No host uses this name for a table of its own.
TABLE = "docker-fw"
#: The name of a table that opens nothing, used if another program's table has the name above
#: (`plugin.nftables.identity`).
CLOSED = "docker-fw-closed"
#: The name of a table that exists for a moment at each start, to see what the kernel supports.
TRIED = "docker-fw_try"
#: The name in former versions.
FORMER = "fw"


#: Seconds for which a cut flow stays in quarantine after the last packet of its responder. This is as long as
#: conntrack remembers a silent flow of any protocol but TCP (nf_conntrack_generic_timeout is the longest); after that
#: the packet would start a new flow anyway.
QUARANTINE_SECONDS = 600

#: The levels at which a socket's control group is looked up: openrc.docker is at level 1, system.slice/docker.service
#: at level 2. A group's number is unique across all levels.
CGROUP_LEVELS = (1, 2, 3, 4)
#: A published port on every address of a family.
_ANY = ("meta nfproto", "meta l4proto", "th dport")
#: The length of a prefix, placed before the prefix.
_NET = ("th sport",)

#: Base chains that exist only while a set has elements, see `plugin.nftables.hooks`.
LOADING_HOOK, LOADING_HOOK_HOST = "loading_hook", "loading_hook_host"
BAN_HOOK, BAN_HOOK_HOST = "ban_hook", "ban_hook_host"
INTERNAL_HOOK = "internal_hook"
EGRESS_HOOK, EGRESS_HOOK_REPLIES = "egress_hook", "egress_hook_replies"
EGRESS_HOOK_HOST, EGRESS_HOOK_OUTPUT = "egress_hook_host", "egress_hook_output"
RATE_HOOK, RATE_HOOK_HOST = "rate_hook", "rate_hook_host"


class SetSpec(NamedTuple):
    """A named set, or a map if `data` is not empty. Its key and data are typed by nft expressions.

    `raw`: nft has no syntax for its elements, so they are sent by netlink alone. `timed`: each element may have a
    timeout of its own. `counted`: each element counts the packets that matched it. `meter`: the timeout in seconds of
    elements that packets add, and `size` their maximum number (0: the kernel's own, 65,535; a number
    makes the kernel allocate and clear buckets for so many with each table). `bridge`: the set is in the table for
    frames within a bridge.

    `effect`: the effect of an element on packets: "opens" (something passes that did not), "closes" (something does
    not pass, or not as often), or "" (it counts, reports, translates, or leads to a look-up). Changes depend on it:
    elements that close are applied first and may be applied alone, and flows are cut if an opening is removed.

    `departs`: an element only leads to a container, and is removed with the elements that open as soon as the
    container departs. `ends_flows`: a new element closes something that was open, so flows through it are cut:
    "always", or only if its owner had elements before ("owned"). `closed_as`: the set whose element closes what an
    element of this set left open. `peer`: the last part of a key is the other end of flows, after its prefix's length
    ("prefix"), or an address that a container sends from ("address"). Elements are found by it when the container with
    that address departs.

    `hooks`: base chains that exist only while the set has elements (`plugin.nftables.hooks`).

    `stays`: an element remains until the table is written anew, because packets may still need it.
    """

    key: tuple[str, ...]
    data: tuple[str, ...] = ()
    comment: str = ""
    raw: bool = False
    timed: bool = False
    counted: bool = False
    meter: int = 0
    size: int = 0
    bridge: bool = False
    effect: Literal["opens", "closes", ""] = ""
    departs: bool = False
    ends_flows: Literal["always", "owned", ""] = ""
    closed_as: str = ""
    peer: Literal["prefix", "address", ""] = ""
    hooks: tuple[str, ...] = ()
    stays: bool = False


def _family(v: int) -> dict[str, SetSpec]:
    """Return the sets that exist once for each of IPv4 and IPv6."""
    ip = "ip" if v == 4 else "ip6"
    to, by = (f"{ip} daddr", "meta l4proto", "th dport"), (f"{ip} saddr", "meta l4proto", "th dport")
    source, target = f"{ip} saddr", f"{ip} daddr"
    flow = (source, "meta l4proto", "th sport", target, "th dport")
    return {
        **_inbound(v, source, target, to),
        **_outbound(v, source, target, by),
        f"banned{v}": SetSpec(
            (source,),
            comment="banned addresses: packets from and to them are dropped before any other rule",
            timed=True,
            effect="closes",
        ),
        **{
            f"banned{v}_{n}": SetSpec((source,), comment=f"banned prefixes of length {n}", timed=True, effect="closes")
            for n in BAN_LENGTHS[v]
        },
        f"ingress_drops{v}": SetSpec(
            (target,), comment="known containers, with a count of dropped packets to each", counted=True
        ),
        f"egress_drops{v}": SetSpec(
            (source,), comment="known containers, with a count of dropped packets from each", counted=True
        ),
        f"log_limit{v}": SetSpec((target,), comment="rate limit of logged drops, by container", meter=10),
        f"log_limit_egress{v}": SetSpec(
            (source,), comment="rate limit of logged drops of outbound packets, by container", meter=10
        ),
        **_host(v, source, to),
        f"quarantine{v}": SetSpec(
            flow,
            comment="cut flows: their responders may not reopen them",
            meter=QUARANTINE_SECONDS,
            effect="closes",
        ),
        f"quarantine{v}_pairs": SetSpec(
            (source, "meta l4proto", target),
            comment="cut flows of protocols without ports",
            meter=QUARANTINE_SECONDS,
            effect="closes",
        ),
        f"quarantine{v}_ports_from": SetSpec(
            by[:2] + ("th sport",),
            comment="too many cut flows to list: ports that may not open flows",
            meter=QUARANTINE_SECONDS,
            effect="closes",
        ),
        f"quarantine{v}_ports_to": SetSpec(
            to,
            comment="the same: ports to which no flow may be opened",
            meter=QUARANTINE_SECONDS,
            effect="closes",
        ),
        f"quarantine{v}_all_from": SetSpec(
            (source, "meta l4proto"),
            comment="too many ports to list: containers that may not open flows",
            meter=QUARANTINE_SECONDS,
            effect="closes",
        ),
        f"quarantine{v}_all_to": SetSpec(
            (target, "meta l4proto"),
            comment="the same: containers to which no flow may be opened",
            meter=QUARANTINE_SECONDS,
            effect="closes",
        ),
        f"hairpin{v}": SetSpec(
            (source, target),
            comment="containers that may reach themselves through their published ports",
            departs=True,
        ),
        f"publish{v}": SetSpec(to, (target, "th dport"), "ports published on one address of the host", departs=True),
        f"publish{v}_any": SetSpec(
            to[1:], (target, "th dport"), f"ports published on every IPv{v} address of the host", departs=True
        ),
    }


def _inbound(v: int, source: str, target: str, to: tuple[str, ...]) -> dict[str, SetSpec]:
    """Return the sets of what containers accept, and of their rates."""
    return {
        f"allow{v}": SetSpec(to, comment=f"ports that containers accept from everyone, IPv{v}", effect="opens"),
        f"allow{v}_blocks": SetSpec(
            to, comment="the same, blocks of 16, 256, 4096 and all ports, by their middle port", effect="opens"
        ),
        f"allow_other{v}": SetSpec(
            (target,), comment="containers that accept every protocol that no rule can name", effect="opens"
        ),
        f"peer_ports{v}": SetSpec(to, comment="ports that containers accept from some sources only"),
        f"peer_ports{v}_blocks": SetSpec(to, comment="the same, blocks of ports"),
        f"from{v}": SetSpec(
            (*to, *_NET, source),
            comment="the sources of such a port: length of the prefix, prefix",
            effect="opens",
            peer="prefix",
        ),
        f"from{v}_blocks": SetSpec(
            (*to, *_NET, source), comment="the same, blocks of ports", effect="opens", peer="prefix"
        ),
        f"rate_limit{v}": SetSpec(
            to, VERDICT, "ports with a limit of new flows by source", effect="closes", hooks=(RATE_HOOK,)
        ),
        f"rate_limit{v}_blocks": SetSpec(to, VERDICT, "the same, blocks of ports", effect="closes", hooks=(RATE_HOOK,)),
        f"rate_limit_host{v}": SetSpec(
            to,
            VERDICT,
            "the same, ports published on one address of the host",
            effect="closes",
            hooks=(RATE_HOOK_HOST,),
        ),
        f"rate_proven{v}": SetSpec(
            (target,), comment="containers with a rate whose proven sources are remembered longer", effect="closes"
        ),
        f"allow_published{v}": SetSpec(
            to, comment="ports open to everyone through a published port (FW_PUBLISHED=allow)", effect="opens"
        ),
    }


def _outbound(v: int, source: str, target: str, by: tuple[str, ...]) -> dict[str, SetSpec]:
    """Return the sets of what containers may initiate, on bridges with restricted egress."""
    return {
        f"egress_all{v}": SetSpec(
            ("iifname", source),
            comment="containers without fw.egress on a bridge with restricted egress",
            effect="opens",
        ),
        f"egress_allow{v}": SetSpec(by, comment="fw.egress: ports to every destination", effect="opens"),
        f"egress_allow{v}_blocks": SetSpec(by, comment="the same, blocks of ports", effect="opens"),
        f"egress_peer_ports{v}": SetSpec(by, comment="fw.egress: ports to some destinations only", effect="opens"),
        f"egress_peer_ports{v}_blocks": SetSpec(by, comment="the same, blocks of ports", effect="opens"),
        f"egress_to{v}": SetSpec(
            (*by, *_NET, target),
            comment="the destinations of such a port: length of the prefix, prefix",
            effect="opens",
            peer="prefix",
        ),
        f"egress_to{v}_blocks": SetSpec(
            (*by, *_NET, target), comment="the same, blocks of ports", effect="opens", peer="prefix"
        ),
        f"egress_host{v}": SetSpec(by, comment="fw.egress: ports to the host", effect="opens"),
        f"egress_host{v}_blocks": SetSpec(by, comment="the same, blocks of ports", effect="opens"),
    }


def _host(v: int, source: str, to: tuple[str, ...]) -> dict[str, SetSpec]:
    """Return the sets of host ports, on which docker-proxy and the host's own programs listen, on one host address."""
    return {
        f"host_closed{v}": SetSpec(
            to,
            comment="published ports of one address of the host, not open to everyone",
            effect="closes",
            ends_flows="owned",
        ),
        f"host_open{v}": SetSpec(
            to,
            comment="published ports of one address of the host, open to everyone",
            effect="opens",
            closed_as=f"host_closed{v}",
        ),
        f"served_ports{v}": SetSpec(
            to,
            comment="TCP ports of one address of the host that docker-proxy serves, or served until some minutes ago",
            effect="closes",
        ),
        f"host_own{v}": SetSpec(
            to, comment="ports of one address of the host on which its own programs listen", effect="opens"
        ),
        f"host_neighbours{v}": SetSpec(
            ("iifname", *to),
            comment="bridges whose containers may reach a published port of one address",
            effect="opens",
        ),
        f"host_from{v}": SetSpec(
            (*_ANY[1:], *_NET, source),
            comment="the sources that may reach a closed published port",
            effect="opens",
            peer="prefix",
        ),
    }


SETS: dict[str, SetSpec] = {
    **_family(4),
    **_family(6),
    "same_bridge": SetSpec(
        ("iifname", "oifname"), comment="traffic within one bridge, seen here with br_netfilter", effect="opens"
    ),
    "protected_bridges": SetSpec(("fib saddr oifname",), comment="every bridge except unmanaged ones", effect="closes"),
    "internal": SetSpec(
        ("oifname",),
        comment="bridges of internal networks: no traffic enters or leaves",
        effect="closes",
        ends_flows="always",
        hooks=(INTERNAL_HOOK,),
    ),
    "egress_restricted": SetSpec(
        ("iifname",),
        comment="bridges on which a container has fw.egress: other containers must be listed in egress_all",
        effect="closes",
        ends_flows="always",
        hooks=(EGRESS_HOOK, EGRESS_HOOK_REPLIES, EGRESS_HOOK_HOST, EGRESS_HOOK_OUTPUT),
    ),
    "masqueraded": SetSpec(("iifname",), comment="bridges whose outbound IPv4 traffic is masqueraded"),
    "unmanaged": SetSpec(
        ("oif",), comment="bridges of neither docker-fw nor Docker, which are not filtered (by index)", effect="opens"
    ),
    "dockers": SetSpec(
        ("iifname",), comment="bridges of Docker networks, which forward as Docker decides", effect="opens"
    ),
    "routed": SetSpec(
        ("meta nfproto", "oifname"), comment="Docker networks that are reached by container addresses", effect="opens"
    ),
    "lease": SetSpec(
        ("meta nfproto",),
        comment="docker-fw receives Docker's events; otherwise ports of Docker networks are closed",
        timed=True,
        effect="opens",
    ),
    "host_closed": SetSpec(
        _ANY, comment="published ports of the host, not open to everyone", effect="closes", ends_flows="owned"
    ),
    "host_open": SetSpec(
        _ANY, comment="published ports of the host, open to everyone", effect="opens", closed_as="host_closed"
    ),
    "host_own": SetSpec(
        _ANY, comment="ports of the host on which its own programs listen, not docker-proxy", effect="opens"
    ),
    "proxy_unidentified": SetSpec(
        ("meta nfproto",),
        comment="docker-proxy's control group is unknown: new listening ports stay closed",
        effect="closes",
    ),
    "rate_limit_host": SetSpec(
        _ANY,
        VERDICT,
        "published ports with a limit of new flows by source",
        effect="closes",
        hooks=(RATE_HOOK_HOST,),
    ),
    "log_limit_host": SetSpec(
        ("meta l4proto", "th dport"), comment="rate limit of logged drops, by published port", meter=10
    ),
    "dockerd_ports": SetSpec(
        ("meta l4proto", "th dport"), comment="ports of dockerd itself: API, swarm, metrics", effect="opens"
    ),
    "docker_proxy": SetSpec(
        (CGROUP,), comment="the control group of dockerd and docker-proxy, by number", raw=True, effect="closes"
    ),
    "served_ports": SetSpec(
        _ANY, comment="TCP ports that docker-proxy serves, or served until some minutes ago", effect="closes"
    ),
    "unfound_protocols": SetSpec(
        ("meta l4proto",),
        comment="protocols that containers publish, and for which no rule finds a socket: new ports stay closed",
        effect="closes",
    ),
    "host_neighbours": SetSpec(
        ("iifname", *_ANY), comment="bridges whose containers may reach a published port", effect="opens"
    ),
    "unknown_address_limit": SetSpec(
        ("oifname",), comment="rate limit of packets to unknown addresses, by bridge", meter=10
    ),
    "peer_families": SetSpec(("meta nfproto",), comment="families that have peer_ports"),
    "ban_families": SetSpec(
        ("meta nfproto",), comment="families that have bans", effect="closes", hooks=(BAN_HOOK, BAN_HOOK_HOST)
    ),
    "quarantine_families": SetSpec(
        ("meta nfproto",), comment="families that have cut flows", effect="closes", stays=True
    ),
    "ban_prefix_families": SetSpec(("meta nfproto",), comment="families that have bans of prefixes", effect="closes"),
    "loading": SetSpec(
        ("meta nfproto",),
        comment="the table is being loaded: no new flows until it is complete",
        timed=True,
        effect="closes",
        hooks=(LOADING_HOOK, LOADING_HOOK_HOST),
    ),
    "no_transit": SetSpec(
        ("meta nfproto",), comment="docker-fw enabled forwarding: other links do not forward", effect="closes"
    ),
    "published": SetSpec(
        ("meta l4proto", "th dport"), comment="ports of the host that lead to containers by DNAT", departs=True
    ),
    "loading_ports": SetSpec(
        ("meta iiftype",),
        comment="the table is being loaded: no unlisted frames from bridge ports",
        timed=True,
        bridge=True,
        effect="closes",
    ),
    "ports": SetSpec(("iifname",), comment="bridge ports whose containers are known", bridge=True, effect="closes"),
    "bound4": SetSpec(
        ("iifname", "ether saddr", "ip saddr"),
        comment="the addresses that a bridge port may send from",
        bridge=True,
        effect="opens",
        peer="address",
    ),
    "bound6": SetSpec(
        ("iifname", "ether saddr", "ip6 saddr"), comment="the same, IPv6", bridge=True, effect="opens", peer="address"
    ),
    "bound_targets": SetSpec(
        ("iifname", "ether saddr", TARGET),
        comment="the addresses that a bridge port may claim by neighbour discovery",
        bridge=True,
        effect="opens",
    ),
}


class _Layout(NamedTuple):
    """How the elements of one set are packed: the set's number, the key's length in bytes, where addresses are."""

    name: str
    spec: SetSpec
    number: bytes
    length: int
    addresses: tuple[tuple[int, int], ...]


def _addresses(key: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    for index, name in enumerate(key):
        if name.startswith("ip"):
            at = 1 + sum(fields.length((each, each)) // 2 for each in key[:index])
            yield at, at + fields.length((name,))


_LAYOUTS = {
    name: _Layout(name, spec, bytes([number]), fields.length(spec.key), tuple(_addresses(spec.key)))
    for number, (name, spec) in enumerate(SETS.items())
}
_BY_NUMBER = tuple(_LAYOUTS.values())


class Element(bytes):
    """One element of one set: the key's values in the order of `SetSpec.key`, and the data's values for a map.

    It is one object of bytes: the set's number, then key and data as the kernel encodes them. Fifty thousand containers
    have a million: a tuple of tuples would take three times the memory, and compute its hash anew each time.
    """

    __slots__ = ()

    def __new__(cls, name: str, key: tuple[Value, ...], data: tuple[Value, ...] = ()) -> Element:
        """Pack one element. Raises ValueError if a value does not fit its field."""
        spec, more = SETS[name], b""
        if data:
            more = str(data[0]).encode() if spec.data == VERDICT else fields.packed(spec.data, data)
        return packed(name, fields.packed(spec.key, key), more)

    @property
    def set(self) -> str:
        """The name of its set."""
        return _BY_NUMBER[self[0]].name

    @property
    def spec(self) -> SetSpec:
        """The specification of its set."""
        return _BY_NUMBER[self[0]].spec

    @property
    def key(self) -> tuple[Value, ...]:
        """The values of its key."""
        return fields.unpacked(self.spec.key, self.packed_key)

    @property
    def data(self) -> tuple[Value, ...]:
        """The values of its data; empty if it has none."""
        more, data = self.packed_data, self.spec.data
        if not more:
            return ()
        return (more.decode(),) if data == VERDICT else fields.unpacked(data, more)

    @property
    def packed_key(self) -> bytes:
        """Its key as the kernel encodes it."""
        return self[1 : 1 + _BY_NUMBER[self[0]].length]

    @property
    def packed_data(self) -> bytes:
        """Its data as the kernel encodes it, or the name of the chain that it leads to."""
        return self[1 + _BY_NUMBER[self[0]].length :]

    @property
    def addresses(self) -> tuple[bytes, ...]:
        """The addresses in its key, packed."""
        return tuple(self[at:end] for at, end in _BY_NUMBER[self[0]].addresses)

    def __repr__(self) -> str:
        return f"Element(set={self.set!r}, key={self.key!r}, data={self.data!r})"

    __str__ = __repr__


def packed(name: str, key: bytes, data: bytes = b"") -> Element:
    """Return the element with this key and data, which are as the kernel encodes them. Raises ValueError."""
    layout = _LAYOUTS[name]
    if len(key) != layout.length:
        raise ValueError(f"the key of an element of {name} has {len(key)} bytes, not {layout.length}")
    return bytes.__new__(Element, layout.number + key + data)


def numbers(wanted: Callable[[SetSpec], object]) -> frozenset[int]:
    """Return the numbers of the sets with such a specification; the first byte of an element is its set's number.

    To compare this byte is faster than to look at the specification, for each of a million elements.
    """
    return frozenset(number for number, layout in enumerate(_BY_NUMBER) if wanted(layout.spec))


#: Sets of cut flows, by family: single flows, pairs of addresses, all flows of a container's port, all of a container.
QUARANTINE_SETS = {
    v: (f"quarantine{v}", *(f"quarantine{v}_{of}" for of in ("pairs", "ports_from", "ports_to", "all_from", "all_to")))
    for v in AF
}
#: The family of each of these sets, by number.
_QUARANTINED = {_LAYOUTS[name].number[0]: AF[v] for v, names in QUARANTINE_SETS.items() for name in names}
#: The lease: docker-fw follows Docker.
WATCHED = tuple(Element("lease", (family,)) for family in AF.values())


#: A table that is created without its elements lets no new flow pass until the elements are there.
LOADING = (*(Element("loading", (f,)) for f in AF.values()), Element("loading_ports", (1,)))  # 1: ARPHRD_ETHER
#: Seconds until a loading table opens by itself: no error locks the owner of the host out permanently.
LOADING_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Change:
    """One transaction: the elements to remove and the elements to add."""

    remove: tuple[Element, ...] = ()
    add: tuple[Element, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.remove or self.add)


#: Maps from ports that have a rate to the chain that limits them. The chain exists only while an element leads to it.
RATED = frozenset(name for name, spec in SETS.items() if spec.data == VERDICT)
#: Those sets whose elements need chains that do not always exist, by number.
_CHAINED = numbers(lambda spec: spec.hooks or spec.data == VERDICT)
#: The chain for a port whose rate does not fit into the table.
DENIED = "deny"


def limit_chain(where: Address, version: int, rates: Iterable[Rate], *, host: bool = False) -> str:
    """Return the chain that applies these rates to ports of the container at `where`, or to its host ports.

    The name contains all parameters. Each container has a chain of its own, so that no source is counted for two
    containers.
    """
    names = sorted(f"{rate.count}_{rate.unit}_{rate.burst}" for rate in rates)
    return "__".join((f"limit{'_host' if host else ''}{version}", str(where).replace(":", "-"), *dict.fromkeys(names)))


def limits(element: Element) -> tuple[str, ...]:
    """Return the chain of a rate that this element leads to, if it does."""
    if element.set not in RATED or element.data[0] == DENIED:
        return ()
    return (str(element.data[0]),)


def chains_for(element: Element) -> tuple[str, ...]:
    """Return the chains that this element needs and that do not always exist."""
    return (*element.spec.hooks, *limits(element))


def chained(elements: Iterable[Element]) -> list[Element]:
    """Return those of these elements that need chains which do not always exist."""
    return [element for element in elements if element[0] in _CHAINED]


def quarantine_gates(elements: Iterable[Element]) -> tuple[Element, ...]:
    """Return the elements that lead packets to these ones of the quarantine: without them, they have no effect."""
    found = {element[0] for element in elements}
    families = dict.fromkeys(family for number, family in _QUARANTINED.items() if number in found)
    return tuple(Element("quarantine_families", (family,)) for family in families)


def spec_of(name: str) -> SetSpec:
    """Return the specification of a set by its name; each rate has sets of its own (`NAME__RATE`)."""
    return SETS[name.partition("__")[0]]
