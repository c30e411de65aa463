"""The tables as text, as `nft -f` reads them: the static rules, and elements in nft's words. Pure.

Written so that a host's nft 1.0.6 can list it: `typeof` sets, no anonymous verdict maps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address
from types import MappingProxyType

from plugin import limits
from plugin.lookups import set_text
from plugin.model import PORTLESS, PROTO_NAME
from plugin.rules_bridge import bridge
from plugin.rules_forward import forward
from plugin.rules_host import host
from plugin.sets import CGROUP, SETS, TABLE, TARGET, Element, Value, limiting, spec_of

#: Under this number drops are told to who listens (nfnetlink_log); docker-fw does.
LOG_GROUP = 0x6677
_OWNED = "flags owner, persist"
#: Goes through where kernel and nft know such a table, and leaves nothing.
TRY_OWNED = f"table inet {TABLE}_try {{ {_OWNED}; }}\ndelete table inet {TABLE}_try\n"
#: The same of a table that frames within a bridge go through (CONFIG_NF_TABLES_BRIDGE).
TRY_BRIDGE = f"""table bridge {TABLE}_try {{ chain try {{ type filter hook prerouting priority filter; }}; }}
delete table bridge {TABLE}_try
"""
_NAMES: dict[int, str] = {**PROTO_NAME, **{number: name for name, number in PORTLESS.items()}}


def skeleton(
    mark: int, *, cgroups: bool = True, logs: bool = True, owned: bool = False, binds: bool = True,
    foreign: Iterable[str] = (), rates: Iterable[str] = (),
) -> str:  # fmt: skip
    """The tables without elements, as `nft -f` reads them. `mark` is one bit.

    `owned`: nobody but the socket that this goes through may change the table, and it outlives the socket
    (kernel ≥ 6.9, nft ≥ 1.1.0).
    `binds`: frames within our bridges go through a table too, which binds a port to its container's addresses.
    `cgroups`: the kernel can tell a socket's control group (≥ 5.13). `logs`: it has nfnetlink_log.
    `foreign`: bridges that are left alone by name, where their indices cannot be known yet (`plugin.boot`).
    `rates`: the chains of those in use (`sets.limiting`), each with sets of its own.
    """
    names = ", ".join(f'"{name}"' for name in sorted(foreign))
    no_out, no_in = (f" {way}ifname != {{ {names} }}" if names else "" for way in "oi")
    sets = _sets(name for name, spec in SETS.items() if not spec.bridge and (cgroups or CGROUP not in spec.key))
    unknown = f"\t\tct state new {CGROUP} @proxies goto to_unknown\n" if cgroups else ""
    log = f"limit rate 200/second burst 400 packets log group {LOG_GROUP} snaplen 128" if logs else "continue"
    rates = list(rates)
    flags = f"\t{_OWNED};\n" if owned else ""
    within = ""
    if binds:
        ports = _sets(name for name, spec in SETS.items() if spec.bridge)
        within = f"\ntable bridge {TABLE} {{\n{flags}{ports}\n{bridge()}}}\n"
    return f"""table inet {TABLE} {{
{flags}{sets}
	counter drops {{
	}}

{forward(mark, log=log, no_in=no_in, no_out=no_out)}
{host(mark, log=log, unknown=unknown, no_in=no_in)}
{limits.inside(rates)}}}
{limits.shrunk(rates)}{within}"""


def _sets(names: Iterable[str]) -> str:
    return "\n".join(set_text(name, SETS[name]) for name in names)


def replace(
    mark: int, elements: Iterable[Element], *, cgroups: bool = True, logs: bool = True, owned: bool = False,
    binds: bool = True, timed: Mapping[Element, int] = MappingProxyType({}), rates: Iterable[str] = (),
) -> str:  # fmt: skip
    """One transaction that puts the tables there whole, whatever stood before.

    `timed`: elements that last for so many seconds. `rates`: chains of rates that elements will lead to.
    """
    text = document(mark, elements, cgroups=cgroups, logs=logs, owned=owned, binds=binds, timed=timed, rates=rates)
    return away("inet", owned=owned) + (away("bridge", owned=owned) if binds else "") + text


def away(family: str, *, owned: bool = False) -> str:
    """Takes a table away that may be there or not."""
    # To name a table with other flags than it has is refused; who knows `persist` knows `destroy` (nft ≥ 1.0.7).
    first = "destroy" if owned else f"table {family} {TABLE} {{}}\ndelete"
    return f"{first} table {family} {TABLE}\n"


def document(
    mark: int, elements: Iterable[Element], *, cgroups: bool = True, logs: bool = True, owned: bool = False,
    binds: bool = True, foreign: Iterable[str] = (), timed: Mapping[Element, int] = MappingProxyType({}),
    rates: Iterable[str] = (),
) -> str:  # fmt: skip
    """The tables with their elements, sorted, as a file for `nft -f`; without those that nft has no words for."""
    by_set: dict[str, list[str]] = {}
    elements = list(elements)
    wordy = [element for element in (*elements, *timed) if not spec_of(element.set).raw]
    for element in sorted(wordy, key=lambda e: (e.set, e.key, e.data)):
        lasting = f" timeout {timed[element]}s" if element in timed else ""
        by_set.setdefault(element.set, []).append(element_text(element) + lasting)
    rates = {*rates, *(chain for element in elements for chain in limiting(element))}
    text = skeleton(mark, cgroups=cgroups, logs=logs, owned=owned, binds=binds, foreign=foreign, rates=rates)
    for name, texts in by_set.items():
        if not spec_of(name).bridge:
            text += f"add element inet {TABLE} {name} {{ {', '.join(texts)} }}\n"
        elif binds:
            text += f"add element bridge {TABLE} {name} {{ {', '.join(texts)} }}\n"
    return text


def element_text(element: Element) -> str:
    """An element in nft's words. Only numbers, addresses and checked interface names can get here."""
    spec = spec_of(element.set)
    key = " . ".join(map(_value_text, spec.key, element.key))
    return f"{key} : {' . '.join(map(_value_text, spec.data, element.data))}" if spec.data else key


def _value_text(expression: str, value: Value) -> str:
    if isinstance(value, IPv4Address | IPv6Address):
        return hex(int(value)) if expression == TARGET else str(value)
    if isinstance(value, int):
        if expression == "meta l4proto":
            return _NAMES.get(value, str(value))
        return {2: "ipv4", 10: "ipv6"}[value] if expression == "meta nfproto" else str(value)
    if expression == "ether saddr":
        return bytes.fromhex(value.replace(":", "")).hex(":")
    return f"jump {value}" if expression == "verdict" else f'"{value}"'
