"""The tables as text, as `nft -f` reads them: the static rules, and elements in nft's syntax. Pure.

The text can be listed by a host's nft 1.0.6: `typeof` sets, no anonymous verdict maps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from plugin.nftables import fields, optional_chains
from plugin.nftables.features import Features
from plugin.nftables.fields import CGROUP, VERDICT
from plugin.nftables.lookups import set_text
from plugin.nftables.rules_bridge import bridge
from plugin.nftables.rules_forward import forward
from plugin.nftables.rules_host import host
from plugin.nftables.sets import CGROUP_LEVELS, SETS, TABLE, Element, chains_for, spec_of

#: A recent kernel, without owned tables: what a file of `nft -f` can use.
USUAL = Features()
#: The number under which drops are reported to listeners (nfnetlink_log); docker-fw is one.
LOG_GROUP = 0x6677


def skeleton(
    mark: int, features: Features = USUAL, *, unmanaged: Iterable[str] = (), chains: Iterable[str] = ()
) -> str:
    """Return the tables without elements, as `nft -f` reads them. `mark` is one bit.

    `unmanaged`: bridges that are left alone by name, if their indices cannot be known yet: before the boot.
    `chains`: those of the chains that do not always exist which are in use (`sets.chains_for`).
    """
    names = ", ".join(f'"{name}"' for name in sorted(unmanaged))
    no_out, no_in = (f" {way}ifname != {{ {names} }}" if names else "" for way in "oi")
    sets = _sets(
        name for name, spec in SETS.items() if not spec.bridge and (features.cgroups or CGROUP not in spec.key)
    )
    log = f"limit rate 200/second burst 400 packets log group {LOG_GROUP} snaplen 128" if features.logs else "continue"
    chains = list(chains)
    flags = features.flags
    within = ""
    if features.bridge:
        ports = _sets(name for name, spec in SETS.items() if spec.bridge)
        within = f"\ntable bridge {TABLE} {{\n{flags}{ports}\n{bridge()}}}\n"
    return f"""table inet {TABLE} {{
{flags}{sets}
	counter drops {{
	}}

{forward(mark, features, log=log, no_in=no_in, no_out=no_out)}
{host(features, log=log, unknown=_unknown_owner(features), no_in=no_in)}
{optional_chains.inside(chains)}}}
{optional_chains.shrunk(chains)}{within}"""


def _unknown_owner(features: Features) -> str:
    """Return the rules for packets to a socket of the host that is docker-proxy's, or whose owner is unknown."""
    text = ""
    if features.listeners:
        text += "\t\tmeta l4proto @unfound_protocols goto new_listener\n"
    if features.cgroups and features.listeners:
        # Before the groups: when such a connection is forgotten in between, the listener's group is looked at.
        for key, version in (("meta nfproto", ""), ("ip daddr", "4"), ("ip6 daddr", "6")):
            text += f"\t\t{key} . meta l4proto . th dport @served_ports{version} jump served_port\n"
    if features.cgroups:
        levels = (f"{CGROUP[:-1]}{level}" for level in CGROUP_LEVELS)
        text += "".join(f"\t\t{level} @docker_proxy goto unlisted_proxy\n" for level in levels)
    if features.listeners:
        only = "meta nfproto @proxy_unidentified " if features.cgroups else ""
        text += f"\t\t{only}socket transparent 0 goto new_listener\n"
    return text


def _sets(names: Iterable[str]) -> str:
    return "\n".join(set_text(name, SETS[name]) for name in names)


def replace(
    mark: int,
    elements: Iterable[Element],
    features: Features = USUAL,
    *,
    timed: Mapping[Element, int] = MappingProxyType({}),
    chains: Iterable[str] = (),
) -> str:
    """Return one transaction that creates or replaces the complete tables.

    `timed`: elements with a timeout, in seconds. `chains`: chains that elements will need.
    """
    families = ("inet", "bridge") if features.bridge else ("inet",)
    first = "".join(away(family, owned=features.owned) for family in families)
    return first + document(mark, elements, features, timed=timed, chains=chains)


def away(family: str, *, owned: bool = False) -> str:
    """Return the commands that delete a table, whether it exists or not."""
    # nft refuses a table with other flags than it has; an nft that knows `persist` knows `destroy` (nft ≥ 1.0.7).
    first = "destroy" if owned else f"table {family} {TABLE} {{}}\ndelete"
    return f"{first} table {family} {TABLE}\n"


def named(text: str, table: str) -> str:
    """Return the same text for tables with another name."""
    return re.sub(rf"\b(inet|bridge) {TABLE}(?![\w-])", rf"\1 {table}", text)


def document(
    mark: int,
    elements: Iterable[Element],
    features: Features = USUAL,
    *,
    unmanaged: Iterable[str] = (),
    timed: Mapping[Element, int] = MappingProxyType({}),
    chains: Iterable[str] = (),
) -> str:
    """Return the tables with their elements, sorted, as a file for `nft -f`.

    Elements that nft has no syntax for are left out.
    """
    by_set: dict[str, list[str]] = {}
    elements = list(elements)
    wordy = [element for element in (*elements, *timed) if not element.spec.raw]
    for element in sorted(wordy, key=lambda e: (e.set, e.key, e.data)):
        lasting = f" timeout {timed[element]}s" if element in timed else ""
        by_set.setdefault(element.set, []).append(element_text(element) + lasting)
    chains = {*chains, *(chain for element in (*elements, *timed) for chain in chains_for(element))}
    text = skeleton(mark, features, unmanaged=unmanaged, chains=chains)
    for name, texts in by_set.items():
        if not spec_of(name).bridge:
            text += f"add element inet {TABLE} {name} {{ {', '.join(texts)} }}\n"
        elif features.bridge:
            text += f"add element bridge {TABLE} {name} {{ {', '.join(texts)} }}\n"
    return text


def element_text(element: Element) -> str:
    """Return an element in nft's syntax. It can contain only numbers, addresses and checked interface names."""
    spec = element.spec
    key = fields.text(spec.key, element.key)
    if spec.data == VERDICT:
        return f"{key} : jump {element.data[0]}"
    return f"{key} : {fields.text(spec.data, element.data)}" if spec.data else key
