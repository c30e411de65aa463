"""The chains that exist only while elements need them, as nft's text: base chains (`hooks`) and those of rates. Pure.

`sets.chains_for` tells which an element needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from plugin.nftables import rate_chains
from plugin.nftables.hooks import HOOKS
from plugin.nftables.lookups import set_text
from plugin.nftables.sets import TABLE, SetSpec

#: An element that is added to a new set and deleted again, which makes the kernel shrink the set's buckets.
_NONE = {4: "0.0.0.0", 6: "::"}


class Parts(NamedTuple):
    """A chain with all that belongs to it: sets, and chains with their lines, both by name."""

    sets: dict[str, SetSpec]
    chains: dict[str, tuple[str, ...]]


def parts(name: str) -> Parts:
    """Return the sets and chains of `name`, a name from `sets.chains_for`."""
    if hook := HOOKS.get(name):
        return Parts({}, {name: hook.lines})
    limit = rate_chains.limit(name)
    return Parts(limit.sets, limit.chains)


def inside(names: Iterable[str]) -> str:
    """Return the sets and chains as text inside the table."""
    text = ""
    for name in sorted(names):
        needed = parts(name)
        text += "".join(f"{set_text(key, spec)}\n" for key, spec in needed.sets.items())
        for chain, rules in needed.chains.items():
            text += f"\tchain {chain} {{\n" + "".join(f"\t\t{rule}\n" for rule in rules) + "\t}\n\n"
    return text


def shrunk(names: Iterable[str]) -> str:
    """Return the commands after the table that shrink the sets to the minimum; they grow with use."""
    text = ""
    for name in sorted(names):
        for key, spec in ((key, spec) for key, spec in parts(name).sets.items() if spec.size):
            zero = _NONE[6 if "ip6 saddr" in spec.key else 4]
            element = zero if len(spec.key) == 1 else f"tcp . 0 . {zero}"
            text += "".join(f"{verb} element inet {TABLE} {key} {{ {element} }}\n" for verb in ("add", "delete"))
    return text


def added(names: Iterable[str], flags: str = "") -> str:
    """Return the text that adds these chains to an existing table.

    `flags`: those that the table has, as in its text. The kernel refuses a table with others (nf_tables_updtable).
    """
    names = list(names)
    return f"table inet {TABLE} {{\n{flags}{inside(names)}}}\n{shrunk(names)}"


def removed(names: Iterable[str]) -> str:
    """Return the text that removes these chains from a table; no element may need them any more."""
    text = ""
    for name in sorted(names):
        needed = parts(name)
        text += "".join(f"flush chain inet {TABLE} {chain}\n" for chain in needed.chains)
        text += "".join(f"delete chain inet {TABLE} {chain}\n" for chain in needed.chains)
        text += "".join(f"delete set inet {TABLE} {key}\n" for key in needed.sets)
    return text


def rule_count(names: Iterable[str]) -> int:
    """Return the number of rules that these chains have in the kernel: a base chain's first line is none."""
    return sum(len(lines) - (chain in HOOKS) for name in names for chain, lines in parts(name).chains.items())
